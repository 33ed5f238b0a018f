//! NodeVolumeLimits: how many volumes of each driver a node takes, and what is attached to it already.
//!
//! Limits are those of the node's CSINode; a driver that it does not name, or names without a count, has none there. What
//! counts are the volumes of the node's pods, and VolumeAttachments of others: those of pods that are gone, until the volume
//! is detached. Bounded by the nodes and attachments of the cluster.

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};

use super::{
    Volumes,
    migration::{self, Attachable},
    objects::{Claim, PodVolumes},
};

#[derive(Debug, Default)]
pub(super) struct Limits {
    /// By node and driver.
    most: HashMap<String, HashMap<String, usize>>,
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
    pub(super) fn put_node(&mut self, node: &CSINode) {
        let limits = node.spec.drivers.iter().filter_map(|driver| {
            let count = driver.allocatable.as_ref()?.count?;
            Some((driver.name.clone(), usize::try_from(count).unwrap_or_default()))
        });
        self.most.insert(node.metadata.name.clone().unwrap_or_default(), limits.collect());
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        self.most.remove(name);
    }

    /// True where that changes something.
    pub(super) fn put_attachment(&mut self, object: &VolumeAttachment) -> bool {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let spec = &object.spec;
        let volume = spec.source.persistent_volume_name.clone();
        let attachment = volume.map(|volume| Attachment { driver: spec.attacher.clone(), volume });
        let known =
            self.places.get(name).and_then(|node| Some((node, self.attachments.get(node)?.get(name)?)));
        // The spec of an attachment never changes, unless another got its name; its status does.
        if known == attachment.as_ref().map(|attachment| (&spec.node_name, attachment)) {
            return false;
        }
        self.remove_attachment(name);
        if let Some(attachment) = attachment {
            self.places.insert(name.to_owned(), spec.node_name.clone());
            let of_node = self.attachments.entry(spec.node_name.clone()).or_default();
            of_node.insert(name.to_owned(), attachment);
        }
        true
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

impl Volumes {
    /// Whether the node would have too many volumes with `new`, beside what its pods have and what others left there.
    pub(super) fn exceed_limits<'a>(
        &self,
        node: &str,
        new: &HashSet<Attachable>,
        pods: impl Iterator<Item = &'a PodVolumes> + Clone,
    ) -> bool {
        let Some(limits) = self.limits.most.get(node).filter(|_| !new.is_empty()) else {
            return false;
        };
        let attachments = self.limits.attachments.get(node);
        // Most nodes are far from their limits, whatever their pods' claims are.
        let most = pods.clone().map(|pod| pod.claims.len() + pod.attached.len()).sum::<usize>()
            + attachments.map_or(0, BTreeMap::len)
            + new.len();
        if new.iter().all(|one| limits.get(&one.driver).is_none_or(|limit| most <= *limit)) {
            return false;
        }
        let mut there: HashSet<Attachable> = HashSet::new();
        for pod in pods {
            there.extend(pod.attached.iter().cloned());
            let claims = pod.claims.iter().filter_map(|used| self.claims.get(&used.key));
            there.extend(claims.filter_map(|claim| self.attachment(claim)));
        }
        there.extend(attachments.into_iter().flat_map(BTreeMap::values).filter_map(|one| {
            let volume = self.volumes.get(&one.volume)?;
            // As upstream, of CSI alone: those of in-tree plugins have no handle that it could be known by.
            let handle = volume.attachable.as_ref().filter(|_| volume.is_csi)?.handle.clone();
            Some(Attachable { driver: one.driver.clone(), handle })
        }));
        // What is attached there already needs no place, whoever left it.
        let new: Vec<&Attachable> = new.iter().filter(|one| !there.contains(*one)).collect();
        new.iter().any(|Attachable { driver, .. }| {
            let of_driver = |one: &&Attachable| one.driver == *driver;
            let count =
                there.iter().filter(of_driver).count() + new.iter().copied().filter(of_driver).count();
            limits.get(driver).is_some_and(|limit| count > *limit)
        })
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
