//! What a node and its pods use, from the counters that the node reports. Pure.
//!
//! A rate needs two reports: it is taken when the second comes, and served until it is stale. A counter that went back is
//! a container or a machine that began anew; it has no rate until its next report. Bounded by what a report may hold.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hawser_api::v1;
use jiff::Timestamp;
use tokio::time::Instant;
use tracing::warn;

/// Reports that follow sooner say nothing new.
const SHORTEST: Duration = Duration::from_secs(5);
/// What nodes report four times in a minute is nobody's use any more when it is older.
const STALE: Duration = Duration::from_secs(90);
/// Pods of one report that are looked at, well above what a node can run.
const MOST_PODS: usize = 4096;

/// What was used, at a rate and at an end of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Billionths of a CPU.
    pub cpu_nanocores: u64,
    pub memory_bytes: u64,
}

/// What a node and its pods used in one window.
#[derive(Debug)]
pub struct NodeUsage {
    /// When the window ended, by this server's clock.
    pub at: Timestamp,
    pub window: Duration,
    pub node: Option<Amount>,
    /// By `namespace/name`.
    pods: HashMap<String, PodUsage>,
    received: Instant,
}

/// What a pod's containers used; complete.
#[derive(Debug)]
pub struct PodUsage {
    pub uid: String,
    /// By name, in the order in which the node has them.
    pub containers: Vec<(String, Amount)>,
}

impl NodeUsage {
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodUsage> {
        self.pods.get(&format!("{namespace}/{name}"))
    }
}

/// The last report of one node, and what it used until then.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    last: Option<v1::Usage>,
    usage: Option<Arc<NodeUsage>>,
}

impl Gauge {
    pub(super) fn report(&mut self, node: &str, mut report: v1::Usage, at: Timestamp) {
        if report.pods.len() > MOST_PODS {
            warn!(
                node,
                pods = report.pods.len(),
                most = MOST_PODS,
                "a node reports more pods than are looked at"
            );
            report.pods.truncate(MOST_PODS);
        }
        if let Some(last) = &self.last {
            let nanos = u64::try_from(report.time_unix_nanos.saturating_sub(last.time_unix_nanos));
            // A clock that was set back begins anew.
            if let Ok(window) = nanos.map(Duration::from_nanos) {
                if window < SHORTEST {
                    return;
                }
                self.usage = Some(Arc::new(between(last, &report, window, at)));
            }
        }
        self.last = Some(report);
    }

    /// `None` before the second report, and where the last one is stale.
    pub(super) fn read(&self) -> Option<Arc<NodeUsage>> {
        self.usage.clone().filter(|usage| usage.received.elapsed() < STALE)
    }
}

fn between(before: &v1::Usage, after: &v1::Usage, window: Duration, at: Timestamp) -> NodeUsage {
    let amount = |from: u64, to: u64, memory_bytes: u64| {
        let used = u128::from(to.checked_sub(from)?);
        let rate = used * 1_000_000_000 / window.as_nanos().max(1);
        Some(Amount { cpu_nanocores: u64::try_from(rate).unwrap_or(u64::MAX), memory_bytes })
    };
    let known: HashMap<(&str, &str, &str), &v1::PodUsage> =
        before.pods.iter().map(|pod| ((&*pod.namespace, &*pod.name, &*pod.uid), pod)).collect();
    let pods = after.pods.iter().filter_map(|pod| {
        let known = known.get(&(&*pod.namespace, &*pod.name, &*pod.uid))?;
        // All containers or none: half a pod would look like one that does half as much.
        let containers: Option<Vec<_>> = pod
            .containers
            .iter()
            .map(|container| {
                let known = known.containers.iter().find(|known| known.name == container.name)?;
                let memory = container.memory_working_set_bytes;
                let amount = amount(known.cpu_nanoseconds, container.cpu_nanoseconds, memory)?;
                Some((container.name.clone(), amount))
            })
            .collect();
        let usage = PodUsage { uid: pod.uid.clone(), containers: containers? };
        Some((format!("{}/{}", pod.namespace, pod.name), usage))
    });
    NodeUsage {
        at,
        window,
        node: amount(before.cpu_nanoseconds, after.cpu_nanoseconds, after.memory_working_set_bytes),
        pods: pods.collect(),
        received: Instant::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    /// A report with one pod of one container.
    fn report(at: i64, cpu_seconds: f64, uid: &str) -> v1::Usage {
        let cpu_nanoseconds = (cpu_seconds * 1e9) as u64;
        let container =
            v1::ContainerUsage { name: "c".into(), cpu_nanoseconds, memory_working_set_bytes: 4096 };
        v1::Usage {
            time_unix_nanos: at * SECOND,
            cpu_nanoseconds: 2 * cpu_nanoseconds,
            memory_working_set_bytes: 8192,
            pods: vec![v1::PodUsage {
                namespace: "a".into(),
                name: "p".into(),
                uid: uid.into(),
                containers: vec![container],
            }],
        }
    }

    /// Nanocores of the node and of the pod after some reports.
    fn after(reports: &[v1::Usage]) -> Option<(Option<u64>, Option<u64>)> {
        let mut gauge = Gauge::default();
        for usage in reports {
            gauge.report("n1", usage.clone(), Timestamp::UNIX_EPOCH);
        }
        let usage = gauge.read()?;
        let pod = usage.pod("a", "p").map(|pod| pod.containers[0].1.cpu_nanocores);
        Some((usage.node.map(|amount| amount.cpu_nanocores), pod))
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_differences_of_two_reports() {
        let first = report(0, 10.0, "u");
        assert_eq!(after(std::slice::from_ref(&first)), None, "one report has no rate");
        assert_eq!(
            after(&[first.clone(), report(15, 13.0, "u")]),
            Some((Some(400_000_000), Some(200_000_000)))
        );
        let soon = report(1, 99.0, "u");
        assert_eq!(after(&[first.clone(), soon]), None, "too soon after the first");
        let made_anew = [first.clone(), report(15, 13.0, "v")];
        assert_eq!(after(&made_anew), Some((Some(400_000_000), None)), "another pod of the name");
        let restarted = [first.clone(), report(15, 1.0, "u")];
        assert_eq!(after(&restarted), Some((None, None)), "counters that went back");
        let again = [first.clone(), report(15, 1.0, "u"), report(30, 2.5, "u")];
        assert_eq!(after(&again), Some((Some(200_000_000), Some(100_000_000))), "and went on");
        assert_eq!(after(&[first, report(-5, 11.0, "u")]), None, "a clock that was set back");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_stale_is_not_served() {
        let mut gauge = Gauge::default();
        gauge.report("n1", report(0, 1.0, "u"), Timestamp::UNIX_EPOCH);
        gauge.report("n1", report(15, 2.0, "u"), Timestamp::UNIX_EPOCH);
        assert!(gauge.read().is_some());
        tokio::time::advance(STALE).await;
        assert!(gauge.read().is_none());
    }
}
