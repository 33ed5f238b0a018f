//! What the subresource `proxy` leads to: a pod, a ready endpoint of a service, or a node's kubelet.
//!
//! The name in the path may say more than the object's: `name:port`, `scheme:name:port`. What is reached is always a pod,
//! through the kubelet of its node, or a kubelet itself: never an address that an object merely mentions.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hawser_api::Error;
use serde_json::Value;

use super::{
    Call,
    connect::{Kubelet, KubeletEndpoint},
};
use crate::{
    ApiServer,
    admission::{Operation, Request},
    cache::{CachedObject, Selection},
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Where a proxied request goes.
#[derive(Debug)]
pub enum ProxyTarget {
    /// The kubelet's own API.
    Kubelet(Kubelet),
    Pod(PodPort),
}

/// A port of a pod.
#[derive(Debug)]
pub struct PodPort {
    /// Asked for a connection to the port.
    pub connection: KubeletEndpoint,
    /// The port as the pod's own links name it.
    pub address: SocketAddr,
    pub tls: bool,
}

impl ProxyTarget {
    pub fn node(&self) -> &str {
        match self {
            Self::Kubelet(kubelet) => &kubelet.node,
            Self::Pod(port) => &port.connection.kubelet.node,
        }
    }

    /// Address and port of what answers.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Kubelet(kubelet) => kubelet.address,
            Self::Pod(port) => port.address,
        }
    }
}

/// The name in the path, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Reference<'a> {
    tls: bool,
    name: &'a str,
    /// A number, or a name; empty where none is given.
    port: &'a str,
}

impl<'a> Reference<'a> {
    fn parse(id: &'a str) -> Option<Self> {
        let parts: Vec<&str> = id.split(':').collect();
        let (scheme, name, port) = match parts[..] {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => return None,
        };
        let known = !name.is_empty() && matches!(scheme, "" | "http" | "https");
        known.then_some(Self { tls: scheme == "https", name, port })
    }

    /// The port, or what the scheme says.
    fn number(&self, port: &str) -> Result<u16, Error> {
        match port {
            "" if self.tls => Ok(443),
            "" => Ok(80),
            port => port.parse().map_err(|_| {
                Error::unavailable(format!(
                    "error trying to reach service: dial tcp: lookup tcp/{port}: unknown port"
                ))
            }),
        }
    }
}

impl ApiServer {
    /// Finds what a request to `proxy` is meant for.
    ///
    /// # Errors
    /// An object that is not there; 400 for a name that says nothing, a pod without an address or a port of a node that is
    /// not its kubelet's; 503 for a service without ready endpoints.
    pub async fn proxy_target(&self, call: &Call) -> Result<ProxyTarget, Error> {
        let (namespace, id) = call.place()?;
        let kind = call.resource.row.singular;
        let reference = Reference::parse(id)
            .ok_or_else(|| Error::bad_request(format!("invalid {kind} request {id:?}")))?;
        let place = (namespace, reference.name);
        let object = self.registry().get(&call.pass, &call.resource, place, "").await?.value();
        self.admit_proxy(call, place, &object).await?;
        match kind {
            "pod" => self.pod_target(&reference, namespace, &object),
            "service" => self.service_target(&reference, namespace, &object),
            _ => self.node_target(&reference),
        }
    }

    async fn admit_proxy(&self, call: &Call, place: (&str, &str), object: &Value) -> Result<(), Error> {
        let mut shown = object.clone();
        let request = Request {
            user: call.pass.user(),
            operation: Operation::Connect,
            resource: &call.resource,
            subresource: call.subresource(),
            namespace: place.0,
            name: place.1,
            dry_run: false,
            object: &mut shown,
            old: Some(object),
        };
        self.registry().admit_connect(&request).await
    }

    fn node_target(&self, reference: &Reference<'_>) -> Result<ProxyTarget, Error> {
        let kubelet = self.kubelet(reference.name)?;
        let own = kubelet.address.port();
        if reference.port.is_empty() || reference.port == own.to_string() {
            return Ok(ProxyTarget::Kubelet(kubelet));
        }
        let Reference { name, port, .. } = reference;
        Err(Error::bad_request(format!(
            "port {port} of node {name:?} is not reached: only its kubelet's is, {own}"
        )))
    }

