//! What the controllers that own pods share: hearing of their pods, claiming, creating and deleting them.
//!
//! Creations come in batches that double while they succeed, so that a template which is always refused costs few
//! requests. A cache that is behind never leads to more pods than asked: what was written is waited for
//! ([`crate::expectations`]). Pods that match and have no controller are adopted, those that stop matching are released.

use std::{
    marker::PhantomData,
    sync::{Arc, Weak},
};

use futures::FutureExt;
use hawser_api::{
    Api, Error,
    informer::{Change, Informer},
    resource::ObjectKey,
    typed::Kind,
};
use k8s_openapi::{
    api::core::v1::{Pod, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

use crate::{
    Context,
    caches::{Caches, orphans_of},
    events::Recorder,
    expectations::Expectations,
    meta::{MetaExt, controller_key, controller_reference, only_this},
    ownership,
    queue::Queue,
    selector,
    worker::{in_batches, in_parallel},
};

/// At most so many pods are created or deleted in one go; the rest follows.
pub(crate) const BURST: usize = 500;

/// A kind whose objects own pods.
pub(crate) trait PodOwner: Kind {
    fn informer(caches: &Caches) -> &Informer<Self>;

    /// The owners in `namespace`.
    fn of_namespace(caches: &Caches, namespace: &str) -> Vec<Arc<Self>>;

    fn selects(&self, pod: &Pod) -> bool;

    /// Whether a matching orphan is worth adopting.
    fn adopts(_orphan: &Pod) -> bool {
        true
    }
}

/// An empty selector matches no pod here: the API refuses it, and everything would be too much.
pub(crate) fn matches_pod(selector: &LabelSelector, pod: &Pod) -> bool {
    !selector::is_empty(selector) && selector::matches(selector, pod.labels())
}

/// The queue and expectations of a controller, fed by changes of its objects and of their pods.
pub(crate) fn follow<O: PodOwner>(context: &Arc<Context>) -> (Queue<ObjectKey>, Arc<Expectations>) {
    let (queue, expectations) = (Queue::new(), Arc::new(Expectations::default()));
    let (changed, forgetful) = (queue.clone(), expectations.clone());
    O::informer(&context.caches).on_change(move |change| {
        if let Some(old) = change.old
            && change.new.is_none_or(|new| new.uid() != old.uid())
        {
            forgetful.forget(old.uid());
        }
        changed.add(change.key.clone());
    });
    let handler = PodHandler::<O> {
        queue: queue.clone(),
        expectations: expectations.clone(),
        context: Arc::downgrade(context),
        kind: PhantomData,
    };
    context.caches.pods.on_change(move |change| handler.pod_changed(change));
    (queue, expectations)
}

struct PodHandler<O> {
    queue: Queue<ObjectKey>,
    expectations: Arc<Expectations>,
    /// Weak: the caches, which own this handler, are in the context.
    context: Weak<Context>,
    kind: PhantomData<fn() -> O>,
}

impl<O: PodOwner> PodHandler<O> {
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        match (change.old, change.new) {
            (Some(old), Some(new)) if old.uid() == new.uid() => {
                if new.is_deleting() && !old.is_deleting() {
                    self.deletion_seen(new);
                }
                let moved =
                    old.controller().map(|owner| &owner.uid) != new.controller().map(|owner| &owner.uid);
                if moved {
                    self.wake_controller(old);
                }
                if new.controller().is_some() {
                    self.wake_controller(new);
                } else if moved || old.labels() != new.labels() {
                    self.wake_adopters(new);
                }
            }
            (old, new) => {
                if let Some(old) = old {
                    self.deletion_seen(old);
                    self.wake_controller(old);
                }
                if let Some(new) = new {
                    self.appeared(new);
                }
            }
        }
    }

    fn appeared(&self, pod: &Pod) {
        match pod.controller() {
            Some(owner) => {
                self.expectations.creations_observed(&owner.uid, 1);
                if pod.is_deleting() {
                    self.expectations.deletion_observed(&owner.uid, pod.uid());
                }
                self.wake_controller(pod);
            }
            None => self.wake_adopters(pod),
        }
    }

    fn deletion_seen(&self, pod: &Pod) {
        if let Some(owner) = pod.controller() {
            self.expectations.deletion_observed(&owner.uid, pod.uid());
        }
    }

    fn wake_controller(&self, pod: &Pod) {
        if let Some(key) = controller_key(pod, O::KIND) {
            self.queue.add(key);
        }
    }

    /// An orphan: whoever could adopt it has a look.
    fn wake_adopters(&self, pod: &Pod) {
        let Some(context) = self.context.upgrade() else { return };
        if pod.is_deleting() || pod.labels().is_empty() {
            return;
        }
        for owner in O::of_namespace(&context.caches, pod.namespace()) {
            if owner.selects(pod) {
                self.queue.add(ObjectKey::of(&*owner));
            }
        }
    }
}

/// The pods that `owner` controls, after adopting and releasing.
pub(crate) async fn claim<O: PodOwner>(context: &Context, owner: &O) -> Result<Vec<Arc<Pod>>, Error> {
    let by_controller = &context.caches.pods_by_controller;
    let mut candidates = by_controller.get(owner.uid());
    let orphans = by_controller.get(&orphans_of(owner.namespace()));
    candidates.extend(orphans.into_iter().filter(|pod| O::adopts(pod)));
    let owners: Api<O> = Api::namespaced(context.client.clone(), owner.namespace());
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), owner.namespace());
    ownership::claim(&owners, &pods, owner, candidates, |pod| owner.selects(pod)).await
}

