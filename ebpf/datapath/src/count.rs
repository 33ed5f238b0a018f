//! Counters per CPU, by reason and by service port.

use aya_ebpf::bindings::BPF_NOEXIST;
use hawser_ebpf_abi::{Reason, ServiceCounters};

use crate::maps::{COUNTERS, SERVICE_COUNTERS};

/// Adds one to the counter of `reason`.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the entry is this CPU's own, and programs of these types do not migrate while they run.
        unsafe { *counter += 1 };
    }
}

/// Counts a client that was given a backend of the service port.
#[inline(always)]
pub(crate) fn count_chosen(service_id: u32) {
    hawser_count_service(service_id, 1, 0);
}

/// Counts a client that was refused, because the service port has no backend.
#[inline(always)]
pub(crate) fn count_refused(service_id: u32) {
    hawser_count_service(service_id, 0, 1);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hawser_count_service(service_id: u32, chosen: u64, refused: u64) -> u32 {
    if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service_id) {
        // SAFETY: as in `count`.
        unsafe {
            (*counters).chosen += chosen;
            (*counters).refused += refused;
        }
        return 1;
    }
    // The first. Another CPU that is first at the same time makes this one uncounted.
    let first = ServiceCounters { chosen, refused };
    u32::from(SERVICE_COUNTERS.insert(service_id, first, u64::from(BPF_NOEXIST)).is_ok())
}
