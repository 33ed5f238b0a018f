//! Changing what a running pod may use: what the node grants, and carrying it out.

use std::time::Duration;

use hawser_runtime::{ContainerId, Resources, Runtime};
use k8s_openapi::api::core::v1::ResourceRequirements;
use tokio::time::Instant;

use super::Worker;
use super::actions::{Shared, with_source};
use crate::container::resources::{container_resources, pod_resources};
use crate::cpus::CpuPolicy;
use crate::events::EventType;
use crate::memory::MemoryPolicy;
use crate::pod::decide::is_stopping;
use crate::pod::resize::{DEFERRED, Fixed, Resized, amounts, check_fixed, needs_restart, unequal};
use crate::pod::state::Kill;
use crate::pod::{DesiredContainer, DesiredPod, Outcome};

/// What the node had no room for is asked for again after this long: another pod may have gone.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// A running container, and what it has.
pub(super) struct Running {
    id: ContainerId,
    container: DesiredContainer,
    /// `None`: not known; it was started by an agent that did not live to tell.
    has: Option<ResourceRequirements>,
}

impl Worker {
    /// Grants what the API asks for, if the node has room for it.
    pub(super) fn grant(&mut self) {
        self.ask_again_at = None;
        let wanted = amounts(&self.asked);
        if wanted == self.granted || is_stopping(&self.pod, &self.state) {
            self.state.resize_pending = None;
            return;
        }
        let desired = DesiredPod::new(self.asked.clone());
        let config = &self.shared.config;
        let fixed = Fixed {
            cpu: config.cpu_policy != CpuPolicy::None,
            memory: config.memory_policy != MemoryPolicy::None,
        };
        let judged = check_fixed(&desired, &self.granted, fixed)
            .and_then(|()| self.shared.pods.grant(&desired, self.shared.allocatable));
        match judged {
            Ok(()) => {
                self.granted = wanted;
                self.pod = desired;
                self.state.resize_pending = None;
                self.state.resize_failure = None;
                // Files may show the amounts.
                self.refresh.want();
            }
            Err(pending) => {
                let event = if pending.reason == DEFERRED { "ResizeDeferred" } else { "ResizeInfeasible" };
                if self.state.resize_pending.as_ref() != Some(&pending) {
                    self.shared.recorder.pod(&self.pod, EventType::Warning, event, pending.message.clone());
                }
                self.ask_again_at = (pending.reason == DEFERRED).then(|| Instant::now() + ASK_AGAIN);
                self.state.resize_pending = Some(pending);
            }
        }
    }

    pub(super) fn grant_when_due(&mut self) {
        if self.ask_again_at.is_some_and(|at| at <= Instant::now()) {
            self.grant();
        }
    }

    /// What a resize has to change.
    pub(super) fn to_resize(&self) -> Vec<Running> {
        let running = unequal(&self.pod, &self.state).filter_map(|container| {
            let instance = self.state.track(container.name())?.current.as_ref()?;
            Some(Running {
                id: instance.status.id.clone(),
                container: container.clone(),
                has: instance.resources.clone(),
            })
        });
        running.collect()
    }
}

/// Gives the containers what they were granted, or says which of them have to start anew for it. `group`: limits that the
/// pod's cgroup has.
pub(super) async fn resize(
    shared: &Shared,
    pod: &DesiredPod,
    running: Vec<Running>,
    group: Option<Resources>,
) -> Outcome {
    let new = pod_resources(pod.spec(), shared.config.pod_pids_limit);
    let is_change =
        running.iter().any(|r| r.has.is_some()) || group.as_ref().is_some_and(|group| *group != new);
    let mut resized = Resized { group, ..Resized::default() };
    let (restart, change): (Vec<Running>, Vec<Running>) =
        running.into_iter().partition(|r| r.has.as_ref().is_some_and(|has| needs_restart(&r.container, has)));
    let is_complete = restart.is_empty();
    if let Err(message) = try_resize(shared, pod, (change, new), is_complete, &mut resized).await {
        shared.recorder.pod(pod, EventType::Warning, "ResizeError", message.clone());
        resized.failure = Some(message);
    } else if is_complete && is_change {
        shared.recorder.pod(pod, EventType::Normal, "ResizeCompleted", "Pod resize completed");
    }
    resized.restart = restart.into_iter().map(|r| (r.id, kill(pod, &r.container))).collect();
    Outcome::Resized(resized)
}

