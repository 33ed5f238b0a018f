//! Shortages of the node: pods go before the kernel has to choose, in upstream's order and words.
//!
//! Every few seconds the node is looked at ([`monitor`]). Where something runs short, images and dead containers go
//! first, then one pod, and only when that one is gone the next. Pods that exceed limits of local storage go at once.
//! Deciding is pure; this is the loop that acts.

pub mod limits;
pub mod monitor;
pub mod rank;
pub mod thresholds;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{ContainerState, Runtime};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::AgentClock;
use crate::config::Config;
use crate::events::{EventType, Recorder, node_reference};
use crate::image_gc::ImageCollector;
use crate::manager::Pods;
use crate::metrics::Metrics;
use crate::pod::state::Verdict;
use crate::pod::{DesiredPod, qos::QosClass, qos::qos_class};
use crate::stats::{Collector, NodeStats, Snapshot};
use crate::worker::PodView;
use monitor::Monitor;
use rank::{Candidate, FileSystems};
use thresholds::{Amount, Level, Signal, Threshold, level};

/// Reason of evicted pods.
pub const EVICTED: &str = "Evicted";

/// What a pod that has to go at once is given.
const NO_TIME: Duration = Duration::from_secs(1);
/// How long one pod's end is waited for before the next one goes.
const ONE_BY_ONE: Duration = Duration::from_secs(30);

/// When and how pods are evicted.
#[derive(Clone, Debug)]
pub struct Eviction {
    pub thresholds: Vec<Threshold>,
    /// Longest grace of a pod that a soft threshold evicts.
    pub max_pod_grace: Duration,
    /// How long a condition of the node outlasts its cause.
    pub transition_period: Duration,
    pub interval: Duration,
}

impl Default for Eviction {
    /// Upstream's.
    fn default() -> Self {
        let hard = Threshold::hard;
        Self {
            thresholds: vec![
                hard(Signal::MemoryAvailable, Amount::Absolute(100 << 20)),
                hard(Signal::NodefsAvailable, Amount::Percent(10.0)),
                hard(Signal::NodefsInodesFree, Amount::Percent(5.0)),
                hard(Signal::ImagefsAvailable, Amount::Percent(15.0)),
                hard(Signal::ImagefsInodesFree, Amount::Percent(5.0)),
            ],
            max_pod_grace: Duration::ZERO,
            transition_period: Duration::from_secs(300),
            interval: Duration::from_secs(10),
        }
    }
}

impl Eviction {
    /// The thresholds, and for each hard one of the node's memory the same for what pods may have together: they go before
    /// the limit of all pods has the kernel choose, as upstream has it.
    pub fn with_allocatable(&self) -> Self {
        let memory = self.thresholds.iter().filter(|t| t.is_hard() && t.signal == Signal::MemoryAvailable);
        let signal = Signal::AllocatableMemoryAvailable;
        let added: Vec<Threshold> = memory.map(|threshold| Threshold { signal, ..*threshold }).collect();
        let mut all = self.clone();
        all.thresholds.extend(added);
        all
    }

    /// What the hard threshold of a signal withholds from pods.
    pub fn withheld(&self, signal: Signal, capacity: u64) -> u64 {
        let hard = self.thresholds.iter().filter(|t| t.is_hard() && t.signal == signal);
        hard.map(|threshold| threshold.value.of(capacity)).max().unwrap_or(0)
    }
}

/// What runs short, as the node's conditions show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

impl Pressure {
    /// Names of the conditions that hold.
    pub fn names(self) -> Vec<&'static str> {
        let all = [(self.memory, "MemoryPressure"), (self.disk, "DiskPressure"), (self.pids, "PIDPressure")];
        all.into_iter().filter(|(holds, _)| *holds).map(|(_, name)| name).collect()
    }

    /// Why a new pod is not taken. Shortage of memory alone keeps out only pods that ask for nothing.
    pub fn refuses(self, pod: &DesiredPod) -> Option<Verdict> {
        if self == Self::default() || rank::is_critical(pod) {
            return None;
        }
        let only_memory = self == Self { memory: true, ..Self::default() };
        if only_memory && (qos_class(pod.spec()) != QosClass::BestEffort || tolerates_memory_pressure(pod)) {
            return None;
        }
        let message = format!("The node had condition: [{}]. ", self.names().join(" "));
        Some(Verdict::refusal(EVICTED, &message))
    }
}

fn tolerates_memory_pressure(pod: &DesiredPod) -> bool {
    pod.spec().tolerations.iter().flatten().any(|toleration| {
        let key = toleration.key.as_deref().unwrap_or("");
        let effect = toleration.effect.as_deref().unwrap_or("");
        let is_any = key.is_empty() && toleration.operator.as_deref() == Some("Exists");
        (is_any || key == "node.kubernetes.io/memory-pressure")
            && (effect.is_empty() || effect == "NoSchedule")
    })
}

/// The loop's parts.
pub struct Evictor {
    pub config: Arc<Config>,
    pub runtime: Arc<dyn Runtime>,
    pub collector: Collector,
    pub pods: Pods,
    pub images: ImageCollector,
    pub recorder: Recorder,
    pub metrics: Metrics,
    pub clock: AgentClock,
    pub pressure: watch::Sender<Pressure>,
}

