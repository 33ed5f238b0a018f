//! What the processes of a node take.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

/// Processor time and memory of some processes together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) processes: usize,
    pub(crate) cpu: Duration,
    /// Of those that they started and that have ended.
    pub(crate) ended_cpu: Duration,
    /// MiB; pages that several share are counted by their part for each (proc(5), `smaps_rollup`, `Pss`).
    pub(crate) proportional: f64,
    /// MiB, `VmRSS`.
    pub(crate) resident: f64,
}

impl Usage {
    fn add(&mut self, other: Self) {
        self.processes += other.processes;
        self.cpu += other.cpu;
        self.ended_cpu += other.ended_cpu;
        self.proportional += other.proportional;
        self.resident += other.resident;
    }
}

/// One process.
pub(crate) fn of(pid: i32) -> Result<Usage> {
    let folder = Path::new("/proc").join(pid.to_string());
    let read = |name: &str| {
        fs::read_to_string(folder.join(name)).with_context(|| format!("process {pid} has ended"))
    };
    let mib = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
    };
    let stat = read("stat")?;
    // The name before it is in parentheses and may hold anything. Fields 14 to 17, in hundredths of a second.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    let ticks: Vec<u64> = fields.take(4).filter_map(|ticks| ticks.parse().ok()).collect();
    let time = |ticks: Option<&[u64]>| Duration::from_millis(ticks.into_iter().flatten().sum::<u64>() * 10);
    Ok(Usage {
        processes: 1,
        cpu: time(ticks.get(..2)),
        ended_cpu: time(ticks.get(2..4)),
        proportional: mib(&read("smaps_rollup")?, "Pss:"),
        resident: mib(&read("status")?, "VmRSS:"),
    })
}

/// All processes whose command line `matches`.
pub(crate) fn that(matches: impl Fn(&[&str]) -> bool) -> Usage {
    let mut sum = Usage::default();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&str> = line.split('\0').collect();
        // One that ends meanwhile counts no more.
        if matches(&words)
            && let Ok(usage) = of(pid)
        {
            sum.add(usage);
        }
    }
    sum
}
