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
//! client outside, and towards the client itself where it is its own backend. ICMP errors travel with their flows.
//! What a program does not translate may still take a short way (`short_ways`), and is translated there if its egress
//! hook is passed by.

use aya_ebpf::programs::TcContext;
use hawser_ebpf_abi::{
    Flow, FlowKey, Frontend, FrontendKey, IPPROTO_UDP, Reason, SNAT_PORT_FIRST,
    flow::{DIRECTION_FORWARD, DIRECTION_REPLY, FLOW_CLOSING, FLOW_SNAT},
    service::{
        BACKEND_LOCAL, Client, FRONTEND_NODE_ONLY, FRONTEND_SOURCE_RANGES, FRONTEND_WIRE, FRONTEND_WIRE_LOCAL,
    },
};

use crate::{
    answer,
    count::count,
    flows,
    maps::FRONTENDS,
    packet::{DROP, PASS, Packet, parse},
    rewrite::rewrite,
    route::send_on,
    select, short_ways, sources,
};

/// Backends tried when the client's own tuple towards one is taken by another flow. Then the source is replaced.
const BACKEND_ATTEMPTS: u32 = 4;

#[inline(always)]
pub(crate) fn from_wire(ctx: &TcContext) -> i32 {
    match parse(ctx) {
        Ok(Some(packet)) => ingress(ctx, packet, Client::Wire),
        other => pass_unparsed(other),
    }
}

#[inline(always)]
pub(crate) fn from_pod(ctx: &TcContext) -> i32 {
    match parse(ctx) {
        Ok(Some(packet)) => ingress(ctx, packet, Client::Inside),
        other => pass_unparsed(other),
    }
}

#[inline(always)]
fn ingress(ctx: &TcContext, packet: &mut Packet, client: Client) -> i32 {
    // Only packets to ports of this range can be such replies; most others are spared the lookup.
    if u16::from_be(packet.tuple.destination_port_be) >= SNAT_PORT_FIRST
        && let Some(verdict) = reply_with_source(ctx, packet)
    {
        return finish(verdict);
    }
    let verdict = match forward(ctx, packet, client) {
        Some(verdict) => verdict,
        None if client == Client::Wire => short_ways::from_wire(ctx, packet),
        None => short_ways::from_pod(ctx, packet),
    };
    finish(verdict)
}

/// Egress: gives replies of local backends (at an uplink), or of any backend (at a pod), the service's address.
#[inline(always)]
pub(crate) fn reply(ctx: &TcContext) -> i32 {
    let packet = match parse(ctx) {
        Ok(Some(packet)) => packet,
        other => return pass_unparsed(other),
    };
    let now_ns = flows::now_ns();
    let Some((flow, direction)) = flows::find(&packet.tuple, now_ns) else { return PASS };
    if direction != DIRECTION_REPLY || flow.flags & FLOW_SNAT != 0 {
        return PASS;
    }
    flows::touch(flow, packet, direction, now_ns);
    finish(rewrite(ctx, packet, flow, direction).map(|()| {
        count(Reason::PacketReplied);
        PASS
    }))
}

/// Sends a reply on to its client, if it is for a source that this node replaced.
#[inline(always)]
fn reply_with_source(ctx: &TcContext, packet: &Packet) -> Option<Result<i32, Reason>> {
    let now_ns = flows::now_ns();
    let (flow, direction) = flows::find(&packet.tuple, now_ns)?;
    if direction != DIRECTION_REPLY || flow.flags & FLOW_SNAT == 0 {
        return None;
    }
    flows::touch(flow, packet, direction, now_ns);
    Some(send_on(ctx, packet, flow, direction).inspect(|_| count(Reason::PacketReplied)))
}

/// Translates a packet for a service; `None` for all others.
#[inline(always)]
fn forward(ctx: &TcContext, packet: &mut Packet, client: Client) -> Option<Result<i32, Reason>> {
    if packet.is_error() {
        let now_ns = flows::now_ns();
        let (flow, direction) = flows::find(&packet.tuple, now_ns)?;
        return (direction == DIRECTION_FORWARD).then(|| translate(ctx, packet, flow, client));
    }
    let key = FrontendKey {
        addr: packet.tuple.destination,
        port_be: packet.tuple.destination_port_be,
        protocol: packet.tuple.protocol,
        pad: 0,
    };
    // SAFETY: an entry that is replaced meanwhile stays readable until this program has ended (RCU).
    let frontend = unsafe { FRONTENDS.get(&key)? };
    let served = match client {
        Client::Wire => frontend.flags & FRONTEND_WIRE != 0,
        Client::Inside => frontend.flags & FRONTEND_NODE_ONLY == 0,
    };
    if !served {
        return Some(Ok(PASS));
    }
    Some(forward_to(ctx, packet, frontend, client))
}

