//! Places the pods of a pod group all together, or none of them.
//!
//! When the turn of one comes, all that wait are tried on the snapshot, one after the other. If enough have a node, counting
//! those that have one already, they get it, and their bindings travel in one batch; otherwise the snapshot is as it was.
//! Where enough would have a node if others went, those go, and the nodes are kept for the group until they are gone:
//! nobody is preempted for a group that would not fit even so. A group that is to be in one topology domain is tried in each,
//! and gets the one where most of its pods fit.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use hawser_api::resource::ObjectKey;
use jiff::Timestamp;

use super::{GroupStatus, Nomination, Plan, Promises, Rejected, Scheduler, Why};
use crate::{
    group::{Group, Policy, Told},
    placement::Diagnosis,
    pod::PodInfo,
    preemption,
    profile::{Plugin, PluginSet},
    queue::Waiting,
    snapshot::Slot,
    victims::Victims,
};

/// A group as a pod of it named it, and when that pod succeeded.
type Succeeded = (Arc<Group>, Timestamp);

/// Pods of groups that succeeded: they have done their part, and the others of their run are not to wait for more. One that
/// failed is made anew, and counts then. (Upstream's scheduler follows no pods that are over: neither counts there.)
#[derive(Default)]
pub(super) struct Done {
    groups: HashMap<Arc<str>, ObjectKey>,
    pods: HashMap<ObjectKey, HashMap<Arc<str>, Succeeded>>,
}

impl Done {
    /// A pod that is over, with the time at which it succeeded.
    pub(super) fn put(&mut self, pod: &PodInfo, succeeded_at: Option<Timestamp>) {
        // It may have been of another group.
        self.remove(&pod.uid);
        let (Some(group), Some(succeeded_at)) = (&pod.group, succeeded_at) else { return };
        self.groups.insert(pod.uid.clone(), group.key.clone());
        let pods = self.pods.entry(group.key.clone()).or_default();
        pods.insert(pod.uid.clone(), (group.clone(), succeeded_at));
    }

    pub(super) fn remove(&mut self, uid: &str) {
        let Some(key) = self.groups.remove(uid) else { return };
        if let Some(pods) = self.pods.get_mut(&key) {
            pods.remove(uid);
            if pods.is_empty() {
                self.pods.remove(&key);
            }
        }
    }

    /// How many pods of the group are done in the run that the others, which are not, are of: that of their controller, or,
    /// without one, while one of these was there already.
    fn count(&self, key: &ObjectKey, others: &[Arc<Group>]) -> usize {
        let owners: HashSet<&str> = others.iter().filter_map(|other| other.owner.as_deref()).collect();
        let orphans = || others.iter().filter(|other| other.owner.is_none());
        let is_undated = orphans().any(|other| other.created_at.is_none());
        let earliest = orphans().filter_map(|other| other.created_at).min();
        // A PodGroup is one run, whoever makes its pods.
        let is_one_run = others.iter().any(|other| other.min.is_none());
        let is_of_run = |(done, succeeded_at): &&(Arc<Group>, Timestamp)| match &done.owner {
            _ if is_one_run => true,
            Some(owner) => owners.contains(&**owner),
            None => is_undated || earliest.is_some_and(|created| created <= *succeeded_at),
        };
        self.pods.get(key).into_iter().flat_map(HashMap::values).filter(is_of_run).count()
    }
}

/// Where a group may be: nodes with one value of a label.
#[derive(Clone)]
struct Place {
    key: String,
    value: String,
    /// By slot, with what is added to their scores: nothing.
    nodes: Vec<(Slot, i64)>,
}

impl Place {
    fn has(&self, slot: Slot) -> bool {
        self.nodes.binary_search_by_key(&slot, |(slot, _)| *slot).is_ok()
    }
}

/// What a group would look like; the snapshot stands for it until it is undone or decided.
#[derive(Default)]
struct Trial {
    settled: Vec<Settled>,
    /// Pods without a node, and why.
    failed: Vec<(Waiting, Arc<Diagnosis>)>,
    /// Pods taken off their nodes, with them.
    gone: Vec<(Arc<PodInfo>, String)>,
}

