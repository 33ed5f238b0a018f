//! Namespaces: labels, finalizers, status, and what goes with them.

use anyhow::ensure;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    support::{Bed, create, eventually, gone, patch, pod, test},
};

texts! {
    "Namespace patching" => should_patch_a_namespace,
    "Namespace, apply update to a namespace" => should_apply_an_update_to_a_namespace,
    "Namespace, apply finalizer to a namespace" => should_apply_a_finalizer_to_a_namespace,
    "Namespace, apply changes to a namespace status" => should_apply_changes_to_a_namespace_status,
    "namespace-deletion-removes-pods" => should_ensure_that_all_pods_are_removed_when_a_namespace_is_deleted,
    "namespace-deletion-removes-services" =>
        should_ensure_that_all_services_are_removed_when_a_namespace_is_deleted,
    "Ordered Namespace Deletion" => namespace_deletion_should_delete_pod_first,
}

/// Namespace patching
#[test]
fn should_patch_a_namespace() {
    test(async |bed| {
        let namespaces = bed.all::<Namespace>();
        patch(&namespaces, &bed.namespace, json!({ "metadata": { "labels": { "conformance": "patched" } } }))
            .await;
        let found = namespaces.get(&bed.namespace).await.expect("found");
        assert_eq!(found.labels()["conformance"], "patched");
    });
}

/// Namespace, apply update to a namespace
#[test]
fn should_apply_an_update_to_a_namespace() {
    test(async |bed| {
        let namespaces = bed.all::<Namespace>();
        let mut namespace = namespaces.get(&bed.namespace).await.expect("found");
        namespace.labels_mut().insert("conformance".into(), "updated".into());
        let post = PostParams::default();
        namespaces.replace(&bed.namespace, &post, &namespace).await.expect("updated");
        let found = namespaces.get(&bed.namespace).await.expect("found");
        assert_eq!(found.labels()["conformance"], "updated");
    });
}

/// Namespace, apply finalizer to a namespace
#[test]
fn should_apply_a_finalizer_to_a_namespace() {
    const FINALIZER: &str = "conformance.example.com/held";

    test(async |bed| {
        let namespaces = bed.all::<Namespace>();
        let mut namespace = namespaces.get(&bed.namespace).await.expect("found");
        let before = finalizers(&namespace);
        assert!(!before.contains(&FINALIZER.to_owned()), "{before:?}");

        namespace.spec.get_or_insert_default().finalizers.get_or_insert_default().push(FINALIZER.into());
        let held = finalize(&namespaces, &namespace).await;
        assert!(finalizers(&held).contains(&FINALIZER.to_owned()), "{held:?}");
        let found = namespaces.get(&bed.namespace).await.expect("found");
        assert_eq!(finalizers(&found), finalizers(&held));

        namespace = found;
        namespace.spec.get_or_insert_default().finalizers = Some(before.clone());
        finalize(&namespaces, &namespace).await;
        let found = namespaces.get(&bed.namespace).await.expect("found");
        assert_eq!(finalizers(&found), before);
    });
}

fn finalizers(namespace: &Namespace) -> Vec<String> {
    namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default()
}

async fn finalize(namespaces: &Api<Namespace>, namespace: &Namespace) -> Namespace {
    let (name, post) = (namespace.name_any(), PostParams::default());
    namespaces.replace_subresource("finalize", &name, &post, namespace).await.expect("finalizers are written")
}

