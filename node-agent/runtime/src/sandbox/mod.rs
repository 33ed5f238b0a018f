//! What the containers of a pod share, without a process that holds it: namespaces pinned as files, one
//! tmpfs as everybody's /dev/shm, the pod's cgroup. (A shared process namespace alone needs a process.)
//!
//! All of it lies in one directory a pod, with the configuration it was made from. The configuration is
//! written first: whatever a crash leaves behind can be listed and removed by the pod's uid. The network
//! namespace is pinned by the network crate; here it is only a path, and made only for a pod with users of its own.

mod namespaces;
mod processes;
mod users;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::cgroup::Cgroups;
use crate::fault;
use crate::paths::{Paths, check_name, io_error, remove_dir_all, write_atomically};
use crate::{Error, PodNetwork, PodSandbox, PodSandboxConfig, Resources, Result};

const CONFIG_FILE: &str = "sandbox.json";
const DEFAULT_SHM_BYTES: u64 = 64 << 20;

/// Paths of the namespaces that a pod's containers join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedNamespaces {
    /// `None`: the node's.
    pub(crate) users: Option<PathBuf>,
    pub(crate) network: PathBuf,
    pub(crate) uts: PathBuf,
    /// `None`: the node's.
    pub(crate) ipc: Option<PathBuf>,
    /// `None`: the node's, or one for each container.
    pub(crate) pid: Option<PathBuf>,
    pub(crate) shm: PathBuf,
}

/// The pod sandboxes of one node. Calls block; run them where that is allowed.
#[derive(Clone)]
pub(crate) struct Sandboxes {
    paths: Paths,
    cgroups: Cgroups,
    /// The agent's own binary, or a test's in its place; see [`crate::pod_init`].
    program: PathBuf,
}

impl Sandboxes {
    pub(crate) fn new(paths: Paths, cgroups: Cgroups, program: PathBuf) -> Self {
        Self { paths, cgroups, program }
    }

    pub(crate) fn create(&self, config: &PodSandboxConfig) -> Result<PodSandbox> {
        check_name("podUid", &config.pod_uid)?;
        let config = &self.in_its_group(config)?;
        let directory = self.paths.sandbox(&config.pod_uid);
        fs::create_dir_all(&directory).map_err(io_error("create", &directory))?;
        self.write(config)?;
        fault::point("sandbox: configuration written");

        self.cgroups.create(&config.cgroup_parent, &config.resources)?;
        fault::point("sandbox: cgroup made");
        let shared = self.shared(config);
        if !config.host_ipc && !is_tmpfs(&shared.shm) {
            let owner = config.users.map_or(0, |ids| ids.first);
            mount_shm(&shared.shm, config.shm_size_bytes.unwrap_or(DEFAULT_SHM_BYTES), owner)?;
        }
        fault::point("sandbox: memory mounted");
        self.pin(&directory, config, &shared)?;
        fault::point("sandbox: namespaces pinned");
        if shared.pid.is_some() {
            processes::start(&directory, &self.program, shared.users.as_deref(), config, &self.cgroups)?;
        }
        self.load(&config.pod_uid)?
            .ok_or_else(|| Error::NotFound { kind: "pod sandbox", id: config.pod_uid.clone() })
    }

    /// See [`crate::Runtime::create_pod_users`].
    pub(crate) fn create_users(&self, config: &PodSandboxConfig) -> Result<PathBuf> {
        check_name("podUid", &config.pod_uid)?;
        let Some(ids) = config.users else {
            let message = "the pod has none of its own".to_owned();
            return Err(Error::Invalid { field: "users", message });
        };
        let directory = self.paths.sandbox(&config.pod_uid);
        fs::create_dir_all(&directory).map_err(io_error("create", &directory))?;
        if self.load(&config.pod_uid)?.is_none() {
            self.write(config)?;
        }
        fault::point("sandbox: configuration for users written");
        users::pin(&directory, &self.program, &config.pod_uid, ids)?;
        Ok(directory.join(users::NETWORK))
    }

    /// Whether pods on this node can have users of their own, with files in these directories; see [`users::probe`].
    pub(crate) fn probe_users(&self, directories: &[PathBuf]) -> Result<()> {
        users::probe(&self.program, directories)
    }

    fn pin(&self, directory: &Path, config: &PodSandboxConfig, shared: &SharedNamespaces) -> Result<()> {
        let (Some(ids), Some(own)) = (config.users, &shared.users) else {
            return namespaces::pin(&shared.uts, shared.ipc.as_deref(), &config.hostname);
        };
        let (program, uid) = (&self.program, &config.pod_uid);
        users::pin(directory, program, uid, ids)?;
        let mut wanted = vec![("uts", shared.uts.as_path())];
        wanted.extend(shared.ipc.as_deref().map(|ipc| ("ipc", ipc)));
        users::pin_in(own, program, uid, &config.hostname, &wanted)
    }

    /// A pod that is there stays in the group that it was made in, wherever new ones are put: processes cannot be
    /// moved without a moment in which they count for nobody, and runc would not find them again.
    fn in_its_group(&self, config: &PodSandboxConfig) -> Result<PodSandboxConfig> {
        let known = self.load(&config.pod_uid)?.map(|known| known.config.cgroup_parent);
        let mut config = config.clone();
        if let Some(group) = known.filter(|group| self.cgroups.exists(group)) {
            config.cgroup_parent = group;
        }
        Ok(config)
    }

