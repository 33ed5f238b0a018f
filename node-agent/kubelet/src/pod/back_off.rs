//! Back-off of restarts and image pulls, with client-go's `flowcontrol.Backoff` rules.
//!
//! The first repetition is free and arms the delay; each further one doubles it up to the maximum. A
//! container that ran for twice the maximum since then starts afresh.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(10);
const MAX: Duration = Duration::from_secs(300);
/// Quiet time after which the delay is forgotten.
const RESET_AFTER: Duration = Duration::from_secs(600);

/// Delay before the next try of one thing. Times are those of the agent's monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackOff {
    entry: Option<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    delay: Duration,
    last_update: Duration,
}

impl BackOff {
    /// The delay in force and what is left of it, `since` the event that counts (the container's end, the
    /// failed pull). `None`: go ahead.
    pub fn remaining(&self, since: Duration, now: Duration) -> Option<(Duration, Duration)> {
        let entry = self.entry?;
        if since.saturating_sub(entry.last_update) > RESET_AFTER {
            return None;
        }
        let left = (since + entry.delay).saturating_sub(now);
        (!left.is_zero()).then_some((entry.delay, left))
    }

    /// Notes that the thing is tried again after the event at `since`.
    pub fn next(&mut self, since: Duration, now: Duration) {
        let delay = match self.entry {
            Some(entry) if since.saturating_sub(entry.last_update) <= RESET_AFTER => {
                (entry.delay * 2).min(MAX)
            }
            _ => FIRST,
        };
        self.entry = Some(Entry { delay, last_update: now });
    }

    pub fn reset(&mut self) {
        self.entry = None;
    }
}

/// A duration as Go prints it: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) if seconds == 0 && duration.subsec_millis() > 0 => format!("{}ms", duration.subsec_millis()),
        (0, 0) if duration.subsec_millis() > 0 => format!("{rest}.{:03}s", duration.subsec_millis()),
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn delays_double_up_to_five_minutes() {
        let mut back_off = BackOff::default();
        let mut now = secs(100);
        let mut seen = Vec::new();
        assert_eq!(back_off.remaining(now, now), None, "the first restart is free");
        for _ in 0..8 {
            back_off.next(now, now);
            let (delay, left) = back_off.remaining(now, now).expect("armed");
            assert_eq!(delay, left);
            seen.push(delay.as_secs());
            now += left;
        }
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn ten_quiet_minutes_forget_the_delay() {
        let mut back_off = BackOff::default();
        back_off.next(secs(0), secs(0));
        back_off.next(secs(10), secs(20));
        let later = secs(20 + 601);
        assert_eq!(back_off.remaining(later, later), None);
        back_off.next(later, later);
        assert_eq!(back_off.remaining(later, later).map(|(delay, _)| delay), Some(secs(10)));
    }

    #[test]
    fn durations_read_as_in_go() {
        assert_eq!(go_duration(secs(10)), "10s");
        assert_eq!(go_duration(secs(80)), "1m20s");
        assert_eq!(go_duration(secs(300)), "5m0s");
        assert_eq!(go_duration(Duration::from_millis(250)), "250ms");
        assert_eq!(go_duration(Duration::from_millis(1250)), "1.250s");
    }
}
