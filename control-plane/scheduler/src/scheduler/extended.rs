//! Pods that extenders have a say about: what they are asked, and what becomes of their answers.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{Nomination, Plan, Rejected, Scheduler, Why};
use crate::{
    extender::{About, Answer, Extender, Nodes, Question, Sacrifice},
    pod::PodInfo,
    preemption,
    queue::Waiting,
    snapshot::{Slot, Versions},
    victims::Victims,
};

/// A pod whose extenders have been asked.
pub(super) struct Asked {
    pub(super) pod: Arc<PodInfo>,
    about: Subject,
    answer: Option<Answer>,
}

enum Subject {
    /// The pod is in no other place, and what happens meanwhile cannot wake it: it is seen by what the cluster was.
    /// `None` where the pod itself is another by now.
    Nodes(Box<Waiting>, Option<Versions>),
    /// The pod is unschedulable, and kept from being tried.
    Victims(Box<Rejected>),
}

impl Scheduler {
    /// The extenders have answered. The next round goes on with it.
    pub(crate) fn answered(&mut self, uid: &str, answer: Answer) {
        // Gone, or placed by somebody else meanwhile: nobody waits for the answer.
        if let Some(asked) = self.asked.as_mut().filter(|asked| &*asked.pod.uid == uid) {
            asked.answer = Some(answer);
        }
    }

    /// Who binds the pod instead of the API server.
    pub(super) fn binder_of(&self, pod: &PodInfo) -> Option<Arc<Extender>> {
        pod.extenders.among(&self.extenders).find(|extender| !extender.settings.bind_verb.is_empty()).cloned()
    }

    pub(super) fn asks_about_victims(&self, pod: &PodInfo) -> bool {
        self.asked.is_none()
            && pod.extenders.among(&self.extenders).any(|extender| !extender.settings.preempt_verb.is_empty())
    }

    /// Whether the pod waits for an answer about its nodes; what changed of it is taken over.
    pub(super) fn is_asked(&mut self, pod: &Arc<PodInfo>) -> bool {
        let Some(asked) = self.asked.as_mut().filter(|asked| asked.pod.uid == pod.uid) else {
            return false;
        };
        asked.pod = pod.clone();
        match &mut asked.about {
            Subject::Nodes(waiting, asked_at) => {
                if waiting.pod.wishes() != pod.wishes() {
                    *asked_at = None;
                }
                waiting.pod = pod.clone();
                true
            }
            Subject::Victims(_) => false,
        }
    }

    /// Asks which of the nodes that can run the pod it may have.
    pub(super) fn ask(&mut self, waiting: Waiting, plan: &mut Plan, now: Duration) {
        let pod = waiting.pod.clone();
        let slots = self.placement.feasible(&pod, &mut self.snapshot);
        if slots.is_empty() {
            self.reject(waiting, plan, now);
            return;
        }
        let nodes = slots.into_iter().map(|slot| self.snapshot.nodes[slot].name.clone()).collect();
        plan.question = Some(Question { pod: pod.clone(), about: About::Nodes(nodes) });
        let about = Subject::Nodes(Box::new(waiting), Some(self.snapshot.versions()));
        self.asked = Some(Asked { pod, about, answer: None });
    }

    /// Asks whose victims it may be.
    pub(super) fn ask_about_victims(&mut self, rejected: Rejected, found: &[Victims], plan: &mut Plan) {
        let pod = rejected.pod.clone();
        let sacrifices = found.iter().map(|victims| Sacrifice {
            node: self.snapshot.nodes[victims.slot].name.clone(),
            pods: victims.pods.to_vec(),
            violations: victims.violations,
        });
        plan.question = Some(Question { pod: pod.clone(), about: About::Victims(sacrifices.collect()) });
        self.clearing.insert(pod.uid.clone(), false);
        self.asked = Some(Asked { pod, about: Subject::Victims(Box::new(rejected)), answer: None });
    }

    /// Goes on with the pod whose extenders have answered.
    pub(super) fn go_on(&mut self, plan: &mut Plan, now: Duration) {
        let Some(asked) = self.asked.take_if(|asked| asked.answer.is_some()) else {
            return;
        };
        match (asked.about, asked.answer) {
            (Subject::Nodes(waiting, asked_at), Some(Answer::Nodes(nodes))) => {
                self.place_among(*waiting, &nodes, asked_at, plan, now)
            }
            (Subject::Nodes(waiting, _), answer) => {
                let rejected = Rejected {
                    pod: waiting.pod.clone(),
                    message: failure(answer),
                    why: Why::Trouble,
                    nomination: Nomination::Keep,
                };
                self.queue.give_back_failed(*waiting, now);
                plan.rejected.push(rejected);
            }
            (Subject::Victims(rejected), Some(Answer::Victims(victims))) => {
                self.preempt_as_told(*rejected, &victims, plan, now);
            }
            (Subject::Victims(mut rejected), answer) => {
                rejected.message += &format!(" preemption: {}", failure(answer));
                self.cleared(&rejected.pod.uid, false, now);
                plan.rejected.push(*rejected);
            }
        }
    }

    fn place_among(
        &mut self,
        waiting: Waiting,
        nodes: &Nodes,
        asked_at: Option<Versions>,
        plan: &mut Plan,
        now: Duration,
    ) {
        let has_changed = asked_at != Some(self.snapshot.versions());
        let pod = waiting.pod.clone();
        let slots = nodes.scores.iter().filter_map(|(name, more)| Some((self.snapshot.slot(name)?, *more)));
        let mut left: Vec<(Slot, i64)> = slots.collect();
        left.sort_unstable();
        match self.placement.choose_among(&pod, &mut self.snapshot, &mut self.tie, &left) {
            Some(slot) => self.assume(waiting, slot, plan, now),
            None if nodes.scores.is_empty() => {
                let diagnosis = self.placement.diagnose_refused(&pod, &mut self.snapshot, &nodes.refused);
                self.reject_for(waiting, &diagnosis, plan, now);
                // As if it happened now: any event helps whom an extender refused.
                if has_changed {
                    self.queue.activate_one(&pod.uid, now);
                }
            }
            // What they left is gone meanwhile: they are asked again about what there is now.
            None => self.queue.give_back_untried(waiting, now),
        }
    }

    fn preempt_as_told(
        &mut self,
        mut rejected: Rejected,
        told: &BTreeMap<String, (HashSet<String>, usize)>,
        plan: &mut Plan,
        now: Duration,
    ) {
        let uid = rejected.pod.uid.clone();
        let given = told.iter().filter_map(|(node, (uids, violations))| {
            let slot = self.snapshot.slot(node)?;
            let there = &self.snapshot.nodes[slot].pods;
            let pods: Vec<Arc<PodInfo>> =
                there.iter().filter(|pod| uids.contains(&*pod.uid)).cloned().collect();
            // Pods that are not there, or not below it, are no victims: the extender knows another cluster than this one.
            let lower = pods.iter().all(|pod| pod.priority < rejected.pod.priority);
            let all = pods.len() == uids.len() && !pods.is_empty();
            (all && lower).then(|| Victims::given(slot, pods, *violations))
        });
        match preemption::least(given.collect()) {
            Some(victims) => self.make_room(&mut rejected, victims, plan, now),
            None => {
                self.no_room(&mut rejected, "no extender leaves a node where pods could go.", now);
                self.cleared(&uid, true, now);
            }
        }
        plan.rejected.push(rejected);
    }
}

fn failure(answer: Option<Answer>) -> String {
    match answer {
        Some(Answer::Failed(why)) => why,
        _ => "an extender answered another question".to_owned(),
    }
}
