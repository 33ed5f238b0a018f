//! Packets: reading what the programs need of the headers, alike at tc and at XDP.
//!
//! What is in the packet's linear part is read there, all else by helpers. No packet pointer is ever held. What is read lives in
//! a map, not on the stack: there it is an unknown number to the verifier, which therefore looks at each loop and
//! branch once and not once for every path that leads there.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_load_bytes, bpf_xdp_load_bytes},
    programs::{TcContext, XdpContext},
};
use hawser_ebpf_abi::{
    Addr, Backend, FlowKey, FragmentKey, FragmentPorts, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP,
    IPPROTO_UDP, Reason,
    flow::{Segment, TCP_ACK, TCP_RST, TCP_SYN},
    flow_table::Claim,
    icmp,
};

use crate::{
    count::count,
    maps::{FRAGMENTS, SCRATCH},
};

/// Leave the packet to the next program or to the host's stack. The value is the same for tcx and for classic tc.
pub(crate) const PASS: i32 = -1;
pub(crate) const DROP: i32 = 2;

pub(crate) const ETH_LEN: usize = 14;
pub(crate) const IPV4_LEN: usize = 20;
pub(crate) const IPV6_LEN: usize = 40;
const ETH_P_IP_BE: u32 = 0x0008;
const ETH_P_IPV6_BE: u32 = 0xdd86;
const PACKET_HOST: u32 = 0;

/// IPv6 extension headers that are walked (RFC 8200, section 4.1, recommends at most these four before TCP or UDP).
const EXTENSION_HEADERS: usize = 4;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Values of `Packet::part`.
const WHOLE: u8 = 0;
const FIRST_PART: u8 = 1;
const LATER_PART: u8 = 2;

/// Fields of the headers that the programs need.
#[repr(C)]
pub(crate) struct Packet {
    /// The packet's tuple; for an ICMP error the tuple of the direction that it travels in: the quoted one reversed.
    pub(crate) tuple: FlowKey,
    pub(crate) segment: Segment,
    pub(crate) header: Header,
    /// Names the datagram that a part belongs to.
    fragment: FragmentKey,
    /// Who sent an ICMP error: not always the destination of the quoted packet.
    pub(crate) outer_source: Addr,
    pub(crate) search: Search,
    /// When the program began to work on it.
    pub(crate) now_ns: u64,
    /// The backend that was chosen for a new flow.
    pub(crate) backend: Backend,
    l4_offset: u32,
    /// Where the IP header and the ports of the packet are that an ICMP error quotes.
    quoted_offset: u32,
    quoted_l4_offset: u32,
    /// Length of the IP packet.
    pub(crate) ip_len: u16,
    is_v4: u8,
    /// The protocol of this packet's own: that of `tuple` is the quoted packet's in an ICMP error.
    protocol: u8,
    pub(crate) hop_limit: u8,
    tcp_header_len: u8,
    part: u8,
    /// Has options that a router must look at.
    pub(crate) has_options: u8,
    pub(crate) may_fragment: u8,
    /// The client's own port towards the backend is another connection's.
    pub(crate) replaces_port: u8,
    /// The packet comes from the node that it would be sent to: this one answers for it.
    pub(crate) is_returned: u8,
    pad: u8,
}

/// The packet's first bytes as they lie in memory: the link-layer header, and the IP header without options. What
/// programs change is changed here, and written once.
#[repr(C)]
pub(crate) struct Header {
    /// So that the words of the IP header are aligned.
    pad: u16,
    /// Destination, source, and the protocol.
    pub(crate) link: [u16; 7],
    /// Five words of IPv4, ten of IPv6.
    pub(crate) ip: [u32; 10],
}
const _: () = assert!(size_of::<Header>() == 2 + ETH_LEN + IPV6_LEN);

