//! Which load balancer addresses this node answers for on its network.
//!
//! Of every address one node answers. All agents choose it alike and without a word between them: the highest hash of
//! (address, node) over the nodes that can serve it (rendezvous), so that a node that goes moves only its own
//! addresses. With `externalTrafficPolicy: Local` those are the nodes with a ready endpoint.
//!
//! An agent that is cut off from the control plane goes on with what it knows, as everything else of the node does:
//! should the others have given its addresses to another node meanwhile, two answer, and either serves. One that
//! starts while it is cut off knows nothing: the addresses of the run before lapse, and come back with the control
//! plane. Only addresses of `--load-balancer-ip-range` are ever answered for, whatever a Service's status says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use hawser_api::{AddressRange, informer::Informer};
use hawser_services::{Change, Directory, Endpoint, EndpointSlice, Service, ServiceType};
use k8s_openapi::api::core::v1::Node;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{metrics::Metrics, pod_network::AgentNetwork};

/// Several times within the lifetime of an announcement, so that one failure lets none lapse.
const RENEWAL: Duration = hawser_network::ANNOUNCEMENT_LIFETIME.checked_div(4).expect("four is not zero");
/// Changes that come together are one look: a rollout changes slices many times a second.
const SETTLE: Duration = Duration::from_millis(50);
/// Label of nodes that no load balancer sends traffic to.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Follows Services, slices and nodes. Its handlers must be registered before the caches are filled.
pub(crate) struct LoadBalancer {
    ranges: Vec<AddressRange>,
    node_name: String,
    services: Directory,
    nodes: Informer<Node>,
    changed: watch::Receiver<()>,
    metrics: Metrics,
}

impl LoadBalancer {
    pub(crate) fn new(
        ranges: Vec<AddressRange>,
        node_name: &str,
        services: &Directory,
        nodes: &Informer<Node>,
        metrics: Metrics,
    ) -> Self {
        let (sender, changed) = watch::channel(());
        let sender = Arc::new(sender);
        if !ranges.is_empty() {
            let tell = sender.clone();
            let known = services.clone();
            services.on_change(move |key, change| {
                let is_concerned = match change {
                    Change::Service { old, new } => {
                        old.is_some_and(is_balanced) || new.is_some_and(is_balanced)
                    }
                    Change::Slice { .. } => known.get(key).is_some_and(|service| is_local(&service)),
                };
                if is_concerned {
                    tell.send_replace(());
                }
            });
            nodes.on_change(move |change| {
                let can_serve = |node: Option<&Arc<Node>>| node.is_some_and(|node| can_serve(node));
                if can_serve(change.old) != can_serve(change.new) {
                    sender.send_replace(());
                }
            });
        }
        let (services, nodes) = (services.clone(), nodes.clone());
        Self { ranges, node_name: node_name.to_owned(), services, nodes, changed, metrics }
    }

    /// Answers for this node's addresses until dropped; the kernel lets them lapse afterwards, unless another agent
    /// comes. To be called when the caches are complete.
    pub(crate) async fn run(mut self, network: Arc<AgentNetwork>) {
        if self.ranges.is_empty() {
            return std::future::pending().await;
        }
        loop {
            self.changed.borrow_and_update();
            let own = self.own();
            match network.announce(&own).await {
                Ok(announced) => {
                    if !announced.taken.is_empty() || !announced.released.is_empty() {
                        info!(taken = ?announced.taken, released = ?announced.released, "load balancer addresses");
                    }
                    self.metrics.set_announced(own.len());
                }
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "not every load balancer address is announced"
                    );
                }
            }
            // A sender that is gone leaves the renewals.
            if let Ok(Ok(())) = timeout(RENEWAL, self.changed.changed()).await {
                sleep(SETTLE).await;
            } else if self.changed.has_changed().is_err() {
                sleep(RENEWAL).await;
            }
        }
    }

    /// The addresses that this node answers for.
    fn own(&self) -> BTreeSet<IpAddr> {
        let nodes = self.nodes.filter(can_serve);
        let nodes: BTreeSet<&str> = nodes.iter().filter_map(|node| node.metadata.name.as_deref()).collect();
        let mut own = BTreeSet::new();
        for (address, candidates) in self.candidates(&nodes) {
            if elect(address, candidates.iter().map(String::as_str)) == Some(&self.node_name) {
                own.insert(address);
            }
        }
        own
    }

    /// The nodes that can serve each address. Services that share one (two protocols) need one that serves any.
    fn candidates(&self, nodes: &BTreeSet<&str>) -> BTreeMap<IpAddr, BTreeSet<String>> {
        let mut candidates: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        for service in self.services.filter(is_balanced) {
            let addresses = addresses(&service).iter().copied();
            let addresses = addresses.filter(|it| self.ranges.iter().any(|range| range.contains(*it)));
            let can: BTreeSet<String> = if is_local(&service) {
                let slices = self.services.slices(&service.key);
                nodes_with_endpoints(&slices)
                    .into_iter()
                    .filter(|node| nodes.contains(node.as_str()))
                    .collect()
            } else {
                nodes.iter().map(|node| (*node).to_owned()).collect()
            };
            for address in addresses {
                candidates.entry(address).or_default().extend(can.iter().cloned());
            }
        }
        candidates
    }
}

