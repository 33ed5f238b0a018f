//! The node agent's container runtime: containerd driven natively over its socket, without CRI and
//! without pause containers.
//!
//! Owns one containerd namespace and touches only what carries its own label in it. Everything that a
//! call makes is found again after a restart of the agent: containers, tasks and images live in
//! containerd, a pod's pinned namespaces under `run_dir`, a container's exit under `state_dir`.
//! Calls are idempotent: repeating one that was cut short finishes it. What to run, and when to run it
//! again, is the kubelet's business.

#![deny(unsafe_code)]

mod cdi;
mod cgroup;
mod containerd;
pub mod durable;
mod error;
mod ids;
mod image;
mod kernel;
pub mod keyed_lock;
pub mod logger;
pub mod logs;
mod paths;
pub mod pod_init;
pub mod pod_namespaces;
mod sandbox;
mod spec;
#[cfg(feature = "testing")]
pub mod testing;
mod types;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

pub use containerd::Containerd;
pub use error::{Error, PullErrorKind, Result};
pub use hawser_fault as fault;
pub use ids::container_id;
pub use types::*;

/// What the kubelet asks of a container runtime.
///
/// [`Containerd`] is the real one; `testing::FakeRuntime` keeps everything in memory.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// The runtime's name and version, as `status.nodeInfo.containerRuntimeVersion` shows it.
    async fn version(&self) -> Result<RuntimeVersion>;

    /// Pulls `image` for this machine's platform and unpacks it. Content that is already here is not
    /// fetched again, but the registry is always asked what the reference points at.
    ///
    /// `auth` is tried in order; empty means anonymous. `progress` is told about each blob.
    async fn pull_image(
        &self,
        image: &str,
        auth: &[RegistryAuth],
        progress: Option<ProgressSender>,
    ) -> Result<Pulled>;

    /// The image that `image` (a reference in any form, or an image id) names here; `None` when absent
    /// or not completely unpacked.
    async fn image_status(&self, image: &str) -> Result<Option<Image>>;

    /// All images, one entry an image id.
    async fn list_images(&self) -> Result<Vec<Image>>;

    /// Forgets every name of the image; content and snapshots go with containerd's garbage collection.
    async fn remove_image(&self, image: &str) -> Result<()>;

    /// Shows the files of an image at `target`, which is made: read-only, and nothing of them can be run. `key` names the
    /// volume; repeating the call changes nothing.
    async fn mount_image(&self, image: &str, key: &str, target: &Path) -> Result<()>;

    /// Ids of the images that are shown so; they are in use.
    async fn images_in_volumes(&self) -> Result<Vec<String>>;

    /// Takes back what was shown at `target`. Absent is success; the directory stays.
    async fn unmount_image(&self, key: &str, target: &Path) -> Result<()>;

    /// Whether pods of that handler can have users of their own; the error says why not. Says the same as long as the
    /// runtime lives.
    fn supports_users(&self, handler: &str) -> Result<(), String>;

    /// Makes the users of a pod that is to have its own, and a network namespace that belongs to them, whose path it
    /// returns. It comes before the pod's network is set up, and that before the sandbox, which has the rest; what
    /// `config` says of the network is not looked at.
    /// Idempotent per pod uid.
    async fn create_pod_users(&self, config: &PodSandboxConfig) -> Result<PathBuf>;

    /// Makes (or completes) what the containers of a pod share. Idempotent per pod uid.
    async fn create_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<PodSandbox>;

    /// Every pod sandbox found on this node, those of pods that nobody wants any more too.
    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>>;

    /// Removes the pod's containers, pinned namespaces, mounts and cgroups. Absent is success.
    async fn remove_pod_sandbox(&self, pod_uid: &str) -> Result<()>;

    /// Makes a container with its root file system and its process, not started yet.
    ///
    /// The id is a function of pod uid, container name and attempt, so a repeated call finds its own
    /// earlier work: a container that is complete is returned, a half-made one is made anew.
    async fn create_container(&self, config: &ContainerConfig) -> Result<ContainerId>;

    /// Starts the created process; success if it already runs.
    async fn start_container(&self, id: &str) -> Result<()>;

    /// Changes what a container may use, from now on. What is `None` stays as it is.
    async fn update_container(&self, id: &str, resources: &Resources) -> Result<()>;

    /// Changes what the pod as a whole may use. What is `None` stays as it is.
    async fn update_pod_sandbox(&self, pod_uid: &str, resources: &Resources) -> Result<()>;

    /// Makes a group of the tree that pods' cgroups are in, or changes its limits. What is `None` stays as it is.
    ///
    /// A memory limit below what is used now is refused: nothing is killed for it.
    async fn update_group(&self, group: &str, limits: &Resources) -> Result<()>;

    /// Sends the container's stop signal, and SIGKILL to all its processes after `timeout`.
    ///
    /// Returns when the container has exited; at once if it has already, or does not exist.
    /// Cancel-safe: a repeated call starts over with the time that it is given.
    async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()>;

    /// Kills what still runs of the container and removes it, its snapshot and its records, but not its
    /// log files. Absent is success.
    async fn remove_container(&self, id: &str) -> Result<()>;

    /// Every container that this runtime made, in no particular order.
    async fn list_containers(&self) -> Result<Vec<ContainerStatus>>;

    /// `None` when there is no such container.
    async fn container_status(&self, id: &str) -> Result<Option<ContainerStatus>>;

    /// A stream of what happens from now on. Subscribe first, then list.
    fn events(&self) -> EventStream;

    /// Starts a process in a running container, with the streams that `request` asks for.
    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Session>;

    /// Runs `command` to its end, for probes and hooks. Output beyond `limit_bytes` (of each stream) is
    /// read and thrown away; after `timeout` the process is killed and the call fails with
    /// [`Error::Timeout`].
    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
        limit_bytes: usize,
    ) -> Result<ExecOutput>;

    /// Attaches to the streams of a running container's own process.
    async fn attach(&self, id: &str, request: &AttachRequest) -> Result<Session>;

    /// Waits until all that an ended container wrote is in its log, which another process writes; gives up
    /// after some seconds where something else holds the container's output open.
    async fn log_complete(&self, id: &str);

    /// What the container uses now; `None` when it does not run.
    async fn stats(&self, id: &str) -> Result<Option<ContainerStats>>;

    /// What a whole pod uses now (all its containers), from its own cgroup; `None` without one.
    async fn pod_stats(&self, pod_uid: &str) -> Result<Option<ContainerStats>>;

    /// What a group of the tree around pods uses, with all in it; `None` without one.
    async fn group_stats(&self, group: &str) -> Result<Option<ContainerStats>>;

    /// What the container's own layer takes on disk; `None` when there is no such container. Walks the layer.
    async fn disk_usage(&self, id: &str) -> Result<Option<DiskUsage>>;

    /// A directory on the file system that holds images and containers' layers.
    async fn image_directory(&self) -> Result<PathBuf>;
}
