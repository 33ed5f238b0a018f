//! The cluster, kept up to date from events, never rebuilt.
//!
//! Nodes have slots. Pods that are bound or assumed are counted on their node; a node that is not known yet has a slot
//! without being a candidate. Every change of a slot is logged, so that an evaluation made earlier is brought
//! up to date by what changed. The log is bounded: an evaluation older than it starts anew.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use hawser_api::resource::ObjectKey;
use k8s_openapi::api::{
    core::v1::{Node, Taint},
    resource::v1::DeviceClass,
};

use crate::{
    devices::{Devices, Providers, Provision},
    images::Images,
    nomination::Nominations,
    pod::{HostPort, Labels, Needs, PodInfo},
    resources::{self, Requests},
    terms::Terms,
    topology::{CounterId, Topology},
    volumes::Volumes,
};

/// A node's place.
pub(crate) type Slot = usize;

/// How many changes were made so far of all that places depend on: nodes and their pods, volumes, devices, namespaces.
pub(crate) type Versions = [u64; 4];

/// Changes remembered for evaluations made before them; older ones cost a whole evaluation, nothing else.
const CHANGES_KEPT: usize = 16_384;

#[derive(Default)]
pub(crate) struct Snapshot {
    slots: HashMap<String, Slot>,
    free: Vec<Slot>,
    pub(crate) nodes: Vec<NodeEntry>,
    pub(crate) topology: Topology,
    pub(crate) images: Images,
    pub(crate) volumes: Volumes,
    pub(crate) devices: Devices,
    pub(crate) nominations: Nominations,
    pods: HashMap<Arc<str>, Placed>,
    /// Nodes by the extended resources that they have themselves.
    having: HashMap<String, BTreeSet<Slot>>,
    /// Pods of each pod group that have a node and are to keep it, by node.
    groups: HashMap<ObjectKey, BTreeMap<Slot, usize>>,
    changes: VecDeque<Slot>,
    /// The number of changes ever made; the log holds the last of them.
    changed: u64,
    known: usize,
}

/// What is known of one node.
#[derive(Debug, Default)]
pub(crate) struct NodeEntry {
    pub(crate) name: String,
    /// False for a node that only pods have named so far, and for a free slot.
    pub(crate) exists: bool,
    pub(crate) unschedulable: bool,
    pub(crate) taints: Vec<Taint>,
    pub(crate) labels: Labels,
    pub(crate) allocatable: Requests,
    /// Features that its kubelet has, as far as these are declared.
    pub(crate) features: Vec<String>,
    /// What device classes provide of extended resources, in all of the cluster.
    pub(crate) providers: Arc<Providers>,
    pub(crate) taken: Occupancy,
    pub(crate) pods: Vec<Arc<PodInfo>>,
    images: Vec<Arc<str>>,
}

/// What pods take of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Occupancy {
    pub(crate) requested: Requests,
    /// With upstream's small amounts for what was not asked for.
    pub(crate) scored: Requests,
    pub(crate) ports: Vec<HostPort>,
}

impl NodeEntry {
    /// Where the pod is among the node's. Looked for from the end: what is new changes most.
    fn place_of(&self, pod: &Arc<PodInfo>) -> Option<usize> {
        self.pods.iter().rposition(|other| Arc::ptr_eq(other, pod))
    }

    /// Extended resources that the node has itself.
    pub(crate) fn own_extended(&self) -> BTreeSet<String> {
        let own = self.allocatable.extended.iter().filter(|(_, amount)| **amount > 0);
        own.map(|(resource, _)| resource.clone()).collect()
    }

    /// Whether an extended resource comes from a device class here: the node does not have it itself.
    pub(crate) fn has_from_class(&self, resource: &str) -> bool {
        self.providers.contains_key(resource) && self.allocatable.get(resource) == 0
    }
}

impl Occupancy {
    pub(crate) fn add(&mut self, needs: &Needs) {
        self.requested.numbers.pods += 1;
        self.requested.count(&needs.requests, 1);
        self.scored.count(&needs.scored, 1);
        self.ports.extend(needs.ports.iter().cloned());
    }

    pub(crate) fn remove(&mut self, needs: &Needs) {
        self.requested.numbers.pods -= 1;
        self.requested.count(&needs.requests, -1);
        self.scored.count(&needs.scored, -1);
        for port in &needs.ports {
            if let Some(index) = self.ports.iter().position(|taken| taken == port) {
                self.ports.swap_remove(index);
            }
        }
    }
}

/// A pod counted on a node.
#[derive(Debug)]
struct Placed {
    slot: Slot,
    pod: Arc<PodInfo>,
}

