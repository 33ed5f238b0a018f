//! One JSON object a line: `workload`, `mode`, `metric`, `value`, `unit`, `floor`.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    ledger::Collected,
    samples::{percentile, samples},
    workloads::Workload,
};

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

/// Pods per second: over all, from the start to the last binding; the rates of slices of 500 pods; and what upstream's
/// collector would say, which needs a run of more than two seconds.
pub(crate) fn report(workload: &Workload, mode: Mode, Collected { start, bound }: &Collected) {
    let bound_at: Vec<Instant> = bound.iter().map(|(_, at)| *at).collect();
    let rate = |pods: usize, from: Instant, to: Instant| pods as f64 / to.duration_since(from).as_secs_f64();
    let end = bound_at.last().copied().unwrap_or(*start);
    let slices: Vec<&[Instant]> = bound_at.chunks(SLICE).collect();
    let ends = slices.iter().filter_map(|slice| slice.last().copied());
    let edges: Vec<Instant> = std::iter::once(*start).chain(ends).collect();
    let mut rates: Vec<f64> =
        edges.windows(2).zip(&slices).map(|(pair, slice)| rate(slice.len(), pair[0], pair[1])).collect();
    rates.sort_by(f64::total_cmp);
    let say = |metric: &str, value: f64| print(workload, mode, metric, value.round(), "pods/s");
    say("average", if bound_at.is_empty() { 0.0 } else { rate(bound_at.len(), *start, end) });
    say("p50", percentile(&rates, 50));
    say("p99", percentile(&rates, 99));
    let since: Vec<Duration> = bound_at.iter().map(|at| at.duration_since(*start)).collect();
    let samples = samples(&since);
    if !samples.is_empty() {
        say("per_second_average", samples.iter().sum::<f64>() / samples.len() as f64);
        for percent in [50, 90, 95, 99] {
            say(&format!("per_second_p{percent}"), percentile(&samples, percent));
        }
    }
}

/// What is made of other kinds than pods, a second.
pub(crate) fn report_rate(workload: &Workload, mode: Mode, count: usize, took: Duration, unit: &str) {
    print(workload, mode, "average", (count as f64 / took.as_secs_f64()).round(), unit);
}

pub(crate) fn report_bytes(workload: &Workload, metric: &str, bytes: usize) {
    print(workload, Mode::SchedulerOnly, metric, bytes as f64, "bytes");
}

/// Milliseconds from a pod's creation to its binding.
pub(crate) fn report_latency(workload: &Workload, mode: Mode, took: &[Duration]) {
    let mut took: Vec<f64> = took.iter().map(|took| took.as_secs_f64() * 1e3).collect();
    took.sort_by(f64::total_cmp);
    for percent in [50, 99] {
        let milliseconds = percentile(&took, percent);
        print(workload, mode, &format!("latency_p{percent}"), (milliseconds * 10.0).round() / 10.0, "ms");
    }
}

fn print(workload: &Workload, mode: Mode, metric: &str, value: f64, unit: &str) {
    let floor = if unit == "pods/s" { workload.floor } else { 0 };
    let line = json!({
        "workload": workload.name, "mode": mode.name(), "metric": metric, "value": value, "unit": unit, "floor": floor,
    });
    println!("{line}");
}
