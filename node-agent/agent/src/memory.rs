//! What the agent has freed goes back to the machine.
//!
//! glibc keeps freed memory between what is still used, and an arena for every few threads. Reading the kernel's types and
//! a burst of pods leave several times what stays: with 100 pods 20 MiB are in use and 41 MiB would be resident.

use std::time::Duration;

/// The start is over by then.
const FIRST: Duration = Duration::from_secs(20);
/// Giving back walks the heap with its locks held, some milliseconds in a large cluster: rarely.
const AGAIN: Duration = Duration::from_secs(600);

/// Has all threads share two arenas. To be called before there are threads.
pub(crate) fn share_arenas() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: `mallopt` changes a setting of the allocator; no thread allocates meanwhile.
        unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 2) };
    }
}

/// Gives back what is free, now and then; runs until dropped.
pub(crate) async fn give_back() {
    tokio::time::sleep(FIRST).await;
    loop {
        // Fails where the runtime ends.
        let _ = tokio::task::spawn_blocking(trim).await;
        tokio::time::sleep(AGAIN).await;
    }
}

fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: `malloc_trim` takes the allocator's own locks, and touches only what is free.
        unsafe { nix::libc::malloc_trim(0) };
    }
}
