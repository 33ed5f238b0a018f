//! The two kinds that keep a number of pods, as one.
//!
//! They differ in how the selector is written, and in that only ReplicaSets count pods on their way out.

use std::{sync::Arc, time::Duration};

use hawser_api::informer::Informer;
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
    core::v1::{
        Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
        ReplicationControllerStatus,
    },
};

use crate::{
    caches::Caches,
    meta::{MetaExt, pod_is_active, seconds},
    pods::{PodOwner, matches_pod},
    selector,
};

/// What both kinds ask for.
#[derive(Default)]
pub(super) struct Wanted<'a> {
    replicas: Option<i32>,
    min_ready_seconds: Option<i32>,
    template: Option<&'a PodTemplateSpec>,
}

pub(super) trait Set: PodOwner {
    /// As in `--controllers`.
    const CONTROLLER: &'static str;
    /// Whom events come from.
    const COMPONENT: &'static str;

    fn wanted(&self) -> Wanted<'_>;

    fn status(&self) -> Option<ReplicaSetStatus>;

    fn with_status(&self, status: ReplicaSetStatus) -> Self;

    /// Uids of the sets whose pods spread with those of this one.
    fn siblings(&self, _caches: &Caches) -> Vec<String> {
        Vec::new()
    }

    fn replicas(&self) -> i32 {
        self.wanted().replicas.unwrap_or(1)
    }

    /// How long a pod has to be ready before it counts as available.
    fn min_ready(&self) -> Duration {
        seconds(self.wanted().min_ready_seconds)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.wanted().template
    }
}

impl PodOwner for ReplicaSet {
    fn informer(caches: &Caches) -> &Informer<Self> {
        &caches.replica_sets
    }

    fn of_namespace(caches: &Caches, namespace: &str) -> Vec<Arc<Self>> {
        caches.replica_sets_by_namespace.get(namespace)
    }

    fn selects(&self, pod: &Pod) -> bool {
        self.spec.as_ref().is_some_and(|spec| matches_pod(&spec.selector, pod))
    }

    fn adopts(orphan: &Pod) -> bool {
        pod_is_active(orphan)
    }
}

impl Set for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset";
    const COMPONENT: &'static str = "replicaset-controller";

    fn wanted(&self) -> Wanted<'_> {
        self.spec.as_ref().map_or_else(Wanted::default, |spec| Wanted {
            replicas: spec.replicas,
            min_ready_seconds: spec.min_ready_seconds,
            template: spec.template.as_ref(),
        })
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        self.status.clone()
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }

    /// Those of the same deployment.
    fn siblings(&self, caches: &Caches) -> Vec<String> {
        let Some(owner) = self.controller() else { return Vec::new() };
        let sets = caches.replica_sets_by_controller.get(&owner.uid);
        sets.iter().map(|other| other.uid().to_owned()).filter(|uid| uid != self.uid()).collect()
    }
}

impl PodOwner for ReplicationController {
    fn informer(caches: &Caches) -> &Informer<Self> {
        &caches.replication_controllers
    }

    fn of_namespace(caches: &Caches, namespace: &str) -> Vec<Arc<Self>> {
        caches.replication_controllers_by_namespace.get(namespace)
    }

    /// An empty selector matches no pod here, as with sets.
    fn selects(&self, pod: &Pod) -> bool {
        let wanted = self.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        wanted.is_some_and(|wanted| !wanted.is_empty() && selector::contains(pod.labels(), wanted))
    }

    fn adopts(orphan: &Pod) -> bool {
        pod_is_active(orphan)
    }
}

impl Set for ReplicationController {
    const CONTROLLER: &'static str = "replicationcontroller";
    const COMPONENT: &'static str = "replication-controller";

    fn wanted(&self) -> Wanted<'_> {
        self.spec.as_ref().map_or_else(Wanted::default, |spec| Wanted {
            replicas: spec.replicas,
            min_ready_seconds: spec.min_ready_seconds,
            template: spec.template.as_ref(),
        })
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        let status = self.status.clone()?;
        let condition = |it: ReplicationControllerCondition| ReplicaSetCondition {
            type_: it.type_,
            status: it.status,
            reason: it.reason,
            message: it.message,
            last_transition_time: it.last_transition_time,
        };
        Some(ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            terminating_replicas: None,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
        })
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let condition = |it: ReplicaSetCondition| ReplicationControllerCondition {
            type_: it.type_,
            status: it.status,
            reason: it.reason,
            message: it.message,
            last_transition_time: it.last_transition_time,
        };
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
        };
        Self { status: Some(status), ..self.clone() }
    }
}
