//! What a group uses, read from its files.

use std::fs;
use std::path::Path;

use super::Cgroups;
use crate::ContainerStats;

/// Limits above this mean "no limit": version 1 shows the largest page-aligned number instead.
const NO_LIMIT: u64 = 1 << 60;

impl Cgroups {
    /// `None` when the group does not exist.
    pub(crate) fn stats(&self, group: &str) -> Option<ContainerStats> {
        if self.is_unified() { self.stats_v2(group) } else { self.stats_v1(group) }
    }

    fn stats_v1(&self, group: &str) -> Option<ContainerStats> {
        let memory = self.path("memory", group)?;
        let usage = number(&memory.join("memory.usage_in_bytes"))?;
        let stat = fs::read_to_string(memory.join("memory.stat")).ok()?;
        // "total_" counts the groups below as well.
        let inactive = field(&stat, "total_inactive_file").unwrap_or(0);
        let cpu = self.path("cpuacct", group).and_then(|p| number(&p.join("cpuacct.usage")));
        let pids = self.path("pids", group).and_then(|p| number(&p.join("pids.current")));
        Some(ContainerStats {
            cpu_usage_ns: cpu.unwrap_or(0),
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage.saturating_sub(inactive),
            memory_rss_bytes: field(&stat, "total_rss").unwrap_or(0),
            memory_limit_bytes: number(&memory.join("memory.limit_in_bytes")).filter(|l| *l < NO_LIMIT),
            pids: pids.unwrap_or(0),
        })
    }

    fn stats_v2(&self, group: &str) -> Option<ContainerStats> {
        let directory = self.path("memory", group)?;
        let usage = number(&directory.join("memory.current"))?;
        let stat = fs::read_to_string(directory.join("memory.stat")).ok()?;
        let cpu = fs::read_to_string(directory.join("cpu.stat")).unwrap_or_default();
        Some(ContainerStats {
            cpu_usage_ns: field(&cpu, "usage_usec").unwrap_or(0) * 1000,
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage.saturating_sub(field(&stat, "inactive_file").unwrap_or(0)),
            memory_rss_bytes: field(&stat, "anon").unwrap_or(0),
            memory_limit_bytes: number(&directory.join("memory.max")),
            pids: number(&directory.join("pids.current")).unwrap_or(0),
        })
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after `name` in a file of `name number` lines.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_needs_the_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), Some(3));
        assert_eq!(field(text, "oom"), None);
    }
}
