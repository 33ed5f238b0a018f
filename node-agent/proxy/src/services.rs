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
use hawser_services::{EndpointSlice, Key, Service};

use crate::{
    desired::{self, HostPort, Name, Node, ServicePort, ServicePortName, Skipped, addr},
    endpoints::{self, Overrides},
};

/// What there is of one service now. Without the service, or without slices: it is gone, or has none.
#[derive(Clone, Debug)]
pub struct ServiceObjects {
    pub key: Key,
    pub service: Option<Arc<Service>>,
    pub slices: Vec<Arc<EndpointSlice>>,
}

pub(crate) type Wanted = BTreeMap<Name, Option<ServicePort>>;

#[derive(Debug)]
struct Known {
    service: Arc<Service>,
    /// In the order of their places in memory.
    slices: Box<[Arc<EndpointSlice>]>,
    ports: Box<[Name]>,
    skipped: Box<[Skipped]>,
}

/// All services, as of the last sync.
#[derive(Debug, Default)]
pub(crate) struct Services {
    node: Node,
    known: HashMap<Key, Known>,
    host_ports: Vec<HostPort>,
    host_port_names: BTreeSet<Name>,
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
        let mut by_service: HashMap<&Key, Vec<Arc<EndpointSlice>>> = HashMap::new();
        for slice in slices {
            by_service.entry(&slice.service).or_default().push(slice.clone());
        }
        let mut wanted = Wanted::new();
        let mut present = HashSet::new();
        for service in services {
            let slices = in_memory_order(by_service.remove(&service.key).unwrap_or_default());
            let is_same = self.known.get(&service.key).is_some_and(|known| {
                Arc::ptr_eq(&known.service, service)
                    && known.slices.len() == slices.len()
                    && known.slices.iter().zip(&slices).all(|(a, b)| Arc::ptr_eq(a, b))
            });
            if !is_same {
                self.update(service.clone(), slices, &mut wanted);
            }
            present.insert(&service.key);
        }
        let gone: Vec<Key> = self.known.keys().filter(|key| !present.contains(key)).cloned().collect();
        for key in gone {
            self.forget(&key, &mut wanted);
        }
        self.replace_host_ports(host_ports, &mut wanted);
        wanted
    }

    /// Takes the objects of those services that changed, and returns the ports that they change.
    pub(crate) fn replace_some(&mut self, changed: Vec<ServiceObjects>, host_ports: &[HostPort]) -> Wanted {
        let mut wanted = Wanted::new();
        for ServiceObjects { key, service, slices } in changed {
            match service {
                Some(service) => self.update(service, in_memory_order(slices), &mut wanted),
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
        services.flat_map(|known| known.skipped.iter()).chain(&self.host_port_skipped)
    }

    /// Addresses at which somebody is: endpoints that are not about to end, whether they are ready or not. What is sent
    /// to one is meant for it. Costs a walk over all endpoints.
    pub(crate) fn live_addresses(&self) -> HashSet<Addr> {
        let mut live = HashSet::new();
        let slices = self.known.values().flat_map(|known| &known.slices);
        for endpoint in slices.flat_map(|slice| &slice.endpoints) {
            if endpoint.ready || endpoint.serving == Some(true) || !endpoint.terminating {
                live.insert(addr(endpoint.address));
            }
        }
        live.extend(self.overrides.iter().filter(|(_, ready)| **ready).map(|(address, _)| addr(*address)));
        live.extend(self.host_ports.iter().map(|host_port| addr(host_port.pod_ip)));
        live
    }

    fn update(&mut self, service: Arc<Service>, slices: Box<[Arc<EndpointSlice>]>, wanted: &mut Wanted) {
        let key = service.key.clone();
        let local = local_addresses(&slices, &self.node);
        let before = self.known.remove(&key);
        let were_local = before.iter().flat_map(|known| local_addresses(&known.slices, &self.node));
        for address in were_local.filter(|address| !local.contains(address)).collect::<Vec<_>>() {
            self.forget_address(address, &key);
        }
        for address in &local {
            self.by_local_address.entry(*address).or_default().insert(key.clone());
        }
        let ports = before.map(|known| known.ports).unwrap_or_default();
        self.known.insert(key.clone(), Known { service, slices, ports, skipped: Box::default() });
        // What the API says now agrees with what the node knew: from here on the API is followed.
        for address in local {
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
            known.service.publishes_not_ready || endpoints::readiness(&known.slices, address) == Some(ready)
        })
    }

    fn compute(&mut self, key: &Key, wanted: &mut Wanted) {
        let Some(known) = self.known.get_mut(key) else { return };
        let mut skipped = Vec::new();
        let ports =
            desired::service_ports(&known.service, &known.slices, &self.node, &self.overrides, &mut skipped);
        known.skipped = skipped.into();
        match known.skipped.is_empty() {
            true => self.with_skipped.remove(key),
            false => self.with_skipped.insert(key.clone()),
        };
        let mut names = Vec::with_capacity(ports.len());
        for (name, port) in ports {
            let name = same_or_new(&known.ports, names.len(), name);
            names.push(name.clone());
            wanted.insert(name, Some(port));
        }
        let is_same = known.ports.len() == names.len()
            && known.ports.iter().zip(&names).all(|(old, new)| Arc::ptr_eq(old, new));
        if !is_same {
            let gone = known.ports.iter().filter(|name| !names.contains(name));
            wanted.extend(gone.map(|name| (name.clone(), None)));
            known.ports = names.into();
        }
    }

    fn forget(&mut self, key: &Key, wanted: &mut Wanted) {
        let Some(known) = self.known.remove(key) else { return };
        self.with_skipped.remove(key);
        for address in local_addresses(&known.slices, &self.node) {
            self.forget_address(address, key);
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
        let ports: Vec<(Name, ServicePort)> = host_ports
            .iter()
            .filter_map(|port| desired::host_port(port, &self.node, &mut self.host_port_skipped))
            .map(|(name, port)| (Name::new(name), port))
            .collect();
        let names: BTreeSet<Name> = ports.iter().map(|(name, _)| name.clone()).collect();
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

/// In any order that two calls share: a cache may list them differently each time.
fn in_memory_order(mut slices: Vec<Arc<EndpointSlice>>) -> Box<[Arc<EndpointSlice>]> {
    slices.sort_unstable_by_key(|slice| Arc::as_ptr(slice).addr());
    slices.into()
}

/// Returns the name that is known already, as that is one with the tables' own; it is at `place` where nothing moved.
fn same_or_new(known: &[Name], place: usize, name: ServicePortName) -> Name {
    let found = known.get(place).filter(|known| ***known == name);
    let found = found.or_else(|| known.iter().find(|known| ***known == name));
    found.cloned().unwrap_or_else(|| Name::new(name))
}

fn has_zone_hints(slice: &EndpointSlice) -> bool {
    slice.endpoints.iter().any(|endpoint| !endpoint.for_zones().is_empty())
}

fn local_addresses(slices: &[Arc<EndpointSlice>], node: &Node) -> BTreeSet<IpAddr> {
    slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| endpoint.node.as_deref() == Some(node.name.as_str()))
        .map(|endpoint| endpoint.address)
        .collect()
}
