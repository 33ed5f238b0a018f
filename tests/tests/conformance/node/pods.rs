//! Pods as objects: created, changed, watched, ended.
//!
//! Pods that have to end slowly are on a node without a kubelet: nothing ends them but the test.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    kubelet::{IMAGE, add_node, image, run},
    operations::assert_contains,
    steps::{
        as_json, counted, create, delete, delete_all, gone, labels, list, patch_status, try_create,
        try_update, update, update_status, watch_labels,
    },
    support::{Bed, refused, test, unique},
};

texts! {
    "Pods, ActiveDeadlineSeconds" => should_allow_activedeadlineseconds_to_be_updated,
    "Pods, completes the lifecycle of a Pod and the PodStatus" => should_run_through_the_lifecycle_of_pods_and_podstatus,
    "Pods, delete a collection" => should_delete_a_collection_of_pods,
    "Pods, lifecycle" => should_be_submitted_and_removed,
    "Pods, patching status" => should_patch_a_pod_status,
    "Pods, QOS" => should_be_set_on_pods_with_matching_resource_requests_and_limits_for_memory_and_cpu,
    "Pods, update" => should_be_updated,
    "Sysctls, reject invalid sysctls" => should_reject_invalid_sysctls,
}

/// A pod with the label `app=<name>`.
fn pod(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "containers": [{ "name": "app", "image": IMAGE }] },
    })
}

async fn running(bed: &Bed, name: &str) -> Pod {
    let (mut pod, pods) = (pod(name), bed.api::<Pod>());
    pod["spec"]["nodeName"] = json!(add_node(bed, json!({})).await);
    create(&pods, pod).await;
    run(&pods, name, "192.0.2.1").await
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> &'a str {
    let mut conditions =
        pod.status.as_ref().and_then(|status| status.conditions.as_deref()).into_iter().flatten();
    conditions.find(|condition| condition.type_ == kind).map_or("", |condition| &condition.status)
}

/// Pods, lifecycle
#[test]
fn should_be_submitted_and_removed() {
    test(async |bed| {
        let (name, pods) = (unique("submitted"), bed.api::<Pod>());
        let selector = format!("app={name}");
        assert_eq!(list(&pods, &selector).await.len(), 0);
        let mut events = watch_labels(&pods, &selector).await;
        let made = running(bed, &name).await;
        events.until("ADDED", |seen| seen.uid() == made.uid()).await;
        events.until("MODIFIED", |seen| condition(seen, "Ready") == "True").await;
        assert_eq!(list(&pods, &selector).await.len(), 1);

        let ending = pods.delete(&name, &DeleteParams::default().grace_period(30)).await.expect("deleted");
        let ending = ending.left().expect("the pod has time to end");
        let seen = events.until("MODIFIED", |seen| seen.metadata.deletion_timestamp.is_some()).await;
        assert_eq!(seen.metadata.deletion_timestamp, ending.metadata.deletion_timestamp);
        assert_eq!(seen.metadata.deletion_grace_period_seconds, Some(30));
        // The kubelet's last word.
        delete(&pods, &name).await;
        let last = events.until("DELETED", |seen| seen.name_any() == name).await;
        assert!(last.metadata.deletion_timestamp.is_some());
        assert_eq!(list(&pods, &selector).await.len(), 0);
    });
}

/// Pods, update
#[test]
fn should_be_updated() {
    test(async |bed| {
        let (name, pods) = (unique("updated"), bed.api::<Pod>());
        create(&pods, pod(&name)).await;
        assert_eq!(list(&pods, &format!("app={name}")).await.len(), 1);
        let time = unique("time");
        update(&pods, &name, |pod| drop(pod.labels_mut().insert("time".into(), time.clone()))).await;
        assert_eq!(list(&pods, &format!("time={time}")).await.len(), 1);
    });
}

/// Pods, ActiveDeadlineSeconds
#[test]
fn should_allow_activedeadlineseconds_to_be_updated() {
    test(async |bed| {
        let (name, pods) = (unique("deadline"), bed.api::<Pod>());
        create(&pods, pod(&name)).await;
        assert_eq!(list(&pods, &format!("app={name}")).await.len(), 1);
        let set = async |seconds: Option<i64>| {
            let changed = try_update(&pods, &name, |pod| {
                pod.spec.get_or_insert_default().active_deadline_seconds = seconds;
            });
            changed.await.map(|pod| pod.spec.and_then(|spec| spec.active_deadline_seconds))
        };
        // It can be shortened, and neither prolonged nor taken back. That the pod ends then is the kubelet's part.
        assert_eq!(set(Some(30)).await.expect("set"), Some(30));
        assert_eq!(set(Some(5)).await.expect("shortened"), Some(5));
        refused(set(Some(6)).await, 422, "Invalid");
        refused(set(None).await, 422, "Invalid");
    });
}

