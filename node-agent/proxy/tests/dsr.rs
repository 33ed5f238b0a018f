//! Direct server return: packets go to the backend's node as they are, which answers the client itself.

mod support;

use std::{net::UdpSocket, sync::Arc};

use hawser_proxy::{Config, LoadBalancerMode, Proxy, Xdp};
use hawser_services::{EndpointSlice, Service};
use serde_json::json;
use support::{
    CLIENT, Lab, NODE, OTHER, Spec, chain, connect, counter, echo, patience, run, service_with, slice,
    wire::{ACK, IcmpError, PASS, Packet, REDIRECT, SYN, TCP, UDP, packet, source_port},
};

/// An address that both nodes serve.
const SHARED: &str = "10.90.0.9";
const SHARED_V6: &str = "fd90::9";

/// A service at the shared address, and its endpoints, by node.
fn objects(
    name: &str,
    protocol: &str,
    endpoints: &[(&str, &str, bool)],
) -> (Arc<Service>, Arc<EndpointSlice>) {
    let is_v6 = endpoints[0].0.contains(':');
    let (cluster_ip, shared) = if is_v6 { ("fd96::10", SHARED_V6) } else { ("10.96.0.10", SHARED) };
    let spec = Spec { name, protocol, cluster_ips: &[cluster_ip], ..Spec::default() };
    let changes = json!({
        "type": "LoadBalancer",
        "status": { "loadBalancer": { "ingress": [{ "ip": shared }] } },
    });
    (service_with(&spec, &changes), slice(name, protocol, 8080, endpoints))
}

fn sync(proxy: &mut Proxy, all: &[(Arc<Service>, Arc<EndpointSlice>)]) {
    let services: Vec<_> = all.iter().map(|(service, _)| service.clone()).collect();
    let slices: Vec<_> = all.iter().map(|(_, slice)| slice.clone()).collect();
    proxy.sync(&services, &slices, &[]).unwrap();
}

