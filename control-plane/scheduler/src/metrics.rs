//! Metrics of the scheduler under upstream's names, in Prometheus' text form.
//!
//! What changes with every pod is counted in plain numbers where the lock is held anyway, and read when somebody asks.
//! Durations of decisions are those of a batch, shared out equally among its pods: pods of one workload are decided on
//! together, and a clock for each would cost more than the decision. Single plugins and extension points are measured in one
//! attempt of ten ([`crate::timings`]).
//!
//! Labels are from closed sets, but for the profiles' names, which a configuration gives.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    queue::Place,
    scheduler::{Attempt, Plan, Scheduler},
    timings::{Point, Status, Timings},
};

/// More attempts are one label.
const MOST_ATTEMPTS: u32 = 15;

/// What brings a pod into a place of the queue, by upstream's names of events.
///
/// Objects that come and objects that change are told apart only where the scheduler needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    UnschedulablePodAdd,
    UnschedulablePodUpdate,
    ScheduleAttemptFailure,
    BackoffComplete,
    UnschedulableTimeout,
    ForceActivate,
    NodeAdd,
    NodeUpdate,
    NodeDelete,
    AssignedPodAdd,
    AssignedPodUpdate,
    AssignedPodDelete,
    NamespaceUpdate,
    PersistentVolumeClaimUpdate,
    PersistentVolumeUpdate,
    StorageClassUpdate,
    CsiNodeUpdate,
    VolumeAttachmentDelete,
    CsiDriverUpdate,
    CsiStorageCapacityUpdate,
    PodGroupUpdate,
    ResourceClaimUpdate,
    ResourceClaimDelete,
    ResourceSliceUpdate,
    DeviceClassUpdate,
    DeviceClassDelete,
}

impl Cause {
    /// In the order of their numbers.
    pub(crate) const ALL: [Self; 26] = [
        Self::UnschedulablePodAdd,
        Self::UnschedulablePodUpdate,
        Self::ScheduleAttemptFailure,
        Self::BackoffComplete,
        Self::UnschedulableTimeout,
        Self::ForceActivate,
        Self::NodeAdd,
        Self::NodeUpdate,
        Self::NodeDelete,
        Self::AssignedPodAdd,
        Self::AssignedPodUpdate,
        Self::AssignedPodDelete,
        Self::NamespaceUpdate,
        Self::PersistentVolumeClaimUpdate,
        Self::PersistentVolumeUpdate,
        Self::StorageClassUpdate,
        Self::CsiNodeUpdate,
        Self::VolumeAttachmentDelete,
        Self::CsiDriverUpdate,
        Self::CsiStorageCapacityUpdate,
        Self::PodGroupUpdate,
        Self::ResourceClaimUpdate,
        Self::ResourceClaimDelete,
        Self::ResourceSliceUpdate,
        Self::DeviceClassUpdate,
        Self::DeviceClassDelete,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::UnschedulablePodAdd => "UnschedulablePodAdd",
            Self::UnschedulablePodUpdate => "UnschedulablePodUpdate",
            Self::ScheduleAttemptFailure => "ScheduleAttemptFailure",
            Self::BackoffComplete => "BackoffComplete",
            Self::UnschedulableTimeout => "UnschedulableTimeout",
            Self::ForceActivate => "ForceActivate",
            Self::NodeAdd => "NodeAdd",
            Self::NodeUpdate => "NodeUpdate",
            Self::NodeDelete => "NodeDelete",
            Self::AssignedPodAdd => "AssignedPodAdd",
            Self::AssignedPodUpdate => "AssignedPodUpdate",
            Self::AssignedPodDelete => "AssignedPodDelete",
            Self::NamespaceUpdate => "NamespaceUpdate",
            Self::PersistentVolumeClaimUpdate => "PersistentVolumeClaimUpdate",
            Self::PersistentVolumeUpdate => "PersistentVolumeUpdate",
            Self::StorageClassUpdate => "StorageClassUpdate",
            Self::CsiNodeUpdate => "CSINodeUpdate",
            Self::VolumeAttachmentDelete => "VolumeAttachmentDelete",
            Self::CsiDriverUpdate => "CSIDriverUpdate",
            Self::CsiStorageCapacityUpdate => "CSIStorageCapacityUpdate",
            Self::PodGroupUpdate => "PodGroupUpdate",
            Self::ResourceClaimUpdate => "ResourceClaimUpdate",
            Self::ResourceClaimDelete => "ResourceClaimDelete",
            Self::ResourceSliceUpdate => "ResourceSliceUpdate",
            Self::DeviceClassUpdate => "DeviceClassUpdate",
            Self::DeviceClassDelete => "DeviceClassDelete",
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Scheduled,
    Unschedulable,
    /// The node was chosen, and could not be written.
    Error,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Unschedulable => "unschedulable",
            Self::Error => "error",
        }
    }
}

