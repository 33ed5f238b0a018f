//! Volumes of a CSI driver: a small one of the test's own, found by its socket, mounts for pods and is asked to unmount.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{Node, container, spec, uid};
use hawser_api::GroupVersionResource;
use hawser_api::resource::Target;
use hawser_api::typed::Kind;
use hawser_kubelet::csi::driver::proto::node_server::{Node as NodeService, NodeServer};
use hawser_kubelet::csi::driver::proto::*;
use hawser_kubelet::plugins::proto::registration_server::{Registration, RegistrationServer};
use hawser_kubelet::plugins::proto::*;
use hawser_kubelet::sockets::serve;
use hawser_kubelet::volumes::mounts;
use k8s_openapi::api::core::v1::{
    CSIVolumeSource, ConfigMap, ConfigMapVolumeSource, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimVolumeSource, PodSpec, Volume, VolumeDevice, VolumeMount,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use nix::sys::stat::SFlag;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tonic::{Code, Request, Response, Status, async_trait};

const DRIVER: &str = "test.csi";

/// Shows one directory to everybody, by bind mounts.
#[derive(Clone)]
struct Driver {
    socket: PathBuf,
    source: PathBuf,
    calls: Arc<Mutex<Vec<String>>>,
    /// Volumes for which a call is under way.
    under_way: Arc<Mutex<BTreeSet<String>>>,
    /// A call has overlapped with one for the same volume.
    overlapped: Arc<Notify>,
    unstaging: Arc<Mutex<Unstaging>>,
    /// Nothing is published.
    refuses: Arc<Mutex<bool>>,
    /// What the kubelet told of the registration.
    told: Arc<Mutex<Vec<RegistrationStatus>>>,
    /// How often it was asked what it can do.
    asked: Arc<Mutex<usize>>,
    /// With what it refuses to make anything larger.
    refuses_to_grow: Arc<Mutex<Option<Code>>>,
}

/// How long a driver takes for it.
#[derive(Clone, Copy, Default)]
enum Unstaging {
    #[default]
    Quick,
    /// Until another call comes for the volume, which none is to; or long enough for one to have come.
    Slow,
    Endless,
}

/// A call that is under way.
struct Call {
    driver: Driver,
    volume: String,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.driver.under_way.lock().remove(&self.volume);
    }
}

impl Driver {
    /// Listens on both sockets, below the node's directory.
    fn start(root: &Path) -> Self {
        let (registry, own) = (root.join("plugins_registry"), root.join("plugins").join(DRIVER));
        let source = root.join("source");
        for dir in [&registry, &own, &source] {
            std::fs::create_dir_all(dir).expect("a directory");
        }
        std::fs::write(source.join("hello"), "from the driver").expect("written");
        let socket = own.join("csi.sock");
        let driver = Self {
            socket,
            source,
            calls: Arc::default(),
            under_way: Arc::default(),
            overlapped: Arc::default(),
            unstaging: Arc::default(),
            refuses: Arc::default(),
            told: Arc::default(),
            asked: Arc::default(),
            refuses_to_grow: Arc::default(),
        };
        let listen = |path: &Path| UnixListener::bind(path).expect("bound");
        let (node, registration) = (listen(&driver.socket), listen(&registry.join("test-reg.sock")));
        tokio::spawn(serve(node, NodeServer::new(driver.clone())));
        tokio::spawn(serve(registration, RegistrationServer::new(driver.clone())));
        driver
    }

    fn called(&self, call: String) {
        self.calls.lock().push(call);
    }

    fn begin(&self, volume: &str) -> Call {
        if !self.under_way.lock().insert(volume.to_owned()) {
            self.called(format!("two calls at a time for {volume}"));
            self.overlapped.notify_one();
        }
        Call { driver: self.clone(), volume: volume.to_owned() }
    }
}

