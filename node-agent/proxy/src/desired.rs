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
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use hawser_ebpf_abi::{
    Addr, Backend, FrontendKey, IPPROTO_TCP, IPPROTO_UDP,
    service::{
        BACKEND_LOCAL, FRONTEND_AFFINITY, FRONTEND_DSR, FRONTEND_INSIDE_LOCAL, FRONTEND_NODE_IN_RANGES,
        FRONTEND_NODE_ONLY, FRONTEND_SOURCE_RANGES, FRONTEND_WIRE, FRONTEND_WIRE_LOCAL,
    },
    v4_mapped,
};
use hawser_services::{self as services, EndpointSlice, Protocol, Service, ServiceType};

use crate::{
    endpoints::{self, Overrides},
    frontends::Frontends,
    ranges::{Ranges, SourceRange},
};

/// Names a service port of one family, or a host port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// The port's name, empty when it has none; for a host port its number.
    pub port: Arc<str>,
    pub protocol: u8,
    pub is_v6: bool,
    pub kind: Kind,
}

/// A name that is held once, however many tables have it.
pub(crate) type Name = Arc<ServicePortName>;

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
    pub(crate) frontends: Frontends,
    /// In the order of their addresses, so that equal sets are equal lists.
    pub(crate) cluster: Box<[Backend]>,
    /// Backends of this node; filled when a frontend uses them.
    pub(crate) local: Box<[Backend]>,
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
    pub(crate) load_balancer_mode: LoadBalancerMode,
}

