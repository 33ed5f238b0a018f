//! Volume protection: lets claims and volumes that are asked to go do so once nothing uses them.
//!
//! Admission gives each claim the finalizer `kubernetes.io/pvc-protection` and each volume `kubernetes.io/pv-protection`.
//! A claim is in use while a pod that has not ended mounts it, a volume while it is bound. Before a claim is let go the
//! pods of its namespace are read from the API: the cache may not have a pod that was made a moment ago, and admission
//! does not look at claims.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{Api, Error, client::ListOptions, resource::ObjectKey};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::json;
use tracing::info;

use crate::{
    Context, Starts,
    caches::{claim_term, claims_of},
    meta::{MetaExt, pod_is_terminal, pod_node},
    queue::Queue,
    worker::{Next, Reconciler},
};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

pub(crate) fn register(starts: &mut Starts<'_>) {
    let (context, workers) = (starts.context.clone(), starts.context.config.workers);
    if starts.wants("persistentvolumeclaim-protection") {
        let queue = Queue::new();
        let changed = queue.clone();
        context.caches.claims.on_change(move |change| {
            if change.new.is_some_and(|claim| claim.is_deleting()) {
                changed.add(change.key.clone());
            }
        });
        let changed = queue.clone();
        context.caches.pods.on_change(move |change| {
            let Some(old) = change.old else { return };
            if change.new.is_none_or(|new| pod_is_terminal(new)) {
                claims_of(old).into_iter().for_each(|claim| changed.add(claim));
            }
        });
        starts.add(Claims { context: context.clone() }, queue, workers);
    }
    if starts.wants("persistentvolume-protection") {
        let queue = Queue::new();
        let changed = queue.clone();
        context.caches.volumes.on_change(move |change| {
            if change.new.is_some_and(|volume| volume.is_deleting()) {
                changed.add(change.key.clone());
            }
        });
        starts.add(Volumes { context }, queue, workers);
    }
}

struct Claims {
    context: Arc<Context>,
}

#[async_trait]
impl Reconciler for Claims {
    type Key = ObjectKey;

    const NAME: &'static str = "persistentvolumeclaim-protection";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(claim) = self.context.caches.claims.get(key) else { return Ok(Next::Done) };
        if !claim.is_deleting() || !has(&*claim, CLAIM_FINALIZER) {
            return Ok(Next::Done);
        }
        let uses =
            |pod: &Pod| !pod_is_terminal(pod) && pod_node(pod).is_some() && claims_of(pod).contains(key);
        if self.context.caches.pods_by_claim.get(&claim_term(key)).iter().any(|pod| uses(pod)) {
            // The pod's end brings the claim back.
            return Ok(Next::Done);
        }
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let (pods, _) = pods.list(&ListOptions::default()).await?;
        if pods.iter().any(uses) {
            return Ok(Next::Done);
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let patch = without(&*claim, CLAIM_FINALIZER);
        release(api.merge_patch(&key.name, &patch).await.map(drop), key, "claim")
    }
}

struct Volumes {
    context: Arc<Context>,
}

#[async_trait]
impl Reconciler for Volumes {
    type Key = ObjectKey;

    const NAME: &'static str = "persistentvolume-protection";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(volume) = self.context.caches.volumes.get(key) else { return Ok(Next::Done) };
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        if !volume.is_deleting() || !has(&*volume, VOLUME_FINALIZER) || phase == Some("Bound") {
            return Ok(Next::Done);
        }
        let api: Api<PersistentVolume> = Api::all(self.context.client.clone());
        let patch = without(&*volume, VOLUME_FINALIZER);
        release(api.merge_patch(&key.name, &patch).await.map(drop), key, "volume")
    }
}

fn has<K: MetaExt>(object: &K, finalizer: &str) -> bool {
    object.meta().finalizers.iter().flatten().any(|known| known == finalizer)
}

/// The patch that takes the finalizer away from this very version.
fn without<K: MetaExt>(object: &K, finalizer: &str) -> serde_json::Value {
    let left: Vec<&String> =
        object.meta().finalizers.iter().flatten().filter(|known| *known != finalizer).collect();
    json!({ "metadata": {
        "uid": object.uid(), "resourceVersion": object.resource_version(), "finalizers": left,
    } })
}

fn release(outcome: Result<(), Error>, key: &ObjectKey, what: &str) -> Result<Next, Error> {
    match outcome {
        Ok(()) => info!(%key, what, "nothing uses it any more"),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    Ok(Next::Done)
}

#[cfg(test)]
mod tests {
    use hawser_api::client::DeleteOptions;

    use super::*;
    use crate::testing::{FakeApi, Running};

    #[tokio::test(start_paused = true)]
    async fn a_claim_goes_when_the_last_pod_that_mounts_it_has_ended() {
        let api = FakeApi::new();
        let _running = Running::start(&api, &["persistentvolumeclaim-protection"]);
        for name in ["used", "free"] {
            api.put::<PersistentVolumeClaim>(json!({ "metadata": {
                "name": name, "namespace": "default", "finalizers": [CLAIM_FINALIZER],
            } }));
        }
        api.put::<Pod>(json!({
            "metadata": { "name": "a", "namespace": "default" },
            "spec": { "nodeName": "n1", "containers": [], "volumes": [
                { "name": "data", "persistentVolumeClaim": { "claimName": "used" } },
            ] },
        }));
        for name in ["used", "free"] {
            api.remove::<PersistentVolumeClaim>("default", name, &DeleteOptions::default());
        }
        let is_there =
            |api: &FakeApi, name: &str| api.read::<PersistentVolumeClaim>("default", name).is_some();
        api.until("the other one is gone", |api| !is_there(api, "free")).await;
        assert!(is_there(&api, "used"));
        api.patch_status::<Pod>("default", "a", json!({ "status": { "phase": "Succeeded" } }));
        api.until("it is gone", |api| !is_there(api, "used")).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_goes_when_it_is_not_bound_any_more() {
        let api = FakeApi::new();
        let _running = Running::start(&api, &["persistentvolume-protection"]);
        api.put::<PersistentVolume>(json!({
            "metadata": { "name": "v", "finalizers": [VOLUME_FINALIZER] }, "status": { "phase": "Bound" },
        }));
        api.remove::<PersistentVolume>("", "v", &DeleteOptions::default());
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        assert!(api.read::<PersistentVolume>("", "v").is_some());
        api.patch_status::<PersistentVolume>("", "v", json!({ "status": { "phase": "Released" } }));
        api.until("it is gone", |api| api.read::<PersistentVolume>("", "v").is_none()).await;
    }
}
