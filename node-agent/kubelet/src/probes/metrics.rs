//! Counts of probes' results, in upstream's names. Bounded by the probes of the node's pods: a pod's series go with it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use super::ProbeTarget;

pub(super) struct ProbeMetrics {
    pub(super) registry: Registry,
    results: IntCounterVec,
    durations: HistogramVec,
    /// Label values of both families, by pod uid.
    series: Mutex<HashMap<String, Series>>,
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
    pub(super) fn count(&self, target: &ProbeTarget, succeeded: Option<bool>, took: Duration) {
        let result = match succeeded {
            Some(true) => "successful",
            Some(false) => "failed",
            None => "unknown",
        };
        let kind = target.kind.as_str();
        let pod = &target.pod;
        let of_result = [kind, result, &target.container, &pod.name, &pod.namespace, &pod.uid];
        let of_duration = [kind, &target.container, &pod.name, &pod.namespace];
        self.results.with_label_values(&of_result).inc();
        if succeeded.is_some() {
            self.durations.with_label_values(&of_duration).observe(took.as_secs_f64());
        }
        let mut series = self.series.lock();
        let known = series.entry(pod.uid.clone()).or_default();
        known.results.insert(of_result.map(str::to_owned));
        known.durations.insert(of_duration.map(str::to_owned));
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
