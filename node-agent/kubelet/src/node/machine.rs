//! What the machine is and has, read from `/proc`, `/sys` and `/etc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;

use crate::config::KUBELET_VERSION;
use crate::container::resources::NodeCapacity;
use crate::stats::disk::fs_stats;

/// Fixed while the machine runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub cpus: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    /// Bytes in huge pages of each size, by the page's size in bytes.
    pub hugepages: BTreeMap<u64, u64>,
    pub kernel_version: String,
    pub os_image: String,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    /// The kernel has AppArmor, and it is on.
    pub has_apparmor: bool,
}

impl Machine {
    /// `root_dir` is on the file system that pods' volumes and images use.
    pub fn read(root_dir: &Path) -> Self {
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let machine_id = line("/etc/machine-id");
        let product = line("/sys/class/dmi/id/product_uuid");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            memory_bytes: meminfo("MemTotal").unwrap_or(0),
            disk_bytes: fs_stats(root_dir).map_or(0, |fs| fs.capacity_bytes),
            hugepages: hugepages(Path::new("/sys/kernel/mm/hugepages")),
            kernel_version: line("/proc/sys/kernel/osrelease"),
            os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            system_uuid: if product.is_empty() { machine_id.clone() } else { product },
            machine_id,
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            has_apparmor: line("/sys/module/apparmor/parameters/enabled").starts_with('Y'),
        }
    }

    pub fn capacity(&self) -> NodeCapacity {
        NodeCapacity {
            cpu_millis: self.cpus as i64 * 1000,
            memory_bytes: i64::try_from(self.memory_bytes).unwrap_or(i64::MAX),
            ephemeral_bytes: i64::try_from(self.disk_bytes).unwrap_or(i64::MAX),
        }
    }

    pub fn system_info(&self, runtime: String) -> NodeSystemInfo {
        NodeSystemInfo {
            architecture: architecture().into(),
            boot_id: self.boot_id.clone(),
            container_runtime_version: runtime,
            kernel_version: self.kernel_version.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.into(),
            machine_id: self.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: self.os_image.clone(),
            swap: None,
            system_uuid: self.system_uuid.clone(),
        }
    }
}

/// `hugepages-2048kB/nr_hugepages` and its like; sizes without pages too.
fn hugepages(dir: &Path) -> BTreeMap<u64, u64> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let pages: u64 = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
        Some((kib * 1024, pages * kib * 1024))
    });
    sizes.collect()
}

/// The architecture in Go's words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A field of `/proc/meminfo` in bytes.
fn meminfo(field: &str) -> Option<u64> {
    meminfo_field(&fs::read_to_string("/proc/meminfo").ok()?, field)
}

/// A field of the text of `/proc/meminfo`, in bytes.
pub fn meminfo_field(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Largest number of processes, and how many there are.
pub fn pids() -> Option<(u64, u64)> {
    let max: u64 = fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()?;
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    // The fourth field is running/total threads.
    let used = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some((max, used))
}

/// CPU time that the whole machine has spent not idle.
pub fn cpu_usage_ns() -> Option<u64> {
    busy_ns(fs::read_to_string("/proc/stat").ok()?.lines().next()?)
}

fn busy_ns(line: &str) -> Option<u64> {
    const NS_PER_TICK: u64 = 10_000_000;
    let fields: Vec<u64> =
        line.strip_prefix("cpu ")?.split_whitespace().filter_map(|f| f.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let busy = [0, 1, 2, 5, 6, 7].into_iter().filter_map(|i| fields.get(i)).sum::<u64>();
    Some(busy * NS_PER_TICK)
}

fn os_image(os_release: &str) -> String {
    let line = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".into(), |value| value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_read() {
        assert_eq!(meminfo_field("MemTotal:  100 kB\nMemAvailable: 50 kB\n", "MemAvailable"), Some(51200));
        assert_eq!(busy_ns("cpu  1 2 3 100 100 4 5 6 0 0"), Some(21 * 10_000_000));
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        let machine = Machine::read(Path::new("/tmp/not/there"));
        assert!(machine.cpus > 0 && machine.memory_bytes > 0 && machine.disk_bytes > 0);
    }
}
