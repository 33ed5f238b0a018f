//! One pod's worker: an actor that owns the pod's state, takes mail, and has actions carried out.
//!
//! The loop is: take what came, let [`decide`] say what to do, start it, report. Actions run in tasks of the
//! worker's own `JoinSet`; their outcomes come back into the state. Cancelling the worker leaves containers
//! running; whoever comes next adopts them.

pub mod actions;
mod hooks;
pub mod mailbox;
mod observe;
mod refresh;
pub mod report;
mod resize;
mod sandbox;
mod termination;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hawser_runtime::{ContainerId, ContainerState, ContainerStatus};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::events::EventType;
use crate::interfaces::LocalPod;
use crate::pod::decide::{is_stopping, starts_over};
use crate::pod::resize::{Amounts, Resized, adopted, with_amounts};
use crate::pod::state::{FailureKind, TerminalPhase, Verdict};
use crate::pod::status::status;
use crate::pod::{Action, DesiredPod, Outcome, PodState, decide};
use crate::probes::{ProbeHandle, ProbeKind};
use crate::static_pods::is_static;
use crate::volumes::{MountOutcome, MountedVolumes};

use actions::{Shared, StartRequest};
use mailbox::Mailbox;
use refresh::Refresh;
use report::Reporter;

/// An instance of a container, shared with the worker.
type Shown = Arc<ContainerStatus>;

/// What others may see of a pod: the server, the node's summary.
#[derive(Clone, Debug, Default)]
pub struct PodView {
    /// The object with the status as this node knows it.
    pub pod: Arc<Pod>,
    /// Newest and previous instance of each container.
    pub containers: BTreeMap<String, (Option<Shown>, Option<Shown>)>,
    /// Where its volumes are.
    pub volumes: MountedVolumes,
}

impl PodView {
    pub fn any_running(&self) -> bool {
        let mut current = self.containers.values().filter_map(|(current, _)| current.as_ref());
        current.any(|container| container.state == ContainerState::Running)
    }
}

/// What the manager keeps of a worker.
pub struct WorkerHandle {
    pub mailbox: Arc<Mailbox>,
    pub view: Arc<Mutex<PodView>>,
}

/// What the runtime has of a pod when its worker begins.
#[derive(Default)]
pub struct Found {
    pub containers: Vec<ContainerStatus>,
    /// Containers were made in a sandbox that is no more (the machine was started again).
    pub sandbox_lost: bool,
}

pub struct Worker {
    shared: Arc<Shared>,
    /// The pod as the API has it.
    asked: Arc<Pod>,
    /// What it and its containers were granted, which is what [`Self::pod`] shows.
    granted: Amounts,
    /// When what the node had no room for is asked for again.
    ask_again_at: Option<Instant>,
    pod: DesiredPod,
    state: PodState,
    mailbox: Arc<Mailbox>,
    view: Arc<Mutex<PodView>>,
    tasks: JoinSet<(Outcome, Option<MountOutcome>)>,
    actions: HashMap<Id, Action>,
    starts: HashMap<String, CancellationToken>,
    stops: HashMap<String, AbortHandle>,
    /// One that fails when it is brought up to date stays as it was.
    volumes: MountedVolumes,
    /// When the volumes are brought up to date.
    refresh: Refresh,
    /// What does so now, and what is cancelled when it has ended.
    refreshing: Option<(AbortHandle, CancellationToken)>,
    /// Containers that could not be looked at, and when they are again.
    look_again: BTreeSet<ContainerId>,
    look_again_at: Option<Instant>,
    probes: BTreeMap<(String, ProbeKind), ProbeHandle>,
    reporter: Reporter,
    status: Option<Arc<PodStatus>>,
    /// Containers were found running: nothing is reported before the network is found too.
    adopting: bool,
    sandbox_lost: bool,
    told_ready: Option<bool>,
    told_terminating: bool,
    /// It ran when it was found, or was counted as started.
    has_started: bool,
}

