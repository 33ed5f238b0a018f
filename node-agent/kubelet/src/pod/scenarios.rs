//! The machine's rules one by one, each a short history.

use hawser_runtime::{ContainerState, ContainerStatus};
use k8s_openapi::api::core::v1::{
    ContainerRestartRule, ContainerRestartRuleOnExitCodes, Lifecycle, LifecycleHandler, PodStatus, Probe,
};

use super::decide::{Action, Decision, decide};
use super::desired::DesiredPod;
use super::state::{FailureKind, Kill, Outcome, PodState, Progress, Step, TerminalPhase};
use super::status::{ANNOTATION_IMAGE, ANNOTATION_ROUND, phase, status};
use super::testing::{at, container, deleted, pod, record, sidecar, spec};
use crate::pod::state::Clock;
use std::sync::Arc;
use std::time::Duration;

/// A pod whose sandbox and volumes are there.
fn prepared() -> PodState {
    PodState { sandbox: Step::Done, volumes: Step::Done, ..PodState::default() }
}

fn with(
    state: &mut PodState,
    name: &str,
    attempt: u32,
    container_state: ContainerState,
    code: Option<i32>,
    clock: Clock,
) {
    let status = record(name, attempt, container_state, code);
    state.containers.entry(name.into()).or_default().observe(status, clock.now);
}

fn starts(decision: &Decision) -> Vec<(&str, u32)> {
    let started = decision.actions.iter().filter_map(|action| match action {
        Action::Start { container, attempt } => Some((container.as_str(), *attempt)),
        _ => None,
    });
    started.collect()
}

fn stops(decision: &Decision) -> Vec<(&str, u64)> {
    let stopped = decision.actions.iter().filter_map(|action| match action {
        Action::Stop { container, grace, .. } => Some((container.as_str(), grace.as_secs())),
        _ => None,
    });
    stopped.collect()
}

fn status_of(pod: &DesiredPod, state: &PodState, clock: Clock) -> PodStatus {
    status(pod, state, &["10.0.0.1".into()], None, clock)
}

fn waiting_reason(status: &PodStatus, index: usize) -> Option<(String, String)> {
    let waiting = status.container_statuses.as_ref()?[index].state.as_ref()?.waiting.as_ref()?;
    Some((waiting.reason.clone()?, waiting.message.clone().unwrap_or_default()))
}

fn condition<'a>(status: &'a PodStatus, type_: &str) -> (&'a str, &'a str, &'a str) {
    let found = status.conditions.iter().flatten().find(|c| c.type_ == type_).expect("condition");
    (&found.status, found.reason.as_deref().unwrap_or(""), found.message.as_deref().unwrap_or(""))
}

#[test]
fn new_pod_gets_sandbox_and_volumes_first() {
    let pod = pod(spec("Always", vec![], vec![container("web")]));
    let decision = decide(&pod, &PodState::default(), at(0));
    assert_eq!(decision.actions, [Action::PrepareSandbox, Action::MountVolumes]);
    let status = status_of(&pod, &PodState::default(), at(0));
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(waiting_reason(&status, 0), Some(("ContainerCreating".into(), String::new())));
    assert_eq!(condition(&status, "PodReadyToStartContainers").0, "False");
    assert_eq!(condition(&status, "PodScheduled").0, "True");
    let message = "containers with unready status: [web]";
    assert_eq!(condition(&status, "Ready"), ("False", "ContainersNotReady", message));
}

#[test]
fn init_containers_run_one_by_one() {
    let pod = pod(spec("Always", vec![container("a"), container("b")], vec![container("web")]));
    let mut state = prepared();
    assert_eq!(starts(&decide(&pod, &state, at(0))), [("a", 0)]);
    let status = status_of(&pod, &state, at(0));
    assert_eq!(waiting_reason(&status, 0).map(|w| w.0), Some("PodInitializing".into()));
    let message = "containers with incomplete status: [a b]";
    assert_eq!(condition(&status, "Initialized"), ("False", "ContainersNotInitialized", message));
    with(&mut state, "a", 0, ContainerState::Running, None, at(1));
    assert_eq!(starts(&decide(&pod, &state, at(1))), []);
    with(&mut state, "a", 0, ContainerState::Exited, Some(0), at(2));
    assert_eq!(starts(&decide(&pod, &state, at(2))), [("b", 0)]);
    with(&mut state, "b", 0, ContainerState::Exited, Some(0), at(3));
    assert_eq!(starts(&decide(&pod, &state, at(3))), [("web", 0)]);
    assert_eq!(condition(&status_of(&pod, &state, at(3)), "Initialized").0, "True");
}

