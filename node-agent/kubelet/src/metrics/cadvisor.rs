//! `/metrics/cadvisor`: usage of containers and pods in cAdvisor's names, which dashboards and rules know.
//!
//! A container's series carry its name, id and image; a pod's own, of its cgroup as a whole, have them empty, as
//! cAdvisor's do.

use hawser_runtime::ContainerStats;

use super::text::{Exposition, Family, Labels, seconds, unix_seconds};
use crate::stats::network::Interface;
use crate::stats::{ContainerEntry, PodStats, Snapshot};

const USAGE: [Family<ContainerStats>; 16] = [
    ("container_cpu_usage_seconds_total", true, "Cumulative cpu time consumed in seconds.", |s| {
        seconds(s.cpu_usage_ns)
    }),
    ("container_cpu_user_seconds_total", true, "Cumulative user cpu time consumed in seconds.", |s| {
        seconds(s.cpu_user_ns)
    }),
    ("container_cpu_system_seconds_total", true, "Cumulative system cpu time consumed in seconds.", |s| {
        seconds(s.cpu_system_ns)
    }),
    ("container_cpu_cfs_periods_total", true, "Number of elapsed enforcement period intervals.", |s| {
        s.cpu_periods as f64
    }),
    ("container_cpu_cfs_throttled_periods_total", true, "Number of throttled period intervals.", |s| {
        s.cpu_throttled_periods as f64
    }),
    (
        "container_cpu_cfs_throttled_seconds_total",
        true,
        "Total time duration the container has been throttled.",
        |s| seconds(s.cpu_throttled_ns),
    ),
    (
        "container_memory_usage_bytes",
        false,
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |s| s.memory_usage_bytes as f64,
    ),
    ("container_memory_working_set_bytes", false, "Current working set in bytes.", |s| {
        s.memory_working_set_bytes as f64
    }),
    ("container_memory_rss", false, "Size of RSS in bytes.", |s| s.memory_rss_bytes as f64),
    ("container_memory_cache", false, "Number of bytes of page cache memory.", |s| {
        s.memory_cache_bytes as f64
    }),
    ("container_memory_mapped_file", false, "Size of memory mapped files in bytes.", |s| {
        s.memory_mapped_file_bytes as f64
    }),
    ("container_memory_swap", false, "Container swap usage in bytes.", |s| s.memory_swap_bytes as f64),
    ("container_memory_failures_total", true, "Cumulative count of memory allocation failures.", |s| {
        s.page_faults as f64
    }),
    ("container_oom_events_total", true, "Count of out of memory events observed for the container", |s| {
        s.oom_kills as f64
    }),
    ("container_processes", false, "Number of processes running inside the container.", |s| s.pids as f64),
    ("container_spec_memory_limit_bytes", false, "Memory limit for the container.", |s| {
        s.memory_limit_bytes.unwrap_or(0) as f64
    }),
];

const NETWORK: [Family<Interface>; 8] = [
    ("container_network_receive_bytes_total", true, "Cumulative count of bytes received", |i| {
        i.rx_bytes as f64
    }),
    ("container_network_receive_packets_total", true, "Cumulative count of packets received", |i| {
        i.rx_packets as f64
    }),
    (
        "container_network_receive_errors_total",
        true,
        "Cumulative count of errors encountered while receiving",
        |i| i.rx_errors as f64,
    ),
    (
        "container_network_receive_packets_dropped_total",
        true,
        "Cumulative count of packets dropped while receiving",
        |i| i.rx_dropped as f64,
    ),
    ("container_network_transmit_bytes_total", true, "Cumulative count of bytes transmitted", |i| {
        i.tx_bytes as f64
    }),
    ("container_network_transmit_packets_total", true, "Cumulative count of packets transmitted", |i| {
        i.tx_packets as f64
    }),
    (
        "container_network_transmit_errors_total",
        true,
        "Cumulative count of errors encountered while transmitting",
        |i| i.tx_errors as f64,
    ),
    (
        "container_network_transmit_packets_dropped_total",
        true,
        "Cumulative count of packets dropped while transmitting",
        |i| i.tx_dropped as f64,
    ),
];

