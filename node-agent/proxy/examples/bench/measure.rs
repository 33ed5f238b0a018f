//! Taking turns: every peer runs once a round, and what counts are medians over the rounds, and ratios within one.
//!
//! CPU time is what the kernel charges to this process (clients and servers are its threads, and a veth pair's packets
//! are worked off in the sender's context) and to `ksoftirqd`: other work on the machine does not enter it, though
//! it enters rates. A watchdog ends a run that hangs.

use std::{
    fs,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

/// What one turn gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// Operations a second, in the case's own unit.
    pub(crate) rate: f64,
    /// CPU time per operation in microseconds.
    pub(crate) cpu_us: f64,
    /// p50, p99, p999 in microseconds, where the case has latencies.
    pub(crate) latency_us: Option<[f64; 3]>,
}

/// Measures one turn, from now on.
pub(crate) struct Meter {
    started: Instant,
    cpu: Duration,
}

impl Meter {
    pub(crate) fn start() -> Self {
        Self { cpu: cpu_time(), started: Instant::now() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends it, after `operations`; a rate counts `scale` for each.
    pub(crate) fn stop(self, operations: u64, scale: f64) -> Result<Sample> {
        let elapsed = self.started.elapsed();
        let cpu = cpu_time().saturating_sub(self.cpu);
        ensure!(operations > 0, "nothing got through in {elapsed:?}");
        Ok(Sample {
            rate: operations as f64 * scale / elapsed.as_secs_f64(),
            cpu_us: cpu.as_secs_f64() * 1e6 / operations as f64,
            latency_us: None,
        })
    }
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is the one that the call fills.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let own = Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
    own + ksoftirqd().iter().filter_map(run_time).sum::<Duration>()
}

/// The kernel's own threads for softirqs that found no other context.
fn ksoftirqd() -> &'static [PathBuf] {
    static FOUND: OnceLock<Vec<PathBuf>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .map(|entry| entry.path())
            .filter(|path| {
                fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("ksoftirqd/"))
            })
            .map(|path| path.join("schedstat"))
            .collect()
    })
}

fn run_time(schedstat: &PathBuf) -> Option<Duration> {
    let text = fs::read_to_string(schedstat).ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}

/// Latencies of one turn, in nanoseconds. Bounded: later ones beyond it are not kept.
pub(crate) struct Latencies(Vec<u32>);

impl Latencies {
    const MOST: usize = 4_000_000;

    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(1 << 18))
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        if self.0.len() < Self::MOST {
            self.0.push(u32::try_from(latency.as_nanos()).unwrap_or(u32::MAX));
        }
    }

    /// Returns p50, p99 and p999 in microseconds.
    pub(crate) fn percentiles(&mut self) -> Option<[f64; 3]> {
        self.0.sort_unstable();
        let last = self.0.len().checked_sub(1)?;
        Some([0.5, 0.99, 0.999].map(|part| f64::from(self.0[(last as f64 * part) as usize]) / 1e3))
    }
}

/// The middle of a row of values, and its ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// `None` of nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, low, high })
    }
}

/// Runs `turn` for each of `peers`, `rounds` times in turns. Who begins changes from round to round.
///
/// Returns the samples by peer and round.
pub(crate) fn rounds<P>(
    peers: &[P],
    rounds: usize,
    mut turn: impl FnMut(&P, usize) -> Result<Sample>,
) -> Result<Vec<Vec<Sample>>> {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::with_capacity(rounds); peers.len()];
    for round in 0..rounds {
        for place in 0..peers.len() {
            let which = (place + round) % peers.len();
            Watchdog::pat();
            samples[which].push(turn(&peers[which], round)?);
        }
    }
    Ok(samples)
}

/// Ends the process when nothing has moved for too long: a server that waits for a lost packet, say.
pub(crate) struct Watchdog;

/// Seconds on the watchdog's clock at which something moved last.
static MOVED: AtomicU64 = AtomicU64::new(0);
static CLOCK: OnceLock<Instant> = OnceLock::new();

impl Watchdog {
    const PATIENCE: Duration = Duration::from_secs(300);

    pub(crate) fn start() -> Result<()> {
        Self::pat();
        let watch = || {
            loop {
                thread::sleep(Duration::from_secs(1));
                if Self::now().saturating_sub(MOVED.load(Ordering::Relaxed)) > Self::PATIENCE.as_secs() {
                    eprintln!("nothing moved for {:?}: giving up", Self::PATIENCE);
                    std::process::exit(1);
                }
            }
        };
        thread::Builder::new().name("watchdog".to_owned()).spawn(watch).context("start the watchdog")?;
        Ok(())
    }

    /// Something moved.
    pub(crate) fn pat() {
        MOVED.store(Self::now(), Ordering::Relaxed);
    }

    fn now() -> u64 {
        CLOCK.get_or_init(Instant::now).elapsed().as_secs()
    }
}
