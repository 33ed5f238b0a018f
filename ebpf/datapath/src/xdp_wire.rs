//! Services at XDP: packets between a client outside and a backend of another node, sent on before the host makes
//! anything of them.
//!
//! Flows are those of tc, and so is every decision. What is sent on here is plain, belongs to a flow with another node at
//! its end, and leaves by an interface with this program whose next hop is known. All else passes, unchanged and not
//! noted, and meets the program at tc: backends of this node, answers, parts of datagrams, errors, the first packet to a
//! neighbour, and one in two seconds after it.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_redirect, programs::XdpContext};
use hawser_ebpf_abi::{
    FlowKey, IPPROTO_TCP, Reason, XdpLinks, checksum,
    flow::{DIRECTION_FORWARD, DIRECTION_REPLY, FLOW_DSR, FLOW_SNAT},
    service::Client,
};

use crate::{
    count::count,
    flows::{self, Found},
    forward::{WIRE_AT_XDP, goes_on},
    maps::{WAYS_AT_XDP, XDP_LINKS},
    packet::{ETH_LEN, Frame, IPV4_LEN, IPV6_LEN, Packet, V4_L4, V6_L4, scratch, try_parse},
    rewrite::{TCP_CHECKSUM, UDP_CHECKSUM, lower_hop_limit, set_addresses, set_hop_limit},
    route::{HOPS_TO_NODE, WAY_FOUND, ask, new_lookup},
    start::{REFUSED, hawser_start_flow},
    ways::{self, MILLISECOND_NS, Way},
};

const DROP: u32 = 1;
const PASS: u32 = 2;
const TRANSMIT: u32 = 3;

/// How often a packet is left to tc, so that its neighbour is probed if need be.
const NEIGHBOUR_CHECK_MS: u32 = 2_000;

#[inline(always)]
pub(crate) fn ingress(ctx: &XdpContext) -> u32 {
    let Some(packet) = scratch() else { return PASS };
    if !matches!(try_parse(ctx, packet), Ok(true)) || packet.hop_limit <= 1 || !is_for_host(ctx, packet) {
        return PASS;
    }
    let now_ns = flows::now_ns();
    packet.now_ns = now_ns;
    if let Some(found) = flows::find(now_ns) {
        if !found.is_reply() && !goes_on(packet, found, Client::Wire) {
            return PASS;
        }
        return send_on(ctx, packet, found.slot, Some(found), now_ns).unwrap_or(PASS);
    }
    if !packet.starts_flow() {
        return PASS;
    }
    match hawser_start_flow(WIRE_AT_XDP, now_ns) {
        REFUSED => DROP,
        slot if slot >= 0 => send_on(ctx, packet, slot as u32, None, now_ns).unwrap_or(PASS),
        _ => PASS,
    }
}

/// Tells whether the link layer addressed the packet to this interface: others pass one that is promiscuous.
#[inline(always)]
fn is_for_host(ctx: &XdpContext, packet: &Packet) -> bool {
    let links = XDP_LINKS.get(0);
    let Some(link) = links.and_then(|links| links.find(ctx.ingress_ifindex() as u32)) else { return false };
    let to = &packet.header.link;
    (link.mac[0] ^ to[0]) | (link.mac[1] ^ to[1]) | (link.mac[2] ^ to[2]) == 0
}

/// Sends a packet of the flow on. `None` where that is for tc to do. A flow that was just made has nothing to note.
#[inline(always)]
fn send_on(
    ctx: &XdpContext,
    packet: &mut Packet,
    slot: u32,
    found: Option<Found>,
    now_ns: u64,
) -> Option<u32> {
    let flow = flows::get(slot)?;
    if flow.flags & (FLOW_SNAT | FLOW_DSR) == 0 {
        return None;
    }
    let direction = found.map_or(DIRECTION_FORWARD, |found| found.direction);
    let way = find_way(ctx, packet, slot, direction)?;
    if let Some(found) = found
        && !flows::note(found, flow, packet, now_ns)
    {
        return None;
    }
    let opposite = flow.opposite(direction);
    let link = &mut packet.header.link;
    for index in 0..3 {
        [link[2 * index], link[2 * index + 1]] = halves(way.next[index]);
    }
    let is_dsr = flow.flags & FLOW_DSR != 0;
    if is_dsr {
        set_hop_limit(packet, packet.hop_limit.min(HOPS_TO_NODE + 1));
    }
    lower_hop_limit(packet);
    if packet.is_v4() {
        if !is_dsr {
            translate::<V4_L4>(ctx, packet, opposite)?;
        }
        write::<{ IPV4_LEN / 4 }>(ctx, packet)?;
    } else {
        if !is_dsr {
            translate::<V6_L4>(ctx, packet, opposite)?;
        }
        write::<{ IPV6_LEN / 4 }>(ctx, packet)?;
    }
    count(if direction == DIRECTION_REPLY { Reason::PacketReplied } else { Reason::PacketForwarded });
    count(Reason::PacketAtXdp);
    if is_dsr {
        count(Reason::PacketDsr);
    }
    if way.ifindex == ctx.ingress_ifindex() as u32 {
        return Some(TRANSMIT);
    }
    // SAFETY: the helper takes an index and no flags.
    Some(unsafe { bpf_redirect(way.ifindex, 0) } as u32)
}

