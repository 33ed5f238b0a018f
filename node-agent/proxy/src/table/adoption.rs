//! The first pass after a start: service ports find again what an earlier agent left in the kernel.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Instant,
};

use hawser_ebpf_abi::{Backend, Frontend, FrontendKey, MemberKey, RangeKey, service::FRONTEND_DEPARTED};

use crate::{
    desired::{ServicePort, Set},
    frontends::Frontends,
    maglev,
    ranges::{self, Lists},
    sizes::Sizes,
    slots::{Range, Ranges, Slots},
};

use super::{
    Bounds, Held, Pass, Table,
    applied::{Applied, members, next_generation},
    wire::{Maglev, wire_set},
};

/// What the maps hold, read at start.
#[derive(Debug, Default)]
pub(crate) struct KernelState {
    pub(crate) frontends: HashMap<FrontendKey, Frontend>,
    pub(crate) slots: HashMap<u32, Backend>,
    pub(crate) members: HashMap<MemberKey, u32>,
    pub(crate) ranges: Vec<RangeKey>,
    /// Ids of service ports that have counters.
    pub(crate) counted: Vec<u32>,
}

/// What the first pass still has to find an owner for.
#[derive(Debug)]
pub(super) struct Adoption {
    slots: HashMap<u32, Backend>,
    ranges: Ranges,
    maglev: Ranges,
    /// Departed backends' frontends, by service id.
    departed: HashMap<u32, Vec<FrontendKey>>,
    adopted_ids: HashSet<u32>,
    counted: Vec<u32>,
}

