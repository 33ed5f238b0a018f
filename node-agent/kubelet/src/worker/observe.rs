//! What a worker learns: mail, the runtime's word on containers, probe results; and the events that follow.

use std::path::Path;
use std::sync::Arc;

use hawser_runtime::{ContainerState as RuntimeState, ContainerStatus};
use k8s_openapi::api::core::v1::{self, PodStatus};
use tracing::warn;

use super::Worker;
use crate::container::termination_file;
use crate::events::EventType;
use crate::pod::decide::is_stopping;
use crate::pod::state::Kill;
use crate::pod::{DesiredContainer, DesiredPod, Instance};
use crate::probes::{ProbeKind, ProbeReport, ProbeTarget};

/// Upstream's bounds of a termination message.
const MAX_MESSAGE_BYTES: usize = 4096;
const MAX_LOG_MESSAGE_BYTES: usize = 2048;
const MAX_LOG_MESSAGE_LINES: usize = 80;

impl Worker {
    pub(super) async fn take_mail(&mut self) {
        let mail = self.mailbox.take();
        let clock = self.shared.clock.now();
        if let Some(pod) = mail.pod {
            let desired = DesiredPod::new(pod);
            let fields_changed = desired.object.metadata.labels != self.pod.object.metadata.labels
                || desired.object.metadata.annotations != self.pod.object.metadata.annotations;
            self.pod = desired;
            self.state.deleted &= self.pod.is_deleted();
            if fields_changed {
                self.refresh_at = Some(tokio::time::Instant::now());
            }
        }
        if mail.gone {
            self.state.gone_since.get_or_insert(clock.now);
        }
        if let Some(verdict) = mail.verdict
            && self.state.terminal.is_none()
        {
            self.state.verdict.get_or_insert(verdict);
        }
        if mail.objects_changed {
            self.state.retry_config_errors(clock.now);
            self.refresh_at = Some(tokio::time::Instant::now());
        }
        for id in mail.containers {
            self.look_at(&id).await;
        }
        if mail.resync {
            self.look_at_all().await;
        }
        for report in mail.probes.into_values() {
            self.take_probe(report);
        }
    }

    async fn look_at(&mut self, id: &str) {
        match self.shared.runtime.container_status(id).await {
            Ok(Some(status)) => self.observe(status),
            Ok(None) => self.observe_vanished(id),
            Err(error) => {
                warn!(pod = %self.pod.key(), %error, "container was not looked at; the next relist will");
            }
        }
    }

    async fn look_at_all(&mut self) {
        let Ok(all) = self.shared.runtime.list_containers().await else { return };
        let uid = self.pod.uid().to_owned();
        let mine: Vec<ContainerStatus> = all.into_iter().filter(|c| c.pod_uid == uid).collect();
        let known: Vec<String> = self
            .state
            .containers
            .values()
            .filter_map(|t| t.current.as_ref())
            .map(|i| i.status.id.clone())
            .collect();
        for id in known {
            if !mine.iter().any(|c| c.id == id) {
                self.observe_vanished(&id);
            }
        }
        for status in mine {
            self.observe(status);
        }
    }

    fn observe(&mut self, status: ContainerStatus) {
        let now = self.shared.clock.now().now;
        // Half-made containers belong to the start that is making them.
        let starting = self.state.busy.starting.contains(&status.name);
        if starting && status.state == RuntimeState::Created {
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
            instance.status.state = RuntimeState::Unknown;
            instance.exit_noticed = Some(now);
        }
    }

    /// Reads the termination messages of instances that have ended since.
    pub(super) async fn read_exits(&mut self) {
        let config = self.shared.config.clone();
        let uid = self.pod.uid().to_owned();
        for (name, track) in &mut self.state.containers {
            let policy = self.pod.container(name).and_then(|c| c.spec.termination_message_policy.as_deref());
            let from_log = policy == Some("FallbackToLogsOnError");
            for instance in [&mut track.current, &mut track.previous].into_iter().flatten() {
                if instance.exit_noticed.is_some() && instance.termination_message.is_none() {
                    let file = termination_file(&config, &uid, name, instance.status.attempt);
                    let message = termination_message(instance, &file, from_log);
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
            if !instance.is_running() || hook_runs || instance.kill.is_some() {
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
                kind,
                probe,
                container: container.name().to_owned(),
                container_id: instance.status.id.clone(),
                pod_ip: self.state.ips.first().copied(),
                ports: container.spec.ports.clone().unwrap_or_default(),
                started_at: instance.status.started_at.unwrap_or_else(jiff::Timestamp::now),
                initially: match kind {
                    ProbeKind::Liveness => true,
                    ProbeKind::Readiness => instance.ready,
                    ProbeKind::Startup => false,
                },
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
    let kinds: &[ProbeKind] = match (stopping, container.is_started(instance)) {
        (false, false) => &[ProbeKind::Startup],
        (false, true) => &[ProbeKind::Liveness, ProbeKind::Readiness],
        // What stops may still say that it serves no more.
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

async fn termination_message(instance: &Instance, file: &Path, from_log: bool) -> Option<String> {
    let bytes = tokio::fs::read(file).await.unwrap_or_default();
    if !bytes.is_empty() {
        let end = bytes.len().min(MAX_MESSAGE_BYTES);
        return Some(String::from_utf8_lossy(&bytes[..end]).into_owned());
    }
    let failed = instance.status.exit.as_ref().is_some_and(|e| e.exit_code != 0);
    if !from_log || !failed {
        return None;
    }
    let log = tokio::fs::read(&instance.status.log_path).await.ok()?;
    Some(log_tail(&log))
}

/// The last lines of a log in CRI format, without its columns.
fn log_tail(log: &[u8]) -> String {
    let start = log.len().saturating_sub(4 * MAX_LOG_MESSAGE_BYTES);
    let text = String::from_utf8_lossy(&log[start..]);
    let lines: Vec<&str> = text.lines().rev().take(MAX_LOG_MESSAGE_LINES).collect();
    let contents = lines.into_iter().rev().filter_map(|line| line.splitn(4, ' ').nth(3));
    let joined: String = contents.map(|line| format!("{line}\n")).collect();
    let from = joined.len().saturating_sub(MAX_LOG_MESSAGE_BYTES);
    let from = (from..=joined.len()).find(|at| joined.is_char_boundary(*at)).unwrap_or(0);
    joined[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_tail_drops_the_columns() {
        let log = b"2026-01-01T00:00:00Z stdout F first line\n2026-01-01T00:00:01Z stderr F second\n";
        assert_eq!(log_tail(log), "first line\nsecond\n");
        assert_eq!(log_tail(b""), "");
    }
}
