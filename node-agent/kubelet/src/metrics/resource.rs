//! `/metrics/resource`: what an autoscaler needs, in upstream's names (KEP-727).

use super::text::{Exposition, Family, seconds, unix_seconds};
use crate::stats::{ContainerEntry, PodStats, Snapshot};

pub fn render(snapshot: &Snapshot) -> String {
    let at = Some(snapshot.at);
    let mut out = Exposition::default();
    containers(&mut out, snapshot);
    let node = &snapshot.node;
    out.counter("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds")
        .sample(&[], seconds(node.cpu.usage_ns), at);
    out.gauge("node_memory_working_set_bytes", "Current working set of the node in bytes").sample(
        &[],
        node.working_set_bytes() as f64,
        at,
    );
    let swap = node.swap_total_bytes.saturating_sub(node.swap_free_bytes);
    out.gauge("node_swap_usage_bytes", "Current swap usage of the node in bytes").sample(
        &[],
        swap as f64,
        at,
    );
    pods(&mut out, snapshot);
    out.gauge(
        "resource_scrape_error",
        "1 if there was an error while getting container metrics, 0 otherwise",
    )
    .sample(&[], 0.0, None);
    out.finish()
}

const CONTAINERS: [Family<ContainerEntry>; 4] = [
    (
        "container_cpu_usage_seconds_total",
        true,
        "Cumulative cpu time consumed by the container in core-seconds",
        |c| seconds(c.usage.cpu_usage_ns),
    ),
    ("container_memory_working_set_bytes", false, "Current working set of the container in bytes", |c| {
        c.usage.memory_working_set_bytes as f64
    }),
    ("container_start_time_seconds", false, "Start time of the container since unix epoch in seconds", |c| {
        c.started_at.map_or(0.0, unix_seconds)
    }),
    (
        "container_swap_usage_bytes",
        false,
        "Current amount of the container swap usage in bytes. Reported only on non-windows systems",
        |c| c.usage.memory_swap_bytes as f64,
    ),
];

const PODS: [Family<PodStats>; 3] = [
    ("pod_cpu_usage_seconds_total", true, "Cumulative cpu time consumed by the pod in core-seconds", |pod| {
        seconds(pod.usage.cpu_usage_ns)
    }),
    ("pod_memory_working_set_bytes", false, "Current working set of the pod in bytes", |pod| {
        pod.usage.memory_working_set_bytes as f64
    }),
    (
        "pod_swap_usage_bytes",
        false,
        "Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
        |pod| pod.usage.memory_swap_bytes as f64,
    ),
];

fn containers(out: &mut Exposition, snapshot: &Snapshot) {
    for family in CONTAINERS {
        out.family(&family);
        for pod in &snapshot.pods {
            for container in &pod.containers {
                let labels =
                    [("container", &*container.name), ("namespace", &*pod.namespace), ("pod", &*pod.name)];
                out.sample(&labels, family.3(container), Some(snapshot.at));
            }
        }
    }
}

fn pods(out: &mut Exposition, snapshot: &Snapshot) {
    for family in PODS {
        out.family(&family);
        for pod in &snapshot.pods {
            let labels = [("namespace", &*pod.namespace), ("pod", &*pod.name)];
            out.sample(&labels, family.3(pod), Some(snapshot.at));
        }
    }
}
