//! The process namespace that the containers of a pod share, and the process that holds it.
//!
//! A process namespace cannot be kept by a mount alone: it ends with its first process ([`crate::pod_init`]). That one
//! outlives the agent; its number is kept in a file, and is trusted only while the process is in the pinned namespace.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::namespaces::pin_from;
use super::users;
use crate::cgroup::Cgroups;
use crate::fault;
use crate::paths::{io_error, write_atomically};
use crate::pod_init::MODE;
use crate::{PodSandboxConfig, Result};

/// The pinned namespace and the number of its first process, in a sandbox's directory.
pub(super) const NAMESPACE: &str = "pid";
const FIRST: &str = "first-process";
/// Cgroup of the first process, below the pod's.
const GROUP: &str = "init";

/// Makes the namespace, unless it is there and alive. It belongs to `own_users`, else to the node's.
pub(super) fn start(
    directory: &Path,
    program: &Path,
    own_users: Option<&Path>,
    pod: &PodSandboxConfig,
    cgroups: &Cgroups,
) -> Result<()> {
    if first_process(directory).is_some() {
        return Ok(());
    }
    let (pid, input) = match own_users {
        Some(own) => users::first_process(own, program, &pod.pod_uid)?,
        None => spawn(program, &pod.pod_uid)?,
    };
    let registered = (|| {
        cgroups.put_process(&format!("{}/{GROUP}", pod.cgroup_parent), pid)?;
        fault::point("sandbox: first process made");
        write_atomically(&directory.join(FIRST), pid.to_string().as_bytes())?;
        fault::point("sandbox: first process noted");
        pin_from(&format!("/proc/{pid}/ns/pid"), &directory.join(NAMESPACE))
    })();
    // Without this byte it ends by itself.
    let go = input.map_or(Ok(()), |mut pipe| match registered.is_ok() {
        true => pipe.write_all(b"1"),
        false => Ok(()),
    });
    registered?;
    go.map_err(io_error("run", program))
}

/// In a thread of its own, which alone has its children in the new namespace. The process's number, and its input.
fn spawn(program: &Path, pod_uid: &str) -> Result<(u32, Option<ChildStdin>)> {
    let mut child = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWPID)
                .map_err(|e| io_error("unshare processes for", program)(e.into()))?;
            Command::new(program)
                .args([MODE, pod_uid])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()
                .map_err(io_error("run", program))
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let (pid, input) = (child.id(), child.stdin.take());
    // Only to take note of its end; without this it would stay a zombie for as long as the agent runs.
    std::thread::Builder::new()
        .name("pod-init-wait".into())
        .stack_size(64 << 10)
        .spawn(move || child.wait())
        .map_err(io_error("wait for", program))?;
    Ok((pid, input))
}

/// The namespace's first process, if it lives.
pub(super) fn first_process(directory: &Path) -> Option<Pid> {
    let pid: i32 = fs::read_to_string(directory.join(FIRST)).ok()?.parse().ok()?;
    let namespace = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let pinned = namespace(&directory.join(NAMESPACE))?;
    let own = namespace(Path::new(&format!("/proc/{pid}/ns/pid")))?;
    (own == pinned).then_some(Pid::from_raw(pid))
}

/// Ends the namespace and all that is in it. Absent is success.
pub(super) fn stop(directory: &Path) -> Result<()> {
    match first_process(directory).map(|pid| kill(pid, Signal::SIGKILL)) {
        Some(Err(e)) if e != nix::errno::Errno::ESRCH => {
            Err(io_error("kill what holds", directory)(e.into()))
        }
        _ => Ok(()),
    }
}
