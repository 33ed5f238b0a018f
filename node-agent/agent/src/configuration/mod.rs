//! A KubeletConfiguration (`kubelet.config.k8s.io/v1beta1`), the file of `--config`.
//!
//! Fields that flags have too go where these are, unless the flag is on the command line; others go into the kubelet's own
//! settings. Unknown fields are refused, and so is what would be dangerous to leave out; fields of upstream's process
//! that mean nothing here are named in the log. Errors name the field.

mod fields;
mod sections;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use clap::parser::ValueSource;
use hawser_kubelet::{Config, eviction::thresholds::Threshold};
use tracing::warn;

use crate::options::{EnforceNodeAllocatable, Options, read, reserved, topology_option};
use fields::Fields;

/// Fields of upstream's kubelet that change nothing of what pods get from this one: it has no such part, does it always,
/// or does without. Leaving them out takes away no protection.
const WITHOUT_MEANING: [&str; 47] = [
    "syncFrequency",
    "fileCheckFrequency",
    "httpCheckFrequency",
    "readOnlyPort",
    "rotateCertificates",
    "serverTLSBootstrap",
    "enableContentionProfiling",
    "enableProfilingHandler",
    "enableDebugFlagsHandler",
    "healthzPort",
    "healthzBindAddress",
    "oomScoreAdj",
    "streamingConnectionIdleTimeout",
    "kubeletCgroups",
    "systemCgroups",
    "cgroupDriver",
    "cpuManagerReconcilePeriod",
    "draManagerReconcilePeriod",
    "runtimeRequestTimeout",
    "hairpinMode",
    "podCIDR",
    "maxOpenFiles",
    "contentType",
    "kubeAPIQPS",
    "kubeAPIBurst",
    "kernelMemcgNotification",
    "protectKernelDefaults",
    "makeIPTablesUtilChains",
    "iptablesMasqueradeBit",
    "iptablesDropBit",
    "featureGates",
    "containerLogMaxWorkers",
    "containerLogMonitorInterval",
    "configMapAndSecretChangeDetectionStrategy",
    "showHiddenMetricsForVersion",
    "systemReservedCgroup",
    "kubeReservedCgroup",
    "volumePluginDir",
    "logging",
    "enableSystemLogQuery",
    "crashLoopBackOff",
    "memoryThrottlingFactor",
    "memoryReservationPolicy",
    "tracing",
    "localStorageCapacityIsolation",
    "imageServiceEndpoint",
    "failCgroupV1",
];

/// The flags that are on the command line, by clap's ids.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given(BTreeSet<String>);

impl Given {
    pub(crate) fn of(matches: &clap::ArgMatches) -> Self {
        let Some((_, matches)) = matches.subcommand() else { return Self::default() };
        let given = matches.ids().map(clap::Id::as_str);
        let given = given.filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine));
        Self(given.map(str::to_owned).collect())
    }

    fn has(&self, flag: &str) -> bool {
        self.0.contains(flag)
    }
}

/// Reads the file into `options` and `config`.
///
/// # Errors
/// A file that cannot be read, or the field that cannot be followed.
pub(crate) fn apply(
    path: &Path,
    given: &Given,
    options: &mut Options,
    config: &mut Config,
) -> anyhow::Result<()> {
    let text = String::from_utf8(read(path)?).context("is no text")?;
    let ignored = apply_text(&text, given, options, config)?;
    if !ignored.is_empty() {
        warn!(fields = ignored.join(", "), "fields of --config that have no meaning here");
    }
    Ok(())
}

/// Returns the fields that have no meaning here.
fn apply_text(
    text: &str,
    given: &Given,
    options: &mut Options,
    config: &mut Config,
) -> anyhow::Result<Vec<&'static str>> {
    let mut fields = Fields::parse(text, given)?;
    node(&mut fields, options, config)?;
    dns_and_files(&mut fields, options, config)?;
    resources(&mut fields, options, config)?;
    eviction(&mut fields, options)?;
    sections::server(&mut fields, options, config)?;
    sections::shutdown(&mut fields, given, options)?;
    sections::images(&mut fields, options, config)?;
    sections::memory(&mut fields, options)?;
    refuse(&mut fields)?;
    let ignored = fields.drain(&WITHOUT_MEANING);
    fields.end()?;
    Ok(ignored)
}

