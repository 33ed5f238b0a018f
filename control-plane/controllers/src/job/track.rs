//! Counts ended pods so that each is counted once, whatever is cut off between two writes (KEP-2307). Pure.
//!
//! A pod that ended is first noted in the status by its uid; then its finalizer is removed; then, in one write, the note
//! goes and the count rises. A pod with the finalizer that is not noted is still to be counted, a noted one without the
//! finalizer is to be counted now. Succeeded indexes are counted by themselves.

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::api::{batch::v1::JobStatus, core::v1::Pod};

use super::{
    outcome::Outcome,
    pod::{failed, index, is_indexed, succeeded},
    policy,
    view::View,
};
use crate::meta::{MetaExt, nonzero};

/// Notes in one status; its size is bounded by that.
const MOST_NOTED: usize = 500;

pub(super) struct Tracked {
    /// Pods that may go once the status is written.
    pub(super) release: Vec<Arc<Pod>>,
    /// Uids of pods that still have their finalizer.
    pub(super) held: HashSet<String>,
    /// Uids of pods that were noted only now.
    fresh: HashSet<String>,
    /// There are more than fit in one status.
    pub(super) is_full: bool,
}

/// Notes the pods that ended. With an outcome all pods have.
pub(super) fn note(view: &View<'_>, status: &mut JobStatus, outcome: Option<&Outcome>) -> Tracked {
    let job = view.job;
    let tracked: Vec<&Arc<Pod>> = view.pods.iter().filter(|pod| view.is_tracked(pod)).collect();
    let held = tracked.iter().map(|pod| pod.uid().to_owned()).collect();
    let mut result = Tracked { release: Vec::new(), held, fresh: HashSet::new(), is_full: false };
    count_released(status, &result.held);
    let mut fresh_indexes = Vec::new();
    for pod in tracked {
        if !may_be_released(view, pod, outcome) {
            continue;
        }
        result.release.push(pod.clone());
        let notes = status.uncounted_terminated_pods.get_or_insert_default();
        let (done, lost) = (notes.succeeded.get_or_insert_default(), notes.failed.get_or_insert_default());
        let is_lost = lost.iter().any(|uid| uid == pod.uid());
        let place = index(job, pod);
        let is_valid = !is_indexed(job) || place.is_some();
        if succeeded(pod) && !is_lost {
            match place.filter(|_| is_indexed(job)) {
                Some(index) if !view.counted_indexes.contains(index) => fresh_indexes.push(index),
                None if !is_indexed(job) && !done.iter().any(|uid| uid == pod.uid()) => {
                    done.push(pod.uid().to_owned());
                    result.fresh.insert(pod.uid().to_owned());
                }
                _ => {}
            }
        } else if (failed(job, pod) || outcome.is_some_and(|outcome| !outcome.is_success))
            && is_valid
            && !is_lost
            && policy::of(job, pod).is_counted
        {
            lost.push(pod.uid().to_owned());
            result.fresh.insert(pod.uid().to_owned());
        }
        if fresh_indexes.len() + done.len() + lost.len() >= MOST_NOTED {
            result.is_full = true;
            break;
        }
    }
    if is_indexed(job) {
        let indexes = view.counted_indexes.with(fresh_indexes);
        status.succeeded = nonzero(indexes.total());
        status.completed_indexes = Some(indexes.to_string()).filter(|text| !text.is_empty());
        status.failed_indexes = view.failed_indexes.as_ref().map(ToString::to_string);
    }
    tidy(status);
    result
}

/// The pod is counted, or noted, or will never be: nothing is lost with it.
fn may_be_released(view: &View<'_>, pod: &Pod, outcome: Option<&Outcome>) -> bool {
    if view.job.is_deleting() || outcome.is_some() || succeeded(pod) {
        return true;
    }
    let is_last = || {
        let waiting = index(view.job, pod).and_then(|index| view.waiting.get(&index));
        waiting.is_some_and(|waiting| waiting.uid() == pod.uid())
    };
    failed(view.job, pod) && !is_last()
}

/// Drops notes of pods that had lost their finalizer before they were noted: the cache was behind, and another process,
/// about to end, has counted them.
pub(super) fn drop_counted(status: &mut JobStatus, tracked: &Tracked, were_free: &[String]) {
    let notes = status.uncounted_terminated_pods.get_or_insert_default();
    for uids in [&mut notes.succeeded, &mut notes.failed].into_iter().flatten() {
        uids.retain(|uid| !(tracked.fresh.contains(uid) && were_free.contains(uid)));
    }
    tidy(status);
}

/// Counts the noted pods that have lost their finalizer.
pub(super) fn count_released(status: &mut JobStatus, held: &HashSet<String>) {
    let notes = status.uncounted_terminated_pods.get_or_insert_default();
    let settle = |uids: &mut Option<Vec<String>>| {
        let uids = uids.get_or_insert_default();
        let before = uids.len();
        uids.retain(|uid| held.contains(uid));
        i32::try_from(before - uids.len()).unwrap_or(i32::MAX)
    };
    let (done, lost) = (settle(&mut notes.succeeded), settle(&mut notes.failed));
    let add = |count: Option<i32>, more: i32| nonzero(count.unwrap_or_default().saturating_add(more));
    status.succeeded = add(status.succeeded, done);
    status.failed = add(status.failed, lost);
    tidy(status);
}

pub(super) fn has_notes(status: &JobStatus) -> bool {
    let notes = status.uncounted_terminated_pods.as_ref();
    notes.is_some_and(|notes| notes.succeeded.is_some() || notes.failed.is_some())
}

/// The API leaves out lists without entries.
fn tidy(status: &mut JobStatus) {
    if let Some(notes) = &mut status.uncounted_terminated_pods {
        notes.succeeded = notes.succeeded.take().filter(|uids| !uids.is_empty());
        notes.failed = notes.failed.take().filter(|uids| !uids.is_empty());
    }
}
