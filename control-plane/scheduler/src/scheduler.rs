//! The deciding part: what the cluster is, who waits, and who goes where. No client, no clock.
//!
//! The shell tells it every change of nodes and pods, and asks it for batches of decisions. A pod that was given
//! a node is assumed to be there until the API says so, or the shell says that the binding failed; meanwhile
//! it takes its room, so that no node is promised twice.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hawser_api::client::Binding;
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::{
    config::Config,
    evaluation::{Evaluations, Tie},
    filters::fits,
    pod::{self, PodInfo, Shape},
    queue::{Queue, Waiting},
    snapshot::{Slot, Snapshot},
};

pub(crate) struct Scheduler {
    name: String,
    snapshot: Snapshot,
    queue: Queue,
    evaluations: Evaluations,
    /// Pods with a node that the API does not show yet.
    assumed: HashMap<Arc<str>, Waiting>,
    tie: Tie,
}

/// What to write after one round.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) bindings: Vec<Binding>,
    pub(crate) rejected: Vec<Rejected>,
    /// Placed pods with wishes that were not considered: their users are told.
    pub(crate) partly: Vec<Arc<PodInfo>>,
}

/// A pod that no node can run.
#[derive(Clone, Debug)]
pub(crate) struct Rejected {
    pub(crate) pod: Arc<PodInfo>,
    /// `0/3 nodes are available: ...`
    pub(crate) message: String,
}

impl Scheduler {
    /// `seed` decides among nodes that are equally good.
    pub(crate) fn new(config: &Config, seed: u64) -> Self {
        Self {
            name: config.scheduler_name.clone(),
            snapshot: Snapshot::default(),
            queue: Queue::new(config),
            evaluations: Evaluations::default(),
            assumed: HashMap::new(),
            tie: Tie::new(seed),
        }
    }

    pub(crate) fn node_changed(&mut self, node: &Node, now: Duration) {
        let slot = self.snapshot.put_node(node);
        self.helped(slot, now);
    }

    pub(crate) fn node_removed(&mut self, name: &str) {
        self.snapshot.remove_node(name);
    }

    pub(crate) fn pod_changed(&mut self, pod: &Pod, now: Duration) {
        let uid: Arc<str> = pod.metadata.uid.as_deref().unwrap_or_default().into();
        if let Some(node) = pod::node_of(pod) {
            self.queue.remove(&uid);
            self.assumed.remove(&uid);
            if pod::is_over(pod) {
                self.free(&uid, now);
                return;
            }
            // A pod that moves or shrinks leaves room behind.
            let before = self.snapshot.node_of(&uid).and_then(|node| self.snapshot.slot(node));
            self.snapshot.put_pod(&uid, &Arc::new(Shape::of(pod)), node);
            if let Some(slot) = before {
                self.helped(slot, now);
            }
            return;
        }
        let ours = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.scheduler_name.as_deref())
            .is_none_or(|name| name == self.name);
        let going = pod.metadata.deletion_timestamp.is_some();
        if !ours || going || pod::is_over(pod) || pod::is_gated(pod) {
            self.queue.remove(&uid);
        } else if !self.assumed.contains_key(&uid) {
            self.queue.add(PodInfo::of(pod), now);
        }
    }

    pub(crate) fn pod_removed(&mut self, uid: &str, now: Duration) {
        self.queue.remove(uid);
        self.assumed.remove(uid);
        self.free(uid, now);
    }

    /// Places up to `limit` waiting pods and assumes them where they go.
    pub(crate) fn schedule(&mut self, limit: usize, now: Duration) -> Plan {
        let mut plan = Plan::default();
        for _ in 0..limit {
            let Some(waiting) = self.queue.pop(now) else {
                break;
            };
            let shape = waiting.pod.shape.clone();
            match self.evaluations.choose(&shape, &self.snapshot, &mut self.tie) {
                Some(slot) => {
                    let node = self.snapshot.nodes[slot].name.clone();
                    let pod = &waiting.pod;
                    self.snapshot.put_pod(&pod.uid, &shape, &node);
                    plan.bindings.push(Binding {
                        namespace: pod.key.namespace.clone(),
                        pod: pod.key.name.clone(),
                        uid: pod.uid.to_string(),
                        node,
                    });
                    if !pod.not_considered.is_empty() {
                        plan.partly.push(pod.clone());
                    }
                    self.assumed.insert(pod.uid.clone(), waiting);
                }
                None => {
                    let message = self.evaluations.diagnosis(&shape, &self.snapshot);
                    plan.rejected.push(Rejected { pod: waiting.pod.clone(), message });
                    self.queue.give_back_unschedulable(waiting, now);
                }
            }
        }
        plan
    }

    /// The pod is not on the node it was promised: the room is free again, and the pod waits.
    pub(crate) fn bind_failed(&mut self, uid: &str, now: Duration) {
        // Deleted or shown as bound meanwhile: there is nothing to undo.
        let Some(waiting) = self.assumed.remove(uid) else {
            return;
        };
        self.free(uid, now);
        self.queue.give_back_failed(waiting, now);
    }

    /// The pod is not there any more: nothing is left to place.
    pub(crate) fn bind_refused_for_good(&mut self, uid: &str, now: Duration) {
        if self.assumed.remove(uid).is_some() {
            self.free(uid, now);
        }
    }

    pub(crate) fn next_wakeup(&self) -> Option<Duration> {
        self.queue.next_wakeup()
    }

    /// Active, backing off, unschedulable.
    pub(crate) fn waiting(&self) -> (usize, usize, usize) {
        self.queue.counts()
    }

    fn free(&mut self, uid: &str, now: Duration) {
        if let Some(slot) = self.snapshot.remove_pod(uid) {
            self.helped(slot, now);
        }
    }

    /// Event hint: something about the node changed; wakes the pods that it can run now.
    fn helped(&mut self, slot: Slot, now: Duration) {
        let snapshot = &self.snapshot;
        self.queue.activate(now, |shape| fits(shape, snapshot, slot));
    }
}

#[cfg(test)]
impl Scheduler {
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