#[async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.socket.to_string_lossy().into_owned(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        self.told.lock().push(status.into_inner());
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[async_trait]
impl NodeService for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let _call = self.begin(&request.volume_id);
        self.called(format!("stage {} {}", request.volume_id, request.volume_context["color"]));
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let volume = request.into_inner().volume_id;
        let _call = self.begin(&volume);
        self.called(format!("unstage {volume}"));
        let how = *self.unstaging.lock();
        match how {
            Unstaging::Quick => {}
            Unstaging::Slow => {
                drop(tokio::time::timeout(Duration::from_secs(1), self.overlapped.notified()).await)
            }
            Unstaging::Endless => std::future::pending().await,
        }
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let _call = self.begin(&request.volume_id);
        if *self.refuses.lock() {
            return Err(Status::unavailable("the vault is sealed"));
        }
        let target = Path::new(&request.target_path);
        let failed = |error: std::io::Error| Status::internal(error.to_string());
        let capability = request.volume_capability.clone().and_then(|capability| capability.access_type);
        if matches!(capability, Some(volume_capability::AccessType::Block(_))) {
            // The number of a loop device, whether there is one or not: nothing is read of it.
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
            let made = nix::sys::stat::mknod(target, SFlag::S_IFBLK, mode, nix::sys::stat::makedev(7, 0));
            made.map_err(|error| failed(error.into()))?;
        } else {
            std::fs::create_dir_all(target).map_err(failed)?;
            mounts::bind(&self.source, target).map_err(failed)?;
        }
        let pod = request.volume_context.get("csi.storage.k8s.io/pod.name").cloned().unwrap_or_default();
        self.called(format!("publish {} read-only {} for {pod}", request.volume_id, request.readonly));
        if let Some(tokens) = request.volume_context.get("csi.storage.k8s.io/serviceAccount.tokens") {
            self.called(format!("tokens {tokens}"));
        }
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let _call = self.begin(&request.volume_id);
        let target = Path::new(&request.target_path);
        match target.is_dir() {
            true => mounts::unmount_below(target),
            // By CSI's rules, absent is success.
            false if !target.exists() => Ok(()),
            false => std::fs::remove_file(target),
        }
        .map_err(|e| Status::internal(e.to_string()))?;
        self.called(format!("unpublish {}", request.volume_id));
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        use node_service_capability::rpc::Type::{ExpandVolume, StageUnstageVolume};
        let capability = |kind: node_service_capability::rpc::Type| {
            let rpc = node_service_capability::Rpc { r#type: kind.into() };
            NodeServiceCapability { r#type: Some(node_service_capability::Type::Rpc(rpc)) }
        };
        *self.asked.lock() += 1;
        let capabilities = [StageUnstageVolume, ExpandVolume].map(capability).into();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let bytes = request.capacity_range.map(|range| range.required_bytes).unwrap_or_default();
        assert!(Path::new(&request.volume_path).join("hello").exists(), "it is shown");
        assert!(request.staging_target_path.ends_with("/globalmount"), "{}", request.staging_target_path);
        self.called(format!("expand {} to {bytes}", request.volume_id));
        if let Some(code) = *self.refuses_to_grow.lock() {
            return Err(Status::new(code, "not now"));
        }
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: bytes }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let segments = [("topology.test/zone".to_owned(), "z1".to_owned())].into();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "id-of-n1".into(),
            max_volumes_per_node: 7,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}

fn put<K: Kind>(node: &Node, namespace: Option<&str>, object: Value) {
    let name = object["metadata"]["name"].as_str().expect("named").to_owned();
    node.api.store(&Target::object(GroupVersionResource::of::<K>(), namespace, &name), object);
}

/// A claim `data` that is bound to a volume of the driver's, which needs no attaching and asks who uses it.
fn put_volume(node: &Node) {
    put::<CSIDriver>(
        node,
        None,
        json!({ "metadata": { "name": DRIVER }, "spec": { "attachRequired": false, "podInfoOnMount": true } }),
    );
    let source =
        json!({ "driver": DRIVER, "volumeHandle": "vol-1", "volumeAttributes": { "color": "blue" } });
    put::<PersistentVolume>(
        node,
        None,
        json!({ "metadata": { "name": "pv-1" }, "spec": { "accessModes": ["ReadWriteOnce"], "csi": source } }),
    );
    put::<PersistentVolumeClaim>(
        node,
        Some("default"),
        json!({
            "metadata": { "name": "data", "namespace": "default" },
            "spec": { "volumeName": "pv-1" }, "status": { "phase": "Bound" },
        }),
    );
}

