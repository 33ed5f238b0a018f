//! How pods of one scheduler name are placed: which plugins run, with which weights and settings.

use std::{
    hash::{Hash, Hasher},
    time::Duration,
};

use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use crate::{affinity::NodeAffinity, resources::CPU, resources::MEMORY};

/// The plugins that a profile can switch, by upstream's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Plugin {
    NodeUnschedulable,
    NodeName,
    TaintToleration,
    NodeAffinity,
    NodePorts,
    NodeResourcesFit,
    VolumeRestrictions,
    NodeVolumeLimits,
    VolumeBinding,
    VolumeZone,
    PodTopologySpread,
    InterPodAffinity,
    DynamicResources,
    NodeDeclaredFeatures,
    DefaultPreemption,
    NodeResourcesBalancedAllocation,
    ImageLocality,
    /// No plugin of a profile: pods that wait for the others of their group.
    GangScheduling,
    /// No plugin of a profile: whatever extenders refuse.
    Extender,
}

impl Plugin {
    /// Those that a profile can switch.
    pub(crate) const ALL: [Self; 17] = [
        Self::NodeUnschedulable,
        Self::NodeName,
        Self::TaintToleration,
        Self::NodeAffinity,
        Self::NodePorts,
        Self::NodeResourcesFit,
        Self::VolumeRestrictions,
        Self::NodeVolumeLimits,
        Self::VolumeBinding,
        Self::VolumeZone,
        Self::PodTopologySpread,
        Self::InterPodAffinity,
        Self::DynamicResources,
        Self::NodeDeclaredFeatures,
        Self::DefaultPreemption,
        Self::NodeResourcesBalancedAllocation,
        Self::ImageLocality,
    ];

    /// Upstream's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NodeUnschedulable => "NodeUnschedulable",
            Self::NodeName => "NodeName",
            Self::TaintToleration => "TaintToleration",
            Self::NodeAffinity => "NodeAffinity",
            Self::NodePorts => "NodePorts",
            Self::NodeResourcesFit => "NodeResourcesFit",
            Self::VolumeRestrictions => "VolumeRestrictions",
            Self::NodeVolumeLimits => "NodeVolumeLimits",
            Self::VolumeBinding => "VolumeBinding",
            Self::VolumeZone => "VolumeZone",
            Self::PodTopologySpread => "PodTopologySpread",
            Self::InterPodAffinity => "InterPodAffinity",
            Self::DynamicResources => "DynamicResources",
            Self::NodeDeclaredFeatures => "NodeDeclaredFeatures",
            Self::DefaultPreemption => "DefaultPreemption",
            Self::NodeResourcesBalancedAllocation => "NodeResourcesBalancedAllocation",
            Self::ImageLocality => "ImageLocality",
            Self::GangScheduling => "GangScheduling",
            Self::Extender => "Extender",
        }
    }
}

/// A set of plugins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PluginSet(u32);

impl PluginSet {
    pub(crate) const ALL: Self = Self(u32::MAX);

    pub(crate) fn of(plugins: &[Plugin]) -> Self {
        Self(plugins.iter().fold(0, |bits, plugin| bits | 1 << *plugin as u32))
    }

    pub(crate) fn contains(self, plugin: Plugin) -> bool {
        self.0 & 1 << plugin as u32 != 0
    }

    pub(crate) fn insert(&mut self, plugin: Plugin) {
        self.0 |= 1 << plugin as u32;
    }

