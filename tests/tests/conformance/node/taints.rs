//! Pods leave nodes with a `NoExecute` taint when the time that they tolerate it is over.

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use serde_json::json;

use crate::{
    coverage::texts,
    kubelet::{IMAGE, add_node, tolerates},
    steps::{create, update},
    support::{Bed, eventually, object, test},
};

texts! {
    "Pod Eviction, Toleration limits" => evicts_pods_with_mintolerationseconds,
    "Taint, Pod Eviction on taint removal" => removing_taint_cancels_eviction,
}

const EVICT: &str = "conformance.test/evict";

/// A pod on the node that tolerates the taint for so long; for ever where no time is given.
async fn pod(bed: &Bed, name: &str, node: &str, seconds: Option<i64>) {
    let mut evict = json!({ "key": EVICT, "operator": "Exists", "effect": "NoExecute" });
    if let Some(seconds) = seconds {
        evict["tolerationSeconds"] = json!(seconds);
    }
    let spec = json!({
        "nodeName": node,
        "tolerations": [evict, tolerates(node)],
        "containers": [{ "name": "app", "image": IMAGE }],
    });
    create(&bed.api::<Pod>(), json!({ "metadata": { "name": name }, "spec": spec })).await;
}

async fn taint(nodes: &Api<Node>, node: &str) {
    update(nodes, node, |node| {
        let taint = object(json!({ "key": EVICT, "value": "now", "effect": "NoExecute" }));
        node.spec.get_or_insert_default().taints.get_or_insert_default().push(taint);
    })
    .await;
}

async fn untaint(nodes: &Api<Node>, node: &str) {
    update(nodes, node, |node| {
        let taints = node.spec.get_or_insert_default().taints.get_or_insert_default();
        taints.retain(|taint| taint.key != EVICT);
    })
    .await;
}

/// Whether the pod's end has begun. (A kubelet would end it.)
async fn is_ending(pods: &Api<Pod>, name: &str) -> anyhow::Result<bool> {
    Ok(pods.get(name).await?.metadata.deletion_timestamp.is_some())
}

async fn is_evicted(pods: &Api<Pod>, name: &str) {
    eventually("the pod is evicted", async || {
        ensure!(is_ending(pods, name).await?, "{name} stays");
        Ok(())
    })
    .await;
    let status = pods.get(name).await.expect("the pod has time to end").status.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let disrupted = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget");
    assert_eq!(
        disrupted.and_then(|it| it.reason.as_deref()),
        Some("DeletionByTaintManager"),
        "{conditions:?}"
    );
}

/// Pod Eviction, Toleration limits
#[test]
fn evicts_pods_with_mintolerationseconds() {
    test(async |bed| {
        let (nodes, pods) = (bed.all::<Node>(), bed.api::<Pod>());
        let node = add_node(bed, json!({})).await;
        pod(bed, "soon", &node, Some(1)).await;
        pod(bed, "later", &node, Some(6)).await;
        pod(bed, "never", &node, None).await;
        taint(&nodes, &node).await;
        is_evicted(&pods, "soon").await;
        is_evicted(&pods, "later").await;

        let began =
            async |name: &str| pods.get(name).await.expect("the pod is read").metadata.deletion_timestamp;
        assert!(began("soon").await < began("later").await, "the one with less time goes first");
        assert!(!is_ending(&pods, "never").await.expect("the pod is read"));
    });
}

/// Taint, Pod Eviction on taint removal
#[test]
fn removing_taint_cancels_eviction() {
    test(async |bed| {
        let (nodes, pods) = (bed.all::<Node>(), bed.api::<Pod>());
        let [first, second] = [add_node(bed, json!({})).await, add_node(bed, json!({})).await];
        pod(bed, "stays", &first, Some(10)).await;
        pod(bed, "goes", &second, Some(10)).await;
        taint(&nodes, &first).await;
        taint(&nodes, &second).await;
        untaint(&nodes, &first).await;
        // Its time began later: when it is over, so would be the other's.
        is_evicted(&pods, "goes").await;
        assert!(!is_ending(&pods, "stays").await.expect("the pod is read"));
    });
}
