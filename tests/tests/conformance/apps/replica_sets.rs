//! ReplicaSets: their pods, scale and status.

use anyhow::ensure;
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::{scale_is_read_and_written, status_is_read_and_written, template, workload};
use crate::{
    coverage::texts,
    kubelet::{IMAGE, run, run_until},
    steps::{counted, create, listed_and_deleted_together, patch, update, watch_labels},
    support::{Bed, eventually, test, unique},
};

texts! {
    "ReplicaSet, is created, Replaced and Patched" => replace_and_patch_tests,
    "ReplicaSet, completes the scaling of a ReplicaSet subresource" => should_have_a_working_scale_subresource,
    "Replica Set, adopt matching pods and release non matching pods"
        => should_adopt_matching_pods_on_creation_and_release_no_longer_matching_pods,
    "ReplicaSet, list and delete a collection of ReplicaSets" => should_list_and_delete_a_collection_of_replicasets,
    "ReplicaSet, status sub-resource" => should_validate_replicaset_status_endpoints,
}

fn ready(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default()
}

/// Creates a ReplicaSet of one pod, and runs it.
async fn running(bed: &Bed, name: &str) -> Api<ReplicaSet> {
    let sets = bed.api::<ReplicaSet>();
    create(&sets, workload(name, 1)).await;
    has_ready(bed, name, 1).await;
    sets
}

async fn has_ready(bed: &Bed, name: &str, replicas: i32) {
    let (sets, pods) = (bed.api::<ReplicaSet>(), bed.api::<Pod>());
    run_until(
        (&pods, &format!("app={name}")),
        "the pods are ready",
        |_| true,
        async || {
            let set = sets.get(name).await?;
            ensure!(ready(&set) == replicas, "{:?}", set.status);
            Ok(())
        },
    )
    .await;
}

/// ReplicaSet, is created, Replaced and Patched
#[test]
fn replace_and_patch_tests() {
    test(async |bed| {
        let name = unique("replaced");
        let sets = running(bed, &name).await;
        let mut events = watch_labels(&sets, &format!("app={name}")).await;
        update(&sets, &name, |set| set.spec.get_or_insert_default().replicas = Some(2)).await;
        has_ready(bed, &name, 2).await;
        events.until("MODIFIED", |seen| ready(seen) == 2).await;

        let change = json!({
            "metadata": { "labels": { "patched": "yes" } },
            "spec": {
                "replicas": 3,
                "template": { "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{ "name": "app", "image": "registry.test/app:2" }],
                } },
            },
        });
        patch(&sets, &name, change).await;
        has_ready(bed, &name, 3).await;
        let seen = events.until("MODIFIED", |seen| ready(seen) == 3).await;
        assert_eq!(seen.labels()["patched"], "yes");
        let spec = seen.spec.expect("a specification");
        let pod = spec.template.and_then(|template| template.spec).expect("a template");
        assert_eq!((spec.replicas, pod.termination_grace_period_seconds), (Some(3), Some(0)));
        assert_eq!(pod.containers[0].image.as_deref(), Some("registry.test/app:2"));
    });
}

/// ReplicaSet, completes the scaling of a ReplicaSet subresource
#[test]
fn should_have_a_working_scale_subresource() {
    test(async |bed| {
        let name = unique("scaled");
        let sets = running(bed, &name).await;
        scale_is_read_and_written(&sets, &name).await;
        has_ready(bed, &name, 4).await;
    });
}

/// Replica Set, adopt matching pods and release non matching pods
#[test]
fn should_adopt_matching_pods_on_creation_and_release_no_longer_matching_pods() {
    test(async |bed| {
        let (name, pods) = (unique("adopting"), bed.api::<Pod>());
        let mut pod = template(&name, IMAGE);
        pod["metadata"]["name"] = json!(name);
        create(&pods, pod).await;
        // It works already: a controller that saw the set first, and made a pod, keeps this one all the same.
        run(&pods, &name, "192.0.2.1").await;
        let set = create(&bed.api::<ReplicaSet>(), workload(&name, 1)).await;
        let owned = async |is_owned: bool| {
            eventually("the owner of the pod is as expected", async || {
                let pod = pods.get(&name).await?;
                let mut owners = pod.owner_references().iter();
                let found = owners.any(|owner| Some(&owner.uid) == set.metadata.uid.as_ref());
                ensure!(found == is_owned, "{:?}", pod.owner_references());
                Ok(())
            })
            .await;
        };
        owned(true).await;
        counted(&pods, &format!("app={name}"), 1).await;

        patch(&pods, &name, json!({ "metadata": { "labels": { "app": "another" } } })).await;
        owned(false).await;
        let others = counted(&pods, &format!("app={name}"), 1).await;
        assert_ne!(others[0].name_any(), name, "another pod takes its place");
    });
}

/// ReplicaSet, list and delete a collection of ReplicaSets
#[test]
fn should_list_and_delete_a_collection_of_replicasets() {
    test(async |bed| {
        let sets = (&bed.api::<ReplicaSet>(), &bed.all());
        listed_and_deleted_together(sets, |metadata| {
            let app = metadata["name"].as_str().unwrap_or_default().to_owned();
            let mut set = workload(&app, 3);
            set["metadata"] = metadata;
            set
        })
        .await;
    });
}

/// ReplicaSet, status sub-resource
#[test]
fn should_validate_replicaset_status_endpoints() {
    test(async |bed| {
        let name = unique("status");
        let sets = running(bed, &name).await;
        status_is_read_and_written(&sets, &name).await;
    });
}
