//! `/configz`: how the kubelet is set, in the fields of upstream's KubeletConfiguration.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::config::{Config, Reserved};
use crate::cpus::CpuPolicy;
use crate::eviction::Eviction;
use crate::eviction::thresholds::{Amount, Threshold};
use crate::images::access::Verification;
use crate::locality::{Policy, Scope};
use crate::memory::MemoryPolicy;
use crate::node::parse_taint;
use crate::pod::back_off::go_duration;
use crate::quantity::binary_si;
use crate::server::ServerSettings;
use crate::shutdown::plan::Graces;

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
        "userNamespaces": { "idsPerPod": config.users.ids_per_pod() },
        "staticPodPath": config.static_pod_path,
        "podPidsLimit": config.pod_pids_limit.unwrap_or(-1),
        "seccompDefault": config.seccomp_default,
        "singleProcessOOMKill": config.single_process_oom_kill,
        "eventRecordQPS": config.event_rate.per_second,
        "eventBurst": config.event_rate.burst,
        "registerWithTaints": config.taints.iter().filter_map(|taint| parse_taint(taint)).collect::<Vec<_>>(),
        "providerID": config.provider_id,
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
    let parts = [
        others,
        fixed_settings(),
        manager_settings(config),
        shutdown_settings(&config.shutdown_graces),
        image_settings(config),
        eviction_settings(&config.eviction),
    ];
    for part in parts {
        settings.extend(part.as_object().cloned().unwrap_or_default());
    }
    settings.extend(config.of_others.clone());
    json!({ "kubeletconfig": settings })
}

/// What has one value here.
fn fixed_settings() -> Value {
    json!({
        "enableServer": true,
        "enableDebuggingHandlers": true,
        "enableSystemLogHandler": true,
        "registerNode": true,
        "enableControllerAttachDetach": true,
        "cpuCFSQuota": true,
        "cpuCFSQuotaPeriod": "100ms",
        "memorySwap": { "swapBehavior": "NoSwap" },
    })
}

/// How CPUs, memory and devices are given out.
fn manager_settings(config: &Config) -> Value {
    json!({
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
        "topologyManagerScope": match config.topology_scope {
            Scope::Container => "container",
            Scope::Pod => "pod",
        },
        "topologyManagerPolicyOptions": match &config.numa_distances {
            Some(_) => json!({ "prefer-closest-numa-nodes": "true" }),
            None => json!({}),
        },
        "reservedSystemCPUs": match &config.cpu_policy {
            CpuPolicy::None => String::new(),
            CpuPolicy::Static { reserved, .. } => reserved.to_string(),
        },
        "memoryManagerPolicy": match &config.memory_policy {
            MemoryPolicy::None => "None",
            MemoryPolicy::Static(_) => "Static",
        },
    })
}

fn shutdown_settings(graces: &Graces) -> Value {
    match graces.as_total() {
        Some((total, critical)) => json!({
            "shutdownGracePeriod": go_duration(total),
            "shutdownGracePeriodCriticalPods": go_duration(critical),
        }),
        None => {
            let by_priority = graces.all().iter().map(|grace| {
                json!({ "priority": grace.priority, "shutdownGracePeriodSeconds": grace.time.as_secs() })
            });
            json!({ "shutdownGracePeriodByPodPriority": by_priority.collect::<Vec<_>>() })
        }
    }
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
    let x509 = json!({ "clientCAFile": server.client_ca_file });
    let authentication = json!({ "anonymous": { "enabled": false }, "webhook": webhook, "x509": x509 });
    let authorization = json!({ "mode": "Webhook", "webhook": {
        "cacheAuthorizedTTL": go_duration(reviews.allowed_ttl),
        "cacheUnauthorizedTTL": go_duration(reviews.refused_ttl),
    } });
    let settings = [
        ("address", json!(server.address)),
        ("tlsMinVersion", json!(version)),
        ("tlsCipherSuites", json!(server.tls.cipher_suites)),
        ("authentication", authentication),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::plan::Grace;
    use std::time::Duration;

    #[test]
    fn settings_are_shown_as_they_are_in_force() {
        let mut config = Config::new("n1", "10.0.0.1".parse().expect("an address"), "/var/lib/hawser");
        config.of_others.insert("containerLogMaxFiles".into(), json!(5));
        config.server.client_ca_file = Some("/ca".into());
        let seconds = Duration::from_secs;
        config.shutdown_graces = Graces::of_total(seconds(30), seconds(10)).expect("fits");
        let shown = |config: &Config| configz(config)["kubeletconfig"].clone();
        let check = |fields: &[(&str, Value)]| {
            let shown = shown(&config);
            for (field, value) in fields {
                assert_eq!(shown.pointer(&format!("/{field}")), Some(value), "{field}");
            }
        };
        check(&[
            ("containerLogMaxFiles", json!(5)),
            ("authentication/x509/clientCAFile", json!("/ca")),
            ("shutdownGracePeriod", json!("30s")),
            ("shutdownGracePeriodCriticalPods", json!("10s")),
            ("topologyManagerScope", json!("container")),
            ("enableServer", json!(true)),
        ]);
        let graces = vec![Grace { priority: 7, time: seconds(3) }];
        config.shutdown_graces = Graces::by_priority(graces).expect("each once");
        let expected = json!([{ "priority": 7, "shutdownGracePeriodSeconds": 3 }]);
        assert_eq!(shown(&config)["shutdownGracePeriodByPodPriority"], expected);
        assert_eq!(shown(&config).get("shutdownGracePeriod"), None);
    }
}
