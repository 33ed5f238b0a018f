//! The deciding part: what the cluster is, who waits, and who goes where. No client, and no clock but to measure itself.
//!
//! The shell tells it every change of what it follows, and asks it for batches of decisions. A pod that was given
//! a node is assumed to be there until the API says so, or the shell says that the binding failed; meanwhile
//! it takes its room, so that no node is promised twice. A pod for which others are deleted is nominated for their node and
//! is not tried again before the shell has deleted them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use hawser_api::{client::Binding, resource::ObjectKey};

use crate::{
    budgets::Budgets,
    config::Config,
    devices::Devices,
    extender::{Extender, Question},
    group::{Known, Told},
    hints::{self, Event, Fit},
    intern::Same,
    metrics::{Cause, Gauges},
    placement::{Diagnosis, Placement},
    pod::{Needs, PodInfo, Reader},
    preemption,
    profile::{Plugin, PluginSet, Profile},
    queue::{Place, Queue, Waiting},
    random::Random,
    snapshot::{Slot, Snapshot},
    timings::{Point, Status},
    victims::{KnownVictims, Victims},
    volumes::Volumes,
};

mod changes;
mod explain;
mod extended;
mod groups;
mod promises;

pub(crate) use promises::{Deallocation, Promises};

pub(crate) struct Scheduler {
    /// By scheduler name; never empty.
    profiles: Vec<Arc<Profile>>,
    reader: Reader,
    snapshot: Snapshot,
    queue: Queue,
    placement: Placement,
    budgets: Budgets,
    victims: KnownVictims,
    /// Pods with a node that the API does not show yet.
    assumed: HashMap<Arc<str>, Assumed>,
    /// Pods whose claims are being written. What they were promised is kept until that is over, even where they are gone: a
    /// write that is on its way cannot be called back.
    writing: HashMap<Arc<str>, Option<Promises>>,
    /// Pods whose victims are being deleted, and whether their turn came meanwhile.
    clearing: HashMap<Arc<str>, bool>,
    extenders: Vec<Arc<Extender>>,
    /// The one pod that extenders are asked about.
    asked: Option<extended::Asked>,
    pod_groups: HashMap<ObjectKey, Known>,
    /// Pods of pod groups that are over, and still there.
    done: groups::Done,
    /// How often it was looked for pods that could go for another.
    preemption_attempts: u64,
    tie: Random,
}

/// How far a node could run pods, by what they need and their priority.
type Fits = HashMap<(Same<Needs>, i32), Fit>;

fn fit_before(before: &Fits) -> impl Fn(&PodInfo) -> Fit {
    |pod| before.get(&(Same(pod.needs.clone()), pod.priority)).copied().unwrap_or(Fit::No)
}

struct Assumed {
    waiting: Waiting,
    promises: Promises,
    /// It is being deleted, or over: where its binding fails, nothing is left to place.
    unwanted: bool,
}

/// What to write after one round.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) bindings: Vec<Decision>,
    /// Pods that can be bound when their volumes are, and their claims are theirs.
    pub(crate) provisionings: Vec<Provisioning>,
    pub(crate) deallocations: Vec<Deallocation>,
    pub(crate) group_statuses: Vec<GroupStatus>,
    pub(crate) rejected: Vec<Rejected>,
    pub(crate) preemptions: Vec<Preemption>,
    /// What extenders are to be asked.
    pub(crate) question: Option<Question>,
    /// Placed pods with wishes that were not considered: their users are told.
    pub(crate) partly: Vec<Arc<PodInfo>>,
    /// The limit ended the round: more pods may be ready to be tried.
    pub(crate) limited: bool,
}

/// A pod's node.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    pub(crate) pod: Arc<PodInfo>,
    pub(crate) binding: Binding,
    pub(crate) attempt: Attempt,
    /// Who binds it instead of the API server.
    pub(crate) binder: Option<Arc<Extender>>,
}

/// What is told in metrics of a pod that is tried.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) profile: Arc<Profile>,
    /// Attempts with this one.
    pub(crate) attempts: u32,
    /// When the pod was first ready to be tried, and when it was decided on.
    pub(crate) entered: Duration,
    pub(crate) decided: Duration,
}

/// A pod that is to be bound when it has what it was promised.
#[derive(Clone, Debug)]
pub(crate) struct Provisioning {
    pub(crate) decision: Decision,
    pub(crate) promises: Promises,
}

/// What has to be told of a pod group.
#[derive(Clone, Debug)]
pub(crate) struct GroupStatus {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    pub(crate) told: Told,
    /// It said the contrary before, or nothing.
    pub(crate) turns: bool,
}

