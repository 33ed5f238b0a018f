//! Probes of containers: liveness, readiness, startup.
//!
//! One task keeps all probes of the node in a heap by due time and runs those that are due, side by side, never two of the
//! same probe at once. Those that have run before come at the ticks of one clock: a node has hundreds a second, and to wake
//! up for each would cost as much as the probe. What a probe's results mean is counted in [`Tally`], purely; reports go
//! to whoever asked. Dropping a [`ProbeHandle`] ends its probe.

pub mod check;
pub mod http;
mod metrics;
mod tally;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use hawser_runtime::{ContainerId, Runtime};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerPort, Probe};
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::error;

use metrics::{Counters, ProbeMetrics};
pub use tally::Tally;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// The probe of this kind that the container has.
    pub fn of(self, container: &k8s_openapi::api::core::v1::Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// Whose container is probed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// What to probe.
#[derive(Clone, Debug)]
pub struct ProbeTarget {
    pub pod: PodRef,
    pub kind: ProbeKind,
    pub probe: Probe,
    pub container: String,
    pub container_id: ContainerId,
    /// Where http, tcp and grpc probes go unless they name a host.
    pub pod_ip: Option<IpAddr>,
    /// For ports given by name.
    pub ports: Vec<ContainerPort>,
    pub started_at: Timestamp,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    pub kind: ProbeKind,
    pub container: String,
    pub container_id: ContainerId,
    /// What went wrong this time.
    pub failure: Option<String>,
    /// What is wrong with a success.
    pub warning: Option<String>,
    /// The verdict, when this result makes it one or changes it.
    pub verdict: Option<bool>,
}

/// A repeated probe is at most so much late.
const TICK: Duration = Duration::from_millis(100);

type Sink = Arc<dyn Fn(ProbeReport) + Send + Sync>;

struct Entry {
    id: u64,
    target: ProbeTarget,
    tally: Mutex<Tally>,
    counters: Counters,
    sink: Sink,
    ended: Arc<AtomicBool>,
}

/// Keeps a probe going.
pub struct ProbeHandle {
    ended: Arc<AtomicBool>,
}

impl Drop for ProbeHandle {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// The node's probes. Cheap to clone.
#[derive(Clone, Default)]
pub struct Prober {
    shared: Arc<Shared>,
}

struct Shared {
    /// Ticks are counted from here.
    epoch: Instant,
    /// Probes that are waiting for their time.
    queue: Mutex<Queue>,
    changed: Notify,
    next_id: AtomicU64,
    metrics: ProbeMetrics,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            queue: Mutex::default(),
            changed: Notify::new(),
            next_id: AtomicU64::new(0),
            metrics: ProbeMetrics::default(),
        }
    }
}

#[derive(Default)]
struct Queue {
    by_time: BinaryHeap<Reverse<(Instant, u64)>>,
    entries: HashMap<u64, Arc<Entry>>,
}

impl Prober {
    /// Begins to probe; `sink` hears of every failure and every new verdict, and must not block. (Most results are neither,
    /// and whoever hears of one looks at the whole pod.)
    pub fn add(&self, target: ProbeTarget, sink: Sink) -> ProbeHandle {
        let ended = Arc::new(AtomicBool::new(false));
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let tally = Mutex::new(Tally::new(&target.probe));
        let due = first_due(&target, Timestamp::now(), Instant::now());
        let entry =
            Arc::new(Entry { id, target, tally, counters: Counters::default(), sink, ended: ended.clone() });
        self.schedule(entry, due);
        ProbeHandle { ended }
    }

    fn schedule(&self, entry: Arc<Entry>, due: Instant) {
        let mut queue = self.shared.queue.lock();
        queue.by_time.push(Reverse((due, entry.id)));
        queue.entries.insert(entry.id, entry);
        drop(queue);
        self.shared.changed.notify_one();
    }

    /// Probes that wait for their time, those that were ended but not noticed yet included.
    pub fn len(&self) -> usize {
        self.shared.queue.lock().entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts of results.
    pub fn registry(&self) -> &Registry {
        &self.shared.metrics.registry
    }

    /// Forgets the counts of a pod that is gone.
    pub fn forget(&self, pod_uid: &str) {
        self.shared.metrics.forget(pod_uid);
    }

    /// Runs probes until the token is cancelled; probes under way are dropped then.
    pub async fn run(&self, runtime: Arc<dyn Runtime>, shutdown: CancellationToken) {
        let mut under_way = FuturesUnordered::new();
        loop {
            let next = self.start_due(&runtime, &mut under_way);
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.shared.changed.notified() => {}
                () = sleep => {}
                Some(()) = under_way.next() => {}
            }
        }
    }

    /// Starts what is due; the time of the next one.
    fn start_due(
        &self,
        runtime: &Arc<dyn Runtime>,
        under_way: &mut FuturesUnordered<BoxFuture<'static, ()>>,
    ) -> Option<Instant> {
        let now = Instant::now();
        let mut queue = self.shared.queue.lock();
        while let Some(Reverse((due, id))) = queue.by_time.peek().copied() {
            if due > now {
                return Some(due);
            }
            queue.by_time.pop();
            let Some(entry) = queue.entries.remove(&id).filter(|e| !e.ended.load(Ordering::Acquire)) else {
                continue;
            };
            let (prober, runtime) = (self.clone(), runtime.clone());
            under_way.push(async move { prober.run_one(entry, runtime, due).await }.boxed());
        }
        None
    }

