//! What the node should serve, computed from Services, EndpointSlices and host ports. Pure: objects in, values out.
//!
//! A service port of one address family becomes one [`ServicePort`]: its backends, once for the cluster and once for
//! this node alone, and its frontends, each of which names the set it uses. Traffic policies follow kube-proxy:
//! `internalTrafficPolicy` rules the cluster IP, `externalTrafficPolicy` rules what comes from outside, and clients
//! inside the cluster always reach all backends of an external address.
//!
//! `loadBalancerSourceRanges` rule the load balancer's addresses and nothing else, for clients inside the cluster too,
//! by the address that each has; ranges of the other family say nothing. Processes of the node pass when one of the
//! node's addresses is in a range.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use hawser_ebpf_abi::{
    Addr, Backend, FrontendKey, IPPROTO_TCP, IPPROTO_UDP,
    service::{
        BACKEND_LOCAL, FRONTEND_AFFINITY, FRONTEND_INSIDE_LOCAL, FRONTEND_NODE_IN_RANGES, FRONTEND_NODE_ONLY,
        FRONTEND_SOURCE_RANGES, FRONTEND_WIRE, FRONTEND_WIRE_LOCAL,
    },
    v4_mapped,
};
use k8s_openapi::api::{
    core::v1::{Service, ServicePort as ApiServicePort, ServiceSpec},
    discovery::v1::EndpointSlice,
};

use crate::{
    endpoints::{self, Overrides},
    ranges::{Ranges, SourceRange},
};

/// Services with this label are another proxy's.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The API's default and longest timeout of client affinity: 3 hours and a day.
const AFFINITY_SECONDS: u32 = 10_800;
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// Names a service port of one family, or a host port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    pub namespace: String,
    pub name: String,
    /// The port's name, empty when it has none; for a host port its number.
    pub port: String,
    pub protocol: u8,
    pub is_v6: bool,
    pub kind: Kind,
}

/// What a [`ServicePortName`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Service,
    HostPort,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.protocol == IPPROTO_UDP { "UDP" } else { "TCP" };
        let Self { namespace, name, port, .. } = self;
        match self.kind {
            Kind::Service => write!(f, "{namespace}/{name}:{port}/{protocol}"),
            Kind::HostPort => write!(f, "host port {port}/{protocol} of pod {namespace}/{name}"),
        }
    }
}

/// Which of a service port's backends a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    Cluster,
    Local,
}

/// One address that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DesiredFrontend {
    pub(crate) inside: Set,
    pub(crate) wire: Set,
    /// `FRONTEND_*`.
    pub(crate) flags: u32,
}

/// One service port of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) frontends: BTreeMap<FrontendKey, DesiredFrontend>,
    /// In the order of their addresses, so that equal sets are equal lists.
    pub(crate) cluster: Vec<Backend>,
    /// Backends of this node; filled when a frontend uses them.
    pub(crate) local: Vec<Backend>,
    /// How long a client keeps its backend; 0 for no affinity.
    pub(crate) affinity_seconds: u32,
    /// Who may use the frontends with `FRONTEND_SOURCE_RANGES`.
    pub(crate) source_ranges: Ranges,
}

/// Something that the API asks for and the node does not do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skipped {
    /// `namespace/name` and the port.
    pub what: String,
    pub reason: &'static str,
}

/// A port of the node that leads to a pod of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub pod_namespace: String,
    pub pod_name: String,
    pub pod_ip: IpAddr,
    pub container_port: u16,
    /// `None` (or the unspecified address): all addresses of the node.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// What the node itself contributes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// Of the label `topology.kubernetes.io/zone`.
    pub(crate) zone: Option<String>,
    pub(crate) addresses: Vec<IpAddr>,
    /// Where node ports are served, as ranges and their lengths in bits; everywhere where there are none.
    pub(crate) node_port_ranges: Vec<(IpAddr, u8)>,
}

impl Node {
    fn has_node_ports_at(&self, address: IpAddr) -> bool {
        let contains = |(range, len): &(IpAddr, u8)| {
            let bits = u32::from(*len) + if range.is_ipv4() { 96 } else { 0 };
            SourceRange::new(addr(*range), bits).contains(&addr(address))
        };
        self.node_port_ranges.is_empty() || self.node_port_ranges.iter().any(contains)
    }
}

