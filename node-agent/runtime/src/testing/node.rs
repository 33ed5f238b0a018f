//! A containerd and an image registry of a test's own, in a temporary directory, gone with the test.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::pack::ImagePack;
use super::pods::{container, pod_sandbox};
use crate::cgroup::Cgroups;
use crate::spec::SHIM_GROUP_ANNOTATION;
use crate::{Config, ContainerConfig, Containerd, LogWriter, PodSandboxConfig, Registries, Runtime};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// See the module. Everything that runs in it is killed and removed when it is dropped.
pub struct TestNode {
    dir: PathBuf,
    containerd: Child,
    registry: Child,
    registry_port: u16,
    log_writer: PathBuf,
    cgroup: String,
}

impl TestNode {
    /// Starts both. `None`, with the reason printed, where the machine cannot: not root, or a program is
    /// missing. `log_writer` is a program that calls [`crate::logger::run`] with its second argument.
    pub fn start(log_writer: PathBuf) -> Result<Option<Self>> {
        Self::start_on(log_writer, None)
    }

    /// The same, with a disk of its own of that size, which can be full.
    pub fn start_on(log_writer: PathBuf, disk_bytes: Option<u64>) -> Result<Option<Self>> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: containers need root");
            return Ok(None);
        }
        for program in ["containerd", "runc", "docker-registry", "skopeo"] {
            if which(program).is_none() {
                println!("skipped: {program} is not installed");
                return Ok(None);
            }
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("hawser-rt-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(&dir)?;
        if let Some(bytes) = disk_bytes {
            let options = format!("size={bytes}");
            let flags = MsFlags::empty();
            mount(Some("disk"), &dir, Some("tmpfs"), flags, Some(options.as_str()))
                .context("mount a disk")?;
        }
        let registry_port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let registry = start_registry(&dir, registry_port)?;
        let containerd = start_containerd(&dir)?;
        Ok(Some(Self { dir, containerd, registry, registry_port, log_writer, cgroup: format!("/{name}") }))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    pub fn log_writer(&self) -> &Path {
        &self.log_writer
    }

    pub fn config(&self) -> Config {
        config_in(&self.dir, self.registry(), &self.log_writer)
    }

    pub async fn connect(&self) -> Result<Containerd> {
        Ok(Containerd::connect(self.config()).await?)
    }

    /// `host:port` of the registry.
    pub fn registry(&self) -> String {
        format!("127.0.0.1:{}", self.registry_port)
    }

    /// Where the registry keeps its blobs.
    pub fn registry_blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.dir.join("registry/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// Puts an image into the registry. Returns its reference and the digest of its layer.
    pub fn push(&self, image: &ImagePack, name: &str) -> Result<(String, String)> {
        let layout = self.dir.join("layout").join(name.replace([':', '/'], "-"));
        let layer = image.write_layout(&layout, "it")?;
        let reference = format!("{}/{name}", self.registry());
        let status = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:it", layout.display()))
            .arg(format!("docker://{reference}"))
            .status()?;
        ensure!(status.success(), "skopeo failed");
        Ok((reference, layer))
    }

    /// A pod on the node's own network.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig { cgroup_parent: format!("{}/pod-{name}", self.cgroup), ..pod_sandbox(name) }
    }

    /// A container of that pod that runs a shell script.
    pub fn container(&self, pod: &str, name: &str, image: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            command: vec!["sh".into(), "-c".into(), script.into()],
            log_path: self.dir.join("logs").join(pod).join(name).join("0.log"),
            ..container(pod, name, image)
        }
    }

    /// Kills containerd; its shims and containers go on.
    pub fn kill_containerd(&mut self) -> Result<()> {
        self.containerd.kill()?;
        self.containerd.wait()?;
        Ok(())
    }

    pub fn start_containerd(&mut self) -> Result<()> {
        self.containerd = start_containerd(&self.dir)?;
        Ok(())
    }

    /// Mounts below this node's directory, those of containerd itself left out.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let prefix = format!("{}/", self.dir.display());
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        Ok(points.filter(|point| point.starts_with(&prefix)).map(str::to_owned).collect())
    }

    /// Directories of pods' and containers' cgroups, in all hierarchies, below this node's own. The levels of the
    /// tree around pods are not among them: they stay.
    pub fn cgroups(&self) -> Result<Vec<PathBuf>> {
        const LEVELS: [&str; 3] = ["kubepods", "burstable", "besteffort"];
        let mut found = Vec::new();
        let mut left = Cgroups::find()?.directories(&self.cgroup);
        while let Some(directory) = left.pop() {
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            let directories = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
            let is_level = |path: &PathBuf| LEVELS.iter().any(|level| path.ends_with(level));
            let (levels, others): (Vec<_>, Vec<_>) = directories.partition(is_level);
            left.extend(levels);
            found.extend(others);
        }
        Ok(found)
    }

    /// What pods and containers leave when they are not cleaned up after: mounts, cgroups, snapshots, records, FIFOs,
    /// processes. Images, and what containerd keeps for itself, are not among it.
    pub fn left_behind(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> =
            self.mounts()?.into_iter().map(|mount| format!("mount {mount}")).collect();
        left.extend(self.cgroups()?.into_iter().map(|dir| format!("cgroup {}", dir.display())));
        left.extend(self.snapshots()?.into_iter().map(|snapshot| format!("snapshot {snapshot}")));
        for dir in ["run/pods", "run/containers", "run/runc/hawser", "state/containers"] {
            let entries = fs::read_dir(self.dir.join(dir)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| format!("file {}", entry.path().display())));
        }
        left.extend(self.processes().into_iter().map(|command| format!("process {command}")));
        Ok(left)
    }

    /// Ids and processes of the containers that run, asked of containerd itself: another runtime would take part in
    /// their lives.
    pub fn running(&self) -> Result<BTreeMap<String, u32>> {
        let text = self.ctr(&["tasks", "ls"])?;
        let tasks = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let running = tasks.filter_map(|words| match words[..] {
            [id, pid, "RUNNING"] => Some((id.to_owned(), pid.parse().ok()?)),
            _ => None,
        });
        Ok(running.collect())
    }

    /// A shim for a pod's containers that containerd does not know: what is left where it is cut short just after it has
    /// started one. Returns the reader of its log, without which it does not run.
    pub fn start_unknown_shim(&self, pod_uid: &str) -> Result<fs::File> {
        let bundle = self.dir.join("bundle");
        fs::create_dir_all(&bundle)?;
        let config = format!(r#"{{"annotations": {{"{SHIM_GROUP_ANNOTATION}": "{pod_uid}"}}}}"#);
        fs::write(bundle.join("config.json"), config)?;
        let log = bundle.join("log");
        nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU)?;
        let log = fs::OpenOptions::new().read(true).write(true).open(log)?;
        let socket = self.dir.join("containerd.sock");
        let status = Command::new("containerd-shim-runc-v2")
            .args(["-namespace", "hawser", "-id", "unknown", "-address"])
            .arg(&socket)
            .arg("start")
            .env("TTRPC_ADDRESS", self.dir.join("containerd.sock.ttrpc"))
            .current_dir(&bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("run a shim")?;
        ensure!(status.success(), "the shim: {status}");
        ensure!(!self.processes().is_empty(), "the shim does not run");
        Ok(log)
    }

    /// What containerd's own client prints.
    fn ctr(&self, words: &[&str]) -> Result<String> {
        let socket = self.dir.join("containerd.sock");
        let output = Command::new("ctr")
            .arg("--address")
            .arg(socket)
            .args(["--namespace", "hawser"])
            .args(words)
            .output()
            .context("run ctr")?;
        ensure!(output.status.success(), "ctr: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Snapshots that belong to no image.
    fn snapshots(&self) -> Result<Vec<String>> {
        let text = self.ctr(&["snapshots", "ls"])?;
        Ok(text
            .lines()
            .skip(1)
            .filter(|line| !line.trim_end().ends_with("Committed"))
            .map(str::to_owned)
            .collect())
    }

    /// Command lines of shims, log writers and first processes of pods.
    fn processes(&self) -> Vec<String> {
        let dir = self.dir.to_string_lossy();
        let ours = [self.containerd.id(), self.registry.id(), std::process::id()].map(|pid| pid.to_string());
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let others = entries.filter(|entry| !ours.iter().any(|pid| entry.file_name() == **pid));
        let commands = others.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let texts = commands.map(|command| String::from_utf8_lossy(&command).replace('\0', " "));
        texts.filter(|text| text.contains(&*dir)).collect()
    }

    async fn remove_everything(&self) -> Result<()> {
        let runtime = self.connect().await?;
        for container in runtime.list_containers().await? {
            runtime.remove_container(&container.id).await?;
        }
        for sandbox in runtime.list_pod_sandboxes().await? {
            runtime.remove_pod_sandbox(&sandbox.config.pod_uid).await?;
        }
        Ok(())
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        // On a thread of its own, because a runtime must not be started within another one.
        let cleaned = std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    tokio::time::timeout(Duration::from_secs(30), self.remove_everything()).await?
                })
            });
            worker.join().unwrap_or_else(|_| bail!("panicked"))
        });
        if let Err(error) = cleaned {
            println!("clean-up of {}: {error:#}", self.dir.display());
        }
        for child in [&mut self.containerd, &mut self.registry] {
            let _ = child.kill();
            let _ = child.wait();
        }
        for mount in self.mounts().unwrap_or_default().iter().rev() {
            let _ = umount2(mount.as_str(), MntFlags::MNT_DETACH);
        }
        // Its own disk, where it has one.
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
        if let Ok(cgroups) = Cgroups::find() {
            let _ = cgroups.remove(&self.cgroup);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The runtime's settings on a node in `dir`, also for another process that takes part in it.
pub fn config_in(dir: &Path, registry: String, log_writer: &Path) -> Config {
    Config {
        socket: dir.join("containerd.sock"),
        namespace: "hawser".into(),
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        snapshotter: None,
        log_writer: LogWriter {
            program: log_writer.to_owned(),
            mode: "log-writer".into(),
            max_size_bytes: 10 << 20,
            max_files: 5,
        },
        registries: Registries { plain_http: [registry].into(), ..Registries::default() },
        cdi_dirs: vec![dir.join("cdi-static"), dir.join("cdi")],
        handlers: BTreeMap::new(),
        relist_interval: Duration::from_secs(60),
    }
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let sbin = ["/usr/sbin".into(), "/sbin".into()];
    std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn start_containerd(dir: &Path) -> Result<Child> {
    let config = format!(
        r#"version = 2
root = "{0}/containerd/root"
state = "{0}/containerd/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{0}/containerd.sock"
[ttrpc]
  address = "{0}/containerd.sock.ttrpc"
"#,
        dir.display()
    );
    let path = dir.join("containerd.toml");
    fs::write(&path, config)?;
    // Made by containerd, root alone could enter it, and the roots of containers are below: pods' own users would find none.
    fs::create_dir_all(dir.join("containerd"))?;
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("containerd.log"))?;
    let socket = dir.join("containerd.sock");
    let mut child = Command::new("containerd")
        .arg("--config")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("run containerd")?;
    wait_until("containerd listens", &mut child, || UnixStream::connect(&socket).is_ok())?;
    Ok(child)
}

fn start_registry(dir: &Path, port: u16) -> Result<Child> {
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}/registry\nhttp:\n  addr: 127.0.0.1:{port}\n",
        dir.display()
    );
    let path = dir.join("registry.yml");
    fs::write(&path, config)?;
    let log = fs::File::create(dir.join("registry.log"))?;
    let mut child = Command::new("docker-registry")
        .arg("serve")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("run docker-registry")?;
    let address = ("127.0.0.1", port);
    wait_until("the registry listens", &mut child, || std::net::TcpStream::connect(address).is_ok())?;
    Ok(child)
}

fn wait_until(what: &str, child: &mut Child, condition: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while !condition() {
        if let Some(status) = child.try_wait()? {
            bail!("{what}: it ended with {status}");
        }
        ensure!(Instant::now() < deadline, "{what}: not within {START_TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
