//! What a node's service path costs in memory: the process, and the kernel's maps.

use std::{fs, os::fd::AsRawFd as _, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::MapData;

/// Resident memory of this process, in bytes.
pub(crate) fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    field(&status, "VmRSS:").map(|kib| kib * 1024).context("no VmRSS")
}

/// Memory that the kernel has given to the maps pinned below `bpffs`, in bytes.
pub(crate) fn maps(bpffs: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(bpffs.join("maps"))? {
        let path = entry?.path();
        let map = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
        let fd = std::os::fd::AsFd::as_fd(map.fd()).as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        sum += field(&info, "memlock:").context("no memlock")?;
    }
    Ok(sum)
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
