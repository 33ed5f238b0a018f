//! Points at which tests kill the agent: after each step that leaves something behind.
//!
//! Without the feature `testing` a point is nothing. With it, a process that was started with [`DIE_AT`] kills itself,
//! as `kill -9` does, where it first reaches the point of that name, and one with [`LOG`] writes down the points that it
//! passes.

#![forbid(unsafe_code)]

/// Environment variable: the point at which the process dies.
pub const DIE_AT: &str = "HAWSER_FAULT_DIE_AT";
/// Environment variable: the file that takes the names of the points, one a line.
pub const LOG: &str = "HAWSER_FAULT_LOG";

/// The step of that name is done.
#[inline]
pub fn point(step: &'static str) {
    #[cfg(feature = "testing")]
    reached(step);
    #[cfg(not(feature = "testing"))]
    let _ = step;
}

#[cfg(feature = "testing")]
fn reached(step: &'static str) {
    use std::io::Write;
    use std::sync::LazyLock;

    use nix::sys::signal::{Signal, kill};

    static PLAN: LazyLock<(Option<String>, Option<String>)> =
        LazyLock::new(|| (std::env::var(DIE_AT).ok(), std::env::var(LOG).ok()));
    let (die_at, log) = &*PLAN;
    if let Some(path) = log
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path)
    {
        // In one write, so that threads do not mix their lines.
        let _ = file.write_all(format!("{step}\n").as_bytes());
    }
    if die_at.as_deref() == Some(step) {
        let _ = kill(nix::unistd::getpid(), Signal::SIGKILL);
    }
}
