//! Translating a packet in place, checksums included.
//!
//! Checksums change by the difference that the new bytes make (RFC 1624), so what was wrong stays wrong, and a checksum
//! that the sender left to its hardware stays so. Where a network card has summed the whole packet, its sum is kept in
//! step too: by the kernel, as long as each changed byte is part of a checksum that changes against it, or is stored
//! with "recompute". IPv6's own header has no checksum, hence the second way there.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::bpf_skb_store_bytes,
    programs::TcContext,
};
use hawser_ebpf_abi::{Addr, Flow, FlowKey, IPPROTO_TCP, Reason, checksum, flow::FLOW_SNAT};

use crate::{
    count::count,
    packet::{ETH_LEN, IPV4_LEN, IPV6_LEN, Packet},
};

pub(crate) const TCP_CHECKSUM: usize = 16;
pub(crate) const UDP_CHECKSUM: usize = 6;
const ICMP_CHECKSUM: usize = 2;

/// Makes of a packet that travels in `direction` what the flow's other end expects to see. Its header is still to be
/// written.
#[inline(always)]
pub(crate) fn rewrite(
    ctx: &TcContext,
    packet: &mut Packet,
    flow: &Flow,
    direction: u32,
) -> Result<(), Reason> {
    let opposite = flow.opposite(direction);
    if packet.is_error() {
        let is_snat = u32::from(flow.flags & FLOW_SNAT != 0);
        if rewrite_error(ctx.skb.skb, packet, opposite, is_snat) != 0 {
            return Err(Reason::DropRewrite);
        }
        count(Reason::IcmpErrorTranslated);
        return Ok(());
    }
    rewrite_data(ctx, packet, opposite).map_err(|_| Reason::DropRewrite)?;
    packet.remember_part();
    Ok(())
}

/// Replaces source and destination. `opposite` is the tuple of the flow's other direction: its destination is this
/// direction's source.
#[inline(always)]
fn rewrite_data(ctx: &TcContext, packet: &mut Packet, opposite: &FlowKey) -> Result<(), i64> {
    let tuple = &packet.tuple;
    let (source, destination) = (&opposite.destination, &opposite.source);
    let addresses = checksum::add(
        checksum::difference(&tuple.source, source),
        checksum::difference(&tuple.destination, destination),
    );
    if !packet.is_later_part() {
        let (checksum_offset, flags) = l4_checksum(tuple.protocol, packet.l4_offset());
        let old_ports = u32::from(tuple.source_port_be) | u32::from(tuple.destination_port_be) << 16;
        let new_ports = u32::from(opposite.destination_port_be) | u32::from(opposite.source_port_be) << 16;
        let pseudo = u64::from(BPF_F_PSEUDO_HDR);
        ctx.l4_csum_replace(checksum_offset, 0, u64::from(addresses), flags | pseudo)?;
        if old_ports != new_ports {
            ctx.l4_csum_replace(checksum_offset, u64::from(old_ports), u64::from(new_ports), flags | 4)?;
            ctx.store(packet.l4_offset(), &new_ports, 0)?;
        }
    }
    set_addresses(packet, source, destination, addresses);
    Ok(())
}

/// Sets the addresses of the packet itself.
#[inline(always)]
pub(crate) fn set_addresses(packet: &mut Packet, source: &Addr, destination: &Addr, difference: u32) {
    let is_v4 = packet.is_v4();
    let ip = &mut packet.header.ip;
    if is_v4 {
        ip[2] = with_checksum(ip[2], difference);
        ip[3] = source.v4_word();
        ip[4] = destination.v4_word();
    } else {
        ip[2..6].copy_from_slice(source.words());
        ip[6..10].copy_from_slice(destination.words());
    }
}

/// Returns the third word of an IPv4 header, hop limit, protocol and checksum, after a change of the header.
#[inline(always)]
fn with_checksum(word: u32, difference: u32) -> u32 {
    let [hop_limit, protocol, high, low] = word.to_ne_bytes();
    let sum = checksum::add(u32::from(!u16::from_ne_bytes([high, low])), difference);
    let [high, low] = (!checksum::fold(sum)).to_ne_bytes();
    u32::from_ne_bytes([hop_limit, protocol, high, low])
}

/// Where a transport checksum is, and how it is replaced: a UDP checksum of zero means "none" and stays, and a
/// computed zero is sent as 0xffff.
#[inline(always)]
fn l4_checksum(protocol: u8, l4_offset: usize) -> (usize, u64) {
    if protocol == IPPROTO_TCP {
        (l4_offset + TCP_CHECKSUM, 0)
    } else {
        (l4_offset + UDP_CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0))
    }
}

/// Translates an ICMP error and the packet that it quotes. Returns 0, or -1 when the packet cannot be written to.
///
/// A subprogram of its own, so that the verifier's work for it is not part of every path. The source is replaced when
/// it is the flow's own address; behind a replaced source always, because the network behind may know no other.
#[inline(never)]
fn rewrite_error(skb: *mut __sk_buff, packet: &mut Packet, opposite: &FlowKey, is_snat: u32) -> i32 {
    let ctx = TcContext::new(skb);
    match try_rewrite_error(&ctx, packet, opposite, is_snat != 0) {
        Ok(()) => 0,
        Err(_) => -1,
    }
}

