//! Which pods a ReplicaSet deletes first. Pure.
//!
//! The order is upstream's `ActivePodsWithRanks`: not assigned, not running, not ready, cheap by the
//! annotation of KEP-2255, many on one node, ready for a shorter time, restarted more often, younger. Ages
//! are compared by their logarithm (KEP-2185), so that of pods about equally old any may go, by uid.

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::meta::{MetaExt, elapsed, pod_is_ready, pod_node, pod_phase, pod_ready_since};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `surplus` pods to delete, worst first. `per_node` counts the active pods that spread with these.
pub(crate) fn pods_to_delete(
    pods: &[Arc<Pod>],
    per_node: &HashMap<String, usize>,
    surplus: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut ranked: Vec<Arc<Pod>> = pods.to_vec();
    if surplus < ranked.len() {
        ranked.sort_by(|a, b| compare(a, b, per_node, now));
    }
    ranked.truncate(surplus);
    ranked
}

/// `Less`: `a` goes before `b`.
fn compare(a: &Pod, b: &Pod, per_node: &HashMap<String, usize>, now: Timestamp) -> Ordering {
    let crowd = |pod: &Pod| pod_node(pod).and_then(|node| per_node.get(node)).copied().unwrap_or_default();
    pod_node(a)
        .is_some()
        .cmp(&pod_node(b).is_some())
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| pod_is_ready(a).cmp(&pod_is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| crowd(b).cmp(&crowd(a)))
        .then_with(|| younger(pod_ready_since(a), pod_ready_since(b), now))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| younger(Some(a.created()), Some(b.created()), now))
        .then_with(|| a.uid().cmp(b.uid()))
}

fn phase_rank(pod: &Pod) -> u8 {
    match pod_phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    pod.annotations().get(DELETION_COST).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The most restarts of a container, and of a sidecar among the init containers, which counts less.
fn restarts(pod: &Pod) -> (i32, i32) {
    let is_sidecar = |name: &str| {
        let mut containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        containers.any(|it| it.name == name && it.restart_policy.as_deref() == Some("Always"))
    };
    let Some(status) = &pod.status else { return (0, 0) };
    let containers = status.container_statuses.iter().flatten();
    let sidecars = status.init_container_statuses.iter().flatten().filter(|it| is_sidecar(&it.name));
    let most = |counts: &mut dyn Iterator<Item = i32>| counts.max().unwrap_or_default();
    (most(&mut containers.map(|it| it.restart_count)), most(&mut sidecars.map(|it| it.restart_count)))
}

/// A moment that is unknown counts as the youngest.
fn younger(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let bucket = |at: Timestamp| elapsed(at, now).as_nanos().checked_ilog2().unwrap_or_default();
    a.map(bucket).cmp(&b.map(bucket))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::{
        api::core::v1::{Container, ContainerStatus, PodCondition, PodSpec, PodStatus},
        apimachinery::pkg::apis::meta::v1::Time,
    };

    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T00:00:00Z".parse().unwrap()
    }

    /// A running, ready pod on node `n1`, an hour old.
    fn pod(name: &str, change: impl FnOnce(&mut Pod)) -> Arc<Pod> {
        let hour_ago = now() - Duration::from_secs(3600);
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(format!("z-{name}"));
        pod.metadata.creation_timestamp = Some(Time(hour_ago));
        pod.spec = Some(PodSpec { node_name: Some("n1".into()), ..PodSpec::default() });
        pod.status = Some(PodStatus {
            phase: Some("Running".into()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                last_transition_time: Some(Time(hour_ago)),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        });
        change(&mut pod);
        Arc::new(pod)
    }

    /// The changed pod must go before a plain one, in whatever order they come.
    #[track_caller]
    fn goes_first(name: &str, change: fn(&mut Pod)) {
        let per_node = HashMap::from([("n1".to_owned(), 1), ("crowded".to_owned(), 3)]);
        let (plain, worse) = (pod("plain", |_| {}), pod("worse", change));
        for pods in [[plain.clone(), worse.clone()], [worse.clone(), plain.clone()]] {
            let doomed = pods_to_delete(&pods, &per_node, 1, now());
            assert_eq!(doomed[0].name(), "worse", "{name}");
        }
    }

    fn status(pod: &mut Pod) -> &mut PodStatus {
        pod.status.as_mut().unwrap()
    }

    #[test]
    fn least_valuable_pods_go_first() {
        goes_first("unassigned", |pod| pod.spec.as_mut().unwrap().node_name = None);
        goes_first("pending", |pod| status(pod).phase = Some("Pending".into()));
        goes_first("not ready", |pod| status(pod).conditions.as_mut().unwrap()[0].status = "False".into());
        goes_first("cheap", |pod| {
            pod.metadata.annotations = Some([(DELETION_COST.to_owned(), "-5".to_owned())].into());
        });
        goes_first("doubled up", |pod| pod.spec.as_mut().unwrap().node_name = Some("crowded".into()));
        goes_first("ready for less time", |pod| {
            status(pod).conditions.as_mut().unwrap()[0].last_transition_time =
                Some(Time(now() - Duration::from_secs(60)));
        });
        goes_first("restarted", |pod| {
            status(pod).container_statuses =
                Some(vec![ContainerStatus { restart_count: 2, ..ContainerStatus::default() }]);
        });
        goes_first("a sidecar restarted", |pod| {
            pod.spec.as_mut().unwrap().init_containers = Some(vec![Container {
                name: "proxy".into(),
                restart_policy: Some("Always".into()),
                ..Container::default()
            }]);
            status(pod).init_container_statuses = Some(vec![ContainerStatus {
                name: "proxy".into(),
                restart_count: 2,
                ..ContainerStatus::default()
            }]);
        });
        goes_first("younger", |pod| {
            pod.metadata.creation_timestamp = Some(Time(now() - Duration::from_secs(60)));
        });
        goes_first("first by uid", |pod| pod.metadata.uid = Some("a".into()));
    }
}
