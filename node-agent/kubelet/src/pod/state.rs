//! What the node knows of one pod, and how actions and their outcomes change it.
//!
//! The state is rebuilt after a restart of the agent from the runtime's list and the pod's status in the API;
//! only back-off delays start afresh. [`PodState::begin`] marks an action as under way, so that it is never
//! issued twice; [`PodState::finish`] takes its outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{ContainerId, ContainerState, ContainerStatus, Resources};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;

use super::back_off::BackOff;
use super::decide::Action;
use super::desired::{ContainerKind, DesiredPod};
use super::resize::{Pending, ResizeFailure, Resized};
use super::status::{ANNOTATION_IMAGE, ANNOTATION_ROUND};

/// Both clocks of one step: the wall for what is reported, the monotonic one for delays.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub wall: Timestamp,
    /// Since the agent started.
    pub now: Duration,
}

#[derive(Clone, Debug, Default)]
pub struct PodState {
    pub sandbox: Step,
    pub volumes: Step,
    /// Pod addresses, primary first; the node's own for pods on the host's network.
    pub ips: Vec<IpAddr>,
    /// In boxes: a map keeps room for eleven, and most pods have one.
    pub containers: BTreeMap<String, Box<ContainerTrack>>,
    /// How often all containers have started over. Each instance carries the round that it was made in, so that an agent
    /// that comes in the middle of one knows whose turn is still to come.
    pub round: u32,
    pub busy: Busy,
    /// Set once the pod has failed as a whole (deadline, eviction, refusal); never unset.
    pub verdict: Option<Verdict>,
    /// Set once the pod has succeeded or failed; never unset.
    pub terminal: Option<TerminalPhase>,
    /// The object's deletion was first seen; its grace runs from then on.
    pub deletion_seen: Option<Duration>,
    /// The object left the API; what runs is unwanted.
    pub gone_since: Option<Duration>,
    /// Devices are prepared for it: until its drivers have taken them back nobody else is to be given them.
    pub holds_claims: bool,
    /// Network and volumes of a finished pod were given back; its containers remain for their logs.
    pub released: bool,
    /// Nothing of the pod is left on the node.
    pub torn_down: bool,
    /// The API was told to forget the pod.
    pub deleted: bool,
    /// Try again not before.
    pub cleanup_retry: Option<Duration>,
    pub start_time: Option<Timestamp>,
    /// When this agent found the pod, and how long it had been active by then: what follows is counted by the monotonic
    /// clock.
    pub found_at: Duration,
    pub active_before: Duration,
    /// More was asked for than the node grants.
    pub resize_pending: Option<Pending>,
    /// Changing what containers have failed.
    pub resize_failure: Option<ResizeFailure>,
    /// Limits that the pod's cgroup has; `None` before there is one.
    pub group: Option<Resources>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TerminalPhase {
    Succeeded,
    Failed,
}

impl TerminalPhase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
    /// Instead of the pod's own grace.
    pub grace: Option<Duration>,
    /// The node ends the pod for its own sake: the pod gets a DisruptionTarget condition.
    pub is_disruption: bool,
}

impl Verdict {
    pub fn new(reason: &str, message: &str) -> Self {
        Self { reason: reason.into(), message: message.into(), grace: None, is_disruption: false }
    }

    /// The node does not take the pod.
    pub fn refusal(reason: &str, message: &str) -> Self {
        Self::new(reason, &format!("Pod was rejected: {message}"))
    }

    /// The pod has to go, within `grace`.
    pub fn eviction(reason: &str, message: &str, grace: Duration) -> Self {
        Self { grace: Some(grace), is_disruption: true, ..Self::new(reason, message) }
    }
}

/// One of the steps before any container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Step {
    #[default]
    Pending,
    Done,
    Failed {
        message: String,
        attempts: u32,
        retry_at: Duration,
    },
}

impl Step {
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// True when it may be tried now; otherwise the time of the next try, if there is one.
    pub fn due(&self, now: Duration) -> Result<bool, Duration> {
        match self {
            Self::Pending => Ok(true),
            Self::Done => Ok(false),
            Self::Failed { retry_at, .. } if *retry_at <= now => Ok(true),
            Self::Failed { retry_at, .. } => Err(*retry_at),
        }
    }

    fn failed(&mut self, message: String, now: Duration) {
        let attempts = match self {
            Self::Failed { attempts, .. } => *attempts + 1,
            _ => 1,
        };
        let delay = Duration::from_millis(500) * 2u32.pow((attempts - 1).min(8));
        *self = Self::Failed { message, attempts, retry_at: now + delay.min(Duration::from_secs(122)) };
    }
}

