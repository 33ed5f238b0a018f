//! Devices of a small plugin of the test's own: offered, granted, used, and given back.

mod common;

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use common::{Node, container, spec, uid};
use futures::{Stream, StreamExt};
use hawser_kubelet::devices::plugins::proto::device_plugin_server::{DevicePlugin, DevicePluginServer};
use hawser_kubelet::devices::plugins::proto::registration_client::RegistrationClient;
use hawser_kubelet::devices::plugins::proto::*;
use hawser_kubelet::sockets::{connect, serve};
use hawser_runtime::ContainerConfig;
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, async_trait};

const RESOURCE: &str = "test/gpu";

#[derive(Clone)]
struct Plugin {
    /// Id and health of each device.
    devices: Arc<watch::Sender<Vec<(&'static str, &'static str)>>>,
    /// What it answers when it is asked which it prefers, and what it was asked.
    preferred: Arc<Mutex<Option<Vec<&'static str>>>>,
    asked: Arc<Mutex<Vec<ContainerPreferredAllocationRequest>>>,
}

impl Plugin {
    /// Listens beside the kubelet's socket, and registers there.
    async fn start(root: &Path) -> Self {
        Self::start_with(root, DevicePluginOptions::default()).await
    }

    async fn start_with(root: &Path, options: DevicePluginOptions) -> Self {
        let dir = root.join("device-plugins");
        while !dir.join("kubelet.sock").exists() {
            tokio::task::yield_now().await;
        }
        let (devices, _) = watch::channel(vec![("a", "Healthy"), ("b", "Healthy"), ("c", "Unhealthy")]);
        let plugin = Self { devices: Arc::new(devices), preferred: Arc::default(), asked: Arc::default() };
        let listener = UnixListener::bind(dir.join("gpu.sock")).expect("bound");
        tokio::spawn(serve(listener, DevicePluginServer::new(plugin.clone())));
        let channel = connect(dir.join("kubelet.sock")).await.expect("it listens");
        let request = |version: &str| RegisterRequest {
            version: version.into(),
            endpoint: "gpu.sock".into(),
            resource_name: RESOURCE.into(),
            options: Some(options),
        };
        let mut registration = RegistrationClient::new(channel);
        assert!(registration.register(request("v1alpha")).await.is_err(), "another version");
        registration.register(request("v1beta1")).await.expect("registered");
        plugin
    }
}

