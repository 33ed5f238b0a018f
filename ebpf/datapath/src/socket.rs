//! Service addresses at the socket.
//!
//! A process that connects, or sends, to a service is given a backend before the kernel looks up a route. Contexts of
//! the v6 hooks may carry IPv4-mapped addresses; both hooks share this code, because all addresses are 128 bits here.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::{SockAddrContext, SockContext},
};
use hawser_ebpf_abi::{
    Addr, ConnectedPeer, Endpoint, Frontend, FrontendKey, IPPROTO_TCP, IPPROTO_UDP, Reason,
    service::{FRONTEND_DEPARTED, FRONTEND_NODE_IN_RANGES, FRONTEND_NODE_ONLY, FRONTEND_SOURCE_RANGES},
};

use crate::{
    count::{count, count_chosen, count_refused},
    frontends,
    maps::{OPTED_OUT, SETTINGS},
    peers, select, udp_peers,
};

/// Verdicts of the cgroup hooks.
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

const EPERM: i32 = 1;
const ECONNREFUSED: i32 = 111;
const ENOBUFS: i32 = 105;
const IPPROTO_MPTCP: u32 = 262;

/// Set by the loader where the kernel has `bpf_set_retval` in these hooks. Without it a refusal is EPERM.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u32 = 0;

/// Which hook is running, and so which address fields of the context hold the address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

#[inline(always)]
pub(crate) fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let Some(protocol) = protocol(ctx) else { return ALLOW };
    let service = user_endpoint(ctx, family);
    let mut frontend = Frontend::default();
    match find_frontend(ctx, &service, protocol, &mut frontend) {
        Ok(true) => {}
        Ok(false) => {
            if protocol == IPPROTO_UDP {
                peers::forget(ctx);
            }
            return ALLOW;
        }
        Err(reason) => return refuse(reason),
    }
    let Some(backend) = select::for_socket(ctx, &frontend) else {
        count_refused(frontend.service_id);
        return refuse(Reason::SocketRefusedNoBackend);
    };
    count_chosen(frontend.service_id);
    peers::remember(ctx, ConnectedPeer { service, backend });
    set_user_endpoint(ctx, family, &backend);
    count(Reason::SocketConnected);
    ALLOW
}

#[inline(always)]
pub(crate) fn sendmsg(ctx: &SockAddrContext, family: Family) -> i32 {
    let service = user_endpoint(ctx, family);
    let mut frontend = Frontend::default();
    match find_frontend(ctx, &service, IPPROTO_UDP, &mut frontend) {
        Ok(true) => {}
        Ok(false) => return ALLOW,
        Err(reason) => return refuse(reason),
    }
    let peer = match udp_peers::find_or_choose(ctx, &service, &frontend) {
        Ok(backend) => backend,
        Err(reason) => return refuse(reason),
    };
    set_user_endpoint(ctx, family, &peer);
    count(Reason::SocketSent);
    ALLOW
}

/// Shows the service's address as the source of a datagram that one of its backends sent.
#[inline(always)]
pub(crate) fn recvmsg(ctx: &SockAddrContext, family: Family) -> i32 {
    let source = user_endpoint(ctx, family);
    if let Some(service) = peers::service_of(ctx, &source) {
        set_user_endpoint(ctx, family, &service);
    } else if let Some(service) = udp_peers::service_of(ctx, &source) {
        set_user_endpoint(ctx, family, &service);
    }
    ALLOW
}

#[inline(always)]
pub(crate) fn getpeername(ctx: &SockAddrContext, family: Family) -> i32 {
    let peer = user_endpoint(ctx, family);
    if let Some(service) = peers::service_of(ctx, &peer) {
        set_user_endpoint(ctx, family, &service);
    }
    ALLOW
}

#[inline(always)]
pub(crate) fn release(ctx: &SockContext) -> i32 {
    peers::release(ctx);
    // SAFETY: the verifier checks accesses to the context.
    let protocol = unsafe { (&raw const (*ctx.sock).protocol).read_volatile() };
    if protocol == u32::from(IPPROTO_UDP) {
        // SAFETY: the helper takes the context of this program type.
        udp_peers::empty_overflow(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) });
    }
    ALLOW
}

/// Flags of frontends that are not served to every socket.
const RESTRICTED: u32 = FRONTEND_DEPARTED | FRONTEND_NODE_ONLY | FRONTEND_SOURCE_RANGES;

