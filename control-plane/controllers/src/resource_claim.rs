//! Claims of devices (KEP-4381): made for pods from templates, and given back when nobody uses them any more.
//!
//! A pod that names a ResourceClaimTemplate gets a claim of its own, which goes with it, and finds its name in
//! `status.resourceClaimStatuses`; the name follows from the pod's uid, so that no claim is made twice. Pods that have ended
//! are taken out of `reservedFor`; a claim that is reserved for nobody gives its devices back and loses the finalizer that
//! kept it; one that a scheduler made for extended resources too. A claim that goes with its pod is deleted first, and gives
//! its devices back by the write that lets it go. A pod that was put on its node by hand has its allocated claims reserved
//! here, as no scheduler does it.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::Arc,
};

use async_trait::async_trait;
use hawser_api::{Api, Error, client::DeleteOptions, error::Reason, resource::ObjectKey};
use k8s_openapi::{
    api::{
        core::v1::{Pod, PodResourceClaim},
        resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tracing::info;

use crate::{
    Context, Starts,
    caches::claim_term,
    events::Recorder,
    meta::{MetaExt, controller_reference, pod_is_terminal, pod_node},
    pods::namespace_is_ending,
    queue::Queue,
    template::hash,
    worker::{Next, Reconciler},
};

/// Which of the pod's claims a generated one is.
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Keeps an allocated claim from being removed.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Of one claim; the API takes no more.
const MOST_CONSUMERS: usize = 256;
/// Names that are tried for a generated claim where others have taken the first.
const NAMES: i32 = 8;
/// Of the part of a name before the suffix, in bytes; as upstream's API server.
const LONGEST_PREFIX: usize = 57;
/// Upstream's default of `--concurrent-resource-claim-syncs`: they wait for writes, which the store commits together.
const WORKERS: usize = 50;
/// Pods that are remembered as gone. One that is forgotten is asked for.
const MOST_GONE: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Pod(ObjectKey),
    Claim(ObjectKey),
}

impl fmt::Display for Key {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(to, "pod {key}"),
            Self::Claim(key) => write!(to, "claim {key}"),
        }
    }
}

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("resourceclaim-controller") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let gone = Arc::new(Mutex::new(Gone::default()));
    let (changed, noted) = (queue.clone(), gone.clone());
    context.caches.pods.on_change(move |change| {
        let claims = |pod: &Arc<Pod>| claims_of(pod).map(Key::Claim).collect::<Vec<_>>();
        let uses_claims = |pod: &&Arc<Pod>| claims_in(pod).next().is_some() || extended(pod).is_some();
        let is_gone = |old: &&Arc<Pod>| change.new.is_none_or(|new| new.uid() != old.uid());
        if let Some(old) = change.old.filter(is_gone).filter(uses_claims) {
            noted.lock().add(old.uid());
            claims(old).into_iter().for_each(|claim| changed.add(claim));
        }
        let Some(pod) = change.new.filter(uses_claims) else { return };
        if is_news(pod, change.old.map(|old| &**old)) {
            changed.add(Key::Pod(change.key.clone()));
        }
        if is_done(pod) {
            claims(pod).into_iter().for_each(|claim| changed.add(claim));
        }
    });
    // Weak: the caches, which own the handlers, are in the context.
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.resource_claims.on_change(move |change| {
        changed.add(Key::Claim(change.key.clone()));
        let takes = |claim: Option<&Arc<ResourceClaim>>| claim.is_some_and(|claim| may_be_reserved(claim));
        if takes(change.new)
            && !takes(change.old)
            && let Some(context) = weak.upgrade()
        {
            let naming = context.caches.pods_by_resource_claim.get(&claim_term(change.key));
            naming.iter().for_each(|pod| changed.add(Key::Pod(ObjectKey::of(&**pod))));
        }
        // One that was deleted is made again.
        let gone = change.old.filter(|_| change.new.is_none());
        if let Some(owner) = gone.and_then(|claim| claim.controller()).filter(|owner| owner.kind == "Pod") {
            changed.add(Key::Pod(ObjectKey::new(&change.key.namespace, owner.name.as_str())));
        }
    });
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.resource_claim_templates.on_change(move |change| {
        if change.old.is_none()
            && let Some(context) = weak.upgrade()
        {
            let waiting = context.caches.pods_by_namespace.get(&change.key.namespace);
            let naming = waiting.iter().filter(|pod| {
                claims_in(pod)
                    .any(|claim| claim.resource_claim_template_name.as_ref() == Some(&change.key.name))
            });
            naming.for_each(|pod| changed.add(Key::Pod(ObjectKey::of(&**pod))));
        }
    });
    let recorder = context.recorder.of("resource_claim");
    let workers = context.config.workers.max(WORKERS);
    starts.add(Controller { context, recorder, gone }, queue, workers);
}

