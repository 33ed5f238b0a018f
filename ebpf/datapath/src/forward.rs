//! Services at the packet: what each tc hook does.
//!
//! | hook | towards the backend | back to the client |
//! |---|---|---|
//! | ingress of an uplink | node ports, external addresses: to a backend here, or on to another node | replies of other nodes' backends, sent on at once |
//! | egress of an uplink | | replies of this node's backends |
//! | ingress from a pod | any service address | |
//! | egress to a pod | | replies of backends to this pod |
//!
//! Only a backend on another node needs the source replaced: its replies have to come back here.

use aya_ebpf::{helpers::generated::bpf_get_prandom_u32, programs::TcContext};
use hawser_ebpf_abi::{
    Addr, Backend, Endpoint, Flow, FlowKey, Frontend, FrontendKey, IPPROTO_UDP, Reason, SNAT_PORT_COUNT,
    SNAT_PORT_FIRST,
    flow::{DIRECTION_FORWARD, DIRECTION_REPLY, FLOW_CLOSING, FLOW_SNAT},
    service::{
        BACKEND_LOCAL, Client, FRONTEND_NODE_ONLY, FRONTEND_SOURCE_RANGES, FRONTEND_WIRE, FRONTEND_WIRE_LOCAL,
    },
};

use crate::{
    count::count,
    flows::{self, Claim},
    maps::{FRONTENDS, SETTINGS},
    packet::{DROP, PASS, Packet, parse, rewrite, send_on},
    select,
};

/// Random source ports tried before a flow is refused. With half of a backend's ports taken, 1 in 65,536 fails.
const PORT_ATTEMPTS: u32 = 16;
/// Backends tried when the client's own tuple towards one is taken by another flow.
const BACKEND_ATTEMPTS: u32 = 4;

#[inline(always)]
pub(crate) fn from_wire(ctx: &TcContext) -> i32 {
    let packet = match parse(ctx) {
        Ok(Some(packet)) => packet,
        other => return pass_unparsed(other),
    };
    // Only packets to ports of this range can be such replies; most others are spared the lookup.
    if u16::from_be(packet.tuple.destination_port_be) >= SNAT_PORT_FIRST
        && let Some(verdict) = reply_from_wire(ctx, packet)
    {
        return finish(verdict);
    }
    finish(forward(ctx, packet, Client::Wire))
}

#[inline(always)]
pub(crate) fn from_pod(ctx: &TcContext) -> i32 {
    match parse(ctx) {
        Ok(Some(packet)) => finish(forward(ctx, packet, Client::Inside)),
        other => pass_unparsed(other),
    }
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
    finish(rewrite(ctx, packet, flow.opposite(direction)).map(|()| {
        count(Reason::PacketReplied);
        PASS
    }))
}

#[inline(always)]
fn reply_from_wire(ctx: &TcContext, packet: &Packet) -> Option<Result<i32, Reason>> {
    let now_ns = flows::now_ns();
    let (flow, direction) = flows::find(&packet.tuple, now_ns)?;
    if direction != DIRECTION_REPLY || flow.flags & FLOW_SNAT == 0 {
        return None;
    }
    flows::touch(flow, packet, direction, now_ns);
    let opposite = flow.opposite(direction);
    Some(rewrite(ctx, packet, opposite).and_then(|()| {
        count(Reason::PacketReplied);
        send_on(ctx, packet, opposite)
    }))
}

#[inline(always)]
fn forward(ctx: &TcContext, packet: &mut Packet, client: Client) -> Result<i32, Reason> {
    let key = FrontendKey {
        addr: packet.tuple.destination,
        port_be: packet.tuple.destination_port_be,
        protocol: packet.tuple.protocol,
        pad: 0,
    };
    // SAFETY: an entry that is replaced meanwhile stays readable until this program has ended (RCU).
    let Some(frontend) = (unsafe { FRONTENDS.get(&key) }) else { return Ok(PASS) };
    let served = match client {
        Client::Wire => frontend.flags & FRONTEND_WIRE != 0,
        Client::Inside => frontend.flags & FRONTEND_NODE_ONLY == 0,
    };
    if !served {
        return Ok(PASS);
    }
    let now_ns = flows::now_ns();
    let flow = match known_flow(packet, frontend, client, now_ns) {
        Some(flow) => flow,
        // The host answers what is not the start of a flow: a reset.
        None if !packet.starts_flow() => return Ok(PASS),
        None => match start_flow(packet, frontend, client, now_ns)? {
            Some(flow) => flow,
            None => {
                count(Reason::PacketNoBackend);
                return Ok(PASS);
            }
        },
    };
    let opposite = flow.opposite(DIRECTION_FORWARD);
    rewrite(ctx, packet, opposite)?;
    count(Reason::PacketForwarded);
    if flow.flags & FLOW_SNAT != 0 { send_on(ctx, packet, opposite) } else { Ok(PASS) }
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
    let Some(mut backend) = select::for_packet(packet, frontend, client, 0) else {
        if client == Client::Wire && frontend.flags & FRONTEND_WIRE_LOCAL != 0 {
            return Err(Reason::DropNoLocalBackend);
        }
        return Ok(None);
    };
    let claim = flows::claim(packet.tuple.hash(), now_ns)?;
    let mut flags = 0;
    let mut entered = false;
    if client == Client::Inside || backend.flags & BACKEND_LOCAL != 0 {
        for attempt in 1..=BACKEND_ATTEMPTS {
            packet.reply =
                FlowKey::new(backend.endpoint(), packet.tuple.source_endpoint(), packet.tuple.protocol);
            entered = flows::insert_reply(&packet.reply, &claim, now_ns);
            if entered {
                break;
            }
            if let Some(other) = select::for_packet(packet, frontend, client, attempt) {
                backend = other;
            }
        }
    } else {
        flags = FLOW_SNAT;
        entered = allocate_source(packet, &backend, &claim, now_ns)?;
    }
    if !entered {
        flows::unclaim(&claim);
        return Err(Reason::DropNoSourcePort);
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

/// Finds a source of the node's that no other flow to this backend uses. The index of replies decides.
#[inline(always)]
fn allocate_source(
    packet: &mut Packet,
    backend: &Backend,
    claim: &Claim,
    now_ns: u64,
) -> Result<bool, Reason> {
    let settings = SETTINGS.get(0).ok_or(Reason::DropNoSourceAddress)?;
    let source: &Addr = if packet.is_v4() { &settings.snat_v4 } else { &settings.snat_v6 };
    if *source == [0; 16] {
        flows::unclaim(claim);
        return Err(Reason::DropNoSourceAddress);
    }
    packet.reply = FlowKey::new(backend.endpoint(), Endpoint::new(*source, 0), packet.tuple.protocol);
    for _ in 0..PORT_ATTEMPTS {
        // SAFETY: the helper has no arguments.
        let random = unsafe { bpf_get_prandom_u32() };
        let port = SNAT_PORT_FIRST + (random % u32::from(SNAT_PORT_COUNT)) as u16;
        packet.reply.destination_port_be = port.to_be();
        if flows::insert_reply(&packet.reply, claim, now_ns) {
            return Ok(true);
        }
    }
    Ok(false)
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