/// A pod that no node can run.
#[derive(Clone, Debug)]
pub(crate) struct Rejected {
    pub(crate) pod: Arc<PodInfo>,
    /// `0/3 nodes are available: ...`
    pub(crate) message: String,
    pub(crate) why: Why,
    pub(crate) nomination: Nomination,
}

/// Why a pod has no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    NoNode,
    /// Something that is needed to decide does not work.
    Trouble,
}

/// What becomes of the pod's `nominatedNodeName`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Nomination {
    Keep,
    Set(String),
    Clear,
}

/// Pods to delete for one that waits.
#[derive(Clone, Debug)]
pub(crate) struct Preemption {
    pub(crate) pod: Arc<PodInfo>,
    pub(crate) node: String,
    pub(crate) victims: Vec<Arc<PodInfo>>,
    /// Pods of lower priority that the node was kept for.
    pub(crate) displaced: Vec<Arc<PodInfo>>,
}

impl Scheduler {
    /// `seed` decides among nodes that are equally good.
    pub(crate) fn new(config: &Config, seed: u64) -> Self {
        Self {
            profiles: config.profiles.0.clone(),
            reader: Reader::new(config.extenders.0.clone()),
            extenders: config.extenders.0.clone(),
            asked: None,
            snapshot: Snapshot::default(),
            queue: Queue::new(config),
            placement: Placement::default(),
            budgets: Budgets::default(),
            victims: KnownVictims::default(),
            assumed: HashMap::new(),
            writing: HashMap::new(),
            clearing: HashMap::new(),
            pod_groups: HashMap::new(),
            done: groups::Done::default(),
            preemption_attempts: 0,
            tie: Random::new(seed),
        }
    }

    /// Places up to `limit` waiting pods and assumes them where they go.
    pub(crate) fn schedule(&mut self, limit: usize, now: Duration) -> Plan {
        let mut plan = Plan::default();
        self.go_on(&mut plan, now);
        for _ in 0..limit {
            let Some(mut waiting) = self.queue.pop(now) else {
                return plan;
            };
            waiting.pod = self.reader.refresh(&waiting.pod);
            if let Some(came) = self.clearing.get_mut(&waiting.pod.uid) {
                *came = true;
                self.queue.put_back(waiting, now);
                continue;
            }
            if self.awaits_claims(&waiting) {
                self.give_back_for_claims(waiting, now);
                continue;
            }
            let pod = &waiting.pod;
            if !pod.extenders.is_empty() {
                if self.asked.is_some() {
                    // Its turn comes when the one before it has been answered.
                    self.queue.give_back_untried(waiting, now);
                    return plan;
                }
                self.ask(waiting, &mut plan, now);
                continue;
            }
            if let Some(group) = pod.group.clone() {
                self.place_group(waiting, &group, &mut plan, now);
                continue;
            }
            match self.placement.choose(pod, &mut self.snapshot, &mut self.tie) {
                Some(slot) => self.assume(waiting, slot, &mut plan, now),
                None => self.reject(waiting, &mut plan, now),
            }
        }
        plan.limited = true;
        plan
    }

    /// Whether a controller is still to make the pod's claims.
    fn awaits_claims(&self, waiting: &Waiting) -> bool {
        let is_on = waiting.pod.needs.profile.filters.contains(Plugin::DynamicResources);
        is_on && self.snapshot.devices.awaits(&waiting.pod)
    }

    /// As upstream's PreEnqueue: nobody is told of the moment that a controller takes.
    fn give_back_for_claims(&mut self, waiting: Waiting, now: Duration) {
        self.queue.give_back_early(waiting, PluginSet::of(&[Plugin::DynamicResources]), now);
    }

    /// The pod is not on the node it was promised: the room is free again, and the pod waits.
    pub(crate) fn bind_failed(&mut self, uid: &str, now: Duration) {
        // Deleted or shown as bound meanwhile: there is nothing to undo.
        let Some(Assumed { waiting, promises, unwanted }) = self.assumed.remove(uid) else {
            return;
        };
        self.take_back(&promises, now);
        self.free(uid, now);
        if !unwanted {
            self.queue.give_back_failed(waiting, now);
        }
    }

    /// The pod is not there any more: nothing is left to place.
    pub(crate) fn bind_refused_for_good(&mut self, uid: &str, now: Duration) {
        if let Some(assumed) = self.assumed.remove(uid) {
            self.abandon(uid, assumed.promises, now);
            self.free(uid, now);
        }
    }

    /// The victims of a preemption are deleted, or could not be: the pod may be tried again.
    pub(crate) fn cleared(&mut self, uid: &str, all: bool, now: Duration) {
        if self.clearing.remove(uid).is_some_and(|came| came || !all) {
            self.queue.activate_one(uid, now);
        }
    }

    /// What is known of volumes, for whoever writes what was decided of them.
    pub(crate) fn volumes(&self) -> &Volumes {
        &self.snapshot.volumes
    }

