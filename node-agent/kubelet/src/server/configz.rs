//! `/configz`: how the kubelet is set, in the fields of upstream's KubeletConfiguration.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::config::{Config, Reserved};
use crate::cpus::CpuPolicy;
use crate::eviction::thresholds::{Amount, Threshold};
use crate::locality::Policy;
use crate::pod::back_off::go_duration;
use crate::quantity::binary_si;

pub(super) fn configz(config: &Config) -> Value {
    let eviction = &config.eviction;
    let (hard, soft): (Vec<&Threshold>, Vec<&Threshold>) =
        eviction.thresholds.iter().partition(|threshold| threshold.is_hard());
    let dns: Vec<String> = config.cluster_dns.iter().map(ToString::to_string).collect();
    let settings = json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "port": config.port,
        "podLogsDir": config.log_dir,
        "cgroupRoot": config.cgroup_root,
        "clusterDNS": dns,
        "clusterDomain": config.cluster_domain,
        "resolvConf": config.resolv_conf,
        "maxPods": config.max_pods,
        "staticPodPath": config.static_pod_path,
        "cpuManagerPolicy": match &config.cpu_policy {
            CpuPolicy::None => "none",
            CpuPolicy::Static { .. } => "static",
        },
        "topologyManagerPolicy": match config.topology_policy {
            Policy::None => "none",
            Policy::BestEffort => "best-effort",
            Policy::Restricted => "restricted",
            Policy::SingleNumaNode => "single-numa-node",
        },
        "topologyManagerScope": "container",
        "reservedSystemCPUs": match &config.cpu_policy {
            CpuPolicy::None => String::new(),
            CpuPolicy::Static { reserved, .. } => reserved.to_string(),
        },
        "podPidsLimit": config.pod_pids_limit.unwrap_or(-1),
        "maxParallelImagePulls": config.max_parallel_pulls,
        "serializeImagePulls": config.max_parallel_pulls == 1,
        "allowedUnsafeSysctls": config.allowed_unsafe_sysctls,
        "kubeReserved": reserved(&config.kube_reserved),
        "systemReserved": reserved(&config.system_reserved),
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": [if config.enforce_node_allocatable { "pods" } else { "none" }],
        "nodeLeaseDurationSeconds": config.lease_duration.as_secs(),
        "nodeStatusUpdateFrequency": go_duration(config.status_interval),
        "volumeStatsAggPeriod": go_duration(config.volume_stats_interval),
        "imageMinimumGCAge": go_duration(config.image_gc.min_age),
        "imageGCHighThresholdPercent": config.image_gc.high_percent,
        "imageGCLowThresholdPercent": config.image_gc.low_percent,
        "evictionHard": by_signal(&hard, |t| amount(t.value)),
        "evictionSoft": by_signal(&soft, |t| amount(t.value)),
        "evictionSoftGracePeriod": by_signal(&soft, |t| go_duration(t.grace)),
        "evictionPressureTransitionPeriod": go_duration(eviction.transition_period),
        "evictionMaxPodGracePeriod": eviction.max_pod_grace.as_secs(),
    });
    json!({ "kubeletconfig": settings })
}

fn by_signal(
    thresholds: &[&Threshold],
    value: impl Fn(&Threshold) -> String,
) -> BTreeMap<&'static str, String> {
    thresholds.iter().map(|threshold| (threshold.signal.as_str(), value(threshold))).collect()
}

fn amount(amount: Amount) -> String {
    match amount {
        Amount::Absolute(amount) => binary_si(amount),
        Amount::Percent(percent) => format!("{percent}%"),
    }
}

fn reserved(reserved: &Reserved) -> BTreeMap<&'static str, String> {
    let amounts = [
        ("cpu", reserved.cpu_millis, format!("{}m", reserved.cpu_millis)),
        ("memory", reserved.memory_bytes, binary_si(reserved.memory_bytes)),
        ("ephemeral-storage", reserved.ephemeral_bytes, binary_si(reserved.ephemeral_bytes)),
        ("pid", reserved.pids, reserved.pids.to_string()),
    ];
    amounts.into_iter().filter(|(_, amount, _)| *amount > 0).map(|(name, _, text)| (name, text)).collect()
}