/// State of a search for a free source port, see `sources`.
#[repr(C)]
pub(crate) struct Search {
    pub(crate) claim: Claim,
    pub(crate) now_ns: u64,
    /// The port to try next, counted from the first one.
    pub(crate) next: u32,
    pub(crate) step: u32,
    pub(crate) is_found: u32,
}

impl Packet {
    /// A TCP segment that neither starts a connection nor resets one.
    #[inline(always)]
    pub(crate) fn is_stray(&self) -> bool {
        self.tuple.protocol == IPPROTO_TCP
            && !self.is_error()
            && !self.is_later_part()
            && !self.segment.has(TCP_RST)
            && !self.starts_flow()
    }

    #[inline(always)]
    pub(crate) fn is_v4(&self) -> bool {
        self.is_v4 != 0
    }

    /// An ICMP error about a TCP or UDP packet.
    #[inline(always)]
    pub(crate) fn is_error(&self) -> bool {
        self.protocol == IPPROTO_ICMP || self.protocol == IPPROTO_ICMPV6
    }

    #[inline(always)]
    pub(crate) fn is_whole(&self) -> bool {
        self.part == WHOLE
    }

    /// Has no transport header: its checksum and ports are in the first part.
    #[inline(always)]
    pub(crate) fn is_later_part(&self) -> bool {
        self.part == LATER_PART
    }

    #[inline(always)]
    pub(crate) fn l4_offset(&self) -> usize {
        self.l4_offset as usize
    }

    #[inline(always)]
    pub(crate) fn quoted_offset(&self) -> usize {
        self.quoted_offset as usize
    }

    #[inline(always)]
    pub(crate) fn quoted_l4_offset(&self) -> usize {
        self.quoted_l4_offset as usize
    }

    #[inline(always)]
    pub(crate) fn ip_header_len(&self) -> usize {
        if self.is_v4() { IPV4_LEN } else { IPV6_LEN }
    }

    /// Tells whether the transport header follows right after the fixed IP header.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.l4_offset() == ETH_LEN + self.ip_header_len()
    }

    /// Length of the transport header, where there is one.
    #[inline(always)]
    pub(crate) fn l4_header_len(&self) -> usize {
        if self.tuple.protocol == IPPROTO_TCP { usize::from(self.tcp_header_len) } else { 8 }
    }

    /// Tells whether the packet may start a flow: any UDP, and TCP's first segment.
    #[inline(always)]
    pub(crate) fn starts_flow(&self) -> bool {
        !self.is_error()
            && (self.tuple.protocol != IPPROTO_TCP || self.segment.has(TCP_SYN) && !self.segment.has(TCP_ACK))
    }

    /// Remembers the ports of a first part, so that the others can follow.
    #[inline(always)]
    pub(crate) fn remember_part(&self) {
        if self.part == FIRST_PART {
            let ports = FragmentPorts {
                source_port_be: self.tuple.source_port_be,
                destination_port_be: self.tuple.destination_port_be,
                protocol: self.tuple.protocol,
                pad: [0; 3],
            };
            // A failure costs this datagram its other parts.
            let _ = FRAGMENTS.insert(&self.fragment, &ports, 0);
        }
    }
}

/// Returns this CPU's packet: with its tuples it would fill half of a program's stack. Programs at tc do not interrupt
/// each other on a CPU, so it is theirs until they end.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Packet> {
    // SAFETY: the entry lives as long as the map, and is this CPU's own.
    unsafe { SCRATCH.get_ptr_mut(0).and_then(|scratch| scratch.as_mut()) }
}

/// Reads into the scratch the tuple of a TCP or UDP packet, or of the one that an ICMP error quotes. False for any
/// other packet.
#[inline(always)]
pub(crate) fn parse(ctx: &TcContext) -> bool {
    let Some(packet) = scratch() else { return false };
    try_parse(ctx, packet).unwrap_or_else(|reason| {
        count(reason);
        false
    })
}