/// Actions under way.
#[derive(Clone, Debug, Default)]
pub struct Busy {
    pub sandbox: bool,
    pub volumes: bool,
    pub starting: BTreeSet<String>,
    /// By container, with the time at which it is killed.
    pub stopping: BTreeMap<String, Duration>,
    pub removing: BTreeSet<ContainerId>,
    /// Release, teardown or deletion.
    pub cleanup: bool,
    pub resizing: bool,
}

impl Busy {
    pub fn is_preparing(&self) -> bool {
        self.sandbox || self.volumes || !self.starting.is_empty()
    }
}

/// Everything about one container of the pod, over its restarts.
#[derive(Clone, Debug, Default)]
pub struct ContainerTrack {
    /// The newest instance.
    pub current: Option<Instance>,
    /// The one before, which `lastState` and `logs --previous` show.
    pub previous: Option<Instance>,
    /// Older ones, to be removed.
    pub outdated: Vec<ContainerId>,
    pub failure: Option<StartFailure>,
    pub restarts: BackOff,
    pub pulls: BackOff,
    /// Lowest attempt for the next instance; what the API remembers of earlier ones.
    pub attempt_floor: u32,
}

/// One made container.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Shared with what others see of the pod.
    pub status: Arc<ContainerStatus>,
    /// When this agent saw that it had ended.
    pub exit_noticed: Option<Duration>,
    /// Set when its process could not be started: it counts as ended with code 128.
    pub start_error: Option<StartError>,
    /// What the container left in its termination message file, or the end of its log.
    pub termination_message: Option<String>,
    /// The startup probe, where there is one, has passed.
    pub started: bool,
    /// The readiness probe, where there is one, passes.
    pub ready: bool,
    /// What it may use, as far as is known.
    pub resources: Option<ResourceRequirements>,
    /// Why it must stop although the pod goes on.
    pub kill: Option<Kill>,
    /// Belongs to an earlier sandbox: an init container runs again.
    pub stale: bool,
    /// Stopped so that all containers start over: it does, whatever its policy says.
    pub rerun: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    pub reason: &'static str,
    pub message: String,
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    pub message: String,
    pub grace: Duration,
    /// The container is made anew whatever its policy says of its end, and at once.
    pub replaced: bool,
}

/// How far an instance has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Created,
    Running,
    Exited(i32),
}

/// It is made, in part or wholly, and was never started: by a start that is under way, or by an agent that died.
fn never_ran(status: &ContainerStatus) -> bool {
    let is_half_made = status.state == ContainerState::Unknown && status.started_at.is_none();
    status.state == ContainerState::Created || is_half_made && status.exit.is_none()
}

fn has_ended(status: &ContainerStatus) -> bool {
    matches!(status.state, ContainerState::Exited | ContainerState::Unknown) && !never_ran(status)
}

impl Instance {
    pub fn new(status: ContainerStatus, now: Duration) -> Self {
        let ended = has_ended(&status);
        Self {
            status: Arc::new(status),
            exit_noticed: ended.then_some(now),
            start_error: None,
            termination_message: None,
            started: false,
            ready: false,
            resources: None,
            kill: None,
            stale: false,
            rerun: false,
        }
    }

    pub fn progress(&self) -> Progress {
        if self.start_error.is_some() {
            return Progress::Exited(128);
        }
        match self.status.state {
            _ if never_ran(&self.status) => Progress::Created,
            ContainerState::Created => Progress::Created,
            ContainerState::Running => Progress::Running,
            ContainerState::Exited | ContainerState::Unknown => {
                Progress::Exited(self.status.exit.as_ref().map_or(137, |e| e.exit_code))
            }
        }
    }

    pub fn is_running(&self) -> bool {
        self.progress() == Progress::Running
    }

    /// It makes room for one that is defined otherwise.
    pub fn is_replaced(&self) -> bool {
        self.kill.as_ref().is_some_and(|kill| kill.replaced)
    }

    /// The round of [`PodState::round`] that it was made in.
    pub fn round(&self) -> u32 {
        self.status.annotations.get(ANNOTATION_ROUND).and_then(|round| round.parse().ok()).unwrap_or_default()
    }

    /// The image, as the pod spelled it when the instance was made; the runtime itself goes by id.
    pub fn image(&self) -> &str {
        self.status.annotations.get(ANNOTATION_IMAGE).unwrap_or(&self.status.image)
    }
}

