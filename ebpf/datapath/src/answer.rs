//! Answers that the programs send themselves: a reset or "port unreachable" for a service without backend, and what is
//! in the way of a packet that they send on.
//!
//! The packet itself becomes the answer: it is cut to length, written over, and leaves by the interface that it came
//! by. It comes from the address that was asked, which the host need not own. Only plain packets that were meant for
//! this host are answered; ICMP errors are bounded in number, and never answer one another.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes},
    programs::TcContext,
};
use hawser_ebpf_abi::{
    IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, Reason, checksum,
    flow::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    icmp::{
        ANSWERS_PER_SECOND, V4_FRAGMENTATION_NEEDED, V4_PORT, V4_TIME_EXCEEDED, V4_UNREACHABLE,
        V6_PACKET_TOO_BIG, V6_PORT, V6_TIME_EXCEEDED, V6_UNREACHABLE,
    },
};

use crate::{
    count::count,
    flows,
    forward::finish,
    maps::ANSWERS,
    packet::{ETH_LEN, IPV4_LEN, IPV6_LEN, PASS, Packet, ifindex, is_for_host, load, scratch},
};

const HOP_LIMIT: u8 = 64;
const TCP_LEN: usize = 20;
const ICMP_LEN: usize = 8;
const SECOND_NS: u64 = 1_000_000_000;

/// Refuses the scratch's packet: its service has no backend.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn hawser_refuse(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(packet) = scratch() else { return PASS };
    finish(refuse(&ctx, packet))
}

#[inline(always)]
fn refuse(ctx: &TcContext, packet: &Packet) -> Result<i32, Reason> {
    if !is_for_host(ctx) {
        return Ok(PASS);
    }
    if !packet.is_plain() || !packet.is_whole() || packet.segment.has(TCP_RST) {
        return Err(Reason::DropNoBackend);
    }
    let verdict = if packet.tuple.protocol == IPPROTO_TCP {
        reset(ctx.skb.skb, packet)
    } else if !may_answer() {
        return Err(Reason::AnswersLimited);
    } else if packet.is_v4() {
        icmp_v4(ctx.skb.skb, packet, [V4_UNREACHABLE, V4_PORT], 0)
    } else {
        icmp_v6(ctx.skb.skb, packet, [V6_UNREACHABLE, V6_PORT], 0)
    };
    if verdict < 0 {
        return Err(Reason::DropNoBackend);
    }
    count(Reason::AnsweredNoBackend);
    Ok(verdict)
}

/// Tells the sender that its packet is larger than the `mtu` bytes that its way allows.
#[inline(always)]
pub(crate) fn too_big(ctx: &TcContext, packet: &Packet, mtu: u16) -> Result<i32, Reason> {
    // A packet that may be cut would be cut by a router; no helper does it.
    if packet.may_fragment != 0 {
        return Err(Reason::DropTooBig);
    }
    let mtu_be = u32::from(mtu).to_be();
    let answered =
        way_error(ctx, packet, [V4_UNREACHABLE, V4_FRAGMENTATION_NEEDED], [V6_PACKET_TOO_BIG, 0], mtu_be);
    let verdict = answered.map_err(|limited| limited.unwrap_or(Reason::DropTooBig))?;
    count(Reason::AnsweredTooBig);
    Ok(verdict)
}

/// Tells the sender that its packet's hop limit has run out.
#[inline(always)]
pub(crate) fn hop_limit(ctx: &TcContext, packet: &Packet) -> Result<i32, Reason> {
    way_error(ctx, packet, [V4_TIME_EXCEEDED, 0], [V6_TIME_EXCEEDED, 0], 0)
        .map_err(|limited| limited.unwrap_or(Reason::DropHopLimit))
}

#[inline(always)]
fn way_error(
    ctx: &TcContext,
    packet: &Packet,
    v4: [u8; 2],
    v6: [u8; 2],
    rest: u32,
) -> Result<i32, Option<Reason>> {
    if packet.is_error() || !packet.is_plain() || !packet.is_whole() || !is_for_host(ctx) {
        return Err(None);
    }
    if !may_answer() {
        return Err(Some(Reason::AnswersLimited));
    }
    let verdict = if packet.is_v4() {
        icmp_v4(ctx.skb.skb, packet, v4, rest)
    } else {
        icmp_v6(ctx.skb.skb, packet, v6, rest)
    };
    if verdict < 0 { Err(None) } else { Ok(verdict) }
}

