//! What has to change so that every node has the daemon pod that it should have. Decides, and tells of pods that ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, DaemonSetSpec},
    core::v1::{Node, Pod},
};

use super::{
    backoff::Backoff,
    nodes::{self, Fit},
    pod::{is_updated, node_of},
    rolling,
};
use crate::{
    events::Recorder,
    meta::{MetaExt, pod_available_in, pod_is_ready, pod_is_terminal, pod_node, pod_phase, seconds},
};

/// One node, and the set's pods there.
pub(super) struct OnNode {
    pub(super) name: String,
    pub(super) fit: Fit,
    /// Those on the node before those tied to it, the oldest first.
    pub(super) pods: Vec<Arc<Pod>>,
}

/// All nodes, by name.
pub(super) struct OnNodes {
    pub(super) nodes: Vec<OnNode>,
    /// Pods of nodes that are gone.
    pub(super) elsewhere: Vec<Arc<Pod>>,
    /// Of the current template.
    pub(super) hash: String,
    min_ready: Duration,
}

#[derive(Default)]
pub(super) struct Changes {
    /// Names of nodes that get a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
}

impl OnNodes {
    pub(super) fn new(
        set: &DaemonSet,
        spec: &DaemonSetSpec,
        nodes: &[Arc<Node>],
        owned: Vec<Arc<Pod>>,
        hash: String,
    ) -> Self {
        let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        let mut elsewhere = Vec::new();
        let names: BTreeSet<&str> = nodes.iter().map(|node| node.name()).collect();
        // One that has ended and only waits for a finalizer keeps no other from its node.
        let is_over = |pod: &Arc<Pod>| pod.is_deleting() && pod_is_terminal(pod);
        for pod in owned.into_iter().filter(|pod| !is_over(pod)) {
            match node_of(&pod) {
                Some(node) if names.contains(node) => {
                    by_node.entry(node.to_owned()).or_default().push(pod);
                }
                Some(_) => elsewhere.push(pod),
                None => {}
            }
        }
        let on_node = |node: &Arc<Node>| {
            let mut pods = by_node.remove(node.name()).unwrap_or_default();
            let order = |pod: &Pod| (pod_node(pod).is_none(), pod.created());
            pods.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.name().cmp(b.name())));
            OnNode { name: node.name().to_owned(), fit: nodes::fit(set, node), pods }
        };
        let mut nodes: Vec<OnNode> = nodes.iter().map(on_node).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Self { nodes, elsewhere, hash, min_ready: seconds(spec.min_ready_seconds) }
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.nodes.iter().flat_map(|node| &node.pods).chain(&self.elsewhere)
    }

    pub(super) fn is_available(&self, pod: &Pod, now: Timestamp) -> bool {
        self.available_in(pod, now).is_some_and(|wait| wait.is_zero())
    }

    pub(super) fn available_in(&self, pod: &Pod, now: Timestamp) -> Option<Duration> {
        pod_available_in(pod, self.min_ready, now)
    }
}

/// Missing pods, and pods that are too many, ended, or where they should not be. Failed pods are not deleted at once
/// again and again; the second value says when the next of them may be.
pub(super) fn manage(
    set: &DaemonSet,
    on_nodes: &OnNodes,
    backoff: &Backoff,
    recorder: &Recorder,
    now: Timestamp,
) -> (Changes, Option<Duration>) {
    let mut changes = Changes::default();
    let mut wait: Option<Duration> = None;
    for node in &on_nodes.nodes {
        let pending = || node.pods.iter().filter(|pod| !pod.is_deleting());
        if node.fit.should_run && node.pods.is_empty() {
            changes.create.push(node.name.clone());
        } else if !node.fit.may_stay {
            changes.delete.extend(pending().cloned());
        } else {
            let mut running = Vec::new();
            for pod in pending() {
                match ended(set, node, pod, backoff, recorder) {
                    Ended::No => running.push(pod.clone()),
                    Ended::Delete => changes.delete.push(pod.clone()),
                    Ended::Wait(delay) => wait = Some(wait.map_or(delay, |sooner| sooner.min(delay))),
                }
            }
            thin_out(set, on_nodes, node, &running, now, &mut changes);
        }
    }
    // Never bound, and never will be: nobody else would delete them.
    let is_left = |pod: &&Arc<Pod>| pod_node(pod).is_none() && !pod.is_deleting();
    changes.delete.extend(on_nodes.elsewhere.iter().filter(is_left).cloned());
    (changes, wait)
}

enum Ended {
    No,
    Delete,
    Wait(Duration),
}

fn ended(set: &DaemonSet, node: &OnNode, pod: &Pod, backoff: &Backoff, recorder: &Recorder) -> Ended {
    let (namespace, name) = (pod.namespace(), pod.name());
    match pod_phase(pod) {
        "Failed" => {
            let observed = set.status.as_ref().and_then(|status| status.observed_generation);
            let key = format!("{}/{}/{}", set.uid(), observed.unwrap_or_default(), node.name);
            let delay = backoff.attempt(key);
            if !delay.is_zero() {
                return Ended::Wait(delay);
            }
            let message = format!(
                "Found failed daemon pod {namespace}/{name} on node {}, will try to kill it",
                node.name
            );
            recorder.warning(set, "FailedDaemonPod", message);
            Ended::Delete
        }
        "Succeeded" => {
            let message = format!(
                "Found succeeded daemon pod {namespace}/{name} on node {}, will try to delete it",
                node.name
            );
            recorder.normal(set, "SucceededDaemonPod", message);
            Ended::Delete
        }
        _ => Ended::No,
    }
}

/// Leaves one pod on the node; while a surge is rolled out two, an old one that is ready and a new one that is not yet.
fn thin_out(
    set: &DaemonSet,
    on_nodes: &OnNodes,
    node: &OnNode,
    running: &[Arc<Pod>],
    now: Timestamp,
    changes: &mut Changes,
) {
    if !rolling::allows_surge(set) {
        changes.delete.extend(running.iter().skip(1).cloned());
        return;
    }
    if running.is_empty() && node.fit.should_run {
        changes.create.push(node.name.clone());
    }
    if running.len() <= 1 {
        return;
    }
    let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
        running.iter().partition(|pod| is_updated(set, &on_nodes.hash, pod));
    changes.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)).map(|pod| (*pod).clone()));
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!pod_is_ready(old) || on_nodes.is_available(new, now))
    {
        changes.delete.push((*old).clone());
    }
}
