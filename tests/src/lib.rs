//! Helpers of the end-to-end tests: a running cluster as its user sees it, through kubectl and sockets.
//!
//! Tests of the shared cluster (`cargo xtask test e2e` starts it) each work in a namespace of their own, which
//! is deleted when they end. Where no cluster was started for them they say so and pass.

#![forbid(unsafe_code)]

pub mod api_server;
pub mod cluster;
pub mod kubectl;
pub mod listening;

use std::{
    thread,
    time::{Duration, Instant},
};

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
