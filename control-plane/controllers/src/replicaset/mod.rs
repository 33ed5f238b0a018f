//! ReplicaSets, and ReplicationControllers before them: keeps the asked number of pods.
//!
//! Creates, deletes, adopts and releases as all owners of pods do ([`crate::pods`]); deletes the pods that are worth
//! least first ([`rank`]).

mod kind;
pub(crate) mod rank;
mod status;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, marker::PhantomData, sync::Arc, time::Duration};

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{Pod, PodTemplateSpec, ReplicationController},
};

use crate::{
    Context, Starts,
    events::Recorder,
    expectations::Expectations,
    meta::{MetaExt, now, pod_available_in, pod_is_active, pod_is_terminal, pod_node},
    pods::{self, BURST, Failure, PodControl},
    worker::{Next, Reconciler},
};
use kind::Set;

pub(crate) fn register(starts: &mut Starts<'_>) {
    register_kind::<ReplicaSet>(starts);
    register_kind::<ReplicationController>(starts);
}

fn register_kind<S: Set>(starts: &mut Starts<'_>) {
    if !starts.wants(S::CONTROLLER) {
        return;
    }
    let context = starts.context.clone();
    let (queue, expectations) = pods::follow::<S>(&context);
    let recorder = context.recorder.of(S::COMPONENT);
    let workers = context.config.workers;
    starts.add(Controller::<S> { context, expectations, recorder, kind: PhantomData }, queue, workers);
}

struct Controller<S> {
    context: Arc<Context>,
    expectations: Arc<Expectations>,
    recorder: Recorder,
    kind: PhantomData<fn() -> S>,
}

#[async_trait]
impl<S: Set> Reconciler for Controller<S> {
    type Key = ObjectKey;

    const NAME: &'static str = S::CONTROLLER;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(set) = S::informer(&self.context.caches).get(key) else { return Ok(Next::Done) };
        // Looked at before the pods: a pod that appears in between is counted, and only delays the next look.
        let cache_is_current = self.expectations.are_met(set.uid());

        let owned = pods::claim(&self.context, &*set).await?;
        let active: Vec<Arc<Pod>> = owned.iter().filter(|pod| pod_is_active(pod)).cloned().collect();
        let terminating = owned.iter().filter(|pod| pod.is_deleting() && !pod_is_terminal(pod)).count();

        let managed =
            if cache_is_current && !set.is_deleting() { self.manage(&set, &active).await } else { Ok(()) };
        let observed = status::Observed { active: &active, terminating, failure: managed.as_ref().err() };
        let changed = set.with_status(status::calculate(&*set, &observed, now()));
        if changed.status() != set.status() {
            let sets: Api<S> = Api::namespaced(self.context.client.clone(), &key.namespace);
            match sets.update_status(&changed).await {
                Err(error) if error.is_not_found() => {}
                outcome => drop(outcome?),
            }
        }
        match managed {
            Ok(()) => Ok(next_available(&active, set.min_ready())),
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

impl<S: Set> Controller<S> {
    async fn manage(&self, set: &S, active: &[Arc<Pod>]) -> Result<(), Failure> {
        let wanted = usize::try_from(set.replicas()).unwrap_or_default();
        let control = PodControl {
            owner: set,
            pods: Api::namespaced(self.context.client.clone(), set.namespace()),
            recorder: &self.recorder,
            expectations: &self.expectations,
        };
        if active.len() < wanted {
            let pod = pods::from_template(set, set.template().unwrap_or(&PodTemplateSpec::default()));
            control.apply(vec![pod; (wanted - active.len()).min(BURST)], &[]).await
        } else {
            let surplus = active.len() - wanted;
            let doomed = rank::pods_to_delete(active, &self.neighbours(set), surplus, now());
            control.apply(Vec::new(), &doomed).await
        }
    }

    /// Active pods per node, of this set and of the sets with the same controller (those of a deployment).
    fn neighbours(&self, set: &S) -> HashMap<String, usize> {
        let caches = &self.context.caches;
        let mut uids = vec![set.uid().to_owned()];
        uids.extend(set.siblings(caches));
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
