//! What the agent has freed goes back to the machine.
//!
//! glibc keeps freed memory between what is still used, and an arena for every few threads. Reading the kernel's types and
//! a burst of pods leave several times what stays: with 100 pods 20 MiB are in use and 41 MiB would be resident.

use std::time::Duration;

/// The start is over by then.
const FIRST: Duration = Duration::from_secs(20);
/// How often it is looked whether there is something to give back.
const AGAIN: Duration = Duration::from_secs(10);
/// What has been freed since the last time, for it to be worth the while: giving back walks the heap with its locks held,
/// some milliseconds in a large cluster.
const WORTH_BYTES: usize = 4 << 20;

/// Has all threads share two arenas. To be called before there are threads.
pub(crate) fn share_arenas() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: `mallopt` changes a setting of the allocator; no thread allocates meanwhile.
        unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 2) };
    }
}

/// Gives back what is free whenever that has become much; runs until dropped.
pub(crate) async fn give_back() {
    tokio::time::sleep(FIRST).await;
    let mut known = 0;
    loop {
        // Fails where the runtime ends.
        known = tokio::task::spawn_blocking(move || give_back_more_than(known)).await.unwrap_or(known);
        tokio::time::sleep(AGAIN).await;
    }
}

/// Returns how much is free now: what was given back counts among it.
fn give_back_more_than(known: usize) -> usize {
    let free = free_bytes();
    if free < known + WORTH_BYTES {
        return known.min(free);
    }
    trim();
    free_bytes()
}

#[cfg(target_env = "gnu")]
fn free_bytes() -> usize {
    // SAFETY: `mallinfo2` takes the allocator's own locks, and reads its counts.
    unsafe { nix::libc::mallinfo2() }.fordblks
}

#[cfg(not(target_env = "gnu"))]
fn free_bytes() -> usize {
    0
}

fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: `malloc_trim` takes the allocator's own locks, and touches only what is free.
        unsafe { nix::libc::malloc_trim(0) };
    }
}