    /// The same of devices.
    pub(crate) fn devices(&self) -> &Devices {
        &self.snapshot.devices
    }

    pub(crate) fn has_node(&self, name: &str) -> bool {
        self.snapshot.slot(name).is_some_and(|slot| self.snapshot.nodes[slot].exists)
    }

    pub(crate) fn next_wakeup(&self) -> Option<Duration> {
        self.queue.next_wakeup()
    }

    /// Pods that wait in a place.
    pub(crate) fn waiting(&self, place: Place) -> usize {
        self.queue.count(place)
    }

    /// What there is, for metrics. Costs the sorts of pods that are unschedulable.
    pub(crate) fn gauges(&self) -> Gauges {
        let mut gauges = Gauges {
            pending: Place::ALL.map(|place| (place, self.queue.count(place))),
            incoming: Place::ALL.map(|place| (place, Cause::ALL.map(|cause| self.queue.came(place, cause)))),
            nodes: self.snapshot.node_count(),
            pods: self.snapshot.pod_count(),
            assumed_pods: self.assumed.len(),
            preemption_attempts: self.preemption_attempts,
            timings: self.placement.timings.clone(),
            unschedulable: BTreeMap::new(),
        };
        for (pod, refused_by, pods) in self.queue.refused() {
            // Where there are no nodes, no plugin refuses one.
            let plugins = Plugin::ALL.into_iter().filter(|plugin| refused_by.contains(*plugin));
            for plugin in plugins.filter(|_| refused_by != PluginSet::ALL) {
                let key = (plugin.name(), pod.needs.profile.scheduler_name.clone());
                *gauges.unschedulable.entry(key).or_default() += pods;
            }
        }
        gauges
    }

    fn assume(&mut self, waiting: Waiting, slot: Slot, plan: &mut Plan, now: Duration) {
        let node = self.snapshot.nodes[slot].name.clone();
        let mut watch = self.placement.watch_on();
        let promises = self.settle(&waiting.pod, slot);
        watch.note(Point::Reserve, Status::Success);
        self.placement.timings.take(watch, &waiting.pod.needs.profile.scheduler_name);
        self.decide(waiting, node, promises, plan, now);
    }

    /// The pod that was settled on the node gets it.
    fn decide(&mut self, waiting: Waiting, node: String, promises: Promises, plan: &mut Plan, now: Duration) {
        let pod = waiting.pod.clone();
        self.denominate(&pod.uid, now);
        let binding = Binding {
            namespace: pod.key.namespace.clone(),
            pod: pod.key.name.clone(),
            uid: pod.uid.to_string(),
            node,
        };
        let attempt = Attempt {
            profile: pod.needs.profile.clone(),
            attempts: waiting.attempts + 1,
            entered: waiting.entered,
            decided: now,
        };
        let decision = Decision { pod: pod.clone(), binding, attempt, binder: self.binder_of(&pod) };
        if promises.is_empty() {
            plan.bindings.push(decision);
        } else {
            if !promises.devices.0.is_empty() {
                self.writing.insert(pod.uid.clone(), None);
            }
            plan.provisionings.push(Provisioning { decision, promises: promises.clone() });
        }
        if !pod.not_considered.is_empty() {
            plan.partly.push(pod.clone());
        }
        self.assumed.insert(pod.uid.clone(), Assumed { waiting, promises, unwanted: false });
        self.wake(&Event::PodPlaced(&pod), now);
    }

    fn reject(&mut self, waiting: Waiting, plan: &mut Plan, now: Duration) {
        let diagnosis = self.placement.diagnose(&waiting.pod, &mut self.snapshot);
        self.reject_for(waiting, &diagnosis, plan, now);
    }

    fn reject_for(&mut self, waiting: Waiting, diagnosis: &Diagnosis, plan: &mut Plan, now: Duration) {
        let pod = waiting.pod.clone();
        let mut rejected = Rejected {
            pod: pod.clone(),
            message: diagnosis.message.clone(),
            why: Why::NoNode,
            nomination: Nomination::Keep,
        };
        self.deallocate(&mut rejected, diagnosis, plan);
        self.queue.give_back_unschedulable(waiting, diagnosis.plugins, now);
        if pod.needs.profile.preempts && self.snapshot.node_count() > 0 {
            let mut watch = self.placement.watch_on();
            let before = plan.preemptions.len();
            self.preempt(rejected, &diagnosis.about_pods, plan, now);
            watch.note(Point::PostFilter, Status::of_filter(plan.preemptions.len() > before));
            self.placement.timings.take(watch, &pod.needs.profile.scheduler_name);
        } else {
            plan.rejected.push(rejected);
        }
    }

