//! Flows of the packet path: one object per flow, reached through two index entries, one per direction.
//!
//! A slot that is taken by another flow raises its generation, which makes both entries stale at the same moment: there
//! is never half a flow. How flows are found, entered and given up is `flow_table`'s.

use core::hash::{Hash, Hasher};

use crate::{Addr, service::Endpoint};

/// A packet's tuple as it arrives, in either direction.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowKey {
    pub source: Addr,
    pub destination: Addr,
    pub source_port_be: u16,
    pub destination_port_be: u16,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// Always 0.
    pub pad: [u8; 3],
}
const _: () = assert!(size_of::<FlowKey>() == 40);

/// Entry of `FLOW_INDEX`: slot, direction, a part of the tuple's hash and generation in one word, so that an entry
/// changes as a whole. 0 for an entry that is free: generations start at 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowRef {
    pub word: u64,
}
const _: () = assert!(size_of::<FlowRef>() == 8);

const SLOT_BITS: u32 = 24;
const TAG_SHIFT: u32 = SLOT_BITS + 1;
const TAG_BITS: u32 = 15;
const GENERATION_SHIFT: u32 = TAG_SHIFT + TAG_BITS;
const TAG_MASK: u64 = ((1 << TAG_BITS) - 1) << TAG_SHIFT;

/// Generations count from 1 to this and begin again. Entries of a generation that is over are removed when it ends, so
/// one that comes again meets none of the last time.
pub const LAST_GENERATION: u64 = (1 << (64 - GENERATION_SHIFT)) - 1;

impl FlowRef {
    /// An entry that is free.
    pub const FREE: Self = Self { word: 0 };

    /// `hash` is that of the tuple.
    #[inline(always)]
    pub const fn new(slot: u32, direction: u32, generation: u64, hash: u64) -> Self {
        let place = (direction as u64) << SLOT_BITS | slot as u64;
        Self { word: generation << GENERATION_SHIFT | (hash >> TAG_SHIFT << TAG_SHIFT) & TAG_MASK | place }
    }

    #[inline(always)]
    pub const fn slot(self) -> u32 {
        (self.word & ((1 << SLOT_BITS) - 1)) as u32
    }

    #[inline(always)]
    pub const fn generation(self) -> u64 {
        self.word >> GENERATION_SHIFT
    }

    /// Returns [`DIRECTION_FORWARD`] or [`DIRECTION_REPLY`].
    #[inline(always)]
    pub const fn direction(self) -> u32 {
        (self.word >> SLOT_BITS & 1) as u32
    }

    /// Tells whether the entry may be that of a tuple with this hash. One free entry in 32,768 seems so too.
    #[inline(always)]
    pub const fn may_be_of(self, hash: u64) -> bool {
        (self.word ^ hash) & TAG_MASK == 0
    }
}

/// Entries that are looked at together: a cache line.
pub const FLOW_WAYS: usize = 8;

/// Value of `FLOW_INDEX`: the entries of the tuples that a hash leads to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowBucket {
    pub entries: [FlowRef; FLOW_WAYS],
}
const _: () = assert!(size_of::<FlowBucket>() == 64);

/// Returns the generation of the next flow in a slot.
#[inline(always)]
pub const fn next_generation(generation: u64) -> u64 {
    if generation >= LAST_GENERATION { 1 } else { generation + 1 }
}

pub const DIRECTION_FORWARD: u32 = 0;
pub const DIRECTION_REPLY: u32 = 1;

/// One flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Raised by whoever takes the slot; index entries of an older generation are misses.
    pub generation: u64,
    pub last_seen_ns: u64,
    /// The tuple of packets from the client, as they arrive.
    pub forward: FlowKey,
    /// The tuple of packets from the backend, as they arrive.
    pub reply: FlowKey,
    /// `FLOW_*`.
    pub flags: u32,
    pub service_id: u32,
    /// The frontend's generation when the backend was last seen to be a member.
    pub frontend_generation: u32,
    /// What a TCP client acknowledges first: the backend's first sequence number and one. Of an answered flow.
    pub expected_ack: u32,
    /// Always 0. Two cache lines together.
    pub pad: [u32; 4],
}
const _: () = assert!(size_of::<Flow>() == 128);

