//! How long a node's failed daemon pods are left alone: a second, doubling up to fifteen minutes.
//!
//! A kubelet that refuses a pod and a set that makes it anew would otherwise run in circles.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(900);

/// A failure that is older says nothing any more.
const FORGOTTEN: Duration = Duration::from_secs(1800);

#[derive(Default)]
pub(super) struct Backoff {
    failures: Mutex<Failures>,
}

/// By set and node. Bounded by the failed pods of the last hour: older entries are dropped every half an hour, since a
/// look at all of them for each of them would cost their square.
#[derive(Default)]
struct Failures {
    of: HashMap<String, Failed>,
    swept: Option<Instant>,
}

struct Failed {
    delay: Duration,
    at: Instant,
}

impl Backoff {
    /// Zero where `key` may be tried now, which counts as a try; else how long to wait.
    pub(super) fn attempt(&self, key: String) -> Duration {
        let now = Instant::now();
        let mut failures = self.failures.lock();
        let is_old = |failed: &Failed| now.duration_since(failed.at) > FORGOTTEN;
        if failures.swept.is_none_or(|at| now.duration_since(at) > FORGOTTEN) {
            failures.of.retain(|_, failed| !is_old(failed));
            failures.swept = Some(now);
        }
        let Some(failed) = failures.of.get_mut(&key).filter(|failed| !is_old(failed)) else {
            failures.of.insert(key, Failed { delay: FIRST, at: now });
            return Duration::ZERO;
        };
        let wait = failed.delay.saturating_sub(now.duration_since(failed.at));
        if wait.is_zero() {
            failed.delay = (failed.delay * 2).min(LAST);
            failed.at = now;
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_failure_waits_twice_as_long_and_rest_forgives() {
        let backoff = Backoff::default();
        let attempt = || backoff.attempt("set/node".to_owned());
        assert_eq!(attempt(), Duration::ZERO);
        assert_eq!(attempt(), FIRST);
        tokio::time::advance(FIRST).await;
        assert_eq!(attempt(), Duration::ZERO);
        assert_eq!(attempt(), 2 * FIRST);
        for _ in 0..20 {
            tokio::time::advance(LAST).await;
            assert_eq!(attempt(), Duration::ZERO);
        }
        assert_eq!(attempt(), LAST);
        tokio::time::advance(3 * LAST).await;
        assert_eq!((attempt(), attempt()), (Duration::ZERO, FIRST));
    }
}
