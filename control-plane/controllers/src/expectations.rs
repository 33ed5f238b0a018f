//! What a controller has written and its cache does not show yet.
//!
//! A controller that creates pods and then looks at a cache that is behind would create them again. So it
//! notes how many creations and which deletions it is about to make, watch events tick them off, and until
//! all are seen the owner's pods are not counted again. An event that never comes (created and deleted
//! during a break of the watch) is waited for five minutes, as upstream does. Keyed by the owner's uid.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

const TIMEOUT: Duration = Duration::from_secs(300);
/// Beyond so many owners those are dropped that nobody asks for any more.
const SWEEP_FROM: usize = 1024;

#[derive(Default)]
pub(crate) struct Expectations {
    owners: Mutex<Owners>,
}

/// Bounded by twice the owners of the last five minutes: one that is deleted while it is worked on leaves its entry.
#[derive(Default)]
struct Owners {
    expected: HashMap<String, Expected>,
    swept: usize,
}

impl Owners {
    fn insert(&mut self, owner: &str, expected: Expected) {
        if self.expected.len() >= (2 * self.swept).max(SWEEP_FROM) {
            self.expected.retain(|_, expected| expected.since.elapsed() <= TIMEOUT);
            self.swept = self.expected.len();
        }
        self.expected.insert(owner.to_owned(), expected);
    }
}

struct Expected {
    creations: usize,
    /// Uids of what is to go.
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    /// Call before the first of `creations` requests, and of those that delete one of `uids`.
    pub(crate) fn expect(&self, owner: &str, creations: usize, uids: impl IntoIterator<Item = String>) {
        let expected = Expected { creations, deletions: uids.into_iter().collect(), since: Instant::now() };
        self.owners.lock().insert(owner, expected);
    }

    /// A created object appeared, or `count` requests came to nothing.
    pub(crate) fn creations_observed(&self, owner: &str, count: usize) {
        if let Some(expected) = self.owners.lock().expected.get_mut(owner) {
            expected.creations = expected.creations.saturating_sub(count);
        }
    }

    /// A deletion appeared, or the request failed.
    pub(crate) fn deletion_observed(&self, owner: &str, uid: &str) {
        if let Some(expected) = self.owners.lock().expected.get_mut(owner) {
            expected.deletions.remove(uid);
        }
    }

    /// True where the cache shows all that was written, or has had time enough.
    pub(crate) fn are_met(&self, owner: &str) -> bool {
        let mut owners = self.owners.lock();
        let Some(expected) = owners.expected.get(owner) else { return true };
        let met = expected.creations == 0 && expected.deletions.is_empty();
        if met || expected.since.elapsed() > TIMEOUT {
            owners.expected.remove(owner);
            return true;
        }
        false
    }

    pub(crate) fn forget(&self, owner: &str) {
        self.owners.lock().expected.remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn expectations_are_met_when_every_event_came() {
        let expectations = Expectations::default();
        assert!(expectations.are_met("rs"));
        expectations.expect("rs", 2, []);
        expectations.creations_observed("rs", 1);
        assert!(!expectations.are_met("rs"));
        expectations.creations_observed("rs", 1);
        assert!(expectations.are_met("rs"));
    }

    #[tokio::test(start_paused = true)]
    async fn deletions_are_told_apart_by_uid() {
        let expectations = Expectations::default();
        expectations.expect("rs", 0, ["a".to_owned()]);
        expectations.deletion_observed("rs", "b");
        assert!(!expectations.are_met("rs"));
        expectations.deletion_observed("rs", "a");
        assert!(expectations.are_met("rs"));
    }

    #[tokio::test(start_paused = true)]
    async fn owners_that_nobody_asks_for_are_dropped() {
        let expectations = Expectations::default();
        for round in 0..8 {
            for owner in 0..SWEEP_FROM {
                expectations.expect(&format!("{round}-{owner}"), 1, []);
            }
            tokio::time::advance(2 * TIMEOUT).await;
        }
        assert!(expectations.owners.lock().expected.len() <= 2 * SWEEP_FROM);
    }

    #[tokio::test(start_paused = true)]
    async fn lost_events_are_waited_for_five_minutes() {
        let expectations = Expectations::default();
        expectations.expect("rs", 1, []);
        tokio::time::advance(TIMEOUT).await;
        assert!(!expectations.are_met("rs"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(expectations.are_met("rs"));
    }
}