#[async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = WatchStream::new(self.devices.subscribe()).map(|list| {
            let devices = list.into_iter().map(|(id, health)| Device {
                id: id.into(),
                health: health.into(),
                topology: None,
            });
            Ok(ListAndWatchResponse { devices: devices.collect() })
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        self.asked.lock().extend(request.into_inner().container_requests);
        let preferred = self.preferred.lock().clone();
        let ids = preferred.ok_or_else(|| Status::internal("cannot tell"))?;
        let device_ids = ids.into_iter().map(str::to_owned).collect();
        let container_responses = vec![ContainerPreferredAllocationResponse { device_ids }];
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let answers = request.into_inner().container_requests.into_iter().map(|container| {
            let path = "/dev/null".to_owned();
            ContainerAllocateResponse {
                envs: [("GPUS".to_owned(), container.devices_ids.join(","))].into(),
                cdi_devices: vec![CdiDevice { name: "gpu.test/gpu=0".into() }],
                devices: vec![DeviceSpec {
                    container_path: "/dev/gpu".into(),
                    host_path: path,
                    permissions: "rw".into(),
                }],
                ..ContainerAllocateResponse::default()
            }
        });
        Ok(Response::new(AllocateResponse { container_responses: answers.collect() }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

fn asking(count: &str) -> Container {
    let limits = [(RESOURCE.to_owned(), Quantity(count.to_owned()))].into();
    let resources = ResourceRequirements { limits: Some(limits), ..ResourceRequirements::default() };
    Container { resources: Some(resources), ..container("web") }
}

fn config_of(node: &Node, pod: &str) -> ContainerConfig {
    let container = node.runtime.find(&uid(pod), "web").expect("runs");
    node.runtime.config_of(&container.id).expect("made")
}

async fn offered(node: &Node, capacity: &str, allocatable: &str) {
    let shown = |object: &Value, list: &str| object["status"][list][RESOURCE].clone();
    node.wait("what the node offers", || {
        let object = node.api.object("nodes", "n1")?;
        let found = (shown(&object, "capacity"), shown(&object, "allocatable"));
        (found == (json!(capacity), json!(allocatable))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn devices_are_offered_granted_and_given_back() {
    let node = Node::start();
    let plugin = Plugin::start(node.dir.path()).await;
    offered(&node, "3", "2").await;
    node.bind("one", spec("Always", vec![asking("2")]));
    node.wait_running("one").await;
    let config = config_of(&node, "one");
    assert!(config.env.contains(&("GPUS".into(), "a,b".into())), "{:?}", config.env);
    assert_eq!(config.devices[0].container_path, Path::new("/dev/gpu"));
    assert_eq!(config.cdi_devices, ["gpu.test/gpu=0"]);

    node.bind("two", spec("Always", vec![asking("1")]));
    let refused = node.wait_status("two", "the refusal", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(refused.reason.as_deref(), Some("UnexpectedAdmissionError"));
    let message = refused.message.expect("a message");
    assert!(message.contains("unavailable for test/gpu. Requested: 1, Available: 0"), "{message}");

    // A new agent still knows who has what.
    drop(plugin);
    let node = node.restart().await;
    node.wait("the worker", || (!node.kubelet.pods.is_empty()).then_some(())).await;
    node.delete("one", 0);
    node.wait_gone("one").await;
    let note = node.dir.path().join("device-plugins/kubelet_internal_checkpoint");
    let noted = || std::fs::read_to_string(&note).expect("a note");
    node.wait("the note of it to go", || (!noted().contains(&uid("one"))).then_some(())).await;
}

#[tokio::test]
async fn container_waits_until_its_devices_are_noted() {
    let node = Node::start();
    let plugin = Plugin::start(node.dir.path()).await;
    offered(&node, "3", "2").await;
    // No file can be written in its place.
    let in_the_way = node.dir.path().join("device-plugins/kubelet_internal_checkpoint.new");
    std::fs::create_dir(&in_the_way).expect("made");
    node.bind("web", spec("Always", vec![asking("1")]));
    node.wait_status("web", "the error", |s| {
        let state = s.container_statuses.as_ref().and_then(|c| c[0].state.clone());
        let waiting = state.and_then(|s| s.waiting);
        waiting.is_some_and(|w| {
            w.reason.as_deref() == Some("CreateContainerError")
                && w.message.is_some_and(|m| m.starts_with("devices were not noted"))
        })
    })
    .await;
    assert!(node.runtime.find(&uid("web"), "web").is_none());
    std::fs::remove_dir(&in_the_way).expect("removed");
    node.wait_running("web").await;
    drop(plugin);
}

#[tokio::test]
async fn device_that_fails_is_offered_no_more() {
    let node = Node::start();
    let plugin = Plugin::start(node.dir.path()).await;
    offered(&node, "3", "2").await;
    plugin.devices.send_replace(vec![("a", "Healthy"), ("b", "Unhealthy"), ("c", "Unhealthy")]);
    offered(&node, "3", "1").await;
}

#[tokio::test]
async fn plugin_is_asked_which_devices_it_prefers() {
    let node = Node::start();
    let options = DevicePluginOptions { get_preferred_allocation_available: true, ..Default::default() };
    let plugin = Plugin::start_with(node.dir.path(), options).await;
    plugin.devices.send_replace(["a", "b", "c", "d", "e"].map(|id| (id, "Healthy")).to_vec());
    offered(&node, "5", "5").await;
    // Of what is not there nothing comes, and what lacks is made up for.
    *plugin.preferred.lock() = Some(vec!["d", "d", "of another node"]);
    node.bind("one", spec("Always", vec![asking("2")]));
    node.wait_running("one").await;
    let given = |pod: &str| config_of(&node, pod).env.into_iter().find(|(name, _)| name == "GPUS");
    assert_eq!(given("one"), Some(("GPUS".into(), "d,a".into())));
    let asked = plugin.asked.lock().clone();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].available_device_ids, ["a", "b", "c", "d", "e"]);
    assert!(asked[0].must_include_device_ids.is_empty());
    assert_eq!(asked[0].allocation_size, 2);
    // Who does not say it is not asked again, and its devices are given all the same.
    *plugin.preferred.lock() = None;
    for (pod, gpu) in [("two", "b"), ("three", "c")] {
        node.bind(pod, spec("Always", vec![asking("1")]));
        node.wait_running(pod).await;
        assert_eq!(given(pod), Some(("GPUS".into(), gpu.into())));
    }
    assert_eq!(plugin.asked.lock().len(), 2);
}
