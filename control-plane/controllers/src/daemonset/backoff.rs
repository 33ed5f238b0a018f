//! How long a node's failed daemon pods are left alone: a second, doubling up to fifteen minutes.
//!
//! A kubelet that refuses a pod and a set that makes it anew would otherwise run in circles.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(900);

/// By set and node. Bounded by the failed pods of the last half an hour: older entries are dropped.
#[derive(Default)]
pub(super) struct Backoff {
    failures: Mutex<HashMap<String, Failed>>,
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
        failures.retain(|_, failed| now.duration_since(failed.at) <= 2 * LAST);
        let Some(failed) = failures.get_mut(&key) else {
            failures.insert(key, Failed { delay: FIRST, at: now });
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
