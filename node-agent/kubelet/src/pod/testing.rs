//! Pods and container records for the tests of this crate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{ContainerExit, ContainerState, ContainerStatus, container_id};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::desired::DesiredPod;
use super::state::Clock;

pub(crate) const UID: &str = "6d9a3c2e-0000-4000-8000-000000000001";

/// Both clocks, `seconds` after an arbitrary start.
pub(crate) fn at(seconds: u64) -> Clock {
    let wall = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_700_000_000 + seconds as i64);
    Clock { wall, now: Duration::from_secs(seconds) }
}

pub(crate) fn container(name: &str) -> Container {
    Container { name: name.into(), image: Some(format!("registry.test/{name}:1")), ..Container::default() }
}

pub(crate) fn sidecar(name: &str) -> Container {
    Container { restart_policy: Some("Always".into()), ..container(name) }
}

pub(crate) fn with_resources(name: &str, requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
    let quantities = |pairs: &[(&str, &str)]| -> Option<BTreeMap<String, Quantity>> {
        let map: BTreeMap<_, _> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned()))).collect();
        (!map.is_empty()).then_some(map)
    };
    let resources = ResourceRequirements {
        requests: quantities(requests),
        limits: quantities(limits),
        ..ResourceRequirements::default()
    };
    Container { resources: Some(resources), ..container(name) }
}

pub(crate) fn spec(policy: &str, init: Vec<Container>, main: Vec<Container>) -> PodSpec {
    PodSpec {
        restart_policy: Some(policy.into()),
        init_containers: (!init.is_empty()).then_some(init),
        containers: main,
        termination_grace_period_seconds: Some(30),
        ..PodSpec::default()
    }
}

pub(crate) fn pod_object(spec: PodSpec) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("default".into()),
            uid: Some(UID.into()),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

pub(crate) fn pod(spec: PodSpec) -> DesiredPod {
    DesiredPod::new(Arc::new(pod_object(spec)))
}

/// The same pod, deleted at `clock` with `grace` seconds.
pub(crate) fn deleted(pod: &DesiredPod, clock: Clock, grace: i64) -> DesiredPod {
    let mut object = (*pod.object).clone();
    object.metadata.deletion_timestamp = Some(Time(clock.wall + SignedDuration::from_secs(grace)));
    object.metadata.deletion_grace_period_seconds = Some(grace);
    DesiredPod::new(Arc::new(object))
}

pub(crate) fn record(
    name: &str,
    attempt: u32,
    state: ContainerState,
    exit_code: Option<i32>,
) -> ContainerStatus {
    ContainerStatus {
        id: container_id(UID, name, attempt),
        pod_uid: UID.into(),
        pod_name: "web".into(),
        pod_namespace: "default".into(),
        name: name.into(),
        attempt,
        image: format!("registry.test/{name}:1"),
        image_ref: format!("registry.test/{name}@sha256:00"),
        state,
        pid: None,
        created_at: at(0).wall,
        started_at: (state != ContainerState::Created).then(|| at(0).wall),
        exit: exit_code.map(|exit_code| ContainerExit {
            exit_code,
            finished_at: at(0).wall,
            oom_killed: false,
            unobserved: false,
        }),
        log_path: "/dev/null".into(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}
