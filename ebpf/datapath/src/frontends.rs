//! Looking up frontends: a copy that is whole, see [`Frontend::sealed`].

use hawser_ebpf_abi::{Frontend, FrontendKey, Reason};

use crate::{
    count::count,
    maps::{FRONTEND_SCRATCH, FRONTENDS},
    packet::Packet,
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

/// Returns the frontend that the packet is for, as long as the program does not look for another.
#[inline(always)]
pub(crate) fn of_packet(packet: &Packet) -> Option<&'static Frontend> {
    let key = FrontendKey {
        addr: packet.tuple.destination,
        port_be: packet.tuple.destination_port_be,
        protocol: packet.tuple.protocol,
        pad: 0,
    };
    // SAFETY: the entry lives as long as the map, and is this CPU's own.
    let frontend = unsafe { FRONTEND_SCRATCH.get_ptr_mut(0)?.as_mut()? };
    find(&key, frontend).then_some(frontend)
}
