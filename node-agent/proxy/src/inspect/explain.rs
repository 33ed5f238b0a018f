//! What the programs would do with a new connection or datagram, and why. Pure: the maps' content in, words out.
//!
//! Follows the programs step by step: the socket programs for clients of this node, the uplink's for those outside.
//! Each step that decides leaves a line, so that the answer can be checked against the maps.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use hawser_ebpf_abi::{Addr, Settings};

use crate::{desired::ip, error::Error, view::FrontendView};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A process in the node's own network namespace.
    Host,
    /// A pod of this node.
    Pod(IpAddr),
    /// Whoever sends packets to this node: another machine, or a pod of another node.
    Outside(IpAddr),
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("a process of this node"),
            Self::Pod(address) => write!(f, "pod {address} of this node"),
            Self::Outside(address) => write!(f, "{address}, outside of this node"),
        }
    }
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    pub client: Client,
    pub destination: SocketAddr,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No program touches it.
    Untouched,
    /// It goes to one of these backends.
    Translated { backends: Vec<SocketAddr> },
    /// Nobody serves it: refused at the socket, or by the host's answer to the packet.
    Refused,
    /// The packet is dropped: the counter of this name says so.
    Dropped { counter: &'static str },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub outcome: Outcome,
    /// The frontend that decided.
    pub frontend: Option<FrontendView>,
    /// Step by step.
    pub steps: Vec<String>,
}

/// What the maps know of the client, as a client of the frontend.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// `loadBalancerSourceRanges` let it in. Means nothing for a frontend without.
    pub(super) in_ranges: bool,
    /// The backend that it had last.
    pub(super) kept: Option<SocketAddr>,
}

pub(super) fn frontend_of<'a>(query: &Query, frontends: &'a [FrontendView]) -> Option<&'a FrontendView> {
    frontends.iter().find(|it| it.address == query.destination && it.protocol == query.protocol)
}

pub(super) fn explain(
    query: &Query,
    settings: &Settings,
    frontends: &[FrontendView],
    known: Known,
) -> Result<Explanation, Error> {
    let Query { client, destination, protocol } = *query;
    let mut steps = vec![format!("the client is {client}")];
    let Some(frontend) = frontend_of(query, frontends).cloned() else {
        steps.push(format!("no service has {destination}/{protocol}"));
        steps.extend(neighbours(query, frontends));
        return Ok(Explanation { outcome: Outcome::Untouched, frontend: None, steps });
    };
    steps.push(format!(
        "{destination}/{protocol} is a frontend of service id {}, generation {}",
        frontend.service_id, frontend.generation
    ));
    let mut outcome = match client {
        Client::Outside(_) => at_the_uplink(&frontend, settings, known, &mut steps),
        Client::Host | Client::Pod(_) => at_the_socket(&frontend, client, known, &mut steps),
    };
    if let Outcome::Translated { backends } = &mut outcome {
        with_affinity(&frontend, client, known, backends, &mut steps);
    }
    Ok(Explanation { outcome, frontend: Some(frontend), steps })
}

/// Other frontends of the same address: the usual mistake is in the port or the protocol.
fn neighbours(query: &Query, frontends: &[FrontendView]) -> Option<String> {
    let same: Vec<String> = frontends
        .iter()
        .filter(|it| it.address.ip() == query.destination.ip())
        .take(8)
        .map(|it| format!("{}/{}", it.address.port(), it.protocol))
        .collect();
    (!same.is_empty()).then(|| format!("the address has frontends at {}", same.join(", ")))
}

/// Names the backend that a client keeps, if it has one, or says for how long it will keep one.
fn with_affinity(
    frontend: &FrontendView,
    client: Client,
    known: Known,
    backends: &mut Vec<SocketAddr>,
    steps: &mut Vec<String>,
) {
    let seconds = frontend.affinity_seconds;
    if seconds == 0 {
        return;
    }
    match known.kept {
        Some(kept) if backends.contains(&kept) => {
            steps.push(format!("sessionAffinity is ClientIP: it keeps {kept}, which it had last"));
            *backends = vec![kept];
        }
        Some(kept) => steps.push(format!(
            "sessionAffinity is ClientIP, and it had {kept} last, which is none of them any more: it is chosen for anew"
        )),
        None => {
            let who = match client {
                Client::Pod(_) => "all sockets of the pod keep the backend that the first of them was given",
                _ => "it has none yet, and keeps what it is given",
            };
            steps.push(format!("sessionAffinity is ClientIP: {who}, for {seconds} s after the last use"));
        }
    }
}

