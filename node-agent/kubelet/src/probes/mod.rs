//! Probes of containers: liveness, readiness, startup.
//!
//! One task keeps all probes of the node in a heap by due time and runs each that is due in a task of its own,
//! never two of the same probe at once. What a probe's results mean is counted in [`Tally`], purely; reports go
//! to whoever asked. Dropping a [`ProbeHandle`] ends its probe.

pub mod check;
pub mod http;
mod tally;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hawser_runtime::{ContainerId, Runtime};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerPort, Probe};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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

/// What to probe.
#[derive(Clone, Debug)]
pub struct ProbeTarget {
    pub kind: ProbeKind,
    pub probe: Probe,
    pub container: String,
    pub container_id: ContainerId,
    /// Where http, tcp and grpc probes go unless they name a host.
    pub pod_ip: Option<IpAddr>,
    /// For ports given by name.
    pub ports: Vec<ContainerPort>,
    pub started_at: Timestamp,
    /// The verdict before the first result.
    pub initially: bool,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    pub kind: ProbeKind,
    pub container: String,
    pub container_id: ContainerId,
    /// What went wrong this time.
    pub failure: Option<String>,
    /// The verdict, when the thresholds let it change (or confirm it) with this result.
    pub verdict: Option<bool>,
}

type Sink = Arc<dyn Fn(ProbeReport) + Send + Sync>;

struct Entry {
    id: u64,
    target: ProbeTarget,
    tally: Mutex<Tally>,
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

#[derive(Default)]
struct Shared {
    /// Probes that are waiting for their time.
    queue: Mutex<Queue>,
    changed: Notify,
    next_id: AtomicU64,
}

#[derive(Default)]
struct Queue {
    by_time: BinaryHeap<Reverse<(Instant, u64)>>,
    entries: HashMap<u64, Arc<Entry>>,
}

impl Prober {
    /// Begins to probe; `sink` hears of every result and must not block.
    pub fn add(&self, target: ProbeTarget, sink: Sink) -> ProbeHandle {
        let ended = Arc::new(AtomicBool::new(false));
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let tally = Mutex::new(Tally::new(&target.probe, target.initially));
        let due = first_due(&target, Timestamp::now(), Instant::now());
        let entry = Arc::new(Entry { id, target, tally, sink, ended: ended.clone() });
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

    /// Runs probes until the token is cancelled; probes under way are dropped then.
    pub async fn run(&self, runtime: Arc<dyn Runtime>, shutdown: CancellationToken) {
        let mut under_way = JoinSet::new();
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
                Some(_) = under_way.join_next() => {}
            }
        }
    }

    /// Starts what is due; the time of the next one.
    fn start_due(&self, runtime: &Arc<dyn Runtime>, under_way: &mut JoinSet<()>) -> Option<Instant> {
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
            under_way.spawn(async move { prober.run_one(entry, runtime, due).await });
        }
        None
    }

    async fn run_one(&self, entry: Arc<Entry>, runtime: Arc<dyn Runtime>, due: Instant) {
        let result = check::check(&*runtime, &entry.target).await;
        if entry.ended.load(Ordering::Acquire) {
            return;
        }
        // No result at all (the container is not there to ask): neither success nor failure.
        if let Some(result) = result {
            let verdict = entry.tally.lock().count(result.is_ok());
            (entry.sink)(ProbeReport {
                kind: entry.target.kind,
                container: entry.target.container.clone(),
                container_id: entry.target.container_id.clone(),
                failure: result.err(),
                verdict,
            });
        }
        let next = (due + period(&entry.target.probe)).max(Instant::now());
        self.schedule(entry, next);
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

/// `initialDelaySeconds` count from the container's start, which may be long ago for an adopted one.
fn first_due(target: &ProbeTarget, wall: Timestamp, now: Instant) -> Instant {
    let delay = seconds(target.probe.initial_delay_seconds, 0);
    let age = Duration::try_from(wall.duration_since(target.started_at)).unwrap_or_default();
    now + delay.saturating_sub(age)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_runtime::testing::FakeRuntime;
    use hawser_runtime::{ContainerConfig, ExecOutput, PodNetwork, PodSandboxConfig, Resources, Security};
    use k8s_openapi::api::core::v1::ExecAction;

    async fn running(runtime: &FakeRuntime) -> ContainerId {
        runtime.preload_image("i");
        let sandbox = PodSandboxConfig {
            pod_uid: "u".into(),
            pod_name: "web".into(),
            pod_namespace: "default".into(),
            hostname: "web".into(),
            network: PodNetwork::Host,
            host_ipc: false,
            host_pid: false,
            shm_size_bytes: None,
            cgroup_parent: "/x".into(),
            resources: Resources::default(),
            sysctls: Default::default(),
            labels: Default::default(),
            annotations: Default::default(),
        };
        runtime.create_pod_sandbox(&sandbox).await.expect("sandbox");
        let config = ContainerConfig {
            pod_uid: "u".into(),
            name: "web".into(),
            attempt: 0,
            image: "i".into(),
            command: vec![],
            args: vec![],
            env: vec![],
            working_dir: None,
            mounts: vec![],
            security: Security::default(),
            resources: Resources::default(),
            log_path: "/dev/null".into(),
            tty: false,
            stdin: false,
            stdin_once: false,
            stop_signal: None,
            labels: Default::default(),
            annotations: Default::default(),
        };
        let id = runtime.create_container(&config).await.expect("created");
        runtime.start_container(&id).await.expect("started");
        id
    }

    #[tokio::test(start_paused = true)]
    async fn probes_run_at_their_period_until_dropped() {
        let runtime = FakeRuntime::new();
        let id = running(&runtime).await;
        runtime.on_exec(Arc::new(|_, _| {
            Ok(ExecOutput { exit_code: 1, stdout: b"not yet".to_vec(), stderr: Vec::new() })
        }));
        let prober = Prober::default();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn({
            let (prober, shutdown) = (prober.clone(), shutdown.clone());
            async move { prober.run(Arc::new(runtime), shutdown).await }
        });
        let (sender, mut reports) = tokio::sync::mpsc::unbounded_channel();
        let exec = ExecAction { command: Some(vec!["check".into()]) };
        let probe = Probe {
            exec: Some(exec),
            period_seconds: Some(5),
            failure_threshold: Some(2),
            ..Probe::default()
        };
        let target = ProbeTarget {
            kind: ProbeKind::Readiness,
            probe,
            container: "web".into(),
            container_id: id,
            pod_ip: None,
            ports: vec![],
            started_at: Timestamp::now(),
            initially: true,
        };
        let began = Instant::now();
        let handle = prober.add(target, Arc::new(move |report| sender.send(report).expect("open")));
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
        shutdown.cancel();
        task.await.expect("stopped");
    }
}
