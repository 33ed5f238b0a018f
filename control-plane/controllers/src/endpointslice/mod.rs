//! EndpointSlices: which pods stand behind each Service, in slices of at most 100.
//!
//! Watches services, pods and nodes; decides with [`endpoint`] and [`plan`]; writes only what differs.
//! Services without a selector and of type ExternalName are left alone: their slices are their owner's. The
//! slices carry an owner reference, so the garbage collector takes them when the service goes.

pub(crate) mod endpoint;
pub(crate) mod managed;
mod plan;
#[cfg(test)]
pub(crate) mod test_objects;
#[cfg(test)]
mod tests;
mod tracker;

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use hawser_api::{Error, informer::Change, resource::ObjectKey};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};

use crate::{
    Context, Starts,
    events::Recorder,
    meta::{MetaExt, pod_condition, pod_node},
    queue::Queue,
    worker::{Next, Reconciler},
};
use managed::{Managed, Writes};

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE: &str = "topology.kubernetes.io/zone";
/// `--max-endpoints-per-slice`.
const MAX_ENDPOINTS: usize = 100;

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("endpointslice") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let slices = Managed::follow(&context, &queue, MANAGER);
    wake_by_pods(&context, &queue);
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.nodes.on_change(move |change| node_changed(&changed, &weak, change));

    let recorder = context.recorder.of("endpoint-slice-controller");
    let workers = context.config.workers;
    starts.add(Controller { context, slices, recorder }, queue, workers);
}

/// Adds the services of every pod that changes in a way that endpoints show.
pub(crate) fn wake_by_pods(context: &Arc<Context>, queue: &Queue<ObjectKey>) {
    // Weak: the caches, which own this handler, are in the context.
    let (queue, context_of) = (queue.clone(), Arc::downgrade(context));
    context.caches.pods.on_change(move |change| {
        let Some(context) = context_of.upgrade() else { return };
        if let (Some(old), Some(new)) = (change.old, change.new)
            && shows_the_same(old, new)
        {
            return;
        }
        let relabelled = match (change.old, change.new) {
            (Some(old), Some(new)) => old.labels() != new.labels(),
            _ => true,
        };
        let old = change.old.filter(|_| relabelled || change.new.is_none());
        for pod in old.into_iter().chain(change.new) {
            for service in context.caches.services_for(pod.namespace(), pod.labels()) {
                queue.add(service);
            }
        }
    });
}

/// Endpoints made from either pod are equal.
fn shows_the_same(old: &Pod, new: &Pod) -> bool {
    let shown = |pod: &Pod| {
        let status = pod.status.as_ref();
        (
            pod.metadata.uid.clone(),
            pod.is_deleting(),
            pod_node(pod).map(str::to_owned),
            pod_condition(pod, "Ready").map(|condition| condition.status.clone()),
            status.and_then(|status| status.phase.clone()),
            status.and_then(|status| status.pod_ip.clone()),
            status.and_then(|status| status.pod_ips.clone()),
        )
    };
    // Ports, hostname and subdomain never change in a pod.
    old.labels() == new.labels() && shown(old) == shown(new)
}

fn node_changed(queue: &Queue<ObjectKey>, context: &Weak<Context>, change: &Change<'_, Node>) {
    let zone = |node: Option<&Arc<Node>>| node.and_then(|node| node.labels().get(ZONE).cloned());
    let Some(context) = context.upgrade().filter(|_| zone(change.old) != zone(change.new)) else { return };
    for pod in context.caches.pods_by_node.get(&change.key.name) {
        for service in context.caches.services_for(pod.namespace(), pod.labels()) {
            queue.add(service);
        }
    }
}

struct Controller {
    context: Arc<Context>,
    slices: Arc<Managed>,
    recorder: Recorder,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "endpointslice";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let caches = &self.context.caches;
        let Some(service) = caches.services.get(key).filter(|service| is_served(service)) else {
            return Ok(Next::Done);
        };
        let existing = match self.slices.of(caches, key) {
            Ok(existing) => existing,
            Err(wait) => return Ok(Next::After(wait)),
        };
        let pods = pods_of(&self.context, &service);
        let groups = endpoint::groups(&service, &pods, |node| {
            caches.nodes.get(&ObjectKey::new("", node))?.labels().get(ZONE).cloned()
        });
        let time = trigger_time(&service, &pods).map(|time| time.to_string());
        let writes = plan::plan_endpoint_slices(&service, &groups, &existing, MAX_ENDPOINTS, time.as_deref());
        self.apply(key, &service, writes).await?;
        Ok(Next::Done)
    }
}

/// The service has endpoints that are found by its selector.
pub(crate) fn is_served(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() != Some("ExternalName")
            && spec.selector.as_ref().is_some_and(|it| !it.is_empty())
    })
}

pub(crate) fn pods_of(context: &Context, service: &Service) -> Vec<Arc<Pod>> {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.map(|selector| context.caches.pods_for(service.namespace(), selector)).unwrap_or_default()
}

/// The last change that the endpoints follow: of a pod's readiness, or the service's making.
pub(crate) fn trigger_time(service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
    let ready_changes = pods.iter().filter_map(|pod| {
        let condition = pod_condition(pod, "Ready")?;
        condition.last_transition_time.as_ref().map(|time| time.0)
    });
    let made = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    ready_changes.chain(made).max()
}

impl Controller {
    async fn apply(&self, key: &ObjectKey, service: &Service, writes: Writes) -> Result<(), Error> {
        let outcome = self.slices.write(&self.context, key, writes).await;
        if let Err(error) = &outcome
            && !error.is_conflict()
            && !error.is_not_found()
        {
            let message = format!("Error updating Endpoint Slices for Service {key}: {error}");
            self.recorder.warning(service, "FailedToUpdateEndpointSlices", message);
        }
        outcome
    }
}
