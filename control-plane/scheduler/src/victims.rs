//! Which pods would have to go from each node, kept until something of the node changes.
//!
//! Pods of one workload that preempt one after the other ask the same of thousands of nodes, of which few change meanwhile.
//! For pods with the same needs and priority, and only where nothing but the node itself decides: its pods, those
//! that it is kept for, and budgets. Bounded in nodes; what was used least recently goes first, which costs time only.

use std::{collections::HashMap, sync::Arc};

use crate::{
    budgets::Budgets,
    intern::Same,
    pod::{Needs, PodInfo},
    refusal::Refusal,
    snapshot::{Slot, Snapshot},
};

/// Nodes that something is kept of, in all: 64 workloads on 5,000 nodes, 13 MB.
const MOST_NODES: usize = 320_000;

/// Pods to delete, and the node that becomes free by it.
#[derive(Clone, Debug)]
pub(crate) struct Victims {
    pub(crate) slot: Slot,
    /// The most important first; never empty.
    pub(crate) pods: Arc<[Arc<PodInfo>]>,
    /// Budgets that break.
    pub(crate) violations: usize,
}

/// Who has to go, or why nobody could.
pub(crate) type Outcome = Result<Victims, Refusal>;

#[derive(Default)]
pub(crate) struct KnownVictims {
    by_needs: HashMap<(Same<Needs>, i32), OfNodes>,
    /// Counts uses, to find the least recent.
    uses: u64,
}

#[derive(Default)]
pub(crate) struct OfNodes {
    /// The versions of the snapshot and of the budgets that the rest stands for; `None` before the first.
    versions: Option<(u64, u64)>,
    last_use: u64,
    by_slot: Vec<Option<Outcome>>,
}

impl KnownVictims {
    /// What is known for such pods and still holds.
    pub(crate) fn of(&mut self, pod: &PodInfo, snapshot: &Snapshot, budgets: &Budgets) -> &mut OfNodes {
        self.uses += 1;
        let key = (Same(pod.needs.clone()), pod.priority);
        if !self.by_needs.contains_key(&key) {
            self.make_room(snapshot.nodes.len());
        }
        let known = self.by_needs.entry(key).or_default();
        known.last_use = self.uses;
        known.update(snapshot, budgets);
        known
    }

    fn make_room(&mut self, nodes: usize) {
        while !self.by_needs.is_empty() && (self.by_needs.len() + 1) * nodes > MOST_NODES {
            let oldest = self.by_needs.iter().min_by_key(|(_, known)| known.last_use);
            if let Some(needs) = oldest.map(|(needs, _)| needs.clone()) {
                self.by_needs.remove(&needs);
            }
        }
    }
}

impl OfNodes {
    pub(crate) fn at(&mut self, slot: Slot, work_out: impl FnOnce() -> Outcome) -> &Outcome {
        self.by_slot[slot].get_or_insert_with(work_out)
    }

    fn update(&mut self, snapshot: &Snapshot, budgets: &Budgets) {
        let now = (snapshot.version(), budgets.version());
        let since = self.versions.filter(|(_, budgets)| *budgets == now.1);
        match since.and_then(|(version, _)| snapshot.changes_since(version)) {
            Some(changes) => {
                self.by_slot.resize(snapshot.nodes.len(), None);
                changes.for_each(|slot| self.by_slot[slot] = None);
            }
            None => self.by_slot = vec![None; snapshot.nodes.len()],
        }
        self.versions = Some(now);
    }
}
