//! Atomic changes of one word. The intrinsics, because core offers no exchange for this target; the kernel has one
//! since 5.12.

use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};

/// Writes `new` if `old` is there, as one step for all CPUs and a barrier for this one.
///
/// # Safety
/// `word` is aligned and valid.
#[inline(always)]
pub(crate) unsafe fn exchange(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller vouches for the pointer.
    let (_, exchanged) = unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(word, old, new) };
    exchanged
}
