//! Flags of `node-agent run`; those that mean what upstream's mean have upstream's names.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use hawser_api::{AddressRange, quantity::Quantity};
use hawser_kubelet::{
    config::Reserved,
    cpus::set::CpuSet,
    eviction::{
        Eviction,
        thresholds::{Amount, Signal, Threshold},
    },
    memory::ledger::Amounts,
    shutdown::plan::{Grace, Graces},
};
use hawser_runtime::RuntimeHandler;
use ipnet::IpNet;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Name of this node in the cluster
    #[arg(long)]
    pub(crate) node_name: String,
    /// Address by which other nodes and the control plane reach this node
    #[arg(long)]
    pub(crate) node_ip: IpAddr,
    /// API servers, as https://<address>:<port>; more than one share the load
    #[arg(long, required = true, value_delimiter = ',')]
    pub(crate) api_server: Vec<String>,
    /// The authority that signed the API servers' certificates, and clients'
    #[arg(long)]
    pub(crate) ca_file: PathBuf,
    /// Certificate by which the node proves itself to the API server
    #[arg(long)]
    pub(crate) client_cert_file: PathBuf,
    #[arg(long)]
    pub(crate) client_key_file: PathBuf,
    /// A KubeletConfiguration (kubelet.config.k8s.io/v1beta1), YAML or JSON; flags win over what it says
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Certificate of the kubelet's own API
    #[arg(long, required_unless_present = "config")]
    pub(crate) tls_cert_file: Option<PathBuf>,
    #[arg(long, required_unless_present = "config")]
    pub(crate) tls_private_key_file: Option<PathBuf>,
    /// Who signed the certificates of the kubelet API's clients; who signed the API servers' where unset
    #[arg(long)]
    pub(crate) client_ca_file: Option<PathBuf>,
    /// Port of the kubelet's own API
    #[arg(long, default_value_t = 10250)]
    pub(crate) port: u16,
    /// Kept over reboots: volumes, logs, records
    #[arg(long, default_value = "/var/lib/hawser/agent")]
    pub(crate) root_dir: PathBuf,
    /// Belongs to one boot: pinned namespaces, sockets, pins of the datapath
    #[arg(long, default_value = "/run/hawser/agent")]
    pub(crate) state_dir: PathBuf,
    /// containerd's socket
    #[arg(long, default_value = "/run/containerd/containerd.sock")]
    pub(crate) container_runtime_endpoint: PathBuf,
    /// How registries are reached: directories named after them with a hosts.toml, as containerd has them (mirrors,
    /// authorities, clients' certificates, headers). Read at every pull
    #[arg(long, default_value = "/etc/containerd/certs.d")]
    pub(crate) registry_config_dir: PathBuf,
    /// Registries, as <host>[:<port>], that are reached over plain HTTP
    #[arg(long, value_delimiter = ',')]
    pub(crate) insecure_registry: Vec<String>,
    /// Where devices of the Container Device Interface are described; later directories win
    #[arg(long, value_delimiter = ',', default_value = "/etc/cdi,/var/run/cdi")]
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
    /// What runs the pods whose RuntimeClass names a handler, as crun=io.containerd.runc.v2,BinaryName=/usr/bin/crun: containerd's
    /// name of the shim, and what runc's shim runs in the place of runc; may be given again
    #[arg(long, value_parser = runtime_handler)]
    pub(crate) runtime_handler: Vec<(String, RuntimeHandler)>,
    /// Cgroup of this node's processes and pods, below the cgroup roots
    #[arg(long, default_value = "/hawser")]
    pub(crate) cgroup_root: String,
    /// Ranges of all pods
    #[arg(long, required = true, value_delimiter = ',')]
    pub(crate) cluster_cidr: Vec<IpNet>,
    /// Ranges of service addresses
    #[arg(long, required = true, value_delimiter = ',')]
    pub(crate) service_cluster_ip_range: Vec<IpNet>,
    /// Addresses of cluster DNS, served by this node itself
    #[arg(long, value_delimiter = ',')]
    pub(crate) cluster_dns: Vec<IpAddr>,
    #[arg(long, default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// Resolvers for names outside the cluster, and what pods with dnsPolicy Default see
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub(crate) resolv_conf: PathBuf,
    /// How packets get from node to node
    #[arg(long, value_enum, default_value = "vxlan")]
    pub(crate) network_mode: NetworkMode,
    /// Link to the other nodes; found by --node-ip where unset
    #[arg(long)]
    pub(crate) uplink: Option<String>,
    /// Node addresses at which node ports are served, as ranges; all of the uplink's where unset
    #[arg(long, value_delimiter = ',')]
    pub(crate) nodeport_addresses: Vec<IpNet>,
    /// Leave the source addresses of pods' traffic to outside the cluster as they are
    #[arg(long)]
    pub(crate) no_masquerade: bool,
    /// How packets from outside reach backends of other nodes, at external and load balancer addresses
    #[arg(long, value_enum, default_value = "snat")]
    pub(crate) load_balancer_mode: LoadBalancerMode,
    /// Send packets to backends of other nodes, and back, on at XDP: with plain routes where the uplink's driver can (auto), at
    /// veth too, whose other end must then compute the checksums of what it sends (on), or nowhere (off)
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) xdp: Xdp,
    /// Room for connections and UDP flows that are translated at the packet, 192 bytes each; by the machine's memory
    /// where unset. A table that is there keeps its size until `node-agent remove-datapath`
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub(crate) max_flows: Option<u32>,
    /// Leave packets between pods to the host's routes and rules
    #[arg(long)]
    pub(crate) no_short_ways: bool,
    /// Load balancer addresses that this node may answer for on its network, as 10.0.0.200-10.0.0.250 or 10.0.1.0/24;
    /// the control plane gives them out by the same flag
    #[arg(long, value_delimiter = ',')]
    pub(crate) load_balancer_ip_range: Vec<AddressRange>,
    /// Where metrics are served
    #[arg(long, default_value = "127.0.0.1:10249")]
    pub(crate) metrics_bind_address: SocketAddr,
    /// Where load balancers ask for the health of the node's service path
    #[arg(long, default_value = "0.0.0.0:10256")]
    pub(crate) healthz_bind_address: SocketAddr,
    #[arg(long, default_value_t = 110)]
    pub(crate) max_pods: u32,
    /// A file, or a directory of files, that describe static pods
    #[arg(long)]
    pub(crate) pod_manifest_path: Option<PathBuf>,
    /// Keep Secrets that pods name on disk, readable by root, so that such pods start without an API server too
    #[arg(long)]
    pub(crate) checkpoint_secrets: bool,
    /// Processes that a pod may have; no limit where unset
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) pod_max_pids: Option<i64>,
    /// Kernel parameters that pods may set beside the safe ones, as net.core.somaxconn or kernel.msg*
    #[arg(long, value_delimiter = ',')]
    pub(crate) allowed_unsafe_sysctls: Vec<String>,
    /// Kept for the node agent and containerd, as cpu=100m,memory=200Mi,ephemeral-storage=1Gi,pid=1000
    #[arg(long, value_parser = reserved, default_value = "")]
    pub(crate) kube_reserved: Reserved,
    /// Kept for the rest of the system
    #[arg(long, value_parser = reserved, default_value = "")]
    pub(crate) system_reserved: Reserved,
    /// Whether containers of Guaranteed pods that ask for whole CPUs have these to themselves
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) cpu_manager_policy: CpuManagerPolicy,
    /// Whether containers of Guaranteed pods have their memory from NUMA nodes of their own
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) memory_manager_policy: MemoryManagerPolicy,
    /// What of each NUMA node's memory is kept for the system, as 0:memory=1Gi,hugepages-2Mi=1Gi;1:memory=2Gi. With the static
    /// policy it is in all what the node's allocatable memory is without
    #[arg(long, value_delimiter = ';', value_parser = reserved_memory)]
    pub(crate) reserved_memory: Vec<(u32, Amounts)>,
    /// Whether the CPUs and devices of a container are to come from the same NUMA nodes
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) topology_manager_policy: TopologyManagerPolicy,
    /// Whether they come from the same nodes for each container by itself, or for all containers of a pod
    #[arg(long, value_enum, default_value = "container")]
    pub(crate) topology_manager_scope: TopologyManagerScope,
    /// Options of the policy, as name=value: prefer-closest-numa-nodes (true: of as many nodes those nearest to each other),
    /// max-allowable-numa-nodes (8, which is how many there may be)
    #[arg(long, value_delimiter = ',', value_parser = topology_option)]
    pub(crate) topology_manager_policy_options: Vec<TopologyOption>,
    /// CPUs, as 0-1,4, that are kept for the system: no container has them to itself. In the place of what
    /// --kube-reserved and --system-reserved say of CPU
    #[arg(long)]
    pub(crate) reserved_cpus: Option<CpuSet>,
    /// Which programs know credentials for registries, a CredentialProviderConfig
    #[arg(long, requires = "image_credential_provider_bin_dir")]
    pub(crate) image_credential_provider_config: Option<PathBuf>,
    /// Where these programs are
    #[arg(long, requires = "image_credential_provider_config")]
    pub(crate) image_credential_provider_bin_dir: Option<PathBuf>,
    /// What is held to what is not reserved: all pods together, or none
    #[arg(long, value_enum, default_value = "pods")]
    pub(crate) enforce_node_allocatable: EnforceNodeAllocatable,
    /// When pods are evicted at once, as memory.available<100Mi,nodefs.available<10%; a threshold of 0% or 100% is none
    #[arg(long, value_delimiter = ',')]
    pub(crate) eviction_hard: Option<Vec<Threshold>>,
    /// When pods are evicted after a grace period, which --eviction-soft-grace-period gives
    #[arg(long, value_delimiter = ',')]
    pub(crate) eviction_soft: Vec<Threshold>,
    /// How long a soft threshold has to be met, as memory.available=90s
    #[arg(long, value_delimiter = ',')]
    pub(crate) eviction_soft_grace_period: Vec<String>,
    /// How much more than its threshold is to be free again before eviction ends, as memory.available=200Mi
    #[arg(long, value_delimiter = ',')]
    pub(crate) eviction_minimum_reclaim: Vec<String>,
    /// Longest grace of pods that a soft threshold evicts, in seconds
    #[arg(long, default_value_t = 0)]
    pub(crate) eviction_max_pod_grace_period: u64,
    /// How long a condition such as MemoryPressure outlasts its cause, in seconds
    #[arg(long, default_value_t = 300)]
    pub(crate) eviction_pressure_transition_period: u64,
    /// How long a shutdown of the machine waits for pods, as 30s; it does not where unset. Asked of logind over the system bus
    #[arg(long, value_parser = seconds, conflicts_with = "shutdown_grace_period_by_pod_priority")]
    pub(crate) shutdown_grace_period: Option<Duration>,
    /// How much of that is for critical pods alone, at its end
    #[arg(long, value_parser = seconds, requires = "shutdown_grace_period")]
    pub(crate) shutdown_grace_period_critical_pods: Option<Duration>,
    /// How long it waits for pods of a priority and above, up to the next one named, as 0=20s,2000000000=10s
    #[arg(long, value_delimiter = ',', value_parser = grace)]
    pub(crate) shutdown_grace_period_by_pod_priority: Vec<Grace>,
    /// Share of the disk in use, in percent, at which unused images begin to be removed, and at which that ends
    #[arg(long, default_value_t = 85, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub(crate) image_gc_high_threshold: u64,
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub(crate) image_gc_low_threshold: u64,
    /// Size at which a container's log is rotated, as a quantity: 10Mi
    #[arg(long, default_value = "10Mi", value_parser = bytes)]
    pub(crate) container_log_max_size: u64,
    /// Files kept of one container's log, the current one included
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) container_log_max_files: u32,
    /// Labels of the node, as <key>=<value>
    #[arg(long, value_delimiter = ',')]
    node_labels: Vec<String>,
    /// Taints of the node at registration, as <key>=<value>:<effect>
    #[arg(long, value_delimiter = ',')]
    pub(crate) register_with_taints: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CpuManagerPolicy {
    None,
    Static,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MemoryManagerPolicy {
    None,
    Static,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TopologyManagerPolicy {
    None,
    BestEffort,
    Restricted,
    SingleNumaNode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TopologyManagerScope {
    Container,
    Pod,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TopologyOption {
    PreferClosestNumaNodes(bool),
    /// It is what it is without the option.
    MaxAllowableNumaNodes,
}

/// `prefer-closest-numa-nodes=true`
pub(crate) fn topology_option(text: &str) -> Result<TopologyOption, String> {
    match text.split_once('=') {
        Some(("prefer-closest-numa-nodes", value)) => {
            let value = value.parse().map_err(|_| format!("{text:?}: true or false is expected"))?;
            Ok(TopologyOption::PreferClosestNumaNodes(value))
        }
        Some(("max-allowable-numa-nodes", "8")) => Ok(TopologyOption::MaxAllowableNumaNodes),
        Some(("max-allowable-numa-nodes", other)) => {
            Err(format!("max-allowable-numa-nodes: {other:?} is not supported: it is always 8"))
        }
        _ => Err(format!("{text:?} is none of prefer-closest-numa-nodes=, max-allowable-numa-nodes=")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum EnforceNodeAllocatable {
    Pods,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NetworkMode {
    /// VXLAN, UDP port 8472
    Vxlan,
    /// Plain routes: all nodes are neighbours on one network
    Routes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LoadBalancerMode {
    /// With an address of this node's as their source
    Snat,
    /// As they are, to pods; their node answers the client itself (direct server return). All nodes have to have the same.
    /// A connection that is idle for 15 minutes outlives a change of the backends only by chance
    Dsr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Xdp {
    Auto,
    On,
    Off,
}

impl Options {
    pub(crate) fn labels(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let parse = |label: &String| match label.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => bail!("--node-labels {label:?}: <key>=<value> is expected"),
        };
        self.node_labels.iter().map(parse).collect()
    }

    /// Resolvers that the node's configuration names, port 53.
    pub(crate) fn upstreams(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let text = std::fs::read_to_string(&self.resolv_conf)
            .with_context(|| format!("cannot read --resolv-conf {}", self.resolv_conf.display()))?;
        let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        let addresses = servers.filter_map(|server| server.trim().parse::<IpAddr>().ok());
        // Asking ourselves would go round in circles.
        let others = addresses.filter(|address| !self.cluster_dns.contains(address));
        Ok(others.map(|address| SocketAddr::new(address, 53)).collect())
    }
}

impl Options {
    /// # Errors
    /// A soft threshold without a grace period, or a grace period of nothing.
    pub(crate) fn eviction(&self) -> anyhow::Result<Eviction> {
        let mut eviction = Eviction {
            max_pod_grace: Duration::from_secs(self.eviction_max_pod_grace_period),
            transition_period: Duration::from_secs(self.eviction_pressure_transition_period),
            ..Eviction::default()
        };
        if let Some(hard) = &self.eviction_hard {
            eviction.thresholds = hard.clone();
        }
        let mut graces = BTreeMap::new();
        for pair in &self.eviction_soft_grace_period {
            let (signal, grace) = pair.split_once('=').with_context(|| {
                format!("--eviction-soft-grace-period {pair:?}: <signal>=<time> is expected")
            })?;
            let signal: Signal = signal.parse().map_err(anyhow::Error::msg)?;
            graces.insert(signal, seconds(grace)?);
        }
        for threshold in &self.eviction_soft {
            let grace = graces.remove(&threshold.signal).with_context(|| {
                format!("--eviction-soft-grace-period has none for {}", threshold.signal.as_str())
            })?;
            eviction.thresholds.push(Threshold { grace, ..*threshold });
        }
        anyhow::ensure!(
            graces.is_empty(),
            "--eviction-soft-grace-period names a signal that --eviction-soft does not"
        );
        eviction.thresholds.retain(|t| !matches!(t.value, Amount::Percent(0.0 | 100.0)));
        for pair in &self.eviction_minimum_reclaim {
            let (signal, amount) = pair.split_once('=').with_context(|| {
                format!("--eviction-minimum-reclaim {pair:?}: <signal>=<amount> is expected")
            })?;
            let wrong = |error: String| anyhow::anyhow!("--eviction-minimum-reclaim: {error}");
            let signal: Signal = signal.parse().map_err(wrong)?;
            let minimum_reclaim: Amount = amount.parse().map_err(wrong)?;
            for threshold in eviction.thresholds.iter_mut().filter(|t| t.signal == signal) {
                threshold.minimum_reclaim = minimum_reclaim;
            }
        }
        Ok(eviction)
    }
}

impl Options {
    /// # Errors
    /// More time for critical pods than there is, or a priority that is named twice.
    pub(crate) fn shutdown_graces(&self) -> anyhow::Result<Graces> {
        let by_priority = &self.shutdown_grace_period_by_pod_priority;
        let graces = match by_priority.is_empty() {
            false => Graces::by_priority(by_priority.clone()),
            true => Graces::of_total(
                self.shutdown_grace_period.unwrap_or_default(),
                self.shutdown_grace_period_critical_pods.unwrap_or_default(),
            ),
        };
        graces.map_err(anyhow::Error::msg)
    }
}

/// `<priority>=<time>`
fn grace(text: &str) -> anyhow::Result<Grace> {
    let (priority, time) =
        text.split_once('=').with_context(|| format!("{text:?}: <priority>=<time> is expected"))?;
    let priority = priority.parse().with_context(|| format!("{priority:?} is no priority"))?;
    Ok(Grace { priority, time: seconds(time)? })
}

/// `90s`, `1m30s`
pub(crate) fn seconds(text: &str) -> anyhow::Result<Duration> {
    let span: jiff::SignedDuration =
        text.parse().with_context(|| format!("{text:?} is no time such as 90s"))?;
    let time = Duration::try_from(span).ok().filter(|time| !time.is_zero());
    time.with_context(|| format!("{text:?}: more than zero is expected"))
}

/// `cpu=100m,memory=200Mi,ephemeral-storage=1Gi`
pub(crate) fn reserved(text: &str) -> anyhow::Result<Reserved> {
    let mut reserved = Reserved::default();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, amount) =
            pair.split_once('=').with_context(|| format!("{pair:?}: <resource>=<amount> is expected"))?;
        let quantity: Quantity = amount.parse().with_context(|| format!("{amount:?} is no quantity"))?;
        match name {
            "cpu" => reserved.cpu_millis = u64::try_from(quantity.milli_value())?,
            "memory" => reserved.memory_bytes = u64::try_from(quantity.value())?,
            "ephemeral-storage" => reserved.ephemeral_bytes = u64::try_from(quantity.value())?,
            "pid" => reserved.pids = u64::try_from(quantity.value())?,
            _ => bail!("{name:?} cannot be reserved; cpu, memory, ephemeral-storage and pid can"),
        }
    }
    Ok(reserved)
}

/// `crun=io.containerd.runc.v2,BinaryName=/usr/bin/crun`
fn runtime_handler(text: &str) -> anyhow::Result<(String, RuntimeHandler)> {
    let (name, rest) = text.split_once('=').context("<handler>=<shim> is expected")?;
    anyhow::ensure!(!name.is_empty() && name != "runc", "{name:?} is no name for another handler");
    let mut parts = rest.split(',');
    let shim = parts.next().filter(|shim| !shim.is_empty()).context("<handler>=<shim> is expected")?;
    let mut handler = RuntimeHandler { shim: shim.to_owned(), binary: None };
    for part in parts {
        match part.split_once('=') {
            Some(("BinaryName", binary)) if shim == RuntimeHandler::RUNC_SHIM && !binary.is_empty() => {
                handler.binary = Some(binary.to_owned());
            }
            _ => {
                bail!("{part:?}: {} takes BinaryName=<program>, others no options", RuntimeHandler::RUNC_SHIM)
            }
        }
    }
    Ok((name.to_owned(), handler))
}

/// `0:memory=1Gi,hugepages-2Mi=1Gi`
fn reserved_memory(text: &str) -> anyhow::Result<(u32, Amounts)> {
    let (node, amounts) = text
        .split_once(':')
        .with_context(|| format!("{text:?}: <NUMA node>:<resource>=<amount> is expected"))?;
    let node = node.trim().parse().with_context(|| format!("{node:?} is no NUMA node"))?;
    let amount = |pair: &str| {
        let (name, amount) =
            pair.split_once('=').with_context(|| format!("{pair:?}: <resource>=<amount> is expected"))?;
        anyhow::ensure!(
            name == "memory" || name.starts_with("hugepages-"),
            "{name:?} cannot be reserved; memory and hugepages-<size> can"
        );
        Ok((name.to_owned(), bytes(amount)?))
    };
    Ok((node, amounts.split(',').map(amount).collect::<anyhow::Result<_>>()?))
}

/// A size as the API writes it, in bytes.
pub(crate) fn bytes(text: &str) -> anyhow::Result<u64> {
    let quantity: Quantity = text.parse().context("a quantity such as 10Mi is expected")?;
    u64::try_from(quantity.value()).ok().filter(|bytes| *bytes > 0).context("it must be more than zero")
}

/// # Errors
/// Names the file that cannot be read.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
