//! The node's devices, which a privileged container sees all of.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    path: PathBuf,
    /// `b` or `c`.
    #[serde(rename = "type")]
    kind: &'static str,
    major: u64,
    minor: u64,
    file_mode: u32,
    uid: u32,
    gid: u32,
}

/// Directories of /dev that every container has of its own.
const OWN: &[&str] = &["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts"];

/// All device nodes under /dev. What cannot be read is left out.
pub(crate) fn host_devices() -> Vec<Device> {
    let mut devices = Vec::new();
    collect(Path::new("/dev"), &mut devices);
    devices
}

fn collect(directory: &Path, devices: &mut Vec<Device>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
        let kind = metadata.file_type();
        if kind.is_dir() {
            if !OWN.iter().any(|name| entry.file_name() == *name) {
                collect(&path, devices);
            }
            continue;
        }
        let kind = match () {
            () if kind.is_char_device() => "c",
            () if kind.is_block_device() => "b",
            () => continue,
        };
        // The console is the container's own terminal, if it has one.
        if path == Path::new("/dev/console") {
            continue;
        }
        devices.push(Device {
            path,
            kind,
            major: major(metadata.rdev()),
            minor: minor(metadata.rdev()),
            file_mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
        });
    }
}
