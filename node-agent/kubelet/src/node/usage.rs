//! What the node and its pods use now, for the node stream and the summary.

use std::sync::Arc;

use hawser_api::v1::{ContainerUsage, PodUsage, Usage};
use hawser_runtime::{ContainerState, Runtime};
use jiff::Timestamp;

use super::machine::{cpu_usage_ns, meminfo};
use crate::manager::Pods;

/// Counters since boot; the receiver takes differences. Containers that do not run are left out.
pub async fn usage(runtime: &Arc<dyn Runtime>, pods: &Pods) -> Usage {
    let mut out = Vec::new();
    for view in pods.all() {
        let meta = &view.pod.metadata;
        let mut containers = Vec::new();
        for (name, (current, _)) in &view.containers {
            let running = current.as_ref().filter(|c| c.state == ContainerState::Running);
            let Some(container) = running else { continue };
            let Ok(Some(stats)) = runtime.stats(&container.id).await else { continue };
            containers.push(ContainerUsage {
                name: name.clone(),
                cpu_nanoseconds: stats.cpu_usage_ns,
                memory_working_set_bytes: stats.memory_working_set_bytes,
            });
        }
        if !containers.is_empty() {
            let namespace = meta.namespace.clone().unwrap_or_default();
            out.push(PodUsage { namespace, name: meta.name.clone().unwrap_or_default(), containers });
        }
    }
    let total = meminfo("MemTotal").unwrap_or(0);
    Usage {
        time_unix_nanos: i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX),
        cpu_nanoseconds: cpu_usage_ns().unwrap_or(0),
        memory_working_set_bytes: total.saturating_sub(meminfo("MemAvailable").unwrap_or(total)),
        pods: out,
    }
}
