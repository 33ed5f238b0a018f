//! How a Deployment's size is shared out when it is scaled, not rolled out. Pure.
//!
//! One active set takes it all. In the middle of a rollout all active sets grow and shrink in proportion, so
//! that a half-done rollout stays half done (upstream's proportional scaling); what rounding leaves goes to
//! the largest.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::{
    revision::{DESIRED_REPLICAS, MAX_REPLICAS},
    rolling::Scale,
    strategy::{actual, available, is_rolling, most_replicas, size, sum, wanted_replicas, with_replicas},
};
use crate::meta::MetaExt;

/// The sizes that the sets should have; sets that keep theirs are listed too, for their annotations.
pub(super) fn plan(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
) -> Vec<Scale> {
    let wanted = wanted_replicas(deployment);
    if let Some(set) = active_or_latest(new, old) {
        return vec![Scale { set, to: wanted }];
    }
    if new.is_some_and(|set| is_saturated(deployment, set)) {
        return with_replicas(old).into_iter().map(|set| Scale { set, to: 0 }).collect();
    }
    if is_rolling(deployment) { proportional(deployment, new, old) } else { Vec::new() }
}

/// The only set with replicas; without any, the newest. `None` where several have some.
fn active_or_latest(new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) -> Option<Arc<ReplicaSet>> {
    let all: Vec<Arc<ReplicaSet>> = old.iter().chain(new).cloned().collect();
    match with_replicas(&all).as_slice() {
        [] => new.or_else(|| old.iter().max_by_key(|set| set.created())).cloned(),
        [only] => Some(only.clone()),
        _ => None,
    }
}

/// The set has all pods that the deployment wants, and all are available.
pub(super) fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = wanted_replicas(deployment);
    size(set) == wanted && annotated(set, DESIRED_REPLICAS) == Some(wanted) && available(set) == wanted
}

pub(super) fn annotated(set: &ReplicaSet, name: &str) -> Option<i32> {
    set.annotations().get(name)?.parse().ok()
}

fn proportional(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
) -> Vec<Scale> {
    let all: Vec<Arc<ReplicaSet>> = old.iter().chain(new).cloned().collect();
    let mut sets = with_replicas(&all);
    let wanted = wanted_replicas(deployment);
    let allowed = if wanted > 0 { most_replicas(deployment) } else { 0 };
    let to_add = allowed.saturating_sub(sum(&sets, size));
    // Largest first; of equal ones, growing favours the newer and shrinking the older.
    sets.sort_by(|a, b| {
        let age = a.created().cmp(&b.created());
        size(b).cmp(&size(a)).then(if to_add > 0 { age.reverse() } else { age })
    });
    let mut added = 0;
    let mut plan: Vec<Scale> = Vec::with_capacity(sets.len());
    for set in sets {
        let share = share(deployment, &set, to_add, added);
        added += share;
        plan.push(Scale { to: size(&set) + share, set });
    }
    if let Some(largest) = plan.first_mut() {
        largest.to = (largest.to + (to_add - added)).max(0);
    }
    plan
}

/// What `set` gets of `to_add`, of which `added` are given out already.
fn share(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    let left = to_add - added;
    if left == 0 {
        return 0;
    }
    let fair = fair_share(deployment, set);
    if to_add > 0 { fair.min(left) } else { fair.max(left) }
}

fn fair_share(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    let wanted = wanted_replicas(deployment);
    if wanted == 0 {
        return -size(set);
    }
    let before = annotated(set, MAX_REPLICAS).filter(|before| *before != 0);
    let status_replicas = || deployment.status.as_ref().and_then(|status| status.replicas);
    let before = before.or_else(status_replicas).unwrap_or_else(|| actual(set));
    if before == 0 {
        return 0;
    }
    let after = i64::from(most_replicas(deployment));
    let (size, before) = (i64::from(size(set)), i64::from(before));
    // Rounded to nearest.
    let fair = (2 * size * after + before) / (2 * before) - size;
    i32::try_from(fair).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::test_objects::{deployment, set};

    /// Sets as (size, available), oldest first; the last is the new one. All were sized for `before`.
    #[track_caller]
    fn check(name: &str, before: i32, wanted: i32, sets: &[(i32, i32)], expected: &[i32]) {
        let deployment = deployment(wanted, 0, 1);
        let sets: Vec<Arc<ReplicaSet>> = sets
            .iter()
            .enumerate()
            .map(|(age, (size, ready))| {
                let mut set = (*set(&age.to_string(), *size, *ready)).clone();
                let annotations = set.metadata.annotations.get_or_insert_default();
                annotations.insert(DESIRED_REPLICAS.into(), before.to_string());
                annotations.insert(MAX_REPLICAS.into(), before.to_string());
                Arc::new(set)
            })
            .collect();
        let (new, old) = sets.split_last().unwrap();
        let plan = plan(&deployment, Some(new), old);
        let sizes: Vec<i32> = sets
            .iter()
            .map(|set| plan.iter().find(|scale| scale.set == *set).map_or(size(set), |scale| scale.to))
            .collect();
        assert_eq!(sizes, expected, "{name}");
    }

    #[test]
    fn scaling_shares_the_size_out() {
        check("one set takes it", 3, 5, &[(3, 3)], &[5]);
        check("the only active one takes it", 3, 5, &[(3, 3), (0, 0)], &[5, 0]);
        check("the newest where none is active", 0, 4, &[(0, 0), (0, 0)], &[0, 4]);
        check("grows in proportion", 10, 20, &[(5, 5), (5, 0)], &[10, 10]);
        check("shrinks in proportion", 10, 5, &[(8, 8), (2, 0)], &[4, 1]);
        check("leftover goes to the largest", 10, 11, &[(7, 7), (3, 0)], &[8, 3]);
        check("to nothing", 10, 0, &[(6, 6), (4, 4)], &[0, 0]);
        check("done rollout leaves nothing behind", 3, 3, &[(2, 2), (3, 3)], &[0, 3]);
    }

    #[test]
    fn a_surge_beyond_counting_is_no_surge_of_errors() {
        let deployment = deployment(10, i32::MAX, 1);
        let sets = [set("0", 5, 5), set("1", 4, 0)];
        let total: i64 =
            plan(&deployment, Some(&sets[1]), &sets[..1]).iter().map(|scale| i64::from(scale.to)).sum();
        assert!(total <= i64::from(i32::MAX), "{total}");
    }

    #[test]
    fn planning_again_changes_nothing() {
        let deployment = deployment(11, 0, 1);
        let resized = |set: &Arc<ReplicaSet>, to: i32| {
            let mut set = (**set).clone();
            set.spec.as_mut().unwrap().replicas = Some(to);
            set.metadata.annotations = Some([(MAX_REPLICAS.to_owned(), "11".to_owned())].into());
            Arc::new(set)
        };
        let sets = [resized(&set("0", 8, 8), 8), resized(&set("1", 3, 0), 3)];
        let first = plan(&deployment, Some(&sets[1]), &sets[..1]);
        assert!(first.iter().all(|scale| size(&scale.set) == scale.to), "{first:?}");
    }
}
