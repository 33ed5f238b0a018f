//! The deciding part alone, without client and clock: for benchmarks.

use std::time::Duration;

use hawser_api::client::Binding;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};

use crate::{config::Config, scheduler::Scheduler};

/// What the scheduler decides, told by hand what happens. Times are spans since its start.
pub struct Core(Scheduler);

/// What was decided in one round.
#[derive(Debug, Default)]
pub struct Decisions {
    pub bindings: Vec<Binding>,
    /// Pods that no node can run now.
    pub rejected: usize,
    /// For each pod that others have to go for: its uid and theirs.
    pub preemptions: Vec<(String, Vec<String>)>,
}

impl Core {
    /// `seed` decides among nodes that are equally good.
    pub fn new(config: &Config, seed: u64) -> Self {
        Self(Scheduler::new(config, seed))
    }

    pub fn node_changed(&mut self, node: &Node, now: Duration) {
        self.0.node_changed(node, now);
    }

    pub fn node_removed(&mut self, name: &str, now: Duration) {
        self.0.node_removed(name, now);
    }

    pub fn namespace_changed(&mut self, namespace: &Namespace, now: Duration) {
        self.0.namespace_changed(namespace, now);
    }

    pub fn pod_changed(&mut self, pod: &Pod, now: Duration) {
        self.0.pod_changed(pod, now);
    }

    pub fn pod_removed(&mut self, uid: &str, now: Duration) {
        self.0.pod_removed(uid, now);
    }

    /// Decides on up to `limit` pods; those with a node are taken to be there.
    pub fn schedule(&mut self, limit: usize, now: Duration) -> Decisions {
        let plan = self.0.schedule(limit, now);
        let preemptions = plan.preemptions.iter().map(|preemption| {
            let victims = preemption.victims.iter().map(|victim| victim.uid.to_string()).collect();
            (preemption.pod.uid.to_string(), victims)
        });
        Decisions {
            preemptions: preemptions.collect(),
            bindings: plan.bindings.into_iter().map(|decision| decision.binding).collect(),
            rejected: plan.rejected.len(),
        }
    }

    /// The victims of a pod are being deleted.
    pub fn cleared(&mut self, uid: &str, now: Duration) {
        self.0.cleared(uid, true, now);
    }
}
