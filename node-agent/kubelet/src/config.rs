//! The kubelet's settings, checked once by whoever makes them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    pub max_pods: u32,
    pub labels: BTreeMap<String, String>,
    /// `key=value:effect`
    pub taints: Vec<String>,
    /// Withheld from `allocatable`.
    pub reserved: Reserved,
    /// Pulls at the same time.
    pub max_parallel_pulls: usize,
    pub lease_interval: Duration,
    pub lease_duration: Duration,
    pub status_interval: Duration,
    pub eviction: EvictionThresholds,
}

#[derive(Clone, Debug, Default)]
pub struct Reserved {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

/// Levels at which the node's pressure conditions turn true.
#[derive(Clone, Debug)]
pub struct EvictionThresholds {
    pub memory_available_bytes: u64,
    /// Share of the file system, in percent.
    pub disk_available_percent: u64,
    /// Share of the process numbers, in percent.
    pub pid_available_percent: u64,
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
            max_pods: 110,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            reserved: Reserved::default(),
            max_parallel_pulls: 4,
            lease_interval: Duration::from_secs(10),
            lease_duration: Duration::from_secs(40),
            status_interval: Duration::from_secs(10),
            eviction: EvictionThresholds {
                memory_available_bytes: 100 << 20,
                disk_available_percent: 5,
                pid_available_percent: 5,
            },
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