impl Table {
    pub(crate) fn new(kernel: KernelState, bounds: Bounds) -> Self {
        let mut slots = Slots::new(bounds.sizes.backends);
        let mut ranges = Ranges::default();
        let mut maglev = Slots::new(bounds.sizes.maglev_blocks);
        let mut maglev_ranges = Ranges::default();
        let mut departed: HashMap<u32, Vec<FrontendKey>> = HashMap::new();
        // What was counted for an id that is gone is no new service port's.
        let mut last_service_id = kernel.counted.iter().copied().max().unwrap_or(0);
        for (key, frontend) in &kernel.frontends {
            let table = Range { base: frontend.maglev_base, len: maglev::blocks(frontend.maglev_len) };
            maglev.reserve(table);
            maglev_ranges.insert(table);
            for (base, len) in [(frontend.base, frontend.count), (frontend.wire_base, frontend.wire_count)] {
                slots.reserve(Range { base, len });
                ranges.insert(Range { base, len });
            }
            if frontend.flags & FRONTEND_DEPARTED != 0 {
                departed.entry(frontend.service_id).or_default().push(*key);
            }
            last_service_id = last_service_id.max(frontend.service_id);
        }
        let frontends = kernel.frontends.into_iter();
        Self {
            ports: HashMap::new(),
            frontends: frontends.map(|(key, frontend)| (key, Held { frontend, owner: None })).collect(),
            members: kernel.members,
            slots,
            maglev,
            lists: Lists::new(kernel.ranges, bounds.sizes.source_ranges),
            bounds,
            lacking: Sizes::default(),
            next_service_id: last_service_id.wrapping_add(1),
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
                counted: kernel.counted,
            }),
        }
    }

    /// Returns what the kernel has of a port that is new to the table; a fresh entry when it has nothing of use.
    pub(super) fn adopt(&mut self, port: &ServicePort, now: Instant) -> Box<Applied> {
        let found = self.adoption.as_ref().and_then(|adoption| {
            let (desired, frontend) = port.frontends.iter().find_map(|(key, desired)| {
                let frontend = &self.frontends.get(key)?.frontend;
                (frontend.flags & FRONTEND_DEPARTED == 0).then_some((desired, frontend))
            })?;
            let base = match desired.inside {
                Set::Cluster => Some(frontend.base),
                Set::Local => frontend.base.checked_sub(port.cluster.len() as u32),
            };
            let base = base.unwrap_or(frontend.base);
            let is_same =
                (base..).zip(port.slots()).all(|(slot, backend)| adoption.slots.get(&slot) == Some(backend));
            let count = port.backends_of(desired.inside).len() as u32;
            Some((frontend.service_id, frontend.generation, base, is_same && frontend.count == count))
        });
        let Some((service_id, generation, base, is_same)) = found else { return self.fresh() };
        let Some(adoption) = &mut self.adoption else { return self.fresh() };
        if !adoption.adopted_ids.insert(service_id) {
            // The address changed hands while no agent ran: the other port has the id.
            return self.fresh();
        }
        let departed = adoption.departed.remove(&service_id).unwrap_or_default();
        let mut applied = Box::new(Applied::new(service_id));
        // Who has a backend of the set that was there looks again.
        applied.generation = if is_same { generation } else { next_generation(generation) };
        applied.departed = departed.into_iter().map(|key| (key, now)).collect();
        if is_same {
            let len = (port.cluster.len() + port.local.len()) as u32;
            applied.range = if len == 0 { Range::default() } else { Range { base, len } };
            // Its ranges are found again by what they are.
            let (frontends, source_ranges) = (Frontends::default(), ranges::Ranges::new());
            applied.port = ServicePort { frontends, source_ranges, ..port.clone() };
            applied.maglev = adopted_maglev(&self.frontends, &applied, port, self.bounds.maglev_entries);
            adoption.maglev.remove(applied.maglev.range);
            adoption.ranges.remove(applied.range);
            // The range may be wider than any one frontend: all of it is in use.
            self.slots.reserve(applied.range);
        }
        applied
    }

    fn fresh(&mut self) -> Box<Applied> {
        let service_id = self.next_service_id;
        self.next_service_id = service_id.wrapping_add(1);
        Box::new(Applied::new(service_id))
    }

    /// At the end of the first pass: removes what the kernel has and nobody wants.
    pub(super) fn finish_adoption(&mut self, pass: &mut Pass<'_>) {
        let Some(adoption) = self.adoption.take() else { return };
        let stale = self.frontends.extract_if(|_, held| held.owner.is_none());
        pass.changes.old_frontends.extend(stale.map(|(key, _)| key));
        let wanted: HashMap<MemberKey, u32> = self
            .ports
            .iter()
            .flat_map(|(name, applied)| members(name, applied.service_id, &applied.port))
            .collect();
        let missing = wanted.iter().filter(|(member, sets)| self.members.get(*member) != Some(*sets));
        pass.changes.new_members.extend(missing.map(|(member, sets)| (*member, *sets)));
        pass.changes.old_members.extend(self.members.keys().filter(|member| !wanted.contains_key(*member)));
        self.members = wanted;
        let ids: HashSet<u32> = self.ports.values().map(|applied| applied.service_id).collect();
        pass.changes.old_services.extend(adoption.counted.iter().filter(|id| !ids.contains(id)));
        for range in adoption.maglev.iter() {
            self.maglev.release(range, pass.now);
        }
        for range in adoption.ranges.iter() {
            self.slots.release(range, pass.now);
        }
    }
}

/// Returns the table that the kernel has for a port whose slots are right. Frontends name only whole tables.
fn adopted_maglev(
    kernel: &HashMap<FrontendKey, Held>,
    applied: &Applied,
    port: &ServicePort,
    entries_per_backend: u32,
) -> Maglev {
    let Some(set) = wire_set(port) else { return Maglev::default() };
    let len = maglev::table_len(port.backends_of(set).len(), entries_per_backend);
    let found = port.frontends.keys().filter_map(|key| Some(&kernel.get(key)?.frontend)).find(|frontend| {
        frontend.service_id == applied.service_id
            && (frontend.wire_base, frontend.wire_count) == applied.slots_of(set)
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
