//! Pools: the slices that one driver publishes together, and what of their devices is given out.
//!
//! A pool counts for a node when all its slices of the newest generation that the node sees are there; one that is being
//! replaced is left alone, and so is one whose slices contradict each other.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use hawser_api::quantity::Quantity;

use super::objects::{Holding, Slice};
use crate::pod::Labels;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PoolKey {
    pub(super) driver: Arc<str>,
    pub(super) pool: Arc<str>,
}

impl fmt::Display for PoolKey {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}", self.driver, self.pool)
    }
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) key: PoolKey,
    /// By the node that they alone are for, and by name: the order in which devices are given out.
    slices: BTreeMap<Option<String>, BTreeMap<String, Arc<Slice>>>,
    /// How many slices there are of each generation.
    generations: BTreeMap<i64, usize>,
    /// Those with devices that consume counters, by name.
    consuming: BTreeMap<String, Arc<Slice>>,
    taken: HashMap<Arc<str>, Taken>,
    /// The last change of what is given out.
    pub(super) changed: u64,
}

/// What of a device is given out.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Claims that have it for themselves: one, unless somebody else gives devices out too.
    pub(super) whole: i64,
    pub(super) shares: i64,
    pub(super) consumed: BTreeMap<String, Quantity>,
}

impl Pool {
    pub(super) fn new(key: PoolKey) -> Self {
        Self {
            key,
            slices: BTreeMap::new(),
            generations: BTreeMap::new(),
            consuming: BTreeMap::new(),
            taken: HashMap::new(),
            changed: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slices.is_empty() && self.taken.is_empty()
    }

    pub(super) fn attach(&mut self, slice: &Arc<Slice>) {
        let of_node = self.slices.entry(slice.only_node().map(str::to_owned)).or_default();
        of_node.insert(slice.name.clone(), slice.clone());
        *self.generations.entry(slice.generation).or_default() += 1;
        if slice.consumes() {
            self.consuming.insert(slice.name.clone(), slice.clone());
        }
    }

    /// True where the slice was the last one that is for its node alone, or for several.
    pub(super) fn detach(&mut self, slice: &Slice) -> bool {
        let node = slice.only_node().map(str::to_owned);
        let Some(of_node) = self.slices.get_mut(&node) else { return false };
        if of_node.remove(&slice.name).is_none() {
            return false;
        }
        let is_last = of_node.is_empty();
        if is_last {
            self.slices.remove(&node);
        }
        if let Some(count) = self.generations.get_mut(&slice.generation) {
            *count -= 1;
            if *count == 0 {
                self.generations.remove(&slice.generation);
            }
        }
        self.consuming.remove(&slice.name);
        is_last
    }

    /// The node that all slices are for.
    pub(super) fn only_node(&self) -> Option<&str> {
        match self.slices.len() {
            1 => self.slices.keys().next()?.as_deref(),
            _ => None,
        }
    }

    pub(super) fn taken(&self, device: &str) -> Option<&Taken> {
        self.taken.get(device)
    }

    pub(super) fn hold(&mut self, holding: &Holding, sign: i64) {
        let taken = self.taken.entry(holding.device.clone()).or_default();
        match &holding.share {
            None => taken.whole += sign,
            Some(share) => {
                taken.shares += sign;
                for (name, amount) in share {
                    let consumed = taken.consumed.entry(name.clone()).or_default();
                    *consumed = if sign < 0 { *consumed - *amount } else { *consumed + *amount };
                }
            }
        }
        if taken.whole <= 0 && taken.shares <= 0 {
            self.taken.remove(&holding.device);
        }
    }

    /// What the node sees of the pool; `None` where that is nothing.
    pub(super) fn seen_from(&self, index: usize, node: &str, labels: &Labels) -> Option<Seen> {
        let own = [Some(node.to_owned()), None];
        let candidates = own.iter().filter_map(|node| self.slices.get(node)).flat_map(BTreeMap::values);
        let for_node = candidates.filter(|slice| slice.is_for(node, labels));
        let newest = for_node.clone().map(|slice| slice.generation).max()?;
        let mut slices: Vec<Arc<Slice>> =
            for_node.filter(|slice| slice.generation == newest).cloned().collect();
        slices.sort_by(|one, other| one.name.cmp(&other.name));
        let expected = slices.first()?.of_pool;
        let is_all = |count: usize| i64::try_from(count).ok() == Some(expected);
        let mut seen =
            Seen { index, key: self.key.clone(), state: State::Usable, slices, others: Vec::new() };
        if !is_all(seen.slices.len()) {
            // The others may be for other nodes.
            if self.generations.last_key_value().is_some_and(|(last, _)| *last > newest) {
                return None;
            }
            if !is_all(self.generations.get(&newest).copied().unwrap_or_default()) {
                seen.state = State::Incomplete;
                return Some(seen);
            }
            let of_generation = self.consuming.values().filter(|slice| slice.generation == newest);
            let is_other = |slice: &&Arc<Slice>| !seen.slices.iter().any(|own| own.name == slice.name);
            seen.others = of_generation.filter(is_other).cloned().collect();
        }
        if seen.contradicts() {
            seen.state = State::Invalid;
        }
        Some(seen)
    }
}

/// A pool as one node sees it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) index: usize,
    pub(super) key: PoolKey,
    pub(super) state: State,
    /// With devices for the node, or with counters.
    pub(super) slices: Vec<Arc<Slice>>,
    /// Of the same pool, for other nodes, with devices that may consume the same counters.
    pub(super) others: Vec<Arc<Slice>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Usable,
    /// Some of its slices are not there yet.
    Incomplete,
    Invalid,
}

impl Seen {
    /// Whether a device's name is there twice, or counters that are consumed are not there, or twice.
    fn contradicts(&self) -> bool {
        let mut names = BTreeSet::new();
        let mut sets = BTreeSet::new();
        let unique = self.slices.iter().all(|slice| {
            !slice.invalid
                && slice.devices.iter().all(|device| names.insert(&device.object.name))
                && slice.counters.keys().all(|set| sets.insert(set))
        });
        let has = |set: &String, counter: &String| {
            let mut of_set = self.slices.iter().filter_map(|slice| slice.counters.get(set));
            of_set.any(|counters| counters.contains_key(counter))
        };
        let consumed = self.slices.iter().chain(&self.others).flat_map(|slice| &slice.devices);
        let known = consumed
            .flat_map(|device| &device.consumes)
            .all(|(set, counters)| sets.contains(set) && counters.keys().all(|counter| has(set, counter)));
        !unique || !known
    }

    pub(super) fn has_binding_conditions(&self) -> bool {
        let devices = || self.slices.iter().flat_map(|slice| &slice.devices);
        self.state == State::Usable && devices().any(|device| device.object.binding_conditions.is_some())
    }
}
