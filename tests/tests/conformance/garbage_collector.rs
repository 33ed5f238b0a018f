//! The garbage collector: what goes with its owners, stays without them, or goes before them.
//!
//! Pods of ReplicationControllers are made by hand, with the owner that their controller would give them: what happens
//! to them when the owner goes does not depend on who made them. No node runs any pod, so each goes as soon as it is asked to.

use anyhow::ensure;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{ConfigMap, Pod, ReplicationController},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions},
};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    steps::counted,
    support::{Bed, create, eventually, gone, patch, pod, test, unique},
};

texts! {
    "Garbage Collector, delete deployment,  propagation policy background" =>
        should_delete_rs_created_by_deployment_when_not_orphaning,
    "Garbage Collector, delete deployment, propagation policy orphan" =>
        should_orphan_rs_created_by_deployment_when_deleteoptions_propagationpolicy_is_orphan,
    "Garbage Collector, delete replication controller, propagation policy background" =>
        should_delete_pods_created_by_rc_when_not_orphaning,
    "Garbage Collector, delete replication controller, propagation policy orphan" =>
        should_orphan_pods_created_by_rc_if_delete_options_say_so,
    "Garbage Collector, delete replication controller, after owned pods" =>
        should_keep_the_rc_around_until_all_its_pods_are_deleted_if_the_deleteoptions_says_so,
    "Garbage Collector, multiple owners" =>
        should_not_delete_dependents_that_have_both_valid_owner_and_owner_that_s_waiting_for_dependents_to_be_deleted,
    "Garbage Collector, dependency cycle" => should_not_be_blocked_by_dependency_circle,
}

const HELD: &str = "conformance.example.com/held";

/// An entry of `ownerReferences`; only one of an object's owners controls it.
fn owner<K: Resource<DynamicType = ()>>(owner: &K, controls: bool) -> Value {
    json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "name": owner.name_any(),
        "uid": owner.uid(),
        "controller": controls,
        "blockOwnerDeletion": true,
    })
}

/// Deletes this very object, with what `params` say of its dependents.
async fn delete<K>(api: &Api<K>, object: &K, params: DeleteParams)
where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let this = Preconditions { uid: object.uid(), ..Preconditions::default() };
    api.delete(&object.name_any(), &params.preconditions(this)).await.expect("the owner is deleted");
}

/// Returns when the collector has collected something that became garbage now: it has seen all that was before.
async fn collector_has_caught_up(bed: &Bed) {
    let maps = bed.api::<ConfigMap>();
    let first = create(&maps, json!({ "metadata": { "name": unique("owner") } })).await;
    let name = unique("dependent");
    create(&maps, json!({ "metadata": { "name": name, "ownerReferences": [owner(&first, true)] } })).await;
    delete(&maps, &first, DeleteParams::background()).await;
    gone(&maps, &name).await;
}

async fn count<K>(api: &Api<K>) -> usize
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    api.list(&ListParams::default()).await.expect("listed").items.len()
}

/// A Deployment of two pods, which are there.
async fn deployment(bed: &Bed) -> Deployment {
    let labels = json!({ "app": "collected" });
    let deployment = json!({
        "metadata": { "name": "owner" },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": pod("", json!({}))["spec"] },
        },
    });
    let made = create(&bed.api::<Deployment>(), deployment).await;
    eventually("the deployment has its pods", async || {
        let (sets, pods) = (count(&bed.api::<ReplicaSet>()).await, count(&bed.api::<Pod>()).await);
        ensure!((sets, pods) == (1, 2), "{sets} replica sets, {pods} pods");
        Ok(())
    })
    .await;
    made
}

/// Garbage Collector, delete deployment,  propagation policy background
#[test]
fn should_delete_rs_created_by_deployment_when_not_orphaning() {
    test(async |bed| {
        let made = deployment(bed).await;
        delete(&bed.api::<Deployment>(), &made, DeleteParams::background()).await;
        eventually("nothing of the deployment is left", async || {
            let (sets, pods) = (count(&bed.api::<ReplicaSet>()).await, count(&bed.api::<Pod>()).await);
            ensure!((sets, pods) == (0, 0), "{sets} replica sets, {pods} pods");
            Ok(())
        })
        .await;
    });
}

/// Garbage Collector, delete deployment, propagation policy orphan
#[test]
fn should_orphan_rs_created_by_deployment_when_deleteoptions_propagationpolicy_is_orphan() {
    test(async |bed| {
        let made = deployment(bed).await;
        delete(&bed.api::<Deployment>(), &made, DeleteParams::orphan()).await;
        gone(&bed.api::<Deployment>(), "owner").await;
        collector_has_caught_up(bed).await;
        let sets = bed.api::<ReplicaSet>().list(&ListParams::default()).await.expect("listed").items;
        assert_eq!(sets.len(), 1);
        assert_eq!((sets[0].owner_references(), &sets[0].metadata.deletion_timestamp), (&[][..], &None));
        assert_eq!(count(&bed.api::<Pod>()).await, 2);
    });
}

