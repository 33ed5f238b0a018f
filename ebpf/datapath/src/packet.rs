//! Packets at tc: reading the tuple, rewriting it, and sending the packet on.
//!
//! Bytes are read and written by helpers, which check the bounds themselves; no packet pointer is ever held.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_fib_lookup as FibLookup},
    helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh},
    programs::TcContext,
};
use hawser_ebpf_abi::{Addr, FlowKey, IPPROTO_TCP, IPPROTO_UDP, Reason, checksum, v4_mapped, v4_octets};

use crate::maps::SCRATCH;

/// Leave the packet to the next program or to the host's stack. The value is the same for tcx and for classic tc.
pub(crate) const PASS: i32 = -1;
pub(crate) const DROP: i32 = 2;

const ETH_LEN: usize = 14;
const ETH_P_IP_BE: u32 = 0x0008;
const ETH_P_IPV6_BE: u32 = 0xdd86;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// Fields of the headers that the programs need.
#[repr(C)]
pub(crate) struct Packet {
    pub(crate) tuple: FlowKey,
    /// The tuple of the reply that is being tried for a new flow.
    pub(crate) reply: FlowKey,
    l4_offset: u32,
    is_v4: u8,
    hop_limit: u8,
    tcp_flags: u8,
    pad: u8,
}

impl Packet {
    #[inline(always)]
    pub(crate) fn is_v4(&self) -> bool {
        self.is_v4 != 0
    }

    #[inline(always)]
    fn l4_offset(&self) -> usize {
        // The mask shows the verifier its limit: Ethernet and the longest IPv4 header end at 74.
        (self.l4_offset & 0x7f) as usize
    }

    /// Tells whether the packet may start a flow: any UDP, and TCP's first segment.
    #[inline(always)]
    pub(crate) fn starts_flow(&self) -> bool {
        self.tuple.protocol != IPPROTO_TCP || self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    #[inline(always)]
    pub(crate) fn ends_flow(&self) -> bool {
        self.tcp_flags & (TCP_FIN | TCP_RST) != 0
    }
}

/// Reads the tuple of a TCP or UDP packet. `Ok(None)` is a packet of another protocol.
///
/// The result is this CPU's scratch: with its tuples it would fill half of a program's stack. Programs at tc do not
/// interrupt each other on a CPU, so it is theirs until they end.
#[inline(always)]
pub(crate) fn parse(ctx: &TcContext) -> Result<Option<&'static mut Packet>, Reason> {
    // SAFETY: the entry lives as long as the map, and is this CPU's own.
    let packet = unsafe { SCRATCH.get_ptr_mut(0).and_then(|scratch| scratch.as_mut()) };
    let Some(packet) = packet else { return Ok(None) };
    // SAFETY: the verifier checks accesses to the context.
    let protocol_be = unsafe { (&raw const (*ctx.skb.skb).protocol).read_volatile() };
    let found = match protocol_be {
        ETH_P_IP_BE => parse_v4(ctx, packet)?,
        ETH_P_IPV6_BE => parse_v6(ctx, packet)?,
        _ => false,
    };
    if !found {
        return Ok(None);
    }
    parse_l4(ctx, packet)?;
    Ok(Some(packet))
}

#[inline(always)]
fn parse_v4(ctx: &TcContext, packet: &mut Packet) -> Result<bool, Reason> {
    let header: [u8; 20] = load(ctx, ETH_LEN)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < 20 {
        return Err(Reason::PassMalformed);
    }
    let protocol = header[9];
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return Ok(false);
    }
    // The first fragment has "more fragments" set, and ports; it is left out too, because the others cannot follow.
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Err(Reason::PassFragment);
    }
    packet.tuple.source = v4_mapped([header[12], header[13], header[14], header[15]]);
    packet.tuple.destination = v4_mapped([header[16], header[17], header[18], header[19]]);
    packet.tuple.protocol = protocol;
    packet.is_v4 = 1;
    packet.l4_offset = (ETH_LEN + header_len) as u32;
    packet.hop_limit = header[8];
    Ok(true)
}

/// Extension headers are not walked: such packets are left to the host.
#[inline(always)]
fn parse_v6(ctx: &TcContext, packet: &mut Packet) -> Result<bool, Reason> {
    let header: [u8; 8] = load(ctx, ETH_LEN)?;
    if header[0] >> 4 != 6 {
        return Err(Reason::PassMalformed);
    }
    let protocol = header[6];
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return Ok(false);
    }
    packet.tuple.source = load(ctx, ETH_LEN + 8)?;
    packet.tuple.destination = load(ctx, ETH_LEN + 24)?;
    packet.tuple.protocol = protocol;
    packet.is_v4 = 0;
    packet.l4_offset = (ETH_LEN + 40) as u32;
    packet.hop_limit = header[7];
    Ok(true)
}

#[inline(always)]
fn parse_l4(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    let ports: [u16; 2] = load(ctx, packet.l4_offset())?;
    packet.tuple.source_port_be = ports[0];
    packet.tuple.destination_port_be = ports[1];
    packet.tcp_flags = 0;
    if packet.tuple.protocol == IPPROTO_TCP {
        packet.tcp_flags = load(ctx, packet.l4_offset() + 13)?;
    }
    Ok(())
}

