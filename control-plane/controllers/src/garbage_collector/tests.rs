//! Scenarios: owners that go, and what becomes of what they own.

use std::time::Duration;

use hawser_api::client::{DeleteOptions, Propagation};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{ConfigMap, Node, Pod},
};
use serde_json::{Value, json};

use crate::{
    meta::MetaExt,
    testing::{FakeApi, Running, deployment, run_nodes},
};

const ALONE: &[&str] = &["garbage-collector"];
const ALL: &[&str] = &["garbage-collector", "deployment", "replicaset"];

fn by(propagation: Propagation) -> DeleteOptions {
    DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() }
}

fn config_map(name: &str, owners: &[&ConfigMap]) -> Value {
    let owners: Vec<Value> = owners
        .iter()
        .map(|owner| {
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "name": owner.name(), "uid": owner.uid(),
                "blockOwnerDeletion": true,
            })
        })
        .collect();
    json!({ "metadata": { "name": name, "namespace": "default", "ownerReferences": owners } })
}

fn has(api: &FakeApi, name: &str) -> bool {
    api.read::<ConfigMap>("default", name).is_some()
}

/// Long enough for everything that was going to happen.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(120)).await;
}

#[tokio::test(start_paused = true)]
async fn deployment_deleted_in_the_background_takes_sets_and_pods_along() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, ALL);
    api.put::<Deployment>(deployment("web", 3, "a"));
    api.until("pods are there", |api| api.all::<Pod>().len() == 3).await;
    api.remove::<Deployment>("default", "web", &by(Propagation::Background));
    api.until("all is gone", |api| api.all::<ReplicaSet>().is_empty() && api.all::<Pod>().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn deployment_deleted_in_the_foreground_goes_last() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, ALL);
    api.put::<Deployment>(deployment("web", 3, "a"));
    api.until("pods are there", |api| api.all::<Pod>().len() == 3).await;
    api.check_writes(|objects| {
        let is_there = |resource: &str| objects.keys().any(|key| key.0 == resource);
        let set_after_deployment = is_there("replicasets.apps") && !is_there("deployments.apps");
        let pod_after_set = is_there("pods") && !is_there("replicasets.apps");
        crate::testing::ensure(!set_after_deployment && !pod_after_set, "an owner went first".to_owned())
    });
    api.remove::<Deployment>("default", "web", &by(Propagation::Foreground));
    api.until("all is gone", |api| api.all::<Deployment>().is_empty()).await;
    assert!(api.all::<Pod>().is_empty());
}

#[tokio::test(start_paused = true)]
async fn orphaned_sets_and_pods_stay_and_are_adopted_again() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, ALL);
    api.put::<Deployment>(deployment("web", 3, "a"));
    api.until("pods are there", |api| api.all::<Pod>().len() == 3).await;
    let before = api.all::<ReplicaSet>()[0].uid().to_owned();
    api.remove::<Deployment>("default", "web", &by(Propagation::Orphan));
    api.until("the deployment is gone", |api| api.all::<Deployment>().is_empty()).await;
    settle().await;
    let sets = api.all::<ReplicaSet>();
    assert!(sets[0].controller().is_none());
    assert_eq!(api.all::<Pod>().len(), 3);

    api.put::<Deployment>(deployment("web", 3, "a"));
    api.until("the set is adopted", |api| api.all::<ReplicaSet>()[0].controller().is_some()).await;
    settle().await;
    let sets = api.all::<ReplicaSet>();
    assert_eq!((sets.len(), sets[0].uid(), api.all::<Pod>().len()), (1, before.as_str(), 3));
}

#[tokio::test(start_paused = true)]
async fn object_with_two_owners_stays_until_the_second_goes() {
    let api = FakeApi::new();
    let _running = Running::start(&api, ALONE);
    let a = api.put::<ConfigMap>(config_map("a", &[]));
    let b = api.put::<ConfigMap>(config_map("b", &[]));
    api.put::<ConfigMap>(config_map("owned", &[&a, &b]));
    settle().await;
    api.remove::<ConfigMap>("default", "a", &DeleteOptions::default());
    api.until("the reference to the first is dropped", |api| {
        let owned = api.read::<ConfigMap>("default", "owned").unwrap();
        owned.meta().owner_references.as_ref().is_some_and(|owners| owners.len() == 1)
    })
    .await;
    api.remove::<ConfigMap>("default", "b", &DeleteOptions::default());
    api.until("it goes with the second", |api| !has(api, "owned")).await;
}

#[tokio::test(start_paused = true)]
async fn owner_that_never_was_or_is_another_by_now_counts_as_gone() {
    let api = FakeApi::new();
    let old = api.put::<ConfigMap>(config_map("owner", &[]));
    api.remove::<ConfigMap>("default", "owner", &DeleteOptions::default());
    api.put::<ConfigMap>(config_map("owner", &[]));
    api.put::<ConfigMap>(config_map("of-the-old", &[&old]));
    let _running = Running::start(&api, ALONE);
    api.until("it is deleted", |api| !has(api, "of-the-old")).await;
    assert!(has(&api, "owner"));
}

#[tokio::test(start_paused = true)]
async fn owners_that_cannot_be_told_delete_nothing() {
    let api = FakeApi::new();
    let owner = |kind: &str, api_version: &str| json!([{ "apiVersion": api_version, "kind": kind, "name": "x", "uid": "nobody" }]);
    let mut unknown = config_map("unknown-kind", &[]);
    unknown["metadata"]["ownerReferences"] = owner("Widget", "example.com/v1");
    api.put::<ConfigMap>(unknown);
    api.put::<Node>(json!({ "metadata": { "name": "n1", "ownerReferences": owner("ConfigMap", "v1") } }));
    let _running = Running::start(&api, ALONE);
    settle().await;
    assert!(has(&api, "unknown-kind"));
    assert!(api.read::<Node>("", "n1").is_some());
}

#[tokio::test(start_paused = true)]
async fn owners_that_wait_for_each_other_both_end() {
    let api = FakeApi::new();
    let a = api.put::<ConfigMap>(config_map("a", &[]));
    let b = api.put::<ConfigMap>(config_map("b", &[&a]));
    let cycle = config_map("a", &[&b])["metadata"]["ownerReferences"].clone();
    api.patch::<ConfigMap>("default", "a", json!({ "metadata": { "ownerReferences": cycle } }));
    let _running = Running::start(&api, ALONE);
    settle().await;
    api.remove::<ConfigMap>("default", "a", &by(Propagation::Foreground));
    api.until("both are gone", |api| !has(api, "a") && !has(api, "b")).await;
}
