//! How many pods of a Job should run, and which are made or deleted for that. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{
    backoff::{self, Record},
    indexes::Indexes,
    pod::{
        all_failures, completions, finished_at, index, is_indexed, is_suspended, make, spec,
        waits_for_the_end,
    },
    view::View,
};
use crate::{
    meta::{MetaExt, pod_is_terminal},
    pods::BURST,
    replicaset::rank::pods_to_delete,
};

#[derive(Default)]
pub(super) struct Changes {
    pub(super) create: Vec<Pod>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// When failed pods may be made up for.
    pub(super) wait: Option<Duration>,
}

/// Either deletes or creates; what else is needed follows.
pub(super) fn manage(view: &View<'_>, record: Record, now: Timestamp) -> Changes {
    let (job, active) = (view.job, count(view.active.len()));
    if is_suspended(job) {
        let delete = view.active.iter().take(BURST).cloned().collect();
        return Changes { delete, ..Changes::default() };
    }
    let parallelism = spec(job).parallelism.unwrap_or(1).max(0);
    let wanted = match spec(job).completions {
        Some(completions) => (completions - view.succeeded).clamp(0, parallelism),
        // Once one has succeeded the others end by themselves.
        None if view.succeeded > 0 => active,
        None => parallelism,
    };
    let delete = surplus(view, usize::try_from(active - wanted).unwrap_or_default(), now);
    if !delete.is_empty() {
        return Changes { delete, ..Changes::default() };
    }
    let leaving = if waits_for_the_end(job) { view.terminating } else { 0 };
    let missing = usize::try_from(wanted - leaving - active).unwrap_or_default().min(BURST);
    if missing == 0 {
        return Changes::default();
    }
    let remaining = record.remaining(now);
    if !remaining.is_zero() && spec(job).backoff_limit_per_index.is_none() {
        return Changes { wait: Some(remaining), ..Changes::default() };
    }
    if is_indexed(job) { create_indexes(view, missing, now) } else { create(view, missing) }
}

fn create(view: &View<'_>, missing: usize) -> Changes {
    Changes { create: vec![make(view.job, None, None); missing], ..Changes::default() }
}

fn create_indexes(view: &View<'_>, missing: usize, now: Timestamp) -> Changes {
    let mut changes = Changes::default();
    for index in pending_indexes(view, missing) {
        let replaced = view.waiting.get(&index);
        let wait = replaced
            .map(|pod| backoff::remaining(all_failures(pod).saturating_add(1), finished_at(pod), now));
        match wait.filter(|wait| !wait.is_zero()) {
            Some(wait) => changes.wait = Some(changes.wait.map_or(wait, |sooner| sooner.min(wait))),
            None => changes.create.push(make(view.job, Some(index), replaced.map(|pod| &**pod))),
        }
    }
    changes
}

fn pending_indexes(view: &View<'_>, most: usize) -> Vec<i32> {
    let job = view.job;
    let leaves = |pod: &&Arc<Pod>| waits_for_the_end(job) && pod.is_deleting() && !pod_is_terminal(pod);
    let taken = view.active.iter().chain(view.pods.iter().filter(leaves)).filter_map(|pod| index(job, pod));
    let mut taken: Indexes = view.succeeded_indexes.with(taken);
    if let Some(failed) = &view.failed_indexes {
        taken = taken.union(failed);
    }
    taken.first_missing(most, completions(job))
}

/// Pods of indexes that do not exist or have another pod, and `least` in all, the least valuable first.
fn surplus(view: &View<'_>, least: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let none = HashMap::new();
    let (mut doomed, mut left) = (Vec::new(), view.active.clone());
    if is_indexed(view.job) {
        let mut by_index: BTreeMap<Option<i32>, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in &view.active {
            by_index.entry(index(view.job, pod)).or_default().push(pod.clone());
        }
        for (index, pods) in by_index {
            let surplus = if index.is_some() { pods.len() - 1 } else { pods.len() };
            doomed.extend(pods_to_delete(&pods, &none, surplus, now));
        }
        left.retain(|pod| doomed.iter().all(|other| other.uid() != pod.uid()));
    }
    doomed.extend(pods_to_delete(&left, &none, least.saturating_sub(doomed.len()), now));
    doomed.truncate(BURST);
    doomed
}

fn count(pods: usize) -> i32 {
    i32::try_from(pods).unwrap_or(i32::MAX)
}
