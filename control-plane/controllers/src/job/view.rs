//! One look at a Job and its pods: how many did what, those included that the status does not count yet. Pure.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::{
    batch::v1::{Job, JobStatus},
    core::v1::Pod,
};

use super::{
    indexes::Indexes,
    pod::{
        all_failures, completions, failed, failures, finished_at, has_finalizer, index, is_indexed, spec,
        succeeded,
    },
    policy,
};
use crate::meta::{MetaExt, count, pod_is_active, pod_is_ready, pod_is_terminal};

pub(super) struct View<'a> {
    pub(super) job: &'a Job,
    pub(super) pods: Vec<Arc<Pod>>,
    /// Uids of pods whose finalizer is removed, though the cache may not show it.
    released: HashSet<String>,
    pub(super) active: Vec<Arc<Pod>>,
    pub(super) ready: i32,
    pub(super) terminating: i32,
    /// Ended, and neither counted nor noted in the status.
    pub(super) new_succeeded: Vec<Arc<Pod>>,
    pub(super) new_failed: Vec<Arc<Pod>>,
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    /// As the status has them.
    pub(super) counted_indexes: Indexes,
    pub(super) succeeded_indexes: Indexes,
    /// Of jobs with a limit for each index.
    pub(super) failed_indexes: Option<Indexes>,
    /// The last failed pod of an index that waits for another, whose finalizer keeps the index's count.
    pub(super) waiting: HashMap<i32, Arc<Pod>>,
}

impl<'a> View<'a> {
    pub(super) fn new(job: &'a Job, pods: Vec<Arc<Pod>>, released: HashSet<String>) -> Self {
        let active: Vec<Arc<Pod>> = pods.iter().filter(|pod| pod_is_active(pod)).cloned().collect();
        let status = job.status.clone().unwrap_or_default();
        let mut view = Self {
            job,
            released,
            ready: count(active.iter().filter(|pod| pod_is_ready(pod))),
            terminating: count(pods.iter().filter(|pod| pod.is_deleting() && !pod_is_terminal(pod))),
            active,
            new_succeeded: Vec::new(),
            new_failed: Vec::new(),
            succeeded: 0,
            failed: 0,
            counted_indexes: Indexes::default(),
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            waiting: HashMap::new(),
            pods,
        };
        let (noted_succeeded, noted_failed) = noted(&status);
        view.new_succeeded = view.new_ones(&noted_succeeded, succeeded);
        view.new_failed = view.new_ones(&noted_failed, |pod| failed(job, pod));
        let counted = view.new_failed.iter().filter(|pod| policy::of(job, pod).is_counted);
        view.failed = sum(status.failed, count(counted), noted_failed.len());
        view.succeeded = sum(status.succeeded, count(view.new_succeeded.iter()), noted_succeeded.len());
        if is_indexed(job) {
            view.count_indexes(&status);
        }
        view
    }

    /// The pod waits to be counted.
    pub(super) fn is_tracked(&self, pod: &Pod) -> bool {
        has_finalizer(pod) && !self.released.contains(pod.uid())
    }

    pub(super) fn is_released(&self, pod: &Pod) -> bool {
        self.released.contains(pod.uid())
    }

    fn new_ones(&self, noted: &HashSet<&str>, ended: impl Fn(&Pod) -> bool) -> Vec<Arc<Pod>> {
        let is_valid = |pod: &Pod| !is_indexed(self.job) || index(self.job, pod).is_some();
        let is_new = |pod: &&Arc<Pod>| {
            self.is_tracked(pod) && !noted.contains(pod.uid()) && is_valid(pod) && ended(pod)
        };
        self.pods.iter().filter(is_new).cloned().collect()
    }

    fn count_indexes(&mut self, status: &JobStatus) {
        let job = self.job;
        let parse =
            |text: &Option<String>| Indexes::parse(text.as_deref().unwrap_or_default(), completions(job));
        self.counted_indexes = parse(&status.completed_indexes);
        let tracked: Vec<Arc<Pod>> = self.pods.iter().filter(|pod| self.is_tracked(pod)).cloned().collect();
        let fresh = tracked.iter().filter(|pod| succeeded(pod)).filter_map(|pod| index(job, pod));
        self.succeeded_indexes = self.counted_indexes.with(fresh);
        self.succeeded = self.succeeded_indexes.total();
        let Some(limit) = spec(job).backoff_limit_per_index else { return };
        let failed_for_good = tracked.iter().filter(|pod| fails_index(job, pod, limit));
        let failed_for_good =
            parse(&status.failed_indexes).with(failed_for_good.filter_map(|it| index(job, it)));
        let active: HashSet<i32> = self.active.iter().filter_map(|pod| index(job, pod)).collect();
        let mut waiting: HashMap<i32, Arc<Pod>> = HashMap::new();
        for pod in &self.new_ones(&HashSet::new(), |pod| failed(job, pod)) {
            let Some(index) = index(job, pod) else { continue };
            let is_settled = self.succeeded_indexes.contains(index) || failed_for_good.contains(index);
            if is_settled || active.contains(&index) {
                continue;
            }
            let order = |pod: &Pod| (all_failures(pod), finished_at(pod));
            let last = waiting.entry(index).or_insert_with(|| pod.clone());
            if order(last) <= order(pod) {
                *last = pod.clone();
            }
        }
        self.waiting = waiting;
        self.failed_indexes = Some(failed_for_good);
    }
}

fn fails_index(job: &Job, pod: &Pod, limit: i32) -> bool {
    if !failed(job, pod) {
        return false;
    }
    let verdict = policy::of(job, pod);
    verdict.fails_index || (verdict.is_counted && failures(pod) >= limit)
}

/// Uids of the pods, succeeded and failed, that the status notes and does not count.
fn noted(status: &JobStatus) -> (HashSet<&str>, HashSet<&str>) {
    let uncounted = status.uncounted_terminated_pods.as_ref();
    (
        uncounted.iter().flat_map(|it| it.succeeded.iter().flatten()).map(String::as_str).collect(),
        uncounted.iter().flat_map(|it| it.failed.iter().flatten()).map(String::as_str).collect(),
    )
}

fn sum(counted: Option<i32>, new: i32, noted: usize) -> i32 {
    let noted = i32::try_from(noted).unwrap_or(i32::MAX);
    counted.unwrap_or_default().saturating_add(new).saturating_add(noted)
}
