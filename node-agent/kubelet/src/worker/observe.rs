//! What a worker learns: mail, the runtime's word on containers, probe results; and the events that follow.

use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{ContainerId, ContainerState as RuntimeState, ContainerStatus};
use k8s_openapi::api::core::v1::{self, PodStatus};
use tokio::time::Instant;
use tracing::warn;

use super::{Worker, termination};
use crate::container::termination_file;
use crate::events::EventType;
use crate::eviction::EVICTED;
use crate::pod::decide::is_stopping;
use crate::pod::resize::with_amounts;
use crate::pod::state::{Kill, Verdict};
use crate::pod::{DesiredContainer, DesiredPod, Instance};
use crate::probes::{PodRef, ProbeKind, ProbeReport, ProbeTarget};

/// After this long, a container that could not be looked at is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Worker {
    pub(super) async fn take_mail(&mut self) {
        let mail = self.mailbox.take();
        let clock = self.shared.clock.now();
        if let Some(pod) = mail.pod {
            self.asked = pod;
            let desired = DesiredPod::new(with_amounts(self.asked.clone(), &self.granted));
            let fields_changed = desired.object.metadata.labels != self.pod.object.metadata.labels
                || desired.object.metadata.annotations != self.pod.object.metadata.annotations;
            self.pod = desired;
            self.state.heed_phase(&self.pod);
            self.state.deleted &= self.pod.is_deleted();
            self.grant();
            if fields_changed {
                self.refresh.want();
            }
        }
        if mail.gone {
            self.state.gone_since.get_or_insert(clock.now);
        }
        if let Some(verdict) = mail.verdict {
            self.fail(verdict);
        }
        if mail.objects_changed {
            self.state.retry_config_errors(clock.now);
            self.refresh.want();
        }
        let mut containers = mail.containers;
        if self.look_again_at.is_some_and(|at| at <= Instant::now()) {
            self.look_again_at = None;
            containers.append(&mut self.look_again);
        }
        for id in containers {
            self.look_at(&id).await;
        }
        if let Some(listed) = mail.listed {
            self.take_list(listed).await;
        }
        for report in mail.probes.into_values() {
            self.take_probe(report);
        }
    }

    /// The pod has to go, unless it does already.
    fn fail(&mut self, verdict: Verdict) {
        if is_stopping(&self.pod, &self.state) {
            return;
        }
        if verdict.reason == EVICTED {
            let message = verdict.message.clone();
            self.shared.recorder.pod(&self.pod, EventType::Warning, EVICTED, message);
        }
        self.state.verdict = Some(verdict);
    }

    async fn look_at(&mut self, id: &str) {
        match self.shared.runtime.container_status(id).await {
            Ok(Some(status)) => self.observe(status),
            Ok(None) => self.observe_vanished(id),
            Err(error) => {
                warn!(pod = %self.pod.key(), id, %error, "container was not looked at, trying again");
                self.look_again.insert(id.to_owned());
                self.look_again_at.get_or_insert(Instant::now() + LOOK_AGAIN);
            }
        }
    }

    /// Takes a list of the pod's containers. It can be older than what is known by now.
    async fn take_list(&mut self, listed: Vec<ContainerStatus>) {
        if self.state.torn_down || self.state.busy.cleanup {
            return;
        }
        let known = self.state.containers.values().filter_map(|t| t.current.as_ref());
        let missing: Vec<ContainerId> = known
            .map(|instance| instance.status.id.clone())
            .filter(|id| !listed.iter().any(|c| c.id == *id))
            .collect();
        for status in listed {
            self.observe(status);
        }
        for id in missing {
            // It may have been made since.
            self.look_at(&id).await;
        }
    }

    fn observe(&mut self, status: ContainerStatus) {
        let now = self.shared.clock.now().now;
        // What was not started belongs to the start that is making it, which may remove it and make it anew.
        let starting = self.state.busy.starting.contains(&status.name);
        if starting && status.started_at.is_none() {
            return;
        }
        self.state.containers.entry(status.name.clone()).or_default().observe(status, now);
    }

    /// A container that ran and is no longer known to the runtime has ended, nobody saw how.
    fn observe_vanished(&mut self, id: &str) {
        if self.state.torn_down || self.state.busy.cleanup {
            return;
        }
        let now = self.shared.clock.now().now;
        if let Some((_, instance)) = self.state.instance_mut(id).filter(|(_, i)| i.is_running()) {
            Arc::make_mut(&mut instance.status).state = RuntimeState::Unknown;
            instance.exit_noticed = Some(now);
        }
    }

    /// Reads the termination messages of instances that have ended since.
    pub(super) async fn read_exits(&mut self) {
        let config = self.shared.config.clone();
        let uid = self.pod.uid().to_owned();
        let spec = self.pod.spec();
        let containers = spec.containers.len() + spec.init_containers.iter().flatten().count();
        for (name, track) in &mut self.state.containers {
            let policy = self.pod.container(name).and_then(|c| c.spec.termination_message_policy.as_deref());
            let from_log = policy == Some("FallbackToLogsOnError");
            for instance in [&mut track.current, &mut track.previous].into_iter().flatten() {
                if instance.exit_noticed.is_some() && instance.termination_message.is_none() {
                    let file = termination_file(&config, &uid, name, instance.status.attempt);
                    let log_complete =
                        from_log.then(|| self.shared.runtime.log_complete(&instance.status.id));
                    let message = termination::message(instance, &file, log_complete, containers);
                    instance.termination_message = Some(message.await.unwrap_or_default());
                }
            }
        }
    }

    fn take_probe(&mut self, report: ProbeReport) {
        let Some(container) = self.pod.container(&report.container).cloned() else { return };
        if let Some(why) = &report.failure {
            let message = format!("{} probe failed: {why}", report.kind.as_str());
            self.shared.recorder.container(
                &self.pod,
                container.name(),
                EventType::Warning,
                "Unhealthy",
                message,
            );
        }
        if let Some(why) = &report.warning {
            let message = format!("{} probe warning: {why}", report.kind.as_str());
            let recorder = &self.shared.recorder;
            recorder.container(&self.pod, container.name(), EventType::Warning, "ProbeWarning", message);
        }
        let Some(verdict) = report.verdict else { return };
        let pod = self.pod.clone();
        let Some((_, instance)) = self.state.instance_mut(&report.container_id) else { return };
        match report.kind {
            ProbeKind::Startup if verdict => instance.started = true,
            ProbeKind::Readiness => instance.ready = verdict,
            ProbeKind::Liveness | ProbeKind::Startup if !verdict && instance.kill.is_none() => {
                instance.kill = Some(kill(&pod, &container, report.kind));
            }
            ProbeKind::Liveness | ProbeKind::Startup => {}
        }
    }

    /// Makes the set of running probes what it should be.
    pub(super) fn sync_probes(&mut self) {
        let stopping = is_stopping(&self.pod, &self.state);
        let mut wanted: Vec<(DesiredContainer, Instance, ProbeKind)> = Vec::new();
        for container in &self.pod.containers {
            let name = container.name();
            let Some(instance) = self.state.track(name).and_then(|t| t.current.as_ref()) else { continue };
            let hook_runs = container.has_post_start() && self.state.busy.starting.contains(name);
            if !instance.is_running() || hook_runs {
                continue;
            }
            for kind in probes_now(container, instance, stopping) {
                wanted.push((container.clone(), instance.clone(), kind));
            }
        }
        let key = |instance: &Instance, kind: ProbeKind| (instance.status.id.clone(), kind);
        self.probes
            .retain(|known, _| wanted.iter().any(|(_, instance, kind)| key(instance, *kind) == *known));
        for (container, instance, kind) in wanted {
            let key = key(&instance, kind);
            if self.probes.contains_key(&key) {
                continue;
            }
            let Some(probe) = kind.of(&container.spec).cloned() else { continue };
            let target = ProbeTarget {
                pod: PodRef {
                    namespace: self.pod.namespace().to_owned(),
                    name: self.pod.name().to_owned(),
                    uid: self.pod.uid().to_owned(),
                },
                kind,
                probe,
                container: container.name().to_owned(),
                container_id: instance.status.id.clone(),
                pod_ip: self.state.ips.first().copied(),
                ports: container.spec.ports.clone().unwrap_or_default(),
                started_at: instance.status.started_at.unwrap_or_else(jiff::Timestamp::now),
            };
            let mailbox = self.mailbox.clone();
            let sink = Arc::new(move |report: ProbeReport| mailbox.probe(report));
            self.probes.insert(key, self.shared.prober.add(target, sink));
        }
    }

    /// The API shows something else than what was last written (somebody else wrote).
    pub(super) fn api_has_drifted(&self, fresh: &PodStatus) -> bool {
        let Some(known) = self.pod.object.status.as_ref().filter(|_| self.reporter.is_idle()) else {
            return false;
        };
        let conditions = |status: &PodStatus| -> Vec<(String, String)> {
            let mut all: Vec<_> =
                status.conditions.iter().flatten().map(|c| (c.type_.clone(), c.status.clone())).collect();
            all.sort();
            all
        };
        // An object from before the newest write looks the same as drift; the write is then repeated once.
        known.phase != fresh.phase || conditions(known) != conditions(fresh)
    }

    /// Events for containers that have just begun to wait for a back-off.
    pub(super) fn tell_back_offs(&self, fresh: &PodStatus) {
        for container in all_statuses(fresh) {
            let reason = waiting_reason(container);
            let before =
                self.status.as_ref().and_then(|s| all_statuses(s).find(|c| c.name == container.name));
            if before.is_some_and(|before| {
                waiting_reason(before) == reason && before.restart_count == container.restart_count
            }) {
                continue;
            }
            let image = self.pod.container(&container.name).map(|c| c.image().to_owned()).unwrap_or_default();
            let (event_type, message) = match reason {
                Some("CrashLoopBackOff") => (
                    EventType::Warning,
                    format!(
                        "Back-off restarting failed container {} in pod {}",
                        container.name,
                        self.pod.full_name()
                    ),
                ),
                Some("ImagePullBackOff") => (EventType::Normal, format!("Back-off pulling image {image:?}")),
                _ => continue,
            };
            self.shared.recorder.container(&self.pod, &container.name, event_type, "BackOff", message);
            if reason == Some("ImagePullBackOff") {
                let message = "Error: ImagePullBackOff";
                self.shared.recorder.container(
                    &self.pod,
                    &container.name,
                    EventType::Warning,
                    "Failed",
                    message,
                );
            }
        }
    }
}

fn probes_now(container: &DesiredContainer, instance: &Instance, stopping: bool) -> Vec<ProbeKind> {
    let ending = stopping || instance.kill.is_some();
    let kinds: &[ProbeKind] = match (ending, container.is_started(instance)) {
        (false, false) => &[ProbeKind::Startup],
        (false, true) => &[ProbeKind::Liveness, ProbeKind::Readiness],
        // What ends, with its pod or alone, may still say that it serves no more.
        (true, true) => &[ProbeKind::Readiness],
        (true, false) => &[],
    };
    kinds.iter().copied().filter(|kind| kind.of(&container.spec).is_some()).collect()
}

fn kill(pod: &DesiredPod, container: &DesiredContainer, kind: ProbeKind) -> Kill {
    let name = container.name();
    Kill {
        message: format!("Container {name} failed {} probe, will be restarted", kind.as_str().to_lowercase()),
        grace: container.probe_grace(kind.of(&container.spec), pod),
        replaced: false,
    }
}

fn all_statuses(status: &PodStatus) -> impl Iterator<Item = &v1::ContainerStatus> {
    let lists =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten()
}

fn waiting_reason(status: &v1::ContainerStatus) -> Option<&str> {
    status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}
