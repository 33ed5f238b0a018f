//! What callers of the runtime pass in and get back: plain data, no containerd types.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc};

use crate::error::Result;

/// Id of a container: 64 hex digits, derived from pod uid, container name and attempt.
pub type ContainerId = String;

/// How to reach containerd and where to keep what belongs to this node.
#[derive(Debug, Clone)]
pub struct Config {
    /// containerd's gRPC socket.
    pub socket: PathBuf,
    /// containerd namespace that this runtime owns.
    pub namespace: String,
    /// Kept over reboots: records of exits.
    pub state_dir: PathBuf,
    /// Belongs to one boot (on a tmpfs in production): pinned namespaces, /dev/shm mounts, FIFOs,
    /// runc's state. Visible at the same path in containerd's mount namespace.
    pub run_dir: PathBuf,
    /// `None`: overlayfs where it works, else native.
    pub snapshotter: Option<String>,
    /// Program (with leading arguments) that [`crate::logger::run`] was built into. The runtime appends
    /// one argument, so with `program: node-agent, mode: "log-writer"` the shim runs
    /// `node-agent log-writer <file>`.
    pub log_writer: LogWriter,
    pub registries: Registries,
    /// Where devices of the Container Device Interface are described; later directories win over earlier ones.
    pub cdi_dirs: Vec<PathBuf>,
    /// What runs the pods of a handler, beside runc, which runs all others; by the name that their RuntimeClass gives it.
    pub handlers: BTreeMap<String, RuntimeHandler>,
    /// How often everything is listed again although no event asked for it.
    pub relist_interval: Duration,
}

/// A runtime that containerd has beside runc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeHandler {
    /// containerd's name of its shim: `io.containerd.runc.v2`.
    pub shim: String,
    /// What runc's shim runs in the place of runc (`BinaryName`).
    pub binary: Option<String>,
}

impl RuntimeHandler {
    /// The shim of runc, which others that are called like it have, too.
    pub const RUNC_SHIM: &str = "io.containerd.runc.v2";
}

/// Program that the shim starts to write a container's log.
#[derive(Debug, Clone)]
pub struct LogWriter {
    /// Absolute path of the binary.
    pub program: PathBuf,
    /// Its first argument; the second is the path of the writer's configuration.
    pub mode: String,
    /// A log file is rotated when it reaches this size.
    pub max_size_bytes: u64,
    /// Number of files kept of one container, the current one included.
    pub max_files: u32,
}

/// How registries are reached: by default over HTTPS at their own name (`docker.io`, `127.0.0.1:5000`, ...).
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// containerd's `certs.d`: a directory for each registry, with a `hosts.toml` that names mirrors, authorities and
    /// headers. Read at every pull; one that is not there says nothing.
    pub config_dir: Option<PathBuf>,
    /// Plain HTTP is spoken only to these, and to hosts whose `hosts.toml` says `http://`.
    pub plain_http: BTreeSet<String>,
    /// The node's own credentials, by host.
    pub auth: BTreeMap<String, RegistryAuth>,
}

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum RegistryAuth {
    Basic {
        username: String,
        password: String,
    },
    Bearer {
        token: String,
    },
    /// A refresh token (OAuth 2), for which the registry's authority gives one that the registry takes: what Docker calls
    /// an identity token.
    Identity {
        token: String,
    },
}

impl fmt::Debug for RegistryAuth {
    /// Never shows the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username}, ...)"),
            Self::Bearer { .. } => write!(f, "Bearer(...)"),
            Self::Identity { .. } => write!(f, "Identity(...)"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// `containerd`
    pub name: String,
    /// `1.6.20`
    pub version: String,
}

/// An image on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of the image's configuration, `sha256:...`.
    pub id: String,
    /// `docker.io/library/busybox:latest`, ...
    pub repo_tags: Vec<String>,
    /// `docker.io/library/busybox@sha256:...`, ...; the first is what `imageID` of a container status shows.
    pub repo_digests: Vec<String>,
    /// Compressed size of its layers and configuration.
    pub size_bytes: u64,
    /// `User` of the image's configuration: name or uid, optionally `:group`; empty means root.
    pub user: String,
}

/// An image that was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    pub image: Image,
    /// Which of the credentials that were given the registry took; `None` where it was asked with none of them.
    pub credential: Option<usize>,
}

/// Bounded; a full channel drops the message: progress is only ever shown.
pub type ProgressSender = mpsc::Sender<PullProgress>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullProgress {
    Resolved { digest: String, total_bytes: u64 },
    Layer { digest: String, fetched_bytes: u64, total_bytes: u64 },
    Unpacking { digest: String },
}

