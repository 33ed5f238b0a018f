//! The runtime on containerd: connects, and puts the parts together behind [`Runtime`].

mod ask;
mod attach;
mod container;
mod events;
mod exec;
mod exit;
mod fifo;
mod image_volume;
mod log_writers;
mod mapped;
mod record;
pub(crate) mod rpc;
mod status;
mod stored;
mod task_io;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_client::services::v1::{CreateNamespaceRequest, Namespace, PluginsRequest};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cgroup::Cgroups;
use crate::image::Images;
use crate::keyed_lock::KeyedLock;
use crate::paths::Paths;
use crate::sandbox::Sandboxes;
use crate::{
    AttachRequest, Config, ContainerConfig, ContainerId, ContainerStats, ContainerStatus, DiskUsage, Error,
    EventStream, ExecOutput, ExecRequest, Image, PodSandbox, PodSandboxConfig, ProgressSender, Pulled,
    RegistryAuth, Resources, Result, Runtime, RuntimeEvent, RuntimeVersion, Session,
};
use record::Records;
use rpc::Rpc;
use stored::Stored;

/// Events kept for a reader that is behind; one that falls further behind is told to list again.
const EVENT_QUEUE: usize = 1024;

/// containerd, driven natively. Dropping it ends its own tasks and leaves containers alone.
pub struct Containerd {
    inner: Arc<Inner>,
    stop: CancellationToken,
}

struct Inner {
    config: Config,
    rpc: Rpc,
    snapshotter: String,
    images: Images,
    sandboxes: Sandboxes,
    /// Whether pods can have users of their own, or why not.
    users: Result<(), String>,
    cgroups: Cgroups,
    paths: Paths,
    records: Records,
    /// What is stored with each container, so that its exit is reported without asking containerd.
    known: Mutex<HashMap<ContainerId, Arc<Stored>>>,
    /// What processes that exec makes are made after, of containers in which it has made some.
    exec_specs: Mutex<HashMap<ContainerId, Arc<serde_json::Value>>>,
    /// Containers whose start is under way and not told yet. A process can end before the call that started
    /// it returns; its start is told first all the same.
    starting: Mutex<HashSet<ContainerId>>,
    /// By pod uid: making, starting and deleting tasks of one pod. Its shim starts with the first and ends with the
    /// last of them, and must not be asked for a task while it goes.
    pod_locks: KeyedLock,
    /// Reading ends of containers' pipes, for log writers that take the place of killed ones.
    outputs: log_writers::Outputs,
    events: broadcast::Sender<RuntimeEvent>,
    /// Work that outlives the call that caused it (deleting an exited task, ending an exec).
    background: TaskTracker,
}

