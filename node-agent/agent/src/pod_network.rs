//! The kubelet's view of the pod network, and what follows from it: packet paths and host ports.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use hawser_api::informer::Informer;
use hawser_kubelet::{NetworkError, PodNetwork, PodNetworkRequest, PodNetworkStatus};
use hawser_network::{Announced, Network, NodeRoute, PodId};
use hawser_proxy::HostPort;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OnceCell},
    time::{sleep, timeout},
};
use tracing::warn;

use crate::service_path::{PodLink, ServicePath};

/// Ready when the node has a pod range and its network is set up.
pub(crate) struct AgentNetwork {
    network: OnceCell<Network>,
    on_network: Notify,
    setting_nodes: tokio::sync::Mutex<()>,
    service_path: ServicePath,
    /// By pod uid; bounded by the node's pods.
    attached: Mutex<HashMap<String, Attached>>,
    /// Host ports of pods that were stopping when the agent started, by uid: they are not set up again, and serve until
    /// they are torn down.
    leaving: Mutex<HashMap<String, Vec<HostPort>>>,
}

struct Attached {
    netns: PathBuf,
    /// The primary one first.
    ips: Vec<IpAddr>,
    ifindex: u32,
    host_ports: Vec<HostPort>,
}

impl AgentNetwork {
    pub(crate) fn new(service_path: ServicePath) -> Arc<Self> {
        Arc::new(Self {
            network: OnceCell::new(),
            on_network: Notify::new(),
            setting_nodes: tokio::sync::Mutex::default(),
            service_path,
            attached: Mutex::default(),
            leaving: Mutex::default(),
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
        let Found { expected, leaving } = sort_out(&pods.all(), &network.list().await);
        if !leaving.is_empty() {
            self.leaving.lock().extend(leaving);
            // One that was torn down since it was listed is not forgotten by anybody else.
            let addressed = network.list().await;
            self.leaving.lock().retain(|uid, _| addressed.contains_key(uid));
            self.publish_host_ports();
        }
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

    /// Makes routes lead to the nodes that `nodes` holds, without this one. False where that has to be tried again.
    pub(crate) async fn set_nodes(&self, nodes: &Informer<Node>, own_name: &str) -> bool {
        let Some(network) = self.network.get() else { return true };
        // An older list would take away the routes of a newer one.
        let _alone = self.setting_nodes.lock().await;
        let routes: Vec<NodeRoute> = nodes.all().iter().filter_map(|node| route_of(node, own_name)).collect();
        match network.set_nodes(&routes).await {
            Ok(()) => true,
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "not every node can be reached, trying again"
                );
                false
            }
        }
    }

    /// Makes this node answer for exactly these addresses of services; none before the network is set up.
    pub(crate) async fn announce(
        &self,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<Announced, hawser_network::Error> {
        match self.network.get() {
            Some(network) => network.announce(addresses).await,
            None => Ok(Announced::default()),
        }
    }

    /// `None` for pods that are not attached.
    pub(crate) fn netns(&self, pod_uid: &str) -> Option<PathBuf> {
        self.attached.lock().get(pod_uid).map(|attached| attached.netns.clone())
    }

    /// The addresses that the node gave a pod, the primary one first; `None` for pods that are not attached.
    pub(crate) fn ips(&self, pod_uid: &str) -> Option<Vec<IpAddr>> {
        self.attached.lock().get(pod_uid).map(|attached| attached.ips.clone())
    }

    fn publish_host_ports(&self) {
        let mut ports: Vec<HostPort> =
            self.attached.lock().values().flat_map(|attached| attached.host_ports.clone()).collect();
        ports.extend(self.leaving.lock().values().flatten().cloned());
        self.service_path.set_host_ports(ports);
    }

    fn forget_leaving(&self, pod_uid: &str) {
        let forgotten = self.leaving.lock().remove(pod_uid);
        if forgotten.is_some() {
            self.publish_host_ports();
        }
    }
}

/// The pods of an earlier run that have addresses.
#[derive(Debug, Default, PartialEq)]
struct Found {
    /// Uids of those that the kubelet sets up again.
    expected: Vec<String>,
    /// Host ports of those that it only stops, by uid.
    leaving: HashMap<String, Vec<HostPort>>,
}

fn sort_out(pods: &[Arc<Pod>], addressed: &BTreeMap<String, Vec<IpAddr>>) -> Found {
    let mut found = Found::default();
    for pod in pods {
        let meta = &pod.metadata;
        let Some((uid, ips)) = meta.uid.as_ref().and_then(|uid| addressed.get_key_value(uid)) else {
            continue;
        };
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            continue;
        }
        if meta.deletion_timestamp.is_none() {
            found.expected.push(uid.clone());
            continue;
        }
        let request = PodNetworkRequest {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            host_ports: hawser_kubelet::HostPort::of(pod),
            ..PodNetworkRequest::default()
        };
        found.leaving.insert(uid.clone(), host_ports(&request, ips));
    }
    found
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
        let interface = self
            .network_soon()
            .await?
            .attach_pod(&pod, request.netns.as_deref())
            .await
            .map_err(|error| failed(&error))?;
        let link = PodLink {
            mac: interface.pod_mac,
            ips: interface.ips.clone(),
            unserved_netns: request.leaves_sockets.then(|| interface.netns_path.clone()),
        };
        self.service_path.attach_pod(interface.host_ifindex, link);
        let attached = Attached {
            netns: interface.netns_path.clone(),
            ips: interface.ips.clone(),
            ifindex: interface.host_ifindex,
            host_ports: host_ports(request, &interface.ips),
        };
        self.leaving.lock().remove(&pod.uid);
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
        self.forget_leaving(pod_uid);
        self.network()?.detach_pod(pod_uid).await.map_err(|error| failed(&error))?;
        // It may have been found, still addressed, while it was detached.
        self.forget_leaving(pod_uid);
        Ok(())
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, deleted: bool, phase: &str) -> Arc<Pod> {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let ports = json!([{ "containerPort": 80, "hostPort": 8080 }, { "containerPort": 81 }]);
        let pod = json!({
            "metadata": { "uid": uid, "name": uid, "namespace": "default", "deletionTimestamp": deleted },
            "spec": { "containers": [{ "name": "main", "ports": ports }] },
            "status": { "phase": phase },
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn pod_that_stops_keeps_its_host_ports_and_is_not_waited_for() {
        let pods = [
            pod("runs", false, "Running"),
            pod("stops", true, "Running"),
            pod("done", false, "Succeeded"),
            pod("new", false, "Pending"),
        ];
        let ip: IpAddr = "10.1.0.7".parse().expect("an address");
        let addressed = ["runs", "stops", "done", "unknown"].map(|uid| (uid.to_owned(), vec![ip]));
        let found = sort_out(&pods, &BTreeMap::from(addressed));
        assert_eq!(found.expected, ["runs"]);
        let leaving: Vec<_> = found.leaving.iter().map(|(uid, ports)| (uid.as_str(), ports)).collect();
        let [("stops", ports)] = leaving[..] else { panic!("{leaving:?}") };
        let [port] = &ports[..] else { panic!("{ports:?}") };
        assert_eq!((port.host_port, port.container_port, port.pod_ip), (8080, 80, ip));
    }
}