/// What the containers of a pod share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodSandboxConfig {
    pub pod_uid: String,
    pub pod_name: String,
    pub pod_namespace: String,
    /// Set in the pod's own UTS namespace.
    pub hostname: String,
    pub network: PodNetwork,
    /// Share the node's IPC namespace and /dev/shm.
    pub host_ipc: bool,
    /// Share the node's process namespace.
    pub host_pid: bool,
    /// The containers see each other's processes.
    #[serde(default)]
    pub share_pid: bool,
    /// Size of the pod's /dev/shm; `None`: 64 MiB.
    pub shm_size_bytes: Option<u64>,
    /// Path of the pod's cgroup below the cgroup roots (`/hawser/<node>/kubepods/.../pod<uid>`).
    pub cgroup_parent: String,
    /// Limits of the pod's cgroup as a whole.
    pub resources: Resources,
    pub sysctls: BTreeMap<String, String>,
    /// The users that the pod has to itself; `None`: the node's.
    #[serde(default)]
    pub users: Option<IdRange>,
    /// What runs the pod, as its RuntimeClass names it; empty where none was asked for.
    #[serde(default)]
    pub runtime_handler: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// Numbers of users, and of groups, of the node: what a pod that has users of its own knows as 0 and upward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// What is root in the pod.
    pub first: u32,
    pub count: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodNetwork {
    /// The network namespace in which this agent runs.
    #[default]
    Host,
    /// A pinned network namespace, made by the network crate.
    Path(PathBuf),
}

#[derive(Debug, Clone, PartialEq)]
pub struct PodSandbox {
    pub config: PodSandboxConfig,
    pub created_at: Timestamp,
    /// False when a pinned namespace or mount is gone (the machine was started again): the pod's
    /// containers cannot be started in it; create the sandbox again.
    pub ready: bool,
}

/// One container to make.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerConfig {
    /// The pod's sandbox must exist.
    pub pod_uid: String,
    pub name: String,
    /// Counts restarts of this container in this pod, from 0.
    pub attempt: u32,
    /// Reference or id of an image that was pulled.
    pub image: String,
    /// Replaces the image's entrypoint (and drops its command), unless empty.
    pub command: Vec<String>,
    /// Replaces the image's command, unless empty.
    pub args: Vec<String>,
    /// Wins over the image's environment, later entries over earlier ones.
    pub env: Vec<(String, String)>,
    /// `None`: the image's, else `/`.
    pub working_dir: Option<String>,
    pub mounts: Vec<Mount>,
    /// Devices of the node that it may use; a privileged container has all of them besides.
    pub devices: Vec<DeviceMapping>,
    /// Devices of the Container Device Interface, as `vendor.com/class=name`.
    pub cdi_devices: Vec<String>,
    pub security: Security,
    pub resources: Resources,
    /// When one of its processes is out of memory, the kernel ends all of them (cgroup v2).
    pub oom_group: bool,
    /// The shim writes stdout and stderr there in CRI log format; parent directories are made.
    pub log_path: PathBuf,
    pub tty: bool,
    pub stdin: bool,
    /// Close stdin when the first attached client leaves.
    pub stdin_once: bool,
    /// `None`: the image's, else SIGTERM. `SIGUSR1`, `USR1` or a number.
    pub stop_signal: Option<String>,
    /// A running container of the pod whose processes this one sees, for debugging.
    pub join_pid_of: Option<ContainerId>,
    /// Kept with the container and given back by `list_containers`.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    pub container_path: PathBuf,
    pub host_path: PathBuf,
    pub read_only: bool,
    /// What is mounted below is read-only too.
    pub recursive_read_only: bool,
    /// Nothing in it can be run.
    pub no_exec: bool,
    pub propagation: MountPropagation,
}

/// A device node of this machine, as a container sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceMapping {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// Some of `r` (read), `w` (write) and `m` (make the node).
    pub permissions: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MountPropagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// `None`: the image's user (by name or number), else root.
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// Add the groups that the image's /etc/group gives the user.
    pub merge_image_groups: bool,
    /// Fail when the user turns out to be root.
    pub run_as_non_root: bool,
    pub privileged: bool,
    pub read_only_root: bool,
    pub no_new_privileges: bool,
    /// Names with or without `CAP_`; `ALL`.
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub seccomp: Seccomp,
    pub apparmor: AppArmor,
    pub selinux: SeLinux,
    /// `procMount: Unmasked`
    pub unmasked_proc: bool,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            run_as_user: None,
            run_as_group: None,
            supplemental_groups: Vec::new(),
            merge_image_groups: true,
            run_as_non_root: false,
            privileged: false,
            read_only_root: false,
            no_new_privileges: false,
            add_capabilities: Vec::new(),
            drop_capabilities: Vec::new(),
            seccomp: Seccomp::default(),
            apparmor: AppArmor::default(),
            selinux: SeLinux::default(),
            unmasked_proc: false,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AppArmor {
    /// The runtime's own where the kernel has AppArmor, as containerd's CRI has it.
    #[default]
    Unspecified,
    Unconfined,
    RuntimeDefault,
    /// A profile that is loaded, by its name.
    Localhost(String),
}

