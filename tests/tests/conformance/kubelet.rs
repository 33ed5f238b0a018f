//! Playing the node: no kubelet runs beside the shared server, so tests report what one would.
//!
//! Pods that only have to run are reported as running without being bound. Nodes carry a taint of their own, so that
//! the scheduler puts nobody else's pods there, and belong to the test's namespace: they go with it.

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    steps::{create, labels, patch_status},
    support::{Bed, eventually, unique},
};

/// An image that nobody pulls.
pub(crate) const IMAGE: &str = "registry.test/app:1";

/// The key of the taint that keeps other tests' pods away; its value is the node's name.
const ONLY: &str = "conformance.test/only";

/// Reports a pod as running and ready.
pub(crate) async fn run(pods: &Api<Pod>, name: &str, address: &str) -> Pod {
    try_run(pods, name, address).await.expect("the pod's status is written")
}

async fn try_run(pods: &Api<Pod>, name: &str, address: &str) -> kube::Result<Pod> {
    let condition = |kind: &str| json!({ "type": kind, "status": "True" });
    let conditions = ["Initialized", "ContainersReady", "Ready"].map(condition);
    let status = json!({
        "phase": "Running",
        "podIP": address,
        "podIPs": [{ "ip": address }],
        "conditions": conditions,
    });
    pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(json!({ "status": status }))).await
}

/// Runs the waiting pods of a label selector that `runs` chooses, again and again until `check` answers.
pub(crate) async fn run_until<T>(
    (pods, selector): (&Api<Pod>, &str),
    what: &str,
    runs: impl Fn(&Pod) -> bool,
    mut check: impl AsyncFnMut() -> anyhow::Result<T>,
) -> T {
    eventually(what, async || {
        let all = pods.list(&labels(selector)).await?;
        for pod in all.iter().filter(|pod| is_waiting(pod) && runs(pod)) {
            match try_run(pods, &pod.name_any(), "192.0.2.1").await {
                // Its controller has taken it back.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                outcome => drop(outcome?),
            }
        }
        check().await
    })
    .await
}

fn is_waiting(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Pending") && pod.metadata.deletion_timestamp.is_none()
}

/// The image of the first container.
pub(crate) fn image(pod: &Pod) -> &str {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    containers.first().and_then(|container| container.image.as_deref()).unwrap_or_default()
}

/// The node that a pod is bound to; empty where it is not.
pub(crate) fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Adds a ready node with this capacity. Its name is also the value of its label `kubernetes.io/hostname`.
pub(crate) async fn add_node(bed: &Bed, capacity: Value) -> String {
    let nodes = bed.all::<Node>();
    let name = unique("node");
    let namespace = bed.all::<Namespace>().get(&bed.namespace).await.expect("the namespace is there");
    let owner = json!({
        "apiVersion": "v1", "kind": "Namespace", "name": bed.namespace, "uid": namespace.metadata.uid,
    });
    let node = json!({
        "metadata": {
            "name": name, "labels": { "kubernetes.io/hostname": name }, "ownerReferences": [owner],
        },
        "spec": { "taints": [{ "key": ONLY, "value": name, "effect": "NoSchedule" }] },
    });
    create(&nodes, node).await;
    let mut resources = json!({ "cpu": "4", "memory": "4Gi", "pods": "110" });
    for (resource, amount) in capacity.as_object().expect("a capacity is a map") {
        resources[resource] = amount.clone();
    }
    let ready = json!({ "type": "Ready", "status": "True", "reason": "KubeletReady" });
    let status = json!({ "capacity": resources, "allocatable": resources, "conditions": [ready] });
    patch_status(&nodes, &name, json!({ "status": status })).await;
    eventually("the node is taken for ready", async || {
        let taints = nodes.get(&name).await?.spec.and_then(|spec| spec.taints).unwrap_or_default();
        ensure!(taints.iter().all(|taint| taint.key == ONLY), "{taints:?}");
        Ok(())
    })
    .await;
    name
}

/// What a pod needs to be put on a node of [`add_node`].
pub(crate) fn tolerates(node: &str) -> Value {
    json!({ "key": ONLY, "operator": "Equal", "value": node, "effect": "NoSchedule" })
}

/// Waits until the scheduler has bound the pod.
pub(crate) async fn bound(pods: &Api<Pod>, name: &str) -> Pod {
    eventually("the pod is bound", async || {
        let pod = pods.get(name).await?;
        ensure!(!node_of(&pod).is_empty(), "{:?}", pod.status);
        Ok(pod)
    })
    .await
}

/// Waits until the scheduler has said that no node can run the pod, and gives its reason.
pub(crate) async fn unschedulable(pods: &Api<Pod>, name: &str) -> String {
    eventually("the pod is found unschedulable", async || {
        let pod = pods.get(name).await?;
        let conditions = pod.status.clone().and_then(|status| status.conditions).unwrap_or_default();
        let scheduled = conditions.into_iter().find(|condition| condition.type_ == "PodScheduled");
        let Some(scheduled) = scheduled else { anyhow::bail!("{:?}", pod.status) };
        ensure!(scheduled.reason.as_deref() == Some("Unschedulable"), "{scheduled:?}");
        ensure!(node_of(&pod).is_empty(), "it is on {}", node_of(&pod));
        Ok(scheduled.message.unwrap_or_default())
    })
    .await
}
