//! Who may do what.

mod common;

use common::*;
use hawser_api::Error;
use serde_json::{Value, json};

#[track_caller]
fn check(outcome: &Result<Value, Error>, allowed: bool, what: &str) {
    match outcome {
        Ok(_) => assert!(allowed, "{what}"),
        Err(error) => assert_eq!(error.code() != 403, allowed, "{what}: {error}"),
    }
}

#[tokio::test]
async fn a_node_sees_and_writes_what_concerns_it_only() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    for name in ["mine", "other"] {
        let secret = json!({ "metadata": { "name": name }, "data": {} });
        admin.create(&SECRETS, Some("shop"), secret).await.expect("a secret");
    }
    for (pod_name, node, secret) in [("a", "n1", "mine"), ("b", "n2", "other")] {
        let mut wanted = pod(pod_name);
        wanted["spec"]["nodeName"] = json!(node);
        wanted["spec"]["volumes"] = json!([{ "name": "s", "secret": { "secretName": secret } }]);
        admin.create(&PODS, Some("shop"), wanted).await.expect("a pod");
    }
    // What the node is told must be in the cache that decides.
    admin.list(&PODS, None, "").await;
    let node = running.client("system:node:n1", &["system:nodes"]);
    check(&node.get(&SECRETS, Some("shop"), "mine").await, true, "a secret of its pod");
    check(&node.get(&SECRETS, Some("shop"), "other").await, false, "a secret of another node's pod");
    check(&node.get(&PODS, Some("shop"), "a").await, true, "its pod");
    check(&node.get(&PODS, Some("shop"), "b").await, false, "another node's pod");
    check(&node.delete(&PODS, Some("shop"), "b", Some(0)).await, false, "deleting another node's pod");
    let own = json!({ "metadata": { "name": "n1" } });
    check(&node.create(&NODES, None, own).await, true, "registering itself");
    let foreign = json!({ "metadata": { "name": "n2" } });
    check(&node.create(&NODES, None, foreign).await, false, "registering another node");
    check(&node.create(&PODS, Some("shop"), pod("c")).await, false, "creating a pod");
    check(&node.delete(&NODES, None, "n1", None).await, false, "deleting itself");
    let somebody = running.client("system:serviceaccount:shop:default", &["system:serviceaccounts"]);
    check(&somebody.get(&PODS, Some("shop"), "a").await, false, "a service account");
    running.stop().await;
}