/// Finds the way to the other end of a packet's flow. `None` where the packet does not fit, the next hop is not known, or
/// the interface does not run XDP.
#[inline(always)]
fn find_way(ctx: &XdpContext, packet: &Packet, slot: u32, direction: u32) -> Option<&'static Way> {
    let opposite = flows::get(slot)?.opposite(direction);
    let (source, destination) = (&opposite.destination, &opposite.source);
    let way = ways::entry(&WAYS_AT_XDP, source, destination)?;
    let (from, len) = (ctx.ingress_ifindex() as u32, packet.ip_len);
    if way.leads(from, packet, source, destination, len) || hawser_ask_at_xdp(ctx.ctx, slot, direction) != 0 {
        return Some(way);
    }
    None
}

/// Asks the kernel for the way of the scratch's packet, and remembers it: 1, or 0 where there is none. Global, as it is
/// rare, and its stack is not to be part of the program's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hawser_ask_at_xdp(ctx: *mut xdp_md, slot: u32, direction: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let (Some(packet), Some(flow)) = (scratch(), flows::get(slot)) else { return 0 };
    let opposite = flow.opposite(direction);
    let (source, destination) = (&opposite.destination, &opposite.source);
    let Some(way) = ways::entry(&WAYS_AT_XDP, source, destination) else { return 0 };
    way.forget();
    let from = ctx.ingress_ifindex() as u32;
    // What leaves at XDP does not make the kernel look whether its neighbour is still there; what leaves at tc does.
    let now_ms = (packet.now_ns / MILLISECOND_NS) as u32;
    let is_same = way.is_for(from, source, destination);
    if is_same && now_ms.wrapping_sub(way.next[3]) > NEIGHBOUR_CHECK_MS {
        way.next[3] = now_ms;
        return 0;
    }
    let checked_ms = if is_same { way.next[3] } else { now_ms };
    let mut lookup = new_lookup(from, packet, packet.ip_len, source, destination);
    if ask(ctx.ctx.cast(), &mut lookup) != WAY_FOUND {
        return 0;
    }
    let is_ours = |links: &XdpLinks| links.find(lookup.ifindex).is_some();
    if lookup.ifindex != from && !XDP_LINKS.get(0).is_some_and(is_ours) {
        return 0;
    }
    way.remember(from, packet, source, destination, &lookup, true);
    let (to, own) = (lookup.dmac, lookup.smac);
    way.next = [
        u32::from_ne_bytes([to[0], to[1], to[2], to[3]]),
        u32::from_ne_bytes([to[4], to[5], own[0], own[1]]),
        u32::from_ne_bytes([own[2], own[3], own[4], own[5]]),
        checked_ms,
    ];
    1
}

#[inline(always)]
fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

/// Replaces source and destination: the transport header's in the packet, the addresses in the scratch.
#[inline(always)]
fn translate<const L4: usize>(ctx: &XdpContext, packet: &mut Packet, opposite: &FlowKey) -> Option<()> {
    let tuple = &packet.tuple;
    let (source, destination) = (&opposite.destination, &opposite.source);
    let addresses = checksum::add(
        checksum::difference(&tuple.source, source),
        checksum::difference(&tuple.destination, destination),
    );
    let old_ports = u32::from(tuple.source_port_be) | u32::from(tuple.destination_port_be) << 16;
    let new_ports = u32::from(opposite.destination_port_be) | u32::from(opposite.source_port_be) << 16;
    let difference = checksum::add(addresses, checksum::word_difference(old_ports, new_ports));
    if tuple.protocol == IPPROTO_TCP {
        let bytes = ctx.bytes_at(L4, TCP_CHECKSUM + 2)?;
        // SAFETY: there are so many bytes. The machine loads and stores words at any address.
        unsafe {
            bytes.cast::<u32>().write_volatile(new_ports);
            correct(bytes.add(TCP_CHECKSUM).cast(), difference);
        }
    } else {
        let bytes = ctx.bytes_at(L4, UDP_CHECKSUM + 2)?;
        // SAFETY: as above.
        unsafe {
            bytes.cast::<u32>().write_volatile(new_ports);
            let sum: *mut u16 = bytes.add(UDP_CHECKSUM).cast();
            // Zero means "none" and stays, and a computed zero is sent as its other form.
            if sum.read_volatile() != 0 && correct(sum, difference) == 0 {
                sum.write_volatile(u16::MAX);
            }
        }
    }
    set_addresses(packet, source, destination, addresses);
    Some(())
}

/// Changes a checksum by a difference (RFC 1624), and returns what it is then.
///
/// # Safety
/// `sum` is in the packet.
#[inline(always)]
unsafe fn correct(sum: *mut u16, difference: u32) -> u16 {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        let corrected = !checksum::fold(checksum::add(u32::from(!sum.read_volatile()), difference));
        sum.write_volatile(corrected);
        corrected
    }
}

/// Writes the link-layer header, and the IP header of so many words, to the packet.
#[inline(always)]
fn write<const WORDS: usize>(ctx: &XdpContext, packet: &Packet) -> Option<()> {
    let bytes = ctx.bytes_at(0, ETH_LEN + WORDS * 4)?;
    // SAFETY: there are so many bytes. The machine stores words at any address.
    unsafe {
        let link: *mut u16 = bytes.cast();
        for index in 0..packet.header.link.len() {
            link.add(index).write_volatile(packet.header.link[index]);
        }
        let ip: *mut u32 = bytes.add(ETH_LEN).cast();
        for index in 0..WORDS {
            ip.add(index).write_volatile(packet.header.ip[index]);
        }
    }
    Some(())
}
