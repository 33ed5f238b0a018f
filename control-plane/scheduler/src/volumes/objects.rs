//! Claims, volumes and classes, reduced to what a place depends on.

use std::collections::BTreeSet;

use hawser_api::{quantity::Quantity, resource::ObjectKey, selector::LabelSelector};
use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::{api::resource::Quantity as Text, apis::meta::v1::ObjectMeta},
};

use super::migration::{self, Attachable, Migrated};
use crate::{affinity::NodeAffinity, pod::Labels};

const BOUND: &str = "pv.kubernetes.io/bind-completed";
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// From before `storageClassName`; it still counts.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Labels of volumes that say where they are; several values are joined by `__`.
const ZONE_LABELS: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claim {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) owner: Option<String>,
    pub(crate) class: String,
    /// The volume that it names.
    pub(crate) volume: Option<String>,
    /// Claim and volume know each other.
    pub(crate) bound: bool,
    pub(crate) lost: bool,
    pub(crate) going: bool,
    pub(crate) selected_node: Option<String>,
    pub(crate) access_modes: Vec<String>,
    pub(crate) bytes: i64,
    /// Unset matches every volume.
    pub(crate) selector: Option<LabelSelector>,
    pub(crate) block: bool,
    /// The VolumeAttributesClass; a volume has to have the same.
    pub(crate) attributes_class: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) resource_version: String,
    pub(crate) class: String,
    pub(crate) affinity: Option<NodeAffinity>,
    /// Set for volumes of in-tree plugins that drivers take over.
    pub(crate) migrated: Option<Migrated>,
    /// Old and new label, and the values that a node may have.
    pub(crate) zones: Vec<(&'static str, &'static str, BTreeSet<String>)>,
    /// The claim that it is for, and its uid where that is known.
    pub(crate) claim: Option<(ObjectKey, Option<String>)>,
    pub(crate) available: bool,
    pub(crate) going: bool,
    pub(crate) access_modes: Vec<String>,
    pub(crate) bytes: i64,
    pub(crate) labels: Labels,
    pub(crate) block: bool,
    pub(crate) attributes_class: Option<String>,
    /// What of it counts against limits of nodes.
    pub(crate) attachable: Option<Attachable>,
    pub(crate) is_csi: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Class {
    pub(crate) provisioner: String,
    /// Volumes are bound when the first pod has a node.
    pub(crate) waits: bool,
    /// One of them must match a node; none is all nodes.
    pub(crate) topologies: Vec<Vec<(String, Vec<String>)>>,
}

impl Claim {
    pub(crate) fn of(claim: &PersistentVolumeClaim) -> Self {
        let spec = claim.spec.clone().unwrap_or_default();
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let requests = spec.resources.and_then(|resources| resources.requests);
        let metadata = &claim.metadata;
        let owners = metadata.owner_references.iter().flatten();
        Self {
            key: ObjectKey::of(claim),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            owner: owners
                .into_iter()
                .find(|owner| owner.controller == Some(true))
                .map(|owner| owner.uid.clone()),
            class: class(metadata, spec.storage_class_name),
            volume: spec.volume_name.filter(|name| !name.is_empty()),
            bound: annotation(metadata, BOUND).is_some(),
            lost: phase == Some("Lost"),
            going: metadata.deletion_timestamp.is_some(),
            selected_node: annotation(metadata, SELECTED_NODE).cloned(),
            access_modes: spec.access_modes.unwrap_or_default(),
            bytes: bytes(requests.as_ref().and_then(|requests| requests.get("storage"))),
            selector: spec.selector.map(|selector| {
                LabelSelector::from_typed(Some(&selector)).unwrap_or_else(|_| LabelSelector::nothing())
            }),
            block: spec.volume_mode.as_deref() == Some("Block"),
            attributes_class: spec.volume_attributes_class_name.filter(|name| !name.is_empty()),
        }
    }

    /// Whether it was read before it had that version.
    pub(crate) fn is_before(&self, version: &str) -> bool {
        let number = |version: &str| version.parse::<u64>().ok();
        number(&self.resource_version).zip(number(version)).is_some_and(|(own, other)| own < other)
    }

    pub(crate) fn is_bound(&self) -> bool {
        self.bound && self.volume.is_some()
    }

    /// Whether a generic ephemeral volume of the pod is this claim.
    pub(crate) fn belongs_to(&self, uid: &str) -> bool {
        self.owner.as_deref() == Some(uid)
    }
}

