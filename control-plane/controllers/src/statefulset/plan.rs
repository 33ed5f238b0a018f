//! What a StatefulSet does next. Pure.
//!
//! Ordered, a pod is made when those before it are available, and deleted when those after it are gone; in parallel no
//! pod waits for another. A new template replaces pods from the last one down to the partition, as many at a time as may
//! be unavailable.

use std::{collections::HashMap, ops::ControlFlow, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};

use super::identity::{ordinal, ordinals, revision_of, spec};
use crate::{
    intstr::{Round, resolve},
    meta::{MetaExt, count, pod_available_in, pod_is_ready, pod_is_terminal, pod_phase, seconds},
    pods::BURST,
};

/// One write, or a few that belong together.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Makes the claims and the pod of an ordinal.
    Create(i32),
    /// Makes claims that a pod waits for.
    MakeClaims(Arc<Pod>),
    /// Brings labels and owners of claims up to date.
    Repair(Arc<Pod>),
    Delete(Arc<Pod>),
}

/// The set's pods as they are.
pub(super) struct Replicas<'a> {
    pub(super) set: &'a StatefulSet,
    /// One place for each wanted ordinal, in order.
    wanted: Vec<(i32, Option<Arc<Pod>>)>,
    /// Those that should not be, the highest ordinal first.
    condemned: Vec<Arc<Pod>>,
    pub(super) update_revision: &'a str,
    min_ready: Duration,
    now: Timestamp,
}

/// What is known of claims.
pub(super) trait Claims {
    /// A claim of the ordinal is about to go.
    fn is_stale(&self, ordinal: i32) -> bool;

    /// Labels of the pod or owners of its claims are not what they should be.
    fn needs_repair(&self, pod: &Pod) -> bool;
}

impl<'a> Replicas<'a> {
    pub(super) fn new(
        set: &'a StatefulSet,
        pods: &[Arc<Pod>],
        update_revision: &'a str,
        now: Timestamp,
    ) -> Self {
        let by_ordinal: HashMap<Option<i32>, &Arc<Pod>> =
            pods.iter().map(|pod| (ordinal(set, pod), pod)).collect();
        let mut missing = 0;
        // What is missing beyond a burst is looked at when that is made, however many pods are wanted.
        let in_reach = |place: &(i32, Option<Arc<Pod>>)| {
            missing += usize::from(place.1.is_none());
            missing <= BURST
        };
        let is_condemned = |pod: &&Arc<Pod>| ordinal(set, pod).is_some_and(|it| !ordinals(set).contains(&it));
        let mut condemned: Vec<_> = pods.iter().filter(is_condemned).cloned().collect();
        condemned.sort_by_key(|pod| std::cmp::Reverse(ordinal(set, pod)));
        let place = |ordinal| (ordinal, by_ordinal.get(&Some(ordinal)).map(|pod| (*pod).clone()));
        let wanted = ordinals(set).map(place).take_while(in_reach).collect();
        let min_ready = seconds(spec(set).min_ready_seconds);
        Self { set, wanted, condemned, update_revision, min_ready, now }
    }

    fn is_ordered(&self) -> bool {
        spec(self.set).pod_management_policy.as_deref() != Some("Parallel")
    }

    pub(super) fn is_available(&self, pod: &Pod) -> bool {
        pod_phase(pod) == "Running" && self.available_in(pod).is_some_and(|wait| wait.is_zero())
    }

    fn available_in(&self, pod: &Pod) -> Option<Duration> {
        pod_available_in(pod, self.min_ready, self.now)
    }

    fn is_unavailable(&self, pod: &Pod) -> bool {
        pod.is_deleting() || !self.is_available(pod)
    }

    /// When the next pod becomes available by the passing of time.
    pub(super) fn next_available(&self) -> Option<Duration> {
        let waits = self.wanted.iter().filter_map(|(_, pod)| self.available_in(pod.as_ref()?));
        // Times in the API have whole seconds, so the pod may have been ready up to a second longer.
        waits.filter(|wait| !wait.is_zero()).min().map(|wait| wait + Duration::from_millis(10))
    }

