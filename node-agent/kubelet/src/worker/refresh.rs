//! When a pod's volumes are written anew: an object they show has changed, or a token of theirs runs out.
//!
//! Knows times and changes, not volumes. A change is remembered until a write begins after it, so that one which
//! comes while the volumes are being written is written too. A time to wake up at is named only while a write could
//! begin then; otherwise the end of what is under way wakes the worker.

use std::time::Duration;

use tokio::time::Instant;

use crate::volumes::RETRY;

#[derive(Debug, Default)]
pub(super) struct Refresh {
    /// Something has changed since the newest write began.
    wanted: bool,
    running: bool,
    /// Tokens run out, or a volume that failed is tried again.
    due_at: Option<Instant>,
}

impl Refresh {
    /// What the volumes show has changed.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// The first write of the volumes begins: it sees all that has changed until now.
    pub(super) fn first_write_begins(&mut self) {
        self.wanted = false;
    }

    pub(super) fn first_write_ended(&mut self, tokens_last: Option<Duration>, now: Instant) {
        self.due_at = tokens_last.map(|left| now + left);
    }

    /// True when the volumes are to be written now; the caller does so. `possible`: they were written once, and the
    /// pod goes on.
    pub(super) fn begin_if_due(&mut self, possible: bool, now: Instant) -> bool {
        let due = self.wanted || self.due_at.is_some_and(|at| at <= now);
        if !possible || self.running || !due {
            return false;
        }
        *self = Self { wanted: false, running: true, due_at: None };
        true
    }

    /// The write ended; `written` says when it is due again, `None` that it was cut short.
    pub(super) fn ended(&mut self, written: Option<Option<Duration>>, now: Instant) {
        self.running = false;
        self.due_at = written.unwrap_or(Some(RETRY)).map(|left| now + left);
    }

    /// When to call [`Self::begin_if_due`] again, if nothing happens before.
    pub(super) fn wake_at(&self, possible: bool) -> Option<Instant> {
        self.due_at.filter(|_| possible && !self.running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn change_during_a_write_is_written_after_it() {
        let now = Instant::now();
        let mut refresh = Refresh::default();
        refresh.want();
        assert!(refresh.begin_if_due(true, now));
        refresh.want();
        assert!(!refresh.begin_if_due(true, now), "one at a time");
        refresh.ended(Some(Some(HOUR)), now);
        assert!(refresh.begin_if_due(true, now), "what came meanwhile is not forgotten");
        refresh.ended(Some(Some(HOUR)), now);
        assert!(!refresh.begin_if_due(true, now), "nothing has changed since");
    }

    #[test]
    fn change_during_the_first_write_is_written_after_it() {
        let now = Instant::now();
        let mut refresh = Refresh::default();
        refresh.want();
        refresh.first_write_begins();
        refresh.first_write_ended(None, now);
        assert!(!refresh.begin_if_due(true, now), "the first write saw the change before it");
        refresh.first_write_begins();
        refresh.want();
        refresh.first_write_ended(Some(HOUR), now);
        assert!(refresh.begin_if_due(true, now));
    }

    #[test]
    fn nothing_to_wake_up_for_while_no_write_can_begin() {
        let now = Instant::now();
        let mut refresh = Refresh::default();
        refresh.first_write_ended(Some(HOUR), now);
        refresh.want();
        assert!(!refresh.begin_if_due(false, now + 2 * HOUR));
        assert_eq!(refresh.wake_at(false), None, "volumes that are not there, or a pod that stops");
        assert!(refresh.begin_if_due(true, now + 2 * HOUR));
        refresh.want();
        assert_eq!(refresh.wake_at(true), None, "its end wakes the worker");
        refresh.ended(None, now);
        assert_eq!(refresh.wake_at(true), Some(now + RETRY));
    }
}