fn at_the_socket(frontend: &FrontendView, client: Client, known: Known, steps: &mut Vec<String>) -> Outcome {
    if frontend.departed {
        steps.push(
            "it is the address of a UDP backend that is gone: sockets that connect now are left alone".into(),
        );
        return Outcome::Untouched;
    }
    if frontend.node_only && client != Client::Host {
        steps
            .push("it is served to the node's own processes alone, and a pod's loopback is the pod's".into());
        return Outcome::Untouched;
    }
    if frontend.source_ranges {
        match (client, known.in_ranges) {
            (Client::Host, true) => {
                steps.push("loadBalancerSourceRanges let one of the node's addresses in".into());
            }
            (Client::Host, false) => {
                steps.push(
                    "loadBalancerSourceRanges let none of the node's addresses in: connect and send fail with EPERM \
                     (socket_refused_source_range)"
                        .into(),
                );
                return Outcome::Refused;
            }
            (_, true) => steps.push(
                "loadBalancerSourceRanges let the pod's address in, which its packets show: they are translated, not \
                 the socket"
                    .into(),
            ),
            (_, false) => {
                steps.push("loadBalancerSourceRanges do not let the pod's address in".into());
                return Outcome::Dropped { counter: "drop_source_range" };
            }
        }
    }
    if frontend.backends.is_empty() {
        steps.push(
            "it has no ready backend: connect and send fail with ECONNREFUSED (socket_refused_no_backend)"
                .into(),
        );
        return Outcome::Refused;
    }
    let way = if frontend.source_ranges && client != Client::Host {
        "packets go to"
    } else {
        "the socket is connected, without any work per packet, to"
    };
    steps.push(format!("{way} one of {} backends for clients inside the cluster", frontend.backends.len()));
    Outcome::Translated { backends: frontend.backends.clone() }
}

fn at_the_uplink(
    frontend: &FrontendView,
    settings: &Settings,
    known: Known,
    steps: &mut Vec<String>,
) -> Outcome {
    if !frontend.served_to_wire {
        steps.push("it is not served to packets from outside: the host's routing decides (a service range is unreachable)".into());
        return Outcome::Untouched;
    }
    if frontend.source_ranges && !known.in_ranges {
        steps.push("loadBalancerSourceRanges do not let it in".into());
        return Outcome::Dropped { counter: "drop_source_range" };
    }
    if frontend.source_ranges {
        steps.push("loadBalancerSourceRanges let it in".into());
    }
    if frontend.wire_backends.is_empty() {
        if frontend.wire_local {
            steps.push("externalTrafficPolicy is Local, and no backend runs on this node".into());
            return Outcome::Dropped { counter: "drop_no_local_backend" };
        }
        steps.push(
            "it has no ready backend: the client gets a reset or an ICMP error at once (answered_no_backend)"
                .into(),
        );
        return Outcome::Refused;
    }
    steps.push(format!("one of {} backends for clients outside is chosen", frontend.wire_backends.len()));
    if frontend.wire_local {
        steps.push("externalTrafficPolicy is Local: backends of this node alone".into());
    }
    let is_remote = frontend.wire_backends.iter().any(|backend| !frontend.local_backends.contains(backend));
    if is_remote && frontend.direct_server_return {
        steps.push("towards pods of other nodes the packets stay as they are, and those nodes answer".into());
    } else if is_remote {
        let source = if frontend.address.is_ipv4() { settings.snat_v4 } else { settings.snat_v6 };
        if source == Addr::UNSPECIFIED {
            steps.push("the node has no address of this family to send to other nodes from".into());
            if frontend.local_backends.is_empty() {
                return Outcome::Dropped { counter: "drop_no_source_address" };
            }
        } else {
            steps.push(format!("towards backends of other nodes the source becomes {}", ip(&source)));
        }
    }
    if !frontend.local_backends.is_empty() {
        steps.push("towards backends of this node the client's address stays".into());
    }
    Outcome::Translated { backends: frontend.wire_backends.clone() }
}

#[cfg(test)]
mod tests {
    use hawser_ebpf_abi::v4_mapped;

    use super::*;

    fn frontend(address: &str) -> FrontendView {
        FrontendView {
            address: address.parse().unwrap(),
            protocol: "TCP",
            service_id: 7,
            generation: 1,
            backends: vec!["10.1.0.2:8080".parse().unwrap(), "10.1.1.2:8080".parse().unwrap()],
            wire_backends: Vec::new(),
            local_backends: vec!["10.1.0.2:8080".parse().unwrap()],
            node_only: false,
            departed: false,
            served_to_wire: false,
            wire_local: false,
            affinity_seconds: 0,
            maglev_entries: 0,
            source_ranges: false,
            range_list: 0,
            node_in_ranges: false,
            direct_server_return: false,
            chosen: 0,
            refused: 0,
        }
    }

    #[track_caller]
    fn check(what: &str, frontend: &FrontendView, client: Client, expected: &Outcome, word: &str) {
        check_known(what, frontend, client, Known::default(), expected, word);
    }

