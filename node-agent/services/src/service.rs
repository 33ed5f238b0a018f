//! A Service, as far as a node reads it.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1;

use crate::names::{Key, shared};

/// Services with this label are another proxy's.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The API's default and longest timeout of client affinity: 3 hours and a day.
const AFFINITY_SECONDS: u32 = 10_800;
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// A Service. Addresses and ranges that are none are left out: the API server admits no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub key: Key,
    pub uid: Box<str>,
    /// All of its cluster IPs, the first one first; none for a headless Service and one without address yet.
    pub cluster_ips: Box<[IpAddr]>,
    pub ports: Box<[ServicePort]>,
    /// What few Services have.
    pub external: Option<Box<External>>,
    /// How long a client keeps its backend; 0 for no affinity.
    pub affinity_seconds: u32,
    pub type_: ServiceType,
    /// `clusterIP: None`
    pub is_headless: bool,
    /// It has the label `service.kubernetes.io/service-proxy-name`.
    pub is_other_proxys: bool,
    pub publishes_not_ready: bool,
    /// `internalTrafficPolicy: Local`
    pub is_internal_local: bool,
    /// `externalTrafficPolicy: Local`
    pub is_external_local: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty where the port has no name.
    pub name: Arc<str>,
    pub port: u16,
    /// 0 for none.
    pub node_port: u16,
    pub protocol: Protocol,
}

/// What a Service has to do with the world outside of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct External {
    /// Of an `ExternalName`.
    pub name: Option<Box<str>>,
    pub ips: Box<[IpAddr]>,
    /// Addresses that a load balancer announces for this cluster to answer; with `ipMode: Proxy` it answers itself.
    pub load_balancer_ips: Box<[IpAddr]>,
    pub load_balancer_source_ranges: Box<[SourceRange]>,
    /// 0 for none.
    pub health_check_node_port: u16,
    pub has_load_balancer_class: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRange {
    pub address: IpAddr,
    pub prefix_len: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    #[default]
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
    /// One that this version does not know.
    Other,
}

impl Protocol {
    pub fn parse(text: &str) -> Self {
        match text {
            "TCP" => Self::Tcp,
            "UDP" => Self::Udp,
            "SCTP" => Self::Sctp,
            _ => Self::Other,
        }
    }

    /// As the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Other => "OTHER",
        }
    }

    pub(crate) fn of(text: Option<&String>) -> Self {
        text.map(|text| Self::parse(text)).unwrap_or_default()
    }
}

impl From<&v1::Service> for Service {
    fn from(object: &v1::Service) -> Self {
        let meta = &object.metadata;
        let empty = v1::ServiceSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let ports = spec.ports.iter().flatten().map(|port| ServicePort {
            name: shared(port.name.as_deref().unwrap_or_default()),
            port: number(Some(port.port)),
            node_port: number(port.node_port),
            protocol: Protocol::of(port.protocol.as_ref()),
        });
        let external = external(object, spec);
        Self {
            key: Key {
                namespace: shared(meta.namespace.as_deref().unwrap_or_default()),
                name: shared(meta.name.as_deref().unwrap_or_default()),
            },
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            cluster_ips: cluster_ips(spec),
            ports: ports.collect(),
            external: (external != External::default()).then(|| Box::new(external)),
            affinity_seconds: affinity_seconds(spec),
            type_: match spec.type_.as_deref() {
                Some("NodePort") => ServiceType::NodePort,
                Some("LoadBalancer") => ServiceType::LoadBalancer,
                Some("ExternalName") => ServiceType::ExternalName,
                _ => ServiceType::ClusterIp,
            },
            is_headless: spec.cluster_ip.as_deref() == Some("None"),
            is_other_proxys: meta.labels.as_ref().is_some_and(|it| it.contains_key(SERVICE_PROXY_NAME)),
            publishes_not_ready: spec.publish_not_ready_addresses == Some(true),
            is_internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            is_external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
        }
    }
}

fn external(object: &v1::Service, spec: &v1::ServiceSpec) -> External {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let answered_here = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    External {
        name: spec.external_name.as_deref().map(Into::into),
        ips: spec.external_ips.iter().flatten().filter_map(|text| text.parse().ok()).collect(),
        load_balancer_ips: answered_here.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()).collect(),
        load_balancer_source_ranges: spec
            .load_balancer_source_ranges
            .iter()
            .flatten()
            .filter_map(|text| SourceRange::parse(text))
            .collect(),
        health_check_node_port: number(spec.health_check_node_port),
        has_load_balancer_class: spec.load_balancer_class.is_some(),
    }
}

impl SourceRange {
    /// The API's validation lets blanks around a range pass, and so does kube-proxy.
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix_len) = text.trim().split_once('/')?;
        let (address, prefix_len): (IpAddr, u8) = (address.parse().ok()?, prefix_len.parse().ok()?);
        let family_bits = if address.is_ipv6() { 128 } else { 32 };
        (prefix_len <= family_bits).then_some(Self { address, prefix_len })
    }
}

fn cluster_ips(spec: &v1::ServiceSpec) -> Box<[IpAddr]> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for text in spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()) {
        if let Ok(ip) = text.parse()
            && !ips.contains(&ip)
        {
            ips.push(ip);
        }
    }
    ips.into()
}

/// 0 for none.
fn affinity_seconds(spec: &v1::ServiceSpec) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = client_ip.and_then(|config| u32::try_from(config.timeout_seconds?).ok());
    seconds.unwrap_or(AFFINITY_SECONDS).clamp(1, MAX_AFFINITY_SECONDS)
}

/// A port's number; 0 for none.
pub(crate) fn number(port: Option<i32>) -> u16 {
    port.and_then(|port| u16::try_from(port).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        let object = json!({ "metadata": { "namespace": "shop", "name": "web", "uid": "u1" }, "spec": spec });
        Service::from(&serde_json::from_value::<v1::Service>(object).unwrap())
    }

    #[test]
    fn first_cluster_ip_is_first_and_each_is_there_once() {
        let both = service(json!({ "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"] }));
        assert_eq!(*both.cluster_ips, ["10.96.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        let headless = service(json!({ "clusterIP": "None", "clusterIPs": ["None"] }));
        assert!(headless.is_headless && headless.cluster_ips.is_empty());
    }

    #[test]
    fn ranges_may_have_blanks_around_them_and_have_to_be_ranges() {
        let texts = [" 10.0.0.0/8 ", "10.0.0.0/33", "fd00::/129", "10.0.0.0", "fd00::/64"];
        let ranges = service(json!({ "loadBalancerSourceRanges": texts })).external.unwrap();
        let found = ranges.load_balancer_source_ranges.iter();
        let found: Vec<String> = found.map(|it| format!("{}/{}", it.address, it.prefix_len)).collect();
        assert_eq!(found, ["10.0.0.0/8", "fd00::/64"]);
    }

    /// Every node holds every Service.
    #[test]
    fn usual_service_is_small() {
        let usual = service(json!({ "clusterIP": "10.96.0.7", "ports": [{ "name": "http", "port": 80 }] }));
        assert!(usual.external.is_none());
        assert!(size_of::<Service>() <= 112, "{}", size_of::<Service>());
        assert!(size_of::<ServicePort>() <= 24);
    }
}
