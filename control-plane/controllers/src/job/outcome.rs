//! Whether a Job has come to its end, and how. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::batch::v1::{Job, JobCondition, JobStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    pod::{completions, failed, is_indexed, is_suspended, spec},
    policy,
    view::View,
};
use crate::meta::{elapsed, pod_phase};

/// How the job ends. The interim condition is written before pods are let go, the final one when all are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) is_success: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Outcome {
    fn failure(reason: &str, message: impl Into<String>) -> Self {
        Self { is_success: false, reason: reason.to_owned(), message: message.into() }
    }

    fn success(reason: &str, message: impl Into<String>) -> Self {
        Self { is_success: true, reason: reason.to_owned(), message: message.into() }
    }

    pub(super) fn interim(&self, now: Timestamp) -> JobCondition {
        let kind = if self.is_success { "SuccessCriteriaMet" } else { "FailureTarget" };
        condition(kind, "True", &self.reason, &self.message, now)
    }

    pub(super) fn last(&self, now: Timestamp) -> JobCondition {
        let kind = if self.is_success { "Complete" } else { "Failed" };
        condition(kind, "True", &self.reason, &self.message, now)
    }
}

/// The end that the job was given before, or reaches now.
pub(super) fn of(view: &View<'_>, now: Timestamp) -> Option<Outcome> {
    let job = view.job;
    if let Some(met) = find(job.status.as_ref(), "SuccessCriteriaMet") {
        return Some(Outcome { is_success: true, ..decided(met) });
    }
    if let Some(target) = find(job.status.as_ref(), "FailureTarget") {
        return Some(decided(target));
    }
    let failures = view.pods.iter().filter(|pod| failed(job, pod));
    if let Some(message) = failures.filter_map(|pod| policy::of(job, pod).fails_job).next() {
        return Some(Outcome::failure("PodFailurePolicy", message));
    }
    if view.failed > spec(job).backoff_limit.unwrap_or(6) || restarted_too_often(view) {
        let message = "Job has reached the specified backoff limit";
        return Some(Outcome::failure("BackoffLimitExceeded", message));
    }
    if until_deadline(job, job.status.as_ref(), now).is_some_and(|left| left.is_zero()) {
        return Some(Outcome::failure("DeadlineExceeded", "Job was active longer than specified deadline"));
    }
    of_indexes(view)
}

fn decided(condition: &JobCondition) -> Outcome {
    Outcome::failure(
        condition.reason.as_deref().unwrap_or_default(),
        condition.message.clone().unwrap_or_default(),
    )
}

fn of_indexes(view: &View<'_>) -> Option<Outcome> {
    let job = view.job;
    if !is_indexed(job) {
        return None;
    }
    if let Some(failed) = &view.failed_indexes {
        if spec(job).max_failed_indexes.is_some_and(|most| failed.total() > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(Outcome::failure("MaxFailedIndexesExceeded", message));
        }
        let settled = failed.total().saturating_add(view.succeeded_indexes.total());
        if failed.total() > 0 && settled >= completions(job) {
            return Some(Outcome::failure("FailedIndexes", "Job has failed indexes"));
        }
    }
    let met = policy::success(job, &view.succeeded_indexes)?;
    Some(Outcome::success("SuccessPolicy", met))
}

/// All that was asked has succeeded, and nothing runs any more.
pub(super) fn of_completions(view: &View<'_>, active: i32) -> Option<Outcome> {
    let is_enough = match spec(view.job).completions {
        Some(wanted) => view.succeeded >= wanted,
        None => view.succeeded > 0,
    };
    (is_enough && active == 0)
        .then(|| Outcome::success("CompletionsReached", "Reached expected number of succeeded pods"))
}

/// Containers that restart in their pods count too.
fn restarted_too_often(view: &View<'_>) -> bool {
    let spec = spec(view.job);
    let policy = spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let running = view.pods.iter().filter(|pod| matches!(pod_phase(pod), "Running" | "Pending"));
    let statuses = running.filter_map(|pod| pod.status.as_ref()).flat_map(|status| {
        let inits = status.init_container_statuses.iter().flatten();
        inits.chain(status.container_statuses.iter().flatten())
    });
    let restarts = statuses.fold(0, |sum: i32, status| sum.saturating_add(status.restart_count));
    restarts > 0 && restarts >= spec.backoff_limit.unwrap_or(6)
}

/// How long the job may still run; `None` without a deadline, or while it is suspended.
pub(super) fn until_deadline(job: &Job, status: Option<&JobStatus>, now: Timestamp) -> Option<Duration> {
    let started = status?.start_time.as_ref()?.0;
    let seconds = spec(job).active_deadline_seconds.filter(|_| !is_suspended(job))?;
    let allowed = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    Some(allowed.saturating_sub(elapsed(started, now)))
}

pub(super) fn is_finished(job: &Job) -> bool {
    super::condition_of_end(job).is_some()
}

/// The condition of this kind, where it is true.
pub(super) fn find<'a>(status: Option<&'a JobStatus>, kind: &str) -> Option<&'a JobCondition> {
    let mut conditions = status?.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == kind && condition.status == "True")
}

pub(super) fn condition(
    kind: &str,
    state: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> JobCondition {
    let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    JobCondition {
        type_: kind.to_owned(),
        status: state.to_owned(),
        reason: given(reason),
        message: given(message),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Adds or changes a condition; true where that made a difference. What was never true does not become false.
pub(super) fn ensure(status: &mut JobStatus, wanted: JobCondition) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    let says = |it: &JobCondition| (it.status.clone(), it.reason.clone(), it.message.clone());
    match conditions.iter_mut().find(|condition| condition.type_ == wanted.type_) {
        Some(known) if says(known) == says(&wanted) => false,
        Some(known) => {
            *known = wanted;
            true
        }
        None if wanted.status == "True" => {
            conditions.push(wanted);
            true
        }
        None => false,
    }
}