#[inline(always)]
pub(crate) fn try_parse<F: Frame>(frame: &F, packet: &mut Packet) -> Result<bool, Reason> {
    packet.part = WHOLE;
    packet.has_options = 0;
    packet.segment = Segment::default();
    packet.replaces_port = 0;
    packet.is_returned = 0;
    let found = match frame.ether_type_be() {
        ETH_P_IP_BE => parse_v4(frame, packet)?,
        ETH_P_IPV6_BE => parse_v6(frame, packet)?,
        _ => false,
    };
    if !found {
        return Ok(false);
    }
    // The host, which is passed by, does not take it either.
    if ETH_LEN + usize::from(packet.ip_len) > frame.len() {
        return Err(Reason::PassMalformed);
    }
    if !F::PLAIN_ONLY && packet.is_error() {
        return parse_error(frame, packet);
    }
    packet.tuple.protocol = packet.protocol;
    if !F::PLAIN_ONLY && packet.is_later_part() {
        // SAFETY: an entry that makes room may be used again while it is read: the worst outcome is one datagram lost.
        let ports = unsafe { FRAGMENTS.get(&packet.fragment) }.ok_or(Reason::PassFragment)?;
        packet.tuple.source_port_be = ports.source_port_be;
        packet.tuple.destination_port_be = ports.destination_port_be;
        packet.tuple.protocol = ports.protocol;
        return Ok(true);
    }
    parse_l4(frame, packet)?;
    Ok(true)
}

/// An IPv4 header without options, that an ICMP error quotes.
#[repr(C)]
struct V4Header {
    /// What comes before the addresses.
    fixed: [u8; 12],
    /// Words in memory order.
    source: u32,
    destination: u32,
}
const _: () = assert!(size_of::<V4Header>() == IPV4_LEN);

/// Reads the link-layer header, and as much of the IP header: from memory, which is where headers are as a rule, or by a
/// helper, a call of which costs as much as all of this.
#[inline(always)]
fn load_header(frame: &impl Frame, header: &mut Header, ip_header_len: usize) -> Result<(), Reason> {
    if let Some(bytes) = frame.bytes_at(0, ETH_LEN + ip_header_len) {
        // SAFETY: there are so many bytes. The machine loads words from any address.
        unsafe {
            let link: *const u16 = bytes.cast();
            for index in 0..header.link.len() {
                header.link[index] = link.add(index).read_volatile();
            }
            let ip: *const u32 = bytes.add(ETH_LEN).cast();
            for index in 0..ip_header_len / 4 {
                header.ip[index] = ip.add(index).read_volatile();
            }
        }
        return Ok(());
    }
    // SAFETY: the header has room for the longer of both.
    let is_loaded = unsafe { frame.load_bytes(0, (&raw mut header.link).cast(), ETH_LEN + ip_header_len) };
    if is_loaded { Ok(()) } else { Err(Reason::PassMalformed) }
}

#[inline(always)]
fn parse_v4<F: Frame>(frame: &F, packet: &mut Packet) -> Result<bool, Reason> {
    load_header(frame, &mut packet.header, IPV4_LEN)?;
    let [lengths, identification_and_fragment, hop_limit_and_protocol, source, destination, ..] =
        packet.header.ip;
    let [version_and_len, _, total_high, total_low] = lengths.to_ne_bytes();
    let header_len = usize::from(version_and_len & 0x0f) * 4;
    if version_and_len >> 4 != 4 || header_len < IPV4_LEN {
        return Err(Reason::PassMalformed);
    }
    let [hop_limit, protocol, ..] = hop_limit_and_protocol.to_ne_bytes();
    packet.protocol = protocol;
    if !matches!(protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_ICMP) {
        return Ok(false);
    }
    packet.tuple.source = Addr::from_v4_word(source);
    packet.tuple.destination = Addr::from_v4_word(destination);
    packet.is_v4 = 1;
    packet.l4_offset = (ETH_LEN + header_len) as u32;
    packet.hop_limit = hop_limit;
    packet.ip_len = u16::from_be_bytes([total_high, total_low]);
    packet.has_options = u8::from(header_len > IPV4_LEN);
    if F::PLAIN_ONLY && (packet.has_options != 0 || packet.is_error()) {
        return Ok(false);
    }
    let [id_high, id_low, fragment_high, fragment_low] = identification_and_fragment.to_ne_bytes();
    packet.may_fragment = u8::from(fragment_high & 0x40 == 0);
    let fragment = u16::from_be_bytes([fragment_high, fragment_low]);
    // "More fragments" and the offset: the last part has no flag, the first part no offset.
    if fragment & 0x3fff != 0 {
        if F::PLAIN_ONLY {
            return Ok(false);
        }
        let identification_be = u32::from(u16::from_ne_bytes([id_high, id_low]));
        parse_part(packet, identification_be, protocol, fragment & 0x1fff == 0);
    }
    Ok(true)
}

