//! Which backend a client gets, at the socket and at the packet.
//!
//! | client | without affinity | with affinity, first time |
//! |---|---|---|
//! | a socket, a packet of a pod of this node | at random | at random |
//! | a packet from outside | by the hash of its address, port and protocol, through the Maglev table | by the hash of its address |
//!
//! With affinity a client that is remembered gets the backend that it had, while that belongs to the service. A full
//! table of clients is counted, and costs the memory alone: the client is served, one from outside still by its hash.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::lpm_trie::Key,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_prandom_u32},
    programs::SockAddrContext,
};
use hawser_ebpf_abi::{
    Affinity, AffinityKey, Backend, Endpoint, Frontend, MemberKey, RangeSubject, Reason,
    affinity::is_fresh,
    maglev,
    ranges::RANGE_LOOKUP_BITS,
    service::{Client, FRONTEND_AFFINITY, choose_slot},
};

use crate::{
    count::count,
    flows::now_ns,
    maps::{AFFINITY, BACKENDS, MAGLEV, MEMBERS, SOURCE_RANGES},
    packet::Packet,
};

/// Returns the backend for the context's socket.
#[inline(always)]
pub(crate) fn for_socket(ctx: &SockAddrContext, frontend: &Frontend) -> Option<Endpoint> {
    if frontend.flags & FRONTEND_AFFINITY == 0 {
        return random_backend(frontend).map(Backend::endpoint);
    }
    // SAFETY: the helper takes the context of this program type.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let key = AffinityKey::netns(cookie, frontend.service_id);
    keep_or_choose(&key, frontend, Client::Inside, 0).map(|backend| backend.endpoint())
}

/// Chooses `packet.backend` for the sender of the first packet of a flow; false where there is none. `attempt` counts
/// those that could not be used.
#[inline(always)]
pub(crate) fn for_packet(packet: &mut Packet, frontend: &Frontend, client: Client, attempt: u32) -> bool {
    let has_affinity = frontend.flags & FRONTEND_AFFINITY != 0;
    let mut hash = 0;
    if client == Client::Wire {
        hash = if has_affinity {
            maglev::client_address_hash(&packet.tuple.source)
        } else {
            maglev::client_hash(&packet.tuple.source_endpoint(), packet.tuple.protocol)
        };
    }
    if attempt > 0 {
        hash = maglev::rehash(hash.wrapping_add(attempt));
    } else if has_affinity {
        return keep_for_packet(packet, frontend, u32::from(client == Client::Wire), hash) != 0;
    }
    let Some(backend) = choose(frontend, client, hash) else { return false };
    packet.backend = *backend;
    true
}

/// [`for_packet`] for a service with affinity; returns 1 or 0. A subprogram, because its keys and values beside all
/// others of a packet program need more stack than there is.
#[inline(never)]
fn keep_for_packet(packet: &mut Packet, frontend: &Frontend, is_wire: u32, hash: u32) -> u32 {
    let client = if is_wire != 0 { Client::Wire } else { Client::Inside };
    let key = AffinityKey::address(packet.tuple.source, frontend.service_id);
    let Some(backend) = keep_or_choose(&key, frontend, client, hash) else { return 0 };
    packet.backend = backend;
    1
}

/// Tells whether `backend` is in the set of the service port's backends that `client` may use.
#[inline(always)]
pub(crate) fn is_member(frontend: &Frontend, client: Client, backend: &Endpoint) -> bool {
    let key =
        MemberKey { service_id: frontend.service_id, addr: backend.addr, port_be: backend.port_be, pad: 0 };
    // SAFETY: the memory stays the map's. An entry that is replaced may be another one while it is read (since 6.1).
    unsafe { MEMBERS.get(&key) }.is_some_and(|sets| *sets & frontend.member_of(client) != 0)
}

/// Tells whether the packet's source is in the frontend's source ranges.
#[inline(always)]
pub(crate) fn is_in_ranges(packet: &Packet, frontend: &Frontend) -> bool {
    let subject = RangeSubject { list: frontend.source_ranges, addr: packet.tuple.source };
    SOURCE_RANGES.get(&Key::new(RANGE_LOOKUP_BITS, subject)).is_some()
}

/// Returns the backend that the client had, or one that it is given and keeps.
#[inline(always)]
fn keep_or_choose(key: &AffinityKey, frontend: &Frontend, client: Client, hash: u32) -> Option<Backend> {
    let now_ns = now_ns();
    // SAFETY: the memory stays the map's. An entry that is replaced may be another one while it is read (since 6.1).
    let known = unsafe { AFFINITY.get_ptr_mut(key).and_then(|entry| entry.as_mut()) };
    let is_known = known.is_some();
    if let Some(entry) = known {
        let backend = entry.backend;
        if is_fresh(entry, frontend.affinity_seconds, now_ns)
            && is_member(frontend, client, &backend.endpoint())
        {
            entry.last_used_ns = now_ns;
            return Some(backend);
        }
    }
    let backend = *choose(frontend, client, hash)?;
    let entry = Affinity { last_used_ns: now_ns, backend, timeout_seconds: frontend.affinity_seconds };
    let flags = if is_known { BPF_ANY } else { BPF_NOEXIST };
    if AFFINITY.insert(key, &entry, u64::from(flags)).is_ok() {
        return Some(backend);
    }
    // Another CPU may have been first, for another connection of the client: both then go to the same backend.
    // SAFETY: as above.
    if let Some(entry) = unsafe { AFFINITY.get(key) } {
        return Some(entry.backend);
    }
    count(Reason::AffinityFull);
    Some(backend)
}

/// Chooses among the client's backends. For a client outside `hash` decides.
#[inline(always)]
fn choose(frontend: &Frontend, client: Client, hash: u32) -> Option<&'static Backend> {
    if client == Client::Inside {
        return random_backend(frontend);
    }
    if frontend.maglev_len > 0 {
        let (block, entry) = maglev::entry_of(frontend, hash);
        if let Some(block) = MAGLEV.get(block) {
            // The entry is below the array's length; the mask shows it to the verifier.
            let place = block.places[(entry & (maglev::MAGLEV_BLOCK - 1)) as usize];
            return BACKENDS.get(frontend.wire_base.wrapping_add(u32::from(place)));
        }
    }
    BACKENDS.get(choose_slot(frontend, client, hash)?)
}

#[inline(always)]
fn random_backend(frontend: &Frontend) -> Option<&'static Backend> {
    // SAFETY: the helper has no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    BACKENDS.get(choose_slot(frontend, Client::Inside, random)?)
}
