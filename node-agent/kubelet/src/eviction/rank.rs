//! Who goes first when something runs short, in upstream's order; and what each pod is told.

use std::cmp::Reverse;

use hawser_runtime::DiskUsage;

use super::thresholds::{Level, Signal, Threshold};
use crate::container::resources::pod_request;
use crate::pod::DesiredPod;
use crate::pod::qos::request;
use crate::quantity::binary_si;
use crate::static_pods::is_static;
use crate::stats::PodStats;

/// A pod that may go.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub pod: DesiredPod,
    pub stats: PodStats,
}

/// Whether images and layers share the file system of volumes and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystems {
    One,
    Two,
}

/// Priority from which a pod is critical: `system-cluster-critical` and above.
const CRITICAL: i32 = 2_000_000_000;

/// Critical and static pods are never evicted.
pub fn is_critical(pod: &DesiredPod) -> bool {
    is_static(&pod.object) || pod.spec().priority.unwrap_or(0) >= CRITICAL
}

/// Orders the pods: the first one goes first. Those that use more than they asked for come before all others, then
/// those of lower priority, then those that use more beyond what they asked for.
pub fn rank(pods: &mut [Candidate], signal: Signal, systems: FileSystems) {
    pods.sort_by_cached_key(|candidate| {
        let priority = candidate.pod.spec().priority.unwrap_or(0);
        let used = used(candidate, signal, systems);
        let asked = asked(candidate, signal);
        // The number of processes alone is no reason to go before others.
        let exceeds = signal == Signal::PidAvailable || used > asked;
        let beyond = i128::from(used) - i128::from(asked);
        (!exceeds, priority, Reverse(beyond))
    });
}

fn used(candidate: &Candidate, signal: Signal, systems: FileSystems) -> u64 {
    let stats = &candidate.stats;
    match signal {
        Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => stats.usage.memory_working_set_bytes,
        Signal::PidAvailable => stats.usage.pids,
        Signal::NodefsAvailable | Signal::ImagefsAvailable => disk(stats, signal, systems).bytes,
        Signal::NodefsInodesFree | Signal::ImagefsInodesFree => disk(stats, signal, systems).inodes,
    }
}

/// What the pod takes of the file system that runs short.
fn disk(stats: &PodStats, signal: Signal, systems: FileSystems) -> DiskUsage {
    if systems == FileSystems::One {
        return stats.disk.ephemeral();
    }
    let is_image_fs = matches!(signal, Signal::ImagefsAvailable | Signal::ImagefsInodesFree);
    let containers = stats.disk.containers.values();
    if is_image_fs {
        return crate::stats::disk::sum(containers.map(|c| c.layer));
    }
    let volumes = stats.disk.volumes.values().filter(|v| v.is_ephemeral).map(|v| v.usage);
    crate::stats::disk::sum(volumes.chain(containers.map(|c| c.logs)))
}

fn asked(candidate: &Candidate, signal: Signal) -> u64 {
    let amount = match signal {
        Signal::MemoryAvailable
        | Signal::AllocatableMemoryAvailable
        | Signal::NodefsAvailable
        | Signal::ImagefsAvailable => pod_request(candidate.pod.spec(), signal.resource()),
        _ => 0,
    };
    u64::try_from(amount).unwrap_or(0)
}

/// What a pod that goes is told: what was low, by how much, and which of its containers took more than they asked for.
pub fn message(candidate: &Candidate, threshold: &Threshold, level: Level) -> String {
    let resource = threshold.signal.resource();
    let amount = |n: u64| match threshold.signal {
        Signal::PidAvailable | Signal::NodefsInodesFree | Signal::ImagefsInodesFree => n.to_string(),
        _ => binary_si(n),
    };
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        amount(threshold.value.of(level.capacity)),
        amount(level.available)
    );
    for container in &candidate.stats.containers {
        let Some(desired) = candidate.pod.container(&container.name) else { continue };
        let (layer, logs) = candidate.stats.container_disk(&container.name);
        let used = match resource {
            "memory" => container.usage.memory_working_set_bytes,
            "ephemeral-storage" => layer.bytes + logs.bytes,
            _ => continue,
        };
        let asked = u64::try_from(request(&desired.spec, resource)).unwrap_or(0);
        if used > asked {
            text.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
                container.name,
                binary_si(used),
                binary_si(asked)
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::thresholds::Amount;
    use super::*;
    use crate::pod::testing::{pod, spec, with_resources};
    use crate::stats::ContainerEntry;
    use hawser_runtime::ContainerStats;

    fn candidate(name: &str, priority: i32, request: &str, used: u64, pids: u64) -> Candidate {
        let mut spec = spec("Always", vec![], vec![with_resources(name, &[("memory", request)], &[])]);
        spec.priority = Some(priority);
        let usage = ContainerStats { memory_working_set_bytes: used, pids, ..ContainerStats::default() };
        let container = ContainerEntry { name: name.into(), usage, ..ContainerEntry::default() };
        let stats = PodStats { name: name.into(), usage, containers: vec![container], ..PodStats::default() };
        Candidate { pod: pod(spec), stats }
    }

    fn order(mut pods: Vec<Candidate>, signal: Signal) -> Vec<String> {
        rank(&mut pods, signal, FileSystems::One);
        pods.into_iter().map(|p| p.stats.name).collect()
    }

    #[test]
    fn who_takes_more_than_asked_goes_first() {
        let pods = || {
            vec![
                candidate("modest-low", 0, "100", 90, 50),
                candidate("greedy-high", 1000, "100", 500, 1),
                candidate("greedy-low", 0, "100", 200, 2),
                candidate("greedier-low", 0, "100", 300, 3),
                candidate("modest-high", 1000, "100", 10, 9),
            ]
        };
        let by_memory = order(pods(), Signal::MemoryAvailable);
        assert_eq!(by_memory, ["greedier-low", "greedy-low", "greedy-high", "modest-low", "modest-high"]);
        let by_pids = order(pods(), Signal::PidAvailable);
        assert_eq!(by_pids, ["modest-low", "greedier-low", "greedy-low", "modest-high", "greedy-high"]);
    }

    #[test]
    fn pod_is_told_what_was_low_and_what_it_used() {
        let threshold = Threshold::hard(Signal::MemoryAvailable, Amount::Absolute(100 << 20));
        let level = Level { available: 90 << 20, capacity: 1 << 30 };
        let greedy = candidate("web", 0, "1Mi", 2 << 20, 1);
        assert_eq!(
            message(&greedy, &threshold, level),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. \
             Container web was using 2Mi, request is 1Mi, has larger consumption of memory. "
        );
    }

    #[test]
    fn critical_and_static_pods_are_known() {
        assert!(!is_critical(&candidate("a", 1000, "1", 1, 1).pod));
        assert!(is_critical(&candidate("a", CRITICAL, "1", 1, 1).pod));
    }
}
