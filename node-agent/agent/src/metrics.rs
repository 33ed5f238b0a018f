//! The service path's metrics: kube-proxy's names where the meaning is kube-proxy's (v1.36), our own otherwise.
//!
//! One sync programs both families, so series that kube-proxy labels with `ip_family` have no such label here.
//! Everything here is set by others and only read at a scrape, except what the kernel counts: that is polled.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use hawser_proxy::{Counter, MapUsage, Skipped};
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, exponential_buckets, linear_buckets,
};

/// Trigger times that wait for their sync; more than a rollout of thousands of services makes between two syncs.
/// Beyond it they are left out of the histogram.
const TRIGGERS: usize = 8192;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    sync_duration: Histogram,
    network_programming: Histogram,
    last_synced: Gauge,
    last_queued: Gauge,
    /// When the oldest change that no sync has programmed was heard of, in seconds since 1970.
    oldest_queued: Mutex<Option<f64>>,
    service_changes: IntCounter,
    service_changes_pending: IntGauge,
    endpoint_changes: IntCounter,
    endpoint_changes_pending: IntGauge,
    sync_failures: IntCounter,
    healthz: IntCounterVec,
    livez: IntCounterVec,
    skipped: IntGaugeVec,
    drops: IntCounterVec,
    events: IntCounterVec,
    map_entries: IntGaugeVec,
    map_capacity: IntGaugeVec,
    lb_addresses: IntGauge,
    /// `endpoints.kubernetes.io/last-change-trigger-time` of changes that no sync has programmed yet.
    triggers: Mutex<Vec<Timestamp>>,
    /// The kernel's counters at the last poll. They outlive the agent; its metrics begin with what they were.
    counted: Mutex<HashMap<&'static str, u64>>,
    started: Timestamp,
}