    /// Looks for pods that could go for this one.
    fn preempt(&mut self, mut rejected: Rejected, about_pods: &[Slot], plan: &mut Plan, now: Duration) {
        self.preemption_attempts += 1;
        let pod = rejected.pod.clone();
        if let Some(why) = preemption::hindrance(&pod, about_pods, &self.snapshot) {
            rejected.message += &format!(" preemption: {why}");
            plan.rejected.push(rejected);
            return;
        }
        let found = preemption::find(
            &pod,
            about_pods,
            &mut self.snapshot,
            &self.budgets.without([]),
            &mut self.victims,
            &mut self.tie,
        );
        match found {
            Ok(found) if self.asks_about_victims(&pod) => self.ask_about_victims(rejected, &found, plan),
            Ok(found) => {
                if let Some(victims) = preemption::least(found) {
                    self.make_room(&mut rejected, victims, plan, now);
                }
                plan.rejected.push(rejected);
            }
            Err(why) => {
                self.no_room(&mut rejected, &why, now);
                plan.rejected.push(rejected);
            }
        }
    }

    /// The pod gets the node when the victims are gone.
    fn make_room(&mut self, rejected: &mut Rejected, victims: Victims, plan: &mut Plan, now: Duration) {
        let pod = rejected.pod.clone();
        let node = self.snapshot.nodes[victims.slot].name.clone();
        let displaced = self.snapshot.nominations.below(pod.priority, &node);
        for other in &displaced {
            self.denominate(&other.uid, now);
            self.queue.activate_one(&other.uid, now);
        }
        self.snapshot.nominate(&pod, &node);
        self.clearing.insert(pod.uid.clone(), false);
        rejected.nomination = Nomination::Set(node.clone());
        plan.preemptions.push(Preemption { pod, node, victims: victims.pods.to_vec(), displaced });
    }

    /// Preemption does not help the pod.
    fn no_room(&mut self, rejected: &mut Rejected, why: &str, now: Duration) {
        rejected.message += &format!(" preemption: {why}");
        if self.denominate(&rejected.pod.uid, now) || rejected.pod.nominated.is_some() {
            rejected.nomination = Nomination::Clear;
        }
    }

    /// The pod does not wait any more.
    fn forget(&mut self, uid: &str, now: Duration) {
        self.queue.remove(uid);
        self.clearing.remove(uid);
        self.asked.take_if(|asked| &*asked.pod.uid == uid);
        self.denominate(uid, now);
    }

    /// No node is kept for the pod any more. True where one was.
    fn denominate(&mut self, uid: &str, now: Duration) -> bool {
        let Some(pod) = self.snapshot.nominations.get(uid).cloned() else {
            return false;
        };
        if let Some(slot) = self.snapshot.denominate(uid) {
            self.node_event(slot, &Fits::new(), Cause::AssignedPodDelete, now);
            // It was counted there as if it had come.
            self.wake(&Event::PodGone(&pod), now);
        }
        true
    }

    fn free(&mut self, uid: &str, now: Duration) {
        let Some((slot, pod)) = self.snapshot.placed(uid).map(|(slot, pod)| (slot, pod.clone())) else {
            return;
        };
        let before = self.fitting(Some(slot), hints::may_lack_room);
        self.snapshot.remove_pod(uid);
        self.node_event(slot, &before, Cause::AssignedPodDelete, now);
        self.wake(&Event::PodGone(&pod), now);
    }

    /// What unschedulable pods need that the node could run, as far as it can tell by itself: of those that some plugins refused.
    fn fitting(&self, slot: Option<Slot>, refused_by: impl Fn(PluginSet) -> bool) -> Fits {
        let Some(slot) = slot else {
            return Fits::new();
        };
        let mut fits = Fits::new();
        for pod in self.queue.unschedulable(refused_by) {
            let of_pod = fits.entry((Same(pod.needs.clone()), pod.priority));
            of_pod.or_insert_with(|| hints::fit(pod, slot, &self.snapshot));
        }
        fits
    }

    /// Room appeared on a node.
    fn node_event(&mut self, slot: Slot, before: &Fits, cause: Cause, now: Duration) {
        let before = fit_before(before);
        let gained = &BTreeSet::new();
        self.wake(&Event::Node { slot, before: &before, relabelled: false, gained, cause }, now);
    }

    fn wake(&mut self, event: &Event<'_>, now: Duration) {
        let snapshot = &self.snapshot;
        let may_help = |refused_by| event.may_help(refused_by);
        let helped = |pod: &PodInfo, refused_by| event.helps(pod, refused_by, snapshot);
        self.queue.activate(event.cause(), now, may_help, helped);
    }
}

#[cfg(test)]
impl Scheduler {
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Whether the pod waits for something to happen that helps it.
    pub(crate) fn rests(&self, uid: &str) -> bool {
        self.queue.place_of(uid) == Some(Place::Unschedulable)
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
