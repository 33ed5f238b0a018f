//! From pods to endpoints: who is in, on which ports, in which condition. Pure.
//!
//! Conditions follow KEP-1669: a pod that terminates is not ready, but still serving while it passes its
//! readiness probe, so that connections can be drained to it. A port named by the service is looked up in
//! each pod, so that pods of one service may have it under different numbers.

use std::sync::Arc;

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::meta::{MetaExt, pod_is_ready, pod_is_terminal, pod_node};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AddressType {
    Ipv4,
    Ipv6,
}

impl AddressType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    pub(crate) fn of(address: &str) -> Self {
        if address.contains(':') { Self::Ipv6 } else { Self::Ipv4 }
    }
}

/// Endpoints that share their ports, and so can share slices.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) address_type: AddressType,
    /// Sorted by name and protocol.
    pub(crate) ports: Vec<EndpointPort>,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// The families that the service has; IPv4 where it does not say.
pub(crate) fn address_types(service: &Service) -> Vec<AddressType> {
    let spec = service.spec.as_ref();
    let families = spec.and_then(|spec| spec.ip_families.as_ref()).into_iter().flatten();
    let mut types: Vec<AddressType> =
        families.map(|family| if family == "IPv6" { AddressType::Ipv6 } else { AddressType::Ipv4 }).collect();
    if types.is_empty() {
        let address = spec.and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
        types.push(AddressType::of(address));
    }
    types
}

/// What the service's slices should hold. `zone_of` gives a node's zone.
pub(crate) fn groups(
    service: &Service,
    pods: &[Arc<Pod>],
    zone_of: impl Fn(&str) -> Option<String>,
) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for address_type in address_types(service) {
        for pod in pods.iter().filter(|pod| !pod_is_terminal(pod)) {
            let Some(address) = address_of(pod, address_type) else { continue };
            let zone = pod_node(pod).and_then(&zone_of);
            let endpoint = endpoint(service, pod, address, zone);
            let ports = slice_ports(service, pod);
            let fits = |group: &&mut Group| group.address_type == address_type && group.ports == ports;
            match groups.iter_mut().find(fits) {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group { address_type, ports, endpoints: vec![endpoint] }),
            }
        }
    }
    // In a settled order, so that equal input gives equal slices.
    for group in &mut groups {
        group.endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    }
    groups
}

/// The pod's address of that family.
pub(crate) fn address_of(pod: &Pod, address_type: AddressType) -> Option<&str> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str());
    let mut all = listed.chain(status.pod_ip.as_deref()).filter(|address| !address.is_empty());
    all.find(|address| AddressType::of(address) == address_type)
}

fn endpoint(service: &Service, pod: &Pod, address: &str, zone: Option<String>) -> Endpoint {
    let serving = pod_is_ready(pod);
    let terminating = pod.is_deleting();
    let ready = publishes_not_ready(service) || (serving && !terminating);
    let node_name = pod_node(pod).map(str::to_owned);
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: if ready { hints(service, zone.as_deref(), node_name.as_deref()) } else { None },
        hostname: hostname(service, pod),
        node_name,
        target_ref: Some(reference_to(pod)),
        zone,
        ..Endpoint::default()
    }
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or_default()
}

/// The name that DNS gives a pod of a headless service.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let belongs = spec.subdomain.as_deref() == Some(service.name()) && pod.namespace() == service.namespace();
    spec.hostname.clone().filter(|hostname| belongs && !hostname.is_empty())
}

