//! The objects that the proxy was last given, and which of them changed.
//!
//! A service whose objects are the very same (by pointer) as in the last sync is not computed again, so a sync costs
//! a walk over the services and work for the changed ones. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use hawser_ebpf_abi::Addr;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

use crate::{
    desired::{self, HostPort, Node, ServicePort, ServicePortName, Skipped, addr},
    endpoints::{self, Overrides},
};

/// Label of an EndpointSlice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name.
type Key = (String, String);

/// What there is of one service now. Without the service, or without slices: it is gone, or has none.
#[derive(Clone, Debug)]
pub struct ServiceObjects {
    pub namespace: String,
    pub name: String,
    pub service: Option<Arc<Service>>,
    pub slices: Vec<Arc<EndpointSlice>>,
}

pub(crate) type Wanted = BTreeMap<ServicePortName, Option<ServicePort>>;

#[derive(Debug)]
struct Known {
    service: Arc<Service>,
    slices: Vec<Arc<EndpointSlice>>,
    ports: BTreeSet<ServicePortName>,
    skipped: Vec<Skipped>,
    /// Addresses of endpoints on this node.
    local: BTreeSet<IpAddr>,
}

/// All services, as of the last sync.
#[derive(Debug, Default)]
pub(crate) struct Services {
    node: Node,
    known: BTreeMap<Key, Known>,
    host_ports: Vec<HostPort>,
    host_port_names: BTreeSet<ServicePortName>,
    host_port_skipped: Vec<Skipped>,
    overrides: Overrides,
    /// Services of which something is skipped.
    with_skipped: BTreeSet<Key>,
    /// Services that have an endpoint of this node at an address.
    by_local_address: HashMap<IpAddr, BTreeSet<Key>>,
}

impl Services {
    pub(crate) fn new(node: Node) -> Self {
        Self { node, ..Self::default() }
    }

    /// Takes all objects, and returns the ports that they change.
    pub(crate) fn replace(
        &mut self,
        services: &[Arc<Service>],
        slices: &[Arc<EndpointSlice>],
        host_ports: &[HostPort],
    ) -> Wanted {
        let mut slices_by_service: HashMap<(&str, &str), Vec<Arc<EndpointSlice>>> = HashMap::new();
        for slice in slices {
            let labels = slice.metadata.labels.as_ref();
            let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else { continue };
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            slices_by_service.entry((namespace, service)).or_default().push(slice.clone());
        }
        let mut wanted = Wanted::new();
        let mut present = HashSet::new();
        for service in services {
            let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
            let name = service.metadata.name.as_deref().unwrap_or_default();
            let key = (namespace.to_owned(), name.to_owned());
            let mut slices = slices_by_service.remove(&(namespace, name)).unwrap_or_default();
            // In any order that two calls share: a cache may list them differently each time.
            slices.sort_unstable_by_key(|slice| Arc::as_ptr(slice).addr());
            let is_same = self.known.get(&key).is_some_and(|known| {
                Arc::ptr_eq(&known.service, service)
                    && known.slices.len() == slices.len()
                    && known.slices.iter().zip(&slices).all(|(a, b)| Arc::ptr_eq(a, b))
            });
            if !is_same {
                self.update(key.clone(), service.clone(), slices, &mut wanted);
            }
            present.insert(key);
        }
        let gone: Vec<Key> = self.known.keys().filter(|key| !present.contains(*key)).cloned().collect();
        for key in gone {
            self.forget(&key, &mut wanted);
        }
        self.replace_host_ports(host_ports, &mut wanted);
        wanted
    }

    /// Takes the objects of those services that changed, and returns the ports that they change.
    pub(crate) fn replace_some(&mut self, changed: Vec<ServiceObjects>, host_ports: &[HostPort]) -> Wanted {
        let mut wanted = Wanted::new();
        for ServiceObjects { namespace, name, service, mut slices } in changed {
            let key = (namespace, name);
            slices.sort_unstable_by_key(|slice| Arc::as_ptr(slice).addr());
            match service {
                Some(service) => self.update(key, service, slices, &mut wanted),
                None => self.forget(&key, &mut wanted),
            }
        }
        self.replace_host_ports(host_ports, &mut wanted);
        wanted
    }