    #[track_caller]
    fn check_known(
        what: &str,
        frontend: &FrontendView,
        client: Client,
        known: Known,
        expected: &Outcome,
        word: &str,
    ) {
        let query = Query { client, destination: frontend.address, protocol: "TCP" };
        let settings = Settings { snat_v4: v4_mapped([10, 0, 0, 1]), ..Settings::default() };
        let found = explain(&query, &settings, std::slice::from_ref(frontend), known).unwrap();
        assert_eq!(found.outcome, *expected, "{what}: {:?}", found.steps);
        assert!(found.steps.iter().any(|step| step.contains(word)), "{what}: {:?}", found.steps);
    }

    #[test]
    fn outcome_follows_the_programs() {
        let pod = Client::Pod("10.1.0.9".parse().unwrap());
        let outside = Client::Outside("192.0.2.9".parse().unwrap());
        let both = vec!["10.1.0.2:8080".parse().unwrap(), "10.1.1.2:8080".parse().unwrap()];
        let inside = frontend("10.96.0.1:80");
        let to_both = Outcome::Translated { backends: both.clone() };
        check("cluster IP from a pod", &inside, pod, &to_both, "2 backends");
        check("cluster IP from outside", &inside, outside, &Outcome::Untouched, "not served to packets");
        let empty = FrontendView { backends: Vec::new(), ..inside.clone() };
        check("no backend", &empty, Client::Host, &Outcome::Refused, "ECONNREFUSED");
        let loopback = FrontendView { node_only: true, ..frontend("127.0.0.1:30080") };
        check("loopback node port, a pod", &loopback, pod, &Outcome::Untouched, "node's own processes");
        check("loopback node port, the host", &loopback, Client::Host, &to_both, "2 backends");
        let departed = FrontendView { departed: true, ..inside.clone() };
        check("departed", &departed, pod, &Outcome::Untouched, "is gone");
        let wire = FrontendView { served_to_wire: true, wire_backends: both, ..inside };
        check("node port from outside", &wire, outside, &to_both, "source becomes 10.0.0.1");
        let local = FrontendView { wire_local: true, wire_backends: Vec::new(), ..wire.clone() };
        let dropped = Outcome::Dropped { counter: "drop_no_local_backend" };
        check("Local, none here", &local, outside, &dropped, "no backend runs on this node");
        let none = FrontendView { wire_backends: Vec::new(), ..wire };
        check("no backend, from outside", &none, outside, &Outcome::Refused, "reset");
    }

    #[test]
    fn source_ranges_and_affinity_decide_too() {
        let pod = Client::Pod("10.1.0.9".parse().unwrap());
        let outside = Client::Outside("192.0.2.9".parse().unwrap());
        let plain = frontend("10.96.0.1:80");
        let served = FrontendView { served_to_wire: true, wire_backends: plain.backends.clone(), ..plain };
        let to_both = Outcome::Translated { backends: served.backends.clone() };
        let one = served.backends[1];
        let to_one = Outcome::Translated { backends: vec![one] };
        let dropped = Outcome::Dropped { counter: "drop_source_range" };

        let ranges = FrontendView { source_ranges: true, ..served.clone() };
        let (out, within) = (Known::default(), Known { in_ranges: true, ..Known::default() });
        check_known("out of the ranges", &ranges, outside, out, &dropped, "do not let it in");
        check_known("in the ranges", &ranges, outside, within, &to_both, "let it in");
        check_known("a pod out of them", &ranges, pod, out, &dropped, "do not let the pod's");
        check_known("a pod in them", &ranges, pod, within, &to_both, "packets go to");
        check_known("a node out of them", &ranges, Client::Host, out, &Outcome::Refused, "EPERM");
        check_known("a node in them", &ranges, Client::Host, within, &to_both, "one of the node's");

        let affine = FrontendView { affinity_seconds: 60, ..served };
        let kept = Known { kept: Some(one), ..Known::default() };
        let gone = Known { kept: Some("10.1.7.7:8080".parse().unwrap()), ..Known::default() };
        check_known("keeps its backend", &affine, outside, kept, &to_one, "keeps 10.1.1.2:8080");
        check_known("its backend is gone", &affine, outside, gone, &to_both, "any more");
        check_known("its first connection", &affine, outside, out, &to_both, "none yet");
        check_known("a pod", &affine, pod, out, &to_both, "all sockets of the pod");
    }

    #[test]
    fn unknown_port_names_those_that_are_known() {
        let query =
            Query { client: Client::Host, destination: "10.96.0.1:81".parse().unwrap(), protocol: "TCP" };
        let found =
            explain(&query, &Settings::default(), &[frontend("10.96.0.1:80")], Known::default()).unwrap();
        assert_eq!(found.outcome, Outcome::Untouched);
        assert!(found.steps.last().unwrap().contains("80/TCP"), "{:?}", found.steps);
    }
}