/// Replaces source and destination, and brings the checksums up to date by the difference.
///
/// `opposite` is the tuple of the flow's other direction: its destination is this direction's source.
#[inline(always)]
pub(crate) fn rewrite(ctx: &TcContext, packet: &Packet, opposite: &FlowKey) -> Result<(), Reason> {
    let tuple = &packet.tuple;
    let (source, destination) = (&opposite.destination, &opposite.source);
    let addresses = checksum::add(
        checksum::difference(&tuple.source, source),
        checksum::difference(&tuple.destination, destination),
    );
    let (checksum_offset, pseudo_flags) = if tuple.protocol == IPPROTO_TCP {
        (packet.l4_offset() + 16, u64::from(BPF_F_PSEUDO_HDR))
    } else {
        // A UDP checksum of zero means "none" and stays; a computed zero is sent as 0xffff.
        (packet.l4_offset() + 6, u64::from(BPF_F_PSEUDO_HDR) | u64::from(BPF_F_MARK_MANGLED_0))
    };
    let port_flags = pseudo_flags & !u64::from(BPF_F_PSEUDO_HDR);
    let old_ports = u32::from(tuple.source_port_be) | u32::from(tuple.destination_port_be) << 16;
    let new_ports = u32::from(opposite.destination_port_be) | u32::from(opposite.source_port_be) << 16;

    let result = (|| {
        ctx.l4_csum_replace(checksum_offset, 0, u64::from(addresses), pseudo_flags)?;
        ctx.l4_csum_replace(checksum_offset, u64::from(old_ports), u64::from(new_ports), port_flags | 4)?;
        ctx.store(packet.l4_offset(), &new_ports, 0)?;
        if packet.is_v4() {
            ctx.l3_csum_replace(ETH_LEN + 10, 0, u64::from(addresses), 0)?;
            ctx.store(ETH_LEN + 12, &[v4_octets(source), v4_octets(destination)], 0)
        } else {
            ctx.store(ETH_LEN + 8, source, 0)?;
            ctx.store(ETH_LEN + 24, destination, 0)
        }
    })();
    result.map_err(|_| Reason::DropRewrite)
}

/// Sends a rewritten packet out by the route to its destination, past the host's forwarding.
///
/// The host would drop it: its source is one of the node's own addresses.
#[inline(always)]
pub(crate) fn send_on(ctx: &TcContext, packet: &Packet, opposite: &FlowKey) -> Result<i32, Reason> {
    let Some(out_ifindex) = route(ctx, packet, &opposite.destination, &opposite.source)? else {
        return Ok(PASS);
    };
    lower_hop_limit(ctx, packet)?;
    // SAFETY: without parameters the helper resolves the neighbour by the packet's own addresses.
    let verdict = unsafe { bpf_redirect_neigh(out_ifindex, core::ptr::null_mut(), 0, 0) };
    Ok(verdict as i32)
}

/// Returns the interface towards `destination`; `None` when that is the node itself.
#[inline(always)]
fn route(ctx: &TcContext, packet: &Packet, source: &Addr, destination: &Addr) -> Result<Option<u32>, Reason> {
    const SUCCESS: i64 = 0;
    const NOT_FORWARDED: i64 = 4;
    const NO_NEIGHBOUR: i64 = 7;
    // SAFETY: all zero is a valid value of the structure.
    let mut lookup: FibLookup = unsafe { core::mem::zeroed() };
    // SAFETY: the verifier checks accesses to the context.
    lookup.ifindex = unsafe { (&raw const (*ctx.skb.skb).ifindex).read_volatile() };
    lookup.l4_protocol = packet.tuple.protocol;
    if packet.is_v4() {
        lookup.family = AF_INET;
        lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(v4_octets(source));
        lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(v4_octets(destination));
    } else {
        lookup.family = AF_INET6;
        // SAFETY: both are 16 bytes without padding.
        unsafe {
            lookup.__bindgen_anon_3.ipv6_src = core::mem::transmute(*source);
            lookup.__bindgen_anon_4.ipv6_dst = core::mem::transmute(*destination);
        }
    }
    // SAFETY: the structure lives on the stack and its size is given.
    let result = unsafe {
        bpf_fib_lookup(ctx.skb.skb.cast(), &raw mut lookup, size_of::<FibLookup>() as i32, 0) as i64
    };
    match result {
        // A missing neighbour is asked for by bpf_redirect_neigh.
        SUCCESS | NO_NEIGHBOUR => Ok(Some(lookup.ifindex)),
        NOT_FORWARDED => Ok(None),
        _ => Err(Reason::DropNoRoute),
    }
}

#[inline(always)]
fn lower_hop_limit(ctx: &TcContext, packet: &Packet) -> Result<(), Reason> {
    if packet.hop_limit <= 1 {
        return Err(Reason::DropHopLimit);
    }
    let lowered = packet.hop_limit - 1;
    let result = if packet.is_v4() {
        // The checksum covers 16-bit words: this one is hop limit and protocol.
        let old = u16::from_ne_bytes([packet.hop_limit, packet.tuple.protocol]);
        let new = u16::from_ne_bytes([lowered, packet.tuple.protocol]);
        ctx.l3_csum_replace(ETH_LEN + 10, u64::from(old), u64::from(new), 2)
            .and_then(|()| ctx.store(ETH_LEN + 8, &lowered, 0))
    } else {
        ctx.store(ETH_LEN + 7, &lowered, 0)
    };
    result.map_err(|_| Reason::DropRewrite)
}

#[inline(always)]
fn load<T>(ctx: &TcContext, offset: usize) -> Result<T, Reason> {
    ctx.load::<T>(offset).map_err(|_| Reason::PassMalformed)
}
