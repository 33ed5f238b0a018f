//! The pod's conditions: PodReadyToStartContainers, Initialized, Ready, ContainersReady, PodScheduled.
//!
//! Conditions of other owners (readiness gates, disruption) are carried over as they are. A transition time
//! changes only with the condition's status.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};

use super::decide::{init_step_done, is_stopping, mains_seen, starts_over};
use super::desired::{ContainerKind, DesiredPod};
use super::resize::{group_is_unequal, unequal};
use super::state::{Clock, PodState};
use super::status::time;

const OWNED: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// True for conditions that are the kubelet's alone; all others may be somebody else's.
fn is_own_condition(type_: &str) -> bool {
    OWNED.contains(&type_) || PASSING.contains(&type_)
}

const DISRUPTION: &str = "DisruptionTarget";
const BY_KUBELET: &str = "TerminationByKubelet";

/// Conditions that are there only while they hold.
pub(crate) const PASSING: [&str; 3] = [PENDING, "PodResizeInProgress", "AllContainersRestarting"];

/// A resize that the node has not granted.
pub(crate) const PENDING: &str = "PodResizePending";

fn passing(pod: &DesiredPod, state: &PodState) -> Vec<(&'static str, Verdict)> {
    let [pending, in_progress, restarting] = PASSING;
    let mut found = Vec::new();
    if is_stopping(pod, state) {
        return found;
    }
    if let Some(why) = &state.resize_pending {
        let message = Some(why.message.clone());
        found.push((pending, Verdict { holds: true, reason: Some(why.reason), message }));
    }
    if unequal(pod, state).next().is_some() || group_is_unequal(pod, state) {
        let failure = state.resize_failure.as_ref().map(|failure| failure.message.clone());
        let reason = failure.is_some().then_some("Error");
        found.push((in_progress, Verdict { holds: true, reason, message: failure }));
    }
    let mut current = state.containers.values().filter_map(|track| track.current.as_ref());
    if starts_over(pod, state) || current.any(|instance| instance.rerun) {
        found.push((restarting, Verdict::yes()));
    }
    found
}

/// True for what the kubelet writes: its own conditions, and that it ends the pod itself.
pub(crate) fn is_written(type_: &str, reason: Option<&str>) -> bool {
    is_own_condition(type_) || type_ == DISRUPTION && reason == Some(BY_KUBELET)
}

struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self { holds: true, reason: None, message: None }
    }

    fn yes_because(reason: &'static str) -> Self {
        Self { holds: true, reason: Some(reason), message: None }
    }

    fn no(reason: &'static str, message: Option<String>) -> Self {
        Self { holds: false, reason: Some(reason), message }
    }
}

pub(crate) fn conditions(
    pod: &DesiredPod,
    state: &PodState,
    phase: &str,
    [init, main]: [&[ContainerStatus]; 2],
    known: &PodStatus,
    previous: &PodStatus,
    clock: Clock,
) -> Vec<PodCondition> {
    let containers = containers_ready(pod, phase, init, main);
    let ready = pod_ready(pod, known, &containers);
    let verdicts =
        [sandbox_ready(state), initialized(pod, state, phase, init), ready, containers, Verdict::yes()];
    let known = known.conditions.as_deref().unwrap_or_default();
    let previous = previous.conditions.as_deref().unwrap_or_default();
    let mut all: Vec<PodCondition> = OWNED
        .into_iter()
        .zip(verdicts)
        .map(|(type_, verdict)| condition(pod, type_, verdict, previous, clock))
        .collect();
    let disrupted = state.verdict.as_ref().filter(|verdict| verdict.is_disruption);
    let of_others = known
        .iter()
        .filter(|c| !(is_own_condition(&c.type_) || disrupted.is_some() && c.type_ == DISRUPTION));
    all.extend(of_others.cloned());
    for (type_, verdict) in passing(pod, state) {
        all.push(condition(pod, type_, verdict, previous, clock));
    }
    all.extend(disrupted.map(|verdict| {
        let told = Verdict { holds: true, reason: Some(BY_KUBELET), message: Some(verdict.message.clone()) };
        condition(pod, DISRUPTION, told, previous, clock)
    }));
    all
}

fn condition(
    pod: &DesiredPod,
    type_: &str,
    verdict: Verdict,
    previous: &[PodCondition],
    clock: Clock,
) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let before = previous.iter().find(|c| c.type_ == type_ && c.status == status);
    let since = before.and_then(|c| c.last_transition_time.clone());
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: Some(since.unwrap_or_else(|| time(clock.wall))),
        last_probe_time: None,
        observed_generation: pod.object.metadata.generation,
    }
}

fn sandbox_ready(state: &PodState) -> Verdict {
    let holds = state.sandbox.is_done() && !state.released && !state.torn_down;
    Verdict { holds, reason: None, message: None }
}

fn initialized(pod: &DesiredPod, state: &PodState, phase: &str, init: &[ContainerStatus]) -> Verdict {
    if phase == "Succeeded" && pod.has_init_containers() {
        return Verdict::yes_because("PodCompleted");
    }
    if mains_seen(pod, state) {
        return Verdict::yes();
    }
    let incomplete: Vec<&str> = pod
        .init_sequence()
        .zip(init)
        .filter(|(container, _)| !init_step_done(state, container))
        .map(|(_, status)| status.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return Verdict::yes();
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    Verdict::no("ContainersNotInitialized", Some(message))
}

fn containers_ready(
    pod: &DesiredPod,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::no("PodCompleted", None),
        "Failed" => return Verdict::no("PodFailed", None),
        _ => {}
    }
    let sidecars = pod.init_sequence().zip(init).filter(|(c, _)| c.kind == ContainerKind::Sidecar);
    let unready: Vec<&str> = sidecars
        .map(|(_, status)| status)
        .chain(main)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    if unready.is_empty() {
        return Verdict::yes();
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    Verdict::no("ContainersNotReady", Some(message))
}

fn pod_ready(pod: &DesiredPod, known: &PodStatus, containers: &Verdict) -> Verdict {
    if !containers.holds {
        return Verdict { holds: false, reason: containers.reason, message: containers.message.clone() };
    }
    for gate in pod.spec().readiness_gates.iter().flatten() {
        let found = known.conditions.iter().flatten().find(|c| c.type_ == gate.condition_type);
        let message = match found {
            None => format!(
                "corresponding condition of pod readiness gate {:?} does not exist.",
                gate.condition_type
            ),
            Some(c) if c.status != "True" => format!(
                "the status of pod readiness gate {:?} is not \"True\", but {}",
                gate.condition_type, c.status
            ),
            Some(_) => continue,
        };
        return Verdict::no("ReadinessGatesNotReady", Some(message));
    }
    Verdict::yes()
}
