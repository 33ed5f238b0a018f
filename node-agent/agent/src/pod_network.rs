//! The kubelet's view of the pod network, and what follows from it: packet paths and host ports.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use hawser_api::informer::Informer;
use hawser_kubelet::{NetworkError, PodNetwork, PodNetworkRequest, PodNetworkStatus};
use hawser_network::{Network, NodeRoute, PodId};
use hawser_proxy::HostPort;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OnceCell},
    time::{sleep, timeout},
};
use tracing::warn;

use crate::service_path::ServicePath;

/// Ready when the node has a pod range and its network is set up.
pub(crate) struct AgentNetwork {
    network: OnceCell<Network>,
    on_network: Notify,
    service_path: ServicePath,
    /// By pod uid; bounded by the node's pods.
    attached: Mutex<HashMap<String, Attached>>,
}

struct Attached {
    netns: PathBuf,
    ifindex: u32,
    host_ports: Vec<HostPort>,
}

impl AgentNetwork {
    pub(crate) fn new(service_path: ServicePath) -> Arc<Self> {
        Arc::new(Self {
            network: OnceCell::new(),
            on_network: Notify::new(),
            service_path,
            attached: Mutex::default(),
        })
    }

    /// From here on pods can be attached.
    pub(crate) fn provide(&self, network: Network) {
        if self.network.set(network).is_err() {
            warn!("the pod network was set up twice; the first one stays");
        }
        self.on_network.notify_waiters();
    }

    fn network(&self) -> Result<&Network, NetworkError> {
        self.network.get().ok_or_else(|| NetworkError(NOT_READY.into()))
    }

    /// Waits a little for the network: an agent that starts again hears of its pods before it is set up.
    async fn network_soon(&self) -> Result<&Network, NetworkError> {
        let wait = async {
            loop {
                let notified = self.on_network.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                if self.network.initialized() {
                    return;
                }
                notified.await;
            }
        };
        // Whether it came or not is seen next.
        let _ = timeout(SET_UP, wait).await;
        self.network()
    }

    /// Waits until the pods that an earlier run attached are known again, with their host ports; bounded, because one
    /// of them may have ended meanwhile.
    pub(crate) async fn adopted(&self, pods: &Informer<Pod>) {
        let Some(network) = self.network.get() else { return };
        let addressed = network.list().await;
        let expected: Vec<String> = pods
            .all()
            .iter()
            .filter_map(|pod| pod.metadata.uid.clone())
            .filter(|uid| addressed.contains_key(uid))
            .collect();
        let wait = async {
            while !expected.iter().all(|uid| self.attached.lock().contains_key(uid)) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(ADOPTION, wait).await.is_err() {
            warn!(
                "not every pod of an earlier run was adopted in time; host ports may be missing until they are"
            );
        }
    }

    /// Makes routes lead to the nodes that `nodes` holds, without this one.
    pub(crate) async fn set_nodes(&self, nodes: &Informer<Node>, own_name: &str) {
        let Some(network) = self.network.get() else { return };
        let routes: Vec<NodeRoute> = nodes.all().iter().filter_map(|node| route_of(node, own_name)).collect();
        if let Err(error) = network.set_nodes(&routes).await {
            warn!(error = &error as &dyn std::error::Error, "not every node can be reached");
        }
    }

    /// `None` for pods that are not attached.
    pub(crate) fn netns(&self, pod_uid: &str) -> Option<PathBuf> {
        self.attached.lock().get(pod_uid).map(|attached| attached.netns.clone())
    }

    fn publish_host_ports(&self) {
        let ports = self.attached.lock().values().flat_map(|attached| attached.host_ports.clone()).collect();
        self.service_path.set_host_ports(ports);
    }
}

/// How long a pod's set-up waits for the node's own.
const SET_UP: Duration = Duration::from_secs(10);
/// How long the first sync of the service path waits for pods that were there before.
const ADOPTION: Duration = Duration::from_secs(5);

const NOT_READY: &str = "the node has no pod range yet";

/// `None` for this node, and for nodes without an address or a range.
fn route_of(node: &Node, own_name: &str) -> Option<NodeRoute> {
    let name = node.metadata.name.clone()?;
    if name == own_name {
        return None;
    }
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let node_ip = addresses
        .iter()
        .find(|address| address.type_ == "InternalIP")
        .and_then(|address| address.address.parse::<IpAddr>().ok())?;
    let pod_cidrs = pod_cidrs(node);
    (!pod_cidrs.is_empty()).then_some(NodeRoute { name, node_ip, pod_cidrs })
}

/// The ranges that the control plane gave the node; none as long as it has not.
pub(crate) fn pod_cidrs(node: &Node) -> Vec<ipnet::IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed = spec.pod_cidrs.iter().flatten();
    let mut cidrs: Vec<ipnet::IpNet> = listed.filter_map(|cidr| cidr.parse().ok()).collect();
    if cidrs.is_empty() {
        cidrs.extend(spec.pod_cidr.iter().filter_map(|cidr| cidr.parse::<ipnet::IpNet>().ok()));
    }
    cidrs
}

#[async_trait]
impl PodNetwork for AgentNetwork {
    async fn setup(&self, request: &PodNetworkRequest) -> Result<PodNetworkStatus, NetworkError> {
        let pod = PodId {
            uid: request.pod_uid.clone(),
            namespace: request.namespace.clone(),
            name: request.name.clone(),
        };
        let interface = self.network_soon().await?.attach_pod(&pod).await.map_err(|error| failed(&error))?;
        self.service_path.attach_pod(interface.host_ifindex);
        let attached = Attached {
            netns: interface.netns_path.clone(),
            ifindex: interface.host_ifindex,
            host_ports: host_ports(request, &interface.ips),
        };
        self.attached.lock().insert(pod.uid, attached);
        self.publish_host_ports();
        Ok(PodNetworkStatus { netns: interface.netns_path, ips: interface.ips })
    }

    async fn teardown(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let attached = self.attached.lock().remove(pod_uid);
        if let Some(attached) = attached {
            self.publish_host_ports();
            self.service_path.detach_pod(attached.ifindex);
        }
        self.network()?.detach_pod(pod_uid).await.map_err(|error| failed(&error))
    }

    async fn list(&self) -> Result<Vec<String>, NetworkError> {
        let pods: BTreeMap<String, Vec<IpAddr>> = self.network()?.list().await;
        Ok(pods.into_keys().collect())
    }

    fn ready(&self) -> Result<(), String> {
        if self.network.initialized() { Ok(()) } else { Err(NOT_READY.into()) }
    }
}

fn host_ports(request: &PodNetworkRequest, ips: &[IpAddr]) -> Vec<HostPort> {
    let ports = request.host_ports.iter().flat_map(|port| ips.iter().map(move |ip| (port, *ip)));
    ports
        .map(|(port, pod_ip)| HostPort {
            pod_namespace: request.namespace.clone(),
            pod_name: request.name.clone(),
            pod_ip,
            container_port: port.container_port,
            host_ip: port.host_ip,
            host_port: port.host_port,
            protocol: port.protocol.clone(),
        })
        .collect()
}

/// The whole chain of causes: the kubelet shows it to users.
fn failed(error: &hawser_network::Error) -> NetworkError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    NetworkError(text)
}
