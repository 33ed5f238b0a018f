//! How many pods of interest each topology domain has, kept up to date as pods come and go.
//!
//! A counter is made when the first waiting pod asks for it, by one pass over the pods that are placed, and then costs
//! one addition for each pod that it counts. Counters belong to the terms of waiting pods; those of the terms
//! that were asked for least recently go first, so their number and size are bounded.

use std::{collections::HashMap, sync::Arc};

use crate::{
    affinity::{NodeAffinity, Toleration, untolerated},
    intern::Same,
    pod::PodInfo,
    snapshot::{NodeEntry, Slot},
    terms::Terms,
    topology::{
        domains::{Domain, Domains, NODE, TopologyId},
        selector::{Identity, Index, Namespaces, Who},
    },
};

/// Room for the counters of all terms: 320 workloads that are counted by host on 100,000 nodes, or 6,400 on 5,000. A counter of
/// few domains takes next to nothing, however many nodes there are.
const MOST_BYTES: usize = 128 << 20;

/// What a counter's question takes is not counted, and all are walked where a node's labels change. No more terms than this
/// hold counters, either: many may share one.
const MOST_COUNTERS: usize = 16_384;

pub(crate) type CounterId = usize;

/// What a counter counts. Equal questions share one counter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CounterKey {
    /// A label of nodes, or [`super::NODE`].
    pub(crate) topology: String,
    pub(crate) who: Who,
    /// Pods that are being deleted do not count.
    pub(crate) live_only: bool,
    pub(crate) inclusion: Inclusion,
}

/// Which nodes count. Empty is all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Inclusion {
    /// Labels that a node must have.
    pub(crate) keys: Vec<String>,
    pub(crate) affinity: Option<NodeAffinity>,
    pub(crate) tolerations: Option<Vec<Toleration>>,
}

impl Inclusion {
    fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    fn includes(&self, node: &NodeEntry) -> bool {
        self.keys.iter().all(|key| node.labels.contains_key(key))
            && self.affinity.as_ref().is_none_or(|affinity| affinity.allows(&node.name, &node.labels))
            && self.tolerations.as_ref().is_none_or(|own| untolerated(own, &node.taints).is_none())
    }
}

#[derive(Debug)]
pub(crate) struct Counter {
    pub(crate) key: CounterKey,
    pub(crate) topology: TopologyId,
    /// Pods by domain.
    pub(crate) counts: Vec<u32>,
    /// Nodes that count, by domain. Empty where each node is a domain: nobody asks there.
    pub(crate) nodes: Vec<u32>,
    by_node: bool,
    /// By slot; unused where all nodes count.
    included: Vec<bool>,
    all_nodes: bool,
    /// Over all domains.
    pub(crate) total: i64,
    uses: usize,
    /// What it takes, as it was counted last.
    size: usize,
}

impl Counter {
    pub(crate) fn counts_pod(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        !(self.key.live_only && pod.is_going()) && self.key.who.includes(&pod.identity, namespaces)
    }

    pub(crate) fn counts_node(&self, slot: Slot) -> bool {
        self.all_nodes || self.included.get(slot).copied().unwrap_or_default()
    }

    pub(crate) fn at(&self, domain: Domain) -> i64 {
        self.counts.get(domain as usize).map_or(0, |count| i64::from(*count))
    }

    fn add(&mut self, slot: Slot, domain: Domain, sign: i32) {
        if domain == 0 || !self.counts_node(slot) {
            return;
        }
        self.grow(domain);
        let count = &mut self.counts[domain as usize];
        *count = count.wrapping_add_signed(sign);
        self.total += i64::from(sign);
    }

    fn put_node(&mut self, slot: Slot, node: &NodeEntry, domain: Domain) {
        if !self.all_nodes {
            if self.included.len() <= slot {
                self.included.resize(slot + 1, false);
            }
            self.included[slot] = node.exists && self.key.inclusion.includes(node);
        }
        self.add_node(slot, domain, 1);
    }

    fn add_node(&mut self, slot: Slot, domain: Domain, sign: i32) {
        if domain != 0 && !self.by_node && self.counts_node(slot) {
            self.grow(domain);
            let count = &mut self.nodes[domain as usize];
            *count = count.wrapping_add_signed(sign);
        }
    }

