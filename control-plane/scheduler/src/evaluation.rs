//! Evaluations: what every node is for pods with the same needs and priority, kept and brought up to date by what changed.
//!
//! The first pod of a workload costs a pass of filters and scores over all nodes; the next costs the nodes that
//! changed since. Of an extended resource that few nodes have, only those are looked at; why the others are refused is
//! found out when somebody asks. Kept for a bounded number of nodes in all, least recently used ones go first; losing one
//! costs time only.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    filters,
    intern::Same,
    pod::Needs,
    random::Random,
    ranking::Ranking,
    refusal::Refusal,
    scores::{Own, own},
    snapshot::{NodeEntry, Slot, Snapshot},
};

/// Evaluated nodes in all evaluations: 256 evaluations of 5,000 nodes, 28 MB.
const MOST_NODES: usize = 1_280_000;

/// More different refusals than one cluster has at a time; an evaluation that met more starts anew.
const MOST_REFUSALS: usize = 4096;

/// A verdict on a node: it can run the pod, it does not exist, it lacks a resource and was not looked at, or the number of
/// a refusal.
type Verdict = u16;
const FITS: Verdict = 0;
const ABSENT: Verdict = 1;
const UNSEEN: Verdict = 2;
const REFUSALS: usize = 3;

#[derive(Default)]
pub(crate) struct Evaluations {
    by_needs: HashMap<(Same<Needs>, i32), Evaluation>,
    /// Counts uses, to find the least recent.
    uses: u64,
}

#[derive(Default)]
pub(crate) struct Evaluation {
    /// The snapshot's version that the rest stands for; `None` before the first.
    version: Option<u64>,
    last_use: u64,
    verdicts: Vec<Verdict>,
    own: Vec<Own>,
    /// Nodes that fit, by what their resources score.
    by_resources: Ranking,
    /// Nodes that fit and have scores that are measured against those of other nodes.
    relative: usize,
    /// ImageLocality by slot; empty where no node has an image of the pod.
    images: Vec<i32>,
    /// Versions of the images and number of nodes that they stand for.
    images_of: Option<(u64, usize)>,
    refusals: Vec<Refusal>,
    numbers: HashMap<Refusal, Verdict>,
    /// The refusal that was numbered last: most nodes say what the one before them said.
    last: Option<Verdict>,
    /// There may be nodes that were not looked at.
    has_unseen: bool,
}

impl Evaluations {
    /// What every node is for the needs now, beside pods of the priority or a higher one that it is kept for.
    pub(crate) fn of(&mut self, needs: &Arc<Needs>, priority: i32, snapshot: &Snapshot) -> &Evaluation {
        self.updated(needs, priority, snapshot)
    }

    /// The same, with why nodes are refused.
    pub(crate) fn explained(
        &mut self,
        needs: &Arc<Needs>,
        priority: i32,
        snapshot: &Snapshot,
    ) -> &Evaluation {
        let evaluation = self.updated(needs, priority, snapshot);
        evaluation.look_at_unseen(needs, priority, snapshot);
        evaluation
    }

    fn updated(&mut self, needs: &Arc<Needs>, priority: i32, snapshot: &Snapshot) -> &mut Evaluation {
        self.uses += 1;
        let key = (Same(needs.clone()), priority);
        if !self.by_needs.contains_key(&key) {
            self.make_room(snapshot.nodes.len());
        }
        let evaluation = self.by_needs.entry(key).or_default();
        evaluation.last_use = self.uses;
        evaluation.update(needs, priority, snapshot);
        evaluation
    }

    fn make_room(&mut self, nodes: usize) {
        while !self.by_needs.is_empty() && (self.by_needs.len() + 1) * nodes > MOST_NODES {
            let oldest = self.by_needs.iter().min_by_key(|(_, evaluation)| evaluation.last_use);
            if let Some(needs) = oldest.map(|(needs, _)| needs.clone()) {
                self.by_needs.remove(&needs);
            }
        }
    }
}

impl Evaluation {
    /// Nodes that can run the pod, in the order of their slots.
    pub(crate) fn fitting(&self) -> impl Iterator<Item = Slot> {
        self.verdicts.iter().enumerate().filter(|(_, verdict)| **verdict == FITS).map(|(slot, _)| slot)
    }

    pub(crate) fn fits(&self, slot: Slot) -> bool {
        self.verdicts[slot] == FITS
    }

    pub(crate) fn own(&self, slot: Slot) -> Own {
        self.own[slot]
    }

    /// One of the nodes that fit, are accepted, and score best by their resources.
    pub(crate) fn best_by_resources(&self, tie: &mut Random, accepts: impl Fn(Slot) -> bool) -> Option<Slot> {
        self.by_resources.best(tie, accepts)
    }

    /// Whether the nodes' own scores differ in their resources alone.
    pub(crate) fn only_resources_differ(&self) -> bool {
        self.relative == 0
    }

    /// What images are worth, where they make a difference.
    pub(crate) fn images(&self, slot: Slot) -> i64 {
        self.images.get(slot).map_or(0, |score| i64::from(*score))
    }

    pub(crate) fn has_images(&self) -> bool {
        !self.images.is_empty()
    }

