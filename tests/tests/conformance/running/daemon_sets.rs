//! DaemonSets: a pod on every node that is chosen.

use std::collections::BTreeSet;

use anyhow::ensure;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet},
    core::v1::{Node, Pod as CorePod},
};
use kube::api::Patch;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::{Pod, image, server, test, web};
use crate::{
    coverage::texts,
    steps::{as_json, create, list, patch, patch_status},
    support::{Bed, eventually, unique},
};

texts! {
    "DaemonSet-Creation" => should_run_and_stop_simple_daemon,
    "DaemonSet-NodeSelection" => should_run_and_stop_complex_daemon,
    "DaemonSet-FailedPodCreation" => should_retry_creating_failed_daemon_pods,
    "DaemonSet-RollingUpdate" => should_update_pod_when_spec_was_updated_and_update_strategy_is_rollingupdate,
    "DaemonSet-Rollback" => should_rollback_without_unnecessary_restarts,
}

/// A DaemonSet on the cluster.
struct Set {
    name: String,
    sets: Api<DaemonSet>,
    pods: Api<CorePod>,
    nodes: BTreeSet<String>,
}

async fn start(bed: &Bed, selector: Value) -> Set {
    let name = unique("daemon");
    let mut spec = server()["spec"].clone();
    spec["nodeSelector"] = selector;
    spec["containers"][0]["readinessProbe"] =
        json!({ "httpGet": { "path": "/readyz", "port": 8080 }, "periodSeconds": 1, "timeoutSeconds": 10 });
    let labels = json!({ "daemon": name });
    let set = json!({
        "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": spec },
        },
    });
    let sets = bed.api::<DaemonSet>();
    create(&sets, set).await;
    let nodes = list(&bed.all::<Node>(), "").await.iter().map(ResourceExt::name_any).collect();
    Set { name, sets, pods: bed.api(), nodes }
}

impl Set {
    async fn pods(&self) -> Vec<CorePod> {
        let pods = list(&self.pods, &format!("daemon={}", self.name)).await;
        pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
    }

    /// Waits until these nodes have a pod each that is ready, no other node has one, and all are `as_wanted`.
    async fn runs_on(&self, nodes: &BTreeSet<String>, as_wanted: impl Fn(&CorePod) -> bool) -> Vec<CorePod> {
        eventually(&format!("its pods are ready on {nodes:?}"), async || {
            let pods = self.pods().await;
            let found: Vec<_> = pods.iter().map(node).collect();
            ensure!(pods.len() == nodes.len() && found.iter().all(|node| nodes.contains(*node)), "{found:?}");
            ensure!(pods.iter().all(&as_wanted));
            let status = as_json(&self.sets.get(&self.name).await?)["status"].clone();
            let count = |field: &str| status[field].as_u64().unwrap_or(0) as usize;
            ensure!(
                count("numberReady") == nodes.len() && count("desiredNumberScheduled") == nodes.len(),
                "{status}"
            );
            Ok(pods)
        })
        .await
    }

    async fn set_image(&self, image: &str) {
        let container = json!([{ "name": "main", "image": image }]);
        let change =
            Patch::Strategic(json!({ "spec": { "template": { "spec": { "containers": container } } } }));
        self.sets.patch(&self.name, &Default::default(), &change).await.expect("the set is patched");
    }
}

fn node(pod: &CorePod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

fn image_of(pod: &CorePod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.containers[0].image.as_deref()).unwrap_or_default()
}

fn uids(pods: &[CorePod]) -> BTreeSet<String> {
    pods.iter().filter_map(ResourceExt::uid).collect()
}

