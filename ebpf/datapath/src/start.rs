//! The start of flows. Most packets belong to a flow already, so all of it is in functions of their own.

use aya_ebpf::bindings::__sk_buff;
use hawser_ebpf_abi::{
    Backend, FlowKey, Frontend, IPPROTO_UDP, Reason,
    flow::{DIRECTION_FORWARD, DIRECTION_REPLY, FLOW_DIRECT, FLOW_DSR, FLOW_RST_FORWARD, FLOW_SNAT},
    flow_table::{Claim, Entered},
    service::{
        BACKEND_LOCAL, BACKEND_ON_NODE, Client, FRONTEND_DSR, FRONTEND_NODE_ONLY, FRONTEND_SOURCE_RANGES,
        FRONTEND_WIRE, FRONTEND_WIRE_LOCAL,
    },
};

use crate::{
    count::{count, count_chosen},
    flows,
    forward::{WIRE_AT_XDP, client_of},
    frontends,
    maps::SETTINGS,
    packet::{Packet, scratch},
    route, select,
    short_ways::is_pod_range,
    sources,
};

/// Backends tried when the client's own tuple towards one is taken by another flow. Then the port is replaced.
const BACKEND_ATTEMPTS: u32 = 4;

/// What came of a flow's start, where it is not the flow's slot.
pub(crate) const NO_FLOW: i64 = -1;
pub(crate) const NO_BACKEND: i64 = -2;
/// Counted already.
pub(crate) const REFUSED: i64 = -3;
/// The frontend is not for this client.
pub(crate) const NOT_SERVED: i64 = -4;

/// Makes a flow as [`hawser_start_flow`] does. Where that would send the packet back to the node that it comes from, because
/// the two choose differently for the moment, this one answers for it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn hawser_start(skb: *mut __sk_buff, client: u32, now_ns: u64) -> i64 {
    let slot = hawser_start_flow(client, now_ns);
    let is_dsr = slot >= 0 && flows::get(slot as u32).is_some_and(|flow| flow.flags & FLOW_DSR != 0);
    if !is_dsr || route::hawser_returns(skb, slot as u32) == 0 {
        return slot;
    }
    let (Some(packet), Some(found)) = (scratch(), flows::find(now_ns)) else { return NO_FLOW };
    flows::end(found);
    packet.is_returned = 1;
    hawser_start_flow(client, now_ns)
}

/// Makes a flow of the scratch's packet to a backend of the frontend that it is for; `client` is a `WIRE`, `INSIDE` or
/// `WIRE_AT_XDP`, which has no flows for direct server return: at tc it is seen whether one leads in a circle.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn hawser_start_flow(client: u32, now_ns: u64) -> i64 {
    let Some(packet) = scratch() else { return NO_FLOW };
    let Some(frontend) = frontends::of_packet() else { return NO_FLOW };
    if client == WIRE_AT_XDP && frontend.flags & FRONTEND_DSR != 0 {
        return NOT_SERVED;
    }
    let client = client_of(client);
    if !is_served(frontend, client) {
        return NOT_SERVED;
    }
    match try_start_flow(packet, frontend, client, now_ns) {
        Ok(Some(slot)) => i64::from(slot),
        Ok(None) => NO_BACKEND,
        Err(reason) => refused(reason),
    }
}

#[inline(always)]
fn try_start_flow(
    packet: &mut Packet,
    frontend: &Frontend,
    client: Client,
    now_ns: u64,
) -> Result<Option<u32>, Reason> {
    if frontend.flags & FRONTEND_SOURCE_RANGES != 0 && !select::is_in_ranges(packet, frontend) {
        return Err(Reason::DropSourceRange);
    }
    if !select::for_packet(packet, frontend, client, 0) {
        if client == Client::Wire && frontend.flags & FRONTEND_WIRE_LOCAL != 0 {
            return Err(Reason::DropNoLocalBackend);
        }
        return Ok(None);
    }
    let is_dsr = client == Client::Wire && packet.is_returned == 0 && is_answered_elsewhere(packet, frontend);
    let (claim, flow) = flows::claim(&packet.tuple, now_ns)?;
    flow.flags = 0;
    flow.forward = packet.tuple;
    flow.service_id = frontend.service_id;
    flow.frontend_generation = frontend.generation;
    if is_dsr {
        flow.flags = FLOW_DSR;
        // Not entered: what comes back does not pass here.
        let client_endpoint = packet.tuple.source_endpoint();
        flow.reply = FlowKey::new(packet.backend.endpoint(), client_endpoint, packet.tuple.protocol);
        // Counted where it is translated.
        return complete(claim, 0, now_ns).map(Some);
    }
    for attempt in 1..=BACKEND_ATTEMPTS {
        if packet.replaces_port != 0 || !keeps_source(packet, client) {
            break;
        }
        let client_endpoint = packet.tuple.source_endpoint();
        flow.reply = FlowKey::new(packet.backend.endpoint(), client_endpoint, packet.tuple.protocol);
        if flows::enter(claim, DIRECTION_REPLY, now_ns) == Entered::Yes {
            return complete(claim, frontend.service_id, now_ns).map(Some);
        }
        // Without another one the same is tried again.
        let _ = select::for_packet(packet, frontend, client, attempt);
    }
    flow.flags = FLOW_SNAT;
    // Where replies come back by themselves the client keeps its address: its own port alone is taken.
    let keeps_address = keeps_source(packet, client) && knows_pods(&packet.backend);
    let from = if keeps_address { sources::CLIENT } else { sources::NODE };
    sources::allocate(packet, flow, claim, from, now_ns).inspect_err(|_| flows::give_back(claim))?;
    complete(claim, frontend.service_id, now_ns).map(Some)
}

