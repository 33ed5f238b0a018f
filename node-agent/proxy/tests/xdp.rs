//! Services at XDP: what is sent on there, and what is left to tc.

mod support;

use std::net::UdpSocket;

use hawser_proxy::{Config, Proxy, Xdp};
use support::{
    CLIENT, HERE, Lab, NODE, NOTHING, OTHER, Spec, THERE, USUAL_PATIENCE, connect, counter, echo, eventually,
    patience, run, service_with, slice,
    wire::{ACK, Packet, RST, SYN, TCP, UDP, packet, source_port},
};

const DROP: i32 = 1;
const PASS: i32 = 2;
const TRANSMIT: i32 = 3;
const REDIRECT: i32 = 4;

/// A node whose uplinks run XDP, and know their neighbours.
fn config(lab: &Lab) -> Config {
    for (device, neighbour, addresses) in
        [("up0", CLIENT, ["10.90.0.2", "fd90::2"]), ("up1", OTHER, ["10.92.0.2", "fd92::2"])]
    {
        let mac = text(lab.mac(neighbour, "eth0"));
        for address in addresses {
            lab.ip(NODE, &["neigh", "replace", address, "lladdr", &mac, "dev", device, "nud", "permanent"]);
        }
    }
    let mut config = lab.config();
    config.xdp = Xdp::On;
    config
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A packet as it arrives at `device`, or leaves by it for the link-layer address `to`.
fn arriving(lab: &Lab, device: &str, packet: &Packet) -> Vec<u8> {
    framed(lab.mac(NODE, device), [0x02, 0, 0, 0, 0, 2], packet)
}

fn framed(to: [u8; 6], from: [u8; 6], packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes[..6].copy_from_slice(&to);
    bytes[6..12].copy_from_slice(&from);
    bytes
}

fn lowered(packet: Packet) -> Packet {
    Packet { hop_limit: packet.hop_limit - 1, ..packet }
}

/// Runs the program over a packet that arrives at `device`.
fn at(lab: &Lab, proxy: &Proxy, device: &str, sent: &[u8]) -> (i32, Vec<u8>) {
    let out = proxy.test_run_xdp(lab.ifindex(device), sent).unwrap();
    (out.verdict, out.packet)
}

/// The same for a packet of a known flow that is to be sent on. One in two seconds is left to tc, on purpose; an
/// emulated machine may take that long from one packet to the next.
fn sent_on(lab: &Lab, proxy: &Proxy, device: &str, sent: &[u8]) -> (i32, Vec<u8>) {
    let done = at(lab, proxy, device, sent);
    if done == (PASS, sent.to_vec()) { at(lab, proxy, device, sent) } else { done }
}

#[track_caller]
fn left_alone(sentence: &str, lab: &Lab, proxy: &Proxy, sent: &[u8]) {
    let before = counter(proxy, "packet_at_xdp");
    let (verdict, out) = at(lab, proxy, "up0", sent);
    assert_eq!((verdict, &out[..]), (PASS, sent), "{sentence}");
    assert_eq!(counter(proxy, "packet_at_xdp"), before, "{sentence}");
}

const CLIENTS: [(&str, &str, &str, u8); 4] = [
    ("10.90.0.2:4000", "10.90.0.1", "10.93.0.2:8080", TCP),
    ("[fd90::2]:4000", "[fd90::1]", "[fd93::2]:8080", TCP),
    ("10.90.0.2:4000", "10.90.0.1", "10.93.0.2:8080", UDP),
    ("[fd90::2]:4000", "[fd90::1]", "[fd93::2]:8080", UDP),
];

#[test]
fn packets_for_another_node_are_sent_on_and_their_replies_back() {
    run("packets_for_another_node_are_sent_on_and_their_replies_back", |lab| {
        let proxy = lab.with_node_ports(config(lab));
        let [up0, up1] = ["up0", "up1"].map(|device| lab.mac(NODE, device));
        for (client, node, backend, protocol) in CLIENTS {
            let frontend = format!("{node}:{THERE}");
            for (sentence, flags, moved) in
                [("first", SYN, "packet_new_flow"), ("later", ACK, "packet_forwarded")]
            {
                let before = (counter(&proxy, moved), counter(&proxy, "packet_at_xdp"));
                let sent = arriving(lab, "up0", &packet(client, &frontend, protocol, flags));
                let (verdict, out) = sent_on(lab, &proxy, "up0", &sent);
                assert_eq!(verdict, REDIRECT, "{sentence} to {frontend}");
                let source = format!("{node}:{}", source_port(&out));
                let expected = lowered(packet(&source, backend, protocol, flags));
                assert_eq!(out, framed(lab.mac(OTHER, "eth0"), up1, &expected), "{sentence} to {frontend}");
                let after = (counter(&proxy, moved), counter(&proxy, "packet_at_xdp"));
                assert_eq!((before.0 + 1, before.1 + 1), after, "{sentence} to {frontend}");

                let reply = arriving(lab, "up1", &packet(backend, &source, protocol, flags | ACK));
                let expected = lowered(packet(&frontend, client, protocol, flags | ACK));
                let expected = framed(lab.mac(CLIENT, "eth0"), up0, &expected);
                assert_eq!(sent_on(lab, &proxy, "up1", &reply), (REDIRECT, expected), "from {frontend}");
            }
        }
    });
}

#[test]
fn packet_that_leaves_as_it_came_is_transmitted_by_the_same_interface() {
    run("packet_that_leaves_as_it_came_is_transmitted_by_the_same_interface", |lab| {
        let config = config(lab);
        // The client's network is the way to the other node's pods, too.
        lab.ip(NODE, &["route", "replace", "10.93.0.0/24", "via", "10.90.0.2"]);
        let proxy = lab.with_node_ports(config);
        let frontend = format!("10.90.0.1:{THERE}");
        let sent = arriving(lab, "up0", &packet("10.90.0.2:4000", &frontend, TCP, SYN));
        let (verdict, out) = at(lab, &proxy, "up0", &sent);
        assert_eq!(verdict, TRANSMIT);
        let expected =
            lowered(packet(&format!("10.90.0.1:{}", source_port(&out)), "10.93.0.2:8080", TCP, SYN));
        assert_eq!(out, framed(lab.mac(CLIENT, "eth0"), lab.mac(NODE, "up0"), &expected));
    });
}

#[test]
fn datagram_without_checksum_stays_without() {
    run("datagram_without_checksum_stays_without", |lab| {
        let proxy = lab.with_node_ports(config(lab));
        let frontend = format!("10.90.0.1:{THERE}");
        let sent = Packet { udp_checksum: false, ..packet("10.90.0.2:4000", &frontend, UDP, 0) };
        let (verdict, out) = at(lab, &proxy, "up0", &arriving(lab, "up0", &sent));
        assert_eq!(verdict, REDIRECT);
        let source = format!("10.90.0.1:{}", source_port(&out));
        let expected = lowered(Packet { udp_checksum: false, ..packet(&source, "10.93.0.2:8080", UDP, 0) });
        assert_eq!(out, framed(lab.mac(OTHER, "eth0"), lab.mac(NODE, "up1"), &expected));
    });
}

#[test]
fn all_else_is_left_to_tc_unchanged() {
    run("all_else_is_left_to_tc_unchanged", |lab| {
        let mut config = config(lab);
        config.node_addresses.push("10.90.0.7".parse().unwrap());
        let proxy = lab.with_node_ports(config);
        for (client, node, _, protocol) in CLIENTS {
            let to = |port: u16, flags| packet(client, &format!("{node}:{port}"), protocol, flags);
            let passes = |sentence: &str, packet: Packet| {
                left_alone(sentence, lab, &proxy, &arriving(lab, "up0", &packet))
            };
            passes("a backend of this node", to(HERE, SYN));
            passes("a known flow to it", to(HERE, ACK));
            passes("no backend", to(NOTHING, SYN));
            passes("no service", to(22, SYN));
            passes("no flow", packet(client, &format!("{node}:{THERE}"), TCP, ACK));
            passes("a reset", packet(client, &format!("{node}:{THERE}"), TCP, RST));
            passes("the last hop", Packet { hop_limit: 1, ..to(THERE, SYN) });
            let ours = arriving(lab, "up0", &to(THERE, SYN));
            let mut others = ours.clone();
            others[5] ^= 1;
            left_alone("another host's", lab, &proxy, &others);
            for len in [14, 20, 33, 34, 40, ours.len() - 1] {
                left_alone("cut short", lab, &proxy, &ours[..len]);
            }
        }
        let to = packet("10.90.0.2:4000", &format!("10.90.0.1:{THERE}"), UDP, 0);
        for part in to.parts(8) {
            let mut part = part;
            part[..6].copy_from_slice(&lab.mac(NODE, "up0"));
            left_alone("a part of a datagram", lab, &proxy, &part);
        }
        lab.ip(NODE, &["neigh", "del", "10.92.0.2", "dev", "up1"]);
        left_alone("no neighbour yet", lab, &proxy, &arriving(lab, "up0", &to));
    });
}

#[test]
fn packet_does_not_leave_by_an_interface_without_xdp() {
    run("packet_does_not_leave_by_an_interface_without_xdp", |lab| {
        let mut config = config(lab);
        config.uplinks = vec!["up0".to_owned()];
        let proxy = lab.with_node_ports(config);
        assert!(lab.has_xdp("up0") && !lab.has_xdp("up1"));
        let sent = packet("10.90.0.2:4000", &format!("10.90.0.1:{THERE}"), TCP, SYN);
        left_alone("no XDP on the way out", lab, &proxy, &arriving(lab, "up0", &sent));
        assert_eq!(counter(&proxy, "packet_new_flow"), 1, "the flow is there for tc");
    });
}

#[test]
fn source_outside_of_the_ranges_is_dropped() {
    run("source_outside_of_the_ranges_is_dropped", |lab| {
        let mut proxy = Proxy::start(config(lab)).unwrap();
        let changes = serde_json::json!({
            "type": "LoadBalancer",
            "loadBalancerSourceRanges": ["10.90.0.128/25"],
            "status": { "loadBalancer": { "ingress": [{ "ip": "10.90.0.9" }] } },
        });
        let service = service_with(&Spec::default(), &changes);
        let slice = slice("web", "TCP", 8080, &[("10.93.0.2", "node-b", true)]);
        proxy.sync(&[service], &[slice], &[]).unwrap();
        let verdict = |client: &str| {
            let sent = arriving(lab, "up0", &packet(client, "10.90.0.9:80", TCP, SYN));
            at(lab, &proxy, "up0", &sent).0
        };
        assert_eq!(verdict("10.90.0.2:4000"), DROP);
        assert_eq!(counter(&proxy, "drop_source_range"), 1);
        assert_eq!(verdict("10.90.0.130:4000"), REDIRECT);
    });
}

#[test]
fn garbage_gets_a_verdict_and_keeps_its_length() {
    run("garbage_gets_a_verdict_and_keeps_its_length", |lab| {
        let proxy = lab.with_node_ports(config(lab));
        // xorshift64: the same garbage on every run.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % bound as u64) as usize
        };
        // Before Linux 6.6 a run costs a change of the kernel's own code, which takes an emulated machine long.
        let rounds = 4000 / (patience().as_secs() / USUAL_PATIENCE.as_secs()) as usize;
        for round in 0..rounds {
            let (client, node, _, protocol) = CLIENTS[round % CLIENTS.len()];
            let sent = packet(client, &format!("{node}:{THERE}"), protocol, SYN);
            let mut bytes = arriving(lab, "up0", &sent);
            for _ in 0..below(6) {
                let at = 12 + below(bytes.len() - 12);
                bytes[at] = below(256) as u8;
            }
            if below(3) == 0 {
                bytes.truncate(14 + below(bytes.len() - 13));
            }
            let (verdict, out) = at(lab, &proxy, "up0", &bytes);
            assert!([DROP, PASS, TRANSMIT, REDIRECT].contains(&verdict), "{verdict} for {bytes:02x?}");
            assert_eq!(out.len(), bytes.len(), "{bytes:02x?}");
        }
    });
}

