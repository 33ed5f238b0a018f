//! Volumes of pods: what there is, what is promised, and which nodes can have them.
//!
//! VolumeRestrictions, NodeVolumeLimits, VolumeBinding and VolumeZone of upstream. A volume that is to be bound when its
//! pod has a node is promised to the claim from the decision until the API shows it, so that no volume is
//! promised twice. Free storage counts where drivers publish it ([`capacity`]). Bounded by the claims, volumes and nodes of the cluster.

mod available;
mod capacity;
mod limits;
mod migration;
mod objects;
mod view;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
};

use hawser_api::resource::ObjectKey;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment},
};

pub(crate) use objects::{PodVolumes, SELECTED_NODE};
pub(crate) use view::{Lacking, Trouble, VolumeView};

use available::Available;
use capacity::Capacities;
use limits::{Limits, There};
use objects::{Claim, Class, Volume};

use crate::{pod::PodInfo, snapshot::Slot};

#[derive(Debug, Default)]
pub(crate) struct Volumes {
    claims: HashMap<ObjectKey, Claim>,
    /// Ordered, so that a run can be repeated.
    volumes: BTreeMap<String, Volume>,
    available: Available,
    classes: HashMap<String, Class>,
    capacities: Capacities,
    limits: Limits,
    /// What nodes have attached, as far as somebody asked: kept until their pods, or volumes and claims, change.
    there: RefCell<Vec<Option<There>>>,
    /// Placed pods that use a claim.
    users: HashMap<ObjectKey, usize>,
    /// What was decided and the API does not show yet: volumes of claims, and nodes that others are made for.
    promised: Promised,
    selected: HashMap<ObjectKey, String>,
    /// Counts changes, for whoever keeps what was said of them.
    version: u64,
}

/// Which volume is promised to which claim; each to one.
#[derive(Debug, Default)]
struct Promised {
    by_volume: HashMap<String, ObjectKey>,
    by_claim: HashMap<ObjectKey, String>,
}

impl Promised {
    fn put(&mut self, volume: &str, claim: &ObjectKey) {
        self.by_volume.insert(volume.to_owned(), claim.clone());
        self.by_claim.insert(claim.clone(), volume.to_owned());
    }

    fn claim_of(&self, volume: &str) -> Option<&ObjectKey> {
        self.by_volume.get(volume)
    }

    fn volume_for(&self, claim: &ObjectKey) -> Option<&String> {
        self.by_claim.get(claim)
    }

    /// True where the volume was promised.
    fn remove(&mut self, volume: &str) -> bool {
        let claim = self.by_volume.remove(volume);
        claim.is_some_and(|claim| self.by_claim.remove(&claim).is_some())
    }
}

/// What is to be written before a pod can be bound to its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Provisions {
    /// Volumes for claims.
    pub(crate) volumes: Vec<(String, ObjectKey)>,
    /// Claims that a volume is made for on the node.
    pub(crate) provisioned: Vec<ObjectKey>,
    /// All claims that have to be bound.
    pub(crate) wait_for: Vec<ObjectKey>,
}

impl Volumes {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn put_claim(&mut self, claim: &PersistentVolumeClaim) {
        let claim = Claim::of(claim);
        // The API shows what was promised.
        if claim.selected_node.is_some() || claim.is_bound() {
            self.selected.remove(&claim.key);
        }
        self.claims.insert(claim.key.clone(), claim);
        self.version += 1;
    }

    pub(crate) fn remove_claim(&mut self, key: &ObjectKey) {
        self.claims.remove(key);
        self.selected.remove(key);
        self.version += 1;
    }

    pub(crate) fn put_volume(&mut self, volume: &PersistentVolume) {
        let volume = Volume::of(volume);
        if volume.claim.is_some() {
            self.promised.remove(&volume.name);
        }
        if let Some(before) = self.volumes.get(&volume.name) {
            self.available.remove(before);
        }
        self.available.add(&volume);
        self.volumes.insert(volume.name.clone(), volume);
        self.version += 1;
    }

    pub(crate) fn remove_volume(&mut self, name: &str) {
        if let Some(before) = self.volumes.remove(name) {
            self.available.remove(&before);
        }
        self.promised.remove(name);
        self.version += 1;
    }

