//! RuntimeClasses: what they give to pods, and the pods that are refused without them.

use k8s_openapi::api::{core::v1::Pod, node::v1::RuntimeClass};
use kube::{Api, ResourceExt, discovery::Scope};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    kubelet::{IMAGE, add_node, bound, node_of, tolerates, unschedulable},
    operations::Operations,
    steps::{as_json, create, delete, gone, try_create},
    support::{refused, test, unique},
};

texts! {
    "Can schedule a pod requesting existing RuntimeClass." => should_schedule_a_pod_requesting_a_runtimeclass_without_podoverhead,
    "Pod with the deleted RuntimeClass is rejected." => should_reject_a_pod_requesting_a_deleted_runtimeclass,
    "Pod with the non-existing RuntimeClass is rejected." => should_reject_a_pod_requesting_a_non_existent_runtimeclass,
    "RuntimeClass API" => should_support_runtimeclasses_api_operations,
    "RuntimeClass Overhead field must be respected." => should_schedule_a_pod_requesting_a_runtimeclass_and_initialize_its_overhead,
}

/// A class of its own for each test, which ends with it: classes belong to no namespace.
async fn class(classes: &Api<RuntimeClass>, fields: Value) -> String {
    let name = unique("class");
    let mut class = json!({ "metadata": { "name": name }, "handler": "test-handler" });
    for (field, value) in fields.as_object().expect("fields") {
        class[field] = value.clone();
    }
    create(classes, class).await;
    name
}

fn pod(class: &str) -> Value {
    json!({
        "metadata": { "name": unique("pod") },
        "spec": { "runtimeClassName": class, "containers": [{ "name": "app", "image": IMAGE }] },
    })
}

/// Pod with the non-existing RuntimeClass is rejected.
#[test]
fn should_reject_a_pod_requesting_a_non_existent_runtimeclass() {
    test(async |bed| {
        refused(try_create(&bed.api::<Pod>(), pod(&unique("nonexistent"))).await, 403, "Forbidden");
    });
}

/// Pod with the deleted RuntimeClass is rejected.
#[test]
fn should_reject_a_pod_requesting_a_deleted_runtimeclass() {
    test(async |bed| {
        let (classes, pods) = (bed.all::<RuntimeClass>(), bed.api::<Pod>());
        let class = class(&classes, json!({})).await;
        create(&pods, pod(&class)).await;
        delete(&classes, &class).await;
        gone(&classes, &class).await;
        refused(try_create(&pods, pod(&class)).await, 403, "Forbidden");
    });
}

/// Can schedule a pod requesting existing RuntimeClass.
#[test]
fn should_schedule_a_pod_requesting_a_runtimeclass_without_podoverhead() {
    test(async |bed| {
        let (classes, pods) = (bed.all::<RuntimeClass>(), bed.api::<Pod>());
        let node = add_node(bed, json!({})).await;
        // The class says where its pods may run.
        let scheduling = json!({
            "nodeSelector": { "kubernetes.io/hostname": node }, "tolerations": [tolerates(&node)],
        });
        let class = class(&classes, json!({ "scheduling": scheduling })).await;
        let made = create(&pods, pod(&class)).await;
        let found = bound(&pods, &made.name_any()).await;
        assert_eq!(node_of(&found), node);
        let spec = found.spec.expect("a specification");
        assert_eq!((spec.runtime_class_name, spec.overhead), (Some(class.clone()), None));
        delete(&classes, &class).await;
    });
}

/// RuntimeClass Overhead field must be respected.
#[test]
fn should_schedule_a_pod_requesting_a_runtimeclass_and_initialize_its_overhead() {
    test(async |bed| {
        let (classes, pods) = (bed.all::<RuntimeClass>(), bed.api::<Pod>());
        let node = add_node(bed, json!({ "cpu": "1" })).await;
        let overhead = json!({ "cpu": "400m", "memory": "1Mi" });
        let class = class(
            &classes,
            json!({ "overhead": { "podFixed": overhead }, "scheduling": { "tolerations": [tolerates(&node)] } }),
        )
        .await;
        let asking = |cpu: &str| {
            let mut pod = pod(&class);
            pod["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": cpu } });
            pod
        };
        let made = create(&pods, asking("300m")).await;
        let given = made.spec.as_ref().and_then(|spec| spec.overhead.clone());
        assert_eq!(as_json(&given), overhead);
        assert_eq!(node_of(&bound(&pods, &made.name_any()).await), node);

        // It counts: with the overhead there is no room for the same again.
        let second = create(&pods, asking("300m")).await;
        let reason = unschedulable(&pods, &second.name_any()).await;
        assert!(reason.contains("Insufficient cpu"), "{reason}");
        delete(&classes, &class).await;
    });
}

/// RuntimeClass API
#[test]
fn should_support_runtimeclasses_api_operations() {
    test(async |bed| {
        let class = Operations {
            group: "node.k8s.io",
            version: "v1",
            kind: "RuntimeClass",
            plural: "runtimeclasses",
            scope: Scope::Cluster,
            subresources: &[],
            object: json!({ "handler": "test-handler" }),
        };
        class.check(bed).await;
    });
}