/// DaemonSet-Creation
#[test]
fn should_run_and_stop_simple_daemon() {
    test(async |bed| {
        let set = start(bed, Value::Null).await;
        let pods = set.runs_on(&set.nodes, |_| true).await;
        let first = &pods[0];
        Pod::at(bed, &first.name_any()).delete().await;
        let again = set.runs_on(&set.nodes, |pod| pod.uid() != first.uid()).await;
        // The others have nothing to do with it.
        assert_eq!(uids(&again).intersection(&uids(&pods)).count(), 2);
        crate::steps::delete(&set.sets, &set.name).await;
        crate::steps::counted(&set.pods, &format!("daemon={}", set.name), 0).await;
    });
}

/// DaemonSet-NodeSelection
#[test]
fn should_run_and_stop_complex_daemon() {
    test(async |bed| {
        let label = format!("conformance.test/{}", unique("colour"));
        let set = start(bed, json!({ &label: "blue" })).await;
        set.runs_on(&BTreeSet::new(), |_| true).await;
        let chosen = set.nodes.first().expect("a node").clone();
        let colour = async |colour: Value| {
            patch(&bed.all::<Node>(), &chosen, json!({ "metadata": { "labels": { &label: colour } } })).await;
        };
        let only = BTreeSet::from([chosen.clone()]);
        colour(json!("blue")).await;
        let first = set.runs_on(&only, |_| true).await;
        colour(json!("green")).await;
        set.runs_on(&BTreeSet::new(), |_| true).await;
        let change = json!({ "spec": {
            "template": { "spec": { "nodeSelector": { &label: "green" } } },
            "updateStrategy": { "type": "RollingUpdate" },
        } });
        patch(&set.sets, &set.name, change).await;
        let second = set.runs_on(&only, |_| true).await;
        assert_ne!(uids(&first), uids(&second));
        colour(Value::Null).await;
    });
}

/// DaemonSet-FailedPodCreation
#[test]
fn should_retry_creating_failed_daemon_pods() {
    test(async |bed| {
        let set = start(bed, Value::Null).await;
        let pods = set.runs_on(&set.nodes, |_| true).await;
        let failed = &pods[0];
        patch_status(&set.pods, &failed.name_any(), json!({ "status": { "phase": "Failed" } })).await;
        set.runs_on(&set.nodes, |pod| pod.uid() != failed.uid()).await;
        crate::steps::gone(&set.pods, &failed.name_any()).await;
    });
}

/// DaemonSet-RollingUpdate
#[test]
fn should_update_pod_when_spec_was_updated_and_update_strategy_is_rollingupdate() {
    test(async |bed| {
        let set = start(bed, Value::Null).await;
        let before = set.runs_on(&set.nodes, |_| true).await;
        let next = image("demo/web:2");
        set.set_image(&next).await;
        let after = set.runs_on(&set.nodes, |pod| image_of(pod) == next).await;
        assert!(uids(&before).is_disjoint(&uids(&after)));
        let hash = |pod: &CorePod| pod.labels()["controller-revision-hash"].clone();
        let hashes: BTreeSet<_> = after.iter().map(hash).collect();
        assert_eq!(hashes.len(), 1);
        assert!(before.iter().all(|pod| !hashes.contains(&hash(pod))));
        let revisions = list(&bed.api::<ControllerRevision>(), &format!("daemon={}", set.name)).await;
        assert_eq!(revisions.len(), 2);
    });
}

/// DaemonSet-Rollback
#[test]
fn should_rollback_without_unnecessary_restarts() {
    test(async |bed| {
        let set = start(bed, Value::Null).await;
        let before = set.runs_on(&set.nodes, |_| true).await;
        let missing = image("no/such:1");
        set.set_image(&missing).await;
        eventually("one pod is of the new template", async || {
            let pods = set.pods().await;
            ensure!(pods.iter().filter(|pod| image_of(pod) == missing).count() == 1);
            Ok(())
        })
        .await;
        set.set_image(&web()).await;
        let after = set.runs_on(&set.nodes, |pod| image_of(pod) == web()).await;
        // Only what did not work is replaced.
        assert_eq!(uids(&after).intersection(&uids(&before)).count(), 2);
    });
}
