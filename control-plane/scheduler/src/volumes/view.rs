//! A pod's volumes as seen from every node, for one decision.

use std::collections::HashSet;

use hawser_api::resource::ObjectKey;

use crate::{
    pod::PodInfo,
    profile::{Plugin, PluginSet},
    refusal::Refusal,
    snapshot::{NodeEntry, Slot},
    volumes::{
        Provisions, Volumes,
        migration::Attachable,
        objects::{Claim, Volume},
    },
};

/// Why no node at all can have the pod's volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) plugin: Plugin,
    pub(crate) message: String,
}

/// Why a node cannot have the volumes of unbound claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lacking {
    /// None is there, and none can be made for it.
    Volume,
    /// The driver has not enough free storage there.
    Space,
}

pub(crate) struct VolumeView<'a> {
    pod: &'a PodInfo,
    all: &'a Volumes,
    on: PluginSet,
    /// Claims for one pod alone that others use.
    exclusive: Vec<&'a Claim>,
    bound: Vec<&'a Volume>,
    /// A claim is bound to a volume that does not exist.
    missing: bool,
    /// The smallest first.
    unbound: Vec<&'a Claim>,
    /// Volumes that count against a node's limits.
    attached: HashSet<Attachable>,
}

impl<'a> VolumeView<'a> {
    pub(crate) fn new(pod: &'a PodInfo, all: &'a Volumes) -> Result<Self, Trouble> {
        let mut view = Self {
            pod,
            all,
            on: pod.needs.profile.filters,
            exclusive: Vec::new(),
            bound: Vec::new(),
            missing: false,
            unbound: Vec::new(),
            attached: pod.volumes.attached.iter().cloned().collect(),
        };
        let mut immediate = false;
        for used in &pod.volumes.claims {
            let claim = view.usable(&used.key, used.ephemeral)?;
            if claim.access_modes.iter().any(|mode| mode == "ReadWriteOncePod")
                && all.users.contains_key(&claim.key)
            {
                view.exclusive.push(claim);
            }
            view.attached.extend(all.attachment(claim));
            match &claim.volume {
                Some(volume) if claim.is_bound() => match all.volumes.get(volume) {
                    Some(volume) => view.bound.push(volume),
                    None => view.missing = true,
                },
                None if all.classes.get(&claim.class).is_some_and(|class| class.waits) => {
                    view.unbound.push(claim)
                }
                _ => immediate = true,
            }
        }
        if immediate && view.on.contains(Plugin::VolumeBinding) {
            return Err(view.trouble("pod has unbound immediate PersistentVolumeClaims".to_owned()));
        }
        view.unbound.sort_by_key(|claim| claim.bytes);
        Ok(view)
    }

