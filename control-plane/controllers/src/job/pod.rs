//! Pods of a Job: what they say of themselves, and how they are made. Pure.

use std::sync::OnceLock;

use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
};

use super::policy;
use crate::{
    meta::{MetaExt, pod_condition, pod_phase},
    pods,
};

/// Keeps a pod until it is counted.
pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// What the API keeps of a prefix, so that five characters fit after it.
const LONGEST_PREFIX: usize = 58;

pub(super) fn spec(job: &Job) -> &JobSpec {
    static NONE: OnceLock<JobSpec> = OnceLock::new();
    job.spec.as_ref().unwrap_or_else(|| NONE.get_or_init(JobSpec::default))
}

pub(super) fn is_indexed(job: &Job) -> bool {
    spec(job).completion_mode.as_deref() == Some("Indexed")
}

pub(super) fn is_suspended(job: &Job) -> bool {
    spec(job).suspend == Some(true)
}

/// A pod that goes is made up for when it has gone, not before.
pub(super) fn waits_for_the_end(job: &Job) -> bool {
    spec(job).pod_replacement_policy.as_deref() == Some("Failed") || spec(job).pod_failure_policy.is_some()
}

/// How many indexes there are; not less than none.
pub(super) fn completions(job: &Job) -> i32 {
    spec(job).completions.unwrap_or_default().max(0)
}

pub(super) fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

pub(super) fn succeeded(pod: &Pod) -> bool {
    pod_phase(pod) == "Succeeded"
}

/// Deleted pods have failed too, unless their end is waited for: they may never get that far.
pub(super) fn failed(job: &Job, pod: &Pod) -> bool {
    pod_phase(pod) == "Failed" || (!waits_for_the_end(job) && pod.is_deleting() && !succeeded(pod))
}

/// The pod's completion index, where it is one of the job's.
pub(super) fn index(job: &Job, pod: &Pod) -> Option<i32> {
    let index: i32 = pod.annotations().get(INDEX)?.parse().ok()?;
    (0..completions(job)).contains(&index).then_some(index)
}

fn number(pod: &Pod, annotation: &str) -> i32 {
    let number: Option<i32> = pod.annotations().get(annotation).and_then(|text| text.parse().ok());
    number.unwrap_or_default().max(0)
}

/// Failures of the index that count, before this pod's.
pub(super) fn failures(pod: &Pod) -> i32 {
    number(pod, FAILURES)
}

/// All failures of the index, before this pod's.
pub(super) fn all_failures(pod: &Pod) -> i32 {
    failures(pod).saturating_add(number(pod, IGNORED_FAILURES))
}

/// When the pod ended, as near as it can be told.
pub(super) fn finished_at(pod: &Pod) -> Timestamp {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ends: Option<Vec<Timestamp>> = statuses
        .map(|status| Some(status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0))
        .collect();
    let ended = ends.and_then(|ends| ends.into_iter().max());
    let unready = || pod_condition(pod, "Ready")?.last_transition_time.as_ref().map(|time| time.0);
    let deleted = || pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    ended.or_else(unready).or_else(deleted).unwrap_or_else(|| pod.created())
}

/// A pod of the job; `replaced` is the one that failed in the same place before.
pub(super) fn make(job: &Job, index: Option<i32>, replaced: Option<&Pod>) -> Pod {
    let mut pod = pods::from_template(job, &spec(job).template);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    let Some(index) = index else { return pod };
    let text = index.to_string();
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), text.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), text);
    if spec(job).backoff_limit_per_index.is_some() {
        let (counted, ignored) = replaced.map_or((0, 0), |pod| counts_with(job, pod));
        annotations.insert(FAILURES.to_owned(), counted.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED_FAILURES.to_owned(), ignored.to_string());
        }
    }
    pod.metadata.generate_name = Some(prefix(job.name(), index));
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(format!("{}-{index}", job.name()));
    for container in pod_spec.init_containers.iter_mut().flatten().chain(&mut pod_spec.containers) {
        tell_index(container);
    }
    pod
}

/// Failures of the index, counted and ignored, this pod's included.
fn counts_with(job: &Job, pod: &Pod) -> (i32, i32) {
    let (counted, ignored) = (failures(pod), number(pod, IGNORED_FAILURES));
    if policy::of(job, pod).is_counted {
        (counted.saturating_add(1), ignored)
    } else {
        (counted, ignored.saturating_add(1))
    }
}

fn prefix(job: &str, index: i32) -> String {
    let end = format!("-{index}-");
    let most = LONGEST_PREFIX - end.len();
    format!("{}{end}", job.get(..most).unwrap_or(job))
}

fn tell_index(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector {
        field_path: format!("metadata.labels['{INDEX}']"),
        ..ObjectFieldSelector::default()
    };
    variables.push(EnvVar {
        name: INDEX_VARIABLE.to_owned(),
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        ..EnvVar::default()
    });
}
