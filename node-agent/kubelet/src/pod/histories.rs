//! Generated histories: random containers, policies, failures, exits, probes, changed images, deadlines, deletions, pods that
//! start over, agent restarts and wall clocks that jump, with what must hold after every step. A failing history prints its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::testing::Random;
use hawser_runtime::{ContainerState, ContainerStatus, container_id};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, ContainerRestartRuleOnExitCodes, EphemeralContainer, PodStatus, Probe,
    ResourceRequirements,
};

use super::decide::{Action, decide};
use super::desired::{ContainerKind, DesiredContainer, DesiredPod};
use super::resize::{Resized, unequal};
use super::restart::{restarts, restarts_all};
use super::state::{Clock, FailureKind, Instance, Kill, Outcome, PodState, Progress};
use super::status::{ANNOTATION_IMAGE, ANNOTATION_ROUND, status};
use super::testing::{UID, at, container, deleted, pod, record, sidecar, spec, with_resources};
use crate::container::resources::pod_resources;

/// A few seconds of a test's time.
const SEEDS: u64 = 2000;

/// The node as it really is, beside the kubelet's view of it.
struct World {
    random: Random,
    pod: DesiredPod,
    state: PodState,
    clock: Clock,
    containers: BTreeMap<String, ContainerStatus>,
    /// What each container may really use, by id.
    has: BTreeMap<String, ResourceRequirements>,
    under_way: Vec<Action>,
    /// What has happened since all containers started over last.
    round: Round,
    /// What had happened before that, while no container shows yet that they did.
    before: Option<Round>,
    /// The wall clock has jumped since this agent, or an earlier one, found the pod.
    jumped: bool,
    /// The pod's deadline has passed; an agent that finds the pod ended does not know why.
    is_late: bool,
    phases: Vec<String>,
    failures_allowed: bool,
    torn_down: bool,
    deleted: bool,
}

#[derive(Clone, Default)]
struct Round {
    number: u32,
    /// How the newest instance of a container ended.
    ended: BTreeMap<String, i32>,
    /// Containers whose startup probe has passed once.
    passed: BTreeSet<String>,
    /// Containers of which an instance has run.
    ran: BTreeSet<String>,
}

