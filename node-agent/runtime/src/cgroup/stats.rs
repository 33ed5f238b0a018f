//! What a group uses, read from its files.

use std::fs;
use std::path::Path;

use super::Cgroups;
use crate::ContainerStats;

/// Limits above this mean "no limit": version 1 shows the largest page-aligned number instead.
const NO_LIMIT: u64 = 1 << 60;
/// USER_HZ is 100 on every machine that runs containers.
const NS_PER_TICK: u64 = 10_000_000;

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
        let total = |name: &str| field(&stat, &format!("total_{name}")).unwrap_or(0);
        let read = |controller: &str, file: &str| {
            let path = self.path(controller, group).map(|directory| directory.join(file));
            path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default()
        };
        let (times, throttling) = (read("cpuacct", "cpuacct.stat"), read("cpu", "cpu.stat"));
        Some(ContainerStats {
            cpu_usage_ns: parsed(&read("cpuacct", "cpuacct.usage")),
            cpu_user_ns: field(&times, "user").unwrap_or(0) * NS_PER_TICK,
            cpu_system_ns: field(&times, "system").unwrap_or(0) * NS_PER_TICK,
            cpu_periods: field(&throttling, "nr_periods").unwrap_or(0),
            cpu_throttled_periods: field(&throttling, "nr_throttled").unwrap_or(0),
            cpu_throttled_ns: field(&throttling, "throttled_time").unwrap_or(0),
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage.saturating_sub(total("inactive_file")),
            memory_rss_bytes: total("rss"),
            memory_cache_bytes: total("cache"),
            memory_mapped_file_bytes: total("mapped_file"),
            memory_swap_bytes: total("swap"),
            memory_limit_bytes: number(&memory.join("memory.limit_in_bytes")).filter(|l| *l < NO_LIMIT),
            page_faults: total("pgfault"),
            major_page_faults: total("pgmajfault"),
            oom_kills: field(&read("memory", "memory.oom_control"), "oom_kill").unwrap_or(0),
            pids: parsed(&read("pids", "pids.current")),
        })
    }

    fn stats_v2(&self, group: &str) -> Option<ContainerStats> {
        let directory = self.path("memory", group)?;
        let usage = number(&directory.join("memory.current"))?;
        let stat = fs::read_to_string(directory.join("memory.stat")).ok()?;
        let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
        let (cpu, events) = (read("cpu.stat"), read("memory.events"));
        let memory = |name: &str| field(&stat, name).unwrap_or(0);
        let microseconds = |name: &str| field(&cpu, name).unwrap_or(0) * 1000;
        Some(ContainerStats {
            cpu_usage_ns: microseconds("usage_usec"),
            cpu_user_ns: microseconds("user_usec"),
            cpu_system_ns: microseconds("system_usec"),
            cpu_periods: field(&cpu, "nr_periods").unwrap_or(0),
            cpu_throttled_periods: field(&cpu, "nr_throttled").unwrap_or(0),
            cpu_throttled_ns: microseconds("throttled_usec"),
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage.saturating_sub(memory("inactive_file")),
            memory_rss_bytes: memory("anon"),
            memory_cache_bytes: memory("file"),
            memory_mapped_file_bytes: memory("file_mapped"),
            memory_swap_bytes: parsed(&read("memory.swap.current")),
            memory_limit_bytes: number(&directory.join("memory.max")),
            page_faults: memory("pgfault"),
            major_page_faults: memory("pgmajfault"),
            oom_kills: field(&events, "oom_kill").unwrap_or(0),
            pids: parsed(&read("pids.current")),
        })
    }
}

/// 0 for what is no number.
fn parsed(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
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