fn with_volume(volume: Volume) -> PodSpec {
    let mut main = container("web");
    main.volume_mounts = Some(vec![VolumeMount {
        name: volume.name.clone(),
        mount_path: "/data".into(),
        ..VolumeMount::default()
    }]);
    PodSpec { volumes: Some(vec![volume]), ..spec("Always", vec![main]) }
}

fn claimed() -> PodSpec {
    let claim = PersistentVolumeClaimVolumeSource { claim_name: "data".into(), read_only: None };
    with_volume(Volume { name: "v".into(), persistent_volume_claim: Some(claim), ..Volume::default() })
}

fn can_mount() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: mounting needs root");
    }
    root
}

/// A node with the driver on it, where mounting is allowed.
fn start() -> Option<(Node, Driver)> {
    can_mount().then(|| {
        let node = Node::start();
        let driver = Driver::start(node.dir.path());
        (node, driver)
    })
}

/// Where it is noted that the volume is staged; upstream's place.
fn staging_note(node: &Node) -> PathBuf {
    // SHA-256 of the handle.
    let digest = "d2e8363faaac7ae76def3b14091d8eb5755f6b92e9531627aeec833a8731cc49";
    node.dir.path().join("plugins/kubernetes.io/csi").join(DRIVER).join(digest).join("vol_data.json")
}

/// Where the container of the pod sees `/data` from.
fn data_of(node: &Node, pod: &str) -> PathBuf {
    let running = node.runtime.find(&uid(pod), "web").expect("runs");
    let mounts = node.runtime.config_of(&running.id).expect("made").mounts;
    mounts.into_iter().find(|m| m.container_path == Path::new("/data")).expect("mounted").host_path
}

#[tokio::test]
async fn driver_is_registered_and_its_volume_shared_by_two_pods() {
    let Some((node, driver)) = start() else { return };
    let entered = node.wait("the CSINode object", || node.api.object("csinodes", "n1")).await;
    let expected = json!([{
        "name": DRIVER, "nodeID": "id-of-n1", "topologyKeys": ["topology.test/zone"], "allocatable": { "count": 7 },
    }]);
    assert_eq!(entered["spec"]["drivers"], expected);
    let labels = &node.api.object("nodes", "n1").expect("registered")["metadata"]["labels"];
    assert_eq!(labels["topology.test/zone"], "z1");
    node.wait("the driver to be told", || {
        driver.told.lock().first().cloned().filter(|s| s.plugin_registered)
    })
    .await;

    put_volume(&node);
    for pod in ["one", "two"] {
        node.bind(pod, claimed());
        node.wait_running(pod).await;
        let hello = std::fs::read_to_string(data_of(&node, pod).join("hello")).expect("readable");
        assert_eq!(hello, "from the driver");
    }
    node.delete("one", 0);
    node.wait_gone("one").await;
    assert!(!driver.calls.lock().iter().any(|call| call.starts_with("unstage")), "the other one uses it");
    // Whoever deletes it is another process, which has but what is on disk.
    let node = node.restart().await;
    node.wait("the worker", || (!node.kubelet.pods.is_empty()).then_some(())).await;
    node.delete("two", 0);
    node.wait_gone("two").await;
    let calls = driver.calls.lock().clone();
    let expected = [
        "stage vol-1 blue",
        "publish vol-1 read-only false for one",
        "stage vol-1 blue",
        "publish vol-1 read-only false for two",
        "unpublish vol-1",
        "unpublish vol-1",
        "unstage vol-1",
    ];
    assert_eq!(calls, expected);
    assert!(!node.dir.path().join("pods").join(uid("two")).exists());
    let source = node.dir.path().join("source/hello");
    assert_eq!(std::fs::read_to_string(source).expect("still there"), "from the driver");
}

