//! The maps' content: what they hold, what they should hold, and the writes between the two. Pure.
//!
//! Writes are ordered so that a program that runs between any two of them sees a whole service: source ranges, Maglev
//! tables, slots and members first, then the frontends that lead to them, and only then is removed what nothing leads
//! to any more.
//!
//! A table starts from what the kernel has. A service port whose slots are already right keeps its id and its range,
//! so that a restart writes nothing; whatever nobody claims by the end of the first pass is stale and goes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use hawser_ebpf_abi::{
    Addr, Backend, Frontend, FrontendKey, IPPROTO_UDP, MaglevBlock, MemberKey, RangeKey,
    service::{
        FRONTEND_DEPARTED, FRONTEND_SOURCE_RANGES, FRONTEND_WIRE, FRONTEND_WIRE_LOCAL, MEMBER_CLUSTER,
        MEMBER_LOCAL,
    },
};

use crate::{
    desired::{DesiredFrontend, ServicePort, ServicePortName, Set, Skipped},
    maglev,
    ranges::{self, Lists},
    slots::{Range, Ranges, Slots},
};

/// How long a departed UDP backend's address leads its connected clients to the living ones.
const DEPARTED_FOR: Duration = Duration::from_secs(600);
/// Departed backends remembered for each service port.
const DEPARTED_PER_PORT: usize = 64;

/// Writes, in the order of the fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) new_ranges: Vec<RangeKey>,
    pub(crate) maglev: Vec<(u32, MaglevBlock)>,
    pub(crate) slots: Vec<(u32, Backend)>,
    /// With the sets that each is in; those that were members of other sets too.
    pub(crate) new_members: Vec<(MemberKey, u32)>,
    pub(crate) frontends: Vec<(FrontendKey, Frontend)>,
    pub(crate) old_frontends: Vec<FrontendKey>,
    pub(crate) old_members: Vec<MemberKey>,
    pub(crate) old_ranges: Vec<RangeKey>,
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
    pub(crate) members: HashMap<MemberKey, u32>,
    pub(crate) ranges: Vec<RangeKey>,
}

/// How much the maps hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) slots: u32,
    pub(crate) frontends: u32,
    pub(crate) maglev_blocks: u32,
    /// Entries of a Maglev table for each backend, at least.
    pub(crate) maglev_entries: u32,
    pub(crate) source_ranges: u32,
}

/// The Maglev table of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Maglev {
    /// The set of backends that clients outside get; `None` when no frontend is served to them.
    set: Option<Set>,
    range: Range,
    /// Entries; 0 for no table.
    len: u32,
    /// Blocks that a table would fill for which there was no room.
    missing: u32,
}

/// One service port as it is in the maps.
#[derive(Debug)]
struct Applied {
    service_id: u32,
    generation: u32,
    range: Range,
    port: ServicePort,
    maglev: Maglev,
    /// List of source ranges; 0 for none.
    source_ranges: u32,
    /// UDP backends that left, and when. Their addresses become frontends as long as nothing else answers there.
    departed: BTreeMap<FrontendKey, Instant>,
}

/// What the first pass after a start still has to find an owner for.
#[derive(Debug)]
struct Adoption {
    slots: HashMap<u32, Backend>,
    ranges: Ranges,
    maglev: Ranges,
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
    members: HashMap<MemberKey, u32>,
    slots: Slots,
    maglev: Slots,
    maglev_entries: u32,
    lists: Lists,
    frontend_capacity: usize,
    next_service_id: u32,
    /// Ports with departed backends: each call looks at them again.
    with_departed: BTreeSet<ServicePortName>,
    /// Ports that found no room for their slots or ranges, and what they wanted: each call tries again.
    without_room: BTreeMap<ServicePortName, ServicePort>,
    /// Ports that found no room for a Maglev table, by the number of blocks: each call tries again.
    without_maglev: BTreeSet<(u32, ServicePortName)>,
    /// Ports that miss a frontend, because another port has it or the table is full: each call tries again.
    without_frontend: BTreeSet<ServicePortName>,
    adoption: Option<Adoption>,
}