/// Both ends are there: a TCP client has acknowledged what the backend answered, a UDP client has sent again after it.
/// Who sends with another's address does not see the answers, and gets no flow so far.
pub const FLOW_CONFIRMED: u32 = 1 << 0;
/// The backend has answered.
pub const FLOW_ANSWERED: u32 = 1 << 1;
/// The source was replaced, by an address of the node's or a port that no other flow of the client has.
pub const FLOW_SNAT: u32 = 1 << 2;
/// The client asked for the backend itself, from a port from which a service's flow leads there. Has a source of its
/// own, so that the backend's replies to both can be told apart.
pub const FLOW_DIRECT: u32 = 1 << 3;
/// The backend has a connection of the client's that is none of this flow's: a direct one from the same port, which is
/// older. Its packets are left alone.
pub const FLOW_FOREIGN: u32 = 1 << 4;
/// The client has sent its last byte.
pub const FLOW_FIN_FORWARD: u32 = 1 << 5;
/// The backend has sent its last byte.
pub const FLOW_FIN_REPLY: u32 = 1 << 6;
/// The client's last packet was a reset.
pub const FLOW_RST_FORWARD: u32 = 1 << 7;
/// The backend's last packet was a reset.
pub const FLOW_RST_REPLY: u32 = 1 << 8;
/// The packets go to the backend's node as they are, which translates them and answers the client itself. Nothing
/// comes back here, so the flow is never confirmed, and makes room for others; without it the next packet is sent the
/// same way while the backends are the same.
pub const FLOW_DSR: u32 = 1 << 9;

/// The least size of `FLOWS`. Sizes are powers of two. `FLOW_INDEX` has as many buckets: a table that is full fills a
/// quarter of the entries, so that one bucket in four thousand has more tuples than entries.
pub const LEAST_FLOW_SLOTS: u32 = 1 << 16;
/// The most, 768 MiB with the index.
pub const MOST_FLOW_SLOTS: u32 = 1 << 22;
const _: () = assert!(MOST_FLOW_SLOTS <= 1 << SLOT_BITS);

/// Slots that are tried for a new flow, from where its hash leads. With nine of ten slots in use, one flow in a thousand
/// finds none.
pub const FLOW_PROBES: u32 = 64;
/// After so many, a slot whose flow has not been answered will do.
pub const FLOW_PROBES_KIND: u32 = 8;

const SECOND_NS: u64 = 1_000_000_000;
/// An unanswered flow. TCP's own third SYN comes after 3 s, its fourth after 7 s.
pub const UNCONFIRMED_NS: u64 = 30 * SECOND_NS;
/// TCP that another node answers, after the client's last packet. It gives way all the same: nobody here can tell whether
/// the client is one.
pub const DSR_IDLE_NS: u64 = 900 * SECOND_NS;
/// UDP after its last packet; Linux's conntrack keeps an answered stream as long.
pub const UDP_IDLE_NS: u64 = 120 * SECOND_NS;
/// TCP after its last packet: twice the default keep-alive time.
pub const TCP_IDLE_NS: u64 = 4 * 3600 * SECOND_NS;
/// TCP of which one end has sent all: the other may have more to send, and takes its time.
pub const TCP_HALF_CLOSED_NS: u64 = 3600 * SECOND_NS;
/// TCP after a reset of the client's, which anybody could have sent: as long as TIME_WAIT.
pub const TCP_RESET_NS: u64 = 60 * SECOND_NS;
/// TCP after its end.
pub const TCP_CLOSED_NS: u64 = 10 * SECOND_NS;
/// TCP after its end, when another flow wants its tuple.
pub const TCP_REUSE_NS: u64 = 2 * SECOND_NS;

