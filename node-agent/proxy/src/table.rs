//! The maps' content: what they hold, what they should hold, and the writes between the two. Pure.
//!
//! Writes are ordered so that a program that runs between any two of them sees a whole service: slots and members
//! first, then the frontends that lead to them, and only then is removed what nothing leads to any more.
//!
//! A table starts from what the kernel has. A service port whose slots are already right keeps its id and its range,
//! so that a restart writes nothing; whatever nobody claims by the end of the first pass is stale and goes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use hawser_ebpf_abi::{
    Addr, Backend, Frontend, FrontendKey, IPPROTO_UDP, MemberKey,
    service::{FRONTEND_DEPARTED, FRONTEND_WIRE_LOCAL},
};

use crate::{
    desired::{DesiredFrontend, ServicePort, ServicePortName, Set, Skipped},
    slots::{Range, Ranges, Slots},
};

/// How long a departed UDP backend's address leads its connected clients to the living ones.
const DEPARTED_FOR: Duration = Duration::from_secs(600);
/// Departed backends remembered for each service port.
const DEPARTED_PER_PORT: usize = 64;

/// Writes, in the order of the fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) slots: Vec<(u32, Backend)>,
    pub(crate) new_members: Vec<MemberKey>,
    pub(crate) frontends: Vec<(FrontendKey, Frontend)>,
    pub(crate) old_frontends: Vec<FrontendKey>,
    pub(crate) old_members: Vec<MemberKey>,
}

impl Changes {
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the maps hold, read at start.
#[derive(Debug, Default)]
pub(crate) struct KernelState {
    pub(crate) frontends: HashMap<FrontendKey, Frontend>,
    pub(crate) slots: HashMap<u32, Backend>,
    pub(crate) members: HashSet<MemberKey>,
}

/// One service port as it is in the maps.
#[derive(Debug)]
struct Applied {
    service_id: u32,
    generation: u32,
    range: Range,
    port: ServicePort,
    /// UDP backends that left, and when. Their addresses become frontends as long as nothing else answers there.
    departed: BTreeMap<FrontendKey, Instant>,
}

/// What the first pass after a start still has to find an owner for.
#[derive(Debug)]
struct Adoption {
    slots: HashMap<u32, Backend>,
    ranges: Ranges,
    /// Departed backends' frontends, by service id.
    departed: HashMap<u32, Vec<FrontendKey>>,
    adopted_ids: HashSet<u32>,
}

/// The maps' mirror.
#[derive(Debug)]
pub(crate) struct Table {
    ports: BTreeMap<ServicePortName, Applied>,
    owners: HashMap<FrontendKey, ServicePortName>,
    frontends: HashMap<FrontendKey, Frontend>,
    members: HashSet<MemberKey>,
    slots: Slots,
    frontend_capacity: usize,
    next_service_id: u32,
    /// Ports with departed backends: each call looks at them again.
    with_departed: BTreeSet<ServicePortName>,
    /// Ports that found no room for their slots, and what they wanted: each call tries again.
    without_slots: BTreeMap<ServicePortName, ServicePort>,
    /// Ports that miss a frontend, because another port has it or the table is full: each call tries again.
    without_frontend: BTreeSet<ServicePortName>,
    adoption: Option<Adoption>,
}

impl Table {
    pub(crate) fn new(kernel: KernelState, slot_capacity: u32, frontend_capacity: u32) -> Self {
        let mut slots = Slots::new(slot_capacity);
        let mut ranges = Ranges::default();
        for frontend in kernel.frontends.values() {
            for (base, len) in [(frontend.base, frontend.count), (frontend.wire_base, frontend.wire_count)] {
                slots.reserve(Range { base, len });
                ranges.insert(Range { base, len });
            }
        }
        let mut departed: HashMap<u32, Vec<FrontendKey>> = HashMap::new();
        for (key, frontend) in &kernel.frontends {
            if frontend.flags & FRONTEND_DEPARTED != 0 {
                departed.entry(frontend.service_id).or_default().push(*key);
            }
        }
        let next_service_id = kernel
            .frontends
            .values()
            .map(|frontend| frontend.service_id)
            .max()
            .map_or(1, |id| id.wrapping_add(1));
        Self {
            ports: BTreeMap::new(),
            owners: HashMap::new(),
            frontends: kernel.frontends,
            members: kernel.members,
            slots,
            frontend_capacity: frontend_capacity as usize,
            next_service_id,
            with_departed: BTreeSet::new(),
            without_slots: BTreeMap::new(),
            without_frontend: BTreeSet::new(),
            adoption: Some(Adoption { slots: kernel.slots, ranges, departed, adopted_ids: HashSet::new() }),
        }
    }

