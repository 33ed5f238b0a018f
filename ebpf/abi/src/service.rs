//! Services: one hash from frontend to a range of slots, and the slots.
//!
//! An update writes a fresh range of slots and then replaces the one frontend entry, so a reader sees the old range
//! or the new one and never a mixture. The old range is reused only after a grace period, longer than any program
//! runs.

use crate::Addr;

/// Key of `FRONTENDS`: an address, port and protocol that clients connect to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey {
    pub addr: Addr,
    pub port_be: u16,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// Always 0: the kernel hashes every byte of a key.
    pub pad: u8,
}
const _: () = assert!(size_of::<FrontendKey>() == 20);

/// Value of `FRONTENDS`.
///
/// There are two ranges, because `internalTrafficPolicy` and `externalTrafficPolicy` may differ: `base`/`count` for
/// clients inside the cluster (sockets of this node, packets of its pods), `wire_base`/`wire_count` for packets that
/// come from outside.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Names the service port; all frontends of one service port share it.
    pub service_id: u32,
    /// Grows with every replacement, so that a socket notices that its backend may have gone.
    pub generation: u32,
    pub base: u32,
    pub count: u32,
    pub wire_base: u32,
    pub wire_count: u32,
    /// `FRONTEND_*`.
    pub flags: u32,
    /// Client affinity in seconds; 0 for none.
    pub affinity_seconds: u32,
    /// First block of `MAGLEV`, and number of entries, for clients outside; 0 entries for no table.
    pub maglev_base: u32,
    pub maglev_len: u32,
    /// List of `SOURCE_RANGES`, with [`FRONTEND_SOURCE_RANGES`].
    pub source_ranges: u32,
    /// See [`Frontend::sealed`].
    pub seal: u32,
}
const _: () = assert!(size_of::<Frontend>() == 48);

/// Served to packets that come from outside the node (node ports, external addresses); cluster IPs are not.
pub const FRONTEND_WIRE: u32 = 1 << 0;
/// Served at sockets of the node's own network namespace alone (node ports on loopback).
pub const FRONTEND_NODE_ONLY: u32 = 1 << 1;
/// Served to packets alone: the address of a departed UDP backend, kept for clients that are still connected to it.
pub const FRONTEND_DEPARTED: u32 = 1 << 2;
/// Only backends of this node are used for traffic from outside (`externalTrafficPolicy: Local`).
pub const FRONTEND_WIRE_LOCAL: u32 = 1 << 3;
/// Only backends of this node are used for clients inside (`internalTrafficPolicy: Local`).
pub const FRONTEND_INSIDE_LOCAL: u32 = 1 << 8;
/// A client keeps its backend (`sessionAffinity: ClientIP`).
pub const FRONTEND_AFFINITY: u32 = 1 << 9;
/// Only sources of the frontend's list are served (`loadBalancerSourceRanges`).
pub const FRONTEND_SOURCE_RANGES: u32 = 1 << 10;
/// The node's own address is in the list.
pub const FRONTEND_NODE_IN_RANGES: u32 = 1 << 11;

/// Packets for backends of other nodes are sent there as they are (direct server return): all nodes have this frontend.
pub const FRONTEND_DSR: u32 = 1 << 12;

/// One slot of `BACKENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    pub addr: Addr,
    pub port_be: u16,
    /// `BACKEND_*`.
    pub flags: u8,
    /// Always 0.
    pub pad: u8,
}
const _: () = assert!(size_of::<Backend>() == 20);

/// The backend runs on this node: packets from outside keep their source, replies pass the node anyway.
pub const BACKEND_LOCAL: u8 = 1 << 0;
/// The backend runs on another node of the cluster, which serves the same frontends.
pub const BACKEND_ON_NODE: u8 = 1 << 1;

/// Key of `MEMBERS`: "this backend belongs to this service port". The value is `MEMBER_*`: the sets it is in.
///
/// A socket, flow or affinity that remembers a backend asks here whether it is still there, which costs one lookup
/// whatever the number of backends. Kept for UDP, and for ports with affinity.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberKey {
    pub service_id: u32,
    pub addr: Addr,
    pub port_be: u16,
    /// Always 0.
    pub pad: u16,
}
const _: () = assert!(size_of::<MemberKey>() == 24);

/// Among all backends of the service port.
pub const MEMBER_CLUSTER: u32 = 1 << 0;
/// Among those of this node.
pub const MEMBER_LOCAL: u32 = 1 << 1;

/// An address and port, as sockets and flows remember them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub addr: Addr,
    pub port_be: u16,
    /// Always 0.
    pub pad: u16,
}
const _: () = assert!(size_of::<Endpoint>() == 20);

impl Endpoint {
    #[inline(always)]
    pub const fn new(addr: Addr, port_be: u16) -> Self {
        Self { addr, port_be, pad: 0 }
    }
}

impl Backend {
    #[inline(always)]
    pub const fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.addr, self.port_be)
    }
}

/// Value of `SERVICE_COUNTERS`, per CPU; the key is the service port's id. Counted from the first of them on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounters {
    /// Clients that were given a backend: connections, flows, and UDP sockets each time that they choose.
    pub chosen: u64,
    /// Clients that were refused, because there is no backend.
    pub refused: u64,
}
const _: () = assert!(size_of::<ServiceCounters>() == 16);

