//! What a right reaches: the namespace that it was given in, the verb that it names, and nothing beside.

mod common;

use std::sync::Arc;

use common::*;
use hawser_api::{
    Client, Error, GroupVersionResource,
    client::{ListOptions, WriteOptions},
    resource::Target,
};
use hawser_apiserver::{
    auth::{SYSTEM_MASTERS, User},
    ops::StreamKind,
};
use serde_json::{Value, json};

const ROLES: GroupVersionResource = GroupVersionResource::fixed("rbac.authorization.k8s.io", "v1", "roles");
const BINDINGS: GroupVersionResource =
    GroupVersionResource::fixed("rbac.authorization.k8s.io", "v1", "rolebindings");
const CLUSTER_BINDINGS: GroupVersionResource =
    GroupVersionResource::fixed("rbac.authorization.k8s.io", "v1", "clusterrolebindings");
const LEASES: GroupVersionResource = GroupVersionResource::fixed("coordination.k8s.io", "v1", "leases");
const JOBS: GroupVersionResource = GroupVersionResource::fixed("batch", "v1", "jobs");

/// A user with these rules in the namespace `shop`.
async fn user(running: &Running, name: &str, rules: Value) -> Api {
    let admin = running.admin();
    let role = json!({ "metadata": { "name": name }, "rules": rules });
    admin.create(&ROLES, Some("shop"), role).await.expect("a role");
    let group = "rbac.authorization.k8s.io";
    let binding = json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": group, "kind": "Role", "name": name },
        "subjects": [{ "apiGroup": group, "kind": "User", "name": name }],
    });
    admin.create(&BINDINGS, Some("shop"), binding).await.expect("a binding");
    // Who decides has seen it.
    admin.list(&BINDINGS, None, "").await;
    running.client(name, &["system:authenticated"])
}

fn code<T>(outcome: Result<T, Error>) -> Option<u16> {
    outcome.err().map(|error| error.code())
}

#[tokio::test]
async fn rights_in_a_namespace_reach_nothing_outside() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    running.namespace("other").await;
    let admin = running.admin();
    admin.create(&NODES, None, json!({ "metadata": { "name": "n1" } })).await.expect("a node");
    let everything = json!([{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }]);
    let owner = user(&running, "owner", everything).await;
    assert!(owner.create(&PODS, Some("shop"), pod("a")).await.is_ok(), "what it owns");

    let nodes = Target::collection(NODES, Some("shop"));
    assert_eq!(code(owner.0.list(&nodes, &ListOptions::default()).await), Some(404), "all nodes");
    assert_eq!(code(owner.get(&NODES, Some("shop"), "n1").await), Some(404), "a node");
    assert_eq!(code(owner.delete(&NODES, Some("shop"), "n1", None).await), Some(404), "deleting a node");
    assert!(admin.get(&NODES, None, "n1").await.is_ok(), "it is there");
    let cluster_admin = json!({
        "metadata": { "name": "mine" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "owner" }],
    });
    let bound = owner.create(&CLUSTER_BINDINGS, Some("shop"), cluster_admin).await;
    assert_eq!(code(bound), Some(404), "a binding of the whole cluster");
    assert_eq!(code(owner.get(&NAMESPACES, Some("shop"), "other").await), Some(404), "another namespace");

    assert!(
        owner.get(&NAMESPACES, None, "shop").await.is_ok(),
        "the namespace itself is ruled by what is in it"
    );
    assert_eq!(code(owner.get(&NAMESPACES, None, "other").await), Some(403), "another one is not");
    running.stop().await;
}