/// A ReplicationController, and the names of this many pods of it, which are there.
async fn controller(bed: &Bed, name: &str, pods: usize) -> (ReplicationController, Vec<String>) {
    let labels = json!({ "name": name });
    let controller = json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": pods,
            "selector": labels,
            "template": { "metadata": { "labels": labels }, "spec": pod("", json!({}))["spec"] },
        },
    });
    let made = create(&bed.api::<ReplicationController>(), controller).await;
    let owned = counted(&bed.api::<Pod>(), &format!("name={name}"), pods).await;
    (made, owned.iter().map(ResourceExt::name_any).collect())
}

/// Garbage Collector, delete replication controller, propagation policy background
#[test]
fn should_delete_pods_created_by_rc_when_not_orphaning() {
    test(async |bed| {
        let (made, pods) = controller(bed, "owner", 2).await;
        delete(&bed.api::<ReplicationController>(), &made, DeleteParams::background()).await;
        for pod in pods {
            gone(&bed.api::<Pod>(), &pod).await;
        }
        gone(&bed.api::<ReplicationController>(), "owner").await;
    });
}

/// Garbage Collector, delete replication controller, propagation policy orphan
#[test]
fn should_orphan_pods_created_by_rc_if_delete_options_say_so() {
    test(async |bed| {
        let (made, _) = controller(bed, "owner", 10).await;
        delete(&bed.api::<ReplicationController>(), &made, DeleteParams::orphan()).await;
        gone(&bed.api::<ReplicationController>(), "owner").await;
        collector_has_caught_up(bed).await;
        let pods = bed.api::<Pod>().list(&ListParams::default()).await.expect("listed").items;
        assert_eq!(pods.len(), 10);
        for pod in pods {
            assert_eq!(
                (pod.owner_references(), &pod.metadata.deletion_timestamp),
                (&[][..], &None),
                "{pod:?}"
            );
        }
    });
}

/// Garbage Collector, delete replication controller, after owned pods
#[test]
fn should_keep_the_rc_around_until_all_its_pods_are_deleted_if_the_deleteoptions_says_so() {
    test(async |bed| {
        let (controllers, pods) = (bed.api::<ReplicationController>(), bed.api::<Pod>());
        let (made, names) = controller(bed, "owner", 10).await;
        let held = names[7].as_str();
        patch(&pods, held, json!({ "metadata": { "finalizers": [HELD] } })).await;
        delete(&controllers, &made, DeleteParams::foreground()).await;
        eventually("all pods but the one that is held are gone", async || {
            let left = pods.list(&ListParams::default()).await?.items;
            let names: Vec<_> = left.iter().map(ResourceExt::name_any).collect();
            ensure!(names == [held] && left[0].metadata.deletion_timestamp.is_some(), "{names:?}");
            Ok(())
        })
        .await;
        collector_has_caught_up(bed).await;
        let waiting = controllers.get("owner").await.expect("the owner waits for its pod");
        assert!(waiting.metadata.deletion_timestamp.is_some());
        assert_eq!(waiting.finalizers(), ["foregroundDeletion"]);

        patch(&pods, held, json!({ "metadata": { "finalizers": null } })).await;
        gone(&controllers, "owner").await;
        assert_eq!(count(&pods).await, 0);
    });
}

/// Garbage Collector, multiple owners
#[test]
fn should_not_delete_dependents_that_have_both_valid_owner_and_owner_that_s_waiting_for_dependents_to_be_deleted()
 {
    test(async |bed| {
        let (controllers, pods) = (bed.api::<ReplicationController>(), bed.api::<Pod>());
        let (first, names) = controller(bed, "goes", 10).await;
        let (second, _) = controller(bed, "stays", 0).await;
        let shared = &names[..5];
        let owners = json!([owner(&first, true), owner(&second, false)]);
        for pod in shared {
            patch(&pods, pod, json!({ "metadata": { "ownerReferences": owners } })).await;
        }
        delete(&controllers, &first, DeleteParams::foreground()).await;
        gone(&controllers, "goes").await;
        collector_has_caught_up(bed).await;
        let left = pods.list(&ListParams::default()).await.expect("listed").items;
        let names: Vec<_> = left.iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, shared);
        for pod in left {
            assert_eq!(pod.metadata.deletion_timestamp, None, "{pod:?}");
            let owners: Vec<_> = pod.owner_references().iter().map(|owner| owner.name.as_str()).collect();
            assert_eq!(owners, ["stays"]);
        }
    });
}

/// Garbage Collector, dependency cycle
#[test]
fn should_not_be_blocked_by_dependency_circle() {
    test(async |bed| {
        let pods = bed.api::<Pod>();
        let mut made = Vec::new();
        for number in 1..=3 {
            made.push(create(&pods, pod(&format!("pod{number}"), json!({}))).await);
        }
        for (dependent, of) in [(0, 2), (1, 0), (2, 1)] {
            let owners = json!({ "metadata": { "ownerReferences": [owner(&made[of], true)] } });
            patch(&pods, &made[dependent].name_any(), owners).await;
        }
        delete(&pods, &made[0], DeleteParams::foreground()).await;
        for pod in &made {
            gone(&pods, &pod.name_any()).await;
        }
    });
}
