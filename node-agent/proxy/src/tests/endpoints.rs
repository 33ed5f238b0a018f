//! Rules of kube-proxy's `CategorizeEndpoints` (`pkg/proxy/topology.go`, v1.36), a test each.

use std::{net::SocketAddr, sync::Arc};

use hawser_services::{EndpointSlice, Protocol, ServicePort};
use serde_json::{Value, json};

use super::slice_of;
use crate::{
    desired::{Node, ip},
    endpoints::{self, Overrides},
};

/// An endpoint in words: address, node, state, nodes and zones that it is meant for.
type Words<'a> = (&'a str, &'a str, &'a str, &'a [&'a str], &'a [&'a str]);

fn slice(endpoints: &[Words<'_>]) -> Arc<EndpointSlice> {
    let names = |names: &[&str]| -> Vec<Value> { names.iter().map(|name| json!({ "name": name })).collect() };
    let endpoint = |(address, node, state, nodes, zones): &Words<'_>| {
        let conditions = match *state {
            "ready" => json!({ "ready": true, "serving": true, "terminating": false }),
            "unready" => json!({ "ready": false, "serving": false, "terminating": false }),
            "draining" => json!({ "ready": false, "serving": true, "terminating": true }),
            "draining, serving unsaid" => json!({ "ready": false, "terminating": true }),
            "ended" => json!({ "ready": false, "serving": false, "terminating": true }),
            "published" => json!({ "ready": true, "serving": false, "terminating": true }),
            other => panic!("no state {other}"),
        };
        let hints = json!({ "forNodes": names(nodes), "forZones": names(zones) });
        json!({ "addresses": [address], "nodeName": node, "conditions": conditions, "hints": hints })
    };
    slice_of(json!({
        "metadata": { "name": "web", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{ "port": 8080, "protocol": "TCP" }],
    }))
}

