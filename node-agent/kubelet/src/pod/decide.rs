//! The step from what is known of a pod to what is done next.
//!
//! [`decide`] is called after every change and never waits: what is under way ([`PodState::busy`]) is not
//! issued again, what must wait sets `wake_at`. Rules, in order: a deleted pod stops, is torn down and then
//! forgotten; a pod that has failed or finished stops and gives its network and volumes back; every other pod
//! gets its sandbox and volumes, its init containers one by one, then the rest.

use std::time::Duration;

use hawser_runtime::ContainerId;

use super::desired::{ContainerKind, DesiredContainer, DesiredPod, RestartPolicy};
use super::resize::{group_is_unequal, unequal};
use super::restart::restarts;
use super::state::{
    Clock, ContainerTrack, FailureKind, Instance, PodState, Progress, TerminalPhase, Verdict,
};

/// How long a failed pull is shown as such before it is shown as a back-off.
pub(crate) const SHOW_PULL_ERROR: Duration = Duration::from_secs(3);

/// One thing to do; each is idempotent, and carried out once at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Network namespace and addresses, then what else the containers share.
    PrepareSandbox,
    MountVolumes,
    /// Pull, create, start, and run the postStart hook.
    Start {
        container: String,
        attempt: u32,
    },
    /// Run the preStop hook, send the stop signal, and kill after `grace` in all.
    Stop {
        container: String,
        id: ContainerId,
        grace: Duration,
        message: String,
    },
    /// Remove an instance that nothing shows any more.
    Remove {
        id: ContainerId,
        container: String,
    },
    /// Give back the network and volumes of a finished pod.
    Release,
    /// Remove everything of the pod from the node.
    TearDown,
    /// Tell the API that the pod is gone.
    Delete,
    /// Give running containers, and the pod's cgroup, what they were granted since they were made.
    Resize,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    pub actions: Vec<Action>,
    /// Decide again at this time of the monotonic clock, even if nothing happens.
    pub wake_at: Option<Duration>,
    /// The pod fails as a whole, from now on.
    pub verdict: Option<Verdict>,
    /// The pod has ended, from now on.
    pub terminal: Option<TerminalPhase>,
}

impl Decision {
    fn wake(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }
}

pub fn decide(pod: &DesiredPod, state: &PodState, clock: Clock) -> Decision {
    let mut decision = Decision::default();
    if state.torn_down && (state.deleted || state.gone_since.is_some()) {
        return decision;
    }
    if pod.is_deleted() || state.gone_since.is_some() {
        let passed = state.deletion_seen.map_or(Duration::ZERO, |seen| clock.now.saturating_sub(seen));
        let grace = pod.deletion_grace(passed).unwrap_or_else(|| pod.spec_grace());
        if stop_all(pod, state, clock, grace, &mut decision) {
            clean_up(pod, state, clock, &mut decision);
        }
        return decision;
    }

    if state.terminal.is_none() && state.verdict.is_none() {
        decision.verdict = deadline_verdict(pod, state, clock, &mut decision);
    }
    let failed = state.verdict.is_some() || decision.verdict.is_some();
    let ending = state.terminal.or(failed.then_some(TerminalPhase::Failed)).or_else(|| finished(pod, state));
    if let Some(phase) = ending {
        let grace = state.verdict.as_ref().and_then(|verdict| verdict.grace).unwrap_or(pod.spec_grace());
        if stop_all(pod, state, clock, grace, &mut decision) {
            decision.terminal = Some(phase);
            release(state, clock, &mut decision);
        }
        return decision;
    }

    run(pod, state, clock, &mut decision);
    remove_outdated(state, clock, &mut decision);
    decision
}

/// True when the pod is stopping for good, whatever the reason.
pub fn is_stopping(pod: &DesiredPod, state: &PodState) -> bool {
    pod.is_deleted() || state.gone_since.is_some() || state.verdict.is_some() || state.terminal.is_some()
}

/// How the pod ended, when its own containers are done.
fn finished(pod: &DesiredPod, state: &PodState) -> Option<TerminalPhase> {
    let policy = pod.restart_policy();
    let ended = |container: &DesiredContainer| -> Option<i32> {
        if state.busy.starting.contains(container.name()) {
            return None;
        }
        let instance = state.track(container.name())?.current.as_ref()?;
        match instance.progress() {
            Progress::Exited(code) if !starts_again(policy, instance, container, code) => Some(code),
            _ => None,
        }
    };
    if !mains_seen(pod, state)
        && pod.of_kind(ContainerKind::Init).any(|c| ended(c).is_some_and(|code| code != 0))
    {
        return Some(TerminalPhase::Failed);
    }
    let codes: Option<Vec<i32>> = pod.of_kind(ContainerKind::Main).map(ended).collect();
    let codes = codes.filter(|codes| !codes.is_empty())?;
    let succeeded = codes.iter().all(|code| *code == 0);
    Some(if succeeded { TerminalPhase::Succeeded } else { TerminalPhase::Failed })
}

