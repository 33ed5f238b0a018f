//! Status and conditions of a Deployment: available, progressing, timed out, failing. Pure.
//!
//! Reasons and messages are upstream's; `kubectl rollout status` and `kubectl wait` act on them.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::strategy::{
    actual, available, max_unavailable, ready, size, spec, sum, terminating, wanted_replicas,
};
use crate::meta::{MetaExt, elapsed};

const AVAILABLE: &str = "Available";
pub(super) const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

pub(super) const SET_CREATED: &str = "NewReplicaSetCreated";
pub(super) const SET_FOUND: &str = "FoundNewReplicaSet";
pub(super) const SET_FAILED: &str = "ReplicaSetCreateError";
const SET_UPDATED: &str = "ReplicaSetUpdated";
const SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

pub(super) fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

pub(super) fn find<'a>(status: Option<&'a DeploymentStatus>, kind: &str) -> Option<&'a DeploymentCondition> {
    status?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// Puts `condition` in its place. Same status and reason: nothing changes, not even the times.
pub(super) fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(current) = find(Some(status), &condition.type_) {
        if current.status == condition.status && current.reason == condition.reason {
            return;
        }
        if current.status == condition.status {
            condition.last_transition_time = current.last_transition_time.clone();
        }
    }
    remove(status, &condition.type_);
    status.conditions.get_or_insert_default().push(condition);
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != kind);
    }
}

pub(super) fn progress_deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = spec(deployment).progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

/// The condition that a pause or a resumption brings; `None` where it is there already.
pub(super) fn pause_condition(deployment: &Deployment, now: Timestamp) -> Option<DeploymentCondition> {
    progress_deadline(deployment)?;
    let current = find(deployment.status.as_ref(), PROGRESSING).and_then(|it| it.reason.as_deref());
    let paused = spec(deployment).paused.unwrap_or_default();
    match current {
        Some(TIMED_OUT) => None,
        Some(PAUSED) if !paused => {
            Some(condition(PROGRESSING, "Unknown", RESUMED, "Deployment is resumed".to_owned(), now))
        }
        Some(PAUSED) => None,
        _ if paused => {
            Some(condition(PROGRESSING, "Unknown", PAUSED, "Deployment is paused".to_owned(), now))
        }
        _ => None,
    }
}

/// Counts and availability; the progress is left as it was.
pub(super) fn calculate(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> DeploymentStatus {
    let all: Vec<Arc<ReplicaSet>> = old.iter().chain(new).cloned().collect();
    let available_replicas = sum(&all, available);
    let current = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(sum(&all, actual)),
        updated_replicas: nonzero(new.map_or(0, |set| actual(set))),
        ready_replicas: nonzero(sum(&all, ready)),
        available_replicas: nonzero(available_replicas),
        unavailable_replicas: nonzero((sum(&all, size) - available_replicas).max(0)),
        terminating_replicas: Some(sum(&all, terminating)),
        collision_count: current.collision_count,
        conditions: current.conditions,
    };
    let enough = available_replicas >= wanted_replicas(deployment) - max_unavailable(deployment);
    let (state, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut status, condition(AVAILABLE, state, reason, message.to_owned(), now));
    status
}

/// [`calculate`], and how the rollout progresses.
pub(super) fn with_progress(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = calculate(deployment, new, old, now);
    let current = find(deployment.status.as_ref(), PROGRESSING);
    let Some(deadline) = progress_deadline(deployment) else {
        remove(&mut status, PROGRESSING);
        note_failure(&mut status, new, old);
        return status;
    };
    let settled = status.replicas == status.updated_replicas
        && current.is_some_and(|condition| condition.reason.as_deref() == Some(SET_AVAILABLE));
    if !settled {
        let subject = match new {
            Some(set) => format!("ReplicaSet {:?}", set.name()),
            None => format!("Deployment {:?}", deployment.name()),
        };
        if is_complete(deployment, &status) {
            let message = format!("{subject} has successfully progressed.");
            set(&mut status, condition(PROGRESSING, "True", SET_AVAILABLE, message, now));
        } else if has_progressed(deployment.status.as_ref(), &status) {
            let message = format!("{subject} is progressing.");
            let mut fresh = condition(PROGRESSING, "True", SET_UPDATED, message, now);
            if let Some(current) = current.filter(|current| current.status == "True") {
                fresh.last_transition_time = current.last_transition_time.clone();
            }
            // Removed first: every progress restarts the deadline, which counts from the update time.
            remove(&mut status, PROGRESSING);
            set(&mut status, fresh);
        } else if has_timed_out(current, deadline, now) {
            let message = format!("{subject} has timed out progressing.");
            set(&mut status, condition(PROGRESSING, "False", TIMED_OUT, message, now));
        }
    }
    note_failure(&mut status, new, old);
    status
}

/// All pods are of the current template and available, and none are left of others.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = wanted_replicas(deployment);
    [status.updated_replicas, status.replicas, status.available_replicas]
        .iter()
        .all(|count| count.unwrap_or_default() == wanted)
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(before: Option<&DeploymentStatus>, after: &DeploymentStatus) -> bool {
    let default = DeploymentStatus::default();
    let before = before.unwrap_or(&default);
    let old_pods = |status: &DeploymentStatus| {
        status.replicas.unwrap_or_default() - status.updated_replicas.unwrap_or_default()
    };
    after.updated_replicas > before.updated_replicas
        || old_pods(after) < old_pods(before)
        || after.ready_replicas > before.ready_replicas
        || after.available_replicas > before.available_replicas
}

