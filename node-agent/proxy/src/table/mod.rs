//! The maps' content: what they hold, what they should hold, and the writes between the two. Pure.
//!
//! Writes are ordered so that a program that runs between any two of them sees a whole service: source ranges, Maglev
//! tables, slots and members first, then the frontends that lead to them, and only then is removed what nothing leads
//! to any more.
//!
//! A table starts from what the kernel has. A service port whose slots are already right keeps its id and its range,
//! so that a restart writes nothing; whatever nobody claims by the end of the first pass is stale and goes
//! ([`adoption`]).

mod adoption;
mod applied;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Instant,
};

use hawser_ebpf_abi::{
    Addr, Backend, Frontend, FrontendKey, IPPROTO_UDP, MaglevBlock, MemberKey, RangeKey,
    service::FRONTEND_DEPARTED,
};

use crate::{
    desired::{DesiredFrontend, Name, ServicePort, Set, Skipped},
    ranges::Lists,
    services::Wanted,
    sizes::Sizes,
    slots::Slots,
};

use adoption::Adoption;
use applied::{Applied, DEPARTED_FOR, frontend_value, members, next_generation};

pub(crate) use adoption::KernelState;

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
    /// Ids of service ports whose counters go.
    pub(crate) old_services: Vec<u32>,
}

impl Changes {
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How much the maps hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) sizes: Sizes,
    /// Entries of a Maglev table for each backend, at least.
    pub(crate) maglev_entries: u32,
}

/// An entry of `FRONTENDS`.
#[derive(Debug)]
struct Held {
    frontend: Frontend,
    /// `None` while nobody claims what the kernel has, and between two owners within one call.
    owner: Option<Name>,
}

/// The maps' mirror.
#[derive(Debug)]
pub(crate) struct Table {
    ports: HashMap<Name, Box<Applied>>,
    frontends: HashMap<FrontendKey, Held>,
    members: HashMap<MemberKey, u32>,
    slots: Slots,
    maglev: Slots,
    lists: Lists,
    bounds: Bounds,
    /// What found no room in the last call, in entries.
    lacking: Sizes,
    next_service_id: u32,
    /// Ports with departed backends: each call looks at them again.
    with_departed: BTreeSet<Name>,
    /// Ports that found no room for their backends or ranges, and what they wanted: each call tries again.
    without_room: BTreeMap<Name, ServicePort>,
    /// Ports that found no room for a Maglev table, by the number of blocks: each call tries again.
    without_maglev: BTreeSet<(u32, Name)>,
    /// Ports that miss a frontend, because another port has it or the table is full: each call tries again.
    without_frontend: BTreeSet<Name>,
    /// During the first call.
    adoption: Option<Adoption>,
}

/// One call of [`Table::apply`]: its writes, and what it has still to do.
struct Pass<'a> {
    now: Instant,
    /// Tells whether an endpoint answers at an address.
    is_live: &'a dyn Fn(&Addr) -> bool,
    changes: Changes,
    skipped: &'a mut Vec<Skipped>,
    /// Frontends that their ports have let go; another port may take them before the call ends.
    released: BTreeSet<FrontendKey>,
    /// Ports whose frontends may differ from the maps.
    revisit: Vec<Name>,
}

impl Pass<'_> {
    fn skip(&mut self, name: &Name, reason: &'static str) {
        self.skipped.push(Skipped { what: name.to_string(), reason });
    }
}

impl Table {
    pub(crate) fn frontends(&self) -> usize {
        self.frontends.len()
    }

    /// Returns how many entries found no room in the last call.
    pub(crate) fn lacking(&self) -> Sizes {
        self.lacking
    }

    /// Takes larger maps. What found no room is tried again by the next call.
    pub(crate) fn grow(&mut self, sizes: Sizes) {
        let old = std::mem::replace(&mut self.bounds.sizes, sizes);
        self.slots.grow(old.backends, sizes.backends);
        self.maglev.grow(old.maglev_blocks, sizes.maglev_blocks);
        self.lists.grow(sizes.source_ranges);
    }

