//! The two kinds that keep a number of pods, as one.
//!
//! They differ in how the selector is written, and in that only ReplicaSets count pods on their way out.

use std::sync::Arc;

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
    meta::{MetaExt, pod_is_active},
    pods::{PodOwner, matches_pod},
    selector,
};

pub(super) trait Set: PodOwner {
    /// As in `--controllers`.
    const CONTROLLER: &'static str;
    /// Whom events come from.
    const COMPONENT: &'static str;

    fn replicas(&self) -> i32;

    fn min_ready_seconds(&self) -> Option<i32>;

    fn template(&self) -> PodTemplateSpec;

    fn status(&self) -> Option<ReplicaSetStatus>;

    fn with_status(&self, status: ReplicaSetStatus) -> Self;

    /// Uids of the sets whose pods spread with those of this one.
    fn siblings(&self, _caches: &Caches) -> Vec<String> {
        Vec::new()
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

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> Option<i32> {
        self.spec.as_ref()?.min_ready_seconds
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default()
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
        caches.replication_controllers.filter(|controller| controller.namespace() == namespace)
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

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> Option<i32> {
        self.spec.as_ref()?.min_ready_seconds
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default()
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
