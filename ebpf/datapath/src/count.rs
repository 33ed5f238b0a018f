//! Counters per CPU, by reason.

use hawser_ebpf_abi::Reason;

use crate::maps::COUNTERS;

/// Adds one to the counter of `reason`.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the entry is this CPU's own, and programs of these types do not migrate while they run.
        unsafe { *counter += 1 };
    }
}