/// Service ports that are counted, at most. One more is served and not counted.
pub const SERVICE_COUNTERS: u32 = 131_072;

/// Who asks for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A socket of this node, or a packet of one of its pods.
    Inside,
    /// A packet from outside.
    Wire,
}

impl Frontend {
    /// Returns the entry as it is written for `key`.
    ///
    /// Since 6.1 the kernel may give the memory of an element that is replaced to another one at once, while a program
    /// still reads it. So programs copy an entry, and take what they have only if its seal is that of the key and of
    /// all fields: neither another frontend's nor a mixture.
    pub fn sealed(self, key: &FrontendKey) -> Self {
        Self { seal: self.seal_for(key), ..self }
    }

    /// Tells whether this is what was written for `key`.
    #[inline(always)]
    pub fn is_sealed(&self, key: &FrontendKey) -> bool {
        self.seal == self.seal_for(key)
    }

    /// Each word times a constant of its own, so that the multiplications need not wait for one another.
    #[inline(always)]
    fn seal_for(&self, key: &FrontendKey) -> u32 {
        let addr = key.addr.words();
        let port = u32::from(key.port_be) << 16 | u32::from(key.protocol);
        let words = [
            self.service_id,
            self.generation,
            self.base,
            self.count,
            self.wire_base,
            self.wire_count,
            self.flags,
            self.affinity_seconds,
            self.maglev_base,
            self.maglev_len,
            self.source_ranges,
            addr[0],
            addr[1],
            addr[2],
            addr[3],
            port,
        ];
        let mut sum = 0u64;
        let mut index = 0;
        while index < words.len() {
            // Mixed, so that changes of two words do not make up for each other.
            let factor = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let factor = (factor ^ factor >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1;
            sum = sum.wrapping_add(u64::from(words[index]).wrapping_mul(factor));
            index += 1;
        }
        (sum >> 32) as u32
    }

    /// Returns the set that `client`'s backend must be a member of.
    #[inline(always)]
    pub const fn member_of(&self, client: Client) -> u32 {
        let local = match client {
            Client::Inside => FRONTEND_INSIDE_LOCAL,
            Client::Wire => FRONTEND_WIRE_LOCAL,
        };
        if self.flags & local != 0 { MEMBER_LOCAL } else { MEMBER_CLUSTER }
    }
}

/// Returns the slot that `random` chooses for `client`, or `None` when the frontend has no backend for it.
///
/// The remainder favours low slots by less than one part in `u32::MAX / count`: nothing at any real count.
#[inline(always)]
pub const fn choose_slot(frontend: &Frontend, client: Client, random: u32) -> Option<u32> {
    let (base, count) = match client {
        Client::Inside => (frontend.base, frontend.count),
        Client::Wire => (frontend.wire_base, frontend.wire_count),
    };
    if count == 0 { None } else { Some(base.wrapping_add(random % count)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_slot_is_in_the_clients_range() {
        let frontend = Frontend { base: 10, count: 3, wire_base: 100, wire_count: 2, ..Frontend::default() };
        let mut seen = [0; 2];
        for random in 0..1000 {
            let slot = choose_slot(&frontend, Client::Inside, random).unwrap();
            assert!((10..13).contains(&slot));
            let slot = choose_slot(&frontend, Client::Wire, random).unwrap();
            seen[(slot - 100) as usize] += 1;
        }
        assert_eq!(seen, [500, 500]);
    }

    #[test]
    fn seal_breaks_with_any_change() {
        let key = FrontendKey { addr: crate::v4_mapped([10, 96, 0, 1]), port_be: 80, protocol: 6, pad: 0 };
        let sealed = Frontend { service_id: 7, generation: 3, base: 40, count: 2, ..Frontend::default() };
        let sealed = sealed.sealed(&key);
        assert!(sealed.is_sealed(&key));
        let others = [
            FrontendKey { port_be: 81, ..key },
            FrontendKey { protocol: 17, ..key },
            FrontendKey { addr: crate::v4_mapped([10, 96, 0, 2]), ..key },
        ];
        for other in others {
            assert!(!sealed.is_sealed(&other), "another key");
        }
        let changes: [fn(&mut Frontend); 12] = [
            |it| it.service_id += 1,
            |it| it.generation += 1,
            |it| it.base += 1,
            |it| it.count += 1,
            |it| it.wire_base += 1,
            |it| it.wire_count += 1,
            |it| it.flags += 1,
            |it| it.affinity_seconds += 1,
            |it| it.maglev_base += 1,
            |it| it.maglev_len += 1,
            |it| it.source_ranges += 1,
            |it| it.seal += 1,
        ];
        for (field, change) in changes.into_iter().enumerate() {
            let mut torn = sealed;
            change(&mut torn);
            assert!(!torn.is_sealed(&key), "field {field}");
        }
    }

    #[test]
    fn no_backend_is_no_slot() {
        let frontend = Frontend { wire_count: 1, ..Frontend::default() };
        assert_eq!(choose_slot(&frontend, Client::Inside, 5), None);
        assert_eq!(choose_slot(&frontend, Client::Wire, 5), Some(0));
    }
}
