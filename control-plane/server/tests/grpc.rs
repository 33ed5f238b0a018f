//! The gRPC side of the binary, through the client that components and nodes use.

mod common;

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{ControlPlane, start};
use futures::StreamExt;
use hawser_api::{
    Client, GroupVersionResource,
    client::{ListOptions, WatchEvent, WatchOptions, WriteOptions},
    grpc::{NodeEvent, Remote, RemoteOptions},
    resource::Target,
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

const DEADLINE: Duration = Duration::from_secs(60);
const PODS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "pods");
const NODES: GroupVersionResource = GroupVersionResource::fixed("", "v1", "nodes");
const SECRETS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "secrets");
const ACCOUNTS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "serviceaccounts");

fn field(plane: &ControlPlane, name: &str) -> String {
    let config = fs::read_to_string(plane.kubeconfig()).expect("a kubeconfig");
    let prefix = format!("{name}: ");
    config.lines().find_map(|line| line.trim().strip_prefix(&prefix)).expect("the field").to_owned()
}

fn admin(plane: &ControlPlane) -> Remote {
    let decode = |name: &str| STANDARD.decode(field(plane, name)).expect("base64");
    Remote::new(&RemoteOptions {
        servers: vec![field(plane, "server")],
        ca_pem: decode("certificate-authority-data"),
        identity: Some((decode("client-certificate-data"), decode("client-key-data"))),
    })
    .expect("a client")
}

fn node(plane: &ControlPlane, name: &str) -> Remote {
    let out = plane.directory.join(name);
    let status = Command::new(env!("CARGO_BIN_EXE_control-plane"))
        .args(["node-credentials", "--name", name, "--node-ip=192.0.2.2"])
        .arg("--data-dir")
        .arg(&plane.directory)
        .arg("--out")
        .arg(&out)
        .status();
    assert!(status.expect("it runs").success());
    let read = |file: &str| fs::read(out.join(file)).expect("a file");
    Remote::new(&RemoteOptions {
        servers: vec![field(plane, "server")],
        ca_pem: read("ca.crt"),
        identity: Some((read("node.crt"), read("node.key"))),
    })
    .expect("a client")
}

async fn create(client: &Remote, resource: &GroupVersionResource, object: Value) -> Value {
    let namespace = if *resource == NODES { None } else { Some("default") };
    let target = Target::collection(resource.clone(), namespace);
    let made =
        client.create(&target, object.to_string().into(), &WriteOptions::default()).await.expect("created");
    serde_json::from_slice(&made).expect("JSON")
}

fn pod(name: &str, node: &str, secret: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": { "name": name },
        "spec": {
            "nodeName": node,
            "containers": [{ "name": "main", "image": "demo" }],
            "volumes": [{ "name": "s", "secret": { "secretName": secret } }],
        },
    })
}

fn secret(name: &str) -> Value {
    json!({ "kind": "Secret", "apiVersion": "v1", "metadata": { "name": name }, "data": {} })
}

/// Reads until an event for which `last` holds; returns what changed as `+pods/a` and `-pods/a`.
async fn read_until(events: &mut mpsc::Receiver<NodeEvent>, last: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    loop {
        let event = timeout(DEADLINE, events.recv()).await.expect("in time").expect("a session");
        let text = match event {
            NodeEvent::Connected => "connected".to_owned(),
            NodeEvent::SnapshotEnd => "end".to_owned(),
            NodeEvent::Changed { resource, key, .. } => format!("+{}/{}", resource.resource, key.name),
            NodeEvent::Deleted { resource, key } => format!("-{}/{}", resource.resource, key.name),
        };
        let done = last(&text);
        seen.insert(text);
        if done {
            return seen;
        }
    }
}

#[tokio::test]
async fn objects_are_read_and_written_and_errors_are_the_apis() {
    let Some(plane) = start("apiserver") else { return };
    let client = admin(&plane);
    let target = Target::collection(SECRETS, Some("default"));
    let before = client.list(&target, &ListOptions::default()).await.expect("a list");
    let options = WatchOptions { resource_version: before.resource_version, ..WatchOptions::default() };
    let mut watch = client.watch(&target, &options).await.expect("a watch");
    create(&client, &SECRETS, secret("a")).await;
    let event = timeout(DEADLINE, watch.next()).await.expect("in time").expect("an event").expect("no error");
    assert!(matches!(event, WatchEvent::Added { .. }), "{event:?}");
    let after = client.list(&target, &ListOptions::default()).await.expect("a list");
    assert_eq!(after.items.len(), before.items.len() + 1);
    let missing = client.get(&Target::object(SECRETS, Some("default"), "b")).await.expect_err("not there");
    assert_eq!(missing.message(), "secrets \"b\" not found");
    assert!(missing.is_not_found());
    let again = client.create(&target, secret("a").to_string().into(), &WriteOptions::default()).await;
    assert!(again.expect_err("there already").is_already_exists());
}

#[tokio::test]
async fn a_node_hears_what_concerns_it_and_goes_on_after_a_crash() {
    let Some(mut plane) = start("apiserver") else { return };
    let admin_client = admin(&plane);
    create(
        &admin_client,
        &ACCOUNTS,
        json!({ "kind": "ServiceAccount", "apiVersion": "v1", "metadata": { "name": "default" } }),
    )
    .await;
    for name in ["mine", "theirs", "later"] {
        create(&admin_client, &SECRETS, secret(name)).await;
    }
    let mine = create(&admin_client, &PODS, pod("a", "n1", "mine")).await;
    create(&admin_client, &PODS, pod("b", "n2", "theirs")).await;
    let node_client = node(&plane, "n1");
    create(&node_client, &NODES, json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": "n1" } }))
        .await;
    let (session, mut events) = node_client.node_session("n1");
    let snapshot = read_until(&mut events, |event| event == "end").await;
    for expected in
        ["+pods/a", "+secrets/mine", "+serviceaccounts/default", "+nodes/n1", "+services/kubernetes"]
    {
        assert!(snapshot.contains(expected), "{expected} in {snapshot:?}");
    }
    for unwanted in ["+pods/b", "+secrets/theirs", "+secrets/later"] {
        assert!(!snapshot.contains(unwanted), "{unwanted} in {snapshot:?}");
    }

    let target = Target::object(PODS, Some("default"), "a").with_subresource("status");
    let patch = json!({ "status": { "phase": "Running" } });
    let uid = mine["metadata"]["uid"].as_str().expect("a uid");
    session.update_status(&target, uid, &patch).await.expect("reported");
    assert!(session.update_status(&target, "another", &patch).await.expect_err("another pod").is_conflict());
    let foreign = Target::object(PODS, Some("default"), "b").with_subresource("status");
    assert_eq!(session.update_status(&foreign, "", &patch).await.expect_err("not its pod").code(), 403);
    let seen: Value =
        serde_json::from_slice(&admin_client.get(&target).await.expect("the pod")).expect("JSON");
    assert_eq!(seen["status"]["phase"], "Running");

    create(&admin_client, &PODS, pod("c", "n1", "later")).await;
    let news = read_until(&mut events, |event| event == "+pods/c").await;
    assert!(news.contains("+secrets/later"), "what the pod names comes before it: {news:?}");

    plane.crash_and_restart("apiserver");
    create(&admin(&plane), &PODS, pod("d", "n1", "later")).await;
    let news = read_until(&mut events, |event| event == "+pods/d").await;
    assert!(news.contains("connected"), "{news:?}");
    plane.wait_for("a lease", || {
        plane.kubectl(&["get", "leases", "-n", "kube-node-lease", "-o", "name"]).contains("n1")
    });
}