/// Changes that one sync programs.
pub(crate) struct Pending {
    /// In seconds since 1970.
    begun: f64,
    triggers: Vec<Timestamp>,
    services: i64,
    endpoints: i64,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        // All names are constants: an error is one of this function, and any test shows it.
        Self { inner: Arc::new(Inner::new().expect("metrics have valid, different names")) }
    }

    /// A Service changed.
    pub(crate) fn service_changed(&self) {
        self.inner.service_changes.inc();
        self.inner.service_changes_pending.inc();
        self.queued();
    }

    /// An EndpointSlice changed; `trigger` is the time of what caused that.
    pub(crate) fn endpoints_changed(&self, trigger: Option<Timestamp>) {
        self.inner.endpoint_changes.inc();
        self.inner.endpoint_changes_pending.inc();
        // What was caused before this process began says nothing about it.
        if let Some(trigger) = trigger.filter(|trigger| *trigger > self.inner.started) {
            let mut triggers = self.inner.triggers.lock();
            if triggers.len() < TRIGGERS {
                triggers.push(trigger);
            }
        }
        self.queued();
    }

    pub(crate) fn queued(&self) {
        let now = seconds(Timestamp::now());
        self.inner.last_queued.set(now);
        self.inner.oldest_queued.lock().get_or_insert(now);
    }

    /// A sync begins; what it is about to program is told from what comes later.
    pub(crate) fn sync_begins(&self) -> Pending {
        Pending {
            // First: what comes from here on may be part of this sync or not.
            begun: seconds(Timestamp::now()),
            triggers: std::mem::take(&mut self.inner.triggers.lock()),
            services: self.inner.service_changes_pending.get(),
            endpoints: self.inner.endpoint_changes_pending.get(),
        }
    }

    pub(crate) fn synced(&self, pending: Pending, took: Duration, skipped: &[Skipped]) {
        let now = Timestamp::now();
        let inner = &self.inner;
        inner.sync_duration.observe(took.as_secs_f64());
        inner.last_synced.set(seconds(now));
        *inner.oldest_queued.lock() = (inner.last_queued.get() > pending.begun).then_some(pending.begun);
        inner.service_changes_pending.sub(pending.services);
        inner.endpoint_changes_pending.sub(pending.endpoints);
        for trigger in pending.triggers {
            inner.network_programming.observe(now.duration_since(trigger).as_secs_f64().max(0.0));
        }
        let mut by_reason: BTreeMap<&str, i64> = BTreeMap::new();
        for skipped in skipped {
            *by_reason.entry(skipped.reason).or_default() += 1;
        }
        inner.skipped.reset();
        for (reason, count) in by_reason {
            inner.skipped.with_label_values(&[reason]).set(count);
        }
    }

    pub(crate) fn sync_failed(&self, pending: Pending) {
        self.inner.sync_failures.inc();
        let mut triggers = self.inner.triggers.lock();
        let room = TRIGGERS - triggers.len().min(TRIGGERS);
        triggers.extend(pending.triggers.into_iter().take(room));
    }

    /// Takes the kernel's counters, and returns what came since the last call, by name. The first call returns nothing.
    pub(crate) fn count(&self, counters: &[Counter]) -> Vec<(&'static str, u64)> {
        let mut counted = self.inner.counted.lock();
        let is_first = counted.is_empty();
        let mut news = Vec::new();
        for counter in counters {
            let before = counted.insert(counter.name, counter.value).unwrap_or_default();
            // Lower than before: the maps were made anew.
            let added = counter.value.checked_sub(before).unwrap_or(counter.value);
            let series = match counter.name.strip_prefix("drop_") {
                Some(reason) => self.inner.drops.with_label_values(&[reason]),
                None => self.inner.events.with_label_values(&[counter.name]),
            };
            series.inc_by(added);
            if added > 0 && !is_first {
                news.push((counter.name, added));
            }
        }
        news
    }

    pub(crate) fn set_usage(&self, usage: &[MapUsage]) {
        for map in usage {
            self.inner.map_entries.with_label_values(&[map.name]).set(map.entries as i64);
            self.inner.map_capacity.with_label_values(&[map.name]).set(map.capacity as i64);
        }
    }

    pub(crate) fn set_announced(&self, addresses: usize) {
        self.inner.lb_addresses.set(addresses as i64);
    }

    pub(crate) fn healthz_answered(&self, code: u16) {
        self.inner.healthz.with_label_values(&[code.to_string().as_str()]).inc();
    }

    pub(crate) fn livez_answered(&self, code: u16) {
        self.inner.livez.with_label_values(&[code.to_string().as_str()]).inc();
    }

    /// When a sync last succeeded (0 for never), and when the oldest change came that none has programmed, in seconds
    /// since 1970.
    pub(crate) fn sync_times(&self) -> (f64, Option<f64>) {
        (self.inner.last_synced.get(), *self.inner.oldest_queued.lock())
    }

    /// The text of `/metrics`.
    pub(crate) fn render(&self) -> String {
        let mut text = Vec::new();
        let written = TextEncoder::new().encode(&self.inner.registry.gather(), &mut text);
        written
            .map(|()| String::from_utf8_lossy(&text).into_owned())
            .unwrap_or_else(|error| format!("# {error}\n"))
    }
}

fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

impl Inner {
    fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let made = Make(&registry);
        let programming = [
            linear_buckets(0.25, 0.25, 2)?,
            linear_buckets(1.0, 1.0, 59)?,
            linear_buckets(60.0, 5.0, 12)?,
            linear_buckets(120.0, 30.0, 7)?,
        ];
        Ok(Self {
            sync_duration: made.histogram(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "Time that one sync of services into the kernel took",
                exponential_buckets(0.001, 2.0, 15)?,
            )?,
            network_programming: made.histogram(
                "kubeproxy_network_programming_duration_seconds",
                "Time from the change of a pod or Service until the kernel knew of it",
                programming.concat(),
            )?,
            last_synced: made
                .gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When a sync last succeeded")?,
            last_queued: made.gauge(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "When a sync was last asked for",
            )?,
            oldest_queued: Mutex::default(),
            service_changes: made
                .counter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of Services")?,
            service_changes_pending: made.int_gauge(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Changes of Services that no sync has programmed yet",
            )?,
            endpoint_changes: made
                .counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices")?,
            endpoint_changes_pending: made.int_gauge(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Changes of EndpointSlices that no sync has programmed yet",
            )?,
            sync_failures: made.counter(
                "hawser_service_path_sync_failures_total",
                "Syncs that the kernel refused in part",
            )?,
            healthz: made.counters(
                "kubeproxy_proxy_healthz_total",
                "Answers of /healthz, by status",
                "code",
            )?,
            livez: made.counters("kubeproxy_proxy_livez_total", "Answers of /livez, by status", "code")?,
            skipped: made.gauges(
                "hawser_service_path_skipped",
                "Service ports and host ports that are not served as the API asks, by reason",
                "reason",
            )?,
            drops: made.counters(
                "hawser_datapath_drops_total",
                "Packets that the datapath dropped",
                "reason",
            )?,
            events: made.counters(
                "hawser_datapath_events_total",
                "What else the datapath counts: translations, refusals, packets passed on",
                "event",
            )?,
            map_entries: made.gauges(
                "hawser_datapath_map_entries",
                "Entries in the datapath's maps",
                "map",
            )?,
            map_capacity: made.gauges(
                "hawser_datapath_map_capacity",
                "Most entries that the datapath's maps hold",
                "map",
            )?,
            lb_addresses: made.int_gauge(
                "hawser_load_balancer_addresses",
                "Load balancer addresses that this node answers for",
            )?,
            triggers: Mutex::default(),
            counted: Mutex::default(),
            started: Timestamp::now(),
            registry,
        })
    }
}