#[inline(always)]
fn parse_v6<F: Frame>(frame: &F, packet: &mut Packet) -> Result<bool, Reason> {
    load_header(frame, &mut packet.header, IPV6_LEN)?;
    let [first, lengths, s0, s1, s2, s3, d0, d1, d2, d3] = packet.header.ip;
    if first.to_ne_bytes()[0] >> 4 != 6 {
        return Err(Reason::PassMalformed);
    }
    let [len_high, len_low, next_header, hop_limit] = lengths.to_ne_bytes();
    packet.protocol = next_header;
    packet.l4_offset = (ETH_LEN + IPV6_LEN) as u32;
    packet.tuple.source = Addr::from_words([s0, s1, s2, s3]);
    packet.tuple.destination = Addr::from_words([d0, d1, d2, d3]);
    packet.is_v4 = 0;
    packet.hop_limit = hop_limit;
    packet.ip_len = u16::from_be_bytes([len_high, len_low]).saturating_add(IPV6_LEN as u16);
    packet.may_fragment = 0;
    if F::PLAIN_ONLY {
        return Ok(matches!(next_header, IPPROTO_TCP | IPPROTO_UDP));
    }
    for _ in 0..EXTENSION_HEADERS {
        if is_last(packet) {
            break;
        }
        match packet.protocol {
            HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING => {
                let extension: [u8; 4] = load(frame, packet.l4_offset())?;
                if packet.protocol == ROUTING && extension[3] != 0 {
                    // The destination is not the last one yet, and the checksum covers the last one.
                    return Err(Reason::PassExtensionHeaders);
                }
                packet.has_options |= u8::from(packet.protocol != DESTINATION_OPTIONS);
                packet.protocol = extension[0];
                packet.l4_offset += (u32::from(extension[1]) + 1) * 8;
            }
            FRAGMENT => {
                let extension: [u8; 8] = load(frame, packet.l4_offset())?;
                let fragment = u16::from_be_bytes([extension[2], extension[3]]);
                packet.protocol = extension[0];
                packet.l4_offset += 8;
                // A fragment header on a whole packet (RFC 6946) says nothing.
                if fragment & 0xfff9 != 0 {
                    let identification_be =
                        u32::from_ne_bytes([extension[4], extension[5], extension[6], extension[7]]);
                    parse_part(packet, identification_be, 0, fragment & 0xfff8 == 0);
                }
            }
            _ => return Ok(false),
        }
    }
    if !is_last(packet) {
        return Err(Reason::PassExtensionHeaders);
    }
    Ok(true)
}

/// Tells whether the chain of extension headers ends here: at a transport header, or at a later part's data.
#[inline(always)]
fn is_last(packet: &Packet) -> bool {
    packet.is_later_part() || matches!(packet.protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_ICMPV6)
}