fn kill(pod: &DesiredPod, container: &DesiredContainer) -> Kill {
    Kill {
        message: format!("Container {} resize requires restart", container.name()),
        grace: pod.spec_grace(),
        replaced: true,
    }
}

/// The pod's cgroup holds its containers' at every moment: it grows before them and shrinks after them.
async fn try_resize(
    shared: &Shared,
    pod: &DesiredPod,
    (change, new): (Vec<Running>, Resources),
    is_complete: bool,
    resized: &mut Resized,
) -> Result<(), String> {
    let update = async |limits: Resources, resized: &mut Resized| -> Result<(), String> {
        let updated = shared.runtime.update_pod_sandbox(pod.uid(), &limits).await;
        updated.map_err(|error| with_source(&error))?;
        resized.group = Some(limits);
        Ok(())
    };
    let wide = resized.group.as_ref().map_or_else(|| new.clone(), |group| widest(group, &new));
    update(wide, resized).await?;
    for running in change {
        let spec = &running.container.spec;
        let limits = container_resources(pod.spec(), spec, shared.capacity.memory_bytes);
        check_shrink(&*shared.runtime, &running.id, &limits).await?;
        let changed = shared.runtime.update_container(&running.id, &limits).await;
        changed.map_err(|error| with_source(&error))?;
        resized.done.push((running.id, spec.resources.clone().unwrap_or_default()));
    }
    // What has to start anew still runs with what it had.
    if !is_complete {
        return Ok(());
    }
    check_pod_shrink(shared, pod, resized.group.as_ref(), &new).await?;
    update(new, resized).await
}

/// Less memory than the pod's processes use together would end some of them.
async fn check_pod_shrink(
    shared: &Shared,
    pod: &DesiredPod,
    group: Option<&Resources>,
    new: &Resources,
) -> Result<(), String> {
    let has = group.and_then(|group| group.memory_limit_bytes);
    let Some(limit) = new.memory_limit_bytes.filter(|limit| has.is_none_or(|has| has > *limit)) else {
        return Ok(());
    };
    let usage = shared.runtime.pod_stats(pod.uid()).await.ok().flatten();
    match i64::try_from(usage.map_or(0, |stats| stats.memory_working_set_bytes)) {
        Ok(usage) if usage > limit => {
            Err(format!("attempting to set pod memory limit ({limit}) below current usage ({usage})"))
        }
        _ => Ok(()),
    }
}

/// Less memory than is used would end processes.
async fn check_shrink(runtime: &dyn Runtime, id: &str, limits: &Resources) -> Result<(), String> {
    let Some(limit) = limits.memory_limit_bytes else { return Ok(()) };
    let usage = runtime.stats(id).await.ok().flatten().map_or(0, |stats| stats.memory_working_set_bytes);
    match i64::try_from(usage) {
        Ok(usage) if usage > limit => {
            Err(format!("attempting to set memory limit ({limit}) below current usage ({usage})"))
        }
        _ => Ok(()),
    }
}

/// Limits that both keep within. What the group has no limit of keeps none; what only the group has is left as it is.
fn widest(group: &Resources, new: &Resources) -> Resources {
    fn most<T: Ord + Copy>(group: Option<T>, new: Option<T>) -> Option<T> {
        group.map(|has| new.map_or(has, |new| has.max(new)))
    }
    Resources {
        cpu_shares: most(group.cpu_shares, new.cpu_shares),
        cpu_quota_us: most(group.cpu_quota_us, new.cpu_quota_us),
        cpu_period_us: most(group.cpu_period_us, new.cpu_period_us),
        memory_limit_bytes: most(group.memory_limit_bytes, new.memory_limit_bytes),
        ..group.clone()
    }
}