    /// Once, and again at its time. All probes share one task: what one does wrong is its own.
    async fn run_one(&self, entry: Arc<Entry>, runtime: Arc<dyn Runtime>, due: Instant) {
        if AssertUnwindSafe(self.check(&entry, &*runtime)).catch_unwind().await.is_err() {
            error!(pod = entry.target.pod.name, container = entry.target.container, "a probe panicked");
        }
        let next = (due + period(&entry.target.probe)).max(Instant::now());
        let next = on_tick(self.shared.epoch, next);
        self.schedule(entry, next);
    }

    async fn check(&self, entry: &Entry, runtime: &dyn Runtime) {
        let began = Instant::now();
        let result = check::check(runtime, &entry.target).await;
        if entry.ended.load(Ordering::Acquire) {
            return;
        }
        let succeeded = result.as_ref().map(Result::is_ok);
        self.shared.metrics.count(&entry.target, &entry.counters, succeeded, began.elapsed());
        // No result at all (the container is not there to ask): neither success nor failure.
        if let Some(result) = result {
            let verdict = entry.tally.lock().count(result.is_ok());
            let warning = result.as_ref().ok().and_then(|passed| passed.warning.clone());
            if verdict.is_some() || result.is_err() || warning.is_some() {
                (entry.sink)(ProbeReport {
                    kind: entry.target.kind,
                    container: entry.target.container.clone(),
                    container_id: entry.target.container_id.clone(),
                    failure: result.err(),
                    warning,
                    verdict,
                });
            }
        }
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.filter(|n| *n > 0).map_or(default, |n| u64::from(n.unsigned_abs())))
}

pub(crate) fn period(probe: &Probe) -> Duration {
    seconds(probe.period_seconds, 10)
}

pub(crate) fn timeout(probe: &Probe) -> Duration {
    seconds(probe.timeout_seconds, 1)
}

/// The first tick that is not before `due`.
fn on_tick(epoch: Instant, due: Instant) -> Instant {
    let ticks = due.duration_since(epoch).as_nanos().div_ceil(TICK.as_nanos());
    epoch + TICK * u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// `initialDelaySeconds` count from the container's start, which may be long ago for an adopted one.
fn first_due(target: &ProbeTarget, wall: Timestamp, now: Instant) -> Instant {
    let delay = seconds(target.probe.initial_delay_seconds, 0);
    let age = Duration::try_from(wall.duration_since(target.started_at)).unwrap_or_default();
    now + delay.saturating_sub(age)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_runtime::ExecOutput;
    use hawser_runtime::testing::{FakeRuntime, container, pod_sandbox};
    use k8s_openapi::api::core::v1::ExecAction;

    #[tokio::test(start_paused = true)]
    async fn probes_run_at_their_period_until_dropped() {
        let runtime = FakeRuntime::new();
        let id = runtime.run(&pod_sandbox("web"), &container("web", "web", "i")).await;
        runtime.on_exec(Arc::new(|_, _| {
            Ok(ExecOutput { exit_code: 1, stdout: b"not yet".to_vec(), stderr: Vec::new() })
        }));
        let prober = Prober::default();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn({
            let (prober, shutdown) = (prober.clone(), shutdown.clone());
            async move { prober.run(Arc::new(runtime), shutdown).await }
        });
        // The probe reports twice before it is dropped.
        let (sender, mut reports) = tokio::sync::mpsc::channel(2);
        let exec = ExecAction { command: Some(vec!["check".into()]) };
        let probe = Probe {
            exec: Some(exec),
            period_seconds: Some(5),
            failure_threshold: Some(2),
            ..Probe::default()
        };
        let pod = PodRef { namespace: "default".into(), name: "web".into(), uid: "uid-web".into() };
        let target = ProbeTarget {
            pod,
            kind: ProbeKind::Readiness,
            probe,
            container: "web".into(),
            container_id: id,
            pod_ip: None,
            ports: vec![],
            started_at: Timestamp::now(),
        };
        let began = Instant::now();
        let handle = prober.add(target, Arc::new(move |report| sender.try_send(report).expect("room")));
        let first = reports.recv().await.expect("a report");
        assert_eq!((first.failure.as_deref(), first.verdict), (Some("not yet"), None));
        let second = reports.recv().await.expect("a report");
        assert_eq!(second.verdict, Some(false));
        assert_eq!(began.elapsed().as_secs(), 5);
        drop(handle);
        assert!(
            tokio::time::timeout(Duration::from_secs(60), reports.recv()).await.is_ok_and(|r| r.is_none())
        );
        assert!(prober.is_empty());
        let counted = |prober: &Prober| {
            let families = prober.registry().gather();
            let results = families.iter().find(|f| f.name() == "prober_probe_total")?;
            Some((results.get_metric().len(), results.get_metric()[0].get_counter().get_value()))
        };
        assert_eq!(counted(&prober), Some((1, 2.0)));
        prober.forget("uid-web");
        assert_eq!(counted(&prober), None);
        shutdown.cancel();
        task.await.expect("stopped");
    }
}
