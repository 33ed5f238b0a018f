//! The kubelet's settings, checked once by whoever makes them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::container::resources::NodeCapacity;
use crate::cpus::CpuPolicy;
use crate::credentials::Credentials;
use crate::eviction::Eviction;
use crate::eviction::thresholds::Signal;
use crate::image_gc::ImageGc;
use crate::images::access::Verification;
use crate::locality;
use crate::memory::MemoryPolicy;
use crate::rate::Rate;
use crate::server::ServerSettings;
use crate::shutdown::logind::Places;
use crate::shutdown::plan::Graces;
use crate::users::IdPool;

/// Version that the node announces: the API level, then the project.
pub const KUBELET_VERSION: &str = concat!("v1.36.0+hawser-", env!("CARGO_PKG_VERSION"));

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// Addresses of the node, primary first; not empty.
    pub node_ips: Vec<IpAddr>,
    /// Shown as the node's Hostname address.
    pub hostname: String,
    /// Kept over restarts: pods' volumes and files.
    pub root_dir: PathBuf,
    /// Containers' logs, as `<pod dir>/<container>/<attempt>.log`.
    pub log_dir: PathBuf,
    /// Cgroup of this node's pods, below the cgroup roots: `/hawser/<node>`.
    pub cgroup_root: String,
    /// Addresses of the cluster's DNS; empty: pods get the host's.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The host's resolver configuration.
    pub resolv_conf: PathBuf,
    /// Port of the kubelet's HTTP API.
    pub port: u16,
    pub server: ServerSettings,
    pub max_pods: u32,
    /// Numbers of users for pods that have their own.
    pub users: IdPool,
    /// A file, or a directory of them, that describe static pods.
    pub static_pod_path: Option<PathBuf>,
    /// Secrets are noted for a start without the API, as pods and ConfigMaps are: they are on disk then.
    pub checkpoint_secrets: bool,
    /// How long a kubelet that starts waits for the API before it works without.
    pub api_wait: Duration,
    pub labels: BTreeMap<String, String>,
    /// `key=value:effect`
    pub taints: Vec<String>,
    /// Withheld from `allocatable`, for the node agent and for the rest of the system.
    pub kube_reserved: Reserved,
    pub system_reserved: Reserved,
    /// The pods together get no more than what is not reserved (`enforceNodeAllocatable: [pods]`).
    pub enforce_node_allocatable: bool,
    pub cpu_policy: CpuPolicy,
    pub memory_policy: MemoryPolicy,
    /// Whether CPUs, memory and devices are to be near to each other.
    pub topology_policy: locality::Policy,
    /// Those of a container, or of a whole pod.
    pub topology_scope: locality::Scope,
    /// Where of as many nodes those nearest to each other are preferred.
    pub numa_distances: Option<locality::Distances>,
    /// Handlers that a RuntimeClass can name beside runc.
    pub runtime_handlers: Vec<String>,
    /// Plugins that know credentials for registries.
    pub credentials: Credentials,
    /// Processes that a pod may have; `None` for no limit.
    pub pod_pids_limit: Option<i64>,
    /// Kernel parameters that pods may set beside the safe ones; a `*` at the end stands for anything.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Containers that say nothing of seccomp get the runtime's profile.
    pub seccomp_default: bool,
    /// Of a container in which one process is out of memory, the others go on.
    pub single_process_oom_kill: bool,
    /// Pulls at the same time.
    pub max_parallel_pulls: usize,
    /// Which images that are here need the pod's credentials all the same.
    pub image_verification: Verification,
    /// How often pulls begin. Others wait.
    pub registry_rate: Rate,
    /// How often events are written. Others wait.
    pub event_rate: Rate,
    pub lease_interval: Duration,
    pub lease_duration: Duration,
    pub status_interval: Duration,
    /// The node's status is written at least this often, so that its heartbeat times stay young.
    pub status_report_interval: Duration,
    /// Images that the node's status shows, the largest first; `None`: all.
    pub status_max_images: Option<usize>,
    /// What a cloud provider calls the machine.
    pub provider_id: Option<String>,
    pub eviction: Eviction,
    pub image_gc: ImageGc,
    /// How long a shutdown of the machine waits for pods.
    pub shutdown_graces: Graces,
    pub logind: Places,
    /// How often pods' directories are measured.
    pub volume_stats_interval: Duration,
    /// Fields of a KubeletConfiguration that others than the kubelet heed, as `/configz` shows them.
    pub of_others: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub ephemeral_bytes: u64,
    pub pids: u64,
}

