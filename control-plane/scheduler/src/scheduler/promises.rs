//! What a pod is promised beside its room: volumes and devices, which the shell writes before it binds the pod.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::resource::v1::ResourceClaim;

use super::{Plan, Rejected, Scheduler};
use crate::{
    devices::{DeviceView, Grants},
    hints::Event,
    metrics::Cause,
    placement::Diagnosis,
    pod::PodInfo,
    profile::Plugin,
    snapshot::Slot,
    volumes::{Provisions, VolumeView},
};

/// What was promised to one pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Promises {
    pub(crate) volumes: Provisions,
    pub(crate) devices: Grants,
}

impl Promises {
    /// Whether the pod can be bound at once.
    pub(crate) fn is_empty(&self) -> bool {
        self.volumes.wait_for.is_empty() && self.devices.0.is_empty()
    }
}

/// A claim that keeps a pod from its nodes and that nobody uses: its devices are given back, and it is allocated anew. One that a
/// scheduler made goes altogether.
#[derive(Clone, Debug)]
pub(crate) struct Deallocation {
    pub(crate) claim: Arc<ResourceClaim>,
    /// The pod that is tried again where it fails.
    pub(crate) pod: Arc<str>,
}

impl Scheduler {
    /// Counts the pod on the node, and promises it its volumes and devices there.
    pub(super) fn settle(&mut self, pod: &Arc<PodInfo>, slot: Slot) -> Promises {
        let node = self.snapshot.nodes[slot].name.clone();
        let promises = Promises { volumes: self.provisions(pod, slot), devices: self.grants(pod, slot) };
        self.snapshot.put_pod(pod, &node);
        if !promises.volumes.wait_for.is_empty() {
            self.snapshot.volumes.promise(&promises.volumes, &node);
        }
        self.snapshot.devices.promise(&promises.devices);
        promises
    }

    /// What has to be written of the pod's volumes before it can be bound to the node.
    fn provisions(&self, pod: &PodInfo, slot: Slot) -> Provisions {
        if pod.volumes.claims.is_empty() || !pod.needs.profile.filters.contains(Plugin::VolumeBinding) {
            return Provisions::default();
        }
        let view = VolumeView::new(pod, &self.snapshot.volumes).ok();
        view.and_then(|view| view.provisions(&self.snapshot.nodes[slot]).ok()).unwrap_or_default()
    }

    /// What has to be written of the pod's claims.
    fn grants(&self, pod: &PodInfo, slot: Slot) -> Grants {
        if !self.snapshot.devices.concern(pod)
            || !pod.needs.profile.filters.contains(Plugin::DynamicResources)
        {
            return Grants::default();
        }
        let view = DeviceView::new(pod, &self.snapshot.devices).ok();
        // Where the node cannot provide although it was chosen, the shell finds nothing to write, and the pod comes back.
        view.and_then(|view| view.grants(slot, &self.snapshot.nodes[slot]))
            .unwrap_or_else(|| Grants::unfounded(pod))
    }

    /// The promises of a trial are none. Whether volumes became free by it, and devices.
    pub(super) fn unpromise(&mut self, promises: &Promises) -> (bool, bool) {
        let volumes = self.snapshot.volumes.take_back(&promises.volumes);
        (volumes, self.snapshot.devices.take_back(&promises.devices))
    }

    /// The pod does not go where it was promised something.
    pub(super) fn take_back(&mut self, promises: &Promises, now: Duration) {
        let (volumes, devices) = self.unpromise(promises);
        if volumes {
            self.wake(&Event::StorageChanged(Cause::PersistentVolumeUpdate), now);
        }
        if devices {
            self.wake(&Event::DevicesChanged(Cause::ResourceClaimUpdate), now);
        }
    }

    /// The same of a pod that is gone, or was placed by somebody else: its claims may still be on their way.
    pub(super) fn abandon(&mut self, uid: &str, promises: Promises, now: Duration) {
        match self.writing.get_mut(uid) {
            Some(kept) => *kept = Some(promises),
            None => self.take_back(&promises, now),
        }
    }

    /// Nothing of the pod's claims is on its way any more, whatever became of them.
    pub(crate) fn claims_written(&mut self, uid: &str, now: Duration) {
        if let Some(Some(promises)) = self.writing.remove(uid) {
            self.take_back(&promises, now);
        }
    }

    /// A claim that is in the pod's way could not be deallocated: that is tried again with the pod.
    pub(crate) fn deallocation_failed(&mut self, pod: &str, now: Duration) {
        self.queue.activate_one(pod, now);
    }

    /// Where one of the pod's own claims is in its way, it is allocated anew: better than that others go. The words are
    /// upstream's.
    pub(super) fn deallocate(&self, rejected: &mut Rejected, diagnosis: &Diagnosis, plan: &mut Plan) {
        let pod = &rejected.pod;
        if !self.snapshot.devices.concern(pod)
            || !pod.needs.profile.filters.contains(Plugin::DynamicResources)
        {
            return;
        }
        let of = |claim: &Arc<ResourceClaim>| Deallocation { claim: claim.clone(), pod: pod.uid.clone() };
        rejected.message += match DeviceView::new(pod, &self.snapshot.devices) {
            Err(_) => " no new claims to deallocate,",
            Ok(view) if view.stale().is_some() => {
                plan.deallocations.extend(view.stale().map(of));
                " deletion of ResourceClaim completed,"
            }
            Ok(view) => {
                let in_the_way = diagnosis.plugins.contains(Plugin::DynamicResources);
                match view.idle(self.snapshot.nodes.iter()).filter(|_| in_the_way) {
                    Some(claim) => {
                        plan.deallocations.push(of(claim));
                        " deallocation of ResourceClaim completed,"
                    }
                    None => " still not schedulable,",
                }
            }
        };
    }
}
