//! What happens in the cluster, as the shell tells it: taken over into the snapshot, and whoever it helps is woken.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hawser_api::resource::ObjectKey;
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    policy::v1::PodDisruptionBudget,
    resource::v1::{DeviceClass, ResourceClaim, ResourceSlice},
    scheduling::v1alpha2::PodGroup,
    storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment},
};

use super::{Fits, Scheduler, fit_before};
use crate::{
    devices::{Concerned, Provision},
    group::Known,
    hints::{self, Event, Fit},
    metrics::Cause,
    pod::{self, PodInfo},
    profile::Profile,
    snapshot::{NodeEntry, Slot},
    workloads::Workloads,
};

impl Scheduler {
    pub(crate) fn node_changed(&mut self, node: &Node, now: Duration) {
        let slot = self.snapshot.slot(node.metadata.name.as_deref().unwrap_or_default());
        let before = self.fitting(slot, |_| true);
        let same = |entry: &NodeEntry| {
            entry.exists
                && entry.labels == node.metadata.labels.clone().unwrap_or_default()
                && entry.taints == node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default()
        };
        let relabelled = slot.is_none_or(|slot| !same(&self.snapshot.nodes[slot]));
        let cause = if slot.is_some() { Cause::NodeUpdate } else { Cause::NodeAdd };
        let had = slot.map(|slot| self.snapshot.nodes[slot].own_extended());
        let slot = self.snapshot.put_node(node);
        let gained = &(&self.snapshot.nodes[slot].own_extended() - &had.unwrap_or_default());
        let before = fit_before(&before);
        self.wake(&Event::Node { slot, before: &before, relabelled, gained, cause }, now);
    }

    pub(crate) fn node_removed(&mut self, name: &str, now: Duration) {
        if let Some(slot) = self.snapshot.slot(name) {
            self.snapshot.remove_node(name);
            let (gained, cause) = (&BTreeSet::new(), Cause::NodeDelete);
            self.wake(&Event::Node { slot, before: &|_| Fit::No, relabelled: true, gained, cause }, now);
        }
    }

    pub(crate) fn pod_changed(&mut self, pod: &Pod, now: Duration) {
        let profile = self.profile_of(pod);
        let ours = profile.is_some();
        let profile = profile.unwrap_or(&self.profiles[0]).clone();
        let info = self.reader.read(pod, &profile);
        if let Some(node) = pod::node_of(pod) {
            let over = pod::is_over(pod).then(|| pod::succeeded_at(pod));
            self.bound(&info, node, over, now);
        } else if !ours || info.is_going() || pod::is_over(pod) {
            self.forget(&info.uid, now);
            if let Some(assumed) = self.assumed.get_mut(&info.uid) {
                assumed.unwanted = true;
            }
        } else if pod::is_gated(pod) {
            self.forget(&info.uid, now);
            self.queue.add_gated(info, now);
        } else if let Some(assumed) = self.assumed.get_mut(&info.uid) {
            // What it is tried as where its binding fails.
            assumed.waiting.pod = info;
        } else {
            self.follow_nomination(&info, now);
            // While extenders are asked about it, it waits nowhere else.
            if !self.is_asked(&info) {
                self.queue.add(info, now);
            }
        }
    }

    /// Keeps the node for a pod that waits which its status names, whoever wrote it there: a scheduler before this one, or
    /// somebody who makes room for pods. What this one decides meanwhile comes first: the API shows it later.
    fn follow_nomination(&mut self, pod: &Arc<PodInfo>, now: Duration) {
        let (known, kept) = (self.queue.get(&pod.uid), self.snapshot.nominations.node_of(&pod.uid));
        let before = known.and_then(|known| known.nominated.as_deref());
        let is_news = before != pod.nominated.as_deref() && !self.clearing.contains_key(&pod.uid);
        let is_other =
            known.is_some_and(|known| known.traits() != pod.traits() || known.priority != pod.priority);
        match (&pod.nominated, kept.map(str::to_owned)) {
            (Some(node), kept) if is_news => {
                if kept.is_some_and(|kept| kept != *node) {
                    self.denominate(&pod.uid, now);
                }
                self.nominate_anew(pod, node, now);
            }
            (None, Some(kept)) if is_news && before == Some(&*kept) => _ = self.denominate(&pod.uid, now),
            // It takes another room by now.
            (_, Some(kept)) if is_other => self.nominate_anew(pod, &kept, now),
            _ => (),
        }
    }

    /// Keeps the node for the pod as it is now. What it leaves there of what it was kept by then may help others.
    fn nominate_anew(&mut self, pod: &Arc<PodInfo>, node: &str, now: Duration) {
        let before = self.snapshot.nominations.get(&pod.uid).cloned();
        self.snapshot.nominate(pod, node);
        let is_other =
            |before: &Arc<PodInfo>| before.traits() != pod.traits() || before.priority > pod.priority;
        if let Some(before) = before.filter(is_other)
            && let Some(slot) = self.snapshot.slot(node)
        {
            self.node_event(slot, &Fits::new(), Cause::AssignedPodUpdate, now);
            self.wake(&Event::PodGone(&before), now);
        }
    }

