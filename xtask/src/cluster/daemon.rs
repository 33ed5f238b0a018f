//! Processes that outlive this command: started once, found again by a file with their id.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::{Pid, setsid},
};

use super::Cluster;

/// A process of the cluster.
pub(crate) struct Daemon {
    /// Names the process id and log files: `control-plane`, `node1.containerd`.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    /// Network namespace to run in; the machine's own where unset.
    pub(crate) netns: Option<PathBuf>,
    /// Folder of the cgroup2 tree to run in.
    pub(crate) cgroup: PathBuf,
}

/// A process, told apart from a later one with the same id by its start time.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/<pid>/stat`.
    started: u64,
}

impl Daemon {
    /// Starts it unless it runs, with the same program file; returns whether it was started.
    pub(crate) fn ensure(&self, cluster: &Cluster) -> anyhow::Result<bool> {
        if let Some(identity) = running(cluster, &self.name) {
            if runs_file(identity, &self.program) {
                return Ok(false);
            }
            stop(cluster, &self.name)?;
        }
        self.start(cluster)?;
        Ok(true)
    }

    fn start(&self, cluster: &Cluster) -> anyhow::Result<()> {
        fs::create_dir_all(&self.cgroup)
            .with_context(|| format!("cannot make cgroup {}", self.cgroup.display()))?;
        let log = File::options().create(true).append(true).open(cluster.log(&self.name))?;
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
        let netns =
            self.netns.as_ref().map(File::open).transpose().context("cannot open the node's namespace")?;
        let procs = self.cgroup.join("cgroup.procs");
        let procs = File::options().write(true).open(&procs).with_context(|| procs.display().to_string())?;
        let file = pid_file(cluster, &self.name);
        let record = File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
        // SAFETY: between fork and exec only system calls on descriptors opened before, no allocation.
        unsafe {
            command.pre_exec(move || {
                (&procs).write_all(b"0")?;
                if let Some(netns) = &netns {
                    setns(netns, CloneFlags::CLONE_NEWNET)?;
                }
                setsid()?;
                // By the process itself: it is found again even if this command ends here.
                let mut text = [0; 16];
                let mut rest = &mut text[..];
                write!(rest, "{}", std::process::id())?;
                let unused = rest.len();
                (&record).write_all(&text[..text.len() - unused])
            });
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let pid = child.id().cast_signed();
        let identity = identity(pid).with_context(|| format!("{} ended at once", self.name))?;
        fs::write(&file, format!("{} {}", identity.pid, identity.started))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Fails with the end of the log where the process is not there any more.
    pub(crate) fn check(&self, cluster: &Cluster) -> anyhow::Result<()> {
        check(cluster, &self.name)
    }
}

/// Fails with the end of its log where the daemon is not running.
pub(crate) fn check(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    if running(cluster, name).is_some() {
        return Ok(());
    }
    let log = cluster.log(name);
    let text = fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(8)..].join("\n");
    bail!("{name} is not running; the end of {}:\n{tail}", log.display())
}

/// The process id, where it runs.
pub(crate) fn pid_of(cluster: &Cluster, name: &str) -> Option<i32> {
    running(cluster, name).map(|identity| identity.pid)
}

/// Ends it: first asked, after ten seconds killed. Does nothing where it is not running.
pub(crate) fn stop(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut signal = Signal::SIGTERM;
    while let Some(identity) = running(cluster, name) {
        if Instant::now() > deadline {
            signal = Signal::SIGKILL;
        }
        // Gone in between is as good.
        let _ = kill(Pid::from_raw(identity.pid), signal);
        let until = Instant::now() + Duration::from_secs(1);
        while running(cluster, name).is_some() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
    }
    let file = pid_file(cluster, name);
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(())
}

fn running(cluster: &Cluster, name: &str) -> Option<Identity> {
    let text = fs::read_to_string(pid_file(cluster, name)).ok()?;
    let Some((pid, started)) = text.split_once(' ') else {
        // The start was interrupted before the time was added; its cgroup tells whether it is the one.
        let found = identity(text.parse().ok()?)?;
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", found.pid)).ok()?;
        return cgroups.contains(&format!(":{}/", cluster.cgroup())).then_some(found);
    };
    let recorded = Identity { pid: pid.parse().ok()?, started: started.trim().parse().ok()? };
    (identity(recorded.pid) == Some(recorded)).then_some(recorded)
}

fn pid_file(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.run_dir().join(format!("{name}.pid"))
}

/// `None` where there is no such process, or it only waits to be reaped.
fn identity(pid: i32) -> Option<Identity> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces; fields are counted after it, from the third.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    (state != "Z" && state != "X").then_some(Identity { pid, started })
}

/// False where the file was replaced since: a newer build.
fn runs_file(identity: Identity, program: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let of = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let running = of(Path::new(&format!("/proc/{}/exe", identity.pid)));
    running.is_some() && running == of(program)
}
