//! The benchmark's machines: network namespaces without names, joined by veth pairs, and cgroups to run threads in.
//!
//! ```text
//!  outside 10.90.0.2 ──── up0 10.90.0.1  node  cli0 ──── client pod 10.91.0.2
//!                                              cli1 ──── unserved pod 10.91.0.5
//!                                              be0  ──── backend pod 10.91.0.3, 10.91.0.4
//!                                              up1 10.92.0.1 ──── 10.92.0.2 second node, its pod 10.93.0.2
//! ```
//! Nothing has a way out, and service addresses are unreachable where nobody translates them. Namespaces and mounts
//! are the process's own: they end with it, however it ends. The cgroups go on drop, or at the next start.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, Scope, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::MsFlags,
    sched::{CloneFlags, CpuSet},
    unistd::Pid,
};

/// A pod of the first node.
pub(crate) struct Pod {
    /// The node's side of its interface.
    pub(crate) link: &'static str,
    /// Of the pod's side.
    pub(crate) mac: [u8; 6],
    pub(crate) addresses: &'static [Ipv4Addr],
}

/// The client, the unserved client, and the backends, which share a namespace.
pub(crate) const PODS: [Pod; 3] = [
    Pod { link: "cli0", mac: [2, 0, 0, 0, 0, 2], addresses: &[Ipv4Addr::new(10, 91, 0, 2)] },
    Pod { link: "cli1", mac: [2, 0, 0, 0, 0, 5], addresses: &[Ipv4Addr::new(10, 91, 0, 5)] },
    Pod {
        link: "be0",
        mac: [2, 0, 0, 0, 0, 3],
        addresses: &[Ipv4Addr::new(10, 91, 0, 3), Ipv4Addr::new(10, 91, 0, 4)],
    },
];
/// Ranges of pods, of both nodes.
pub(crate) const POD_RANGES: [(Ipv4Addr, u8); 2] =
    [(Ipv4Addr::new(10, 91, 0, 0), 24), (Ipv4Addr::new(10, 93, 0, 0), 24)];

pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
pub(crate) const BACKENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 91, 0, 3), Ipv4Addr::new(10, 91, 0, 4)];
pub(crate) const REMOTE_BACKEND: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 2);
/// Where the pods of both nodes are, as kube-proxy would be told by `--cluster-cidr`.
pub(crate) const CLUSTER_CIDR: &str = "10.91.0.0/16";

const CGROUP_PREFIX: &str = "hawser-bench-";

/// The process's own cgroup, working directory and mount namespace.
pub(crate) struct Machine {
    cgroup: PathBuf,
    cgroup_before: PathBuf,
    dir: PathBuf,
}

impl Machine {
    /// Call it before any other thread is made.
    pub(crate) fn enter() -> Result<Self> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace of our own")?;
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
            .context("make mounts private")?;
        let mount = cgroup2_mount()?;
        for entry in fs::read_dir(&mount)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(CGROUP_PREFIX) {
                remove_cgroup(&entry.path());
            }
        }
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2")?;
        let pid = std::process::id();
        let name = format!("{CGROUP_PREFIX}{pid}");
        let machine = Self {
            cgroup: mount.join(&name),
            cgroup_before: mount.join(own),
            dir: std::env::temp_dir().join(&name),
        };
        fs::create_dir_all(&machine.dir)?;
        fs::create_dir(&machine.cgroup)?;
        fs::write(machine.cgroup.join("cgroup.procs"), pid.to_string()).context("join the cgroup")?;
        Ok(machine)
    }

    /// A cgroup that is nobody's node: no socket program sees its threads.
    pub(crate) fn unserved(&self) -> &Path {
        &self.cgroup
    }

    /// Makes a cgroup for the node `name`: threads join it one by one.
    pub(crate) fn node_cgroup(&self, name: &str) -> Result<PathBuf> {
        let path = self.cgroup.join(name);
        fs::create_dir(&path).or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        })?;
        fs::write(path.join("cgroup.type"), "threaded").context("a threaded cgroup")?;
        Ok(path)
    }

    /// Makes an empty directory for the pins of the node `name`.
    pub(crate) fn bpffs(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::write(self.cgroup_before.join("cgroup.procs"), std::process::id().to_string());
        // A cgroup is busy until the last thread has left it.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !remove_cgroup(&self.cgroup) && Instant::now() < deadline {
            thread::yield_now();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes a cgroup of a benchmark and those in it; one in use stays.
fn remove_cgroup(path: &Path) -> bool {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            let _ = fs::remove_dir(entry.path());
        }
    }
    fs::remove_dir(path).is_ok() || !path.exists()
}

fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    Ok(mount.and_then(|line| line.split(' ').nth(1)).context("no cgroup2 mount")?.into())
}

/// A network namespace that lives as long as this value.
pub(crate) struct Namespace(File);

impl Namespace {
    fn new() -> Result<Self> {
        let made = thread::spawn(|| -> io::Result<File> {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let namespace = Self(made.join().expect("no panic in there").context("a network namespace")?);
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Runs commands of `ip`, a line each.
    pub(crate) fn ip(&self, commands: &str) -> Result<()> {
        self.feed(Command::new("ip").args(["-batch", "-"]), commands).context("ip")
    }

    /// Runs a program with `input`; fails where it fails.
    pub(crate) fn feed(&self, command: &mut Command, input: &str) -> Result<()> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<()> {
                self.enter()?;
                command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
                let mut child =
                    command.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
                child.stdin.take().context("no pipe")?.write_all(input.as_bytes())?;
                let output = child.wait_with_output()?;
                let errors = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "{:?}: {}", command.get_program(), errors.trim());
                Ok(())
            });
            finish(thread)
        })
    }

    fn enter(&self) -> io::Result<()> {
        Ok(nix::sched::setns(&self.0, CloneFlags::CLONE_NEWNET)?)
    }

    /// The namespace as `ip` takes it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Where a thread runs.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) cgroup: &'a Path,
}