#[test]
fn failed_init_container_fails_a_pod_that_never_restarts() {
    let pod = pod(spec("Never", vec![container("a")], vec![container("web")]));
    let mut state = prepared();
    with(&mut state, "a", 0, ContainerState::Exited, Some(3), at(1));
    let decision = decide(&pod, &state, at(1));
    assert_eq!(decision.terminal, Some(TerminalPhase::Failed));
    assert_eq!(decision.actions, [Action::Release]);
}

#[test]
fn pod_has_not_ended_before_its_devices_are_given_back() {
    let pod = pod(spec("Never", vec![], vec![container("job")]));
    let mut state = PodState { holds_claims: true, ..prepared() };
    with(&mut state, "job", 0, ContainerState::Exited, Some(0), at(1));
    let decision = decide(&pod, &state, at(1));
    assert_eq!(decision.actions, [Action::Release]);
    state.terminal = decision.terminal;
    assert_eq!(phase(&pod, &state), "Running");
    let deleted = deleted(&pod, at(2), 30);
    assert_eq!(phase(&deleted, &state), "Running");
    state.holds_claims = false;
    assert_eq!((phase(&pod, &state), phase(&deleted, &state)), ("Succeeded", "Succeeded"));
    // What the API has heard once is never taken back.
    state.holds_claims = true;
    let mut object = (*pod.object).clone();
    object.status = Some(PodStatus { phase: Some("Succeeded".into()), ..PodStatus::default() });
    assert_eq!(phase(&DesiredPod::new(object.into()), &state), "Succeeded");
}

#[test]
fn sidecar_starts_before_and_stops_after_the_rest() {
    let pod = pod(spec("Never", vec![sidecar("proxy")], vec![container("job")]));
    let mut state = prepared();
    assert_eq!(starts(&decide(&pod, &state, at(0))), [("proxy", 0)]);
    with(&mut state, "proxy", 0, ContainerState::Running, None, at(1));
    assert_eq!(starts(&decide(&pod, &state, at(1))), [("job", 0)]);
    with(&mut state, "job", 0, ContainerState::Running, None, at(2));
    assert_eq!(stops(&decide(&deleted(&pod, at(2), 30), &state, at(2))), [("job", 30)]);
    with(&mut state, "job", 0, ContainerState::Exited, Some(0), at(3));
    assert_eq!(phase(&pod, &state), "Running", "while the sidecar runs");
    let decision = decide(&pod, &state, at(3));
    assert_eq!(stops(&decision), [("proxy", 30)]);
    assert_eq!(decision.terminal, None);
    with(&mut state, "proxy", 0, ContainerState::Exited, Some(143), at(4));
    assert_eq!(decide(&pod, &state, at(4)).terminal, Some(TerminalPhase::Succeeded));
}

#[test]
fn sidecar_holds_back_the_rest_until_its_startup_probe_passes() {
    let mut proxy = sidecar("proxy");
    proxy.startup_probe = Some(Probe::default());
    let pod = pod(spec("Always", vec![proxy], vec![container("web")]));
    let mut state = prepared();
    with(&mut state, "proxy", 0, ContainerState::Running, None, at(1));
    assert_eq!(starts(&decide(&pod, &state, at(1))), []);
    state.containers.get_mut("proxy").and_then(|t| t.current.as_mut()).expect("runs").started = true;
    assert_eq!(starts(&decide(&pod, &state, at(2))), [("web", 0)]);
}

