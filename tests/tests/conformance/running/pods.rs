//! Pods as their users reach them: addresses, streams, debugging containers.

use std::net::IpAddr;

use futures::StreamExt;
use k8s_openapi::api::core::v1 as core;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{Pod, busybox, script, server, sleeper, test, web_socket};
use crate::{
    coverage::texts,
    steps::{as_json, list},
    support::Bed,
};

texts! {
    "Pods, assigned hostip" => should_get_a_host_ip,
    "Pods, remote command execution over websocket" => should_support_remote_command_execution_over_websockets,
    "Pods, logs from websockets" => should_support_retrieving_logs_from_the_container_over_websockets,
    "Ephemeral Container Creation" => will_start_an_ephemeral_container_in_an_existing_pod,
    "Ephemeral Container, update ephemeral containers" => should_update_the_ephemeral_containers_in_an_existing_pod,
    "Conformance tests minimum number of nodes." => should_have_at_least_two_untainted_nodes,
}

/// Conformance tests minimum number of nodes.
#[test]
fn should_have_at_least_two_untainted_nodes() {
    test(async |bed| {
        let nodes = list(&bed.all::<core::Node>(), "").await;
        let untainted = nodes.iter().filter(|node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
            taints.is_none_or(|taints| taints.iter().all(|taint| taint.effect == "PreferNoSchedule"))
        });
        assert!(untainted.count() >= 2, "{nodes:?}");
    });
}

/// Pods, assigned hostip
#[test]
fn should_get_a_host_ip() {
    test(async |bed| {
        let seen = Pod::start(bed, sleeper()).await.get().await.expect("the pod is read");
        let address = seen["status"]["hostIP"].as_str().expect("a host's address");
        address.parse::<IpAddr>().expect("an address");
        let node = seen["spec"]["nodeName"].as_str().expect("a node");
        let node = as_json(&bed.all::<core::Node>().get(node).await.expect("the node is read"));
        let addresses = node["status"]["addresses"].as_array().expect("addresses");
        assert!(addresses.iter().any(|of_node| of_node["address"] == address), "{address} {addresses:?}");
    });
}

/// Pods, remote command execution over websocket
#[test]
fn should_support_remote_command_execution_over_websockets() {
    test(async |bed| {
        let pod = Pod::start(bed, sleeper()).await;
        let ended = pod.exec("main", &["echo", "remote execution test"]).await.expect("the command runs");
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("remote execution test\n", ""));
        assert!(!ended.failed);
        let ended =
            pod.exec("main", &["sh", "-c", "echo wrong >&2; exit 3"]).await.expect("the command runs");
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", "wrong\n"));
        assert!(ended.failed);
    });
}

/// Pods, logs from websockets
#[test]
fn should_support_retrieving_logs_from_the_container_over_websockets() {
    test(async |bed| {
        let pod = Pod::start(bed, script("echo container is alive; sleep 3600")).await;
        pod.says("main", "container is alive").await;
        let path = pod.path("log?container=main");
        let mut stream = web_socket(&bed.client, &path, "binary.k8s.io").await.expect("the stream opens");
        let mut log = Vec::new();
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(data) => log.extend_from_slice(&data),
                Message::Text(text) => panic!("{text:?} is not binary"),
                _ => {}
            }
        }
        assert_eq!(String::from_utf8_lossy(&log), "container is alive\n");
    });
}

/// Adds a debugging container, and waits until it runs.
async fn debug(bed: &Bed, pod: &Pod, name: &str, work: &str) -> Value {
    let container = json!({ "name": name, "image": busybox(), "command": ["sh", "-c", work] });
    let change = Patch::Strategic(json!({ "spec": { "ephemeralContainers": [container] } }));
    bed.api::<core::Pod>()
        .patch_ephemeral_containers(&pod.name, &PatchParams::default(), &change)
        .await
        .expect("the container is added");
    pod.until("the debugging container runs", |pod| {
        let mut statuses = pod["status"]["ephemeralContainerStatuses"].as_array().into_iter().flatten();
        statuses.any(|status| status["name"] == name && status["state"]["running"].is_object())
    })
    .await
}

/// Ephemeral Container Creation
#[test]
fn will_start_an_ephemeral_container_in_an_existing_pod() {
    test(async |bed| {
        let pod = Pod::start(bed, server()).await;
        debug(bed, &pod, "debugger", "wget -qO- 127.0.0.1:8080/healthz; echo; sleep 3600").await;
        // It shares the pod's network.
        pod.says("debugger", "ok").await;
        let ended = pod.exec("debugger", &["hostname"]).await.expect("the command runs");
        assert_eq!(ended.stdout.trim_end(), pod.name);
    });
}

/// Ephemeral Container, update ephemeral containers
#[test]
fn should_update_the_ephemeral_containers_in_an_existing_pod() {
    test(async |bed| {
        let pod = Pod::start(bed, sleeper()).await;
        let count = |pod: &Value| pod["spec"]["ephemeralContainers"].as_array().map_or(0, Vec::len);
        assert_eq!(count(&debug(bed, &pod, "debugger", "echo first; sleep 3600").await), 1);
        pod.says("debugger", "first").await;
        let seen = debug(bed, &pod, "debugger2", "echo second; sleep 3600").await;
        assert_eq!(count(&seen), 2);
        pod.says("debugger2", "second").await;
        let still = &seen["status"]["ephemeralContainerStatuses"][0];
        assert!(still["state"]["running"].is_object() && still["restartCount"] == 0, "{still}");
    });
}