impl Config {
    /// Upstream's defaults for a node of that name and address.
    pub fn new(node_name: impl Into<String>, node_ip: IpAddr, root_dir: impl Into<PathBuf>) -> Self {
        let node_name = node_name.into();
        let root_dir = root_dir.into();
        Self {
            hostname: node_name.clone(),
            cgroup_root: format!("/hawser/{node_name}"),
            log_dir: root_dir.join("logs"),
            node_name,
            node_ips: vec![node_ip],
            root_dir,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            port: 10250,
            server: ServerSettings::default(),
            max_pods: 110,
            users: IdPool::default(),
            static_pod_path: None,
            checkpoint_secrets: false,
            api_wait: Duration::from_secs(3),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            kube_reserved: Reserved::default(),
            system_reserved: Reserved::default(),
            enforce_node_allocatable: true,
            cpu_policy: CpuPolicy::None,
            memory_policy: MemoryPolicy::None,
            topology_policy: locality::Policy::None,
            topology_scope: locality::Scope::Container,
            numa_distances: None,
            runtime_handlers: Vec::new(),
            credentials: Credentials::default(),
            pod_pids_limit: None,
            allowed_unsafe_sysctls: Vec::new(),
            seccomp_default: false,
            single_process_oom_kill: false,
            max_parallel_pulls: 4,
            image_verification: Verification::default(),
            registry_rate: Rate { per_second: 5, burst: 10 },
            event_rate: Rate { per_second: 50, burst: 100 },
            lease_interval: Duration::from_secs(10),
            lease_duration: Duration::from_secs(40),
            status_interval: Duration::from_secs(10),
            status_report_interval: Duration::from_secs(300),
            status_max_images: Some(50),
            provider_id: None,
            eviction: Eviction::default(),
            image_gc: ImageGc::default(),
            shutdown_graces: Graces::default(),
            logind: Places::default(),
            volume_stats_interval: Duration::from_secs(60),
            of_others: Map::new(),
        }
    }

    /// What pods may have of what the machine has: without what is reserved, and what is kept free by eviction.
    pub fn allocatable(&self, capacity: NodeCapacity) -> NodeCapacity {
        let withheld =
            |signal, amount: i64| self.eviction.withheld(signal, u64::try_from(amount).unwrap_or(0));
        let unreserved = self.unreserved(capacity);
        NodeCapacity {
            cpu_millis: unreserved.cpu_millis,
            memory_bytes: without(
                unreserved.memory_bytes,
                withheld(Signal::MemoryAvailable, capacity.memory_bytes),
            ),
            ephemeral_bytes: without(
                unreserved.ephemeral_bytes,
                withheld(Signal::NodefsAvailable, capacity.ephemeral_bytes),
            ),
        }
    }

    /// What is reserved for nobody but pods.
    pub fn unreserved(&self, capacity: NodeCapacity) -> NodeCapacity {
        let reserved =
            |of: fn(&Reserved) -> u64| of(&self.kube_reserved).saturating_add(of(&self.system_reserved));
        NodeCapacity {
            cpu_millis: without(capacity.cpu_millis, reserved(|r| r.cpu_millis)),
            memory_bytes: without(capacity.memory_bytes, reserved(|r| r.memory_bytes)),
            ephemeral_bytes: without(capacity.ephemeral_bytes, reserved(|r| r.ephemeral_bytes)),
        }
    }

    pub fn node_ip_texts(&self) -> Vec<String> {
        self.node_ips.iter().map(ToString::to_string).collect()
    }

    /// Everything of one pod on disk.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    pub fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.log_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}

fn without(amount: i64, kept: u64) -> i64 {
    amount.saturating_sub(i64::try_from(kept).unwrap_or(i64::MAX)).max(0)
}
