//! Which tests there are, and in which executables: nextest is asked, so that both suites run the same ones.

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{command::output, test::nextest_command};

/// A test of an executable, by names without spaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Test {
    /// nextest's name of the executable: `hawser-proxy::sockets`.
    pub(super) binary: String,
    pub(super) name: String,
}

impl std::fmt::Display for Test {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.binary, self.name)
    }
}

pub(super) struct Binary {
    pub(super) id: String,
    pub(super) file: PathBuf,
    pub(super) tests: Vec<String>,
}

/// Executables in nextest's order, and their tests.
pub(super) struct Plan {
    pub(super) binaries: Vec<Binary>,
}

impl Plan {
    pub(super) fn tests(&self) -> impl Iterator<Item = Test> {
        self.binaries.iter().flat_map(|binary| {
            binary.tests.iter().map(|name| Test { binary: binary.id.clone(), name: name.clone() })
        })
    }
}

/// Asks for the tests that `filter` selects.
pub(super) fn tests(filter: &str) -> anyhow::Result<Plan> {
    let mut list = nextest_command();
    list.args(["list", "--workspace", "--cargo-quiet", "--message-format=json", "-E", filter]);
    list.arg("--run-ignored=all");
    let list = serde_json::from_str(&output(&mut list)?).context("nextest's list is not JSON")?;
    let plan = read(&list)?;
    if plan.binaries.is_empty() {
        bail!("no test is selected by {filter}");
    }
    Ok(plan)
}

fn read(list: &Value) -> anyhow::Result<Plan> {
    let suites = list["rust-suites"].as_object().context("nextest's list has no suites")?;
    let mut binaries = Vec::new();
    for (id, suite) in suites {
        // A suite that the filter leaves out is not listed, and has no tests.
        let cases = suite["testcases"].as_object().into_iter().flatten();
        let selected = cases.filter(|(_, case)| case["filter-match"]["status"] == "matches");
        let tests: Vec<String> = selected.map(|(name, _)| name.clone()).collect();
        if !tests.is_empty() {
            let file = suite["binary-path"].as_str().with_context(|| format!("{id} has no path"))?;
            binaries.push(Binary { id: id.clone(), file: file.into(), tests });
        }
    }
    Ok(Plan { binaries })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::read;

    #[test]
    fn only_what_the_filter_selects_is_planned() {
        let matches = json!({ "ignored": false, "filter-match": { "status": "matches" } });
        let mismatch =
            json!({ "ignored": false, "filter-match": { "status": "mismatch", "reason": "string" } });
        let list = json!({ "rust-suites": {
            "hawser-proxy::sockets": {
                "binary-path": "/target/sockets-1",
                "testcases": { "udp::replies": matches, "other": mismatch },
            },
            "hawser-proxy": { "binary-path": "/target/proxy-1", "testcases": { "left_out": mismatch } },
            "hawser-api": { "binary-path": "/target/api-1", "status": "skipped", "testcases": {} },
        } });
        let plan = read(&list).unwrap();
        let tests: Vec<String> = plan.tests().map(|test| test.to_string()).collect();
        assert_eq!(tests, ["hawser-proxy::sockets udp::replies"]);
        assert_eq!(plan.binaries[0].file.to_str(), Some("/target/sockets-1"));
    }
}