impl Containerd {
    /// Connects, makes the namespace if it is new, records what ended while no agent ran, and begins to
    /// listen for events.
    pub async fn connect(config: Config) -> Result<Self> {
        let rpc = Rpc::connect(&config.socket, &config.namespace).await?;
        let namespace = Namespace { name: config.namespace.clone(), ..Default::default() };
        let create = CreateNamespaceRequest { namespace: Some(namespace) };
        rpc::create("create namespace", rpc.namespaces().create(create)).await?;
        let snapshotter = match &config.snapshotter {
            Some(name) => name.clone(),
            None => choose_snapshotter(&rpc).await?,
        };
        let paths = Paths::new(&config);
        let cgroups = Cgroups::find()?;
        let (events, _) = broadcast::channel(EVENT_QUEUE);
        let sandboxes = Sandboxes::new(paths.clone(), cgroups.clone(), config.log_writer.program.clone());
        let records = Records::load(paths.clone())?;
        let users = probe_users(&rpc, &snapshotter, &config.state_dir, &sandboxes).await;
        let inner = Arc::new(Inner {
            images: Images::new(rpc.clone(), snapshotter.clone(), config.registries.clone()),
            sandboxes,
            users,
            records,
            known: Mutex::default(),
            exec_specs: Mutex::default(),
            starting: Mutex::default(),
            pod_locks: KeyedLock::default(),
            outputs: log_writers::Outputs::default(),
            background: TaskTracker::new(),
            events,
            snapshotter,
            cgroups,
            paths,
            rpc,
            config,
        });
        let known = inner.relist().await?;
        inner.forget_strangers(&known)?;
        let stop = CancellationToken::new();
        inner.background.spawn(events::run(Arc::clone(&inner), stop.clone()));
        Ok(Self { inner, stop })
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// overlayfs where containerd could load it (the file system below it has to play along), else native.
async fn choose_snapshotter(rpc: &Rpc) -> Result<String> {
    let filters = vec!["type==io.containerd.snapshotter.v1".to_owned()];
    let answer = rpc::call("list plugins", rpc.introspection().plugins(PluginsRequest { filters })).await?;
    let works = |name: &&str| answer.plugins.iter().any(|p| p.id == *name && p.init_err.is_none());
    match ["overlayfs", "native"].into_iter().find(|name| works(name)) {
        Some(name) => {
            tracing::info!(snapshotter = name, "snapshotter chosen");
            Ok(name.to_owned())
        }
        None => Err(Error::Containerd {
            attempted: "choose a snapshotter",
            message: "neither overlayfs nor native was loaded".into(),
        }),
    }
}

/// Where the snapshotter keeps layers.
async fn snapshots_directory(rpc: &Rpc, snapshotter: &str) -> Result<PathBuf> {
    let filters = vec![format!("type==io.containerd.snapshotter.v1,id=={snapshotter}")];
    let answer = rpc::call("list plugins", rpc.introspection().plugins(PluginsRequest { filters })).await?;
    let root = answer.plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("root"));
    root.map(PathBuf::from).ok_or_else(|| Error::NotFound { kind: "snapshotter", id: snapshotter.to_owned() })
}

/// Whether pods can have users of their own here: told once, as it does not change.
async fn probe_users(
    rpc: &Rpc,
    snapshotter: &str,
    state_dir: &Path,
    sandboxes: &Sandboxes,
) -> Result<(), String> {
    let probed = async {
        // The last stands for volumes in memory, as secrets are.
        let directories =
            vec![state_dir.to_owned(), snapshots_directory(rpc, snapshotter).await?, "/dev/shm".into()];
        let sandboxes = sandboxes.clone();
        blocking(move || sandboxes.probe_users(&directories)).await
    };
    probed.await.map_err(|error: Error| {
        let why = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        tracing::info!(%error, why, "pods cannot have users of their own");
        format!("{error}{why}")
    })
}

/// Runs what blocks (mounts, namespaces, cgroups) where blocking is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[async_trait]
impl Runtime for Containerd {
    async fn version(&self) -> Result<RuntimeVersion> {
        let answer = rpc::call("ask for the version", self.inner.rpc.version().version(())).await?;
        // Debian says `1.6.20~ds1`.
        let version = answer.version.split('~').next().unwrap_or("").trim_start_matches('v').to_owned();
        Ok(RuntimeVersion { name: "containerd".into(), version })
    }

    async fn pull_image(
        &self,
        image: &str,
        auth: &[RegistryAuth],
        progress: Option<ProgressSender>,
    ) -> Result<Pulled> {
        self.inner.images.pull(image, auth, progress).await
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        self.inner.images.status(image).await
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        self.inner.images.list().await
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        self.inner.images.remove(image).await
    }

    async fn mount_image(&self, image: &str, key: &str, target: &Path) -> Result<()> {
        self.inner.mount_image(image, key, target).await
    }

    async fn images_in_volumes(&self) -> Result<Vec<String>> {
        self.inner.images_in_volumes().await
    }

    async fn unmount_image(&self, key: &str, target: &Path) -> Result<()> {
        self.inner.unmount_image(key, target).await
    }

    fn supports_users(&self, handler: &str) -> Result<(), String> {
        let known = self.inner.config.handlers.get(handler);
        if known.is_some_and(|handler| handler.shim != crate::RuntimeHandler::RUNC_SHIM) {
            return Err("they are made for runc alone".to_owned());
        }
        self.inner.users.clone()
    }