/// What there is at one moment.
#[derive(Debug)]
pub(crate) struct Gauges {
    pub(crate) pending: [(Place, usize); 4],
    pub(crate) incoming: [(Place, [u64; Cause::ALL.len()]); 4],
    pub(crate) nodes: usize,
    pub(crate) pods: usize,
    pub(crate) assumed_pods: usize,
    pub(crate) preemption_attempts: u64,
    pub(crate) timings: Timings,
    /// By plugin and profile.
    pub(crate) unschedulable: BTreeMap<(&'static str, String), usize>,
}

/// Metrics of one scheduler at a time, whether it runs or not. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Shared>);

#[derive(Default)]
struct Shared {
    outcomes: Mutex<Outcomes>,
    core: Mutex<Weak<Mutex<Scheduler>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Metrics")
    }
}

/// The scheduler that is shown; none after it.
#[must_use]
pub(crate) struct Shown(Metrics);

impl Drop for Shown {
    fn drop(&mut self) {
        *self.0.0.core.lock() = Weak::new();
    }
}

impl Metrics {
    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        // The scheduler's lock first, and only for as long as numbers are copied.
        let core = self.0.core.lock().upgrade();
        let gauges = core.map(|core| core.lock().gauges());
        let mut text = String::with_capacity(8 << 10);
        let outcomes = self.0.outcomes.lock();
        outcomes.render(&mut text);
        let mut timings = outcomes.timings.clone();
        drop(outcomes);
        if let Some(gauges) = gauges {
            gauges.render(&mut text);
            timings.points.extend(gauges.timings.points);
            (timings.plugins, timings.evaluations) = (gauges.timings.plugins, gauges.timings.evaluations);
        }
        timings.render(&mut text);
        text
    }

    pub(crate) fn show(&self, core: &Arc<Mutex<Scheduler>>) -> Shown {
        *self.0.core.lock() = Arc::downgrade(core);
        Shown(self.clone())
    }

    /// A batch was decided on.
    pub(crate) fn decided(&self, plan: &Plan, took: Duration) {
        let tried = plan.bindings.len() + plan.provisionings.len() + plan.rejected.len();
        let Some(each) = u32::try_from(tried).ok().and_then(|tried| took.checked_div(tried)) else {
            return;
        };
        let mut outcomes = self.0.outcomes.lock();
        outcomes.algorithm.observe_many(each.as_secs_f64(), tried as u64);
        for rejected in &plan.rejected {
            outcomes.tried(Outcome::Unschedulable, &rejected.pod.needs.profile.scheduler_name, each);
        }
        for preemption in &plan.preemptions {
            outcomes.victims.observe(preemption.victims.len() as f64);
        }
    }

    /// What a pod was promised was written, or its binding was, or could not be.
    pub(crate) fn wrote(&self, point: Point, profile: &str, status: Status, took: Duration) {
        self.0.outcomes.lock().timings.point(profile, point, status, took.as_secs_f64());
    }

    /// A pod that was given a node has it, or could not have it.
    pub(crate) fn tried(&self, outcome: Outcome, attempt: &Attempt, now: Duration) {
        let mut outcomes = self.0.outcomes.lock();
        outcomes.tried(outcome, &attempt.profile.scheduler_name, now.saturating_sub(attempt.decided));
        if outcome == Outcome::Scheduled {
            outcomes.attempts.observe(f64::from(attempt.attempts));
            let label = attempt.attempts.min(MOST_ATTEMPTS);
            let sli = outcomes.sli.entry(label).or_insert_with(|| Histogram::new(0.01, 20));
            sli.observe(now.saturating_sub(attempt.entered).as_secs_f64());
        }
    }
}