/// Parts of an SELinux label; what is unset is as for containers in general.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeLinux {
    pub user: Option<String>,
    pub role: Option<String>,
    /// `type`
    pub kind: Option<String>,
    pub level: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Seccomp {
    #[default]
    Unconfined,
    RuntimeDefault,
    /// Absolute path of a profile in the format of the OCI runtime specification.
    Localhost(PathBuf),
}

/// Limits of a cgroup; `None` leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub cpu_shares: Option<u64>,
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub memory_limit_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Bytes by page size as the kernel spells it: `2MB`, `1GB`.
    #[serde(default)]
    pub hugepage_limits: BTreeMap<String, u64>,
    /// Of containers only.
    pub oom_score_adj: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, its process not started.
    Created,
    Running,
    Exited,
    /// Half-made, or its record survived its process without saying how it ended; remove it.
    Unknown,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStatus {
    pub id: ContainerId,
    pub pod_uid: String,
    pub pod_name: String,
    pub pod_namespace: String,
    pub name: String,
    pub attempt: u32,
    /// The reference that the container was made with.
    pub image: String,
    /// What `imageID` shows: repository@digest, else the image id.
    pub image_ref: String,
    pub state: ContainerState,
    pub pid: Option<u32>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub exit: Option<ContainerExit>,
    pub log_path: PathBuf,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerExit {
    /// 128 + n when killed by signal n.
    pub exit_code: i32,
    pub finished_at: Timestamp,
    pub oom_killed: bool,
    /// Set when the end was not seen (its shim died): the exit code is made up (137).
    pub unobserved: bool,
}

impl ContainerExit {
    /// `terminated.reason` as upstream words it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self { oom_killed: true, .. } => "OOMKilled",
            Self { unobserved: true, .. } => "ContainerStatusUnknown",
            Self { exit_code: 0, .. } => "Completed",
            _ => "Error",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum RuntimeEvent {
    Started {
        id: ContainerId,
        pod_uid: String,
    },
    /// The container's own process ended; its status is recorded before this is sent.
    Exited {
        id: ContainerId,
        pod_uid: String,
        exit: ContainerExit,
    },
    /// The kernel killed some process in the container for memory.
    Oom {
        id: ContainerId,
        pod_uid: String,
    },
    /// Events may have been missed (containerd was away, or this reader was slow): list again.
    Resync,
}

/// Events in order, from the moment of subscription on. Never ends while the runtime lives.
pub struct EventStream {
    pub(crate) receiver: broadcast::Receiver<RuntimeEvent>,
}

impl EventStream {
    /// The next event; `None` when the runtime was shut down. Cancel-safe.
    ///
    /// A reader that falls behind the bounded queue gets one [`RuntimeEvent::Resync`] in place of what
    /// it missed.
    pub async fn next(&mut self) -> Option<RuntimeEvent> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(RuntimeEvent::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    /// Ignored with a terminal, which has one output.
    pub stderr: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttachRequest {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    pub exit_code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// Streams of a process. Dropping `stdin` closes the process's standard input.
pub struct Session {
    pub stdin: Option<BoxWrite>,
    pub stdout: Option<BoxRead>,
    pub stderr: Option<BoxRead>,
    /// Sizes of the terminal, the latest counts; `None` without a terminal.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// The exit code, once the process has ended. Dropping it (and so the session) kills a process
    /// that exec started, and leaves a container that was attached to alone.
    pub exit: BoxFuture<'static, Result<i32>>,
}

/// What a cgroup uses, with all below it. Counters count from the group's making.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerStats {
    /// CPU time used.
    pub cpu_usage_ns: u64,
    pub cpu_user_ns: u64,
    pub cpu_system_ns: u64,
    /// Periods in which the group had a quota and ran, and those of them in which it had to wait.
    pub cpu_periods: u64,
    pub cpu_throttled_periods: u64,
    pub cpu_throttled_ns: u64,
    pub memory_usage_bytes: u64,
    /// Usage without inactive page cache, as evictions count it.
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub memory_cache_bytes: u64,
    pub memory_mapped_file_bytes: u64,
    pub memory_swap_bytes: u64,
    pub memory_limit_bytes: Option<u64>,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// Processes that the kernel killed for memory.
    pub oom_kills: u64,
    pub pids: u64,
}

/// Space on a file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub bytes: u64,
    pub inodes: u64,
}