#[test]
fn crashing_container_restarts_at_once_and_then_backs_off() {
    let pod = pod(spec("Always", vec![], vec![container("web")]));
    let mut state = prepared();
    with(&mut state, "web", 0, ContainerState::Exited, Some(1), at(1));
    let decision = decide(&pod, &state, at(1));
    assert_eq!(starts(&decision), [("web", 1)]);
    state.begin(&decision.actions[0], at(1));
    let status = record("web", 1, ContainerState::Running, None);
    state.finish(Outcome::Started { container: "web".into(), status, resources: Default::default() }, at(1));
    with(&mut state, "web", 1, ContainerState::Exited, Some(1), at(2));

    let decision = decide(&pod, &state, at(2));
    assert_eq!(starts(&decision), []);
    assert_eq!(decision.wake_at, Some(at(12).now));
    let shown = status_of(&pod, &state, at(3));
    let message = format!("back-off 10s restarting failed container=web pod={}", pod.full_name());
    assert_eq!(waiting_reason(&shown, 0), Some(("CrashLoopBackOff".into(), message)));
    let web = &shown.container_statuses.as_ref().expect("statuses")[0];
    assert_eq!(web.restart_count, 1);
    let last = web.last_state.as_ref().and_then(|s| s.terminated.as_ref()).expect("the end it waits for");
    assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
    assert_eq!(shown.phase.as_deref(), Some("Running"));
    assert_eq!(starts(&decide(&pod, &state, at(12))), [("web", 2)]);
}

#[test]
fn only_two_instances_of_a_container_are_kept() {
    let pod = pod(spec("Always", vec![], vec![container("web")]));
    let mut state = prepared();
    for attempt in 0..3 {
        with(&mut state, "web", attempt, ContainerState::Exited, Some(1), at(1));
    }
    with(&mut state, "web", 3, ContainerState::Running, None, at(2));
    let removed: Vec<_> = decide(&pod, &state, at(2))
        .actions
        .into_iter()
        .filter(|a| matches!(a, Action::Remove { .. }))
        .collect();
    assert_eq!(removed.len(), 2);
}

#[test]
fn failed_pull_is_shown_then_backs_off() {
    let pod = pod(spec("Always", vec![], vec![container("web")]));
    let mut state = prepared();
    let fail = |state: &mut PodState, clock: Clock| {
        let action = Action::Start { container: "web".into(), attempt: 0 };
        state.begin(&action, clock);
        let outcome = Outcome::StartFailed {
            container: "web".into(),
            failure: FailureKind::ErrImagePull,
            message: "not found".into(),
            status: None,
        };
        state.finish(outcome, clock);
    };
    fail(&mut state, at(1));
    assert_eq!(
        waiting_reason(&status_of(&pod, &state, at(1)), 0),
        Some(("ErrImagePull".into(), "not found".into()))
    );
    assert_eq!(decide(&pod, &state, at(1)).wake_at, Some(at(4).now));
    let message = "Back-off pulling image \"registry.test/web:1\": ErrImagePull: not found".to_owned();
    let shown = waiting_reason(&status_of(&pod, &state, at(4)), 0);
    assert_eq!(shown, Some(("ImagePullBackOff".into(), message)));
    assert_eq!(starts(&decide(&pod, &state, at(10))), []);
    assert_eq!(starts(&decide(&pod, &state, at(11))), [("web", 0)]);
    fail(&mut state, at(11));
    assert_eq!(starts(&decide(&pod, &state, at(30))), [], "the second delay is 20 seconds");
    assert_eq!(starts(&decide(&pod, &state, at(31))), [("web", 0)]);
}

#[test]
fn command_that_cannot_start_counts_as_an_end_with_128() {
    let pod = pod(spec("Never", vec![], vec![container("web")]));
    let mut state = prepared();
    state.begin(&Action::Start { container: "web".into(), attempt: 0 }, at(1));
    let outcome = Outcome::StartFailed {
        container: "web".into(),
        failure: FailureKind::RunContainerError,
        message: "no such file".into(),
        status: Some(record("web", 0, ContainerState::Created, None)),
    };
    state.finish(outcome, at(1));
    assert_eq!(decide(&pod, &state, at(1)).terminal, Some(TerminalPhase::Failed));
    let shown = status_of(&pod, &state, at(1));
    let web = &shown.container_statuses.as_ref().expect("statuses")[0];
    let ended = web.state.as_ref().and_then(|s| s.terminated.as_ref()).expect("terminated");
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (128, Some("StartError")));
}

