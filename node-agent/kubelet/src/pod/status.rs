//! The pod's status as the API shows it: phase, conditions and container states, in upstream's words.

use std::time::Duration;

use jiff::{Timestamp, Unit};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::back_off::go_duration;
use super::conditions::conditions;
use super::decide::{SHOW_PULL_ERROR, init_step_done, is_stopping, mains_seen, restart_back_off};
use super::desired::{ContainerKind, DesiredContainer, DesiredPod};
use super::qos::qos_class;
use super::resize::group_differs;
use super::restart::restarts;
use super::state::{
    Clock, ContainerTrack, FailureKind, Instance, PodState, Progress, StartFailure, TerminalPhase,
};

/// Annotation of a container with its image as the pod spells it.
pub const ANNOTATION_IMAGE: &str = "hawser.dev/image";
/// Annotation of a container: how often all containers of its pod had started over when it was made.
pub const ANNOTATION_ROUND: &str = "hawser.dev/round";

/// Status of the pod. `node_ips` are the host's addresses, primary first; `previous` is what was computed last,
/// which is newer than what the API is known to have.
pub fn status(
    pod: &DesiredPod,
    state: &PodState,
    node_ips: &[String],
    previous: Option<&PodStatus>,
    clock: Clock,
) -> PodStatus {
    let statuses_of = |kinds: &[ContainerKind]| -> Vec<ContainerStatus> {
        let wanted = pod.containers.iter().filter(|c| kinds.contains(&c.kind));
        wanted.map(|c| container_status(pod, state, c, clock)).collect()
    };
    let init = statuses_of(&[ContainerKind::Init, ContainerKind::Sidecar]);
    let main = statuses_of(&[ContainerKind::Main]);
    let ephemeral = statuses_of(&[ContainerKind::Ephemeral]);
    let phase = phase(pod, state);
    let ips: Vec<String> = pod_ips(pod, state, node_ips);
    let known = pod.object.status.clone().unwrap_or_default();
    let (reason, message) = match &state.verdict {
        Some(verdict) => (Some(verdict.reason.clone()), Some(verdict.message.clone())),
        None if pod.terminal_phase().is_some() => (known.reason.clone(), known.message.clone()),
        None => (None, None),
    };
    let reported = previous.unwrap_or(&known);
    let conditions = conditions(pod, state, phase, [&init, &main], &known, reported, clock);
    let resources = match group_differs(pod, state) {
        // What it had, until its cgroup follows.
        true => reported.resources.clone(),
        false => pod.spec().resources.clone(),
    };
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        container_statuses: Some(main),
        init_container_statuses: (!init.is_empty()).then_some(init),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        host_ip: node_ips.first().cloned(),
        host_ips: Some(node_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        qos_class: Some(known.qos_class.unwrap_or_else(|| qos_class(pod.spec()).as_str().to_owned())),
        start_time: state.start_time.map(time),
        observed_generation: pod.object.metadata.generation,
        allocated_resources: pod.spec().resources.as_ref().and_then(|whole| whole.requests.clone()),
        resources,
        reason,
        message,
        ..PodStatus::default()
    }
}

/// Whole seconds, as `metav1.Time` carries them.
pub(crate) fn time(at: Timestamp) -> Time {
    Time(
        at.round(jiff::TimestampRound::new().smallest(Unit::Second).mode(jiff::RoundMode::Trunc))
            .unwrap_or(at),
    )
}

fn pod_ips(pod: &DesiredPod, state: &PodState, node_ips: &[String]) -> Vec<String> {
    if pod.host_network() {
        return if state.sandbox.is_done() { node_ips.to_vec() } else { Vec::new() };
    }
    if !state.ips.is_empty() {
        return state.ips.iter().map(ToString::to_string).collect();
    }
    // A finished pod keeps showing the address it had.
    let known = pod.object.status.as_ref().filter(|_| is_stopping(pod, state) || state.any_running());
    known.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.clone()).collect()
}

