//! The way down, read message by message: the channel holds one, so the stream stands where the test wants it.

use std::path::PathBuf;

use hawser_api::{Client, client::WriteOptions};
use hawser_store::{EmbeddedOptions, EmbeddedStore, Store};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    Config,
    auth::{NODES, SYSTEM_MASTERS, jwt::SigningKey},
    chain::Limits,
    local::LocalClient,
};

const DEADLINE: Duration = Duration::from_secs(60);

struct Fixture {
    server: Arc<ApiServer>,
    store: Arc<dyn Store>,
    directory: PathBuf,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Fixture {
    /// A server with what every test needs: an account for pods in the namespace `default`.
    async fn start(name: &str, limits: Limits) -> Self {
        let directory =
            std::env::temp_dir().join(format!("hawser-node-stream-{}-{name}", std::process::id()));
        let store = EmbeddedStore::open(EmbeddedOptions::new(&directory)).await.expect("a store");
        let store: Arc<dyn Store> = Arc::new(store);
        let (mut tasks, shutdown) = (JoinSet::new(), CancellationToken::new());
        let mut config = Config::new("192.0.2.1".parse().expect("an address"), 6443, SigningKey::ephemeral());
        config.limits = limits;
        let server =
            ApiServer::start(store.clone(), config, &mut tasks, shutdown.clone()).await.expect("a server");
        let fixture = Self { server, store, directory, tasks, shutdown };
        fixture.create("serviceaccounts", json!({ "metadata": { "name": "default" } })).await;
        fixture
    }

    async fn create(&self, plural: &'static str, object: Value) {
        let kind = GroupVersionResource::fixed("", "v1", plural);
        let namespace = (!matches!(plural, "persistentvolumes" | "nodes")).then_some("default");
        let target = Target::collection(kind, namespace);
        self.admin()
            .create(&target, object.to_string().into(), &WriteOptions::default())
            .await
            .expect("created");
    }

    async fn patch(&self, plural: &'static str, name: &str, patch: Value) {
        let kind = GroupVersionResource::fixed("", "v1", plural);
        let namespace = (plural != "persistentvolumes").then_some("default");
        let target = Target::object(kind, namespace, name);
        let patch = hawser_api::client::Patch::Merge(patch.to_string().into());
        self.admin().patch(&target, patch, &WriteOptions::default()).await.expect("patched");
    }

    fn admin(&self) -> Arc<LocalClient> {
        LocalClient::new(self.server.clone(), User::named("admin", &[SYSTEM_MASTERS]))
    }

    /// The stream of n1, from the beginning, in its own task.
    async fn open(&mut self) -> mpsc::Receiver<Result<SyncResponse, Status>> {
        let (sender, receiver) = mpsc::channel(1);
        let user = User::named("system:node:n1", &[NODES]);
        let mut down = Down::open(&self.server, &user, "n1", sender).expect("its own stream");
        // Ends with the receiver; what of it is wrong shows as a message that does not come.
        self.tasks.spawn(async move { drop(down.run(0).await) });
        receiver
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        self.store.close().await.expect("closed");
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn pod(name: &str, volume: Value) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "nodeName": "n1",
            "containers": [{ "name": "main", "image": "demo" }],
            "volumes": [volume],
        },
    })
}

fn secret_volume(name: &str) -> Value {
    json!({ "name": "v", "secret": { "secretName": name } })
}

/// Reads until a change of that object; returns its body, empty for a deletion.
async fn next_of(
    stream: &mut mpsc::Receiver<Result<SyncResponse, Status>>,
    plural: &str,
    name: &str,
) -> Value {
    loop {
        let message = timeout(DEADLINE, stream.recv()).await.expect("in time").expect("a stream");
        let Some(sync_response::Message::Change(change)) = message.expect("no error").message else {
            continue;
        };
        let resource = change.resource.expect("a resource");
        if resource.resource == plural && resource.name == name {
            return serde_json::from_slice(&change.body).unwrap_or_default();
        }
    }
}

