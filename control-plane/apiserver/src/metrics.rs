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

use hawser_api::resource::Target;
use parking_lot::RwLock;

use crate::resources::Resources;

/// Upper bounds of the duration histogram, in seconds: upstream's, which its dashboards and alerts name.
const BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];

/// Labels of one series. All come from the table of kinds, so they are few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Labels {
    pub verb: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub resource: &'static str,
    pub subresource: &'static str,
    /// `resource`, `namespace` or `cluster`: how much the request is about.
    pub scope: &'static str,
}

impl Labels {
    /// How a request about a resource is counted; `None` for what is not served.
    pub(crate) fn of(resources: &Resources, verb: &str, target: &Target) -> Option<Self> {
        let resource = resources.of(&target.resource).ok()?;
        let subresource = target.subresource.as_deref().and_then(|name| resource.row.subresource(name));
        let scope = match (&target.name, &target.namespace) {
            (Some(_), _) => "resource",
            (None, Some(_)) => "namespace",
            (None, None) => "cluster",
        };
        Some(Self {
            verb: metric_verb(verb),
            group: resource.row.group,
            version: resource.version,
            resource: resource.row.plural,
            subresource: subresource.map_or("", |subresource| subresource.name),
            scope,
        })
    }
}

fn metric_verb(verb: &str) -> &'static str {
    match verb {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" => "POST",
        "update" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => "",
    }
}

#[derive(Default)]
struct Series {
    count: AtomicU64,
    sum_micros: AtomicU64,
    buckets: [AtomicU64; BUCKETS.len()],
}

/// Counters of requests, by labels and code. The map's lock is only written for a series that is new.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: RwLock<BTreeMap<(Labels, u16), Arc<Series>>>,
    pub watches: AtomicU64,
}

impl Metrics {
    pub(crate) fn record(&self, labels: Labels, code: u16, took: Duration) {
        let key = (labels, code);
        let known = self.requests.read().get(&key).cloned();
        let series = known.unwrap_or_else(|| self.requests.write().entry(key).or_default().clone());
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
        for ((labels, code), series) in &requests {
            let count = series.count.load(Ordering::Relaxed);
            let _ = writeln!(text, "apiserver_request_total{{{},code=\"{code}\"}} {count}", names(labels));
        }
        text += "# TYPE apiserver_request_duration_seconds histogram\n";
        let requests: Vec<_> = requests.into_iter().collect();
        // Codes of the same labels stand side by side.
        for same in requests.chunk_by(|((one, _), _), ((other, _), _)| one == other) {
            let names = names(&same[0].0.0);
            let sum = |read: &dyn Fn(&Series) -> &AtomicU64| -> u64 {
                same.iter().map(|(_, series)| read(series).load(Ordering::Relaxed)).sum()
            };
            let mut below = 0;
            for (at, bound) in BUCKETS.iter().enumerate() {
                below += sum(&|series| &series.buckets[at]);
                let _ = writeln!(
                    text,
                    "apiserver_request_duration_seconds_bucket{{{names},le=\"{bound}\"}} {below}"
                );
            }
            let count = sum(&|series| &series.count);
            let seconds = sum(&|series| &series.sum_micros) as f64 / 1e6;
            let _ =
                writeln!(text, "apiserver_request_duration_seconds_bucket{{{names},le=\"+Inf\"}} {count}");
            let _ = writeln!(text, "apiserver_request_duration_seconds_sum{{{names}}} {seconds}");
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
    let Labels { verb, group, version, resource, subresource, scope } = labels;
    format!(
        "verb=\"{verb}\",group=\"{group}\",version=\"{version}\",resource=\"{resource}\",\
         subresource=\"{subresource}\",scope=\"{scope}\",component=\"apiserver\""
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
    fn requests_are_counted_by_code_and_timed_together() {
        let metrics = Metrics::default();
        let labels = Labels {
            verb: "GET",
            group: "",
            version: "v1",
            resource: "pods",
            subresource: "",
            scope: "resource",
        };
        metrics.record(labels, 200, Duration::from_millis(2));
        metrics.record(labels, 200, Duration::from_millis(700));
        metrics.record(labels, 404, Duration::from_secs(90));
        let text = metrics.render((0, 0), 7);
        let names = "verb=\"GET\",group=\"\",version=\"v1\",resource=\"pods\",subresource=\"\",scope=\"resource\",\
                     component=\"apiserver\"";
        for (metric, labels, value) in [
            ("total", ",code=\"200\"", "2"),
            ("total", ",code=\"404\"", "1"),
            ("duration_seconds_bucket", ",le=\"0.005\"", "1"),
            ("duration_seconds_bucket", ",le=\"0.8\"", "2"),
            ("duration_seconds_bucket", ",le=\"60\"", "2"),
            ("duration_seconds_bucket", ",le=\"+Inf\"", "3"),
            ("duration_seconds_count", "", "3"),
            ("duration_seconds_sum", "", "90.702"),
        ] {
            let line = format!("apiserver_request_{metric}{{{names}{labels}}} {value}");
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