/// A container that may have a policy, and rules, of its own.
fn with_policy(random: &mut Random, name: &str) -> Container {
    let mut container = container(name);
    if random.one_in(4) {
        container.restart_policy = Some(["Always", "OnFailure", "Never"][random.index(3)].into());
        container.restart_policy_rules = random.one_in(2).then(|| {
            let operator = ["In", "NotIn"][random.index(2)].into();
            let exit_codes = Some(ContainerRestartRuleOnExitCodes { operator, values: Some(vec![1]) });
            let action = ["Restart", "RestartAllContainers"][random.index(2)].into();
            vec![ContainerRestartRule { action, exit_codes }]
        });
    }
    container
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let policy = ["Always", "OnFailure", "Never"][random.index(3)];
        let mut init = Vec::new();
        for n in 0..random.index(3) {
            let name = format!("init-{n}");
            init.push(match random.index(6) {
                0 => sidecar(&name),
                1 => Container { startup_probe: Some(Probe::default()), ..sidecar(&name) },
                _ => container(&name),
            });
        }
        let main = (0..=random.index(3)).map(|n| with_policy(&mut random, &format!("main-{n}"))).collect();
        let mut spec = spec(policy, init, main);
        spec.active_deadline_seconds = random.one_in(6).then(|| 60 + random.index(600) as i64);
        let pod = pod(spec);
        let clock = at(0);
        let state = PodState::adopt(&pod, Vec::new(), clock);
        Self {
            random,
            pod,
            state,
            clock,
            containers: BTreeMap::new(),
            has: BTreeMap::new(),
            under_way: Vec::new(),
            round: Round::default(),
            before: None,
            jumped: false,
            is_late: false,
            phases: Vec::new(),
            failures_allowed: true,
            torn_down: false,
            deleted: false,
        }
    }

    fn decide(&mut self) {
        self.state.replace_changed(&self.pod);
        let decision = decide(&self.pod, &self.state, self.clock);
        if decision.verdict.is_some() {
            self.is_late = true;
            let allowed = self.pod.spec().active_deadline_seconds.expect("only a deadline fails these pods");
            let passed = self.clock.now.as_secs();
            assert!(
                self.jumped || passed >= allowed.unsigned_abs(),
                "failed after {passed} of {allowed} seconds"
            );
        }
        self.state.verdict = self.state.verdict.take().or(decision.verdict);
        self.state.terminal = self.state.terminal.or(decision.terminal);
        for action in decision.actions {
            self.check_action(&action);
            self.state.begin(&action, self.clock);
            self.under_way.push(action);
        }
        if decision.rerun {
            self.start_over();
            return self.decide();
        }
        let again = decide(&self.pod, &self.state, self.clock);
        assert_eq!(again.actions, [], "what is under way is not issued again");
        self.report();
    }

    /// All containers start over.
    fn start_over(&mut self) {
        let runs = |c: &ContainerStatus| c.state == ContainerState::Running;
        assert!(!self.containers.values().any(runs), "all were stopped");
        let asked =
            |c: &DesiredContainer| self.round.ended.get(c.name()).is_some_and(|code| restarts_all(c, *code));
        assert!(self.pod.containers.iter().any(asked), "a rule asked for it: {:?}", self.round.ended);
        self.state.rerun_all(&self.pod);
        let mut next = Round { number: self.round.number + 1, ..Round::default() };
        next.ran.extend(self.round.ran.iter().filter(|name| self.is_ephemeral(name)).cloned());
        next.ended.extend(self.round.ended.clone().into_iter().filter(|(name, _)| self.is_ephemeral(name)));
        self.before = Some(std::mem::replace(&mut self.round, next));
        assert_eq!(self.state.round, self.round.number);
    }

    fn is_ephemeral(&self, name: &str) -> bool {
        self.pod.container(name).is_some_and(|c| c.kind == ContainerKind::Ephemeral)
    }

    fn check_action(&self, action: &Action) {
        let running: BTreeSet<&str> = self
            .containers
            .values()
            .filter(|c| c.state == ContainerState::Running)
            .map(|c| c.name.as_str())
            .collect();
        match action {
            Action::Start { container, attempt } => {
                assert!(!running.contains(container.as_str()), "{container} runs already");
                assert!(!self.pod.is_deleted(), "nothing starts in a deleted pod");
                let desired = self.pod.container(container).expect("part of the pod");
                let id = container_id(UID, container, *attempt);
                let made = self.containers.get(&id);
                assert!(
                    made.is_none_or(|c| c.state == ContainerState::Created),
                    "attempt {attempt} was used up"
                );
                if let Some(code) = self.round.ended.get(container) {
                    let replaced = self
                        .state
                        .track(container)
                        .and_then(|t| t.current.as_ref())
                        .is_some_and(Instance::is_replaced);
                    let again = replaced || restarts(self.pod.restart_policy(), desired, *code);
                    assert!(again, "{container} was done");
                }
                if desired.kind == ContainerKind::Ephemeral {
                    assert!(!self.round.ran.contains(container), "{container} runs once");
                }
                if desired.kind == ContainerKind::Main && !self.round.ran.contains(container) {
                    for sidecar in self.pod.of_kind(ContainerKind::Sidecar) {
                        let started = match sidecar.spec.startup_probe {
                            Some(_) => self.round.passed.contains(sidecar.name()),
                            None => self.round.ran.contains(sidecar.name()),
                        };
                        assert!(started, "{} has started before {container}", sidecar.name());
                    }
                    for init in self.pod.of_kind(ContainerKind::Init) {
                        assert_eq!(
                            self.round.ended.get(init.name()),
                            Some(&0),
                            "{} comes first",
                            init.name()
                        );
                    }
                }
            }
            Action::Release | Action::TearDown => {
                assert!(running.is_empty(), "{running:?} still run");
                assert!(
                    !self.under_way.iter().any(|a| matches!(a, Action::Start { .. })),
                    "a start is under way"
                );
            }
            Action::Delete => assert!(self.torn_down, "the API forgets a pod after the node has"),
            Action::Stop { container, .. } => {
                let is_sidecar = self.pod.container(container).expect("part").kind == ContainerKind::Sidecar;
                if is_sidecar && self.pod.is_deleted() {
                    let mains = self.pod.of_kind(ContainerKind::Main);
                    assert!(!mains.into_iter().any(|m| running.contains(m.name())), "sidecars stop last");
                }
            }
            _ => {}
        }
    }

    /// The status reaches the API, as the agent would write it.
    fn report(&mut self) {
        let reported = status(&self.pod, &self.state, &["10.0.0.1".into()], None, self.clock);
        let phase = reported.phase.clone().expect("a phase");
        if self.phases.last() != Some(&phase) {
            if let Some(last) = self.phases.last() {
                assert!(!matches!(last.as_str(), "Succeeded" | "Failed"), "{last} was left for {phase}");
            }
            self.phases.push(phase);
        }
        for c in reported.container_statuses.iter().flatten() {
            let really =
                self.containers.values().any(|i| i.name == c.name && i.state == ContainerState::Running);
            assert!(!c.ready || really || self.unseen_exit(&c.name), "{} is ready without running", c.name);
        }
        let mut object = (*self.pod.object).clone();
        object.status = Some(PodStatus { ..reported });
        self.pod = DesiredPod::new(Arc::new(object));
    }

    fn unseen_exit(&self, name: &str) -> bool {
        self.state.track(name).and_then(|t| t.current.as_ref()).is_some_and(Instance::is_running)
    }

    fn step(&mut self) {
        match self.random.index(10) {
            0..=4 => self.complete_one(),
            5 => self.exit_one(),
            6 | 7 => {
                let seconds = self.random.index(60) as u64;
                self.advance(seconds);
            }
            8 if self.random.one_in(8) => self.restart_agent(),
            8 if self.random.one_in(4) => self.grant(),
            8 if self.random.one_in(4) => self.change_image(),
            8 if self.random.one_in(4) => self.probe(),
            8 if self.random.one_in(8) => self.jump(),
            9 if self.random.one_in(20) => self.debug(),
            9 if self.random.one_in(30) && !self.pod.is_deleted() => {
                self.pod = deleted(&self.pod, self.clock, 30);
            }
            _ => self.complete_one(),
        }
        self.decide();
    }

    /// One of the containers is granted something else.
    fn grant(&mut self) {
        let mut object = (*self.pod.object).clone();
        let containers = &mut object.spec.as_mut().expect("a spec").containers;
        let chosen = self.random.index(containers.len());
        let cpu = format!("{}m", 100 * (1 + self.random.index(3)));
        containers[chosen].resources = with_resources("", &[("cpu", &cpu)], &[]).resources;
        self.pod = DesiredPod::new(Arc::new(object));
    }

    /// One of the containers is to be of another image.
    fn change_image(&mut self) {
        let mut object = (*self.pod.object).clone();
        let containers = &mut object.spec.as_mut().expect("a spec").containers;
        let chosen = self.random.index(containers.len());
        containers[chosen].image = Some(format!("registry.test/web:{}", self.random.index(3)));
        self.pod = DesiredPod::new(Arc::new(object));
    }

    /// Somebody looks into the pod.
    fn debug(&mut self) {
        let mut object = (*self.pod.object).clone();
        let containers = object.spec.as_mut().expect("a spec").ephemeral_containers.get_or_insert_default();
        let name = format!("debug-{}", containers.len());
        containers.push(EphemeralContainer { name, ..EphemeralContainer::default() });
        self.pod = DesiredPod::new(Arc::new(object));
    }

    /// A probe of a running container passes for the first time, or fails for the last.
    fn probe(&mut self) {
        let fails = self.random.one_in(3);
        let names: Vec<String> = self
            .state
            .containers
            .iter()
            .filter(|(_, t)| t.is_running())
            .map(|(name, _)| name.clone())
            .collect();
        if names.is_empty() {
            return;
        }
        let name = &names[self.random.index(names.len())];
        if fails {
            let kill = Kill { message: "failed".into(), grace: Duration::from_secs(5), replaced: false };
            self.instance(name).kill.get_or_insert(kill);
        } else {
            self.pass(name);
        }
    }

    fn pass(&mut self, name: &str) {
        self.instance(name).started = true;
        self.round.passed.insert(name.to_owned());
    }

    fn instance(&mut self, name: &str) -> &mut Instance {
        self.state.containers.get_mut(name).and_then(|t| t.current.as_mut()).expect("there is one")
    }

    /// Somebody sets the wall clock.
    fn jump(&mut self) {
        let hours = self.random.index(200) as i64 - 100;
        self.clock.wall += SignedDuration::from_hours(hours);
    }

    /// Gives running containers what they were granted.
    fn resize(&mut self) -> Resized {
        let unequal: Vec<DesiredContainer> = unequal(&self.pod, &self.state).cloned().collect();
        let group = Some(pod_resources(self.pod.spec(), None));
        let mut resized = Resized { group, ..Resized::default() };
        for container in unequal {
            let instance = self.state.track(container.name()).and_then(|t| t.current.as_ref()).expect("runs");
            let granted = container.spec.resources.clone().unwrap_or_default();
            self.has.insert(instance.status.id.clone(), granted.clone());
            resized.done.push((instance.status.id.clone(), granted));
        }
        resized
    }

    fn advance(&mut self, seconds: u64) {
        let elapsed = Duration::from_secs(seconds);
        self.clock = Clock { wall: self.clock.wall + elapsed, now: self.clock.now + elapsed };
    }

    fn exit_one(&mut self) {
        let running: Vec<String> = self
            .containers
            .values()
            .filter(|c| c.state == ContainerState::Running)
            .map(|c| c.id.clone())
            .collect();
        if running.is_empty() {
            return;
        }
        let id = running[self.random.index(running.len())].clone();
        let code = if self.random.one_in(2) { 0 } else { 1 };
        self.end(&id, code);
    }

    fn end(&mut self, id: &str, code: i32) {
        let c = self.containers.get_mut(id).expect("known");
        let annotations = std::mem::take(&mut c.annotations);
        *c = record(&c.name, c.attempt, ContainerState::Exited, Some(code));
        self.round.ended.insert(c.name.clone(), code);
        c.annotations = annotations;
        let seen = c.clone();
        let known = self.state.containers.get_mut(&seen.name);
        // An agent that has not heard of the start yet hears of both at once.
        if let Some(track) = known.filter(|t| t.current.as_ref().is_some_and(|i| i.status.id == id)) {
            track.observe(seen, self.clock.now);
        }
    }

    fn complete_one(&mut self) {
        if self.under_way.is_empty() {
            return;
        }
        let index = self.random.index(self.under_way.len());
        let action = self.under_way.swap_remove(index);
        let fails = self.failures_allowed && self.random.one_in(4);
        let outcome = self.carry_out(action, fails);
        self.state.finish(outcome, self.clock);
    }

    fn carry_out(&mut self, action: Action, fails: bool) -> Outcome {
        match action {
            Action::PrepareSandbox if fails => Outcome::SandboxFailed("no address".into()),
            Action::PrepareSandbox => {
                let ips = vec![IpAddr::V4(Ipv4Addr::new(10, 1, 0, 7))];
                Outcome::SandboxReady { ips, recreated: false, group: pod_resources(self.pod.spec(), None) }
            }
            Action::MountVolumes if fails => Outcome::VolumesFailed("no such secret".into()),
            Action::MountVolumes => Outcome::VolumesReady,
            Action::Start { container, attempt } => self.start(container, attempt, fails),
            Action::Stop { container, id, .. } => {
                if self.containers.get(&id).is_some_and(|c| c.state == ContainerState::Running) {
                    self.end(&id, 143);
                }
                Outcome::Stopped { container, status: self.containers.get(&id).cloned() }
            }
            Action::Remove { id, .. } if fails => Outcome::RemoveFailed { id },
            Action::Remove { id, container } => {
                self.containers.remove(&id);
                Outcome::Removed { id, container }
            }
            Action::Release | Action::TearDown | Action::Delete if fails => Outcome::CleanupFailed,
            Action::Release => Outcome::Released,
            Action::TearDown => {
                self.containers.clear();
                self.torn_down = true;
                Outcome::TornDown
            }
            Action::Delete => {
                self.deleted = true;
                Outcome::Deleted
            }
            Action::Resize if fails => {
                Outcome::Resized(Resized { failure: Some("no room".into()), ..Resized::default() })
            }
            Action::Resize => Outcome::Resized(self.resize()),
        }
    }

    fn start(&mut self, container: String, attempt: u32, fails: bool) -> Outcome {
        let id = container_id(UID, &container, attempt);
        if fails {
            let kinds = [
                FailureKind::ErrImagePull,
                FailureKind::CreateContainerConfigError,
                FailureKind::CreateContainerError,
                FailureKind::RunContainerError,
            ];
            let failure = kinds[self.random.index(kinds.len())];
            let mut made = (failure == FailureKind::RunContainerError)
                .then(|| record(&container, attempt, ContainerState::Created, None));
            if let Some(made) = &mut made {
                self.mark(made);
                self.containers.insert(id, made.clone());
                self.round.ended.insert(container.clone(), 128);
            }
            return Outcome::StartFailed { container, failure, message: "failed".into(), status: made };
        }
        let desired = self.pod.container(&container).expect("part of the pod");
        let mut status = record(&container, attempt, ContainerState::Running, None);
        status.annotations.insert(ANNOTATION_IMAGE.into(), desired.image().to_owned());
        let resources = desired.spec.resources.clone().unwrap_or_default();
        self.mark(&mut status);
        self.round.ended.remove(&container);
        self.round.ran.insert(container.clone());
        self.has.insert(id.clone(), resources.clone());
        self.containers.insert(id, status.clone());
        Outcome::Started { container, status, resources }
    }

    /// Each instance carries the round that it was made in.
    fn mark(&mut self, made: &mut ContainerStatus) {
        made.annotations.insert(ANNOTATION_ROUND.into(), self.state.round.to_string());
        if !self.is_ephemeral(&made.name) {
            self.before = None;
        }
    }

    /// The agent dies in the middle of everything; what it had begun may have happened or not.
    fn restart_agent(&mut self) {
        self.jumped |= self.clock.wall != at(self.clock.now.as_secs()).wall;
        for action in std::mem::take(&mut self.under_way) {
            if self.random.one_in(2) && !matches!(action, Action::Delete) {
                self.carry_out(action, false);
            }
        }
        let found = self.containers.values().cloned().collect();
        self.state = PodState::adopt(&self.pod, found, self.clock);
        self.torn_down = false;
        if let Some(before) = self.before.take() {
            // Nobody knows that they were about to start over; the same end has them do it again.
            self.round = before;
        }
        assert!(self.containers.is_empty() || self.state.round == self.round.number);
        if self.state.terminal.is_some() {
            return;
        }
        // Only the kubelet's memory knew that these could not be started.
        let unstarted: Vec<String> = self
            .containers
            .values()
            .filter(|c| c.state == ContainerState::Created)
            .filter(|c| {
                !self.containers.values().any(|other| other.name == c.name && other.attempt > c.attempt)
            })
            .map(|c| c.name.clone())
            .collect();
        for name in unstarted {
            self.round.ended.remove(&name);
        }
    }

    /// Lets everything that is under way, init containers included, succeed until nothing more happens.
    fn settle(&mut self) {
        self.failures_allowed = false;
        for _ in 0..400 {
            self.decide();
            if self.under_way.is_empty() {
                self.advance(301);
                self.end_init_containers();
                self.pass_all();
            }
            self.complete_one();
        }
        self.decide();
    }

    fn pass_all(&mut self) {
        let running = self.state.containers.iter().filter(|(_, track)| track.is_running());
        for name in running.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.pass(&name);
        }
    }

    fn end_init_containers(&mut self) {
        let init: Vec<String> = self.pod.of_kind(ContainerKind::Init).map(|c| c.name().to_owned()).collect();
        let running: Vec<String> = self
            .containers
            .values()
            .filter(|c| c.state == ContainerState::Running && init.contains(&c.name))
            .map(|c| c.id.clone())
            .collect();
        for id in running {
            self.end(&id, 0);
        }
    }
}

