//! One step of a rolling update. Pure.
//!
//! The order is upstream's: the new set grows as far as the surge allows; else old sets shrink, unhealthy
//! replicas first, as far as enough pods stay available. Every step keeps two bounds whatever is behind in
//! the caches: the sizes add up to at most `replicas + maxSurge`, and at least `replicas - maxUnavailable`
//! pods stay available, because what the new set has not made available yet is never counted.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::strategy::{
    available, by_age, is_rolling, max_unavailable, most_replicas, size, sum, wanted_replicas,
};

/// A set and the size that it should have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scale {
    pub(super) set: Arc<ReplicaSet>,
    pub(super) to: i32,
}

/// The next sizes; empty where nothing is to be done, or nothing can be done yet.
pub(super) fn step(deployment: &Deployment, new: &Arc<ReplicaSet>, old: &[Arc<ReplicaSet>]) -> Vec<Scale> {
    let wanted = new_set_size(deployment, size(new), sum(old, size).saturating_add(size(new)));
    if wanted != size(new) {
        return vec![Scale { set: new.clone(), to: wanted }];
    }
    shrink_old(deployment, new, old)
}

/// How large the new set may be, where it is `current` and all sets together are `total`.
pub(super) fn new_set_size(deployment: &Deployment, current: i32, total: i32) -> i32 {
    let wanted = wanted_replicas(deployment);
    if !is_rolling(deployment) || current > wanted {
        return wanted;
    }
    let room = most_replicas(deployment).saturating_sub(total);
    if room <= 0 { current } else { current + room.min(wanted - current) }
}

fn shrink_old(deployment: &Deployment, new: &Arc<ReplicaSet>, old: &[Arc<ReplicaSet>]) -> Vec<Scale> {
    let mut old = super::strategy::with_replicas(old);
    by_age(&mut old);
    let total = sum(&old, size).saturating_add(size(new));
    let min_available = wanted_replicas(deployment) - max_unavailable(deployment);
    let new_unavailable = size(new) - available(new);
    let may_go = total.saturating_sub(min_available).saturating_sub(new_unavailable);
    if old.is_empty() || may_go <= 0 {
        return Vec::new();
    }

    let mut sizes: Vec<i32> = old.iter().map(|set| size(set)).collect();
    let mut budget = may_go;
    for (set, size) in old.iter().zip(&mut sizes) {
        let unhealthy = (*size - available(set)).max(0);
        let gone = unhealthy.min(budget);
        *size -= gone;
        budget -= gone;
    }
    // Not the rest of the budget: replicas that went above were not available, so they bought nothing.
    let mut spare =
        sum(&old, available).saturating_add(available(new)).saturating_sub(min_available).max(0).min(budget);
    for size in &mut sizes {
        let gone = spare.min(*size);
        *size -= gone;
        spare -= gone;
    }
    let changed = old.into_iter().zip(sizes).filter(|(set, to)| size(set) != *to);
    changed.map(|(set, to)| Scale { set, to }).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::strategy::max_surge, *};
    use crate::deployment::test_objects::{deployment, set};

    /// Each set as (size, available); the new one first.
    #[track_caller]
    fn check(
        name: &str,
        wanted: i32,
        (surge, unavailable): (i32, i32),
        sets: &[(i32, i32)],
        expected: &[i32],
    ) {
        let deployment = deployment(wanted, surge, unavailable);
        let sets: Vec<_> = sets
            .iter()
            .enumerate()
            .map(|(age, (size, ready))| set(&age.to_string(), *size, *ready))
            .collect();
        let changes = step(&deployment, &sets[0], &sets[1..]);
        let sizes: Vec<i32> = sets
            .iter()
            .map(|set| changes.iter().find(|change| change.set == *set).map_or(size(set), |change| change.to))
            .collect();
        assert_eq!(sizes, expected, "{name}");
    }

    #[test]
    fn steps_keep_availability_and_surge() {
        check("first set", 3, (1, 0), &[(0, 0)], &[3]);
        check("new set starts with the surge", 3, (1, 0), &[(0, 0), (3, 3)], &[1, 3]);
        check("a surge beyond counting", 3, (i32::MAX, 0), &[(0, 0), (3, 3)], &[3, 3]);
        check("waits for the new pod", 3, (1, 0), &[(1, 0), (3, 3)], &[1, 3]);
        check("then an old pod goes", 3, (1, 0), &[(1, 1), (3, 3)], &[1, 2]);
        check("no surge: an old pod goes first", 3, (0, 1), &[(0, 0), (3, 3)], &[0, 2]);
        check("unhealthy old pods go first", 3, (1, 1), &[(1, 0), (2, 0), (1, 1)], &[1, 1, 1]);
        check("oldest set shrinks first", 4, (0, 2), &[(0, 0), (2, 2), (2, 2)], &[0, 0, 2]);
        check("nothing goes while the new pod may still fail", 3, (1, 0), &[(1, 0), (3, 1)], &[1, 3]);
        check("broken old revision makes room", 3, (1, 1), &[(1, 1), (3, 0)], &[1, 1]);
        check("new set above the wanted size shrinks", 2, (1, 0), &[(3, 3)], &[2]);
        check("all is done", 3, (1, 0), &[(3, 3), (0, 0)], &[3, 0]);
        check("scaled to nothing", 0, (1, 0), &[(0, 0), (2, 2)], &[0, 0]);
    }

    #[test]
    fn rollout_simulated_to_the_end_never_leaves_its_bounds() {
        for wanted in 0..7 {
            for surge in 0..3 {
                for unavailable in 0..3 {
                    simulate(wanted, surge, unavailable);
                }
            }
        }
    }

    /// Pods become available one at a time, in either order; availability follows size at once downwards.
    fn simulate(wanted: i32, surge: i32, unavailable: i32) {
        let deployment = deployment(wanted, surge, unavailable);
        let (surge, unavailable) = (max_surge(&deployment), max_unavailable(&deployment));
        let mut state = [(0, 0), (wanted, wanted)];
        for _ in 0..200 {
            let sets: Vec<_> = state
                .iter()
                .enumerate()
                .map(|(n, (size, ready))| set(&n.to_string(), *size, *ready))
                .collect();
            let changes = step(&deployment, &sets[0], &sets[1..]);
            for change in &changes {
                let index = usize::from(change.set == sets[1]);
                state[index] = (change.to, state[index].1.min(change.to));
            }
            let total: i32 = state.iter().map(|(size, _)| size).sum();
            let available: i32 = state.iter().map(|(_, available)| available).sum();
            assert!(total <= wanted + surge, "{total} pods of {wanted}+{surge}");
            assert!(available >= wanted - unavailable, "{available} available of {wanted}-{unavailable}");
            if changes.is_empty() {
                if state == [(wanted, wanted), (0, 0)] {
                    return;
                }
                assert!(state[0].1 < state[0].0, "stuck at {state:?} for {wanted}+{surge}-{unavailable}");
                state[0].1 += 1;
            }
        }
        panic!("rollout of {wanted}+{surge}-{unavailable} never ended: {state:?}");
    }
}
