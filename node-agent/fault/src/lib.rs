//! Points at which tests kill the agent: after each step that leaves something behind.
//!
//! Without the feature `testing` a point is nothing. With it, a process that was started with [`DIE_AT`] kills itself,
//! as `kill -9` does, where it first reaches the point of that name (`name#3`: where it does so for the third time), and one with [`LOG`] writes down the points that it
//! passes.

#![forbid(unsafe_code)]

/// Environment variable: the point at which the process dies, with `#` and the number of the time where it is not the first.
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
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, kill};

    /// The point and the number of times that it is still passed, and the file.
    type Plan = (Option<(String, AtomicU32)>, Option<String>);
    static PLAN: LazyLock<Plan> = LazyLock::new(|| {
        let die_at = std::env::var(DIE_AT).ok().map(|point| match point.split_once('#') {
            Some((name, time)) => {
                (name.to_owned(), time.parse::<u32>().map_or(0, |time| time.saturating_sub(1)).into())
            }
            None => (point, 0.into()),
        });
        (die_at, std::env::var(LOG).ok())
    });
    let (die_at, log) = &*PLAN;
    if let Some(path) = log
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path)
    {
        // In one write, so that threads do not mix their lines.
        let _ = file.write_all(format!("{step}\n").as_bytes());
    }
    let is_the_one = |(name, left): &(String, AtomicU32)| {
        let less = |left: u32| left.checked_sub(1);
        name == step && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_err()
    };
    if die_at.as_ref().is_some_and(is_the_one) {
        let _ = kill(nix::unistd::getpid(), Signal::SIGKILL);
    }
}