    fn pod_target(
        &self,
        reference: &Reference<'_>,
        namespace: &str,
        pod: &Value,
    ) -> Result<ProxyTarget, Error> {
        let address = pod["status"]["podIP"].as_str().and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| Error::bad_request("address not allowed"))?;
        let declared = first_port(pod);
        let port = if reference.port.is_empty() { &declared } else { reference.port };
        let port = reference.number(port)?;
        self.pod_port(namespace, pod, address, port, reference.tls)
    }

    fn service_target(
        &self,
        reference: &Reference<'_>,
        namespace: &str,
        service: &Value,
    ) -> Result<ProxyTarget, Error> {
        let port = port_name(service, reference)?;
        let (pod, address, port) =
            self.ready_endpoint(namespace, reference.name, &port)?.ok_or_else(|| {
                Error::unavailable(format!("no endpoints available for service {:?}", reference.name))
            })?;
        self.pod_port(namespace, &pod, address, port, reference.tls)
    }

    /// A pod behind a port of a service, any of them: pod, address, port.
    fn ready_endpoint(
        &self,
        namespace: &str,
        service: &str,
        port: &str,
    ) -> Result<Option<(Value, IpAddr, u16)>, Error> {
        let resources = self.registry().resources();
        let slices = resources.builtin("discovery.k8s.io", "v1", "endpointslices").cache()?;
        let pods = resources.builtin("", "v1", "pods").cache()?;
        let selector = format!("{SERVICE_NAME}={service}");
        let selection = Selection::parse(slices, Some(namespace), &selector, "")?;
        let mut found: Vec<Arc<CachedObject>> =
            selection.select(slices, &slices.snapshot().state, "").collect();
        start_anywhere(&mut found);
        for slice in found {
            let slice = slice.value();
            let Some(port) = port_number(&slice, port) else { continue };
            let mut endpoints: Vec<&Value> = elements(&slice["endpoints"]).collect();
            start_anywhere(&mut endpoints);
            let pod = endpoints.into_iter().find_map(|endpoint| {
                let (name, address) = ready_pod(endpoint, namespace)?;
                let pod = pods.get(namespace, name)?.value();
                has_address(&pod, address).then_some((pod, address.parse().ok()?))
            });
            if let Some((pod, address)) = pod {
                return Ok(Some((pod, address, port)));
            }
        }
        Ok(None)
    }

    fn pod_port(
        &self,
        namespace: &str,
        pod: &Value,
        address: IpAddr,
        port: u16,
        tls: bool,
    ) -> Result<ProxyTarget, Error> {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let connection = KubeletEndpoint {
            kubelet: self.kubelet(node)?,
            path_and_query: format!("/connect/{namespace}/{name}?port={port}"),
        };
        Ok(ProxyTarget::Pod(PodPort { connection, address: SocketAddr::new(address, port), tls }))
    }
}

fn elements(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Requests begin at different places, so that endpoints share them.
fn start_anywhere<T>(items: &mut [T]) {
    if !items.is_empty() {
        let random = uuid::Uuid::new_v4().as_u64_pair().0 as usize;
        items.rotate_left(random % items.len());
    }
}

/// The first port that a pod's containers declare; empty where there is none.
fn first_port(pod: &Value) -> String {
    let mut containers = elements(&pod["spec"]["containers"]);
    let port = containers.find_map(|container| container["ports"][0]["containerPort"].as_u64());
    port.map_or_else(String::new, |port| port.to_string())
}

/// The name, in the service's slices, of the port that a request means: a number is one of the service's own.
fn port_name(service: &Value, reference: &Reference<'_>) -> Result<String, Error> {
    let Ok(number) = reference.port.parse::<u64>() else { return Ok(reference.port.to_owned()) };
    let mut ports = elements(&service["spec"]["ports"]);
    let port = ports.find(|port| port["port"].as_u64() == Some(number)).ok_or_else(|| {
        Error::unavailable(format!("no service port {number} found for service {:?}", reference.name))
    })?;
    Ok(port["name"].as_str().unwrap_or_default().to_owned())
}

/// The number that a slice has for a port.
fn port_number(slice: &Value, name: &str) -> Option<u16> {
    let mut ports = elements(&slice["ports"]);
    let port = ports.find(|port| {
        port["name"].as_str().unwrap_or_default() == name
            && port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP")
    })?;
    port["port"].as_u64()?.try_into().ok()
}

/// Pod and address of an endpoint that is ready, and is a pod of this namespace.
fn ready_pod<'a>(endpoint: &'a Value, namespace: &str) -> Option<(&'a str, &'a str)> {
    let target = &endpoint["targetRef"];
    let is_pod =
        target["kind"] == "Pod" && target["namespace"].as_str().is_none_or(|other| other == namespace);
    let is_ready = endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
    let address = endpoint["addresses"][0].as_str()?;
    (is_pod && is_ready).then_some((target["name"].as_str()?, address))
}

