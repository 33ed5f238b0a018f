//! What the agent has freed goes back to the machine.
//!
//! glibc keeps freed memory between what is still used, and an arena for every few threads. Reading the kernel's types and
//! a burst of pods leave several times what stays: with 100 pods 20 MiB are in use and 41 MiB would be resident.

use std::{io, ops::Range, time::Duration};

use tracing::debug;

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
    if let Err(error) = let_go_of_start() {
        debug!(%error, "the program's file stays in memory as far as the start needed it");
    }
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

/// Unmaps what is not changed of the program's own file: most of it served the start alone. What is needed again is mapped
/// from the page cache, where all of it stays as long as the machine has the room.
fn let_go_of_start() -> io::Result<()> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    for range in unchanged(&smaps, &program.to_string_lossy()) {
        // SAFETY: no page of the range was written to: each is read again from the file that is mapped there.
        unsafe { nix::libc::madvise(range.start as *mut _, range.len(), nix::libc::MADV_DONTNEED) };
    }
    Ok(())
}

/// Where `file` is mapped and cannot be written to, and no page is the process's own; from the text of smaps (proc(5)).
fn unchanged(smaps: &str, file: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut mapped = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:"), Some("0")) => found.extend(mapped.take()),
            (Some(name), _) if name.ends_with(':') => {}
            (Some(range), Some(rights)) => {
                let bounds = range.split_once('-').and_then(|(start, end)| {
                    let number = |text| usize::from_str_radix(text, 16).ok();
                    Some(number(start)?..number(end)?)
                });
                let is_file =
                    line.split_once('/').is_some_and(|(_, path)| file.strip_prefix('/') == Some(path));
                mapped = bounds.filter(|_| is_file && !rights.contains('w'));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_can_be_read_again_are_let_go_of() {
        let smaps = "\
1000-3000 r--p 00000000 fe:00 581 /usr/bin/node agent
Rss:                   8 kB
Anonymous:             0 kB
3000-9000 r-xp 00002000 fe:00 581 /usr/bin/node agent
Anonymous:             0 kB
THPeligible:           0
9000-a000 r--p 00008000 fe:00 581 /usr/bin/node agent
Anonymous:             4 kB
a000-b000 rw-p 00009000 fe:00 581 /usr/bin/node agent
Anonymous:             0 kB
b000-c000 rw-p 00000000 00:00 0 [heap]
Anonymous:             0 kB
c000-d000 r-xp 00000000 fe:00 582 /usr/lib/libc.so.6
Anonymous:             0 kB
VmFlags: rd ex
";
        assert_eq!(unchanged(smaps, "/usr/bin/node agent"), [0x1000..0x3000, 0x3000..0x9000]);
    }
}
