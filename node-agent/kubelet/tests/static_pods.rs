//! Static pods: files on the node become pods, with the API and without, and are mirrored there.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Node, is_ready};
use hawser_kubelet::Config;
use hawser_runtime::ContainerState;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const IMAGES: [&str; 2] = ["registry.test/web:1", "registry.test/web:2"];

fn manifest(image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: web, labels: {{ app: web }} }}\nspec:\n  containers: [{{ name: web, image: '{image}' }}]\n"
    )
}

fn set(config: &mut Config) {
    let dir = config.root_dir.join("manifests");
    std::fs::create_dir_all(&dir).expect("made");
    config.static_pod_path = Some(dir);
}

/// Puts the manifest there; nothing runs before the images are known.
fn put(node: &Node, image: &str) {
    IMAGES.iter().for_each(|image| node.runtime.publish_image(image));
    std::fs::write(path(node), manifest(image)).expect("written");
}

fn path(node: &Node) -> impl AsRef<Path> {
    node.dir.path().join("manifests/web.yaml")
}

/// The uid of the pod that runs, by its image.
async fn running(node: &Node, image: &str) -> String {
    node.wait("the pod to run", || {
        let view = node.kubelet.pods.find("default", "web-n1")?;
        let (current, _) = view.containers.get("web")?.clone();
        let is_it = view.pod.spec.as_ref()?.containers[0].image.as_deref() == Some(image);
        let runs = current.is_some_and(|container| container.state == ContainerState::Running);
        view.pod.metadata.uid.clone().filter(|_| is_it && runs)
    })
    .await
}

