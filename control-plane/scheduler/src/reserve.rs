//! Writes what a pod was given of devices into its claims before the pod is bound: the shell's part of DynamicResources.
//!
//! A claim gets the finalizer that guards it, then its allocation with the pod as consumer, in one write. The core is told
//! what the API answered before anything else happens, so that a device is promised or taken at every moment; where an
//! answer is lost, the claim is read until the API tells. A pod that is not bound after all keeps its claims: it is tried
//! again, and they are where it may go. A claim for extended resources is made first, and noted in the pod's status; one that is
//! left from an attempt that failed is deleted, as upstream.

use std::{sync::Arc, time::Duration};

use hawser_api::{Api, Client, Error, client::DeleteOptions, error::Reason, resource::ObjectKey};
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Pod, PodExtendedResourceClaimStatus},
    resource::v1::{AllocationResult, ResourceClaim},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};
use tracing::debug;

use crate::{
    devices::{FINALIZER, Grant, Unmade, binding_state, is_made, is_reserved_for},
    events,
    notice::until,
    pod::PodInfo,
    scheduler::Scheduler,
};

/// What a claim lacks to be a pod's.
enum Next {
    Nothing,
    Write(Arc<ResourceClaim>),
}

/// Attempts to write a claim that others write at the same time. Those of which the outcome is not known do not count.
const ATTEMPTS: usize = 50;
const TOO_LATE: &str = "context deadline exceeded";
/// Between two looks at a claim whose write has no known outcome, and between two such writes; doubled up to the last.
const LOOK_FIRST: Duration = Duration::from_millis(100);
const LOOK_LAST: Duration = Duration::from_secs(5);

/// The means to write claims, and to tell the core what became of them.
pub(crate) struct Claims<'a> {
    pub(crate) client: &'a Arc<dyn Client>,
    pub(crate) core: &'a Mutex<Scheduler>,
    pub(crate) changed: &'a Notify,
    /// Held by each that writes: a pod that waits for another's write holds none.
    pub(crate) writes: &'a Semaphore,
    pub(crate) start: Instant,
}