/// Tells whether a flow has been idle for so long that its slot may be taken, or was given up (last seen at 0).
#[inline(always)]
pub const fn is_expired(flow: &Flow, now_ns: u64) -> bool {
    let goes_on = FLOW_DSR | FLOW_ANSWERED | FLOW_FIN_FORWARD | FLOW_RST_FORWARD;
    let limit = if flow.flags & goes_on == FLOW_DSR | FLOW_ANSWERED {
        DSR_IDLE_NS
    } else if flow.flags & FLOW_CONFIRMED == 0 {
        UNCONFIRMED_NS
    } else if flow.forward.protocol != crate::IPPROTO_TCP {
        UDP_IDLE_NS
    } else if flow.is_closed() {
        TCP_CLOSED_NS
    } else if flow.flags & FLOW_RST_FORWARD != 0 {
        TCP_RESET_NS
    } else if flow.flags & (FLOW_FIN_FORWARD | FLOW_FIN_REPLY) != 0 {
        TCP_HALF_CLOSED_NS
    } else {
        TCP_IDLE_NS
    };
    flow.last_seen_ns == 0 || now_ns.saturating_sub(flow.last_seen_ns) > limit
}

impl FlowKey {
    #[inline(always)]
    pub const fn new(source: Endpoint, destination: Endpoint, protocol: u8) -> Self {
        Self {
            source: source.addr,
            destination: destination.addr,
            source_port_be: source.port_be,
            destination_port_be: destination.port_be,
            protocol,
            pad: [0; 3],
        }
    }

    #[inline(always)]
    pub const fn source_endpoint(&self) -> Endpoint {
        Endpoint::new(self.source, self.source_port_be)
    }

    #[inline(always)]
    pub const fn destination_endpoint(&self) -> Endpoint {
        Endpoint::new(self.destination, self.destination_port_be)
    }

    /// Mixes the tuple into 64 bits. `seed` is the node's secret: who does not know it cannot choose tuples that
    /// meet in one bucket.
    #[inline(always)]
    pub fn seeded_hash(&self, seed: u64) -> u64 {
        let mut hash = seed;
        for word in self.words() {
            hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 32;
        }
        hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
        hash ^ hash >> 32
    }

    /// Returns the tuple of packets that go the other way.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self::new(self.destination_endpoint(), self.source_endpoint(), self.protocol)
    }

    #[expect(unsafe_code, reason = "one load a word, not one a byte")]
    #[inline(always)]
    fn words(&self) -> &[u64; 5] {
        // SAFETY: the same size and alignment, no padding, and every bit pattern is a value.
        unsafe { &*(&raw const *self).cast() }
    }
}

// By words, without branches: most of what is compared is equal.
impl PartialEq for FlowKey {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.words(), other.words());
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) == 0
    }
}

impl Eq for FlowKey {}

impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.words().hash(state);
    }
}

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// What flows look at of a TCP header, in the machine's order. All zero for a UDP datagram.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub sequence: u32,
    pub acknowledgement: u32,
    /// `TCP_*`.
    pub flags: u32,
}

impl Segment {
    #[inline(always)]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags as u32 == flags as u32
    }
}

/// A client may acknowledge data that came with the backend's first packet or right behind it (RFC 7413).
const FIRST_ACK_WINDOW: u32 = 0xffff;

impl Flow {
    /// Returns the tuple that packets of `direction` become when it is turned round: the other direction's.
    #[inline(always)]
    pub const fn opposite(&self, direction: u32) -> &FlowKey {
        if direction == DIRECTION_FORWARD { &self.reply } else { &self.forward }
    }

    /// Tells whether nothing more is to come: both ends have sent all, or the backend knows no such connection.
    #[inline(always)]
    pub const fn is_closed(&self) -> bool {
        let fins = FLOW_FIN_FORWARD | FLOW_FIN_REPLY;
        self.flags & fins == fins || self.flags & FLOW_RST_REPLY != 0
    }

    /// Tells whether another flow may have the tuple: this one is over, and for long enough.
    #[inline(always)]
    pub const fn is_reusable(&self, now_ns: u64) -> bool {
        let idle_ns = now_ns.saturating_sub(self.last_seen_ns);
        is_expired(self, now_ns) || self.is_closed() && idle_ns > TCP_REUSE_NS
    }

