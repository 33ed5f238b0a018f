//! How good a node is for a pod, as far as the node alone can tell, and how scores of nodes are brought to one scale.
//!
//! A node's own part ([`own`]) depends on the node alone and is kept; [`normalize`] and its kin measure nodes against each other.
//! NodeResourcesFit (LeastAllocated, MostAllocated, RequestedToCapacityRatio) and NodeResourcesBalancedAllocation are on the scale of 0
//! to 100 already.

use crate::{
    pod::Needs,
    profile::{Strategy, StrategyKind},
    resources::{Requests, is_extended},
    snapshot::NodeEntry,
};

pub(crate) const MOST: i64 = 100;

/// What a node scores by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// NodeResourcesFit and NodeResourcesBalancedAllocation, weighted.
    pub(crate) resources: i32,
    /// Taints that would rather not have the pod.
    pub(crate) dislikes: i32,
    /// Weights of the pod's preferences that the node meets.
    pub(crate) preference: i32,
}

impl Own {
    /// Whether there is a part that is measured against other nodes.
    pub(crate) fn is_relative(self) -> bool {
        self.dislikes != 0 || self.preference != 0
    }
}

/// What a node has of an extended resource by a device class, and what of that is taken: by the resource's name.
pub(crate) type FromClass<'a> = &'a dyn Fn(&str) -> Option<(i64, i64)>;

/// The part of the score that needs no other node.
///
/// What classes provide is left out: devices are given out without a change of the node.
pub(crate) fn own(needs: &Needs, node: &NodeEntry) -> Own {
    let profile = &needs.profile;
    let resources = resources(needs, node, &|_| None);
    let added = profile.added_affinity.as_ref();
    let preference = [Some(&needs.affinity), added]
        .into_iter()
        .flatten()
        .map(|affinity| affinity.preference(&node.name, &node.labels))
        .sum();
    Own { resources: small(resources), dislikes: small(dislikes(needs, node)), preference: small(preference) }
}

/// NodeResourcesFit and NodeResourcesBalancedAllocation, weighted.
pub(crate) fn resources(needs: &Needs, node: &NodeEntry, from_class: FromClass<'_>) -> i64 {
    let weights = &needs.profile.weights;
    let (fit, balanced) = of_resources(needs, node, from_class);
    weights.resources_fit * fit + weights.balanced_allocation * balanced
}

/// NodeResourcesFit and NodeResourcesBalancedAllocation; 0 where a plugin does not score.
pub(crate) fn of_resources(needs: &Needs, node: &NodeEntry, from_class: FromClass<'_>) -> (i64, i64) {
    let profile = &needs.profile;
    let on = |weight: i64, score: &dyn Fn() -> i64| if weight == 0 { 0 } else { score() };
    (
        on(profile.weights.resources_fit, &|| resources_fit(&profile.fit, needs, node, from_class)),
        on(profile.weights.balanced_allocation, &|| {
            balanced_allocation(&profile.balanced, needs, node, from_class)
        }),
    )
}

fn small(score: i64) -> i32 {
    i32::try_from(score).unwrap_or(i32::MAX)
}

/// TaintToleration: taints of the gentle effect that the pod does not tolerate.
fn dislikes(needs: &Needs, node: &NodeEntry) -> i64 {
    let disliked = node.taints.iter().filter(|taint| {
        taint.effect == "PreferNoSchedule"
            && !needs.tolerations.iter().any(|toleration| toleration.tolerates(taint))
    });
    i64::try_from(disliked.count()).unwrap_or(i64::MAX)
}

/// NodeResourcesFit: by what is free, or used, of each resource after the pod.
fn resources_fit(strategy: &Strategy, needs: &Needs, node: &NodeEntry, from_class: FromClass<'_>) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for (name, weight) in &strategy.resources {
        let asked = needs.scored.get(name);
        let Some((have, used)) = amounts(name, asked, node, &node.taken.scored, from_class) else {
            continue;
        };
        let used = used.saturating_add(asked);
        let score = match &strategy.kind {
            StrategyKind::LeastAllocated => {
                if used > have {
                    0
                } else {
                    share(have - used, have)
                }
            }
            StrategyKind::MostAllocated => share(used.min(have), have),
            StrategyKind::RequestedToCapacityRatio(shape) => {
                let score = along(shape, if used > have { MOST } else { share(used, have) });
                if score <= 0 {
                    continue;
                }
                score
            }
        };
        sum += score * weight;
        weights += weight;
    }
    match (&strategy.kind, weights) {
        (_, 0) => 0,
        (StrategyKind::RequestedToCapacityRatio(_), _) => rounded(sum, weights),
        _ => sum / weights,
    }
}

/// What the node has of the resource, and what of it is taken; `None` where it does not count for the pod there.
fn amounts(
    name: &str,
    asked: i64,
    node: &NodeEntry,
    taken: &Requests,
    from_class: FromClass<'_>,
) -> Option<(i64, i64)> {
    if asked == 0 && is_extended(name) {
        return None;
    }
    match node.allocatable.get(name) {
        0 => from_class(name).filter(|(have, _)| *have > 0),
        have => Some((have, taken.get(name))),
    }
}

/// Rounds half away from zero; both are above it.
fn rounded(sum: i64, weights: i64) -> i64 {
    (2 * sum + weights) / (2 * weights)
}

/// The value of a line through the points, level before the first and after the last.
fn along(points: &[(i64, i64)], at: i64) -> i64 {
    let Some(index) = points.iter().position(|(x, _)| at <= *x) else {
        return points.last().map_or(0, |(_, y)| *y);
    };
    let (right_x, right_y) = points[index];
    match index.checked_sub(1).map(|left| points[left]) {
        Some((left_x, left_y)) => left_y + (right_y - left_y) * (at - left_x) / (right_x - left_x),
        None => right_y,
    }
}

