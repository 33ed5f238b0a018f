//! Ways out that the kernel has told of lately, so that it need not be asked for each packet.
//!
//! A route, and the link-layer address of a neighbour that the kernel hears of, is followed after [`LIFETIME_MS`] at the
//! latest. Each entry is its CPU's own, and belongs to programs that do not interrupt one another.

use aya_ebpf::{bindings::bpf_fib_lookup as FibLookup, btf_maps::PerCpuArray};
use hawser_ebpf_abi::Addr;

use crate::packet::Packet;

const LIFETIME_MS: u32 = 100;
pub(crate) const MILLISECOND_NS: u64 = 1_000_000;

/// Ways that a CPU remembers, a power of two. One that falls on the entry of another takes its place.
pub(crate) const WAYS: usize = 1024;

pub(crate) type Ways = PerCpuArray<Way, WAYS>;

#[repr(C)]
pub(crate) struct Way {
    source: Addr,
    destination: Addr,
    /// On the clock of the programs, which may have come round since.
    until_ms: u32,
    /// The interface by which the packet comes.
    from: u32,
    /// The interface by which it leaves.
    pub(crate) ifindex: u32,
    /// Longest IP packet, in bytes; 0 where the way is to be asked for.
    mtu: u16,
    /// Of the next hop.
    pub(crate) family: u8,
    /// Of the packet, as rules may tell them apart.
    protocol: u8,
    /// At tc the next hop's address. At XDP its link-layer address, the interface's own, and when a packet of this way was
    /// left to tc last, in milliseconds.
    pub(crate) next: [u32; 4],
}
const _: () = assert!(size_of::<Way>() == 64);

/// Returns the entry where the way from `source` to `destination` would be.
#[inline(always)]
pub(crate) fn entry(ways: &'static Ways, source: &Addr, destination: &Addr) -> Option<&'static mut Way> {
    let (to, from) = (destination.words(), source.words());
    let hash = (to[3] ^ to[2].rotate_left(16) ^ from[3].rotate_left(7)).wrapping_mul(0x9e37_79b9);
    // SAFETY: the entry lives as long as the map, and is this CPU's own.
    unsafe { ways.get_ptr_mut(hash >> (32 - WAYS.trailing_zeros()))?.as_mut() }
}

impl Way {
    /// Tells whether this is the way for a packet of `len` bytes, and still fresh.
    #[inline(always)]
    pub(crate) fn leads(
        &self,
        from: u32,
        packet: &Packet,
        source: &Addr,
        destination: &Addr,
        len: u16,
    ) -> bool {
        let left_ms = self.until_ms.wrapping_sub((packet.now_ns / MILLISECOND_NS) as u32);
        left_ms.wrapping_sub(1) < LIFETIME_MS
            && self.is_for(from, source, destination)
            && self.protocol == packet.tuple.protocol
            && len <= self.mtu
    }

    #[inline(always)]
    pub(crate) fn is_for(&self, from: u32, source: &Addr, destination: &Addr) -> bool {
        self.destination == *destination && self.source == *source && self.from == from
    }

    #[inline(always)]
    pub(crate) fn forget(&mut self) {
        self.mtu = 0;
    }

    /// Takes what the kernel has said; `next` is left to the caller. Without a next hop it said nothing of lengths, and
    /// will be asked again.
    #[inline(always)]
    pub(crate) fn remember(
        &mut self,
        from: u32,
        packet: &Packet,
        source: &Addr,
        destination: &Addr,
        lookup: &FibLookup,
        is_known: bool,
    ) {
        self.source = *source;
        self.destination = *destination;
        self.from = from;
        self.ifindex = lookup.ifindex;
        self.family = lookup.family;
        self.protocol = packet.tuple.protocol;
        // SAFETY: the kernel has written this member of the union, where it knows the next hop.
        self.mtu = if is_known { unsafe { lookup.__bindgen_anon_1.mtu_result } } else { 0 };
        self.until_ms = ((packet.now_ns / MILLISECOND_NS) as u32).wrapping_add(LIFETIME_MS);
    }
}
