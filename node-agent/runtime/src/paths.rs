//! Where things are kept under `run_dir` (until the machine restarts) and `state_dir` (for good).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Config, Error, Result};

#[derive(Debug, Clone)]
pub(crate) struct Paths {
    run_dir: PathBuf,
    state_dir: PathBuf,
}

impl Paths {
    pub(crate) fn new(config: &Config) -> Self {
        Self { run_dir: config.run_dir.clone(), state_dir: config.state_dir.clone() }
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.run_dir.join("pods")
    }

    pub(crate) fn sandbox(&self, pod_uid: &str) -> PathBuf {
        self.sandboxes().join(pod_uid)
    }

    /// FIFOs, the log writer's configuration and its socket.
    pub(crate) fn container(&self, id: &str) -> PathBuf {
        self.run_dir.join("containers").join(id)
    }

    pub(crate) fn runc_root(&self) -> PathBuf {
        self.run_dir.join("runc")
    }

    pub(crate) fn records(&self) -> PathBuf {
        self.state_dir.join("containers")
    }

    pub(crate) fn record(&self, id: &str) -> PathBuf {
        self.records().join(format!("{id}.json"))
    }
}

pub(crate) fn io_error(attempted: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { attempted, path, source }
}

/// Refuses what would leave the directory that names are put in.
pub(crate) fn check_name(field: &'static str, name: &str) -> Result<()> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(Error::Invalid { field, message: format!("{name:?} is no name") });
    }
    Ok(())
}

/// Writes a small file so that readers see the old content or the new one, never a part. It does not wait for the disk,
/// and a loss of power may leave an empty file: for what is below `run_dir`, which is made anew when the machine starts.
/// What has to be there then is written by [`crate::durable::write`].
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    // A name for each write: two writers of one file must not rename each other's.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{number}.tmp"));
    let written = std::fs::write(&temporary, bytes)
        .map_err(io_error("write", &temporary))
        .and_then(|()| std::fs::rename(&temporary, path).map_err(io_error("replace", path)));
    if written.is_err() {
        // On a full disk there may be a part of it; what cannot be removed now goes with its directory.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Absent is success.
pub(crate) fn remove_dir_all(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Absent is success.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", path)(e)),
        _ => Ok(()),
    }
}
