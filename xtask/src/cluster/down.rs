//! `down`: ends every process of the cluster and removes every trace, whatever state it is in.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::Path,
};

use anyhow::Context;
use nix::mount::{MntFlags, umount2};

use super::{Cluster, Selector, cgroup, daemon, lan};
use crate::command::say;

/// Where containerd's shims have their sockets, whatever containerd's own folders are.
const SHIM_SOCKETS: &str = "/run/containerd/s";

pub(crate) fn run(selector: &Selector) -> anyhow::Result<()> {
    let cluster = Cluster::new(selector)?;
    let settings = cluster.settings().unwrap_or(None);
    // Asked first, so that its store is closed; what does not listen is killed with its cgroup.
    daemon::stop(&cluster, "control-plane")?;
    cgroup::remove(&cluster.cgroup())?;
    unmount_below(&cluster.run_dir())?;
    unmount_below(&cluster.data_dir())?;
    lan::remove(&cluster, settings.as_ref())?;
    remove_dead_shim_sockets()?;
    for folder in [cluster.run_dir(), cluster.data_dir()] {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            _ => {}
        }
    }
    say(format!("cluster {} is gone", cluster.name));
    Ok(())
}

/// Unmounts all below `folder`, last mounted first. A mount that other namespaces still use goes with them.
fn unmount_below(folder: &Path) -> anyhow::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut points: Vec<String> = points.filter(|point| Path::new(point).starts_with(folder)).collect();
    points.reverse();
    for point in points {
        umount2(point.as_str(), MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {point}"))?;
    }
    Ok(())
}

/// The mount table writes space, tab, newline and backslash as octal numbers.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Sockets that nobody listens on any more, and the folders that then are empty.
fn remove_dead_shim_sockets() -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(SHIM_SOCKETS) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let is_dead = || {
            let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            UnixStream::connect(entry.path()).err().is_some_and(refused)
        };
        if entry.file_type()?.is_socket() && is_dead() {
            fs::remove_file(entry.path())?;
        }
    }
    // Refused where something is left in them, which is somebody else's.
    let _ = fs::remove_dir(SHIM_SOCKETS);
    let _ = fs::remove_dir("/run/containerd");
    Ok(())
}
