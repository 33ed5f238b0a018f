//! Request metrics in Prometheus text form, under upstream's names where the meaning is upstream's.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;

/// Upper bounds of the duration histogram, in seconds; a subset of upstream's.
const BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Labels of one series. All come from closed sets: unknown resources are counted under an empty name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Labels {
    pub verb: &'static str,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub code: u16,
}

#[derive(Default)]
struct Series {
    count: AtomicU64,
    sum_micros: AtomicU64,
    buckets: [AtomicU64; BUCKETS.len()],
}

/// Counters of requests. The map's lock is only written for a series that is new.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: RwLock<BTreeMap<Labels, Arc<Series>>>,
    pub watches: AtomicU64,
}

impl Metrics {
    pub(crate) fn record(&self, labels: &Labels, took: Duration) {
        let known = self.requests.read().get(labels).cloned();
        let series =
            known.unwrap_or_else(|| self.requests.write().entry(labels.clone()).or_default().clone());
        series.count.fetch_add(1, Ordering::Relaxed);
        series.sum_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        let seconds = took.as_secs_f64();
        if let Some(at) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            series.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The text of `/metrics`.
    pub(crate) fn render(&self, in_flight: (usize, usize), revision: u64) -> String {
        let mut text = String::with_capacity(16 << 10);
        let requests = self.requests.read().clone();
        text += "# TYPE apiserver_request_total counter\n";
        for (labels, series) in &requests {
            let count = series.count.load(Ordering::Relaxed);
            let _ = writeln!(
                text,
                "apiserver_request_total{{{},code=\"{}\"}} {count}",
                names(labels),
                labels.code
            );
        }
        text += "# TYPE apiserver_request_duration_seconds histogram\n";
        for (labels, series) in &requests {
            let names = format!("{},code=\"{}\"", names(labels), labels.code);
            let mut below = 0;
            for (bound, bucket) in BUCKETS.iter().zip(&series.buckets) {
                below += bucket.load(Ordering::Relaxed);
                let _ = writeln!(
                    text,
                    "apiserver_request_duration_seconds_bucket{{{names},le=\"{bound}\"}} {below}"
                );
            }
            let count = series.count.load(Ordering::Relaxed);
            let sum = series.sum_micros.load(Ordering::Relaxed) as f64 / 1e6;
            let _ =
                writeln!(text, "apiserver_request_duration_seconds_bucket{{{names},le=\"+Inf\"}} {count}");
            let _ = writeln!(text, "apiserver_request_duration_seconds_sum{{{names}}} {sum}");
            let _ = writeln!(text, "apiserver_request_duration_seconds_count{{{names}}} {count}");
        }
        text += "# TYPE apiserver_current_inflight_requests gauge\n";
        let _ = writeln!(
            text,
            "apiserver_current_inflight_requests{{request_kind=\"readOnly\"}} {}",
            in_flight.0
        );
        let _ = writeln!(
            text,
            "apiserver_current_inflight_requests{{request_kind=\"mutating\"}} {}",
            in_flight.1
        );
        text += "# TYPE apiserver_longrunning_requests gauge\n";
        let _ = writeln!(
            text,
            "apiserver_longrunning_requests{{verb=\"WATCH\"}} {}",
            self.watches.load(Ordering::Relaxed)
        );
        text += "# TYPE apiserver_cache_revision gauge\n";
        let _ = writeln!(text, "apiserver_cache_revision {revision}");
        if let Some(bytes) = resident_bytes() {
            let _ = writeln!(
                text,
                "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {bytes}"
            );
        }
        text
    }
}

fn names(labels: &Labels) -> String {
    format!(
        "verb=\"{}\",group=\"{}\",resource=\"{}\",subresource=\"{}\"",
        labels.verb, labels.group, labels.resource, labels.subresource
    )
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_everything_below_their_bound() {
        let metrics = Metrics::default();
        let labels = Labels {
            verb: "GET",
            group: String::new(),
            resource: "pods".to_owned(),
            subresource: String::new(),
            code: 200,
        };
        metrics.record(&labels, Duration::from_millis(2));
        metrics.record(&labels, Duration::from_millis(700));
        let text = metrics.render((0, 0), 7);
        let line = |needle: &str| text.lines().find(|line| line.contains(needle)).map(str::to_owned);
        assert!(line("apiserver_request_total{").is_some_and(|line| line.ends_with(" 2")), "{text}");
        assert!(line("le=\"0.005\"").is_some_and(|line| line.ends_with(" 1")), "{text}");
        assert!(line("le=\"1\"").is_some_and(|line| line.ends_with(" 2")), "{text}");
    }
}
