//! Scenarios: a Deployment whose pods share a load that grows and shrinks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hawser_api::{GroupVersionResource, client::DeleteOptions};
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Event, Pod},
};
use serde_json::{Value, json};

use crate::{
    meta::{MetaExt, now, pod_is_ready},
    testing::{FakeApi, Fault, Running, deployment, run_nodes},
};

const ALL: &[&str] = &["deployment", "replicaset", "horizontalpodautoscaling"];
const POD_METRICS: GroupVersionResource = GroupVersionResource::fixed("metrics.k8s.io", "v1beta1", "pods");

/// Shows what each pod uses: its share of the load, in thousandths of a CPU.
async fn measure(api: Arc<FakeApi>, load: Arc<AtomicUsize>) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let pods: Vec<Pod> = api.all::<Pod>().into_iter().filter(pod_is_ready).collect();
        for pod in &pods {
            let share = load.load(Ordering::Relaxed) / pods.len();
            let usage = json!({ "cpu": format!("{share}m"), "memory": "1Mi" });
            let at = now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            api.show(
                &POD_METRICS,
                json!({
                    "metadata": { "name": pod.name(), "namespace": "default" }, "timestamp": at, "window": "1s",
                    "containers": [{ "name": "c", "usage": usage }],
                }),
            );
        }
    }
}

fn autoscaler(spec: Value) -> Value {
    let mut object = json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
            "minReplicas": 2, "maxReplicas": 10,
            "metrics": [{ "type": "Resource", "resource": {
                "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 50 },
            } }],
        },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    object
}

/// A deployment whose pods request 200m.
fn web(replicas: i32) -> Value {
    let mut web = deployment("web", replicas, "a");
    web["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "200m" } });
    web
}

fn replicas(api: &FakeApi) -> Option<i32> {
    api.read::<Deployment>("default", "web")?.spec?.replicas
}

/// Status, reason and message of a condition.
fn condition(api: &FakeApi, kind: &str) -> Option<(String, String, String)> {
    let status = api.read::<HorizontalPodAutoscaler>("default", "web")?.status?;
    let found = status.conditions?.into_iter().find(|condition| condition.type_ == kind)?;
    Some((found.status, found.reason?, found.message?))
}

fn says(api: &FakeApi, kind: &str, status: &str, reason: &str) -> bool {
    condition(api, kind).is_some_and(|(known, why, _)| known == status && why == reason)
}

#[tokio::test(start_paused = true)]
async fn replicas_follow_the_load_up_at_once_and_down_later() {
    let api = FakeApi::new();
    let load = Arc::new(AtomicUsize::new(200));
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _meter = tokio::spawn(measure(api.clone(), load.clone()));
    let _running = Running::start(&api, ALL);
    api.put::<Deployment>(web(2));
    api.put::<HorizontalPodAutoscaler>(autoscaler(json!({})));
    api.until("the usage is known", |api| says(api, "ScalingActive", "True", "ValidMetricFound")).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(replicas(&api), Some(2), "200m of 400m is what is wanted");

    load.store(600, Ordering::Relaxed);
    api.until("it grows to what the load asks for", |api| replicas(api) == Some(6)).await;
    api.until("the status says so", |api| {
        let status = api.read::<HorizontalPodAutoscaler>("default", "web").and_then(|it| it.status);
        status.is_some_and(|status| {
            status.desired_replicas == 6
                && status.last_scale_time.is_some()
                && json!(status.current_metrics)[0]["resource"]["current"]["averageUtilization"].is_i64()
        })
    })
    .await;
    api.until("an event tells why", |api| {
        let message = "New size: 6; reason: cpu resource utilization (percentage of request) above target";
        api.all::<Event>().iter().any(|event| event.message.as_deref() == Some(message))
    })
    .await;

    load.store(100, Ordering::Relaxed);
    api.until("it says what it waits for", |api| says(api, "AbleToScale", "True", "ScaleDownStabilized"))
        .await;
    assert_eq!(replicas(&api), Some(6), "it was needed a while ago");
    api.until("it shrinks to the least", |api| replicas(api) == Some(2)).await;
    api.until("and says that it would shrink more", |api| {
        says(api, "ScalingLimited", "True", "TooFewReplicas")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_known_changes_nothing_and_is_told() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, ALL);
    api.put::<HorizontalPodAutoscaler>(autoscaler(json!({})));
    api.until("there is no target", |api| says(api, "AbleToScale", "False", "FailedGetScale")).await;
    api.put::<Deployment>(web(3));
    api.until("nobody measures", |api| says(api, "ScalingActive", "False", "FailedGetResourceMetric")).await;
    let message = condition(&api, "ScalingActive").map(|condition| condition.2);
    let expected = "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics \
                    for resource cpu: no metrics returned from resource metrics API";
    assert_eq!(message.as_deref(), Some(expected));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(replicas(&api), Some(3));
    let revision = api.revision();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let written = api.revision() - revision;
    assert!(written < 20, "{written} writes in a minute");

    api.patch::<Deployment>("default", "web", json!({ "spec": { "replicas": 0 } }));
    api.until("nothing is scaled from nothing", |api| says(api, "ScalingActive", "False", "ScalingDisabled"))
        .await;
    api.patch::<Deployment>("default", "web", json!({ "spec": { "replicas": 12 } }));
    api.until("more than the most is taken back, measured or not", |api| replicas(api) == Some(10)).await;
}

#[tokio::test(start_paused = true)]
async fn a_scale_that_is_not_taken_is_tried_again() {
    let api = FakeApi::new();
    let load = Arc::new(AtomicUsize::new(2000));
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _meter = tokio::spawn(measure(api.clone(), load));
    api.fault(|verb, target| match (verb, target.subresource.as_deref()) {
        ("update", Some("scale")) => Fault::Fails,
        _ => Fault::None,
    });
    let _running = Running::start(&api, ALL);
    api.put::<Deployment>(web(2));
    api.put::<HorizontalPodAutoscaler>(autoscaler(json!({ "maxReplicas": 4 })));
    api.until("it is told", |api| says(api, "AbleToScale", "False", "FailedUpdateScale")).await;
    assert_eq!(replicas(&api), Some(2));
    api.fault(|_, _| Fault::None);
    api.until("and done later", |api| replicas(api) == Some(4)).await;
}

#[tokio::test(start_paused = true)]
async fn pods_are_scaled_for_one_autoscaler_alone() {
    let api = FakeApi::new();
    let load = Arc::new(AtomicUsize::new(2000));
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _meter = tokio::spawn(measure(api.clone(), load));
    let mut other = autoscaler(json!({ "maxReplicas": 3 }));
    other["metadata"]["name"] = json!("other");
    api.put::<HorizontalPodAutoscaler>(autoscaler(json!({ "maxReplicas": 2 })));
    api.put::<HorizontalPodAutoscaler>(other);
    let _running = Running::start(&api, ALL);
    api.put::<Deployment>(web(2));
    api.until("it is told", |api| says(api, "ScalingActive", "False", "AmbiguousSelector")).await;
    let message = condition(&api, "ScalingActive").map(|condition| condition.2);
    let expected =
        "pods by selector app=web are controlled by multiple HPAs: [{other default} {web default}]";
    assert_eq!(message.as_deref(), Some(expected));
    api.remove::<HorizontalPodAutoscaler>("default", "other", &DeleteOptions::default());
    api.until("one is left", |api| says(api, "ScalingActive", "True", "ValidMetricFound")).await;
}