    fn grow(&mut self, domain: Domain) {
        let width = domain as usize + 1;
        if self.counts.len() < width {
            self.counts.resize(width, 0);
        }
        if self.nodes.len() < width && !self.by_node {
            self.nodes.resize(width, 0);
        }
    }

    /// Brings its part of what all take up to date.
    fn weigh(&mut self, all: &mut usize) {
        let bytes = self.bytes();
        *all = *all - self.size + bytes;
        self.size = bytes;
    }

    /// What it takes.
    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * (self.counts.capacity() + self.nodes.capacity()) + self.included.capacity()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    all: Vec<Option<Counter>>,
    /// Places in `all` that are empty.
    free: Vec<CounterId>,
    by_key: HashMap<CounterKey, CounterId>,
    index: Index,
    held: HashMap<Same<Terms>, Held>,
    uses: u64,
    /// What all counters take.
    bytes: usize,
}

#[derive(Debug)]
struct Held {
    counters: Arc<[CounterId]>,
    last_use: u64,
}

impl Counters {
    pub(crate) fn get(&self, id: CounterId) -> &Counter {
        self.all[id].as_ref().expect("ids are of counters that are held")
    }

    /// The counters of the terms, in the order of [`Terms::counters`]; valid until the next call.
    pub(crate) fn of_terms(
        &mut self,
        terms: &Arc<Terms>,
        domains: &mut Domains,
        namespaces: &Namespaces,
        nodes: &[NodeEntry],
    ) -> Arc<[CounterId]> {
        self.uses += 1;
        let last_use = self.uses;
        let counters = match self.held.get_mut(&Same(terms.clone())) {
            Some(held) => {
                held.last_use = last_use;
                held.counters.clone()
            }
            None => {
                let counters: Arc<[CounterId]> =
                    terms.counters().map(|key| self.hold(key, domains, namespaces, nodes)).collect();
                self.held.insert(Same(terms.clone()), Held { counters: counters.clone(), last_use });
                counters
            }
        };
        self.make_room(domains);
        counters
    }

    /// Counters grow with the cluster, too. Those that were asked for last stay, whatever they take.
    fn make_room(&mut self, domains: &mut Domains) {
        let most = |count: usize| count > MOST_COUNTERS;
        while self.held.len() > 1
            && (self.bytes > MOST_BYTES || most(self.by_key.len()) || most(self.held.len()))
        {
            let oldest =
                self.held.iter().min_by_key(|(_, held)| held.last_use).map(|(terms, _)| terms.clone());
            oldest.into_iter().for_each(|terms| self.let_go(&terms, domains));
        }
    }

    /// Forgets the counters that labels of namespaces decide on: they are made anew when asked for.
    pub(crate) fn namespaces_changed(&mut self, domains: &mut Domains) {
        let reads = |held: &Held| held.counters.iter().any(|id| self.get(*id).key.who.reads_namespaces());
        let stale: Vec<Same<Terms>> =
            self.held.iter().filter(|(_, held)| reads(held)).map(|(terms, _)| terms.clone()).collect();
        stale.iter().for_each(|terms| self.let_go(terms, domains));
    }

    pub(crate) fn count(
        &mut self,
        pod: &PodInfo,
        slot: Slot,
        sign: i32,
        domains: &Domains,
        namespaces: &Namespaces,
    ) {
        for id in self.index.candidates(&pod.identity) {
            let counter = self.all[id].as_mut().expect("indexed counters exist");
            if counter.counts_pod(pod, namespaces) {
                counter.add(slot, domains.at(counter.topology, slot), sign);
                counter.weigh(&mut self.bytes);
            }
        }
    }

    /// Before a node changes; its pods are counted off already.
    pub(crate) fn node_leaves(&mut self, slot: Slot, domains: &Domains) {
        for counter in self.all.iter_mut().flatten() {
            counter.add_node(slot, domains.at(counter.topology, slot), -1);
        }
    }

    /// After it changed.
    pub(crate) fn node_comes(&mut self, slot: Slot, node: &NodeEntry, domains: &Domains) {
        for counter in self.all.iter_mut().flatten() {
            counter.put_node(slot, node, domains.at(counter.topology, slot));
            counter.weigh(&mut self.bytes);
        }
    }

