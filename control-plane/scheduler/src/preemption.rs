//! DefaultPreemption: which pods of lower priority go so that one can run.
//!
//! For a number of nodes it is found out which pods have to go at least; among these nodes the one whose loss weighs
//! least is taken. Decides only: nothing is changed here.

use std::{cmp::Reverse, sync::Arc};

use crate::{
    budgets::Left,
    outlook::{Outlook, WhatIf},
    pod::{Going, PodInfo},
    random::Random,
    refusal::{Refusal, Tally},
    snapshot::{Slot, Snapshot},
    victims::{KnownVictims, Outcome, Victims},
};

/// Why the pod may not preempt now, in upstream's words.
pub(crate) fn hindrance(pod: &PodInfo, about_pods: &[Slot], snapshot: &Snapshot) -> Option<&'static str> {
    if !pod.may_preempt {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let slot = snapshot.nominations.node_of(&pod.uid).and_then(|node| snapshot.slot(node))?;
    // The node was lost for it by something that no deletion can change: another one is to be found.
    if snapshot.nodes[slot].exists && !about_pods.contains(&slot) {
        return None;
    }
    let waits_for = |other: &Arc<PodInfo>| other.going == Going::Preempted && other.priority < pod.priority;
    let waits = snapshot.nodes[slot].pods.iter().any(waits_for);
    waits.then_some("not eligible due to a terminating pod on the nominated node.")
}

/// Nodes with the victims that they would need, never empty; or why there are none, in upstream's words.
pub(crate) fn find(
    pod: &PodInfo,
    about_pods: &[Slot],
    snapshot: &mut Snapshot,
    budgets: &Left<'_>,
    known: &mut KnownVictims,
    tie: &mut Random,
) -> Result<Vec<Victims>, String> {
    let counters = snapshot.counters_of(&pod.terms);
    let mut tally = Tally::default();
    tally.add(&Refusal::NoHelp, snapshot.node_count() - about_pods.len());
    let nodes = snapshot.node_count();
    let Ok(outlook) = Outlook::new(pod, snapshot, &counters) else {
        return Err(tally.message(nodes));
    };
    let search = Search { outlook: &outlook, budgets };
    // What depends on the pod itself, on other nodes, or on who goes before it, is worked out each time.
    // A pod that is for one node alone finds nothing that another has found out.
    let by_node_alone = about_pods.len() > 1
        && budgets.is_all()
        && !outlook.minds_nominated()
        && snapshot.nominations.node_of(&pod.uid).is_none();
    let mut known = by_node_alone.then(|| known.of(pod, snapshot, budgets.budgets));
    let count = about_pods.len();
    let limits = &pod.needs.profile.candidates;
    let enough = (count * limits.percentage / 100).max(limits.absolute).min(count);
    let offset = tie.index(count);
    let (mut found, mut clean) = (Vec::new(), false);
    for slot in about_pods.iter().cycle().skip(offset).take(count) {
        let worked_out;
        let outcome = match &mut known {
            Some(known) => known.at(*slot, || search.victims(*slot)),
            None => {
                worked_out = search.victims(*slot);
                &worked_out
            }
        };
        match outcome {
            Ok(victims) => {
                clean |= victims.violations == 0;
                found.push(victims.clone());
            }
            Err(refusal) => tally.add(refusal, 1),
        }
        if clean && found.len() >= enough {
            break;
        }
    }
    if found.is_empty() { Err(tally.message(nodes)) } else { Ok(found) }
}

/// The victims that weigh least.
pub(crate) fn least(found: Vec<Victims>) -> Option<Victims> {
    found.into_iter().min_by_key(Victims::weight)
}

impl Victims {
    /// As an extender wants them.
    pub(crate) fn given(slot: Slot, mut pods: Vec<Arc<PodInfo>>, violations: usize) -> Self {
        pods.sort_by(|one, other| importance(one).cmp(&importance(other)));
        Self { slot, pods: pods.into(), violations }
    }

    /// The least is taken: budgets broken, the highest priority, all priorities, how many, and how long the
    /// highest have been running.
    fn weight(&self) -> (usize, i32, i64, usize, Reverse<i128>) {
        let highest = self.pods.first().map_or(i32::MIN, |pod| pod.priority);
        // Every pod adds something, even of negative priority.
        let sum = self.pods.iter().map(|pod| i64::from(pod.priority) + (1 << 31)).sum();
        let of_highest = self.pods.iter().filter(|pod| pod.priority == highest);
        let earliest = of_highest.map(|pod| started(pod)).min().unwrap_or(i128::MAX);
        (self.violations, highest, sum, self.pods.len(), Reverse(earliest))
    }
}

/// A pod that has not started is as if it started last.
fn started(pod: &PodInfo) -> i128 {
    pod.started_at.unwrap_or(i128::MAX)
}

struct Search<'a> {
    outlook: &'a Outlook<'a>,
    budgets: &'a Left<'a>,
}

impl<'a> Search<'a> {
    /// The least set of pods that has to go from the node; or why none would do.
    fn victims(&self, slot: Slot) -> Outcome {
        let preemptor = self.outlook.pod;
        let node = &self.outlook.snapshot.nodes[slot];
        let mut lower: Vec<&Arc<PodInfo>> =
            node.pods.iter().filter(|pod| pod.priority < preemptor.priority).collect();
        if lower.is_empty() {
            return Err(Refusal::NoVictims);
        }
        let mut what_if = WhatIf::new(self.outlook, slot);
        lower.iter().for_each(|pod| what_if.remove(pod));
        if let Some(refusal) = self.refusal(&mut what_if, &node.name) {
            return Err(refusal);
        }
        lower.sort_by(|one, other| importance(one).cmp(&importance(other)));
        let (breaking, others) = self.budgets.part(&lower);
        let mut stays = |pod: &'a Arc<PodInfo>| {
            what_if.add(pod);
            let fits = self.refusal(&mut what_if, &node.name).is_none();
            if !fits {
                what_if.remove(pod);
            }
            fits
        };
        let mut pods: Vec<&Arc<PodInfo>> = breaking.into_iter().filter(|pod| !stays(pod)).collect();
        let violations = pods.len();
        pods.extend(others.into_iter().filter(|pod| !stays(pod)));
        pods.sort_by(|one, other| importance(one).cmp(&importance(other)));
        if pods.is_empty() {
            return Err(Refusal::NoHelp);
        }
        Ok(Victims { slot, pods: pods.into_iter().cloned().collect(), violations })
    }

    /// Why the pod would not run there, with those that the node is kept for or without.
    fn refusal(&self, what_if: &mut WhatIf<'a>, node: &str) -> Option<Refusal> {
        let nominations = &self.outlook.snapshot.nominations;
        let others: Vec<&'a PodInfo> = nominations.before(self.outlook.pod, node).collect();
        others.iter().for_each(|other| what_if.add(other));
        let refusal = what_if.refusal();
        others.iter().for_each(|other| what_if.remove(other));
        match others.is_empty() {
            true => refusal,
            false => refusal.or_else(|| what_if.refusal()),
        }
    }
}

/// Sorts the most important first: by priority, then by how long it runs; the rest is so that runs can be repeated.
fn importance(pod: &PodInfo) -> (Reverse<i32>, i128, &str) {
    (Reverse(pod.priority), started(pod), &pod.uid)
}