#[track_caller]
fn run_history(seed: u64) {
    let mut world = World::new(seed);
    let steps = 20 + world.random.index(150);
    for _ in 0..steps {
        world.step();
    }
    world.settle();
    if world.pod.is_deleted() {
        assert!(world.deleted, "a deleted pod goes away");
        assert!(world.containers.is_empty(), "nothing of it stays");
        return;
    }
    let policy = world.pod.restart_policy();
    if world.state.terminal.is_some() {
        assert!(world.state.released);
        assert!(world.containers.values().all(|c| c.state != ContainerState::Running), "it has ended");
        let goes_on = |c: &DesiredContainer| {
            world.round.ended.get(c.name()).is_none_or(|code| restarts(policy, c, *code))
        };
        let failed_early =
            world.pod.of_kind(ContainerKind::Init).any(|c| !goes_on(c) && world.round.ended[c.name()] != 0);
        let by_itself = failed_early || !world.pod.of_kind(ContainerKind::Main).any(goes_on);
        assert!(world.is_late || by_itself, "a container was to go on: {:?}", world.round.ended);
        return;
    }
    let of_this_round = |instance: &Instance| instance.round() == world.round.number;
    for c in world.pod.of_kind(ContainerKind::Main) {
        let instance = world.state.track(c.name()).and_then(|t| t.current.as_ref());
        assert!(instance.is_some_and(of_this_round), "{} has started over", c.name());
        let progress = world.state.track(c.name()).and_then(|t| t.progress());
        let done = matches!(progress, Some(Progress::Exited(code)) if !restarts(policy, c, code));
        assert!(progress == Some(Progress::Running) || done, "{} is {progress:?}", c.name());
        let running =
            world.containers.values().find(|i| i.name == c.name() && i.state == ContainerState::Running);
        let made_of = running.map(|i| i.annotations[ANNOTATION_IMAGE].as_str());
        assert!(made_of.is_none_or(|image| image == c.image()), "{} runs {made_of:?}", c.name());
        if let Some(instance) = world.state.track(c.name()).and_then(|t| t.current.as_ref()).filter(|_| !done)
        {
            let granted = c.spec.resources.clone().unwrap_or_default();
            assert_eq!(world.has[&instance.status.id], granted, "{} has what it was granted", c.name());
        }
    }
}

#[test]
fn generated_histories_keep_the_rules() {
    for seed in 0..SEEDS {
        let outcome = std::panic::catch_unwind(|| run_history(seed));
        assert!(outcome.is_ok(), "history of seed {seed} broke a rule (above)");
    }
}