fn node(fields: &mut Fields<'_>, options: &mut Options, config: &mut Config) -> anyhow::Result<()> {
    fields.set("port", "port", &mut options.port)?;
    ensure!(options.port > 0, "port: 0 is no port");
    if let Some(most) = fields.unless::<u32>("max_pods", "maxPods")?.filter(|most| *most > 0) {
        options.max_pods = most;
    }
    if let Some(per_core) = fields.take::<u32>("podsPerCore")?.filter(|pods| *pods > 0) {
        let cores = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        options.max_pods = options.max_pods.min(per_core.saturating_mul(cores));
    }
    sections::users(fields, options, config)?;
    if let Some(limit) = fields.unless::<i64>("pod_max_pids", "podPidsLimit")? {
        ensure!(limit == -1 || limit > 0, "podPidsLimit: {limit} is neither -1 nor more than 0");
        options.pod_max_pids = (limit > 0).then_some(limit);
    }
    let interval = fields.time("nodeStatusUpdateFrequency")?;
    let report = fields.time("nodeStatusReportFrequency")?;
    config.status_interval = interval.unwrap_or(config.status_interval);
    // Whoever says only how often it is looked at means that it is written as often, as upstream has it.
    config.status_report_interval = report.or(interval).unwrap_or(config.status_report_interval);
    if let Some(seconds) = fields.take::<u32>("nodeLeaseDurationSeconds")?.filter(|seconds| *seconds > 0) {
        config.lease_duration = std::time::Duration::from_secs(seconds.into());
        config.lease_interval = config.lease_duration / 4;
    }
    if let Some(most) = fields.take::<i32>("nodeStatusMaxImages")? {
        ensure!(most >= -1, "nodeStatusMaxImages: {most} is less than -1");
        config.status_max_images = usize::try_from(most).ok();
    }
    if let Some(taints) = fields.unless("register_with_taints", "registerWithTaints")? {
        options.register_with_taints = sections::taints(taints)?;
    }
    config.provider_id = fields.text("providerID")?;
    if let Some(rate) = fields.take("eventRecordQPS")? {
        config.event_rate.per_second = rate;
    }
    if let Some(burst) = fields.take::<u32>("eventBurst")?.filter(|burst| *burst > 0) {
        config.event_rate.burst = burst;
    }
    if let Some(endpoint) = fields.text_unless("container_runtime_endpoint", "containerRuntimeEndpoint")? {
        let path = endpoint.strip_prefix("unix://").unwrap_or(&endpoint);
        ensure!(path.starts_with('/'), "containerRuntimeEndpoint: {endpoint:?} is no Unix socket");
        options.container_runtime_endpoint = path.into();
    }
    if fields.take("failSwapOn")? == Some(true) {
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
        ensure!(swaps.lines().count() <= 1, "failSwapOn: the machine has swap on");
    }
    Ok(())
}

fn dns_and_files(fields: &mut Fields<'_>, options: &mut Options, config: &mut Config) -> anyhow::Result<()> {
    fields.set("cluster_dns", "clusterDNS", &mut options.cluster_dns)?;
    if let Some(domain) = fields.text_unless("cluster_domain", "clusterDomain")? {
        options.cluster_domain = domain;
    }
    if let Some(path) = fields.text_unless("resolv_conf", "resolvConf")? {
        options.resolv_conf = path.into();
    }
    choose_path(fields, "pod_manifest_path", "staticPodPath", &mut options.pod_manifest_path)?;
    if let Some(path) = fields.text("podLogsDir")? {
        ensure!(path.starts_with('/'), "podLogsDir: {path:?} is not absolute");
        config.log_dir = path.into();
    }
    if let Some(size) = fields.text_unless("container_log_max_size", "containerLogMaxSize")? {
        options.container_log_max_size = crate::options::bytes(&size).context("containerLogMaxSize")?;
    }
    fields.set("container_log_max_files", "containerLogMaxFiles", &mut options.container_log_max_files)?;
    ensure!(options.container_log_max_files >= 2, "containerLogMaxFiles: must be at least 2");
    if let Some(period) = fields.time("volumeStatsAggPeriod")? {
        config.volume_stats_interval = period;
    }
    Ok(())
}

