//! Scenarios: budgets over pods of controllers, evictions that are noted, and what cannot be counted.

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Event, Pod},
    policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
};
use serde_json::{Value, json};

use crate::{
    meta::{MetaExt, now, pod_condition},
    testing::{FakeApi, Running, deployment, replica_set, run_nodes},
};

fn budget(rule: &str, value: Value) -> Value {
    json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { rule: value, "selector": { "matchLabels": { "app": "web" } } },
    })
}

fn pod(name: &str, ready: bool) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "default", "labels": { "app": "web" } },
        "spec": { "containers": [], "nodeName": "n1" },
        "status": { "phase": "Running", "conditions": [
            { "type": "Ready", "status": if ready { "True" } else { "False" } },
        ] },
    })
}

fn status(api: &FakeApi) -> PodDisruptionBudgetStatus {
    let budget = api.read::<PodDisruptionBudget>("default", "web");
    budget.and_then(|budget| budget.status).unwrap_or_default()
}

/// Expected pods, healthy ones, those that must stay so, and those that may go.
fn counts(api: &FakeApi) -> [i32; 4] {
    let status = status(api);
    [status.expected_pods, status.current_healthy, status.desired_healthy, status.disruptions_allowed]
        .map(|count| count.unwrap_or(-1))
}

fn condition(api: &FakeApi) -> (String, String) {
    let condition = status(api).conditions.unwrap_or_default().into_iter().next();
    condition.map(|condition| (condition.status, condition.reason)).unwrap_or_default()
}

fn told(api: &FakeApi, reason: &str) -> bool {
    api.all::<Event>().iter().any(|event| event.reason.as_deref() == Some(reason))
}

fn text(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

async fn with_budget(rule: &str, value: Value) -> (Arc<FakeApi>, Running) {
    let api = FakeApi::new();
    let running = Running::start(&api, &["disruption", "replicaset", "deployment"]);
    api.put::<PodDisruptionBudget>(budget(rule, value));
    (api, running)
}

#[tokio::test(start_paused = true)]
async fn share_is_counted_from_the_deployment_and_follows_its_size() {
    let (api, _running) = with_budget("maxUnavailable", json!("20%")).await;
    api.until("nothing to protect is told", |api| told(api, "NoPods")).await;
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    api.put::<Deployment>(deployment("web", 5, "a"));
    api.until("one of five may go", |api| counts(api) == [5, 5, 4, 1]).await;
    assert_eq!(condition(&api), text("True", "SufficientPods"));
    // Two sets of one deployment, and still its own number of pods is expected.
    api.patch::<Deployment>(
        "default",
        "web",
        json!({ "spec": { "template": { "spec": { "containers": [
        { "name": "c", "image": "broken" },
    ] } } } }),
    );
    api.until("a stuck rollout uses the budget up", |api| counts(api) == [5, 4, 4, 0]).await;
    assert_eq!(condition(&api), text("False", "InsufficientPods"));
    api.patch::<Deployment>("default", "web", json!({ "spec": { "replicas": 10, "paused": true } }));
    api.until("a larger deployment is expected to be larger", |api| counts(api)[0] == 10).await;
}

#[tokio::test(start_paused = true)]
async fn evicted_pod_counts_no_more_until_it_is_overdue() {
    let (api, _running) = with_budget("minAvailable", json!(2)).await;
    for name in ["a", "b", "c"] {
        api.put::<Pod>(pod(name, true));
    }
    api.until("one may go", |api| counts(api) == [3, 3, 2, 1]).await;
    // As the API server notes an eviction.
    let noted = json!({ "disruptionsAllowed": 0, "disruptedPods": { "a": now().to_string() } });
    api.patch_status::<PodDisruptionBudget>("default", "web", json!({ "status": noted }));
    api.until("it counts as gone", |api| counts(api) == [3, 2, 2, 0]).await;
    assert!(status(&api).disrupted_pods.unwrap().contains_key("a"));
    api.until("two minutes later it counts again", |api| counts(api) == [3, 3, 2, 1]).await;
    assert_eq!(status(&api).disrupted_pods, None);
    api.until("which is told", |api| told(api, "NotDeleted")).await;
}

#[tokio::test(start_paused = true)]
async fn pods_without_controller_are_expected_by_nobody() {
    let (api, _running) = with_budget("maxUnavailable", json!(1)).await;
    api.put::<Pod>(pod("a", true));
    api.until("none is expected and none may go", |api| counts(api) == [0, 1, 0, 0]).await;
    api.until("the user hears why", |api| told(api, "UnmanagedPods")).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_counted_may_not_go() {
    let (api, _running) = with_budget("maxUnavailable", json!(1)).await;
    api.put::<ReplicaSet>(replica_set("other", 0));
    let mut orphan = pod("a", true);
    orphan["metadata"]["ownerReferences"] = json!([
        { "apiVersion": "batch/v1", "kind": "Job", "name": "job", "uid": "u", "controller": true },
    ]);
    api.put::<Pod>(orphan);
    api.until("it says that it failed", |api| condition(api) == text("False", "SyncFailed")).await;
    assert_eq!(status(&api).disruptions_allowed, Some(0));
    let message = status(&api).conditions.unwrap()[0].message.clone();
    assert_eq!(message, "jobs.batch does not implement the scale subresource");
    // The generation counts as seen: evictions are refused for this reason, not as "not counted yet".
    assert_eq!(status(&api).observed_generation, Some(1));
}

#[tokio::test(start_paused = true)]
async fn announced_disruption_that_never_came_is_taken_back() {
    let api = FakeApi::new();
    let _running = Running::start(&api, &["disruption"]);
    let mut doomed = pod("a", true);
    let announced = json!({ "type": "DisruptionTarget", "status": "True", "reason": "Preempted",
                            "lastTransitionTime": now().to_string() });
    doomed["status"]["conditions"].as_array_mut().unwrap().push(announced);
    api.put::<Pod>(doomed);
    let start = now();
    api.until("the condition is false", |api| {
        let pod: Pod = api.read("default", "a").unwrap();
        pod_condition(&pod, "DisruptionTarget").is_some_and(|condition| condition.status == "False")
    })
    .await;
    assert!(now().duration_since(start).as_secs() >= 120);
    let pod: Pod = api.read("default", "a").unwrap();
    assert_eq!(pod.name(), "a");
    assert!(pod_condition(&pod, "Ready").is_some_and(|condition| condition.status == "True"));
}