    /// Nodes that exist and are refused, with what says no. Of an explained evaluation.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (Slot, &Refusal)> {
        self.verdicts.iter().enumerate().filter_map(|(slot, verdict)| Some((slot, self.refusal(*verdict)?)))
    }

    /// How many nodes each refusal is said of. Of an explained evaluation.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (&Refusal, usize)> {
        let mut counts = vec![0; self.refusals.len() + REFUSALS];
        self.verdicts.iter().for_each(|verdict| counts[usize::from(*verdict)] += 1);
        self.refusals.iter().zip(counts.into_iter().skip(REFUSALS))
    }

    fn refusal(&self, verdict: Verdict) -> Option<&Refusal> {
        self.refusals.get(usize::from(verdict).checked_sub(REFUSALS)?)
    }

    fn update(&mut self, needs: &Needs, priority: i32, snapshot: &Snapshot) {
        if self.refusals.len() > MOST_REFUSALS {
            *self = Self { last_use: self.last_use, ..Self::default() };
        }
        let changes = self.version.and_then(|version| snapshot.changes_since(version));
        self.verdicts.resize(snapshot.nodes.len(), ABSENT);
        self.own.resize(snapshot.nodes.len(), Own::default());
        match changes {
            // The usual case after a pod of the same workload.
            Some(changes) if changes.size_hint().1.is_some_and(|most| most <= 1) => {
                changes.for_each(|slot| self.evaluate(needs, priority, snapshot, slot));
            }
            Some(changes) => {
                let slots: HashSet<Slot> = changes.collect();
                slots.into_iter().for_each(|slot| self.evaluate(needs, priority, snapshot, slot));
            }
            None => self.evaluate_all(needs, priority, snapshot),
        }
        self.version = Some(snapshot.version());
        self.update_images(needs, snapshot);
    }

    fn evaluate_all(&mut self, needs: &Needs, priority: i32, snapshot: &Snapshot) {
        let Some(having) = filters::having_rarest(needs, snapshot) else {
            (0..snapshot.nodes.len()).for_each(|slot| self.evaluate(needs, priority, snapshot, slot));
            return;
        };
        // They cannot fit: what is kept of those that did is about what was.
        self.by_resources = Ranking::default();
        self.relative = 0;
        self.verdicts.fill(UNSEEN);
        self.has_unseen = true;
        having.for_each(|slot| self.evaluate(needs, priority, snapshot, slot));
    }

    fn look_at_unseen(&mut self, needs: &Needs, priority: i32, snapshot: &Snapshot) {
        if !std::mem::take(&mut self.has_unseen) {
            return;
        }
        for slot in 0..self.verdicts.len() {
            if self.verdicts[slot] == UNSEEN {
                self.evaluate(needs, priority, snapshot, slot);
            }
        }
    }

    fn update_images(&mut self, needs: &Needs, snapshot: &Snapshot) {
        let nodes = snapshot.node_count();
        let now = snapshot.images.version(&needs.images).map(|version| (version, nodes));
        if now == self.images_of && (now.is_none() || self.images.len() == snapshot.nodes.len()) {
            return;
        }
        self.images_of = now;
        self.images.clear();
        if now.is_some() {
            let score =
                |slot| i32::try_from(snapshot.images.score(&needs.images, slot, nodes)).unwrap_or_default();
            self.images.extend((0..snapshot.nodes.len()).map(score));
        }
    }

    fn evaluate(&mut self, needs: &Needs, priority: i32, snapshot: &Snapshot, slot: Slot) {
        let node = &snapshot.nodes[slot];
        if self.fits(slot) {
            let own = self.own[slot];
            self.by_resources.remove(slot, own.resources);
            self.relative -= usize::from(own.is_relative());
        }
        if !node.exists {
            self.verdicts[slot] = ABSENT;
            return;
        }
        let refusal = refusal(needs, priority, snapshot, node);
        match refusal {
            None => {
                let own = own(needs, node);
                self.verdicts[slot] = FITS;
                self.own[slot] = own;
                self.by_resources.add(slot, own.resources);
                self.relative += usize::from(own.is_relative());
            }
            Some(refusal) => self.verdicts[slot] = self.number(refusal),
        }
    }

    fn number(&mut self, refusal: Refusal) -> Verdict {
        if let Some(last) = self.last
            && self.refusal(last) == Some(&refusal)
        {
            return last;
        }
        let number = self.numbers.get(&refusal).copied().unwrap_or_else(|| self.number_anew(refusal));
        self.last = Some(number);
        number
    }

    /// Past the last number all are one: the next update starts anew.
    fn number_anew(&mut self, refusal: Refusal) -> Verdict {
        let number = Verdict::try_from(self.refusals.len() + REFUSALS).unwrap_or(Verdict::MAX);
        if number < Verdict::MAX {
            self.refusals.push(refusal.clone());
            self.numbers.insert(refusal, number);
        }
        number
    }
}

/// What says no, if the pods that the node is kept for were there.
pub(crate) fn refusal(
    needs: &Needs,
    priority: i32,
    snapshot: &Snapshot,
    node: &NodeEntry,
) -> Option<Refusal> {
    let mut others = snapshot.nominations.from(priority, &node.name).peekable();
    if others.peek().is_none() {
        return filters::refusal(needs, node);
    }
    let mut taken = node.taken.clone();
    others.for_each(|other| taken.add(&other.needs));
    filters::refusal_with(needs, node, &taken)
}
