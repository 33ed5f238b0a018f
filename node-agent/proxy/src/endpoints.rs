//! Which endpoints get traffic: the ready ones; when there is none, those that still serve while they terminate
//! (KEP-1669). The set of all and the set of this node's decide that each for itself.
//!
//! Hints (KEP-2433, KEP-3015) narrow the set of all to the endpoints that are meant for this node or its zone, when
//! every ready endpoint has a hint and one of them is for here; the node's own set they leave alone. All as
//! kube-proxy's `CategorizeEndpoints` has it (`pkg/proxy/topology.go`, v1.36). What the node knows of its own pods goes
//! before what the slices say.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use hawser_ebpf_abi::{Addr, Backend, service::BACKEND_LOCAL};
use k8s_openapi::api::{
    core::v1::ServicePort as ApiServicePort,
    discovery::v1::{Endpoint, EndpointSlice},
};

use crate::desired::{Node, addr};

/// Readiness of this node's pods, by address, where it is newer than the slices.
pub(crate) type Overrides = HashMap<IpAddr, bool>;

/// The backends of a service port: all, and this node's.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Backends {
    pub(crate) cluster: Vec<Backend>,
    pub(crate) local: Vec<Backend>,
}

#[derive(Clone, Copy)]
struct Candidate {
    is_ready: bool,
    is_terminating: bool,
    is_serving_terminating: bool,
    is_local: bool,
    for_node: Hint,
    for_zone: Hint,
}

/// Whom an endpoint is meant for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hint {
    /// It does not say.
    None,
    Here,
    Elsewhere,
}

/// Returns the backends of `port`, sorted by address and port.
pub(crate) fn collect(
    slices: &[&EndpointSlice],
    port: &ApiServicePort,
    is_v6: bool,
    node: &Node,
    overrides: &Overrides,
) -> Backends {
    let family = if is_v6 { "IPv6" } else { "IPv4" };
    // An endpoint may be in two slices while it moves: being ready in one of them counts. Two pods may have one address
    // when it is given again before the first is gone: the one that does not terminate counts.
    let mut candidates: BTreeMap<(Addr, u16), Candidate> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.address_type == family) {
        let Some(target_port) = target_port(slice, port) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            // Addresses of one endpoint are fungible; all consumers use the first.
            let Some(address) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok())
            else {
                continue;
            };
            let candidate = candidate(endpoint, address, node, overrides);
            let known = candidates.entry((addr(address), target_port)).or_insert(candidate);
            if known.is_terminating != candidate.is_terminating {
                if known.is_terminating {
                    *known = candidate;
                }
                continue;
            }
            known.is_ready |= candidate.is_ready;
            known.is_serving_terminating |= candidate.is_serving_terminating;
        }
    }
    let is_for_here = topology(&candidates);
    Backends {
        cluster: usable(&candidates, |_| true, is_for_here),
        local: usable(&candidates, |candidate| candidate.is_local, |_| true),
    }
}

/// Returns which ready endpoints are for this node: all of them, unless the hints of all of them allow less.
fn topology(candidates: &BTreeMap<(Addr, u16), Candidate>) -> fn(&Candidate) -> bool {
    let narrows = |hint: fn(&Candidate) -> Hint| {
        let mut ready = candidates.values().filter(|candidate| candidate.is_ready).map(hint).peekable();
        let mut any_here = false;
        ready.peek().is_some()
            && ready.all(|hint| {
                any_here |= hint == Hint::Here;
                hint != Hint::None
            })
            && any_here
    };
    if narrows(|candidate| candidate.for_node) {
        |candidate| candidate.for_node == Hint::Here
    } else if narrows(|candidate| candidate.for_zone) {
        |candidate| candidate.for_zone == Hint::Here
    } else {
        |_| true
    }
}

/// Returns what the slices say of the readiness of the endpoint at `address`; `None` when they do not have it.
pub(crate) fn readiness(slices: &[&EndpointSlice], address: IpAddr) -> Option<bool> {
    let mut readiness = None;
    for endpoint in slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()) {
        if endpoint.addresses.first().and_then(|text| text.parse().ok()) == Some(address) {
            readiness = Some(is_ready(endpoint) || readiness.unwrap_or(false));
        }
    }
    readiness
}

fn usable(
    candidates: &BTreeMap<(Addr, u16), Candidate>,
    of_set: fn(&Candidate) -> bool,
    is_for_here: fn(&Candidate) -> bool,
) -> Vec<Backend> {
    let pick = |wanted: &dyn Fn(&Candidate) -> bool| -> Vec<Backend> {
        candidates
            .iter()
            .filter(|(_, candidate)| of_set(candidate) && wanted(candidate))
            .map(|((addr, port), candidate)| Backend {
                addr: *addr,
                port_be: port.to_be(),
                flags: if candidate.is_local { BACKEND_LOCAL } else { 0 },
                pad: 0,
            })
            .collect()
    };
    let ready = pick(&|candidate| candidate.is_ready && is_for_here(candidate));
    if ready.is_empty() { pick(&|candidate| candidate.is_serving_terminating) } else { ready }
}

fn candidate(endpoint: &Endpoint, address: IpAddr, node: &Node, overrides: &Overrides) -> Candidate {
    let conditions = endpoint.conditions.as_ref();
    let ready = is_ready(endpoint);
    let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(true);
    let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
    let is_local = endpoint.node_name.as_deref() == Some(node.name.as_str());
    let hints = endpoint.hints.as_ref();
    let for_node = hints.and_then(|hints| hints.for_nodes.as_ref());
    let for_zone = hints.and_then(|hints| hints.for_zones.as_ref());
    let mut candidate = Candidate {
        is_ready: ready,
        is_terminating: terminating,
        is_serving_terminating: serving && terminating,
        is_local,
        for_node: hint(for_node.map(|nodes| nodes.iter().map(|hint| hint.name.as_str())), Some(&node.name)),
        for_zone: hint(
            for_zone.map(|zones| zones.iter().map(|hint| hint.name.as_str())),
            node.zone.as_deref(),
        ),
    };
    match overrides.get(&address).filter(|_| is_local) {
        Some(true) => {
            candidate.is_ready = true;
            candidate.is_serving_terminating = false;
        }
        // A pod that starts to stop may still serve: it is the last resort that terminating endpoints are.
        Some(false) => {
            candidate.is_ready = false;
            candidate.is_serving_terminating = serving;
        }
        None => {}
    }
    candidate
}

fn hint<'a>(names: Option<impl Iterator<Item = &'a str>>, here: Option<&str>) -> Hint {
    let mut names = names.into_iter().flatten().peekable();
    if names.peek().is_none() {
        Hint::None
    } else if names.any(|name| Some(name) == here) {
        Hint::Here
    } else {
        Hint::Elsewhere
    }
}

/// A condition that is not given means ready.
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

fn target_port(slice: &EndpointSlice, port: &ApiServicePort) -> Option<u16> {
    let name = port.name.as_deref().unwrap_or_default();
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let found = slice.ports.iter().flatten().find(|candidate| {
        candidate.name.as_deref().unwrap_or_default() == name
            && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
    })?;
    u16::try_from(found.port?).ok().filter(|port| *port != 0)
}
