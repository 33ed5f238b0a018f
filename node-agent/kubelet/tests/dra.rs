//! Dynamic resource allocation with a small driver of the test's own: claims are prepared, used, and given back.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use common::agent::{Agent, shell, test_node};
use common::{FakeApi, Node, container, pod, spec, uid};
use hawser_api::GroupVersionResource;
use hawser_api::resource::Target;
use hawser_kubelet::Config;
use hawser_kubelet::dra::Dra;
use hawser_kubelet::dra::driver::proto::v1::dra_plugin_server::{DraPlugin, DraPluginServer};
use hawser_kubelet::dra::driver::proto::v1::*;
use hawser_kubelet::dra::driver::proto::v1beta1::dra_plugin_server as beta;
use hawser_kubelet::plugins::proto::registration_server::{Registration, RegistrationServer};
use hawser_kubelet::plugins::proto::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use hawser_kubelet::pod::DesiredPod;
use hawser_kubelet::sockets::serve;
use hawser_runtime::testing::ImagePack;
use k8s_openapi::api::core::v1::{Container, PodResourceClaim, PodSpec, ResourceRequirements};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, async_trait};

const DRIVER: &str = "gpu.test";

#[derive(Clone, Default)]
struct Driver {
    socket: PathBuf,
    versions: Vec<String>,
    /// `prepare <claim>`, `unprepare <claim>`
    calls: Arc<Mutex<Vec<String>>>,
    /// What the kubelet told of the registration.
    told: Arc<Mutex<Vec<String>>>,
    /// Why nothing can be prepared.
    fails: Arc<Mutex<Option<String>>>,
    /// Nothing is taken back.
    keeps: Arc<Mutex<bool>>,
    /// It fails as often when it is told of its registration.
    deaf: Arc<Mutex<u32>>,
    /// What it makes when it prepares, to be in somebody's way.
    obstacle: Arc<Mutex<Option<PathBuf>>>,
    /// Prepares, and never answers.
    hangs: Arc<Mutex<bool>>,
    /// Where it says what a container needs for its devices, as a driver of the world does.
    cdi_dir: Arc<Mutex<Option<PathBuf>>>,
}

/// A driver that runs; gone, with its sockets, when it is dropped.
struct Running {
    driver: Driver,
    sockets: [PathBuf; 2],
    _serving: [AbortOnDropHandle<()>; 2],
}

impl Drop for Running {
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl Driver {
    fn start(root: &Path, version: &str) -> Running {
        Self::start_deaf(root, version, 0)
    }

    fn start_deaf(root: &Path, version: &str, deaf: u32) -> Running {
        let registry = root.join("plugins_registry");
        std::fs::create_dir_all(&registry).expect("made");
        let sockets = [root.join(format!("{version}.sock")), registry.join(format!("{version}-reg.sock"))];
        let driver = Self {
            socket: sockets[0].clone(),
            versions: vec![version.to_owned()],
            deaf: Arc::new(Mutex::new(deaf)),
            ..Self::default()
        };
        let listen = |socket: &PathBuf| UnixListener::bind(socket).expect("bound");
        let (node, registration) = (listen(&sockets[0]), listen(&sockets[1]));
        let (service, registered) = (driver.clone(), driver.clone());
        let serving = match version {
            "v1.DRAPlugin" => {
                tokio::spawn(async move { drop(serve(node, DraPluginServer::new(service)).await) })
            }
            _ => tokio::spawn(async move { drop(serve(node, beta::DraPluginServer::new(service)).await) }),
        };
        let registering =
            tokio::spawn(async move { drop(serve(registration, RegistrationServer::new(registered)).await) });
        let serving = [AbortOnDropHandle::new(serving), AbortOnDropHandle::new(registering)];
        Running { driver, sockets, _serving: serving }
    }

    async fn do_prepare(&self, claims: Vec<Claim>) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        for claim in &claims {
            self.calls.lock().push(format!("prepare {}", claim.name));
        }
        if let Some(dir) = self.obstacle.lock().take() {
            std::fs::create_dir(dir).expect("made");
        }
        if *self.hangs.lock() {
            std::future::pending::<()>().await;
        }
        let error = self.fails.lock().clone().unwrap_or_default();
        for claim in &claims {
            self.describe(&claim.name);
        }
        let device = |claim: &Claim, number: &str, request: &str| Device {
            request_names: vec![request.into()],
            pool_name: "pool".into(),
            device_name: format!("gpu{number}"),
            cdi_device_ids: vec![format!("{DRIVER}/gpu={}-{number}", claim.name)],
        };
        let prepared = claims.iter().map(|claim| {
            let devices = vec![device(claim, "0", "one"), device(claim, "1", "two/large")];
            (claim.uid.clone(), NodePrepareResourceResponse { devices, error: error.clone() })
        });
        Ok(Response::new(NodePrepareResourcesResponse { claims: prepared.collect::<HashMap<_, _>>() }))
    }

