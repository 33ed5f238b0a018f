//! How long a Job waits before it makes up for failed pods: ten seconds, doubling up to ten minutes.

use std::time::Duration;

use jiff::Timestamp;

use crate::meta::elapsed;

const FIRST: Duration = Duration::from_secs(10);
const LAST: Duration = Duration::from_secs(600);

/// Failures since the last success of one job.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Record {
    failures: i32,
    last: Option<Timestamp>,
}

impl Record {
    /// With pods that ended since, by their ends.
    pub(super) fn after(self, succeeded: &[Timestamp], failed: &[Timestamp]) -> Self {
        let later = |success: Timestamp| failed.iter().filter(|end| **end > success).count();
        let more = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let failures = match succeeded.iter().max() {
            Some(success) => more(later(*success)),
            None => self.failures.saturating_add(more(failed.len())),
        };
        Self { failures, last: failed.iter().copied().chain(self.last).max() }
    }

    pub(super) fn remaining(self, now: Timestamp) -> Duration {
        self.last.map_or(Duration::ZERO, |last| remaining(self.failures, last, now))
    }
}

/// How much is left of the delay after the last of `failures`.
pub(super) fn remaining(failures: i32, last: Timestamp, now: Timestamp) -> Duration {
    let Some(doublings) = u32::try_from(failures).ok().and_then(|failures| failures.checked_sub(1)) else {
        return Duration::ZERO;
    };
    let delay = FIRST.saturating_mul(1 << doublings.min(6)).min(LAST);
    delay.saturating_sub(elapsed(last, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_double_the_delay_and_a_success_forgives_those_before() {
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let record = Record::default();
        assert_eq!(record.remaining(at(0)), Duration::ZERO);
        let record = record.after(&[], &[at(0)]);
        assert_eq!(record.remaining(at(4)), Duration::from_secs(6));
        let record = record.after(&[], &[at(10), at(12)]);
        assert_eq!(record.remaining(at(12)), Duration::from_secs(40));
        let long = record.after(&[], &[at(20); 40]);
        assert_eq!(long.remaining(at(20)), LAST);
        let record = long.after(&[at(30)], &[at(25), at(31)]);
        assert_eq!(record.remaining(at(31)), Duration::from_secs(10));
        assert_eq!(record.after(&[at(50)], &[]).remaining(at(50)), Duration::ZERO);
    }
}