    fn hold(
        &mut self,
        key: &CounterKey,
        domains: &mut Domains,
        namespaces: &Namespaces,
        nodes: &[NodeEntry],
    ) -> CounterId {
        if let Some(id) = self.by_key.get(key) {
            self.all[*id].as_mut().expect("known counters exist").uses += 1;
            return *id;
        }
        let topology = domains.hold(&key.topology, nodes);
        let width = domains.width(topology);
        let by_node = key.topology == NODE;
        let mut counter = Counter {
            topology,
            counts: vec![0; width],
            nodes: if by_node { Vec::new() } else { vec![0; width] },
            by_node,
            size: 0,
            included: Vec::new(),
            all_nodes: key.inclusion.is_everything(),
            total: 0,
            uses: 1,
            key: key.clone(),
        };
        for (slot, node) in nodes.iter().enumerate() {
            counter.put_node(slot, node, domains.at(topology, slot));
        }
        let mut known = Known::default();
        for (slot, node) in nodes.iter().enumerate() {
            let domain = domains.at(topology, slot);
            for pod in &node.pods {
                if known.matches(pod, |identity| key.who.includes(identity, namespaces))
                    && counter.counts_pod(pod, namespaces)
                {
                    counter.add(slot, domain, 1);
                }
            }
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        counter.weigh(&mut self.bytes);
        self.index.insert(&key.who, id);
        self.by_key.insert(key.clone(), id);
        self.all[id] = Some(counter);
        id
    }

    fn let_go(&mut self, terms: &Same<Terms>, domains: &mut Domains) {
        let Some(held) = self.held.remove(terms) else {
            return;
        };
        for id in held.counters.iter() {
            let place = &mut self.all[*id];
            let counter = place.as_mut().expect("held counters exist");
            counter.uses -= 1;
            if counter.uses == 0
                && let Some(counter) = place.take()
            {
                self.bytes -= counter.size;
                self.free.push(*id);
                self.index.remove(&counter.key.who, *id);
                self.by_key.remove(&counter.key);
                domains.release(counter.topology);
            }
        }
    }
}

/// Answers for identities that were met before: pods of one workload share theirs.
#[derive(Default)]
struct Known(HashMap<Same<Identity>, bool>);

impl Known {
    fn matches(&mut self, pod: &PodInfo, answer: impl FnOnce(&Identity) -> bool) -> bool {
        *self.0.entry(Same(pod.identity.clone())).or_insert_with(|| answer(&pod.identity))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{
        snapshot::Snapshot,
        testing::{info, node, pod},
    };

    #[test]
    fn what_counters_take_follows_them() {
        let mut snapshot = Snapshot::default();
        let add = |snapshot: &mut Snapshot, names: std::ops::Range<usize>| {
            names.for_each(|name| _ = snapshot.put_node(&node(&format!("n{name}"), json!({}))));
        };
        let spread = |app: usize, skew: usize| {
            let selector = json!({ "matchLabels": { "app": app.to_string() } });
            let constraint = json!({
                "maxSkew": skew, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": selector,
            });
            info(&pod("p", json!({ "containers": [], "topologySpreadConstraints": [constraint] })))
        };
        let check = |snapshot: &Snapshot, held: usize, counters: usize| {
            let all = &snapshot.topology.counters;
            assert_eq!((all.held.len(), all.by_key.len()), (held, counters));
            let bytes: usize = all.all.iter().flatten().map(|counter| counter.bytes()).sum();
            assert_eq!(all.bytes, bytes);
            assert_eq!(all.all.iter().filter(|place| place.is_none()).count(), all.free.len());
        };
        add(&mut snapshot, 0..10);
        // Equal questions share a counter.
        snapshot.counters_of(&spread(0, 1).terms);
        snapshot.counters_of(&spread(0, 2).terms);
        snapshot.counters_of(&spread(1, 1).terms);
        check(&snapshot, 3, 2);
        let before = snapshot.topology.counters.bytes;
        add(&mut snapshot, 10..2000);
        check(&snapshot, 3, 2);
        assert!(snapshot.topology.counters.bytes > before + 2 * 4 * 1000);
        for name in 0..1990 {
            snapshot.remove_node(&format!("n{name}"));
        }
        add(&mut snapshot, 2000..3000);
        check(&snapshot, 3, 2);
    }
}