#[tokio::test]
async fn only_the_node_itself_opens_its_stream() {
    let fixture = Fixture::start("identity", Limits::default()).await;
    for (user, groups, allowed) in [
        ("system:node:n1", &[NODES][..], true),
        ("system:node:n2", &[NODES], false),
        ("system:node:n1", &[], false),
        ("admin", &[SYSTEM_MASTERS], false),
    ] {
        let (sender, _receiver) = mpsc::channel(1);
        let opened = Down::open(&fixture.server, &User::named(user, groups), "n1", sender);
        assert_eq!(opened.is_ok(), allowed, "{user} {groups:?}");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_change_while_the_snapshot_is_sent_is_not_lost() {
    let mut fixture = Fixture::start("snapshot", Limits::default()).await;
    fixture.create("secrets", json!({ "metadata": { "name": "first" }, "stringData": { "v": "1" } })).await;
    fixture.create("pods", pod("a", secret_volume("first"))).await;
    for name in ["b", "c", "d"] {
        fixture.create("pods", pod(name, secret_volume("first"))).await;
    }
    let mut stream = fixture.open().await;
    assert!(next_of(&mut stream, "secrets", "first").await["metadata"]["labels"].is_null());
    // One message is in the channel and one waits: the other pods are still to be sent.
    fixture.patch("secrets", "first", json!({ "metadata": { "labels": { "changed": "yes" } } })).await;
    let changed = next_of(&mut stream, "secrets", "first").await;
    assert_eq!(changed["metadata"]["labels"]["changed"], "yes");
    drop(stream);
    fixture.stop().await;
}

#[tokio::test]
async fn a_busy_server_still_sends_what_pods_name() {
    // No room for any read at all.
    let mut fixture = Fixture::start("busy", Limits { reads: 0, ..Limits::default() }).await;
    fixture.create("secrets", json!({ "metadata": { "name": "mine" } })).await;
    fixture.create("pods", pod("a", secret_volume("mine"))).await;
    let mut stream = fixture.open().await;
    assert_eq!(next_of(&mut stream, "secrets", "mine").await["metadata"]["name"], "mine");
    drop(stream);
    fixture.stop().await;
}

#[tokio::test]
async fn a_volume_comes_when_its_claim_makes_it_the_nodes() {
    let mut fixture = Fixture::start("volume", Limits::default()).await;
    let spec = json!({
        "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "hostPath": { "path": "/tmp/none" },
    });
    fixture.create("persistentvolumes", json!({ "metadata": { "name": "pv" }, "spec": spec })).await;
    let claim = json!({
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } }, "volumeName": "pv",
    });
    fixture.create("persistentvolumeclaims", json!({ "metadata": { "name": "disk" }, "spec": claim })).await;
    let volume = json!({ "name": "v", "persistentVolumeClaim": { "claimName": "disk" } });
    fixture.create("pods", pod("a", volume)).await;
    let mut stream = fixture.open().await;
    assert_eq!(next_of(&mut stream, "persistentvolumeclaims", "disk").await["spec"]["volumeName"], "pv");
    next_of(&mut stream, "pods", "a").await;
    // Nothing says yet that the volume is this claim's, so the node has not heard of it.
    let reference = json!({ "kind": "PersistentVolumeClaim", "namespace": "default", "name": "disk" });
    fixture.patch("persistentvolumes", "pv", json!({ "spec": { "claimRef": reference } })).await;
    let volume = next_of(&mut stream, "persistentvolumes", "pv").await;
    assert_eq!(volume["spec"]["claimRef"]["name"], "disk");
    drop(stream);
    fixture.stop().await;
}

#[tokio::test]
async fn what_nodes_report_is_what_metrics_show() {
    let fixture = Fixture::start("usage", Limits::default()).await;
    fixture.create("nodes", json!({ "metadata": { "name": "n1", "labels": { "disk": "ssd" } } })).await;
    let mut measured = pod("a", json!({ "name": "v", "emptyDir": {} }));
    measured["metadata"]["labels"] = json!({ "app": "web" });
    fixture.create("pods", measured).await;
    fixture.create("pods", pod("silent", json!({ "name": "v", "emptyDir": {} }))).await;
    let admin = fixture.admin();
    let of_pod = Target::object(GroupVersionResource::fixed("", "v1", "pods"), Some("default"), "a");
    let object: Value = serde_json::from_slice(&admin.get(&of_pod).await.expect("there")).expect("JSON");
    let uid = object["metadata"]["uid"].as_str().expect("a uid").to_owned();
    fixture.server.nodes().touch("n1", &User::named("system:node:n1", &[NODES]));
    let report = |seconds: i64, cpu_nanoseconds: u64, uid: &str| {
        let container =
            v1::ContainerUsage { name: "main".into(), cpu_nanoseconds, memory_working_set_bytes: 1 << 20 };
        let (namespace, name) = ("default".to_owned(), "a".to_owned());
        let usage = v1::Usage {
            time_unix_nanos: seconds * 1_000_000_000,
            cpu_nanoseconds: 2 * cpu_nanoseconds,
            memory_working_set_bytes: 1 << 30,
            pods: vec![v1::PodUsage { namespace, name, uid: uid.to_owned(), containers: vec![container] }],
        };
        fixture.server.nodes().report_usage("n1", usage);
    };
    let shown = async |plural: &'static str, selector: &str| -> Vec<Value> {
        let kind = GroupVersionResource::fixed("metrics.k8s.io", "v1beta1", plural);
        let options =
            hawser_api::client::ListOptions { label_selector: selector.into(), ..Default::default() };
        let list = admin.list(&Target::collection(kind, None), &options).await.expect("listed");
        list.items.iter().map(|item| serde_json::from_slice(item).expect("JSON")).collect()
    };
    report(100, 1_000_000_000, &uid);
    assert!(shown("pods", "").await.is_empty(), "one report has no rate");
    report(110, 3_500_000_000, &uid);

    let [pod] = &shown("pods", "app=web").await[..] else { panic!("one pod is measured") };
    assert_eq!(pod["kind"], "PodMetrics");
    assert_eq!(pod["metadata"]["namespace"], "default");
    assert_eq!((&pod["metadata"]["name"], &pod["window"]), (&json!("a"), &json!("10s")));
    let usage = json!([{ "name": "main", "usage": { "cpu": "250m", "memory": "1Mi" } }]);
    assert_eq!(pod["containers"], usage);
    let [node] = &shown("nodes", "disk=ssd").await[..] else { panic!("the node is measured") };
    assert_eq!(node["usage"], json!({ "cpu": "500m", "memory": "1Gi" }));
    assert!(shown("pods", "app=other").await.is_empty());

    let kind = GroupVersionResource::fixed("metrics.k8s.io", "v1beta1", "pods");
    let get = async |name: &str| admin.get(&Target::object(kind.clone(), Some("default"), name)).await;
    assert!(get("a").await.is_ok());
    for name in ["silent", "nobody"] {
        assert!(get(name).await.is_err_and(|error| error.is_not_found()), "{name}");
    }
    for seconds in [120, 130] {
        report(seconds, 4_000_000_000, "earlier");
    }
    assert!(shown("pods", "").await.is_empty(), "another pod of the name was measured");
    fixture.stop().await;
}
