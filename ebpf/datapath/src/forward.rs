//! Services at the packet: what each tc hook does.
//!
//! | hook | towards the backend | back to the client |
//! |---|---|---|
//! | ingress of an uplink | node ports, external addresses: to a backend here, or on to another node | replies of other nodes' backends, sent on at once |
//! | egress of an uplink | | replies of this node's backends |
//! | ingress from a pod | any service address | replies of this pod to flows whose source was replaced |
//! | egress to a pod | | replies of backends to this pod |
//!
//! A source is replaced where replies would not come back by themselves: towards a backend on another node for a
//! client outside, and towards the client itself where it is its own backend. A port alone is replaced where another
//! flow of the client's has it. ICMP errors travel with their flows.
//! What a program does not translate may still take a short way (`short_ways`), and is translated there if its egress
//! hook is passed by.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use hawser_ebpf_abi::{
    Flow, IPPROTO_UDP, Reason,
    flow::{
        DIRECTION_FORWARD, DIRECTION_REPLY, FLOW_DIRECT, FLOW_DSR, FLOW_FOREIGN, FLOW_RST_FORWARD, FLOW_SNAT,
    },
    service::{Client, FRONTEND_DSR},
};

use crate::{
    answer,
    count::{count, count_refused},
    flows::{self, Found},
    frontends,
    packet::{DROP, PASS, Packet, parse, scratch},
    rewrite::{rewrite, write_ip},
    route, select, short_ways,
    start::{
        NO_BACKEND, NO_FLOW, NOT_SERVED, REFUSED, hawser_choose_elsewhere, hawser_start,
        hawser_start_direct_flow, is_served,
    },
};

// Clients as numbers: a global function takes nothing else.
pub(crate) const WIRE: u32 = 0;
pub(crate) const INSIDE: u32 = 1;
pub(crate) const WIRE_AT_XDP: u32 = 2;

#[inline(always)]
pub(crate) fn client_of(number: u32) -> Client {
    if number == INSIDE { Client::Inside } else { Client::Wire }
}

#[inline(always)]
pub(crate) fn ingress(ctx: &TcContext, client: u32) -> i32 {
    if !parse(ctx) {
        return PASS;
    }
    let Some(packet) = scratch() else { return PASS };
    if client == INSIDE && !short_ways::has_own_source(ctx, packet) {
        count(Reason::PassForeignSource);
        return PASS;
    }
    let now_ns = flows::now_ns();
    packet.now_ns = now_ns;
    match flows::find(now_ns) {
        Some(found) if found.is_reply() || goes_on(packet, found, client_of(client)) => {
            with_flow(ctx, packet, found, client, now_ns)
        }
        Some(over) => {
            packet.replaces_port = u8::from(over.flow().is_some_and(|flow| flow.flags & FLOW_FOREIGN != 0));
            flows::end(over);
            without_flow(ctx, packet, client, now_ns)
        }
        None => without_flow(ctx, packet, client, now_ns),
    }
}

/// Egress: gives replies of local backends (at an uplink), or of any backend (at a pod), the service's address.
#[inline(always)]
pub(crate) fn reply(ctx: &TcContext) -> i32 {
    if route::takes_leave(ctx) || !parse(ctx) {
        return PASS;
    }
    let Some(packet) = scratch() else { return PASS };
    let now_ns = flows::now_ns();
    let Some(found) = flows::find(now_ns) else { return PASS };
    let Some(flow) = found.flow() else { return PASS };
    if !found.is_reply() || !flows::note(found, flow, packet, now_ns) {
        return PASS;
    }
    let rewritten = rewrite(ctx, packet, flow, DIRECTION_REPLY).and_then(|()| write_ip(ctx, packet));
    finish(rewritten.map(|()| {
        count(Reason::PacketReplied);
        PASS
    }))
}

/// Tells whether the flow of a packet from the client may go on with its backend.
#[inline(always)]
pub(crate) fn goes_on(packet: &Packet, found: Found, client: Client) -> bool {
    let Some(flow) = found.flow() else { return false };
    if packet.tuple.protocol != IPPROTO_UDP {
        // The client uses its port again, or knocks where another connection of its own answers. TCP drains: it stays
        // with a backend that is gone.
        // A first packet that is sent again to another node is chosen for anew: the first may have led in a circle.
        let is_over = flow.is_closed() || flow.flags & (FLOW_RST_FORWARD | FLOW_FOREIGN | FLOW_DSR) != 0;
        return !packet.starts_flow() || !is_over;
    }
    if packet.is_error() || flow.flags & FLOW_DIRECT != 0 {
        return true;
    }
    // UDP has no end: it moves to a living backend as soon as its own is gone.
    let Some(frontend) = frontends::of_packet() else { return false };
    if flow.frontend_generation != frontend.generation || flow.service_id != frontend.service_id {
        if !select::is_member(frontend, client, &flow.reply.source_endpoint()) {
            return false;
        }
        flow.service_id = frontend.service_id;
        flow.frontend_generation = frontend.generation;
    }
    true
}

