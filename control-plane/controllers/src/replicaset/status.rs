//! What a ReplicaSet's status says. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSetCondition, ReplicaSetStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::kind::Set;
use crate::{
    meta::{MetaExt, count, nonzero, pod_available_in, pod_is_ready},
    pods::Failure,
    selector,
};

const REPLICA_FAILURE: &str = "ReplicaFailure";

/// What one look at the set's pods showed.
pub(super) struct Observed<'a> {
    pub(super) active: &'a [Arc<Pod>],
    pub(super) terminating: usize,
    pub(super) failure: Option<&'a Failure>,
}

pub(super) fn calculate(set: &impl Set, observed: &Observed<'_>, now: Timestamp) -> ReplicaSetStatus {
    let min_ready = set.min_ready();
    let template = set.template().and_then(|template| template.metadata.as_ref());
    let wanted_labels = template.and_then(|meta| meta.labels.as_ref());
    let is_labelled =
        |pod: &&Arc<Pod>| wanted_labels.is_none_or(|wanted| selector::contains(pod.labels(), wanted));
    let active = observed.active;
    let available =
        |pod: &&Arc<Pod>| pod_available_in(pod, min_ready, now).is_some_and(|wait| wait.is_zero());
    ReplicaSetStatus {
        replicas: count(active.iter()),
        fully_labeled_replicas: nonzero(count(active.iter().filter(is_labelled))),
        ready_replicas: nonzero(count(active.iter().filter(|pod| pod_is_ready(pod)))),
        available_replicas: nonzero(count(active.iter().filter(available))),
        terminating_replicas: Some(i32::try_from(observed.terminating).unwrap_or(i32::MAX)),
        observed_generation: set.meta().generation,
        conditions: conditions(set, observed.failure, now),
    }
}

fn conditions(set: &impl Set, failure: Option<&Failure>, now: Timestamp) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = set.status().and_then(|status| status.conditions).unwrap_or_default();
    let known = conditions.iter().any(|condition| condition.type_ == REPLICA_FAILURE);
    match failure {
        Some(failure) if !known => conditions.push(ReplicaSetCondition {
            type_: REPLICA_FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some(failure.reason.to_owned()),
            message: Some(failure.error.message().to_owned()),
            last_transition_time: Some(Time(now)),
        }),
        Some(_) => {}
        None => conditions.retain(|condition| condition.type_ != REPLICA_FAILURE),
    }
    Some(conditions).filter(|conditions| !conditions.is_empty())
}