/// `status.phase`. Succeeded and Failed are never left. Whoever hears of them gives the pod's devices to others, so that
/// they wait for the end of its claims on the node.
pub fn phase(pod: &DesiredPod, state: &PodState) -> &'static str {
    let may_end = !state.holds_claims || pod.terminal_phase().is_some();
    if let Some(terminal) = state.terminal.filter(|_| may_end) {
        return terminal.as_str();
    }
    let stopped = !state.any_running() && state.busy.stopping.is_empty() && !state.busy.is_preparing();
    if is_stopping(pod, state) && stopped && may_end {
        return if state.verdict.is_none() && all_mains_succeeded(pod, state) {
            TerminalPhase::Succeeded.as_str()
        } else {
            TerminalPhase::Failed.as_str()
        };
    }
    let initialized = mains_seen(pod, state) || pod.init_sequence().all(|c| init_step_done(state, c));
    let waiting = pod.of_kind(ContainerKind::Main).any(|c| {
        let track = state.track(c.name());
        track.and_then(ContainerTrack::progress).is_none_or(|p| p == Progress::Created)
    });
    // A container that is made again after its end does not take the pod back to Pending.
    if !initialized || waiting && !has_run(pod, state) { "Pending" } else { "Running" }
}

fn has_run(pod: &DesiredPod, state: &PodState) -> bool {
    pod.of_kind(ContainerKind::Main).all(|c| {
        state.track(c.name()).is_some_and(|t| {
            t.previous.is_some()
                || t.attempt_floor > 0
                || matches!(t.progress(), Some(Progress::Running | Progress::Exited(_)))
        })
    })
}

fn all_mains_succeeded(pod: &DesiredPod, state: &PodState) -> bool {
    pod.of_kind(ContainerKind::Main)
        .all(|c| state.track(c.name()).and_then(ContainerTrack::progress) == Some(Progress::Exited(0)))
}

fn container_status(
    pod: &DesiredPod,
    state: &PodState,
    container: &DesiredContainer,
    clock: Clock,
) -> ContainerStatus {
    let blank = ContainerTrack::default();
    let track = state.track(container.name()).unwrap_or(&blank);
    let shown = shown_state(pod, state, container, track, clock);
    let instance = track.current.as_ref();
    let known = known_status(pod, container.name());
    let running = shown.running.is_some();
    let started = running && instance.is_some_and(|i| container.is_started(i));
    let ready = match container.kind {
        ContainerKind::Init => instance.is_some_and(|i| i.progress() == Progress::Exited(0)),
        ContainerKind::Ephemeral => false,
        ContainerKind::Main | ContainerKind::Sidecar => {
            started && instance.is_some_and(|i| container.is_ready(i))
        }
    };
    let (image, image_id, container_id) = match instance {
        Some(i) => (i.image().to_owned(), i.status.image_ref.clone(), Some(container_uri(&i.status.id))),
        None => known
            .filter(|k| k.container_id.is_some())
            .map(|k| (k.image.clone(), k.image_id.clone(), k.container_id.clone()))
            .unwrap_or_else(|| (container.image().to_owned(), String::new(), None)),
    };
    let restart_count = instance.map_or_else(
        || known.map_or(0, |k| k.restart_count),
        |i| i32::try_from(i.status.attempt).unwrap_or(i32::MAX),
    );
    ContainerStatus {
        name: container.name().to_owned(),
        image,
        image_id,
        container_id,
        restart_count,
        ready,
        started: Some(started),
        last_state: Some(last_state(track, instance, &shown)),
        state: Some(shown),
        volume_mounts: instance.map(|_| volume_mounts(container)),
        allocated_resources: container.spec.resources.as_ref().and_then(|r| r.requests.clone()),
        resources: instance.and_then(|i| i.resources.clone()).or_else(|| container.spec.resources.clone()),
        ..ContainerStatus::default()
    }
}

fn volume_mounts(container: &DesiredContainer) -> Vec<VolumeMountStatus> {
    let mounts = container.spec.volume_mounts.iter().flatten().map(|mount| {
        let is_recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        let mode = if is_recursive { "Enabled" } else { "Disabled" };
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only.filter(|read_only| *read_only),
            recursive_read_only: (mount.read_only == Some(true)).then(|| mode.to_owned()),
            ..VolumeMountStatus::default()
        }
    });
    mounts.collect()
}

fn container_uri(id: &str) -> String {
    format!("containerd://{id}")
}

fn known_status<'a>(pod: &'a DesiredPod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.object.status.as_ref()?;
    let lists =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|c| c.name == name)
}

