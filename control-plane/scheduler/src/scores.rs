//! Which of the nodes that can run a pod is best: upstream's score plugins, with its default weights.
//!
//! TaintToleration 3, NodeAffinity 2, PodTopologySpread 2 (the default constraints: zones with a skew of 5, hosts
//! with 3), NodeResourcesFit (LeastAllocated) 1, NodeResourcesBalancedAllocation 1. A node's own part ([`own`]) depends
//! on the node alone and is kept; what compares nodes ([`Weights`]) is worked out per pod from those parts.

use crate::{
    affinity::keeps_away,
    pod::Shape,
    resources::{CPU, MEMORY},
    snapshot::{Slot, Snapshot},
};

const MOST: i64 = 100;

const TAINT_TOLERATION: i64 = 3;
const NODE_AFFINITY: i64 = 2;
const POD_TOPOLOGY_SPREAD: i64 = 2;

/// `maxSkew` of the default constraints.
const ZONE_SKEW: f64 = 5.0;
const HOST_SKEW: f64 = 3.0;

/// What a node scores by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// LeastAllocated and BalancedAllocation, each with its weight of 1.
    pub(crate) resources: i64,
    /// Taints that would rather not have the pod.
    pub(crate) dislikes: i64,
    /// Weights of the pod's preferences that the node meets.
    pub(crate) preference: i64,
}

/// The part of the score that needs no other node.
pub(crate) fn own(shape: &Shape, snapshot: &Snapshot, slot: Slot) -> Own {
    let node = &snapshot.nodes[slot];
    let disliked = |taint: &&k8s_openapi::api::core::v1::Taint| {
        taint.effect == "PreferNoSchedule"
            && !keeps_away(taint)
            && !shape.tolerations.iter().any(|toleration| toleration.tolerates(taint))
    };
    let dislikes = node.taints.iter().filter(disliked).count();
    Own {
        resources: least_allocated(shape, snapshot, slot) + balanced_allocation(shape, snapshot, slot),
        dislikes: i64::try_from(dislikes).unwrap_or(i64::MAX),
        preference: if shape.affinity.has_preferences() {
            shape.affinity.preference(&node.name, &node.labels)
        } else {
            0
        },
    }
}

/// NodeResourcesFit, LeastAllocated: the free share of cpu and memory after the pod.
fn least_allocated(shape: &Shape, snapshot: &Snapshot, slot: Slot) -> i64 {
    let (have, used) = (&snapshot.allocatable[slot], &snapshot.scored[slot]);
    let pairs = [
        (have.cpu_milli, used.0.saturating_add(shape.scored.0)),
        (have.memory_bytes, used.1.saturating_add(shape.scored.1)),
    ];
    let (mut sum, mut weights) = (0, 0);
    for (have, used) in pairs.into_iter().filter(|(have, _)| *have > 0) {
        weights += 1;
        if used <= have {
            sum += share(have - used, have);
        }
    }
    if weights == 0 { 0 } else { sum / weights }
}

/// `part * 100 / whole` without overflow: bytes of memory times 100 fit 128 bits.
fn share(part: i64, whole: i64) -> i64 {
    i64::try_from(i128::from(part) * i128::from(MOST) / i128::from(whole)).unwrap_or(MOST)
}

/// NodeResourcesBalancedAllocation: how alike the used shares of cpu and memory are after the pod.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "shares of 0 to 1, as upstream does"
)]
fn balanced_allocation(shape: &Shape, snapshot: &Snapshot, slot: Slot) -> i64 {
    // A pod that asks for nothing changes no balance: upstream skips the plugin.
    if shape.requests.is_empty() {
        return 0;
    }
    let (have, used) = (&snapshot.allocatable[slot], &snapshot.requested[slot]);
    let asked = |name: &str| shape.requests.get(name).copied().unwrap_or_default();
    let shares: Vec<f64> = [
        (have.cpu_milli, used.cpu_milli.saturating_add(asked(CPU))),
        (have.memory_bytes, used.memory_bytes.saturating_add(asked(MEMORY))),
    ]
    .into_iter()
    .filter(|(have, _)| *have > 0)
    .map(|(have, used)| (used as f64 / have as f64).min(1.0))
    .collect();
    let deviation = match shares.as_slice() {
        [cpu, memory] => ((cpu - memory) / 2.0).abs(),
        _ => 0.0,
    };
    ((1.0 - deviation) * MOST as f64) as i64
}