#[inline(always)]
fn try_rewrite_error(
    ctx: &TcContext,
    packet: &mut Packet,
    opposite: &FlowKey,
    is_snat: bool,
) -> Result<(), i64> {
    let tuple = &packet.tuple;
    // The quoted packet went the other way: it becomes what the other end sent, which is `opposite` itself.
    let quoted_addresses = checksum::add(
        difference(&tuple.destination, &opposite.source),
        difference(&tuple.source, &opposite.destination),
    );
    let old_ports = u32::from(tuple.destination_port_be) | u32::from(tuple.source_port_be) << 16;
    let new_ports = u32::from(opposite.source_port_be) | u32::from(opposite.destination_port_be) << 16;
    let ports = checksum::word_difference(old_ports, new_ports);
    let quoted = checksum::add(quoted_addresses, ports);

    // The quoted packet's own checksums first: what they change by is part of what the error's checksum covers.
    let (checksum_offset, flags) = l4_checksum(tuple.protocol, packet.quoted_l4_offset());
    let has_checksum = match ctx.load::<u16>(checksum_offset) {
        Ok(found) => tuple.protocol == IPPROTO_TCP || found != 0,
        // Cut off: only 8 bytes have to be quoted.
        Err(_) => false,
    };
    let mut covered = quoted;
    if has_checksum {
        ctx.l4_csum_replace(checksum_offset, 0, u64::from(quoted), flags)?;
        covered = 0;
    }
    ctx.store(packet.quoted_l4_offset(), &new_ports, 0)?;
    let ip = packet.quoted_offset();
    if packet.is_v4() {
        ctx.l3_csum_replace(ip + 10, 0, u64::from(quoted_addresses), 0)?;
        covered = checksum::add(covered, !quoted_addresses);
        ctx.store(ip + 12, &[opposite.source.v4_word(), opposite.destination.v4_word()], 0)?;
    } else {
        ctx.store(ip + 8, &opposite.source, 0)?;
        ctx.store(ip + 24, &opposite.destination, 0)?;
    }

    let replaces_source = is_snat || packet.outer_source == tuple.source;
    let source = if replaces_source { opposite.destination } else { packet.outer_source };
    let outer = checksum::add(
        difference(&packet.outer_source, &source),
        difference(&tuple.destination, &opposite.source),
    );
    let checksum_offset = packet.l4_offset() + ICMP_CHECKSUM;
    ctx.l4_csum_replace(checksum_offset, 0, u64::from(covered), 0)?;
    if !packet.is_v4() {
        ctx.l4_csum_replace(checksum_offset, 0, u64::from(outer), u64::from(BPF_F_PSEUDO_HDR))?;
    }
    set_addresses(packet, &source, &opposite.source, outer);
    Ok(())
}

/// A subprogram, because a subprogram that has four of these in line needs more stack than there is.
#[inline(never)]
fn difference(from: &Addr, to: &Addr) -> u32 {
    checksum::difference(from, to)
}

/// Lowers the hop limit, which the caller knows to be above 1.
#[inline(always)]
pub(crate) fn lower_hop_limit(packet: &mut Packet) {
    set_hop_limit(packet, packet.hop_limit.wrapping_sub(1));
}

#[inline(always)]
pub(crate) fn set_hop_limit(packet: &mut Packet, lowered: u8) {
    packet.hop_limit = lowered;
    let is_v4 = packet.is_v4();
    let ip = &mut packet.header.ip;
    if is_v4 {
        let [old, protocol, high, low] = ip[2].to_ne_bytes();
        let word = |hop_limit| u32::from_ne_bytes([hop_limit, protocol, 0, 0]);
        let difference = checksum::word_difference(word(old), word(lowered));
        ip[2] = with_checksum(u32::from_ne_bytes([lowered, protocol, high, low]), difference);
    } else {
        let [high, low, next_header, _] = ip[1].to_ne_bytes();
        ip[1] = u32::from_ne_bytes([high, low, next_header, lowered]);
    }
}

/// Writes the IP header to the packet.
#[inline(always)]
pub(crate) fn write_ip(ctx: &TcContext, packet: &Packet) -> Result<(), Reason> {
    let ip = (&raw const packet.header.ip).cast();
    // IPv4's header sums up to nothing, as it did before.
    if packet.is_v4() {
        store(ctx, ETH_LEN, ip, IPV4_LEN, 0)
    } else {
        store(ctx, ETH_LEN, ip, IPV6_LEN, BPF_F_RECOMPUTE_CSUM)
    }
}

/// Writes the link-layer header and the IP header to the packet.
#[inline(always)]
pub(crate) fn write_all(ctx: &TcContext, packet: &Packet) -> Result<(), Reason> {
    let link = (&raw const packet.header.link).cast();
    if packet.is_v4() {
        return store(ctx, 0, link, ETH_LEN + IPV4_LEN, 0);
    }
    // A sum over the packet has no part of the link-layer header in it.
    store(ctx, 0, link, ETH_LEN, 0)?;
    write_ip(ctx, packet)
}

#[inline(always)]
fn store(ctx: &TcContext, offset: usize, from: *const c_void, len: usize, flags: u32) -> Result<(), Reason> {
    // SAFETY: the callers name a part of the header.
    let result =
        unsafe { bpf_skb_store_bytes(ctx.skb.skb, offset as u32, from, len as u32, u64::from(flags)) };
    if result == 0 { Ok(()) } else { Err(Reason::DropRewrite) }
}
