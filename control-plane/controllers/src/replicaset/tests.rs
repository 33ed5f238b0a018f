//! Scenarios: a replica set against an API whose answers are late, lost or refused.

use std::{sync::Arc, time::Duration};

use hawser_api::client::DeleteOptions;
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{Event, Pod, ReplicationController},
};
use serde_json::json;

use crate::{
    meta::{MetaExt, pod_is_active},
    testing::{FakeApi, Fault, Running, ensure, replica_set, run_nodes},
};

const ALONE: &[&str] = &["replicaset"];

fn active(api: &FakeApi) -> usize {
    api.all::<Pod>().iter().filter(|pod| pod_is_active(pod)).count()
}

fn status(api: &FakeApi) -> Option<(i32, i32)> {
    let status = api.read::<ReplicaSet>("default", "web")?.status?;
    Some((status.replicas, status.available_replicas.unwrap_or_default()))
}

fn at_most(api: &FakeApi, limit: usize) {
    api.check_writes(move |objects| {
        let pods = objects.keys().filter(|key| key.0 == "pods").count();
        ensure(pods <= limit, format!("{pods} pods of {limit}"))
    });
}

#[tokio::test(start_paused = true)]
async fn stale_cache_never_makes_too_many_pods() {
    let api = FakeApi::new();
    let _running = Running::start(&api, ALONE);
    at_most(&api, 20);
    api.put::<ReplicaSet>(replica_set("web", 20));
    api.hold("pods");
    api.until("all pods are made", |api| api.all::<Pod>().len() == 20).await;
    // The set is looked at again and again while its pods are not in the cache.
    for turn in 0..50 {
        let patch = json!({ "metadata": { "annotations": { "turn": turn.to_string() } } });
        api.patch::<ReplicaSet>("default", "web", patch);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    api.release("pods");
    api.until("the status shows them", |api| status(api) == Some((20, 0))).await;
}

#[tokio::test(start_paused = true)]
async fn failed_creations_are_made_up_for_and_none_is_doubled() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let mut requests = 0;
    api.fault(move |verb, target| {
        if verb != "create" || target.resource.resource != "pods" {
            return Fault::None;
        }
        requests += 1;
        if requests % 3 == 0 { Fault::Fails } else { Fault::None }
    });
    let _running = Running::start(&api, ALONE);
    at_most(&api, 10);
    api.put::<ReplicaSet>(replica_set("web", 10));
    api.until("all are available", |api| status(api) == Some((10, 10))).await;
}

