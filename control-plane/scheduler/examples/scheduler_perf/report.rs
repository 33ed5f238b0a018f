//! One JSON object a line: `workload`, `mode`, `metric`, `value`, `unit`, `floor`.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::workloads::Workload;

const SLICE: usize = 500;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    SchedulerOnly,
    EndToEnd,
}

impl Mode {
    pub(crate) const ALL: [Self; 2] = [Self::SchedulerOnly, Self::EndToEnd];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SchedulerOnly => "scheduler_only",
            Self::EndToEnd => "end_to_end",
        }
    }
}

/// Pods per second, from the start to each binding; percentiles are of the rates of slices of 500 pods.
pub(crate) fn report(workload: &Workload, mode: Mode, start: Instant, bound_at: &[Instant]) {
    let rate = |pods: usize, from: Instant, to: Instant| pods as f64 / to.duration_since(from).as_secs_f64();
    let end = bound_at.last().copied().unwrap_or(start);
    let slices: Vec<&[Instant]> = bound_at.chunks(SLICE).collect();
    let ends = slices.iter().filter_map(|slice| slice.last().copied());
    let edges: Vec<Instant> = std::iter::once(start).chain(ends).collect();
    let mut rates: Vec<f64> =
        edges.windows(2).zip(&slices).map(|(pair, slice)| rate(slice.len(), pair[0], pair[1])).collect();
    rates.sort_by(f64::total_cmp);
    // Of the rates, the 99th percentile is one that few slices exceed.
    let at = |part: f64| {
        let index = (rates.len().saturating_sub(1) as f64 * part) as usize;
        rates.get(index).copied().unwrap_or_default()
    };
    for (metric, value) in
        [("average", rate(bound_at.len(), start, end)), ("p50", at(0.5)), ("p99", at(0.99))]
    {
        print(workload, mode, metric, value.round(), "pods/s");
    }
}

pub(crate) fn report_bytes(workload: &Workload, metric: &str, bytes: usize) {
    print(workload, Mode::SchedulerOnly, metric, bytes as f64, "bytes");
}

/// Milliseconds from a pod's creation to its binding.
pub(crate) fn report_latency(workload: &Workload, mode: Mode, mut took: Vec<Duration>) {
    took.sort_unstable();
    for (metric, part) in [("latency_p50", 0.5), ("latency_p99", 0.99)] {
        let index = (took.len().saturating_sub(1) as f64 * part) as usize;
        let milliseconds = took.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3;
        print(workload, mode, metric, (milliseconds * 10.0).round() / 10.0, "ms");
    }
}

fn print(workload: &Workload, mode: Mode, metric: &str, value: f64, unit: &str) {
    let floor = if unit == "pods/s" { workload.floor } else { 0 };
    let line = json!({
        "workload": workload.name, "mode": mode.name(), "metric": metric, "value": value, "unit": unit, "floor": floor,
    });
    println!("{line}");
}
