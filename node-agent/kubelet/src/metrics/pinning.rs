//! What the managers of CPUs, memory and topology count, in upstream's names.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, exponential_buckets};

use super::text::Exposition;
use crate::locality::Scope;

/// One manager's: containers that asked for what is to be theirs alone, and how many of them got none.
struct Asked {
    requests: IntCounter,
    errors: IntCounter,
}

impl Asked {
    fn new(registry: &Registry, manager: &str, what: &str) -> prometheus::Result<Self> {
        let counter = |name: &str, outcome: &str| {
            let help = format!("The number of {what} allocations which {outcome}.");
            let counter = IntCounter::new(format!("kubelet_{manager}_manager_pinning_{name}_total"), help)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        Ok(Self {
            requests: counter("requests", "required pinning")?,
            errors: counter("errors", "required pinning failed")?,
        })
    }

    fn count(&self, containers: usize, failed: bool) {
        self.requests.inc_by(containers as u64);
        // The first that does not get what it asks for ends the pod's admission.
        self.errors.inc_by(u64::from(failed));
    }
}

pub(super) struct Pinning {
    cpus: Asked,
    memory: Asked,
    admissions: IntCounter,
    admission_errors: IntCounter,
    /// In milliseconds.
    admission_duration: Histogram,
    aligned: IntCounterVec,
    aligned_errors: IntCounterVec,
}

impl Pinning {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(format!("kubelet_topology_manager_admission_{name}_total"), help)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let by_alignment = |name: &str, help: &str| {
            let opts = Opts::new(format!("kubelet_container_aligned_compute_resources_{name}"), help);
            let counter = IntCounterVec::new(opts, &["scope", "boundary"])?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let help = "Duration in milliseconds to serve a pod admission request.";
        let admission_duration = Histogram::with_opts(
            HistogramOpts::new("kubelet_topology_manager_admission_duration_ms", help)
                .buckets(exponential_buckets(0.05, 2.0, 15)?),
        )?;
        registry.register(Box::new(admission_duration.clone()))?;
        Ok(Self {
            cpus: Asked::new(registry, "cpu", "cpu core")?,
            memory: Asked::new(registry, "memory", "memory pages")?,
            admissions: counter(
                "requests",
                "The number of admission requests where resources have to be aligned.",
            )?,
            admission_errors: counter(
                "errors",
                "The number of admission request failures where resources could not be aligned.",
            )?,
            admission_duration,
            aligned: by_alignment(
                "count",
                "Cumulative number of aligned compute resources allocated to containers by alignment type.",
            )?,
            aligned_errors: by_alignment(
                "failure_count",
                "Cumulative number of failures to allocate aligned compute resources to containers by alignment type.",
            )?,
        })
    }
}

impl super::Metrics {
    /// So many of a pod's containers asked for CPUs of their own; `failed`: one of them gets none.
    pub(crate) fn pinned_cpus(&self, containers: usize, failed: bool) {
        self.inner.pinning.cpus.count(containers, failed);
    }

    /// So many of a pod's containers asked for memory of certain NUMA nodes.
    pub(crate) fn pinned_memory(&self, containers: usize, failed: bool) {
        self.inner.pinning.memory.count(containers, failed);
    }

    /// What the pod asks for was to come from the same NUMA nodes.
    pub(crate) fn placed(&self, took: Duration, failed: bool) {
        let pinning = &self.inner.pinning;
        pinning.admissions.inc();
        pinning.admission_errors.inc_by(u64::from(failed));
        pinning.admission_duration.observe(took.as_secs_f64() * 1e3);
    }

    /// What a container, or a pod, asks for was to come from one NUMA node.
    pub(crate) fn aligned(&self, scope: Scope, failed: bool) {
        let counter = match failed {
            false => &self.inner.pinning.aligned,
            true => &self.inner.pinning.aligned_errors,
        };
        let scope = match scope {
            Scope::Container => "container",
            Scope::Pod => "pod",
        };
        counter.with_label_values(&[scope, "numa_node"]).inc();
    }
}

/// `cpus`: how many are shared, and how many are some container's own; `None` without a policy.
pub(super) fn render_cpus(out: &mut Exposition, cpus: Option<(usize, usize)>) {
    let Some((shared, own)) = cpus else { return };
    let help = "The size of the shared CPU pool for non-guaranteed QoS pods, in millicores.";
    out.gauge("kubelet_cpu_manager_shared_pool_size_millicores", help).sample(
        &[],
        1000.0 * shared as f64,
        None,
    );
    let help = "The total number of CPUs exclusively allocated to containers running on this node";
    out.gauge("kubelet_cpu_manager_exclusive_cpu_allocation_count", help).sample(&[], own as f64, None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, encode};

    #[test]
    fn what_is_pinned_is_counted_under_upstreams_names() {
        let metrics = Metrics::default();
        metrics.pinned_cpus(2, false);
        metrics.pinned_cpus(1, true);
        metrics.pinned_memory(3, false);
        metrics.placed(Duration::from_micros(70), true);
        metrics.aligned(Scope::Container, false);
        metrics.aligned(Scope::Pod, true);
        let mut out = Exposition::default();
        render_cpus(&mut out, Some((6, 2)));
        render_cpus(&mut out, None);
        let text = encode(&metrics.inner.registry) + &out.finish();
        for line in [
            "cpu_manager_pinning_requests_total 3",
            "cpu_manager_pinning_errors_total 1",
            "cpu_manager_shared_pool_size_millicores 6000",
            "cpu_manager_exclusive_cpu_allocation_count 2",
            "memory_manager_pinning_requests_total 3",
            "memory_manager_pinning_errors_total 0",
            "topology_manager_admission_requests_total 1",
            "topology_manager_admission_errors_total 1",
            "topology_manager_admission_duration_ms_bucket{le=\"0.05\"} 0",
            "topology_manager_admission_duration_ms_bucket{le=\"0.1\"} 1",
            "container_aligned_compute_resources_count{boundary=\"numa_node\",scope=\"container\"} 1",
            "container_aligned_compute_resources_failure_count{boundary=\"numa_node\",scope=\"pod\"} 1",
        ] {
            assert!(text.contains(&format!("kubelet_{line}\n")), "{line}: {text}");
        }
    }
}
