//! What the guest says about its tests, line by line, and what follows from it. `run-test.sh` writes these, a test's
//! lines together, and `init.sh` the last:
//!
//! ```text
//! | <a line that the test printed>
//! end <executable> <test> <status> <seconds>
//! done
//! ```

use std::collections::BTreeSet;

use super::plan::Test;

#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Printed(&'a str),
    End { test: Test, status: u8, seconds: &'a str },
    Done,
}

/// Results until now. A test is expected until its end is heard.
pub(super) struct Report {
    expected: BTreeSet<Test>,
    /// What the test has printed whose end is heard next.
    printed: Vec<String>,
    passed: usize,
    skipped: usize,
    failed: usize,
    is_done: bool,
}

impl Report {
    pub(super) fn new(tests: impl Iterator<Item = Test>) -> Self {
        let expected = tests.collect();
        Self { expected, printed: Vec::new(), passed: 0, skipped: 0, failed: 0, is_done: false }
    }

    /// Takes a line of the guest's, and returns what a reader should see of it.
    pub(super) fn take(&mut self, line: &str) -> Option<String> {
        match parse(line)? {
            Line::Printed(text) => self.printed.push(text.to_owned()),
            Line::Done => self.is_done = true,
            Line::End { test, status, seconds } => {
                let printed = std::mem::take(&mut self.printed);
                // Otherwise nobody asked for it, or its end was heard before.
                if self.expected.remove(&test) {
                    return Some(self.count(&test, status, seconds, &printed));
                }
            }
        }
        None
    }

    fn count(&mut self, test: &Test, status: u8, seconds: &str, printed: &[String]) -> String {
        let skip = printed.iter().find(|text| text.starts_with("skipped"));
        match (status, skip) {
            (0, None) => {
                self.passed += 1;
                format!("passed  {seconds:>4} s  {test}")
            }
            (0, Some(reason)) => {
                self.skipped += 1;
                format!("skipped {seconds:>4} s  {test}: {reason}")
            }
            (status, _) => {
                self.failed += 1;
                format!(
                    "FAILED  {seconds:>4} s  {test}, with status {status}:\n    {}",
                    printed.join("\n    ")
                )
            }
        }
    }

    /// Every test has a result, none failed, and the guest came to its end.
    pub(super) fn is_good(&self) -> bool {
        self.is_done && self.failed == 0 && self.expected.is_empty() && self.passed > 0
    }

    /// The counts, below the name of each test that has no result.
    pub(super) fn summary(&self) -> String {
        let missing: String =
            self.expected.iter().map(|test| format!("MISSING         {test}: no result\n")).collect();
        let Self { passed, failed, skipped, .. } = self;
        let without = self.expected.len();
        format!(
            "{missing}tests: {passed} passed, {failed} failed, {skipped} skipped, {without} without a result"
        )
    }
}

fn parse(line: &str) -> Option<Line<'_>> {
    // The terminal ends lines in its own way.
    let line = line.trim_end();
    if let Some(text) = line.strip_prefix('|') {
        return Some(Line::Printed(text.strip_prefix(' ').unwrap_or(text)));
    }
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["end", binary, name, status, seconds] => {
            let test = Test { binary: (*binary).to_owned(), name: (*name).to_owned() };
            Some(Line::End { test, status: status.parse().ok()?, seconds })
        }
        ["done"] => Some(Line::Done),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Report, Test};

    fn report(tests: &[&str]) -> Report {
        Report::new(tests.iter().map(|name| Test { binary: "proxy".into(), name: (*name).into() }))
    }

    #[track_caller]
    fn check(what: &str, lines: &[&str], is_good: bool, summary: &str) -> Vec<String> {
        let mut report = report(&["one", "two"]);
        let shown = lines.iter().filter_map(|line| report.take(line)).collect();
        assert_eq!(report.is_good(), is_good, "{what}");
        assert_eq!(report.summary().lines().last().unwrap(), format!("tests: {summary}"), "{what}");
        shown
    }

    #[test]
    fn a_run_is_good_when_every_test_has_a_good_result() {
        let (one, two) = ("end proxy one 0 3\r", "end proxy two 0 4");
        check("all", &[one, two, "done"], true, "2 passed, 0 failed, 0 skipped, 0 without a result");
        check("no end", &[one, two], false, "2 passed, 0 failed, 0 skipped, 0 without a result");
        check("nothing", &[], false, "0 passed, 0 failed, 0 skipped, 2 without a result");
        check("one missing", &[one, "done"], false, "1 passed, 0 failed, 0 skipped, 1 without a result");
        check("twice", &[one, one, "done"], false, "1 passed, 0 failed, 0 skipped, 1 without a result");
        let failure = "end proxy two 101 4";
        check("failure", &[one, failure, "done"], false, "1 passed, 1 failed, 0 skipped, 0 without a result");
        let torn = "end proxy two 0";
        check("torn", &[one, torn, "done"], false, "1 passed, 0 failed, 0 skipped, 1 without a result");
        let unknown = "end proxy three 0 1";
        check(
            "unknown",
            &[one, two, unknown, "done"],
            true,
            "2 passed, 0 failed, 0 skipped, 0 without a result",
        );
    }

    #[test]
    fn a_skip_is_counted_with_its_reason() {
        let lines = ["| running 1 test", "| skipped one: no MPTCP", "end proxy one 0 1"];
        let rest = ["| ok", "end proxy two 0 1", "done"];
        let lines = [&lines[..], &rest].concat();
        let shown = check("skip", &lines, true, "1 passed, 0 failed, 1 skipped, 0 without a result");
        assert_eq!(shown[0], "skipped    1 s  proxy one: skipped one: no MPTCP");
        assert_eq!(shown[1], "passed     1 s  proxy two");
    }

    #[test]
    fn a_failure_shows_what_its_test_printed() {
        let lines = ["| of another", "end proxy two 0 1", "| left: 1", "|   right: 2", "end proxy one 101 9"];
        let shown = check("failure", &lines, false, "1 passed, 1 failed, 0 skipped, 0 without a result");
        assert_eq!(shown[1..], ["FAILED     9 s  proxy one, with status 101:\n    left: 1\n      right: 2"]);
    }

    #[test]
    fn a_test_without_a_result_is_named() {
        assert!(report(&["one"]).summary().starts_with("MISSING         proxy one: no result\n"));
    }
}
