//! Upstream's workloads at 5,000 nodes, with its numbers of nodes and pods and its floors (pods/s).

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use serde_json::Value;

use crate::objects;

pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// Upstream's threshold; 0 where it has none.
    pub(crate) floor: u32,
    pub(crate) steps: Vec<Step>,
}

pub(crate) enum Step {
    Namespaces(Vec<Namespace>),
    Nodes(Vec<Node>),
    /// Objects of other kinds, which say what they are.
    Objects(Vec<Value>),
    /// Pods that are there before.
    Pods {
        count: usize,
        make: fn(usize) -> Pod,
    },
    /// Pods that stay unbound.
    Waiting {
        count: usize,
        make: fn(usize) -> Pod,
    },
    Measured {
        count: usize,
        make: fn(usize) -> Pod,
        churn: Churn,
    },
    /// Measured is the memory that so many nodes, and pods on them, take. For a scheduler alone.
    Memory {
        nodes: usize,
        pods: usize,
    },
    /// Pods that come evenly; measured is how long each takes. Nothing for a scheduler alone, which has no wire.
    Arriving {
        count: usize,
        make: fn(usize) -> Pod,
        per_second: u32,
    },
}

/// What else goes on meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Churn {
    None,
    /// A node and a pod that fits nowhere come and go.
    NodeAndPod,
    /// Pods of high priority come, five a second, or one for each batch.
    Preemptors,
}

const MOON: [&str; 3] = ["moon-1", "moon-2", "moon-3"];

pub(crate) fn all() -> Vec<Workload> {
    let one = |name, floor, zones: &[&str], before, count, make: fn(usize) -> Pod| Workload {
        name,
        floor,
        steps: vec![nodes(zones), Step::Pods { count: before, make }, measured(count, make)],
    };
    let over_default = |name, floor, count, make| Workload {
        name,
        floor,
        steps: vec![
            nodes(&MOON),
            Step::Pods { count: 5000, make: objects::default_pod },
            measured(count, make),
        ],
    };
    let with_volumes = |name, floor, before, count, make: fn(usize) -> Pod| Workload {
        name,
        floor,
        steps: vec![
            nodes(&[]),
            Step::Objects((0..5000).map(objects::csi_node).collect()),
            Step::Pods { count: before, make },
            measured(count, make),
        ],
    };
    // Filled up completely, as upstream's.
    let with_claims = |name, floor, make: fn(usize) -> Pod, devices: usize| Workload {
        name,
        floor,
        steps: vec![
            Step::Nodes((0..500).map(|index| objects::node(index, &[])).collect()),
            Step::Objects(objects::devices(500, devices)),
            Step::Pods { count: 2500, make },
            measured(2500, make),
        ],
    };
    vec![
        one("SchedulingBasic", 270, &[], 1000, 10_000, objects::default_pod),
        one("SchedulingPodAntiAffinity", 60, &[], 1000, 2000, objects::anti_affinity),
        one("SchedulingPodAffinity", 35, &["zone1"], 5000, 5000, objects::affinity),
        one("SchedulingPreferredPodAffinity", 90, &[], 5000, 5000, objects::preferred_affinity),
        one("SchedulingPreferredPodAntiAffinity", 90, &[], 5000, 5000, objects::preferred_anti_affinity),
        Workload {
            name: "SchedulingRequiredPodAntiAffinityWithNSSelector",
            floor: 24,
            steps: vec![
                Step::Namespaces(
                    (0..100).map(|index| objects::namespace(&format!("init-ns-{index}"))).collect(),
                ),
                Step::Nodes((0..6000).map(|index| objects::node(index, &[])).collect()),
                Step::Pods { count: 4000, make: objects::anti_affinity_by_namespace },
                measured(2000, objects::anti_affinity_by_namespace),
            ],
        },
        one("SchedulingNodeAffinity", 220, &["zone1"], 5000, 10_000, objects::node_affinity),
        over_default("TopologySpreading", 85, 5000, objects::hard_spread),
        over_default("PreferredTopologySpreading", 125, 5000, objects::soft_spread),
        Workload {
            name: "PreemptionBasic",
            floor: 0,
            steps: vec![
                nodes(&[]),
                Step::Pods { count: 20_000, make: objects::low_priority },
                measured(5000, objects::high_priority),
            ],
        },
        Workload {
            name: "PreemptionAsync",
            floor: 160,
            steps: vec![
                nodes(&[]),
                Step::Pods { count: 20_000, make: objects::low_priority },
                Step::Measured { count: 5000, make: objects::default_pod, churn: Churn::Preemptors },
            ],
        },
        one("SchedulingSecrets", 260, &[], 1000, 10_000, objects::with_secret),
        with_volumes("SchedulingInTreePVs", 90, 1000, 2000, objects::with_disk),
        with_volumes("SchedulingMigratedInTreePVs", 35, 5000, 5000, objects::with_migrated_disk),
        with_volumes("SchedulingCSIPVs", 48, 5000, 5000, objects::with_csi_volume),
        with_claims("SchedulingWithResourceClaimTemplate", 40, objects::with_own_claim, 10),
        with_claims("SchedulingWithResourceClaim", 0, objects::with_shared_claim, 2),
        Workload {
            name: "HundredThousandNodes",
            floor: 0,
            steps: vec![
                Step::Nodes((0..100_000).map(|index| objects::node(index, &[])).collect()),
                Step::Pods { count: 1000, make: objects::default_pod },
                measured(10_000, objects::default_pod),
            ],
        },
        Workload { name: "Memory", floor: 0, steps: vec![Step::Memory { nodes: 50_000, pods: 200_000 }] },
        Workload {
            name: "SchedulingWhileGated",
            floor: 130,
            steps: vec![
                Step::Nodes(vec![objects::vast_node()]),
                Step::Waiting { count: 10_000, make: objects::gated },
                measured(20_000, objects::light),
            ],
        },
        Workload {
            name: "SchedulingWithMixedChurn",
            floor: 265,
            steps: vec![
                nodes(&[]),
                Step::Measured { count: 10_000, make: objects::default_pod, churn: Churn::NodeAndPod },
            ],
        },
        Workload {
            name: "Unschedulable",
            floor: 140,
            steps: vec![
                nodes(&[]),
                Step::Waiting { count: 1000, make: objects::too_large },
                measured(10_000, objects::default_pod),
            ],
        },
        Workload {
            name: "SteadyArrival",
            floor: 0,
            steps: vec![
                nodes(&[]),
                Step::Arriving { count: 5000, make: objects::default_pod, per_second: 500 },
            ],
        },
    ]
}

fn nodes(zones: &[&str]) -> Step {
    Step::Nodes((0..5000).map(|index| objects::node(index, zones)).collect())
}

fn measured(count: usize, make: fn(usize) -> Pod) -> Step {
    Step::Measured { count, make, churn: Churn::None }
}