fn has_timed_out(current: Option<&DeploymentCondition>, deadline: Duration, now: Timestamp) -> bool {
    let Some(current) = current else { return false };
    match current.reason.as_deref() {
        Some(TIMED_OUT) => true,
        // A finished rollout does not time out when a pod is lost later.
        Some(SET_AVAILABLE) => false,
        _ => current.last_update_time.as_ref().is_some_and(|since| elapsed(since.0, now) > deadline),
    }
}

/// When to look again though nothing changes: when the deadline passes.
pub(super) fn until_deadline(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let deadline = progress_deadline(deployment)?;
    let current = find(Some(status), PROGRESSING)?;
    let is_settled = matches!(current.reason.as_deref(), Some(TIMED_OUT | SET_AVAILABLE | PAUSED));
    if is_settled || is_complete(deployment, status) {
        return None;
    }
    let since = current.last_update_time.as_ref()?.0;
    // Times in the API have whole seconds.
    Some(deadline.saturating_sub(elapsed(since, now)) + Duration::from_secs(1))
}

/// Shows the failure of a set to make pods, the new one's first.
fn note_failure(status: &mut DeploymentStatus, new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) {
    let failure = new.into_iter().chain(old).find_map(|set| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == REPLICA_FAILURE)
    });
    match failure {
        Some(failure) => set(
            status,
            DeploymentCondition {
                type_: REPLICA_FAILURE.to_owned(),
                status: failure.status.clone(),
                reason: failure.reason.clone(),
                message: failure.message.clone(),
                last_transition_time: failure.last_transition_time.clone(),
                last_update_time: failure.last_transition_time.clone(),
            },
        ),
        None => remove(status, REPLICA_FAILURE),
    }
}

fn nonzero(value: i32) -> Option<i32> {
    Some(value).filter(|value| *value != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::test_objects::{self, deployment};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn progress(status: &DeploymentStatus) -> (&str, &str, &str) {
        let condition = find(Some(status), PROGRESSING).unwrap();
        (&condition.status, condition.reason.as_deref().unwrap(), condition.message.as_deref().unwrap())
    }

    #[test]
    fn rollout_progresses_completes_and_stays_complete() {
        let mut web = deployment(2, 1, 0);
        let sets = |ready| Some(test_objects::set("7", 2, ready));
        web.status = Some(with_progress(&web, sets(0).as_ref(), &[], at(0)));
        assert_eq!(
            progress(web.status.as_ref().unwrap()),
            ("True", SET_UPDATED, "ReplicaSet \"7\" is progressing.")
        );
        web.status = Some(with_progress(&web, sets(2).as_ref(), &[], at(5)));
        assert_eq!(
            progress(web.status.as_ref().unwrap()),
            ("True", SET_AVAILABLE, "ReplicaSet \"7\" has successfully progressed.")
        );
        // A pod lost much later is a matter of availability, not of progress.
        let status = with_progress(&web, sets(1).as_ref(), &[], at(5000));
        assert_eq!(progress(&status).1, SET_AVAILABLE);
        assert_eq!(find(Some(&status), AVAILABLE).unwrap().status, "False");
    }

    #[test]
    fn rollout_without_progress_times_out_after_its_deadline() {
        let mut web = deployment(2, 1, 0);
        let sets = Some(test_objects::set("7", 2, 0));
        web.status = Some(with_progress(&web, sets.as_ref(), &[], at(0)));
        let status = web.status.clone().unwrap();
        assert_eq!(until_deadline(&web, &status, at(100)), Some(Duration::from_secs(501)));
        web.status = Some(with_progress(&web, sets.as_ref(), &[], at(600)));
        assert_eq!(progress(web.status.as_ref().unwrap()).1, SET_UPDATED);
        let status = with_progress(&web, sets.as_ref(), &[], at(601));
        assert_eq!(progress(&status), ("False", TIMED_OUT, "ReplicaSet \"7\" has timed out progressing."));
        assert_eq!(until_deadline(&web, &status, at(700)), None);
    }

    #[test]
    fn calculating_again_changes_nothing() {
        let mut web = deployment(2, 1, 0);
        let sets = Some(test_objects::set("7", 2, 1));
        web.status = Some(with_progress(&web, sets.as_ref(), &[], at(0)));
        assert_eq!(web.status, Some(with_progress(&web, sets.as_ref(), &[], at(9))));
    }

    #[test]
    fn pause_and_resume_are_shown_once() {
        let mut web = deployment(2, 1, 0);
        web.spec.as_mut().unwrap().paused = Some(true);
        let paused = pause_condition(&web, at(0)).unwrap();
        assert_eq!(paused.reason.as_deref(), Some(PAUSED));
        set(web.status.get_or_insert_default(), paused);
        // A deadline that has passed long ago would be looked at every second.
        assert_eq!(until_deadline(&web, web.status.as_ref().unwrap(), at(5000)), None);
        assert_eq!(pause_condition(&web, at(1)), None);
        web.spec.as_mut().unwrap().paused = None;
        assert_eq!(pause_condition(&web, at(2)).unwrap().reason.as_deref(), Some(RESUMED));
    }
}