/// Pods, delete a collection
#[test]
fn should_delete_a_collection_of_pods() {
    test(async |bed| {
        let (label, pods) = (unique("together"), bed.api::<Pod>());
        for number in 1..=3 {
            let mut pod = pod(&format!("{label}-{number}"));
            pod["metadata"]["labels"] = json!({ "type": label });
            create(&pods, pod).await;
        }
        create(&pods, pod(&unique("apart"))).await;
        assert_eq!(list(&pods, &format!("type={label}")).await.len(), 3);
        delete_all(&pods, &format!("type={label}")).await;
        counted(&pods, &format!("type={label}"), 0).await;
        assert_eq!(list(&pods, "").await.len(), 1, "the other pod stays");
    });
}

/// Pods, patching status
#[test]
fn should_patch_a_pod_status() {
    test(async |bed| {
        let (name, pods) = (unique("patched"), bed.api::<Pod>());
        running(bed, &name).await;
        let status = json!({ "message": "Patched by a test", "reason": "E2E" });
        let patched = patch_status(&pods, &name, json!({ "status": status })).await;
        for found in [patched, pods.get_status(&name).await.expect("the status is read")] {
            let found = found.status.expect("a status");
            assert_eq!(found.message.as_deref(), Some("Patched by a test"));
            assert_eq!((found.reason.as_deref(), found.phase.as_deref()), (Some("E2E"), Some("Running")));
        }
    });
}

/// Pods, completes the lifecycle of a Pod and the PodStatus
#[test]
fn should_run_through_the_lifecycle_of_pods_and_podstatus() {
    test(async |bed| {
        let (name, pods) = (unique("lifecycle"), bed.api::<Pod>());
        let selector = format!("app={name}");
        let mut events = watch_labels(&pods, &selector).await;
        running(bed, &name).await;
        events.until("ADDED", |seen| seen.name_any() == name).await;
        events.until("MODIFIED", |seen| condition(seen, "Ready") == "True").await;

        // Containers are found by their name.
        let change = Patch::Strategic(json!({
            "metadata": { "labels": { "patched": "yes" } },
            "spec": {
                "terminationGracePeriodSeconds": 30,
                "containers": [{ "name": "app", "image": "registry.test/app:2" }],
            },
        }));
        let patched = pods.patch(&name, &PatchParams::default(), &change).await.expect("patched");
        assert_eq!((&*patched.labels()["patched"], image(&patched)), ("yes", "registry.test/app:2"));
        events.until("MODIFIED", |seen| image(seen) == "registry.test/app:2").await;

        let not_ready = json!([
            { "type": "Ready", "status": "False" },
            { "type": "ContainersReady", "status": "False" },
        ]);
        let updated = update_status(&pods, &name, |status| status["conditions"] = not_ready.clone()).await;
        assert_contains(&as_json(&updated)["status"]["conditions"], &not_ready);
        events.until("MODIFIED", |seen| condition(seen, "Ready") == "False").await;
        let read = pods.get_status(&name).await.expect("the status is read");
        assert_eq!((condition(&read, "Ready"), condition(&read, "ContainersReady")), ("False", "False"));

        let ending = DeleteParams::default().grace_period(1);
        pods.delete_collection(&ending, &labels(&selector)).await.expect("deleted together");
        events.until("MODIFIED", |seen| seen.metadata.deletion_timestamp.is_some()).await;
        delete(&pods, &name).await;
        events.until("DELETED", |seen| seen.name_any() == name).await;
        gone(&pods, &name).await;
    });
}

/// Pods, QOS
#[test]
fn should_be_set_on_pods_with_matching_resource_requests_and_limits_for_memory_and_cpu() {
    test(async |bed| {
        let pods = bed.api::<Pod>();
        let all = json!({ "cpu": "100m", "memory": "100Mi" });
        for (class, resources) in [
            ("Guaranteed", json!({ "limits": all, "requests": all })),
            ("Burstable", json!({ "requests": { "cpu": "100m" } })),
            ("BestEffort", json!({})),
        ] {
            let mut pod = pod(&unique("class"));
            pod["spec"]["containers"][0]["resources"] = resources;
            let made = create(&pods, pod).await;
            let read = pods.get(&made.name_any()).await.expect("the pod is read");
            assert_eq!(read.status.and_then(|status| status.qos_class).as_deref(), Some(class));
        }
    });
}

/// Sysctls, reject invalid sysctls
#[test]
fn should_reject_invalid_sysctls() {
    test(async |bed| {
        let mut pod = pod(&unique("sysctls"));
        let names = ["foo-", "kernel.shmmax", "safe-and-unsafe", "bar.."];
        let sysctls = names.map(|name| json!({ "name": name, "value": "bar" }));
        pod["spec"]["securityContext"] = json!({ "sysctls": sysctls });
        let status = refused(try_create(&bed.api::<Pod>(), pod).await, 422, "Invalid");
        let is_named = |name: &str| status.message.contains(&format!("Invalid value: \"{name}\""));
        assert_eq!(names.map(is_named), [true, false, false, true], "{}", status.message);
    });
}