/// Reads `len` bytes of the packet into an answer, `at` bytes from its beginning. Both are constants: the verifier
/// compares them with the size of the answer.
#[inline(always)]
fn load_words<const WORDS: usize>(
    ctx: &TcContext,
    offset: usize,
    words: &mut [u32; WORDS],
    at: usize,
    len: usize,
) -> bool {
    if at + len > WORDS * 4 {
        return false;
    }
    // SAFETY: the answer has room, as was just looked at.
    unsafe {
        let to = words.as_mut_ptr().cast::<u8>().add(at).cast();
        bpf_skb_load_bytes(ctx.skb.skb.cast(), offset as u32, to, len as u32) == 0
    }
}

/// Takes one of this CPU's answers of this second.
#[inline(always)]
fn may_answer() -> bool {
    // SAFETY: the entry lives as long as the map, and is this CPU's own.
    let Some([second, sent]) = (unsafe { ANSWERS.get_ptr_mut(0).and_then(|answers| answers.as_mut()) })
    else {
        return false;
    };
    let now = flows::now_ns() / SECOND_NS;
    if *second != now {
        *second = now;
        *sent = 0;
    }
    *sent += 1;
    *sent <= ANSWERS_PER_SECOND
}

/// Makes an ICMP error of the packet: IP header, ICMP header, and the packet's own IP header and 8 bytes more.
#[inline(never)]
fn icmp_v4(skb: *mut __sk_buff, packet: &Packet, [kind, code]: [u8; 2], rest: u32) -> i32 {
    const QUOTED: usize = IPV4_LEN + 8;
    const LEN: usize = IPV4_LEN + ICMP_LEN + QUOTED;
    let ctx = TcContext::new(skb);
    let mut words = [0u32; LEN / 4];
    if !load_words(&ctx, ETH_LEN, &mut words, LEN - QUOTED, QUOTED) {
        return -1;
    }
    header_v4(&mut words, packet, LEN, IPPROTO_ICMP);
    words[5] = u32::from_ne_bytes([kind, code, 0, 0]);
    words[6] = rest;
    words[5] |= complement(checksum::sum_words(0, &words[5..]));
    send_back(&ctx, &words)
}

#[inline(never)]
fn icmp_v6(skb: *mut __sk_buff, packet: &Packet, [kind, code]: [u8; 2], rest: u32) -> i32 {
    const QUOTED: usize = IPV6_LEN + 8;
    const LEN: usize = IPV6_LEN + ICMP_LEN + QUOTED;
    let ctx = TcContext::new(skb);
    let mut words = [0u32; LEN / 4];
    if !load_words(&ctx, ETH_LEN, &mut words, LEN - QUOTED, QUOTED) {
        return -1;
    }
    let pseudo = header_v6(&mut words, packet, LEN, IPPROTO_ICMPV6);
    words[10] = u32::from_ne_bytes([kind, code, 0, 0]);
    words[11] = rest;
    words[10] |= complement(checksum::sum_words(pseudo, &words[10..]));
    send_back(&ctx, &words)
}

/// Makes a TCP reset of the packet (RFC 9293, section 3.10.7.1).
#[inline(never)]
fn reset(skb: *mut __sk_buff, packet: &Packet) -> i32 {
    let ctx = TcContext::new(skb);
    let Ok(tcp) = load::<[u32; TCP_LEN / 4]>(&ctx, packet.l4_offset()) else { return -1 };
    let mut segment = [0u32; TCP_LEN / 4];
    segment[0] = tcp[0].rotate_left(16);
    let asked = &packet.segment;
    let reset_flags = if asked.has(TCP_ACK) {
        segment[1] = tcp[2];
        TCP_RST
    } else {
        let headers = (packet.l4_offset() - ETH_LEN + packet.l4_header_len()) as u32;
        let data = u32::from(packet.ip_len).saturating_sub(headers);
        let ends = u32::from(asked.has(TCP_SYN)) + u32::from(asked.has(TCP_FIN));
        segment[2] = u32::from_be(tcp[1]).wrapping_add(data).wrapping_add(ends).to_be();
        TCP_RST | TCP_ACK
    };
    segment[3] = u32::from_ne_bytes([(TCP_LEN as u8 / 4) << 4, reset_flags, 0, 0]);
    if packet.is_v4() {
        let mut words = [0u32; (IPV4_LEN + TCP_LEN) / 4];
        let pseudo = header_v4(&mut words, packet, IPV4_LEN + TCP_LEN, IPPROTO_TCP);
        words[IPV4_LEN / 4..].copy_from_slice(&segment);
        send_reset(&ctx, &words, ETH_LEN + IPV4_LEN, pseudo, checksum::sum_words(pseudo, &segment))
    } else {
        let mut words = [0u32; (IPV6_LEN + TCP_LEN) / 4];
        let pseudo = header_v6(&mut words, packet, IPV6_LEN + TCP_LEN, IPPROTO_TCP);
        words[IPV6_LEN / 4..].copy_from_slice(&segment);
        send_reset(&ctx, &words, ETH_LEN + IPV6_LEN, pseudo, checksum::sum_words(pseudo, &segment))
    }
}

