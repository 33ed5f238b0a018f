//! Counting a probe's results against its thresholds.

use k8s_openapi::api::core::v1::Probe;

/// Consecutive results of one probe.
#[derive(Clone, Debug)]
pub struct Tally {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
    /// What was said last.
    verdict: Option<bool>,
}

impl Tally {
    pub fn new(probe: &Probe) -> Self {
        let threshold =
            |n: Option<i32>, default: u32| n.filter(|n| *n > 0).map_or(default, i32::unsigned_abs);
        Self {
            success_threshold: threshold(probe.success_threshold, 1),
            failure_threshold: threshold(probe.failure_threshold, 3),
            last: None,
            run: 0,
            verdict: None,
        }
    }

    /// Counts one result; the verdict, when enough of the same kind have come in a row and it was another before.
    pub fn count(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let needed = if success { self.success_threshold } else { self.failure_threshold };
        if self.run < needed || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(success: i32, failure: i32, results: &[bool]) -> Vec<Option<bool>> {
        let probe =
            Probe { success_threshold: Some(success), failure_threshold: Some(failure), ..Probe::default() };
        let mut tally = Tally::new(&probe);
        results.iter().map(|result| tally.count(*result)).collect()
    }

    #[test]
    fn thresholds_count_consecutive_results() {
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(
            verdicts(1, 3, &[false, false, true, true, false, false, false, false, true]),
            [None, None, yes, None, None, None, no, None, yes]
        );
        assert_eq!(verdicts(2, 1, &[false, true, false, true, true]), [no, None, None, None, yes]);
    }
}