impl Claims<'_> {
    /// Returns the claims when all of them are the pod's, or says why they will not be. Nothing is begun after the timeout,
    /// but what was begun is seen to its end, however long that takes: promises are taken back once this returns, and a
    /// device whose claim may still be written is nobody else's.
    pub(crate) async fn reserve(
        &self,
        grants: &[Grant],
        pod: &PodInfo,
        timeout: Duration,
    ) -> Result<Vec<Grant>, String> {
        let deadline = Instant::now() + timeout;
        let mut reserved = Vec::with_capacity(grants.len());
        for grant in grants {
            let grant = match &grant.unmade {
                Some(_) if Instant::now() >= deadline => return Err(TOO_LATE.to_owned()),
                Some(unmade) => {
                    let made = self.make(grant, unmade).await?;
                    self.reserve_one(&made, pod, deadline).await?;
                    self.note(&made, unmade, pod).await?;
                    made
                }
                None => {
                    self.reserve_one(grant, pod, deadline).await?;
                    grant.clone()
                }
            };
            reserved.push(grant);
        }
        Ok(reserved)
    }

    /// Returns when the devices that have to be attached to the node are. A claim of which one never will be is given
    /// back. The time that it may take began with the allocation: a scheduler that starts does not begin anew.
    pub(crate) async fn attached(
        &self,
        grants: &[Grant],
        pod: &PodInfo,
        timeout: Duration,
    ) -> Result<(), String> {
        let work = async {
            for grant in grants {
                self.until_attached(grant).await?;
            }
            Ok(())
        };
        let done = tokio::time::timeout(timeout.saturating_sub(self.waited(grants)), work).await;
        let outcome = done.unwrap_or_else(|_| Err("device binding timeout".to_owned()));
        if outcome.is_err() {
            self.give_back(grants, pod).await;
        }
        outcome
    }

    /// For how long devices have been waited for that are not attached yet.
    fn waited(&self, grants: &[Grant]) -> Duration {
        let core = self.core.lock();
        let since = |grant: &Grant| {
            let claim = core.devices().claim(&grant.claim)?;
            let begun = claim.status.as_ref()?.allocation.as_ref()?.allocation_timestamp.as_ref()?.0;
            let waits = matches!(binding_state(claim), Ok(None));
            waits.then(|| Duration::try_from(Timestamp::now().duration_since(begun)).unwrap_or_default())
        };
        grants.iter().filter_map(since).max().unwrap_or_default()
    }

    /// Takes the claim's devices from it. False where that failed.
    pub(crate) async fn deallocate(&self, claim: &ResourceClaim) -> bool {
        let _permit = self.permit().await;
        let done = match is_made(claim) {
            true => self.delete(claim).await,
            false => self.write_status(claim, unallocated()).await,
        };
        if let Err(error) = &done {
            debug!(claim = ?claim.metadata.name, %error, "cannot deallocate a claim");
        }
        done.is_ok()
    }

    /// Makes the claim; its devices stay promised to what stands for it.
    async fn make(&self, grant: &Grant, unmade: &Unmade) -> Result<Grant, String> {
        let _permit = self.permit().await;
        let claim = self.api(&unmade.claim).create(&unmade.claim).await;
        let claim = claim.map_err(|error| format!("create claim for extended resources: {error}"))?;
        self.tell(&claim);
        let uid = claim.metadata.uid.clone().unwrap_or_default();
        Ok(Grant { claim: ObjectKey::of(&claim), uid, ..grant.clone() })
    }

    /// Tells the pod's kubelet which requests of the claim its containers use.
    async fn note(&self, grant: &Grant, unmade: &Unmade, pod: &PodInfo) -> Result<(), String> {
        let status = PodExtendedResourceClaimStatus {
            request_mappings: unmade.mappings.clone(),
            resource_claim_name: grant.claim.name.clone(),
        };
        let status = json!({ "extendedResourceClaimStatus": status });
        let patch = json!({ "metadata": { "uid": &*pod.uid }, "status": status });
        let pods = Api::<Pod>::namespaced(self.client.clone(), &pod.key.namespace);
        let _permit = self.permit().await;
        let written = pods.merge_patch_status(&pod.key.name, &patch).await;
        written
            .map(drop)
            .map_err(|error| format!("update pod {} ExtendedResourceClaimStatus: {error}", pod.key))
    }

    async fn delete(&self, claim: &ResourceClaim) -> Result<(), Error> {
        let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
        let before = finalizers.len();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if finalizers.len() < before {
            let metadata =
                json!({ "resourceVersion": claim.metadata.resource_version, "finalizers": finalizers });
            let written = self.api(claim).merge_patch(name(claim), &json!({ "metadata": metadata })).await?;
            self.tell(&written);
        }
        let options = DeleteOptions { uid: claim.metadata.uid.clone(), ..DeleteOptions::default() };
        self.api(claim).delete(name(claim), &options).await
    }

    /// An allocation that may be written yet is written again until it is known what came of it, or the claim is gone: one
    /// for each claim that there is, at most.
    async fn reserve_one(&self, grant: &Grant, pod: &PodInfo, deadline: Instant) -> Result<(), String> {
        let key = &grant.claim;
        let (mut may_come, mut known, mut delay) = (false, 0, LOOK_FIRST);
        while known < ATTEMPTS {
            let next = until(self.changed, || self.next(grant, pod).transpose());
            let claim = match timeout_at(deadline, next).await.map_err(|_| TOO_LATE)?? {
                Next::Nothing => return Ok(()),
                // A write whose answer was lost may come after the look: it is written again, so that only one of them can.
                Next::Write(_) if !(may_come && grant.allocation.is_some()) && Instant::now() >= deadline => {
                    return Err(TOO_LATE.to_owned());
                }
                Next::Write(claim) => claim,
            };
            let permit = self.permit().await;
            let written = match &grant.allocation {
                Some(allocation) => self.allocate(&claim, allocation, pod).await,
                None => self.write_status(&claim, reserved(&claim, pod)).await,
            };
            drop(permit);
            may_come = match &written {
                Ok(()) => false,
                Err(error) if error.reason() == Reason::Conflict => false,
                Err(error) => may_come || is_unknown(error),
            };
            known += usize::from(!may_come);
            match written {
                Ok(()) => (),
                Err(error) if error.is_not_found() => return Err(format!("claim {key} is gone")),
                Err(error) if error.reason() == Reason::Conflict => self.read(&claim).await,
                Err(error) if may_come => {
                    debug!(claim = %key, %error, ?delay, "the outcome of a claim's write is unknown");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(LOOK_LAST);
                    self.read(&claim).await;
                }
                Err(error) => {
                    let what =
                        if grant.allocation.is_some() { "allocation and reservation" } else { "reservation" };
                    return Err(format!("add {what} to claim {key}: {error}"));
                }
            }
        }
        Err(format!("add reservation to claim {key}: it changed {ATTEMPTS} times meanwhile"))
    }

    /// What is to be done for the claim to be the pod's; `None` while another pod has its devices written.
    fn next(&self, grant: &Grant, pod: &PodInfo) -> Result<Option<Next>, String> {
        let key = &grant.claim;
        let (claim, promised) = {
            let core = self.core.lock();
            (core.devices().claim(key).cloned(), core.devices().is_promised(grant.promise()))
        };
        let is_same = |claim: &Arc<ResourceClaim>| claim.metadata.uid.as_ref() == Some(&grant.uid);
        let claim = claim.filter(is_same).ok_or_else(|| format!("claim {key} is gone"))?;
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("claim {key} got deleted in the meantime"));
        }
        let status = claim.status.as_ref();
        let is_allocated = status.is_some_and(|status| status.allocation.is_some());
        match &grant.allocation {
            _ if is_allocated && is_reserved_for(&claim, &pod.uid) => Ok(Some(Next::Nothing)),
            Some(_) if is_allocated => Err(format!("claim {key} got allocated elsewhere in the meantime")),
            Some(_) if !promised => Err(format!("claim {key} is not promised any more")),
            None if !is_allocated && promised => Ok(None),
            None if !is_allocated => Err(format!("claim {key} is not allocated any more")),
            _ => Ok(Some(Next::Write(claim))),
        }
    }

    async fn allocate(
        &self,
        claim: &ResourceClaim,
        allocation: &AllocationResult,
        pod: &PodInfo,
    ) -> Result<(), Error> {
        let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
        let mut guarded = None;
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
            let metadata =
                json!({ "resourceVersion": claim.metadata.resource_version, "finalizers": finalizers });
            let written = self.api(claim).merge_patch(name(claim), &json!({ "metadata": metadata })).await?;
            self.tell(&written);
            guarded = Some(written);
        }
        let claim = guarded.as_ref().unwrap_or(claim);
        let mut status = reserved(claim, pod);
        status["allocation"] =
            serde_json::to_value(allocation).map_err(|error| Error::internal(error.to_string()))?;
        status["allocation"]["allocationTimestamp"] = events::seconds(Timestamp::now()).into();
        self.write_status(claim, status).await
    }

    /// The version makes a write of a claim that changed meanwhile fail: the decision was about what it was.
    async fn write_status(&self, claim: &ResourceClaim, status: Value) -> Result<(), Error> {
        let metadata = json!({ "resourceVersion": claim.metadata.resource_version });
        let patch = json!({ "metadata": metadata, "status": status });
        let written = self.api(claim).merge_patch_status(name(claim), &patch).await?;
        self.tell(&written);
        Ok(())
    }

    /// Reads the claim until the API tells what it is.
    async fn read(&self, claim: &ResourceClaim) {
        let api = self.api(claim);
        let mut delay = LOOK_FIRST;
        loop {
            match api.find(name(claim)).await {
                Ok(Some(found)) => return self.tell(&found),
                Ok(None) => return,
                Err(error) => debug!(claim = name(claim), %error, ?delay, "cannot read a claim"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LOOK_LAST);
        }
    }

    async fn until_attached(&self, grant: &Grant) -> Result<(), String> {
        let look = || {
            let claim = self.core.lock().devices().claim(&grant.claim).cloned();
            let claim = claim.ok_or_else(|| format!("claim {} is gone", grant.claim));
            claim.and_then(|claim| binding_state(&claim)).transpose()
        };
        until(self.changed, look).await
    }

    /// Claims that wait for a device are of no use to the pod any more. Those that others use stay as they are.
    async fn give_back(&self, grants: &[Grant], pod: &PodInfo) {
        for grant in grants {
            let claim = self.core.lock().devices().claim(&grant.claim).cloned();
            let Some(claim) = claim.filter(|claim| !matches!(binding_state(claim), Ok(Some(())))) else {
                continue;
            };
            let consumers = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
            if consumers.into_iter().all(|consumer| *consumer.uid == *pod.uid) {
                self.deallocate(&claim).await;
            }
        }
    }

    async fn permit(&self) -> SemaphorePermit<'_> {
        self.writes.acquire().await.expect("the semaphore is never closed")
    }

    fn tell(&self, claim: &ResourceClaim) {
        self.core.lock().device_claim_changed(claim, self.start.elapsed());
        self.changed.notify_waiters();
    }

    fn api(&self, claim: &ResourceClaim) -> Api<ResourceClaim> {
        Api::namespaced(self.client.clone(), claim.metadata.namespace.as_deref().unwrap_or_default())
    }
}

fn name(claim: &ResourceClaim) -> &str {
    claim.metadata.name.as_deref().unwrap_or_default()
}

/// The write may have happened.
fn is_unknown(error: &Error) -> bool {
    !matches!(
        error.reason(),
        Reason::BadRequest
            | Reason::Unauthorized
            | Reason::Forbidden
            | Reason::MethodNotAllowed
            | Reason::AlreadyExists
            | Reason::Invalid
            | Reason::TooManyRequests
    )
}

fn reserved(claim: &ResourceClaim, pod: &PodInfo) -> Value {
    let status = claim.status.as_ref();
    let mut consumers = json!(status.and_then(|status| status.reserved_for.clone()).unwrap_or_default());
    if let Some(consumers) = consumers.as_array_mut() {
        consumers.push(json!({ "resource": "pods", "name": pod.key.name, "uid": &*pod.uid }));
    }
    json!({ "reservedFor": consumers })
}

fn unallocated() -> Value {
    json!({ "allocation": null, "reservedFor": null, "devices": null })
}
