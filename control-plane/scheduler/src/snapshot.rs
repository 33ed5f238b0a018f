//! The cluster as columns, kept up to date from events, never rebuilt.
//!
//! Nodes have slots; numbers that every evaluation reads stand in arrays by slot, the rest beside them. Pods
//! that are bound or assumed are counted on their node; a node that is not known yet has a slot without being a
//! candidate. Every change of a slot is logged, so that an evaluation made earlier is brought up to date by
//! what changed. The log is bounded: an evaluation older than it starts anew.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::{
    pod::{HostPort, Labels, Shape, SpreadKey},
    resources::{self, Amounts, CPU, EPHEMERAL_STORAGE, MEMORY, PODS},
};

/// A node's place in the columns.
pub(crate) type Slot = usize;

/// A zone as a small number; 0 is none.
pub(crate) type Zone = usize;

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Changes remembered for evaluations made before them; older ones cost a whole evaluation, nothing else.
const CHANGES_KEPT: usize = 16_384;

/// The numbers of one node that every evaluation reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) cpu_milli: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) ephemeral_bytes: i64,
    pub(crate) pods: i64,
}

#[derive(Default)]
pub(crate) struct Snapshot {
    slots: HashMap<String, Slot>,
    free: Vec<Slot>,
    pub(crate) nodes: Vec<NodeEntry>,
    pub(crate) allocatable: Vec<Numbers>,
    pub(crate) requested: Vec<Numbers>,
    /// Requested cpu and memory with upstream's small amounts for what was not asked for.
    pub(crate) scored: Vec<(i64, i64)>,
    pub(crate) places: Vec<Place>,
    zones: HashMap<String, Zone>,
    pods: HashMap<Arc<str>, Placed>,
    spread: HashMap<SpreadKey, SpreadCounts>,
    changes: VecDeque<Slot>,
    /// The number of changes ever made; the log holds the last of them.
    changed: u64,
    known: usize,
}

/// The topology domains of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) zone: Zone,
    /// A node without the label is no host to spread over.
    pub(crate) has_hostname: bool,
}

/// What of a node is not a number.
#[derive(Debug, Default)]
pub(crate) struct NodeEntry {
    pub(crate) name: String,
    /// False for a node that only pods have named so far, and for a free slot.
    pub(crate) exists: bool,
    pub(crate) unschedulable: bool,
    pub(crate) taints: Vec<Taint>,
    pub(crate) labels: Labels,
    /// Resources beside the four in [`Numbers`].
    pub(crate) extended: Amounts,
    pub(crate) extended_requested: Amounts,
    pub(crate) ports: Vec<HostPort>,
    pod_count: usize,
}

/// A pod counted on a node.
#[derive(Debug)]
struct Placed {
    slot: Slot,
    shape: Arc<Shape>,
}

/// How many pods of one workload are where.
#[derive(Debug, Default)]
pub(crate) struct SpreadCounts {
    pub(crate) by_slot: HashMap<Slot, i64>,
    pub(crate) by_zone: HashMap<Zone, i64>,
}

impl Snapshot {
    /// Nodes that exist.
    pub(crate) fn node_count(&self) -> usize {
        self.known
    }

    pub(crate) fn slot(&self, name: &str) -> Option<Slot> {
        self.slots.get(name).copied()
    }

    /// The node that the pod is counted on.
    pub(crate) fn node_of(&self, uid: &str) -> Option<&str> {
        self.pods.get(uid).map(|placed| self.nodes[placed.slot].name.as_str())
    }

    pub(crate) fn spread_counts(&self, key: &SpreadKey) -> Option<&SpreadCounts> {
        self.spread.get(key)
    }

    /// Zones ever seen; they are numbered from 1.
    pub(crate) fn zone_count(&self) -> usize {
        self.zones.len()
    }

    /// How many changes were made so far.
    pub(crate) fn version(&self) -> u64 {
        self.changed
    }

    /// The slots changed since `version`, some more than once; `None` where the log does not reach back.
    pub(crate) fn changes_since(&self, version: u64) -> Option<impl Iterator<Item = Slot>> {
        let missed = usize::try_from(self.changed - version).ok()?;
        let start = self.changes.len().checked_sub(missed)?;
        Some(self.changes.iter().skip(start).copied())
    }

    /// Adds the node, or replaces what was known of it. Pods counted on it stay counted.
    pub(crate) fn put_node(&mut self, node: &Node) -> Slot {
        let slot = self.slot_for(node.metadata.name.as_deref().unwrap_or_default());
        let spec = node.spec.as_ref();
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let zone = self.zone(labels.get(ZONE));
        let mut amounts =
            resources::amounts(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
        let mut take = |name: &str| amounts.remove(name).unwrap_or_default();
        self.allocatable[slot] = Numbers {
            cpu_milli: take(CPU),
            memory_bytes: take(MEMORY),
            ephemeral_bytes: take(EPHEMERAL_STORAGE),
            pods: take(PODS),
        };
        let place = Place { zone, has_hostname: labels.contains_key(HOSTNAME) };
        let before = std::mem::replace(&mut self.places[slot], place);
        let entry = &mut self.nodes[slot];
        self.known += usize::from(!entry.exists);
        entry.exists = true;
        entry.unschedulable = spec.and_then(|spec| spec.unschedulable).unwrap_or_default();
        entry.taints = spec.and_then(|spec| spec.taints.clone()).unwrap_or_default();
        entry.labels = labels;
        entry.extended = amounts;
        self.move_zone(slot, before.zone, zone);
        self.log(slot);
        slot
    }

    /// The node is gone; pods still on it are counted until they go too.
    pub(crate) fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.slot(name) else {
            return;
        };
        let entry = &mut self.nodes[slot];
        self.known -= usize::from(entry.exists);
        entry.exists = false;
        let place = std::mem::take(&mut self.places[slot]);
        self.move_zone(slot, place.zone, 0);
        self.log(slot);
        self.release(slot);
    }