/// An endpoint may name a pod that has nothing to do with its address.
fn has_address(pod: &Value, address: &str) -> bool {
    elements(&pod["status"]["podIPs"]).any(|own| own["ip"] == address)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_say_scheme_and_port() {
        let parsed = |id| Reference::parse(id).map(|found| (found.tls, found.name, found.port));
        assert_eq!(parsed("web"), Some((false, "web", "")));
        assert_eq!(parsed("web:80"), Some((false, "web", "80")));
        assert_eq!(parsed("web:"), Some((false, "web", "")));
        assert_eq!(parsed("https:web:8443"), Some((true, "web", "8443")));
        assert_eq!(parsed("http:web:"), Some((false, "web", "")));
        assert_eq!(parsed(":web:"), Some((false, "web", "")));
        for bad in ["", ":80", "ftp:web:21", "https:web:1:2", "https::443"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn ports_of_services_are_found_by_number_and_name() {
        let service = json!({ "spec": { "ports": [
            { "port": 80, "name": "http" }, { "port": 443, "name": "https" }, { "port": 53 },
        ] } });
        let named = |id| port_name(&service, &Reference::parse(id).expect("a reference"));
        assert_eq!(named("web:80").expect("known"), "http");
        assert_eq!(named("https:web:https").expect("known"), "https");
        assert_eq!(named("web:53").expect("known"), "");
        assert_eq!(named("web").expect("the port without a name"), "");
        let error = named("web:81").expect_err("unknown");
        assert_eq!((error.code(), error.message()), (503, "no service port 81 found for service \"web\""));
    }

    #[test]
    fn endpoints_are_ready_pods_of_the_namespace() {
        let endpoint = json!({
            "addresses": ["10.0.0.7"], "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "namespace": "shop", "name": "web-1" },
        });
        assert_eq!(ready_pod(&endpoint, "shop"), Some(("web-1", "10.0.0.7")));
        assert_eq!(ready_pod(&endpoint, "other"), None);
        for (pointer, value) in [("/conditions/ready", json!(false)), ("/targetRef/kind", json!("Node"))] {
            let mut changed = endpoint.clone();
            *changed.pointer_mut(pointer).expect("there") = value;
            assert_eq!(ready_pod(&changed, "shop"), None, "{pointer}");
        }
        let by_hand = json!({ "addresses": ["169.254.169.254"] });
        assert_eq!(ready_pod(&by_hand, "shop"), None);
        let pod = json!({ "status": { "podIPs": [{ "ip": "10.0.0.7" }] } });
        assert!(has_address(&pod, "10.0.0.7") && !has_address(&pod, "169.254.169.254"));
    }

    #[test]
    fn slices_are_used_by_the_port_that_they_have() {
        let slice = json!({ "ports": [
            { "name": "http", "port": 8080 }, { "name": "dns", "port": 53, "protocol": "UDP" },
        ] });
        assert_eq!(port_number(&slice, "http"), Some(8080));
        assert_eq!(port_number(&slice, "dns"), None);
        assert_eq!(port_number(&slice, ""), None);
    }
}