fn deadline_verdict(
    pod: &DesiredPod,
    state: &PodState,
    clock: Clock,
    decision: &mut Decision,
) -> Option<Verdict> {
    let allowed = Duration::from_secs(pod.spec().active_deadline_seconds?.max(0).unsigned_abs());
    let elapsed = state.active_for(clock.now);
    if elapsed < allowed {
        decision.wake(clock.now + (allowed - elapsed));
        return None;
    }
    Some(Verdict::new("DeadlineExceeded", "Pod was active on the node longer than the specified deadline"))
}

/// Stops what runs: sidecars last, in reverse order. True when nothing runs and nothing is being made.
fn stop_all(
    pod: &DesiredPod,
    state: &PodState,
    clock: Clock,
    grace: Duration,
    decision: &mut Decision,
) -> bool {
    let runs = |c: &&DesiredContainer| state.track(c.name()).is_some_and(ContainerTrack::is_running);
    let (sidecars, others): (Vec<_>, Vec<_>) =
        pod.containers.iter().filter(runs).partition(|c| c.kind == ContainerKind::Sidecar);
    for container in &others {
        stop(state, container, clock, grace, decision);
    }
    if others.is_empty()
        && state.busy.starting.is_empty()
        && let Some(last) = sidecars.last()
    {
        stop(state, last, clock, grace, decision);
    }
    others.is_empty() && sidecars.is_empty() && state.busy.stopping.is_empty() && !state.busy.is_preparing()
}

fn stop(
    state: &PodState,
    container: &DesiredContainer,
    clock: Clock,
    grace: Duration,
    decision: &mut Decision,
) {
    let name = container.name();
    // A shorter grace than the one in force (a second, stricter delete) starts the stop over.
    let slack = Duration::from_secs(1);
    let in_time =
        state.busy.stopping.get(name).is_some_and(|deadline| *deadline <= clock.now + grace + slack);
    if in_time || state.busy.starting.contains(name) {
        return;
    }
    let Some(instance) = state.track(name).and_then(|t| t.current.as_ref()) else { return };
    decision.actions.push(Action::Stop {
        container: name.to_owned(),
        id: instance.status.id.clone(),
        grace,
        message: format!("Stopping container {name}"),
    });
}

fn clean_up(pod: &DesiredPod, state: &PodState, clock: Clock, decision: &mut Decision) {
    if state.busy.cleanup || !state.busy.removing.is_empty() {
        return;
    }
    if let Some(at) = state.cleanup_retry.filter(|at| *at > clock.now) {
        return decision.wake(at);
    }
    if !state.torn_down {
        decision.actions.push(Action::TearDown);
    } else if pod.is_deleted() && state.gone_since.is_none() {
        decision.actions.push(Action::Delete);
    }
}

fn release(state: &PodState, clock: Clock, decision: &mut Decision) {
    if state.released || state.busy.cleanup {
        return;
    }
    match state.cleanup_retry.filter(|at| *at > clock.now) {
        Some(at) => decision.wake(at),
        None => decision.actions.push(Action::Release),
    }
}

fn run(pod: &DesiredPod, state: &PodState, clock: Clock, decision: &mut Decision) {
    stop_unwanted(pod, state, decision);
    prepare(state, clock, decision);
    if !state.sandbox.is_done() || !state.volumes.is_done() {
        return;
    }
    resize(pod, state, clock, decision);
    if !mains_seen(pod, state) {
        if !initialize(pod, state, clock, decision) {
            return;
        }
    } else {
        for sidecar in pod.of_kind(ContainerKind::Sidecar) {
            start(pod, state, sidecar, clock, decision);
        }
    }
    for container in pod.of_kind(ContainerKind::Main) {
        start(pod, state, container, clock, decision);
        // A postStart hook holds back the containers after it.
        let starting = state.busy.starting.contains(container.name())
            || decision
                .actions
                .iter()
                .any(|a| matches!(a, Action::Start { container: c, .. } if c == container.name()));
        if starting && container.has_post_start() {
            return;
        }
    }
    for container in pod.of_kind(ContainerKind::Ephemeral) {
        start(pod, state, container, clock, decision);
    }
}

fn stop_unwanted(pod: &DesiredPod, state: &PodState, decision: &mut Decision) {
    for container in &pod.containers {
        let name = container.name();
        let Some(instance) = state.track(name).and_then(|t| t.current.as_ref()) else { continue };
        let Some(kill) = &instance.kill else { continue };
        let busy = state.busy.stopping.contains_key(name) || state.busy.starting.contains(name);
        if instance.is_running() && !busy {
            decision.actions.push(Action::Stop {
                container: name.to_owned(),
                id: instance.status.id.clone(),
                grace: kill.grace,
                message: kill.message.clone(),
            });
        }
    }
}

