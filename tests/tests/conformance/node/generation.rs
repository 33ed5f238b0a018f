//! A pod's generation counts what is wanted of it. The kubelet's part, to say which it has seen, is played.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    kubelet::{IMAGE, add_node, run},
    steps::{create, delete, patch_status, update},
    support::{object, test, unique},
};

texts! {
    "Pods Generation, graceful delete" => custom_set_generation_on_new_pods_and_graceful_delete,
    "Pods Generation, updates" => pod_generation_should_start_at_1_and_increment_per_update,
    "Pods Generation, 500 updates"
        => issue_500_podspec_updates_and_verify_generation_and_observedgeneration_eventually_converge,
}

fn pod(name: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "containers": [{ "name": "app", "image": IMAGE }],
            "initContainers": [{ "name": "init", "image": IMAGE }],
        },
    })
}

/// Says, as the kubelet does, that it has seen what is wanted now.
async fn observe(pods: &Api<Pod>, name: &str) -> Pod {
    let pod = pods.get(name).await.expect("the pod is read");
    patch_status(pods, name, json!({ "status": { "observedGeneration": pod.metadata.generation } })).await
}

/// The generation, and the one that was observed.
fn generations(pod: &Pod) -> (i64, i64) {
    let observed = pod.status.as_ref().and_then(|status| status.observed_generation);
    (pod.metadata.generation.unwrap_or_default(), observed.unwrap_or_default())
}

fn add_toleration(pod: &mut Pod, key: &str) {
    let toleration = json!({ "key": key, "operator": "Equal", "value": "bar", "effect": "NoSchedule" });
    pod.spec.get_or_insert_default().tolerations.get_or_insert_default().push(object(toleration));
}

/// Pods Generation, updates
#[test]
fn pod_generation_should_start_at_1_and_increment_per_update() {
    type Change = fn(&mut Pod);
    let changes: [(&str, Change, bool); 7] = [
        ("nothing", |_| (), false),
        ("tolerations", |pod| add_toleration(pod, "foo"), true),
        ("deadline", |pod| pod.spec.get_or_insert_default().active_deadline_seconds = Some(5000), true),
        (
            "image",
            |pod| pod.spec.get_or_insert_default().containers[0].image = Some("registry.test/app:2".into()),
            true,
        ),
        (
            "image of an init container",
            |pod| {
                let spec = pod.spec.get_or_insert_default();
                spec.init_containers.get_or_insert_default()[0].image = Some("registry.test/app:2".into());
            },
            true,
        ),
        ("annotations", |pod| drop(pod.annotations_mut().insert("key".into(), "value".into())), false),
        ("the generation itself", |pod| pod.metadata.generation = Some(1), false),
    ];
    test(async |bed| {
        let (name, pods) = (unique("generation"), bed.api::<Pod>());
        let made = create(&pods, pod(&name)).await;
        assert_eq!(generations(&made), (1, 0));
        run(&pods, &name, "192.0.2.1").await;
        assert_eq!(generations(&observe(&pods, &name).await), (1, 1));

        let mut expected = 1;
        for (what, change, counts) in changes {
            update(&pods, &name, change).await;
            expected += i64::from(counts);
            let read = pods.get(&name).await.expect("the pod is read");
            assert_eq!(read.metadata.generation, Some(expected), "{what}");
            assert_eq!(generations(&observe(&pods, &name).await), (expected, expected), "{what}");
        }
    });
}

/// Pods Generation, graceful delete
#[test]
fn custom_set_generation_on_new_pods_and_graceful_delete() {
    test(async |bed| {
        let (name, pods) = (unique("generation"), bed.api::<Pod>());
        let mut wanted = pod(&name);
        wanted["metadata"]["generation"] = json!(100);
        // On a node it has time to end.
        wanted["spec"]["nodeName"] = json!(add_node(bed, json!({})).await);
        let made = create(&pods, wanted).await;
        assert_eq!(made.metadata.generation, Some(1));
        run(&pods, &name, "192.0.2.1").await;

        pods.delete(&name, &DeleteParams::default().grace_period(60)).await.expect("deleted");
        let ending = pods.get(&name).await.expect("the pod is still there");
        assert!(ending.metadata.deletion_timestamp.is_some());
        assert_eq!(ending.metadata.generation, Some(2));
        assert_eq!(generations(&observe(&pods, &name).await), (2, 2));
        delete(&pods, &name).await;
    });
}

/// Pods Generation, 500 updates
#[test]
fn issue_500_podspec_updates_and_verify_generation_and_observedgeneration_eventually_converge() {
    test(async |bed| {
        let (name, pods) = (unique("generation"), bed.api::<Pod>());
        let mut wanted = pod(&name);
        // Bound, so that no change makes the scheduler look at it again.
        wanted["spec"]["nodeName"] = json!(add_node(bed, json!({})).await);
        create(&pods, wanted).await;
        let mut pod = run(&pods, &name, "192.0.2.1").await;
        for number in 0..499 {
            add_toleration(&mut pod, &format!("key-{number}"));
            // Whatever version it has by now: others write to its status.
            pod.metadata.resource_version = None;
            pod = pods.replace(&name, &PostParams::default(), &pod).await.expect("the pod is updated");
            // Statuses come in between, as a kubelet's do.
            if number % 50 == 0 {
                pod = observe(&pods, &name).await;
            }
        }
        assert_eq!(pods.get(&name).await.expect("the pod is read").metadata.generation, Some(500));
        assert_eq!(generations(&observe(&pods, &name).await), (500, 500));
    });
}
