//! Topology domains as small numbers: for each key in use, which value every node has.
//!
//! A key is held while a term names it; a value has a number while a node has it. So both are bounded by the
//! cluster's nodes and the terms of its pods. Beside labels there is [`NODE`], by which each node is its own domain.

use std::collections::HashMap;

use crate::snapshot::{NodeEntry, Slot};

/// A value of a key. 0 is none: the node lacks the label, or is not there.
pub(crate) type Domain = u32;

pub(crate) type TopologyId = usize;

/// Stands for the node itself; no label has this key.
pub(crate) const NODE: &str = "";

#[derive(Debug, Default)]
pub(crate) struct Domains {
    keys: Vec<Key>,
    by_name: HashMap<String, TopologyId>,
}

#[derive(Debug, Default)]
struct Key {
    name: String,
    uses: usize,
    values: HashMap<String, Domain>,
    /// How many nodes have the value, by domain; a domain with none is free.
    nodes: Vec<u32>,
    free: Vec<Domain>,
    of: Vec<Domain>,
}

impl Domains {
    /// Domains by slot; slots past the end have none.
    pub(crate) fn of(&self, id: TopologyId) -> &[Domain] {
        &self.keys[id].of
    }

    pub(crate) fn at(&self, id: TopologyId, slot: Slot) -> Domain {
        self.keys[id].of.get(slot).copied().unwrap_or_default()
    }

    pub(crate) fn name(&self, id: TopologyId) -> &str {
        &self.keys[id].name
    }

    /// One more than the largest domain.
    pub(crate) fn width(&self, id: TopologyId) -> usize {
        self.keys[id].nodes.len().max(1)
    }

    /// Holds the key; `release` once for each.
    pub(crate) fn hold(&mut self, name: &str, nodes: &[NodeEntry]) -> TopologyId {
        if let Some(id) = self.by_name.get(name) {
            self.keys[*id].uses += 1;
            return *id;
        }
        let mut key = Key { name: name.to_owned(), uses: 1, nodes: vec![0], ..Key::default() };
        nodes.iter().enumerate().for_each(|(slot, node)| key.put(slot, node));
        let unused = self.keys.iter().position(|key| key.uses == 0);
        let id = unused.unwrap_or_else(|| {
            self.keys.push(Key::default());
            self.keys.len() - 1
        });
        self.keys[id] = key;
        self.by_name.insert(name.to_owned(), id);
        id
    }

    pub(crate) fn release(&mut self, id: TopologyId) {
        self.keys[id].uses -= 1;
        if self.keys[id].uses == 0 {
            self.by_name.remove(&self.keys[id].name);
            self.keys[id] = Key::default();
        }
    }

    /// Takes over a node's labels. Nothing may be counted on the node meanwhile.
    pub(crate) fn put_node(&mut self, slot: Slot, node: &NodeEntry) {
        self.keys.iter_mut().filter(|key| key.uses > 0).for_each(|key| key.put(slot, node));
    }
}

impl Key {
    fn put(&mut self, slot: Slot, node: &NodeEntry) {
        if self.of.len() <= slot {
            self.of.resize(slot + 1, 0);
        }
        let value = node
            .exists
            .then(|| if self.name == NODE { Some(&node.name) } else { node.labels.get(&self.name) });
        let value = value.flatten();
        let before = self.of[slot];
        let after = value.map_or(0, |value| self.number(value));
        self.nodes[after as usize] += u32::from(after != 0);
        self.of[slot] = after;
        if before != 0 {
            self.nodes[before as usize] -= 1;
            if self.nodes[before as usize] == 0 {
                self.values.retain(|_, domain| *domain != before);
                self.free.push(before);
            }
        }
    }

    fn number(&mut self, value: &str) -> Domain {
        if let Some(domain) = self.values.get(value) {
            return *domain;
        }
        let domain = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(0);
            Domain::try_from(self.nodes.len() - 1).expect("there are fewer nodes than 2^32")
        });
        self.values.insert(value.to_owned(), domain);
        domain
    }
}