impl Snapshot {
    /// Nodes that exist.
    pub(crate) fn node_count(&self) -> usize {
        self.known
    }

    /// Pods of the pod group that have a node, by node.
    pub(crate) fn placed_of_group(&self, key: &ObjectKey) -> impl Iterator<Item = (Slot, usize)> {
        self.groups.get(key).into_iter().flatten().map(|(slot, pods)| (*slot, *pods))
    }

    /// Pods that are counted on nodes.
    pub(crate) fn pod_count(&self) -> usize {
        self.pods.len()
    }

    /// Nodes that have some of an extended resource themselves, in the order of their slots.
    pub(crate) fn having<'a>(&'a self, resource: &str) -> impl ExactSizeIterator<Item = Slot> + use<'a> {
        static NONE: BTreeSet<Slot> = BTreeSet::new();
        self.having.get(resource).unwrap_or(&NONE).iter().copied()
    }

    pub(crate) fn slot(&self, name: &str) -> Option<Slot> {
        self.slots.get(name).copied()
    }

    /// The pod, where it is counted on a node, and the node's slot.
    pub(crate) fn placed(&self, uid: &str) -> Option<(Slot, &Arc<PodInfo>)> {
        self.pods.get(uid).map(|placed| (placed.slot, &placed.pod))
    }

    /// How many changes of nodes and their pods were made so far.
    pub(crate) fn version(&self) -> u64 {
        self.changed
    }

    /// What is said of pods holds while these are the same.
    pub(crate) fn versions(&self) -> Versions {
        [self.version(), self.volumes.version(), self.devices.version(), self.topology.version()]
    }

    /// The slots changed since `version`, some more than once; `None` where the log does not reach back.
    pub(crate) fn changes_since(&self, version: u64) -> Option<impl Iterator<Item = Slot>> {
        let missed = usize::try_from(self.changed.checked_sub(version)?).ok()?;
        let start = self.changes.len().checked_sub(missed)?;
        Some(self.changes.range(start..).copied())
    }

    /// The counters that the terms ask for; valid until they are asked for others.
    pub(crate) fn counters_of(&mut self, terms: &Arc<Terms>) -> Arc<[CounterId]> {
        self.topology.counters_of(terms, &self.nodes)
    }

    /// Adds the node, or replaces what was known of it. Pods counted on it stay counted.
    pub(crate) fn put_node(&mut self, node: &Node) -> Slot {
        let slot = self.slot_for(node.metadata.name.as_deref().unwrap_or_default());
        let spec = node.spec.as_ref();
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let taints = spec.and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let amounts = resources::amounts(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
        let features = node.status.as_ref().and_then(|status| status.declared_features.clone());
        let entry = &mut self.nodes[slot];
        entry.features = features.unwrap_or_default();
        entry.unschedulable = spec.and_then(|spec| spec.unschedulable).unwrap_or_default();
        let before = std::mem::replace(&mut entry.allocatable, Requests::from_amounts(amounts));
        note_extended(&mut self.having, slot, &before, &entry.allocatable);
        entry.providers = self.devices.providers().clone();
        entry.images = self.images.put(slot, &entry.images, Some(node));
        if !entry.exists || entry.labels != labels || entry.taints != taints {
            self.topology.node_leaves(slot, entry);
            self.known += usize::from(!entry.exists);
            entry.exists = true;
            entry.labels = labels;
            entry.taints = taints;
            self.topology.node_comes(slot, entry);
            self.devices.node_changed(slot);
        }
        self.log(slot);
        slot
    }

    /// Takes over a class, unless it is the same.
    pub(crate) fn put_device_class(&mut self, class: &DeviceClass) -> Option<Provision> {
        let provision = self.devices.put_class(class)?;
        self.providers_changed(&provision);
        Some(provision)
    }

    pub(crate) fn remove_device_class(&mut self, name: &str) -> Provision {
        let provision = self.devices.remove_class(name);
        self.providers_changed(&provision);
        provision
    }

    fn providers_changed(&mut self, provision: &Provision) {
        if provision.changed {
            let providers = self.devices.providers();
            self.nodes.iter_mut().for_each(|node| node.providers = providers.clone());
            (0..self.nodes.len()).for_each(|slot| self.log(slot));
        }
    }

    /// The node is gone; pods still on it are counted until they go too.
    pub(crate) fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.slot(name) else {
            return;
        };
        let entry = &mut self.nodes[slot];
        self.topology.node_leaves(slot, entry);
        self.known -= usize::from(entry.exists);
        entry.exists = false;
        note_extended(&mut self.having, slot, &std::mem::take(&mut entry.allocatable), &entry.allocatable);
        entry.images = self.images.put(slot, &entry.images, None);
        self.topology.node_comes(slot, entry);
        self.log(slot);
        self.release(slot);
    }

    /// Counts the pod on the node. A pod counted elsewhere, or as another, is counted anew.
    pub(crate) fn put_pod(&mut self, pod: &Arc<PodInfo>, node: &str) -> Slot {
        if let Some((slot, known)) = self.placed(&pod.uid)
            && (self.nodes[slot].name != node || known.traits() != pod.traits() || known.going != pod.going)
        {
            self.remove_pod(&pod.uid);
        }
        let slot = self.slot_for(node);
        match self.pods.get_mut(&pod.uid) {
            Some(placed) => {
                let before = std::mem::replace(&mut placed.pod, pod.clone());
                let entry = &mut self.nodes[slot];
                if let Some(index) = entry.place_of(&before) {
                    entry.pods[index] = pod.clone();
                }
                if before.started_at != pod.started_at {
                    // Preemption weighs it.
                    self.log(slot);
                }
                return slot;
            }
            None => self.pods.insert(pod.uid.clone(), Placed { slot, pod: pod.clone() }),
        };
        if let Some(group) = pod.group.as_ref().filter(|_| !pod.is_going()) {
            *self.groups.entry(group.key.clone()).or_default().entry(slot).or_default() += 1;
        }
        self.topology.add_pod(pod, slot, &self.nodes);
        self.volumes.count(pod, slot, 1);
        let entry = &mut self.nodes[slot];
        entry.taken.add(&pod.needs);
        entry.pods.push(pod.clone());
        self.log(slot);
        slot
    }

    /// Takes the pod off its node. Returns the node's slot where it is still a candidate.
    pub(crate) fn remove_pod(&mut self, uid: &str) -> Option<Slot> {
        let Placed { slot, pod } = self.pods.remove(uid)?;
        if let Some(group) = pod.group.as_ref().filter(|_| !pod.is_going())
            && let Some(nodes) = self.groups.get_mut(&group.key)
        {
            if let Some(pods) = nodes.get_mut(&slot) {
                *pods -= 1;
            }
            nodes.retain(|_, pods| *pods > 0);
            if nodes.is_empty() {
                self.groups.remove(&group.key);
            }
        }
        self.topology.remove_pod(&pod, slot, &self.nodes);
        self.volumes.count(&pod, slot, -1);
        let entry = &mut self.nodes[slot];
        entry.taken.remove(&pod.needs);
        if let Some(index) = entry.place_of(&pod) {
            entry.pods.swap_remove(index);
        }
        let exists = entry.exists;
        self.log(slot);
        self.release(slot);
        exists.then_some(slot)
    }

    /// Keeps the node for the pod, instead of any other.
    pub(crate) fn nominate(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.denominate(&pod.uid);
        self.nominations.put(pod, node);
        self.slot(node).into_iter().for_each(|slot| self.log(slot));
    }

    /// No node is kept for the pod any more. Returns the slot of the one that was.
    pub(crate) fn denominate(&mut self, uid: &str) -> Option<Slot> {
        let node = self.nominations.remove(uid)?;
        let slot = self.slot(&node)?;
        self.log(slot);
        Some(slot)
    }

    fn slot_for(&mut self, name: &str) -> Slot {
        if let Some(slot) = self.slot(name) {
            return slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(NodeEntry::default());
            self.nodes.len() - 1
        });
        self.nodes[slot].name = name.to_owned();
        self.slots.insert(name.to_owned(), slot);
        slot
    }

    /// Frees a slot that neither a node nor a pod stands for.
    fn release(&mut self, slot: Slot) {
        if self.nodes[slot].exists || !self.nodes[slot].pods.is_empty() {
            return;
        }
        let entry = std::mem::take(&mut self.nodes[slot]);
        self.slots.remove(&entry.name);
        self.free.push(slot);
    }

    fn log(&mut self, slot: Slot) {
        if self.changes.len() == CHANGES_KEPT {
            self.changes.pop_front();
        }
        self.changes.push_back(slot);
        self.changed += 1;
    }
}

/// Follows what a node has of extended resources.
fn note_extended(
    having: &mut HashMap<String, BTreeSet<Slot>>,
    slot: Slot,
    before: &Requests,
    now: &Requests,
) {
    if before.extended == now.extended {
        return;
    }
    for resource in before.extended.keys() {
        if let Some(slots) = having.get_mut(resource) {
            slots.remove(&slot);
            if slots.is_empty() {
                having.remove(resource);
            }
        }
    }
    for (resource, _) in now.extended.iter().filter(|(_, amount)| **amount > 0) {
        having.entry(resource.clone()).or_default().insert(slot);
    }
}
