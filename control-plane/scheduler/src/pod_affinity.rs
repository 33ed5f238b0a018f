//! InterPodAffinity: affinity and anti-affinity of the pod, and what pods that are placed say of it.

use crate::{
    pod::PodInfo,
    profile::Profile,
    refusal::Refusal,
    scores::MOST,
    snapshot::Slot,
    terms::StandingKind,
    topology::{Counter, Domain, Domains, Topology, TopologyId},
};

/// The required terms with how things stand.
pub(crate) struct Required<'a> {
    topology: &'a Topology,
    affinity: Vec<&'a Counter>,
    /// The pod is as its own affinity asks: it may be the first such.
    one_of_them: bool,
    anti: Vec<&'a Counter>,
    /// Pods whose anti-affinity is about the pod, by topology and domain.
    standing: Vec<(TopologyId, Vec<i64>)>,
}

impl<'a> Required<'a> {
    pub(crate) fn new(
        pod: &PodInfo,
        topology: &'a Topology,
        affinity: Vec<&'a Counter>,
        anti: Vec<&'a Counter>,
    ) -> Self {
        let mut standing = ByTopology::default();
        for term in topology.standing_about(&pod.identity, StandingKind::AntiAffinity) {
            standing.add(
                term.topology,
                &topology.domains,
                term.amounts.iter().map(|(domain, pods)| (*domain, *pods)),
            );
        }
        let one_of_them = |counter: &&Counter| counter.key.who.includes(&pod.identity, &topology.namespaces);
        Self { one_of_them: affinity.iter().all(one_of_them), topology, affinity, anti, standing: standing.0 }
    }

    /// Refuses no node.
    pub(crate) fn nothing(topology: &'a Topology) -> Self {
        Self { topology, affinity: Vec::new(), one_of_them: false, anti: Vec::new(), standing: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.affinity.is_empty() && self.anti.is_empty() && self.standing.is_empty()
    }

    /// Why the node cannot take the pod.
    ///
    /// `more` says how many counted pods more are to be taken for on it, by counter; `more_standing` how many pods more whose
    /// anti-affinity is about the pod, by topology.
    pub(crate) fn refusal(
        &self,
        slot: Slot,
        more: impl Fn(&Counter) -> i64,
        more_standing: impl Fn(TopologyId) -> i64,
    ) -> Option<Refusal> {
        let domain = |topology| self.topology.domains.at(topology, slot);
        let pods = |counter: &Counter, domain| counter.at(domain) + more(counter);
        let first =
            self.one_of_them && self.affinity.iter().all(|counter| counter.total + more(counter) == 0);
        for counter in &self.affinity {
            let domain = domain(counter.topology);
            if domain == 0 || (pods(counter, domain) <= 0 && !first) {
                return Some(Refusal::PodAffinity);
            }
        }
        for counter in &self.anti {
            let domain = domain(counter.topology);
            if domain != 0 && pods(counter, domain) > 0 {
                return Some(Refusal::PodAntiAffinity);
            }
        }
        let keeps_away = |(topology, amounts): &(TopologyId, Vec<i64>)| {
            let domain = domain(*topology);
            domain != 0
                && amounts.get(domain as usize).copied().unwrap_or_default() + more_standing(*topology) > 0
        };
        self.standing.iter().any(keeps_away).then_some(Refusal::StandingAntiAffinity)
    }
}

/// Amounts by domain, for each topology in use.
#[derive(Default)]
struct ByTopology(Vec<(TopologyId, Vec<i64>)>);

impl ByTopology {
    fn add(&mut self, topology: TopologyId, domains: &Domains, amounts: impl Iterator<Item = (Domain, i64)>) {
        let index = self.0.iter().position(|(known, _)| *known == topology).unwrap_or_else(|| {
            self.0.push((topology, vec![0; domains.width(topology)]));
            self.0.len() - 1
        });
        for (domain, amount) in amounts {
            self.0[index].1[domain as usize] += amount;
        }
    }
}

/// Whether anything draws or repels the pod.
pub(crate) fn is_scored(pod: &PodInfo, topology: &Topology, preferred: &[(i64, &Counter)]) -> bool {
    let profile = &pod.needs.profile;
    let mentioned = |(kind, _)| topology.standing_about(&pod.identity, kind).next().is_some();
    !preferred.is_empty()
        || (!profile.ignore_preferred_terms_of_existing_pods && kinds(profile).any(mentioned))
}

/// What pods that are placed may say of others, with its weight.
fn kinds(profile: &Profile) -> impl Iterator<Item = (StandingKind, i64)> {
    let kinds = [(StandingKind::Affinity, profile.hard_pod_affinity_weight), (StandingKind::Preferred, 1)];
    kinds.into_iter().filter(|(_, weight)| *weight != 0)
}

/// Scores of the candidates, 0 to 100; `None` where nothing draws or repels the pod.
pub(crate) fn scores(
    pod: &PodInfo,
    topology: &Topology,
    preferred: &[(i64, &Counter)],
    candidates: &[Slot],
) -> Option<Vec<i64>> {
    if !is_scored(pod, topology, preferred) {
        return None;
    }
    let mut sums = ByTopology::default();
    for (weight, counter) in preferred {
        let counts = counter.counts.iter().zip(0..);
        sums.add(
            counter.topology,
            &topology.domains,
            counts
                .filter(|(count, _)| **count > 0)
                .map(|(count, domain)| (domain, weight * i64::from(*count))),
        );
    }
    for (kind, weight) in kinds(&pod.needs.profile) {
        for term in topology.standing_about(&pod.identity, kind) {
            let amounts = term.amounts.iter().map(|(domain, amount)| (*domain, weight * amount));
            sums.add(term.topology, &topology.domains, amounts);
        }
    }
    Some(measure(&sums, topology, candidates))
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "sums of weights, divided as upstream does"
)]
fn measure(sums: &ByTopology, topology: &Topology, candidates: &[Slot]) -> Vec<i64> {
    let mut scores = vec![0; candidates.len()];
    for (id, amounts) in &sums.0 {
        for (score, slot) in scores.iter_mut().zip(candidates) {
            let domain = topology.domains.at(*id, *slot);
            *score += if domain == 0 { 0 } else { amounts[domain as usize] };
        }
    }
    let least = scores.iter().copied().min().unwrap_or_default();
    let range = scores.iter().copied().max().unwrap_or_default() - least;
    let scaled = |score: i64| match range {
        0 => 0,
        range => (MOST as f64 * ((score - least) as f64 / range as f64)) as i64,
    };
    scores.into_iter().map(scaled).collect()
}