impl Volume {
    pub(crate) fn of(volume: &PersistentVolume) -> Self {
        let spec = volume.spec.clone().unwrap_or_default();
        let metadata = &volume.metadata;
        let labels = metadata.labels.clone().unwrap_or_default();
        let attachable = migration::of_persistent(&spec, &labels);
        let migrated = Migrated::of(&spec, &labels);
        let zone = |(old, new): (&'static str, &'static str)| {
            let values = labels.get(old)?.split("__").map(|value| value.trim().to_owned()).collect();
            Some((old, new, values))
        };
        let claim = spec.claim_ref.map(|claim| {
            let key = ObjectKey::new(claim.namespace.unwrap_or_default(), claim.name.unwrap_or_default());
            (key, claim.uid.filter(|uid| !uid.is_empty()))
        });
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            class: class(metadata, spec.storage_class_name),
            affinity: spec
                .node_affinity
                .and_then(|affinity| affinity.required)
                .map(|required| NodeAffinity::selecting(&required)),
            migrated,
            zones: ZONE_LABELS.into_iter().filter_map(zone).collect(),
            claim,
            available: volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available"),
            going: metadata.deletion_timestamp.is_some(),
            access_modes: spec.access_modes.unwrap_or_default(),
            bytes: bytes(spec.capacity.as_ref().and_then(|capacity| capacity.get("storage"))),
            block: spec.volume_mode.as_deref() == Some("Block"),
            attributes_class: spec.volume_attributes_class_name.filter(|name| !name.is_empty()),
            attachable,
            is_csi: spec.csi.is_some(),
            labels,
        }
    }

    /// Whether it is for the claim and no other.
    pub(crate) fn is_for(&self, claim: &Claim) -> bool {
        let same = |(key, uid): &(ObjectKey, Option<String>)| {
            *key == claim.key && uid.as_ref().is_none_or(|uid| *uid == claim.uid)
        };
        self.claim.as_ref().is_some_and(same)
    }

    pub(crate) fn reaches(&self, node: &str, labels: &Labels) -> bool {
        self.affinity.as_ref().is_none_or(|affinity| affinity.allows(node, labels))
    }
}

impl Class {
    pub(crate) fn of(class: &StorageClass) -> Self {
        let topologies = class.allowed_topologies.iter().flatten().map(|term| {
            let expressions = term.match_label_expressions.iter().flatten();
            expressions.map(|expression| (expression.key.clone(), expression.values.clone())).collect()
        });
        Self {
            provisioner: class.provisioner.clone(),
            waits: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            topologies: topologies.collect(),
        }
    }

    pub(crate) fn provisions(&self) -> bool {
        !matches!(self.provisioner.as_str(), "" | "kubernetes.io/no-provisioner")
    }

    pub(crate) fn allows(&self, labels: &Labels) -> bool {
        let holds = |(key, values): &(String, Vec<String>)| {
            labels.get(key).is_some_and(|value| values.contains(value))
        };
        self.topologies.is_empty()
            || self.topologies.iter().any(|term| !term.is_empty() && term.iter().all(holds))
    }
}

/// What the pod's volumes ask for, read once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PodVolumes {
    pub(crate) claims: Vec<ClaimUse>,
    /// Disks named in the pod itself.
    pub(crate) disks: Vec<Disk>,
    /// What of those counts against limits of nodes.
    pub(crate) attached: Vec<Attachable>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClaimUse {
    pub(crate) key: ObjectKey,
    /// Made for the pod by a controller.
    pub(crate) ephemeral: bool,
}

/// A disk that one pod of a node may use, or several where all of them only read it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Disk {
    id: String,
    read_only: bool,
}

impl Disk {
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        self.id == other.id && !(self.read_only && other.read_only)
    }
}

impl PodVolumes {
    pub(crate) fn of(pod: &Pod) -> Self {
        let mut volumes = Self::default();
        let metadata = &pod.metadata;
        let (namespace, name) =
            (metadata.namespace.clone().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default());
        let all = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        for volume in all {
            if let Some(claim) = &volume.persistent_volume_claim {
                let key = ObjectKey::new(namespace.clone(), claim.claim_name.clone());
                volumes.use_claim(ClaimUse { key, ephemeral: false });
            }
            if volume.ephemeral.is_some() {
                let key = ObjectKey::new(namespace.clone(), format!("{name}-{}", volume.name));
                volumes.use_claim(ClaimUse { key, ephemeral: true });
            }
            volumes.attached.extend(migration::of_pod(volume));
            let mut disk = |id: String, read_only: Option<bool>| {
                volumes.disks.push(Disk { id, read_only: read_only.unwrap_or_default() });
            };
            if let Some(gce) = &volume.gce_persistent_disk {
                disk(format!("gce/{}", gce.pd_name), gce.read_only);
            }
            if let Some(aws) = &volume.aws_elastic_block_store {
                // Never shared, whatever it says.
                disk(format!("aws/{}", aws.volume_id), None);
            }
            if let Some(iscsi) = &volume.iscsi {
                disk(format!("iscsi/{}", iscsi.iqn), iscsi.read_only);
            }
            if let Some(rbd) = &volume.rbd {
                let pool = rbd.pool.as_deref().unwrap_or("rbd");
                for monitor in &rbd.monitors {
                    disk(format!("rbd/{monitor}/{pool}/{}", rbd.image), rbd.read_only);
                }
            }
        }
        volumes
    }

    /// One that two volumes of the pod name is one claim all the same.
    fn use_claim(&mut self, used: ClaimUse) {
        if !self.claims.contains(&used) {
            self.claims.push(used);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.disks.is_empty() && self.attached.is_empty()
    }

    /// Whether something of it may count against limits of nodes.
    pub(crate) fn may_attach(&self) -> bool {
        !self.claims.is_empty() || !self.attached.is_empty()
    }
}

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a String> {
    metadata.annotations.as_ref()?.get(name)
}

fn class(metadata: &ObjectMeta, named: Option<String>) -> String {
    annotation(metadata, CLASS).cloned().or(named).unwrap_or_default()
}

fn bytes(text: Option<&Text>) -> i64 {
    text.and_then(|text| text.0.parse::<Quantity>().ok()).map_or(0, Quantity::value)
}