pub(crate) fn reference_to(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Where traffic should come from, by `trafficDistribution` (KEP-4444, KEP-3015).
fn hints(service: &Service, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let for_zones = || zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let for_nodes = || node.map(|node| vec![ForNode { name: node.to_owned() }]);
    let hints = match distribution {
        "PreferClose" | "PreferSameZone" => EndpointHints { for_zones: for_zones(), for_nodes: None },
        "PreferSameNode" => EndpointHints { for_zones: for_zones(), for_nodes: for_nodes() },
        _ => return None,
    };
    (hints != EndpointHints::default()).then_some(hints)
}

fn slice_ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let mut ports: Vec<EndpointPort> = resolved_ports(service, pod)
        .map(|(port, number)| EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(number),
            protocol: Some(protocol_of(port).to_owned()),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    ports.sort_by(|a, b| (&a.name, &a.protocol, a.port).cmp(&(&b.name, &b.protocol, b.port)));
    ports
}

pub(crate) fn protocol_of(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

/// The service's ports with their numbers in this pod; names that the pod does not have are left out.
pub(crate) fn resolved_ports<'a>(
    service: &'a Service,
    pod: &'a Pod,
) -> impl Iterator<Item = (&'a ServicePort, i32)> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
    ports.filter_map(move |port| Some((port, number_in(pod, port)?)))
}

fn number_in(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut declared = spec.containers.iter().chain(sidecars).flat_map(|it| it.ports.iter().flatten());
    let found = declared.find(|candidate| {
        candidate.name.as_ref() == Some(name)
            && candidate.protocol.as_deref().unwrap_or("TCP") == protocol_of(port)
    });
    found.map(|candidate| candidate.container_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpointslice::test_objects::{pod, service};

    #[track_caller]
    fn check(name: &str, change: impl FnOnce(&mut Pod), publish: bool, expected: Option<(bool, bool, bool)>) {
        let mut service = service("web", "http");
        service.spec.as_mut().unwrap().publish_not_ready_addresses = Some(publish);
        let mut pod = pod("a", "10.0.0.1", 8080);
        change(&mut pod);
        let groups = groups(&service, &[Arc::new(pod)], |_| Some("z1".to_owned()));
        let conditions = groups.first().map(|group| {
            let it = group.endpoints[0].conditions.as_ref().unwrap();
            (it.ready.unwrap(), it.serving.unwrap(), it.terminating.unwrap())
        });
        assert_eq!(conditions, expected, "{name}");
    }

    #[test]
    fn conditions_tell_ready_serving_and_terminating() {
        let unready = |pod: &mut Pod| {
            pod.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].status = "False".into();
        };
        let ending = |pod: &mut Pod| {
            pod.metadata.deletion_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        };
        check("ready", |_| {}, false, Some((true, true, false)));
        check("not ready", unready, false, Some((false, false, false)));
        check("not ready, published", unready, true, Some((true, false, false)));
        check("ending", ending, false, Some((false, true, true)));
        check("ended", |pod| pod.status.as_mut().unwrap().phase = Some("Failed".into()), false, None);
        check("no address", |pod| pod.status.as_mut().unwrap().pod_ips = None, false, None);
    }

    #[test]
    fn named_ports_are_looked_up_in_each_pod() {
        let service = service("web", "http");
        let pods = [("a", 8080), ("b", 9090), ("c", 8080)]
            .map(|(name, port)| Arc::new(pod(name, &format!("10.0.0.{port}"), port)));
        let groups = groups(&service, &pods, |_| None);
        let found: Vec<(i32, usize)> =
            groups.iter().map(|group| (group.ports[0].port.unwrap(), group.endpoints.len())).collect();
        assert_eq!(found, [(8080, 2), (9090, 1)]);
    }

    #[test]
    fn both_families_get_groups_of_their_own() {
        let mut service = service("web", "http");
        service.spec.as_mut().unwrap().ip_families = Some(vec!["IPv4".into(), "IPv6".into()]);
        let mut dual = pod("a", "10.0.0.1", 8080);
        dual.status
            .as_mut()
            .unwrap()
            .pod_ips
            .as_mut()
            .unwrap()
            .push(k8s_openapi::api::core::v1::PodIP { ip: "fd00::1".into() });
        let groups = groups(&service, &[Arc::new(dual)], |_| None);
        let found: Vec<(&str, &str)> = groups
            .iter()
            .map(|group| (group.address_type.as_str(), group.endpoints[0].addresses[0].as_str()))
            .collect();
        assert_eq!(found, [("IPv4", "10.0.0.1"), ("IPv6", "fd00::1")]);
    }
}