/// The newest try to make an instance failed before there was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    pub kind: FailureKind,
    pub message: String,
    pub since: Duration,
    pub retry_at: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    ErrImagePull,
    InvalidImageName,
    ErrImageNeverPull,
    CreateContainerConfigError,
    CreateContainerError,
    /// The instance exists; see [`Instance::start_error`].
    RunContainerError,
    PostStartHookError,
}

impl FailureKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ErrImagePull => "ErrImagePull",
            Self::InvalidImageName => "InvalidImageName",
            Self::ErrImageNeverPull => "ErrImageNeverPull",
            Self::CreateContainerConfigError => "CreateContainerConfigError",
            Self::CreateContainerError => "CreateContainerError",
            Self::RunContainerError => "RunContainerError",
            Self::PostStartHookError => "PostStartHookError",
        }
    }
}

/// Time between two tries that no back-off governs.
pub(super) const RETRY_CONFIG: Duration = Duration::from_secs(10);

impl ContainerTrack {
    pub fn progress(&self) -> Option<Progress> {
        self.current.as_ref().map(Instance::progress)
    }

    pub fn is_running(&self) -> bool {
        self.progress() == Some(Progress::Running)
    }

    /// Number of the instance that a start would make or finish.
    pub fn next_attempt(&self) -> u32 {
        match &self.current {
            Some(instance) if instance.progress() == Progress::Created && !instance.rerun => {
                instance.status.attempt
            }
            Some(instance) => self.attempt_floor.max(instance.status.attempt + 1),
            None => self.attempt_floor,
        }
    }

    /// Attempt of the oldest instance that is shown; what earlier ones left can go.
    pub fn oldest_kept(&self) -> Option<u32> {
        self.previous.iter().chain(&self.current).map(|instance| instance.status.attempt).min()
    }

    /// Takes what the runtime says of one instance; older news than what is known is ignored.
    pub fn observe(&mut self, status: ContainerStatus, now: Duration) {
        match &mut self.current {
            Some(current) if current.status.id == status.id => {
                // A start reads the status before it reports, and a list takes a while; more may have been heard of
                // meanwhile. An id is never used for a second process that was started, so that what has exited
                // stays so.
                let known = current.status.state;
                if known == ContainerState::Exited && status.state != ContainerState::Exited
                    || known == ContainerState::Running && status.state == ContainerState::Created
                {
                    return;
                }
                let ended = has_ended(&status);
                if ended && current.exit_noticed.is_none() {
                    current.exit_noticed = Some(now);
                }
                current.status = Arc::new(status);
            }
            Some(current) if current.status.attempt < status.attempt => {
                let older = self.current.replace(Instance::new(status, now));
                self.retire(older);
            }
            Some(_) => self.observe_older(status, now),
            None => self.current = Some(Instance::new(status, now)),
        }
    }

    fn observe_older(&mut self, status: ContainerStatus, now: Duration) {
        match &mut self.previous {
            Some(previous) if previous.status.id == status.id => previous.status = Arc::new(status),
            Some(previous) if previous.status.attempt < status.attempt => {
                let older = self.previous.replace(Instance::new(status, now));
                self.outdated.extend(older.map(|i| i.status.id.clone()));
            }
            Some(_) if self.outdated.contains(&status.id) => {}
            Some(_) => self.outdated.push(status.id),
            None => self.previous = Some(Instance::new(status, now)),
        }
    }

    fn retire(&mut self, instance: Option<Instance>) {
        let older = std::mem::replace(&mut self.previous, instance);
        self.outdated.extend(older.map(|i| i.status.id.clone()));
    }
}

/// How an action ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    SandboxReady {
        ips: Vec<IpAddr>,
        recreated: bool,
        /// Limits of the pod's cgroup.
        group: Resources,
    },
    SandboxFailed(String),
    VolumesReady,
    VolumesFailed(String),
    /// The container runs and its postStart hook is through.
    Started {
        container: String,
        status: ContainerStatus,
        /// What it was made with.
        resources: ResourceRequirements,
    },
    StartFailed {
        container: String,
        failure: FailureKind,
        message: String,
        status: Option<ContainerStatus>,
    },
    /// The start was called off because the pod stops.
    StartCancelled {
        container: String,
        status: Option<ContainerStatus>,
    },
    /// The stop ended, or failed and is tried again.
    Stopped {
        container: String,
        status: Option<ContainerStatus>,
    },
    Removed {
        id: ContainerId,
        container: String,
    },
    RemoveFailed {
        id: ContainerId,
    },
    Released,
    TornDown,
    Deleted,
    CleanupFailed,
    Resized(Resized),
}