    fn cdi_file(&self, claim: &str) -> Option<PathBuf> {
        self.cdi_dir.lock().as_ref().map(|dir| dir.join(format!("{DRIVER}-{claim}.json")))
    }

    /// Each device of the claim is a variable and a device.
    fn describe(&self, claim: &str) {
        let Some(file) = self.cdi_file(claim) else { return };
        let device = |number: u32| {
            let node = json!({ "path": format!("/dev/gpu{number}"), "hostPath": "/dev/null" });
            let edits = json!({ "env": [format!("GPU{number}={claim}-{number}")], "deviceNodes": [node] });
            json!({ "name": format!("{claim}-{number}"), "containerEdits": edits })
        };
        let kind = format!("{DRIVER}/gpu");
        let spec = json!({ "cdiVersion": "0.6.0", "kind": kind, "devices": [device(0), device(1)] });
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("made");
        std::fs::write(file, spec.to_string()).expect("written");
    }

    async fn do_unprepare(
        &self,
        claims: Vec<Claim>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        for claim in &claims {
            self.calls.lock().push(format!("unprepare {}", claim.name));
        }
        if *self.keeps.lock() {
            return Err(Status::unavailable("busy"));
        }
        for file in claims.iter().filter_map(|claim| self.cdi_file(&claim.name)) {
            std::fs::remove_file(file).expect("there");
        }
        let done = claims.into_iter().map(|claim| (claim.uid, NodeUnprepareResourceResponse::default()));
        Ok(Response::new(NodeUnprepareResourcesResponse { claims: done.collect::<HashMap<_, _>>() }))
    }
}

#[async_trait]
impl DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        self.do_prepare(request.into_inner().claims).await
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        self.do_unprepare(request.into_inner().claims).await
    }
}

#[async_trait]
impl beta::DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        self.do_prepare(request.into_inner().claims).await
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        self.do_unprepare(request.into_inner().claims).await
    }
}

#[async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.socket.display().to_string(),
            supported_versions: self.versions.clone(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let deaf = std::mem::take(&mut *self.deaf.lock());
        if deaf > 0 {
            *self.deaf.lock() = deaf - 1;
            return Err(Status::unavailable("not yet"));
        }
        self.told.lock().push(format!("{} {}", status.plugin_registered, status.error));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

fn put_claim(api: &FakeApi, name: &str, reserved_for: &[&str]) {
    let target = Target::object(GroupVersionResource::of::<ResourceClaim>(), Some("default"), name);
    let users = reserved_for.iter().map(|pod| json!({ "resource": "pods", "name": pod, "uid": uid(pod) }));
    let result = |request: &str, device: &str| json!({ "request": request, "driver": DRIVER, "pool": "pool", "device": device });
    let object = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": { "name": name, "namespace": "default", "uid": format!("uid-of-{name}") },
        "spec": { "devices": {} },
        "status": {
            "reservedFor": users.collect::<Vec<Value>>(),
            "allocation": { "devices": { "results": [result("one", "gpu0"), result("two/large", "gpu1")] } },
        },
    });
    api.store(&target, object);
}

/// A pod whose one container uses all of the claim, and whose other uses one request.
fn using(claim: &str) -> PodSpec {
    with_claim(claim, ["all", "part", "none"].map(container))
}

fn with_claim(claim: &str, [mut all, mut part, none]: [Container; 3]) -> PodSpec {
    let uses = |value: Value| {
        let claims = serde_json::from_value(value).expect("claims");
        Some(ResourceRequirements { claims: Some(claims), ..ResourceRequirements::default() })
    };
    all.resources = uses(json!([{ "name": "gpu" }]));
    part.resources = uses(json!([{ "name": "gpu", "request": "two" }]));
    let mut spec = spec("Always", vec![all, part, none]);
    let claim = PodResourceClaim {
        name: "gpu".into(),
        resource_claim_name: Some(claim.into()),
        resource_claim_template_name: None,
    };
    spec.resource_claims = Some(vec![claim]);
    spec
}