impl<'a> Place<'a> {
    /// Starts a thread there; on one CPU, if one is named.
    pub(crate) fn spawn<'scope, T: Send + 'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        cpu: Option<usize>,
        work: impl FnOnce() -> T + Send + 'scope,
    ) -> ScopedJoinHandle<'scope, T>
    where
        'a: 'scope,
    {
        scope.spawn(move || {
            let thread = nix::unistd::gettid();
            fs::write(self.cgroup.join("cgroup.threads"), thread.to_string()).expect("join a cgroup");
            self.namespace.enter().expect("enter a namespace");
            if let Some(cpu) = cpu {
                let mut set = CpuSet::new();
                set.set(cpu).expect("a CPU number");
                nix::sched::sched_setaffinity(Pid::from_raw(0), &set).expect("this machine has the CPU");
            }
            work()
        })
    }

    pub(crate) fn run<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| finish(self.spawn(scope, None, work)))
    }
}

/// Waits for a thread, and passes its panic on.
pub(crate) fn finish<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A client outside, a node with two pods, and a second node: plain veth pairs and host routing.
pub(crate) struct Cluster {
    pub(crate) outside: Namespace,
    pub(crate) node: Namespace,
    pub(crate) client: Namespace,
    /// A client whose sockets no program serves. It has an address of its own: connections to a backend's address and
    /// connections that a packet program leads there must not meet in one tuple.
    pub(crate) unserved: Namespace,
    pub(crate) backend: Namespace,
    pub(crate) second: Namespace,
}

impl Cluster {
    pub(crate) fn new() -> Result<Self> {
        let cluster = Self {
            outside: Namespace::new()?,
            node: Namespace::new()?,
            client: Namespace::new()?,
            unserved: Namespace::new()?,
            backend: Namespace::new()?,
            second: Namespace::new()?,
        };
        cluster.wire().context("wire the namespaces")?;
        Ok(cluster)
    }

    fn wire(&self) -> Result<()> {
        let pods = [&self.client, &self.unserved, &self.backend];
        let pods = PODS.iter().zip(pods).map(|(pod, namespace)| (pod.link, namespace, pod.mac[5]));
        let others = [("up0", &self.outside, 0x10), ("up1", &self.second, 0x11)];
        for (end, peer, mac) in others.into_iter().chain(pods) {
            self.node.ip(&format!(
                "link add {end} type veth peer name eth0 address 02:00:00:00:00:{mac:02x} netns {}\nlink set {end} up",
                peer.path()
            ))?;
            peer.ip("link set eth0 up")?;
        }
        self.node.ip("address add 10.90.0.1/24 dev up0\n\
             address add 10.92.0.1/24 dev up1\n\
             address add 169.254.1.1/32 dev cli0\n\
             address add 169.254.1.1/32 dev cli1\n\
             address add 169.254.1.1/32 dev be0\n\
             address add fd90::1/64 dev up0 nodad\n\
             address add fd92::1/64 dev up1 nodad\n\
             route add 10.91.0.2 dev cli0 src 10.90.0.1\n\
             route add 10.91.0.5 dev cli1 src 10.90.0.1\n\
             route add 10.91.0.3 dev be0 src 10.90.0.1\n\
             route add 10.91.0.4 dev be0 src 10.90.0.1\n\
             route add fd91::3 dev be0 src fd90::1\n\
             route add 10.93.0.0/24 via 10.92.0.2\n\
             route add fd93::/64 via fd92::2\n\
             route add unreachable 10.96.0.0/12")?;
        self.outside.ip("address add 10.90.0.2/24 dev eth0\n\
             route add 10.93.0.0/24 via 10.90.0.1\n\
             route add unreachable 10.96.0.0/12")?;
        self.client.ip("address add 10.91.0.2/32 dev eth0")?;
        self.unserved.ip("address add 10.91.0.5/32 dev eth0")?;
        self.backend.ip("address add 10.91.0.3/32 dev eth0\naddress add 10.91.0.4/32 dev eth0")?;
        for pod in [&self.client, &self.unserved, &self.backend] {
            pod.ip("route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0")?;
        }
        self.second.ip("address add 10.92.0.2/24 dev eth0\n\
             address add 10.93.0.2/32 dev lo\n\
             address add fd92::2/64 dev eth0 nodad\n\
             route add 10.90.0.0/24 via 10.92.0.1\n\
             route add 10.91.0.0/24 via 10.92.0.1\n\
             route add unreachable 10.96.0.0/12")?;
        self.set(&self.node, "ipv4/ip_forward", "1")?;
        self.set(&self.node, "ipv6/conf/all/forwarding", "1")?;
        // A path that does not work shows after seconds, not minutes.
        self.set(&self.client, "ipv4/tcp_syn_retries", "2")?;
        self.set(&self.unserved, "ipv4/tcp_syn_retries", "2")
    }

    fn set(&self, namespace: &Namespace, name: &str, value: &str) -> Result<()> {
        thread::scope(|scope| {
            finish(scope.spawn(|| {
                namespace.enter()?;
                fs::write(Path::new("/proc/sys/net").join(name), value)
            }))
        })
        .with_context(|| format!("set {name}"))
    }
}
