//! Helpers of the end-to-end tests: a running cluster as its user sees it, through kubectl and sockets.
//!
//! Tests of the shared cluster (`cargo xtask test e2e` starts it) each work in a namespace of their own, which
//! is deleted when they end. Where no cluster was started for them they say so and pass.

#![forbid(unsafe_code)]

pub mod api_server;
pub mod cluster;
pub mod kubectl;
pub mod listening;
pub mod scripts;

use std::{
    io::{self, Write},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What kubectl says where it has thrown a message away: before 1.34 (client-go 0.34) it reads from a WebSocket before
/// its own streams exist, and on a busy machine a command's output may be there by then.
const THROWN_AWAY: &str = "Unknown stream id";
const ATTEMPTS: usize = 5;

/// Runs a program with a standard input to its end. A run whose output kubectl says to have thrown away tells nothing of
/// the server, and is made again.
///
/// # Errors
/// When the program cannot be started or waited for.
pub fn output_of(command: &mut Command, input: Option<&str>) -> io::Result<Output> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut attempt = 1;
    loop {
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn()?;
        let output = thread::scope(|scope| {
            if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
                // Beside the reading: what a program says on the way may be as much as its input. One that fails early
                // does not read that; what it says is looked at instead.
                scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
            }
            child.wait_with_output()
        })?;
        if attempt == ATTEMPTS || !String::from_utf8_lossy(&output.stderr).contains(THROWN_AWAY) {
            return Ok(output);
        }
        attempt += 1;
    }
}

/// Asks every 100 ms until `check` answers; fails with its last error at the deadline.
///
/// # Panics
/// When `limit` is over.
#[track_caller]
pub fn eventually<T>(limit: Duration, what: &str, mut check: impl FnMut() -> anyhow::Result<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return value,
            Err(error) if Instant::now() > deadline => panic!("{what}: not within {limit:?}: {error:#}"),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