#[tokio::test]
async fn block_volume_is_a_device_of_the_container() {
    let Some((node, driver)) = start() else { return };
    put_volume(&node);
    let mut volume = node.api.object("persistentvolumes", "pv-1").expect("put");
    volume["spec"]["volumeMode"] = "Block".into();
    put::<PersistentVolume>(&node, None, volume);
    let mut pod = claimed();
    pod.containers[0].volume_mounts = None;
    let device = VolumeDevice { name: "v".into(), device_path: "/dev/data".into() };
    pod.containers[0].volume_devices = Some(vec![device]);
    node.bind("web", pod);
    node.wait_running("web").await;
    let running = node.runtime.find(&uid("web"), "web").expect("runs");
    let config = node.runtime.config_of(&running.id).expect("made");
    let mapping = &config.devices[0];
    assert_eq!(mapping.container_path, Path::new("/dev/data"));
    assert_eq!(mapping.permissions, "mrw");
    let kind = std::fs::metadata(&mapping.host_path).expect("there").file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_block_device(&kind));
    let node = node.restart().await;
    node.wait("the worker", || (!node.kubelet.pods.is_empty()).then_some(())).await;
    node.delete("web", 0);
    node.wait_gone("web").await;
    let calls = driver.calls.lock().clone();
    assert_eq!(calls.iter().filter(|call| call.starts_with("publish")).count(), 1, "{calls:?}");
    assert!(calls.ends_with(&["unpublish vol-1".into(), "unstage vol-1".into()]), "{calls:?}");
    // In the wrong place it is an error that says so.
    node.bind("mixed", claimed());
    let status = node
        .wait_status("mixed", "the error", |s| {
            s.container_statuses.as_ref().is_some_and(|all| {
                all[0].state.as_ref().is_some_and(|s| s.waiting.as_ref().is_some_and(|w| w.message.is_some()))
            })
        })
        .await;
    let state = status.container_statuses.expect("statuses")[0].state.clone().expect("a state");
    let told = "volume \"v\" has volumeMode Block, but is specified in volumeMounts";
    assert_eq!(state.waiting.expect("waits").message.as_deref(), Some(told));
}

#[tokio::test]
async fn volume_of_a_pods_own_waits_for_its_driver() {
    if !can_mount() {
        return;
    }
    let node = Node::start();
    let source =
        CSIVolumeSource { driver: DRIVER.into(), read_only: Some(true), ..CSIVolumeSource::default() };
    node.bind("web", with_volume(Volume { name: "v".into(), csi: Some(source), ..Volume::default() }));
    node.wait("the event", || {
        let told = "driver name test.csi not found in the list of registered CSI drivers";
        node.api.events().into_iter().find(|event| event.contains(told))
    })
    .await;
    let driver = Driver::start(node.dir.path());
    node.wait_running("web").await;
    assert!(data_of(&node, "web").join("hello").exists());
    node.delete("web", 0);
    node.wait_gone("web").await;
    let calls = driver.calls.lock().clone();
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(calls[0].starts_with("publish csi-") && calls[0].contains(" read-only true "), "{calls:?}");
    assert!(calls[1].starts_with("unpublish csi-"), "{calls:?}");
}

