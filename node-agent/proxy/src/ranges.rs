//! Lists of source ranges: who has which, and what `SOURCE_RANGES` must hold. Pure.
//!
//! Equal lists are one list, whatever the number of service ports that use it. A new list's prefixes are written
//! before the frontends that name it; a list's prefixes are removed after its last frontend.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry};

use hawser_ebpf_abi::{
    Addr, RangeKey, RangeSubject,
    ranges::{RANGE_LIST_BITS, RANGE_LOOKUP_BITS},
};

/// A range of addresses, as the maps have it: IPv4 prefixes count from bit 96.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SourceRange {
    pub(crate) addr: Addr,
    pub(crate) prefix_len: u32,
}

impl SourceRange {
    /// Returns the range with the bits behind the prefix cleared, so that equal ranges are equal values.
    pub(crate) fn new(addr: Addr, prefix_len: u32) -> Self {
        let prefix_len = prefix_len.min(128);
        let mask = u128::MAX.checked_shl(128 - prefix_len).unwrap_or(0);
        Self { addr: (u128::from_be_bytes(addr.octets()) & mask).to_be_bytes().into(), prefix_len }
    }

    pub(crate) fn contains(&self, addr: &Addr) -> bool {
        Self::new(*addr, self.prefix_len).addr == self.addr
    }

    fn key(&self, list: u32) -> RangeKey {
        RangeKey {
            prefix_len: RANGE_LIST_BITS + self.prefix_len,
            subject: RangeSubject { list, addr: self.addr },
        }
    }
}

/// Ranges of one list, each once.
pub(crate) type Ranges = BTreeSet<SourceRange>;

#[derive(Debug)]
struct List {
    id: u32,
    users: usize,
}

/// The lists that the map holds.
#[derive(Debug)]
pub(crate) struct Lists {
    lists: BTreeMap<Ranges, List>,
    /// Prefixes that nobody has a use for, left by an earlier agent.
    stale: Vec<RangeKey>,
    next_id: u32,
    len: usize,
    capacity: usize,
}

impl Lists {
    /// Takes what the map holds.
    pub(crate) fn new(kernel: Vec<RangeKey>, capacity: u32) -> Self {
        let mut by_id: HashMap<u32, Ranges> = HashMap::new();
        let len = kernel.len();
        for key in kernel {
            let prefix_len = key.prefix_len.min(RANGE_LOOKUP_BITS).saturating_sub(RANGE_LIST_BITS);
            let range = SourceRange { addr: key.subject.addr, prefix_len };
            by_id.entry(key.subject.list).or_default().insert(range);
        }
        let next_id = by_id.keys().max().map_or(1, |id| id.wrapping_add(1).max(1));
        let mut lists = BTreeMap::new();
        let mut stale = Vec::new();
        for (id, ranges) in by_id {
            match lists.entry(ranges) {
                Entry::Occupied(known) => stale.extend(known.key().iter().map(|range| range.key(id))),
                Entry::Vacant(free) => {
                    free.insert(List { id, users: 0 });
                }
            }
        }
        Self { lists, stale, next_id, len, capacity: capacity as usize }
    }

    pub(crate) fn grow(&mut self, capacity: u32) {
        self.capacity = capacity as usize;
    }

    /// Returns the id of the list and makes the caller one of its users; `None` when there is no room for it.
    /// Prefixes that have to be written go to `new`.
    pub(crate) fn acquire(&mut self, ranges: &Ranges, new: &mut Vec<RangeKey>) -> Option<u32> {
        if let Some(list) = self.lists.get_mut(ranges) {
            list.users += 1;
            return Some(list.id);
        }
        if self.len + ranges.len() > self.capacity {
            return None;
        }
        let id = self.next_id;
        // 0 is the list that lets nobody in.
        self.next_id = id.wrapping_add(1).max(1);
        self.len += ranges.len();
        new.extend(ranges.iter().map(|range| range.key(id)));
        self.lists.insert(ranges.clone(), List { id, users: 1 });
        Some(id)
    }

    pub(crate) fn release(&mut self, ranges: &Ranges) {
        if let Some(list) = self.lists.get_mut(ranges) {
            list.users = list.users.saturating_sub(1);
        }
    }

    /// Forgets the lists that have no user, and returns their prefixes.
    pub(crate) fn remove_unused(&mut self) -> Vec<RangeKey> {
        let mut old = std::mem::take(&mut self.stale);
        self.lists.retain(|ranges, list| {
            if list.users == 0 {
                old.extend(ranges.iter().map(|range| range.key(list.id)));
            }
            list.users > 0
        });
        self.len -= old.len();
        old
    }
}
