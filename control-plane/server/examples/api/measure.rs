//! Samples of requests, and what processes take.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// What clients saw in one measurement.
pub(crate) struct Sample {
    pub(crate) latencies: Vec<Duration>,
    pub(crate) elapsed: Duration,
    /// Processor time of the server.
    pub(crate) cpu: Duration,
}

impl Sample {
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// Milliseconds that `share` of the requests did not take longer than.
    pub(crate) fn percentile(&mut self, share: f64) -> f64 {
        percentile(&mut self.latencies, share)
    }

    /// Microseconds of the server's processor time, a request.
    pub(crate) fn cpu_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.latencies.len().max(1) as f64
    }
}

/// Milliseconds that `share` of `times` are not longer than; 0 of nothing.
pub(crate) fn percentile(times: &mut [Duration], share: f64) -> f64 {
    if times.is_empty() {
        return 0.0;
    }
    let at = ((times.len() - 1) as f64 * share).round() as usize;
    times.select_nth_unstable(at).1.as_secs_f64() * 1e3
}

/// Memory of a process, in MiB.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    /// Without the pages of files, the embedded store's among them.
    pub(crate) anonymous: f64,
    /// The highest `resident` since the process began or [`reset_peak`].
    pub(crate) peak: f64,
}

pub(crate) fn memory(process: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).context("the server has ended")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib =
            line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<f64>().ok());
        kib.map(|kib| kib / 1024.0).with_context(|| format!("/proc/{process}/status has no {name}"))
    };
    Ok(Memory { resident: field("VmRSS:")?, anonymous: field("RssAnon:")?, peak: field("VmHWM:")? })
}

/// Lets the peak begin anew (proc(5), `clear_refs`).
pub(crate) fn reset_peak(process: u32) -> Result<()> {
    fs::write(format!("/proc/{process}/clear_refs"), "5").context("cannot reset the server's peak memory")
}

/// Processor time that a process has taken (proc(5), `stat`, fields 14 and 15).
pub(crate) fn cpu(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).context("the server has ended")?;
    // The name before it is in parentheses and may hold anything.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    // Linux counts in hundredths of a second towards user space.
    Ok(Duration::from_millis(ticks * 10))
}
