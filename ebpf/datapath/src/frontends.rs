//! Looking up frontends: a copy that is whole, see [`Frontend::sealed`].

use hawser_ebpf_abi::{Frontend, FrontendKey, Reason};

use crate::{
    count::count,
    maps::{FRONTEND_SCRATCH, FRONTENDS},
    packet::scratch,
};

/// An element that is used for another frontend while it is read has been replaced: the next look finds the new one.
const ATTEMPTS: u32 = 3;

/// Copies the entry of `key`; false where there is none.
#[inline(always)]
pub(crate) fn find(key: &FrontendKey, frontend: &mut Frontend) -> bool {
    for _ in 0..ATTEMPTS {
        let Some(found) = FRONTENDS.get_ptr(key) else { return false };
        // SAFETY: the memory stays the map's, whosever it is by now.
        *frontend = unsafe { found.read_volatile() };
        if frontend.is_sealed(key) {
            return true;
        }
    }
    count(Reason::FrontendTorn);
    false
}

/// Returns the frontend that the scratch's packet is for, as long as the program does not look for another.
#[inline(always)]
pub(crate) fn of_packet() -> Option<&'static Frontend> {
    if hawser_find_frontend() == 0 {
        return None;
    }
    FRONTEND_SCRATCH.get(0)
}

/// Copies the frontend of the scratch's packet into its own scratch: 1 or 0. Global, so that neither its stack nor its
/// verification is part of each caller's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hawser_find_frontend() -> u32 {
    let Some(packet) = scratch() else { return 0 };
    let key = FrontendKey {
        addr: packet.tuple.destination,
        port_be: packet.tuple.destination_port_be,
        protocol: packet.tuple.protocol,
        pad: 0,
    };
    // SAFETY: the entry lives as long as the map, and is this CPU's own.
    let frontend = unsafe { FRONTEND_SCRATCH.get_ptr_mut(0).and_then(|frontend| frontend.as_mut()) };
    frontend.map_or(0, |frontend| u32::from(find(&key, frontend)))
}
