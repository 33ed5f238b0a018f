//! The cluster's services: as plain values for rule generators, as the API's objects, and as a node keeps them.
//!
//! All but the last few lead to endpoints that do not exist: nothing is ever sent to them. The last ones are measured,
//! which is the worst place for a proxy that looks at one rule after another.

use std::{net::Ipv4Addr, sync::Arc};

use hawser_services::{EndpointSlice, Service};
use k8s_openapi::{
    api::{
        core::v1::{self, ServicePort, ServiceSpec},
        discovery::v1::{self as discovery, Endpoint, EndpointConditions, EndpointPort},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::lab;

/// Most services that the address plan below has room for.
pub(crate) const MAX_SERVICES: u32 = 60_000;
/// Endpoints that an unmeasured service may have.
pub(crate) const MAX_ENDPOINTS: u32 = 8;

pub(crate) const TCP_PORT: u16 = 80;
pub(crate) const UDP_PORT: u16 = 53;
pub(crate) const NODE_PORT: u16 = 30053;

#[derive(Clone)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) protocol: &'static str,
    pub(crate) port: u16,
    pub(crate) target_port: u16,
    pub(crate) node_port: Option<u16>,
}

impl Port {
    pub(crate) fn new(name: &str, protocol: &'static str, port: u16, target_port: u16) -> Self {
        Self { name: name.to_owned(), protocol, port, target_port, node_port: None }
    }
}

/// A service and its endpoints.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) ports: Vec<Port>,
    pub(crate) endpoints: Vec<Ipv4Addr>,
}

/// `count` services with `endpoints` endpoints each. The last is the one that clients connect to, with two backends
/// here that listen on `target_port`; the one before has a node port, and its backend on the second node.
pub(crate) fn specs(count: u32, endpoints: u32, target_port: u16) -> Vec<Spec> {
    let count = count.clamp(2, MAX_SERVICES);
    let mut specs: Vec<Spec> = (0..count - 2).map(|n| unmeasured(n, endpoints)).collect();
    let node_port = Port { node_port: Some(NODE_PORT), ..Port::new("udp", "UDP", UDP_PORT, target_port) };
    specs.push(Spec {
        name: "forwarded".to_owned(),
        address: service_address(count - 2),
        ports: vec![node_port],
        endpoints: vec![lab::REMOTE_BACKEND],
    });
    specs.push(Spec {
        name: "measured".to_owned(),
        address: service_address(count - 1),
        ports: vec![
            Port::new("tcp", "TCP", TCP_PORT, target_port),
            Port::new("udp", "UDP", UDP_PORT, target_port),
        ],
        endpoints: lab::BACKENDS.to_vec(),
    });
    specs
}

fn unmeasured(n: u32, endpoints: u32) -> Spec {
    let first = n * MAX_ENDPOINTS;
    Spec {
        name: format!("service-{n}"),
        address: service_address(n),
        ports: vec![Port::new("http", "TCP", TCP_PORT, 8080)],
        endpoints: (0..endpoints.min(MAX_ENDPOINTS)).map(|k| nowhere(first + k)).collect(),
    }
}

/// In 10.96.0.0/12.
pub(crate) fn service_address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + n + 1)
}

/// In 10.128.0.0/9, to which nothing has a route.
pub(crate) fn nowhere(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + n + 1)
}

pub(crate) fn service(spec: &Spec) -> Arc<Service> {
    Arc::new(Service::from(&api_service(spec)))
}

pub(crate) fn api_service(spec: &Spec) -> v1::Service {
    let ports = spec.ports.iter().map(|port| ServicePort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.to_owned()),
        port: port.port.into(),
        node_port: port.node_port.map(Into::into),
        ..ServicePort::default()
    });
    let has_node_port = spec.ports.iter().any(|port| port.node_port.is_some());
    v1::Service {
        metadata: metadata(&spec.name),
        spec: Some(ServiceSpec {
            type_: Some(if has_node_port { "NodePort" } else { "ClusterIP" }.to_owned()),
            cluster_ip: Some(spec.address.to_string()),
            cluster_ips: Some(vec![spec.address.to_string()]),
            ports: Some(ports.collect()),
            ..ServiceSpec::default()
        }),
        ..v1::Service::default()
    }
}

pub(crate) fn slice(spec: &Spec) -> Arc<EndpointSlice> {
    Arc::new(EndpointSlice::of(&api_slice(spec)).expect("it names its service"))
}

pub(crate) fn api_slice(spec: &Spec) -> discovery::EndpointSlice {
    let endpoints = spec.endpoints.iter().map(|address| {
        let is_here = lab::BACKENDS.contains(address);
        Endpoint {
            addresses: vec![address.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            node_name: Some(if is_here { "node-a" } else { "node-b" }.to_owned()),
            ..Endpoint::default()
        }
    });
    let ports = spec.ports.iter().map(|port| EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.to_owned()),
        port: Some(port.target_port.into()),
        ..EndpointPort::default()
    });
    let mut metadata = metadata(&format!("{}-slice", spec.name));
    metadata.labels = Some([("kubernetes.io/service-name".to_owned(), spec.name.clone())].into());
    discovery::EndpointSlice {
        metadata,
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints.collect()),
        ports: Some(ports.collect()),
    }
}

pub(crate) fn objects(specs: &[Spec]) -> (Vec<Arc<Service>>, Vec<Arc<EndpointSlice>>) {
    (specs.iter().map(service).collect(), specs.iter().map(slice).collect())
}

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        // As long as one of the API server's.
        uid: Some(format!("{name:0>36}")),
        ..ObjectMeta::default()
    }
}
