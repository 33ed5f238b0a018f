//! `/stats/summary`: what the node, its pods and their containers use now, in upstream's shape (`stats/v1alpha1`).

use hawser_runtime::{ContainerStats, DiskUsage};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::stats::disk::{FsStats, VolumeDisk};
use crate::stats::network::Interface;
use crate::stats::{ContainerEntry, Cpu, NodeStats, PodStats, Snapshot};

pub(super) fn summary(node_name: &str, snapshot: &Snapshot) -> Value {
    let pods: Vec<Value> = snapshot.pods.iter().map(|p| pod(p, &snapshot.node, snapshot.at)).collect();
    let mut node = node(&snapshot.node, snapshot.at);
    node["nodeName"] = json!(node_name);
    json!({ "node": node, "pods": pods })
}

fn node(stats: &NodeStats, now: Timestamp) -> Value {
    let mut node = json!({
        "cpu": cpu(stats.cpu, now),
        "memory": {
            "time": now,
            "availableBytes": stats.memory_available_bytes,
            "usageBytes": stats.memory_total_bytes.saturating_sub(stats.memory_free_bytes),
            "workingSetBytes": stats.working_set_bytes(),
        },
        "swap": {
            "time": now,
            "swapAvailableBytes": stats.swap_free_bytes,
            "swapUsageBytes": stats.swap_total_bytes.saturating_sub(stats.swap_free_bytes),
        },
        "rlimit": { "time": now, "maxpid": stats.pids_max, "curproc": stats.pids },
    });
    put(&mut node, "network", network(&stats.network, now));
    put(&mut node, "fs", stats.fs.map(|fs| whole_fs(&fs, now)));
    put(
        &mut node,
        "runtime",
        stats.image_fs.map(|fs| json!({ "imageFs": whole_fs(&fs, now), "containerFs": whole_fs(&fs, now) })),
    );
    node
}

fn pod(pod: &PodStats, node: &NodeStats, now: Timestamp) -> Value {
    let containers: Vec<Value> = pod.containers.iter().map(|c| container(c, pod, node, now)).collect();
    let mut value = usage(pod.cpu, &pod.usage, now);
    value["podRef"] = json!({ "name": pod.name, "namespace": pod.namespace, "uid": pod.uid });
    value["process_stats"] = json!({ "process_count": pod.usage.pids });
    value["containers"] = json!(containers);
    put(&mut value, "startTime", pod.started_at.map(|at| json!(at)));
    put(&mut value, "network", network(&pod.network, now));
    put(&mut value, "ephemeral-storage", node.fs.map(|fs| part_of_fs(&fs, pod.disk.ephemeral(), now)));
    if !pod.disk.volumes.is_empty() {
        let volumes =
            pod.disk.volumes.iter().map(|(name, volume)| of_volume(name, volume, &pod.namespace, now));
        value["volume"] = volumes.collect();
    }
    value
}

fn container(container: &ContainerEntry, pod: &PodStats, node: &NodeStats, now: Timestamp) -> Value {
    let (layer, logs) = pod.container_disk(&container.name);
    let mut value = usage(container.cpu, &container.usage, now);
    value["name"] = json!(container.name);
    put(&mut value, "startTime", container.started_at.map(|at| json!(at)));
    put(&mut value, "rootfs", node.image_fs.map(|fs| part_of_fs(&fs, layer, now)));
    put(&mut value, "logs", node.fs.map(|fs| part_of_fs(&fs, logs, now)));
    value
}

fn of_volume(name: &str, volume: &VolumeDisk, namespace: &str, now: Timestamp) -> Value {
    let mut value = part_of_fs(&volume.fs, volume.usage, now);
    value["name"] = json!(name);
    let claim = volume.claim.as_ref().map(|claim| json!({ "name": claim, "namespace": namespace }));
    put(&mut value, "pvcRef", claim);
    value
}

fn put(object: &mut Value, field: &str, value: Option<Value>) {
    if let Some(value) = value {
        object[field] = value;
    }
}

fn usage(cpu_time: Cpu, stats: &ContainerStats, now: Timestamp) -> Value {
    let mut value = json!({
        "cpu": cpu(cpu_time, now),
        "memory": {
            "time": now,
            "usageBytes": stats.memory_usage_bytes,
            "workingSetBytes": stats.memory_working_set_bytes,
            "rssBytes": stats.memory_rss_bytes,
            "pageFaults": stats.page_faults,
            "majorPageFaults": stats.major_page_faults,
        },
        "swap": { "time": now, "swapUsageBytes": stats.memory_swap_bytes },
    });
    let available = stats.memory_limit_bytes.map(|l| l.saturating_sub(stats.memory_working_set_bytes));
    put(&mut value["memory"], "availableBytes", available.map(|bytes| json!(bytes)));
    value
}

fn cpu(cpu: Cpu, now: Timestamp) -> Value {
    let mut value = json!({ "time": now, "usageCoreNanoSeconds": cpu.usage_ns });
    put(&mut value, "usageNanoCores", cpu.nano_cores.map(|rate| json!(rate)));
    value
}

/// The first interface stands for the whole, as upstream has it; `eth0` is first where there is one.
fn network(interfaces: &[Interface], now: Timestamp) -> Option<Value> {
    let first = interfaces.iter().find(|i| i.name == "eth0").or(interfaces.first())?;
    let mut value = interface(first);
    value["time"] = json!(now);
    value["interfaces"] = interfaces.iter().map(interface).collect();
    Some(value)
}

fn interface(interface: &Interface) -> Value {
    json!({
        "name": interface.name,
        "rxBytes": interface.rx_bytes,
        "rxErrors": interface.rx_errors,
        "txBytes": interface.tx_bytes,
        "txErrors": interface.tx_errors,
    })
}

fn whole_fs(fs: &FsStats, now: Timestamp) -> Value {
    part_of_fs(fs, DiskUsage { bytes: fs.used_bytes(), inodes: fs.inodes_used() }, now)
}

fn part_of_fs(fs: &FsStats, usage: DiskUsage, now: Timestamp) -> Value {
    json!({
        "time": now,
        "availableBytes": fs.available_bytes,
        "capacityBytes": fs.capacity_bytes,
        "usedBytes": usage.bytes,
        "inodesFree": fs.inodes_free,
        "inodes": fs.inodes,
        "inodesUsed": usage.inodes,
    })
}
