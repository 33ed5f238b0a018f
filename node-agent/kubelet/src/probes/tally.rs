//! Counting a probe's results against its thresholds.

use k8s_openapi::api::core::v1::Probe;

/// Consecutive results of one probe.
#[derive(Clone, Debug)]
pub struct Tally {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
    verdict: bool,
}

impl Tally {
    /// `initially` is the verdict until the thresholds say otherwise.
    pub fn new(probe: &Probe, initially: bool) -> Self {
        let threshold =
            |n: Option<i32>, default: u32| n.filter(|n| *n > 0).map_or(default, i32::unsigned_abs);
        Self {
            success_threshold: threshold(probe.success_threshold, 1),
            failure_threshold: threshold(probe.failure_threshold, 3),
            last: None,
            run: 0,
            verdict: initially,
        }
    }

    /// Counts one result; the verdict, once enough of the same kind came in a row.
    pub fn count(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let needed = if success { self.success_threshold } else { self.failure_threshold };
        if self.run < needed {
            return None;
        }
        self.verdict = success;
        Some(success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(success: i32, failure: i32, results: &[bool]) -> Vec<Option<bool>> {
        let probe =
            Probe { success_threshold: Some(success), failure_threshold: Some(failure), ..Probe::default() };
        let mut tally = Tally::new(&probe, true);
        results.iter().map(|result| tally.count(*result)).collect()
    }

    #[test]
    fn thresholds_count_consecutive_results() {
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(
            verdicts(1, 3, &[false, false, true, false, false, false, false]),
            [None, None, yes, None, None, no, no]
        );
        assert_eq!(verdicts(2, 1, &[false, true, false, true, true]), [no, None, no, None, yes]);
    }
}