    pub(crate) fn frontends(&self) -> usize {
        self.frontends.len()
    }

    /// Brings some service ports to what is wanted: `None` removes one. The first call must name all of them.
    ///
    /// `is_live` tells whether an endpoint answers at an address.
    pub(crate) fn apply(
        &mut self,
        mut wanted: BTreeMap<ServicePortName, Option<ServicePort>>,
        is_live: &dyn Fn(&Addr) -> bool,
        now: Instant,
        skipped: &mut Vec<Skipped>,
    ) -> Changes {
        let mut changes = Changes::default();
        for (name, port) in std::mem::take(&mut self.without_slots) {
            wanted.entry(name).or_insert(Some(port));
        }
        // Addresses that change hands within this call are let go first, by all.
        let mut released = BTreeSet::new();
        for (name, port) in &wanted {
            let Some(applied) = self.ports.get(name) else { continue };
            let keys = applied.port.frontends.keys().chain(applied.departed.keys());
            for key in keys.filter(|key| port.as_ref().is_none_or(|port| !port.frontends.contains_key(key))) {
                if self.owners.get(key) == Some(name) {
                    self.owners.remove(key);
                    released.insert(*key);
                }
            }
        }
        // Ports whose departed backends may have come back, or whose time is over.
        let mut revisit: BTreeSet<ServicePortName> = BTreeSet::new();
        for (name, port) in wanted {
            match port {
                Some(port) => self.set(name.clone(), port, now, &mut changes, skipped),
                None => self.remove(&name, now, &mut changes),
            }
            revisit.insert(name);
        }
        revisit.extend(self.with_departed.iter().cloned());
        revisit.append(&mut self.without_frontend);
        for name in revisit {
            self.write_frontends(&name, is_live, now, &mut changes, &mut released, skipped);
            match self.ports.get(&name).is_some_and(|applied| !applied.departed.is_empty()) {
                true => self.with_departed.insert(name),
                false => self.with_departed.remove(&name),
            };
        }
        for key in released.into_iter().filter(|key| !self.owners.contains_key(key)) {
            if self.frontends.remove(&key).is_some() {
                changes.old_frontends.push(key);
            }
        }
        self.finish_adoption(now, &mut changes);
        changes
    }

    /// Gives a service port its slots.
    fn set(
        &mut self,
        name: ServicePortName,
        port: ServicePort,
        now: Instant,
        changes: &mut Changes,
        skipped: &mut Vec<Skipped>,
    ) {
        let mut applied = self.ports.remove(&name).unwrap_or_else(|| self.adopt(&port, now));
        let old = backends(&applied.port);
        let new = backends(&port);
        if old != new {
            let Some(range) = self.slots.allocate(new.len() as u32, now) else {
                let reason = "no free range of backend slots: the old backends stay";
                skipped.push(Skipped { what: name.to_string(), reason });
                // Its addresses are served all the same, by the old backends; without any they refuse.
                applied.port.frontends = port.frontends.clone();
                self.ports.insert(name.clone(), applied);
                self.without_slots.insert(name, port);
                return;
            };
            changes.slots.extend((range.base..).zip(new));
            self.slots.release(std::mem::replace(&mut applied.range, range), now);
            applied.generation = next_generation(applied.generation);
        }
        if name.protocol == IPPROTO_UDP {
            self.set_members(&applied, &port, changes);
            for backend in applied.port.cluster.iter().filter(|backend| !port.cluster.contains(backend)) {
                if applied.departed.len() < DEPARTED_PER_PORT {
                    applied.departed.insert(departed_key(backend), now);
                }
            }
            for backend in &port.cluster {
                applied.departed.remove(&departed_key(backend));
            }
        }
        applied.port = port;
        self.ports.insert(name, applied);
    }

