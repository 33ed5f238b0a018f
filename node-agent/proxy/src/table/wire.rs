//! Maglev tables of the service ports that are served to the outside.

use hawser_ebpf_abi::{Backend, service::FRONTEND_WIRE};

use crate::{
    desired::{Name, ServicePort, Set, Skipped},
    maglev,
    slots::Range,
};

use super::{Pass, Table, applied::Applied};

/// The Maglev table of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Maglev {
    /// The set of backends that clients outside get; `None` when no frontend is served to them.
    pub(super) set: Option<Set>,
    pub(super) range: Range,
    /// Entries; 0 for no table.
    pub(super) len: u32,
    /// Blocks that a table would fill for which there was no room.
    pub(super) missing: u32,
}

impl Table {
    /// Gives a service port that is served to the outside its Maglev table.
    pub(super) fn set_maglev(
        &mut self,
        name: &Name,
        applied: &mut Applied,
        port: &ServicePort,
        pass: &mut Pass<'_>,
    ) {
        let set = wire_set(port);
        let wanted = set.map_or(&[] as &[Backend], |set| port.backends_of(set));
        let old = applied.maglev;
        let is_same = old.set == set
            && old.missing == 0
            && set.is_none_or(|set| applied.port.backends_of(set) == wanted);
        if is_same {
            return;
        }
        self.without_maglev.remove(&(old.missing, name.clone()));
        self.maglev.release(old.range, pass.now);
        applied.maglev = Maglev { set, ..Maglev::default() };
        if wanted.len() > 1 && self.bounds.maglev_entries > 0 {
            applied.maglev = self.new_maglev(set, wanted, pass);
            if applied.maglev.missing > 0 {
                self.without_maglev.insert((applied.maglev.missing, name.clone()));
            }
        }
    }

    fn new_maglev(&mut self, set: Option<Set>, backends: &[Backend], pass: &mut Pass<'_>) -> Maglev {
        let len = maglev::table_len(backends.len(), self.bounds.maglev_entries);
        let blocks = maglev::blocks(len);
        match self.maglev.allocate(blocks, pass.now).filter(|range| range.len > 0) {
            Some(range) => {
                pass.changes.maglev.extend((range.base..).zip(maglev::build(backends, len)));
                Maglev { set, range, len, missing: 0 }
            }
            // More backends than a table can tell apart find no room either.
            None => Maglev { set, missing: if len == 0 { u32::MAX } else { blocks }, ..Maglev::default() },
        }
    }

    /// Gives tables to ports that found no room for one, the smallest first, and reports those that still find none.
    pub(super) fn retry_maglev(&mut self, pass: &mut Pass<'_>) {
        while let Some((missing, name)) = self.without_maglev.pop_first() {
            let Some(mut applied) = self.ports.remove(&name) else { continue };
            let set = applied.maglev.set;
            let backends = set.map_or(&[] as &[Backend], |set| applied.port.backends_of(set));
            let maglev = self.new_maglev(set, backends, pass);
            applied.maglev = maglev;
            self.ports.insert(name.clone(), applied);
            if maglev.missing > 0 {
                let others = self.without_maglev.len();
                // Those with more backends than a table can tell apart are helped by no map.
                let blocks = self.without_maglev.iter().map(|(blocks, _)| *blocks).chain([maglev.missing]);
                self.lacking.maglev_blocks =
                    blocks.filter(|blocks| *blocks != u32::MAX).fold(0, u32::saturating_add);
                let reason = "no room for a Maglev table: clients outside are spread by a plain hash, of which a \
                              change of the backends moves most";
                pass.skipped
                    .push(Skipped { what: format!("{name} and {others} other service ports"), reason });
                self.without_maglev.insert((missing, name));
                return;
            }
            pass.revisit.push(name);
        }
    }
}

/// Returns the set of backends that clients outside get: one for all frontends, as the policy is the service's.
pub(super) fn wire_set(port: &ServicePort) -> Option<Set> {
    port.frontends.values().find(|frontend| frontend.flags & FRONTEND_WIRE != 0).map(|frontend| frontend.wire)
}
