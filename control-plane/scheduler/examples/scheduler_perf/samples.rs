//! Rates of seconds, and percentiles, as upstream's benchmark has them.

use std::time::Duration;

/// As upstream's collector.
const SECOND: Duration = Duration::from_secs(1);

/// The rates, sorted, that upstream's collector has of bindings so long after its start, in order. It looks each second: the
/// first look that finds a pod is the beginning, a second without one more is counted with the next, and after the last
/// binding nobody looks.
pub(crate) fn samples(bound_at: &[Duration]) -> Vec<f64> {
    let seconds = bound_at.last().map_or(0, Duration::as_secs) as u32;
    let counts = (1..=seconds).map(|second| bound_at.partition_point(|at| *at <= SECOND * second));
    let mut counts = counts.skip_while(|count| *count == 0);
    let Some(mut last) = counts.next() else { return Vec::new() };
    let (mut rates, mut seconds) = (Vec::new(), 1);
    for count in counts {
        if count == last {
            seconds += 1;
            continue;
        }
        let rate = (count - last) as f64 / f64::from(seconds);
        rates.extend((0..seconds).map(|_| rate));
        (last, seconds) = (count, 1);
    }
    rates.sort_by(f64::total_cmp);
    rates
}

/// Of sorted values, by the nearest rank; 0 of none.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}