    /// Notes what the node knows of one of its pods, and returns the ports that it changes.
    ///
    /// Pods on the host's network share the node's address, so it says nothing of one of them: those wait for the API.
    pub(crate) fn set_local_readiness(&mut self, address: IpAddr, ready: bool) -> Wanted {
        if self.node.addresses.contains(&address) {
            return Wanted::new();
        }
        let services = self.by_local_address.get(&address).cloned().unwrap_or_default();
        if services.is_empty() && !ready {
            // No service has heard of the address, and none should use it.
            self.overrides.remove(&address);
            return Wanted::new();
        }
        self.overrides.insert(address, ready);
        let mut wanted = Wanted::new();
        for key in services {
            self.compute(&key, &mut wanted);
        }
        wanted
    }

    /// Takes the node's zone, and returns the ports of the services whose endpoints have hints for zones.
    pub(crate) fn set_zone(&mut self, zone: Option<String>) -> Wanted {
        let mut wanted = Wanted::new();
        if self.node.zone == zone {
            return wanted;
        }
        self.node.zone = zone;
        let hinted =
            self.known.iter().filter(|(_, known)| known.slices.iter().any(|slice| has_zone_hints(slice)));
        let hinted: Vec<Key> = hinted.map(|(key, _)| key.clone()).collect();
        for key in hinted {
            self.compute(&key, &mut wanted);
        }
        wanted
    }

    /// Everything, as if nothing were known: for a table that starts anew.
    pub(crate) fn everything(&mut self) -> Wanted {
        let mut wanted = Wanted::new();
        let keys: Vec<Key> = self.known.keys().cloned().collect();
        for key in keys {
            self.compute(&key, &mut wanted);
        }
        self.host_port_names.clear();
        let host_ports = std::mem::take(&mut self.host_ports);
        self.replace_host_ports(&host_ports, &mut wanted);
        wanted
    }

    /// What the API asks for and the node does not do.
    pub(crate) fn skipped(&self) -> impl Iterator<Item = &Skipped> {
        let services = self.with_skipped.iter().filter_map(|key| self.known.get(key));
        services.flat_map(|known| &known.skipped).chain(&self.host_port_skipped)
    }

