//! Counts of probes' results, in upstream's names. Bounded by the probes of the node's pods: a pod's series go with it.

use std::collections::{BTreeSet, HashMap};
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::ProbeTarget;

pub(super) struct ProbeMetrics {
    pub(super) registry: Registry,
    results: IntCounterVec,
    durations: HistogramVec,
    /// Label values of both families, by pod uid.
    series: Mutex<HashMap<String, Series>>,
}

/// The series of one probe, each found when there is first something to count.
#[derive(Default)]
pub(super) struct Counters {
    successful: OnceLock<IntCounter>,
    failed: OnceLock<IntCounter>,
    unknown: OnceLock<IntCounter>,
    durations: OnceLock<Histogram>,
}

#[derive(Default)]
struct Series {
    results: BTreeSet<[String; 6]>,
    durations: BTreeSet<[String; 4]>,
}

impl Default for ProbeMetrics {
    fn default() -> Self {
        Self::new().expect("metrics have valid, different names")
    }
}

impl ProbeMetrics {
    fn new() -> prometheus::Result<Self> {
        let help = "Cumulative number of a liveness, readiness or startup probe for a container by result.";
        let labels = ["probe_type", "result", "container", "pod", "namespace", "pod_uid"];
        let results = IntCounterVec::new(Opts::new("prober_probe_total", help), &labels)?;
        let help = "Duration in seconds for a probe response.";
        let durations = HistogramVec::new(
            HistogramOpts::new("prober_probe_duration_seconds", help),
            &["probe_type", "container", "pod", "namespace"],
        )?;
        let registry = Registry::new();
        registry.register(Box::new(results.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        Ok(Self { registry, results, durations, series: Mutex::default() })
    }

    /// `None`: it could not be told.
    pub(super) fn count(
        &self,
        target: &ProbeTarget,
        counters: &Counters,
        succeeded: Option<bool>,
        took: Duration,
    ) {
        let (counter, result) = match succeeded {
            Some(true) => (&counters.successful, "successful"),
            Some(false) => (&counters.failed, "failed"),
            None => (&counters.unknown, "unknown"),
        };
        counter.get_or_init(|| self.result(target, result)).inc();
        if succeeded.is_some() {
            let durations = counters.durations.get_or_init(|| self.duration(target));
            durations.observe(took.as_secs_f64());
        }
    }

    fn result(&self, target: &ProbeTarget, result: &str) -> IntCounter {
        let pod = &target.pod;
        let labels = [target.kind.as_str(), result, &target.container, &pod.name, &pod.namespace, &pod.uid];
        let mut series = self.series.lock();
        series.entry(pod.uid.clone()).or_default().results.insert(labels.map(str::to_owned));
        self.results.with_label_values(&labels)
    }

    fn duration(&self, target: &ProbeTarget) -> Histogram {
        let pod = &target.pod;
        let labels = [target.kind.as_str(), &target.container, &pod.name, &pod.namespace];
        let mut series = self.series.lock();
        series.entry(pod.uid.clone()).or_default().durations.insert(labels.map(str::to_owned));
        self.durations.with_label_values(&labels)
    }

    pub(super) fn forget(&self, pod_uid: &str) {
        let Some(series) = self.series.lock().remove(pod_uid) else { return };
        // Errors say that there is none, which is what is wanted.
        for labels in series.results {
            let _ = self.results.remove_label_values(&labels.each_ref().map(String::as_str));
        }
        for labels in series.durations {
            let _ = self.durations.remove_label_values(&labels.each_ref().map(String::as_str));
        }
    }
}
