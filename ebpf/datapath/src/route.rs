//! Ways out of the node: the kernel's own routes and neighbours, asked by the programs.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_fib_lookup as FibLookup, bpf_redir_neigh as NextHop},
    helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh},
    programs::TcContext,
};
use hawser_ebpf_abi::{
    Addr, Flow, Reason,
    flow::{DIRECTION_REPLY, FLOW_DSR},
};

use crate::{
    answer,
    count::count,
    flows,
    forward::finish,
    maps::WAYS,
    packet::{ETH_LEN, PASS, Packet, ifindex, scratch},
    rewrite::{lower_hop_limit, rewrite, set_hop_limit, write_ip},
    ways::{self, Way},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What the kernel says of a way.
pub(crate) enum Answer {
    Out(&'static Way),
    /// The packet is larger than the way allows: this many bytes.
    TooBig(u16),
    /// To this host.
    Here,
    No,
}

/// Sends the scratch's packet on to the other end of its flow, past the host's forwarding.
///
/// The host would drop it: its source is one of the node's own addresses. Its sender hears of what is in the way.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn hawser_send_on(skb: *mut __sk_buff, slot: u32, direction: u32) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(packet) = scratch() else { return PASS };
    let Some(flow) = flows::get(slot) else { return PASS };
    let verdict = send_on(&ctx, packet, flow, direction).inspect(|_| {
        if direction == DIRECTION_REPLY {
            count(Reason::PacketReplied);
        } else if !packet.is_error() {
            count(Reason::PacketForwarded);
        }
    });
    finish(verdict)
}

#[inline(always)]
fn send_on(ctx: &TcContext, packet: &mut Packet, flow: &Flow, direction: u32) -> Result<i32, Reason> {
    let opposite = flow.opposite(direction);
    if packet.hop_limit <= 1 {
        return answer::hop_limit(ctx, packet);
    }
    let way = match find_way(ctx, packet, &opposite.destination, &opposite.source) {
        Answer::Out(way) => way,
        Answer::TooBig(mtu) => return answer::too_big(ctx, packet, mtu),
        // A backend on the host's network. The host drops what has one of its own addresses as the source.
        Answer::Here => {
            rewrite(ctx, packet, flow, direction)?;
            write_ip(ctx, packet)?;
            return Ok(PASS);
        }
        Answer::No => return Err(Reason::DropNoRoute),
    };
    if flow.flags & FLOW_DSR != 0 {
        return leave_as_it_is(ctx, packet, way);
    }
    rewrite(ctx, packet, flow, direction)?;
    leave(ctx, packet, way)
}

/// Sends a packet without a flow on to the node of the backend that was chosen.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn hawser_send_as_it_is(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(packet) = scratch() else { return PASS };
    if packet.hop_limit <= 1 {
        return finish(answer::hop_limit(&ctx, packet));
    }
    let (client, backend) = (packet.tuple.source, packet.backend.addr);
    finish(match find_way(&ctx, packet, &client, &backend) {
        Answer::Out(way) => {
            if !packet.is_error() {
                count(Reason::PacketForwarded);
            }
            leave_as_it_is(&ctx, packet, way)
        }
        Answer::TooBig(mtu) => answer::too_big(&ctx, packet, mtu),
        Answer::Here | Answer::No => Err(Reason::DropNoRoute),
    })
}

/// A circle, of nodes that choose differently or of routers that know nothing of the address, ends after so many hops.
pub(crate) const HOPS_TO_NODE: u8 = 8;

#[inline(always)]
fn leave_as_it_is(ctx: &TcContext, packet: &mut Packet, way: &Way) -> Result<i32, Reason> {
    packet.remember_part();
    count(Reason::PacketDsr);
    set_hop_limit(packet, packet.hop_limit.min(HOPS_TO_NODE + 1));
    leave(ctx, packet, way)
}

/// Tells whether a new flow for another node leads the packet back to the node that it comes from: 1 or 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn hawser_returns(skb: *mut __sk_buff, slot: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let (Some(packet), Some(flow)) = (scratch(), flows::get(slot)) else { return 0 };
    let (backend, client) = (&flow.reply.source, &flow.reply.destination);
    let len = largest_packet(&ctx, packet);
    let mut lookup = new_lookup(ifindex(ctx.skb.skb), packet, len, client, backend);
    // A neighbour that is not known has sent nothing that was answered.
    if ask(ctx.skb.skb.cast(), &mut lookup) != WAY_FOUND {
        return 0;
    }
    let (from, to) = (&packet.header.link[3..6], lookup.dmac);
    let is_same = |at: usize| from[at] == u16::from_ne_bytes([to[2 * at], to[2 * at + 1]]);
    u32::from(is_same(0) && is_same(1) && is_same(2))
}