/// Pods with claims that are known to be gone, by uid: the last [`MOST_GONE`].
#[derive(Default)]
struct Gone {
    uids: HashSet<String>,
    /// The oldest first.
    order: VecDeque<String>,
}

impl Gone {
    fn add(&mut self, uid: &str) {
        if !self.uids.insert(uid.to_owned()) {
            return;
        }
        self.order.push_back(uid.to_owned());
        if self.order.len() > MOST_GONE
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
    }
}

fn claims_in(pod: &Pod) -> impl Iterator<Item = &PodResourceClaim> {
    pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten())
}

/// The name of the claim that was made for the pod, as its status has it.
fn noted<'a>(pod: &'a Pod, claim: &str) -> Option<&'a str> {
    let status = pod.status.as_ref()?;
    let noted = status.resource_claim_statuses.as_ref()?.iter().find(|status| status.name == claim)?;
    noted.resource_claim_name.as_deref()
}

/// The claim that a scheduler made for what the pod asks for as extended resources (KEP-5004).
fn extended(pod: &Pod) -> Option<&str> {
    let claim = pod.status.as_ref()?.extended_resource_claim_status.as_ref()?;
    Some(claim.resource_claim_name.as_str())
}

/// All claims that the pod uses, as far as they are known.
pub(crate) fn claims_of(pod: &Pod) -> impl Iterator<Item = ObjectKey> {
    let name = |claim: &PodResourceClaim| match &claim.resource_claim_name {
        Some(name) => Some(name.clone()),
        None => noted(pod, &claim.name).map(str::to_owned),
    };
    let names = claims_in(pod).filter_map(name).chain(extended(pod).map(str::to_owned));
    names.map(move |name| ObjectKey::new(pod.namespace(), name))
}

/// Whether there may be something to do for the pod that was not when it was seen as `before`: its own claims are all made
/// and noted, and what becomes of claims is heard of with them.
fn is_news(pod: &Pod, before: Option<&Pod>) -> bool {
    let Some(before) = before.filter(|before| before.uid() == pod.uid()) else { return true };
    let is_unmade = |claim: &PodResourceClaim| {
        claim.resource_claim_template_name.is_some() && noted(pod, &claim.name).is_none()
    };
    claims_in(pod).any(is_unmade)
        || pod_node(before) != pod_node(pod)
        || !claims_of(before).eq(claims_of(pod))
}

/// The pod will use no devices any more: it has ended, or is deleted before it began.
fn is_done(pod: &Pod) -> bool {
    pod_is_terminal(pod) || (pod.is_deleting() && pod_node(pod).is_none())
}

fn consumers(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default()
}

fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|status| status.allocation.is_some())
}

/// A pod may be added to those that use it.
fn may_be_reserved(claim: &ResourceClaim) -> bool {
    is_allocated(claim) && !claim.is_deleting() && consumers(claim).len() < MOST_CONSUMERS
}