impl PodState {
    /// How long the pod has been active, with the time before this agent found it.
    pub fn active_for(&self, now: Duration) -> Duration {
        self.active_before + now.saturating_sub(self.found_at)
    }

    pub fn track(&self, container: &str) -> Option<&ContainerTrack> {
        self.containers.get(container).map(Box::as_ref)
    }

    pub fn any_running(&self) -> bool {
        self.containers.values().any(|t| t.is_running())
    }

    /// Has what runs another image than the pod now wants: it is to stop, and another to start in its place.
    pub fn replace_changed(&mut self, pod: &DesiredPod) {
        for container in &pod.containers {
            if !matches!(container.kind, ContainerKind::Main | ContainerKind::Sidecar) {
                continue;
            }
            let name = container.name();
            let Some(track) = self.containers.get_mut(name) else { continue };
            let Some(instance) = track.current.as_mut().filter(|instance| instance.is_running()) else {
                continue;
            };
            let made_of = instance.status.annotations.get(ANNOTATION_IMAGE);
            if made_of.is_none_or(|image| image == container.image()) {
                continue;
            }
            instance.kill.get_or_insert_with(|| Kill {
                message: format!("Container {name} definition changed, will be restarted"),
                grace: pod.spec_grace(),
                replaced: true,
            });
        }
    }

    /// Finds the instance of a container id, current ones only.
    pub fn instance_mut(&mut self, id: &str) -> Option<(&String, &mut Instance)> {
        self.containers.iter_mut().find_map(|(name, track)| {
            let instance = track.current.as_mut().filter(|i| i.status.id == id)?;
            Some((name, instance))
        })
    }

    pub fn begin(&mut self, action: &Action, clock: Clock) {
        match action {
            Action::PrepareSandbox => self.busy.sandbox = true,
            Action::MountVolumes => self.busy.volumes = true,
            Action::Start { container, .. } => self.begin_start(container, clock),
            Action::Stop { container, grace, .. } => {
                self.busy.stopping.insert(container.clone(), clock.now + *grace);
            }
            Action::Remove { id, .. } => {
                self.busy.removing.insert(id.clone());
            }
            Action::Release | Action::TearDown | Action::Delete => self.busy.cleanup = true,
            Action::Resize => self.busy.resizing = true,
        }
    }

    fn begin_start(&mut self, container: &str, clock: Clock) {
        self.busy.starting.insert(container.to_owned());
        let track = self.containers.entry(container.to_owned()).or_default();
        // The failure stays, so that the status keeps showing it while the next try is under way.
        if let Some(failure) = &track.failure
            && failure.kind == FailureKind::ErrImagePull
        {
            track.pulls.next(failure.since, clock.now);
        }
        let ended = track.current.as_ref().filter(|i| matches!(i.progress(), Progress::Exited(_)));
        if let Some(since) = ended.map(|i| i.exit_noticed.unwrap_or(clock.now)) {
            track.restarts.next(since, clock.now);
        }
    }

    pub fn finish(&mut self, outcome: Outcome, clock: Clock) {
        let now = clock.now;
        match outcome {
            Outcome::SandboxReady { ips, recreated, group } => {
                self.busy.sandbox = false;
                self.group = Some(group);
                self.sandbox = Step::Done;
                self.ips = ips;
                if recreated {
                    self.mark_stale();
                }
            }
            Outcome::SandboxFailed(message) => {
                self.busy.sandbox = false;
                self.sandbox.failed(message, now);
            }
            Outcome::VolumesReady => {
                self.busy.volumes = false;
                self.volumes = Step::Done;
            }
            Outcome::VolumesFailed(message) => {
                self.busy.volumes = false;
                self.volumes.failed(message, now);
            }
            Outcome::Started { container, status, resources } => {
                self.busy.starting.remove(&container);
                let track = self.containers.entry(container).or_default();
                track.pulls.reset();
                track.failure = None;
                let id = status.id.clone();
                track.observe(status, now);
                if let Some(instance) = track.current.as_mut().filter(|i| i.status.id == id) {
                    instance.resources = Some(resources);
                }
            }
            Outcome::StartFailed { container, failure, message, status } => {
                self.busy.starting.remove(&container);
                self.start_failed(container, failure, message, status, clock);
            }
            Outcome::StartCancelled { container, status } => {
                self.busy.starting.remove(&container);
                self.observe(container, status, now);
            }
            Outcome::Stopped { container, status } => {
                self.busy.stopping.remove(&container);
                self.observe(container, status, now);
            }
            Outcome::Removed { id, container } => {
                self.busy.removing.remove(&id);
                if let Some(track) = self.containers.get_mut(&container) {
                    track.outdated.retain(|old| *old != id);
                }
            }
            Outcome::RemoveFailed { id } => {
                self.busy.removing.remove(&id);
                self.cleanup_retry = Some(now + RETRY_CONFIG);
            }
            Outcome::Released => {
                self.busy.cleanup = false;
                self.released = true;
            }
            Outcome::TornDown => {
                self.busy.cleanup = false;
                self.torn_down = true;
            }
            Outcome::Deleted => {
                self.busy.cleanup = false;
                self.deleted = true;
            }
            Outcome::CleanupFailed => {
                self.busy.cleanup = false;
                self.cleanup_retry = Some(now + Duration::from_secs(2));
            }
            Outcome::Resized(resized) => self.resized(resized, now),
        }
    }