#[inline(always)]
fn with_flow(ctx: &TcContext, packet: &Packet, found: Found, client: u32, now_ns: u64) -> i32 {
    let Some(flow) = found.flow() else { return PASS };
    if !flows::note(found, flow, packet, now_ns) {
        return hawser_go_on(ctx.skb.skb, client, NO_SLOT);
    }
    if flow.flags & (FLOW_SNAT | FLOW_DSR) != 0 {
        return route::hawser_send_on(ctx.skb.skb, found.slot, found.direction);
    }
    if found.is_reply() {
        return hawser_go_on(ctx.skb.skb, client, found.slot);
    }
    hawser_translate(ctx.skb.skb, client, found.slot)
}

#[inline(always)]
fn without_flow(ctx: &TcContext, packet: &Packet, client: u32, now_ns: u64) -> i32 {
    if packet.starts_flow() {
        let started = match hawser_start(ctx.skb.skb, client, now_ns) {
            NO_FLOW => hawser_start_direct_flow(now_ns),
            started => started,
        };
        match started {
            NO_FLOW => {}
            NOT_SERVED => return PASS,
            REFUSED => return DROP,
            NO_BACKEND => {
                count(Reason::PacketNoBackend);
                if let Some(frontend) = frontends::of_packet() {
                    count_refused(frontend.service_id);
                }
                return answer::hawser_refuse(ctx.skb.skb);
            }
            slot => {
                let slot = slot as u32;
                let Some(flow) = flows::get(slot) else { return PASS };
                if flow.flags & (FLOW_SNAT | FLOW_DSR) != 0 {
                    return route::hawser_send_on(ctx.skb.skb, slot, DIRECTION_FORWARD);
                }
                return hawser_translate(ctx.skb.skb, client, slot);
            }
        }
    }
    let verdict = hawser_go_on(ctx.skb.skb, client, NO_SLOT);
    if verdict != PASS || !(packet.is_stray() || packet.is_error()) {
        return verdict;
    }
    let Some(frontend) = frontends::of_packet() else { return verdict };
    if !is_served(frontend, client_of(client)) {
        return verdict;
    }
    if client == WIRE && frontend.flags & FRONTEND_DSR != 0 && hawser_choose_elsewhere() != 0 {
        return route::hawser_send_as_it_is(ctx.skb.skb);
    }
    if packet.is_error() {
        return verdict;
    }
    // Of a connection whose flow is gone. The host cannot tell the client: it may not have the address.
    answer::hawser_refuse(ctx.skb.skb)
}

const NO_SLOT: u32 = u32::MAX;

/// Lets a packet go on that is for no service. `slot` is that of the flow that it is a reply of, or [`NO_SLOT`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hawser_go_on(skb: *mut __sk_buff, client: u32, slot: u32) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(packet) = scratch() else { return PASS };
    let flow = flows::get(slot).map(|flow| &*flow);
    finish(match client_of(client) {
        Client::Wire => short_ways::from_wire(&ctx, packet, flow),
        Client::Inside => short_ways::from_pod(&ctx, packet, flow),
    })
}

/// Sends a packet from the client on to its flow's backend, with the client's own address and port.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hawser_translate(skb: *mut __sk_buff, client: u32, slot: u32) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(packet) = scratch() else { return PASS };
    let Some(flow) = flows::get(slot) else { return PASS };
    finish(translate(&ctx, packet, flow, client_of(client)))
}

#[inline(always)]
fn translate(ctx: &TcContext, packet: &mut Packet, flow: &Flow, client: Client) -> Result<i32, Reason> {
    rewrite(ctx, packet, flow, DIRECTION_FORWARD)?;
    let verdict = match client {
        Client::Wire => short_ways::translated_from_wire(ctx, packet, flow),
        Client::Inside => short_ways::translated_from_pod(ctx, packet, flow),
    }?;
    if !packet.is_error() {
        count(Reason::PacketForwarded);
    }
    Ok(verdict)
}

/// Returns the verdict, having counted why a packet is dropped.
#[inline(always)]
pub(crate) fn finish(verdict: Result<i32, Reason>) -> i32 {
    match verdict {
        Ok(verdict) => verdict,
        Err(reason) => {
            count(reason);
            DROP
        }
    }
}
