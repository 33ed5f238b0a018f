//! Finding a pod again: its state from what the runtime lists and what the API remembers.

use std::time::Duration;

use hawser_runtime::ContainerStatus;
use k8s_openapi::api::core::v1;

use super::desired::{DesiredPod, MINIMUM_GRACE};
use super::state::{Clock, PodState, TerminalPhase, Verdict};
use crate::eviction::EVICTED;
use crate::preemption::PREEMPTING;

impl PodState {
    /// State of a pod that this agent has not worked on yet: new ones, and those that an earlier agent left.
    ///
    /// `containers` are all that the runtime has of the pod, in any order. A container that the API knows as
    /// ready stays ready until a probe says otherwise.
    pub fn adopt(pod: &DesiredPod, containers: Vec<ContainerStatus>, clock: Clock) -> Self {
        let started = pod.object.status.as_ref().and_then(|known| known.start_time.as_ref());
        let started = started.map_or(clock.wall, |time| time.0);
        let mut state = Self {
            start_time: Some(started),
            found_at: clock.now,
            active_before: Duration::try_from(clock.wall.duration_since(started)).unwrap_or_default(),
            ..Self::default()
        };
        let mut containers = containers;
        containers.sort_by_key(|c| c.attempt);
        for status in containers {
            state.containers.entry(status.name.clone()).or_default().observe(status, clock.now);
        }
        state.adopt_round(pod);
        let Some(known) = &pod.object.status else { return state };
        state.heed_phase(pod);
        // A pod that was to go for the node's sake goes on being so.
        let grace = match known.reason.as_deref() {
            Some(EVICTED) => Some(MINIMUM_GRACE),
            Some(PREEMPTING) => Some(pod.spec_grace()),
            _ => None,
        };
        if let (None, Some(reason), Some(grace)) = (state.terminal, &known.reason, grace) {
            let message = known.message.as_deref().unwrap_or_default();
            state.verdict = Some(Verdict::eviction(reason, message, grace));
        }
        if state.any_running() {
            state.ips = known.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
        }
        let lists =
            [&known.init_container_statuses, &known.container_statuses, &known.ephemeral_container_statuses];
        for reported in lists.into_iter().flatten().flatten() {
            state.adopt_readiness(reported);
            // Restarts that only the API remembers count on (records on the node were lost).
            if reported.container_id.is_some() {
                let track = state.containers.entry(reported.name.clone()).or_default();
                track.attempt_floor = reported.restart_count.max(0).unsigned_abs() + 1;
            }
        }
        state
    }

    /// A terminal phase is never left, whoever wrote it: its pod's work is given to others.
    pub fn heed_phase(&mut self, pod: &DesiredPod) {
        let written = match pod.terminal_phase() {
            Some("Succeeded") => Some(TerminalPhase::Succeeded),
            Some(_) => Some(TerminalPhase::Failed),
            None => None,
        };
        self.terminal = self.terminal.or(written);
    }

    fn adopt_readiness(&mut self, reported: &v1::ContainerStatus) {
        let instance = self.containers.get_mut(&reported.name).and_then(|t| t.current.as_mut());
        let Some(instance) = instance else { return };
        let id = reported.container_id.as_deref().and_then(|uri| uri.split_once("://")).map(|(_, id)| id);
        if id == Some(instance.status.id.as_str()) && instance.is_running() {
            instance.started = reported.started == Some(true);
            instance.ready = reported.ready;
            instance.resources = reported.resources.clone();
        }
    }
}