/// Makes and registers.
struct Make<'a>(&'a Registry);

impl Make<'_> {
    fn add<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> prometheus::Result<Histogram> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        self.add(Gauge::new(name, help)?)
    }

    fn int_gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::new(name, help)?)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), &[label])?)
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(Opts::new(name, help), &[label])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, start: &str) -> String {
        let found = text.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no {start} in {text}")).to_owned()
    }

    #[test]
    fn programming_time_counts_from_the_trigger_and_once() {
        let metrics = Metrics::new();
        let later = Timestamp::now() + jiff::SignedDuration::from_millis(1);
        metrics.endpoints_changed(Some(later));
        metrics.endpoints_changed(Some(Timestamp::UNIX_EPOCH));
        let pending = metrics.sync_begins();
        metrics.sync_failed(pending);
        let count = "kubeproxy_network_programming_duration_seconds_count";
        assert_eq!(line(&metrics.render(), count), format!("{count} 0"));
        for _ in 0..2 {
            let pending = metrics.sync_begins();
            metrics.synced(pending, Duration::from_millis(3), &[]);
        }
        // The one from before the process began is left out.
        assert_eq!(line(&metrics.render(), count), format!("{count} 1"));
        let pending = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
        assert_eq!(line(&metrics.render(), pending), format!("{pending} 0"));
        let total = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
        assert_eq!(line(&metrics.render(), total), format!("{total} 2"));
    }

    #[test]
    fn kernel_counters_are_followed_over_a_restart_of_either_side() {
        let metrics = Metrics::new();
        let counters = |value| [Counter { name: "drop_no_source_port", value }];
        assert!(metrics.count(&counters(40)).is_empty(), "what was counted before is no news");
        assert_eq!(metrics.count(&counters(45)), [("drop_no_source_port", 5)]);
        assert!(metrics.count(&counters(45)).is_empty());
        assert_eq!(metrics.count(&counters(2)), [("drop_no_source_port", 2)], "the maps were made anew");
        let series = r#"hawser_datapath_drops_total{reason="no_source_port"}"#;
        assert_eq!(line(&metrics.render(), series), format!("{series} 47"));
    }

    #[test]
    fn change_that_no_sync_programs_grows_old_whatever_comes_after_it() {
        let metrics = Metrics::new();
        metrics.synced(metrics.sync_begins(), Duration::ZERO, &[]);
        assert_eq!(metrics.sync_times().1, None);
        metrics.service_changed();
        let (_, oldest) = metrics.sync_times();
        assert!(oldest.is_some());
        let pending = metrics.sync_begins();
        metrics.service_changed();
        metrics.sync_failed(pending);
        metrics.service_changed();
        assert_eq!(metrics.sync_times().1, oldest);
        let pending = metrics.sync_begins();
        metrics.synced(pending, Duration::ZERO, &[]);
        assert_eq!(metrics.sync_times().1, None);
    }

    #[test]
    fn skipped_ports_are_counted_by_reason_and_forgotten() {
        let metrics = Metrics::new();
        let skipped = |what: &str| Skipped { what: what.into(), reason: "its protocol is not served" };
        metrics.synced(metrics.sync_begins(), Duration::ZERO, &[skipped("a/b:c"), skipped("a/d:e")]);
        assert!(line(&metrics.render(), "hawser_service_path_skipped{").ends_with(" 2"));
        metrics.synced(metrics.sync_begins(), Duration::ZERO, &[]);
        assert!(!metrics.render().contains("hawser_service_path_skipped{"));
    }
}
