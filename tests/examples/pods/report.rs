//! Results: a table for people, or one JSON object a line.

use std::time::Duration;

use serde_json::json;

pub(crate) struct Report {
    json: bool,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// `peer` is whose value it is: `hawser`, or `ctr`, `runc` below it.
    pub(crate) fn print(&self, case: &str, peer: &str, metric: &str, value: f64, unit: &str) {
        if self.json {
            let line = json!({ "case": case, "peer": peer, "metric": metric, "value": value, "unit": unit });
            println!("{line}");
        } else {
            println!("{case:<10} {peer:<10} {metric:<22} {value:>10.2} {unit}");
        }
    }

    /// Median and 99th percentile.
    pub(crate) fn times(&self, case: &str, peer: &str, metric: &str, times: &mut [Duration]) {
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            self.print(case, peer, &format!("{metric}_{name}"), percentile(times, share), "ms");
        }
    }
}

/// Milliseconds that `share` of `times` are not longer than; 0 of nothing.
pub(crate) fn percentile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let at = (times.len().saturating_sub(1) as f64 * share).round() as usize;
    times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}
