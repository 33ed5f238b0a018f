//! Control groups, version 1 (also hybrid) and version 2: pods' groups, usage, out-of-memory kills.
//!
//! runc makes containers' groups and writes their limits; this makes the pod's group around them, and
//! removes what is left when the pod goes. Which hierarchies there are is read from the mount table once.

mod stats;

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::{Error, Resources, Result};

/// The hierarchies of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    /// Empty for the unified hierarchy.
    controllers: Vec<String>,
}

impl Cgroups {
    pub(crate) fn find() -> Result<Self> {
        let path = Path::new("/proc/self/mounts");
        let mounts = fs::read_to_string(path).map_err(|e| io_error("read", path, e))?;
        Ok(Self::from_mounts(&mounts))
    }

    fn from_mounts(mounts: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mounts.lines() {
            let mut fields = line.split(' ');
            let (Some(_), Some(root), Some(kind), Some(options)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let controllers = match kind {
                "cgroup" => {
                    let is_controller = |o: &&str| {
                        !matches!(*o, "rw" | "ro" | "relatime" | "nosuid" | "nodev" | "noexec" | "xattr")
                    };
                    options.split(',').filter(is_controller).map(str::to_owned).collect()
                }
                "cgroup2" => Vec::new(),
                _ => continue,
            };
            let hierarchy = Hierarchy { root: root.into(), controllers };
            // The same hierarchy can be mounted in several places; the first one is the usual one.
            if !hierarchies.iter().any(|h| h.controllers == hierarchy.controllers) {
                hierarchies.push(hierarchy);
            }
        }
        Self { hierarchies }
    }

    /// The controllers are in the unified hierarchy.
    pub(crate) fn is_unified(&self) -> bool {
        self.hierarchies.iter().all(|h| h.controllers.is_empty())
    }

    /// Directory of `group` in the hierarchy that has `controller`.
    fn path(&self, controller: &str, group: &str) -> Option<PathBuf> {
        let has = |h: &&Hierarchy| h.controllers.iter().any(|c| c == controller);
        let hierarchy = self.hierarchies.iter().find(has).or_else(|| self.unified_if_only())?;
        Some(join(&hierarchy.root, group))
    }

    fn unified_if_only(&self) -> Option<&Hierarchy> {
        self.is_unified().then(|| self.hierarchies.first()).flatten()
    }

    /// Makes a pod's group with its limits, where a controller needs it for them.
    pub(crate) fn create(&self, group: &str, limits: &Resources) -> Result<()> {
        if self.is_unified() {
            return self.create_unified(group, limits);
        }
        for (controller, file, value) in limits_v1(limits) {
            let Some(directory) = self.path(controller, group) else { continue };
            fs::create_dir_all(&directory).map_err(|e| io_error("create", &directory, e))?;
            write(&directory.join(file), &value)?;
        }
        let Some(directory) = self.path("hugetlb", group) else { return Ok(()) };
        for (size, bytes) in &limits.hugepage_limits {
            fs::create_dir_all(&directory).map_err(|e| io_error("create", &directory, e))?;
            write(&directory.join(format!("hugetlb.{size}.limit_in_bytes")), &bytes.to_string())?;
        }
        Ok(())
    }

    /// Makes a level of the tree around pods' groups, or changes its limits.
    pub(crate) fn update_level(&self, group: &str, limits: &Resources) -> Result<()> {
        if let Some(limit) = limits.memory_limit_bytes.and_then(|limit| u64::try_from(limit).ok())
            && self.is_unified()
            && let Some(used) = self.stats(group).map(|stats| stats.memory_working_set_bytes)
            && used > limit
        {
            // Version 1 refuses this by itself; version 2 would kill until it fits. (Page cache can be given up.)
            let message = format!("{group} uses {used} bytes, more than the limit of {limit}");
            return Err(Error::Invalid { field: "memory", message });
        }
        self.create(group, limits)
    }

    /// Whether any hierarchy has the group.
    pub(crate) fn exists(&self, group: &str) -> bool {
        self.hierarchies.iter().any(|hierarchy| join(&hierarchy.root, group).is_dir())
    }

    fn create_unified(&self, group: &str, limits: &Resources) -> Result<()> {
        let Some(root) = self.unified_if_only().map(|h| h.root.clone()) else { return Ok(()) };
        // A controller works in a group when every ancestor hands it down.
        let mut directory = root;
        for part in group.split('/').filter(|part| !part.is_empty()) {
            for controller in ["+cpu", "+memory", "+pids", "+cpuset", "+io", "+hugetlb"] {
                // One that the kernel lacks, or that an ancestor does not hand down, is done without.
                let _ = fs::write(directory.join("cgroup.subtree_control"), controller);
            }
            directory.push(part);
            match fs::create_dir(&directory) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                    return Err(io_error("create", &directory, e));
                }
                _ => {}
            }
        }
        for (file, value) in limits_v2(limits) {
            write(&directory.join(file), &value)?;
        }
        for (size, bytes) in &limits.hugepage_limits {
            let file = directory.join(format!("hugetlb.{size}.max"));
            // A kernel without the controller does not count huge pages.
            if file.exists() {
                write(&file, &bytes.to_string())?;
            }
        }
        Ok(())
    }

    /// Puts a process into a group of its own, made for it, where its memory and its number count for the pod.
    pub(crate) fn put_process(&self, group: &str, pid: u32) -> Result<()> {
        let controllers: &[&str] = if self.is_unified() { &["memory"] } else { &["cpu", "memory", "pids"] };
        for directory in controllers.iter().filter_map(|controller| self.path(controller, group)) {
            fs::create_dir_all(&directory).map_err(|e| io_error("create", &directory, e))?;
            write(&directory.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Whether the kernel's `controller` can be used.
    pub(crate) fn has(&self, controller: &str) -> bool {
        match self.unified_if_only() {
            Some(unified) => {
                let names = fs::read_to_string(unified.root.join("cgroup.controllers")).unwrap_or_default();
                names.split_whitespace().any(|name| name == controller)
            }
            None => self.path(controller, "").is_some(),
        }
    }

    /// Removes a group and all below it from every hierarchy. Groups with processes in them stay, and
    /// that is an error.
    pub(crate) fn remove(&self, group: &str) -> Result<()> {
        for hierarchy in &self.hierarchies {
            let directory = join(&hierarchy.root, group);
            remove_tree(&directory).map_err(|e| io_error("remove", &directory, e))?;
        }
        Ok(())
    }

    /// The group's directory in every hierarchy, existing or not.
    #[cfg(feature = "testing")]
    pub(crate) fn directories(&self, group: &str) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|h| join(&h.root, group)).collect()
    }

    /// Whether the kernel killed a process of this group for memory, since the group was made.
    pub(crate) fn oom_killed(&self, group: &str) -> bool {
        let Some(directory) = self.path("memory", group) else { return false };
        let file = if self.is_unified() { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
        stats::field(&text, "oom_kill").is_some_and(|count| count > 0)
    }
}

/// (controller, file, value), periods before quotas: the kernel checks one against the other.
fn limits_v1(limits: &Resources) -> Vec<(&'static str, &'static str, String)> {
    let mut files = Vec::new();
    if let Some(shares) = limits.cpu_shares {
        files.push(("cpu", "cpu.shares", shares.to_string()));
    }
    if let Some(quota) = limits.cpu_quota_us {
        files.push(("cpu", "cpu.cfs_period_us", limits.cpu_period_us.unwrap_or(100_000).to_string()));
        files.push(("cpu", "cpu.cfs_quota_us", quota.to_string()));
    }
    if let Some(limit) = limits.memory_limit_bytes {
        files.push(("memory", "memory.limit_in_bytes", limit.to_string()));
    }
    if let Some(limit) = limits.pids_limit {
        files.push(("pids", "pids.max", or_max(limit)));
    }
    files
}

fn limits_v2(limits: &Resources) -> Vec<(&'static str, String)> {
    let mut files = Vec::new();
    if let Some(shares) = limits.cpu_shares {
        files.push(("cpu.weight", weight(shares).to_string()));
    }
    if let Some(quota) = limits.cpu_quota_us {
        files.push(("cpu.max", format!("{} {}", or_max(quota), limits.cpu_period_us.unwrap_or(100_000))));
    }
    if let Some(limit) = limits.memory_limit_bytes {
        files.push(("memory.max", or_max(limit)));
    }
    if let Some(limit) = limits.pids_limit {
        files.push(("pids.max", or_max(limit)));
    }
    files
}

/// Shares (2 to 262144) as a weight (1 to 10000): KEP-2254's formula.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

fn join(root: &Path, group: &str) -> PathBuf {
    root.join(group.trim_start_matches('/'))
}

/// Children first. Absent is success. The files in a group go with it; a group that was just emptied can
/// be busy for a moment, while its last process is being taken apart.
fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    let mut tries = 0;
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == ErrorKind::ResourceBusy && tries < 50 => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Err(e) => return Err(e),
        }
    }
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).map_err(|e| io_error("write", path, e))
}

