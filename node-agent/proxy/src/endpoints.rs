//! Which endpoints get traffic: the ready ones; when there is none, those that still serve while they terminate
//! (KEP-1669). The set of all and the set of this node's decide that each for itself.
//!
//! Hints (KEP-2433, KEP-3015) narrow the set of all to the endpoints that are meant for this node or its zone, when
//! every ready endpoint has a hint and one of them is for here; the node's own set they leave alone. All as
//! kube-proxy's `CategorizeEndpoints` has it (`pkg/proxy/topology.go`, v1.36). What the node knows of its own pods goes
//! before what the slices say.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use hawser_ebpf_abi::{
    Addr, Backend,
    service::{BACKEND_LOCAL, BACKEND_ON_NODE},
};
use hawser_services::{Endpoint, EndpointSlice, Family, ServicePort};

use crate::desired::{Node, addr};

/// Readiness of this node's pods, by address, where it is newer than the slices.
pub(crate) type Overrides = HashMap<IpAddr, bool>;

/// The backends of a service port: all, and this node's.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Backends {
    pub(crate) cluster: Box<[Backend]>,
    pub(crate) local: Box<[Backend]>,
}

#[derive(Clone, Copy)]
struct Candidate {
    addr: Addr,
    port: u16,
    is_ready: bool,
    is_terminating: bool,
    is_serving_terminating: bool,
    is_local: bool,
    has_node: bool,
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
    slices: &[Arc<EndpointSlice>],
    port: &ServicePort,
    is_v6: bool,
    node: &Node,
    overrides: &Overrides,
) -> Backends {
    let family = if is_v6 { Family::V6 } else { Family::V4 };
    let mut candidates: Vec<Candidate> = Vec::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        let Some(target_port) = target_port(slice, port) else { continue };
        candidates.extend(slice.endpoints.iter().map(|it| candidate(it, target_port, node, overrides)));
    }
    // An endpoint may be in two slices while it moves: being ready in one of them counts. Two pods may have one address
    // when it is given again before the first is gone: the one that does not terminate counts.
    candidates.sort_by_key(|candidate| (candidate.addr, candidate.port));
    candidates.dedup_by(|other, known| {
        let is_same = (other.addr, other.port) == (known.addr, known.port);
        if is_same && known.is_terminating == other.is_terminating {
            known.is_ready |= other.is_ready;
            known.is_serving_terminating |= other.is_serving_terminating;
        } else if is_same && known.is_terminating {
            *known = *other;
        }
        is_same
    });
    let is_for_here = topology(&candidates);
    Backends {
        cluster: usable(&candidates, |_| true, is_for_here),
        local: usable(&candidates, |candidate| candidate.is_local, |_| true),
    }
}

/// Returns which ready endpoints are for this node: all of them, unless the hints of all of them allow less.
fn topology(candidates: &[Candidate]) -> fn(&Candidate) -> bool {
    let narrows = |hint: fn(&Candidate) -> Hint| {
        let mut ready = candidates.iter().filter(|candidate| candidate.is_ready).map(hint).peekable();
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
pub(crate) fn readiness(slices: &[Arc<EndpointSlice>], address: IpAddr) -> Option<bool> {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    endpoints
        .filter(|endpoint| endpoint.address == address)
        .map(|endpoint| endpoint.ready)
        .reduce(|a, b| a || b)
}

/// Tells whether an endpoint is meant for some nodes only: then nodes may choose among different ones.
pub(crate) fn have_hints(slices: &[Arc<EndpointSlice>]) -> bool {
    let mut endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    endpoints.any(|endpoint| !endpoint.for_nodes().is_empty() || !endpoint.for_zones().is_empty())
}

fn usable(
    candidates: &[Candidate],
    of_set: fn(&Candidate) -> bool,
    is_for_here: fn(&Candidate) -> bool,
) -> Box<[Backend]> {
    let pick = |wanted: &dyn Fn(&Candidate) -> bool| -> Box<[Backend]> {
        let picked = candidates.iter().filter(|candidate| of_set(candidate) && wanted(candidate));
        picked.map(Candidate::backend).collect()
    };
    let ready = pick(&|candidate| candidate.is_ready && is_for_here(candidate));
    if ready.is_empty() { pick(&|candidate| candidate.is_serving_terminating) } else { ready }
}

impl Candidate {
    fn backend(&self) -> Backend {
        Backend {
            addr: self.addr,
            port_be: self.port.to_be(),
            flags: match (self.is_local, self.has_node) {
                (true, _) => BACKEND_LOCAL,
                (false, true) => BACKEND_ON_NODE,
                (false, false) => 0,
            },
            pad: 0,
        }
    }
}

fn candidate(endpoint: &Endpoint, port: u16, node: &Node, overrides: &Overrides) -> Candidate {
    let serving = endpoint.serving.unwrap_or(true);
    let is_local = endpoint.node.as_deref() == Some(node.name.as_str());
    let mut candidate = Candidate {
        addr: addr(endpoint.address),
        port,
        is_ready: endpoint.ready,
        is_terminating: endpoint.terminating,
        is_serving_terminating: serving && endpoint.terminating,
        is_local,
        has_node: endpoint.node.is_some(),
        for_node: hint(endpoint.for_nodes(), Some(&node.name)),
        for_zone: hint(endpoint.for_zones(), node.zone.as_deref()),
    };
    match overrides.get(&endpoint.address).filter(|_| is_local) {
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

fn hint(names: &[Arc<str>], here: Option<&str>) -> Hint {
    if names.is_empty() {
        Hint::None
    } else if names.iter().any(|name| Some(&**name) == here) {
        Hint::Here
    } else {
        Hint::Elsewhere
    }
}

fn target_port(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let found = slice.ports.iter().find(|it| it.name == port.name && it.protocol == port.protocol)?;
    Some(found.port).filter(|port| *port != 0)
}