#[test]
fn deleted_pod_stops_is_torn_down_and_then_forgotten() {
    let pod = deleted(&pod(spec("Always", vec![], vec![container("web")])), at(10), 30);
    let mut state = prepared();
    with(&mut state, "web", 0, ContainerState::Running, None, at(1));
    state.deletion_seen = Some(at(10).now);
    let decision = decide(&pod, &state, at(12));
    assert_eq!(stops(&decision), [("web", 28)], "what is left of the grace");
    state.begin(&decision.actions[0], at(12));
    assert_eq!(decide(&pod, &state, at(20)).actions, []);
    let status = Some(record("web", 0, ContainerState::Exited, Some(143)));
    state.finish(Outcome::Stopped { container: "web".into(), status }, at(21));
    assert_eq!(decide(&pod, &state, at(21)).actions, [Action::TearDown]);
    assert_eq!(phase(&pod, &state), "Failed");
    state.finish(Outcome::TornDown, at(22));
    assert_eq!(decide(&pod, &state, at(22)).actions, [Action::Delete]);
    state.finish(Outcome::Deleted, at(23));
    assert_eq!(decide(&pod, &state, at(23)), Decision::default());
}

#[test]
fn half_made_container_is_made_anew_and_counts_for_nothing() {
    let pod = pod(spec("Always", vec![], vec![container("web")]));
    let mut half = record("web", 0, ContainerState::Unknown, None);
    half.started_at = None;
    let mut state = PodState::adopt(&pod, vec![half], at(1));
    (state.sandbox, state.volumes) = (Step::Done, Step::Done);
    assert_eq!(starts(&decide(&pod, &state, at(1))), [("web", 0)]);
    assert_eq!(status_of(&pod, &state, at(1)).container_statuses.expect("one")[0].restart_count, 0);
    // One that had been started and is lost has run.
    let lost = record("web", 0, ContainerState::Unknown, None);
    let mut state = PodState::adopt(&pod, vec![lost], at(1));
    (state.sandbox, state.volumes) = (Step::Done, Step::Done);
    assert_eq!(starts(&decide(&pod, &state, at(1))), [("web", 1)]);
}

/// The wall clock `jump` hours away from where it was.
fn jumped(seconds: u64, jump: i64) -> Clock {
    let clock = at(seconds);
    Clock { wall: clock.wall + jiff::SignedDuration::from_hours(jump), ..clock }
}

#[test]
fn wall_clock_that_jumps_moves_no_grace_and_no_back_off() {
    let running = pod(spec("Always", vec![], vec![container("web")]));
    for jump in [-1000, -1, 1, 1000] {
        let mut state = prepared();
        with(&mut state, "web", 0, ContainerState::Running, None, at(1));
        let gone = deleted(&running, at(10), 30);
        state.deletion_seen = Some(at(10).now);
        let decision = decide(&gone, &state, jumped(12, jump));
        assert_eq!(stops(&decision), [("web", 28)], "{jump} hours");
        state.begin(&decision.actions[0], jumped(12, jump));
        for later in [at(13), jumped(20, -jump), jumped(39, jump)] {
            assert_eq!(decide(&gone, &state, later).actions, [], "{jump} hours: it stops already");
        }

        let mut state = prepared();
        with(&mut state, "web", 0, ContainerState::Exited, Some(1), at(1));
        with(&mut state, "web", 1, ContainerState::Exited, Some(1), at(2));
        let before = decide(&running, &state, at(3));
        let after = decide(&running, &state, jumped(3, jump));
        assert_eq!(after, before, "{jump} hours");
        assert_eq!(starts(&decide(&running, &state, jumped(1000, jump))), [("web", 2)], "{jump} hours");

        let mut limited = spec("Always", vec![], vec![container("web")]);
        limited.active_deadline_seconds = Some(100);
        let limited = pod(limited);
        let mut state =
            PodState { sandbox: Step::Done, volumes: Step::Done, ..PodState::adopt(&limited, vec![], at(5)) };
        with(&mut state, "web", 0, ContainerState::Running, None, at(6));
        assert_eq!(decide(&limited, &state, jumped(104, jump)).verdict, None, "{jump} hours");
        assert!(decide(&limited, &state, jumped(105, jump)).verdict.is_some(), "{jump} hours");
    }
}

#[test]
fn second_stricter_delete_shortens_the_stop() {
    let running = pod(spec("Always", vec![], vec![container("web")]));
    let mut state = prepared();
    with(&mut state, "web", 0, ContainerState::Running, None, at(1));
    let first = deleted(&running, at(10), 30);
    let decision = decide(&first, &state, at(10));
    state.begin(&decision.actions[0], at(10));
    assert_eq!(stops(&decide(&deleted(&running, at(11), 0), &state, at(11))), [("web", 2)]);
}

