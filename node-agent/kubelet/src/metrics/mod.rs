//! What the kubelet counts and shows in Prometheus' format, in upstream's names.
//!
//! `/metrics` is the kubelet's own (counters here, and what it looks up at a scrape); [`resource`] and [`cadvisor`] show
//! usage; probes count for themselves ([`crate::probes`]).

pub mod cadvisor;
mod pinning;
mod process;
pub mod resource;
mod runtime;
mod start;
pub(crate) mod text;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
    TextEncoder, exponential_buckets,
};

use crate::config::{Config, KUBELET_VERSION};
use crate::cpus::Cpus;
use crate::manager::Pods;
use crate::pod::{ContainerKind, DesiredPod, PodState};
use crate::probes::Prober;
use crate::static_pods::is_static;
use crate::stats::Collector;
use crate::volumes::pod_certificate::PodCertificates;
use hawser_runtime::ContainerState;
use pinning::Pinning;
use start::Starts;
use text::Exposition;
use tokio::time::Instant;

pub use runtime::Metered;

/// Of the machine: the runtime makes groups of the second version alone.
const CGROUP_VERSION: f64 = 2.0;

/// Counters of the kubelet. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    started_pods: IntCounter,
    started_pods_errors: IntCounter,
    /// Of pods with users of their own.
    started_user_namespaced_pods: IntCounter,
    started_user_namespaced_pods_errors: IntCounter,
    starts: Starts,
    containers_per_pod: Histogram,
    rejections: IntCounterVec,
    list_duration: Histogram,
    list_interval: Histogram,
    /// When containers were listed last.
    listed_at: Mutex<Option<Instant>>,
    sandbox_duration: HistogramVec,
    sandbox_errors: IntCounterVec,
    pinning: Pinning,
    started_containers: IntCounterVec,
    started_containers_errors: IntCounterVec,
    operations: IntCounterVec,
    operation_errors: IntCounterVec,
    operation_duration: HistogramVec,
    evictions: IntCounterVec,
    preemptions: IntCounterVec,
    collected_images: IntCounterVec,
}

impl Default for Metrics {
    fn default() -> Self {
        // All names are constants: an error is one of this function, and any test shows it.
        Self { inner: Arc::new(Inner::new().expect("metrics have valid, different names")) }
    }
}

impl Inner {
    fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let started_pods =
            IntCounter::new("kubelet_started_pods_total", "Cumulative number of pods started")?;
        registry.register(Box::new(started_pods.clone()))?;
        let help = "Duration in seconds for relisting pods in PLEG.";
        let list_duration =
            Histogram::with_opts(HistogramOpts::new("kubelet_pleg_relist_duration_seconds", help))?;
        registry.register(Box::new(list_duration.clone()))?;
        let help = "Interval in seconds between relisting in PLEG.";
        let list_interval =
            Histogram::with_opts(HistogramOpts::new("kubelet_pleg_relist_interval_seconds", help))?;
        registry.register(Box::new(list_interval.clone()))?;
        let help = "The number of containers per pod.";
        let containers_per_pod = Histogram::with_opts(
            HistogramOpts::new("kubelet_containers_per_pod_count", help)
                .buckets(exponential_buckets(1.0, 2.0, 5)?),
        )?;
        registry.register(Box::new(containers_per_pod.clone()))?;
        let help =
            "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.";
        let sandbox_duration = HistogramVec::new(
            HistogramOpts::new("kubelet_run_podsandbox_duration_seconds", help),
            &["runtime_handler"],
        )?;
        registry.register(Box::new(sandbox_duration.clone()))?;
        let started_pods_errors = IntCounter::new(
            "kubelet_started_pods_errors_total",
            "Cumulative number of errors when starting pods",
        )?;
        registry.register(Box::new(started_pods_errors.clone()))?;
        let started_user_namespaced_pods = IntCounter::new(
            "kubelet_started_user_namespaced_pods_total",
            "Cumulative number of pods with user namespaces started.",
        )?;
        registry.register(Box::new(started_user_namespaced_pods.clone()))?;
        let started_user_namespaced_pods_errors = IntCounter::new(
            "kubelet_started_user_namespaced_pods_errors_total",
            "Cumulative number of errors when starting pods with user namespaces.",
        )?;
        registry.register(Box::new(started_user_namespaced_pods_errors.clone()))?;
        let help = "Duration in seconds of runtime operations. Broken down by operation type.";
        let operation_duration = HistogramVec::new(
            HistogramOpts::new("kubelet_runtime_operations_duration_seconds", help)
                .buckets(exponential_buckets(0.005, 2.5, 14)?),
            &["operation_type"],
        )?;
        registry.register(Box::new(operation_duration.clone()))?;
        Ok(Self {
            started_containers: counter(
                "kubelet_started_containers_total",
                "Cumulative number of containers started",
                &["container_type"],
            )?,
            started_containers_errors: counter(
                "kubelet_started_containers_errors_total",
                "Cumulative number of errors when starting containers",
                &["container_type", "code"],
            )?,
            operations: counter(
                "kubelet_runtime_operations_total",
                "Cumulative number of runtime operations by operation type.",
                &["operation_type"],
            )?,
            operation_errors: counter(
                "kubelet_runtime_operations_errors_total",
                "Cumulative number of runtime operation errors by operation type.",
                &["operation_type"],
            )?,
            evictions: counter(
                "kubelet_evictions",
                "Cumulative number of pod evictions by eviction signal",
                &["eviction_signal"],
            )?,
            preemptions: counter(
                "kubelet_preemptions",
                "Cumulative number of pod preemptions by preemption resource",
                &["preemption_signal"],
            )?,
            collected_images: counter(
                "kubelet_image_garbage_collected_total",
                "Total number of images garbage collected by the kubelet, whether through disk usage or image age.",
                &["reason"],
            )?,
            rejections: counter(
                "kubelet_admission_rejections_total",
                "Cumulative number pod admission rejections by the Kubelet.",
                &["reason"],
            )?,
            sandbox_errors: counter(
                "kubelet_run_podsandbox_errors_total",
                "Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.",
                &["runtime_handler"],
            )?,
            starts: Starts::new(&registry)?,
            operation_duration,
            started_pods,
            started_pods_errors,
            started_user_namespaced_pods,
            started_user_namespaced_pods_errors,
            containers_per_pod,
            sandbox_duration,
            pinning: Pinning::new(&registry)?,
            list_duration,
            list_interval,
            listed_at: Mutex::default(),
            registry,
        })
    }
}

