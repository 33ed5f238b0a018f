//! What a socket remembers of the services it talks to.

use crate::{Addr, service::Endpoint};

/// What `PEERS` and `CONNECTED` hold: the service that a connected socket (TCP, UDP) asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectedPeer {
    pub service: Endpoint,
    pub backend: Endpoint,
}
const _: () = assert!(size_of::<ConnectedPeer>() == 40);

/// Value of `PEERS`: a cache line for what one socket is connected to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerPlace {
    /// Of the socket that has the place; 0 where it is free.
    pub socket_cookie: u64,
    pub peer: ConnectedPeer,
    /// Always 0.
    pub pad: [u64; 2],
}
const _: () = assert!(size_of::<PeerPlace>() == 64);

/// Size of `PEERS`, a power of two, and small enough for a cache: cookies follow one another, so the places are used in
/// turn. Of more sockets, those whose place is taken use `CONNECTED`.
pub const PEER_PLACES: u32 = 1 << 14;

/// One service that an unconnected UDP socket sends to, and the backend it keeps for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpPeer {
    pub service: Endpoint,
    pub backend: Endpoint,
    pub service_id: u32,
    /// The frontend's generation when the backend was last seen to be a member. 0 marks an unused entry.
    pub generation: u32,
}
const _: () = assert!(size_of::<UdpPeer>() == 48);

/// Number of services that a UDP socket remembers in its own storage. More go to `UDP_OVERFLOW`.
pub const UDP_PEERS: usize = 4;

/// Value of `UDP_SOCKETS`.
///
/// Threads that share a socket may write at the same time. The worst outcome is one mixed entry, that is one datagram
/// to a backend of the neighbouring service or one reply whose source stays untranslated; the next send repairs it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpPeers {
    pub peers: [UdpPeer; UDP_PEERS],
    /// Entries of this socket in `UDP_OVERFLOW`.
    pub overflow: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<UdpPeers>() == UDP_PEERS * 48 + 8);

/// Most overflow entries that one socket may own: bounds the loop that empties them when the socket is released.
pub const UDP_OVERFLOW_PER_SOCKET: u32 = 124;

/// Key of `UDP_OVERFLOW`. A peer has three entries: by service, by backend, and by number for the release.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverflowKey {
    pub socket_cookie: u64,
    /// The address looked for; zero when `kind` is [`OVERFLOW_BY_NUMBER`].
    pub endpoint: Endpoint,
    /// `OVERFLOW_*`, and for [`OVERFLOW_BY_NUMBER`] the number in the upper 24 bits.
    pub kind: u32,
}
const _: () = assert!(size_of::<OverflowKey>() == 32);

pub const OVERFLOW_BY_SERVICE: u32 = 0;
pub const OVERFLOW_BY_BACKEND: u32 = 1;
pub const OVERFLOW_BY_NUMBER: u32 = 2;

impl OverflowKey {
    /// Returns the key of a socket's peer by its number.
    #[inline(always)]
    pub const fn by_number(socket_cookie: u64, number: u32) -> Self {
        Self {
            socket_cookie,
            endpoint: Endpoint { addr: Addr::UNSPECIFIED, port_be: 0, pad: 0 },
            kind: OVERFLOW_BY_NUMBER | number << 8,
        }
    }
}