    fn set_members(&mut self, applied: &Applied, port: &ServicePort, changes: &mut Changes) {
        let wanted = members(applied.service_id, port);
        for member in &wanted {
            if self.members.insert(*member) {
                changes.new_members.push(*member);
            }
        }
        for member in members(applied.service_id, &applied.port).difference(&wanted) {
            self.members.remove(member);
            changes.old_members.push(*member);
        }
    }

    /// Writes the frontends of a port that differ from the maps.
    fn write_frontends(
        &mut self,
        name: &ServicePortName,
        is_live: &dyn Fn(&Addr) -> bool,
        now: Instant,
        changes: &mut Changes,
        released: &mut BTreeSet<FrontendKey>,
        skipped: &mut Vec<Skipped>,
    ) {
        let Some(applied) = self.ports.get_mut(name) else { return };
        applied.departed.retain(|key, left| {
            let stays = now.saturating_duration_since(*left) < DEPARTED_FOR;
            if !stays && self.owners.get(key) == Some(name) {
                self.owners.remove(key);
                released.insert(*key);
            }
            stays
        });
        let mut wanted: Vec<(FrontendKey, Frontend)> = Vec::new();
        for (key, frontend) in &applied.port.frontends {
            wanted.push((*key, frontend_value(applied, frontend)));
        }
        for key in applied.departed.keys() {
            if is_live(&key.addr) {
                if self.owners.get(key) == Some(name) {
                    self.owners.remove(key);
                    released.insert(*key);
                }
                continue;
            }
            let frontend =
                DesiredFrontend { inside: Set::Cluster, wire: Set::Cluster, flags: FRONTEND_DEPARTED };
            wanted.push((*key, frontend_value(applied, &frontend)));
        }
        for (key, frontend) in wanted {
            match self.owners.get(&key) {
                Some(owner) if owner != name => {
                    if frontend.flags & FRONTEND_DEPARTED == 0 {
                        let reason = "another service has one of its addresses with this port";
                        skipped.push(Skipped { what: name.to_string(), reason });
                        self.without_frontend.insert(name.clone());
                    }
                    continue;
                }
                Some(_) => {}
                None => {
                    if !self.frontends.contains_key(&key) && self.frontends.len() >= self.frontend_capacity {
                        let reason = "the table of frontends is full";
                        skipped.push(Skipped { what: name.to_string(), reason });
                        self.without_frontend.insert(name.clone());
                        continue;
                    }
                    self.owners.insert(key, name.clone());
                }
            }
            if self.frontends.insert(key, frontend) != Some(frontend) {
                changes.frontends.push((key, frontend));
            }
        }
    }

    fn remove(&mut self, name: &ServicePortName, now: Instant, changes: &mut Changes) {
        let Some(applied) = self.ports.remove(name) else { return };
        self.slots.release(applied.range, now);
        for member in members(applied.service_id, &applied.port) {
            if self.members.remove(&member) {
                changes.old_members.push(member);
            }
        }
    }