#[test]
fn container_of_another_image_is_made_anew_whatever_its_policy() {
    for policy in ["Always", "Never"] {
        let before = pod(spec(policy, vec![], vec![container("web"), container("beside")]));
        let mut state = prepared();
        for name in ["web", "beside"] {
            with(&mut state, name, 0, ContainerState::Running, None, at(1));
            let instance = state.containers.get_mut(name).and_then(|t| t.current.as_mut()).expect("runs");
            let made_of = before.container(name).expect("there").image().to_owned();
            Arc::make_mut(&mut instance.status).annotations.insert(ANNOTATION_IMAGE.into(), made_of);
        }
        state.replace_changed(&before);
        assert_eq!(stops(&decide(&before, &state, at(2))), [], "{policy}");

        let mut object = (*before.object).clone();
        object.spec.as_mut().expect("a spec").containers[0].image = Some("registry.test/web:2".into());
        let after = DesiredPod::new(object.into());
        state.replace_changed(&after);
        let decision = decide(&after, &state, at(2));
        assert_eq!(stops(&decision), [("web", 30)], "{policy}");
        state.begin(&decision.actions[0], at(2));
        let ended = record("web", 0, ContainerState::Exited, Some(0));
        state.finish(Outcome::Stopped { container: "web".into(), status: Some(ended) }, at(3));
        assert_eq!(starts(&decide(&after, &state, at(3))), [("web", 1)], "{policy}: at once");
        assert_eq!(status_of(&after, &state, at(3)).phase.as_deref(), Some("Running"), "{policy}");
    }
}

#[test]
fn unhealthy_container_is_stopped_and_made_again() {
    let pod = pod(spec("Always", vec![], vec![container("web")]));
    let mut state = prepared();
    with(&mut state, "web", 0, ContainerState::Running, None, at(1));
    let kill =
        Kill { message: "failed liveness probe".into(), grace: Duration::from_secs(5), replaced: false };
    state.containers.get_mut("web").and_then(|t| t.current.as_mut()).expect("runs").kill = Some(kill);
    let decision = decide(&pod, &state, at(2));
    assert_eq!(stops(&decision), [("web", 5)]);
    state.begin(&decision.actions[0], at(2));
    let status = Some(record("web", 0, ContainerState::Exited, Some(143)));
    state.finish(Outcome::Stopped { container: "web".into(), status }, at(3));
    assert_eq!(starts(&decide(&pod, &state, at(3))), [("web", 1)]);
}

#[test]
fn deadline_fails_the_pod() {
    let mut spec = spec("Always", vec![], vec![container("web")]);
    spec.active_deadline_seconds = Some(60);
    let pod = pod(spec);
    let mut state = prepared();
    state.start_time = Some(at(0).wall);
    with(&mut state, "web", 0, ContainerState::Running, None, at(1));
    let early = decide(&pod, &state, at(50));
    assert_eq!((early.verdict, early.wake_at), (None, Some(at(60).now)));
    let decision = decide(&pod, &state, at(60));
    assert_eq!(stops(&decision), [("web", 30)]);
    state.verdict = decision.verdict;
    with(&mut state, "web", 0, ContainerState::Exited, Some(143), at(61));
    let shown = status_of(&pod, &state, at(61));
    assert_eq!((shown.phase.as_deref(), shown.reason.as_deref()), (Some("Failed"), Some("DeadlineExceeded")));
}

#[test]
fn post_start_hook_holds_back_the_next_container() {
    let mut first = container("first");
    let handler = LifecycleHandler::default();
    first.lifecycle = Some(Lifecycle { post_start: Some(handler), ..Lifecycle::default() });
    let pod = pod(spec("Always", vec![], vec![first, container("second")]));
    let mut state = prepared();
    let decision = decide(&pod, &state, at(0));
    assert_eq!(starts(&decision), [("first", 0)]);
    state.begin(&decision.actions[0], at(0));
    assert_eq!(starts(&decide(&pod, &state, at(1))), []);
    let status = record("first", 0, ContainerState::Running, None);
    state
        .finish(Outcome::Started { container: "first".into(), status, resources: Default::default() }, at(2));
    assert_eq!(starts(&decide(&pod, &state, at(2))), [("second", 0)]);
}