#[inline(always)]
fn forward_to(
    ctx: &TcContext,
    packet: &mut Packet,
    frontend: &Frontend,
    client: Client,
) -> Result<i32, Reason> {
    let now_ns = flows::now_ns();
    let flow = match known_flow(packet, frontend, client, now_ns) {
        Some(flow) => flow,
        // The host answers what is not the start of a flow: a reset.
        None if !packet.starts_flow() => return Ok(PASS),
        None => match start_flow(packet, frontend, client, now_ns)? {
            Some(flow) => flow,
            None => {
                count(Reason::PacketNoBackend);
                return answer::refuse(ctx, packet);
            }
        },
    };
    translate(ctx, packet, flow, client).inspect(|_| count(Reason::PacketForwarded))
}

/// Sends a packet from the client on to its flow's backend.
#[inline(always)]
fn translate(ctx: &TcContext, packet: &Packet, flow: &Flow, client: Client) -> Result<i32, Reason> {
    if flow.flags & FLOW_SNAT != 0 {
        return send_on(ctx, packet, flow, DIRECTION_FORWARD);
    }
    rewrite(ctx, packet, flow, DIRECTION_FORWARD)?;
    match client {
        Client::Wire => short_ways::translated_from_wire(ctx, packet, flow),
        Client::Inside => short_ways::translated_from_pod(ctx, packet, flow),
    }
}

/// Returns the packet's flow, if it may go on.
#[inline(always)]
fn known_flow(
    packet: &Packet,
    frontend: &Frontend,
    client: Client,
    now_ns: u64,
) -> Option<&'static mut Flow> {
    let (flow, direction) = flows::find(&packet.tuple, now_ns)?;
    if direction != DIRECTION_FORWARD {
        return None;
    }
    if packet.tuple.protocol == IPPROTO_UDP {
        // UDP has no end: it moves to a living backend as soon as its own is gone. TCP drains.
        if flow.frontend_generation != frontend.generation {
            if !select::is_member(frontend, client, &flow.reply.source_endpoint()) {
                flows::expire(flow);
                return None;
            }
            flow.frontend_generation = frontend.generation;
        }
    } else if packet.starts_flow() && flow.flags & FLOW_CLOSING != 0 {
        // The client uses its port again.
        flows::expire(flow);
        return None;
    }
    flows::touch(flow, packet, direction, now_ns);
    Some(flow)
}

/// Makes a flow to a backend; `None` when there is no backend.
#[inline(always)]
fn start_flow(
    packet: &mut Packet,
    frontend: &Frontend,
    client: Client,
    now_ns: u64,
) -> Result<Option<&'static mut Flow>, Reason> {
    if frontend.flags & FRONTEND_SOURCE_RANGES != 0 && !select::is_in_ranges(packet, frontend) {
        return Err(Reason::DropSourceRange);
    }
    if !select::for_packet(packet, frontend, client, 0) {
        if client == Client::Wire && frontend.flags & FRONTEND_WIRE_LOCAL != 0 {
            return Err(Reason::DropNoLocalBackend);
        }
        return Ok(None);
    }
    let claim = flows::claim(packet.tuple.hash(), now_ns)?;
    let mut flags = 0;
    let mut entered = false;
    for attempt in 1..=BACKEND_ATTEMPTS {
        if !keeps_source(packet, client) {
            break;
        }
        packet.reply =
            FlowKey::new(packet.backend.endpoint(), packet.tuple.source_endpoint(), packet.tuple.protocol);
        entered = flows::insert_reply(&packet.reply, &claim, now_ns);
        if entered {
            break;
        }
        // Without another one the same is tried again.
        let _ = select::for_packet(packet, frontend, client, attempt);
    }
    if !entered {
        flags = FLOW_SNAT;
        if let Err(reason) = sources::allocate(packet, &claim, now_ns) {
            flows::unclaim(&claim);
            return Err(reason);
        }
    }
    let flow = flows::get(claim.slot).ok_or(Reason::DropFlowTableFull)?;
    flow.flags = flags;
    flow.forward = packet.tuple;
    flow.reply = packet.reply;
    flow.service_id = frontend.service_id;
    flow.frontend_generation = frontend.generation;
    if !flows::insert_forward(&packet.tuple, &claim) {
        flows::expire(flow);
        return Err(Reason::DropFlowTableFull);
    }
    count(Reason::PacketNewFlow);
    Ok(Some(flow))
}

/// Tells whether replies of the backend come back by themselves: they pass this node, or are for one of its pods, and
/// they leave the backend at all.
#[inline(always)]
fn keeps_source(packet: &Packet, client: Client) -> bool {
    match client {
        Client::Wire => packet.backend.flags & BACKEND_LOCAL != 0,
        Client::Inside => packet.backend.addr != packet.tuple.source,
    }
}

#[inline(always)]
fn pass_unparsed(result: Result<Option<&'static mut Packet>, Reason>) -> i32 {
    if let Err(reason) = result {
        count(reason);
    }
    PASS
}

#[inline(always)]
fn finish(verdict: Result<i32, Reason>) -> i32 {
    match verdict {
        Ok(verdict) => verdict,
        Err(reason) => {
            count(reason);
            DROP
        }
    }
}