/// What is counted where there is no core: outcomes and how long things took.
struct Outcomes {
    /// Of what the shell writes; those of decisions are the core's.
    timings: Timings,
    /// By profile and outcome.
    tried: BTreeMap<(String, Outcome), Histogram>,
    algorithm: Histogram,
    attempts: Histogram,
    /// By number of attempts.
    sli: BTreeMap<u32, Histogram>,
    victims: Histogram,
}

impl Default for Outcomes {
    fn default() -> Self {
        Self {
            timings: Timings::default(),
            tried: BTreeMap::new(),
            algorithm: Histogram::new(0.001, 15),
            attempts: Histogram::new(1.0, 5),
            sli: BTreeMap::new(),
            victims: Histogram::new(1.0, 7),
        }
    }
}

impl Outcomes {
    fn tried(&mut self, outcome: Outcome, profile: &str, took: Duration) {
        // Looked up twice rather than copying the name each time.
        if let Some((_, known)) =
            self.tried.iter_mut().find(|((name, other), _)| name == profile && *other == outcome)
        {
            known.observe(took.as_secs_f64());
            return;
        }
        let mut histogram = Histogram::new(0.001, 15);
        histogram.observe(took.as_secs_f64());
        self.tried.insert((profile.to_owned(), outcome), histogram);
    }

    fn render(&self, text: &mut String) {
        let labels = |profile: &str, outcome: Outcome| {
            format!("profile=\"{}\",result=\"{}\"", escaped(profile), outcome.name())
        };
        head(text, "schedule_attempts_total", "counter", "attempts to place pods, by how they ended");
        for ((profile, outcome), attempts) in &self.tried {
            line(text, "schedule_attempts_total", &labels(profile, *outcome), attempts.count);
        }
        let name = "scheduling_attempt_duration_seconds";
        head(text, name, "histogram", "time of an attempt, from the decision to the written binding");
        for ((profile, outcome), attempts) in &self.tried {
            attempts.render(text, name, &labels(profile, *outcome));
        }
        let name = "scheduling_algorithm_duration_seconds";
        head(text, name, "histogram", "time of a decision: a pod's share of its batch");
        self.algorithm.render(text, name, "");
        let name = "pod_scheduling_attempts";
        head(text, name, "histogram", "attempts that placed pods took");
        self.attempts.render(text, name, "");
        let name = "pod_scheduling_sli_duration_seconds";
        head(
            text,
            name,
            "histogram",
            "time from a pod's coming to its written binding, all attempts together",
        );
        for (attempts, sli) in &self.sli {
            let more = if *attempts == MOST_ATTEMPTS { "+" } else { "" };
            sli.render(text, name, &format!("attempts=\"{attempts}{more}\""));
        }
        let name = "preemption_victims";
        head(text, name, "histogram", "pods that were chosen to go for another");
        self.victims.render(text, name, "");
    }
}

impl Gauges {
    fn render(&self, text: &mut String) {
        head(text, "pending_pods", "gauge", "pods that wait, by where");
        for (place, pods) in &self.pending {
            line(text, "pending_pods", &format!("queue=\"{}\"", queue(*place)), *pods as u64);
        }
        head(
            text,
            "queue_incoming_pods_total",
            "counter",
            "pods that came to wait somewhere, by what brought them",
        );
        for (place, counts) in &self.incoming {
            for (cause, count) in Cause::ALL.iter().zip(counts).filter(|(_, count)| **count > 0) {
                let labels = format!("event=\"{}\",queue=\"{}\"", cause.name(), queue(*place));
                line(text, "queue_incoming_pods_total", &labels, *count);
            }
        }
        head(
            text,
            "cache_size",
            "gauge",
            "nodes and pods that the scheduler knows, and pods whose binding is not seen yet",
        );
        let sizes = [("assumed_pods", self.assumed_pods), ("nodes", self.nodes), ("pods", self.pods)];
        for (kind, size) in sizes {
            line(text, "cache_size", &format!("type=\"{kind}\""), size as u64);
        }
        head(
            text,
            "preemption_attempts_total",
            "counter",
            "how often it was looked for pods that could go for another",
        );
        line(text, "preemption_attempts_total", "", self.preemption_attempts);
        head(
            text,
            "unschedulable_pods",
            "gauge",
            "pods that no node can run, by each plugin that refuses nodes",
        );
        for ((plugin, profile), pods) in &self.unschedulable {
            let labels = format!("plugin=\"{plugin}\",profile=\"{}\"", escaped(profile));
            line(text, "unschedulable_pods", &labels, *pods as u64);
        }
    }
}

