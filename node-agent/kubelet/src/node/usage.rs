//! What the node and its pods use now, as the node stream carries it.

use hawser_api::v1::{ContainerUsage, PodUsage, Usage};

use crate::stats::{ContainerEntry, PodStats, Snapshot};

/// Counters since boot; the receiver takes differences. Pods of which nothing runs are left out.
pub fn usage(snapshot: &Snapshot) -> Usage {
    Usage {
        time_unix_nanos: i64::try_from(snapshot.at.as_nanosecond()).unwrap_or(i64::MAX),
        cpu_nanoseconds: snapshot.node.cpu.usage_ns,
        memory_working_set_bytes: snapshot.node.working_set_bytes(),
        pods: snapshot.pods.iter().filter(|pod| !pod.containers.is_empty()).map(of_pod).collect(),
    }
}

fn of_pod(pod: &PodStats) -> PodUsage {
    let containers = pod.containers.iter().map(|ContainerEntry { name, usage, .. }| ContainerUsage {
        name: name.clone(),
        cpu_nanoseconds: usage.cpu_usage_ns,
        memory_working_set_bytes: usage.memory_working_set_bytes,
    });
    PodUsage {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        containers: containers.collect(),
    }
}
