//! What every cluster has at birth: namespaces, system priority classes, the default roles and their bindings, the range
//! of its services, the `kubernetes` service and its endpoints.
//!
//! Written through the chain under the server's own identity, at every start; what is there already stays as it is,
//! but the endpoints follow the advertised address, and default roles get what they lack ([`rbac`]).

mod controller_policy;
mod policy;
mod rbac;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use hawser_api::{Error, GroupVersionResource, resource::Target, time::now};
use serde_json::{Value, json};
use tracing::warn;

use crate::{
    ApiServer,
    auth::{APISERVER, SYSTEM_MASTERS, User},
    ops::WriteOptions,
};

const NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "default"];

/// System priority classes: name, value, description.
const PRIORITIES: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

/// The ServiceCIDR that every cluster has.
const SERVICE_RANGE: &str = "kubernetes";

pub(crate) async fn run(server: &Arc<ApiServer>) -> Result<(), Error> {
    let birth = Birth { server: server.clone(), user: User::named(APISERVER, &[SYSTEM_MASTERS]) };
    for name in NAMESPACES {
        birth
            .ensure(
                "",
                "namespaces",
                None,
                json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": name } }),
            )
            .await?;
    }
    for (name, value, description) in PRIORITIES {
        let class = json!({
            "kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": { "name": name },
            "value": value, "description": description,
        });
        birth.ensure("scheduling.k8s.io", "priorityclasses", None, class).await?;
    }
    rbac::run(&birth).await?;
    birth.service_range().await?;
    birth.kubernetes_service().await?;
    birth.dns_service().await;
    Ok(())
}

/// Cluster DNS has the tenth address of the service range, by custom; the first is the API server's.
fn dns_address(first: IpAddr) -> IpAddr {
    match first {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().saturating_add(9)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits().saturating_add(9)).into(),
    }
}

struct Birth {
    server: Arc<ApiServer>,
    user: Arc<User>,
}

impl Birth {
    /// Creates an object that is not there.
    async fn ensure(
        &self,
        group: &'static str,
        plural: &'static str,
        namespace: Option<&str>,
        object: Value,
    ) -> Result<(), Error> {
        let resource = GroupVersionResource::fixed(group, "v1", plural);
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let known = self.server.registry().resources().of(&resource)?.cache()?;
        if known.get(namespace.unwrap_or_default(), name).is_some() {
            return Ok(());
        }
        let call = self.server.enter(&self.user, "create", Target::collection(resource, namespace), "")?;
        match self.server.create(&call, object, &WriteOptions::default()).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// Creates an object, or replaces it where it differs.
    async fn put(
        &self,
        group: &'static str,
        plural: &'static str,
        namespace: &str,
        object: Value,
    ) -> Result<(), Error> {
        self.ensure(group, plural, Some(namespace), object.clone()).await?;
        let resource = GroupVersionResource::fixed(group, "v1", plural);
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let call =
            self.server.enter(&self.user, "update", Target::object(resource, Some(namespace), name), "")?;
        self.server.update(&call, object, &WriteOptions::default()).await.map(drop)
    }

    /// The ServiceCIDR that says what `--service-cluster-ip-range` is. One from before another value stays: its ranges
    /// cannot be changed, and cluster IPs come from the flag.
    async fn service_range(&self) -> Result<(), Error> {
        let ranges: Vec<_> =
            self.server.registry().allocators().ranges().iter().map(ToString::to_string).collect();
        let object = json!({
            "kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "metadata": { "name": SERVICE_RANGE },
            "spec": { "cidrs": ranges },
        });
        self.ensure("networking.k8s.io", "servicecidrs", None, object).await?;
        let resource = GroupVersionResource::fixed("networking.k8s.io", "v1", "servicecidrs");
        let target = Target::object(resource, None, SERVICE_RANGE).with_subresource("status");
        let call = self.server.enter(&self.user, "update", target, "")?;
        let registry = self.server.registry();
        let found = registry.get(&call.pass, &call.resource, ("", SERVICE_RANGE), "").await?;
        if found.value()["spec"]["cidrs"] != json!(ranges) {
            warn!(
                ?ranges,
                "the ServiceCIDR {SERVICE_RANGE} is of other ranges than --service-cluster-ip-range"
            );
        }
        let mut object = found.value();
        if !object["status"]["conditions"].is_null() {
            return Ok(());
        }
        object["status"]["conditions"] = json!([{
            "type": "Ready", "status": "True", "reason": "", "lastTransitionTime": now(),
            "message": "Kubernetes default Service CIDR is ready",
        }]);
        self.server.update(&call, object, &WriteOptions::default()).await.map(drop)
    }

    async fn kubernetes_service(&self) -> Result<(), Error> {
        let (address, port) = self.server.advertised();
        let range = self.server.registry().allocators().ranges().first();
        let cluster_ip = range.ok_or_else(|| Error::internal("no service range"))?.first();
        let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
        let service = json!({
            "kind": "Service", "apiVersion": "v1",
            "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels },
            "spec": {
                "type": "ClusterIP", "clusterIP": cluster_ip.to_string(), "sessionAffinity": "None",
                "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "targetPort": port }],
            },
        });
        self.ensure("", "services", Some("default"), service).await?;
        if address.is_loopback() {
            // No pod reaches it there, and endpoints must not name it.
            warn!(%address, "advertised on the loopback address: the service kubernetes gets no endpoints");
            return Ok(());
        }
        let endpoints = json!({
            "kind": "Endpoints", "apiVersion": "v1",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
            },
            "subsets": [{
                "addresses": [{ "ip": address.to_string() }],
                "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
            }],
        });
        self.put("", "endpoints", "default", endpoints).await?;
        let slice = json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": { "kubernetes.io/service-name": "kubernetes" },
            },
            "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{ "addresses": [address.to_string()], "conditions": { "ready": true } }],
            "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        });
        self.put("discovery.k8s.io", "endpointslices", "default", slice).await
    }

    /// Keeps the address of cluster DNS from being given to another service. Nodes answer on it themselves, so that
    /// no service proxy may translate it.
    async fn dns_service(&self) {
        let Some(range) = self.server.registry().allocators().ranges().first() else { return };
        let service = json!({
            "kind": "Service", "apiVersion": "v1",
            "metadata": {
                "name": "kube-dns", "namespace": "kube-system",
                "labels": { "k8s-app": "kube-dns", "service.kubernetes.io/service-proxy-name": "hawser-dns" },
            },
            "spec": {
                "type": "ClusterIP", "clusterIP": dns_address(range.first()).to_string(),
                "ports": [
                    { "name": "dns", "protocol": "UDP", "port": 53 },
                    { "name": "dns-tcp", "protocol": "TCP", "port": 53 },
                ],
            },
        });
        // A range without room for it, or an older cluster that has given the address away, goes on without.
        if let Err(error) = self.ensure("", "services", Some("kube-system"), service).await {
            warn!(%error, "the address of cluster DNS is not reserved");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_has_the_tenth_address() {
        assert_eq!(dns_address("10.96.0.1".parse().unwrap()).to_string(), "10.96.0.10");
        assert_eq!(dns_address("fd00::1".parse().unwrap()).to_string(), "fd00::a");
    }
}
