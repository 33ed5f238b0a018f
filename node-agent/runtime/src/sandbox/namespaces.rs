//! Namespaces kept alive by bind mounts instead of by a process.
//!
//! A thread makes the new namespaces for itself, pins them, and ends.

use std::fs::OpenOptions;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use super::unmount;
use crate::Result;
use crate::fault;
use crate::paths::io_error;

/// Pins a new UTS namespace with `hostname` at `uts`, and a new IPC namespace at `ipc` if asked for.
/// What is pinned already stays.
pub(super) fn pin(uts: &Path, ipc: Option<&Path>, hostname: &str) -> Result<()> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            if !is_pinned(uts) {
                unshare(CloneFlags::CLONE_NEWUTS).map_err(|e| io_error("unshare uts for", uts)(e.into()))?;
                nix::unistd::sethostname(hostname).map_err(|e| io_error("set hostname in", uts)(e.into()))?;
                pin_own("uts", uts)?;
                fault::point("sandbox: host name pinned");
            }
            match ipc {
                Some(ipc) if !is_pinned(ipc) => {
                    unshare(CloneFlags::CLONE_NEWIPC)
                        .map_err(|e| io_error("unshare ipc for", ipc)(e.into()))?;
                    pin_own("ipc", ipc)
                }
                _ => Ok(()),
            }
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub(super) fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
}

fn pin_own(kind: &str, path: &Path) -> Result<()> {
    pin_from(&format!("/proc/thread-self/ns/{kind}"), path)
}

/// Pins the namespace at `source`, in the place of what was pinned at `path`.
pub(super) fn pin_from(source: &str, path: &Path) -> Result<()> {
    unmount(path)?;
    OpenOptions::new().create(true).append(true).open(path).map_err(io_error("create", path))?;
    mount(Some(source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| io_error("pin a namespace at", path)(e.into()))
}