impl Worker {
    /// A worker and the handle to it; [`Worker::run`] does the work.
    pub fn new(shared: Arc<Shared>, pod: Arc<Pod>, found: Found) -> (Self, WorkerHandle) {
        let granted = adopted(&pod);
        let asked = pod;
        let pod = DesiredPod::new(with_amounts(asked.clone(), &granted));
        let clock = shared.clock.now();
        let sandbox_lost = found.sandbox_lost;
        let state = PodState::adopt(&pod, found.containers, clock);
        let (reporter, writing) = Reporter::new(shared.status.clone(), pod.key(), pod.uid().to_owned());
        let mut tasks = JoinSet::new();
        // The writer ends with the reporter; it has no outcome that anybody waits for.
        let _ = tasks.spawn(async move {
            writing.await;
            (Outcome::Deleted, None)
        });
        let mailbox = Arc::new(Mailbox::default());
        let view = Arc::new(Mutex::new(PodView { pod: pod.object.clone(), ..PodView::default() }));
        let handle = WorkerHandle { mailbox: mailbox.clone(), view: view.clone() };
        let worker = Self {
            adopting: state.any_running(),
            has_started: state.any_running(),
            asked,
            granted,
            ask_again_at: None,
            shared,
            state,
            mailbox,
            view,
            tasks,
            actions: HashMap::new(),
            starts: HashMap::new(),
            stops: HashMap::new(),
            volumes: MountedVolumes::default(),
            refresh: Refresh::default(),
            refreshing: None,
            look_again: BTreeSet::new(),
            look_again_at: None,
            probes: BTreeMap::new(),
            reporter,
            status: pod.object.status.clone().filter(|s| s.container_statuses.is_some()).map(Arc::new),
            sandbox_lost,
            told_ready: None,
            told_terminating: false,
            pod,
        };
        (worker, handle)
    }

    /// The node does not take the pod: nothing of it is ever made.
    pub fn refuse(&mut self, verdict: Verdict) {
        let (reason, message) = (verdict.reason.clone(), verdict.message.clone());
        self.shared.recorder.pod(&self.pod, EventType::Warning, reason, message);
        self.state.verdict = Some(verdict);
        // The next pod is judged before this one reports.
        let mut object = (*self.pod.object).clone();
        object.status.get_or_insert_default().phase = Some(TerminalPhase::Failed.as_str().into());
        self.view.lock().pod = object.into();
    }