/// Returns the ports of `service`, with backends from `slices`, which are the service's own.
pub(crate) fn service_ports(
    service: &Service,
    slices: &[&EndpointSlice],
    node: &Node,
    overrides: &Overrides,
    skipped: &mut Vec<Skipped>,
) -> Vec<(ServicePortName, ServicePort)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let cluster_ips = cluster_ips(spec);
    if cluster_ips.is_empty() || is_left_alone(service) {
        return Vec::new();
    }
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let mut ports = Vec::new();
    for port in spec.ports.iter().flatten() {
        let port_name = port.name.as_deref().unwrap_or_default();
        let what = || format!("{namespace}/{name}:{port_name}");
        let Some(protocol) = protocol_number(port.protocol.as_deref()) else {
            skipped
                .push(Skipped { what: what(), reason: "its protocol is not served: only TCP and UDP are" });
            continue;
        };
        for is_v6 in [false, true] {
            let source_ranges = source_ranges(spec, is_v6);
            let node_in_ranges = node
                .addresses
                .iter()
                .any(|own| source_ranges.iter().any(|range| range.contains(&addr(*own))));
            let balanced = match (source_ranges.is_empty(), node_in_ranges) {
                (true, _) => 0,
                (false, false) => FRONTEND_SOURCE_RANGES,
                (false, true) => FRONTEND_SOURCE_RANGES | FRONTEND_NODE_IN_RANGES,
            };
            let mut frontends = frontends(service, spec, port, protocol, is_v6, &cluster_ips, node, balanced);
            if frontends.is_empty() {
                continue;
            }
            let affinity_seconds = affinity_seconds(spec);
            if affinity_seconds > 0 {
                frontends.values_mut().for_each(|frontend| frontend.flags |= FRONTEND_AFFINITY);
            }
            // Published whatever their readiness: the slices call them ready, and the node's own news mean nothing.
            let none = Overrides::new();
            let overrides = if publishes_not_ready(spec) { &none } else { overrides };
            let backends = endpoints::collect(slices, port, is_v6, node, overrides);
            let uses_local = frontends.values().any(|f| f.inside == Set::Local || f.wire == Set::Local);
            let local = if uses_local { backends.local } else { Vec::new() };
            let name = ServicePortName {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                port: port_name.to_owned(),
                protocol,
                is_v6,
                kind: Kind::Service,
            };
            let cluster = backends.cluster;
            ports.push((name, ServicePort { frontends, cluster, local, affinity_seconds, source_ranges }));
        }
    }
    ports
}

/// Returns the ports that a pod's host port becomes: one per family that the node and the pod share.
pub(crate) fn host_port(
    host_port: &HostPort,
    node: &Node,
    skipped: &mut Vec<Skipped>,
) -> Option<(ServicePortName, ServicePort)> {
    let what = || {
        format!("host port {} of pod {}/{}", host_port.host_port, host_port.pod_namespace, host_port.pod_name)
    };
    let Some(protocol) = protocol_number(Some(&host_port.protocol)) else {
        skipped.push(Skipped { what: what(), reason: "its protocol is not served: only TCP and UDP are" });
        return None;
    };
    let is_v6 = host_port.pod_ip.is_ipv6();
    let addresses: Vec<IpAddr> = match host_port.host_ip.filter(|ip| !ip.is_unspecified()) {
        Some(ip) => vec![ip],
        None => node.addresses.clone(),
    };
    let mut frontends = BTreeMap::new();
    for address in addresses.into_iter().filter(|address| address.is_ipv6() == is_v6) {
        let flags = if address.is_loopback() { FRONTEND_NODE_ONLY } else { FRONTEND_WIRE };
        let frontend = DesiredFrontend { inside: Set::Cluster, wire: Set::Cluster, flags };
        frontends.insert(frontend_key(address, host_port.host_port, protocol), frontend);
    }
    if host_port.host_ip.is_none_or(|ip| ip.is_unspecified()) {
        frontends.insert(frontend_key(loopback(is_v6), host_port.host_port, protocol), NODE_ONLY);
    }
    let backend = Backend {
        addr: addr(host_port.pod_ip),
        port_be: host_port.container_port.to_be(),
        flags: BACKEND_LOCAL,
        pad: 0,
    };
    let name = ServicePortName {
        namespace: host_port.pod_namespace.clone(),
        name: host_port.pod_name.clone(),
        port: host_port.host_port.to_string(),
        protocol,
        is_v6,
        kind: Kind::HostPort,
    };
    Some((name, ServicePort { frontends, cluster: vec![backend], ..ServicePort::default() }))
}

const NODE_ONLY: DesiredFrontend =
    DesiredFrontend { inside: Set::Cluster, wire: Set::Cluster, flags: FRONTEND_NODE_ONLY };

