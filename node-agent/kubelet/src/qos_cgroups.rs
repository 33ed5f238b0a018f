//! The tree of cgroups that pods' own are in: `kubepods`, and below it `burstable` and `besteffort`.
//!
//! Guaranteed pods are in `kubepods` itself, as under upstream's kubelet, so that what is left of the CPU is shared
//! between them and the other classes as wholes. What pods may have together is the limit of `kubepods`
//! (`enforceNodeAllocatable: pods`). Deciding is pure ([`plan`]); [`QosCgroups`] writes, before a pod's group is made and
//! once a minute, in case that others have written meanwhile.

use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{Resources, Runtime};
use k8s_openapi::api::core::v1::PodSpec;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::Config;
use crate::container::resources::{NodeCapacity, pod_request, shares};
use crate::events::{EventType, Recorder, node_reference};
use crate::manager::Pods;
use crate::pod::qos::{QosClass, qos_class};

/// Upstream's.
const INTERVAL: Duration = Duration::from_mins(1);

/// The group that a pod's is made in: the level of its class.
pub fn level(cgroup_root: &str, class: QosClass) -> String {
    let root = cgroup_root.trim_end_matches('/');
    match class {
        QosClass::Guaranteed => format!("{root}/kubepods"),
        QosClass::Burstable => format!("{root}/kubepods/burstable"),
        QosClass::BestEffort => format!("{root}/kubepods/besteffort"),
    }
}

/// The group of a pod.
pub fn pod_group(cgroup_root: &str, spec: &PodSpec, uid: &str) -> String {
    format!("{}/pod{uid}", level(cgroup_root, qos_class(spec)))
}

/// What all pods may have together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub amounts: NodeCapacity,
    pub pids: Option<i64>,
}

impl Bounds {
    /// What is kept free by evictions is not taken off: pods may use it until they are evicted for it.
    pub fn of(config: &Config, capacity: NodeCapacity, pid_max: Option<u64>) -> Self {
        let amounts = if config.enforce_node_allocatable { config.unreserved(capacity) } else { capacity };
        let reserved = match config.enforce_node_allocatable {
            true => config.kube_reserved.pids.saturating_add(config.system_reserved.pids),
            false => 0,
        };
        let pids = pid_max.and_then(|max| i64::try_from(max.saturating_sub(reserved)).ok());
        Self { amounts, pids }
    }
}

/// The levels with their limits, outer ones first. `pods` are those that have not ended.
pub fn plan<'a>(
    cgroup_root: &str,
    bounds: Bounds,
    pods: impl IntoIterator<Item = &'a PodSpec>,
) -> Vec<(String, Resources)> {
    let burstable = pods.into_iter().filter(|spec| qos_class(spec) == QosClass::Burstable);
    let burstable_cpu = burstable.map(|spec| pod_request(spec, "cpu")).fold(0, i64::saturating_add);
    let all = Resources {
        cpu_shares: Some(shares(bounds.amounts.cpu_millis)),
        memory_limit_bytes: Some(bounds.amounts.memory_bytes).filter(|bytes| *bytes > 0),
        pids_limit: bounds.pids,
        ..Resources::default()
    };
    let with_shares = |cpu: i64| Resources { cpu_shares: Some(shares(cpu)), ..Resources::default() };
    vec![
        (level(cgroup_root, QosClass::Guaranteed), all),
        (level(cgroup_root, QosClass::Burstable), with_shares(burstable_cpu)),
        (level(cgroup_root, QosClass::BestEffort), with_shares(0)),
    ]
}

/// Keeps the levels as they should be.
pub struct QosCgroups {
    cgroup_root: String,
    node_name: String,
    bounds: Bounds,
    runtime: Arc<dyn Runtime>,
    pods: Pods,
    recorder: Recorder,
    /// What was written last; held while it is written, so that an older plan never overwrites a newer one.
    written: tokio::sync::Mutex<Written>,
}

#[derive(Default)]
struct Written {
    levels: Vec<(String, Resources)>,
    /// Whether the last write of all pods' bounds worked; `None` before the first.
    is_enforced: Option<bool>,
}

impl QosCgroups {
    pub fn new(
        config: &Config,
        bounds: Bounds,
        runtime: Arc<dyn Runtime>,
        pods: Pods,
        recorder: Recorder,
    ) -> Self {
        Self {
            cgroup_root: config.cgroup_root.clone(),
            node_name: config.node_name.clone(),
            bounds,
            runtime,
            pods,
            recorder,
            written: tokio::sync::Mutex::default(),
        }
    }