/// The mirror in the API, once it says that the pod of that uid is ready.
async fn mirrored(node: &Node, uid: &str) -> Pod {
    node.wait("the mirror", || {
        let pod = node.api.pod("web-n1")?;
        let annotations = pod.metadata.annotations.clone()?;
        let shows = annotations.get("kubernetes.io/config.mirror").is_some_and(|shown| shown == uid);
        let ready = pod.status.as_ref().is_some_and(is_ready);
        (shows && ready).then_some(pod)
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn static_pod_runs_without_the_api_and_is_mirrored_when_it_answers() {
    let node = Node::start_offline(set);
    put(&node, IMAGES[0]);
    let uid = running(&node, IMAGES[0]).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let before = node.runtime.find(&uid, "web").expect("runs");
    node.api_returns();
    let mirror = mirrored(&node, &uid).await;
    assert_ne!(mirror.metadata.uid.as_ref(), Some(&uid));
    let owner = &mirror.metadata.owner_references.as_ref().expect("an owner")[0];
    let node_object = node.api.object("nodes", "n1").expect("registered");
    assert_eq!(
        (owner.kind.as_str(), node_object["metadata"]["uid"].as_str()),
        ("Node", Some(owner.uid.as_str()))
    );
    assert_eq!(mirror.metadata.labels.expect("labels")["app"], "web");
    tokio::time::sleep(Duration::from_secs(120)).await;
    let after = node.runtime.find(&uid, "web").expect("runs");
    assert_eq!((after.id, after.state), (before.id, ContainerState::Running));
    assert_eq!(node.kubelet.pods.len(), 1, "a mirror is not run");
    assert!(node.api.deletions.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn mirror_that_somebody_deletes_is_made_again_and_the_pod_runs_on() {
    let node = Node::start_set(set);
    put(&node, IMAGES[0]);
    let uid = running(&node, IMAGES[0]).await;
    let mirror = mirrored(&node, &uid).await;
    let mut deleted = mirror.clone();
    deleted.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::now()));
    deleted.metadata.deletion_grace_period_seconds = Some(30);
    node.api.put_pod(&deleted);
    node.wait("another mirror", || {
        let other = node.api.pod("web-n1")?;
        (other.metadata.uid != mirror.metadata.uid).then_some(())
    })
    .await;
    mirrored(&node, &uid).await;
    let container = node.runtime.find(&uid, "web").expect("runs");
    assert_eq!((container.attempt, container.state), (0, ContainerState::Running));
    assert!(!node.runtime.calls().iter().any(|call| call.starts_with("stop_container")));
}

#[tokio::test(start_paused = true)]
async fn changed_file_replaces_the_pod_when_the_old_one_has_ended() {
    let node = Node::start_set(set);
    put(&node, IMAGES[0]);
    let old = running(&node, IMAGES[0]).await;
    mirrored(&node, &old).await;
    node.runtime.ignore_stop_signal("web");
    put(&node, IMAGES[1]);
    let began = tokio::time::Instant::now();
    let new = running(&node, IMAGES[1]).await;
    assert_ne!(old, new);
    assert!(began.elapsed() >= Duration::from_secs(28), "its grace: {:?}", began.elapsed());
    assert!(node.runtime.find(&old, "web").is_none());
    mirrored(&node, &new).await;
}

#[tokio::test(start_paused = true)]
async fn removed_file_ends_the_pod_and_its_mirror() {
    let node = Node::start_set(set);
    put(&node, IMAGES[0]);
    let uid = running(&node, IMAGES[0]).await;
    mirrored(&node, &uid).await;
    std::fs::remove_file(path(&node)).expect("removed");
    node.wait("the pod to go", || node.kubelet.pods.is_empty().then_some(())).await;
    node.wait("its mirror to go", || node.api.pod("web-n1").is_none().then_some(())).await;
    assert!(node.runtime.find(&uid, "web").is_none());
    assert!(node.network.pods.lock().is_empty());
    // And it comes again with its file.
    put(&node, IMAGES[0]);
    assert_eq!(running(&node, IMAGES[0]).await, uid);
    mirrored(&node, &uid).await;
}

#[tokio::test(start_paused = true)]
async fn restarted_agent_adopts_static_pods() {
    let node = Node::start_set(set);
    put(&node, IMAGES[0]);
    let uid = running(&node, IMAGES[0]).await;
    let mirror = mirrored(&node, &uid).await;
    node.runtime.clear_calls();
    let node = node.restart_set(set).await;
    assert_eq!(running(&node, IMAGES[0]).await, uid);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let touched = ["create_container", "start_container", "stop_container", "remove"];
    let calls = node.runtime.calls();
    assert!(!calls.iter().any(|c| touched.iter().any(|t| c.starts_with(t))), "{calls:?}");
    assert_eq!(mirrored(&node, &uid).await.metadata.uid, mirror.metadata.uid);
    assert!(node.api.deletions.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn bad_file_is_an_event_of_the_node() {
    let node = Node::start_set(set);
    std::fs::write(node.dir.path().join("manifests/bad.yaml"), "kind: [").expect("written");
    put(&node, IMAGES[0]);
    running(&node, IMAGES[0]).await;
    node.wait("the event", || {
        let events = node.api.events();
        let told = |event: &&String| event.starts_with("FailedStaticPod: ") && event.contains("bad.yaml");
        events.iter().find(told).map(drop)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn static_pod_whose_file_cannot_be_read_when_an_agent_starts_runs_on() {
    let node = Node::start_set(set);
    put(&node, IMAGES[0]);
    let uid = running(&node, IMAGES[0]).await;
    mirrored(&node, &uid).await;
    node.runtime.clear_calls();
    std::fs::write(path(&node), "kind: [").expect("written");
    let node = node.restart_set(set).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(node.kubelet.pods.is_empty(), "nobody knows it");
    // Nor where the directory itself is away.
    let dir = node.dir.path().join("manifests");
    let moved = dir.with_extension("moved");
    std::fs::write(path(&node), manifest(IMAGES[0])).expect("written");
    std::fs::rename(&dir, &moved).expect("moved");
    let place = dir.clone();
    let node = node.restart_set(move |config| config.static_pod_path = Some(place)).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let container = node.runtime.find(&uid, "web").expect("there");
    assert_eq!((container.attempt, container.state), (0, ContainerState::Running));
    std::fs::rename(&moved, &dir).expect("moved back");
    assert_eq!(running(&node, IMAGES[0]).await, uid);
    assert!(!node.runtime.calls().iter().any(|call| call.starts_with("stop_container")), "it is adopted");
}

#[tokio::test(start_paused = true)]
async fn static_pod_whose_file_went_while_no_agent_ran_goes_when_that_is_known() {
    let node = Node::start_set(set);
    put(&node, IMAGES[0]);
    let uid = running(&node, IMAGES[0]).await;
    std::fs::write(path(&node), "kind: [").expect("written");
    let node = node.restart_set(set).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(node.runtime.find(&uid, "web").is_some());
    std::fs::remove_file(path(&node)).expect("removed");
    node.wait("its end", || node.runtime.find(&uid, "web").is_none().then_some(())).await;
}
