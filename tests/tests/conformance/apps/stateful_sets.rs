//! StatefulSets: their scale, status and lists.

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{scale_is_read_and_written, status_is_read_and_written, workload};
use crate::{
    coverage::texts,
    steps::{counted, create, delete_all, list, patch, watch_labels},
    support::{test, unique},
};

texts! {
    "StatefulSet resource Replica scaling" => should_have_a_working_scale_subresource,
    "StatefulSet, list, patch and delete a collection of StatefulSets"
        => should_list_patch_and_delete_a_collection_of_statefulsets,
    "StatefulSet, status sub-resource" => should_validate_statefulset_status_endpoints,
}

fn stateful_set(name: &str) -> Value {
    let mut set = workload(name, 1);
    set["spec"]["serviceName"] = json!("test");
    set
}

/// StatefulSet resource Replica scaling
#[test]
fn should_have_a_working_scale_subresource() {
    test(async |bed| {
        let (name, sets) = (unique("scaled"), bed.api::<StatefulSet>());
        create(&sets, stateful_set(&name)).await;
        scale_is_read_and_written(&sets, &name).await;
    });
}

/// StatefulSet, list, patch and delete a collection of StatefulSets
#[test]
fn should_list_patch_and_delete_a_collection_of_statefulsets() {
    test(async |bed| {
        let (name, sets) = (unique("listed"), bed.api::<StatefulSet>());
        let selector = format!("app={name}");
        create(&sets, stateful_set(&name)).await;
        assert_eq!(list(&bed.all::<StatefulSet>(), &selector).await.len(), 1);

        let mut events = watch_labels(&sets, &selector).await;
        let containers = json!([{ "name": "app", "image": "registry.test/app:2" }]);
        let change = json!({
            "metadata": { "labels": { "patched": "yes" } },
            "spec": { "replicas": 2, "template": { "spec": { "containers": containers } } },
        });
        patch(&sets, &name, change).await;
        let seen = events.until("MODIFIED", |seen| seen.labels().contains_key("patched")).await;
        let spec = seen.spec.expect("a specification");
        let pod = spec.template.spec.expect("a template");
        assert_eq!(
            (spec.replicas, pod.containers[0].image.as_deref()),
            (Some(2), Some("registry.test/app:2"))
        );

        delete_all(&sets, "patched=yes").await;
        counted(&bed.all::<StatefulSet>(), &selector, 0).await;
    });
}

/// StatefulSet, status sub-resource
#[test]
fn should_validate_statefulset_status_endpoints() {
    test(async |bed| {
        let (name, sets) = (unique("status"), bed.api::<StatefulSet>());
        create(&sets, stateful_set(&name)).await;
        status_is_read_and_written(&sets, &name).await;
    });
}
