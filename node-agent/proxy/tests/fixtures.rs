//! The packet programs, run by the kernel over single packets (BPF_PROG_TEST_RUN).
//!
//! A fixture is a sentence, a program, a packet in, a verdict, a packet out, and the counter that moved.

mod support;

use std::net::IpAddr;

use hawser_proxy::{Proxy, ShortWays};
use support::{NODE, OTHER, counter, run};

const PASS: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN_ACK: u8 = 0x11;
const SYN_ACK: u8 = 0x12;
const RST: u8 = 0x04;

/// A packet in words.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    protocol: u8,
    tcp_flags: u8,
    hop_limit: u8,
    /// Bytes of IPv4 options, a multiple of 4.
    options: usize,
    fragment: u16,
    udp_checksum: bool,
}

fn packet(source: &str, destination: &str, protocol: u8, tcp_flags: u8) -> Packet {
    let parse = |text: &str| {
        let address: std::net::SocketAddr = text.parse().unwrap();
        (address.ip(), address.port())
    };
    Packet {
        source: parse(source),
        destination: parse(destination),
        protocol,
        tcp_flags,
        hop_limit: 64,
        options: 0,
        fragment: 0,
        udp_checksum: true,
    }
}

const PAYLOAD: &[u8] = b"odd";

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut l4 = Vec::new();
        l4.extend(self.source.1.to_be_bytes());
        l4.extend(self.destination.1.to_be_bytes());
        if self.protocol == TCP {
            l4.extend([0, 0, 0, 1, 0, 0, 0, 2, 5 << 4, self.tcp_flags, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            l4.extend((8 + PAYLOAD.len() as u16).to_be_bytes());
            l4.extend([0, 0]);
        }
        l4.extend(PAYLOAD);
        let checksum_at = if self.protocol == TCP { 16 } else { 6 };
        let sum = self.l4_checksum(&l4);
        if self.udp_checksum {
            l4[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        match (self.source.0, self.destination.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend([0x08, 0x00]);
                let header_len = 20 + self.options;
                let mut header = vec![0x40 | (header_len / 4) as u8, 0];
                header.extend(((header_len + l4.len()) as u16).to_be_bytes());
                header.extend([0x12, 0x34]);
                header.extend(self.fragment.to_be_bytes());
                header.extend([self.hop_limit, self.protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.resize(header_len, 1);
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                bytes.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                bytes.extend((l4.len() as u16).to_be_bytes());
                bytes.extend([self.protocol, self.hop_limit]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            _ => panic!("addresses of two families"),
        }
        bytes.extend(l4);
        bytes
    }

    fn l4_checksum(&self, l4: &[u8]) -> u16 {
        let mut covered = Vec::new();
        for address in [self.source.0, self.destination.0] {
            match address {
                IpAddr::V4(address) => covered.extend(address.octets()),
                IpAddr::V6(address) => covered.extend(address.octets()),
            }
        }
        covered.extend([0, self.protocol]);
        covered.extend((l4.len() as u16).to_be_bytes());
        covered.extend(l4);
        match (checksum(&covered), self.protocol) {
            (0, UDP) => 0xffff,
            (sum, _) => sum,
        }
    }
}

/// RFC 1071, word by word.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Runs `program` over `sent`; the result must be `verdict`, and the packet `expected` byte by byte, checksums too.
#[track_caller]
fn check(
    sentence: &str,
    proxy: &Proxy,
    program: &'static str,
    sent: &Packet,
    verdict: i32,
    expected: &Packet,
    moved: Option<&str>,
) {
    let before = moved.map(|name| counter(proxy, name));
    let run = proxy.test_run(program, &sent.bytes(), 1).unwrap();
    assert_eq!(run.verdict, verdict, "{sentence}");
    assert_eq!(run.packet, expected.bytes(), "{sentence}");
    if let Some(name) = moved {
        assert_eq!(Some(counter(proxy, name) - 1), before, "{sentence}: {name}");
    }
}

/// A node with: 30080 TCP and 30053 UDP to a pod here, 30090 TCP and 30063 UDP to a pod of another node, 30070 without
/// backend, 30071 with policy Local and a backend elsewhere. All for both families.
fn proxy(lab: &support::Lab) -> Proxy {
    let mut config = lab.config();
    config.pod_ranges = vec![("10.91.0.0".parse().unwrap(), 24)];
    config.short_ways = ShortWays::Off;
    let ports = [
        ("TCP", 30080, "Cluster", Some(NODE)),
        ("UDP", 30053, "Cluster", Some(NODE)),
        ("TCP", 30090, "Cluster", Some(OTHER)),
        ("UDP", 30063, "Cluster", Some(OTHER)),
        ("TCP", 30070, "Cluster", None),
        ("TCP", 30071, "Local", Some(OTHER)),
    ];
    lab.with_ports(config, &ports)
}

#[test]
fn packets_for_a_backend_here_are_rewritten_and_left_to_the_host() {
    run("packets_for_a_backend_here_are_rewritten_and_left_to_the_host", |lab| {
        let proxy = proxy(lab);
        for (client, node, backend, protocol, port) in [
            ("10.90.0.2:4000", "10.90.0.1", "10.91.0.2:8080", TCP, 30080),
            ("[fd90::2]:4000", "[fd90::1]", "[fd91::2]:8080", TCP, 30080),
            ("10.90.0.2:4000", "10.90.0.1", "10.91.0.2:8080", UDP, 30053),
            ("[fd90::2]:4000", "[fd90::1]", "[fd91::2]:8080", UDP, 30053),
        ] {
            let frontend = format!("{node}:{port}");
            let sent = packet(client, &frontend, protocol, SYN);
            let expected = packet(client, backend, protocol, SYN);
            check("the first packet", &proxy, "from_wire", &sent, PASS, &expected, Some("packet_new_flow"));
            let sent = packet(client, &frontend, protocol, ACK);
            let expected = packet(client, backend, protocol, ACK);
            check("a later one", &proxy, "from_wire", &sent, PASS, &expected, Some("packet_forwarded"));
            let sent = packet(backend, client, protocol, SYN_ACK);
            let expected = packet(&frontend, client, protocol, SYN_ACK);
            check("the reply", &proxy, "to_wire", &sent, PASS, &expected, Some("packet_replied"));
        }
    });
}

#[test]
fn packets_for_another_node_get_a_source_of_the_nodes_and_come_back() {
    run("packets_for_another_node_get_a_source_of_the_nodes_and_come_back", |lab| {
        let proxy = proxy(lab);
        for (client, node, backend, protocol, port) in [
            ("10.90.0.2:4000", "10.90.0.1", "10.93.0.2:8080", TCP, 30090),
            ("[fd90::2]:4000", "[fd90::1]", "[fd93::2]:8080", TCP, 30090),
            ("10.90.0.2:4000", "10.90.0.1", "10.93.0.2:8080", UDP, 30063),
            ("[fd90::2]:4000", "[fd90::1]", "[fd93::2]:8080", UDP, 30063),
        ] {
            let frontend = format!("{node}:{port}");
            let sent = packet(client, &frontend, protocol, SYN);
            let out = proxy.test_run("from_wire", &sent.bytes(), 1).unwrap();
            let l4 = if node.starts_with('[') { 14 + 40 } else { 14 + 20 };
            let source_port = u16::from_be_bytes([out.packet[l4], out.packet[l4 + 1]]);
            assert!(source_port >= 61_000, "{source_port}");
            let source = format!("{node}:{source_port}");
            let lowered = |packet: Packet| Packet { hop_limit: 63, ..packet };
            let expected = lowered(packet(&source, backend, protocol, SYN));
            assert_eq!((out.verdict, out.packet), (REDIRECT, expected.bytes()), "{frontend}");
            check(
                "again, the same source",
                &proxy,
                "from_wire",
                &sent,
                REDIRECT,
                &expected,
                Some("packet_forwarded"),
            );
            let sent = packet(backend, &source, protocol, ACK);
            let expected = lowered(packet(&frontend, client, protocol, ACK));
            check("the reply", &proxy, "from_wire", &sent, REDIRECT, &expected, Some("packet_replied"));
        }
    });
}

#[test]
fn packets_that_are_not_ours_are_left_alone() {
    run("packets_that_are_not_ours_are_left_alone", |lab| {
        let proxy = proxy(lab);
        let left_alone = |sentence, program, packet: Packet, moved| {
            check(sentence, &proxy, program, &packet, PASS, &packet, moved);
        };
        let to = |port: u16, flags| packet("10.90.0.2:4000", &format!("10.90.0.1:{port}"), TCP, flags);
        for program in ["from_wire", "to_wire", "from_pod", "to_pod"] {
            left_alone("another port", program, to(22, SYN), None);
            left_alone("another v6 port", program, packet("[fd90::2]:4000", "[fd90::1]:22", TCP, SYN), None);
            left_alone("another protocol", program, Packet { protocol: 132, ..to(30080, 0) }, None);
        }
        left_alone("no backend", "from_wire", to(30070, SYN), Some("packet_no_backend"));
        left_alone("no flow", "from_wire", to(30080, ACK), None);
        left_alone(
            "cluster IP from outside",
            "from_wire",
            packet("10.90.0.2:4000", "10.96.0.1:80", TCP, SYN),
            None,
        );
        left_alone(
            "another's address from a pod",
            "from_pod",
            packet("10.91.0.3:4000", "10.96.0.1:80", TCP, SYN),
            Some("pass_foreign_source"),
        );
        lab.test_runs_are_from(&proxy, &["10.91.0.2"]);
        left_alone(
            "loopback from a pod",
            "from_pod",
            packet("10.91.0.2:4000", "127.0.0.1:30080", TCP, SYN),
            None,
        );
        let part = Packet { fragment: 0x0010, ..to(30080, SYN) };
        left_alone("a part whose first was not seen", "from_wire", part, Some("pass_fragment"));
        left_alone("no such reply", "from_wire", packet("10.93.0.2:80", "10.90.0.1:61001", TCP, ACK), None);
    });
}

#[test]
fn packets_that_cannot_go_on_are_dropped_and_counted() {
    run("packets_that_cannot_go_on_are_dropped_and_counted", |lab| {
        let proxy = proxy(lab);
        let to_local = packet("10.90.0.2:4000", "10.90.0.1:30071", TCP, SYN);
        let name = Some("drop_no_local_backend");
        check("policy Local without a backend here", &proxy, "from_wire", &to_local, DROP, &to_local, name);
        let dying = Packet { hop_limit: 1, ..packet("10.90.0.2:4000", "10.90.0.1:30090", TCP, SYN) };
        let before = counter(&proxy, "drop_hop_limit");
        assert_eq!(proxy.test_run("from_wire", &dying.bytes(), 1).unwrap().verdict, DROP);
        assert_eq!(counter(&proxy, "drop_hop_limit"), before + 1);
    });
}

#[test]
fn headers_of_unusual_shape_are_understood() {
    run("headers_of_unusual_shape_are_understood", |lab| {
        let proxy = proxy(lab);
        for options in [4, 40] {
            let with = |packet: Packet| Packet { options, ..packet };
            let sent = with(packet("10.90.0.2:4001", "10.90.0.1:30080", TCP, SYN));
            let expected = with(packet("10.90.0.2:4001", "10.91.0.2:8080", TCP, SYN));
            check("IPv4 options", &proxy, "from_wire", &sent, PASS, &expected, None);
        }
        let without = |packet: Packet| Packet { udp_checksum: false, ..packet };
        let sent = without(packet("10.90.0.2:4002", "10.90.0.1:30053", UDP, 0));
        let expected = without(packet("10.90.0.2:4002", "10.91.0.2:8080", UDP, 0));
        check("UDP without checksum", &proxy, "from_wire", &sent, PASS, &expected, None);
        // A port for each sum: among 65,535 of them is the one whose checksum comes out as zero.
        for port in (1024..=u16::MAX).step_by(7) {
            let client = format!("10.90.0.2:{port}");
            let sent = packet(&client, "10.90.0.1:30053", UDP, 0);
            let expected = packet(&client, "10.91.0.2:8080", UDP, 0);
            check("any checksum", &proxy, "from_wire", &sent, PASS, &expected, None);
        }
    });
}

#[test]
fn client_that_uses_its_port_again_gets_a_new_flow() {
    run("client_that_uses_its_port_again_gets_a_new_flow", |lab| {
        let proxy = proxy(lab);
        let sent = |flags| packet("10.90.0.2:4000", "10.90.0.1:30080", TCP, flags);
        let expected = |flags| packet("10.90.0.2:4000", "10.91.0.2:8080", TCP, flags);
        let new = Some("packet_new_flow");
        let forwarded = Some("packet_forwarded");
        check("the first", &proxy, "from_wire", &sent(SYN), PASS, &expected(SYN), new);
        let back = |flags| packet("10.91.0.2:8080", "10.90.0.2:4000", TCP, flags);
        let expected_back = |flags| packet("10.90.0.1:30080", "10.90.0.2:4000", TCP, flags);
        let replied = Some("packet_replied");
        let answer =
            |flags| check("answer", &proxy, "to_wire", &back(flags), PASS, &expected_back(flags), replied);
        answer(SYN_ACK);
        check("the client ends", &proxy, "from_wire", &sent(FIN_ACK), PASS, &expected(FIN_ACK), forwarded);
        let before = counter(&proxy, "packet_new_flow");
        check("anybody's SYN", &proxy, "from_wire", &sent(SYN), PASS, &expected(SYN), forwarded);
        assert_eq!(counter(&proxy, "packet_new_flow"), before, "the backend has more to say");
        answer(FIN_ACK);
        check("the port again", &proxy, "from_wire", &sent(SYN), PASS, &expected(SYN), new);
        answer(SYN_ACK);
        check("the client resets", &proxy, "from_wire", &sent(RST), PASS, &expected(RST), forwarded);
        check("the port once more", &proxy, "from_wire", &sent(SYN), PASS, &expected(SYN), new);
    });
}

/// A service and its backend, asked from one port of a client: the backend sees two clients, whoever came first, and
/// each gets its own answers.
#[test]
fn client_may_use_one_port_for_a_service_and_its_backend() {
    run("client_may_use_one_port_for_a_service_and_its_backend", |lab| {
        let proxy = proxy(lab);
        let (client, node, backend) = ("10.90.0.2:4000", "10.90.0.1:30080", "10.91.0.2:8080");
        let through = |what: &str, program, sent: Packet, expected: Packet| {
            check(what, &proxy, program, &sent, PASS, &expected, None);
        };
        // Returns the packet as a client of another port would have sent it.
        let with_port = |what: &str, sent: &Packet| {
            let out = proxy.test_run("from_wire", &sent.bytes(), 1).unwrap();
            let port = u16::from_be_bytes([out.packet[34], out.packet[35]]);
            assert!(port >= 61_000, "{what}: {port}");
            assert_eq!(out.packet[26..30], [10, 90, 0, 2], "{what}: the address is the client's own");
            format!("10.90.0.2:{port}")
        };

        through("service", "from_wire", packet(client, node, TCP, SYN), packet(client, backend, TCP, SYN));
        let answer = packet(backend, client, TCP, SYN_ACK);
        through("service's answer", "to_wire", answer, packet(node, client, TCP, SYN_ACK));
        through(
            "service's client",
            "from_wire",
            packet(client, node, TCP, ACK),
            packet(client, backend, TCP, ACK),
        );
        let source = with_port("direct, later", &packet(client, backend, TCP, SYN));
        let answer = packet(backend, &source, TCP, SYN_ACK);
        through("direct's answer", "to_wire", answer, packet(backend, client, TCP, SYN_ACK));
        let answer = packet(backend, client, TCP, ACK);
        through("service's answer still", "to_wire", answer, packet(node, client, TCP, ACK));

        let (client, others) = ("10.90.0.2:4001", packet(backend, "10.90.0.2:4001", TCP, ACK));
        through(
            "service, later",
            "from_wire",
            packet(client, node, TCP, SYN),
            packet(client, backend, TCP, SYN),
        );
        through("the older one's answer", "to_wire", others.clone(), others.clone());
        let source = with_port("service, sent again", &packet(client, node, TCP, SYN));
        let answer = packet(backend, &source, TCP, SYN_ACK);
        through("service's answer", "to_wire", answer, packet(node, client, TCP, SYN_ACK));
        through("the older one's answer still", "to_wire", others.clone(), others);

        let client = "10.90.0.2:4002";
        through(
            "datagram",
            "from_wire",
            packet(client, "10.90.0.1:30053", UDP, 0),
            packet(client, backend, UDP, 0),
        );
        let source = with_port("datagram, direct", &packet(client, backend, UDP, 0));
        through("its answer", "to_wire", packet(backend, &source, UDP, 0), packet(backend, client, UDP, 0));
        let answer = packet("10.90.0.1:30053", client, UDP, 0);
        through("service's answer", "to_wire", packet(backend, client, UDP, 0), answer);
    });
}

/// A flood of first packets, each of which the backend answers: a client that is not there never answers that.
#[test]
fn flood_of_first_packets_costs_no_established_flow() {
    run("flood_of_first_packets_costs_no_established_flow", |lab| {
        let proxy = proxy(lab);
        let (node, backend) = ("10.90.0.1:30080", "10.91.0.2:8080");
        let clients: Vec<String> = (0..200).map(|n| format!("10.90.0.2:{}", 2000 + n)).collect();
        for client in &clients {
            let (sent, expected) = (packet(client, node, TCP, SYN), packet(client, backend, TCP, SYN));
            check("first", &proxy, "from_wire", &sent, PASS, &expected, None);
            let (sent, expected) =
                (packet(backend, client, TCP, SYN_ACK), packet(node, client, TCP, SYN_ACK));
            check("answered", &proxy, "to_wire", &sent, PASS, &expected, None);
            let (sent, expected) = (packet(client, node, TCP, ACK), packet(client, backend, TCP, ACK));
            check("confirmed", &proxy, "from_wire", &sent, PASS, &expected, None);
        }
        // More than three times what the table holds, and fast: what has waited for half a minute is not evicted. So
        // the same two packets are sent with other clients' addresses; programs compare no checksums.
        let mut first = packet("10.90.0.3:1024", node, TCP, SYN).bytes();
        let mut answer = packet(backend, "10.90.0.3:1024", TCP, SYN_ACK).bytes();
        for n in 0..220_000u32 {
            let (address, port) =
                ([10, 90, 1 + (n / 60_000) as u8, 3], (1024 + (n % 60_000) as u16).to_be_bytes());
            first[26..30].copy_from_slice(&address);
            first[34..36].copy_from_slice(&port);
            answer[30..34].copy_from_slice(&address);
            answer[36..38].copy_from_slice(&port);
            proxy.test_run("from_wire", &first, 1).unwrap();
            proxy.test_run("to_wire", &answer, 1).unwrap();
        }
        assert!(counter(&proxy, "flow_evicted") > 100_000);
        for client in &clients {
            let (sent, expected) = (packet(backend, client, TCP, ACK), packet(node, client, TCP, ACK));
            check("still known", &proxy, "to_wire", &sent, PASS, &expected, Some("packet_replied"));
        }
    });
}

#[test]
fn garbage_is_passed_or_dropped_and_never_more() {
    run("garbage_is_passed_or_dropped_and_never_more", |lab| {
        let proxy = proxy(lab);
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let good = [
            packet("10.90.0.2:4000", "10.90.0.1:30080", TCP, SYN),
            packet("10.90.0.2:4000", "10.90.0.1:30063", UDP, 0),
            packet("[fd90::2]:4000", "[fd90::1]:30090", TCP, SYN),
            packet("[fd90::2]:4000", "[fd90::1]:30053", UDP, 0),
        ];
        for round in 0..4000 {
            let mut bytes = good[round % good.len()].bytes();
            for _ in 0..random.below(6) {
                let at = random.below(bytes.len());
                bytes[at] = random.below(256) as u8;
            }
            if random.below(3) == 0 {
                bytes.truncate(14 + random.below(bytes.len() - 13));
            }
            for program in ["from_wire", "to_wire", "from_pod", "to_pod"] {
                // The kernel itself refuses some lengths before the program runs.
                let Ok(out) = proxy.test_run(program, &bytes, 1) else { continue };
                assert!(
                    [PASS, DROP, REDIRECT].contains(&out.verdict),
                    "{program}: {} for {bytes:02x?}",
                    out.verdict
                );
                assert_eq!(out.packet.len(), bytes.len(), "{program}: {bytes:02x?}");
            }
        }
    });
}

/// xorshift64: the same garbage on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}
