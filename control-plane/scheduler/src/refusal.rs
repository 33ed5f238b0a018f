//! Why a node is refused: which plugin says so, in upstream's words, and whether removing pods could help.

use std::{collections::HashMap, sync::Arc};

use crate::{
    profile::{Plugin, PluginSet},
    volumes::Lacking,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// The pod names other nodes.
    NotNamed,
    Unschedulable,
    Taint,
    /// By the profile.
    EnforcedAffinity,
    NodeAffinity,
    Ports,
    Lacks(Vec<Lack>),
    /// A claim for one pod alone is used by another.
    ExclusiveClaim,
    DiskInUse,
    TooManyVolumes,
    Volumes {
        /// A bound volume is elsewhere.
        conflict: bool,
        /// A claim finds no volume, and none can be made.
        lacking: Option<Lacking>,
        /// A bound volume does not exist.
        missing: bool,
    },
    VolumeZone,
    NoTopologyLabel,
    Skew,
    PodAffinity,
    PodAntiAffinity,
    /// Anti-affinity of pods that are there.
    StandingAntiAffinity,
    /// An allocated claim has its devices on other nodes.
    ClaimElsewhere,
    NoDevices,
    /// More steps than one pod may cost.
    DevicesTakeLong,
    /// Something is wrong with what is claimed, or with what there is.
    Devices(Arc<str>),
    /// The node does not declare what the pod needs.
    Features,
    /// By a program outside, in its words.
    Extender {
        message: String,
        about_pods: bool,
    },
    /// Preemption: removing pods does not help on this node.
    NoHelp,
    /// Preemption: no pod of the node may go.
    NoVictims,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lack {
    Pods,
    Resource {
        name: String,
        /// More than the whole node has.
        never: bool,
    },
}

impl Refusal {
    pub(crate) fn plugin(&self) -> Plugin {
        match self {
            Self::Unschedulable => Plugin::NodeUnschedulable,
            Self::Taint => Plugin::TaintToleration,
            Self::NotNamed | Self::EnforcedAffinity | Self::NodeAffinity => Plugin::NodeAffinity,
            Self::Ports => Plugin::NodePorts,
            Self::Lacks(_) => Plugin::NodeResourcesFit,
            Self::ExclusiveClaim | Self::DiskInUse => Plugin::VolumeRestrictions,
            Self::TooManyVolumes => Plugin::NodeVolumeLimits,
            Self::Volumes { .. } => Plugin::VolumeBinding,
            Self::VolumeZone => Plugin::VolumeZone,
            Self::NoTopologyLabel | Self::Skew => Plugin::PodTopologySpread,
            Self::PodAffinity | Self::PodAntiAffinity | Self::StandingAntiAffinity => {
                Plugin::InterPodAffinity
            }
            Self::ClaimElsewhere | Self::NoDevices | Self::DevicesTakeLong | Self::Devices(_) => {
                Plugin::DynamicResources
            }
            Self::Features => Plugin::NodeDeclaredFeatures,
            Self::Extender { .. } => Plugin::Extender,
            Self::NoHelp | Self::NoVictims => Plugin::DefaultPreemption,
        }
    }

    /// Whether the node might be fine without some of its pods.
    pub(crate) fn is_about_pods(&self) -> bool {
        match self {
            Self::Ports | Self::Skew | Self::PodAntiAffinity | Self::StandingAntiAffinity => true,
            Self::ExclusiveClaim | Self::DiskInUse | Self::TooManyVolumes => true,
            Self::Extender { about_pods, .. } => *about_pods,
            Self::Lacks(lacks) => {
                !lacks.iter().any(|lack| matches!(lack, Lack::Resource { never: true, .. }))
            }
            _ => false,
        }
    }

    pub(crate) fn reasons(&self) -> Vec<String> {
        let text = match self {
            Self::Lacks(lacks) => return lacks.iter().map(Lack::reason).collect(),
            Self::Volumes { conflict, lacking, missing } => {
                let lacks = |what| *lacking == Some(what);
                let reasons = [
                    (*conflict, "node(s) didn't match PersistentVolume's node affinity"),
                    (lacks(Lacking::Volume), "node(s) didn't find available persistent volumes to bind"),
                    (lacks(Lacking::Space), "node(s) did not have enough free storage"),
                    (*missing, "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
                ];
                return reasons
                    .iter()
                    .filter(|(holds, _)| *holds)
                    .map(|(_, text)| (*text).to_owned())
                    .collect();
            }
            Self::Extender { message, .. } => return vec![message.clone()],
            Self::Devices(message) => return vec![(**message).to_owned()],
            Self::NotNamed => "node(s) didn't satisfy plugin(s) [NodeAffinity]",
            Self::Unschedulable => "node(s) were unschedulable",
            Self::Taint => "node(s) had untolerated taint(s)",
            Self::EnforcedAffinity => "node(s) didn't match scheduler-enforced node affinity",
            Self::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::ExclusiveClaim => {
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
            }
            Self::DiskInUse => "node(s) had no available disk",
            Self::TooManyVolumes => "node(s) exceed max volume count",
            Self::VolumeZone => "node(s) had no available volume zone",
            Self::NoTopologyLabel => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Self::Skew => "node(s) didn't match pod topology spread constraints",
            Self::PodAffinity => "node(s) didn't match pod affinity rules",
            Self::PodAntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::StandingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
            Self::ClaimElsewhere => "resourceclaim not available on the node",
            Self::NoDevices => "cannot allocate all claims",
            Self::DevicesTakeLong => "timed out trying to allocate devices",
            Self::Features => "node(s) didn't match Pod's required features",
            Self::NoHelp => "Preemption is not helpful for scheduling",
            Self::NoVictims => "No preemption victims found for incoming pod",
        };
        vec![text.to_owned()]
    }
}

impl Lack {
    fn reason(&self) -> String {
        match self {
            Self::Pods => "Too many pods".to_owned(),
            Self::Resource { name, .. } => format!("Insufficient {name}"),
        }
    }
}

/// How many nodes were refused for what.
#[derive(Debug, Default)]
pub(crate) struct Tally(HashMap<Refusal, usize>);

impl Tally {
    pub(crate) fn add(&mut self, refusal: &Refusal, nodes: usize) {
        if nodes == 0 {
            return;
        }
        match self.0.get_mut(refusal) {
            Some(count) => *count += nodes,
            None => _ = self.0.insert(refusal.clone(), nodes),
        }
    }

    pub(crate) fn plugins(&self) -> PluginSet {
        let mut plugins = PluginSet::default();
        self.0.keys().for_each(|refusal| plugins.insert(refusal.plugin()));
        plugins
    }

    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
    pub(crate) fn message(&self, nodes: usize) -> String {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for (refusal, count) in &self.0 {
            refusal.reasons().into_iter().for_each(|reason| *counts.entry(reason).or_default() += count);
        }
        let mut parts: Vec<String> =
            counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        parts.sort_unstable();
        format!("0/{nodes} nodes are available: {}.", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_count_and_sort_reasons() {
        let mut tally = Tally::default();
        let cpu = |never| Lack::Resource { name: "cpu".to_owned(), never };
        tally.add(&Refusal::Lacks(vec![cpu(true)]), 1);
        tally.add(&Refusal::Lacks(vec![cpu(false), Lack::Pods]), 1);
        tally.add(&Refusal::Taint, 2);
        assert_eq!(
            tally.message(4),
            "0/4 nodes are available: 1 Too many pods, 2 Insufficient cpu, 2 node(s) had untolerated taint(s)."
        );
    }
}