/// A pod that never starts anything again, but for all of it where `main` ends with 42.
fn pod_that_starts_over() -> DesiredPod {
    let mut main = container("main");
    let codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: Some(vec![42]) };
    let rule = ContainerRestartRule { action: "RestartAllContainers".into(), exit_codes: Some(codes) };
    (main.restart_policy, main.restart_policy_rules) = (Some("Never".into()), Some(vec![rule]));
    pod(spec("Never", vec![container("init")], vec![main, container("other")]))
}

#[test]
fn all_containers_start_over_where_a_rule_asks_for_it() {
    let pod = pod_that_starts_over();
    let mut state = prepared();
    let restarting = |state: &PodState, clock| {
        let status = status_of(&pod, state, clock);
        status.conditions.into_iter().flatten().any(|c| c.type_ == "AllContainersRestarting")
    };
    with(&mut state, "init", 0, ContainerState::Exited, Some(0), at(1));
    with(&mut state, "main", 0, ContainerState::Running, None, at(2));
    with(&mut state, "other", 0, ContainerState::Running, None, at(2));
    with(&mut state, "main", 0, ContainerState::Exited, Some(42), at(5));
    let decision = decide(&pod, &state, at(5));
    assert_eq!((stops(&decision), starts(&decision)), (vec![("other", 2)], vec![]));
    assert!(!decision.rerun && restarting(&state, at(5)));
    with(&mut state, "other", 0, ContainerState::Exited, Some(137), at(6));
    assert!(decide(&pod, &state, at(6)).rerun);
    state.rerun_all(&pod);
    assert_eq!(starts(&decide(&pod, &state, at(6))), [("init", 1)]);
    with(&mut state, "init", 1, ContainerState::Exited, Some(0), at(8));
    assert_eq!(starts(&decide(&pod, &state, at(8))), [("main", 1), ("other", 1)]);
    assert!(restarting(&state, at(8)));
    with(&mut state, "main", 1, ContainerState::Running, None, at(9));
    with(&mut state, "other", 1, ContainerState::Running, None, at(9));
    assert!(!restarting(&state, at(9)));
    with(&mut state, "main", 1, ContainerState::Exited, Some(1), at(10));
    with(&mut state, "other", 1, ContainerState::Exited, Some(0), at(10));
    assert_eq!(decide(&pod, &state, at(10)).terminal, Some(TerminalPhase::Failed), "another code is an end");
}

#[test]
fn new_agent_goes_on_where_containers_are_starting_over() {
    use ContainerState::{Created, Exited, Running};
    let pod = pod_that_starts_over();
    let of = |name: &str, round: u32, state, code| {
        let mut found = record(name, round, state, code);
        found.annotations.insert(ANNOTATION_ROUND.into(), round.to_string());
        found
    };
    let check =
        |name: &str, newer: Vec<ContainerStatus>, stopped: &[&str], started: &[(&str, u32)], round| {
            let mut found = vec![
                of("init", 0, Exited, Some(0)),
                of("main", 0, Exited, Some(42)),
                of("other", 0, Exited, Some(137)),
            ];
            found.retain(|older| !newer.iter().any(|newer| newer.id == older.id));
            found.extend(newer);
            let adopted = PodState::adopt(&pod, found, at(9));
            let mut state = PodState { sandbox: Step::Done, volumes: Step::Done, ..adopted };
            let mut decision = decide(&pod, &state, at(9));
            if decision.rerun {
                state.rerun_all(&pod);
                decision = decide(&pod, &state, at(9));
            }
            let stops: Vec<&str> = stops(&decision).into_iter().map(|(name, _)| name).collect();
            assert_eq!((stops.as_slice(), starts(&decision).as_slice()), (stopped, started), "{name}");
            assert_eq!((state.round, decision.terminal), (round, None), "{name}");
        };
    check("not all have stopped", vec![of("other", 0, Running, None)], &["other"], &[], 0);
    check("none is started", vec![], &[], &[("init", 1)], 1);
    let init = |state, code| of("init", 1, state, code);
    check("the first is made", vec![init(Created, None)], &[], &[("init", 1)], 1);
    check("the first runs", vec![init(Running, None)], &[], &[], 1);
    let done = || init(Exited, Some(0));
    check("the first has ended", vec![done()], &[], &[("main", 1), ("other", 1)], 1);
    check("some are started", vec![done(), of("main", 1, Running, None)], &[], &[("other", 1)], 1);
    let again = of("main", 1, Exited, Some(42));
    check("once more, on the way", vec![done(), again], &[], &[("init", 2)], 2);
    let all = vec![done(), of("main", 1, Running, None), of("other", 1, Running, None)];
    check("all are started", all, &[], &[], 1);
    let unmade = vec![of("main", 1, Exited, Some(42)), of("other", 1, Created, None), done()];
    let adopted = PodState::adopt(&pod, unmade, at(9));
    let mut state = PodState { sandbox: Step::Done, volumes: Step::Done, ..adopted };
    assert!(decide(&pod, &state, at(9)).rerun);
    state.rerun_all(&pod);
    with(&mut state, "init", 2, Exited, Some(0), at(10));
    assert_eq!(
        starts(&decide(&pod, &state, at(10))),
        [("main", 2), ("other", 2)],
        "what was only made is left"
    );
}