    async fn create_pod_users(&self, config: &PodSandboxConfig) -> Result<PathBuf> {
        let (sandboxes, config) = (self.inner.sandboxes.clone(), config.clone());
        let _alone = self.inner.pod_locks.lock(&config.pod_uid).await;
        blocking(move || sandboxes.create_users(&config)).await
    }

    async fn create_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<PodSandbox> {
        let (sandboxes, config) = (self.inner.sandboxes.clone(), config.clone());
        let _alone = self.inner.pod_locks.lock(&config.pod_uid).await;
        blocking(move || sandboxes.create(&config)).await
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>> {
        let sandboxes = self.inner.sandboxes.clone();
        blocking(move || sandboxes.list()).await
    }

    async fn remove_pod_sandbox(&self, pod_uid: &str) -> Result<()> {
        for id in self.inner.containers_of(pod_uid).await? {
            self.inner.remove_container(&id).await?;
        }
        let _alone = self.inner.pod_locks.lock(pod_uid).await;
        let (sandboxes, pod_uid) = (self.inner.sandboxes.clone(), pod_uid.to_owned());
        blocking(move || sandboxes.remove(&pod_uid)).await
    }

    async fn create_container(&self, config: &ContainerConfig) -> Result<ContainerId> {
        self.inner.create_container(config).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.inner.start_container(id).await
    }

    async fn update_container(&self, id: &str, resources: &Resources) -> Result<()> {
        self.inner.update_container(id, resources).await
    }

    async fn update_pod_sandbox(&self, pod_uid: &str, resources: &Resources) -> Result<()> {
        let (sandboxes, resources) = (self.inner.sandboxes.clone(), resources.clone());
        let _alone = self.inner.pod_locks.lock(pod_uid).await;
        let pod_uid = pod_uid.to_owned();
        blocking(move || sandboxes.update(&pod_uid, &resources)).await
    }

    async fn update_group(&self, group: &str, limits: &Resources) -> Result<()> {
        let (cgroups, group, limits) = (self.inner.cgroups.clone(), group.to_owned(), limits.clone());
        blocking(move || cgroups.update_level(&group, &limits)).await
    }

    async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()> {
        self.inner.stop_container(id, timeout).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.inner.remove_container(id).await
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>> {
        self.inner.list_statuses().await
    }

    async fn container_status(&self, id: &str) -> Result<Option<ContainerStatus>> {
        self.inner.status(id).await
    }

    fn events(&self) -> EventStream {
        EventStream { receiver: self.inner.events.subscribe() }
    }

    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Session> {
        self.inner.exec(id, request).await
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
        limit_bytes: usize,
    ) -> Result<ExecOutput> {
        self.inner.exec_sync(id, command, timeout, limit_bytes).await
    }

    async fn attach(&self, id: &str, request: &AttachRequest) -> Result<Session> {
        self.inner.attach(id, request).await
    }

    async fn log_complete(&self, id: &str) {
        self.inner.log_complete(id).await;
    }

    async fn stats(&self, id: &str) -> Result<Option<ContainerStats>> {
        let Some(stored) = self.inner.stored(id).await? else { return Ok(None) };
        Ok(self.inner.cgroups.stats(&stored.cgroup))
    }

    async fn pod_stats(&self, pod_uid: &str) -> Result<Option<ContainerStats>> {
        let (sandboxes, pod_uid) = (self.inner.sandboxes.clone(), pod_uid.to_owned());
        let sandbox = blocking(move || sandboxes.load(&pod_uid)).await?;
        Ok(sandbox.and_then(|sandbox| self.inner.cgroups.stats(&sandbox.config.cgroup_parent)))
    }

    async fn group_stats(&self, group: &str) -> Result<Option<ContainerStats>> {
        Ok(self.inner.cgroups.stats(group))
    }

    async fn disk_usage(&self, id: &str) -> Result<Option<DiskUsage>> {
        self.inner.disk_usage(id).await
    }

    async fn image_directory(&self) -> Result<PathBuf> {
        snapshots_directory(&self.inner.rpc, &self.inner.snapshotter).await
    }
}
