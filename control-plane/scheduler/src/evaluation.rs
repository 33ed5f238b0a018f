//! Evaluations: what every node is for one shape of pod, kept and brought up to date by what changed.
//!
//! The first pod of a workload costs a pass of filters and scores over all nodes; the next costs the nodes that
//! changed since, and one pass of additions to choose. Kept for a bounded number of shapes, least recently used
//! ones go first; losing one costs time only.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    filters::{self, fits},
    pod::{Shape, SpreadKey},
    scores::{Own, SpreadWeights, Weights, own},
    snapshot::{Slot, Snapshot, Zone},
};

/// 256 evaluations of 5,000 nodes are 41 MB at most; workloads that wait at the same time are few.
const KEPT: usize = 256;

#[derive(Default)]
pub(crate) struct Evaluations {
    by_shape: HashMap<Arc<Shape>, Evaluation>,
    /// Counts uses, to find the least recent.
    uses: u64,
    scratch: Scratch,
}

struct Evaluation {
    /// The snapshot's version that `nodes` stand for.
    version: u64,
    last_use: u64,
    /// By slot; `None` where the pod cannot run.
    nodes: Vec<Option<Own>>,
    /// Why no node can run the pod, and the version it was said of.
    diagnosis: Option<(u64, String)>,
}

impl Evaluations {
    /// The best node for the pod, one of the best by `tie`; `None` where none can run it.
    pub(crate) fn choose(&mut self, shape: &Arc<Shape>, snapshot: &Snapshot, tie: &mut Tie) -> Option<Slot> {
        self.uses += 1;
        let uses = self.uses;
        if !self.by_shape.contains_key(shape) {
            self.make_room();
            let fresh = Evaluation { version: u64::MAX, last_use: uses, nodes: Vec::new(), diagnosis: None };
            self.by_shape.insert(shape.clone(), fresh);
        }
        let evaluation = self.by_shape.get_mut(shape).expect("inserted above");
        evaluation.last_use = uses;
        evaluation.update(shape, snapshot);
        best(shape, snapshot, &evaluation.nodes, &mut self.scratch, tie)
    }

    /// Why no node can run the pod; worked out once for all pods of the shape.
    pub(crate) fn diagnosis(&mut self, shape: &Arc<Shape>, snapshot: &Snapshot) -> String {
        let kept = self.by_shape.get_mut(shape).map(|evaluation| &mut evaluation.diagnosis);
        if let Some(Some((version, text))) = &kept
            && *version == snapshot.version()
        {
            return text.clone();
        }
        let text = filters::diagnosis(shape, snapshot);
        if let Some(kept) = kept {
            *kept = Some((snapshot.version(), text.clone()));
        }
        text
    }

    fn make_room(&mut self) {
        if self.by_shape.len() < KEPT {
            return;
        }
        let oldest = self.by_shape.iter().min_by_key(|(_, evaluation)| evaluation.last_use);
        if let Some(shape) = oldest.map(|(shape, _)| shape.clone()) {
            self.by_shape.remove(&shape);
        }
    }
}

impl Evaluation {
    fn update(&mut self, shape: &Shape, snapshot: &Snapshot) {
        let evaluate = |slot: Slot| fits(shape, snapshot, slot).then(|| own(shape, snapshot, slot));
        let changes =
            if self.version > snapshot.version() { None } else { snapshot.changes_since(self.version) };
        match changes {
            Some(changes) => {
                self.nodes.resize(snapshot.nodes.len(), None);
                for slot in changes.collect::<HashSet<_>>() {
                    self.nodes[slot] = evaluate(slot);
                }
            }
            None => self.nodes = (0..snapshot.nodes.len()).map(evaluate).collect(),
        }
        self.version = snapshot.version();
    }
}

/// Chooses among equals by a small generator, so that a run can be repeated.
pub(crate) struct Tie(u64);

impl Tie {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// True once in `among` times.
    fn one_in(&mut self, among: u64) -> bool {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.is_multiple_of(among)
    }
}

fn best(
    shape: &Shape,
    snapshot: &Snapshot,
    nodes: &[Option<Own>],
    scratch: &mut Scratch,
    tie: &mut Tie,
) -> Option<Slot> {
    let spread = shape.spread.as_ref();
    if let Some(key) = spread {
        scratch.fill(key, snapshot, nodes);
    }
    let crowding = |slot: Slot| spread.map(|_| scratch.crowding[slot]);
    let weights = Weights::over(candidates(nodes).map(|(slot, own)| (own, crowding(slot))));
    let (mut best, mut most, mut equals) = (None, i64::MIN, 0);
    for (slot, own) in candidates(nodes) {
        let total = weights.total(own, crowding(slot));
        if total > most {
            (best, most, equals) = (Some(slot), total, 1);
        } else if total == most {
            equals += 1;
            if tie.one_in(equals) {
                best = Some(slot);
            }
        }
    }
    best
}

fn candidates(nodes: &[Option<Own>]) -> impl Iterator<Item = (Slot, Own)> {
    nodes.iter().enumerate().filter_map(|(slot, own)| Some((slot, (*own)?)))
}

/// Room that every choice uses again.
#[derive(Default)]
struct Scratch {
    /// How crowded each candidate is with pods of the same workload; of other nodes it says nothing.
    crowding: Vec<i64>,
    /// By zone: whether a candidate is there, and how crowded a host without pods of the workload is.
    zones: Vec<(bool, i64)>,
}

impl Scratch {
    /// Works out the crowding of all candidates: by zone first, then for the hosts that have pods of the workload.
    fn fill(&mut self, key: &SpreadKey, snapshot: &Snapshot, nodes: &[Option<Own>]) {
        self.zones.clear();
        self.zones.resize(snapshot.zone_count() + 1, (false, 0));
        let mut hosts = 0;
        for (slot, _) in candidates(nodes) {
            hosts += 1;
            self.zones[snapshot.places[slot].zone].0 = true;
        }
        // Zone 0 is none.
        let zones = self.zones[1..].iter().filter(|(present, _)| *present).count();
        let weights = SpreadWeights::new(hosts, zones);
        let counts = snapshot.spread_counts(key);
        let in_zone = |zone: Zone| {
            let count = || counts.and_then(|counts| counts.by_zone.get(&zone)).copied().unwrap_or_default();
            (zone != 0).then(count)
        };
        for (zone, (present, empty_host)) in self.zones.iter_mut().enumerate() {
            if *present {
                *empty_host = weights.crowding(Some(0), in_zone(zone));
            }
        }
        self.crowding.resize(self.crowding.len().max(nodes.len()), 0);
        for (slot, _) in candidates(nodes) {
            let place = snapshot.places[slot];
            self.crowding[slot] = if place.has_hostname {
                self.zones[place.zone].1
            } else {
                weights.crowding(None, in_zone(place.zone))
            };
        }
        for (slot, count) in counts.iter().flat_map(|counts| &counts.by_slot) {
            let place = snapshot.places[*slot];
            if place.has_hostname && nodes[*slot].is_some() {
                self.crowding[*slot] = weights.crowding(Some(*count), in_zone(place.zone));
            }
        }
    }
}
