//! What pods that are placed say of others: their terms, with how much each weighs in every topology domain.
//!
//! Anti-affinity is symmetric, and preferences of placed pods draw or repel newcomers. Equal terms are one entry; an
//! entry lives while a placed pod has the term.

use std::{collections::HashMap, sync::Arc};

use crate::{
    pod::PodInfo,
    snapshot::{NodeEntry, Slot},
    terms::{StandingKey, StandingKind},
    topology::{
        domains::{Domain, Domains, TopologyId},
        selector::{Identity, Index, Namespaces, Who},
    },
};

#[derive(Debug)]
pub(crate) struct StandingTerm {
    pub(crate) key: Arc<StandingKey>,
    pub(crate) topology: TopologyId,
    /// Pods, or the sum of their weights; domains with nothing are left out.
    pub(crate) amounts: HashMap<Domain, i64>,
    pods: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Standing {
    all: Vec<Option<StandingTerm>>,
    by_key: HashMap<Arc<StandingKey>, usize>,
    free: Vec<usize>,
    index: Index,
}

impl Standing {
    /// The terms of one kind that are about the pod.
    pub(crate) fn about<'a>(
        &'a self,
        pod: &'a Identity,
        kind: StandingKind,
        namespaces: &'a Namespaces,
    ) -> impl Iterator<Item = &'a StandingTerm> {
        self.index
            .candidates(pod)
            .filter_map(|id| self.all[id].as_ref())
            .filter(move |term| term.key.kind == kind && term.key.who.includes(pod, namespaces))
    }

    /// Adds the terms of a pod that comes, or takes off those of one that goes.
    pub(crate) fn hold(&mut self, pod: &PodInfo, sign: i32, domains: &mut Domains, nodes: &[NodeEntry]) {
        for (key, _) in &pod.terms.standing {
            let id = self.by_key.get(key).copied().unwrap_or_else(|| self.add(key, domains, nodes));
            let term = self.all[id].as_mut().expect("known terms exist");
            term.pods = term.pods.wrapping_add_signed(sign as isize);
            if term.pods == 0 {
                self.remove(id, domains);
            }
        }
    }

    /// Weighs the terms of a pod in the domains of its node.
    pub(crate) fn count(&mut self, pod: &PodInfo, slot: Slot, sign: i32, domains: &Domains) {
        for (key, weight) in &pod.terms.standing {
            let Some(term) = self.by_key.get(key).and_then(|id| self.all[*id].as_mut()) else {
                continue;
            };
            let domain = domains.at(term.topology, slot);
            if domain == 0 {
                continue;
            }
            let amount = term.amounts.entry(domain).or_default();
            *amount += weight * i64::from(sign);
            if *amount == 0 {
                term.amounts.remove(&domain);
            }
        }
    }

    fn add(&mut self, key: &Arc<StandingKey>, domains: &mut Domains, nodes: &[NodeEntry]) -> usize {
        let id = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        let topology = domains.hold(&key.topology, nodes);
        self.all[id] = Some(StandingTerm { key: key.clone(), topology, amounts: HashMap::new(), pods: 0 });
        self.index.insert(&key.who, id);
        self.by_key.insert(key.clone(), id);
        id
    }

    fn remove(&mut self, id: usize, domains: &mut Domains) {
        let Some(term) = self.all[id].take() else {
            return;
        };
        self.index.remove(&term.key.who, id);
        self.by_key.remove(&term.key);
        domains.release(term.topology);
        self.free.push(id);
    }
}

/// How much the pod's own standing terms of a kind weigh on another pod, for topologies that `holds` says matter.
pub(crate) fn weight_on(
    pod: &PodInfo,
    kind: StandingKind,
    other: &Identity,
    namespaces: &Namespaces,
    topology: &str,
) -> i64 {
    let about = |key: &StandingKey| {
        key.kind == kind && key.topology == topology && key.who.includes(other, namespaces)
    };
    pod.terms.standing.iter().filter(|(key, _)| about(key)).map(|(_, weight)| weight).sum()
}

/// One selector as the index takes it.
pub(crate) fn one(selector: super::PodSelector) -> Who {
    Who(vec![selector])
}
