//! The agent's own process, as Prometheus' client libraries show theirs.

use std::fs;

use super::text::Exposition;

const PAGE_BYTES: u64 = 4096;
/// USER_HZ is 100 on every machine that runs containers.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn render(out: &mut Exposition) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    let files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let Some(process) = parse(&stat) else { return };
    out.counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.").sample(
        &[],
        process.cpu_ticks as f64 / TICKS_PER_SECOND,
        None,
    );
    out.gauge("process_resident_memory_bytes", "Resident memory size in bytes.").sample(
        &[],
        (process.resident_pages * PAGE_BYTES) as f64,
        None,
    );
    out.gauge("process_open_fds", "Number of open file descriptors.").sample(&[], files as f64, None);
    let booted = boot.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok());
    let help = "Start time of the process since unix epoch in seconds.";
    let started = booted.unwrap_or(0.0) + process.start_ticks as f64 / TICKS_PER_SECOND;
    out.gauge("process_start_time_seconds", help).sample(&[], started, None);
}

#[derive(Debug, PartialEq)]
struct Process {
    cpu_ticks: u64,
    start_ticks: u64,
    resident_pages: u64,
}

/// proc_pid_stat(5), fields 14, 15, 22 and 24. The name may hold spaces and brackets.
fn parse(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Process { cpu_ticks: field(14)? + field(15)?, start_ticks: field(22)?, resident_pages: field(24)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_read_past_its_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 9 9 9 9 30 12 0 0 20 0 5 0 4711 99999 250 1844 1 1";
        let expected = Process { cpu_ticks: 42, start_ticks: 4711, resident_pages: 250 };
        assert_eq!(parse(stat), Some(expected));
        assert_eq!(parse("7"), None);
    }
}