impl Evictor {
    /// Looks after the node until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut monitor = Monitor::default();
        let eviction = match self.config.enforce_node_allocatable {
            true => self.config.eviction.with_allocatable(),
            false => self.config.eviction.clone(),
        };
        let mut leaving: Option<(String, Instant)> = None;
        let mut tick = tokio::time::interval(self.config.eviction.interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            let snapshot = self.collector.collect().await;
            self.enforce_limits(&snapshot);
            let now = self.clock.now().now;
            let assessment = monitor.look(&eviction, |signal| level(&snapshot.node, signal), now);
            self.pressure.send_if_modified(|known| {
                std::mem::replace(known, assessment.pressure) != assessment.pressure
            });
            leaving = leaving.filter(|(uid, until)| *until > Instant::now() && self.is_running(uid));
            if let (Some((threshold, level)), None) = (assessment.relieve, &leaving) {
                let gone = self.relieve(&snapshot, &threshold, level).await;
                leaving = gone.map(|uid| (uid, Instant::now() + ONE_BY_ONE));
            }
        }
    }

    fn is_running(&self, uid: &str) -> bool {
        let is_it = |view: &PodView| view.pod.metadata.uid.as_deref() == Some(uid);
        self.pods.all().iter().any(|view| is_it(view) && view.any_running())
    }

    /// Pods that exceed their own limits of local storage.
    fn enforce_limits(&self, snapshot: &Snapshot) {
        for Candidate { pod, stats } in self.candidates(snapshot) {
            if let Some(message) = limits::exceeded(&pod, &stats.disk) {
                self.evict(&pod, message, NO_TIME, "ephemeral-storage.limit");
            }
        }
    }

    /// Frees some of what runs short. Returns the uid of the pod that had to go.
    async fn relieve(&self, snapshot: &Snapshot, threshold: &Threshold, level: Level) -> Option<String> {
        let signal = threshold.signal;
        let resource = signal.resource();
        self.recorder.event(
            node_reference(&self.config.node_name),
            EventType::Warning,
            "EvictionThresholdMet",
            format!("Attempting to reclaim {resource}"),
        );
        if signal.is_disk() && self.reclaim_disk(threshold).await {
            info!(resource, "removing what is unused was enough");
            return None;
        }
        let mut candidates = self.candidates(snapshot);
        candidates.retain(|candidate| !rank::is_critical(&candidate.pod));
        rank::rank(&mut candidates, signal, file_systems(&snapshot.node));
        let Some(first) = candidates.into_iter().next() else {
            warn!(resource, "nothing can be evicted");
            return None;
        };
        let grace = if threshold.is_hard() { NO_TIME } else { self.config.eviction.max_pod_grace };
        let message = rank::message(&first, threshold, level);
        self.evict(&first.pod, message, grace.min(first.pod.spec_grace()), signal.as_str());
        Some(first.pod.uid().to_owned())
    }

    /// Removes containers of pods that have ended, and images that nobody uses; true when that was enough.
    async fn reclaim_disk(&self, threshold: &Threshold) -> bool {
        self.remove_ended().await;
        self.images.remove_unused().await;
        let node = NodeStats {
            fs: self.collector.node_fs(),
            image_fs: self.collector.image_fs().await,
            ..NodeStats::default()
        };
        level(&node, threshold.signal).is_some_and(|left| !threshold.is_met(left, true))
    }

    async fn remove_ended(&self) {
        let mut ended: Vec<String> = Vec::new();
        for view in self.pods.all().iter().filter(|view| has_ended(view)) {
            let instances = view.containers.values().flat_map(|(current, previous)| [current, previous]);
            let exited = instances.flatten().filter(|c| c.state == ContainerState::Exited);
            ended.extend(exited.map(|container| container.id.clone()));
        }
        for id in ended {
            if let Err(error) = self.runtime.remove_container(&id).await {
                warn!(id, %error, "an ended container was not removed");
            }
        }
    }

    /// Pods that run here, with what they use.
    fn candidates(&self, snapshot: &Snapshot) -> Vec<Candidate> {
        let views = self.pods.all().into_iter().filter(|view| {
            let reason = view.pod.status.as_ref().and_then(|status| status.reason.as_deref());
            view.any_running() && reason != Some(EVICTED) && view.pod.metadata.deletion_timestamp.is_none()
        });
        let mut by_uid: BTreeMap<String, DesiredPod> =
            views.map(|view| DesiredPod::new(view.pod)).map(|pod| (pod.uid().to_owned(), pod)).collect();
        let with_stats = snapshot
            .pods
            .iter()
            .filter_map(|stats| by_uid.remove(&stats.uid).map(|pod| Candidate { pod, stats: stats.clone() }));
        with_stats.collect()
    }

    fn evict(&self, pod: &DesiredPod, message: String, grace: Duration, signal: &str) {
        info!(pod = %pod.key(), signal, message, "evicting");
        self.metrics.evicted(signal);
        let verdict = Verdict::eviction(EVICTED, &message, grace);
        self.pods.fail(pod.uid(), verdict);
    }
}

fn has_ended(view: &PodView) -> bool {
    let phase = view.pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed")) && !view.any_running()
}

fn file_systems(node: &NodeStats) -> FileSystems {
    let size = |fs: Option<crate::stats::disk::FsStats>| fs.map(|fs| (fs.capacity_bytes, fs.inodes));
    if size(node.fs) == size(node.image_fs) { FileSystems::One } else { FileSystems::Two }
}