impl Timings {
    fn render(&self, text: &mut String) {
        let name = "framework_extension_point_duration_seconds";
        head(text, name, "histogram", "time of all plugins of an extension point, in one attempt of ten");
        for ((profile, point, status), took) in &self.points {
            let (point, status) = (point.name(), status.name());
            let labels =
                format!("extension_point=\"{point}\",profile=\"{}\",status=\"{status}\"", escaped(profile));
            took.render(text, name, &labels);
        }
        let name = "plugin_execution_duration_seconds";
        head(
            text,
            name,
            "histogram",
            "time of a plugin: of its filter on one node, or of its scores of all nodes",
        );
        for ((plugin, point, status), took) in &self.plugins {
            let (plugin, point, status) = (plugin.name(), point.name(), status.name());
            let labels = format!("extension_point=\"{point}\",plugin=\"{plugin}\",status=\"{status}\"");
            took.render(text, name, &labels);
        }
        let name = "plugin_evaluation_total";
        head(text, name, "counter", "attempts in which a plugin had something to do at an extension point");
        for (profile, plugin, point, count) in self.asked() {
            let (plugin, point) = (plugin.name(), point.name());
            let profile = escaped(profile);
            let labels = format!("extension_point=\"{point}\",plugin=\"{plugin}\",profile=\"{profile}\"");
            line(text, name, &labels, count);
        }
    }
}

fn queue(place: Place) -> &'static str {
    match place {
        Place::Active => "active",
        Place::BackingOff => "backoff",
        Place::Unschedulable => "unschedulable",
        Place::Gated => "gated",
    }
}