impl Table {
    pub(crate) fn new(kernel: KernelState, bounds: Bounds) -> Self {
        let mut slots = Slots::new(bounds.slots);
        let mut ranges = Ranges::default();
        let mut maglev = Slots::new(bounds.maglev_blocks);
        let mut maglev_ranges = Ranges::default();
        for frontend in kernel.frontends.values() {
            let table = Range { base: frontend.maglev_base, len: maglev::blocks(frontend.maglev_len) };
            maglev.reserve(table);
            maglev_ranges.insert(table);
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
            maglev,
            maglev_entries: bounds.maglev_entries,
            lists: Lists::new(kernel.ranges, bounds.source_ranges),
            frontend_capacity: bounds.frontends as usize,
            next_service_id,
            with_departed: BTreeSet::new(),
            without_room: BTreeMap::new(),
            without_maglev: BTreeSet::new(),
            without_frontend: BTreeSet::new(),
            adoption: Some(Adoption {
                slots: kernel.slots,
                ranges,
                maglev: maglev_ranges,
                departed,
                adopted_ids: HashSet::new(),
            }),
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
        for (name, port) in std::mem::take(&mut self.without_room) {
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
        self.retry_maglev(now, &mut changes, &mut revisit, skipped);
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
        changes.old_ranges = self.lists.remove_unused();
        changes
    }

    /// Gives a service port its slots, and what goes with them.
    fn set(
        &mut self,
        name: ServicePortName,
        mut port: ServicePort,
        now: Instant,
        changes: &mut Changes,
        skipped: &mut Vec<Skipped>,
    ) {
        let mut applied = self.ports.remove(&name).unwrap_or_else(|| self.adopt(&port, now));
        let old = backends(&applied.port);
        let new = backends(&port);
        if old != new {
            if let Some(range) = self.slots.allocate(new.len() as u32, now) {
                changes.slots.extend((range.base..).zip(new));
                self.slots.release(std::mem::replace(&mut applied.range, range), now);
                applied.generation = next_generation(applied.generation);
            } else {
                let reason = "no free range of backend slots: the old backends stay";
                skipped.push(Skipped { what: name.to_string(), reason });
                self.without_room.insert(name.clone(), port.clone());
                // Its addresses are served all the same, by the old backends; without any they refuse.
                port.cluster = applied.port.cluster.clone();
                port.local = applied.port.local.clone();
            }
        } else if applied.port.cluster.len() != port.cluster.len() {
            // The same backends in other sets: who remembers one has to look whether it may.
            applied.generation = next_generation(applied.generation);
        }
        self.set_source_ranges(&name, &mut applied, &mut port, changes, skipped);
        self.set_maglev(&name, &mut applied, &port, now, changes);
        self.set_members(&name, &applied, &port, changes);
        if name.protocol == IPPROTO_UDP {
            let current: HashSet<FrontendKey> = port.cluster.iter().map(departed_key).collect();
            for key in applied.port.cluster.iter().map(departed_key).filter(|key| !current.contains(key)) {
                if applied.departed.len() < DEPARTED_PER_PORT {
                    applied.departed.insert(key, now);
                }
            }
            applied.departed.retain(|key, _| !current.contains(key));
        }
        applied.port = port;
        self.ports.insert(name, applied);
    }

    fn set_source_ranges(
        &mut self,
        name: &ServicePortName,
        applied: &mut Applied,
        port: &mut ServicePort,
        changes: &mut Changes,
        skipped: &mut Vec<Skipped>,
    ) {
        if applied.port.source_ranges == port.source_ranges {
            return;
        }
        let mut list = 0;
        let wanted = std::mem::take(&mut port.source_ranges);
        if !wanted.is_empty() {
            if let Some(id) = self.lists.acquire(&wanted, &mut changes.new_ranges) {
                list = id;
                port.source_ranges = wanted;
            } else {
                let reason =
                    "no room for its loadBalancerSourceRanges: its load balancer addresses let nobody in";
                skipped.push(Skipped { what: name.to_string(), reason });
                let unbounded = self.without_room.remove(name).unwrap_or_else(|| port.clone());
                let again = ServicePort { source_ranges: wanted, ..unbounded };
                self.without_room.insert(name.clone(), again);
            }
        }
        self.lists.release(&applied.port.source_ranges);
        applied.source_ranges = list;
    }

    /// Gives a service port that is served to the outside its Maglev table.
    fn set_maglev(
        &mut self,
        name: &ServicePortName,
        applied: &mut Applied,
        port: &ServicePort,
        now: Instant,
        changes: &mut Changes,
    ) {
        let set = wire_set(port);
        let wanted = set.map_or(&[] as &[Backend], |set| backends_of(port, set));
        let old = applied.maglev;
        let is_same = old.set == set
            && old.missing == 0
            && set.is_none_or(|set| backends_of(&applied.port, set) == wanted);
        if is_same {
            return;
        }
        self.without_maglev.remove(&(old.missing, name.clone()));
        self.maglev.release(old.range, now);
        applied.maglev = Maglev { set, ..Maglev::default() };
        if wanted.len() > 1 && self.maglev_entries > 0 {
            applied.maglev = self.new_maglev(set, wanted, now, changes);
            if applied.maglev.missing > 0 {
                self.without_maglev.insert((applied.maglev.missing, name.clone()));
            }
        }
    }

    fn new_maglev(
        &mut self,
        set: Option<Set>,
        backends: &[Backend],
        now: Instant,
        changes: &mut Changes,
    ) -> Maglev {
        let len = maglev::table_len(backends.len(), self.maglev_entries);
        let blocks = maglev::blocks(len);
        match self.maglev.allocate(blocks, now).filter(|range| range.len > 0) {
            Some(range) => {
                changes.maglev.extend((range.base..).zip(maglev::build(backends, len)));
                Maglev { set, range, len, missing: 0 }
            }
            // More backends than a table can tell apart find no room either.
            None => Maglev { set, missing: if len == 0 { u32::MAX } else { blocks }, ..Maglev::default() },
        }
    }

    /// Gives tables to ports that found no room for one, the smallest first, and reports those that still find none.
    fn retry_maglev(
        &mut self,
        now: Instant,
        changes: &mut Changes,
        revisit: &mut BTreeSet<ServicePortName>,
        skipped: &mut Vec<Skipped>,
    ) {
        while let Some((missing, name)) = self.without_maglev.pop_first() {
            let Some(mut applied) = self.ports.remove(&name) else { continue };
            let set = applied.maglev.set;
            let backends = set.map_or(&[] as &[Backend], |set| backends_of(&applied.port, set));
            applied.maglev = self.new_maglev(set, backends, now, changes);
            let has_room = applied.maglev.missing == 0;
            self.ports.insert(name.clone(), applied);
            if !has_room {
                let others = self.without_maglev.len();
                let reason = "no room for a Maglev table: clients outside are spread by a plain hash, of which a \
                              change of the backends moves most";
                skipped.push(Skipped { what: format!("{name} and {others} other service ports"), reason });
                self.without_maglev.insert((missing, name));
                return;
            }
            revisit.insert(name);
        }
    }

    fn set_members(
        &mut self,
        name: &ServicePortName,
        applied: &Applied,
        port: &ServicePort,
        changes: &mut Changes,
    ) {
        let wanted = members(name, applied.service_id, port);
        for (member, sets) in &wanted {
            if self.members.insert(*member, *sets) != Some(*sets) {
                changes.new_members.push((*member, *sets));
            }
        }
        for member in members(name, applied.service_id, &applied.port).into_keys() {
            if !wanted.contains_key(&member) && self.members.remove(&member).is_some() {
                changes.old_members.push(member);
            }
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
        self.maglev.release(applied.maglev.range, now);
        self.without_maglev.remove(&(applied.maglev.missing, name.clone()));
        self.lists.release(&applied.port.source_ranges);
        for member in members(name, applied.service_id, &applied.port).into_keys() {
            if self.members.remove(&member).is_some() {
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
            let count = backends_of(port, desired.inside).len() as u32;
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
            maglev: Maglev::default(),
            source_ranges: 0,
            departed: departed.into_iter().map(|key| (key, now)).collect(),
        };
        if is_same {
            applied.range = if len == 0 { Range::default() } else { Range { base, len } };
            // Its ranges are found again by what they are.
            let (frontends, source_ranges) = (BTreeMap::new(), ranges::Ranges::new());
            applied.port = ServicePort { frontends, source_ranges, ..port.clone() };
            applied.maglev = adopted_maglev(&self.frontends, &applied, port, self.maglev_entries);
            adoption.maglev.remove(applied.maglev.range);
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
            maglev: Maglev::default(),
            source_ranges: 0,
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
        let wanted: HashMap<MemberKey, u32> = self
            .ports
            .iter()
            .flat_map(|(name, applied)| members(name, applied.service_id, &applied.port))
            .collect();
        let missing = wanted.iter().filter(|(member, sets)| self.members.get(*member) != Some(*sets));
        changes.new_members.extend(missing.map(|(member, sets)| (*member, *sets)));
        changes.old_members.extend(self.members.keys().filter(|member| !wanted.contains_key(*member)));
        self.members = wanted;
        for range in adoption.maglev.iter() {
            self.maglev.release(range, now);
        }
        for range in adoption.ranges.iter() {
            self.slots.release(range, now);
        }
    }
}

fn frontend_value(applied: &Applied, frontend: &DesiredFrontend) -> Frontend {
    let (base, count) = slots_of(applied, frontend.inside);
    let (wire_base, wire_count) = slots_of(applied, frontend.wire);
    let has_table = frontend.flags & FRONTEND_WIRE != 0 && applied.maglev.set == Some(frontend.wire);
    let maglev = if has_table { applied.maglev } else { Maglev::default() };
    let is_bounded = frontend.flags & FRONTEND_SOURCE_RANGES != 0;
    Frontend {
        service_id: applied.service_id,
        generation: applied.generation,
        base,
        count,
        wire_base,
        wire_count,
        // A hint for drops alone; it means nothing without backends elsewhere.
        flags: frontend.flags & !if applied.port.cluster.is_empty() { FRONTEND_WIRE_LOCAL } else { 0 },
        affinity_seconds: applied.port.affinity_seconds,
        maglev_base: maglev.range.base,
        maglev_len: maglev.len,
        source_ranges: if is_bounded { applied.source_ranges } else { 0 },
        pad: 0,
    }
}

/// Returns the set of backends that clients outside get: one for all frontends, as the policy is the service's.
fn wire_set(port: &ServicePort) -> Option<Set> {
    port.frontends.values().find(|frontend| frontend.flags & FRONTEND_WIRE != 0).map(|frontend| frontend.wire)
}

/// Returns the table that the kernel has for a port whose slots are right. Frontends name only whole tables.
fn adopted_maglev(
    kernel: &HashMap<FrontendKey, Frontend>,
    applied: &Applied,
    port: &ServicePort,
    entries_per_backend: u32,
) -> Maglev {
    let Some(set) = wire_set(port) else { return Maglev::default() };
    let len = maglev::table_len(backends_of(port, set).len(), entries_per_backend);
    let found = port.frontends.keys().filter_map(|key| kernel.get(key)).find(|frontend| {
        frontend.service_id == applied.service_id
            && (frontend.wire_base, frontend.wire_count) == slots_of(applied, set)
            && frontend.maglev_len == len
            && len > 0
    });
    // Without one `missing` asks for a new one, unless none is needed.
    found.map_or(Maglev { set: Some(set), missing: u32::from(len > 0), ..Maglev::default() }, |frontend| {
        Maglev {
            set: Some(set),
            range: Range { base: frontend.maglev_base, len: maglev::blocks(len) },
            len,
            missing: 0,
        }
    })
}

fn slots_of(applied: &Applied, set: Set) -> (u32, u32) {
    let cluster = applied.port.cluster.len() as u32;
    match set {
        Set::Cluster => (applied.range.base, cluster),
        Set::Local => (applied.range.base + cluster, applied.port.local.len() as u32),
    }
}

/// All slots of a port, in the order of its range.
fn backends(port: &ServicePort) -> Vec<Backend> {
    port.cluster.iter().chain(&port.local).copied().collect()
}

fn backends_of(port: &ServicePort, set: Set) -> &[Backend] {
    match set {
        Set::Cluster => &port.cluster,
        Set::Local => &port.local,
    }
}

/// Returns the entries of `MEMBERS` that a port needs, and the sets that each backend is in.
fn members(name: &ServicePortName, service_id: u32, port: &ServicePort) -> BTreeMap<MemberKey, u32> {
    let mut members = BTreeMap::new();
    if name.protocol != IPPROTO_UDP && port.affinity_seconds == 0 {
        return members;
    }
    for (backends, set) in [(&port.cluster, MEMBER_CLUSTER), (&port.local, MEMBER_LOCAL)] {
        for backend in backends {
            let key = MemberKey { service_id, addr: backend.addr, port_be: backend.port_be, pad: 0 };
            *members.entry(key).or_default() |= set;
        }
    }
    members
}

fn departed_key(backend: &Backend) -> FrontendKey {
    FrontendKey { addr: backend.addr, port_be: backend.port_be, protocol: IPPROTO_UDP, pad: 0 }
}

/// 0 means "no entry" in the sockets' storage.
fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}
