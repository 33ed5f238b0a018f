//! NodeVolumeLimits: how many volumes of each driver a node takes, and what is attached to it already. Also for which in-tree
//! plugins drivers stand on a node.
//!
//! Limits are those of the node's CSINode; a driver that it does not name, or names without a count, has none there. What
//! counts are the volumes of the node's pods, and VolumeAttachments of others: those of pods that are gone, until the volume
//! is detached. Bounded by the nodes and attachments of the cluster.

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};

use super::{
    Volumes,
    migration::{self, Attachable},
    objects::{Claim, PodVolumes, Volume},
};
use crate::{pod::Labels, snapshot::Slot};

#[derive(Debug, Default)]
pub(super) struct Limits {
    /// By node and driver.
    most: HashMap<String, HashMap<String, usize>>,
    /// In-tree plugins that drivers stand for, by node; only nodes that have any.
    migrated: HashMap<String, Vec<String>>,
    /// By node and name of the object.
    attachments: HashMap<String, BTreeMap<String, Attachment>>,
    /// The node of each attachment.
    places: HashMap<String, String>,
}

/// A volume that is attached, or about to be.
#[derive(Debug, PartialEq, Eq)]
struct Attachment {
    driver: String,
    /// The PersistentVolume.
    volume: String,
}

impl Limits {
    /// True where drivers stand for others of the in-tree plugins there than before.
    pub(super) fn put_node(&mut self, node: &CSINode) -> bool {
        let limits = node.spec.drivers.iter().filter_map(|driver| {
            let count = driver.allocatable.as_ref()?.count?;
            Some((driver.name.clone(), usize::try_from(count).unwrap_or_default()))
        });
        let name = node.metadata.name.clone().unwrap_or_default();
        self.most.insert(name.clone(), limits.collect());
        let annotations = node.metadata.annotations.as_ref();
        let plugins = annotations.and_then(|annotations| annotations.get(migration::MIGRATED_PLUGINS));
        let plugins = plugins.filter(|plugins| !plugins.is_empty());
        let plugins: Option<Vec<String>> =
            plugins.map(|plugins| plugins.split(',').map(str::to_owned).collect());
        let is_other = self.migrated.get(&name) != plugins.as_ref();
        match plugins {
            Some(plugins) => _ = self.migrated.insert(name, plugins),
            None => _ = self.migrated.remove(&name),
        }
        is_other
    }

    /// The same.
    pub(super) fn remove_node(&mut self, name: &str) -> bool {
        self.most.remove(name);
        self.migrated.remove(name).is_some()
    }

    /// Whether that takes the place of another; `None` where it changes nothing.
    pub(super) fn put_attachment(&mut self, object: &VolumeAttachment) -> Option<bool> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let spec = &object.spec;
        let volume = spec.source.persistent_volume_name.clone();
        let attachment = volume.map(|volume| Attachment { driver: spec.attacher.clone(), volume });
        let known =
            self.places.get(name).and_then(|node| Some((node, self.attachments.get(node)?.get(name)?)));
        // The spec of an attachment never changes, unless another got its name; its status does.
        if known == attachment.as_ref().map(|attachment| (&spec.node_name, attachment)) {
            return None;
        }
        let replaces = known.is_some();
        self.remove_attachment(name);
        if let Some(attachment) = attachment {
            self.places.insert(name.to_owned(), spec.node_name.clone());
            let of_node = self.attachments.entry(spec.node_name.clone()).or_default();
            of_node.insert(name.to_owned(), attachment);
        }
        Some(replaces)
    }

    pub(super) fn remove_attachment(&mut self, name: &str) {
        let Some(node) = self.places.remove(name) else { return };
        if let Some(of_node) = self.attachments.get_mut(&node) {
            of_node.remove(name);
            if of_node.is_empty() {
                self.attachments.remove(&node);
            }
        }
    }
}

/// What is attached to a node: what its pods have, and what others left there.
#[derive(Debug)]
pub(super) struct There {
    node: String,
    /// Of the volumes that it was read with.
    version: u64,
    all: HashSet<Attachable>,
    by_driver: HashMap<String, usize>,
}