/// Finds the way from `source` to `destination`.
#[inline(always)]
pub(crate) fn find_way(ctx: &TcContext, packet: &Packet, source: &Addr, destination: &Addr) -> Answer {
    const NOT_FORWARDED: i64 = 4;
    const NO_NEIGHBOUR: i64 = 7;
    const FRAGMENTATION_NEEDED: i64 = 8;
    let Some(way) = ways::entry(&WAYS, source, destination) else { return Answer::No };
    let (from, len) = (ifindex(ctx.skb.skb), largest_packet(ctx, packet));
    if way.leads(from, packet, source, destination, len) {
        return Answer::Out(way);
    }
    way.forget();
    let mut lookup = new_lookup(from, packet, len, source, destination);
    let answer = ask(ctx.skb.skb.cast(), &mut lookup);
    match answer {
        // A missing neighbour is asked for by bpf_redirect_neigh.
        WAY_FOUND | NO_NEIGHBOUR => {}
        NOT_FORWARDED => return Answer::Here,
        // SAFETY: the kernel has written this member of the union.
        FRAGMENTATION_NEEDED => return Answer::TooBig(unsafe { lookup.__bindgen_anon_1.mtu_result }),
        _ => return Answer::No,
    }
    way.remember(from, packet, source, destination, &lookup, answer == WAY_FOUND);
    // SAFETY: the kernel has written the address of the next hop's family; the other one's first bytes are the same
    // memory.
    way.next = unsafe { lookup.__bindgen_anon_4.ipv6_dst };
    Answer::Out(way)
}

/// Prepares a lookup of the way for a packet of `len` bytes that came by the interface `from`.
#[inline(always)]
pub(crate) fn new_lookup(
    from: u32,
    packet: &Packet,
    len: u16,
    source: &Addr,
    destination: &Addr,
) -> FibLookup {
    // SAFETY: all zero is a valid value of the structure.
    let mut lookup: FibLookup = unsafe { core::mem::zeroed() };
    lookup.ifindex = from;
    lookup.l4_protocol = packet.tuple.protocol;
    lookup.__bindgen_anon_1.tot_len = len;
    if packet.is_v4() {
        lookup.family = AF_INET;
        lookup.__bindgen_anon_3.ipv4_src = source.v4_word();
        lookup.__bindgen_anon_4.ipv4_dst = destination.v4_word();
    } else {
        lookup.family = AF_INET6;
        lookup.__bindgen_anon_3.ipv6_src = *source.words();
        lookup.__bindgen_anon_4.ipv6_dst = *destination.words();
    }
    lookup
}

/// What [`ask`] returns where interface and next hop are known, link-layer addresses included.
pub(crate) const WAY_FOUND: i64 = 0;

/// Asks the kernel. The lookup then holds the interface and the next hop.
#[inline(always)]
pub(crate) fn ask(ctx: *mut c_void, lookup: &mut FibLookup) -> i64 {
    // SAFETY: the context is the program's own, and the size of the structure is given.
    unsafe { bpf_fib_lookup(ctx, &raw mut *lookup, size_of::<FibLookup>() as i32, 0) as i64 }
}

/// What `tc_index` says of a packet that these programs send out: they have nothing more to do with it.
const OURS: u16 = 0x4857;

/// Tells whether the packet comes from [`leave`], and clears that: a tunnel sends the same packet again.
#[inline(always)]
pub(crate) fn takes_leave(ctx: &TcContext) -> bool {
    // SAFETY: the verifier checks accesses to the context.
    unsafe {
        let tc_index = &raw mut (*ctx.skb.skb).tc_index;
        if tc_index.read_volatile() != u32::from(OURS) {
            return false;
        }
        tc_index.write_volatile(0);
    }
    true
}

/// Writes the packet's header, its hop limit lowered, and sends it out by the way that was found; the kernel writes the
/// link-layer header.
#[inline(always)]
pub(crate) fn leave(ctx: &TcContext, packet: &mut Packet, way: &Way) -> Result<i32, Reason> {
    lower_hop_limit(packet);
    write_ip(ctx, packet)?;
    // SAFETY: the verifier checks accesses to the context.
    unsafe { (&raw mut (*ctx.skb.skb).tc_index).write_volatile(u32::from(OURS)) };
    // SAFETY: all zero is a valid value of the structure.
    let mut next_hop: NextHop = unsafe { core::mem::zeroed() };
    next_hop.nh_family = u32::from(way.family);
    next_hop.__bindgen_anon_1.ipv6_nh = way.next;
    // SAFETY: the size of the structure is given.
    let verdict =
        unsafe { bpf_redirect_neigh(way.ifindex, &raw mut next_hop, size_of::<NextHop>() as i32, 0) };
    Ok(verdict as i32)
}

/// Length of the largest packet that this one becomes on the wire: one with segments in it is cut up later.
#[inline(always)]
fn largest_packet(ctx: &TcContext, packet: &Packet) -> u16 {
    // SAFETY: the verifier checks accesses to the context.
    let segment = unsafe { (&raw const (*ctx.skb.skb).gso_size).read_volatile() };
    if segment == 0 {
        return packet.ip_len;
    }
    (packet.l4_offset() - ETH_LEN + packet.l4_header_len() + segment as usize) as u16
}