/// Namespace, apply changes to a namespace status
#[test]
fn should_apply_changes_to_a_namespace_status() {
    test(async |bed| {
        let namespaces = bed.all::<Namespace>();
        let mut namespace = namespaces.get_status(&bed.namespace).await.expect("the status is read");
        assert_eq!(phase(&namespace), "Active");

        let condition = condition("StatusPatch", "patched by a test");
        let status = Patch::Merge(json!({ "status": { "conditions": [condition] } }));
        let params = PatchParams::default();
        let patched = namespaces.patch_status(&bed.namespace, &params, &status).await.expect("patched");
        assert_eq!(conditions(&patched), [json!(condition)]);
        assert_eq!(phase(&patched), "Active");

        let updated = self::condition("StatusUpdate", "updated by a test");
        namespace.metadata.resource_version = patched.resource_version();
        namespace.status.get_or_insert_default().conditions =
            Some(vec![serde_json::from_value(updated.clone()).expect("a condition")]);
        let post = PostParams::default();
        namespaces.replace_status(&bed.namespace, &post, &namespace).await.expect("updated");
        let found = namespaces.get(&bed.namespace).await.expect("found");
        assert_eq!(conditions(&found), [updated]);
    });
}

fn condition(kind: &str, message: &str) -> Value {
    json!({ "type": kind, "status": "True", "reason": "Conformance", "message": message })
}

fn phase(namespace: &Namespace) -> &str {
    namespace.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn conditions(namespace: &Namespace) -> Vec<Value> {
    let conditions = namespace.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().map(|condition| json!(condition)).collect()
}

/// namespace-deletion-removes-pods
#[test]
fn should_ensure_that_all_pods_are_removed_when_a_namespace_is_deleted() {
    test(async |bed| removes::<Pod>(bed, pod("left", json!({}))).await);
}

/// namespace-deletion-removes-services
#[test]
fn should_ensure_that_all_services_are_removed_when_a_namespace_is_deleted() {
    let service = json!({
        "metadata": { "name": "left" },
        "spec": { "selector": { "app": "left" }, "ports": [{ "port": 80, "targetPort": 80 }] },
    });
    test(async |bed| removes::<Service>(bed, service).await);
}

/// Makes an object in a namespace, deletes the namespace, and finds nothing in the next one of that name.
async fn removes<K>(bed: &Bed, object: Value)
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    K: Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let (name, namespaces) = (bed.another_namespace().await, bed.all::<Namespace>());
    let objects: Api<K> = Api::namespaced(bed.client.clone(), &name);
    create(&objects, object).await;
    namespaces.delete(&name, &DeleteParams::default()).await.expect("the namespace is deleted");
    gone(&namespaces, &name).await;

    create(&namespaces, json!({ "metadata": { "name": name } })).await;
    assert_eq!(objects.get_opt("left").await.expect("an answer").map(|left| left.name_any()), None);
}

/// Ordered Namespace Deletion
#[test]
fn namespace_deletion_should_delete_pod_first() {
    test(async |bed| {
        let (name, namespaces) = (bed.another_namespace().await, bed.all::<Namespace>());
        let pods: Api<Pod> = Api::namespaced(bed.client.clone(), &name);
        let maps: Api<ConfigMap> = Api::namespaced(bed.client.clone(), &name);
        let mut held = pod("held", json!({}));
        held["metadata"]["finalizers"] = json!(["conformance.example.com/held"]);
        create(&pods, held).await;
        create(&maps, json!({ "metadata": { "name": "later" } })).await;

        namespaces.delete(&name, &DeleteParams::default()).await.expect("the namespace is deleted");
        // What the controller says when it has looked at all, and waits.
        eventually("the namespace waits for the pod's finalizer", async || {
            let found = namespaces.get(&name).await?;
            let waits = conditions(&found).into_iter().any(|condition| {
                condition["type"] == "NamespaceFinalizersRemaining" && condition["status"] == "True"
            });
            ensure!(waits, "{found:?}");
            Ok(())
        })
        .await;
        let asked = pods.get("held").await.expect("the pod is held");
        assert!(asked.metadata.deletion_timestamp.is_some(), "{asked:?}");
        let later = maps.get("later").await.expect("the other objects wait for the pod");
        assert_eq!(later.metadata.deletion_timestamp, None);

        patch(&pods, "held", json!({ "metadata": { "finalizers": null } })).await;
        gone(&namespaces, &name).await;
    });
}
