//! Takes a StatefulSet's steps: writes pods and claims, and tells of it.

use hawser_api::{Api, Error, error::Reason, resource::ObjectKey, typed::Kind};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec},
};
use serde_json::{Map, Value, json};

use super::{
    claims,
    identity::{self, ordinal, start},
    plan::{Claims, Step, partition},
};
use crate::{
    Context,
    events::Recorder,
    meta::{MetaExt, only_this},
};

/// A revision by name, with its template.
pub(super) struct Version {
    pub(super) name: String,
    pub(super) template: PodTemplateSpec,
}

pub(super) struct Actor<'a> {
    pub(super) context: &'a Context,
    pub(super) recorder: &'a Recorder,
    pub(super) set: &'a StatefulSet,
    pub(super) current: Version,
    pub(super) update: Version,
}

impl Claims for Actor<'_> {
    fn is_stale(&self, ordinal: i32) -> bool {
        let pod_name = format!("{}-{ordinal}", self.set.name());
        let claims = identity::claims(self.set, ordinal);
        claims
            .iter()
            .filter_map(|(_, claim)| self.cached(claim))
            .any(|claim| claims::is_stale(self.set, &pod_name, &claim))
    }

    fn needs_repair(&self, pod: &Pod) -> bool {
        identity::missing_labels(self.set, pod).is_some() || !self.misowned(pod).is_empty()
    }
}

impl Actor<'_> {
    fn api<K: Kind>(&self) -> Api<K> {
        Api::namespaced(self.context.client.clone(), self.set.namespace())
    }

    fn cached(&self, claim: &PersistentVolumeClaim) -> Option<std::sync::Arc<PersistentVolumeClaim>> {
        self.context.caches.claims.get(&ObjectKey::of(claim))
    }

    pub(super) async fn take(&self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Create(ordinal) => self.create(*ordinal).await,
            Step::MakeClaims(pod) => self.make_claims(pod.name(), ordinal(self.set, pod)).await,
            Step::Repair(pod) => self.repair(pod).await,
            Step::Delete(pod) => self.delete(pod).await,
        }
    }

    async fn create(&self, ordinal: i32) -> Result<(), Error> {
        let version = if self.stays_current(ordinal) { &self.current } else { &self.update };
        let pod = identity::pod(self.set, &version.template, &version.name, ordinal);
        let outcome = match self.make_claims(pod.name(), Some(ordinal)).await {
            Ok(()) => self.api::<Pod>().create(&pod).await.map(drop),
            Err(error) => Err(error),
        };
        match outcome {
            Err(error) if error.is_already_exists() => self.must_be_ours(pod.name(), error).await,
            outcome => {
                self.tell("create", "Create", &pod, outcome.as_ref().err());
                outcome
            }
        }
    }

    /// The cache may not show yet what was made; another's pod of the name is waited for.
    async fn must_be_ours(&self, name: &str, error: Error) -> Result<(), Error> {
        let existing = self.api::<Pod>().find(name).await?;
        let owner = existing.as_ref().and_then(|pod| pod.controller());
        if owner.is_some_and(|owner| owner.uid == self.set.uid()) { Ok(()) } else { Err(error) }
    }

    /// A pod below the partition is made from what the others there have.
    fn stays_current(&self, ordinal: i32) -> bool {
        let strategy = identity::spec(self.set).update_strategy.as_ref();
        if strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("OnDelete")) {
            return false;
        }
        let kept = match strategy.and_then(|strategy| strategy.rolling_update.as_ref()) {
            Some(_) => partition(self.set),
            None => self.set.status.as_ref().and_then(|status| status.current_replicas),
        };
        ordinal < start(self.set).saturating_add(kept.unwrap_or_default())
    }

    async fn make_claims(&self, pod_name: &str, ordinal: Option<i32>) -> Result<(), Error> {
        let Some(ordinal) = ordinal else { return Ok(()) };
        for (_, mut claim) in identity::claims(self.set, ordinal) {
            claim.metadata.owner_references = claims::first_owners(self.set);
            if let Some(existing) = self.cached(&claim) {
                if existing.is_deleting() {
                    let message = format!("pvc {} is being deleted", claim.name());
                    return Err(Error::new(Reason::Conflict, message));
                }
                continue;
            }
            let (name, set) = (claim.name(), self.set.name());
            match self.api::<PersistentVolumeClaim>().create(&claim).await {
                Ok(_) => {
                    let message = format!("create Claim {name} Pod {pod_name} in StatefulSet {set} success");
                    self.recorder.normal(self.set, "SuccessfulCreate", message);
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => {
                    let message = format!(
                        "create Claim {name} for Pod {pod_name} in StatefulSet {set} failed error: {error}"
                    );
                    self.recorder.warning(self.set, "FailedCreate", message);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn repair(&self, pod: &Pod) -> Result<(), Error> {
        for claim in self.misowned(pod) {
            self.api::<PersistentVolumeClaim>().update(&claim).await?;
        }
        let Some(labels) = identity::missing_labels(self.set, pod) else { return Ok(()) };
        let labels: Map<String, Value> =
            labels.into_iter().map(|(label, value)| (label, Value::from(value))).collect();
        let patch = json!({ "metadata": { "uid": pod.uid(), "labels": labels } });
        let outcome = self.api::<Pod>().merge_patch(pod.name(), &patch).await.map(drop);
        self.tell("update", "Update", pod, outcome.as_ref().err());
        outcome
    }

    /// The pod's claims with the owners that they should have and do not.
    fn misowned(&self, pod: &Pod) -> Vec<PersistentVolumeClaim> {
        let claims = ordinal(self.set, pod).map(|ordinal| identity::claims(self.set, ordinal));
        let claims = claims.into_iter().flatten().filter_map(|(_, claim)| self.cached(&claim));
        let changed = claims.filter_map(|claim| {
            let owners = claims::new_owners(self.set, pod, &claim)?;
            let mut changed = (*claim).clone();
            changed.metadata.owner_references = Some(owners);
            Some(changed)
        });
        changed.collect()
    }

    async fn delete(&self, pod: &Pod) -> Result<(), Error> {
        match self.api::<Pod>().delete(pod.name(), &only_this(pod)).await {
            // Another pod has the name now, so this one is gone.
            Err(error) if error.is_conflict() => Ok(()),
            outcome => {
                self.tell("delete", "Delete", pod, outcome.as_ref().err());
                outcome
            }
        }
    }

    fn tell(&self, verb: &str, noun: &'static str, pod: &Pod, error: Option<&Error>) {
        let what = format!("{verb} Pod {} in StatefulSet {}", pod.name(), self.set.name());
        let reasons = match noun {
            "Create" => ("SuccessfulCreate", "FailedCreate"),
            "Update" => ("SuccessfulUpdate", "FailedUpdate"),
            _ => ("SuccessfulDelete", "FailedDelete"),
        };
        match error {
            None => self.recorder.normal(self.set, reasons.0, format!("{what} successful")),
            Some(error) => {
                self.recorder.warning(self.set, reasons.1, format!("{what} failed error: {error}"))
            }
        }
    }
}
