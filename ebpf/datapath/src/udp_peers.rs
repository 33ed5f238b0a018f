//! The backends that an unconnected UDP socket keeps, one for each service it sends to.
//!
//! A socket keeps its backend as long as that belongs to the service; the frontend's generation says when to check.
//! Four services fit into the socket's own storage. A socket with more uses `UDP_OVERFLOW`, whose entries end when
//! the socket is released; nothing is ever evicted.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_get_socket_cookie, programs::SockAddrContext};
use hawser_ebpf_abi::{
    Endpoint, Frontend, Reason, UdpPeer, UdpPeers,
    service::Client,
    socket::{OVERFLOW_BY_BACKEND, OVERFLOW_BY_SERVICE, OverflowKey, UDP_OVERFLOW_PER_SOCKET, UDP_PEERS},
};

use crate::{
    count::{count, count_chosen, count_refused},
    maps::{UDP_OVERFLOW, UDP_SOCKETS},
    select,
};

/// Returns the backend that the context's socket uses for `service`, choosing one when there is none that lives.
#[inline(always)]
pub(crate) fn find_or_choose(
    ctx: &SockAddrContext,
    service: &Endpoint,
    frontend: &Frontend,
) -> Result<Endpoint, Reason> {
    // SAFETY: the storage is valid as long as the context's socket.
    let peers = unsafe { UDP_SOCKETS.get_or_insert_ptr_mut(ctx, None).as_mut() };
    let Some(peers) = peers else { return Err(Reason::SocketPeersFull) };

    let mut free = None;
    for index in 0..UDP_PEERS {
        let peer = &mut peers.peers[index];
        if peer.generation == 0 {
            free = Some(index);
            break;
        }
        if peer.service == *service {
            return keep_or_replace(ctx, peer, frontend);
        }
    }
    if let Some(index) = free {
        let peer = new_peer(ctx, service, frontend)?;
        // The index is below the array's length; the mask shows it to the verifier.
        peers.peers[index & (UDP_PEERS - 1)] = peer;
        return Ok(peer.backend);
    }
    overflow(ctx, peers, service, frontend)
}

/// Returns the service that the socket reached through `backend`.
#[inline(always)]
pub(crate) fn service_of(ctx: &SockAddrContext, backend: &Endpoint) -> Option<Endpoint> {
    // SAFETY: the storage is valid as long as the context's socket.
    let peers = unsafe { UDP_SOCKETS.get_ptr_mut(ctx).as_ref()? };
    for index in 0..UDP_PEERS {
        let peer = &peers.peers[index];
        if peer.generation != 0 && peer.backend == *backend {
            return Some(peer.service);
        }
    }
    if peers.overflow == 0 {
        return None;
    }
    // SAFETY: the helper takes the context of this program type.
    let socket_cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let key = OverflowKey { socket_cookie, endpoint: *backend, kind: OVERFLOW_BY_BACKEND };
    // SAFETY: the memory stays the map's. An entry that is replaced may be another one while it is read (since 6.1).
    unsafe { UDP_OVERFLOW.get_ptr(&key)?.as_ref() }.map(|peer| peer.service)
}

/// Removes a socket's overflow entries. The loop ends at the first number that was never given.
#[inline(always)]
pub(crate) fn empty_overflow(socket_cookie: u64) {
    for number in 0..UDP_OVERFLOW_PER_SOCKET {
        let key = OverflowKey::by_number(socket_cookie, number);
        // SAFETY: the memory stays the map's. An entry that is removed may be another one while it is read (since 6.1).
        let Some(peer) = (unsafe { UDP_OVERFLOW.get(&key) }) else { return };
        let by_service = OverflowKey { socket_cookie, endpoint: peer.service, kind: OVERFLOW_BY_SERVICE };
        // SAFETY: as above. The backend may have been replaced since the number was given.
        if let Some(current) = unsafe { UDP_OVERFLOW.get(&by_service) } {
            let by_backend =
                OverflowKey { socket_cookie, endpoint: current.backend, kind: OVERFLOW_BY_BACKEND };
            let _ = UDP_OVERFLOW.remove(&by_backend);
            let _ = UDP_OVERFLOW.remove(&by_service);
        }
        let _ = UDP_OVERFLOW.remove(&key);
    }
}

#[inline(always)]
fn keep_or_replace(
    ctx: &SockAddrContext,
    peer: &mut UdpPeer,
    frontend: &Frontend,
) -> Result<Endpoint, Reason> {
    if peer.generation == frontend.generation && peer.service_id == frontend.service_id {
        return Ok(peer.backend);
    }
    if select::is_member(frontend, Client::Inside, &peer.backend) {
        peer.service_id = frontend.service_id;
        peer.generation = frontend.generation;
        return Ok(peer.backend);
    }
    *peer = new_peer(ctx, &peer.service, frontend)?;
    count(Reason::SocketBackendReplaced);
    Ok(peer.backend)
}

#[inline(always)]
fn new_peer(ctx: &SockAddrContext, service: &Endpoint, frontend: &Frontend) -> Result<UdpPeer, Reason> {
    let Some(backend) = select::for_socket(ctx, frontend) else {
        count_refused(frontend.service_id);
        return Err(Reason::SocketRefusedNoBackend);
    };
    count_chosen(frontend.service_id);
    Ok(UdpPeer {
        service: *service,
        backend,
        service_id: frontend.service_id,
        generation: frontend.generation,
    })
}

#[inline(always)]
fn overflow(
    ctx: &SockAddrContext,
    peers: &mut UdpPeers,
    service: &Endpoint,
    frontend: &Frontend,
) -> Result<Endpoint, Reason> {
    // SAFETY: the helper takes the context of this program type.
    let socket_cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let mut key = OverflowKey { socket_cookie, endpoint: *service, kind: OVERFLOW_BY_SERVICE };
    // SAFETY: the memory stays the map's. An entry that is removed may be another one while it is read (since 6.1).
    if let Some(known) = unsafe { UDP_OVERFLOW.get(&key) } {
        let mut peer = *known;
        let backend = keep_or_replace(ctx, &mut peer, frontend)?;
        if peer != *known {
            let old = known.backend;
            UDP_OVERFLOW.insert(&key, &peer, 0).map_err(|_| Reason::SocketPeersFull)?;
            key.kind = OVERFLOW_BY_BACKEND;
            key.endpoint = old;
            let _ = UDP_OVERFLOW.remove(&key);
            key.endpoint = backend;
            UDP_OVERFLOW.insert(&key, &peer, 0).map_err(|_| Reason::SocketPeersFull)?;
        }
        return Ok(backend);
    }
    if peers.overflow >= UDP_OVERFLOW_PER_SOCKET {
        return Err(Reason::SocketPeersFull);
    }
    let peer = new_peer(ctx, service, frontend)?;
    // The number comes first: whatever fails after it, the release finds what was written.
    let numbered = OverflowKey::by_number(socket_cookie, peers.overflow);
    UDP_OVERFLOW.insert(&numbered, &peer, 0).map_err(|_| Reason::SocketPeersFull)?;
    peers.overflow += 1;
    UDP_OVERFLOW.insert(&key, &peer, 0).map_err(|_| Reason::SocketPeersFull)?;
    key.kind = OVERFLOW_BY_BACKEND;
    key.endpoint = peer.backend;
    UDP_OVERFLOW.insert(&key, &peer, 0).map_err(|_| Reason::SocketPeersFull)?;
    Ok(peer.backend)
}