    /// Works until nothing of the pod is left, or the token is cancelled.
    pub async fn run(mut self, shutdown: CancellationToken) {
        self.grant();
        loop {
            self.read_exits().await;
            let wake_at = self.step();
            if self.is_over() {
                self.shared.prober.forget(self.pod.uid());
                self.shared.metrics.pod_gone(self.pod.uid());
                return;
            }
            let wake = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.mailbox.arrived() => {}
                Some(ended) = self.tasks.join_next_with_id() => self.take_outcome(ended),
                () = wake => {}
            }
            self.take_mail().await;
            self.grant_when_due();
        }
    }

    /// Nothing is left on the node, and the API has been told or has told us.
    fn is_over(&self) -> bool {
        self.state.torn_down && self.state.gone_since.is_some()
    }

    /// Decides, starts what was decided, and reports. Returns when to look again.
    fn step(&mut self) -> Option<Instant> {
        let clock = self.shared.clock.now();
        if self.pod.is_deleted() {
            self.state.deletion_seen.get_or_insert(clock.now);
        }
        // What a checkpoint says of an image may be older than what runs.
        if self.shared.objects.pods.is_synced() || is_static(&self.pod.object) {
            self.state.replace_changed(&self.pod);
        }
        let decision = decide(&self.pod, &self.state, clock);
        if let Some(verdict) = decision.verdict {
            self.shared.recorder.pod(
                &self.pod,
                EventType::Normal,
                "DeadlineExceeded",
                verdict.message.clone(),
            );
            self.state.verdict.get_or_insert(verdict);
        }
        if decision.rerun {
            self.state.rerun_all(&self.pod);
        }
        if let Some(terminal) = decision.terminal {
            self.state.terminal.get_or_insert(terminal);
        }
        if self.state.terminal.is_some() || self.state.torn_down {
            self.shared.devices.release(self.pod.uid());
            self.shared.cpus.release(self.pod.uid());
            self.shared.memory.release(self.pod.uid());
        }
        if is_stopping(&self.pod, &self.state) {
            self.starts.values().for_each(CancellationToken::cancel);
            self.tell_terminating();
        }
        for action in &decision.actions {
            self.state.begin(action, clock);
        }
        self.state.holds_claims = self.shared.dra.holds(self.pod.uid());
        self.sync_probes();
        // Before the actions: a deletion waits for what was reported until then.
        self.report();
        for action in decision.actions {
            debug!(pod = %self.pod.key(), ?action, "acting");
            self.launch(action);
        }
        self.refresh_volumes_when_due();
        let wake = decision.wake_at.map(|at| self.shared.clock.instant(at));
        let refresh = self.refresh.wake_at(self.can_refresh());
        [wake, refresh, self.look_again_at, self.ask_again_at].into_iter().flatten().min()
    }

    fn launch(&mut self, action: Action) {
        let (shared, pod) = (self.shared.clone(), self.pod.clone());
        let ip = self.state.ips.first().copied();
        let handle = match action.clone() {
            Action::PrepareSandbox => {
                let lost = self.sandbox_lost;
                self.tasks.spawn(async move { (sandbox::prepare_sandbox(&shared, &pod, lost).await, None) })
            }
            Action::MountVolumes => {
                self.refresh.first_write_begins();
                self.tasks.spawn(async move {
                    let (outcome, mounted) = actions::mount_volumes(&shared, &pod).await;
                    (outcome, Some(mounted))
                })
            }
            Action::Start { container, attempt } => {
                let Some(desired) = pod.container(&container).cloned() else { return };
                let cancelled = CancellationToken::new();
                self.starts.insert(container.clone(), cancelled.clone());
                let request = StartRequest {
                    container: desired,
                    attempt,
                    round: self.state.round,
                    ips: self.state.ips.clone(),
                    volumes: self.volumes.clone(),
                    join_pid_of: self.target_of(&pod, &container),
                    cancelled,
                };
                self.tasks.spawn(async move { (actions::start(&shared, &pod, request).await, None) })
            }
            Action::Stop { container, grace, message, .. } => {
                let Some(mut desired) = pod.container(&container).cloned() else { return };
                if !is_stopping(&pod, &self.state)
                    && starts_over(&pod, &self.state)
                    && let Some(lifecycle) = &mut desired.spec.lifecycle
                {
                    lifecycle.pre_stop = None;
                }
                let known =
                    self.state.track(&container).and_then(|t| t.current.as_ref()).map(|i| i.status.clone());
                let Some(known) = known else { return };
                let handle = self.tasks.spawn(async move {
                    (actions::stop(&shared, &pod, desired, known, grace, message, ip).await, None)
                });
                // A stop with more time gives way to the one with less.
                if let Some(slower) = self.stops.insert(container, handle.clone()) {
                    slower.abort();
                }
                handle
            }
            Action::Remove { id, container } => {
                let oldest_kept = self.state.track(&container).and_then(|t| t.oldest_kept()).unwrap_or(0);
                self.tasks.spawn(async move {
                    (actions::remove(&shared, &pod, id, container, oldest_kept).await, None)
                })
            }
            Action::Resize => {
                let (running, group) = (self.to_resize(), self.state.group.clone());
                self.tasks.spawn(async move { (resize::resize(&shared, &pod, running, group).await, None) })
            }
            Action::Release => {
                let refresh_ended = self.end_refresh();
                self.tasks.spawn(async move {
                    refresh_ended.await;
                    (actions::release(&shared, &pod).await, None)
                })
            }
            Action::TearDown => {
                let refresh_ended = self.end_refresh();
                self.tasks.spawn(async move {
                    refresh_ended.await;
                    (actions::tear_down(&shared, &pod).await, None)
                })
            }
            Action::Delete => {
                let reported = self.reporter.flushed();
                self.tasks.spawn(async move { (actions::delete(&shared, &pod, reported).await, None) })
            }
        };
        self.actions.insert(handle.id(), action);
    }

    fn take_outcome(&mut self, ended: Result<(Id, (Outcome, Option<MountOutcome>)), tokio::task::JoinError>) {
        let (id, outcome, mounted) = match ended {
            Ok((id, (outcome, mounted))) => (id, Some(outcome), mounted),
            Err(error) if error.is_cancelled() => (error.id(), None, None),
            Err(error) => {
                error!(pod = %self.pod.key(), %error, "an action panicked");
                (error.id(), None, None)
            }
        };
        let Some(action) = self.actions.remove(&id) else {
            // A refresh of volumes, which is no action of the machine.
            self.refresh.ended(mounted.as_ref().map(|m| m.refresh_after), Instant::now());
            self.volumes.extend(mounted.into_iter().flat_map(|mounted| mounted.volumes));
            return;
        };
        if let Some(mounted) = mounted {
            self.refresh.first_write_ended(mounted.refresh_after, Instant::now());
            self.volumes.extend(mounted.volumes);
        }
        let clock = self.shared.clock.now();
        match &action {
            Action::Start { container, .. } => {
                self.starts.remove(container);
            }
            Action::Stop { container, .. } if self.stops.get(container).is_some_and(|h| h.id() != id) => {
                // Replaced by a stricter stop, which is still under way.
                return;
            }
            Action::Stop { container, .. } => {
                self.stops.remove(container);
            }
            _ => {}
        }
        let Some(outcome) = outcome.or_else(|| interrupted(&action)) else {
            return self.stop_again_later(action);
        };
        if matches!(outcome, Outcome::SandboxReady { .. }) {
            self.sandbox_lost = false;
        }
        self.state.finish(outcome, clock);
    }

    /// A stop that did not end by itself counts as under way until it is time for another.
    fn stop_again_later(&mut self, action: Action) {
        let Action::Stop { container, .. } = &action else { return };
        let again = Outcome::Stopped { container: container.clone(), status: None };
        let handle = self.tasks.spawn(async move {
            tokio::time::sleep(actions::RETRY_STOP).await;
            (again, None)
        });
        self.stops.insert(container.clone(), handle.clone());
        self.actions.insert(handle.id(), action);
    }

    /// The newest instance of the container whose processes this one asks to see.
    fn target_of(&self, pod: &DesiredPod, container: &str) -> Option<ContainerId> {
        let target = pod.container(container)?.target.as_deref()?;
        self.state.track(target)?.current.as_ref().map(|instance| instance.status.id.clone())
    }

    fn can_refresh(&self) -> bool {
        self.state.volumes.is_done() && !is_stopping(&self.pod, &self.state)
    }

    /// Writes the pod's volumes anew when an object of theirs has changed, or a token runs out.
    fn refresh_volumes_when_due(&mut self) {
        if !self.refresh.begin_if_due(self.can_refresh(), Instant::now()) {
            return;
        }
        let (shared, pod) = (self.shared.clone(), self.pod.clone());
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let handle = self.tasks.spawn(async move {
            let _guard = guard;
            let (_, mounted) = actions::mount_volumes(&shared, &pod).await;
            (Outcome::VolumesReady, Some(mounted))
        });
        self.refreshing = Some((handle, ended));
    }

    /// Cuts short what brings the volumes up to date, and waits until it writes no more: they are about to go.
    fn end_refresh(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let refreshing = self.refreshing.take();
        async move {
            if let Some((handle, ended)) = refreshing {
                handle.abort();
                ended.cancelled().await;
            }
        }
    }

    fn local_pod(&self) -> LocalPod {
        LocalPod {
            uid: self.pod.uid().to_owned(),
            namespace: self.pod.namespace().to_owned(),
            name: self.pod.name().to_owned(),
            ips: self.state.ips.clone(),
        }
    }

    fn tell_terminating(&mut self) {
        if !self.told_terminating {
            self.told_terminating = true;
            self.shared.endpoints.pod_terminating(&self.local_pod());
        }
    }

    /// Tells the node's own service path first, then the API.
    fn report(&mut self) {
        if self.adopting && !self.state.sandbox.is_done() && self.state.busy.sandbox {
            return;
        }
        self.adopting = false;
        let clock = self.shared.clock.now();
        let node_ips = self.shared.config.node_ip_texts();
        let fresh = Arc::new(status(&self.pod, &self.state, &node_ips, self.status.as_deref(), clock));
        let ready = fresh.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        let news = self.told_ready != Some(ready) && (ready || self.told_ready.is_some());
        // Once it stops, a pod never gets new connections here, ready or not.
        if news && !(ready && self.told_terminating) {
            self.told_ready = Some(ready);
            self.shared.endpoints.pod_ready(&self.local_pod(), ready);
        }
        let changed = self.status.as_ref() != Some(&fresh);
        if !self.has_started && fresh.phase.as_deref() == Some("Running") {
            self.has_started = true;
            let seconds = self.state.active_for(clock.now).as_secs_f64();
            self.shared.metrics.pod_started(&self.pod, &self.state, seconds, clock.wall);
        }
        if changed {
            self.tell_back_offs(&fresh);
        }
        self.update_view(&fresh);
        let wanted = changed || self.api_has_drifted(&fresh);
        self.status = Some(fresh.clone());
        if wanted && self.state.gone_since.is_none() && !self.state.deleted {
            self.reporter.report(fresh);
        }
    }

    fn update_view(&self, status: &PodStatus) {
        let mut view = self.view.lock();
        let own = &self.pod.object;
        // An object is large, and this is done at every step: it is copied only where none is there that shows the same,
        // which is the API's own once it has the status.
        let is_shown = |pod: &Pod| {
            pod.status.as_ref() == Some(status) && pod.spec == own.spec && pod.metadata == own.metadata
        };
        let object = match [own, &view.pod].into_iter().find(|pod| is_shown(pod)) {
            Some(pod) => pod.clone(),
            None => Arc::new(Pod { status: Some(status.clone()), ..(**own).clone() }),
        };
        let containers = self.state.containers.iter().map(|(name, track)| {
            let current = track.current.as_ref().map(|i| i.status.clone());
            let previous = track.previous.as_ref().map(|i| i.status.clone());
            (name.clone(), (current, previous))
        });
        let volumes = self.volumes.clone();
        *view = PodView { pod: object, containers: containers.collect(), volumes };
    }
}

