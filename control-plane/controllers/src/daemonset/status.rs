//! What a DaemonSet's status says. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};

use super::{
    plan::{OnNode, OnNodes},
    pod::is_updated,
};
use crate::{
    meta::{count, nonzero, pod_is_ready},
    worker::Next,
};

pub(super) fn calculate(set: &DaemonSet, on_nodes: &OnNodes, now: Timestamp) -> DaemonSetStatus {
    let desired = || on_nodes.nodes.iter().filter(|node| node.fit.should_run);
    // The oldest pod of a node stands for it.
    let pods = || desired().filter_map(|node| node.pods.first());
    let misplaced = |node: &&OnNode| !node.fit.should_run && !node.pods.is_empty();
    let available = count(pods().filter(|pod| on_nodes.is_available(pod, now)));
    let desired = count(desired());
    DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: count(pods()),
        number_misscheduled: count(on_nodes.nodes.iter().filter(misplaced)),
        number_ready: count(pods().filter(|pod| pod_is_ready(pod))),
        updated_number_scheduled: nonzero(count(pods().filter(|pod| is_updated(set, &on_nodes.hash, pod)))),
        number_available: nonzero(available),
        number_unavailable: nonzero(desired - available),
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
        collision_count: None,
    }
}

/// When the next pod becomes available by the passing of time.
pub(super) fn next_available(on_nodes: &OnNodes, now: Timestamp) -> Next {
    let waits = on_nodes.pods().filter_map(|pod| on_nodes.available_in(pod, now));
    // Times in the API have whole seconds, so the pod may have been ready up to a second longer.
    let next = waits.filter(|wait| !wait.is_zero()).min().map(|wait| wait + Duration::from_millis(10));
    next.map_or(Next::Done, Next::After)
}