fn cdi_devices(node: &Node, pod: &str, container: &str) -> Vec<String> {
    let found = node.runtime.find(&uid(pod), container).expect("runs");
    node.runtime.config_of(&found.id).expect("known").cdi_devices
}

async fn registered(node: &Node, running: &Running) {
    let told = running.driver.told.clone();
    node.wait("the registration", || (told.lock().first()? == "true ").then_some(())).await;
}

async fn gone(node: &Node, pod: &str) {
    node.delete(pod, 0);
    node.wait_gone(pod).await;
}

async fn shared_by_two_pods(version: &str) {
    let node = Node::start();
    let running = Driver::start(node.dir.path(), version);
    let calls = || running.driver.calls.lock().clone();
    registered(&node, &running).await;
    put_claim(&node.api, "shared", &["one", "two"]);
    node.bind("one", using("shared"));
    node.wait_running("one").await;
    assert_eq!(cdi_devices(&node, "one", "all"), ["gpu.test/gpu=shared-0", "gpu.test/gpu=shared-1"]);
    assert_eq!(cdi_devices(&node, "one", "part"), ["gpu.test/gpu=shared-1"]);
    assert_eq!(cdi_devices(&node, "one", "none"), [""; 0]);
    node.bind("two", using("shared"));
    node.wait_running("two").await;
    assert_eq!(calls(), ["prepare shared"]);

    // A new agent knows it, without the API or the driver.
    let node = node.restart_offline().await;
    node.wait("the workers", || (node.kubelet.pods.len() == 2).then_some(())).await;
    node.api_returns();
    gone(&node, "one").await;
    assert_eq!(calls(), ["prepare shared"], "the other uses it");
    gone(&node, "two").await;
    assert_eq!(calls(), ["prepare shared", "unprepare shared"]);
}

#[tokio::test]
async fn claim_is_prepared_once_and_given_back_with_its_last_pod() {
    shared_by_two_pods("v1.DRAPlugin").await;
}

#[tokio::test]
async fn driver_of_the_older_version_is_spoken_to_as_well() {
    shared_by_two_pods("v1beta1.DRAPlugin").await;
}

#[tokio::test]
async fn driver_that_has_not_heard_of_its_registration_is_told_again() {
    let node = Node::start();
    // The first in the directory's order, and nobody answers.
    let registry = node.dir.path().join("plugins_registry");
    std::fs::create_dir_all(&registry).expect("made");
    let _silent = UnixListener::bind(registry.join("a-silent.sock")).expect("bound");
    let running = Driver::start_deaf(node.dir.path(), "v1.DRAPlugin", 2);
    registered(&node, &running).await;
    assert_eq!(running.driver.told.lock().as_slice(), ["true "]);
}

#[tokio::test]
async fn pod_ends_for_the_api_when_its_devices_are_given_back() {
    let node = Node::start();
    let running = Driver::start(node.dir.path(), "v1.DRAPlugin");
    registered(&node, &running).await;
    put_claim(&node.api, "gpus", &["web"]);
    node.bind("web", PodSpec { restart_policy: Some("Never".into()), ..using("gpus") });
    node.wait_running("web").await;
    *running.driver.keeps.lock() = true;
    for name in ["all", "part", "none"] {
        let found = node.wait("the container", || node.runtime.find(&uid("web"), name)).await;
        node.runtime.exit(&found.id, 0);
    }
    let asked = || running.driver.calls.lock().iter().filter(|call| *call == "unprepare gpus").count();
    node.wait("a second try", || (asked() >= 2).then_some(())).await;
    assert_eq!(node.status("web").phase.as_deref(), Some("Running"));
    let note = std::fs::read_to_string(node.dir.path().join("dra_manager_state")).expect("a note");
    assert!(note.contains("\"Prepared\":false"), "it may be taken back by now: {note}");
    *running.driver.keeps.lock() = false;
    node.wait_status("web", "its end", |s| s.phase.as_deref() == Some("Succeeded")).await;
}