    /// Returns what the kernel has of a port that is new to the table; a fresh entry when it has nothing of use.
    fn adopt(&mut self, port: &ServicePort, now: Instant) -> Applied {
        let found = self.adoption.as_ref().and_then(|adoption| {
            let wanted = backends(port);
            let (desired, frontend) = port.frontends.iter().find_map(|(key, desired)| {
                let frontend = self.frontends.get(key)?;
                (frontend.flags & FRONTEND_DEPARTED == 0).then_some((desired, frontend))
            })?;
            let base = match desired.inside {
                Set::Cluster => Some(frontend.base),
                Set::Local => frontend.base.checked_sub(port.cluster.len() as u32),
            };
            let base = base.unwrap_or(frontend.base);
            let is_same =
                (base..).zip(&wanted).all(|(slot, backend)| adoption.slots.get(&slot) == Some(backend));
            let count = count_of(port, desired.inside);
            let len = wanted.len() as u32;
            Some((frontend.service_id, frontend.generation, base, len, is_same && frontend.count == count))
        });
        let Some((service_id, generation, base, len, is_same)) = found else { return self.fresh() };
        let Some(adoption) = &mut self.adoption else { return self.fresh() };
        if !adoption.adopted_ids.insert(service_id) {
            // The address changed hands while no agent ran: the other port has the id.
            return self.fresh();
        }
        let departed = adoption.departed.remove(&service_id).unwrap_or_default();
        let mut applied = Applied {
            service_id,
            generation,
            range: Range::default(),
            port: ServicePort::default(),
            departed: departed.into_iter().map(|key| (key, now)).collect(),
        };
        if is_same {
            applied.range = if len == 0 { Range::default() } else { Range { base, len } };
            applied.port = ServicePort { frontends: BTreeMap::new(), ..port.clone() };
            adoption.ranges.remove(applied.range);
            // The range may be wider than any one frontend: all of it is in use.
            self.slots.reserve(applied.range);
        }
        applied
    }

    fn fresh(&mut self) -> Applied {
        let service_id = self.next_service_id;
        self.next_service_id = service_id.wrapping_add(1);
        Applied {
            service_id,
            generation: 1,
            range: Range::default(),
            port: ServicePort::default(),
            departed: BTreeMap::new(),
        }
    }

    /// At the end of the first pass: removes what the kernel has and nobody wants.
    fn finish_adoption(&mut self, now: Instant, changes: &mut Changes) {
        let Some(adoption) = self.adoption.take() else { return };
        let stale: Vec<FrontendKey> =
            self.frontends.keys().filter(|key| !self.owners.contains_key(key)).copied().collect();
        for key in stale {
            self.frontends.remove(&key);
            changes.old_frontends.push(key);
        }
        let wanted: HashSet<MemberKey> = self
            .ports
            .iter()
            .filter(|(name, _)| name.protocol == IPPROTO_UDP)
            .flat_map(|(_, applied)| members(applied.service_id, &applied.port))
            .collect();
        for member in wanted.difference(&self.members) {
            changes.new_members.push(*member);
        }
        for member in self.members.difference(&wanted) {
            changes.old_members.push(*member);
        }
        self.members = wanted;
        for range in adoption.ranges.iter() {
            self.slots.release(range, now);
        }
    }
}

fn frontend_value(applied: &Applied, frontend: &DesiredFrontend) -> Frontend {
    let (base, count) = slots_of(applied, frontend.inside);
    let (wire_base, wire_count) = slots_of(applied, frontend.wire);
    Frontend {
        service_id: applied.service_id,
        generation: applied.generation,
        base,
        count,
        wire_base,
        wire_count,
        // A hint for drops alone; it means nothing without backends elsewhere.
        flags: frontend.flags & !if applied.port.cluster.is_empty() { FRONTEND_WIRE_LOCAL } else { 0 },
        affinity_seconds: 0,
    }
}

fn slots_of(applied: &Applied, set: Set) -> (u32, u32) {
    let cluster = applied.port.cluster.len() as u32;
    match set {
        Set::Cluster => (applied.range.base, cluster),
        Set::Local => (applied.range.base + cluster, applied.port.local.len() as u32),
    }
}

fn count_of(port: &ServicePort, set: Set) -> u32 {
    match set {
        Set::Cluster => port.cluster.len() as u32,
        Set::Local => port.local.len() as u32,
    }
}

/// All slots of a port, in the order of its range.
fn backends(port: &ServicePort) -> Vec<Backend> {
    port.cluster.iter().chain(&port.local).copied().collect()
}

fn members(service_id: u32, port: &ServicePort) -> BTreeSet<MemberKey> {
    port.cluster
        .iter()
        .map(|backend| MemberKey { service_id, addr: backend.addr, port_be: backend.port_be, pad: 0 })
        .collect()
}

fn departed_key(backend: &Backend) -> FrontendKey {
    FrontendKey { addr: backend.addr, port_be: backend.port_be, protocol: IPPROTO_UDP, pad: 0 }
}

/// 0 means "no entry" in the sockets' storage.
fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}
