//! Evictions at the same time, and of pods that change meanwhile.

mod common;

use common::*;
use futures::future::{join, join_all};
use hawser_api::{Client, Error, GroupVersionResource, client::WriteOptions, resource::Target};
use serde_json::{Value, json};

const BUDGETS: GroupVersionResource = GroupVersionResource::fixed("policy", "v1", "poddisruptionbudgets");

/// Pods of a test, all of one budget.
const PODS_AT_ONCE: usize = 16;
/// How often a race is run.
const ROUNDS: usize = 10;

async fn evict(api: &Api, name: &str, preconditions: Value) -> Result<(), Error> {
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": name, "namespace": "shop" },
        "deleteOptions": { "preconditions": preconditions },
    });
    let target = Target::object(PODS, Some("shop"), name).with_subresource("eviction");
    api.0.create(&target, eviction.to_string().into(), &WriteOptions::default()).await.map(drop)
}

/// Says that the pod runs and is ready.
async fn run(api: &Api, name: &str) -> Result<Value, Error> {
    let status = json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] });
    api.merge_at(&PODS, Some("shop"), name, "status", json!({ "status": status })).await
}

async fn make(api: &Api, name: &str) -> Value {
    let mut pod = pod(name);
    pod["metadata"]["labels"] = json!({ "app": "web" });
    api.create(&PODS, Some("shop"), pod).await.expect("a pod")
}

/// A budget over all pods whose controller has counted, with so much room.
async fn budget(api: &Api, name: &str, room: usize) {
    let budget = json!({
        "metadata": { "name": name },
        "spec": { "maxUnavailable": room, "selector": { "matchLabels": { "app": "web" } } },
    });
    let mut made = api.create(&BUDGETS, Some("shop"), budget).await.expect("a budget");
    made["status"] = json!({
        "observedGeneration": made["metadata"]["generation"], "disruptionsAllowed": room,
        "currentHealthy": PODS_AT_ONCE, "desiredHealthy": PODS_AT_ONCE - room, "expectedPods": PODS_AT_ONCE,
    });
    api.update(&BUDGETS, &made, "status").await.expect("counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_evictions_at_once_as_many_pass_as_the_budget_has_room_for() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    for round in 0..ROUNDS {
        let names: Vec<String> = (0..PODS_AT_ONCE).map(|number| format!("pod-{round}-{number}")).collect();
        for name in &names {
            make(&admin, name).await;
            run(&admin, name).await.expect("it runs");
        }
        let budget_name = format!("budget-{round}");
        budget(&admin, &budget_name, 1).await;
        let evictions = names.iter().map(|name| {
            let (admin, name) = (admin.clone(), name.clone());
            tokio::spawn(async move { evict(&admin, &name, json!({})).await })
        });
        let outcomes = join_all(evictions).await;
        let mut evicted = Vec::new();
        for (name, outcome) in names.iter().zip(outcomes) {
            match outcome.expect("no panic") {
                Ok(()) => evicted.push(name.as_str()),
                Err(error) => assert_eq!(error.code(), 429, "{name}: {error}"),
            }
        }
        assert_eq!(evicted.len(), 1, "{evicted:?}");
        let (left, _) = admin.list(&PODS, Some("shop"), "app=web").await;
        assert_eq!(left.len(), PODS_AT_ONCE - 1);
        let status =
            admin.get(&BUDGETS, Some("shop"), &budget_name).await.expect("it is there")["status"].take();
        assert_eq!(status["disruptionsAllowed"].as_i64().unwrap_or_default(), 0);
        let noted: Vec<&str> = status["disruptedPods"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(noted, evicted);
        for pod in left {
            let name = pod["metadata"]["name"].as_str().expect("a name");
            admin.delete(&PODS, Some("shop"), name, Some(0)).await.expect("deleted");
        }
        admin.delete(&BUDGETS, Some("shop"), &budget_name, None).await.expect("deleted");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pod_that_begins_to_run_meanwhile_is_protected_or_gone() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    budget(&admin, "full", 0).await;
    for round in 0..ROUNDS {
        let name = format!("pod-{round}");
        make(&admin, &name).await;
        let runs = tokio::spawn({
            let (admin, name) = (admin.clone(), name.clone());
            async move { run(&admin, &name).await }
        });
        let evicted = tokio::spawn({
            let (admin, name) = (admin.clone(), name.clone());
            async move { evict(&admin, &name, json!({})).await }
        });
        let (runs, evicted) = join(runs, evicted).await;
        match (runs.expect("no panic"), evicted.expect("no panic")) {
            (Ok(_), Err(error)) => assert_eq!(error.code(), 429, "{error}"),
            (Err(error), Ok(())) => assert!(error.is_not_found(), "{error}"),
            (runs, evicted) => panic!("round {round}: {runs:?} and {evicted:?}"),
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn an_eviction_is_of_the_pod_that_its_preconditions_mean() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let seen = make(&admin, "web").await;
    let version = |pod: &Value| json!({ "resourceVersion": pod["metadata"]["resourceVersion"] });
    let uid = |pod: &Value| json!({ "uid": pod["metadata"]["uid"] });

    let changed = run(&admin, "web").await.expect("it runs");
    let error = evict(&admin, "web", version(&seen)).await.expect_err("it has changed");
    assert!(error.is_conflict(), "{error}");
    evict(&admin, "web", version(&changed)).await.expect("as it is now");

    let next = make(&admin, "web").await;
    let error = evict(&admin, "web", uid(&seen)).await.expect_err("another pod of that name");
    assert!(error.is_conflict(), "{error}");
    let found = admin.get(&PODS, Some("shop"), "web").await.expect("it stays");
    assert_eq!(found, next);
    evict(&admin, "web", uid(&next)).await.expect("the pod that is meant");
    assert!(admin.get(&PODS, Some("shop"), "web").await.is_err_and(|error| error.is_not_found()));
    running.stop().await;
}
