//! Space on file systems, and what pods' directories and containers' layers take of it.
//!
//! Measuring walks every directory, so it is done seldom and one pod after the other, where blocking is allowed. A file
//! system that does not answer holds up its own pod alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{DiskUsage, Runtime};
use nix::sys::statvfs::statvfs;
use tokio::task::JoinHandle;
use tracing::warn;

use super::Collector;
use crate::config::Config;
use crate::manager::Pods;
use crate::volumes::volume_dir;
use crate::worker::PodView;

/// Blocks that `stat` counts are of this size, whatever the file system's own is.
const BLOCK_BYTES: u64 = 512;

/// A file system as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsStats {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl FsStats {
    pub fn used_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.available_bytes)
    }

    pub fn inodes_used(&self) -> u64 {
        self.inodes.saturating_sub(self.inodes_free)
    }
}

/// The file system at `path`, or where that is missing, at its parent.
pub fn fs_stats(path: &Path) -> Option<FsStats> {
    let existing = path.ancestors().find(|p| p.exists())?;
    let stat = statvfs(existing).ok()?;
    Some(FsStats {
        capacity_bytes: stat.blocks() * stat.fragment_size(),
        available_bytes: stat.blocks_available() * stat.fragment_size(),
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

/// What one pod's parts take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// By name; those that have a directory of their own here, and those behind claims.
    pub volumes: BTreeMap<String, VolumeDisk>,
    /// By name.
    pub containers: BTreeMap<String, ContainerDisk>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeDisk {
    pub usage: DiskUsage,
    pub fs: FsStats,
    /// Counts for the pod's local storage: on the node's disk, and the pod's alone.
    pub is_ephemeral: bool,
    /// The claim that it is behind.
    pub claim: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerDisk {
    pub layer: DiskUsage,
    pub logs: DiskUsage,
}

impl Measured {
    /// What counts for the pod's limits of local storage.
    pub fn ephemeral(&self) -> DiskUsage {
        let volumes = self.volumes.values().filter(|volume| volume.is_ephemeral).map(|volume| volume.usage);
        let containers = self.containers.values().flat_map(|container| [container.layer, container.logs]);
        sum(volumes.chain(containers))
    }
}

pub fn sum(parts: impl Iterator<Item = DiskUsage>) -> DiskUsage {
    parts.fold(DiskUsage::default(), |total, part| DiskUsage {
        bytes: total.bytes + part.bytes,
        inodes: total.inodes + part.inodes,
    })
}

/// A pod that takes longer to measure (much is in it, or a file system does not answer) holds up no other: what was measured
/// before stands until it is done.
const PATIENCE: Duration = Duration::from_secs(10);
/// Measurements that are under way beyond that, each of which may hold a thread for as long as a file system is silent.
const MAX_LATE: usize = 64;

/// Measures all pods, again and again, for `collector`.
pub async fn keep_measuring(
    config: Arc<Config>,
    runtime: Arc<dyn Runtime>,
    pods: Pods,
    collector: Collector,
) {
    let mut tick = tokio::time::interval(config.volume_stats_interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut measuring = Measuring::default();
    loop {
        tick.tick().await;
        let mut known = collector.disk();
        let mut measured = BTreeMap::new();
        for view in pods.all() {
            let uid = view.pod.metadata.uid.clone().unwrap_or_default();
            let (config, runtime) = (config.clone(), runtime.clone());
            let done = measuring.measure(&uid, async move { measure(&config, &*runtime, &view).await }).await;
            if let Some(of_pod) = done.or_else(|| known.remove(&uid)) {
                measured.insert(uid, of_pod);
            }
        }
        collector.set_disk(measured);
    }
}

/// What is under way.
#[derive(Default)]
struct Measuring {
    /// By uid: what was not done in time.
    late: BTreeMap<String, JoinHandle<Measured>>,
}

impl Measuring {
    /// What `work` says of a pod, or an earlier one that is done by now; `None` where that takes too long. One at a time
    /// for each pod.
    async fn measure(
        &mut self,
        uid: &str,
        work: impl Future<Output = Measured> + Send + 'static,
    ) -> Option<Measured> {
        // Of pods that are gone.
        self.late.retain(|known, task| known == uid || !task.is_finished());
        let (mut task, patience) = match self.late.remove(uid) {
            Some(task) => (task, Duration::ZERO),
            None if self.late.len() >= MAX_LATE => return None,
            None => (tokio::spawn(work), PATIENCE),
        };
        match tokio::time::timeout(patience, &mut task).await {
            Ok(done) => done.ok(),
            Err(_) => {
                if !patience.is_zero() {
                    warn!(uid, "what a pod takes of the disk is not measured yet: a file system is slow");
                }
                self.late.insert(uid.to_owned(), task);
                None
            }
        }
    }
}

/// Measures one pod.
async fn measure(config: &Arc<Config>, runtime: &dyn Runtime, view: &PodView) -> Measured {
    let mut layers = BTreeMap::new();
    for (name, (current, _)) in &view.containers {
        let Some(container) = current else { continue };
        if let Ok(Some(usage)) = runtime.disk_usage(&container.id).await {
            layers.insert(name.clone(), usage);
        }
    }
    let (config, view) = (config.clone(), view.clone());
    let measured = tokio::task::spawn_blocking(move || directories(&config, &view, layers)).await;
    measured.unwrap_or_default()
}

fn directories(config: &Config, view: &PodView, layers: BTreeMap<String, DiskUsage>) -> Measured {
    let meta = &view.pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (namespace, name, uid) = (text(&meta.namespace), text(&meta.name), text(&meta.uid));
    let logs = config.pod_log_dir(&namespace, &name, &uid);
    let volumes = view.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter_map(|volume| {
        let dir = volume_dir(config, &uid, volume);
        let on_disk = volume.empty_dir.as_ref().is_some_and(|source| source.medium.is_none());
        let is_ephemeral = on_disk || volume.config_map.is_some() || volume.downward_api.is_some();
        // What an image holds is the image's.
        (dir.is_dir() && volume.image.is_none()).then(|| {
            let fs = fs_stats(&dir).unwrap_or_default();
            (volume.name.clone(), VolumeDisk { usage: below(&dir), fs, is_ephemeral, claim: None })
        })
    });
    let claimed = view.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter_map(|volume| {
        let mounted = view.volumes.get(&volume.name).filter(|mounted| !mounted.is_block)?;
        let claim = match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => source.claim_name.clone(),
            (None, Some(_)) => format!("{name}-{}", volume.name),
            (None, None) => return None,
        };
        // What others put there too is not walked: the file system as a whole is what there is.
        let fs = fs_stats(&mounted.path)?;
        let usage = DiskUsage { bytes: fs.used_bytes(), inodes: fs.inodes_used() };
        Some((volume.name.clone(), VolumeDisk { usage, fs, is_ephemeral: false, claim: Some(claim) }))
    });
    let containers = view.containers.keys().map(|name| {
        let layer = layers.get(name).copied().unwrap_or_default();
        (name.clone(), ContainerDisk { layer, logs: below(&logs.join(name)) })
    });
    Measured { volumes: volumes.chain(claimed).collect(), containers: containers.collect() }
}

/// What lies at and below `dir` on its own file system; files of several names count once. What goes away meanwhile is
/// left out.
pub fn below(dir: &Path) -> DiskUsage {
    let Ok(root) = fs::symlink_metadata(dir) else { return DiskUsage::default() };
    let mut total = DiskUsage { bytes: root.blocks() * BLOCK_BYTES, inodes: 1 };
    let mut waiting: Vec<PathBuf> = vec![dir.to_owned()];
    let mut linked = BTreeSet::new();
    while let Some(dir) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != root.dev() || meta.nlink() > 1 && !meta.is_dir() && !linked.insert(meta.ino()) {
                continue;
            }
            total.bytes += meta.blocks() * BLOCK_BYTES;
            total.inodes += 1;
            if meta.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_is_measured_with_all_below_and_links_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let empty = below(dir.path());
        assert_eq!(empty.inodes, 1);
        let sub = dir.path().join("a/b");
        fs::create_dir_all(&sub).expect("made");
        fs::write(sub.join("f"), vec![1; 100_000]).expect("written");
        let before = below(dir.path());
        assert_eq!(before.inodes, 4);
        assert!(before.bytes >= empty.bytes + 100_000, "{before:?}");
        fs::hard_link(sub.join("f"), dir.path().join("g")).expect("linked");
        std::os::unix::fs::symlink("/", dir.path().join("h")).expect("linked");
        let after = below(dir.path());
        assert_eq!((after.inodes, after.bytes), (5, before.bytes));
        assert_eq!(below(&dir.path().join("none")), DiskUsage::default());
    }

    #[tokio::test(start_paused = true)]
    async fn pod_whose_file_system_is_silent_holds_up_no_other() {
        let mut measuring = Measuring::default();
        let of = |bytes| {
            let usage = DiskUsage { bytes, inodes: 1 };
            let disk = ContainerDisk { layer: usage, ..ContainerDisk::default() };
            Measured { containers: [("c".to_owned(), disk)].into(), ..Measured::default() }
        };
        let (answer, answered) = tokio::sync::oneshot::channel();
        let silent = async move { answered.await.unwrap_or_default() };
        assert_eq!(measuring.measure("hung", silent).await, None);
        assert_eq!(measuring.measure("well", std::future::ready(of(1))).await, Some(of(1)));
        assert_eq!(measuring.measure("hung", std::future::ready(of(2))).await, None, "not twice at once");
        answer.send(of(3)).expect("waited for");
        tokio::task::yield_now().await;
        assert_eq!(measuring.measure("hung", std::future::ready(of(4))).await, Some(of(3)));
        assert_eq!(measuring.measure("hung", std::future::ready(of(4))).await, Some(of(4)));
        for n in 0..MAX_LATE {
            measuring.measure(&n.to_string(), std::future::pending()).await;
        }
        assert_eq!(measuring.measure("well", std::future::ready(of(1))).await, None, "bounded");
    }
}
