//! What a StatefulSet's status says. Pure.

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetStatus},
    core::v1::Pod,
};

use super::{
    identity::{revision_of, spec},
    plan::{Replicas, is_running_and_ready},
};
use crate::meta::{MetaExt, count, nonzero};

pub(super) fn calculate(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    replicas: &Replicas<'_>,
    current_revision: &str,
    collisions: Option<i32>,
) -> StatefulSetStatus {
    let of =
        |revision: &str| count(pods.iter().filter(|pod| !pod.is_deleting() && revision_of(pod) == revision));
    let update_revision = replicas.update_revision;
    let ready = count(pods.iter().filter(|pod| is_running_and_ready(pod)));
    let (updated, wanted) = (of(update_revision), spec(set).replicas.unwrap_or(1));
    let is_rolling = spec(set)
        .update_strategy
        .as_ref()
        .is_none_or(|strategy| strategy.type_.as_deref() != Some("OnDelete"));
    let is_complete = is_rolling && updated == wanted && ready == wanted && count(pods.iter()) == wanted;
    let current_revision = if is_complete { update_revision } else { current_revision };
    StatefulSetStatus {
        replicas: count(pods.iter()),
        ready_replicas: nonzero(ready),
        available_replicas: Some(count(pods.iter().filter(|pod| replicas.is_available(pod)))),
        current_replicas: nonzero(of(current_revision)),
        updated_replicas: nonzero(updated),
        current_revision: Some(current_revision.to_owned()),
        update_revision: Some(update_revision.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: Some(collisions.unwrap_or_default()),
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    }
}