/// What an action that did not end by itself counts as: each of these is tried again after a while. `None` for a stop, of
/// which there is nothing to say.
fn interrupted(action: &Action) -> Option<Outcome> {
    let message = "interrupted".to_owned();
    Some(match action.clone() {
        Action::PrepareSandbox => Outcome::SandboxFailed(message),
        Action::MountVolumes => Outcome::VolumesFailed(message),
        Action::Start { container, .. } => Outcome::StartFailed {
            container,
            failure: FailureKind::CreateContainerError,
            message,
            status: None,
        },
        Action::Stop { .. } => return None,
        Action::Remove { id, .. } => Outcome::RemoveFailed { id },
        Action::Resize => Outcome::Resized(Resized { failure: Some(message), ..Resized::default() }),
        Action::Release | Action::TearDown | Action::Delete => Outcome::CleanupFailed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::state::Step;
    use crate::pod::testing::{at, container, pod, spec};

    #[test]
    fn start_that_panics_is_not_issued_again_at_once() {
        let pod = pod(spec("Always", vec![], vec![container("web")]));
        let mut state = PodState { sandbox: Step::Done, volumes: Step::Done, ..PodState::default() };
        let action = decide(&pod, &state, at(1)).actions.remove(0);
        state.begin(&action, at(1));
        state.finish(interrupted(&action).expect("said"), at(1));
        let next = decide(&pod, &state, at(1));
        assert_eq!((next.actions, next.wake_at), (vec![], Some(at(11).now)));
        assert_eq!(decide(&pod, &state, at(11)).actions, [action]);
    }
}
