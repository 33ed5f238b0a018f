//! So many of something in a second, and a few more at once: client-go's token bucket, as `registryPullQPS` and
//! `eventRecordQPS` bound the kubelet's pulls and events.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// 0: no bound.
    pub per_second: u32,
    /// At once, after a quiet time.
    pub burst: u32,
}

/// Hands out turns at a rate. Who comes first is served first.
pub struct Limiter {
    rate: Rate,
    /// When the bucket is full again, if nobody takes from it.
    full_at: Mutex<Instant>,
}

impl Limiter {
    pub fn new(rate: Rate) -> Self {
        Self { rate, full_at: Mutex::new(Instant::now()) }
    }

    /// Waits for a turn. Cancel-safe: who goes away while waiting takes none.
    pub async fn turn(&self) {
        let Rate { per_second, burst } = self.rate;
        if per_second == 0 {
            return;
        }
        let each = Duration::from_secs(1) / per_second;
        let mut full_at = self.full_at.lock().await;
        // What is missing of a full bucket must leave room for this one.
        let room = each * burst.max(1).saturating_sub(1);
        tokio::time::sleep_until(full_at.checked_sub(room).unwrap_or(*full_at)).await;
        *full_at = (*full_at).max(Instant::now()) + each;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_each_waits_its_time() {
        let begin = Instant::now();
        let limiter = Limiter::new(Rate { per_second: 5, burst: 3 });
        let mut passed = Vec::new();
        for _ in 0..5 {
            limiter.turn().await;
            passed.push(begin.elapsed().as_millis());
        }
        // The clock of tokio counts in milliseconds, and wakes at the end of one.
        assert_eq!(passed[..3], [0, 0, 0]);
        assert!((200..=201).contains(&passed[3]) && (400..=402).contains(&passed[4]), "{passed:?}");
        tokio::time::advance(Duration::from_secs(10)).await;
        let quiet = Instant::now();
        for _ in 0..3 {
            limiter.turn().await;
        }
        assert_eq!(quiet.elapsed(), Duration::ZERO, "no more than a burst is saved up, and no less");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_bounded_at_zero() {
        let limiter = Limiter::new(Rate { per_second: 0, burst: 0 });
        let begin = Instant::now();
        for _ in 0..1000 {
            limiter.turn().await;
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }
}