/// Counts by upper bound; each bound is a multiple of the one before.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    first: f64,
    factor: f64,
    buckets: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Histogram {
    /// Each bound is twice the one before.
    pub(crate) fn new(first: f64, buckets: usize) -> Self {
        Self::growing(first, 2.0, buckets)
    }

    pub(crate) fn growing(first: f64, factor: f64, buckets: usize) -> Self {
        Self { first, factor, buckets: vec![0; buckets], count: 0, sum: 0.0 }
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn observe(&mut self, value: f64) {
        self.observe_many(value, 1);
    }

    fn observe_many(&mut self, value: f64, times: u64) {
        self.count += times;
        self.sum += value * times as f64;
        let mut bound = self.first;
        for bucket in &mut self.buckets {
            if value <= bound {
                *bucket += times;
                return;
            }
            bound *= self.factor;
        }
    }

    fn render(&self, text: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let (mut bound, mut below) = (self.first, 0);
        for bucket in &self.buckets {
            below += bucket;
            line(text, &format!("{name}_bucket"), &format!("{labels}{comma}le=\"{bound}\""), below);
            bound *= self.factor;
        }
        line(text, &format!("{name}_bucket"), &format!("{labels}{comma}le=\"+Inf\""), self.count);
        let shown = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        // Writing to a string does not fail.
        let _ = writeln!(text, "scheduler_{name}_sum{shown} {}", self.sum);
        line(text, &format!("{name}_count"), labels, self.count);
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP scheduler_{name} {help}\n# TYPE scheduler_{name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &str, value: u64) {
    let _ = if labels.is_empty() {
        writeln!(text, "scheduler_{name} {value}")
    } else {
        writeln!(text, "scheduler_{name}{{{labels}}} {value}")
    };
}

/// A label's value as the text form wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::json;

    use super::*;
    use crate::{
        config::Config,
        testing::{node, pod},
    };

    const START: Duration = Duration::ZERO;

    fn asks(name: &str, cpu: &str) -> k8s_openapi::api::core::v1::Pod {
        pod(name, json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] }))
    }

    #[track_caller]
    fn has(text: &str, lines: &[&str]) {
        let all: HashSet<&str> = text.lines().collect();
        for line in lines {
            assert!(all.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_becomes_of_pods_is_counted() {
        let core = Arc::new(Mutex::new(Scheduler::new(&Config::default(), 7)));
        let metrics = Metrics::default();
        let shown = metrics.show(&core);
        let plan = {
            let mut core = core.lock();
            core.node_changed(&node("n1", json!({})), START);
            for pod in [asks("a", "3"), asks("b", "3"), asks("c", "9")] {
                core.pod_changed(&pod, START);
            }
            let mut gated = asks("d", "1");
            gated.spec.as_mut().unwrap().scheduling_gates = Some(vec![Default::default()]);
            core.pod_changed(&gated, START);
            core.schedule(10, Duration::from_secs(1))
        };
        metrics.decided(&plan, Duration::from_millis(9));
        metrics.tried(Outcome::Scheduled, &plan.bindings[0].attempt, Duration::from_millis(1030));
        let text = metrics.render();
        has(
            &text,
            &[
                "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"scheduled\"} 1",
                "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"unschedulable\"} 2",
                "scheduler_scheduling_attempt_duration_seconds_bucket{profile=\"default-scheduler\",result=\"scheduled\",le=\"0.016\"} 0",
                "scheduler_scheduling_attempt_duration_seconds_bucket{profile=\"default-scheduler\",result=\"scheduled\",le=\"0.032\"} 1",
                "scheduler_scheduling_algorithm_duration_seconds_bucket{le=\"0.002\"} 0",
                "scheduler_scheduling_algorithm_duration_seconds_bucket{le=\"0.004\"} 3",
                "scheduler_pod_scheduling_attempts_bucket{le=\"1\"} 1",
                "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"1\",le=\"0.64\"} 0",
                "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"1\",le=\"1.28\"} 1",
                "scheduler_pending_pods{queue=\"active\"} 0",
                "scheduler_pending_pods{queue=\"unschedulable\"} 2",
                "scheduler_pending_pods{queue=\"gated\"} 1",
                "scheduler_queue_incoming_pods_total{event=\"UnschedulablePodAdd\",queue=\"active\"} 3",
                "scheduler_queue_incoming_pods_total{event=\"UnschedulablePodAdd\",queue=\"gated\"} 1",
                "scheduler_queue_incoming_pods_total{event=\"ScheduleAttemptFailure\",queue=\"unschedulable\"} 2",
                "scheduler_cache_size{type=\"nodes\"} 1",
                "scheduler_cache_size{type=\"assumed_pods\"} 1",
                "scheduler_preemption_attempts_total 2",
                "scheduler_plugin_evaluation_total{extension_point=\"Filter\",plugin=\"NodeResourcesFit\",profile=\"default-scheduler\"} 3",
                "scheduler_framework_extension_point_duration_seconds_count{extension_point=\"Filter\",profile=\"default-scheduler\",status=\"Success\"} 1",
                "scheduler_plugin_execution_duration_seconds_count{extension_point=\"Filter\",plugin=\"NodeResourcesFit\",status=\"Success\"} 1",
                "scheduler_unschedulable_pods{plugin=\"NodeResourcesFit\",profile=\"default-scheduler\"} 2",
            ],
        );
        // What brings them back is told too.
        core.lock().node_changed(&node("n2", json!({})), START);
        core.lock().pod_removed("d", START);
        has(
            &metrics.render(),
            &[
                "scheduler_queue_incoming_pods_total{event=\"NodeAdd\",queue=\"backoff\"} 1",
                "scheduler_pending_pods{queue=\"gated\"} 0",
            ],
        );
        // A scheduler that stands by shows what it did, and no queue.
        drop(shown);
        let text = metrics.render();
        assert!(
            text.contains("scheduler_schedule_attempts_total{") && !text.contains("pending_pods"),
            "{text}"
        );
    }

    #[test]
    fn victims_and_attempts_have_upstreams_buckets() {
        let mut histogram = Histogram::new(1.0, 7);
        [0.0, 1.0, 3.0, 64.0, 65.0].into_iter().for_each(|victims| histogram.observe(victims));
        let mut text = String::new();
        histogram.render(&mut text, "preemption_victims", "");
        has(
            &text,
            &[
                "scheduler_preemption_victims_bucket{le=\"1\"} 2",
                "scheduler_preemption_victims_bucket{le=\"4\"} 3",
                "scheduler_preemption_victims_bucket{le=\"64\"} 4",
                "scheduler_preemption_victims_bucket{le=\"+Inf\"} 5",
                "scheduler_preemption_victims_sum 133",
                "scheduler_preemption_victims_count 5",
            ],
        );
        assert_eq!(escaped("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }

    #[test]
    fn causes_are_numbered_as_they_are_listed() {
        for (index, cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, index, "{}", cause.name());
        }
    }
}
