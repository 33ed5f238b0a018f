//! Workloads, followed by their controllers, with pods that are only reported to run.

pub(crate) mod batch;
pub(crate) mod daemon_sets;
pub(crate) mod deployments;
pub(crate) mod disruption;
pub(crate) mod replica_sets;
pub(crate) mod replication_controllers;
pub(crate) mod rollouts;
pub(crate) mod stateful_sets;

use k8s_openapi::api::autoscaling::v1::Scale;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    kubelet::IMAGE,
    operations::assert_contains,
    steps::{Object, as_json, patch_status, update_status, watch_labels},
};

/// A template of pods with this label `app`.
fn template(app: &str, image: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": { "containers": [{ "name": "app", "image": image }] },
    })
}

/// A workload of this many pods that all have the label `app=<app>`, as it itself has.
fn workload(app: &str, replicas: i32) -> Value {
    json!({
        "metadata": { "name": app, "labels": { "app": app } },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": app } },
            "template": template(app, IMAGE),
        },
    })
}

/// The scale of an object with one replica is read, updated to two and patched to four; the object follows.
async fn scale_is_read_and_written<K: Object>(api: &Api<K>, name: &str) {
    let replicas =
        async || as_json(&api.get(name).await.expect("the object is read"))["spec"]["replicas"].clone();
    let wanted = |scale: &Scale| scale.spec.as_ref().and_then(|spec| spec.replicas);
    let mut scale = api.get_scale(name).await.expect("the scale is read");
    assert_eq!(scale.metadata.uid, api.get(name).await.expect("the object is read").uid());
    assert_eq!(wanted(&scale), Some(1));

    scale.metadata.resource_version = None;
    scale.spec.get_or_insert_default().replicas = Some(2);
    let scale = api.replace_scale(name, &PostParams::default(), &scale).await.expect("the scale is updated");
    assert_eq!(wanted(&scale), Some(2));
    assert_eq!(replicas().await, 2);

    let four = Patch::Merge(json!({ "spec": { "replicas": 4 } }));
    let scale = api.patch_scale(name, &PatchParams::default(), &four).await.expect("the scale is patched");
    assert_eq!(wanted(&scale), Some(4));
    assert_eq!(replicas().await, 4);
}

/// The status of an object with the label `app=<name>` is read, updated and patched by others than its controller,
/// which leaves their conditions alone.
async fn status_is_read_and_written<K: Object>(api: &Api<K>, name: &str) {
    let mut events = watch_labels(api, &format!("app={name}")).await;
    let read = api.get_status(name).await.expect("the status is read");
    assert_eq!(read.uid(), api.get(name).await.expect("the object is read").uid());

    let updated = update_status(api, name, |status| {
        let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.push(condition("StatusUpdate"));
        status["conditions"] = json!(conditions);
    })
    .await;
    assert!(has(&updated, &condition("StatusUpdate")), "{updated:?}");
    events.until("MODIFIED", |seen| has(seen, &condition("StatusUpdate"))).await;
    let read = api.get_status(name).await.expect("the status is read");
    assert!(has(&read, &condition("StatusUpdate")), "{read:?}");

    let change = json!({ "status": { "conditions": [condition("StatusPatched")] } });
    let patched = patch_status(api, name, change.clone()).await;
    assert_contains(&as_json(&patched), &change);
    events.until("MODIFIED", |seen| has(seen, &condition("StatusPatched"))).await;
    let read = api.get_status(name).await.expect("the status is read");
    assert!(has(&read, &condition("StatusPatched")), "{read:?}");
}

fn condition(kind: &str) -> Value {
    json!({ "type": kind, "status": "True", "reason": "E2E", "message": "Set from a test" })
}

fn has<K: Object>(object: &K, condition: &Value) -> bool {
    let value = as_json(object);
    let mut conditions = value["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|found| {
        ["type", "status", "reason", "message"].iter().all(|field| found[*field] == condition[*field])
    })
}