#[tokio::test]
async fn a_right_to_one_verb_or_name_is_none_to_another() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let rules = json!([
        { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["update"] },
        { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"], "resourceNames": ["x"] },
    ]);
    let client = user(&running, "client", rules).await;
    let lease =
        json!({ "metadata": { "name": "lock", "namespace": "shop" }, "spec": { "holderIdentity": "a" } });
    assert_eq!(code(client.update(&LEASES, &lease, "").await), Some(403), "an update that creates");
    let mut held = admin.update(&LEASES, &lease, "").await.expect("created by who may create");
    held["spec"]["holderIdentity"] = json!("b");
    assert!(client.update(&LEASES, &held, "").await.is_ok(), "an update");
    let refused = client.update(&LEASES, &lease, "").await.expect_err("a replacement of any version");
    assert_eq!(refused.code(), 422, "{refused}");
    assert!(refused.to_string().contains("metadata.resourceVersion"), "{refused}");

    let named = Target::object(CONFIG_MAPS, Some("shop"), "x");
    let body = config_map("y", "").to_string().into();
    let created = client.0.create(&named, body, &WriteOptions::default()).await;
    assert_eq!(code(created), Some(405), "one name in the path and another in the body");
    running.stop().await;
}

#[tokio::test]
async fn a_trial_eviction_evicts_nothing() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    admin.create(&PODS, Some("shop"), pod("a")).await.expect("a pod");
    let target = Target::object(PODS, Some("shop"), "a").with_subresource("eviction");
    let eviction = |name: &str| json!({ "metadata": { "name": name } }).to_string().into();
    let trial = WriteOptions { dry_run: true, ..WriteOptions::default() };
    admin.0.create(&target, eviction("a"), &trial).await.expect("it would be evicted");
    let still = admin.get(&PODS, Some("shop"), "a").await.expect("it is there");
    assert!(still["metadata"]["deletionTimestamp"].is_null(), "{still}");
    let other = admin.0.create(&target, eviction("b"), &WriteOptions::default()).await;
    assert_eq!(code(other), Some(400), "another pod's name");
    running.stop().await;
}

#[tokio::test]
async fn a_gated_pod_is_not_bound() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let mut gated = pod("a");
    gated["spec"]["schedulingGates"] = json!([{ "name": "example.org/wait" }]);
    admin.create(&PODS, Some("shop"), gated).await.expect("a pod");
    let target = Target::object(PODS, Some("shop"), "a").with_subresource("binding");
    let binding = json!({ "metadata": { "name": "a" }, "target": { "kind": "Node", "name": "n1" } });
    let bound = admin.0.create(&target, binding.to_string().into(), &WriteOptions::default()).await;
    assert_eq!(code(bound), Some(409));
    running.stop().await;
}

#[tokio::test]
async fn a_job_that_is_deleted_without_a_policy_leaves_its_pods() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let spec = json!({ "template": { "spec": {
        "restartPolicy": "Never", "containers": [{ "name": "main", "image": "demo" }],
    } } });
    let job = json!({ "metadata": { "name": "j" }, "spec": spec });
    admin.create(&JOBS, Some("shop"), job).await.expect("a job");
    admin.delete(&JOBS, Some("shop"), "j", None).await.expect("deleted");
    let going = admin.get(&JOBS, Some("shop"), "j").await.expect("kept for the garbage collector");
    assert_eq!(going["metadata"]["finalizers"], json!(["orphan"]), "{going}");
    running.stop().await;
}

#[tokio::test]
async fn the_log_of_a_pod_without_a_node_is_empty() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    running.admin().create(&PODS, Some("shop"), pod("a")).await.expect("a pod");
    let ask = async |subresource, verb, kind| {
        let user = Arc::new(User::named("admin", &[SYSTEM_MASTERS]));
        let target = Target::object(PODS, Some("shop"), "a").with_subresource(subresource);
        let call = running.server.enter(&user, verb, target, "").expect("admitted");
        running.server.connect(&call, kind, &[]).await.map(|endpoint| endpoint.is_some())
    };
    assert_eq!(code(ask("exec", "create", StreamKind::Exec).await), Some(400));
    assert!(!ask("log", "get", StreamKind::Log).await.expect("nothing to read"));
    running.stop().await;
}