#[tokio::test]
async fn pod_waits_for_its_driver_and_for_what_it_prepares() {
    let node = Node::start();
    put_claim(&node.api, "gpus", &["web"]);
    node.bind("web", using("gpus"));
    let told = |text: &str| {
        let text = format!("FailedPrepareDynamicResources: Failed to prepare dynamic resources: {text}");
        node.api.events().contains(&text).then_some(())
    };
    node.wait("the missing driver", || told("DRA driver gpu.test is not registered")).await;
    let running = Driver::start(node.dir.path(), "v1.DRAPlugin");
    *running.driver.fails.lock() = Some("no power".into());
    let failed = "NodePrepareResources failed for ResourceClaim gpus: no power";
    node.wait("the failure", || told(failed)).await;
    assert!(node.runtime.find(&uid("web"), "all").is_none(), "nothing is made without its devices");
    *running.driver.fails.lock() = None;
    node.wait_running("web").await;
    gone(&node, "web").await;
    assert_eq!(running.driver.calls.lock().last().map(String::as_str), Some("unprepare gpus"));
}

#[tokio::test]
async fn claim_is_not_used_before_it_is_noted() {
    let node = Node::start_offline(|_| {});
    let running = Driver::start(node.dir.path(), "v1.DRAPlugin");
    put_claim(&node.api, "gpus", &["web"]);
    *node.api.down.lock() = false;
    let own = tempfile::tempdir().expect("a directory");
    let dra = Dra::load(&Config::new("n2", [10, 0, 0, 2].into(), own.path()), node.api.clone());
    let driver = &running.driver;
    dra.add_driver(DRIVER, driver.socket.clone(), &driver.versions).expect("taken");
    // After what is begun, and before what is prepared.
    let obstacle = own.path().join("dra_manager_state.new");
    *driver.obstacle.lock() = Some(obstacle.clone());
    let pod = DesiredPod::new(pod("web", using("gpus")).into());
    for _ in 0..2 {
        let why = dra.prepare(&pod).await.expect_err("not noted");
        assert!(why.starts_with("prepared claims were not noted: "), "{why}");
    }
    std::fs::remove_dir(obstacle).expect("removed");
    dra.prepare(&pod).await.expect("noted");
    assert_eq!(driver.calls.lock().as_slice(), ["prepare gpus"]);
    let note = std::fs::read_to_string(own.path().join("dra_manager_state")).expect("a note");
    assert!(note.contains("\"Prepared\":true"), "{note}");
}

#[tokio::test]
async fn claim_of_others_is_not_prepared() {
    let node = Node::start();
    let running = Driver::start(node.dir.path(), "v1.DRAPlugin");
    registered(&node, &running).await;
    put_claim(&node.api, "theirs", &["other"]);
    node.bind("web", using("theirs"));
    let text = format!(
        "FailedPrepareDynamicResources: Failed to prepare dynamic resources: pod web({}) is not allowed to use \
         ResourceClaim theirs(uid-of-theirs)",
        uid("web")
    );
    node.wait("the refusal", || node.api.events().contains(&text).then_some(())).await;
    assert_eq!(running.driver.calls.lock().as_slice(), [""; 0]);
    gone(&node, "web").await;
    assert_eq!(running.driver.calls.lock().as_slice(), [""; 0]);
}