    pub(crate) fn remove(&mut self, plugin: Plugin) {
        self.0 &= !(1 << plugin as u32);
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Settings of one scheduler name. Made once; equal to itself alone, by its name.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub(crate) scheduler_name: String,
    pub(crate) filters: PluginSet,
    pub(crate) weights: Weights,
    pub(crate) preempts: bool,
    /// Required and preferred of every pod, beside its own.
    pub(crate) added_affinity: Option<NodeAffinity>,
    pub(crate) default_constraints: Vec<TopologySpreadConstraint>,
    /// Upstream's own default constraints, which are milder with nodes that lack a label.
    pub(crate) system_default_constraints: bool,
    /// What required affinity of placed pods is worth to newcomers.
    pub(crate) hard_pod_affinity_weight: i64,
    pub(crate) ignore_preferred_terms_of_existing_pods: bool,
    pub(crate) fit: Strategy,
    /// Extended resources that need not be there, by name and by the part before the slash.
    pub(crate) ignored_resources: Vec<String>,
    pub(crate) ignored_resource_groups: Vec<String>,
    /// Resources that are compared with each other.
    pub(crate) balanced: Vec<String>,
    pub(crate) candidates: Candidates,
    /// How long a pod's volumes may take to be bound, and its devices to be attached to the node.
    pub(crate) volume_bind_timeout: Duration,
    pub(crate) device_bind_timeout: Duration,
}

/// Weights of scores; 0 is not scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weights {
    pub(crate) taint_toleration: i64,
    pub(crate) node_affinity: i64,
    pub(crate) pod_topology_spread: i64,
    pub(crate) inter_pod_affinity: i64,
    pub(crate) dynamic_resources: i64,
    pub(crate) resources_fit: i64,
    pub(crate) balanced_allocation: i64,
    pub(crate) image_locality: i64,
}

impl Weights {
    /// The weight of a plugin; `None` where it does not score.
    pub(crate) fn of(&mut self, plugin: Plugin) -> Option<&mut i64> {
        match plugin {
            Plugin::TaintToleration => Some(&mut self.taint_toleration),
            Plugin::NodeAffinity => Some(&mut self.node_affinity),
            Plugin::PodTopologySpread => Some(&mut self.pod_topology_spread),
            Plugin::InterPodAffinity => Some(&mut self.inter_pod_affinity),
            Plugin::DynamicResources => Some(&mut self.dynamic_resources),
            Plugin::NodeResourcesFit => Some(&mut self.resources_fit),
            Plugin::NodeResourcesBalancedAllocation => Some(&mut self.balanced_allocation),
            Plugin::ImageLocality => Some(&mut self.image_locality),
            _ => None,
        }
    }
}

/// How free and used resources become a score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strategy {
    pub(crate) kind: StrategyKind,
    /// Resources with their weights.
    pub(crate) resources: Vec<(String, i64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StrategyKind {
    LeastAllocated,
    MostAllocated,
    /// Points of used percentage and score (0 to 100), ascending.
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

/// Among how many nodes preemption looks for victims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidates {
    pub(crate) percentage: usize,
    pub(crate) absolute: usize,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".to_owned(),
            filters: PluginSet::ALL,
            weights: Weights {
                taint_toleration: 3,
                node_affinity: 2,
                pod_topology_spread: 2,
                inter_pod_affinity: 2,
                dynamic_resources: 1,
                resources_fit: 1,
                balanced_allocation: 1,
                image_locality: 1,
            },
            preempts: true,
            added_affinity: None,
            default_constraints: Vec::new(),
            system_default_constraints: true,
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms_of_existing_pods: false,
            fit: Strategy {
                kind: StrategyKind::LeastAllocated,
                resources: vec![(CPU.to_owned(), 1), (MEMORY.to_owned(), 1)],
            },
            ignored_resources: Vec::new(),
            ignored_resource_groups: Vec::new(),
            balanced: vec![CPU.to_owned(), MEMORY.to_owned()],
            candidates: Candidates { percentage: 10, absolute: 100 },
            volume_bind_timeout: Duration::from_secs(600),
            device_bind_timeout: Duration::from_secs(600),
        }
    }
}

impl Profile {
    /// Whether the cluster has spread constraints for pods that have none.
    pub(crate) fn spreads_by_default(&self) -> bool {
        self.system_default_constraints || !self.default_constraints.is_empty()
    }

    pub(crate) fn ignores(&self, resource: &str) -> bool {
        let group = resource.split_once('/').map(|(group, _)| group);
        self.ignored_resources.iter().any(|name| name == resource)
            || group.is_some_and(|group| self.ignored_resource_groups.iter().any(|name| name == group))
    }
}

impl PartialEq for Profile {
    fn eq(&self, other: &Self) -> bool {
        self.scheduler_name == other.scheduler_name
    }
}

impl Eq for Profile {}

impl Hash for Profile {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.scheduler_name.hash(state);
    }
}