impl Metrics {
    /// The pod runs, `since_seen` seconds after it came here.
    pub(crate) fn pod_started(&self, pod: &DesiredPod, state: &PodState, since_seen: f64, now: Timestamp) {
        self.inner.started_pods.inc();
        self.inner.started_user_namespaced_pods.inc_by(u64::from(pod.has_own_users()));
        self.inner.starts.started(pod, state, since_seen, now);
    }

    /// What comes before the pod's containers was not made.
    pub(crate) fn sandbox_failed(&self, pod: &DesiredPod) {
        self.inner.started_user_namespaced_pods_errors.inc_by(u64::from(pod.has_own_users()));
    }

    /// An image was pulled for the pod, in which time its turn is counted.
    pub(crate) fn pulled(&self, pod: &DesiredPod, size_bytes: u64, began: Timestamp, ended: Timestamp) {
        self.inner.starts.pulled(pod.uid(), size_bytes, (began, ended));
    }

    /// The node works on the pod no longer.
    pub(crate) fn pod_gone(&self, pod_uid: &str) {
        self.inner.starts.forget(pod_uid);
    }

    /// The node has taken a pod.
    pub(crate) fn taken(&self, pod: &DesiredPod) {
        self.inner.containers_per_pod.observe(pod.spec().containers.len() as f64);
    }

    /// `reason` is the one that the pod's status shows.
    pub(crate) fn rejected(&self, reason: &str) {
        self.inner.rejections.with_label_values(&[reason]).inc();
    }

    /// All containers were listed.
    pub(crate) fn listed(&self, took: Duration) {
        self.inner.list_duration.observe(took.as_secs_f64());
        let now = Instant::now();
        if let Some(before) = self.inner.listed_at.lock().replace(now) {
            self.inner.list_interval.observe(now.duration_since(before).as_secs_f64());
        }
    }

    pub(crate) fn container_started(&self, kind: ContainerKind) {
        self.inner.started_containers.with_label_values(&[container_type(kind)]).inc();
    }

    /// `code` is the reason that the container's status shows.
    pub(crate) fn container_failed(&self, kind: ContainerKind, code: &str) {
        self.inner.started_containers_errors.with_label_values(&[container_type(kind), code]).inc();
    }

    pub(crate) fn evicted(&self, signal: &str) {
        self.inner.evictions.with_label_values(&[signal]).inc();
    }

    /// A pod went for a critical one that missed `resource`.
    pub(crate) fn preempted(&self, resource: &str) {
        self.inner.preemptions.with_label_values(&[resource]).inc();
    }

    pub(crate) fn image_collected(&self, reason: &str) {
        self.inner.collected_images.with_label_values(&[reason]).inc();
    }

    /// A pod's sandbox was asked for.
    fn sandbox(&self, handler: &str, seconds: f64, failed: bool) {
        self.inner.sandbox_duration.with_label_values(&[handler]).observe(seconds);
        if failed {
            self.inner.sandbox_errors.with_label_values(&[handler]).inc();
            self.inner.started_pods_errors.inc();
        }
    }

    fn operation(&self, name: &str, seconds: f64, failed: bool) {
        self.inner.operations.with_label_values(&[name]).inc();
        self.inner.operation_duration.with_label_values(&[name]).observe(seconds);
        if failed {
            self.inner.operation_errors.with_label_values(&[name]).inc();
        }
    }
}

