//! What a budget's status says. Pure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hawser_api::Error;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};

use crate::{
    intstr::{Round, resolve},
    meta::{MetaExt, count, elapsed, pod_is_ready},
};

const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";

/// An evicted pod that is still there after this time will not go.
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);

/// How many pods there should be, and how many of them must stay healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needed {
    pub(super) expected: i32,
    pub(super) healthy: i32,
}

/// What needs no look at controllers: a whole number of pods, whoever owns them, or nothing asked at all.
pub(super) fn needed_of_pods(spec: &PodDisruptionBudgetSpec, pods: usize) -> Option<Needed> {
    match (&spec.max_unavailable, &spec.min_available) {
        (None, Some(IntOrString::Int(healthy))) => {
            Some(Needed { expected: i32::try_from(pods).unwrap_or(i32::MAX), healthy: *healthy })
        }
        (None, None) => Some(Needed { expected: 0, healthy: 0 }),
        _ => None,
    }
}

/// `expected` is what the pods' controllers ask for.
pub(super) fn needed_of_scale(spec: &PodDisruptionBudgetSpec, expected: i32) -> Needed {
    let healthy = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (expected - resolve(most, expected, Round::Up)).max(0),
        (None, Some(least)) => resolve(least, expected, Round::Up),
        (None, None) => 0,
    };
    Needed { expected, healthy }
}

/// Pods whose eviction was let through.
pub(super) struct Disrupted {
    /// Those that are still to go, and since when.
    pending: BTreeMap<String, Time>,
    pub(super) overdue: Vec<Arc<Pod>>,
    /// When the next one becomes overdue.
    pub(super) wait: Option<Duration>,
}

/// What of the budget's notes about evictions still holds: pods that go, are gone, or did not go are dropped.
pub(super) fn disrupted(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], now: Timestamp) -> Disrupted {
    let mut disrupted = Disrupted { pending: BTreeMap::new(), overdue: Vec::new(), wait: None };
    let Some(noted) = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref()) else {
        return disrupted;
    };
    for pod in pods.iter().filter(|pod| !pod.is_deleting()) {
        let Some(since) = noted.get(pod.name()) else { continue };
        let wait = DELETION_TIMEOUT.saturating_sub(elapsed(since.0, now));
        if wait.is_zero() {
            disrupted.overdue.push(pod.clone());
            continue;
        }
        disrupted.pending.insert(pod.name().to_owned(), since.clone());
        disrupted.wait = Some(disrupted.wait.map_or(wait, |earliest| earliest.min(wait)));
    }
    disrupted
}

pub(super) fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    needed: Needed,
    disrupted: Disrupted,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let counts = |pod: &&Arc<Pod>| {
        !pod.is_deleting() && !disrupted.pending.contains_key(pod.name()) && pod_is_ready(pod)
    };
    let healthy = count(pods.iter().filter(counts));
    let allowed = if needed.expected > 0 { (healthy - needed.healthy).max(0) } else { 0 };
    let (state, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    PodDisruptionBudgetStatus {
        conditions: Some(conditions(budget, state, reason, String::new(), now)),
        current_healthy: Some(healthy),
        desired_healthy: Some(needed.healthy),
        disrupted_pods: Some(disrupted.pending).filter(|pending| !pending.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(needed.expected),
        observed_generation: budget.metadata.generation,
    }
}

/// The status where the pods could not be counted: what was known before, and that nothing may go.
pub(super) fn unknown(
    budget: &PodDisruptionBudget,
    error: &Error,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let known = budget.status.clone().unwrap_or_default();
    PodDisruptionBudgetStatus {
        conditions: Some(conditions(budget, "False", "SyncFailed", error.message().to_owned(), now)),
        current_healthy: Some(known.current_healthy.unwrap_or_default()),
        desired_healthy: Some(known.desired_healthy.unwrap_or_default()),
        expected_pods: Some(known.expected_pods.unwrap_or_default()),
        disruptions_allowed: Some(0),
        observed_generation: budget.metadata.generation,
        ..known
    }
}

fn conditions(
    budget: &PodDisruptionBudget,
    state: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions =
        budget.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let known = conditions.iter().find(|condition| condition.type_ == DISRUPTION_ALLOWED);
    let since = known.filter(|condition| condition.status == state);
    let allowed = Condition {
        type_: DISRUPTION_ALLOWED.to_owned(),
        status: state.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: budget.metadata.generation,
        last_transition_time: since
            .map_or_else(|| Time(now), |condition| condition.last_transition_time.clone()),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == DISRUPTION_ALLOWED) {
        Some(known) => *known = allowed,
        None => conditions.push(allowed),
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, least: Option<IntOrString>, most: Option<IntOrString>, expected: Needed) {
        let spec = PodDisruptionBudgetSpec {
            min_available: least,
            max_unavailable: most,
            ..PodDisruptionBudgetSpec::default()
        };
        let needed = needed_of_pods(&spec, 5).unwrap_or_else(|| needed_of_scale(&spec, 7));
        assert_eq!(needed, expected, "{name}");
    }

    #[test]
    fn a_share_is_of_what_controllers_ask_for_and_a_number_of_pods() {
        let percent = |text: &str| Some(IntOrString::String(text.into()));
        let number = |number| Some(IntOrString::Int(number));
        check("nothing asked", None, None, Needed { expected: 0, healthy: 0 });
        check("a number stays, whoever owns the pods", number(3), None, Needed { expected: 5, healthy: 3 });
        check("a share stays, rounded up", percent("50%"), None, Needed { expected: 7, healthy: 4 });
        check("a number may go", None, number(2), Needed { expected: 7, healthy: 5 });
        check("a share may go, rounded up", None, percent("30%"), Needed { expected: 7, healthy: 4 });
        check("more than all may go", None, number(9), Needed { expected: 7, healthy: 0 });
    }
}