fn shown_state(
    pod: &DesiredPod,
    state: &PodState,
    container: &DesiredContainer,
    track: &ContainerTrack,
    clock: Clock,
) -> ContainerState {
    let stopping = is_stopping(pod, state);
    let Some(instance) = &track.current else {
        // The records of a finished pod may be gone before the pod is; what was reported stays.
        let known = known_status(pod, container.name()).and_then(|k| k.state.clone());
        return match known.filter(|k| stopping && k.terminated.is_some()) {
            Some(terminated) => terminated,
            None => waiting_before_first(pod, container, track, clock),
        };
    };
    match instance.progress() {
        Progress::Running if container.has_post_start() && state.busy.starting.contains(container.name()) => {
            default_waiting(pod)
        }
        Progress::Running => ContainerState {
            running: Some(ContainerStateRunning { started_at: instance.status.started_at.map(time) }),
            ..ContainerState::default()
        },
        Progress::Created => waiting_before_first(pod, container, track, clock),
        Progress::Exited(code) => {
            let restarts = instance.is_replaced() || restarts(pod.restart_policy(), container, code);
            let again = !stopping && restarts;
            // These two concern the instance that ended; every other failure the one to come.
            let of_ended = [FailureKind::RunContainerError, FailureKind::PostStartHookError];
            let failure = track.failure.as_ref().filter(|f| again && !of_ended.contains(&f.kind));
            if let Some(failure) = failure {
                return waiting_for_failure(container, failure, clock);
            }
            // While the next instance is being made, nothing backs off.
            let waits = again && !state.busy.starting.contains(container.name());
            match restart_back_off(track, clock).filter(|_| waits) {
                Some((delay, _)) => crash_loop(pod, container, delay),
                None => {
                    ContainerState { terminated: Some(terminated(instance)), ..ContainerState::default() }
                }
            }
        }
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    }
}

fn default_waiting(pod: &DesiredPod) -> ContainerState {
    waiting(if pod.has_init_containers() { "PodInitializing" } else { "ContainerCreating" }, None)
}

fn waiting_before_first(
    pod: &DesiredPod,
    container: &DesiredContainer,
    track: &ContainerTrack,
    clock: Clock,
) -> ContainerState {
    match &track.failure {
        Some(failure) => waiting_for_failure(container, failure, clock),
        None => default_waiting(pod),
    }
}

fn waiting_for_failure(container: &DesiredContainer, failure: &StartFailure, clock: Clock) -> ContainerState {
    let shown_long_enough = failure.since + SHOW_PULL_ERROR <= clock.now;
    if failure.kind == FailureKind::ErrImagePull && shown_long_enough {
        let message =
            format!("Back-off pulling image {:?}: ErrImagePull: {}", container.image(), failure.message);
        return waiting("ImagePullBackOff", Some(message));
    }
    waiting(failure.kind.as_str(), Some(failure.message.clone()))
}

fn crash_loop(pod: &DesiredPod, container: &DesiredContainer, delay: Duration) -> ContainerState {
    let message = format!(
        "back-off {} restarting failed container={} pod={}",
        go_duration(delay),
        container.name(),
        pod.full_name()
    );
    waiting("CrashLoopBackOff", Some(message))
}

fn last_state(track: &ContainerTrack, instance: Option<&Instance>, shown: &ContainerState) -> ContainerState {
    // While an ended instance is shown as waiting, it is itself the last state.
    let ended =
        instance.filter(|i| matches!(i.progress(), Progress::Exited(_)) && shown.terminated.is_none());
    match ended.or(track.previous.as_ref()) {
        Some(i) => ContainerState { terminated: Some(terminated(i)), ..ContainerState::default() },
        None => ContainerState::default(),
    }
}

fn terminated(instance: &Instance) -> ContainerStateTerminated {
    let status = &instance.status;
    if let Some(error) = &instance.start_error {
        return ContainerStateTerminated {
            container_id: Some(container_uri(&status.id)),
            exit_code: 128,
            reason: Some(error.reason.to_owned()),
            message: Some(error.message.clone()),
            started_at: Some(Time(Timestamp::UNIX_EPOCH)),
            finished_at: Some(time(error.at)),
            ..ContainerStateTerminated::default()
        };
    }
    ContainerStateTerminated {
        container_id: Some(container_uri(&status.id)),
        exit_code: status.exit.as_ref().map_or(137, |e| e.exit_code),
        reason: Some(status.exit.as_ref().map_or("ContainerStatusUnknown", |e| e.reason()).to_owned()),
        message: instance.termination_message.clone().filter(|m| !m.is_empty()),
        started_at: status.started_at.map(time),
        finished_at: status.exit.as_ref().map(|e| time(e.finished_at)),
        ..ContainerStateTerminated::default()
    }
}
