//! Results: a table for people, or one JSON object a line.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::measure::{Sample, Spread};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
}

/// One measured value of a case.
pub(crate) struct Record<'a> {
    pub(crate) case: &'a str,
    /// What else tells it apart: peer, wiring, services, flows.
    pub(crate) labels: Vec<(&'static str, Value)>,
    pub(crate) metric: &'a str,
    pub(crate) unit: &'a str,
    pub(crate) spread: Spread,
    /// CPU time, in microseconds per one of `.1`.
    pub(crate) cpu: Option<(Spread, &'a str)>,
}

impl Record<'_> {
    pub(crate) fn print(&self, format: Format) {
        match format {
            Format::Json => println!("{}", self.json()),
            Format::Table => println!("{}", self.line()),
        }
    }

    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("case".to_owned(), self.case.into());
        for (name, value) in &self.labels {
            object.insert((*name).to_owned(), value.clone());
        }
        let Spread { median, low, high } = self.spread;
        object.insert("metric".to_owned(), self.metric.into());
        for (name, value) in [("value", median), ("low", low), ("high", high)] {
            object.insert(name.to_owned(), json!(rounded(value)));
        }
        object.insert("unit".to_owned(), self.unit.into());
        if let Some((cpu, per)) = &self.cpu {
            object.insert("cpu".to_owned(), json!(rounded(cpu.median)));
            object.insert("cpu_unit".to_owned(), json!(format!("us/{per}")));
        }
        Value::Object(object)
    }

    fn line(&self) -> String {
        let labels: Vec<String> = self
            .labels
            .iter()
            .map(|(name, value)| match value {
                Value::String(text) => format!("{text:<9}"),
                other => format!("{name} {other:<6}"),
            })
            .collect();
        let Spread { median, low, high } = self.spread;
        let cpu = self.cpu.as_ref().map(|(cpu, per)| format!("  cpu {} us/{per}", shown(cpu.median)));
        format!(
            "{:<22} {} {:<7} {:>10} {:<10} ({} to {}){}",
            self.case,
            labels.join(" "),
            self.metric,
            shown(median),
            self.unit,
            shown(low),
            shown(high),
            cpu.unwrap_or_default()
        )
    }
}

/// Four significant digits: more is noise.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

fn shown(value: f64) -> String {
    rounded(value).to_string()
}

/// The rate of one peer beside another's, round by round.
pub(crate) fn rate_ratio(of: &[Sample], to: &[Sample]) -> Option<Spread> {
    Spread::of(of.iter().zip(to).map(|(of, to)| of.rate / to.rate))
}

/// CPU time per operation of `to` beside that of `of`: above 1 where `of` takes less.
pub(crate) fn cpu_ratio(of: &[Sample], to: &[Sample]) -> Option<Spread> {
    Spread::of(of.iter().zip(to).map(|(of, to)| to.cpu_us / of.cpu_us))
}

/// One latency of `to` beside that of `of`: above 1 where `of` is faster. 0 is p50, 1 p99.
pub(crate) fn latency_ratio(of: &[Sample], to: &[Sample], which: usize) -> Option<Spread> {
    let pairs = of.iter().zip(to).filter_map(|(of, to)| Some((of.latency_us?, to.latency_us?)));
    Spread::of(pairs.map(|(of, to)| to[which] / of[which]))
}

/// Samples of one case by peer and wiring.
pub(crate) type Samples = BTreeMap<(&'static str, &'static str), Vec<Sample>>;