    /// The rules for the pod; `None` where it is for another scheduler.
    pub(super) fn profile_of(&self, pod: &Pod) -> Option<&Arc<Profile>> {
        let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
        self.profiles.iter().find(|profile| name.is_none_or(|name| name == profile.scheduler_name))
    }

    pub(crate) fn pod_removed(&mut self, uid: &str, now: Duration) {
        self.forget(uid, now);
        self.done.remove(uid);
        if let Some(assumed) = self.assumed.remove(uid) {
            self.abandon(uid, assumed.promises, now);
        }
        self.free(uid, now);
    }

    pub(crate) fn claim_changed(&mut self, claim: &PersistentVolumeClaim, now: Duration) {
        self.snapshot.volumes.put_claim(claim);
        self.wake(&Event::ClaimChanged(&ObjectKey::of(claim)), now);
    }

    pub(crate) fn claim_removed(&mut self, key: &ObjectKey) {
        self.snapshot.volumes.remove_claim(key);
    }

    /// Follows the API, and is told what the shell has just written.
    pub(crate) fn device_claim_changed(&mut self, claim: &ResourceClaim, now: Duration) {
        if self.snapshot.devices.put_claim(claim) {
            self.wake(&Event::DevicesChanged(Cause::ResourceClaimUpdate), now);
        }
        self.wake(&Event::DeviceClaimChanged(&ObjectKey::of(claim)), now);
    }

    pub(crate) fn device_claim_removed(&mut self, key: &ObjectKey, now: Duration) {
        self.snapshot.devices.remove_claim(key);
        self.wake(&Event::DevicesChanged(Cause::ResourceClaimDelete), now);
    }

    pub(crate) fn device_class_changed(&mut self, class: &DeviceClass, now: Duration) {
        if let Some(provision) = self.snapshot.put_device_class(class) {
            self.wake(&Event::DevicesChanged(Cause::DeviceClassUpdate), now);
            self.provided(&provision, Cause::DeviceClassUpdate, now);
        }
    }

    /// Helps nobody, as upstream, but where another class provides what this one did.
    pub(crate) fn device_class_removed(&mut self, name: &str, now: Duration) {
        let provision = self.snapshot.remove_device_class(name);
        self.provided(&provision, Cause::DeviceClassDelete, now);
    }

    fn provided(&mut self, provision: &Provision, cause: Cause, now: Duration) {
        if !provision.gained.is_empty() {
            self.wake(&Event::ExtendedResourcesGained { gained: &provision.gained, cause }, now);
        }
    }

    pub(crate) fn slice_changed(&mut self, slice: &ResourceSlice, now: Duration) {
        let concerned = self.snapshot.devices.put_slice(slice);
        self.slices_changed(concerned, now);
    }

    pub(crate) fn slice_removed(&mut self, name: &str, now: Duration) {
        let concerned = self.snapshot.devices.remove_slice(name);
        // A pool that was being replaced may be whole by it.
        self.slices_changed(concerned, now);
    }

    fn slices_changed(&mut self, concerned: Concerned, now: Duration) {
        match concerned {
            Concerned::Nobody => return,
            Concerned::Node(node) => {
                if let Some(slot) = self.snapshot.slot(&node) {
                    self.snapshot.devices.node_changed(slot);
                }
            }
            Concerned::All => self.snapshot.devices.changed_for_all(),
        }
        self.wake(&Event::DevicesChanged(Cause::ResourceSliceUpdate), now);
    }

    pub(crate) fn volume_changed(&mut self, volume: &PersistentVolume, now: Duration) {
        self.snapshot.volumes.put_volume(volume);
        self.wake(&Event::StorageChanged(Cause::PersistentVolumeUpdate), now);
    }

    pub(crate) fn volume_removed(&mut self, name: &str) {
        self.snapshot.volumes.remove_volume(name);
    }

    pub(crate) fn class_changed(&mut self, class: &StorageClass, now: Duration) {
        self.snapshot.volumes.put_class(class);
        self.wake(&Event::StorageChanged(Cause::StorageClassUpdate), now);
    }

    pub(crate) fn class_removed(&mut self, name: &str) {
        self.snapshot.volumes.remove_class(name);
    }

    pub(crate) fn pod_group_changed(&mut self, group: &PodGroup, now: Duration) {
        let key = ObjectKey::of(group);
        let group = Known::of(group);
        let policy = group.policy.clone();
        let before = self.pod_groups.insert(key.clone(), group);
        if before.is_none_or(|before| before.policy != policy) {
            self.wake(&Event::PodGroupChanged(&key), now);
        }
    }

    pub(crate) fn pod_group_removed(&mut self, key: &ObjectKey) {
        self.pod_groups.remove(key);
    }

    pub(crate) fn driver_changed(&mut self, driver: &CSIDriver, now: Duration) {
        self.snapshot.volumes.put_driver(driver);
        self.wake(&Event::StorageChanged(Cause::CsiDriverUpdate), now);
    }