    /// Returns what the client is to acknowledge first, after a packet of `direction` was seen.
    #[inline(always)]
    pub const fn ack_after(&self, direction: u32, segment: &Segment) -> u32 {
        if direction == DIRECTION_REPLY && segment.has(TCP_SYN | TCP_ACK) {
            segment.sequence.wrapping_add(1)
        } else {
            self.expected_ack
        }
    }

    /// Returns the flags after a packet of `direction` was seen. [`FLOW_FOREIGN`] may be new among them.
    #[inline(always)]
    pub const fn flags_after(&self, direction: u32, segment: &Segment) -> u32 {
        let flags = self.flags;
        let is_reply = direction == DIRECTION_REPLY;
        if self.forward.protocol != crate::IPPROTO_TCP {
            return match (is_reply, flags & FLOW_ANSWERED != 0) {
                (true, _) => flags | FLOW_ANSWERED,
                (false, true) => flags | FLOW_CONFIRMED,
                (false, false) => flags,
            };
        }
        let mut flags = flags & !(FLOW_RST_FORWARD | FLOW_RST_REPLY);
        if segment.has(TCP_RST) {
            flags |= if is_reply { FLOW_RST_REPLY } else { FLOW_RST_FORWARD };
        }
        if segment.has(TCP_FIN) {
            flags |= if is_reply { FLOW_FIN_REPLY } else { FLOW_FIN_FORWARD };
        }
        if flags & FLOW_DSR != 0 {
            // Who acknowledges has seen an answer, or says so.
            let answers = !is_reply && segment.has(TCP_ACK) && !segment.has(TCP_SYN);
            return flags | if answers { FLOW_ANSWERED } else { 0 };
        }
        if flags & FLOW_CONFIRMED != 0 {
            return flags;
        }
        if is_reply {
            if segment.has(TCP_SYN | TCP_ACK) {
                flags = flags & !FLOW_FOREIGN | FLOW_ANSWERED;
            } else if flags & (FLOW_ANSWERED | FLOW_SNAT) == 0 && !segment.has(TCP_RST) {
                flags |= FLOW_FOREIGN;
            }
        } else if flags & FLOW_ANSWERED != 0 && segment.has(TCP_ACK) {
            let ahead = segment.acknowledgement.wrapping_sub(self.expected_ack);
            if ahead <= FIRST_ACK_WINDOW {
                flags |= FLOW_CONFIRMED;
            }
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IPPROTO_TCP, IPPROTO_UDP, v4_mapped};

    #[test]
    fn flows_expire_by_state() {
        #[track_caller]
        fn check(what: &str, protocol: u8, flags: u32, limit_ns: u64) {
            let mut flow = Flow { flags, last_seen_ns: 1_000, ..Flow::default() };
            flow.forward.protocol = protocol;
            assert!(!is_expired(&flow, 1_000 + limit_ns), "{what}");
            assert!(is_expired(&flow, 1_001 + limit_ns), "{what}");
            assert!(!is_expired(&flow, 0), "{what}: a clock that is behind");
            assert!(is_expired(&Flow { last_seen_ns: 0, ..flow }, 1), "{what}: given up, right after boot");
        }
        check("TCP without answer", IPPROTO_TCP, 0, UNCONFIRMED_NS);
        check("TCP with an answer alone", IPPROTO_TCP, FLOW_ANSWERED, UNCONFIRMED_NS);
        check("TCP for another node", IPPROTO_TCP, FLOW_DSR, UNCONFIRMED_NS);
        check("TCP that another node answers", IPPROTO_TCP, FLOW_DSR | FLOW_ANSWERED, DSR_IDLE_NS);
        let ended = FLOW_DSR | FLOW_ANSWERED | FLOW_FIN_FORWARD;
        check("TCP for another node at its end", IPPROTO_TCP, ended, UNCONFIRMED_NS);
        check("UDP without answer", IPPROTO_UDP, 0, UNCONFIRMED_NS);
        check("UDP", IPPROTO_UDP, FLOW_CONFIRMED, UDP_IDLE_NS);
        check("TCP", IPPROTO_TCP, FLOW_CONFIRMED, TCP_IDLE_NS);
        check("TCP half closed", IPPROTO_TCP, FLOW_CONFIRMED | FLOW_FIN_REPLY, TCP_HALF_CLOSED_NS);
        check("TCP reset by the client", IPPROTO_TCP, FLOW_CONFIRMED | FLOW_RST_FORWARD, TCP_RESET_NS);
        check("TCP reset by the backend", IPPROTO_TCP, FLOW_CONFIRMED | FLOW_RST_REPLY, TCP_CLOSED_NS);
        let fins = FLOW_FIN_FORWARD | FLOW_FIN_REPLY;
        check("TCP at its end", IPPROTO_TCP, FLOW_CONFIRMED | fins, TCP_CLOSED_NS);
    }

    /// Its answers are not seen: what a client says of them makes the flow wait longer, and never keeps it.
    #[test]
    fn flow_for_another_node_is_never_confirmed() {
        let mut flow = Flow { flags: FLOW_DSR, ..Flow::default() };
        flow.forward.protocol = IPPROTO_TCP;
        let segment = |flags, acknowledgement| Segment { sequence: 1, acknowledgement, flags };
        flow.flags = flow.flags_after(DIRECTION_FORWARD, &segment(u32::from(TCP_SYN), 0));
        assert_eq!(flow.flags, FLOW_DSR);
        for acknowledgement in [0, 1, 7, u32::MAX] {
            flow.flags = flow.flags_after(DIRECTION_FORWARD, &segment(u32::from(TCP_ACK), acknowledgement));
            assert_eq!(flow.flags, FLOW_DSR | FLOW_ANSWERED);
        }
        flow.flags = flow.flags_after(DIRECTION_FORWARD, &segment(u32::from(TCP_FIN | TCP_ACK), 7));
        assert_eq!(flow.flags, FLOW_DSR | FLOW_ANSWERED | FLOW_FIN_FORWARD);
    }

    /// A flow that sees one packet after the other: direction, flags, sequence and acknowledgement numbers.
    fn after(protocol: u8, packets: &[(u32, u8, u32, u32)]) -> Flow {
        let mut flow = Flow { last_seen_ns: 1, ..Flow::default() };
        flow.forward.protocol = protocol;
        for (direction, flags, sequence, acknowledgement) in packets {
            let segment =
                Segment { sequence: *sequence, acknowledgement: *acknowledgement, flags: u32::from(*flags) };
            let flags = flow.flags_after(*direction, &segment);
            flow.expected_ack = flow.ack_after(*direction, &segment);
            flow.flags = flags;
        }
        flow
    }

    const FORWARD: u32 = DIRECTION_FORWARD;
    const REPLY: u32 = DIRECTION_REPLY;

    #[test]
    fn flow_is_confirmed_by_a_client_that_saw_the_answer() {
        let answered = [(FORWARD, TCP_SYN, 7, 0), (REPLY, TCP_SYN | TCP_ACK, u32::MAX, 8)];
        assert_eq!(after(IPPROTO_TCP, &answered).flags, FLOW_ANSWERED);
        let then = |packet| after(IPPROTO_TCP, &[answered[0], answered[1], packet]).flags;
        assert_eq!(then((FORWARD, TCP_ACK, 8, 0)), FLOW_ANSWERED | FLOW_CONFIRMED);
        assert_eq!(then((FORWARD, TCP_ACK, 8, 1460)), FLOW_ANSWERED | FLOW_CONFIRMED, "data was quick");
        assert_eq!(then((FORWARD, TCP_ACK, 8, u32::MAX)), FLOW_ANSWERED, "nobody's number");
        assert_eq!(then((FORWARD, TCP_SYN, 7, 0)), FLOW_ANSWERED, "sent again");
        let again = (REPLY, TCP_SYN | TCP_ACK, 5000, 8);
        let flags = after(IPPROTO_TCP, &[answered[0], answered[1], again, (FORWARD, TCP_ACK, 8, 5001)]).flags;
        assert_eq!(flags, FLOW_ANSWERED | FLOW_CONFIRMED, "answered anew");
    }

    #[test]
    fn udp_flow_is_confirmed_by_a_client_that_sends_again() {
        let sent = (FORWARD, 0, 0, 0);
        let answer = (REPLY, 0, 0, 0);
        assert_eq!(after(IPPROTO_UDP, &[sent, sent]).flags, 0);
        assert_eq!(after(IPPROTO_UDP, &[sent, answer, answer]).flags, FLOW_ANSWERED);
        assert_eq!(after(IPPROTO_UDP, &[sent, answer, sent]).flags, FLOW_ANSWERED | FLOW_CONFIRMED);
    }

    #[test]
    fn flow_is_closed_by_both_ends_or_by_the_backends_reset() {
        let open = [(FORWARD, TCP_SYN, 0, 0), (REPLY, TCP_SYN | TCP_ACK, 0, 1), (FORWARD, TCP_ACK, 1, 1)];
        let closed = |more: &[(u32, u8, u32, u32)]| {
            let mut packets = [(FORWARD, TCP_ACK, 1, 1); 8];
            packets[..3].copy_from_slice(&open);
            packets[3..3 + more.len()].copy_from_slice(more);
            after(IPPROTO_TCP, &packets[..3 + more.len()]).is_closed()
        };
        let fin = TCP_FIN | TCP_ACK;
        assert!(!closed(&[]));
        assert!(!closed(&[(FORWARD, fin, 1, 1)]));
        assert!(!closed(&[(REPLY, fin, 1, 1), (FORWARD, TCP_ACK, 1, 2)]));
        assert!(closed(&[(REPLY, fin, 1, 1), (FORWARD, fin, 1, 2), (REPLY, TCP_ACK, 2, 2)]));
        assert!(closed(&[(REPLY, TCP_RST, 1, 0)]));
        assert!(!closed(&[(FORWARD, TCP_RST, 1, 0)]), "anybody could have sent it");
        assert!(!closed(&[(REPLY, TCP_RST, 1, 0), (REPLY, TCP_ACK, 1, 1)]), "it goes on");
    }

    #[test]
    fn answer_to_nobodys_question_is_an_older_connections() {
        let sent = (FORWARD, TCP_SYN, 7, 0);
        let foreign = (REPLY, TCP_ACK, 1, 1);
        assert_eq!(after(IPPROTO_TCP, &[sent, foreign]).flags, FLOW_FOREIGN);
        let own = (REPLY, TCP_SYN | TCP_ACK, 1, 8);
        assert_eq!(after(IPPROTO_TCP, &[sent, foreign, own]).flags, FLOW_ANSWERED, "its own came after all");
        assert_eq!(after(IPPROTO_TCP, &[sent, (REPLY, TCP_RST, 0, 8)]).flags, FLOW_RST_REPLY);
    }

    #[test]
    fn tuple_can_be_reused_soon_after_the_end() {
        let fins = FLOW_FIN_FORWARD | FLOW_FIN_REPLY;
        let mut flow = Flow { last_seen_ns: 1, flags: FLOW_CONFIRMED | fins, ..Flow::default() };
        flow.forward.protocol = IPPROTO_TCP;
        assert!(!flow.is_reusable(1 + TCP_REUSE_NS));
        assert!(flow.is_reusable(2 + TCP_REUSE_NS));
        flow.flags &= !FLOW_FIN_REPLY;
        assert!(!flow.is_reusable(2 + TCP_REUSE_NS));
    }

    #[test]
    fn reference_holds_all_of_its_parts() {
        for (slot, generation, direction, hash) in [
            (0, 1, DIRECTION_FORWARD, 0),
            (LEAST_FLOW_SLOTS - 1, LAST_GENERATION, DIRECTION_REPLY, u64::MAX),
            ((1 << SLOT_BITS) - 1, 0x12_3456, DIRECTION_REPLY, 0x0123_4567_89ab_cdef),
        ] {
            let reference = FlowRef::new(slot, direction, generation, hash);
            assert_eq!(
                (reference.slot(), reference.generation(), reference.direction()),
                (slot, generation, direction)
            );
            assert!(reference.may_be_of(hash));
            assert!(!reference.may_be_of(hash ^ 1 << TAG_SHIFT));
            assert_ne!(reference, FlowRef::FREE);
        }
        assert_eq!(next_generation(0), 1);
        assert_eq!(next_generation(LAST_GENERATION), 1);
    }

    #[test]
    fn tuples_are_equal_by_every_field() {
        let endpoint = |last, port: u16| Endpoint::new(v4_mapped([10, 0, 0, last]), port.to_be());
        let key = FlowKey::new(endpoint(1, 4000), endpoint(2, 80), IPPROTO_TCP);
        assert_eq!(key, key.reversed().reversed());
        assert_ne!(key, key.reversed());
        assert_ne!(key, FlowKey::new(endpoint(3, 4000), endpoint(2, 80), IPPROTO_TCP));
        assert_ne!(key, FlowKey::new(endpoint(1, 4001), endpoint(2, 80), IPPROTO_TCP));
        assert_ne!(key, FlowKey::new(endpoint(1, 4000), endpoint(3, 80), IPPROTO_TCP));
        assert_ne!(key, FlowKey::new(endpoint(1, 4000), endpoint(2, 81), IPPROTO_TCP));
        assert_ne!(key, FlowKey::new(endpoint(1, 4000), endpoint(2, 80), IPPROTO_UDP));
    }

    #[test]
    fn translation_forth_and_back_is_the_identity() {
        let client = Endpoint::new(v4_mapped([10, 0, 0, 1]), 4000);
        let service = Endpoint::new(v4_mapped([10, 96, 0, 1]), 80);
        let backend = Endpoint::new(v4_mapped([10, 0, 1, 1]), 8080);
        let flow = Flow {
            forward: FlowKey::new(client, service, IPPROTO_TCP),
            reply: FlowKey::new(backend, client, IPPROTO_TCP),
            ..Flow::default()
        };
        // What a packet becomes is the opposite tuple turned round.
        let turned = |key: &FlowKey| (key.destination_endpoint(), key.source_endpoint());
        assert_eq!(turned(flow.opposite(DIRECTION_FORWARD)), (client, backend));
        assert_eq!(turned(flow.opposite(DIRECTION_REPLY)), (service, client));
    }

    #[test]
    fn hash_spreads_neighbouring_tuples() {
        // Buckets, tags and the slots that are tried first are different bits.
        for (what, shift) in [("bucket", 0), ("tag", TAG_SHIFT), ("slot", 40)] {
            let mut counts = [0u32; 256];
            for port in 0..u16::MAX {
                let client = Endpoint::new(v4_mapped([10, 0, 0, 1]), port.to_be());
                let service = Endpoint::new(v4_mapped([10, 0, 0, 2]), 80u16.to_be());
                let hash = FlowKey::new(client, service, IPPROTO_TCP).seeded_hash(0x1234_5678_9abc_def0);
                counts[(hash >> shift & 0xff) as usize] += 1;
            }
            // 256 each on average; a Poisson spread stays well within half and one and a half of that.
            assert!(counts.iter().all(|count| (128..384).contains(count)), "{what}: {counts:?}");
        }
    }

    #[test]
    fn seed_decides_who_meets_whom() {
        let hash = |port: u16, seed| {
            let client = Endpoint::new(v4_mapped([10, 0, 0, 1]), port.to_be());
            FlowKey::new(client, client, IPPROTO_TCP).seeded_hash(seed) as u32 % LEAST_FLOW_SLOTS
        };
        let meet = |a: u16, b: u16, seed| hash(a, seed) == hash(b, seed);
        let pairs = (0..400u16).flat_map(|a| (0..a).map(move |b| (a, b)));
        let (mut met, mut again) = (0, 0);
        for (a, b) in pairs.filter(|(a, b)| meet(*a, *b, 1)) {
            met += 1;
            again += u32::from(meet(a, b, 2));
        }
        assert!(met > 0 && again < met, "{again} of {met}");
    }
}