fn io_error(attempted: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { attempted, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
tmpfs /tmp tmpfs rw 0 0
";

    #[test]
    fn hierarchies_come_from_the_mount_table() {
        let hybrid = Cgroups::from_mounts(HYBRID);
        assert_eq!(hybrid.hierarchies.len(), 4);
        assert!(!hybrid.is_unified());
        assert_eq!(hybrid.path("cpuacct", "/a/b"), Some("/sys/fs/cgroup/cpu,cpuacct/a/b".into()));
        assert_eq!(hybrid.path("pids", "/a"), None);
        let unified = Cgroups::from_mounts("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n");
        assert!(unified.is_unified());
        assert_eq!(unified.path("memory", "/a"), Some("/sys/fs/cgroup/a".into()));
    }

    #[test]
    fn level_of_version_2_gets_no_limit_below_what_it_needs() {
        let own = tempfile::tempdir().unwrap();
        let root = own.path().to_owned();
        let level = root.join("node/kubepods");
        fs::create_dir_all(&level).unwrap();
        fs::write(level.join("memory.current"), "1000").unwrap();
        fs::write(level.join("memory.stat"), "inactive_file 400\n").unwrap();
        let groups = Cgroups { hierarchies: vec![Hierarchy { root, controllers: Vec::new() }] };
        let bounds = |bytes| Resources {
            cpu_shares: Some(2048),
            memory_limit_bytes: Some(bytes),
            pids_limit: Some(500),
            ..Default::default()
        };
        let refused = groups.update_level("/node/kubepods", &bounds(500)).unwrap_err();
        assert!(refused.to_string().contains("uses 600 bytes"), "{refused}");
        assert!(!level.join("memory.max").exists());
        groups.update_level("/node/kubepods", &bounds(700)).unwrap();
        groups.update_level("/node/kubepods/burstable", &bounds(100)).unwrap();
        let text = |file: &str| fs::read_to_string(level.join(file)).unwrap();
        assert_eq!((text("memory.max"), text("cpu.weight")), ("700".into(), "79".into()));
        assert_eq!((text("pids.max"), text("burstable/memory.max")), ("500".into(), "100".into()));
        assert!(groups.exists("/node/kubepods") && !groups.exists("/node/other"));
    }

    #[test]
    fn limits_are_spelled_for_each_version() {
        let limits = Resources {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(-1),
            memory_limit_bytes: Some(4096),
            pids_limit: Some(-1),
            ..Default::default()
        };
        let v2: Vec<_> = limits_v2(&limits).into_iter().map(|(f, v)| format!("{f}={v}")).collect();
        assert_eq!(v2, ["cpu.weight=39", "cpu.max=max 100000", "memory.max=4096", "pids.max=max"]);
        let v1: Vec<_> = limits_v1(&limits).into_iter().map(|(_, f, v)| format!("{f}={v}")).collect();
        let expected = [
            "cpu.shares=1024",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=-1",
            "memory.limit_in_bytes=4096",
            "pids.max=max",
        ];
        assert_eq!(v1, expected);
    }
}