fn container_type(kind: ContainerKind) -> &'static str {
    match kind {
        ContainerKind::Init | ContainerKind::Sidecar => "init_container",
        ContainerKind::Main => "container",
        ContainerKind::Ephemeral => "ephemeral_container",
    }
}

/// What the kubelet's server shows of the kubelet. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    pub stats: Collector,
    pub config: Arc<Config>,
    pub(crate) metrics: Metrics,
    pub(crate) prober: Prober,
    pub(crate) pods: Pods,
    pub(crate) certificates: Arc<PodCertificates>,
    pub(crate) cpus: Cpus,
}

impl Telemetry {
    /// The text of `/metrics`.
    pub fn metrics(&self) -> String {
        let mut out = Exposition::default();
        self.look_up(&mut out);
        let (views, disk) = (self.pods.all(), self.stats.disk());
        let measured = views.iter().filter_map(|view| {
            let meta = &view.pod.metadata;
            Some((meta.namespace.as_deref().unwrap_or_default(), disk.get(meta.uid.as_deref()?)?))
        });
        volumes::render(&mut out, measured);
        volumes::render_certificates(&mut out, &self.certificates.states());
        pinning::render_cpus(&mut out, self.cpus.counts());
        process::render(&mut out);
        encode(&self.metrics.inner.registry) + &out.finish()
    }

    /// The text of `/metrics/probes`.
    pub fn probe_metrics(&self) -> String {
        encode(self.prober.registry())
    }

    fn look_up(&self, out: &mut Exposition) {
        let version = KUBELET_VERSION;
        let labels = [("git_version", version), ("major", "1"), ("minor", "36")];
        out.gauge("kubernetes_build_info", "A metric with a constant '1' value, labeled by the build")
            .sample(&labels, 1.0, None);
        let node = [("node", self.config.node_name.as_str())];
        out.gauge("kubelet_node_name", "The node's name. The count is always 1.").sample(&node, 1.0, None);
        let views = self.pods.all();
        let state = |wanted: &[ContainerState]| {
            let current =
                views.iter().flat_map(|view| view.containers.values()).filter_map(|(c, _)| c.as_ref());
            current.filter(|container| wanted.contains(&container.state)).count() as f64
        };
        let runs = |view: &&crate::worker::PodView| {
            let mut current = view.containers.values().filter_map(|(current, _)| current.as_ref());
            current.any(|container| container.state == ContainerState::Running)
        };
        let running = views.iter().filter(runs).count() as f64;
        out.gauge("kubelet_running_pods", "Number of pods that have a running pod sandbox").sample(
            &[],
            running,
            None,
        );
        let family = out.gauge("kubelet_running_containers", "Number of containers currently running");
        for (name, states) in [
            ("created", &[ContainerState::Created][..]),
            ("running", &[ContainerState::Running]),
            ("exited", &[ContainerState::Exited]),
            ("unknown", &[ContainerState::Unknown]),
        ] {
            family.sample(&[("container_state", name)], state(states), None);
        }
        out.gauge("kubelet_cgroup_version", "cgroup version on the hosts.").sample(&[], CGROUP_VERSION, None);
        let ephemeral = views.iter().filter_map(|view| view.pod.spec.as_ref()?.ephemeral_containers.as_ref());
        let help = "Current number of ephemeral containers in pods managed by this kubelet.";
        let count = ephemeral.map(Vec::len).sum::<usize>() as f64;
        out.gauge("kubelet_managed_ephemeral_containers", help).sample(&[], count, None);
        let help = "The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.";
        let is_static = |view: &&crate::worker::PodView| is_static(&view.pod);
        let from_files = views.iter().filter(is_static).count();
        let family = out.gauge("kubelet_desired_pods", help);
        family.sample(&[("static", "")], (views.len() - from_files) as f64, None);
        family.sample(&[("static", "true")], from_files as f64, None);
        let help = "The number of mirror pods the kubelet will try to create (one per admitted static pod)";
        out.gauge("kubelet_mirror_pods", help).sample(&[], from_files as f64, None);
        let has_ended = |view: &&crate::worker::PodView| {
            let phase = view.pod.status.as_ref().and_then(|status| status.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        let active: Vec<_> = views.iter().filter(|view| !has_ended(view)).collect();
        let from_files = active.iter().filter(|view| is_static(view)).count();
        let help = "The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.";
        let family = out.gauge("kubelet_active_pods", help);
        family.sample(&[("static", "")], (active.len() - from_files) as f64, None);
        family.sample(&[("static", "true")], from_files as f64, None);
    }
}

fn encode(registry: &Registry) -> String {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&registry.gather(), &mut text) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => {
            tracing::warn!(%error, "metrics were not encoded");
            String::new()
        }
    }
}
