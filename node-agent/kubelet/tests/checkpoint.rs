//! A node that starts without an API server: its pods start again, or run on, from what it has noted.

mod common;

use std::time::Duration;

use common::{Node, container, is_ready, spec, uid};
use hawser_api::GroupVersionResource;
use hawser_api::resource::Target;
use hawser_runtime::ContainerState;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, PodSpec, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume,
    VolumeMount, VolumeProjection,
};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

/// A pod with a ConfigMap's volume and a token.
fn web() -> PodSpec {
    let mut main = container("web");
    let mount = |name: &str| VolumeMount {
        name: name.into(),
        mount_path: format!("/{name}"),
        ..VolumeMount::default()
    };
    main.volume_mounts = Some(vec![mount("settings"), mount("token")]);
    let source = ConfigMapVolumeSource { name: "settings".into(), ..ConfigMapVolumeSource::default() };
    let token = ServiceAccountTokenProjection { path: "token".into(), ..Default::default() };
    let token = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    let token = ProjectedVolumeSource { sources: Some(vec![token]), ..ProjectedVolumeSource::default() };
    PodSpec {
        volumes: Some(vec![
            Volume { name: "settings".into(), config_map: Some(source), ..Volume::default() },
            Volume { name: "token".into(), projected: Some(token), ..Volume::default() },
        ]),
        ..spec("Always", vec![main])
    }
}

async fn ready_node() -> Node {
    let node = Node::start();
    node.objects.config_maps.put(ConfigMap {
        metadata: ObjectMeta {
            name: Some("settings".into()),
            namespace: Some("default".into()),
            ..ObjectMeta::default()
        },
        data: Some([("color".into(), "blue".into())].into()),
        ..ConfigMap::default()
    });
    node.bind("web", web());
    node.wait_ready("web").await;
    node
}

fn running(node: &Node) -> Option<hawser_runtime::ContainerStatus> {
    node.runtime.find(&uid("web"), "web").filter(|found| found.state == ContainerState::Running)
}

fn token(node: &Node) -> Option<String> {
    let volumes = node.dir.path().join("pods").join(uid("web")).join("volumes");
    std::fs::read_to_string(volumes.join("kubernetes.io~projected/token/token")).ok()
}

#[tokio::test(start_paused = true)]
async fn rebooted_node_starts_its_pods_without_the_api() {
    let node = ready_node().await.reboot_offline().await;
    node.runtime.preload_image("registry.test/web:1");
    let started = node.wait("the pod to run", || running(&node)).await;
    let mounts = node.runtime.config_of(&started.id).expect("made").mounts;
    let settings = mounts.iter().find(|mount| mount.container_path.ends_with("settings")).expect("mounted");
    assert_eq!(std::fs::read_to_string(settings.host_path.join("color")).expect("there"), "blue");
    // It is started again where it ends, as ever.
    node.runtime.exit(&started.id, 1);
    let again = node.wait("the restart", || running(&node).filter(|found| found.id != started.id)).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    node.api_returns();
    node.wait_status("web", "the news", |status| {
        let restarts = i32::try_from(again.attempt).expect("few");
        is_ready(status)
            && status.container_statuses.as_ref().is_some_and(|all| all[0].restart_count == restarts)
    })
    .await;
    node.wait("the token", || token(&node)).await;
    assert_eq!(running(&node).expect("runs on").id, again.id);
}

