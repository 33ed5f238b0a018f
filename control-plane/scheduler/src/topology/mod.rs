//! Pods seen over topology domains: counters for what waiting pods ask, standing terms of pods that are placed.
//!
//! Everything here changes by what changed: a pod that comes or goes costs the terms that are about it, a node whose
//! labels change costs its pods. Only nodes that exist have domains, so pods on others weigh nothing.

mod counters;
mod domains;
mod selector;
mod standing;

use std::sync::Arc;

pub(crate) use counters::{Counter, CounterId, CounterKey, Inclusion};
pub(crate) use domains::{Domain, Domains, NODE, TopologyId};
pub(crate) use selector::{Identity, Namespaces, PodSelector, Who};
pub(crate) use standing::{StandingTerm, one, weight_on};

use crate::{
    pod::{Labels, PodInfo},
    snapshot::{NodeEntry, Slot},
    terms::{StandingKind, Terms},
};
use counters::Counters;
use standing::Standing;

#[derive(Debug, Default)]
pub(crate) struct Topology {
    pub(crate) domains: Domains,
    pub(crate) namespaces: Namespaces,
    counters: Counters,
    standing: Standing,
    /// Counts changes of namespaces; others are changes of nodes.
    version: u64,
}

impl Topology {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn counter(&self, id: CounterId) -> &Counter {
        self.counters.get(id)
    }

    /// The counters that the terms ask for, in their order; valid until they are asked for others.
    pub(crate) fn counters_of(&mut self, terms: &Arc<Terms>, nodes: &[NodeEntry]) -> Arc<[CounterId]> {
        self.counters.of_terms(terms, &mut self.domains, &self.namespaces, nodes)
    }

    /// Terms of placed pods that are about the pod.
    pub(crate) fn standing_about<'a>(
        &'a self,
        pod: &'a Identity,
        kind: StandingKind,
    ) -> impl Iterator<Item = &'a StandingTerm> {
        self.standing.about(pod, kind, &self.namespaces)
    }

    pub(crate) fn add_pod(&mut self, pod: &PodInfo, slot: Slot, nodes: &[NodeEntry]) {
        self.standing.hold(pod, 1, &mut self.domains, nodes);
        self.count(pod, slot, 1);
    }

    pub(crate) fn remove_pod(&mut self, pod: &PodInfo, slot: Slot, nodes: &[NodeEntry]) {
        self.count(pod, slot, -1);
        self.standing.hold(pod, -1, &mut self.domains, nodes);
    }

    /// Before labels, taints or existence of a node change.
    pub(crate) fn node_leaves(&mut self, slot: Slot, node: &NodeEntry) {
        node.pods.iter().for_each(|pod| self.count(pod, slot, -1));
        self.counters.node_leaves(slot, &self.domains);
    }

    /// After they changed.
    pub(crate) fn node_comes(&mut self, slot: Slot, node: &NodeEntry) {
        self.domains.put_node(slot, node);
        self.counters.node_comes(slot, node, &self.domains);
        node.pods.iter().for_each(|pod| self.count(pod, slot, 1));
    }

    /// Takes over the labels of a namespace, none where it is gone. True where that changes something.
    pub(crate) fn put_namespace(&mut self, name: &str, labels: Option<Labels>) -> bool {
        let changed = self.namespaces.put(name, labels);
        if changed {
            self.version += 1;
            self.counters.namespaces_changed(&mut self.domains);
        }
        changed
    }

    fn count(&mut self, pod: &PodInfo, slot: Slot, sign: i32) {
        self.counters.count(pod, slot, sign, &self.domains, &self.namespaces);
        self.standing.count(pod, slot, sign, &self.domains);
    }
}
