//! A service port as it is in the maps, and the entries that follow from it.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use hawser_ebpf_abi::{
    Backend, Frontend, FrontendKey, IPPROTO_UDP, MemberKey,
    service::{FRONTEND_SOURCE_RANGES, FRONTEND_WIRE, FRONTEND_WIRE_LOCAL, MEMBER_CLUSTER, MEMBER_LOCAL},
};

use crate::{
    desired::{DesiredFrontend, Name, ServicePort, Set},
    slots::Range,
};

use super::wire::Maglev;

/// How long a departed UDP backend's address leads its connected clients to the living ones.
pub(super) const DEPARTED_FOR: Duration = Duration::from_secs(600);
/// Departed backends remembered for each service port.
const DEPARTED_PER_PORT: usize = 64;

/// One service port as it is in the maps.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) service_id: u32,
    pub(super) generation: u32,
    pub(super) range: Range,
    pub(super) port: ServicePort,
    pub(super) maglev: Maglev,
    /// List of source ranges; 0 for none.
    pub(super) source_ranges: u32,
    /// UDP backends that left, and when. Their addresses become frontends as long as nothing else answers there.
    pub(super) departed: Vec<(FrontendKey, Instant)>,
}

impl Applied {
    pub(super) fn new(service_id: u32) -> Self {
        Self {
            service_id,
            generation: 1,
            range: Range::default(),
            port: ServicePort::default(),
            maglev: Maglev::default(),
            source_ranges: 0,
            departed: Vec::new(),
        }
    }

    /// Remembers the backends that are there and not in `port`; false where there is no room for one.
    pub(super) fn note_departed(&mut self, port: &ServicePort, now: Instant) -> bool {
        if self.port.cluster == port.cluster {
            return true;
        }
        let current: HashSet<FrontendKey> = port.cluster.iter().map(departed_key).collect();
        let mut has_room = true;
        for key in self.port.cluster.iter().map(departed_key).filter(|key| !current.contains(key)) {
            if let Some((_, left)) = self.departed.iter_mut().find(|(departed, _)| *departed == key) {
                *left = now;
            } else if self.departed.len() < DEPARTED_PER_PORT {
                self.departed.push((key, now));
            } else {
                has_room = false;
            }
        }
        self.departed.retain(|(key, _)| !current.contains(key));
        has_room
    }

    pub(super) fn slots_of(&self, set: Set) -> (u32, u32) {
        let cluster = self.port.cluster.len() as u32;
        match set {
            Set::Cluster => (self.range.base, cluster),
            Set::Local => (self.range.base + cluster, self.port.local.len() as u32),
        }
    }
}

impl ServicePort {
    /// All of its slots, in the order of its range.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Backend> {
        self.cluster.iter().chain(&self.local)
    }

    pub(super) fn backends_of(&self, set: Set) -> &[Backend] {
        match set {
            Set::Cluster => &self.cluster,
            Set::Local => &self.local,
        }
    }
}

/// Returns the entry for one of a port's frontends.
pub(super) fn frontend_value(applied: &Applied, key: &FrontendKey, frontend: &DesiredFrontend) -> Frontend {
    let (base, count) = applied.slots_of(frontend.inside);
    let (wire_base, wire_count) = applied.slots_of(frontend.wire);
    let has_table = frontend.flags & FRONTEND_WIRE != 0 && applied.maglev.set == Some(frontend.wire);
    let maglev = if has_table { applied.maglev } else { Maglev::default() };
    let is_bounded = frontend.flags & FRONTEND_SOURCE_RANGES != 0;
    let value = Frontend {
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
        seal: 0,
    };
    value.sealed(key)
}

/// Returns the entries of `MEMBERS` that a port needs, and the sets that each backend is in.
pub(super) fn members(name: &Name, service_id: u32, port: &ServicePort) -> BTreeMap<MemberKey, u32> {
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
pub(super) fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}