impl There {
    /// Whether the node would have more than it takes.
    fn exceeds(&self, limits: &HashMap<String, usize>, new: &HashSet<Attachable>) -> bool {
        // What is attached there already needs no place, whoever left it.
        let new: Vec<&Attachable> = new.iter().filter(|one| !self.all.contains(*one)).collect();
        new.iter().any(|Attachable { driver, .. }| {
            let more = new.iter().filter(|one| one.driver == *driver).count();
            let count = self.by_driver.get(driver).copied().unwrap_or_default() + more;
            limits.get(driver).is_some_and(|limit| count > *limit)
        })
    }
}

impl Volumes {
    /// Whether the node can reach a volume that is bound, by the labels of whoever attaches it there.
    pub(super) fn reaches(&self, volume: &Volume, node: &str, labels: &Labels) -> bool {
        let stands_for = |plugin: &str| {
            self.limits.migrated.get(node).is_some_and(|plugins| plugins.iter().any(|one| one == plugin))
        };
        match volume.migrated.as_ref().filter(|migrated| stands_for(migrated.plugin)) {
            Some(migrated) => migrated.affinity.as_ref().is_none_or(|affinity| affinity.allows(node, labels)),
            None => volume.reaches(node, labels),
        }
    }

    /// Whether the node in the slot would have too many volumes with `new`, beside what its pods have and what others left
    /// there. `pods` are those that it has; others than it has where `supposed`.
    pub(super) fn exceed_limits<'a>(
        &self,
        (slot, node): (Slot, &str),
        new: &HashSet<Attachable>,
        pods: impl Iterator<Item = &'a PodVolumes> + Clone,
        supposed: bool,
    ) -> bool {
        let Some(limits) = self.limits.most.get(node).filter(|_| !new.is_empty()) else {
            return false;
        };
        let is_same = |there: &&There| there.node == node && there.version == self.version;
        let kept = self.there.borrow();
        let known = kept.get(slot).and_then(Option::as_ref).filter(is_same).filter(|_| !supposed);
        if let Some(there) = known {
            return there.exceeds(limits, new);
        }
        drop(kept);
        // Most nodes are far from their limits, whatever their pods' claims are.
        let most = pods.clone().map(|pod| pod.claims.len() + pod.attached.len()).sum::<usize>()
            + self.limits.attachments.get(node).map_or(0, BTreeMap::len)
            + new.len();
        if new.iter().all(|one| limits.get(&one.driver).is_none_or(|limit| most <= *limit)) {
            return false;
        }
        let there = self.there(node, pods);
        let exceeds = there.exceeds(limits, new);
        if !supposed {
            let mut kept = self.there.borrow_mut();
            if kept.len() <= slot {
                kept.resize_with(slot + 1, || None);
            }
            kept[slot] = Some(there);
        }
        exceeds
    }

    fn there<'a>(&self, node: &str, pods: impl Iterator<Item = &'a PodVolumes>) -> There {
        let mut all: HashSet<Attachable> = HashSet::new();
        for pod in pods {
            all.extend(pod.attached.iter().cloned());
            let claims = pod.claims.iter().filter_map(|used| self.claims.get(&used.key));
            all.extend(claims.filter_map(|claim| self.attachment(claim)));
        }
        let attachments = self.limits.attachments.get(node).into_iter().flat_map(BTreeMap::values);
        all.extend(attachments.filter_map(|one| {
            let volume = self.volumes.get(&one.volume)?;
            // As upstream, of CSI alone: those of in-tree plugins have no handle that it could be known by.
            let handle = volume.attachable.as_ref().filter(|_| volume.is_csi)?.handle.clone();
            Some(Attachable { driver: one.driver.clone(), handle })
        }));
        let mut by_driver = HashMap::new();
        for one in &all {
            *by_driver.entry(one.driver.clone()).or_default() += 1;
        }
        There { node: node.to_owned(), version: self.version, all, by_driver }
    }

    /// What of the claim is attached, where a driver does that: its volume, or the one that will be made for it.
    pub(super) fn attachment(&self, claim: &Claim) -> Option<Attachable> {
        match claim.volume.as_ref().and_then(|volume| self.volumes.get(volume)) {
            Some(volume) => volume.attachable.clone(),
            None => {
                let class = self.classes.get(&claim.class).filter(|class| class.provisions())?;
                let handle = format!("claim {}", claim.key);
                Some(Attachable::new(migration::driver(&class.provisioner), handle))
            }
        }
    }
}
