//! Fragments of translated packets: the first part carries the ports, and the others are known by it.
//!
//! An entry is written when the first part was translated, so only packets of flows are here. Parts that overtake the
//! first one are not held back: they go on untranslated, and the datagram is lost.

use crate::Addr;

/// Key of `FRAGMENTS`: what all parts of a datagram share (RFC 791, RFC 8200 section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    pub source: Addr,
    pub destination: Addr,
    /// The identification as the packet has it: 16 bits of it for IPv4.
    pub identification_be: u32,
    /// `IPPROTO_*` for IPv4, whose identifications are counted by protocol; 0 for IPv6.
    pub protocol: u8,
    /// Always 0.
    pub pad: [u8; 3],
}
const _: () = assert!(size_of::<FragmentKey>() == 40);

/// Value of `FRAGMENTS`: what the first part says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentPorts {
    pub source_port_be: u16,
    pub destination_port_be: u16,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// Always 0.
    pub pad: [u8; 3],
}
const _: () = assert!(size_of::<FragmentPorts>() == 8);

/// Datagrams in parts that are known at a time. One more, and the rest of the oldest is not translated.
pub const FRAGMENTS: u32 = 8192;
