//! PodTopologySpread: a pod's own constraints and the cluster's defaults, answered from counters.
//!
//! Hard constraints refuse nodes whose domain would have too many more pods than the emptiest one; soft ones score.

use crate::{
    refusal::Refusal,
    scores::MOST,
    snapshot::{NodeEntry, Slot},
    terms::{HardSpread, SoftSpread},
    topology::{Counter, Domain, Domains},
};

/// A hard constraint with how things stand.
pub(crate) struct Hard<'a> {
    pub(crate) counter: &'a Counter,
    spread: &'a HardSpread,
    domains: &'a [Domain],
    least: Least,
}

/// The emptiest domains.
struct Least {
    count: i64,
    at: Domain,
    /// The least of all others.
    other: i64,
    domains: usize,
}

impl<'a> Hard<'a> {
    pub(crate) fn new(spread: &'a HardSpread, counter: &'a Counter, domains: &'a Domains) -> Self {
        Self { counter, spread, domains: domains.of(counter.topology), least: Least::of(counter) }
    }

    /// Why the node cannot take the pod, if as many counted pods more were on it.
    pub(crate) fn refusal(&self, slot: Slot, more: i64) -> Option<Refusal> {
        let domain = self.domains.get(slot).copied().unwrap_or_default();
        if domain == 0 {
            return Some(Refusal::NoTopologyLabel);
        }
        let more = if self.counter.counts_node(slot) { more } else { 0 };
        let count = self.counter.at(domain) + more;
        let least = if more == 0 {
            self.least.count
        } else {
            count.min(if domain == self.least.at { self.least.other } else { self.least.count })
        };
        let least = if self.least.domains < self.spread.min_domains || least == i64::MAX { 0 } else { least };
        (count + self.spread.own - least > self.spread.max_skew).then_some(Refusal::Skew)
    }
}

impl Least {
    /// Over the domains that have a node that counts.
    fn of(counter: &Counter) -> Self {
        let mut least = Self { count: i64::MAX, at: 0, other: i64::MAX, domains: 0 };
        let domains = counter.counts.iter().zip(&counter.nodes).enumerate();
        for (domain, (count, _)) in domains.filter(|(_, (_, nodes))| **nodes > 0) {
            least.domains += 1;
            let count = i64::from(*count);
            if count < least.count {
                least.other = least.count;
                (least.count, least.at) = (count, Domain::try_from(domain).unwrap_or_default());
            } else {
                least.other = least.other.min(count);
            }
        }
        least
    }
}

/// Soft constraints with how things stand.
pub(crate) struct Soft<'a> {
    pub(crate) constraints: Vec<(&'a SoftSpread, &'a Counter)>,
    /// Nodes that lack one of the labels are not scored.
    pub(crate) needs_all: bool,
    pub(crate) domains: &'a Domains,
    pub(crate) nodes: &'a [NodeEntry],
}

impl Soft<'_> {
    /// Scores of the candidates, 0 to 100.
    pub(crate) fn scores(&self, candidates: &[Slot]) -> Vec<i64> {
        let labelled = |slot: Slot, spread: &SoftSpread, counter: &Counter| {
            // Counters of hosts count by node, so the label itself is looked at.
            if counter.key.topology == spread.topology {
                self.domains.at(counter.topology, slot) != 0
            } else {
                self.nodes[slot].labels.contains_key(&spread.topology)
            }
        };
        let scored: Vec<bool> = candidates
            .iter()
            .map(|slot| {
                let mut all = self.constraints.iter();
                !self.needs_all || all.all(|(spread, counter)| labelled(*slot, spread, counter))
            })
            .collect();
        let mut crowding = vec![0.0; candidates.len()];
        for (spread, counter) in &self.constraints {
            let weight = weight(self.size(candidates, &scored, spread, counter));
            for (index, slot) in candidates.iter().enumerate() {
                if scored[index] && labelled(*slot, spread, counter) {
                    let domain = self.domains.at(counter.topology, *slot);
                    crowding[index] += crowded(counter.at(domain), weight, spread.max_skew);
                }
            }
        }
        measure(&crowding, &scored)
    }

    /// How many domains there are to choose from.
    fn size(&self, candidates: &[Slot], scored: &[bool], spread: &SoftSpread, counter: &Counter) -> usize {
        let among = candidates.iter().zip(scored).filter(|(_, scored)| **scored);
        if counter.key.topology != spread.topology {
            return among.count();
        }
        let mut seen = vec![false; self.domains.width(counter.topology)];
        let mut size = 0;
        for (slot, _) in among {
            let seen = &mut seen[self.domains.at(counter.topology, *slot) as usize];
            size += usize::from(!*seen);
            *seen = true;
        }
        size
    }
}

/// Small topologies are not to be drowned out by large ones.
#[expect(clippy::cast_precision_loss, reason = "counts of nodes are far below 2^52")]
fn weight(domains: usize) -> f64 {
    (domains as f64 + 2.0).ln()
}

#[expect(clippy::cast_precision_loss, reason = "counts of pods are far below 2^52")]
fn crowded(pods: i64, weight: f64, max_skew: i64) -> f64 {
    pods as f64 * weight + (max_skew - 1) as f64
}

#[expect(clippy::cast_possible_truncation, reason = "counts of pods, as upstream does")]
fn measure(crowding: &[f64], scored: &[bool]) -> Vec<i64> {
    let rounded: Vec<i64> = crowding.iter().map(|crowding| crowding.round() as i64).collect();
    let among = || rounded.iter().zip(scored).filter(|(_, scored)| **scored).map(|(score, _)| *score);
    let (least, most) = (among().min().unwrap_or_default(), among().max().unwrap_or_default());
    let score = |(crowding, scored): (&i64, &bool)| match (scored, most) {
        (false, _) => 0,
        (true, 0) => MOST,
        (true, most) => MOST * (most + least - crowding) / most,
    };
    rounded.iter().zip(scored).map(score).collect()
}
