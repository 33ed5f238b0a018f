//! How Deployments replace pods.
//!
//! Texts that begin with pods of an older ReplicaSet have one that carries one more label than the Deployment selects,
//! so that it is adopted and does not take the newer pods for its own.

use anyhow::ensure;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::{template, workload};
use crate::{
    coverage::texts,
    kubelet::{IMAGE, add_node, image, run_until},
    steps::{create, delete, gone, labels, list, patch, watch_labels},
    support::{Bed, eventually, test, unique},
};

texts! {
    "Deployment Recreate" => recreatedeployment_should_delete_old_pods_and_create_new_ones,
    "Deployment RollingUpdate" => rollingupdatedeployment_should_delete_old_pods_and_create_new_ones,
    "Deployment RevisionHistoryLimit" => deployment_should_delete_old_replica_sets,
    "Deployment Proportional Scaling" => deployment_should_support_proportional_scaling,
    "Deployment Rollover" => deployment_should_support_rollover,
}

const SECOND: &str = "registry.test/app:2";
const THIRD: &str = "registry.test/app:3";
const REVISION: &str = "deployment.kubernetes.io/revision";

/// A Deployment and what belongs to it: all has the label `app=<name>`.
struct Rollout {
    name: String,
    deployments: Api<Deployment>,
    sets: Api<ReplicaSet>,
    pods: Api<Pod>,
}

impl Rollout {
    fn new(bed: &Bed) -> Self {
        Self { name: unique("rollout"), deployments: bed.api(), sets: bed.api(), pods: bed.api() }
    }

    fn selector(&self) -> String {
        format!("app={}", self.name)
    }

    /// Creates the Deployment, with these fields beside its replicas, selector and template.
    async fn create(&self, replicas: i32, image: &str, fields: Value) -> Deployment {
        let mut deployment = workload(&self.name, replicas);
        deployment["spec"]["template"] = template(&self.name, image);
        for (field, value) in fields.as_object().expect("fields") {
            deployment["spec"][field] = value.clone();
        }
        create(&self.deployments, deployment).await
    }

    /// Creates a ReplicaSet without owner whose pods the Deployment selects, and runs them.
    async fn create_older_set(&self, replicas: i32) -> ReplicaSet {
        let older = json!({ "app": self.name, "age": "older" });
        let mut set = workload(&self.name, replicas);
        set["metadata"] = json!({
            "name": format!("{}-older", self.name),
            "labels": older,
            "annotations": { REVISION: "3546343826724305832" },
        });
        set["spec"]["selector"]["matchLabels"] = older.clone();
        set["spec"]["template"]["metadata"]["labels"] = older;
        let set = create(&self.sets, set).await;
        run_until(
            (&self.pods, &self.selector()),
            "the older pods are ready",
            |_| true,
            async || {
                let status = self.sets.get(&set.name_any()).await?.status.unwrap_or_default();
                ensure!(status.available_replicas == Some(replicas), "{status:?}");
                Ok(())
            },
        )
        .await;
        set
    }

    async fn set_image(&self, image: &str) {
        let containers = json!([{ "name": "app", "image": image }]);
        let change = json!({ "spec": { "template": { "spec": { "containers": containers } } } });
        patch(&self.deployments, &self.name, change).await;
    }

    /// Runs the pods of this image until the Deployment is what it should be.
    async fn completes(&self, runs: &str) -> Deployment {
        let what = "the rollout completes";
        run_until(
            (&self.pods, &self.selector()),
            what,
            |pod| image(pod) == runs,
            async || {
                let deployment = self.deployments.get(&self.name).await?;
                ensure!(is_complete(&deployment), "{:?}", deployment.status);
                Ok(deployment)
            },
        )
        .await
    }

    /// The set whose template has this image.
    async fn set_of(&self, wanted: &str) -> anyhow::Result<ReplicaSet> {
        let sets = self.sets.list(&labels(&self.selector())).await?;
        let found = sets.into_iter().find(|set| set_image(set) == wanted);
        found.ok_or_else(|| anyhow::anyhow!("no set of {wanted} yet"))
    }

    /// Waits until the sets of the first and the second image want so many pods.
    async fn has_sizes(&self, first: i32, second: i32) {
        eventually("the sets have their sizes", async || {
            let found = (size(&self.set_of(IMAGE).await?), size(&self.set_of(SECOND).await?));
            ensure!(found == (first, second), "{found:?}");
            Ok(())
        })
        .await;
    }
}

fn is_complete(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    let status = deployment.status.clone().unwrap_or_default();
    status.observed_generation == deployment.metadata.generation
        && [status.replicas, status.updated_replicas, status.available_replicas]
            .iter()
            .all(|it| *it == wanted)
}

fn set_image(set: &ReplicaSet) -> &str {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let pod = template.and_then(|template| template.spec.as_ref());
    pod.and_then(|pod| pod.containers[0].image.as_deref()).unwrap_or_default()
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default()
}

fn is_owned_by(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let mut owners = set.owner_references().iter();
    owners.any(|owner| Some(&owner.uid) == deployment.metadata.uid.as_ref() && owner.controller == Some(true))
}

