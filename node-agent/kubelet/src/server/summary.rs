//! `/stats/summary`: what the node, its pods and their containers use now.

use std::collections::BTreeMap;

use hawser_runtime::{ContainerState, ContainerStats};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Backend, Refusal};

pub(super) async fn summary(backend: &Backend) -> Result<Value, Refusal> {
    let failed = |error: hawser_runtime::Error| Refusal::internal(error.to_string());
    let runtime = &backend.runtime;
    let mut containers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for container in runtime.list_containers().await.map_err(failed)? {
        if container.state != ContainerState::Running {
            continue;
        }
        let Some(stats) = runtime.stats(&container.id).await.map_err(failed)? else { continue };
        let mut entry = usage(&stats, Timestamp::now());
        entry["name"] = json!(container.name);
        entry["startTime"] = json!(container.started_at);
        containers.entry(container.pod_uid).or_default().push(entry);
    }
    let mut pods = Vec::new();
    for sandbox in runtime.list_pod_sandboxes().await.map_err(failed)? {
        let pod = sandbox.config;
        let stats = runtime.pod_stats(&pod.pod_uid).await.map_err(failed)?.unwrap_or_default();
        let mut entry = usage(&stats, Timestamp::now());
        entry["podRef"] = json!({ "name": pod.pod_name, "namespace": pod.pod_namespace, "uid": pod.pod_uid });
        entry["startTime"] = json!(sandbox.created_at);
        entry["containers"] = json!(containers.remove(&pod.pod_uid).unwrap_or_default());
        pods.push(entry);
    }
    let mut node = node_usage();
    node["nodeName"] = json!(backend.node_name);
    Ok(json!({ "node": node, "pods": pods }))
}

fn usage(stats: &ContainerStats, now: Timestamp) -> Value {
    json!({
        "cpu": { "time": now, "usageCoreNanoSeconds": stats.cpu_usage_ns },
        "memory": {
            "time": now,
            "usageBytes": stats.memory_usage_bytes,
            "workingSetBytes": stats.memory_working_set_bytes,
            "rssBytes": stats.memory_rss_bytes,
        },
        "process_stats": { "process_count": stats.pids },
    })
}

/// The whole machine's, from /proc.
fn node_usage() -> Value {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| -> u64 {
        let line = memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let (total, available) = (kib("MemTotal") * 1024, kib("MemAvailable") * 1024);
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    json!({
        "cpu": { "time": Timestamp::now(), "usageCoreNanoSeconds": busy_ns(&stat) },
        "memory": {
            "time": Timestamp::now(),
            "availableBytes": available,
            "usageBytes": total.saturating_sub(kib("MemFree") * 1024),
            "workingSetBytes": total.saturating_sub(available),
        },
    })
}

/// Time that processors were not idle, from the first line of /proc/stat, in ticks of 10 ms.
fn busy_ns(stat: &str) -> u64 {
    let ticks: Vec<u64> =
        stat.lines().next().unwrap_or("").split_whitespace().skip(1).filter_map(|t| t.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user already.
    let busy: u64 =
        ticks.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, t)| t).sum();
    busy * 10_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_counted() {
        assert_eq!(busy_ns("cpu  1 2 3 1000 2000 4 5 6 70 80\ncpu0 9"), 21 * 10_000_000);
        assert_eq!(busy_ns(""), 0);
    }
}
