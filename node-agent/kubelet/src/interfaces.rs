//! What the kubelet asks of the rest of the node agent, as traits that the binary implements.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::client::{Client, Patch, WriteOptions};
use hawser_api::informer::Informer;
use hawser_api::resource::Target;
use hawser_services::Directory;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use serde_json::Value;

/// Network namespaces and addresses of pods.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Makes, or finds again, the pod's network namespace and its addresses. Idempotent per pod uid.
    async fn setup(&self, request: &PodNetworkRequest) -> Result<PodNetworkStatus, NetworkError>;

    /// Removes the namespace and gives the addresses back. Absent is success.
    async fn teardown(&self, pod_uid: &str) -> Result<(), NetworkError>;

    /// Uids of the pods that have a namespace here, wanted or not.
    async fn list(&self) -> Result<Vec<String>, NetworkError>;

    /// Why pods cannot have a network yet; `Ok` when they can.
    fn ready(&self) -> Result<(), String>;
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNetworkRequest {
    pub pod_uid: String,
    pub namespace: String,
    pub name: String,
    pub hostname: String,
    /// A network namespace that is pinned there already, and is to be the pod's: it belongs to users of the pod's own.
    /// `None`: one is made.
    pub netns: Option<PathBuf>,
    pub host_ports: Vec<HostPort>,
    /// From the annotation `hawser.io/socket-translation: "off"`: the pod's sockets see service addresses as they asked
    /// for them, for a mesh that has ways of its own.
    pub leaves_sockets: bool,
    /// From `kubernetes.io/ingress-bandwidth`, bits per second.
    pub ingress_bits_per_second: Option<u64>,
    /// From `kubernetes.io/egress-bandwidth`, bits per second.
    pub egress_bits_per_second: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `None`: all addresses of the node.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
}

impl HostPort {
    /// What a pod's containers ask for.
    pub fn of(pod: &Pod) -> Vec<Self> {
        let Some(spec) = &pod.spec else { return Vec::new() };
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        let host_ports = ports.filter_map(|port| {
            Some(Self {
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port: u16::try_from(port.host_port?).ok().filter(|p| *p > 0)?,
                container_port: u16::try_from(port.container_port).ok()?,
            })
        });
        host_ports.collect()
    }

    /// Both are the same port of an address that both want.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |port: &Self| port.host_ip.is_none_or(|ip| ip.is_unspecified());
        self.host_port == other.host_port
            && self.protocol == other.protocol
            && (any(self) || any(other) || self.host_ip == other.host_ip)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetworkStatus {
    pub netns: PathBuf,
    /// Primary address first.
    pub ips: Vec<IpAddr>,
}

/// The network could not do it; the kubelet tries again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

/// Hears what this node knows first, before it is reported to the API. Calls must not block.
pub trait LocalEndpoints: Send + Sync + 'static {
    fn pod_ready(&self, pod: &LocalPod, ready: bool);

    /// The pod begins to stop: no new connections.
    fn pod_terminating(&self, pod: &LocalPod);
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub ips: Vec<IpAddr>,
}

/// Writes statuses, over the node stream or otherwise.
#[async_trait]
pub trait StatusWriter: Send + Sync + 'static {
    /// Applies a strategic merge patch to the object's status, if it is still the object with `uid`.
    async fn patch_status(&self, target: &Target, uid: &str, patch: Value) -> Result<(), hawser_api::Error>;
}

/// Writes statuses as plain patches through a [`Client`].
pub struct ClientStatusWriter(pub Arc<dyn Client>);

#[async_trait]
impl StatusWriter for ClientStatusWriter {
    async fn patch_status(
        &self,
        target: &Target,
        uid: &str,
        mut patch: Value,
    ) -> Result<(), hawser_api::Error> {
        // A uid in the patch makes the server refuse it for another object of that name.
        patch["metadata"]["uid"] = uid.into();
        let target = target.clone().with_subresource("status");
        let patch = Patch::StrategicMerge(patch.to_string().into());
        self.0.patch(&target, patch, &WriteOptions::default()).await.map(drop)
    }
}

/// Caches of what concerns this node, fed by the node stream.
#[derive(Clone, Default)]
pub struct Objects {
    /// The pods bound to this node.
    pub pods: Informer<Pod>,
    /// The ConfigMaps and Secrets that they name.
    pub config_maps: Informer<ConfigMap>,
    pub secrets: Informer<Secret>,
    pub services: Directory,
    pub nodes: Informer<Node>,
}