#[tokio::test]
async fn volume_is_mounted_after_it_is_listed_as_in_use_and_as_attached() {
    let Some((node, driver)) = start() else { return };
    node.wait("the CSINode object", || node.api.object("csinodes", "n1")).await;
    put_volume(&node);
    put::<CSIDriver>(
        &node,
        None,
        json!({ "metadata": { "name": DRIVER }, "spec": { "attachRequired": true } }),
    );
    node.bind("web", claimed());
    let in_use = || node.api.object("nodes", "n1").map(|object| object["status"]["volumesInUse"].clone());
    node.wait("the volume to be in use", || {
        in_use().filter(|volumes| *volumes == json!(["kubernetes.io/csi/test.csi^vol-1"]))
    })
    .await;
    node.wait("the event", || {
        let told = "volume vol-1 is not attached to this node yet";
        node.api.events().into_iter().find(|event| event.contains(told))
    })
    .await;
    assert!(driver.calls.lock().is_empty(), "nothing is mounted");
    // As the driver's attacher and the controller do; the name is a digest of handle, driver and node.
    put::<VolumeAttachment>(
        &node,
        None,
        json!({
            "metadata": { "name": "csi-65d96208ade70ffccf3b2ed60aed72b20336b2d692a0aadcee8ae0c6c7b8bd09" },
            "spec": { "attacher": DRIVER, "nodeName": "n1", "source": { "persistentVolumeName": "pv-1" } },
            "status": { "attached": true },
        }),
    );
    let mut object = node.api.object("nodes", "n1").expect("registered");
    object["status"]["volumesAttached"] =
        json!([{ "name": "kubernetes.io/csi/test.csi^vol-1", "devicePath": "" }]);
    put::<k8s_openapi::api::core::v1::Node>(&node, None, object);
    node.wait_running("web").await;
    node.delete("web", 0);
    node.wait_gone("web").await;
    node.wait("the volume to be free", || in_use().filter(Value::is_null)).await;
}

#[tokio::test]
async fn what_is_on_a_volume_grows_after_the_volume() {
    let Some((node, driver)) = start() else { return };
    put_volume(&node);
    grow(&node, "2Gi", "1Gi");
    node.bind("web", claimed());
    node.wait_running("web").await;
    let status = node.api.object("persistentvolumeclaims", "default/data").expect("put")["status"].clone();
    assert_eq!(status["capacity"], json!({ "storage": "2Gi" }));
    assert_eq!(status["conditions"], json!([{ "type": "ModifyingVolume", "status": "True" }]));
    let calls = driver.calls.lock().clone();
    assert_eq!(calls[2..], ["expand vol-1 to 2147483648"]);
    node.wait("the event", || {
        node.api.events().into_iter().find(|event| event.contains("NodeExpandVolume succeeded"))
    })
    .await;
    node.delete("web", 0);
    node.wait_gone("web").await;
}

/// Between two sizes that the API tells of.
fn grow(node: &Node, capacity: &str, known: &str) {
    let mut volume = node.api.object("persistentvolumes", "pv-1").expect("put");
    volume["spec"]["capacity"] = json!({ "storage": capacity });
    put::<PersistentVolume>(node, None, volume);
    let mut claim = node.api.object("persistentvolumeclaims", "default/data").expect("put");
    claim["status"]["capacity"] = json!({ "storage": known });
    claim["status"]["conditions"] = json!([
        { "type": "FileSystemResizePending", "status": "True" },
        { "type": "ModifyingVolume", "status": "True" },
    ]);
    put::<PersistentVolumeClaim>(node, Some("default"), claim);
}

#[tokio::test]
async fn pod_has_a_volume_that_does_not_grow_as_it_was() {
    let Some((node, driver)) = start() else { return };
    put_volume(&node);
    grow(&node, "2Gi", "1Gi");
    *driver.refuses_to_grow.lock() = Some(Code::Unavailable);
    node.bind("one", claimed());
    node.wait_running("one").await;
    let event = "VolumeResizeFailed: NodeExpandVolume.NodeExpandVolume failed for volume \"pv-1\" : test.csi: \
                 rpc error: code = Unavailable desc = not now";
    node.wait("the event", || node.api.events().into_iter().find(|told| told == event)).await;
    let status = || node.api.object("persistentvolumeclaims", "default/data").expect("put")["status"].clone();
    assert_eq!(status()["capacity"], json!({ "storage": "1Gi" }));
    let conditions = status()["conditions"].clone();
    assert_eq!(conditions[0]["type"], "FileSystemResizePending");
    assert_eq!(
        (&conditions[2]["type"], &conditions[2]["status"]),
        (&json!("NodeResizeError"), &json!("True"))
    );

    *driver.refuses_to_grow.lock() = Some(Code::OutOfRange);
    node.bind("two", claimed());
    node.wait_running("two").await;
    assert_eq!(status()["allocatedResourceStatuses"], json!({ "storage": "NodeResizeInfeasible" }));
    let expansions = || driver.calls.lock().iter().filter(|call| call.starts_with("expand")).count();
    assert_eq!(expansions(), 2);
    node.bind("three", claimed());
    node.wait_running("three").await;
    assert_eq!(expansions(), 2, "it would say the same");
    for pod in ["one", "two", "three"] {
        node.delete(pod, 0);
        node.wait_gone(pod).await;
    }
}