fn resources(fields: &mut Fields<'_>, options: &mut Options, config: &mut Config) -> anyhow::Result<()> {
    if let Some(amounts) = fields.unless("kube_reserved", "kubeReserved")? {
        options.kube_reserved = reserved(&pairs(&amounts, "=").join(",")).context("kubeReserved")?;
    }
    if let Some(amounts) = fields.unless("system_reserved", "systemReserved")? {
        options.system_reserved = reserved(&pairs(&amounts, "=").join(",")).context("systemReserved")?;
    }
    if let Some(cpus) = fields.text_unless("reserved_cpus", "reservedSystemCPUs")? {
        let cpus = cpus.parse().map_err(|error| anyhow::anyhow!("reservedSystemCPUs: {error}"))?;
        options.reserved_cpus = Some(cpus);
    }
    let enforced: Option<Vec<String>> =
        fields.unless("enforce_node_allocatable", "enforceNodeAllocatable")?;
    if let Some(enforced) = enforced {
        let names: Vec<&str> = enforced.iter().map(String::as_str).collect();
        options.enforce_node_allocatable = match names[..] {
            ["pods"] => EnforceNodeAllocatable::Pods,
            [] | ["none"] => EnforceNodeAllocatable::None,
            _ => bail!("enforceNodeAllocatable: {enforced:?} is not supported; [pods] and [none] are"),
        };
    }
    if let Some(root) = fields.text_unless("cgroup_root", "cgroupRoot")? {
        ensure!(root.starts_with('/'), "cgroupRoot: {root:?} is not absolute");
        options.cgroup_root = root;
    }
    if let Some(policy) = fields.text_unless("cpu_manager_policy", "cpuManagerPolicy")? {
        options.cpu_manager_policy = sections::choice("cpuManagerPolicy", &policy)?;
    }
    if let Some(policy) = fields.text_unless("topology_manager_policy", "topologyManagerPolicy")? {
        options.topology_manager_policy = sections::choice("topologyManagerPolicy", &policy)?;
    }
    if let Some(scope) = fields.text_unless("topology_manager_scope", "topologyManagerScope")? {
        options.topology_manager_scope = sections::choice("topologyManagerScope", &scope)?;
    }
    let name = "topologyManagerPolicyOptions";
    if let Some(given) = fields.unless("topology_manager_policy_options", name)? {
        let given: Result<_, String> = pairs(&given, "=").iter().map(|pair| topology_option(pair)).collect();
        options.topology_manager_policy_options = given.map_err(|why| anyhow::anyhow!("{name}: {why}"))?;
    }
    fields.set("allowed_unsafe_sysctls", "allowedUnsafeSysctls", &mut options.allowed_unsafe_sysctls)?;
    config.seccomp_default = fields.take("seccompDefault")?.unwrap_or(config.seccomp_default);
    let alone = fields.take("singleProcessOOMKill")?;
    config.single_process_oom_kill = alone.unwrap_or(config.single_process_oom_kill);
    Ok(())
}

