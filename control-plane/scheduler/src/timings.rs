//! How long extension points and plugins take, and how often plugins are asked, under upstream's names.
//!
//! Of one attempt in ten, as upstream: a clock for each would cost as much as some decisions. Nothing is decided by it. The
//! filters of single nodes are asked all at once and their answers are kept, so what a plugin takes is measured by asking
//! it alone about one node more.

use std::{collections::BTreeMap, time::Instant};

use crate::{
    metrics::Histogram,
    profile::{Plugin, PluginSet},
};

/// Filters that have nothing to do before they are asked about nodes.
const NO_PRE_FILTER: [Plugin; 3] = [Plugin::NodeUnschedulable, Plugin::NodeName, Plugin::TaintToleration];

/// Attempts of which one is measured.
const MEASURED: u64 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    PreFilter,
    Filter,
    PostFilter,
    Score,
    Reserve,
    PreBind,
    Bind,
}

impl Point {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PreFilter => "PreFilter",
            Self::Filter => "Filter",
            Self::PostFilter => "PostFilter",
            Self::Score => "Score",
            Self::Reserve => "Reserve",
            Self::PreBind => "PreBind",
            Self::Bind => "Bind",
        }
    }
}

/// How an extension point ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Status {
    Success,
    Unschedulable,
    Error,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Success => "Success",
            Self::Unschedulable => "Unschedulable",
            Self::Error => "Error",
        }
    }

    pub(crate) fn of_filter(fits: bool) -> Self {
        if fits { Self::Success } else { Self::Unschedulable }
    }
}

/// What was measured. Labels are from closed sets, but for the profiles' names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timings {
    attempts: u64,
    /// By profile.
    pub(crate) points: BTreeMap<(String, Point, Status), Histogram>,
    pub(crate) plugins: BTreeMap<(Plugin, Point, Status), Histogram>,
    /// Attempts in which each filter had something to say, in the order of [`Plugin::ALL`], by profile.
    pub(crate) evaluations: Vec<(String, [u64; Plugin::ALL.len()])>,
}

/// One attempt's clock; it stands still where the attempt is not measured.
pub(crate) struct Watch {
    last: Option<Instant>,
    points: Vec<(Point, Status, f64)>,
    plugins: Vec<(Plugin, Point, Status, f64)>,
}

impl Timings {
    pub(crate) fn watch(&mut self) -> Watch {
        self.attempts += 1;
        let measured = self.attempts % MEASURED == 1;
        Watch { last: measured.then(Instant::now), points: Vec::new(), plugins: Vec::new() }
    }

    /// How often each plugin was asked at each extension point, with the profile.
    pub(crate) fn asked(&self) -> impl Iterator<Item = (&str, Plugin, Point, u64)> {
        self.evaluations.iter().flat_map(|(profile, counts)| {
            let counts = Plugin::ALL.into_iter().zip(counts).filter(|(_, count)| **count > 0);
            counts.flat_map(move |(plugin, count)| {
                let before = (!NO_PRE_FILTER.contains(&plugin)).then_some(Point::PreFilter);
                let points = before.into_iter().chain([Point::Filter]);
                points.map(move |point| (profile.as_str(), plugin, point, *count))
            })
        })
    }

    /// Takes over what one attempt took.
    pub(crate) fn take(&mut self, watch: Watch, profile: &str) {
        for (point, status, seconds) in watch.points {
            self.point(profile, point, status, seconds);
        }
        for (plugin, point, status, seconds) in watch.plugins {
            let histogram = self.plugins.entry((plugin, point, status));
            // As upstream: from 10 µs on, each bound half as much again as the one before.
            histogram.or_insert_with(|| Histogram::growing(0.000_01, 1.5, 20)).observe(seconds);
        }
    }

    pub(crate) fn point(&mut self, profile: &str, point: Point, status: Status, seconds: f64) {
        let histogram = self.points.entry((profile.to_owned(), point, status));
        histogram.or_insert_with(|| Histogram::new(0.000_1, 12)).observe(seconds);
    }

    /// The plugins have something to say about a pod.
    pub(crate) fn evaluated(&mut self, profile: &str, plugins: PluginSet) {
        let known = self.evaluations.iter().position(|(name, _)| name == profile);
        let index = known.unwrap_or_else(|| {
            self.evaluations.push((profile.to_owned(), Default::default()));
            self.evaluations.len() - 1
        });
        for (plugin, count) in Plugin::ALL.into_iter().zip(&mut self.evaluations[index].1) {
            *count += u64::from(plugins.contains(plugin));
        }
    }
}

impl Watch {
    /// One that measures nothing.
    pub(crate) fn stopped() -> Self {
        Self { last: None, points: Vec::new(), plugins: Vec::new() }
    }

    pub(crate) fn running() -> Self {
        Self { last: Some(Instant::now()), ..Self::stopped() }
    }

    /// One for the parts of what this one measures as a whole.
    pub(crate) fn fork(&self) -> Self {
        Self { last: self.last, ..Self::stopped() }
    }

    /// Takes over what the parts took.
    pub(crate) fn join(&mut self, parts: Self) {
        self.plugins.extend(parts.plugins);
    }

    pub(crate) fn runs(&self) -> bool {
        self.last.is_some()
    }

    /// The extension point took the time since the last note.
    pub(crate) fn note(&mut self, point: Point, status: Status) {
        if let Some(seconds) = self.lap() {
            self.points.push((point, status, seconds));
        }
    }

    /// The plugin did.
    pub(crate) fn note_plugin(&mut self, plugin: Plugin, point: Point, status: Status) {
        if let Some(seconds) = self.lap() {
            self.plugins.push((plugin, point, status, seconds));
        }
    }

    /// What was done since the last note is nobody's.
    pub(crate) fn skip(&mut self) {
        self.lap();
    }

    fn lap(&mut self) -> Option<f64> {
        let last = self.last.as_mut()?;
        let now = Instant::now();
        Some(now.duration_since(std::mem::replace(last, now)).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_attempt_in_ten_is_measured() {
        let mut timings = Timings::default();
        for _ in 0..30 {
            let mut watch = timings.watch();
            watch.note(Point::Filter, Status::Success);
            watch.note_plugin(Plugin::NodePorts, Point::Filter, Status::Success);
            timings.take(watch, "p");
        }
        let key = ("p".to_owned(), Point::Filter, Status::Success);
        assert_eq!(timings.points[&key].count(), 3);
        assert_eq!(timings.plugins[&(Plugin::NodePorts, Point::Filter, Status::Success)].count(), 3);
    }
}
