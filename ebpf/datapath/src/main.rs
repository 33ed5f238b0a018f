//! The datapath: what the kernel runs for a node's services.
//!
//! Socket programs (`connect`, `sendmsg`, `recvmsg`, `getpeername`, attached to the node's cgroup2 directory) turn
//! service addresses into backends where a connection is made, so that no packet needs work later. Packet programs
//! (tc, on uplinks and on the host's side of pod interfaces) serve what no socket program of this node saw.
//!
//! An entry point parses, looks up and acts; the decisions are in `hawser-ebpf-abi`, which the agent and the tests
//! compile too. Oldest kernel: 6.1.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "atomic exchange: core has no stable one for the BPF target")]

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, SockContext, TcContext, XdpContext},
};

mod answer;
mod atomic;
mod count;
mod flows;
mod forward;
mod frontends;
mod maps;
mod packet;
mod peers;
mod rewrite;
mod route;
mod select;
mod short_ways;
mod socket;
mod sources;
mod start;
mod udp_peers;
mod ways;
mod xdp_wire;

use socket::Family;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connect(&ctx, Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket::connect(&ctx, Family::V6)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::sendmsg(&ctx, Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::sendmsg(&ctx, Family::V6)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::recvmsg(&ctx, Family::V4)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::recvmsg(&ctx, Family::V6)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::getpeername(&ctx, Family::V4)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::getpeername(&ctx, Family::V6)
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    socket::release(&ctx)
}

/// Ingress of an uplink: packets from outside, and replies of backends on other nodes.
#[classifier]
#[inline(always)]
pub fn from_wire(ctx: TcContext) -> i32 {
    forward::ingress(&ctx, forward::WIRE)
}

/// The same at the driver of an uplink, before the host makes anything of a packet.
#[xdp]
#[inline(always)]
pub fn from_wire_xdp(ctx: XdpContext) -> u32 {
    xdp_wire::ingress(&ctx)
}

/// Egress of an uplink: replies of this node's backends to clients outside.
#[classifier]
pub fn to_wire(ctx: TcContext) -> i32 {
    forward::reply(&ctx)
}

/// Ingress of the host's side of a pod interface: packets that the pod sends.
#[classifier]
#[inline(always)]
pub fn from_pod(ctx: TcContext) -> i32 {
    forward::ingress(&ctx, forward::INSIDE)
}

/// Egress of the host's side of a pod interface: packets that the pod gets.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    forward::reply(&ctx)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here can panic; the verifier refuses a program that reaches this loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