/// The weights of the default spreading constraints, which depend on how many hosts and zones there are to choose from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpreadWeights {
    host: f64,
    zone: f64,
}

impl SpreadWeights {
    #[expect(clippy::cast_precision_loss, reason = "counts of nodes are far below 2^52")]
    pub(crate) fn new(hosts: usize, zones: usize) -> Self {
        let weight = |domains: usize| (domains as f64 + 2.0).ln();
        Self { host: weight(hosts), zone: weight(zones) }
    }

    /// How crowded the node is with pods of the same workload; `None` stands for a label that the node lacks.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "counts of pods, as upstream does"
    )]
    pub(crate) fn crowding(&self, on_host: Option<i64>, in_zone: Option<i64>) -> i64 {
        let host = on_host.map_or(0.0, |count| count as f64 * self.host + (HOST_SKEW - 1.0));
        let zone = in_zone.map_or(0.0, |count| count as f64 * self.zone + (ZONE_SKEW - 1.0));
        (host + zone).round() as i64
    }
}

/// What the nodes to choose from have in common, against which each is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights {
    most_dislikes: i64,
    most_preference: i64,
    /// Least and most crowding; `None` where the pod has no workload to spread.
    crowding: Option<(i64, i64)>,
}

impl Weights {
    pub(crate) fn over(nodes: impl Iterator<Item = (Own, Option<i64>)>) -> Self {
        let mut weights = Self { most_dislikes: 0, most_preference: 0, crowding: None };
        for (own, crowding) in nodes {
            weights.most_dislikes = weights.most_dislikes.max(own.dislikes);
            weights.most_preference = weights.most_preference.max(own.preference);
            if let Some(crowding) = crowding {
                let (least, most) = weights.crowding.unwrap_or((crowding, crowding));
                weights.crowding = Some((least.min(crowding), most.max(crowding)));
            }
        }
        weights
    }

    /// The node's whole score.
    pub(crate) fn total(&self, own: Own, crowding: Option<i64>) -> i64 {
        let tolerated = match self.most_dislikes {
            0 => MOST,
            most => MOST - MOST * own.dislikes / most,
        };
        let preferred = match self.most_preference {
            0 => 0,
            most => MOST * own.preference / most,
        };
        let spread = match (self.crowding, crowding) {
            (Some((_, 0)), Some(_)) => MOST,
            (Some((least, most)), Some(crowding)) => MOST * (most + least - crowding) / most,
            _ => 0,
        };
        TAINT_TOLERATION * tolerated
            + NODE_AFFINITY * preferred
            + POD_TOPOLOGY_SPREAD * spread
            + own.resources
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{node, pod};

    #[test]
    fn least_and_balanced_allocation_are_upstreams() {
        let mut snapshot = Snapshot::default();
        let slot = snapshot.put_node(&node(
            "n1",
            json!({ "status": { "allocatable": { "cpu": "4", "memory": "10000", "pods": "9" } } }),
        ));
        let asks = |cpu: &str, memory: &str| {
            Shape::of(&pod(
                "p",
                json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu, "memory": memory } } }] }),
            ))
        };
        // Upstream's examples for LeastAllocated: (4000-3000)/4000 and (10000-5000)/10000 give 25 and 50.
        assert_eq!(least_allocated(&asks("3", "5000"), &snapshot, slot), 37);
        assert_eq!(balanced_allocation(&asks("3", "5000"), &snapshot, slot), 87);
        assert_eq!(balanced_allocation(&asks("2", "5000"), &snapshot, slot), 100);
        let nothing = Shape::of(&pod("p", json!({ "containers": [{ "name": "c" }] })));
        assert_eq!(balanced_allocation(&nothing, &snapshot, slot), 0);
    }

    #[test]
    fn nodes_are_measured_against_each_other() {
        let plain = Own { resources: 10, ..Own::default() };
        let disliked = Own { dislikes: 2, ..plain };
        let preferred = Own { preference: 5, ..plain };
        let weights =
            Weights::over([(plain, Some(7)), (disliked, Some(9)), (preferred, Some(8))].into_iter());
        assert_eq!(weights.total(plain, Some(7)), 3 * 100 + 2 * 100 + 10);
        assert_eq!(weights.total(disliked, Some(9)), 2 * (100 * 7 / 9) + 10);
        assert_eq!(weights.total(preferred, Some(8)), 3 * 100 + 2 * 100 + 2 * (100 * 8 / 9) + 10);
    }
}