    /// Brings some service ports to what is wanted: `None` removes one. The first call must name all of them.
    ///
    /// `is_live` tells whether an endpoint answers at an address.
    pub(crate) fn apply(
        &mut self,
        mut wanted: Wanted,
        is_live: &dyn Fn(&Addr) -> bool,
        now: Instant,
        skipped: &mut Vec<Skipped>,
    ) -> Changes {
        self.lacking = Sizes::default();
        for (name, port) in std::mem::take(&mut self.without_room) {
            wanted.entry(name).or_insert(Some(port));
        }
        let (changes, released, revisit) = (Changes::default(), BTreeSet::new(), Vec::new());
        let mut pass = Pass { now, is_live, changes, skipped, released, revisit };
        // Addresses that change hands within this call are let go first, by all.
        for (name, port) in &wanted {
            self.let_go(name, port.as_ref(), &mut pass);
        }
        for (name, port) in wanted {
            match port {
                Some(port) => self.set(&name, port, &mut pass),
                None => self.remove(&name, &mut pass),
            }
            pass.revisit.push(name);
        }
        self.retry_maglev(&mut pass);
        // Ports whose departed backends may have come back, or whose time is over.
        let mut revisit = std::mem::take(&mut pass.revisit);
        revisit.extend(self.with_departed.iter().cloned());
        revisit.extend(std::mem::take(&mut self.without_frontend));
        revisit.sort();
        revisit.dedup();
        for name in revisit {
            self.write_frontends(&name, &mut pass);
            match self.ports.get(&name).is_some_and(|applied| !applied.departed.is_empty()) {
                true => self.with_departed.insert(name),
                false => self.with_departed.remove(&name),
            };
        }
        for key in std::mem::take(&mut pass.released) {
            if self.frontends.get(&key).is_some_and(|held| held.owner.is_none()) {
                self.frontends.remove(&key);
                pass.changes.old_frontends.push(key);
            }
        }
        self.finish_adoption(&mut pass);
        pass.changes.old_ranges = self.lists.remove_unused();
        pass.changes
    }

    /// Lets go the frontends that a port has, and will not have.
    fn let_go(&mut self, name: &Name, port: Option<&ServicePort>, pass: &mut Pass<'_>) {
        let Some(applied) = self.ports.get(name) else { return };
        let departed = applied.departed.iter().map(|(key, _)| key);
        for key in applied.port.frontends.keys().chain(departed) {
            if port.is_none_or(|port| !port.frontends.contains(key)) {
                release(&mut self.frontends, key, name, pass);
            }
        }
    }

    /// Gives a service port its slots, and what goes with them.
    fn set(&mut self, name: &Name, mut port: ServicePort, pass: &mut Pass<'_>) {
        let mut applied = self.ports.remove(name).unwrap_or_else(|| self.adopt(&port, pass.now));
        if let Err(reason) = self.set_slots(name, &mut applied, &port, pass) {
            pass.skip(name, reason);
            self.without_room.insert(name.clone(), port.clone());
            // Its addresses are served all the same, by the old backends; without any they refuse.
            port.cluster = applied.port.cluster.clone();
            port.local = applied.port.local.clone();
            port.affinity_seconds = applied.port.affinity_seconds;
        }
        self.set_source_ranges(name, &mut applied, &mut port, pass);
        self.set_maglev(name, &mut applied, &port, pass);
        self.set_members(name, &applied, &port, pass);
        if name.protocol == IPPROTO_UDP && !applied.note_departed(&port, pass.now) {
            let reason = "more of its backends left within 10 minutes than are remembered: clients connected to the \
                          others are left alone";
            pass.skip(name, reason);
        }
        applied.port = port;
        self.ports.insert(name.clone(), applied);
    }