/// The container of that pod ends, and is started again, for which its volumes have to be there.
async fn started_again(node: &Node, pod: &str) {
    let first = node.runtime.find(&uid(pod), "web").expect("runs");
    node.runtime.exit(&first.id, 1);
    node.wait("it to be started again", || {
        node.runtime.find(&uid(pod), "web").filter(|found| found.attempt > first.attempt)
    })
    .await;
}

#[tokio::test]
async fn nobody_is_asked_about_what_is_shown() {
    let Some((node, driver)) = start() else { return };
    put_volume(&node);
    for pod in ["one", "two"] {
        node.bind(pod, claimed());
        node.wait_running(pod).await;
    }
    assert_eq!((node.api.reads("csidrivers"), *driver.asked.lock()), (1, 1), "for the first");
    let node = node.restart().await;
    node.wait("the worker", || (!node.kubelet.pods.is_empty()).then_some(())).await;
    started_again(&node, "one").await;
    assert_eq!((node.api.reads("csidrivers"), *driver.asked.lock()), (0, 1), "of this agent none");
    // Nor waited for.
    let node = node.stop().await.start_offline_again();
    *node.api.silent.lock() = true;
    node.wait("the worker", || (!node.kubelet.pods.is_empty()).then_some(())).await;
    started_again(&node, "two").await;
    *node.api.silent.lock() = false;
}

#[tokio::test]
async fn driver_that_wants_it_gets_tokens_and_is_asked_again() {
    let Some((node, driver)) = start() else { return };
    let requests = json!([{ "audience": "vault", "expirationSeconds": 600 }]);
    let spec = json!({ "attachRequired": false, "requiresRepublish": true, "tokenRequests": requests });
    put::<CSIDriver>(&node, None, json!({ "metadata": { "name": DRIVER }, "spec": spec }));
    let source = CSIVolumeSource { driver: DRIVER.into(), ..CSIVolumeSource::default() };
    node.bind("web", with_volume(Volume { name: "v".into(), csi: Some(source), ..Volume::default() }));
    node.wait_running("web").await;
    let told = |from: usize| {
        let calls = driver.calls.lock().clone();
        calls.into_iter().skip(from).find(|call| call.starts_with("tokens"))
    };
    let tokens = told(0).expect("tokens");
    assert!(
        tokens.starts_with("tokens {\"vault\":{\"token\":\"a-token\",\"expirationTimestamp\":\""),
        "{tokens}"
    );
    // An agent that starts looks at all volumes again.
    let before = driver.calls.lock().len();
    let node = node.restart().await;
    node.wait("the driver to be asked again", || told(before)).await;
    node.delete("web", 0);
    node.wait_gone("web").await;
}

#[tokio::test]
async fn volume_is_not_staged_for_a_pod_while_it_is_unstaged_after_another() {
    let Some((node, driver)) = start() else { return };
    put_volume(&node);
    node.bind("one", claimed());
    node.wait_running("one").await;
    *driver.unstaging.lock() = Unstaging::Slow;
    node.delete("one", 0);
    let unstaged = || driver.calls.lock().iter().any(|call| call == "unstage vol-1").then_some(());
    node.wait("the call", unstaged).await;
    node.bind("two", claimed());
    node.wait_running("two").await;
    let expected = [
        "stage vol-1 blue",
        "publish vol-1 read-only false for one",
        "unpublish vol-1",
        "unstage vol-1",
        "stage vol-1 blue",
        "publish vol-1 read-only false for two",
    ];
    assert_eq!(*driver.calls.lock(), expected);
    assert!(staging_note(&node).exists());
    node.delete("two", 0);
    node.wait_gone("two").await;
    assert!(!staging_note(&node).exists());
}

