//! Pods that were to be disrupted and were not: after two minutes their condition `DisruptionTarget` is false again.
//!
//! Whoever announces a disruption may change its mind, or die; a pod that lives on must not look doomed for ever.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    Context, Starts,
    meta::{MetaExt, elapsed, now, pod_condition, pod_is_active},
    queue::Queue,
    worker::{Next, Reconciler},
};

const DISRUPTION_TARGET: &str = "DisruptionTarget";
const TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn register(starts: &mut Starts<'_>) {
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.pods.on_change(move |change| {
        if let Some(wait) = change.new.and_then(|pod| until_stale(pod)) {
            changed.add_after(change.key.clone(), wait);
        }
    });
    starts.add(Controller { context }, queue, 1);
}

/// When the pod's condition becomes stale; `None` where it says nothing, or the pod ends indeed.
fn until_stale(pod: &Pod) -> Option<Duration> {
    let condition = pod_condition(pod, DISRUPTION_TARGET).filter(|condition| condition.status == "True")?;
    let since = condition.last_transition_time.as_ref().map_or(jiff::Timestamp::MIN, |time| time.0);
    pod_is_active(pod).then(|| TIMEOUT.saturating_sub(elapsed(since, now())))
}

struct Controller {
    context: Arc<Context>,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "stale pod disruption";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(pod) = self.context.caches.pods.get(key) else { return Ok(Next::Done) };
        match until_stale(&pod) {
            None => return Ok(Next::Done),
            Some(wait) if !wait.is_zero() => return Ok(Next::After(wait)),
            Some(_) => {}
        }
        let mut changed = (*pod).clone();
        let conditions = changed.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten());
        for condition in conditions.filter(|condition| condition.type_ == DISRUPTION_TARGET) {
            *condition = PodCondition {
                type_: DISRUPTION_TARGET.to_owned(),
                status: "False".to_owned(),
                last_transition_time: Some(Time(now())),
                observed_generation: pod.metadata.generation,
                ..PodCondition::default()
            };
        }
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), pod.namespace());
        match pods.update_status(&changed).await {
            Err(error) if error.is_not_found() => Ok(Next::Done),
            outcome => outcome.map(|_| Next::Done),
        }
    }
}
