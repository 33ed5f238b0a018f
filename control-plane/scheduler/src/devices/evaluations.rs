//! What was found out about nodes and devices, kept until something changes that it depends on.
//!
//! Pods of one workload claim the same: the first one costs a search on every node, the next ones the nodes whose
//! pools changed since. Which devices a selector chooses is kept for as long as the device's slice is the same.

use std::{collections::HashMap, sync::Arc};

use hawser_cel::Programs;

use super::{pools::Seen, request::Wanted};
use crate::{
    intern::{Interner, Same},
    refusal::Refusal,
    snapshot::Slot,
};

/// Nodes in all that outcomes are kept for; more make room by forgetting the claims that were not asked about for longest.
const MOST_OUTCOMES: usize = 640_000;
/// Devices that it is kept of whether a selector chooses them; more make it start anew.
const MOST_MATCHES: usize = 4_000_000;

/// Claims that ask for the same, one after the other.
pub(super) type Shape = Arc<[Same<String>]>;

#[derive(Default)]
pub(super) struct Evaluations {
    pub(super) programs: Arc<Programs>,
    /// What claims ask for, as text.
    pub(super) texts: Interner<String>,
    /// Pools by the node that sees them, with the version that they were seen at.
    pub(super) seen: Vec<Option<(u64, Arc<Vec<Seen>>)>>,
    pub(super) matches: Matches,
    by_shape: HashMap<Shape, Kept>,
    uses: u64,
}

/// What is known of claims with one shape.
#[derive(Default)]
pub(super) struct Kept {
    /// With the version that it was read at.
    pub(super) wanted: Option<(u64, Arc<Wanted>)>,
    /// By slot, with the version that it was found at.
    pub(super) outcomes: Vec<Option<(u64, Outcome)>>,
    last_use: u64,
}

/// Whether a node can provide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With what its alternatives are worth: more is better.
    Fits(i64),
    Refused(Refusal),
}

impl Evaluations {
    pub(super) fn of(&mut self, shape: &Shape) -> &mut Kept {
        self.uses += 1;
        if !self.by_shape.contains_key(shape) {
            self.make_room();
        }
        let kept = self.by_shape.entry(shape.clone()).or_default();
        kept.last_use = self.uses;
        kept
    }

    /// How many are kept.
    #[cfg(test)]
    pub(super) fn outcomes(&self) -> usize {
        self.by_shape.values().map(|kept| kept.outcomes.iter().flatten().count()).sum()
    }

    fn make_room(&mut self) {
        let mut all: usize = self.by_shape.values().map(|kept| kept.outcomes.len() + 1).sum();
        while all > MOST_OUTCOMES {
            let oldest = self.by_shape.iter().min_by_key(|(_, kept)| kept.last_use);
            let Some(shape) = oldest.map(|(shape, _)| shape.clone()) else { return };
            all -= self.by_shape.remove(&shape).map_or(0, |kept| kept.outcomes.len() + 1);
        }
    }
}

impl Kept {
    pub(super) fn put(&mut self, slot: Slot, version: u64, outcome: Outcome) {
        if self.outcomes.len() <= slot {
            self.outcomes.resize(slot + 1, None);
        }
        self.outcomes[slot] = Some((version, outcome));
    }
}

/// Which devices of a slice a program chooses.
#[derive(Default)]
pub(super) struct Matches {
    by_slice: HashMap<(u64, u64), Vec<Option<bool>>>,
    devices: usize,
}

impl Matches {
    pub(super) fn get(&self, slice: u64, program: u64, device: usize) -> Option<bool> {
        self.by_slice.get(&(slice, program)).and_then(|known| known[device])
    }

    /// `devices` is how many the slice has.
    pub(super) fn put(&mut self, slice: u64, program: u64, device: usize, devices: usize, matches: bool) {
        if self.devices > MOST_MATCHES {
            *self = Self::default();
        }
        let known = self.by_slice.entry((slice, program)).or_insert_with(|| {
            self.devices += devices;
            vec![None; devices]
        });
        known[device] = Some(matches);
    }
}