/// Sends a reset with its checksum, or with what the hardware needs to complete it if the packet's sender left that
/// to the hardware. No field of the context tells; a checksum that the helper refuses to change does.
#[inline(always)]
fn send_reset<const WORDS: usize>(
    ctx: &TcContext,
    words: &[u32; WORDS],
    l4_offset: usize,
    pseudo: u32,
    sum: u32,
) -> i32 {
    let checksum_offset = l4_offset + 16;
    let verdict = send_back(ctx, words);
    if ctx.l4_csum_replace(checksum_offset, 0, 1, 0).is_err() {
        return -1;
    }
    let Ok(found) = load::<u16>(ctx, checksum_offset) else { return -1 };
    let checksum = if found == 0 { checksum::fold(pseudo) } else { !checksum::fold(sum) };
    if ctx.store(checksum_offset, &checksum, 0).is_err() {
        return -1;
    }
    verdict
}

/// Writes the header of an answer, and returns the sum of its pseudo-header.
#[inline(always)]
fn header_v4(words: &mut [u32], packet: &Packet, len: usize, protocol: u8) -> u32 {
    let [high, low] = (len as u16).to_be_bytes();
    words[0] = u32::from_ne_bytes([0x45, 0, high, low]);
    // Not to be cut.
    words[1] = u32::from_ne_bytes([0, 0, 0x40, 0]);
    words[2] = u32::from_ne_bytes([HOP_LIMIT, protocol, 0, 0]);
    words[3] = packet.tuple.destination.v4_word();
    words[4] = packet.tuple.source.v4_word();
    words[2] |= complement(checksum::sum_words(0, &words[..5]));
    let [high, low] = ((len - IPV4_LEN) as u16).to_be_bytes();
    let pseudo = [words[3], words[4], u32::from_ne_bytes([0, protocol, high, low])];
    checksum::sum_words(0, &pseudo)
}

#[inline(always)]
fn header_v6(words: &mut [u32], packet: &Packet, len: usize, protocol: u8) -> u32 {
    let [high, low] = ((len - IPV6_LEN) as u16).to_be_bytes();
    words[0] = u32::from_ne_bytes([0x60, 0, 0, 0]);
    words[1] = u32::from_ne_bytes([high, low, protocol, HOP_LIMIT]);
    for index in 0..4 {
        words[2 + index] = packet.tuple.destination.words()[index];
        words[6 + index] = packet.tuple.source.words()[index];
    }
    let rest = u32::from_ne_bytes([0, protocol, high, low]);
    checksum::add(checksum::sum_words(0, &words[2..10]), rest)
}

/// Returns a checksum in the upper half of a word in memory order, which is where all headers here have it.
#[inline(always)]
fn complement(sum: u32) -> u32 {
    u32::from(!checksum::fold(sum)) << 16
}

/// Replaces the packet behind the link-layer header, and sends it back to where it came from.
#[inline(always)]
fn send_back<const WORDS: usize>(ctx: &TcContext, words: &[u32; WORDS]) -> i32 {
    let len = ETH_LEN + WORDS * 4;
    // SAFETY: the helper takes the context of this program type.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, len as u32, 0) } != 0 {
        return -1;
    }
    let Ok([destination, source]) = load::<[[u8; 6]; 2]>(ctx, 0) else { return -1 };
    let recompute = u64::from(BPF_F_RECOMPUTE_CSUM);
    if ctx.store(0, &[source, destination], 0).is_err() || ctx.store(ETH_LEN, words, recompute).is_err() {
        return -1;
    }
    // SAFETY: the helper takes an index and no flags: out of the interface.
    unsafe { bpf_redirect(ifindex(ctx.skb.skb), 0) as i32 }
}
