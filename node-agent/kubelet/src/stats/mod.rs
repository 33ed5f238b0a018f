//! What the node, its pods and their containers use: gathered once for all who ask.
//!
//! CPU and memory come from cgroups, which the runtime finds, network and processes from `/proc`, space from file
//! systems. A gathering is good for [`FRESH`], so that no number of requests costs more than one in that time; what
//! directories hold is measured apart and seldom ([`disk`]). Rates are taken between one gathering and the one before.

pub mod disk;
mod gather;
pub mod network;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{ContainerStats, DiskUsage, Runtime};
use jiff::Timestamp;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

use crate::config::Config;
use crate::manager::Pods;
use disk::{FsStats, Measured};
use network::Interface;

/// How long a gathering is handed out again.
const FRESH: Duration = Duration::from_secs(1);

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub at: Timestamp,
    pub node: NodeStats,
    /// In order of namespace and name.
    pub pods: Vec<PodStats>,
}

#[derive(Clone, Debug, Default)]
pub struct NodeStats {
    pub cpu: Cpu,
    pub memory_total_bytes: u64,
    pub memory_available_bytes: u64,
    pub memory_free_bytes: u64,
    pub swap_total_bytes: u64,
    pub swap_free_bytes: u64,
    pub network: Vec<Interface>,
    /// Of pods' volumes and logs.
    pub fs: Option<FsStats>,
    /// Of images and containers' layers.
    pub image_fs: Option<FsStats>,
    /// Of all pods together; unset where it is not bounded.
    pub pods_memory: Option<PodsMemory>,
    pub pids_max: u64,
    pub pids: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodsMemory {
    pub working_set_bytes: u64,
    pub limit_bytes: u64,
}

impl NodeStats {
    pub fn working_set_bytes(&self) -> u64 {
        self.memory_total_bytes.saturating_sub(self.memory_available_bytes)
    }
}

/// Time used since the beginning, and per second of late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    pub usage_ns: u64,
    /// Billionths of a CPU; unset before there are two gatherings.
    pub nano_cores: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct PodStats {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Below the cgroup roots; empty where it is not known.
    pub cgroup: String,
    pub started_at: Option<Timestamp>,
    pub cpu: Cpu,
    pub usage: ContainerStats,
    /// Empty for pods on the node's own network.
    pub network: Vec<Interface>,
    /// Those that run.
    pub containers: Vec<ContainerEntry>,
    pub disk: Measured,
}

#[derive(Clone, Debug, Default)]
pub struct ContainerEntry {
    pub id: String,
    pub name: String,
    pub image: String,
    pub attempt: u32,
    pub started_at: Option<Timestamp>,
    pub cpu: Cpu,
    pub usage: ContainerStats,
}

impl PodStats {
    pub fn container_disk(&self, name: &str) -> (DiskUsage, DiskUsage) {
        self.disk.containers.get(name).map_or_else(Default::default, |c| (c.layer, c.logs))
    }
}

/// Gathers. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Collector {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Arc<dyn Runtime>,
    /// `None`: whatever the runtime has, for a server without a kubelet.
    pods: Option<Pods>,
    root_dir: PathBuf,
    /// Below which the cgroups of pods are.
    cgroup_root: Option<String>,
    image_dir: OnceCell<PathBuf>,
    disk: parking_lot::Mutex<BTreeMap<String, Measured>>,
    newest: Mutex<Option<(Instant, Arc<Snapshot>)>>,
}

impl Collector {
    pub fn new(config: &Config, runtime: Arc<dyn Runtime>, pods: Pods) -> Self {
        Self::build(runtime, Some(pods), config.root_dir.clone(), Some(config.cgroup_root.clone()))
    }

    /// Of all that a runtime has.
    pub fn of_runtime(runtime: Arc<dyn Runtime>) -> Self {
        Self::build(runtime, None, "/".into(), None)
    }

    fn build(
        runtime: Arc<dyn Runtime>,
        pods: Option<Pods>,
        root_dir: PathBuf,
        cgroup_root: Option<String>,
    ) -> Self {
        let (image_dir, disk, newest) = (OnceCell::new(), Default::default(), Mutex::default());
        Self { inner: Arc::new(Inner { runtime, pods, root_dir, cgroup_root, image_dir, disk, newest }) }
    }

    /// What is used now, or was a moment ago. Errors of the runtime leave out what they concern.
    pub async fn collect(&self) -> Arc<Snapshot> {
        let mut newest = self.inner.newest.lock().await;
        if let Some((at, snapshot)) = newest.as_ref()
            && at.elapsed() < FRESH
        {
            return snapshot.clone();
        }
        let before = newest.as_ref().map(|(_, snapshot)| snapshot.clone());
        let snapshot = Arc::new(self.inner.gather(before.as_deref()).await);
        *newest = Some((Instant::now(), snapshot.clone()));
        snapshot
    }

    /// Takes what pods' directories hold, by uid, in the place of what was known. Bounded by the node's pods.
    pub fn set_disk(&self, measured: BTreeMap<String, Measured>) {
        *self.inner.disk.lock() = measured;
    }

    /// What was last measured, by uid.
    pub fn disk(&self) -> BTreeMap<String, Measured> {
        self.inner.disk.lock().clone()
    }

    /// Space where images and containers' layers are; `None` while the runtime does not say where.
    pub async fn image_fs(&self) -> Option<FsStats> {
        self.inner.image_fs().await
    }

    /// Space where pods' volumes and logs are.
    pub fn node_fs(&self) -> Option<FsStats> {
        disk::fs_stats(&self.inner.root_dir)
    }
}
