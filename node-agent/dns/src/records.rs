//! What is known of each service, and which name an address has.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use hawser_api::resource::ObjectKey;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

/// All services, and the way back from addresses to names.
#[derive(Debug, Default)]
pub(crate) struct Records {
    services: HashMap<ObjectKey, Entry>,
    /// Number of services in each namespace that has some.
    namespaces: HashMap<String, usize>,
    /// Names of an address: a service's, or an endpoint's of a headless one. Never an empty set.
    reverse: HashMap<IpAddr, BTreeSet<(ObjectKey, Option<String>)>>,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Has addresses of its own.
    Addressed { ips: Vec<IpAddr>, ports: Vec<Port> },
    /// Stands for its endpoints.
    Headless { endpoints: Vec<Endpoint> },
    /// Stands for another name.
    External { target: String },
}

/// A port that can be asked for by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// Empty where the port has no name.
    pub(crate) name: String,
    /// `tcp`, `udp`, `sctp`
    pub(crate) protocol: String,
    pub(crate) port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) ip: IpAddr,
    /// The pod's hostname, or the address with dashes.
    pub(crate) label: String,
    pub(crate) ports: Vec<Port>,
}

impl Records {
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Entry> {
        self.services.get(key)
    }

    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    /// The names of an address, in order: the service's, or label and service of an endpoint.
    pub(crate) fn names_of(&self, ip: &IpAddr) -> impl Iterator<Item = &(ObjectKey, Option<String>)> {
        self.reverse.get(ip).into_iter().flatten()
    }

    pub(crate) fn set(&mut self, key: &ObjectKey, entry: Option<Entry>) {
        if self.services.get(key) == entry.as_ref() {
            return;
        }
        if let Some(old) = self.services.remove(key) {
            self.forget(key, &old);
        }
        if let Some(entry) = entry {
            for (ip, label) in entry.names() {
                self.reverse.entry(ip).or_default().insert((key.clone(), label));
            }
            *self.namespaces.entry(key.namespace.clone()).or_default() += 1;
            self.services.insert(key.clone(), entry);
        }
    }

    fn forget(&mut self, key: &ObjectKey, old: &Entry) {
        for (ip, label) in old.names() {
            if let Some(names) = self.reverse.get_mut(&ip) {
                names.remove(&(key.clone(), label));
                if names.is_empty() {
                    self.reverse.remove(&ip);
                }
            }
        }
        if let Some(count) = self.namespaces.get_mut(&key.namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(&key.namespace);
            }
        }
    }
}

impl Entry {
    /// `None` for a service that has no name yet: its address is not allocated.
    pub(crate) fn of(service: &Service, slices: &[Arc<EndpointSlice>]) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return spec.external_name.clone().map(|target| Self::External { target });
        }
        if spec.cluster_ip.as_deref() == Some("None") {
            let unready_too = spec.publish_not_ready_addresses == Some(true);
            return Some(Self::Headless { endpoints: endpoints(slices, unready_too) });
        }
        let listed = spec.cluster_ips.clone().unwrap_or_else(|| spec.cluster_ip.iter().cloned().collect());
        let ips: Vec<IpAddr> = listed.iter().filter_map(|ip| ip.parse().ok()).collect();
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
            let name = port.name.clone().unwrap_or_default();
            Some(Port { name, protocol, port: u16::try_from(port.port).ok()? })
        });
        (!ips.is_empty()).then(|| Self::Addressed { ips, ports: ports.collect() })
    }

    /// Each address with the label of its endpoint, where it is one.
    fn names(&self) -> Vec<(IpAddr, Option<String>)> {
        match self {
            Self::Addressed { ips, .. } => ips.iter().map(|ip| (*ip, None)).collect(),
            Self::Headless { endpoints } => {
                endpoints.iter().map(|endpoint| (endpoint.ip, Some(endpoint.label.clone()))).collect()
            }
            Self::External { .. } => Vec::new(),
        }
    }
}

fn endpoints(slices: &[Arc<EndpointSlice>], unready_too: bool) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        let ports: Vec<Port> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
                let name = port.name.clone().unwrap_or_default();
                Some(Port { name, protocol, port: u16::try_from(port.port?).ok()? })
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let is_ready =
                endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false);
            if !is_ready && !unready_too {
                continue;
            }
            for ip in endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()) {
                let label = endpoint.hostname.clone().unwrap_or_else(|| dashed(&ip));
                found.push(Endpoint { ip, label, ports: ports.clone() });
            }
        }
    }
    found.sort_by(|a, b| (a.ip, &a.label).cmp(&(b.ip, &b.label)));
    found.dedup_by(|a, b| a.ip == b.ip && a.label == b.label);
    found
}

/// `10-1-2-3`; the form of pods' names too.
pub(crate) fn dashed(ip: &IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}