/// Nodes with an endpoint that is ready; without any, those with one that ends and still serves, as the service path
/// has it (KEP-1669).
fn nodes_with_endpoints(slices: &[Arc<EndpointSlice>]) -> BTreeSet<String> {
    let nodes = |keep: fn(&Endpoint) -> bool| -> BTreeSet<String> {
        let endpoints = slices.iter().flat_map(|slice| &slice.endpoints).filter(|endpoint| keep(endpoint));
        endpoints.filter_map(|endpoint| endpoint.node.as_deref().map(str::to_owned)).collect()
    };
    let ready = nodes(|endpoint| endpoint.ready);
    if ready.is_empty() {
        nodes(|endpoint| endpoint.serving == Some(true) && endpoint.terminating)
    } else {
        ready
    }
}

/// Returns the node that answers for `address`; `None` without candidates.
fn elect<'a>(address: IpAddr, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates.max_by_key(|node| (weight(address, node), *node))
}

/// FNV-1a with a final mix. Every agent of a cluster computes it, of whatever version: it may never change.
fn weight(address: IpAddr, node: &str) -> u64 {
    let octets = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in octets.iter().copied().chain(node.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    // Names that differ in their last byte alone would differ in the low bits alone.
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// A Service whose addresses may be this cluster's to answer for.
fn is_balanced(service: &Service) -> bool {
    let has_class = service.external.as_ref().is_some_and(|external| external.has_load_balancer_class);
    service.type_ == ServiceType::LoadBalancer && !has_class && !service.is_other_proxys
}

fn is_local(service: &Service) -> bool {
    is_balanced(service) && service.is_external_local
}

fn addresses(service: &Service) -> &[IpAddr] {
    service.external.as_ref().map_or(&[], |external| &external.load_balancer_ips)
}

fn can_serve(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is_ready = conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True");
    let is_excluded = node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED));
    is_ready && !is_excluded && node.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1;
    use serde_json::json;

    use super::*;

    fn node(name: &str, ready: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": name },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] },
        }))
        .unwrap()
    }

    fn service(name: &str, policy: &str, ip: &str) -> v1::Service {
        serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": name },
            "spec": { "type": "LoadBalancer", "externalTrafficPolicy": policy },
            "status": { "loadBalancer": { "ingress": [{ "ip": ip, "ipMode": "VIP" }] } },
        }))
        .unwrap()
    }

    struct Cluster {
        services: Directory,
        nodes: Informer<Node>,
    }

    impl Cluster {
        fn new(nodes: &[&str]) -> Self {
            let cluster = Self { services: Directory::default(), nodes: Informer::new() };
            nodes.iter().for_each(|name| cluster.nodes.put(node(name, "True")));
            cluster
        }

        fn agent(&self, name: &str) -> LoadBalancer {
            let ranges = vec!["10.0.0.100-10.0.0.250".parse().unwrap(), "fd00::/120".parse().unwrap()];
            LoadBalancer::new(ranges, name, &self.services, &self.nodes, Metrics::new())
        }

        /// Who answers for `address`, as each node's agent sees it.
        fn owners(&self, nodes: &[&str], address: &str) -> Vec<String> {
            let address: IpAddr = address.parse().unwrap();
            let owns = |node: &&&str| self.agent(node).own().contains(&address);
            nodes.iter().filter(owns).map(|node| (*node).to_owned()).collect()
        }
    }

    const NODES: [&str; 3] = ["n1", "n2", "n3"];

    #[test]
    fn every_address_has_one_node_and_a_lost_node_moves_its_own_alone() {
        let cluster = Cluster::new(&NODES);
        let address = |number: u8| format!("10.0.0.{number}");
        for number in 100..200 {
            cluster.services.put_service(&service(&format!("s{number}"), "Cluster", &address(number)));
        }
        let before: Vec<String> = (100..200)
            .map(|number| {
                let owners = cluster.owners(&NODES, &address(number));
                assert_eq!(owners.len(), 1, "{owners:?}");
                owners[0].clone()
            })
            .collect();
        for node in NODES {
            let share = before.iter().filter(|owner| *owner == node).count();
            assert!((15..55).contains(&share), "{node} has {share} of 100");
        }
        cluster.nodes.put(node("n2", "Unknown"));
        for (number, before) in (100..200).zip(before) {
            let owners = cluster.owners(&NODES, &address(number));
            assert_eq!(owners.len(), 1);
            assert!(owners[0] == before || before == "n2", "{number} moved from {before} to {owners:?}");
            assert_ne!(owners[0], "n2");
        }
    }

    #[test]
    fn local_policy_leaves_the_nodes_whose_endpoints_are_used() {
        let cluster = Cluster::new(&NODES);
        cluster.services.put_service(&service("web", "Local", "10.0.0.100"));
        assert!(cluster.owners(&NODES, "10.0.0.100").is_empty(), "nobody can serve it");
        // With none ready, one that ends and still serves will do.
        for (used, ending) in
            NODES.map(|node| (node, false)).into_iter().chain(NODES.map(|node| (node, true)))
        {
            let endpoints: Vec<_> = NODES
                .iter()
                .map(|node| {
                    let conditions = json!({
                        "ready": *node == used && !ending, "serving": *node == used, "terminating": ending,
                    });
                    json!({ "addresses": ["10.1.0.1"], "nodeName": node, "conditions": conditions })
                })
                .collect();
            cluster.services.put_slice(
                &serde_json::from_value(json!({
                    "metadata": {
                        "namespace": "shop", "name": "a", "labels": { "kubernetes.io/service-name": "web" },
                    },
                    "addressType": "IPv4", "endpoints": endpoints,
                }))
                .unwrap(),
            );
            assert_eq!(cluster.owners(&NODES, "10.0.0.100"), [used]);
        }
    }

    #[test]
    fn what_is_not_ours_is_never_answered_for() {
        #[track_caller]
        fn check(what: &str, change: impl FnOnce(&mut v1::Service)) {
            let cluster = Cluster::new(&NODES);
            let mut service = service("web", "Cluster", "10.0.0.100");
            change(&mut service);
            let kept = Service::from(&service);
            let address = addresses(&kept).first().map(ToString::to_string).unwrap_or("10.0.0.100".into());
            cluster.services.put_service(&service);
            assert!(cluster.owners(&NODES, &address).is_empty(), "{what}");
        }
        let ingress = |service: &mut v1::Service, field: &str, value: &str| {
            let mut json = serde_json::to_value(&*service).unwrap();
            json["status"]["loadBalancer"]["ingress"][0][field] = value.into();
            *service = serde_json::from_value(json).unwrap();
        };
        check("an address outside of the range", |it| ingress(it, "ip", "10.0.0.1"));
        check("a proxy in front", |it| ingress(it, "ipMode", "Proxy"));
        check("another implementation's", |it| {
            it.spec.as_mut().unwrap().load_balancer_class = Some("example.com/lb".into());
        });
        check("another type", |it| it.spec.as_mut().unwrap().type_ = Some("ClusterIP".into()));
        check("another proxy's", |it| {
            it.metadata.labels =
                Some([("service.kubernetes.io/service-proxy-name".to_owned(), "x".to_owned())].into());
        });
        let cluster = Cluster::new(&[]);
        let mut excluded = node("n1", "True");
        excluded.metadata.labels = Some([(EXCLUDED.to_owned(), String::new())].into());
        cluster.nodes.put(excluded);
        cluster.services.put_service(&service("web", "Cluster", "10.0.0.100"));
        assert!(cluster.owners(&["n1"], "10.0.0.100").is_empty(), "an excluded node");
    }

    /// Agents of two versions must agree.
    #[test]
    fn weights_never_change() {
        assert_eq!(weight("10.0.0.1".parse().unwrap(), "node-a"), WEIGHT_V4);
        assert_eq!(weight("fd00::1".parse().unwrap(), "node-a"), WEIGHT_V6);
    }

    const WEIGHT_V4: u64 = 0x0cad_b4d2_a779_2580;
    const WEIGHT_V6: u64 = 0x18bd_1c56_afb6_63ec;
}