#[tokio::test]
async fn volume_that_an_agent_that_died_was_unstaging_is_unstaged_by_the_next() {
    let Some((node, driver)) = start() else { return };
    put_volume(&node);
    node.bind("web", claimed());
    node.wait_running("web").await;
    *driver.unstaging.lock() = Unstaging::Endless;
    node.delete("web", 0);
    let count = || driver.calls.lock().iter().filter(|call| *call == "unstage vol-1").count();
    node.wait("the call", || (count() == 1).then_some(())).await;
    let node = node.stop().await;
    *driver.unstaging.lock() = Unstaging::Quick;
    let node = node.restart().await;
    node.wait_gone("web").await;
    assert_eq!(count(), 2);
    assert!(!staging_note(&node).exists());
}

#[tokio::test]
async fn volume_that_is_staged_for_no_pod_is_unstaged_at_the_start() {
    let Some((node, driver)) = start() else { return };
    put_volume(&node);
    node.bind("web", claimed());
    node.wait_running("web").await;
    let note = std::fs::read(staging_note(&node)).expect("noted");
    node.delete("web", 0);
    node.wait_gone("web").await;
    // As whoever dies before the note is removed leaves it: what was in the directory is gone already.
    let node = node.stop().await;
    std::fs::create_dir_all(staging_note(&node).parent().expect("a directory")).expect("made");
    std::fs::write(staging_note(&node), note).expect("written");
    driver.calls.lock().clear();
    let node = node.restart().await;
    node.wait("it to be unstaged", || (!staging_note(&node).exists()).then_some(())).await;
    assert_eq!(*driver.calls.lock(), ["unstage vol-1"]);
    let in_use = || node.api.object("nodes", "n1").map(|object| object["status"]["volumesInUse"].clone());
    node.wait("the volume to be free", || in_use().filter(Value::is_null)).await;
}

#[tokio::test]
async fn volume_that_is_not_shown_anew_holds_up_none_of_the_others() {
    let Some((node, driver)) = start() else { return };
    let spec = json!({ "attachRequired": false, "requiresRepublish": true });
    put::<CSIDriver>(&node, None, json!({ "metadata": { "name": DRIVER }, "spec": spec }));
    let settings = |color: &str| ConfigMap {
        metadata: ObjectMeta {
            name: Some("settings".into()),
            namespace: Some("default".into()),
            ..ObjectMeta::default()
        },
        data: Some([("color".to_owned(), color.to_owned())].into()),
        ..ConfigMap::default()
    };
    node.objects.config_maps.put(settings("red"));
    let source = CSIVolumeSource { driver: DRIVER.into(), ..CSIVolumeSource::default() };
    let mut pod = with_volume(Volume { name: "v".into(), csi: Some(source), ..Volume::default() });
    let source = ConfigMapVolumeSource { name: "settings".into(), ..ConfigMapVolumeSource::default() };
    let later = Volume { name: "later".into(), config_map: Some(source), ..Volume::default() };
    pod.volumes.as_mut().expect("volumes").push(later);
    node.bind("web", pod);
    node.wait_running("web").await;

    *driver.refuses.lock() = true;
    node.objects.config_maps.put(settings("blue"));
    let volumes = node.dir.path().join("pods").join(uid("web")).join("volumes");
    let shown = || std::fs::read_to_string(volumes.join("kubernetes.io~configmap/later/color")).ok();
    node.wait("the later volume", || (shown()? == "blue").then_some(())).await;
    let told = "FailedMount: MountVolume.SetUp failed for volume \"v\" : test.csi: rpc error: code = Unavailable \
                desc = the vault is sealed";
    node.wait("the event", || node.api.events().iter().any(|event| event == told).then_some(())).await;
    // It is there as before, for containers that start.
    let first = node.runtime.find(&uid("web"), "web").expect("runs");
    node.runtime.exit(&first.id, 1);
    node.wait("another one", || node.runtime.find(&uid("web"), "web").filter(|c| c.id != first.id)).await;
    assert!(data_of(&node, "web").join("hello").exists());
    node.delete("web", 0);
    node.wait_gone("web").await;
}