    pub(crate) fn put_class(&mut self, class: &StorageClass) {
        let name = class.metadata.name.clone().unwrap_or_default();
        self.classes.insert(name, Class::of(class));
        self.version += 1;
    }

    pub(crate) fn remove_class(&mut self, name: &str) {
        self.classes.remove(name);
        self.version += 1;
    }

    pub(crate) fn put_driver(&mut self, driver: &CSIDriver) {
        self.capacities.put_driver(driver);
        self.version += 1;
    }

    pub(crate) fn remove_driver(&mut self, name: &str) {
        self.capacities.remove_driver(name);
        self.version += 1;
    }

    pub(crate) fn put_capacity(&mut self, capacity: &CSIStorageCapacity) {
        self.capacities.put(capacity);
        self.version += 1;
    }

    pub(crate) fn remove_capacity(&mut self, key: &ObjectKey) {
        self.capacities.remove(key);
        self.version += 1;
    }

    /// True where volumes of in-tree plugins may reach the node that did not.
    pub(crate) fn put_csi_node(&mut self, node: &CSINode) -> bool {
        self.version += 1;
        self.limits.put_node(node)
    }

    /// The same.
    pub(crate) fn remove_csi_node(&mut self, name: &str) -> bool {
        self.version += 1;
        self.limits.remove_node(name)
    }

    /// True where another attachment had the name, which is gone by that.
    pub(crate) fn put_attachment(&mut self, attachment: &VolumeAttachment) -> bool {
        let replaces = self.limits.put_attachment(attachment);
        self.version += u64::from(replaces.is_some());
        replaces.unwrap_or_default()
    }

    pub(crate) fn remove_attachment(&mut self, name: &str) {
        self.limits.remove_attachment(name);
        self.version += 1;
    }

    /// A pod is placed, or taken off its node.
    pub(crate) fn count(&mut self, pod: &PodInfo, slot: Slot, sign: isize) {
        if let Some(there) = self.there.get_mut().get_mut(slot)
            && pod.volumes.may_attach()
        {
            *there = None;
        }
        for claim in &pod.volumes.claims {
            let users = self.users.entry(claim.key.clone()).or_default();
            *users = users.saturating_add_signed(sign);
            if *users == 0 {
                self.users.remove(&claim.key);
            }
        }
    }

    /// Promises what a pod needs.
    pub(crate) fn promise(&mut self, provisions: &Provisions, node: &str) {
        for (volume, claim) in &provisions.volumes {
            self.promised.put(volume, claim);
        }
        for claim in &provisions.provisioned {
            self.selected.insert(claim.clone(), node.to_owned());
        }
        self.version += 1;
    }

    /// The pod does not go there: what was promised for it, and is not written, is free again. True where that is something.
    pub(crate) fn take_back(&mut self, provisions: &Provisions) -> bool {
        let mut freed = false;
        for (volume, claim) in &provisions.volumes {
            if self.promised.claim_of(volume) == Some(claim) {
                freed |= self.promised.remove(volume);
            }
        }
        for claim in &provisions.provisioned {
            freed |= self.selected.remove(claim).is_some();
        }
        self.version += u64::from(freed);
        freed
    }

    /// Whether the claims are bound, or why they never will be on the node, in upstream's words.
    ///
    /// `written` are the versions of claims that the node was noted in: what is older says nothing of it.
    pub(crate) fn are_bound(
        &self,
        provisions: &Provisions,
        node: &str,
        written: &HashMap<ObjectKey, String>,
    ) -> Result<bool, String> {
        let mut all = true;
        for key in &provisions.wait_for {
            let claim = self.claims.get(key).ok_or_else(|| format!("claim {key} is gone"))?;
            if claim.is_bound() {
                continue;
            }
            all = false;
            let is_news = written.get(key).is_some_and(|version| !claim.is_before(version));
            match claim.selected_node.as_deref().filter(|_| is_news) {
                None if is_news => return Err(format!("provisioning failed for PVC {:?}", key.name)),
                Some(other) if other != node => {
                    return Err(format!(
                        "selectedNode annotation value {other:?} not set to scheduled node {node:?}"
                    ));
                }
                _ => (),
            }
        }
        Ok(all)
    }

    pub(crate) fn claim(&self, key: &ObjectKey) -> Option<&Claim> {
        self.claims.get(key)
    }

    pub(crate) fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.get(name)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
