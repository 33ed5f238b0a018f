//! Claims of generic ephemeral volumes: made for a pod, owned by it, and gone with it (KEP-1698).

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{Api, Error, error::Reason, resource::ObjectKey};
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimTemplate, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    Context, Starts,
    events::Recorder,
    meta::{MetaExt, controller_reference, pod_is_terminal},
    pods::namespace_is_ending,
    queue::Queue,
    worker::{Next, Reconciler},
};

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("ephemeral-volume") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.pods.on_change(move |change| {
        // Volumes of a pod never change: one look, when it comes, is enough, and failures are tried again.
        if change.old.is_none() && change.new.is_some_and(|pod| templates(pod).next().is_some()) {
            changed.add(change.key.clone());
        }
    });
    let changed = queue.clone();
    context.caches.claims.on_change(move |change| {
        // A claim that was deleted is made again, one of an earlier pod makes room.
        let Some(claim) = change.old.filter(|_| change.new.is_none()) else { return };
        if let Some(owner) = claim.controller().filter(|owner| owner.kind == "Pod") {
            changed.add(ObjectKey::new(claim.namespace(), owner.name.as_str()));
        }
    });
    let recorder = context.recorder.of("ephemeral_volume");
    let workers = context.config.workers;
    starts.add(Controller { context, recorder }, queue, workers);
}

/// The pod's volumes that are claims of its own.
fn templates(pod: &Pod) -> impl Iterator<Item = (&str, &PersistentVolumeClaimTemplate)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let source = volume.ephemeral.as_ref()?;
        Some((volume.name.as_str(), source.volume_claim_template.as_ref()?))
    })
}

fn claim(pod: &Pod, volume: &str, template: &PersistentVolumeClaimTemplate) -> PersistentVolumeClaim {
    let from = template.metadata.clone().unwrap_or_default();
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{volume}", pod.name())),
            namespace: pod.metadata.namespace.clone(),
            labels: from.labels,
            annotations: from.annotations,
            owner_references: Some(vec![controller_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    }
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "ephemeral-volume";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(pod) = self.context.caches.pods.get(key) else { return Ok(Next::Done) };
        if pod.is_deleting() || pod_is_terminal(&pod) {
            return Ok(Next::Done);
        }
        for (volume, template) in templates(&pod) {
            self.ensure(&pod, claim(&pod, volume, template)).await?;
        }
        Ok(Next::Done)
    }
}

impl Controller {
    async fn ensure(&self, pod: &Pod, wanted: PersistentVolumeClaim) -> Result<(), Error> {
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.context.client.clone(), pod.namespace());
        let name = wanted.name().to_owned();
        let key = ObjectKey::new(pod.namespace(), name.as_str());
        let existing = match self.context.caches.claims.get(&key) {
            Some(existing) => Some(existing),
            None => match claims.create(&wanted).await {
                Ok(_) => None,
                Err(error) if error.is_already_exists() => claims.find(&name).await?.map(Arc::new),
                Err(error) if namespace_is_ending(&error) => None,
                Err(error) => {
                    let message = format!("ephemeral PVC creation failed: {error}");
                    self.recorder.warning(pod, "EphemeralVolumeFailed", message);
                    return Err(error);
                }
            },
        };
        match existing {
            Some(existing) if existing.controller().is_none_or(|owner| owner.uid != pod.uid()) => {
                let message = format!(
                    "PVC {key} was not created for pod {}/{} (pod is not owner)",
                    pod.namespace(),
                    pod.name()
                );
                Err(Error::new(Reason::Conflict, message))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use hawser_api::client::DeleteOptions;
    use serde_json::json;

    use super::*;
    use crate::testing::{FakeApi, Fault, Running};

    #[tokio::test(start_paused = true)]
    async fn pods_get_claims_of_their_own_and_never_anothers() {
        let api = FakeApi::new();
        let mut requests = 0;
        api.fault(move |_, _| {
            requests += 1;
            if requests == 1 { Fault::Fails } else { Fault::None }
        });
        api.put::<PersistentVolumeClaim>(json!({ "metadata": { "name": "b-data", "namespace": "default" } }));
        let _running = Running::start(&api, &["ephemeral-volume"]);
        for name in ["a", "b"] {
            let template = json!({
                "metadata": { "labels": { "tier": "1" } }, "spec": { "accessModes": ["ReadWriteOnce"] },
            });
            let volume = json!({ "name": "data", "ephemeral": { "volumeClaimTemplate": template } });
            api.put::<Pod>(json!({
                "metadata": { "name": name, "namespace": "default" },
                "spec": { "containers": [], "volumes": [volume, { "name": "other", "emptyDir": {} }] },
            }));
        }
        let read = |api: &FakeApi, name: &str| api.read::<PersistentVolumeClaim>("default", name);
        api.until("the claim is made", |api| read(api, "a-data").is_some()).await;
        let made = read(&api, "a-data").expect("it is there");
        let pod = api.read::<Pod>("default", "a").expect("it is there");
        assert_eq!(made.controller().map(|owner| owner.uid.as_str()), Some(pod.uid()));
        assert_eq!(json!(made.labels()), json!({ "tier": "1" }));
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        assert!(read(&api, "b-data").is_some_and(|claim| claim.controller().is_none()), "it is not touched");
        api.remove::<PersistentVolumeClaim>("default", "a-data", &DeleteOptions::default());
        api.until("one that is lost is made again", |api| read(api, "a-data").is_some()).await;
    }
}