    /// Writes a port's backends to slots of their own, where they differ. The error says what has no room for them.
    fn set_slots(
        &mut self,
        name: &Name,
        applied: &mut Applied,
        port: &ServicePort,
        pass: &mut Pass<'_>,
    ) -> Result<(), &'static str> {
        let members = members(name, applied.service_id, port);
        let new_members = members.keys().filter(|member| !self.members.contains_key(*member)).count();
        // Those that go are removed after the new ones are written.
        let members = self.members.len() + pass.changes.old_members.len() + new_members;
        if new_members > 0 && members > self.bounds.sizes.members as usize {
            self.lacking.members += new_members as u32;
            return Err(
                "no room for its backends among those of UDP ports and of ports with affinity: the old \
                        backends stay",
            );
        }
        if !port.slots().eq(applied.port.slots()) {
            let len = port.cluster.len() + port.local.len();
            let Some(range) = self.slots.allocate(len as u32, pass.now) else {
                self.lacking.backends += len as u32;
                return Err("no free range of backend slots: the old backends stay");
            };
            pass.changes.slots.extend((range.base..).zip(port.slots().copied()));
            self.slots.release(std::mem::replace(&mut applied.range, range), pass.now);
            applied.generation = next_generation(applied.generation);
        } else if applied.port.cluster.len() != port.cluster.len() {
            // The same backends in other sets: who remembers one has to look whether it may.
            applied.generation = next_generation(applied.generation);
        }
        Ok(())
    }

    fn set_source_ranges(
        &mut self,
        name: &Name,
        applied: &mut Applied,
        port: &mut ServicePort,
        pass: &mut Pass<'_>,
    ) {
        if applied.port.source_ranges == port.source_ranges {
            return;
        }
        let mut list = 0;
        let wanted = std::mem::take(&mut port.source_ranges);
        if !wanted.is_empty() {
            if let Some(id) = self.lists.acquire(&wanted, &mut pass.changes.new_ranges) {
                list = id;
                port.source_ranges = wanted;
            } else {
                self.lacking.source_ranges += wanted.len() as u32;
                pass.skip(
                    name,
                    "no room for its loadBalancerSourceRanges: its load balancer addresses let nobody in",
                );
                let unbounded = self.without_room.remove(name).unwrap_or_else(|| port.clone());
                let again = ServicePort { source_ranges: wanted, ..unbounded };
                self.without_room.insert(name.clone(), again);
            }
        }
        self.lists.release(&applied.port.source_ranges);
        applied.source_ranges = list;
    }

    fn set_members(&mut self, name: &Name, applied: &Applied, port: &ServicePort, pass: &mut Pass<'_>) {
        let wanted = members(name, applied.service_id, port);
        for (member, sets) in &wanted {
            if self.members.insert(*member, *sets) != Some(*sets) {
                pass.changes.new_members.push((*member, *sets));
            }
        }
        for member in members(name, applied.service_id, &applied.port).into_keys() {
            if !wanted.contains_key(&member) && self.members.remove(&member).is_some() {
                pass.changes.old_members.push(member);
            }
        }
    }

    /// Writes the frontends of a port that differ from the maps.
    fn write_frontends(&mut self, name: &Name, pass: &mut Pass<'_>) {
        let Some(applied) = self.ports.get_mut(name) else { return };
        applied.departed.retain(|(key, left)| {
            let stays = pass.now.saturating_duration_since(*left) < DEPARTED_FOR;
            if !stays {
                release(&mut self.frontends, key, name, pass);
            }
            stays
        });
        let mut wanted: Vec<(FrontendKey, Frontend)> = Vec::with_capacity(1);
        for (key, frontend) in &applied.port.frontends {
            wanted.push((*key, frontend_value(applied, key, frontend)));
        }
        for (key, _) in &applied.departed {
            if (pass.is_live)(&key.addr) {
                release(&mut self.frontends, key, name, pass);
                continue;
            }
            let frontend =
                DesiredFrontend { inside: Set::Cluster, wire: Set::Cluster, flags: FRONTEND_DEPARTED };
            wanted.push((*key, frontend_value(applied, key, &frontend)));
        }
        for (key, frontend) in wanted {
            let len = self.frontends.len();
            match self.frontends.get_mut(&key) {
                Some(Held { owner: Some(owner), .. }) if owner != name => {
                    if frontend.flags & FRONTEND_DEPARTED == 0 {
                        pass.skip(name, "another service has one of its addresses with this port");
                        self.without_frontend.insert(name.clone());
                    }
                }
                Some(held) => {
                    held.owner.get_or_insert_with(|| name.clone());
                    if held.frontend != frontend {
                        held.frontend = frontend;
                        pass.changes.frontends.push((key, frontend));
                    }
                }
                None if len >= self.bounds.sizes.frontends as usize => {
                    self.lacking.frontends += 1;
                    pass.skip(name, "the table of frontends is full");
                    self.without_frontend.insert(name.clone());
                }
                None => {
                    self.frontends.insert(key, Held { frontend, owner: Some(name.clone()) });
                    pass.changes.frontends.push((key, frontend));
                }
            }
        }
    }

    fn remove(&mut self, name: &Name, pass: &mut Pass<'_>) {
        let Some(applied) = self.ports.remove(name) else { return };
        pass.changes.old_services.push(applied.service_id);
        self.slots.release(applied.range, pass.now);
        self.maglev.release(applied.maglev.range, pass.now);
        self.without_maglev.remove(&(applied.maglev.missing, name.clone()));
        self.lists.release(&applied.port.source_ranges);
        for member in members(name, applied.service_id, &applied.port).into_keys() {
            if self.members.remove(&member).is_some() {
                pass.changes.old_members.push(member);
            }
        }
    }
}

/// Takes a frontend from its owner, if that is `name`.
fn release(frontends: &mut HashMap<FrontendKey, Held>, key: &FrontendKey, name: &Name, pass: &mut Pass<'_>) {
    if let Some(held) = frontends.get_mut(key)
        && held.owner.as_ref() == Some(name)
    {
        held.owner = None;
        pass.released.insert(*key);
    }
}