fn has_finalizer(claim: &ResourceClaim) -> bool {
    claim.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

/// `taken` is how many names before this one are others'.
fn generated(pod: &Pod, claim: &str, template: &ResourceClaimTemplate, taken: i32) -> ResourceClaim {
    let from = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = from.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM.to_owned(), claim.to_owned());
    let prefix: String = format!("{}-{claim}", pod.name()).chars().take(LONGEST_PREFIX).collect();
    let suffix = hash(&json!([pod.uid(), claim]), Some(taken));
    ResourceClaim {
        metadata: ObjectMeta {
            name: Some(format!("{prefix}-{suffix}")),
            namespace: pod.metadata.namespace.clone(),
            labels: from.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
    gone: Arc<Mutex<Gone>>,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = Key;

    const NAME: &'static str = "resourceclaim-controller";

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        match key {
            Key::Pod(key) => self.pod(key).await?,
            Key::Claim(key) => self.claim(key).await?,
        }
        Ok(Next::Done)
    }
}

impl Controller {
    /// Makes the pod's claims and notes their names.
    async fn pod(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(pod) = self.context.caches.pods.get(key) else { return Ok(()) };
        if pod.is_deleting() || is_done(&pod) {
            return Ok(());
        }
        let mut statuses = Vec::new();
        for claim in claims_in(&pod) {
            let Some(template) = &claim.resource_claim_template_name else { continue };
            match self.ensure(&pod, &claim.name, template).await {
                Ok(Some(name)) => statuses.push(json!({ "name": claim.name, "resourceClaimName": name })),
                Ok(None) => return Ok(()),
                Err(error) => {
                    let message = format!("PodResourceClaim {}: {error}", claim.name);
                    self.recorder.warning(&*pod, "FailedResourceClaimCreation", message);
                    return Err(error);
                }
            }
        }
        let noted = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_ref());
        if !statuses.is_empty() && json!(noted) != json!(statuses) {
            let patch =
                json!({ "metadata": { "uid": pod.uid() }, "status": { "resourceClaimStatuses": statuses } });
            let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), pod.namespace());
            match pods.merge_patch_status(pod.name(), &patch).await {
                Err(error) if error.is_not_found() => return Ok(()),
                outcome => drop(outcome?),
            }
        }
        if pod_node(&pod).is_some() {
            for key in claims_of(&pod) {
                self.reserve(&pod, &key).await?;
            }
        }
        Ok(())
    }

    /// The name of the pod's claim; `None` where the namespace is ending.
    async fn ensure(&self, pod: &Pod, claim: &str, template: &str) -> Result<Option<String>, Error> {
        let namespace = pod.namespace();
        let claims: Api<ResourceClaim> = Api::namespaced(self.context.client.clone(), namespace);
        if let Some(known) = noted(pod, claim).map(|name| ObjectKey::new(namespace, name)) {
            let found = match self.context.caches.resource_claims.get(&known) {
                // The cache may not have a claim that was made a moment ago.
                None => claims.find(&known.name).await?.map(Arc::new),
                found => found,
            };
            if let Some(found) = found {
                return is_own(pod, &found).map(|()| Some(known.name));
            }
        }
        let key = ObjectKey::new(namespace, template);
        let template = self.context.caches.resource_claim_templates.get(&key);
        let template = template.ok_or_else(|| {
            Error::new(Reason::NotFound, format!("resource claim template {:?}: not found", key.name))
        })?;
        let mut outcome = Ok(None);
        for taken in 0..NAMES {
            let wanted = generated(pod, claim, &template, taken);
            let name = wanted.name().to_owned();
            outcome = match claims.create(&wanted).await {
                Ok(_) => return Ok(Some(name)),
                Err(error) if error.is_already_exists() => match claims.find(&name).await? {
                    Some(found) => is_own(pod, &found).map(|()| Some(name)),
                    None => return Err(error),
                },
                Err(error) if namespace_is_ending(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Reserves an allocated claim for a pod that has its node already. One that has no room is looked at when it has.
    async fn reserve(&self, pod: &Pod, key: &ObjectKey) -> Result<(), Error> {
        let Some(claim) = self.context.caches.resource_claims.get(key) else { return Ok(()) };
        if !may_be_reserved(&claim) || consumers(&claim).iter().any(|consumer| consumer.uid == pod.uid()) {
            return Ok(());
        }
        let mut all = consumers(&claim).to_vec();
        all.push(ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
        });
        self.write(&claim, json!({ "reservedFor": all })).await.map(drop)
    }

    /// Takes consumers that are gone from the claim, and its devices where none is left.
    async fn claim(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(claim) = self.context.caches.resource_claims.get(key) else { return Ok(()) };
        let mut left = Vec::new();
        for consumer in consumers(&claim) {
            if self.uses(&claim, consumer).await? {
                left.push(consumer);
            }
        }
        if !left.is_empty() {
            if left.len() < consumers(&claim).len() {
                self.write(&claim, json!({ "reservedFor": left })).await?;
            }
            return Ok(());
        }
        if self.is_of_no_use(&claim) {
            return self.delete(&claim).await;
        }
        let was_used = !consumers(&claim).is_empty();
        if !was_used && !claim.is_deleting() {
            return Ok(());
        }
        let mut claim = (*claim).clone();
        let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        // Where nothing else keeps it, it goes with its allocation.
        let goes = claim.is_deleting() && finalizers.is_empty() && has_finalizer(&claim);
        if is_allocated(&claim) && !goes {
            let none = json!({ "allocation": null, "reservedFor": null, "devices": null });
            let Some(written) = self.write(&claim, none).await? else { return Ok(()) };
            claim = written;
        }
        // Without an allocation, the finalizer is a scheduler's that is about to write one, unless the claim has had one.
        if has_finalizer(&claim) {
            let metadata = json!({
                "uid": claim.uid(), "resourceVersion": claim.resource_version(), "finalizers": finalizers,
            });
            let written = self.api(&claim).merge_patch(claim.name(), &json!({ "metadata": metadata })).await;
            if !written.as_ref().is_err_and(Error::is_not_found) {
                written?;
            }
            info!(%key, "nobody uses the claim any more: its devices are free");
        }
        Ok(())
    }

    /// A claim that was made for a pod that has ended goes before the pod does, and with a pod that is gone.
    fn is_of_no_use(&self, claim: &ResourceClaim) -> bool {
        let Some(owner) = claim.controller().filter(|owner| owner.kind == "Pod") else { return false };
        let key = ObjectKey::new(claim.namespace(), owner.name.as_str());
        // Where the pod is not known at all, the garbage collector knows it.
        let pod = self.context.caches.pods.get(&key).filter(|pod| pod.uid() == owner.uid);
        !claim.is_deleting()
            && pod.map_or_else(|| self.gone.lock().uids.contains(&owner.uid), |pod| is_done(&pod))
    }

    /// Deletes the claim as it was seen: somebody may come to use it meanwhile.
    async fn delete(&self, claim: &ResourceClaim) -> Result<(), Error> {
        let options = DeleteOptions {
            uid: claim.metadata.uid.clone(),
            resource_version: claim.metadata.resource_version.clone(),
            ..DeleteOptions::default()
        };
        self.api(claim).delete_if_there(claim.name(), &options).await.map(drop)
    }

    /// Whether the consumer still uses the claim. Others than pods are left alone.
    async fn uses(
        &self,
        claim: &ResourceClaim,
        consumer: &ResourceClaimConsumerReference,
    ) -> Result<bool, Error> {
        if consumer.api_group.as_deref().is_some_and(|group| !group.is_empty()) || consumer.resource != "pods"
        {
            return Ok(true);
        }
        let key = ObjectKey::new(claim.namespace(), consumer.name.as_str());
        let cached = self.context.caches.pods.get(&key).filter(|pod| pod.uid() == consumer.uid);
        if let Some(pod) = cached {
            return Ok(!is_done(&pod));
        }
        if self.gone.lock().uids.contains(&consumer.uid) {
            return Ok(false);
        }
        // The cache may not have a pod that was made a moment ago.
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), claim.namespace());
        let found = pods.find(&consumer.name).await?.filter(|pod| pod.uid() == consumer.uid);
        Ok(found.is_some_and(|pod| !is_done(&pod)))
    }

    /// Writes the status of this very version; `None` where the claim is gone.
    async fn write(&self, claim: &ResourceClaim, status: Value) -> Result<Option<ResourceClaim>, Error> {
        let metadata = json!({ "uid": claim.uid(), "resourceVersion": claim.resource_version() });
        let patch = json!({ "metadata": metadata, "status": status });
        match self.api(claim).merge_patch_status(claim.name(), &patch).await {
            Err(error) if error.is_not_found() => Ok(None),
            outcome => outcome.map(Some),
        }
    }

    fn api(&self, claim: &ResourceClaim) -> Api<ResourceClaim> {
        Api::namespaced(self.context.client.clone(), claim.namespace())
    }
}

fn is_own(pod: &Pod, claim: &ResourceClaim) -> Result<(), Error> {
    if claim.controller().is_some_and(|owner| owner.uid == pod.uid()) {
        return Ok(());
    }
    let (namespace, name) = (pod.namespace(), pod.name());
    let message = format!(
        "ResourceClaim {namespace}/{} was not created for Pod {namespace}/{name} (Pod is not owner)",
        claim.name()
    );
    Err(Error::new(Reason::Conflict, message))
}

#[cfg(test)]
#[path = "resource_claim_tests.rs"]
mod tests;
