//! Event hints: whether what happened can help a pod that no node could run.
//!
//! Asked per plugin that refused it. What happens to one node is answered by trying that node; what happens to a pod may
//! help through its whole topology domain, so its labels and terms are held against those of the pod that waits.

use std::collections::BTreeSet;

use hawser_api::resource::ObjectKey;

use crate::{
    evaluation, filters,
    metrics::Cause,
    pod::PodInfo,
    profile::{Plugin, PluginSet},
    snapshot::{Slot, Snapshot},
    terms::StandingKind,
    topology::{CounterKey, Namespaces},
};

/// What happened.
pub(crate) enum Event<'a> {
    /// Room appeared on a node, or it is another by now.
    Node {
        slot: Slot,
        /// How far the node could have run a pod before.
        before: &'a dyn Fn(&PodInfo) -> Fit,
        /// Its labels, taints or existence changed, and its topology domains with them.
        relabelled: bool,
        /// Extended resources that it did not have itself before.
        gained: &'a BTreeSet<String>,
        cause: Cause,
    },
    PodPlaced(&'a PodInfo),
    PodGone(&'a PodInfo),
    NamespaceChanged,
    ClaimChanged(&'a ObjectKey),
    /// A volume or a class.
    StorageChanged(Cause),
    /// How many volumes a node takes, or has attached.
    LimitsChanged(Cause),
    PodGroupChanged(&'a ObjectKey),
    DeviceClaimChanged(&'a ObjectKey),
    /// Devices became free, or there are others, or other classes of them.
    DevicesChanged(Cause),
    /// Device classes provide these that did not before: a class came, was changed, or went and left them to another.
    ExtendedResourcesGained {
        gained: &'a BTreeSet<String>,
        cause: Cause,
    },
}

impl Event<'_> {
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Node { cause, .. }
            | Self::StorageChanged(cause)
            | Self::DevicesChanged(cause)
            | Self::LimitsChanged(cause)
            | Self::ExtendedResourcesGained { cause, .. } => *cause,
            Self::PodPlaced(_) => Cause::AssignedPodAdd,
            Self::PodGone(_) => Cause::AssignedPodDelete,
            Self::NamespaceChanged => Cause::NamespaceUpdate,
            Self::ClaimChanged(_) => Cause::PersistentVolumeClaimUpdate,
            Self::PodGroupChanged(_) => Cause::PodGroupUpdate,
            Self::DeviceClaimChanged(_) => Cause::ResourceClaimUpdate,
        }
    }

    /// Whether pods that the plugins refused, and no others, may have a place now. Costs nothing, so it is asked first.
    pub(crate) fn may_help(&self, refused_by: PluginSet) -> bool {
        let by_others = PluginSet::of(&[Plugin::GangScheduling, Plugin::Extender]);
        if refused_by == PluginSet::ALL || refused_by.meets(by_others) {
            return true;
        }
        match self {
            Self::Node { cause, .. } if is_about_room(*cause) => may_lack_room(refused_by),
            Self::PodPlaced(_) => {
                refused_by.meets(PluginSet::of(&[Plugin::PodTopologySpread, Plugin::InterPodAffinity]))
            }
            Self::PodGone(_) => refused_by.meets(PluginSet::of(&[
                Plugin::PodTopologySpread,
                Plugin::InterPodAffinity,
                Plugin::VolumeRestrictions,
                Plugin::NodeVolumeLimits,
            ])),
            _ => true,
        }
    }

    /// Whether the pod, refused by the plugins, may have a place now.
    pub(crate) fn helps(&self, pod: &PodInfo, refused_by: PluginSet, snapshot: &Snapshot) -> bool {
        let namespaces = &snapshot.topology.namespaces;
        // What helps with a program outside is not known here.
        if refused_by != PluginSet::ALL && refused_by.contains(Plugin::Extender) {
            return true;
        }
        // What helps the group may be no help to the pod: it might have a place already.
        let is_grouped = refused_by != PluginSet::ALL && refused_by.contains(Plugin::GangScheduling);
        if is_grouped && !matches!(self, Self::PodPlaced(_)) {
            return true;
        }
        match self {
            Self::Node { slot, before, relabelled, gained, .. } => {
                let by_labels = PluginSet::of(&[
                    Plugin::PodTopologySpread,
                    Plugin::InterPodAffinity,
                    Plugin::NodeVolumeLimits,
                    Plugin::VolumeBinding,
                    Plugin::VolumeZone,
                    Plugin::DynamicResources,
                ]);
                (*relabelled && refused_by.meets(by_labels))
                    // What a class did not have for the pod may be the node's own by now.
                    || (refused_by.contains(Plugin::DynamicResources) && asks_for_any(pod, gained))
                    // How much room is lacking beside nominated pods, the pod itself among them, is not known: any may do.
                    || matches!(fit(pod, *slot, snapshot), now if now > before(pod) || now == Fit::Alone)
            }
            Self::PodPlaced(other) => {
                let affinity = || counted(&pod.terms.affinity, other, namespaces);
                (refused_by.contains(Plugin::PodTopologySpread) && spread(pod, other, namespaces))
                    || (refused_by.contains(Plugin::InterPodAffinity) && affinity())
            }
            Self::PodGone(other) => {
                let stood_against = || {
                    let mut standing = other.terms.standing.iter();
                    standing.any(|(key, _)| {
                        key.kind == StandingKind::AntiAffinity && key.who.includes(&pod.identity, namespaces)
                    })
                };
                (refused_by.contains(Plugin::PodTopologySpread) && spread(pod, other, namespaces))
                    || (refused_by.contains(Plugin::InterPodAffinity)
                        && (counted(&pod.terms.anti_affinity, other, namespaces)
                            // The last of its kind goes: the pod may be the first again.
                            || counted(&pod.terms.affinity, other, namespaces)
                            || stood_against()))
                    || (refused_by.contains(Plugin::VolumeRestrictions) && share_volumes(pod, other))
                    || (refused_by.contains(Plugin::NodeVolumeLimits) && other.volumes.may_attach())
            }
            Self::ClaimChanged(key) => {
                refused_by.meets(storage()) && pod.volumes.claims.iter().any(|used| used.key == **key)
            }
            Self::StorageChanged(_) => refused_by.meets(storage()),
            Self::LimitsChanged(_) => refused_by.contains(Plugin::NodeVolumeLimits),
            Self::PodGroupChanged(key) => pod.group.as_ref().is_some_and(|group| group.key == **key),
            Self::DeviceClaimChanged(key) => {
                refused_by.contains(Plugin::DynamicResources) && pod.claims.names(key)
            }
            Self::DevicesChanged(_) => refused_by.contains(Plugin::DynamicResources),
            Self::ExtendedResourcesGained { gained, .. } => {
                refused_by.meets(PluginSet::of(&[Plugin::NodeResourcesFit, Plugin::DynamicResources]))
                    && asks_for_any(pod, gained)
            }
            Self::NamespaceChanged => refused_by.contains(Plugin::InterPodAffinity),
        }
    }
}

/// Whether pods of the node alone changed, and nothing of the node itself.
fn is_about_room(cause: Cause) -> bool {
    matches!(cause, Cause::AssignedPodUpdate | Cause::AssignedPodDelete)
}

/// Filters of single nodes. A node may have been refused by another of them before it was full, and be fine but for that now.
fn by_node() -> PluginSet {
    PluginSet::of(&[
        Plugin::NodeUnschedulable,
        Plugin::NodeName,
        Plugin::TaintToleration,
        Plugin::NodeAffinity,
        Plugin::NodePorts,
        Plugin::NodeResourcesFit,
        Plugin::NodeDeclaredFeatures,
    ])
}

/// Whether room on a node may be what pods lack that the plugins refused.
pub(crate) fn may_lack_room(refused_by: PluginSet) -> bool {
    refused_by.meets(by_node())
}

/// How far a node could run a pod, as far as it can tell by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    No,
    /// But not beside the pods that it is kept for.
    Alone,
    Fully,
}