/// Both sets, by the last octets, for node `here` in zone `east`.
#[track_caller]
fn check(what: &str, endpoints: &[Words<'_>], cluster: &[u8], local: &[u8]) {
    check_slices(what, Some("east"), &[slice(endpoints)], cluster, local);
}

#[track_caller]
fn check_slices(what: &str, zone: Option<&str>, slices: &[Arc<EndpointSlice>], cluster: &[u8], local: &[u8]) {
    let node = Node { name: "here".to_owned(), zone: zone.map(str::to_owned), ..Node::default() };
    let port = ServicePort { name: "".into(), port: 80, node_port: 0, protocol: Protocol::Tcp };
    let found = endpoints::collect(slices, &port, false, &node, &Overrides::new());
    let octets = |backends: &[hawser_ebpf_abi::Backend]| -> Vec<u8> {
        let last =
            |address: SocketAddr| address.to_string().split(['.', ':']).nth(3).unwrap().parse().unwrap();
        backends.iter().map(|b| last(SocketAddr::new(ip(&b.addr), u16::from_be(b.port_be)))).collect()
    };
    assert_eq!(
        (octets(&found.cluster).as_slice(), octets(&found.local).as_slice()),
        (cluster, local),
        "{what}"
    );
}

const NONE: &[&str] = &[];

#[test]
fn ready_endpoints_are_used_first() {
    check(
        "everywhere",
        &[("10.0.0.1", "here", "ready", NONE, NONE), ("10.0.0.2", "there", "ready", NONE, NONE)],
        &[1, 2],
        &[1],
    );
    check(
        "before those that drain",
        &[("10.0.0.1", "here", "ready", NONE, NONE), ("10.0.0.2", "here", "draining", NONE, NONE)],
        &[1],
        &[1],
    );
    check("unready ones never", &[("10.0.0.1", "here", "unready", NONE, NONE)], &[], &[]);
    check("published unready ones are ready", &[("10.0.0.1", "here", "published", NONE, NONE)], &[1], &[1]);
}

#[test]
fn serving_terminating_endpoints_are_used_when_none_is_ready() {
    check("both sets", &[("10.0.0.1", "here", "draining", NONE, NONE)], &[1], &[1]);
    check("serving by default", &[("10.0.0.1", "here", "draining, serving unsaid", NONE, NONE)], &[1], &[1]);
    check("not those that have ended", &[("10.0.0.1", "here", "ended", NONE, NONE)], &[], &[]);
}

#[test]
fn the_local_set_decides_for_itself() {
    check(
        "local ones that drain, though others are ready elsewhere",
        &[("10.0.0.1", "here", "draining", NONE, NONE), ("10.0.0.2", "there", "ready", NONE, NONE)],
        &[2],
        &[1],
    );
    check(
        "local ready before local draining",
        &[("10.0.0.1", "here", "draining", NONE, NONE), ("10.0.0.2", "here", "ready", NONE, NONE)],
        &[2],
        &[2],
    );
    check(
        "none here",
        &[("10.0.0.1", "there", "draining", NONE, NONE), ("10.0.0.2", "there", "ready", NONE, NONE)],
        &[2],
        &[],
    );
}

#[test]
fn zone_hints_narrow_the_cluster_set() {
    let east: &[&str] = &["east"];
    let west: &[&str] = &["west"];
    let both: &[&str] = &["west", "east"];
    check(
        "to this zone's",
        &[
            ("10.0.0.1", "a", "ready", NONE, east),
            ("10.0.0.2", "b", "ready", NONE, west),
            ("10.0.0.3", "b", "ready", NONE, both),
        ],
        &[1, 3],
        &[],
    );
    check(
        "never the local set",
        &[("10.0.0.1", "a", "ready", NONE, east), ("10.0.0.2", "here", "ready", NONE, west)],
        &[1],
        &[2],
    );
    check(
        "not when a ready endpoint has none",
        &[("10.0.0.1", "a", "ready", NONE, east), ("10.0.0.2", "b", "ready", NONE, NONE)],
        &[1, 2],
        &[],
    );
    check(
        "an endpoint that is not ready need not have one",
        &[
            ("10.0.0.1", "a", "ready", NONE, east),
            ("10.0.0.2", "b", "ready", NONE, west),
            ("10.0.0.3", "b", "unready", NONE, NONE),
        ],
        &[1],
        &[],
    );
    check(
        "not when none is for this zone",
        &[("10.0.0.1", "a", "ready", NONE, west), ("10.0.0.2", "b", "ready", NONE, west)],
        &[1, 2],
        &[],
    );
    check(
        "not when this zone's are not ready",
        &[("10.0.0.1", "a", "unready", NONE, east), ("10.0.0.2", "b", "ready", NONE, west)],
        &[2],
        &[],
    );
    check(
        "not the ones that drain",
        &[("10.0.0.1", "a", "draining", NONE, west), ("10.0.0.2", "b", "draining", NONE, east)],
        &[1, 2],
        &[],
    );
    let slices = [slice(&[("10.0.0.1", "a", "ready", NONE, east), ("10.0.0.2", "b", "ready", NONE, west)])];
    check_slices("not on a node without zone", None, &slices, &[1, 2], &[]);
}

#[test]
fn node_hints_go_before_zone_hints() {
    let here: &[&str] = &["here"];
    let there: &[&str] = &["there"];
    let east: &[&str] = &["east"];
    check(
        "to this node's",
        &[("10.0.0.1", "here", "ready", here, east), ("10.0.0.2", "there", "ready", there, east)],
        &[1],
        &[1],
    );
    check(
        "back to the zone's when none is for this node",
        &[("10.0.0.1", "a", "ready", there, east), ("10.0.0.2", "b", "ready", there, &["west"])],
        &[1],
        &[],
    );
    check(
        "back to the zone's when a ready endpoint has no node hint",
        &[("10.0.0.1", "here", "ready", here, &["west"]), ("10.0.0.2", "b", "ready", NONE, east)],
        &[2],
        &[1],
    );
    check(
        "back to all",
        &[("10.0.0.1", "a", "ready", there, &["west"]), ("10.0.0.2", "b", "ready", there, &["west"])],
        &[1, 2],
        &[],
    );
}

#[test]
fn running_pod_counts_where_an_address_was_given_again() {
    let old = slice(&[("10.0.0.1", "a", "draining", NONE, NONE)]);
    let new = slice(&[("10.0.0.1", "a", "unready", NONE, NONE)]);
    let ready = slice(&[("10.0.0.1", "a", "ready", NONE, NONE)]);
    check_slices("not ready yet", None, &[old.clone(), new.clone()], &[], &[]);
    check_slices("in any order", None, &[new.clone(), old.clone()], &[], &[]);
    check_slices("ready", None, &[old, ready.clone()], &[1], &[]);
    check_slices("in two slices while it moves", None, &[new, ready], &[1], &[]);
}