    /// Writes everything again each minute, until the token is cancelled.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(INTERVAL);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            self.written.lock().await.levels.clear();
            self.update().await;
        }
    }

    /// Writes what has changed since. What cannot be written is logged, and tried again with the next pod or minute: a
    /// pod is better started with the shares of a minute ago than not at all.
    pub async fn update(&self) {
        let mut written = self.written.lock().await;
        let pods = self.pods.objects();
        let active = pods.iter().filter_map(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            pod.spec.as_ref().filter(|_| !matches!(phase, Some("Succeeded" | "Failed")))
        });
        for (index, (group, limits)) in plan(&self.cgroup_root, self.bounds, active).into_iter().enumerate() {
            let same = |(known, had): &(String, Resources)| *known == group && *had == limits;
            if written.levels.iter().any(same) {
                continue;
            }
            let outcome = self.runtime.update_group(&group, &limits).await;
            if index == 0 {
                self.tell(&mut written, &group, outcome.as_ref().err());
            }
            written.levels.retain(|(known, _)| *known != group);
            match outcome {
                Ok(()) => written.levels.push((group, limits)),
                Err(error) => {
                    warn!(group, error = &error as &dyn std::error::Error, "cgroup of pods was not updated");
                }
            }
        }
    }

    /// The first success, each first failure, and what ends it, are events of the node.
    fn tell(&self, written: &mut Written, group: &str, error: Option<&hawser_runtime::Error>) {
        if written.is_enforced.replace(error.is_none()) == Some(error.is_none()) {
            return;
        }
        let node = node_reference(&self.node_name);
        match error {
            None => {
                let message = "Updated Node Allocatable limit across pods".to_owned();
                self.recorder.event(node, EventType::Normal, "NodeAllocatableEnforced", message);
            }
            Some(error) => {
                let message = format!("Failed to update Node Allocatable Limits {group:?}: {error}");
                self.recorder.event(node, EventType::Warning, "FailedNodeAllocatableEnforcement", message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Reserved;
    use crate::pod::testing::{UID, spec, with_resources};

    fn asking(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> PodSpec {
        spec("Always", vec![], vec![with_resources("c", requests, limits)])
    }

    #[test]
    fn pods_are_below_the_level_of_their_class() {
        let group = |spec: &PodSpec| pod_group("/hawser/n1/", spec, UID);
        let whole = [("cpu", "1"), ("memory", "1Gi")];
        assert_eq!(group(&asking(&[], &whole)), format!("/hawser/n1/kubepods/pod{UID}"));
        assert_eq!(group(&asking(&[("cpu", "1m")], &[])), format!("/hawser/n1/kubepods/burstable/pod{UID}"));
        assert_eq!(group(&asking(&[], &[])), format!("/hawser/n1/kubepods/besteffort/pod{UID}"));
    }

    #[test]
    fn shares_of_a_level_follow_from_what_its_pods_ask_for() {
        let bounds = Bounds {
            amounts: NodeCapacity { cpu_millis: 3500, memory_bytes: 5 << 30, ephemeral_bytes: 0 },
            pids: Some(30_000),
        };
        let check = |name: &str, pods: &[PodSpec], burstable: u64| {
            let levels = plan("/r", bounds, pods);
            let shown: Vec<_> = levels
                .iter()
                .map(|(group, limits)| {
                    (group.as_str(), limits.cpu_shares, limits.memory_limit_bytes, limits.pids_limit)
                })
                .collect();
            let expected = [
                ("/r/kubepods", Some(3584), Some(5 << 30), Some(30_000)),
                ("/r/kubepods/burstable", Some(burstable), None, None),
                ("/r/kubepods/besteffort", Some(2), None, None),
            ];
            assert_eq!(shown, expected, "{name}");
        };
        let burstable = |cpu: &str| asking(&[("cpu", cpu)], &[]);
        let guaranteed = asking(&[], &[("cpu", "2"), ("memory", "1Gi")]);
        check("no pod", &[], 2);
        check("best effort counts for nothing", &[asking(&[], &[])], 2);
        check("guaranteed counts elsewhere", std::slice::from_ref(&guaranteed), 2);
        check("burstable", &[burstable("250m"), guaranteed, burstable("750m")], 1024);
        check("without CPU", &[asking(&[("memory", "1Gi")], &[])], 2);
        check("more than any node has", &[burstable("1M")], 262_144);
    }

    #[test]
    fn bounds_are_without_what_is_reserved_where_that_is_enforced() {
        let mut config = Config::new("n", [127, 0, 0, 1].into(), "/tmp/none");
        let reserved = Reserved { cpu_millis: 500, memory_bytes: 1 << 30, pids: 1000, ..Reserved::default() };
        (config.kube_reserved, config.system_reserved) = (reserved, reserved);
        let capacity = NodeCapacity { cpu_millis: 4000, memory_bytes: 3 << 30, ephemeral_bytes: 0 };
        let bounds = Bounds::of(&config, capacity, Some(32_768));
        assert_eq!((bounds.amounts.cpu_millis, bounds.amounts.memory_bytes), (3000, 1 << 30));
        assert_eq!(bounds.pids, Some(30_768));
        config.enforce_node_allocatable = false;
        assert_eq!(Bounds::of(&config, capacity, Some(32_768)).amounts, capacity);
        config.enforce_node_allocatable = true;
        config.kube_reserved.memory_bytes = 64 << 30;
        let nothing = Bounds::of(&config, capacity, None);
        assert_eq!((nothing.amounts.memory_bytes, nothing.pids), (0, None));
        assert_eq!(plan("/r", nothing, &[])[0].1.memory_limit_bytes, None, "not a limit that kills all");
    }
}
