//! What is known of each service, and which name an address has.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use hawser_services::{EndpointPort, EndpointSlice, Key, Service, ServiceType};

/// A name of an address: a Service, and the label of the endpoint where it is one of a headless Service.
type AddressName = (Key, Option<Arc<str>>);

/// All services, and the way back from addresses to names.
#[derive(Debug, Default)]
pub(crate) struct Records {
    services: HashMap<Key, Entry>,
    /// Number of services in each namespace that has some.
    namespaces: HashMap<Arc<str>, usize>,
    /// Names of an address, in order. Never none: most have one, so that a list is what costs least.
    reverse: HashMap<IpAddr, Box<[AddressName]>>,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Has addresses of its own.
    Addressed(Arc<Service>),
    /// Stands for its endpoints.
    Headless { endpoints: Box<[Endpoint]> },
    /// Stands for another name.
    External { target: Box<str> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) ip: IpAddr,
    /// The pod's hostname, or the address with dashes.
    pub(crate) label: Arc<str>,
    slice: Arc<EndpointSlice>,
}

impl Endpoint {
    pub(crate) fn ports(&self) -> &[EndpointPort] {
        &self.slice.ports
    }
}

impl Records {
    pub(crate) fn get(&self, key: &Key) -> Option<&Entry> {
        self.services.get(key)
    }

    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    /// The names of an address, in order: the service's, or label and service of an endpoint.
    pub(crate) fn names_of(&self, ip: &IpAddr) -> &[AddressName] {
        self.reverse.get(ip).map_or(&[], |names| names)
    }

    pub(crate) fn set(&mut self, key: &Key, entry: Option<Entry>) {
        if self.services.get(key) == entry.as_ref() {
            return;
        }
        if let Some(old) = self.services.remove(key) {
            self.forget(key, &old);
        }
        if let Some(entry) = entry {
            for (ip, label) in entry.names() {
                let names = self.reverse.entry(ip).or_default();
                let mut sorted = std::mem::take(names).into_vec();
                sorted.push((key.clone(), label));
                sorted.sort_unstable();
                *names = sorted.into();
            }
            *self.namespaces.entry(key.namespace.clone()).or_default() += 1;
            self.services.insert(key.clone(), entry);
        }
    }

    fn forget(&mut self, key: &Key, old: &Entry) {
        for (ip, label) in old.names() {
            let Some(names) = self.reverse.get_mut(&ip) else { continue };
            let gone = (key.clone(), label);
            *names = std::mem::take(names).into_iter().filter(|name| *name != gone).collect();
            if names.is_empty() {
                self.reverse.remove(&ip);
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
    pub(crate) fn of(service: Arc<Service>, slices: &[Arc<EndpointSlice>]) -> Option<Self> {
        if service.type_ == ServiceType::ExternalName {
            let target = service.external.as_ref()?.name.clone()?;
            return Some(Self::External { target });
        }
        if service.is_headless {
            return Some(Self::Headless { endpoints: endpoints(slices, service.publishes_not_ready) });
        }
        (!service.cluster_ips.is_empty()).then_some(Self::Addressed(service))
    }

    /// Each address with the label of its endpoint, where it is one.
    fn names(&self) -> Vec<(IpAddr, Option<Arc<str>>)> {
        match self {
            Self::Addressed(service) => service.cluster_ips.iter().map(|ip| (*ip, None)).collect(),
            Self::Headless { endpoints } => {
                endpoints.iter().map(|endpoint| (endpoint.ip, Some(endpoint.label.clone()))).collect()
            }
            Self::External { .. } => Vec::new(),
        }
    }
}

fn endpoints(slices: &[Arc<EndpointSlice>], unready_too: bool) -> Box<[Endpoint]> {
    let mut found = Vec::new();
    for slice in slices {
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready || unready_too) {
            for ip in endpoint.addresses() {
                let label = endpoint.hostname().map_or_else(|| dashed(&ip).into(), Into::into);
                found.push(Endpoint { ip, label, slice: slice.clone() });
            }
        }
    }
    found.sort_by(|a, b| (a.ip, &a.label).cmp(&(b.ip, &b.label)));
    found.dedup_by(|a, b| a.ip == b.ip && a.label == b.label);
    found.into()
}

/// `10-1-2-3`; the form of pods' names too.
pub(crate) fn dashed(ip: &IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}
