//! `/configz`: how the kubelet is set, in the fields of upstream's KubeletConfiguration.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::config::{Config, Reserved};
use crate::cpus::CpuPolicy;
use crate::eviction::Eviction;
use crate::eviction::thresholds::{Amount, Threshold};
use crate::images::access::Verification;
use crate::locality::Policy;
use crate::memory::MemoryPolicy;
use crate::node::parse_taint;
use crate::pod::back_off::go_duration;
use crate::quantity::binary_si;
use crate::server::ServerSettings;

pub(super) fn configz(config: &Config) -> Value {
    let dns: Vec<String> = config.cluster_dns.iter().map(ToString::to_string).collect();
    let mut settings = server_settings(&config.server);
    let others = json!({
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
        "seccompDefault": config.seccomp_default,
        "singleProcessOOMKill": config.single_process_oom_kill,
        "eventRecordQPS": config.event_rate.per_second,
        "eventBurst": config.event_rate.burst,
        "registerWithTaints": config.taints.iter().filter_map(|taint| parse_taint(taint)).collect::<Vec<_>>(),
        "providerID": config.provider_id,
        "memoryManagerPolicy": match &config.memory_policy {
            MemoryPolicy::None => "None",
            MemoryPolicy::Static(_) => "Static",
        },
        "allowedUnsafeSysctls": config.allowed_unsafe_sysctls,
        "kubeReserved": reserved(&config.kube_reserved),
        "systemReserved": reserved(&config.system_reserved),
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": [if config.enforce_node_allocatable { "pods" } else { "none" }],
        "nodeLeaseDurationSeconds": config.lease_duration.as_secs(),
        "nodeStatusUpdateFrequency": go_duration(config.status_interval),
        "nodeStatusReportFrequency": go_duration(config.status_report_interval),
        "nodeStatusMaxImages": config.status_max_images.map_or(json!(-1), |most| json!(most)),
        "volumeStatsAggPeriod": go_duration(config.volume_stats_interval),
    });
    for part in [others, image_settings(config), eviction_settings(&config.eviction)] {
        settings.extend(part.as_object().cloned().unwrap_or_default());
    }
    json!({ "kubeletconfig": settings })
}

fn image_settings(config: &Config) -> Value {
    json!({
        "maxParallelImagePulls": config.max_parallel_pulls,
        "serializeImagePulls": config.max_parallel_pulls == 1,
        "imagePullCredentialsVerificationPolicy": config.image_verification.as_str(),
        "preloadedImagesVerificationAllowlist": match &config.image_verification {
            Verification::UnlessListed(listed) => listed.as_slice(),
            _ => &[],
        },
        "registryPullQPS": config.registry_rate.per_second,
        "registryBurst": config.registry_rate.burst,
        "imageMinimumGCAge": go_duration(config.image_gc.min_age),
        "imageMaximumGCAge": go_duration(config.image_gc.max_age.unwrap_or_default()),
        "imageGCHighThresholdPercent": config.image_gc.high_percent,
        "imageGCLowThresholdPercent": config.image_gc.low_percent,
    })
}

fn eviction_settings(eviction: &Eviction) -> Value {
    let (hard, soft): (Vec<&Threshold>, Vec<&Threshold>) =
        eviction.thresholds.iter().partition(|threshold| threshold.is_hard());
    let reclaiming: Vec<&Threshold> =
        eviction.thresholds.iter().filter(|t| t.minimum_reclaim != Amount::Absolute(0)).collect();
    json!({
        "evictionHard": by_signal(&hard, |t| amount(t.value)),
        "evictionSoft": by_signal(&soft, |t| amount(t.value)),
        "evictionSoftGracePeriod": by_signal(&soft, |t| go_duration(t.grace)),
        "evictionMinimumReclaim": by_signal(&reclaiming, |t| amount(t.minimum_reclaim)),
        "evictionPressureTransitionPeriod": go_duration(eviction.transition_period),
        "evictionMaxPodGracePeriod": eviction.max_pod_grace.as_secs(),
    })
}

fn server_settings(server: &ServerSettings) -> Map<String, Value> {
    let reviews = server.reviews;
    let version = if server.tls.only_tls13 { "VersionTLS13" } else { "VersionTLS12" };
    let webhook = json!({ "enabled": reviews.tokens, "cacheTTL": go_duration(reviews.token_ttl) });
    let authorization = json!({ "mode": "Webhook", "webhook": {
        "cacheAuthorizedTTL": go_duration(reviews.allowed_ttl),
        "cacheUnauthorizedTTL": go_duration(reviews.refused_ttl),
    } });
    let settings = [
        ("address", json!(server.address)),
        ("tlsMinVersion", json!(version)),
        ("tlsCipherSuites", json!(server.tls.cipher_suites)),
        ("authentication", json!({ "anonymous": { "enabled": false }, "webhook": webhook })),
        ("authorization", authorization),
    ];
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
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