/// Finds the frontend that this socket is served by; false when there is none, an error when it is refused.
///
/// What is left alone here reaches the packet path, if the address is served there.
#[inline(always)]
fn find_frontend(
    ctx: &SockAddrContext,
    service: &Endpoint,
    protocol: u8,
    frontend: &mut Frontend,
) -> Result<bool, Reason> {
    let key = FrontendKey { addr: service.addr, port_be: service.port_be, protocol, pad: 0 };
    if !frontends::find(&key, frontend) {
        return Ok(false);
    }
    let Some(settings) = SETTINGS.get(0) else { return Ok(false) };
    if settings.opted_out == 0 && frontend.flags & RESTRICTED == 0 {
        return Ok(true);
    }
    // SAFETY: the helper takes the context of this program type.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if settings.opted_out != 0 && OPTED_OUT.get_ptr(&netns).is_some() {
        return Ok(false);
    }
    if frontend.flags & FRONTEND_DEPARTED != 0 {
        return Ok(false);
    }
    let is_node = netns == settings.node_netns_cookie;
    if frontend.flags & FRONTEND_NODE_ONLY != 0 && !is_node {
        return Ok(false);
    }
    if frontend.flags & FRONTEND_SOURCE_RANGES != 0 {
        if !is_node {
            // A pod's packets show its address, which is what the ranges are about.
            return Ok(false);
        }
        if frontend.flags & FRONTEND_NODE_IN_RANGES == 0 {
            return Err(Reason::SocketRefusedSourceRange);
        }
    }
    Ok(true)
}

/// Refuses the system call, and counts why.
#[inline(always)]
fn refuse(reason: Reason) -> i32 {
    count(reason);
    let errno = match reason {
        Reason::SocketRefusedNoBackend => ECONNREFUSED,
        Reason::SocketRefusedSourceRange => EPERM,
        _ => ENOBUFS,
    };
    // SAFETY: a volatile read, because the loader changes the value after compilation; the helper sets the error that
    // the system call returns.
    unsafe {
        if (&raw const HAS_SET_RETVAL).read_volatile() != 0 {
            bpf_set_retval(-errno);
        }
    }
    REFUSE
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    // SAFETY: the verifier checks accesses to the context.
    match unsafe { (&raw const (*ctx.sock_addr).protocol).read_volatile() } {
        6 | IPPROTO_MPTCP => Some(IPPROTO_TCP),
        17 => Some(IPPROTO_UDP),
        _ => None,
    }
}

/// Reads the address that the system call names. All accesses are volatile and of full fields: the verifier allows
/// nothing else at the context, and a compiler that merged them would be refused.
#[inline(always)]
fn user_endpoint(ctx: &SockAddrContext, family: Family) -> Endpoint {
    let context = ctx.sock_addr;
    // SAFETY: the verifier checks accesses to the context.
    unsafe {
        let port_be = (&raw const (*context).user_port).read_volatile() as u16;
        Endpoint::new(user_addr(context, family), port_be)
    }
}

/// # Safety
/// `context` is the context of a running program.
#[inline(always)]
unsafe fn user_addr(context: *mut bpf_sock_addr, family: Family) -> Addr {
    // SAFETY: the caller passes the context; the verifier checks accesses.
    unsafe {
        if family == Family::V4 {
            return Addr::from_v4_word((&raw const (*context).user_ip4).read_volatile());
        }
        Addr::from_words([
            (&raw const (*context).user_ip6[0]).read_volatile(),
            (&raw const (*context).user_ip6[1]).read_volatile(),
            (&raw const (*context).user_ip6[2]).read_volatile(),
            (&raw const (*context).user_ip6[3]).read_volatile(),
        ])
    }
}

#[inline(always)]
fn set_user_endpoint(ctx: &SockAddrContext, family: Family, endpoint: &Endpoint) {
    let context = ctx.sock_addr;
    // SAFETY: the verifier checks accesses to the context.
    unsafe {
        if family == Family::V4 {
            (&raw mut (*context).user_ip4).write_volatile(endpoint.addr.v4_word());
        } else {
            let words = endpoint.addr.words();
            (&raw mut (*context).user_ip6[0]).write_volatile(words[0]);
            (&raw mut (*context).user_ip6[1]).write_volatile(words[1]);
            (&raw mut (*context).user_ip6[2]).write_volatile(words[2]);
            (&raw mut (*context).user_ip6[3]).write_volatile(words[3]);
        }
        (&raw mut (*context).user_port).write_volatile(u32::from(endpoint.port_be));
    }
}
