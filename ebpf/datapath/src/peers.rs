//! What connected sockets asked for: the service's address, for `getpeername` and `recvmsg`.
//!
//! Each socket's cookie leads to a place in an array, which the socket takes if it is free, and leaves when it is
//! released. A socket whose place is taken has storage of its own, which costs two allocations and, in the end, two
//! grace periods: more than all else at a connection.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::bpf_get_socket_cookie,
    programs::{SockAddrContext, SockContext},
};
use hawser_ebpf_abi::{ConnectedPeer, Endpoint, PeerPlace, socket::PEER_PLACES};

use crate::{
    atomic::exchange,
    maps::{CONNECTED, PEERS},
};

/// Remembers what a socket asked for, and was given.
#[inline(always)]
pub(crate) fn remember(ctx: &SockAddrContext, mut peer: ConnectedPeer) {
    let cookie = cookie(ctx);
    if let Some(place) = place(cookie) {
        let owner = owner(place);
        // SAFETY: the place lives as long as the map, and only its owner writes to the rest of it.
        unsafe {
            if owner == cookie || owner == 0 && exchange(&raw mut (*place).socket_cookie, 0, cookie) {
                (*place).peer = peer;
                return;
            }
        }
    }
    // SAFETY: the context's socket is valid for the length of the call, and the storage as long as the socket.
    unsafe {
        let stored = CONNECTED.get_or_insert_ptr_mut(ctx, Some(&mut peer));
        // Null when memory ran out: the connection works, getpeername shows the backend.
        if let Some(stored) = stored.as_mut() {
            *stored = peer;
        }
    }
}

/// Returns the service that the socket asked for when it was connected, if `peer` is the backend it was given.
#[inline(always)]
pub(crate) fn service_of(ctx: &SockAddrContext, peer: &Endpoint) -> Option<Endpoint> {
    let cookie = cookie(ctx);
    let own = place(cookie).filter(|place| owner(*place) == cookie);
    let connected = match own {
        // SAFETY: as in `remember`.
        Some(place) => unsafe { &(*place).peer },
        // SAFETY: as in `remember`.
        None => unsafe { CONNECTED.get_ptr_mut(ctx).as_ref()? },
    };
    (connected.backend == *peer).then_some(connected.service)
}

/// A UDP socket may be connected again, this time not to a service.
#[inline(always)]
pub(crate) fn forget(ctx: &SockAddrContext) {
    leave(cookie(ctx));
    // SAFETY: as in `remember`. Emptied rather than deleted: no allocation if it comes back.
    if let Some(connected) = unsafe { CONNECTED.get_ptr_mut(ctx).as_mut() } {
        *connected = ConnectedPeer::default();
    }
}

/// Frees what a socket has that is released. (Its storage goes with it.)
#[inline(always)]
pub(crate) fn release(ctx: &SockContext) {
    leave(cookie(ctx));
}

#[inline(always)]
fn leave(cookie: u64) {
    if let Some(place) = place(cookie).filter(|place| owner(*place) == cookie) {
        // SAFETY: as in `remember`. The last thing that its owner writes.
        unsafe { (&raw mut (*place).socket_cookie).write_volatile(0) };
    }
}

/// The place of a socket. Cookies are numbers that are given in turn, so those of a while are in different places.
#[inline(always)]
fn place(cookie: u64) -> Option<*mut PeerPlace> {
    PEERS.get_ptr_mut(cookie as u32 & (PEER_PLACES - 1))
}

/// The cookie of the socket that has the place; 0 where it is free.
#[inline(always)]
fn owner(place: *mut PeerPlace) -> u64 {
    // SAFETY: the place lives as long as the map.
    unsafe { (&raw const (*place).socket_cookie).read_volatile() }
}

#[inline(always)]
fn cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the helper takes the contexts of the programs that are here.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}