#[inline(always)]
fn parse_part(packet: &mut Packet, identification_be: u32, protocol: u8, is_first: bool) {
    packet.part = if is_first { FIRST_PART } else { LATER_PART };
    packet.fragment.source = packet.tuple.source;
    packet.fragment.destination = packet.tuple.destination;
    packet.fragment.identification_be = identification_be;
    packet.fragment.protocol = protocol;
    packet.fragment.pad = [0; 3];
}

pub(crate) const V4_L4: usize = ETH_LEN + IPV4_LEN;
pub(crate) const V6_L4: usize = ETH_LEN + IPV6_LEN;

/// Reads the beginning of a transport header: from memory, where it is as a rule.
#[inline(always)]
fn near<T>(frame: &impl Frame, offset: usize) -> Result<T, Reason> {
    let bytes = match offset {
        // The usual places are constants: the verifier knows what lies there.
        V4_L4 => frame.bytes_at(V4_L4, size_of::<T>()),
        V6_L4 => frame.bytes_at(V6_L4, size_of::<T>()),
        _ => None,
    };
    match bytes {
        // SAFETY: there are so many bytes. The machine loads words from any address.
        Some(bytes) => Ok(unsafe { bytes.cast::<T>().read_volatile() }),
        None => load(frame, offset),
    }
}

/// The TCP header without checksum, urgent pointer and options.
#[repr(C)]
struct TcpHeader {
    ports: [u16; 2],
    sequence_be: u32,
    acknowledgement_be: u32,
    offset: u8,
    flags: u8,
    _window_be: u16,
}

#[inline(always)]
fn parse_l4(frame: &impl Frame, packet: &mut Packet) -> Result<(), Reason> {
    let ports: [u16; 2] = if packet.tuple.protocol == IPPROTO_TCP {
        let header: TcpHeader = near(frame, packet.l4_offset())?;
        packet.tcp_header_len = header.offset >> 4 << 2;
        packet.segment = Segment {
            sequence: u32::from_be(header.sequence_be),
            acknowledgement: u32::from_be(header.acknowledgement_be),
            flags: u32::from(header.flags),
        };
        header.ports
    } else {
        near(frame, packet.l4_offset())?
    };
    packet.tuple.source_port_be = ports[0];
    packet.tuple.destination_port_be = ports[1];
    Ok(())
}

/// Reads the packet that an ICMP error quotes, and turns its tuple round. False for errors about other packets, and
/// for what is no error.
#[inline(always)]
fn parse_error(frame: &impl Frame, packet: &mut Packet) -> Result<bool, Reason> {
    if !packet.is_whole() {
        return Err(Reason::PassFragment);
    }
    let kind: u8 = load(frame, packet.l4_offset())?;
    if !icmp::is_error(packet.protocol, kind) {
        return Ok(false);
    }
    let quoted = packet.l4_offset() + icmp::QUOTE_OFFSET;
    packet.quoted_offset = quoted as u32;
    packet.outer_source = packet.tuple.source;
    if packet.is_v4() {
        let V4Header { source, destination, fixed: header } = load(frame, quoted)?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 || header_len < IPV4_LEN {
            return Err(Reason::PassMalformed);
        }
        // A later part quotes no ports. The error about the first one is the one that counts.
        if u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0 {
            return Ok(false);
        }
        packet.tuple.protocol = header[9];
        packet.tuple.source = Addr::from_v4_word(destination);
        let source = Addr::from_v4_word(source);
        if source != packet.tuple.destination {
            return Err(Reason::PassMalformed);
        }
        packet.quoted_l4_offset = (quoted + header_len) as u32;
    } else {
        let header: [u8; 8] = load(frame, quoted)?;
        if header[0] >> 4 != 6 {
            return Err(Reason::PassMalformed);
        }
        packet.tuple.protocol = header[6];
        let source: Addr = load(frame, quoted + 8)?;
        packet.tuple.source = load(frame, quoted + 24)?;
        if source != packet.tuple.destination {
            return Err(Reason::PassMalformed);
        }
        packet.quoted_l4_offset = (quoted + IPV6_LEN) as u32;
    }
    if !matches!(packet.tuple.protocol, IPPROTO_TCP | IPPROTO_UDP) {
        return Ok(false);
    }
    // An error quotes at least 8 bytes of what follows the IP header.
    let ports: [u16; 4] = load(frame, packet.quoted_l4_offset())?;
    packet.tuple.source_port_be = ports[1];
    packet.tuple.destination_port_be = ports[0];
    Ok(true)
}

