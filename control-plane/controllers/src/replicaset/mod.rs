//! ReplicaSets: keeps the asked number of pods.
//!
//! Creates in batches that double while they succeed, so that a template which is always refused costs few
//! requests; deletes the pods that are worth least first ([`rank`]). A cache that is behind never leads to
//! more pods than asked: what was written is waited for ([`crate::expectations`]). Pods that match and
//! have no controller are adopted, those that stop matching are released.

mod rank;
mod status;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::FutureExt;
use hawser_api::{Api, Error, informer::Change, resource::ObjectKey};
use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        core::v1::{Pod, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    Context, Starts,
    caches::orphans_of,
    events::Recorder,
    expectations::Expectations,
    meta::{
        MetaExt, controller_key, controller_reference, now, only_this, pod_available_in, pod_is_active,
        pod_is_terminal, pod_node, seconds,
    },
    ownership,
    queue::Queue,
    selector,
    worker::{Next, Reconciler, in_parallel},
};

/// At most so many pods are created or deleted in one go; the rest follows.
const BURST: usize = 500;
const FIRST_BATCH: usize = 1;

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("replicaset") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let expectations = Arc::new(Expectations::default());

    let (changed, forgetful) = (queue.clone(), expectations.clone());
    context.caches.replica_sets.on_change(move |change| {
        if let Some(old) = change.old
            && change.new.is_none_or(|new| new.uid() != old.uid())
        {
            forgetful.forget(old.uid());
        }
        changed.add(change.key.clone());
    });
    let handler = PodHandler {
        queue: queue.clone(),
        expectations: expectations.clone(),
        context: Arc::downgrade(&context),
    };
    context.caches.pods.on_change(move |change| handler.pod_changed(change));

    let recorder = context.recorder.of("replicaset-controller");
    let workers = context.config.workers;
    starts.add(Controller { context, expectations, recorder }, queue, workers);
}

struct PodHandler {
    queue: Queue<ObjectKey>,
    expectations: Arc<Expectations>,
    /// Weak: the caches, which own this handler, are in the context.
    context: std::sync::Weak<Context>,
}

impl PodHandler {
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
        if let Some(key) = controller_key(pod, "ReplicaSet") {
            self.queue.add(key);
        }
    }

    /// An orphan: whoever could adopt it has a look.
    fn wake_adopters(&self, pod: &Pod) {
        let Some(context) = self.context.upgrade() else { return };
        if pod.is_deleting() || pod.labels().is_empty() {
            return;
        }
        for set in context.caches.replica_sets_by_namespace.get(pod.namespace()) {
            if set.spec.as_ref().is_some_and(|spec| matches_pod(&spec.selector, pod)) {
                self.queue.add(ObjectKey::of(&*set));
            }
        }
    }
}

/// An empty selector matches no pod here: the API refuses it, and everything would be too much.
fn matches_pod(selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector, pod: &Pod) -> bool {
    !selector::is_empty(selector) && selector::matches(selector, pod.labels())
}

struct Controller {
    context: Arc<Context>,
    expectations: Arc<Expectations>,
    recorder: Recorder,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "replicaset";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let caches = &self.context.caches;
        let Some(set) = caches.replica_sets.get(key) else { return Ok(Next::Done) };
        let Some(spec) = &set.spec else { return Ok(Next::Done) };
        // Looked at before the pods: a pod that appears in between is counted, and only delays the next look.
        let cache_is_current = self.expectations.are_met(set.uid());

        let mut candidates = caches.pods_by_controller.get(set.uid());
        candidates.extend(
            caches
                .pods_by_controller
                .get(&orphans_of(&key.namespace))
                .into_iter()
                .filter(|pod| pod_is_active(pod)),
        );
        let sets: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let owned =
            ownership::claim(&sets, &pods, &*set, candidates, |pod| matches_pod(&spec.selector, pod)).await?;
        let active: Vec<Arc<Pod>> = owned.iter().filter(|pod| pod_is_active(pod)).cloned().collect();
        let terminating = owned.iter().filter(|pod| pod.is_deleting() && !pod_is_terminal(pod)).count();

        let managed = if cache_is_current && !set.is_deleting() {
            self.manage(&set, &pods, &active).await
        } else {
            Ok(())
        };
        let observed = status::Observed { active: &active, terminating, failure: managed.as_ref().err() };
        let new_status = status::calculate(&set, &observed, now());
        if set.status.as_ref() != Some(&new_status) {
            let mut changed = (*set).clone();
            changed.status = Some(new_status);
            match sets.update_status(&changed).await {
                Err(error) if error.is_not_found() => {}
                outcome => drop(outcome?),
            }
        }
        match managed {
            Ok(()) => Ok(next_available(&active, seconds(spec.min_ready_seconds))),
            Err(failure) => Err(failure.error),
        }
    }
}