/// Enters the last tuple of a new flow, and returns the flow's slot. With the id 0 no service counts it.
#[inline(always)]
fn complete(claim: Claim, service_id: u32, now_ns: u64) -> Result<u32, Reason> {
    match flows::enter(claim, DIRECTION_FORWARD, now_ns) {
        Entered::Yes => {
            flows::publish(claim);
            count(Reason::PacketNewFlow);
            if service_id != 0 {
                count_chosen(service_id);
            }
            return Ok(claim.slot);
        }
        Entered::Taken | Entered::Full => flows::give_back(claim),
    }
    // Another CPU may have made a flow of the same first packet, sent twice.
    flows::find(now_ns).map(|found| found.slot).ok_or(Reason::DropFlowTableFull)
}

/// Makes a flow of a packet for a backend itself, if a service's flow leads there from the same client's port: the
/// backend's replies to both would be the same. An ended one makes room; beside another the client gets another port.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn hawser_start_direct_flow(now_ns: u64) -> i64 {
    let Some(packet) = scratch() else { return NO_FLOW };
    let Some(found) = flows::find_reversed(now_ns) else { return NO_FLOW };
    let Some(flow) = found.flow() else { return NO_FLOW };
    if !found.is_reply() || flow.flags & FLOW_SNAT != 0 {
        return NO_FLOW;
    }
    if packet.tuple.protocol != IPPROTO_UDP && (flow.is_closed() || flow.flags & FLOW_RST_FORWARD != 0) {
        flows::end(found);
        return NO_FLOW;
    }
    let FlowKey { destination, destination_port_be, .. } = packet.tuple;
    packet.backend = Backend { addr: destination, port_be: destination_port_be, flags: 0, pad: 0 };
    if !knows_pods(&packet.backend) {
        // The host gives the packet another source, and sees to it that no two are the same.
        return NO_FLOW;
    }
    match try_start_direct_flow(packet, now_ns) {
        Ok(slot) => i64::from(slot),
        Err(reason) => refused(reason),
    }
}

#[inline(always)]
fn try_start_direct_flow(packet: &mut Packet, now_ns: u64) -> Result<u32, Reason> {
    let (claim, flow) = flows::claim(&packet.tuple, now_ns)?;
    flow.flags = FLOW_SNAT | FLOW_DIRECT;
    flow.forward = packet.tuple;
    flow.service_id = 0;
    flow.frontend_generation = 0;
    sources::allocate(packet, flow, claim, sources::CLIENT, now_ns)
        .inspect_err(|_| flows::give_back(claim))?;
    complete(claim, 0, now_ns)
}

#[inline(always)]
fn refused(reason: Reason) -> i64 {
    count(reason);
    REFUSED
}

/// Chooses the backend of a packet that starts no flow and has none: 1 where the backend's node may know its connection,
/// else 0. Another node may have sent the connection's packets on so far, and all choose alike; nothing is remembered, as
/// anybody can send such a packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn hawser_choose_elsewhere() -> u32 {
    let (Some(packet), Some(frontend)) = (scratch(), frontends::of_packet()) else { return 0 };
    let may_be_served = frontend.flags & FRONTEND_DSR != 0
        && (frontend.flags & FRONTEND_SOURCE_RANGES == 0 || select::is_in_ranges(packet, frontend));
    let is_chosen = may_be_served
        && select::for_packet(packet, frontend, Client::Wire, 0)
        && is_answered_elsewhere(packet, frontend);
    u32::from(is_chosen)
}

/// Tells whether the packet's backend is a pod of another node that serves the frontend, and would choose it too.
#[inline(always)]
fn is_answered_elsewhere(packet: &Packet, frontend: &Frontend) -> bool {
    frontend.flags & FRONTEND_DSR != 0
        && packet.backend.flags & BACKEND_ON_NODE != 0
        && (frontend.maglev_len > 0 || frontend.wire_count == 1)
        && knows_pods(&packet.backend)
}

/// Tells whether packets with a pod's address find their way back from there: not from outside of the cluster, nor from
/// the network of other nodes.
#[inline(always)]
fn knows_pods(backend: &Backend) -> bool {
    backend.flags & BACKEND_LOCAL != 0
        || SETTINGS.get(0).is_some_and(|settings| is_pod_range(settings, &backend.addr))
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
pub(crate) fn is_served(frontend: &Frontend, client: Client) -> bool {
    match client {
        Client::Wire => frontend.flags & FRONTEND_WIRE != 0,
        Client::Inside => frontend.flags & FRONTEND_NODE_ONLY == 0,
    }
}