/// `part * 100 / whole` without overflow: bytes of memory times 100 fit 128 bits.
fn share(part: i64, whole: i64) -> i64 {
    part.checked_mul(MOST).map_or_else(
        || i64::try_from(i128::from(part) * i128::from(MOST) / i128::from(whole)).unwrap_or(MOST),
        |hundredfold| hundredfold / whole,
    )
}

/// NodeResourcesBalancedAllocation: how alike the used shares of the resources are after the pod.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "shares of 0 to 1, as upstream does"
)]
fn balanced_allocation(
    resources: &[String],
    needs: &Needs,
    node: &NodeEntry,
    from_class: FromClass<'_>,
) -> i64 {
    // A pod that asks for none of them changes no balance: upstream skips the plugin.
    if resources.iter().all(|name| needs.requests.get(name) == 0) {
        return 0;
    }
    let used_share = |name: &String| {
        let asked = needs.requests.get(name);
        let (have, used) = amounts(name, asked, node, &node.taken.requested, from_class)?;
        let used = used.saturating_add(asked);
        Some((used as f64 / have as f64).min(1.0))
    };
    let mut shares = resources.iter().filter_map(used_share);
    let deviation = match (shares.next(), shares.next(), shares.next()) {
        (Some(first), Some(second), None) => ((first - second) / 2.0).abs(),
        (Some(first), Some(second), Some(third)) => {
            let all: Vec<f64> = [first, second, third].into_iter().chain(shares).collect();
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            (all.iter().map(|share| (share - mean) * (share - mean)).sum::<f64>() / all.len() as f64).sqrt()
        }
        _ => 0.0,
    };
    ((1.0 - deviation) * MOST as f64) as i64
}

/// Scales to 0 to 100 by the greatest; all 0 stays 0.
pub(crate) fn normalize(raw: &mut [i64]) {
    let most = raw.iter().copied().max().unwrap_or_default();
    if most != 0 {
        raw.iter_mut().for_each(|score| *score = MOST * *score / most);
    }
}

/// The same, with the least liked at 0.
pub(crate) fn normalize_reversed(raw: &mut [i64]) {
    normalize(raw);
    raw.iter_mut().for_each(|score| *score = MOST - *score);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{
        pod::PodInfo,
        snapshot::Snapshot,
        testing::{info, node, pod},
    };

    #[test]
    fn least_and_balanced_allocation_are_upstreams() {
        let mut snapshot = Snapshot::default();
        let slot = snapshot.put_node(&node(
            "n1",
            json!({ "status": { "allocatable": { "cpu": "4", "memory": "10000", "pods": "9" } } }),
        ));
        let asks = |cpu: &str, memory: &str| {
            info(&pod(
                "p",
                json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu, "memory": memory } } }] }),
            ))
        };
        let node = &snapshot.nodes[slot];
        let least = |pod: Arc<PodInfo>| resources_fit(&pod.needs.profile.fit, &pod.needs, node, &|_| None);
        let balanced =
            |pod: Arc<PodInfo>| balanced_allocation(&pod.needs.profile.balanced, &pod.needs, node, &|_| None);
        // Upstream's examples for LeastAllocated: (4000-3000)/4000 and (10000-5000)/10000 give 25 and 50.
        assert_eq!(least(asks("3", "5000")), 37);
        assert_eq!(balanced(asks("3", "5000")), 87);
        assert_eq!(balanced(asks("2", "5000")), 100);
        let nothing = info(&pod("p", json!({ "containers": [{ "name": "c" }] })));
        assert_eq!(balanced(nothing), 0);
    }

    #[test]
    fn other_strategies_are_upstreams() {
        let mut snapshot = Snapshot::default();
        let slot = snapshot.put_node(&node(
            "n1",
            json!({ "status": { "allocatable": { "cpu": "4", "memory": "10000", "pods": "9" } } }),
        ));
        let asks = info(&pod(
            "p",
            json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": "3", "memory": "5000" } } }] }),
        ));
        let score = |kind: StrategyKind| {
            let strategy = Strategy { kind, ..asks.needs.profile.fit.clone() };
            resources_fit(&strategy, &asks.needs, &snapshot.nodes[slot], &|_| None)
        };
        assert_eq!(score(StrategyKind::MostAllocated), 62);
        // Used are 75 and 50 of 100: 25 and 50 on a falling line, 75 and 50 on a rising one.
        assert_eq!(score(StrategyKind::RequestedToCapacityRatio(vec![(0, 100), (100, 0)])), 38);
        assert_eq!(score(StrategyKind::RequestedToCapacityRatio(vec![(0, 0), (100, 100)])), 63);
        assert_eq!(score(StrategyKind::RequestedToCapacityRatio(vec![(60, 0), (70, 100)])), 100);
    }

    #[test]
    fn scores_are_scaled_by_the_greatest() {
        let scaled = |scale: fn(&mut [i64]), mut raw: Vec<i64>| {
            scale(&mut raw);
            raw
        };
        assert_eq!(scaled(normalize, vec![1, 3, 0]), [33, 100, 0]);
        assert_eq!(scaled(normalize, vec![0, 0]), [0, 0]);
        assert_eq!(scaled(normalize_reversed, vec![1, 2, 0]), [50, 0, 100]);
        assert_eq!(scaled(normalize_reversed, vec![0, 0]), [100, 100]);
    }
}
