//! What a pod asks for with regard to other pods: inter-pod affinity and topology spread, read once.
//!
//! Each wish is turned into the question that a counter answers ([`CounterKey`]) or into a term that stands as long as
//! the pod is placed ([`StandingKey`]). Pods of one workload have equal terms and share them.

use std::sync::Arc;

use hawser_api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{PodAffinityTerm, PodSpec, TopologySpreadConstraint};

use crate::{
    affinity::{NodeAffinity, Toleration},
    pod::Needs,
    profile::Profile,
    topology::{CounterKey, Identity, Inclusion, NODE, PodSelector, Who, one},
};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Terms {
    /// Required affinity: a node needs a pod that all of these terms match, in the domain of each.
    pub(crate) affinity: Vec<CounterKey>,
    pub(crate) anti_affinity: Vec<CounterKey>,
    /// With weights; below 0 they repel.
    pub(crate) preferred: Vec<(i64, CounterKey)>,
    pub(crate) hard: Vec<HardSpread>,
    pub(crate) soft: Vec<SoftSpread>,
    /// Nodes that lack a label of a soft constraint are not scored.
    pub(crate) soft_needs_all: bool,
    /// How it is spread is the cluster's to say.
    pub(crate) defaulted: bool,
    /// What holds of others once the pod is placed, with its weight.
    pub(crate) standing: Vec<(Arc<StandingKey>, i64)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HardSpread {
    pub(crate) counter: CounterKey,
    pub(crate) max_skew: i64,
    pub(crate) min_domains: usize,
    /// 1 where the constraint counts the pod itself.
    pub(crate) own: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SoftSpread {
    pub(crate) counter: CounterKey,
    /// The label that the constraint names; the counter of hosts counts by node.
    pub(crate) topology: String,
    pub(crate) max_skew: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StandingKey {
    pub(crate) kind: StandingKind,
    pub(crate) who: Who,
    pub(crate) topology: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StandingKind {
    /// Keeps pods away.
    AntiAffinity,
    /// Draws them with the weight that the profile gives it.
    Affinity,
    /// Draws or repels by its own weight.
    Preferred,
}

impl Terms {
    pub(crate) fn of(
        spec: &PodSpec,
        identity: &Identity,
        affinity: &NodeAffinity,
        tolerations: &[Toleration],
        profile: &Profile,
    ) -> Self {
        let mut terms = Self::default();
        terms.read_affinity(spec, identity);
        let place = Place { identity, affinity, tolerations };
        let own = spec.topology_spread_constraints.as_deref().unwrap_or_default();
        terms.defaulted = own.is_empty() && profile.spreads_by_default();
        terms.soft_needs_all = true;
        (terms.hard, terms.soft) = place.constraints(own, |constraint| place.selected(constraint));
        terms
    }

    /// The same with the constraints that the cluster has for all pods, about those that the selector matches.
    pub(crate) fn with_defaults(&self, workload: LabelSelector, identity: &Identity, needs: &Needs) -> Self {
        let mut terms = self.clone();
        if workload.is_everything() {
            return terms;
        }
        let who = one(PodSelector::of_workload(&identity.namespace, workload));
        let place = Place { identity, affinity: &needs.affinity, tolerations: &needs.tolerations };
        if needs.profile.system_default_constraints {
            terms.soft_needs_all = false;
            terms.soft = place.system_default(who);
        } else {
            let constraints = &needs.profile.default_constraints;
            (terms.hard, terms.soft) = place.constraints(constraints, |_| who.clone());
        }
        terms
    }

    /// The questions of all wishes, in the order in which they are answered.
    pub(crate) fn counters(&self) -> impl Iterator<Item = &CounterKey> {
        let preferred = self.preferred.iter().map(|(_, key)| key);
        let spread = self.hard.iter().map(|spread| &spread.counter);
        let soft = self.soft.iter().map(|spread| &spread.counter);
        self.affinity.iter().chain(&self.anti_affinity).chain(preferred).chain(spread).chain(soft)
    }

    fn read_affinity(&mut self, spec: &PodSpec, identity: &Identity) {
        let Some(affinity) = &spec.affinity else {
            return;
        };
        let question = |term: &PodAffinityTerm, who: Who| CounterKey {
            topology: term.topology_key.clone(),
            who,
            live_only: false,
            inclusion: Inclusion::default(),
        };
        let selector = |term: &PodAffinityTerm| PodSelector::of_term(identity, term);
        if let Some(affinity) = &affinity.pod_affinity {
            let required =
                affinity.required_during_scheduling_ignored_during_execution.as_deref().unwrap_or_default();
            let all: Vec<PodSelector> = required.iter().map(selector).collect();
            self.affinity = required.iter().map(|term| question(term, Who(all.clone()))).collect();
            for term in required {
                self.stand(StandingKind::Affinity, term, one(selector(term)), 1);
            }
            for preferred in affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                let (term, weight) = (&preferred.pod_affinity_term, i64::from(preferred.weight));
                self.preferred.push((weight, question(term, one(selector(term)))));
                self.stand(StandingKind::Preferred, term, one(selector(term)), weight);
            }
        }
        if let Some(affinity) = &affinity.pod_anti_affinity {
            for term in affinity.required_during_scheduling_ignored_during_execution.iter().flatten() {
                self.anti_affinity.push(question(term, one(selector(term))));
                self.stand(StandingKind::AntiAffinity, term, one(selector(term)), 1);
            }
            for preferred in affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                let (term, weight) = (&preferred.pod_affinity_term, -i64::from(preferred.weight));
                self.preferred.push((weight, question(term, one(selector(term)))));
                self.stand(StandingKind::Preferred, term, one(selector(term)), weight);
            }
        }
    }

    fn stand(&mut self, kind: StandingKind, term: &PodAffinityTerm, who: Who, weight: i64) {
        let key = StandingKey { kind, who, topology: term.topology_key.clone() };
        self.standing.push((Arc::new(key), weight));
    }
}

/// The pod, as its spread constraints read it.
struct Place<'a> {
    identity: &'a Identity,
    affinity: &'a NodeAffinity,
    tolerations: &'a [Toleration],
}

impl Place<'_> {
    fn selected(&self, constraint: &TopologySpreadConstraint) -> Who {
        let keys = constraint.match_label_keys.as_deref().unwrap_or_default();
        one(PodSelector::within(self.identity, constraint.label_selector.as_ref(), keys))
    }

    /// Constraints that refuse nodes, and those that score them; `who` says which pods one is about.
    fn constraints(
        &self,
        all: &[TopologySpreadConstraint],
        who: impl Fn(&TopologySpreadConstraint) -> Who,
    ) -> (Vec<HardSpread>, Vec<SoftSpread>) {
        let of = |action: &str| -> Vec<(&TopologySpreadConstraint, Who)> {
            let some = all.iter().filter(|constraint| constraint.when_unsatisfiable == action);
            some.map(|constraint| (constraint, who(constraint))).collect()
        };
        (self.hard(&of("DoNotSchedule")), self.soft(&of("ScheduleAnyway")))
    }

    fn inclusion(&self, keys: &[String], affinity: Option<&str>, taints: Option<&str>) -> Inclusion {
        let honors = |policy: Option<&str>, default: bool| policy.map_or(default, |policy| policy == "Honor");
        let asks = self.affinity.is_required();
        Inclusion {
            keys: keys.to_vec(),
            affinity: (asks && honors(affinity, true)).then(|| self.affinity.required_alone()),
            tolerations: honors(taints, false).then(|| self.tolerations.to_vec()),
        }
    }

    fn hard(&self, constraints: &[(&TopologySpreadConstraint, Who)]) -> Vec<HardSpread> {
        let keys = topology_keys(constraints);
        let hard = constraints.iter().map(|(constraint, who)| HardSpread {
            max_skew: i64::from(constraint.max_skew),
            min_domains: constraint.min_domains.and_then(|least| usize::try_from(least).ok()).unwrap_or(1),
            own: i64::from(who.includes(self.identity, &crate::topology::Namespaces::default())),
            counter: self.question(constraint, who, &keys, &constraint.topology_key),
        });
        hard.collect()
    }

    fn soft(&self, constraints: &[(&TopologySpreadConstraint, Who)]) -> Vec<SoftSpread> {
        let keys = topology_keys(constraints);
        let soft = constraints.iter().map(|(constraint, who)| {
            let topology = constraint.topology_key.clone();
            let counter = if topology == HOSTNAME {
                self.on_node(who.clone())
            } else {
                self.question(constraint, who, &keys, &topology)
            };
            SoftSpread { counter, topology, max_skew: i64::from(constraint.max_skew) }
        });
        soft.collect()
    }

    /// Upstream's default: hosts with a skew of 3, zones with 5.
    fn system_default(&self, who: Who) -> Vec<SoftSpread> {
        let zones = CounterKey {
            topology: ZONE.to_owned(),
            who: who.clone(),
            live_only: true,
            inclusion: self.inclusion(&[], None, None),
        };
        vec![
            SoftSpread { counter: self.on_node(who), topology: HOSTNAME.to_owned(), max_skew: 3 },
            SoftSpread { counter: zones, topology: ZONE.to_owned(), max_skew: 5 },
        ]
    }

    /// Hosts are scored by the pods of each node, whatever nodes count.
    fn on_node(&self, who: Who) -> CounterKey {
        CounterKey { topology: NODE.to_owned(), who, live_only: true, inclusion: Inclusion::default() }
    }

    fn question(
        &self,
        constraint: &TopologySpreadConstraint,
        who: &Who,
        keys: &[String],
        topology: &str,
    ) -> CounterKey {
        let (affinity, taints) =
            (constraint.node_affinity_policy.as_deref(), constraint.node_taints_policy.as_deref());
        CounterKey {
            topology: topology.to_owned(),
            who: who.clone(),
            live_only: true,
            inclusion: self.inclusion(keys, affinity, taints),
        }
    }
}

fn topology_keys(constraints: &[(&TopologySpreadConstraint, Who)]) -> Vec<String> {
    constraints.iter().map(|(constraint, _)| constraint.topology_key.clone()).collect()
}