#[expect(
    clippy::too_many_arguments,
    reason = "what a service port's addresses depend on, each a plain value"
)]
fn frontends(
    service: &Service,
    spec: &ServiceSpec,
    port: &ApiServicePort,
    protocol: u8,
    is_v6: bool,
    cluster_ips: &[IpAddr],
    node: &Node,
    balanced: u32,
) -> BTreeMap<FrontendKey, DesiredFrontend> {
    let internal = policy(spec.internal_traffic_policy.as_deref());
    let external = policy(spec.external_traffic_policy.as_deref());
    let wire_flags = if external == Set::Local { FRONTEND_WIRE | FRONTEND_WIRE_LOCAL } else { FRONTEND_WIRE };
    let from_outside = DesiredFrontend { inside: Set::Cluster, wire: external, flags: wire_flags };
    let mut frontends = BTreeMap::new();
    let mut add = |address: IpAddr, port: i32, frontend| {
        if let Ok(port) = u16::try_from(port)
            && port != 0
            && address.is_ipv6() == is_v6
        {
            frontends.insert(frontend_key(address, port, protocol), frontend);
        }
    };
    let serves_family = cluster_ips.iter().any(|address| address.is_ipv6() == is_v6);
    if serves_family
        && let Some(node_port) = port.node_port
        && matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
    {
        for address in node.addresses.iter().filter(|address| node.has_node_ports_at(**address)) {
            add(*address, node_port, from_outside);
        }
        if node.has_node_ports_at(loopback(is_v6)) {
            add(loopback(is_v6), node_port, NODE_ONLY);
        }
    }
    for address in spec.external_ips.iter().flatten().filter_map(|text| text.parse().ok()) {
        add(address, port.port, from_outside);
    }
    for address in load_balancer_addresses(service) {
        add(address, port.port, DesiredFrontend { flags: from_outside.flags | balanced, ..from_outside });
    }
    let flags = if internal == Set::Local { FRONTEND_INSIDE_LOCAL } else { 0 };
    for address in cluster_ips {
        add(*address, port.port, DesiredFrontend { inside: internal, wire: internal, flags });
    }
    frontends
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut addresses: Vec<IpAddr> = listed.filter_map(|text| text.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Headless services have no address to serve, external names are DNS's, and labelled ones another proxy's.
fn is_left_alone(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName")
        || spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
        || service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(SERVICE_PROXY_NAME))
}

/// Addresses that a load balancer announces for this cluster to answer; with `ipMode: Proxy` it answers itself.
fn load_balancer_addresses(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status
        .and_then(|status| status.ingress.as_ref())
        .into_iter()
        .flatten()
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
}

/// Returns the ranges of one family; none means that everybody may.
///
/// The API's validation lets blanks around a range pass, and so does kube-proxy.
fn source_ranges(spec: &ServiceSpec, is_v6: bool) -> Ranges {
    let parse = |text: &String| -> Option<SourceRange> {
        let (address, prefix_len) = text.trim().split_once('/')?;
        let (address, prefix_len): (IpAddr, u32) = (address.parse().ok()?, prefix_len.parse().ok()?);
        let (family_bits, bits_before) = if is_v6 { (128, 0) } else { (32, 96) };
        (address.is_ipv6() == is_v6 && prefix_len <= family_bits)
            .then(|| SourceRange::new(addr(address), bits_before + prefix_len))
    };
    spec.load_balancer_source_ranges.iter().flatten().filter_map(parse).collect()
}

/// 0 for none.
fn affinity_seconds(spec: &ServiceSpec) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = client_ip.and_then(|config| u32::try_from(config.timeout_seconds?).ok());
    seconds.unwrap_or(AFFINITY_SECONDS).clamp(1, MAX_AFFINITY_SECONDS)
}

pub(crate) fn publishes_not_ready(spec: &ServiceSpec) -> bool {
    spec.publish_not_ready_addresses == Some(true)
}

fn policy(policy: Option<&str>) -> Set {
    if policy == Some("Local") { Set::Local } else { Set::Cluster }
}

/// `None` for a protocol that is not served.
pub(crate) fn protocol_number(protocol: Option<&str>) -> Option<u8> {
    match protocol.unwrap_or("TCP") {
        "TCP" => Some(IPPROTO_TCP),
        "UDP" => Some(IPPROTO_UDP),
        _ => None,
    }
}

fn loopback(is_v6: bool) -> IpAddr {
    if is_v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

pub(crate) fn frontend_key(address: IpAddr, port: u16, protocol: u8) -> FrontendKey {
    FrontendKey { addr: addr(address), port_be: port.to_be(), protocol, pad: 0 }
}

/// An address as the maps have it.
pub(crate) fn addr(address: IpAddr) -> Addr {
    match address {
        IpAddr::V4(address) => v4_mapped(address.octets()),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// The address that the maps' form stands for.
pub(crate) fn ip(addr: &Addr) -> IpAddr {
    let address = Ipv6Addr::from(addr.octets());
    address.to_ipv4_mapped().map_or(address.into(), IpAddr::from)
}
