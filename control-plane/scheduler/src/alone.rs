//! The deciding part alone, without client and clock: for benchmarks.

use std::time::Duration;

use hawser_api::client::Binding;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice},
    storage::v1::CSINode,
};

use crate::{config::Config, scheduler::Scheduler};

/// What the scheduler decides, told by hand what happens. Times are spans since its start.
pub struct Core(Scheduler);

/// What was decided in one round.
#[derive(Debug, Default)]
pub struct Decisions {
    /// Those of pods whose volumes or claims are to be written first, too.
    pub bindings: Vec<Binding>,
    /// What claims were given, by namespace and name.
    pub allocations: Vec<(String, String, AllocationResult)>,
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

    pub fn claim_changed(&mut self, claim: &PersistentVolumeClaim, now: Duration) {
        self.0.claim_changed(claim, now);
    }

    pub fn volume_changed(&mut self, volume: &PersistentVolume, now: Duration) {
        self.0.volume_changed(volume, now);
    }

    pub fn csi_node_changed(&mut self, node: &CSINode, now: Duration) {
        self.0.csi_node_changed(node, now);
    }

    pub fn device_class_changed(&mut self, class: &DeviceClass, now: Duration) {
        self.0.device_class_changed(class, now);
    }

    pub fn slice_changed(&mut self, slice: &ResourceSlice, now: Duration) {
        self.0.slice_changed(slice, now);
    }

    pub fn device_claim_changed(&mut self, claim: &ResourceClaim, now: Duration) {
        self.0.device_claim_changed(claim, now);
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
        for provisioning in &plan.provisionings {
            self.0.claims_written(&provisioning.decision.binding.uid, now);
        }
        let preemptions = plan.preemptions.iter().map(|preemption| {
            let victims = preemption.victims.iter().map(|victim| victim.uid.to_string()).collect();
            (preemption.pod.uid.to_string(), victims)
        });
        let grants = plan.provisionings.iter().flat_map(|one| &one.promises.devices.0);
        let allocations = grants.filter_map(|grant| {
            let allocation = grant.allocation.as_deref()?.clone();
            Some((grant.claim.namespace.clone(), grant.claim.name.clone(), allocation))
        });
        let prepared = plan.provisionings.iter().map(|one| one.decision.binding.clone());
        Decisions {
            preemptions: preemptions.collect(),
            allocations: allocations.collect(),
            bindings: plan.bindings.iter().map(|decision| decision.binding.clone()).chain(prepared).collect(),
            rejected: plan.rejected.len(),
        }
    }

    /// The victims of a pod are being deleted.
    pub fn cleared(&mut self, uid: &str, now: Duration) {
        self.0.cleared(uid, true, now);
    }
}
