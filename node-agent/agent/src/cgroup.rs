//! Where the node's part of the cgroup2 tree is: alone, or beside version 1 (hybrid).

use std::path::PathBuf;

use anyhow::Context;

/// The folder of `cgroup` in the cgroup2 hierarchy, made where it is missing.
pub(crate) fn unified(cgroup: &str) -> anyhow::Result<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").context("cannot read the mount table")?;
    let root = table
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (path, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then_some(path)
        })
        .next()
        .context("no cgroup2 hierarchy is mounted; the service path attaches its programs to it")?;
    let folder = PathBuf::from(root).join(cgroup.trim_start_matches('/'));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make cgroup {}", folder.display()))?;
    Ok(folder)
}