fn resize(pod: &DesiredPod, state: &PodState, clock: Clock, decision: &mut Decision) {
    let is_due = unequal(pod, state).next().is_some() || group_is_unequal(pod, state);
    if state.busy.resizing || !is_due {
        return;
    }
    match state.resize_failure.as_ref().map(|failure| failure.retry_at).filter(|at| *at > clock.now) {
        Some(at) => decision.wake(at),
        None => decision.actions.push(Action::Resize),
    }
}

fn prepare(state: &PodState, clock: Clock, decision: &mut Decision) {
    let steps = [
        (&state.sandbox, state.busy.sandbox, Action::PrepareSandbox),
        (&state.volumes, state.busy.volumes, Action::MountVolumes),
    ];
    for (step, busy, action) in steps {
        match step.due(clock.now) {
            _ if busy => {}
            Ok(true) => decision.actions.push(action),
            Ok(false) => {}
            Err(at) => decision.wake(at),
        }
    }
}

/// True when a main container was made in this sandbox: initialization is behind the pod.
pub(crate) fn mains_seen(pod: &DesiredPod, state: &PodState) -> bool {
    let seen = |c: &DesiredContainer| {
        state.track(c.name()).and_then(|t| t.current.as_ref()).is_some_and(|instance| !instance.stale)
    };
    pod.of_kind(ContainerKind::Main).any(seen)
}

/// True when this step of the init sequence lets the next one begin.
pub(crate) fn init_step_done(state: &PodState, container: &DesiredContainer) -> bool {
    let name = container.name();
    let Some(instance) = state.track(name).and_then(|t| t.current.as_ref()) else { return false };
    match container.kind {
        ContainerKind::Sidecar => container.is_started(instance) && !state.busy.starting.contains(name),
        _ => instance.progress() == Progress::Exited(0) && !instance.stale,
    }
}

/// Takes the init sequence one step further; true when it is complete.
fn initialize(pod: &DesiredPod, state: &PodState, clock: Clock, decision: &mut Decision) -> bool {
    for container in pod.init_sequence() {
        let done = init_step_done(state, container);
        if !done || container.kind == ContainerKind::Sidecar {
            start(pod, state, container, clock, decision);
        }
        if !done {
            return false;
        }
    }
    true
}

/// True when the end of this instance with `code` is not the last word on its container.
fn starts_again(policy: RestartPolicy, instance: &Instance, container: &DesiredContainer, code: i32) -> bool {
    let runs_once_more = container.kind == ContainerKind::Init && instance.stale;
    runs_once_more || instance.is_replaced() || restarts(policy, container, code)
}

/// Issues a start when the container should run, does not, and no back-off holds it.
fn start(
    pod: &DesiredPod,
    state: &PodState,
    container: &DesiredContainer,
    clock: Clock,
    decision: &mut Decision,
) {
    let name = container.name();
    if state.busy.starting.contains(name) || state.busy.stopping.contains_key(name) {
        return;
    }
    let blank = ContainerTrack::default();
    let track = state.track(name).unwrap_or(&blank);
    match track.progress() {
        Some(Progress::Running) => return,
        Some(Progress::Exited(code)) => {
            let again = |instance| starts_again(pod.restart_policy(), instance, container, code);
            if !track.current.as_ref().is_some_and(again) {
                return;
            }
            if let Some((_, left)) = restart_back_off(track, clock) {
                return decision.wake(clock.now + left);
            }
        }
        Some(Progress::Created) | None => {}
    }
    if let Some(failure) = &track.failure
        && failure.retry_at > clock.now
    {
        if failure.kind == FailureKind::ErrImagePull && failure.since + SHOW_PULL_ERROR > clock.now {
            decision.wake(failure.since + SHOW_PULL_ERROR);
        }
        return decision.wake(failure.retry_at);
    }
    decision.actions.push(Action::Start { container: name.to_owned(), attempt: track.next_attempt() });
}

/// Delay in force and what is left of it, for a container that has ended.
pub(crate) fn restart_back_off(track: &ContainerTrack, clock: Clock) -> Option<(Duration, Duration)> {
    let instance = track.current.as_ref().filter(|instance| !instance.is_replaced())?;
    let since = instance.exit_noticed?;
    track.restarts.remaining(since, clock.now)
}

fn remove_outdated(state: &PodState, clock: Clock, decision: &mut Decision) {
    if let Some(at) = state.cleanup_retry.filter(|at| *at > clock.now) {
        return decision.wake(at);
    }
    for (name, track) in &state.containers {
        for id in track.outdated.iter().filter(|id| !state.busy.removing.contains(*id)) {
            decision.actions.push(Action::Remove { id: id.clone(), container: name.clone() });
        }
    }
}