pub(crate) fn fit(pod: &PodInfo, slot: Slot, snapshot: &Snapshot) -> Fit {
    let (needs, node) = (&pod.needs, &snapshot.nodes[slot]);
    let alone =
        node.exists && filters::refusal(needs, node).is_none() && filters::features(needs, node).is_none();
    match alone {
        false => Fit::No,
        true if evaluation::refusal(needs, pod.priority, snapshot, node).is_some() => Fit::Alone,
        true => Fit::Fully,
    }
}

/// Whether the pod asks for one of the extended resources.
fn asks_for_any(pod: &PodInfo, resources: &BTreeSet<String>) -> bool {
    pod.claims.extended_resources().any(|resource| resources.contains(resource))
}

fn storage() -> PluginSet {
    PluginSet::of(&[
        Plugin::VolumeRestrictions,
        Plugin::NodeVolumeLimits,
        Plugin::VolumeBinding,
        Plugin::VolumeZone,
    ])
}

fn share_volumes(pod: &PodInfo, other: &PodInfo) -> bool {
    let (own, others) = (&pod.volumes, &other.volumes);
    own.claims.iter().any(|claim| others.claims.iter().any(|used| used.key == claim.key))
        || own.disks.iter().any(|disk| others.disks.iter().any(|used| disk.conflicts(used)))
}

fn counted(questions: &[CounterKey], other: &PodInfo, namespaces: &Namespaces) -> bool {
    questions.iter().any(|question| question.who.includes(&other.identity, namespaces))
}

fn spread(pod: &PodInfo, other: &PodInfo, namespaces: &Namespaces) -> bool {
    pod.terms.hard.iter().any(|spread| spread.counter.who.includes(&other.identity, namespaces))
}