/// When the next pod becomes available by the passing of time.
fn next_available(active: &[Arc<Pod>], min_ready: Duration) -> Next {
    let now = now();
    let waits = active.iter().filter_map(|pod| pod_available_in(pod, min_ready, now));
    match waits.filter(|wait| !wait.is_zero()).min() {
        // Times in the API have whole seconds, so the pod may have been ready up to a second longer.
        Some(wait) => Next::After(wait + Duration::from_millis(10)),
        None => Next::Done,
    }
}

/// What kept the pods from being as many as asked.
pub(crate) struct Failure {
    reason: &'static str,
    error: Error,
}

impl Controller {
    async fn manage(&self, set: &ReplicaSet, pods: &Api<Pod>, active: &[Arc<Pod>]) -> Result<(), Failure> {
        let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let wanted = usize::try_from(wanted).unwrap_or_default();
        if active.len() < wanted {
            self.create(set, pods, (wanted - active.len()).min(BURST)).await
        } else if active.len() > wanted {
            self.delete(set, pods, active, (active.len() - wanted).min(BURST)).await
        } else {
            Ok(())
        }
    }

    async fn create(&self, set: &ReplicaSet, pods: &Api<Pod>, missing: usize) -> Result<(), Failure> {
        let pod = pod_from_template(set);
        self.expectations.expect_creations(set.uid(), missing);
        let (mut asked, mut batch) = (0, FIRST_BATCH);
        let mut failure = None;
        while asked < missing && failure.is_none() {
            let size = batch.min(missing - asked);
            for outcome in in_parallel((0..size).map(|_| pods.create(&pod).boxed())).await {
                match outcome {
                    Ok(created) => {
                        self.recorder.normal(
                            set,
                            "SuccessfulCreate",
                            format!("Created pod: {}", created.name()),
                        );
                    }
                    Err(error) => {
                        self.expectations.creations_observed(set.uid(), 1);
                        if !namespace_is_ending(&error) {
                            self.recorder.warning(set, "FailedCreate", format!("Error creating: {error}"));
                        }
                        failure = Some(error);
                    }
                }
            }
            asked += size;
            batch *= 2;
        }
        self.expectations.creations_observed(set.uid(), missing - asked);
        match failure {
            // Nothing can be created there any more; the set itself goes soon.
            Some(error) if namespace_is_ending(&error) => Ok(()),
            Some(error) => Err(Failure { reason: "FailedCreate", error }),
            None => Ok(()),
        }
    }

    async fn delete(
        &self,
        set: &ReplicaSet,
        pods: &Api<Pod>,
        active: &[Arc<Pod>],
        surplus: usize,
    ) -> Result<(), Failure> {
        let doomed = rank::pods_to_delete(active, &self.neighbours(set), surplus, now());
        self.expectations.expect_deletions(set.uid(), doomed.iter().map(|pod| pod.uid().to_owned()));
        let requests = doomed.iter().map(|pod| {
            let options = only_this(&**pod);
            async move { (pod, pods.delete(pod.name(), &options).await) }.boxed()
        });
        let mut failure = None;
        for (pod, outcome) in in_parallel(requests).await {
            match outcome {
                Ok(()) => {
                    self.recorder.normal(set, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()))
                }
                Err(error) => {
                    self.expectations.deletion_observed(set.uid(), pod.uid());
                    // Conflict: another pod has the name now, so this one is gone.
                    if !error.is_conflict() {
                        self.recorder.warning(set, "FailedDelete", format!("Error deleting: {error}"));
                        failure = Some(Failure { reason: "FailedDelete", error });
                    }
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Active pods per node, of this set and of the sets with the same controller (those of a deployment).
    fn neighbours(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let caches = &self.context.caches;
        let mut uids = vec![set.uid().to_owned()];
        if let Some(owner) = set.controller() {
            let siblings = caches.replica_sets_by_controller.get(&owner.uid);
            uids.extend(siblings.iter().map(|other| other.uid().to_owned()).filter(|uid| uid != set.uid()));
        }
        let mut per_node = HashMap::new();
        for uid in uids {
            for pod in caches.pods_by_controller.get(&uid) {
                if let Some(node) = pod_node(&pod).filter(|_| pod_is_active(&pod)) {
                    *per_node.entry(node.to_owned()).or_default() += 1;
                }
            }
        }
        per_node
    }
}

fn namespace_is_ending(error: &Error) -> bool {
    let status = error.to_status();
    let causes = status.pointer("/details/causes").and_then(serde_json::Value::as_array);
    let caused = causes.into_iter().flatten().any(|cause| cause["reason"] == "NamespaceTerminating");
    caused || (error.code() == 403 && error.message().contains("because it is being terminated"))
}

fn pod_from_template(set: &ReplicaSet) -> Pod {
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone());
    let PodTemplateSpec { metadata, spec } = template.unwrap_or_default();
    let from = metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: set.metadata.namespace.clone(),
            generate_name: Some(format!("{}-", set.name())),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}