#[tokio::test(start_paused = true)]
async fn agent_that_starts_without_the_api_goes_on_with_what_runs() {
    let node = ready_node().await;
    let before = running(&node).expect("runs");
    assert_eq!(token(&node).as_deref(), Some("a-token"));
    node.runtime.clear_calls();
    let node = node.restart_offline().await;
    node.wait("the worker", || (node.kubelet.pods.len() == 1).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(running(&node).expect("runs on").pid, before.pid);
    assert_eq!(token(&node).as_deref(), Some("a-token"), "the one that it has is not taken away");
    let calls = node.runtime.calls();
    let touched = ["create_container", "start_container", "stop_container", "remove"];
    assert!(!calls.iter().any(|c| touched.iter().any(|t| c.starts_with(t))), "{calls:?}");
    assert!(!node.news.0.lock().iter().any(|news| news.contains("not ready")), "{:?}", node.news.0.lock());
    node.runtime.exit(&before.id, 1);
    node.wait("the restart", || running(&node).filter(|found| found.id != before.id)).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_api_has_forgotten_meanwhile_goes_when_it_says_so() {
    let node = ready_node().await.restart_offline().await;
    node.wait("the worker", || (node.kubelet.pods.len() == 1).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert!(running(&node).is_some(), "past a relist");
    node.api.forget("web");
    node.api_returns();
    node.wait("the pod to go", || node.runtime.find(&uid("web"), "web").is_none().then_some(())).await;
    node.wait("the worker to end", || node.kubelet.pods.is_empty().then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn pod_that_is_not_noted_waits_for_the_api_and_is_then_adopted() {
    let node = ready_node().await;
    let before = running(&node).expect("runs");
    let files = node.dir.path().join("checkpoint");
    let node = {
        let stopped = node.stop().await;
        std::fs::remove_dir_all(&files).expect("there were some");
        stopped.start_offline_again()
    };
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert!(node.kubelet.pods.is_empty());
    assert_eq!(running(&node).expect("left alone").pid, before.pid);
    node.runtime.clear_calls();
    node.api_returns();
    node.wait("the worker", || (node.kubelet.pods.len() == 1).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(running(&node).expect("runs on").pid, before.pid);
    assert!(!node.runtime.calls().iter().any(|call| call.starts_with("create_container")));
}

#[tokio::test(start_paused = true)]
async fn secrets_are_noted_only_where_that_is_wanted() {
    for wanted in [false, true] {
        let node = Node::start_set(|config| config.checkpoint_secrets = wanted);
        node.objects.secrets.put(k8s_openapi::api::core::v1::Secret {
            metadata: ObjectMeta {
                name: Some("login".into()),
                namespace: Some("default".into()),
                ..ObjectMeta::default()
            },
            ..Default::default()
        });
        let file = node.dir.path().join("checkpoint/named.json");
        node.wait("the note", || {
            let text = std::fs::read_to_string(&file).ok()?;
            (text.contains("login") == wanted).then_some(())
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn pod_of_a_runtime_class_is_looked_after_without_the_api() {
    let node = Node::start();
    let class = Target::object(GroupVersionResource::of::<RuntimeClass>(), None, "plain");
    node.api.store(&class, json!({ "metadata": { "name": "plain" }, "handler": "runc" }));
    let of_class = |spec: PodSpec| PodSpec { runtime_class_name: Some("plain".into()), ..spec };
    node.bind("web", of_class(spec("Always", vec![container("web")])));
    node.wait_ready("web").await;
    let node = node.restart_offline().await;
    let before = running(&node).expect("runs on");
    node.runtime.exit(&before.id, 1);
    node.wait("the restart", || running(&node).filter(|found| found.id != before.id)).await;
    let node = node.reboot_offline().await;
    node.runtime.preload_image(container("web").image.as_deref().expect("named"));
    node.wait("the start", || running(&node)).await;
    let sandbox = node.runtime.sandbox_of(&uid("web")).expect("made");
    assert_eq!(sandbox.runtime_handler, "runc");
}

#[tokio::test(start_paused = true)]
async fn trust_bundles_are_shown_without_the_api_as_they_were() {
    let node = Node::start();
    let bundle = Target::object(GroupVersionResource::of::<ClusterTrustBundle>(), None, "roots");
    let certificate = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let metadata = json!({ "name": "roots" });
    node.api.store(&bundle, json!({ "metadata": metadata, "spec": { "trustBundle": certificate } }));
    let source = json!({ "clusterTrustBundle": { "name": "roots", "path": "ca.pem" } });
    let volume = json!({ "name": "roots", "projected": { "sources": [source] } });
    let volume = serde_json::from_value(volume).expect("a volume");
    node.bind("web", PodSpec { volumes: Some(vec![volume]), ..spec("Always", vec![container("web")]) });
    node.wait_ready("web").await;
    let dir = node.dir.path().join("pods").join(uid("web")).join("volumes/kubernetes.io~projected/roots");
    let shown = || std::fs::read_to_string(dir.join("ca.pem")).ok();
    assert_eq!(shown().as_deref(), Some(certificate));
    let stopped = node.stop().await;
    // It was in memory.
    for entry in std::fs::read_dir(&dir).expect("there").flatten() {
        let path = entry.path();
        let is_directory = entry.file_type().expect("known").is_dir();
        if is_directory { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
            .expect("removed");
    }
    let node = stopped.reboot_offline_again();
    node.runtime.preload_image("registry.test/web:1");
    node.wait("the pod to run", || running(&node)).await;
    assert_eq!(shown().as_deref(), Some(certificate));
}