/// How packets from outside reach a backend of another node, at addresses that all nodes have: external and load balancer
/// addresses. Node ports are at a node's own address, and always get another source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadBalancerMode {
    /// With an address of this node's as their source; answers come back by way of it.
    #[default]
    Snat,
    /// As they are, to pods: their node translates them, and answers the client itself. Services for which nodes may choose
    /// differently are left out: with client affinity, which one node alone remembers, and with topology hints.
    Dsr,
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
    slices: &[Arc<EndpointSlice>],
    node: &Node,
    overrides: &Overrides,
    skipped: &mut Vec<Skipped>,
) -> Vec<(ServicePortName, ServicePort)> {
    if service.cluster_ips.is_empty() || is_left_alone(service) {
        return Vec::new();
    }
    // Published whatever their readiness: the slices call them ready, and the node's own news mean nothing.
    let none = Overrides::new();
    let overrides = if service.publishes_not_ready { &none } else { overrides };
    let is_dsr = node.load_balancer_mode == LoadBalancerMode::Dsr
        && !service.is_external_local
        && service.affinity_seconds == 0
        && !endpoints::have_hints(slices);
    let mut ports = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        let Some(protocol) = protocol_number(port.protocol) else {
            let what = format!("{}:{}", service.key, port.name);
            skipped.push(Skipped { what, reason: UNSERVED_PROTOCOL });
            continue;
        };
        for is_v6 in [false, true] {
            let source_ranges = source_ranges(service, is_v6);
            let frontends = frontends(service, port, protocol, is_v6, node, &source_ranges, is_dsr);
            if frontends.is_empty() {
                continue;
            }
            let backends = endpoints::collect(slices, port, is_v6, node, overrides);
            let uses_local = frontends.values().any(|f| f.inside == Set::Local || f.wire == Set::Local);
            let name = ServicePortName {
                namespace: service.key.namespace.clone(),
                name: service.key.name.clone(),
                port: port.name.clone(),
                protocol,
                is_v6,
                kind: Kind::Service,
            };
            let port = ServicePort {
                frontends,
                cluster: backends.cluster,
                local: if uses_local { backends.local } else { Box::default() },
                affinity_seconds: service.affinity_seconds,
                source_ranges,
            };
            ports.push((name, port));
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
    let Some(protocol) = protocol_number(Protocol::parse(&host_port.protocol)) else {
        skipped.push(Skipped { what: what(), reason: UNSERVED_PROTOCOL });
        return None;
    };
    let is_v6 = host_port.pod_ip.is_ipv6();
    let addresses: Vec<IpAddr> = match host_port.host_ip.filter(|ip| !ip.is_unspecified()) {
        Some(ip) => vec![ip],
        None => node.addresses.clone(),
    };
    let mut frontends = Vec::new();
    for address in addresses.into_iter().filter(|address| address.is_ipv6() == is_v6) {
        let flags = if address.is_loopback() { FRONTEND_NODE_ONLY } else { FRONTEND_WIRE };
        let frontend = DesiredFrontend { inside: Set::Cluster, wire: Set::Cluster, flags };
        frontends.push((frontend_key(address, host_port.host_port, protocol), frontend));
    }
    if host_port.host_ip.is_none_or(|ip| ip.is_unspecified()) {
        frontends.push((frontend_key(loopback(is_v6), host_port.host_port, protocol), NODE_ONLY));
    }
    let frontends = frontends.into_iter().collect();
    let backend = Backend {
        addr: addr(host_port.pod_ip),
        port_be: host_port.container_port.to_be(),
        flags: BACKEND_LOCAL,
        pad: 0,
    };
    let name = ServicePortName {
        namespace: host_port.pod_namespace.as_str().into(),
        name: host_port.pod_name.as_str().into(),
        // A pod may have one port at several addresses.
        port: match host_port.host_ip.filter(|ip| !ip.is_unspecified()) {
            Some(ip) => SocketAddr::new(ip, host_port.host_port).to_string().into(),
            None => host_port.host_port.to_string().into(),
        },
        protocol,
        is_v6,
        kind: Kind::HostPort,
    };
    Some((name, ServicePort { frontends, cluster: [backend].into(), ..ServicePort::default() }))
}

const NODE_ONLY: DesiredFrontend =
    DesiredFrontend { inside: Set::Cluster, wire: Set::Cluster, flags: FRONTEND_NODE_ONLY };

const UNSERVED_PROTOCOL: &str = "its protocol is not served: only TCP and UDP are";

/// Returns what a service port is reached at in one family; the source ranges are those of the family.
fn frontends(
    service: &Service,
    port: &services::ServicePort,
    protocol: u8,
    is_v6: bool,
    node: &Node,
    source_ranges: &Ranges,
    is_dsr: bool,
) -> Frontends {
    let (internal, external) = (set(service.is_internal_local), set(service.is_external_local));
    let affinity = if service.affinity_seconds > 0 { FRONTEND_AFFINITY } else { 0 };
    let wire_flags =
        if service.is_external_local { FRONTEND_WIRE | FRONTEND_WIRE_LOCAL } else { FRONTEND_WIRE };
    let from_outside = DesiredFrontend { inside: Set::Cluster, wire: external, flags: wire_flags | affinity };
    let mut frontends = Vec::new();
    let mut add = |address: IpAddr, port: u16, frontend| {
        if port != 0 && address.is_ipv6() == is_v6 {
            frontends.push((frontend_key(address, port, protocol), frontend));
        }
    };
    let serves_family = service.cluster_ips.iter().any(|address| address.is_ipv6() == is_v6);
    if serves_family && matches!(service.type_, ServiceType::NodePort | ServiceType::LoadBalancer) {
        for address in node.addresses.iter().filter(|address| node.has_node_ports_at(**address)) {
            add(*address, port.node_port, from_outside);
        }
        if node.has_node_ports_at(loopback(is_v6)) {
            let frontend = DesiredFrontend { flags: NODE_ONLY.flags | affinity, ..NODE_ONLY };
            add(loopback(is_v6), port.node_port, frontend);
        }
    }
    if let Some(external) = &service.external {
        let flags = from_outside.flags | if is_dsr { FRONTEND_DSR } else { 0 };
        for address in &external.ips {
            add(*address, port.port, DesiredFrontend { flags, ..from_outside });
        }
        let flags = flags | range_flags(source_ranges, node);
        for address in &external.load_balancer_ips {
            add(*address, port.port, DesiredFrontend { flags, ..from_outside });
        }
    }
    let inside_flags = if service.is_internal_local { FRONTEND_INSIDE_LOCAL } else { 0 };
    for address in &service.cluster_ips {
        let flags = inside_flags | affinity;
        add(*address, port.port, DesiredFrontend { inside: internal, wire: internal, flags });
    }
    frontends.into_iter().collect()
}

fn range_flags(source_ranges: &Ranges, node: &Node) -> u32 {
    let is_in_ranges = |own: &IpAddr| source_ranges.iter().any(|range| range.contains(&addr(*own)));
    match (source_ranges.is_empty(), node.addresses.iter().any(is_in_ranges)) {
        (true, _) => 0,
        (false, false) => FRONTEND_SOURCE_RANGES,
        (false, true) => FRONTEND_SOURCE_RANGES | FRONTEND_NODE_IN_RANGES,
    }
}

/// Headless services have no address to serve, external names are DNS's, and labelled ones another proxy's.
fn is_left_alone(service: &Service) -> bool {
    service.type_ == ServiceType::ExternalName || service.is_headless || service.is_other_proxys
}

/// Returns the ranges of one family; none means that everybody may.
fn source_ranges(service: &Service, is_v6: bool) -> Ranges {
    let ranges = service.external.iter().flat_map(|external| &external.load_balancer_source_ranges);
    let bits_before = if is_v6 { 0 } else { 96 };
    ranges
        .filter(|range| range.address.is_ipv6() == is_v6)
        .map(|range| SourceRange::new(addr(range.address), bits_before + u32::from(range.prefix_len)))
        .collect()
}

fn set(is_local: bool) -> Set {
    if is_local { Set::Local } else { Set::Cluster }
}

/// `None` for a protocol that is not served.
fn protocol_number(protocol: Protocol) -> Option<u8> {
    match protocol {
        Protocol::Tcp => Some(IPPROTO_TCP),
        Protocol::Udp => Some(IPPROTO_UDP),
        Protocol::Sctp | Protocol::Other => None,
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