#[tokio::test(start_paused = true)]
async fn refused_template_costs_few_requests_and_is_told() {
    let api = FakeApi::new();
    let requests = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = requests.clone();
    api.fault(move |verb, target| {
        if verb != "create" || target.resource.resource != "pods" {
            return Fault::None;
        }
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Fault::Fails
    });
    let _running = Running::start(&api, ALONE);
    api.put::<ReplicaSet>(replica_set("web", 500));
    api.until("the failure is in the status", |api| {
        let conditions = api.read::<ReplicaSet>("default", "web").and_then(|set| set.status?.conditions);
        conditions.is_some_and(|it| it[0].reason.as_deref() == Some("FailedCreate"))
    })
    .await;
    api.until("an event tells it", |api| {
        api.all::<Event>().iter().any(|event| {
            event.reason.as_deref() == Some("FailedCreate") && event.type_.as_deref() == Some("Warning")
        })
    })
    .await;
    assert!(requests.load(std::sync::atomic::Ordering::Relaxed) < 10);
    api.fault(|_, _| Fault::None);
    api.until("the failure is gone again", |api| {
        active(api) == 500
            && api
                .read::<ReplicaSet>("default", "web")
                .is_some_and(|set| set.status.is_some_and(|status| status.conditions.is_none()))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn scaling_down_deletes_exactly_the_surplus_though_the_cache_lags() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, ALONE);
    api.put::<ReplicaSet>(replica_set("web", 8));
    api.until("all are available", |api| status(api) == Some((8, 8))).await;
    api.check_writes(|objects| {
        let pods = objects.iter().filter(|(key, _)| key.0 == "pods").map(|(_, pod)| pod);
        let left = pods.filter(|pod| pod["metadata"].get("deletionTimestamp").is_none()).count();
        ensure(left >= 3, format!("{left} pods left"))
    });
    api.hold("pods");
    api.patch::<ReplicaSet>("default", "web", json!({ "spec": { "replicas": 3 } }));
    for turn in 0..20 {
        let patch = json!({ "metadata": { "annotations": { "turn": turn.to_string() } } });
        api.patch::<ReplicaSet>("default", "web", patch);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    api.release("pods");
    api.until("three are left", |api| status(api) == Some((3, 3)) && api.all::<Pod>().len() == 3).await;
}

#[tokio::test(start_paused = true)]
async fn orphans_are_adopted_and_relabelled_pods_released() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, ALONE);
    let mut orphan = replica_set("web", 0)["spec"]["template"].clone();
    orphan["metadata"]["name"] = json!("orphan");
    orphan["metadata"]["namespace"] = json!("default");
    api.put::<Pod>(orphan);
    api.put::<ReplicaSet>(replica_set("web", 2));
    api.until("two are available", |api| status(api) == Some((2, 2))).await;
    let adopted: Pod = api.read("default", "orphan").unwrap();
    assert_eq!(adopted.controller().map(|owner| owner.name.as_str()), Some("web"));

    api.patch::<Pod>("default", "orphan", json!({ "metadata": { "labels": { "app": "debug" } } }));
    api.until("it is released and replaced", |api| {
        status(api) == Some((2, 2)) && api.all::<Pod>().len() == 3
    })
    .await;
    let released: Pod = api.read("default", "orphan").unwrap();
    assert!(released.controller().is_none());
}

#[tokio::test(start_paused = true)]
async fn pods_become_available_after_min_ready_seconds() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, ALONE);
    let mut set = replica_set("web", 1);
    set["spec"]["minReadySeconds"] = json!(30);
    api.put::<ReplicaSet>(set);
    api.until("the pod is ready", |api| {
        let set = api.read::<ReplicaSet>("default", "web");
        set.and_then(|set| set.status?.ready_replicas) == Some(1)
    })
    .await;
    assert_eq!(status(&api), Some((1, 0)));
    api.until("and later available", |api| status(api) == Some((1, 1))).await;
}

#[tokio::test(start_paused = true)]
async fn lost_pod_is_replaced() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, ALONE);
    api.put::<ReplicaSet>(replica_set("web", 3));
    api.until("all are available", |api| status(api) == Some((3, 3))).await;
    let lost = api.all::<Pod>()[0].name().to_owned();
    api.remove::<Pod>("default", &lost, &DeleteOptions::default());
    api.until("another takes its place", |api| {
        status(api) == Some((3, 3)) && api.read::<Pod>("default", &lost).is_none()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn replication_controllers_do_the_same() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, &["replicationcontroller"]);
    let mut wanted = json!({ "metadata": { "name": "web", "namespace": "default" } });
    wanted["spec"] = replica_set("web", 3)["spec"].clone();
    wanted["spec"]["selector"] = json!({ "app": "web" });
    let mut orphan = wanted["spec"]["template"].clone();
    orphan["metadata"]["name"] = json!("orphan");
    orphan["metadata"]["namespace"] = json!("default");
    api.put::<Pod>(orphan);
    api.put::<ReplicationController>(wanted);
    let counts = |api: &FakeApi| {
        let status = api.read::<ReplicationController>("default", "web")?.status?;
        Some((status.replicas, status.available_replicas.unwrap_or_default()))
    };
    api.until("all are available", |api| counts(api) == Some((3, 3))).await;
    let adopted: Pod = api.read("default", "orphan").unwrap();
    assert_eq!(adopted.controller().map(|owner| owner.kind.as_str()), Some("ReplicationController"));
    api.patch::<ReplicationController>("default", "web", json!({ "spec": { "replicas": 1 } }));
    api.until("one is left", |api| counts(api) == Some((1, 1)) && api.all::<Pod>().len() == 1).await;
    let before = api.revision();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(api.revision(), before, "what is settled is not written again");
}
