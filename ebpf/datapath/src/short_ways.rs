//! Packets that go straight to a pod of this node, or from one of its pods out of the node, past the host's routing
//! and netfilter.
//!
//! The host's rules still see what leaves the cluster or comes from outside of it. So a short way is open between
//! addresses of pods, and for flows that the packet path translates, both ways: if the host saw one direction of a
//! connection alone, its connection tracking would take the other for a new one, and masquerade it. Packets that a
//! router has to look into, parts of datagrams outside of flows, and ICMP go the ordinary way.

use aya_ebpf::{helpers::generated::bpf_redirect_peer, programs::TcContext};
use hawser_ebpf_abi::{
    Addr, Flow, PodLink, Reason, SETTINGS_SHORT_WAYS, Settings,
    flow::{DIRECTION_FORWARD, DIRECTION_REPLY},
    pod::RANGES,
};

use crate::{
    count::count,
    maps::{PODS, SETTINGS},
    packet::{PASS, Packet, ifindex, is_for_host},
    rewrite::{lower_hop_limit, rewrite, write_all, write_ip},
    route::{Answer, find_way, leave},
};

/// A packet from outside, or from another node, that is for no service. `flow` is the one that it is a reply of.
#[inline(always)]
pub(crate) fn from_wire(ctx: &TcContext, packet: &mut Packet, flow: Option<&Flow>) -> Result<i32, Reason> {
    let Some(settings) = settings(ctx, packet) else { return Ok(PASS) };
    let Some(pod) = pod(&packet.tuple.destination) else { return Ok(PASS) };
    if let Some(flow) = flow {
        rewrite(ctx, packet, flow, DIRECTION_REPLY)?;
        count(Reason::PacketReplied);
    } else if !packet.is_whole() || !is_pod_range(settings, &packet.tuple.source) {
        return Ok(PASS);
    }
    to_pod(ctx, packet, pod)
}

/// A packet of a pod that is for no service. `flow` is the one that it is a reply of.
#[inline(always)]
pub(crate) fn from_pod(ctx: &TcContext, packet: &mut Packet, flow: Option<&Flow>) -> Result<i32, Reason> {
    let Some(settings) = settings(ctx, packet) else { return Ok(PASS) };
    let destination = &packet.tuple.destination;
    if flow.is_none() && !packet.is_whole() {
        return Ok(PASS);
    }
    if let Some(pod) = pod(destination) {
        if let Some(flow) = flow {
            rewrite(ctx, packet, flow, DIRECTION_REPLY)?;
            count(Reason::PacketReplied);
        }
        return to_pod(ctx, packet, pod);
    }
    if flow.is_none() && !is_pod_range(settings, destination) {
        return Ok(PASS);
    }
    // The host answers what is in the way.
    let Answer::Out(way) = find_way(ctx, packet, &packet.tuple.source, destination) else { return Ok(PASS) };
    if let Some(flow) = flow {
        rewrite(ctx, packet, flow, DIRECTION_REPLY)?;
        count(Reason::PacketReplied);
    }
    count(Reason::PacketToNode);
    leave(ctx, packet, way)
}

/// A packet from outside whose destination has become a backend of this node.
#[inline(always)]
pub(crate) fn translated_from_wire(ctx: &TcContext, packet: &mut Packet, flow: &Flow) -> Result<i32, Reason> {
    if settings(ctx, packet).is_some()
        && let Some(pod) = pod(&flow.opposite(DIRECTION_FORWARD).source)
    {
        return to_pod(ctx, packet, pod);
    }
    write_ip(ctx, packet).map(|()| PASS)
}

/// A packet of a pod whose destination has become a backend.
#[inline(always)]
pub(crate) fn translated_from_pod(ctx: &TcContext, packet: &mut Packet, flow: &Flow) -> Result<i32, Reason> {
    let destination = &flow.opposite(DIRECTION_FORWARD).source;
    if let Some(settings) = settings(ctx, packet) {
        if let Some(pod) = pod(destination) {
            return to_pod(ctx, packet, pod);
        }
        if is_pod_range(settings, destination) {
            if let Answer::Out(way) = find_way(ctx, packet, &packet.tuple.source, destination) {
                count(Reason::PacketToNode);
                return leave(ctx, packet, way);
            }
        }
    }
    write_ip(ctx, packet).map(|()| PASS)
}

/// Returns the node's settings if this packet may take a short way.
#[inline(always)]
fn settings(ctx: &TcContext, packet: &Packet) -> Option<&'static Settings> {
    let settings = SETTINGS.get(0)?;
    let may = settings.flags & SETTINGS_SHORT_WAYS != 0
        && packet.hop_limit > 1
        && packet.has_options == 0
        && !packet.is_error()
        && is_for_host(ctx);
    may.then_some(settings)
}

/// Returns the pod that has the address, if there is a short way to it.
#[inline(always)]
fn pod(addr: &Addr) -> Option<&'static PodLink> {
    pod_with(addr).filter(|pod| pod.mac != [0; 3])
}

#[inline(always)]
fn pod_with(addr: &Addr) -> Option<&'static PodLink> {
    // SAFETY: an entry that is removed meanwhile may be another pod's by the time it is read: this one packet then goes
    // the way of one that was sent a moment later.
    unsafe { PODS.get(addr) }
}

/// Tells whether the packet's source belongs to the pod that sent it. An ICMP error comes from wherever its cause is.
#[inline(always)]
pub(crate) fn has_own_source(ctx: &TcContext, packet: &Packet) -> bool {
    let source = if packet.is_error() { &packet.outer_source } else { &packet.tuple.source };
    pod_with(source).is_some_and(|pod| pod.ifindex == ifindex(ctx.skb.skb))
}

#[inline(always)]
pub(crate) fn is_pod_range(settings: &Settings, addr: &Addr) -> bool {
    // By number: the verifier cannot tell where a loop over pointers ends.
    let mut index = 0;
    while index < RANGES {
        if settings.pod_ranges[index].contains(addr) {
            return true;
        }
        index += 1;
    }
    false
}

/// Puts the packet into the pod's namespace, as if the pod's own link had received it.
#[inline(always)]
fn to_pod(ctx: &TcContext, packet: &mut Packet, pod: &PodLink) -> Result<i32, Reason> {
    lower_hop_limit(packet);
    let link = &mut packet.header.link;
    // It comes from where the node received it.
    (link[3], link[4], link[5]) = (link[0], link[1], link[2]);
    (link[0], link[1], link[2]) = (pod.mac[0], pod.mac[1], pod.mac[2]);
    write_all(ctx, packet)?;
    count(Reason::PacketToPod);
    // SAFETY: the helper takes an index and no flags.
    Ok(unsafe { bpf_redirect_peer(pod.ifindex, 0) } as i32)
}
