//! Flows of the packet path: one object per flow, reached through two indexes, one per direction.
//!
//! Objects live in the array `FLOWS`; `FLOW_INDEX` maps the tuple of each direction to a slot and a generation. Taking
//! a slot for another flow raises its generation, which makes both indexes stale at the same moment: there is never
//! half a flow. A slot is found by probing a few places that the tuple's hash chooses.

use crate::{Addr, service::Endpoint};

/// Key of `FLOW_INDEX`: a packet's tuple as it arrives, in either direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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

/// Value of `FLOW_INDEX`: generation, slot and direction in one word, so that an entry changes as a whole.
///
/// An entry that has gone stale is first exchanged for [`FlowRef::REMOVED`], atomically, and removed by the CPU that
/// did so and by no other: nobody removes an entry that was made meanwhile.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowRef {
    pub word: u64,
}
const _: () = assert!(size_of::<FlowRef>() == 8);

const SLOT_BITS: u32 = 24;
const GENERATION_SHIFT: u32 = SLOT_BITS + 1;
const _: () = assert!(FLOW_SLOTS <= 1 << SLOT_BITS);

/// Generations count from 1 to this and begin again: at a million new flows a second in a single slot, after six days
/// in which that slot's index entries would have had to be left behind. They are removed when the slot is taken.
pub const LAST_GENERATION: u64 = (1 << (64 - GENERATION_SHIFT)) - 1;

impl FlowRef {
    /// Marks an entry that its finder is about to remove. No flow has this reference: generations start at 1.
    pub const REMOVED: Self = Self { word: 0 };

    #[inline(always)]
    pub const fn new(slot: u32, generation: u64, direction: u32) -> Self {
        Self { word: generation << GENERATION_SHIFT | (direction as u64) << SLOT_BITS | slot as u64 }
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
}

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
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<Flow>() == 112);

/// The backend has answered.
pub const FLOW_CONFIRMED: u32 = 1 << 0;
/// A FIN or RST was seen in either direction.
pub const FLOW_CLOSING: u32 = 1 << 1;
/// The source was replaced: packets leave the node for another one.
pub const FLOW_SNAT: u32 = 1 << 2;

/// Size of `FLOWS`, a power of two.
pub const FLOW_SLOTS: u32 = 1 << 16;
const _: () = assert!(FLOW_SLOTS.is_power_of_two());

/// Places that are tried for a new flow. Bounds the verifier's work too.
pub const FLOW_PROBES: u32 = 8;

const SECOND_NS: u64 = 1_000_000_000;
/// An unanswered flow. TCP's own third SYN comes after 3 s, its fourth after 7 s.
pub const UNCONFIRMED_NS: u64 = 30 * SECOND_NS;
/// UDP after its last packet; Linux's conntrack keeps an answered stream as long.
pub const UDP_IDLE_NS: u64 = 120 * SECOND_NS;
/// TCP after its last packet: twice the default keep-alive time.
pub const TCP_IDLE_NS: u64 = 4 * 3600 * SECOND_NS;
/// TCP after FIN or RST: as long as TIME_WAIT.
pub const TCP_CLOSING_NS: u64 = 60 * SECOND_NS;

/// Tells whether a flow has been idle for so long that its slot may be taken, or was given up (last seen at 0).
#[inline(always)]
pub const fn is_expired(flow: &Flow, now_ns: u64) -> bool {
    let limit = if flow.flags & FLOW_CONFIRMED == 0 {
        UNCONFIRMED_NS
    } else if flow.forward.protocol != crate::IPPROTO_TCP {
        UDP_IDLE_NS
    } else if flow.flags & FLOW_CLOSING != 0 {
        TCP_CLOSING_NS
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

    /// Mixes the tuple into 32 bits. Spreads flows over slots; not a defence against chosen tuples by itself, which
    /// is why an established flow never gives way.
    #[inline(always)]
    pub const fn hash(&self) -> u32 {
        let mut hash = 0x9e37_79b9u32 ^ self.protocol as u32;
        hash = mix(hash, (self.source_port_be as u32) << 16 | self.destination_port_be as u32);
        let mut index = 0;
        while index < 16 {
            hash = mix(hash, word(&self.source, index));
            hash = mix(hash, word(&self.destination, index));
            index += 4;
        }
        hash ^= hash >> 16;
        hash = hash.wrapping_mul(0x85eb_ca6b);
        hash ^ (hash >> 13)
    }
}

impl Flow {
    /// Returns the tuple that packets of `direction` become when it is turned round: the other direction's.
    #[inline(always)]
    pub const fn opposite(&self, direction: u32) -> &FlowKey {
        if direction == DIRECTION_FORWARD { &self.reply } else { &self.forward }
    }
}

#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    (hash ^ word).wrapping_mul(0xcc9e_2d51).rotate_left(15)
}

#[inline(always)]
const fn word(addr: &Addr, index: usize) -> u32 {
    u32::from_ne_bytes([addr[index], addr[index + 1], addr[index + 2], addr[index + 3]])
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
        check("UDP without answer", IPPROTO_UDP, 0, UNCONFIRMED_NS);
        check("UDP", IPPROTO_UDP, FLOW_CONFIRMED, UDP_IDLE_NS);
        check("TCP", IPPROTO_TCP, FLOW_CONFIRMED, TCP_IDLE_NS);
        check("TCP at its end", IPPROTO_TCP, FLOW_CONFIRMED | FLOW_CLOSING, TCP_CLOSING_NS);
    }

    #[test]
    fn reference_holds_all_of_its_parts() {
        for (slot, generation, direction) in [
            (0, 1, DIRECTION_FORWARD),
            (FLOW_SLOTS - 1, LAST_GENERATION, DIRECTION_REPLY),
            ((1 << SLOT_BITS) - 1, 0x12_3456_789a, DIRECTION_REPLY),
        ] {
            let reference = FlowRef::new(slot, generation, direction);
            assert_eq!(
                (reference.slot(), reference.generation(), reference.direction()),
                (slot, generation, direction)
            );
            assert_ne!(reference, FlowRef::REMOVED);
        }
        assert_eq!(next_generation(0), 1);
        assert_eq!(next_generation(LAST_GENERATION), 1);
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
        let mut buckets = [0u32; 256];
        for port in 0..u16::MAX {
            let client = Endpoint::new(v4_mapped([10, 0, 0, 1]), port.to_be());
            let service = Endpoint::new(v4_mapped([10, 0, 0, 2]), 80u16.to_be());
            let hash = FlowKey::new(client, service, IPPROTO_TCP).hash();
            buckets[(hash & 0xff) as usize] += 1;
        }
        // 256 a bucket on average; a Poisson spread stays well within half and one and a half of that.
        assert!(buckets.iter().all(|count| (128..384).contains(count)), "{buckets:?}");
    }
}