    pub(crate) fn driver_removed(&mut self, name: &str, now: Duration) {
        self.snapshot.volumes.remove_driver(name);
        self.wake(&Event::StorageChanged(Cause::CsiDriverUpdate), now);
    }

    pub(crate) fn capacity_changed(&mut self, capacity: &CSIStorageCapacity, now: Duration) {
        self.snapshot.volumes.put_capacity(capacity);
        self.wake(&Event::StorageChanged(Cause::CsiStorageCapacityUpdate), now);
    }

    pub(crate) fn capacity_removed(&mut self, key: &ObjectKey) {
        self.snapshot.volumes.remove_capacity(key);
    }

    pub(crate) fn csi_node_changed(&mut self, node: &CSINode, now: Duration) {
        let migrates = self.snapshot.volumes.put_csi_node(node);
        self.csi_node_is_other(migrates, now);
    }

    pub(crate) fn csi_node_removed(&mut self, name: &str, now: Duration) {
        let migrates = self.snapshot.volumes.remove_csi_node(name);
        self.csi_node_is_other(migrates, now);
    }

    fn csi_node_is_other(&mut self, migrates: bool, now: Duration) {
        let cause = Cause::CsiNodeUpdate;
        self.wake(&if migrates { Event::StorageChanged(cause) } else { Event::LimitsChanged(cause) }, now);
    }

    pub(crate) fn attachment_changed(&mut self, attachment: &VolumeAttachment, now: Duration) {
        // One that another has taken the name of is gone, though nobody says so.
        if self.snapshot.volumes.put_attachment(attachment) {
            self.wake(&Event::LimitsChanged(Cause::VolumeAttachmentDelete), now);
        }
    }

    pub(crate) fn attachment_removed(&mut self, name: &str, now: Duration) {
        self.snapshot.volumes.remove_attachment(name);
        self.wake(&Event::LimitsChanged(Cause::VolumeAttachmentDelete), now);
    }

    pub(crate) fn namespace_changed(&mut self, namespace: &Namespace, now: Duration) {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        self.put_namespace(name, namespace.metadata.labels.clone(), now);
    }

    pub(crate) fn namespace_removed(&mut self, name: &str, now: Duration) {
        self.put_namespace(name, None, now);
    }

    pub(crate) fn budget_changed(&mut self, budget: &PodDisruptionBudget) {
        let (namespace, name) = (budget.metadata.namespace.as_deref(), budget.metadata.name.as_deref());
        self.budgets.put(namespace.unwrap_or_default(), name.unwrap_or_default(), budget);
    }

    pub(crate) fn budget_removed(&mut self, namespace: &str, name: &str) {
        self.budgets.remove(namespace, name);
    }

    /// Services and controllers, which say of pods that wait how they are spread: known when their turn comes.
    pub(crate) fn workloads(&mut self) -> &mut Workloads {
        &mut self.reader.workloads
    }

    /// `over` is set where the pod takes nothing of its node any more, with the time at which it succeeded.
    fn bound(&mut self, pod: &Arc<PodInfo>, node: &str, over: Option<Option<Timestamp>>, now: Duration) {
        self.forget(&pod.uid, now);
        if let Some(assumed) = self.assumed.remove(&pod.uid) {
            // Bound by somebody else while its volumes and claims are written: what is not written by then is free.
            self.abandon(&pod.uid, assumed.promises, now);
        }
        if let Some(succeeded_at) = over {
            self.done.put(pod, succeeded_at);
            self.free(&pod.uid, now);
            return;
        }
        let known = self.snapshot.placed(&pod.uid).map(|(slot, known)| (slot, known.clone()));
        let is_same = |(slot, known): &(Slot, Arc<PodInfo>)| {
            self.snapshot.nodes[*slot].name == node
                && known.traits() == pod.traits()
                && known.going == pod.going
        };
        if known.as_ref().is_some_and(is_same) {
            // A kubelet tells of its pods all the time, which helps nobody that waits.
            self.snapshot.put_pod(pod, node);
            return;
        }
        let before = self.fitting(known.as_ref().map(|(slot, _)| *slot), hints::may_lack_room);
        let slot = self.snapshot.put_pod(pod, node);
        match known {
            None => self.wake(&Event::PodPlaced(pod), now),
            Some((before_slot, known)) => {
                if before_slot != slot || known.traits() != pod.traits() {
                    // A pod that moves or shrinks leaves room behind.
                    self.node_event(before_slot, &before, Cause::AssignedPodUpdate, now);
                    self.wake(&Event::PodPlaced(pod), now);
                    self.wake(&Event::PodGone(&known), now);
                } else {
                    // It does not count for spread any more.
                    self.wake(&Event::PodGone(pod), now);
                }
            }
        }
    }

    fn put_namespace(&mut self, name: &str, labels: Option<pod::Labels>, now: Duration) {
        if self.snapshot.topology.put_namespace(name, labels) {
            self.wake(&Event::NamespaceChanged, now);
        }
    }
}