fn eviction(fields: &mut Fields<'_>, options: &mut Options) -> anyhow::Result<()> {
    let threshold = |text: &String| -> anyhow::Result<Threshold> { text.parse().map_err(anyhow::Error::msg) };
    let thresholds = |name: &'static str, amounts: &BTreeMap<String, String>| {
        let parsed: anyhow::Result<Vec<Threshold>> = pairs(amounts, "<").iter().map(threshold).collect();
        parsed.context(name)
    };
    let merged = fields.take("mergeDefaultEvictionSettings")? == Some(true);
    if let Some(amounts) = fields.unless("eviction_hard", "evictionHard")? {
        let mut hard = thresholds("evictionHard", &amounts)?;
        if merged {
            let defaults = hawser_kubelet::eviction::Eviction::default().thresholds;
            let others = defaults.into_iter().filter(|t| hard.iter().all(|own| own.signal != t.signal));
            hard.extend(others.collect::<Vec<_>>());
        }
        options.eviction_hard = Some(hard);
    }
    if let Some(amounts) = fields.unless("eviction_soft", "evictionSoft")? {
        options.eviction_soft = thresholds("evictionSoft", &amounts)?;
    }
    let graces = fields.unless("eviction_soft_grace_period", "evictionSoftGracePeriod")?;
    if let Some(graces) = graces {
        options.eviction_soft_grace_period = pairs(&graces, "=");
    }
    if let Some(amounts) = fields.unless("eviction_minimum_reclaim", "evictionMinimumReclaim")? {
        options.eviction_minimum_reclaim = pairs(&amounts, "=");
    }
    let grace = &mut options.eviction_max_pod_grace_period;
    fields.set("eviction_max_pod_grace_period", "evictionMaxPodGracePeriod", grace)?;
    let period = fields.time("evictionPressureTransitionPeriod")?;
    if let Some(period) = period.filter(|_| !fields.has_flag("eviction_pressure_transition_period")) {
        options.eviction_pressure_transition_period = period.as_secs();
    }
    // Now, so that it is the file that the error speaks of.
    options.eviction().map(drop)
}

/// What is wanted of these cannot be had, and to do without would take away what somebody relies on.
fn refuse(fields: &mut Fields<'_>) -> anyhow::Result<()> {
    let none = BTreeMap::<String, String>::new;
    fields.only("enableServer", true, "the API server needs the node's API")?;
    fields.only("enableDebuggingHandlers", true, "log, exec and their like are always served")?;
    fields.only("enableSystemLogHandler", true, "the folder of logs is always served")?;
    fields.only("cgroupsPerQOS", true, "pods are always in the cgroup of their class")?;
    fields.only("cpuCFSQuota", true, "limits of CPU are always enforced")?;
    fields.only("cpuCFSQuotaPeriod", "100ms".to_owned(), "it is always 100ms")?;
    fields.only("cpuManagerPolicyOptions", none(), "the static policy has no options")?;
    fields.only("qosReserved", none(), "memory is not reserved by class")?;
    fields.only("tlsCurvePreferences", Vec::<i32>::new(), "curves cannot be chosen")?;
    fields.only("staticPodURL", String::new(), "static pods come from files alone")?;
    fields.only(
        "staticPodURLHeader",
        BTreeMap::<String, Vec<String>>::new(),
        "static pods come from files",
    )?;
    fields.only("runOnce", false, "the agent runs until it is stopped")?;
    fields.only("registerNode", true, "the node always registers itself")?;
    fields.only("enableControllerAttachDetach", true, "the controller attaches volumes")?;
    let swap: BTreeMap<String, String> = fields.take("memorySwap")?.unwrap_or_default();
    for (name, value) in swap {
        ensure!(name == "swapBehavior", "memorySwap: unknown field {name:?}");
        ensure!(value.is_empty() || value == "NoSwap", "memorySwap.swapBehavior: {value:?} is not supported");
    }
    Ok(())
}

fn pairs(map: &BTreeMap<String, String>, between: &str) -> Vec<String> {
    map.iter().map(|(name, value)| format!("{name}{between}{value}")).collect()
}

/// Puts a path that is not empty where the flag's is.
fn choose_path(
    fields: &mut Fields<'_>,
    flag: &str,
    name: &str,
    target: &mut Option<PathBuf>,
) -> anyhow::Result<()> {
    if let Some(path) = fields.text_unless(flag, name)? {
        *target = Some(path.into());
    }
    Ok(())
}
