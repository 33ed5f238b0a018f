//! An EndpointSlice, as far as a node reads it.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::discovery::v1;

use crate::{
    names::{Key, shared},
    service::{Protocol, number},
};

/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A slice of a Service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub service: Key,
    pub ports: Box<[EndpointPort]>,
    pub endpoints: Box<[Endpoint]>,
    pub family: Family,
}

/// What kind of addresses a slice has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    /// Names: nothing on a node leads to them.
    Fqdn,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Empty where the port has no name.
    pub name: Arc<str>,
    /// 0 for none.
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first of its addresses. They are fungible: all of Kubernetes uses the first.
    pub address: IpAddr,
    /// A condition that is not given means ready.
    pub ready: bool,
    pub serving: Option<bool>,
    pub terminating: bool,
    pub node: Option<Arc<str>>,
    details: Option<Box<Details>>,
}

/// What few endpoints have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Details {
    hostname: Option<Box<str>>,
    more_addresses: Box<[IpAddr]>,
    for_nodes: Box<[Arc<str>]>,
    for_zones: Box<[Arc<str>]>,
}

impl EndpointSlice {
    /// `None` for a slice that is of no Service.
    pub fn of(object: &v1::EndpointSlice) -> Option<Self> {
        let meta = &object.metadata;
        let service = meta.labels.as_ref()?.get(SERVICE_NAME)?;
        let ports = object.ports.iter().flatten().map(|port| EndpointPort {
            name: shared(port.name.as_deref().unwrap_or_default()),
            port: number(port.port),
            protocol: Protocol::of(port.protocol.as_ref()),
        });
        Some(Self {
            service: Key {
                namespace: shared(meta.namespace.as_deref().unwrap_or_default()),
                name: shared(service),
            },
            ports: ports.collect(),
            endpoints: object.endpoints.iter().flatten().filter_map(Endpoint::of).collect(),
            family: match object.address_type.as_str() {
                "IPv4" => Family::V4,
                "IPv6" => Family::V6,
                _ => Family::Fqdn,
            },
        })
    }

    /// Ready endpoints, with the node that each is on.
    pub fn ready_endpoints(&self) -> impl Iterator<Item = (&str, &Endpoint)> {
        let ready = self.endpoints.iter().filter(|endpoint| endpoint.ready);
        ready.filter_map(|endpoint| Some((endpoint.node.as_deref()?, endpoint)))
    }
}

impl Endpoint {
    /// `None` for one without an IP address.
    fn of(object: &v1::Endpoint) -> Option<Self> {
        let mut addresses = object.addresses.iter().filter_map(|text| text.parse().ok());
        let address = addresses.next()?;
        let conditions = object.conditions.as_ref();
        let hints = object.hints.as_ref();
        let for_nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).into_iter().flatten();
        let for_zones = hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten();
        let details = Details {
            hostname: object.hostname.as_deref().map(Into::into),
            more_addresses: addresses.collect(),
            for_nodes: for_nodes.map(|hint| shared(&hint.name)).collect(),
            for_zones: for_zones.map(|hint| shared(&hint.name)).collect(),
        };
        Some(Self {
            address,
            ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
            serving: conditions.and_then(|conditions| conditions.serving),
            terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
            node: object.node_name.as_deref().map(shared),
            details: (details != Details::default()).then(|| Box::new(details)),
        })
    }

    /// All of its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let more = self.details.iter().flat_map(|details| details.more_addresses.iter());
        std::iter::once(self.address).chain(more.copied())
    }

    /// The pod's, where it has one of its own.
    pub fn hostname(&self) -> Option<&str> {
        self.details.as_ref()?.hostname.as_deref()
    }

    /// The nodes that it is meant for (KEP-2433); empty where it does not say.
    pub fn for_nodes(&self) -> &[Arc<str>] {
        self.details.as_ref().map_or(&[], |details| &details.for_nodes)
    }

    /// The zones that it is meant for (KEP-2433); empty where it does not say.
    pub fn for_zones(&self) -> &[Arc<str>] {
        self.details.as_ref().map_or(&[], |details| &details.for_zones)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn slice_keeps_what_nodes_read() {
        let object = json!({
            "metadata": {
                "namespace": "shop", "name": "web-1",
                "labels": { "kubernetes.io/service-name": "web" },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080 }],
            "endpoints": [
                { "addresses": ["10.1.0.2"], "nodeName": "n1" },
                {
                    "addresses": ["10.1.0.3", "10.1.0.4"], "hostname": "web-0",
                    "conditions": { "ready": false, "serving": true, "terminating": true },
                    "hints": { "forZones": [{ "name": "east" }] },
                },
                { "addresses": ["web.example.com"] },
            ],
        });
        let slice = EndpointSlice::of(&serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!(slice.service, Key::new("shop", "web"));
        let [first, second] = &*slice.endpoints else { panic!("{slice:?}") };
        assert_eq!((first.ready, first.serving, first.terminating), (true, None, false));
        assert!(first.details.is_none() && first.node.as_deref() == Some("n1"));
        assert_eq!((second.ready, second.serving, second.terminating), (false, Some(true), true));
        assert_eq!((second.hostname(), second.addresses().count()), (Some("web-0"), 2));
        assert_eq!((second.for_nodes().len(), &*second.for_zones()[0]), (0, "east"));
        assert_eq!(slice.ready_endpoints().count(), 1);
    }

    /// Every node holds every endpoint.
    #[test]
    fn usual_endpoint_is_small() {
        assert!(size_of::<Endpoint>() <= 48, "{}", size_of::<Endpoint>());
    }
}
