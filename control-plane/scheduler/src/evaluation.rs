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
    pod::Shape,
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
    scratch: Vec<i64>,
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
    scratch: &mut Vec<i64>,
    tie: &mut Tie,
) -> Option<Slot> {
    let crowding = Crowding::new(shape, snapshot, nodes, scratch);
    let candidates = || nodes.iter().enumerate().filter_map(|(slot, own)| Some((slot, (*own)?)));
    let weights = Weights::over(candidates().map(|(slot, own)| (own, crowding.of(slot))));
    let (mut best, mut most, mut equals) = (None, i64::MIN, 0);
    for (slot, own) in candidates() {
        let total = weights.total(own, crowding.of(slot));
        if total > most {
            (best, most, equals) = (Some(slot), total, 1);
        } else if total == most {
            equals += 1;
            if tie.one_in(equals) {
                best = Some(slot);
            }
        }
    }
    crowding.clear();
    best
}

/// How crowded each node is with pods of the same workload.
enum Crowding<'a> {
    Unspread,
    Spread {
        snapshot: &'a Snapshot,
        weights: SpreadWeights,
        /// Pods of the workload by slot; zero everywhere else, and again when this is cleared.
        on_host: &'a mut Vec<i64>,
        touched: Vec<Slot>,
        in_zone: HashMap<Zone, i64>,
    },
}

impl<'a> Crowding<'a> {
    fn new(shape: &Shape, snapshot: &'a Snapshot, nodes: &[Option<Own>], scratch: &'a mut Vec<i64>) -> Self {
        let Some(key) = &shape.spread else {
            return Self::Unspread;
        };
        scratch.resize(scratch.len().max(snapshot.nodes.len()), 0);
        let mut touched = Vec::new();
        let mut in_zone = HashMap::new();
        if let Some(counts) = snapshot.spread_counts(key) {
            for (slot, count) in &counts.by_slot {
                scratch[*slot] = *count;
                touched.push(*slot);
            }
            in_zone.clone_from(&counts.by_zone);
        }
        let (mut hosts, mut zones) = (0, HashSet::new());
        for (slot, _) in nodes.iter().enumerate().filter(|(_, own)| own.is_some()) {
            hosts += 1;
            let zone = snapshot.nodes[slot].zone;
            if zone != 0 {
                zones.insert(zone);
            }
        }
        let weights = SpreadWeights::new(hosts, zones.len());
        Self::Spread { snapshot, weights, on_host: scratch, touched, in_zone }
    }

    fn of(&self, slot: Slot) -> Option<i64> {
        match self {
            Self::Unspread => None,
            Self::Spread { snapshot, weights, on_host, in_zone, .. } => {
                let node = &snapshot.nodes[slot];
                let host = node.has_hostname.then(|| on_host[slot]);
                let zone = (node.zone != 0).then(|| in_zone.get(&node.zone).copied().unwrap_or_default());
                Some(weights.crowding(host, zone))
            }
        }
    }

    fn clear(self) {
        if let Self::Spread { on_host, touched, .. } = self {
            for slot in touched {
                on_host[slot] = 0;
            }
        }
    }
}