struct Settled {
    waiting: Waiting,
    node: String,
    promises: Promises,
    /// The node that was kept for it.
    kept: Option<String>,
    /// Pods that would have to go for it.
    victims: Option<Victims>,
}

/// Why no victims make a group fit.
struct Blocked {
    /// As messages say it; may be empty.
    why: String,
    /// Victims of an earlier attempt are still going.
    keeps_node: bool,
}

impl Blocked {
    fn no(why: &str) -> Self {
        Self { why: why.to_owned(), keeps_node: false }
    }

    /// What of the group is said first, and why preemption does not help.
    fn told(&self, message: &str) -> String {
        if self.why.is_empty() { message.to_owned() } else { format!("{message} preemption: {}", self.why) }
    }
}

impl Scheduler {
    /// Places the pod with all others of its group that wait.
    pub(super) fn place_group(&mut self, first: Waiting, group: &Group, plan: &mut Plan, now: Duration) {
        let policy = self.policy_of(group);
        if policy.as_ref().is_some_and(|policy| policy.min <= 1 && policy.topology.is_none()) {
            match self.placement.choose(&first.pod, &mut self.snapshot, &mut self.tie) {
                Some(slot) => {
                    self.assume(first, slot, plan, now);
                    self.tell_group(group, true, "", plan);
                }
                None => self.reject(first, plan, now),
            }
            return;
        }
        let mut members = vec![first];
        members.extend(self.queue.take_group(&group.key));
        members.iter_mut().for_each(|member| member.pod = self.reader.refresh(&member.pod));
        if self.is_clearing(&members) {
            members.into_iter().for_each(|member| self.queue.put_back(member, now));
            return;
        }
        let name = group.name();
        let Some(Policy { min, topology }) = policy else {
            let message = format!("waiting for the pod group {name:?} to be created.");
            for member in members {
                self.rest(member, message.clone(), PluginSet::default(), Nomination::Keep, plan, now);
            }
            return;
        };
        // Labels may disagree for a moment, while somebody changes them: the careful one is heeded.
        let of_labels = members.iter().filter_map(|member| member.pod.group.as_ref()?.min).max();
        let min = of_labels.unwrap_or(min);
        let on_nodes: usize = self.snapshot.placed_of_group(&group.key).map(|(_, pods)| pods).sum();
        let placed = on_nodes + self.done.count(&group.key, &self.members_of_run(group, &members));
        let needed = min.saturating_sub(placed);
        // One that has what it needs stays so, whatever becomes of more pods.
        let lacks = needed > 0;
        let (unready, members): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| self.awaits_claims(member));
        let all_ready = unready.is_empty();
        unready.into_iter().for_each(|member| self.give_back_for_claims(member, now));
        if !all_ready && members.len() < needed {
            // Each of them that gets its claims takes the others along.
            members.into_iter().for_each(|member| self.give_back_for_claims(member, now));
            return;
        }
        if members.len() < needed {
            let there = members.len() + placed;
            let message = format!("pod group {name:?} has {there} of the {min} pods that it needs.");
            for member in members {
                // Only another pod of the group helps, and that one tries them all.
                self.rest(member, message.clone(), PluginSet::default(), Nomination::Keep, plan, now);
            }
            return;
        }
        let places = self.places(group, topology.as_deref());
        let (mut trial, place) = self.best_trial(members, &places);
        // At least one: a group that has enough pods is not done with where another finds no place.
        let (fitting, needed) = (trial.settled.len(), needed.max(1));
        let inside =
            place.as_ref().map_or_else(String::new, |place| format!(" with {}={}", place.key, place.value));
        let message = format!(
            "pod group {name:?}: {fitting} more of its pods could run{inside}, and {needed} are needed."
        );
        if fitting >= needed {
            self.tell_group(group, true, "", plan);
            self.accept(trial, place.as_ref(), &message, plan, now);
            return;
        }
        if let Err(blocked) = self.try_preempting(&mut trial, place.as_ref(), needed) {
            if lacks {
                self.tell_group(group, false, &blocked.told(&message), plan);
            }
            self.give_up(trial, &message, &blocked, plan, now);
            return;
        }
        if lacks {
            self.tell_group(group, false, &message, plan);
        }
        self.make_room_for_group(trial, &message, plan, now);
    }

    /// Pods of the group that wait, or have a node.
    fn members_of_run(&self, group: &Group, waiting: &[Waiting]) -> Vec<Arc<Group>> {
        let slots = self.snapshot.placed_of_group(&group.key).map(|(slot, _)| slot);
        let placed = slots.flat_map(|slot| &self.snapshot.nodes[slot].pods);
        let all = placed.chain(waiting.iter().map(|one| &one.pod)).filter(|pod| !pod.is_going());
        all.filter_map(|pod| pod.group.clone()).filter(|other| other.key == group.key).collect()
    }

    /// Notes what the group's object has to say, unless it says so already. Groups by labels have none.
    fn tell_group(&self, group: &Group, scheduled: bool, message: &str, plan: &mut Plan) {
        let Some(known) = self.pod_groups.get(&group.key).filter(|_| group.min.is_none()) else { return };
        let told = Told { scheduled, message: message.to_owned() };
        if known.told.as_ref() != Some(&told) {
            let turns = known.told.as_ref().is_none_or(|before| before.scheduled != scheduled);
            let (key, uid) = (group.key.clone(), known.uid.clone());
            plan.group_statuses.push(GroupStatus { key, uid, told, turns });
        }
    }

    /// The group's rules; `None` where its object does not exist yet.
    pub(super) fn policy_of(&self, group: &Group) -> Option<Policy> {
        match group.min {
            Some(min) => Some(Policy { min, topology: None }),
            None => self.pod_groups.get(&group.key).map(|known| known.policy.clone()),
        }
    }

    /// Where the group may be: anywhere, or with one value of a label, which is that of the pods that are placed.
    fn places(&self, group: &Group, topology: Option<&str>) -> Vec<Option<Place>> {
        let Some(key) = topology else {
            return vec![None];
        };
        let mut places: BTreeMap<&String, Vec<(Slot, i64)>> = BTreeMap::new();
        for (slot, node) in self.snapshot.nodes.iter().enumerate().filter(|(_, node)| node.exists) {
            if let Some(value) = node.labels.get(key) {
                places.entry(value).or_default().push((slot, 0));
            }
        }
        if let Some((placed, _)) = self.snapshot.placed_of_group(&group.key).next() {
            let value = self.snapshot.nodes[placed].labels.get(key);
            places.retain(|other, _| Some(*other) == value);
        }
        // No value is no node: the trial there says why.
        let none = places.is_empty().then(Default::default);
        let known = places.into_iter().map(|(value, nodes)| (value.clone(), nodes));
        let place = |(value, nodes)| Some(Place { key: key.to_owned(), value, nodes });
        known.chain(none).map(place).collect()
    }

    /// The trial at the place where most pods fit; the first of equals.
    fn best_trial(&mut self, mut members: Vec<Waiting>, places: &[Option<Place>]) -> (Trial, Option<Place>) {
        let count = members.len();
        let (mut most, mut best) = (None, None);
        for place in places {
            let trial = self.try_all(members, place.as_ref());
            let fitting = trial.settled.len();
            if fitting == count || places.len() == 1 {
                return (trial, place.clone());
            }
            if most.is_none_or(|most| fitting > most) {
                (most, best) = (Some(fitting), place.clone());
            }
            members = self.undo_all(trial);
        }
        (self.try_all(members, best.as_ref()), best)
    }

    fn try_all(&mut self, members: Vec<Waiting>, place: Option<&Place>) -> Trial {
        let mut trial = Trial::default();
        members.into_iter().for_each(|member| self.try_on(member, place, &mut trial));
        trial
    }

    /// Takes the trial back whole; the pods are in the order in which they were tried.
    fn undo_all(&mut self, trial: Trial) -> Vec<Waiting> {
        let Trial { settled, failed, gone } = trial;
        let settled = self.undo(settled, gone).into_iter().map(|one| one.waiting);
        let mut members: Vec<Waiting> =
            settled.chain(failed.into_iter().map(|(waiting, _)| waiting)).collect();
        members.sort_by_key(Waiting::rank);
        members
    }

    /// The best node of the place.
    fn choose_at(&mut self, pod: &PodInfo, place: Option<&Place>) -> Option<Slot> {
        match place {
            None => self.placement.choose(pod, &mut self.snapshot, &mut self.tie),
            Some(place) => self.placement.choose_among(pod, &mut self.snapshot, &mut self.tie, &place.nodes),
        }
    }

    /// Whether victims of a member are being deleted; then the group's turn comes when they are.
    fn is_clearing(&mut self, members: &[Waiting]) -> bool {
        let mut any = false;
        for member in members {
            if let Some(came) = self.clearing.get_mut(&member.pod.uid) {
                (*came, any) = (true, true);
            }
        }
        any
    }

    /// Settles the pod on its best node, or notes why it has none.
    fn try_on(&mut self, waiting: Waiting, place: Option<&Place>, trial: &mut Trial) {
        match self.choose_at(&waiting.pod, place) {
            Some(slot) => self.settle_for_now(waiting, slot, None, trial),
            None => {
                let diagnosis = self.placement.diagnose(&waiting.pod, &mut self.snapshot);
                trial.failed.push((waiting, diagnosis));
            }
        }
    }

    fn settle_for_now(&mut self, waiting: Waiting, slot: Slot, victims: Option<Victims>, trial: &mut Trial) {
        let pod = waiting.pod.clone();
        // It would be counted twice on a node that is kept for it.
        let kept = self.snapshot.nominations.node_of(&pod.uid).map(str::to_owned);
        self.snapshot.denominate(&pod.uid);
        let node = self.snapshot.nodes[slot].name.clone();
        let promises = self.settle(&pod, slot);
        trial.settled.push(Settled { waiting, node, promises, kept, victims });
    }

    fn accept(&mut self, trial: Trial, place: Option<&Place>, message: &str, plan: &mut Plan, now: Duration) {
        for Settled { waiting, node, promises, kept, .. } in trial.settled {
            // So that whoever waits for that node hears that it is free.
            if let Some(kept) = kept {
                self.snapshot.nominate(&waiting.pod, &kept);
            }
            self.decide(waiting, node, promises, plan, now);
        }
        // More than the group needs: they are on their own.
        for (waiting, diagnosis) in trial.failed {
            if place.is_none() {
                self.reject_for(waiting, &diagnosis, plan, now);
                continue;
            }
            let refused_by = diagnosis.plugins.union(PluginSet::of(&[Plugin::GangScheduling]));
            self.rest(waiting, message.to_owned(), refused_by, Nomination::Keep, plan, now);
        }
    }

    /// Finds victims for as many pods as are needed. The error is of the first pod that finds none.
    fn try_preempting(
        &mut self,
        trial: &mut Trial,
        place: Option<&Place>,
        needed: usize,
    ) -> Result<(), Blocked> {
        let failed = std::mem::take(&mut trial.failed);
        let mut failed = failed.into_iter();
        let mut outcome = Ok(());
        while trial.settled.len() < needed {
            let Some((waiting, diagnosis)) = failed.next() else {
                outcome = Err(Blocked::no("no more pods of the group could run."));
                break;
            };
            // What went for another may be enough for this one too.
            let slot = self.choose_at(&waiting.pod, place);
            let found = match slot {
                Some(slot) => Ok((slot, None)),
                None => {
                    let victims = self.victims_for(&waiting.pod, place, trial);
                    victims.map(|victims| (victims.slot, Some(victims)))
                }
            };
            match found {
                Ok((slot, victims)) => {
                    for victim in victims.iter().flat_map(|victims| &*victims.pods) {
                        let node = self.snapshot.nodes[slot].name.clone();
                        self.snapshot.remove_pod(&victim.uid);
                        trial.gone.push((victim.clone(), node));
                    }
                    self.settle_for_now(waiting, slot, victims, trial);
                }
                Err(why) => {
                    trial.failed.push((waiting, diagnosis));
                    outcome = Err(why);
                    break;
                }
            }
        }
        trial.failed.extend(failed);
        outcome
    }

    fn victims_for(
        &mut self,
        pod: &Arc<PodInfo>,
        place: Option<&Place>,
        trial: &Trial,
    ) -> Result<Victims, Blocked> {
        if !pod.needs.profile.preempts || self.snapshot.node_count() == 0 {
            return Err(Blocked::no(""));
        }
        self.preemption_attempts += 1;
        let mut about_pods = self.placement.diagnose(pod, &mut self.snapshot).about_pods.clone();
        if let Some(place) = place {
            about_pods.retain(|slot| place.has(*slot));
        }
        if let Some(why) = preemption::hindrance(pod, &about_pods, &self.snapshot) {
            return Err(Blocked { why: why.to_owned(), keeps_node: true });
        }
        let found = preemption::find(
            pod,
            &about_pods,
            &mut self.snapshot,
            &self.budgets.without(trial.gone.iter().map(|(victim, _)| victim)),
            &mut self.victims,
            &mut self.tie,
        );
        let found = found.map_err(|why| Blocked::no(&why))?;
        // One of the group is no victim of another: nothing would be gained.
        let is_own =
            |victim: &Arc<PodInfo>| trial.settled.iter().any(|settled| settled.waiting.pod.uid == victim.uid);
        let others = found.into_iter().filter(|victims| !victims.pods.iter().any(is_own));
        preemption::least(others.collect()).ok_or_else(|| Blocked::no("only pods of the group could go."))
    }

    /// The snapshot is as it was before the trial. Returns the pods that were settled.
    fn undo(&mut self, settled: Vec<Settled>, gone: Vec<(Arc<PodInfo>, String)>) -> Vec<Settled> {
        for one in settled.iter().rev() {
            let pod = &one.waiting.pod;
            self.snapshot.remove_pod(&pod.uid);
            self.unpromise(&one.promises);
            if let Some(kept) = &one.kept {
                self.snapshot.nominate(pod, kept);
            }
        }
        for (victim, node) in &gone {
            self.snapshot.put_pod(victim, node);
        }
        settled
    }

    fn give_up(&mut self, trial: Trial, message: &str, blocked: &Blocked, plan: &mut Plan, now: Duration) {
        let Trial { settled, failed, gone } = trial;
        let settled = self.undo(settled, gone);
        let gang = PluginSet::of(&[Plugin::GangScheduling]);
        let settled = settled.into_iter().map(|one| (one.waiting, blocked.told(message), gang));
        let failed = failed.into_iter().map(|(waiting, diagnosis)| {
            let message = blocked.told(&format!("{message} {}", diagnosis.message));
            (waiting, message, gang.union(diagnosis.plugins))
        });
        for (waiting, message, refused_by) in settled.chain(failed) {
            let pod = waiting.pod.clone();
            let mut nomination = Nomination::Keep;
            if !blocked.keeps_node && (self.denominate(&pod.uid, now) || pod.nominated.is_some()) {
                nomination = Nomination::Clear;
            }
            self.rest(waiting, message, refused_by, nomination, plan, now);
        }
    }

    /// Victims go, and the nodes are kept for the group.
    fn make_room_for_group(&mut self, trial: Trial, message: &str, plan: &mut Plan, now: Duration) {
        let Trial { settled, failed, gone } = trial;
        let settled = self.undo(settled, gone);
        let gang = PluginSet::of(&[Plugin::GangScheduling]);
        for Settled { waiting, node, victims, .. } in settled {
            let pod = waiting.pod.clone();
            let nomination = Nomination::Set(node.clone());
            let mut rejected = Rejected { pod, message: message.to_owned(), why: Why::NoNode, nomination };
            self.queue.give_back_unschedulable(waiting, gang, now);
            match victims {
                Some(victims) => self.make_room(&mut rejected, victims, plan, now),
                None => self.snapshot.nominate(&rejected.pod, &node),
            }
            plan.rejected.push(rejected);
        }
        for (waiting, diagnosis) in failed {
            let message = format!("{message} {}", diagnosis.message);
            self.rest(waiting, message, gang.union(diagnosis.plugins), Nomination::Keep, plan, now);
        }
    }

    fn rest(
        &mut self,
        waiting: Waiting,
        message: String,
        refused_by: PluginSet,
        nomination: Nomination,
        plan: &mut Plan,
        now: Duration,
    ) {
        let pod = waiting.pod.clone();
        self.queue.give_back_unschedulable(waiting, refused_by, now);
        plan.rejected.push(Rejected { pod, message, why: Why::NoNode, nomination });
    }
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
