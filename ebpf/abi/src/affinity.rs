//! `sessionAffinity: ClientIP`: the backend that a client had last, in `AFFINITY`.
//!
//! Affinity belongs to a service port of one family, as it does with kube-proxy: all its frontends share it, and two
//! ports of a service do not. A packet's client is its source address. At the socket the source is not known yet, so
//! there the client is the network namespace: all sockets of a pod, or of the node, are one client. A client that
//! uses both ways is two.
//!
//! An entry counts while its backend belongs to the set that the client may use, and for the service's timeout after
//! the last connection that it was used for. The agent removes entries whose time is over.

use crate::{Addr, service::Backend};

/// Key of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// An address, or the cookie of a network namespace, low word first, followed by zeros.
    pub client: Addr,
    pub service_id: u32,
    /// `CLIENT_*`.
    pub kind: u32,
}
const _: () = assert!(size_of::<AffinityKey>() == 24);

/// The client is an address.
pub const CLIENT_ADDRESS: u32 = 0;
/// The client is a network namespace.
pub const CLIENT_NETNS: u32 = 1;

/// Value of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// On the coarse monotonic clock, as all times that the programs note.
    pub last_used_ns: u64,
    pub backend: Backend,
    /// The service's timeout when the entry was made, for the agent's sweep.
    pub timeout_seconds: u32,
}
const _: () = assert!(size_of::<Affinity>() == 32);

const SECOND_NS: u64 = 1_000_000_000;

impl AffinityKey {
    #[inline(always)]
    pub const fn address(client: Addr, service_id: u32) -> Self {
        Self { client, service_id, kind: CLIENT_ADDRESS }
    }

    #[inline(always)]
    pub const fn netns(cookie: u64, service_id: u32) -> Self {
        let client = Addr::from_words([cookie as u32, (cookie >> 32) as u32, 0, 0]);
        Self { client, service_id, kind: CLIENT_NETNS }
    }
}

/// Tells whether an entry still counts for a service with this timeout.
#[inline(always)]
pub const fn is_fresh(affinity: &Affinity, timeout_seconds: u32, now_ns: u64) -> bool {
    now_ns.saturating_sub(affinity.last_used_ns) <= timeout_seconds as u64 * SECOND_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_counts_until_its_timeout_after_the_last_use() {
        let affinity = Affinity { last_used_ns: 5 * SECOND_NS, ..Affinity::default() };
        assert!(is_fresh(&affinity, 10, 15 * SECOND_NS));
        assert!(!is_fresh(&affinity, 10, 15 * SECOND_NS + 1));
        assert!(is_fresh(&affinity, 10, 0), "a clock that is behind");
        assert!(is_fresh(&affinity, u32::MAX, u64::from(u32::MAX) * SECOND_NS), "no overflow");
    }

    #[test]
    fn namespace_is_never_mistaken_for_an_address() {
        let cookie = 0x1234;
        let netns = AffinityKey::netns(cookie, 7);
        assert_ne!(netns, AffinityKey::address(netns.client, 7));
        assert_ne!(netns, AffinityKey::netns(cookie, 8));
    }
}
