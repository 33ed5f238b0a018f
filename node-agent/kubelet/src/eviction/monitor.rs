//! Shortages over time: which thresholds are met, for how long, and which conditions of the node follow.
//!
//! Pure: levels and a clock go in. A condition stays for the transition period after it was last seen, so that it does
//! not flap; a soft threshold counts only after its grace.

use std::collections::BTreeMap;
use std::time::Duration;

use super::thresholds::{Level, Signal, Threshold};
use super::{Eviction, Pressure};

#[derive(Debug, Default)]
pub struct Monitor {
    /// By index into the configured thresholds: since when each is met, without a break.
    met_since: BTreeMap<usize, Duration>,
    /// When each signal's condition was last seen.
    seen: BTreeMap<Signal, Duration>,
}

/// What one look gave.
#[derive(Debug, Default, PartialEq)]
pub struct Assessment {
    pub pressure: Pressure,
    /// The shortage to relieve now, and what is left.
    pub relieve: Option<(Threshold, Level)>,
}

impl Monitor {
    pub fn look(
        &mut self,
        config: &Eviction,
        levels: impl Fn(Signal) -> Option<Level>,
        now: Duration,
    ) -> Assessment {
        let mut due: Vec<(Threshold, Level)> = Vec::new();
        for (index, threshold) in config.thresholds.iter().enumerate() {
            let before = self.met_since.get(&index).copied();
            let met = levels(threshold.signal).filter(|level| threshold.is_met(*level, before.is_some()));
            let Some(level) = met else {
                self.met_since.remove(&index);
                continue;
            };
            let since = *self.met_since.entry(index).or_insert(now);
            self.seen.insert(threshold.signal, now);
            if now.saturating_sub(since) >= threshold.grace {
                due.push((*threshold, level));
            }
        }
        self.seen.retain(|_, at| now.saturating_sub(*at) < config.transition_period || *at == now);
        // The hard one of two about the same: it leaves no time.
        due.sort_by_key(|(threshold, _)| (threshold.signal, !threshold.is_hard()));
        Assessment { pressure: self.pressure(), relieve: due.into_iter().next() }
    }

    fn pressure(&self) -> Pressure {
        Pressure {
            memory: self.seen.keys().any(|signal| signal.is_memory()),
            disk: self.seen.keys().any(|signal| signal.is_disk()),
            pids: self.seen.contains_key(&Signal::PidAvailable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::thresholds::Amount;
    use super::*;

    fn config() -> Eviction {
        let soft = Threshold {
            grace: Duration::from_secs(60),
            ..Threshold::hard(Signal::NodefsAvailable, Amount::Absolute(50))
        };
        let hard = |signal| Threshold::hard(signal, Amount::Absolute(10));
        Eviction {
            thresholds: vec![hard(Signal::NodefsAvailable), soft, hard(Signal::MemoryAvailable)],
            ..Eviction::default()
        }
    }

    fn look(
        monitor: &mut Monitor,
        memory: u64,
        disk: u64,
        seconds: u64,
    ) -> (bool, bool, Option<Signal>, bool) {
        let levels = |signal| {
            let available = if signal == Signal::MemoryAvailable { memory } else { disk };
            Some(Level { available, capacity: 100 })
        };
        let found = monitor.look(&config(), levels, Duration::from_secs(seconds));
        let relieve = found.relieve.map(|(threshold, _)| threshold);
        (
            found.pressure.memory,
            found.pressure.disk,
            relieve.map(|t| t.signal),
            relieve.is_some_and(|t| t.is_hard()),
        )
    }

    #[test]
    fn soft_threshold_waits_and_hard_one_does_not() {
        let mut monitor = Monitor::default();
        assert_eq!(look(&mut monitor, 100, 100, 0), (false, false, None, false));
        assert_eq!(look(&mut monitor, 100, 40, 10), (false, true, None, false));
        assert_eq!(look(&mut monitor, 100, 40, 69), (false, true, None, false));
        assert_eq!(look(&mut monitor, 100, 40, 70), (false, true, Some(Signal::NodefsAvailable), false));
        assert_eq!(look(&mut monitor, 100, 5, 80), (false, true, Some(Signal::NodefsAvailable), true));
        assert_eq!(look(&mut monitor, 5, 5, 90), (true, true, Some(Signal::MemoryAvailable), true));
        // A break lets the grace begin anew.
        assert_eq!(look(&mut monitor, 100, 100, 100).2, None);
        assert_eq!(look(&mut monitor, 100, 40, 200).2, None);
    }

    #[test]
    fn condition_outlasts_its_shortage_by_the_transition_period() {
        let mut monitor = Monitor::default();
        assert!(look(&mut monitor, 5, 100, 0).0);
        assert!(look(&mut monitor, 100, 100, 299).0);
        assert!(!look(&mut monitor, 100, 100, 300).0);
    }
}