/// A pod of `owner`, whose name the API makes.
pub(crate) fn from_template<O: Kind>(owner: &O, template: &PodTemplateSpec) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: owner.meta().namespace.clone(),
            generate_name: Some(format!("{}-", owner.name())),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// What kept the pods from being as many as asked.
pub(crate) struct Failure {
    pub(crate) reason: &'static str,
    pub(crate) error: Error,
}

/// Creates and deletes pods of one owner, and tells of it.
pub(crate) struct PodControl<'a, O> {
    pub(crate) owner: &'a O,
    pub(crate) pods: Api<Pod>,
    pub(crate) recorder: &'a Recorder,
    pub(crate) expectations: &'a Expectations,
}

impl<O: Kind> PodControl<'_, O> {
    /// Creates `missing`, then deletes `doomed`; of each at most [`BURST`].
    pub(crate) async fn apply(&self, mut missing: Vec<Pod>, doomed: &[Arc<Pod>]) -> Result<(), Failure> {
        missing.truncate(BURST);
        let doomed = &doomed[..doomed.len().min(BURST)];
        if missing.is_empty() && doomed.is_empty() {
            return Ok(());
        }
        let uids = doomed.iter().map(|pod| pod.uid().to_owned());
        self.expectations.expect(self.owner.uid(), missing.len(), uids);
        let created = self.create(&missing).await;
        let deleted = self.delete(doomed).await;
        created.and(deleted)
    }

    async fn create(&self, missing: &[Pod]) -> Result<(), Failure> {
        let outcomes = in_batches(missing.iter().map(|pod| self.pods.create(pod).boxed())).await;
        self.expectations.creations_observed(self.owner.uid(), missing.len() - outcomes.len());
        let mut failure = None;
        for outcome in outcomes {
            match outcome {
                Ok(created) => {
                    let message = format!("Created pod: {}", created.name());
                    self.recorder.normal(self.owner, "SuccessfulCreate", message);
                }
                Err(error) => {
                    self.expectations.creations_observed(self.owner.uid(), 1);
                    if !namespace_is_ending(&error) {
                        let message = format!("Error creating: {error}");
                        self.recorder.warning(self.owner, "FailedCreate", message);
                    }
                    failure = Some(error);
                }
            }
        }
        match failure {
            // Nothing can be created there any more; the owner itself goes soon.
            Some(error) if namespace_is_ending(&error) => Ok(()),
            Some(error) => Err(Failure { reason: "FailedCreate", error }),
            None => Ok(()),
        }
    }

    async fn delete(&self, doomed: &[Arc<Pod>]) -> Result<(), Failure> {
        let requests = doomed.iter().map(|pod| {
            let options = only_this(&**pod);
            async move { (pod, self.pods.delete_if_there(pod.name(), &options).await) }.boxed()
        });
        let mut failure = None;
        for (pod, outcome) in in_parallel(requests).await {
            match outcome {
                Ok(true) => {
                    let message = format!("Deleted pod: {}", pod.name());
                    self.recorder.normal(self.owner, "SuccessfulDelete", message);
                }
                // Its event may have come before it was expected, and will not come again.
                Ok(false) => self.expectations.deletion_observed(self.owner.uid(), pod.uid()),
                Err(error) => {
                    self.expectations.deletion_observed(self.owner.uid(), pod.uid());
                    // Conflict: another pod has the name now, so this one is gone.
                    if !error.is_conflict() {
                        let message = format!("Error deleting: {error}");
                        self.recorder.warning(self.owner, "FailedDelete", message);
                        failure = Some(Failure { reason: "FailedDelete", error });
                    }
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

/// The namespace is about to go, so nothing can be created in it.
pub(crate) fn namespace_is_ending(error: &Error) -> bool {
    let status = error.to_status();
    let causes = status.pointer("/details/causes").and_then(serde_json::Value::as_array);
    let caused = causes.into_iter().flatten().any(|cause| cause["reason"] == "NamespaceTerminating");
    caused || (error.code() == 403 && error.message().contains("because it is being terminated"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    use super::*;
    use crate::{
        events,
        testing::{FakeApi, replica_set},
    };

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_was_gone_before_its_deletion_is_not_waited_for() {
        let api = FakeApi::new();
        let set: ReplicaSet = api.put(replica_set("web", 1));
        let pod = json!({ "metadata": { "name": "gone", "namespace": "default", "uid": "u" } });
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod).unwrap());
        let (recorder, _writer) = events::channel(api.clone());
        let expectations = Expectations::default();
        let pods = Api::namespaced(api.clone(), "default");
        let control = PodControl { owner: &set, pods, recorder: &recorder, expectations: &expectations };
        assert!(control.apply(Vec::new(), &[pod]).await.is_ok());
        assert!(expectations.are_met(set.uid()), "no event will come");
    }
}