    fn observe(&mut self, container: String, status: Option<ContainerStatus>, now: Duration) {
        if let Some(status) = status {
            self.containers.entry(container).or_default().observe(status, now);
        }
    }

    fn start_failed(
        &mut self,
        container: String,
        kind: FailureKind,
        message: String,
        status: Option<ContainerStatus>,
        clock: Clock,
    ) {
        let now = clock.now;
        let track = self.containers.entry(container).or_default();
        if let Some(status) = status {
            track.observe(status, now);
        }
        let retry_at = match kind {
            FailureKind::ErrImagePull => {
                let mut next = track.pulls;
                next.next(now, now);
                now + next.remaining(now, now).map_or(RETRY_CONFIG, |(_, left)| left)
            }
            // The instance's end governs the restart.
            FailureKind::RunContainerError | FailureKind::PostStartHookError => now,
            _ => now + RETRY_CONFIG,
        };
        if kind == FailureKind::RunContainerError
            && let Some(instance) = track.current.as_mut().filter(|i| i.progress() != Progress::Running)
        {
            instance.exit_noticed.get_or_insert(now);
            instance.start_error =
                Some(StartError { reason: "StartError", message: message.clone(), at: clock.wall });
        }
        track.failure = Some(StartFailure { kind, message, since: now, retry_at });
    }

    /// Instances of an earlier sandbox that no longer run: init containers have to run again.
    fn mark_stale(&mut self) {
        let ended = self.containers.values_mut().filter_map(|t| t.current.as_mut());
        for instance in ended.filter(|i| !i.is_running()) {
            instance.stale = true;
        }
    }

    /// All containers have been stopped, and start over from the first init container on; but those for debugging.
    pub fn rerun_all(&mut self, pod: &DesiredPod) {
        self.round += 1;
        self.rerun_older(pod);
    }

    /// Finds the round that an earlier agent was in, and which containers it had not started in it yet.
    pub(super) fn adopt_round(&mut self, pod: &DesiredPod) {
        let rounds = current_of(&mut self.containers, pod).map(|instance| instance.round());
        self.round = rounds.max().unwrap_or_default();
        self.rerun_older(pod);
    }

    fn rerun_older(&mut self, pod: &DesiredPod) {
        for instance in current_of(&mut self.containers, pod).filter(|i| i.round() < self.round) {
            (instance.stale, instance.rerun) = (true, true);
        }
    }

    /// Lets starts that failed for a missing object try again: one of them has changed.
    pub fn retry_config_errors(&mut self, now: Duration) {
        for failure in self.containers.values_mut().filter_map(|t| t.failure.as_mut()) {
            if failure.kind == FailureKind::CreateContainerConfigError {
                failure.retry_at = now;
            }
        }
        if let Step::Failed { retry_at, .. } = &mut self.volumes {
            *retry_at = now;
        }
    }
}

/// The newest instances of containers that take part when all start over.
fn current_of<'a>(
    containers: &'a mut BTreeMap<String, Box<ContainerTrack>>,
    pod: &DesiredPod,
) -> impl Iterator<Item = &'a mut Instance> {
    let takes_part = |name: &str| pod.container(name).is_some_and(|c| c.kind != ContainerKind::Ephemeral);
    let tracks = containers.iter_mut().filter(move |(name, _)| takes_part(name));
    tracks.filter_map(|(_, track)| track.current.as_mut())
}