#[tokio::test]
async fn what_an_agent_that_died_has_left_is_taken_back() {
    let node = Node::start();
    let running = Driver::start(node.dir.path(), "v1.DRAPlugin");
    registered(&node, &running).await;
    for name in ["half", "whole"] {
        put_claim(&node.api, name, &[name]);
    }
    node.bind("whole", using("whole"));
    node.wait_running("whole").await;
    *running.driver.hangs.lock() = true;
    node.bind("half", using("half"));
    node.wait("the call", || (running.driver.calls.lock().last()? == "prepare half").then_some(())).await;
    // It dies before the driver has answered, and the pods go while there is none.
    let node = node.stop().await;
    for name in ["half", "whole"] {
        node.api.forget(name);
    }
    *running.driver.hangs.lock() = false;
    let node = node.restart().await;
    node.wait("all is taken back", || {
        let calls = running.driver.calls.lock();
        ["unprepare half", "unprepare whole"].iter().all(|call| calls.iter().any(|c| c == call)).then_some(())
    })
    .await;
    let note = || std::fs::read_to_string(node.dir.path().join("dra_manager_state")).expect("a note");
    node.wait("the note of it to go", || (note() == r#"{"entries":[]}"#).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_in_a_real_container_and_given_back_by_another_agent() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = Agent::start(&node).await?;
    let running = Driver::start(&agent.config.root_dir, "v1.DRAPlugin");
    let driver = running.driver.clone();
    *driver.cdi_dir.lock() = Some(node.dir().join("cdi"));
    let times_told = |times: usize| (driver.told.lock().as_slice() == vec!["true "; times]).then_some(());
    agent.wait("the registration", || times_told(1)).await?;
    put_claim(&agent.api, "gpus", &["web"]);
    let script = "for gpu in 0 1; do test -c /dev/gpu$gpu && echo device $gpu; done; echo \"($GPU0,$GPU1)\"; \
                  trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let spec = with_claim("gpus", ["all", "part", "none"].map(|name| shell(name, &image, script)));
    agent.api.put_pod(&pod("web", spec));
    let logs = agent.config.pod_log_dir("default", "web", &uid("web"));
    let said = |log: &str| {
        let text = std::fs::read_to_string(logs.join(log)).unwrap_or_default();
        let lines =
            text.lines().filter_map(|line| line.split_once(" stdout F ")).map(|(_, said)| said.to_owned());
        let lines: Vec<String> = lines.collect();
        lines.last().is_some_and(|last| last.starts_with('(')).then_some(lines)
    };
    let all = ["device 0", "device 1", "(gpus-0,gpus-1)"];
    ensure!(agent.wait("the first container", || said("all/0.log")).await? == all);
    ensure!(agent.wait("the second", || said("part/0.log")).await? == ["device 1", "(,gpus-1)"]);
    ensure!(agent.wait("the third", || said("none/0.log")).await? == ["(,)"]);

    // The next agent knows what is prepared, for a container that it has to start as well.
    let agent = agent.restart(&node).await?;
    agent.wait("the next registration", || times_told(2)).await?;
    let containers = agent.runtime.list_containers().await?;
    ensure!(
        containers.len() == 3 && containers.iter().all(|container| container.pid.is_some()),
        "{containers:?}"
    );
    let first = containers.iter().find(|container| container.name == "all").expect("it runs");
    agent.runtime.stop_container(&first.id, Duration::ZERO).await?;
    ensure!(agent.wait("the container to run again", || said("all/1.log")).await? == all);
    ensure!(*driver.calls.lock() == ["prepare gpus"], "{:?}", driver.calls.lock());
    agent.delete(0);
    agent.expect_gone(&node).await?;
    ensure!(*driver.calls.lock() == ["prepare gpus", "unprepare gpus"], "{:?}", driver.calls.lock());
    ensure!(driver.cdi_file("gpus").is_some_and(|file| !file.exists()));
    Ok(())
}

fn put_slice(api: &FakeApi, name: &str, node: &str, driver: &str) {
    let target = Target::object(GroupVersionResource::of::<ResourceSlice>(), None, name);
    let object = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": { "name": name },
        "spec": {
            "driver": driver, "nodeName": node,
            "pool": { "name": node, "generation": 1, "resourceSliceCount": 1 },
        },
    });
    api.store(&target, object);
}

#[tokio::test]
async fn slices_of_a_driver_that_stays_away_are_removed() {
    let node = Node::start_offline(|_| {});
    let slices = || -> Vec<&str> {
        let there = |name: &&str| node.api.object("resourceslices", name).is_some();
        ["left", "others", "own"].into_iter().filter(there).collect()
    };
    put_slice(&node.api, "left", "n1", "old.test");
    put_slice(&node.api, "others", "n2", DRIVER);
    node.api_returns();
    node.wait("those of an earlier run to go", || (slices() == ["others"]).then_some(())).await;
    let running = Driver::start(node.dir.path(), "v1.DRAPlugin");
    registered(&node, &running).await;
    put_slice(&node.api, "own", "n1", DRIVER);
    // Away for a moment, as when it is replaced.
    drop(running);
    let second = Driver::start(node.dir.path(), "v1.DRAPlugin");
    registered(&node, &second).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::time::resume();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(slices(), ["others", "own"]);
    // And for good.
    let socket = second.sockets[1].clone();
    drop(second);
    node.wait("its socket to go", || (!socket.exists()).then_some(())).await;
    for _ in 0..3 {
        // The directory is looked at every second.
        tokio::time::sleep(Duration::from_millis(20)).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(31)).await;
        tokio::time::resume();
    }
    node.wait("its slices to go", || (slices() == ["others"]).then_some(())).await;
}
