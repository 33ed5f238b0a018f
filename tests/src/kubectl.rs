//! kubectl against an [`ApiServer`]: command lines as a user types them, and what they said.

use std::process::Output;

use anyhow::ensure;
use serde_json::Value;

use crate::{
    api_server::{ApiServer, READY},
    eventually, output_of,
};

/// kubectl as a user types it, in one namespace.
pub struct Kubectl<'a> {
    pub(crate) server: &'a ApiServer,
    pub(crate) namespace: String,
}

/// What a command said.
pub struct Said {
    command: String,
    pub succeeded: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Kubectl<'_> {
    /// Runs a command line; words are parted by spaces, single quotes hold words together.
    #[track_caller]
    pub fn run(&self, line: &str, input: Option<&str>) -> Said {
        self.run_with(line, input, &[])
    }

    /// Runs a command line with a standard input and an environment.
    #[track_caller]
    pub fn run_with(&self, line: &str, input: Option<&str>, environment: &[(&str, &str)]) -> Said {
        let mut command = self.server.client("kubectl");
        command.arg("--namespace").arg(&self.namespace).args(words(line));
        command.envs(environment.iter().copied());
        let output = output_of(&mut command, Some(input.unwrap_or_default()));
        Said::new(line, output.expect("kubectl ends"))
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok(&self, line: &str) -> Said {
        self.run(line, None).succeeded()
    }

    /// Runs a command that must succeed, with a standard input.
    #[track_caller]
    pub fn ok_with(&self, line: &str, input: &str) -> Said {
        self.run(line, Some(input)).succeeded()
    }

    /// Runs a command that must succeed, with an environment.
    #[track_caller]
    pub fn ok_in(&self, line: &str, environment: &[(&str, &str)]) -> Said {
        self.run_with(line, None, environment).succeeded()
    }

    /// Runs a command that must fail.
    #[track_caller]
    pub fn fails(&self, line: &str) -> Said {
        self.run(line, None).failed()
    }

    #[track_caller]
    pub fn fails_with(&self, line: &str, input: &str) -> Said {
        self.run(line, Some(input)).failed()
    }

    /// One object, parsed.
    #[track_caller]
    pub fn json(&self, what: &str) -> Value {
        let said = self.ok(&format!("get {what} -o json"));
        serde_json::from_str(&said.stdout).expect("kubectl prints JSON")
    }

    /// What a JSONPath finds.
    #[track_caller]
    pub fn path(&self, what: &str, path: &str) -> String {
        self.ok(&format!("get {what} -o 'jsonpath={path}'")).stdout
    }

    /// Waits until a JSONPath finds what is expected.
    #[track_caller]
    pub fn eventually(&self, what: &str, path: &str, expected: &str) {
        eventually(READY, &format!("{what} {path} is {expected:?}"), || {
            let said = self.run(&format!("get {what} -o 'jsonpath={path}'"), None);
            ensure!(said.succeeded && said.stdout == expected, "{:?} {}", said.stdout, said.stderr);
            Ok(())
        });
    }
}

impl Said {
    fn new(line: &str, output: Output) -> Self {
        Self {
            command: line.to_owned(),
            succeeded: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert!(self.succeeded, "kubectl {} failed: {}{}", self.command, self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn failed(self) -> Self {
        assert!(!self.succeeded, "kubectl {} succeeded: {}{}", self.command, self.stdout, self.stderr);
        self
    }

    /// Each part stands somewhere in what was said.
    #[track_caller]
    pub fn says(&self, parts: &[&str]) -> &Self {
        let text = format!("{}{}", self.stdout, self.stderr);
        for part in parts {
            assert!(text.contains(part), "kubectl {}\nlacks: {part}\nsays: {text}", self.command);
        }
        self
    }

    #[track_caller]
    pub fn lacks(&self, part: &str) -> &Self {
        let text = format!("{}{}", self.stdout, self.stderr);
        assert!(!text.contains(part), "kubectl {}\nsays: {part}\nin: {text}", self.command);
        self
    }

    /// The standard output, with runs of spaces made one, line by line.
    pub fn lines(&self) -> Vec<String> {
        self.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }
}

/// Splits a command line.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut started) = (Vec::new(), String::new(), false, false);
    for letter in line.chars() {
        match letter {
            '\'' => {
                quoted = !quoted;
                started = true;
            }
            ' ' | '\n' if !quoted => {
                if started {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            _ => {
                word.push(letter);
                started = true;
            }
        }
    }
    if started {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_words_together() {
        assert_eq!(words("get pods  -l 'a in (b, c)' -o ''"), ["get", "pods", "-l", "a in (b, c)", "-o", ""]);
        assert_eq!(words("patch -p='{\"a\": 1}'"), ["patch", "-p={\"a\": 1}"]);
    }
}