    /// Addresses at which some endpoint answers. Costs a walk over all endpoints.
    pub(crate) fn live_addresses(&self) -> HashSet<Addr> {
        let mut live = HashSet::new();
        for slice in self.known.values().flat_map(|known| &known.slices) {
            for endpoint in slice.endpoints.iter().flatten() {
                let conditions = endpoint.conditions.as_ref();
                let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
                let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
                if let Some(address) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok())
                {
                    let known = self.overrides.get(&address).copied();
                    if known.unwrap_or(ready || serving) {
                        live.insert(addr(address));
                    }
                }
            }
        }
        live.extend(self.overrides.iter().filter(|(_, ready)| **ready).map(|(address, _)| addr(*address)));
        live.extend(self.host_ports.iter().map(|host_port| addr(host_port.pod_ip)));
        live
    }

    fn update(
        &mut self,
        key: Key,
        service: Arc<Service>,
        slices: Vec<Arc<EndpointSlice>>,
        wanted: &mut Wanted,
    ) {
        let local = local_addresses(&slices, &self.node);
        let before = self.known.remove(&key);
        for address in
            before.iter().flat_map(|known| &known.local).filter(|address| !local.contains(*address))
        {
            self.forget_address(*address, &key);
        }
        for address in &local {
            self.by_local_address.entry(*address).or_default().insert(key.clone());
        }
        let ports = before.map(|known| known.ports).unwrap_or_default();
        let addresses: Vec<IpAddr> = local.iter().copied().collect();
        self.known.insert(key.clone(), Known { service, slices, ports, skipped: Vec::new(), local });
        // What the API says now agrees with what the node knew: from here on the API is followed.
        for address in addresses {
            if self.overrides.get(&address).is_some_and(|ready| self.agrees(address, *ready)) {
                self.overrides.remove(&address);
            }
        }
        self.compute(&key, wanted);
    }

    /// Tells whether the slices of all services with an endpoint of this node at `address` say what the node knows.
    ///
    /// Services that publish endpoints whatever their readiness have nothing to say.
    fn agrees(&self, address: IpAddr, ready: bool) -> bool {
        let services = self.by_local_address.get(&address).into_iter().flatten();
        services.filter_map(|key| self.known.get(key)).all(|known| {
            let slices: Vec<&EndpointSlice> = known.slices.iter().map(Arc::as_ref).collect();
            known.service.spec.as_ref().is_some_and(desired::publishes_not_ready)
                || endpoints::readiness(&slices, address) == Some(ready)
        })
    }

    fn compute(&mut self, key: &Key, wanted: &mut Wanted) {
        let Some(known) = self.known.get_mut(key) else { return };
        let slices: Vec<&EndpointSlice> = known.slices.iter().map(Arc::as_ref).collect();
        known.skipped.clear();
        let ports =
            desired::service_ports(&known.service, &slices, &self.node, &self.overrides, &mut known.skipped);
        let names: BTreeSet<ServicePortName> = ports.iter().map(|(name, _)| name.clone()).collect();
        for gone in known.ports.difference(&names) {
            wanted.insert(gone.clone(), None);
        }
        known.ports = names;
        match known.skipped.is_empty() {
            true => self.with_skipped.remove(key),
            false => self.with_skipped.insert(key.clone()),
        };
        wanted.extend(ports.into_iter().map(|(name, port)| (name, Some(port))));
    }

    fn forget(&mut self, key: &Key, wanted: &mut Wanted) {
        let Some(known) = self.known.remove(key) else { return };
        self.with_skipped.remove(key);
        for address in &known.local {
            self.forget_address(*address, key);
        }
        wanted.extend(known.ports.into_iter().map(|name| (name, None)));
    }

    fn forget_address(&mut self, address: IpAddr, key: &Key) {
        if let Some(services) = self.by_local_address.get_mut(&address) {
            services.remove(key);
            if services.is_empty() {
                self.by_local_address.remove(&address);
                self.overrides.remove(&address);
            }
        }
    }

    fn replace_host_ports(&mut self, host_ports: &[HostPort], wanted: &mut Wanted) {
        self.host_port_skipped.clear();
        let ports: Vec<_> = host_ports
            .iter()
            .filter_map(|port| desired::host_port(port, &self.node, &mut self.host_port_skipped))
            .collect();
        let names: BTreeSet<ServicePortName> = ports.iter().map(|(name, _)| name.clone()).collect();
        for gone in self.host_port_names.difference(&names) {
            wanted.insert(gone.clone(), None);
        }
        if self.host_ports != host_ports || self.host_port_names != names {
            wanted.extend(ports.into_iter().map(|(name, port)| (name, Some(port))));
        }
        self.host_ports = host_ports.to_vec();
        self.host_port_names = names;
    }
}

fn has_zone_hints(slice: &EndpointSlice) -> bool {
    let mut hints = slice.endpoints.iter().flatten().filter_map(|endpoint| endpoint.hints.as_ref());
    hints.any(|hints| hints.for_zones.as_ref().is_some_and(|zones| !zones.is_empty()))
}

fn local_addresses(slices: &[Arc<EndpointSlice>], node: &Node) -> BTreeSet<IpAddr> {
    slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .filter(|endpoint| endpoint.node_name.as_deref() == Some(node.name.as_str()))
        .filter_map(|endpoint| endpoint.addresses.first()?.parse().ok())
        .collect()
}