fn start(config: Config) -> Proxy {
    Proxy::start(config).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// This node, and the other one.
fn configs(lab: &Lab) -> [Config; 2] {
    let mut here = lab.config();
    here.load_balancer_mode = LoadBalancerMode::Dsr;
    let ranges = [("10.91.0.0", 24), ("10.93.0.0", 24), ("fd91::", 64), ("fd93::", 64)];
    here.pod_ranges = ranges.map(|(address, len)| (address.parse().unwrap(), len)).to_vec();
    let mut there = here.clone();
    there.bpffs_dir = lab.second_bpffs();
    there.node_name = "node-b".to_owned();
    there.uplinks = vec!["eth0".to_owned()];
    there.node_addresses = vec!["10.92.0.2".parse().unwrap(), "fd92::2".parse().unwrap()];
    [here, there]
}

const THERE: [(&str, &str, bool); 1] = [("10.93.0.2", "node-b", true)];

fn lowered(packet: Packet) -> Packet {
    Packet { hop_limit: packet.hop_limit - 1, ..packet }
}

/// As it is, but for a hop limit that ends a circle soon.
fn sent_on(packet: Packet) -> Packet {
    Packet { hop_limit: 8, ..packet }
}

#[test]
fn other_node_answers_clients_itself() {
    run("other_node_answers_clients_itself", |lab| {
        lab.ip(CLIENT, &["route", "add", SHARED, "via", "10.90.0.1"]);
        lab.ip(CLIENT, &["-6", "route", "add", SHARED_V6, "via", "fd90::1"]);
        let _servers = ["10.93.0.2:8080", "[fd93::2]:8080"].map(|address| lab.tcp_server(OTHER, address));
        let _udp = ["10.93.0.2:8080", "[fd93::2]:8080"].map(|address| lab.udp_server(OTHER, address));
        let all = [
            objects("tcp", "TCP", &THERE),
            objects("udp", "UDP", &THERE),
            objects("tcp6", "TCP", &[("fd93::2", "node-b", true)]),
            objects("udp6", "UDP", &[("fd93::2", "node-b", true)]),
        ];
        let [here, there] = configs(lab);
        let mut first = start(here);
        sync(&mut first, &all);
        // Its hooks at sockets are not needed, and belong to the first.
        let mut second = lab.inside(OTHER, || start(there));
        sync(&mut second, &all);
        lab.inside(CLIENT, || {
            for (address, client) in [(SHARED, "10.90.0.2"), (SHARED_V6, "fd90::2")] {
                let is_v6 = address.contains(':');
                let address = if is_v6 { format!("[{address}]:80") } else { format!("{address}:80") };
                let (mut stream, line) = connect(&address).unwrap();
                assert!(line.ends_with(&format!("sees {client}")), "{line}");
                for _ in 0..50 {
                    echo(&mut stream);
                }
                let socket = UdpSocket::bind(if is_v6 { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
                socket.set_read_timeout(Some(patience())).unwrap();
                let mut buffer = [0; 64];
                for _ in 0..5 {
                    socket.send_to(b"hello", &address).unwrap();
                    let (_, from) = socket.recv_from(&mut buffer).unwrap();
                    assert_eq!(from.to_string(), address);
                }
            }
        });
        assert!(counter(&first, "packet_dsr") > 2 * (50 + 5));
        assert_eq!(counter(&first, "packet_replied"), 0, "no answer passes the programs of the first");
        assert!(counter(&second, "packet_replied") > 2 * (50 + 5));
        drop(second);
        lab.inside(OTHER, || Proxy::remove_all(&lab.second_bpffs()).unwrap());
    });
}

#[test]
fn packets_are_sent_on_as_they_are() {
    run("packets_are_sent_on_as_they_are", |lab| {
        let [here, _] = configs(lab);
        let mut proxy = start(here);
        sync(&mut proxy, &[objects("tcp", "TCP", &THERE), objects("udp", "UDP", &THERE)]);
        let address = format!("{SHARED}:80");
        for (protocol, flags) in [(TCP, SYN), (TCP, ACK), (UDP, 0)] {
            let sent = packet("10.90.0.2:4000", &address, protocol, flags);
            let out = proxy.test_run("from_wire", &sent.bytes(), 1).unwrap();
            assert_eq!((out.verdict, out.packet), (REDIRECT, sent_on(sent).bytes()));
        }
        assert_eq!(counter(&proxy, "packet_dsr"), 3);
    });
}

/// The node that sent them so far is gone, and its address is this node's now.
#[test]
fn connection_goes_on_by_way_of_another_node() {
    run("connection_goes_on_by_way_of_another_node", |lab| {
        let [here, _] = configs(lab);
        let mut proxy = start(here);
        sync(&mut proxy, &[objects("tcp", "TCP", &THERE)]);
        let sent = packet("10.90.0.2:4000", &format!("{SHARED}:80"), TCP, ACK);
        let out = proxy.test_run("from_wire", &sent.bytes(), 1).unwrap();
        assert_eq!((out.verdict, out.packet), (REDIRECT, sent_on(sent).bytes()));
        // Anybody can send such a packet: it takes no place in the table.
        assert_eq!(counter(&proxy, "packet_new_flow"), 0);
        // What a router says of the backend's answers goes the same way.
        let quoted = packet(&format!("{SHARED}:80"), "10.90.0.2:4000", TCP, ACK);
        let error = IcmpError {
            source: "192.0.2.7".parse().unwrap(),
            destination: SHARED.parse().unwrap(),
            v4: [3, 4],
            v6: [2, 0],
            rest: 1280,
            hop_limit: 64,
            quoted: quoted.ip_bytes(),
        };
        let out = proxy.test_run("from_wire", &error.bytes(), 1).unwrap();
        assert_eq!(out.verdict, REDIRECT);
        assert_eq!(counter(&proxy, "packet_dsr"), 2);
    });
}

/// Nobody there would translate them.
#[test]
fn backends_that_are_no_pods_of_another_node_get_another_source() {
    run("backends_that_are_no_pods_of_another_node_get_another_source", |lab| {
        let [here, _] = configs(lab);
        let mut proxy = start(here);
        sync(&mut proxy, &[objects("tcp", "TCP", &[("10.92.0.2", "node-b", true)])]);
        let sent = packet("10.90.0.2:4000", &format!("{SHARED}:80"), TCP, SYN);
        let out = proxy.test_run("from_wire", &sent.bytes(), 1).unwrap();
        assert_eq!(out.verdict, REDIRECT);
        assert!(source_port(&out.packet) >= 61_000);
        assert_eq!(counter(&proxy, "packet_dsr"), 0);
    });
}

#[test]
fn backend_of_this_node_is_translated_here() {
    run("backend_of_this_node_is_translated_here", |lab| {
        let [mut here, _] = configs(lab);
        here.short_ways = hawser_proxy::ShortWays::Off;
        let mut proxy = start(here);
        sync(&mut proxy, &[objects("tcp", "TCP", &[("10.91.0.2", "node-a", true)])]);
        let sent = packet("10.90.0.2:4000", &format!("{SHARED}:80"), TCP, SYN);
        let expected = packet("10.90.0.2:4000", "10.91.0.2:8080", TCP, SYN);
        let out = proxy.test_run("from_wire", &sent.bytes(), 1).unwrap();
        assert_eq!((out.verdict, out.packet), (PASS, expected.bytes()));
        assert_eq!(counter(&proxy, "packet_dsr"), 0);
    });
}

/// Two nodes that choose differently for the moment would send a packet to and fro.
#[test]
fn packet_that_would_go_back_to_where_it_comes_from_is_answered_for() {
    run("packet_that_would_go_back_to_where_it_comes_from_is_answered_for", |lab| {
        let mac = lab.mac(OTHER, "eth0");
        let text = mac.map(|byte| format!("{byte:02x}")).join(":");
        lab.ip(NODE, &["neigh", "replace", "10.92.0.2", "lladdr", &text, "dev", "up1", "nud", "permanent"]);
        let [here, _] = configs(lab);
        let mut proxy = start(here);
        sync(&mut proxy, &[objects("tcp", "TCP", &THERE)]);
        let sent = packet("10.90.0.2:4000", &format!("{SHARED}:80"), TCP, SYN);
        let mut bytes = sent.bytes();
        bytes[6..12].copy_from_slice(&mac);
        let out = proxy.test_run("from_wire", &bytes, 1).unwrap();
        assert_eq!(out.verdict, REDIRECT);
        let source = format!("10.90.0.1:{}", source_port(&out.packet));
        let mut expected = lowered(packet(&source, "10.93.0.2:8080", TCP, SYN)).bytes();
        expected[6..12].copy_from_slice(&mac);
        assert_eq!(out.packet, expected);
        assert_eq!(counter(&proxy, "packet_dsr"), 0);
    });
}

#[test]
fn known_flow_is_sent_on_at_xdp() {
    run("known_flow_is_sent_on_at_xdp", |lab| {
        let mac = lab.mac(OTHER, "eth0");
        let text = mac.map(|byte| format!("{byte:02x}")).join(":");
        lab.ip(NODE, &["neigh", "replace", "10.92.0.2", "lladdr", &text, "dev", "up1", "nud", "permanent"]);
        let [mut here, _] = configs(lab);
        here.xdp = Xdp::On;
        let mut proxy = start(here);
        sync(&mut proxy, &[objects("tcp", "TCP", &THERE)]);
        let sent = packet("10.90.0.2:4000", &format!("{SHARED}:80"), TCP, SYN);
        let mut bytes = sent.bytes();
        bytes[..6].copy_from_slice(&lab.mac(NODE, "up0"));
        const XDP_PASS: i32 = 2;
        const XDP_REDIRECT: i32 = 4;
        let out = proxy.test_run_xdp(lab.ifindex("up0"), &bytes).unwrap();
        assert_eq!((out.verdict, &out.packet), (XDP_PASS, &bytes), "the first is tc's");
        proxy.test_run("from_wire", &bytes, 1).unwrap();
        let sent = packet("10.90.0.2:4000", &format!("{SHARED}:80"), TCP, ACK);
        let mut bytes = sent.bytes();
        bytes[..6].copy_from_slice(&lab.mac(NODE, "up0"));
        let out = proxy.test_run_xdp(lab.ifindex("up0"), &bytes).unwrap();
        let mut expected = sent_on(sent).bytes();
        expected[..6].copy_from_slice(&mac);
        expected[6..12].copy_from_slice(&lab.mac(NODE, "up1"));
        assert_eq!((out.verdict, out.packet), (XDP_REDIRECT, expected));
    });
}

#[test]
fn client_affinity_and_node_ports_keep_to_another_source() {
    run("client_affinity_and_node_ports_keep_to_another_source", |lab| {
        let [here, _] = configs(lab);
        let mut proxy = start(here);
        let spec = Spec { node_port: Some(30080), ..Spec::default() };
        let changes = json!({
            "type": "LoadBalancer",
            "status": { "loadBalancer": { "ingress": [{ "ip": SHARED }] } },
        });
        let sticky = Spec { name: "sticky", cluster_ips: &["10.96.0.11"], port: 81, ..Spec::default() };
        let mut affinity = changes.clone();
        affinity["sessionAffinity"] = json!("ClientIP");
        let all = [
            (service_with(&spec, &changes), slice("web", "TCP", 8080, &THERE)),
            (service_with(&sticky, &affinity), slice("sticky", "TCP", 8080, &THERE)),
        ];
        sync(&mut proxy, &all);
        for address in ["10.90.0.1:30080", "10.90.0.9:81"] {
            let sent = packet("10.90.0.2:4000", address, TCP, SYN);
            let out = proxy.test_run("from_wire", &sent.bytes(), 1).unwrap();
            assert_eq!(out.verdict, REDIRECT);
            assert!(source_port(&out.packet) >= 61_000, "{address}");
        }
    });
}
