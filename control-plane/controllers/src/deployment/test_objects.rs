//! Objects for the table tests of the pure parts.

use std::sync::Arc;

use k8s_openapi::{
    api::apps::v1::{
        Deployment, DeploymentSpec, DeploymentStrategy, ReplicaSet, ReplicaSetSpec, ReplicaSetStatus,
        RollingUpdateDeployment,
    },
    apimachinery::pkg::{apis::meta::v1::Time, util::intstr::IntOrString},
};

/// A deployment `web` that rolls.
pub(super) fn deployment(replicas: i32, surge: i32, unavailable: i32) -> Deployment {
    let mut deployment = Deployment::default();
    deployment.metadata.name = Some("web".into());
    deployment.metadata.generation = Some(1);
    deployment.spec = Some(DeploymentSpec {
        replicas: Some(replicas),
        progress_deadline_seconds: Some(600),
        strategy: Some(DeploymentStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(IntOrString::Int(surge)),
                max_unavailable: Some(IntOrString::Int(unavailable)),
            }),
        }),
        ..DeploymentSpec::default()
    });
    deployment
}

/// A set of that name with as many pods as asked; `age` in seconds is the name, where that is a number.
pub(super) fn set(name: &str, replicas: i32, available: i32) -> Arc<ReplicaSet> {
    let mut set = ReplicaSet::default();
    set.metadata.name = Some(name.into());
    set.metadata.uid = Some(name.into());
    let created = jiff::Timestamp::from_second(name.parse().unwrap_or_default()).unwrap();
    set.metadata.creation_timestamp = Some(Time(created));
    set.spec = Some(ReplicaSetSpec { replicas: Some(replicas), ..ReplicaSetSpec::default() });
    set.status = Some(ReplicaSetStatus {
        replicas,
        ready_replicas: Some(available),
        available_replicas: Some(available),
        ..ReplicaSetStatus::default()
    });
    Arc::new(set)
}