/// Deployment Recreate
#[test]
fn recreatedeployment_should_delete_old_pods_and_create_new_ones() {
    test(async |bed| {
        let rollout = Rollout::new(bed);
        // A pod of a node takes its time to end, and the Deployment has to wait for it.
        let mut slow = template(&rollout.name, IMAGE);
        slow["spec"]["nodeName"] = json!(add_node(bed, json!({})).await);
        rollout.create(1, IMAGE, json!({ "strategy": { "type": "Recreate" }, "template": slow })).await;
        rollout.completes(IMAGE).await;
        let old = list(&rollout.pods, &rollout.selector()).await.pop().expect("a pod");

        let mut events = watch_labels(&rollout.pods, &rollout.selector()).await;
        rollout.set_image(SECOND).await;
        let is_old = |pod: &Pod| pod.uid() == old.uid();
        events.until("MODIFIED", |pod| is_old(pod) && pod.metadata.deletion_timestamp.is_some()).await;
        let deployment = rollout.deployments.get(&rollout.name).await.expect("the deployment is read");
        eventually("the controller has seen that the pod ends", async || {
            let status = rollout.deployments.get(&rollout.name).await?.status.unwrap_or_default();
            ensure!(status.observed_generation == deployment.metadata.generation, "{status:?}");
            ensure!(status.replicas.unwrap_or_default() == 0, "{status:?}");
            Ok(())
        })
        .await;
        delete(&rollout.pods, &old.name_any()).await;
        loop {
            match events.next().await {
                ("DELETED", pod) if is_old(&pod) => break,
                ("ADDED", pod) => panic!("{} is there beside an older pod", pod.name_any()),
                _ => {}
            }
        }
        events.until("ADDED", |pod| image(pod) == SECOND).await;
        rollout.completes(SECOND).await;
    });
}

/// Deployment RollingUpdate
#[test]
fn rollingupdatedeployment_should_delete_old_pods_and_create_new_ones() {
    test(async |bed| {
        let rollout = Rollout::new(bed);
        let older = rollout.create_older_set(1).await;
        let deployment = rollout.create(1, SECOND, json!({})).await;
        let new = eventually("the new set has the next revision", async || {
            let new = rollout.set_of(SECOND).await?;
            let revision = new.annotations().get(REVISION).map(String::as_str);
            ensure!(revision == Some("3546343826724305833"), "{revision:?}");
            Ok(new)
        })
        .await;
        assert!(is_owned_by(&new, &deployment));
        rollout.completes(SECOND).await;

        let older = rollout.sets.get(&older.name_any()).await.expect("the older set stays");
        assert!(is_owned_by(&older, &deployment), "{:?}", older.owner_references());
        assert_eq!(size(&older), 0);
        let sets = list(&rollout.sets, &rollout.selector()).await;
        assert_eq!(sets.len(), 2, "the adopted set and the new one");
        let pods = list(&rollout.pods, &rollout.selector()).await;
        assert_eq!(pods.iter().map(image).collect::<Vec<_>>(), [SECOND]);
    });
}

/// Deployment RevisionHistoryLimit
#[test]
fn deployment_should_delete_old_replica_sets() {
    test(async |bed| {
        let rollout = Rollout::new(bed);
        let older = rollout.create_older_set(1).await;
        rollout.create(1, SECOND, json!({ "revisionHistoryLimit": 0 })).await;
        rollout.completes(SECOND).await;
        gone(&rollout.sets, &older.name_any()).await;
        let sets = list(&rollout.sets, &rollout.selector()).await;
        assert_eq!(sets.iter().map(set_image).collect::<Vec<_>>(), [SECOND]);
    });
}

/// Deployment Proportional Scaling
#[test]
fn deployment_should_support_proportional_scaling() {
    test(async |bed| {
        let rollout = Rollout::new(bed);
        let limits = json!({ "rollingUpdate": { "maxSurge": 3, "maxUnavailable": 2 } });
        rollout.create(10, IMAGE, json!({ "strategy": limits })).await;
        rollout.completes(IMAGE).await;

        // The new pods never run. So two of ten go, and new ones come up to thirteen together.
        rollout.set_image(SECOND).await;
        rollout.has_sizes(8, 5).await;

        patch(&rollout.deployments, &rollout.name, json!({ "spec": { "replicas": 30 } })).await;
        rollout.has_sizes(20, 13).await;
    });
}

/// Deployment Rollover
#[test]
fn deployment_should_support_rollover() {
    test(async |bed| {
        let rollout = Rollout::new(bed);
        let older = rollout.create_older_set(1).await;
        let limits = json!({ "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } });
        rollout.create(1, SECOND, json!({ "strategy": limits })).await;
        eventually("the second rollout has begun", async || {
            let second = rollout.set_of(SECOND).await?;
            ensure!(size(&second) == 1, "{second:?}");
            Ok(())
        })
        .await;

        // None of its pods runs when the third begins.
        rollout.set_image(THIRD).await;
        let deployment = rollout.completes(THIRD).await;
        for set in list(&rollout.sets, &rollout.selector()).await {
            let expected = i32::from(set_image(&set) == THIRD);
            assert_eq!(size(&set), expected, "{}", set.name_any());
            assert!(is_owned_by(&set, &deployment));
        }
        let older = rollout.sets.get(&older.name_any()).await.expect("the older set stays");
        assert_eq!(older.status.map(|status| status.replicas), Some(0));
    });
}
