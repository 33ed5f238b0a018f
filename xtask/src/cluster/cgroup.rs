//! The cluster's cgroups: one tree below the root of every hierarchy that is mounted.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// Where the cgroup2 hierarchy is mounted, alone or beside version 1.
pub(crate) fn unified_root() -> anyhow::Result<PathBuf> {
    mounts()?
        .into_iter()
        .find(|mount| mount.is_v2)
        .map(|mount| mount.path)
        .context("no cgroup2 hierarchy is mounted; try `mount -t cgroup2 none /sys/fs/cgroup`")
}

struct Mount {
    path: PathBuf,
    is_v2: bool,
}

fn mounts() -> anyhow::Result<Vec<Mount>> {
    let table = fs::read_to_string("/proc/self/mounts").context("cannot read the mount table")?;
    let mounts = table.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| Mount { path: path.into(), is_v2: kind == "cgroup2" })
    });
    Ok(mounts.collect())
}

/// Ends every process in the tree `cgroup` and removes the tree from all hierarchies.
pub(crate) fn remove(cgroup: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    for mount in mounts()? {
        let top = mount.path.join(cgroup.trim_start_matches('/'));
        while top.exists() {
            kill_all(&top)?;
            remove_tree(&top);
            if Instant::now() > deadline {
                bail!("cgroup {} still has processes: {:?}", top.display(), processes(&top)?);
            }
            if top.exists() {
                // A killed process leaves its cgroup when the kernel has torn it down: milliseconds.
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    Ok(())
}

fn kill_all(top: &Path) -> anyhow::Result<()> {
    for pid in processes(top)? {
        // Gone already is as good.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    Ok(())
}

/// All processes in the tree.
pub(crate) fn processes(top: &Path) -> anyhow::Result<Vec<i32>> {
    let mut found = Vec::new();
    for folder in tree(top) {
        let Ok(list) = fs::read_to_string(folder.join("cgroup.procs")) else { continue };
        found.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1));
    }
    Ok(found)
}

/// Deepest first; a folder that is busy stays for the next round.
fn remove_tree(top: &Path) {
    for folder in tree(top).iter().rev() {
        let _ = fs::remove_dir(folder);
    }
}

/// The folder and all below it, parents first.
fn tree(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![top.to_owned()];
    let mut next = 0;
    while let Some(folder) = found.get(next).cloned() {
        next += 1;
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        found.extend(entries.flatten().filter(|entry| entry.path().is_dir()).map(|entry| entry.path()));
    }
    found
}