    fn write(&self, config: &PodSandboxConfig) -> Result<()> {
        let text = serde_json::to_vec(config).expect("a sandbox's configuration is plain data");
        write_atomically(&self.paths.sandbox(&config.pod_uid).join(CONFIG_FILE), &text)
    }

    /// Changes the limits of the pod's cgroup.
    pub(crate) fn update(&self, pod_uid: &str, resources: &Resources) -> Result<()> {
        let absent = || Error::NotFound { kind: "pod sandbox", id: pod_uid.to_owned() };
        let config = PodSandboxConfig {
            resources: resources.clone(),
            ..self.load(pod_uid)?.ok_or_else(absent)?.config
        };
        self.cgroups.create(&config.cgroup_parent, resources)?;
        self.write(&config)
    }

    pub(crate) fn list(&self) -> Result<Vec<PodSandbox>> {
        let directory = self.paths.sandboxes();
        let entries = match fs::read_dir(&directory) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error("list", &directory))?,
        };
        let mut sandboxes = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("list", &directory))?;
            sandboxes.extend(self.load(&entry.file_name().to_string_lossy())?);
        }
        Ok(sandboxes)
    }

    /// `None` when there is none, or not enough of it to know what it was.
    pub(crate) fn load(&self, pod_uid: &str) -> Result<Option<PodSandbox>> {
        let path = self.paths.sandbox(pod_uid).join(CONFIG_FILE);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error("read", &path))?,
        };
        let Ok(config) = serde_json::from_slice::<PodSandboxConfig>(&text) else { return Ok(None) };
        let made = fs::metadata(&path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let created_at = Timestamp::try_from(made).unwrap_or(Timestamp::UNIX_EPOCH);
        let ready = self.is_ready(&config);
        Ok(Some(PodSandbox { config, created_at, ready }))
    }

    /// Undoes `create`, in the opposite order; the containers are gone already.
    pub(crate) fn remove(&self, pod_uid: &str) -> Result<()> {
        check_name("podUid", pod_uid)?;
        let directory = self.paths.sandbox(pod_uid);
        let cgroup = self.load(pod_uid)?.map(|sandbox| sandbox.config.cgroup_parent);
        processes::stop(&directory)?;
        fault::point("sandbox: first process ended");
        for name in ["uts", "ipc", processes::NAMESPACE, "shm", users::NETWORK, users::USERS] {
            unmount(&directory.join(name))?;
        }
        fault::point("sandbox: unmounted");
        if let Some(cgroup) = cgroup {
            self.cgroups.remove(&cgroup)?;
        }
        fault::point("sandbox: cgroup removed");
        remove_dir_all(&directory)
    }

    pub(crate) fn shared(&self, config: &PodSandboxConfig) -> SharedNamespaces {
        let directory = self.paths.sandbox(&config.pod_uid);
        let network = match &config.network {
            PodNetwork::Path(path) => path.clone(),
            // The agent's own network namespace is the node's, whichever one containerd runs in. runc
            // opens the path while a call of this process waits for it.
            PodNetwork::Host => format!("/proc/{}/ns/net", std::process::id()).into(),
        };
        SharedNamespaces {
            users: config.users.map(|_| directory.join(users::USERS)),
            network,
            uts: directory.join("uts"),
            ipc: (!config.host_ipc).then(|| directory.join("ipc")),
            pid: (config.share_pid && !config.host_pid).then(|| directory.join(processes::NAMESPACE)),
            shm: if config.host_ipc { "/dev/shm".into() } else { directory.join("shm") },
        }
    }

    fn is_ready(&self, config: &PodSandboxConfig) -> bool {
        let shared = self.shared(config);
        let ipc = shared.ipc.as_deref().is_none_or(namespaces::is_pinned);
        let pid = shared
            .pid
            .is_none_or(|_| processes::first_process(&self.paths.sandbox(&config.pod_uid)).is_some());
        let users = shared.users.as_deref().is_none_or(namespaces::is_pinned);
        users
            && ipc
            && pid
            && namespaces::is_pinned(&shared.uts)
            && (config.host_ipc || is_tmpfs(&shared.shm))
    }
}

/// `owner`: user and group.
fn mount_shm(path: &Path, size_bytes: u64, owner: u32) -> Result<()> {
    fs::create_dir_all(path).map_err(io_error("create", path))?;
    let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = format!("mode=1777,size={size_bytes},uid={owner},gid={owner}");
    mount(Some("shm"), path, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|e| io_error("mount a tmpfs at", path)(e.into()))
}

fn is_tmpfs(path: &Path) -> bool {
    // A plain directory on a run directory that is a tmpfs itself is not the mount.
    let device = |path: &Path| fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::dev(&m)).ok();
    let is_mount = path.parent().is_some_and(|parent| device(parent) != device(path));
    is_mount && statfs(path).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
}

/// Absent and not mounted are success.
fn unmount(path: &Path) -> Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // What was mounted twice, by calls that a crash cut short, is unmounted twice.
            Ok(()) => {}
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(io_error("unmount", path)(e.into())),
        }
    }
}