    /// The steps that can be taken now: one after the other where the set is ordered.
    pub(super) fn plan(&self, claims: &dyn Claims) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.fill(claims, &mut steps).is_continue() && self.shrink(claims, &mut steps).is_continue() {
            self.update(&mut steps);
        }
        steps
    }

    /// Makes the pods that are missing.
    fn fill(&self, claims: &dyn Claims, steps: &mut Vec<Step>) -> ControlFlow<()> {
        for (ordinal, pod) in &self.wanted {
            let is_settled = match pod {
                None => {
                    if !claims.is_stale(*ordinal) {
                        steps.push(Step::Create(*ordinal));
                    }
                    false
                }
                // It is made anew when it is gone, whatever it ended with: nodes that shut down leave both.
                Some(pod) if pod_is_terminal(pod) => {
                    if !pod.is_deleting() {
                        steps.push(Step::Delete(pod.clone()));
                    }
                    false
                }
                Some(pod) => {
                    if matches!(pod_phase(pod), "" | "Pending") {
                        steps.push(Step::MakeClaims(pod.clone()));
                    }
                    let waits = self.is_ordered() && self.is_unavailable(pod);
                    if !waits && claims.needs_repair(pod) {
                        steps.push(Step::Repair(pod.clone()));
                    }
                    !waits
                }
            };
            if self.is_ordered() && !is_settled {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Deletes the pods that are too many.
    fn shrink(&self, claims: &dyn Claims, steps: &mut Vec<Step>) -> ControlFlow<()> {
        let repairs = self.condemned.iter().filter(|pod| claims.needs_repair(pod));
        steps.extend(repairs.map(|pod| Step::Repair(pod.clone())));
        let first_unavailable = self.first_unavailable();
        for pod in &self.condemned {
            let is_first = first_unavailable.is_some_and(|first| first.uid() == pod.uid());
            let waits = self.is_ordered() && !self.is_available(pod) && !is_first;
            if !pod.is_deleting() && !waits {
                steps.push(Step::Delete(pod.clone()));
            }
            if self.is_ordered() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// By ordinal, of those that should be before those that should not.
    fn first_unavailable(&self) -> Option<&Arc<Pod>> {
        let wanted = self.wanted.iter().filter_map(|(_, pod)| pod.as_ref());
        wanted.chain(self.condemned.iter().rev()).find(|pod| self.is_unavailable(pod))
    }

    /// Deletes pods of another revision than the new one.
    fn update(&self, steps: &mut Vec<Step>) {
        let strategy = spec(self.set).update_strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
            return;
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let partition = usize::try_from(partition(self.set).unwrap_or_default()).unwrap_or_default();
        let replicas = spec(self.set).replicas.unwrap_or(1);
        let most = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let most = most.map_or(1, |most| resolve(most, replicas, Round::Down)).max(1);
        let is_unavailable = |pod: &Option<Arc<Pod>>| pod.as_ref().is_none_or(|pod| self.is_unavailable(pod));
        let is_old = |pod: &Arc<Pod>| !pod.is_deleting() && revision_of(pod) != self.update_revision;
        let candidates = self.wanted.iter().skip(partition).filter_map(|(_, pod)| pod.as_ref());
        let candidates: Vec<&Arc<Pod>> = candidates.rev().filter(|pod| is_old(pod)).collect();
        let mut unavailable = count(self.wanted.iter().filter(|(_, pod)| is_unavailable(pod)));
        // An old pod that does not work costs nothing by being deleted; it only has to wait for its turn.
        let useless = count(candidates.iter().filter(|pod| self.is_unavailable(pod)));
        let mut under_way = unavailable - useless;
        for pod in candidates {
            let is_useless = self.is_unavailable(pod);
            if under_way >= most || (!is_useless && unavailable >= most) {
                continue;
            }
            under_way += 1;
            unavailable += i32::from(!is_useless);
            steps.push(Step::Delete(pod.clone()));
        }
    }
}

pub(super) fn partition(set: &StatefulSet) -> Option<i32> {
    spec(set).update_strategy.as_ref()?.rolling_update.as_ref()?.partition
}

pub(super) fn is_running_and_ready(pod: &Pod) -> bool {
    pod_phase(pod) == "Running" && pod_is_ready(pod)
}
