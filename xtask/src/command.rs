//! Running other programs: with their output shown, or captured.

use std::{
    ffi::OsStr,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, bail};

/// Says what is being done, on stderr, so that stdout stays the result.
pub(crate) fn say(message: impl AsRef<str>) {
    eprintln!("==> {}", message.as_ref());
}

/// Runs a program with its output shown; fails where it fails.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = describe(command);
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

/// Runs a program and returns what it printed; its errors are part of the failure.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let result = capture(command)?;
    if !result.status.success() {
        let stderr = String::from_utf8_lossy(&result.stderr);
        bail!("{} ended with {}: {}", describe(command), result.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

/// True where the program ran and succeeded; its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    capture(command).is_ok_and(|result| result.status.success())
}

fn capture(command: &mut Command) -> anyhow::Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", describe(command)))
}

/// `ip` with arguments split at spaces.
pub(crate) fn ip(arguments: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace());
    command
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
