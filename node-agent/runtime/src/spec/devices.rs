//! The node's devices: all of them for a privileged container, those that it was given for any other.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use serde::Serialize;
use serde_json::{Value, json};

use crate::paths::io_error;
use crate::{DeviceMapping, Error, Result};

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
    /// What the cgroup lets the container do with it.
    #[serde(skip)]
    access: String,
}

impl Device {
    /// `None` for what is no device.
    fn of(metadata: &Metadata, path: PathBuf, access: &str) -> Option<Self> {
        let kind = metadata.file_type();
        let kind = match () {
            () if kind.is_char_device() => "c",
            () if kind.is_block_device() => "b",
            () => return None,
        };
        Some(Self {
            path,
            kind,
            major: major(metadata.rdev()),
            minor: minor(metadata.rdev()),
            file_mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            access: access.to_owned(),
        })
    }

    /// The rule of the cgroup that lets the container use it.
    pub(crate) fn rule(&self) -> Value {
        let Self { kind, major, minor, access, .. } = self;
        json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": access })
    }
}

/// Devices that a container was given by name.
pub(crate) fn mapped(mappings: &[DeviceMapping]) -> Result<Vec<Device>> {
    let look_up = |mapping: &DeviceMapping| {
        let path = &mapping.host_path;
        let metadata = fs::metadata(path).map_err(io_error("look at", path))?;
        let device = Device::of(&metadata, mapping.container_path.clone(), &mapping.permissions);
        let message = || format!("{} is no device", path.display());
        device.ok_or_else(|| Error::Invalid { field: "devices", message: message() })
    };
    mappings.iter().map(look_up).collect()
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
        // The console is the container's own terminal, if it has one.
        if path != Path::new("/dev/console") {
            devices.extend(Device::of(&metadata, path, "rwm"));
        }
    }
}