pub fn render(snapshot: &Snapshot) -> String {
    let mut out = Exposition::default();
    machine(&mut out, snapshot);
    let at = Some(snapshot.at);
    for family in USAGE {
        out.family(&family);
        for pod in &snapshot.pods {
            for (entry, usage) in usages(pod) {
                out.sample(&with_kind(family.0, &Place::of(pod, entry).labels()), family.3(usage), at);
            }
        }
    }
    for family in NETWORK {
        out.family(&family);
        for pod in &snapshot.pods {
            for interface in &pod.network {
                let place = Place::of(pod, None);
                let mut labels = place.labels().to_vec();
                labels.push(("interface", &interface.name));
                out.sample(&labels, family.3(interface), at);
            }
        }
    }
    of_containers(&mut out, snapshot);
    out.finish()
}

/// The pod as a whole, then its containers.
fn usages(pod: &PodStats) -> impl Iterator<Item = (Option<&ContainerEntry>, &ContainerStats)> {
    let containers = pod.containers.iter().map(|container| (Some(container), &container.usage));
    [(None, &pod.usage)].into_iter().chain(containers)
}

/// Values of the labels that tell a pod, or one of its containers; `id` is its cgroup, as cAdvisor has it.
struct Place<'a> {
    pod: &'a PodStats,
    container: Option<&'a ContainerEntry>,
    id: String,
}

impl<'a> Place<'a> {
    fn of(pod: &'a PodStats, container: Option<&'a ContainerEntry>) -> Self {
        let id = match container {
            Some(container) => format!("{}/{}", pod.cgroup, container.id),
            None => pod.cgroup.clone(),
        };
        Self { pod, container, id }
    }

    fn labels(&self) -> [(&'a str, &str); 6] {
        let of = |text: fn(&ContainerEntry) -> &str| self.container.map_or("", text);
        [
            ("container", of(|c| &c.name)),
            ("id", &self.id),
            ("image", of(|c| &c.image)),
            ("name", of(|c| &c.id)),
            ("namespace", &self.pod.namespace),
            ("pod", &self.pod.name),
        ]
    }
}

/// Some families tell kinds apart by a further label.
fn with_kind<'a>(family: &str, labels: &[(&'a str, &'a str); 6]) -> Vec<(&'a str, &'a str)> {
    let mut labels = labels.to_vec();
    match family {
        "container_cpu_usage_seconds_total" => labels.push(("cpu", "total")),
        "container_memory_failures_total" => {
            labels.extend([("failure_type", "pgfault"), ("scope", "hierarchy")]);
        }
        _ => {}
    }
    labels
}

fn of_containers(out: &mut Exposition, snapshot: &Snapshot) {
    let at = Some(snapshot.at);
    let containers = || snapshot.pods.iter().flat_map(|pod| pod.containers.iter().map(move |c| (pod, c)));
    let help = "Start time of the container since unix epoch in seconds.";
    let family = out.gauge("container_start_time_seconds", help);
    for (pod, container) in containers() {
        let started = container.started_at.map_or(0.0, unix_seconds);
        family.sample(&Place::of(pod, Some(container)).labels(), started, at);
    }
    let help = "Number of bytes that are consumed by the container on this filesystem.";
    let family = out.gauge("container_fs_usage_bytes", help);
    for (pod, container) in containers() {
        let (layer, _) = pod.container_disk(&container.name);
        family.sample(&Place::of(pod, Some(container)).labels(), layer.bytes as f64, at);
    }
}

fn machine(out: &mut Exposition, snapshot: &Snapshot) {
    let none: Labels<'_> = &[];
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    out.gauge("machine_cpu_cores", "Number of logical CPU cores.").sample(none, cores as f64, None);
    let memory = snapshot.node.memory_total_bytes as f64;
    out.gauge("machine_memory_bytes", "Amount of memory installed on the machine.")
        .sample(none, memory, None);
}