    fn usable(&self, key: &ObjectKey, ephemeral: bool) -> Result<&'a Claim, Trouble> {
        let name = &key.name;
        let Some(claim) = self.all.claims.get(key) else {
            return Err(self.trouble(if ephemeral {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                )
            } else {
                format!("persistentvolumeclaim {name:?} not found")
            }));
        };
        if claim.lost {
            let volume = claim.volume.as_deref().unwrap_or_default();
            let message =
                format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}");
            return Err(self.trouble(message));
        }
        if claim.going {
            return Err(self.trouble(format!("persistentvolumeclaim {name:?} is being deleted")));
        }
        if ephemeral && !claim.belongs_to(&self.pod.uid) {
            let namespace = &key.namespace;
            let pod = &self.pod.key.name;
            let message = format!(
                "PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"
            );
            return Err(self.trouble(message));
        }
        Ok(claim)
    }

    fn trouble(&self, message: String) -> Trouble {
        Trouble { plugin: Plugin::VolumeBinding, message }
    }

    /// Why the node cannot have the pod's volumes; `changes` are pods to be taken for gone (-1) or there (1).
    pub(crate) fn refusal(
        &self,
        slot: Slot,
        nodes: &[NodeEntry],
        changes: &[(&PodInfo, i64)],
    ) -> Option<Refusal> {
        let node = &nodes[slot];
        let on = |plugin| self.on.contains(plugin);
        if on(Plugin::VolumeRestrictions) {
            if self.exclusive.iter().any(|claim| self.users(claim, changes) > 0) {
                return Some(Refusal::ExclusiveClaim);
            }
            if !self.pod.volumes.disks.is_empty()
                && self.pods(node, changes).any(|other| self.shares_disk(other))
            {
                return Some(Refusal::DiskInUse);
            }
        }
        if on(Plugin::NodeVolumeLimits) && self.exceeds(slot, node, changes) {
            return Some(Refusal::TooManyVolumes);
        }
        if on(Plugin::VolumeBinding) {
            let conflict =
                self.bound.iter().any(|volume| !self.all.reaches(volume, &node.name, &node.labels));
            let lacking = self.provisions(node).err();
            if conflict || lacking.is_some() || self.missing {
                return Some(Refusal::Volumes { conflict, lacking, missing: self.missing });
            }
        }
        (on(Plugin::VolumeZone) && !self.in_zone(node)).then_some(Refusal::VolumeZone)
    }

    /// What has to be written for the pod to run on the node.
    pub(crate) fn provisions(&self, node: &NodeEntry) -> Result<Provisions, Lacking> {
        let mut provisions = Provisions::default();
        let (mut chosen, mut to_make) = (HashSet::new(), Vec::new());
        for claim in &self.unbound {
            provisions.wait_for.push(claim.key.clone());
            let selected = claim.selected_node.as_ref().or_else(|| self.all.selected.get(&claim.key));
            if selected.is_some_and(|selected| *selected != node.name) {
                return Err(Lacking::Volume);
            }
            let found = if selected.is_none() { self.find(claim, node, &chosen) } else { None };
            if let Some(volume) = found {
                chosen.insert(&volume.name);
                provisions.volumes.push((volume.name.clone(), claim.key.clone()));
                continue;
            }
            to_make.push(*claim);
        }
        // After all that are there: a lack of volumes is told before a lack of space.
        for claim in to_make {
            let class = self.all.classes.get(&claim.class).ok_or(Lacking::Volume)?;
            if !class.provisions() || !class.allows(&node.labels) {
                return Err(Lacking::Volume);
            }
            let (driver, bytes) = (&class.provisioner, claim.bytes);
            if !self.all.capacities.suffice(driver, &claim.class, bytes, &node.labels) {
                return Err(Lacking::Space);
            }
            provisions.provisioned.push(claim.key.clone());
        }
        Ok(provisions)
    }

    /// The smallest volume that does for the claim; one that is made for it, where there is such.
    fn find(&self, claim: &Claim, node: &NodeEntry, chosen: &HashSet<&String>) -> Option<&'a Volume> {
        let all = self.all;
        let may = |volume: &Volume| {
            !volume.going
                && !chosen.contains(&volume.name)
                && volume.block == claim.block
                && volume.bytes >= claim.bytes
                && all.promised.claim_of(&volume.name).is_none_or(|other| *other == claim.key)
        };
        // Another pod with the claim is about to be bound.
        if let Some(volume) = all.promised.volume_for(&claim.key).and_then(|name| all.volumes.get(name)) {
            return volume.reaches(&node.name, &node.labels).then_some(volume);
        }
        let mut made =
            all.available.made_for(&claim.class, &claim.key).filter_map(|name| all.volumes.get(name));
        if let Some(volume) = made.find(|volume| may(volume) && volume.is_for(claim)) {
            // No other will do.
            return volume.reaches(&node.name, &node.labels).then_some(volume);
        }
        let fits = |name: &str| {
            all.volumes.get(name).is_some_and(|volume| {
                may(volume)
                    && claim.selector.as_ref().is_none_or(|selector| selector.matches(&volume.labels))
                    && claim.access_modes.iter().all(|mode| volume.access_modes.contains(mode))
                    && volume.attributes_class == claim.attributes_class
                    && volume.reaches(&node.name, &node.labels)
            })
        };
        all.volumes.get(all.available.smallest(&claim.class, claim.bytes, node, fits)?)
    }

    fn users(&self, claim: &Claim, changes: &[(&PodInfo, i64)]) -> i64 {
        let uses = |pod: &PodInfo| pod.volumes.claims.iter().any(|used| used.key == claim.key);
        let users = self.all.users.get(&claim.key).copied().unwrap_or_default();
        let more: i64 = changes.iter().filter(|(pod, _)| uses(pod)).map(|(_, sign)| sign).sum();
        i64::try_from(users).unwrap_or(i64::MAX).saturating_add(more)
    }

    fn shares_disk(&self, other: &PodInfo) -> bool {
        let own = &self.pod.volumes.disks;
        own.iter().any(|disk| other.volumes.disks.iter().any(|used| disk.conflicts(used)))
    }

    fn exceeds(&self, slot: Slot, node: &NodeEntry, changes: &[(&PodInfo, i64)]) -> bool {
        let pods = self.pods(node, changes).map(|pod| &*pod.volumes);
        self.all.exceed_limits((slot, &node.name), &self.attached, pods, !changes.is_empty())
    }

    /// Pods of the node, as changed.
    fn pods<'b>(
        &'b self,
        node: &'b NodeEntry,
        changes: &'b [(&PodInfo, i64)],
    ) -> impl Iterator<Item = &'b PodInfo> + Clone {
        let gone = move |pod: &PodInfo| changes.iter().any(|(other, sign)| *sign < 0 && other.uid == pod.uid);
        let come = changes.iter().filter(|(_, sign)| *sign > 0).map(|(pod, _)| *pod);
        node.pods.iter().map(|pod| &**pod).filter(move |pod| !gone(pod)).chain(come)
    }

    fn in_zone(&self, node: &NodeEntry) -> bool {
        const LABELS: [&str; 4] = [
            "topology.kubernetes.io/zone",
            "topology.kubernetes.io/region",
            "failure-domain.beta.kubernetes.io/zone",
            "failure-domain.beta.kubernetes.io/region",
        ];
        let zones = || self.bound.iter().flat_map(|volume| &volume.zones);
        let is_labelled = || LABELS.iter().any(|label| node.labels.contains_key(*label));
        zones().next().is_none()
            || !is_labelled()
            || zones().all(|(old, new, values)| {
                node.labels
                    .get(*old)
                    .or_else(|| node.labels.get(*new))
                    .is_some_and(|value| values.contains(value))
            })
    }
}
