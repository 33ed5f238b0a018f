//! The numbers of a Deployment: surge, unavailability, sums over its ReplicaSets. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};

use crate::{
    intstr::{Round, resolve, share},
    meta::MetaExt,
};

pub(super) fn spec(deployment: &Deployment) -> &DeploymentSpec {
    static NONE: std::sync::OnceLock<DeploymentSpec> = std::sync::OnceLock::new();
    deployment.spec.as_ref().unwrap_or_else(|| NONE.get_or_init(DeploymentSpec::default))
}

pub(super) fn wanted_replicas(deployment: &Deployment) -> i32 {
    spec(deployment).replicas.unwrap_or(1)
}

pub(super) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = spec(deployment).strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
    strategy != Some("Recreate")
}

/// How many pods there may be beyond the wanted ones; zero without a rolling update.
pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    if is_rolling(deployment) { fenceposts(deployment).0 } else { 0 }
}

/// Wanted and surging pods together, which may be more than can be counted.
pub(super) fn most_replicas(deployment: &Deployment) -> i32 {
    wanted_replicas(deployment).saturating_add(max_surge(deployment))
}

/// How many of the wanted pods may be missing during a rolling update.
pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    let wanted = wanted_replicas(deployment);
    if is_rolling(deployment) && wanted > 0 { fenceposts(deployment).1.min(wanted) } else { 0 }
}

/// Surge is rounded up and unavailability down; both zero would never move, so one pod may be missing then.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let wanted = wanted_replicas(deployment);
    let rolling = spec(deployment).strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
    let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    let surge = surge.map_or_else(|| share(25, wanted, Round::Up), |value| resolve(value, wanted, Round::Up));
    let unavailable = unavailable
        .map_or_else(|| share(25, wanted, Round::Down), |value| resolve(value, wanted, Round::Down));
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// `spec.replicas` of a set.
pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Pods that the set has, by its status.
pub(super) fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

pub(super) fn ready(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default()
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or_default()
}

pub(super) fn terminating(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or_default()
}

pub(super) fn sum(sets: &[Arc<ReplicaSet>], value: fn(&ReplicaSet) -> i32) -> i32 {
    sets.iter().fold(0, |sum: i32, set| sum.saturating_add(value(set)))
}

/// The sets that should have pods.
pub(super) fn with_replicas(sets: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    sets.iter().filter(|set| size(set) > 0).cloned().collect()
}

/// Oldest first; sets of one second by name, so that every look orders them alike.
pub(super) fn by_age(sets: &mut [Arc<ReplicaSet>]) {
    sets.sort_by(|a, b| a.created().cmp(&b.created()).then_with(|| a.name().cmp(b.name())));
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::apps::v1::{DeploymentStrategy, RollingUpdateDeployment},
        apimachinery::pkg::util::intstr::IntOrString,
    };

    use super::*;

    #[track_caller]
    fn check(name: &str, replicas: i32, surge: IntOrString, unavailable: IntOrString, expected: (i32, i32)) {
        let deployment = Deployment {
            spec: Some(DeploymentSpec {
                replicas: Some(replicas),
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".into()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(surge),
                        max_unavailable: Some(unavailable),
                    }),
                }),
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        };
        assert_eq!((max_surge(&deployment), max_unavailable(&deployment)), expected, "{name}");
    }

    #[test]
    fn percentages_round_up_for_surge_and_down_for_unavailability() {
        let percent = |text: &str| IntOrString::String(text.into());
        let number = IntOrString::Int;
        check("25% of 10", 10, percent("25%"), percent("25%"), (3, 2));
        check("25% of 3", 3, percent("25%"), percent("25%"), (1, 0));
        check("numbers", 3, number(2), number(1), (2, 1));
        check("both zero", 3, number(0), number(0), (0, 1));
        check("unavailability is at most all", 2, number(1), number(5), (1, 2));
        check("no replicas", 0, percent("25%"), percent("25%"), (0, 0));
        check("all at once", 4, percent("100%"), percent("100%"), (4, 4));
    }
}