    /// Counts the pod on the node. A pod counted elsewhere, or with other needs, is counted anew.
    pub(crate) fn put_pod(&mut self, uid: &Arc<str>, shape: &Arc<Shape>, node: &str) -> Slot {
        let slot = self.slot_for(node);
        if let Some(placed) = self.pods.get(uid) {
            if placed.slot == slot && placed.shape == *shape {
                return slot;
            }
            self.remove_pod(uid);
            // The slot may have been released with its last pod.
            return self.put_pod(uid, shape, node);
        }
        self.count(slot, shape, 1);
        self.nodes[slot].ports.extend(shape.ports.iter().cloned());
        self.nodes[slot].pod_count += 1;
        self.pods.insert(uid.clone(), Placed { slot, shape: shape.clone() });
        self.log(slot);
        slot
    }

    /// Takes the pod off its node. Returns the node's slot where it is still a candidate.
    pub(crate) fn remove_pod(&mut self, uid: &str) -> Option<Slot> {
        let Placed { slot, shape } = self.pods.remove(uid)?;
        self.count(slot, &shape, -1);
        let entry = &mut self.nodes[slot];
        for port in &shape.ports {
            if let Some(index) = entry.ports.iter().position(|taken| taken == port) {
                entry.ports.swap_remove(index);
            }
        }
        entry.pod_count -= 1;
        let exists = entry.exists;
        self.log(slot);
        self.release(slot);
        exists.then_some(slot)
    }

    fn count(&mut self, slot: Slot, shape: &Shape, sign: i64) {
        let requested = &mut self.requested[slot];
        requested.pods += sign;
        // Saturating, because users choose the amounts. One pod's are bounded so that no number of pods a node can hold gets
        // there: what is taken off again later is then exact.
        for (name, amount) in &shape.requests {
            let sum = match name.as_str() {
                CPU => &mut requested.cpu_milli,
                MEMORY => &mut requested.memory_bytes,
                EPHEMERAL_STORAGE => &mut requested.ephemeral_bytes,
                _ => self.nodes[slot].extended_requested.entry(name.clone()).or_default(),
            };
            *sum = sum.saturating_add(amount.saturating_mul(sign));
        }
        self.nodes[slot].extended_requested.retain(|_, amount| *amount != 0);
        let scored = &mut self.scored[slot];
        scored.0 = scored.0.saturating_add(shape.scored.0.saturating_mul(sign));
        scored.1 = scored.1.saturating_add(shape.scored.1.saturating_mul(sign));
        if let Some(key) = &shape.spread {
            let counts = self.spread.entry(key.clone()).or_default();
            bump(&mut counts.by_slot, slot, sign);
            bump(&mut counts.by_zone, self.places[slot].zone, sign);
            if counts.by_slot.is_empty() {
                self.spread.remove(key);
            }
        }
    }

    fn slot_for(&mut self, name: &str) -> Slot {
        if let Some(slot) = self.slot(name) {
            return slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(NodeEntry::default());
            self.allocatable.push(Numbers::default());
            self.requested.push(Numbers::default());
            self.scored.push((0, 0));
            self.places.push(Place::default());
            self.nodes.len() - 1
        });
        self.nodes[slot].name = name.to_owned();
        self.slots.insert(name.to_owned(), slot);
        slot
    }

    /// Frees a slot that neither a node nor a pod stands for.
    fn release(&mut self, slot: Slot) {
        if self.nodes[slot].exists || self.nodes[slot].pod_count > 0 {
            return;
        }
        let entry = std::mem::take(&mut self.nodes[slot]);
        self.slots.remove(&entry.name);
        self.allocatable[slot] = Numbers::default();
        self.free.push(slot);
    }

    fn zone(&mut self, name: Option<&String>) -> Zone {
        let Some(name) = name else {
            return 0;
        };
        let next = self.zones.len() + 1;
        *self.zones.entry(name.clone()).or_insert(next)
    }

    fn move_zone(&mut self, slot: Slot, from: Zone, to: Zone) {
        if from == to {
            return;
        }
        for counts in self.spread.values_mut() {
            let Some(count) = counts.by_slot.get(&slot).copied() else {
                continue;
            };
            bump(&mut counts.by_zone, from, -count);
            bump(&mut counts.by_zone, to, count);
        }
    }

    fn log(&mut self, slot: Slot) {
        if self.changes.len() == CHANGES_KEPT {
            self.changes.pop_front();
        }
        self.changes.push_back(slot);
        self.changed += 1;
    }
}

fn bump<K: std::hash::Hash + Eq + Copy>(counts: &mut HashMap<K, i64>, key: K, by: i64) {
    let count = counts.entry(key).or_default();
    *count += by;
    if *count == 0 {
        counts.remove(&key);
    }
}