#[test]
fn clients_outside_reach_backends_of_another_node_through_xdp() {
    run("clients_outside_reach_backends_of_another_node_through_xdp", |lab| {
        lab.prepare_for_xdp(CLIENT, "eth0");
        lab.prepare_for_xdp(OTHER, "eth0");
        let _servers = ["10.93.0.2:8080", "[fd93::2]:8080"].map(|address| lab.tcp_server(OTHER, address));
        let _udp = ["10.93.0.2:8080", "[fd93::2]:8080"].map(|address| lab.udp_server(OTHER, address));
        let proxy = lab.with_node_ports(config(lab));
        lab.inside(CLIENT, || {
            for (node, seen) in [("10.90.0.1", "10.90.0.1"), ("[fd90::1]", "fd90::1")] {
                let address = format!("{node}:{THERE}");
                let (mut stream, line) = connect(&address).unwrap();
                assert!(line.ends_with(&format!("sees {seen}")), "{line}");
                for _ in 0..100 {
                    echo(&mut stream);
                }
                let socket =
                    UdpSocket::bind(if node.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
                socket.set_read_timeout(Some(patience())).unwrap();
                let mut buffer = [0; 64];
                for _ in 0..10 {
                    socket.send_to(b"hello", &address).unwrap();
                    let (_, from) = socket.recv_from(&mut buffer).unwrap();
                    assert_eq!(from.to_string(), address);
                }
            }
        });
        // Two families, and each echo is a segment and an acknowledgement there, and a segment back at least.
        let sent_on = counter(&proxy, "packet_at_xdp");
        assert!(sent_on > 2 * (200 + 20), "{sent_on}");
    });
}

#[test]
fn veth_runs_xdp_only_where_that_is_asked_for() {
    run("veth_runs_xdp_only_where_that_is_asked_for", |lab| {
        let start = |xdp| Proxy::start(Config { xdp, ..lab.config() }).unwrap();
        drop(start(Xdp::Auto));
        assert!(!lab.has_xdp("up0") && !lab.has_xdp("up1"));
        drop(start(Xdp::On));
        assert!(lab.has_xdp("up0") && lab.has_xdp("up1"));
        // The one that was there is replaced in place.
        let proxy = start(Xdp::On);
        assert!(lab.has_xdp("up0") && lab.has_xdp("up1"));
        drop(proxy);
        drop(start(Xdp::Off));
        assert!(!lab.has_xdp("up0") && !lab.has_xdp("up1"));
    });
}

#[test]
fn uplink_that_is_none_any_more_loses_xdp() {
    run("uplink_that_is_none_any_more_loses_xdp", |lab| {
        drop(Proxy::start(Config { xdp: Xdp::On, ..lab.config() }).unwrap());
        let config = Config { xdp: Xdp::On, uplinks: vec!["up1".to_owned()], ..lab.config() };
        let proxy = lab.with_node_ports(config);
        assert!(!lab.has_xdp("up0") && lab.has_xdp("up1"));
        Proxy::remove_all(&lab.bpffs()).unwrap();
        assert!(!lab.has_xdp("up1"));
        drop(proxy);
    });
}

#[test]
fn neighbour_that_changes_is_followed() {
    run("neighbour_that_changes_is_followed", |lab| {
        let proxy = lab.with_node_ports(config(lab));
        let frontend = format!("10.90.0.1:{THERE}");
        let sent = arriving(lab, "up0", &packet("10.90.0.2:4000", &frontend, TCP, SYN));
        let goes_to = || at(lab, &proxy, "up0", &sent).1[..6].to_vec();
        assert_eq!(goes_to(), lab.mac(OTHER, "eth0"));
        let neighbour = ["neigh", "replace", "10.92.0.2", "lladdr", "02:00:00:00:00:77", "dev", "up1"];
        lab.ip(NODE, &neighbour);
        eventually("packets go to the new address", || goes_to() == [2, 0, 0, 0, 0, 0x77]);
    });
}

/// What leaves at XDP does not make the kernel probe its neighbour.
#[test]
fn packet_is_left_to_tc_now_and_then() {
    run("packet_is_left_to_tc_now_and_then", |lab| {
        let proxy = lab.with_node_ports(config(lab));
        let frontend = format!("10.90.0.1:{THERE}");
        let sent = arriving(lab, "up0", &packet("10.90.0.2:4000", &frontend, TCP, SYN));
        for time in ["first", "second"] {
            assert_eq!(sent_on(lab, &proxy, "up0", &sent).0, REDIRECT, "{time}");
            eventually("one passes", || at(lab, &proxy, "up0", &sent) == (PASS, sent.clone()));
        }
    });
}