#[test]
fn lost_sandbox_runs_init_containers_again() {
    let pod = pod(spec("Always", vec![container("a")], vec![container("web")]));
    let mut state = prepared();
    with(&mut state, "a", 0, ContainerState::Exited, Some(0), at(1));
    with(&mut state, "web", 0, ContainerState::Exited, Some(137), at(1));
    state.finish(Outcome::SandboxReady { ips: vec![], recreated: true, group: Default::default() }, at(2));
    assert_eq!(starts(&decide(&pod, &state, at(2))), [("a", 1)]);
    with(&mut state, "a", 1, ContainerState::Exited, Some(0), at(3));
    assert_eq!(starts(&decide(&pod, &state, at(3))), [("web", 1)]);
}

#[test]
fn adopted_container_keeps_its_readiness() {
    let mut web = container("web");
    web.readiness_probe = Some(Probe::default());
    let before = pod(spec("Always", vec![], vec![web]));
    let mut state = prepared();
    with(&mut state, "web", 0, ContainerState::Running, None, at(1));
    state.containers.get_mut("web").and_then(|t| t.current.as_mut()).expect("runs").ready = true;
    let mut object = (*before.object).clone();
    object.status = Some(status_of(&before, &state, at(2)));
    let after = DesiredPod::new(object.into());
    let found = vec![record("web", 0, ContainerState::Running, None)];
    let adopted = PodState { sandbox: Step::Done, ..PodState::adopt(&after, found, at(3)) };
    assert_eq!(condition(&status_of(&after, &adopted, at(3)), "Ready").0, "True");
}

#[test]
fn exit_that_overtakes_its_start_is_not_forgotten() {
    let mut state = prepared();
    with(&mut state, "web", 0, ContainerState::Exited, Some(3), at(1));
    let status = record("web", 0, ContainerState::Running, None);
    state.finish(Outcome::Started { container: "web".into(), status, resources: Default::default() }, at(1));
    let current = state.containers["web"].current.as_ref().expect("an instance");
    assert_eq!(current.progress(), Progress::Exited(3));
}

#[test]
fn restarts_count_on_where_the_node_has_lost_its_records() {
    let before = pod(spec("Always", vec![], vec![container("web")]));
    let mut state = prepared();
    with(&mut state, "web", 4, ContainerState::Running, None, at(1));
    let mut object = (*before.object).clone();
    object.status = Some(status_of(&before, &state, at(2)));
    let after = DesiredPod::new(object.into());
    let adopt = |found| PodState {
        sandbox: Step::Done,
        volumes: Step::Done,
        ..PodState::adopt(&after, found, at(3))
    };
    assert_eq!(starts(&decide(&after, &adopt(vec![]), at(3))), [("web", 5)]);
    let older = vec![record("web", 3, ContainerState::Exited, Some(1))];
    assert_eq!(starts(&decide(&after, &adopt(older), at(13))), [("web", 5)]);
    let found = vec![record("web", 4, ContainerState::Exited, Some(1))];
    assert_eq!(starts(&decide(&after, &adopt(found), at(13))), [("web", 5)]);
}
