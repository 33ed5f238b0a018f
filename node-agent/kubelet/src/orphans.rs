//! What pods that are gone have left on the node: found in the runtime, the network and on disk, and removed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use hawser_runtime::{ContainerState, ContainerStatus, PodSandbox};
use tracing::{info, warn};

use crate::manager::Pods;
use crate::static_pods::CONFIG_FILE;
use crate::worker::actions::Shared;

/// Grace of containers whose pod is not known any more.
const ORPHAN_GRACE: Duration = Duration::from_secs(30);
/// Pods whose remains are removed at the same time: one that hangs holds up few.
const REMOVALS: usize = 8;

/// Finds and removes what pods that are gone have left.
pub(crate) struct Orphans {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pods: Pods,
}

impl Orphans {
    /// Stops and removes what belongs to pods that neither the API nor a worker knows. Static pods whose file could
    /// not be read yet are spared. What cannot be removed now holds up
    /// nothing else; false where there is some of that, which is to be tried again.
    pub(crate) async fn remove_all(&self) -> Result<bool, String> {
        let text = |e: hawser_runtime::Error| e.to_string();
        let containers = self.shared.runtime.list_containers().await.map_err(text)?;
        let sandboxes = self.shared.runtime.list_pod_sandboxes().await.map_err(text)?;
        let networks = self.shared.network.list().await.map_err(|e| e.to_string())?;
        let dirs = self.shared.volumes.list().map_err(|e| e.to_string())?;
        let logs = log_dirs(&self.shared.config.log_dir).map_err(|e| e.to_string())?;
        let mut uids: BTreeSet<String> = containers.iter().map(|c| c.pod_uid.clone()).collect();
        let spared: BTreeSet<&str> =
            sandboxes.iter().filter(|s| self.may_come(s)).map(|s| s.config.pod_uid.as_str()).collect();
        uids.extend(sandboxes.iter().map(|s| s.config.pod_uid.clone()));
        uids.extend(networks);
        uids.extend(dirs);
        uids.extend(logs.keys().cloned());
        uids.extend(self.shared.dra.pods());
        let wanted = [self.shared.objects.pods.all(), self.shared.statics.all()].concat();
        let wanted: BTreeSet<&str> = wanted.iter().filter_map(|p| p.metadata.uid.as_deref()).collect();
        let workers = self.pods.uids();
        let is_orphan = |uid: &String| {
            !wanted.contains(uid.as_str()) && !workers.contains(uid) && !spared.contains(uid.as_str())
        };
        self.shared.devices.release_all(|uid| !is_orphan(&uid.to_owned()));
        self.shared.cpus.release_all(|uid| !is_orphan(&uid.to_owned()));
        self.shared.memory.release_all(|uid| !is_orphan(&uid.to_owned()));
        let orphans: Vec<String> = uids.into_iter().filter(is_orphan).collect();
        let (containers, logs) = (&containers, &logs);
        let removals = futures::stream::iter(orphans).map(|uid| async move {
            let mine: Vec<&ContainerStatus> = containers.iter().filter(|c| c.pod_uid == uid).collect();
            info!(uid, containers = mine.len(), "removing what is left of a pod that is gone");
            let removed = self.remove(&uid, &mine, logs.get(&uid)).await;
            if let Err(error) = &removed {
                warn!(uid, error, "what is left of a pod was not removed, trying again");
            }
            removed.is_ok()
        });
        let removed = removals
            .buffer_unordered(REMOVALS)
            .fold(true, |all, removed| async move { all && removed })
            .await;
        Ok(self.shared.volumes.unstage_unused().await && removed && spared.is_empty())
    }

    /// A static pod's, whose file was not read yet.
    fn may_come(&self, sandbox: &PodSandbox) -> bool {
        let file = sandbox.config.annotations.get(CONFIG_FILE);
        file.is_some_and(|file| self.shared.statics.is_unread(Path::new(file)))
    }

    async fn remove(
        &self,
        uid: &str,
        containers: &[&ContainerStatus],
        logs: Option<&PathBuf>,
    ) -> Result<(), String> {
        let running = containers.iter().filter(|c| c.state == ContainerState::Running);
        let stops = running.map(|c| self.shared.runtime.stop_container(&c.id, ORPHAN_GRACE));
        futures::future::try_join_all(stops).await.map_err(|e| e.to_string())?;
        self.shared.runtime.remove_pod_sandbox(uid).await.map_err(|e| e.to_string())?;
        self.shared.dra.unprepare(uid).await?;
        self.shared.network.teardown(uid).await.map_err(|e| e.to_string())?;
        self.shared.volumes.remove_pod_dir(uid).await.map_err(|e| e.to_string())?;
        match logs {
            Some(dir) => tokio::fs::remove_dir_all(dir).await.map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }
}

/// The directories of pods' logs, by uid: `<namespace>_<name>_<uid>`. What is named otherwise is not ours.
fn log_dirs(dir: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries?,
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // No part of it can hold an underscore.
        if let [_, _, uid] = name.split('_').collect::<Vec<_>>()[..] {
            found.insert(uid.to_owned(), entry.path());
        }
    }
    Ok(found)
}