/// Tells whether the link layer addressed the packet to this host: others pass an interface that is promiscuous.
#[inline(always)]
pub(crate) fn is_for_host(ctx: &TcContext) -> bool {
    // SAFETY: the verifier checks accesses to the context.
    unsafe { (&raw const (*ctx.skb.skb).pkt_type).read_volatile() == PACKET_HOST }
}

#[inline(always)]
pub(crate) fn ifindex(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the verifier checks accesses to the context.
    unsafe { (&raw const (*skb).ifindex).read_volatile() }
}

#[inline(always)]
pub(crate) fn load<T>(frame: &impl Frame, offset: usize) -> Result<T, Reason> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the value has so many bytes; all are written, and the callers' types are integers throughout.
    unsafe {
        if frame.load_bytes(offset, value.as_mut_ptr().cast(), size_of::<T>()) {
            return Ok(value.assume_init());
        }
    }
    Err(Reason::PassMalformed)
}

/// A packet as a program is given it, link-layer header first.
pub(crate) trait Frame {
    /// Only TCP and UDP right after the IP header, whole and without options, is looked at.
    const PLAIN_ONLY: bool;

    /// What follows the link-layer header, in network order.
    fn ether_type_be(&self) -> u32;

    /// In bytes; at XDP of what lies in one piece.
    fn len(&self) -> usize;

    /// Where the packet's linear part begins and ends.
    fn linear(&self) -> (usize, usize);

    /// Copies `len` bytes from `offset` on. False where there are not so many.
    ///
    /// # Safety
    /// `to` has room for `len` bytes.
    unsafe fn load_bytes(&self, offset: usize, to: *mut c_void, len: usize) -> bool;

    /// Returns where `len` bytes of the packet from `offset` on are, if they are in its linear part. Valid until a
    /// helper changes the packet.
    #[inline(always)]
    fn bytes_at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let (start, end) = self.linear();
        (start + offset + len <= end).then_some((start + offset) as *mut u8)
    }
}

impl Frame for TcContext {
    const PLAIN_ONLY: bool = false;

    #[inline(always)]
    fn ether_type_be(&self) -> u32 {
        // SAFETY: the verifier checks accesses to the context.
        unsafe { (&raw const (*self.skb.skb).protocol).read_volatile() }
    }

    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: as above.
        unsafe { (&raw const (*self.skb.skb).len).read_volatile() as usize }
    }

    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    unsafe fn load_bytes(&self, offset: usize, to: *mut c_void, len: usize) -> bool {
        // SAFETY: the caller vouches for the room.
        unsafe { bpf_skb_load_bytes(self.skb.skb.cast(), offset as u32, to, len as u32) == 0 }
    }
}

impl Frame for XdpContext {
    const PLAIN_ONLY: bool = true;

    #[inline(always)]
    fn ether_type_be(&self) -> u32 {
        let bytes = self.bytes_at(ETH_LEN - 2, 2);
        // SAFETY: there are so many bytes.
        bytes.map_or(0, |bytes| unsafe { u32::from(bytes.cast::<u16>().read_volatile()) })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.data_end().wrapping_sub(self.data())
    }

    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    unsafe fn load_bytes(&self, offset: usize, to: *mut c_void, len: usize) -> bool {
        // SAFETY: the caller vouches for the room.
        unsafe { bpf_xdp_load_bytes(self.ctx, offset as u32, to, len as u32) == 0 }
    }
}
