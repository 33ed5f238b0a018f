//! Packets that are not the plain ones, run by the kernel over single packets (BPF_PROG_TEST_RUN): ICMP errors, parts
//! of datagrams, extension headers, answers, source ports, and garbage.
//!
//! What comes out is compared byte by byte with packets whose checksums are summed up from scratch.

mod support;

use std::{collections::HashSet, net::IpAddr};

use hawser_proxy::Proxy;
use support::{
    HERE, NOTHING, THERE, counter, run,
    wire::{
        ACK, DESTINATION_OPTIONS, DROP, FIN, FRAGMENT, HOP_BY_HOP, IcmpError, PASS, Packet, REDIRECT,
        ROUTING, RST, SYN, TCP, UDP, packet, source_port, turned,
    },
};

/// Node ports of a backend here, of one on another node, and of a service without backend; a way to each client.
struct Family {
    client: &'static str,
    node: &'static str,
    here: &'static str,
    there: &'static str,
    router: IpAddr,
}

fn families() -> [Family; 2] {
    [
        Family {
            client: "10.90.0.2",
            node: "10.90.0.1",
            here: "10.91.0.2:8080",
            there: "10.93.0.2:8080",
            router: "192.0.2.7".parse().unwrap(),
        },
        Family {
            client: "[fd90::2]",
            node: "[fd90::1]",
            here: "[fd91::2]:8080",
            there: "[fd93::2]:8080",
            router: "2001:db8::7".parse().unwrap(),
        },
    ]
}

fn proxy(lab: &support::Lab) -> Proxy {
    lab.with_node_ports(lab.config())
}

#[track_caller]
fn check(sentence: &str, proxy: &Proxy, program: &'static str, sent: &[u8], verdict: i32, expected: &[u8]) {
    let out = proxy.test_run(program, sent, 1).unwrap();
    assert_eq!((out.verdict, hex(&out.packet)), (verdict, hex(expected)), "{sentence}");
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(2)
        .map(|pair| pair.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + " ")
        .collect()
}

fn lowered(packet: Packet) -> Packet {
    Packet { hop_limit: packet.hop_limit - 1, ..packet }
}

/// Starts a flow from `client` to the node port; returns the client as the backend sees it.
fn start(proxy: &Proxy, sent: &Packet) -> String {
    let out = proxy.test_run("from_wire", &sent.bytes(), 1).unwrap();
    assert!([PASS, REDIRECT].contains(&out.verdict), "{}", out.verdict);
    let node = sent.destination.ip();
    if out.verdict == PASS {
        return sent.source.to_string();
    }
    std::net::SocketAddr::new(node, source_port(&out.packet)).to_string()
}

/// An error about a packet, as `from` sends it; cut to 8 bytes behind the IP header, or whole.
fn error_about(packet: &Packet, from: IpAddr, rest: u32, is_cut: bool) -> IcmpError {
    let mut quoted = packet.ip_bytes();
    if is_cut {
        quoted.truncate(if packet.source.is_ipv4() { 28 } else { 48 });
    }
    IcmpError {
        source: from,
        destination: packet.source.ip(),
        v4: [3, 4],
        v6: [2, 0],
        rest,
        hop_limit: 60,
        quoted,
    }
}

#[test]
fn icmp_errors_travel_with_their_flow_in_both_directions() {
    run("icmp_errors_travel_with_their_flow_in_both_directions", |lab| {
        let proxy = proxy(lab);
        let mut clients = 4000..;
        for family in families() {
            for (protocol, is_cut) in [(TCP, true), (TCP, false), (UDP, true), (UDP, false)] {
                for (port, backend, is_snat) in [(HERE, family.here, false), (THERE, family.there, true)] {
                    let client = format!("{}:{}", family.client, clients.next().unwrap());
                    let frontend = format!("{}:{port}", family.node);
                    let seen_as = start(&proxy, &packet(&client, &frontend, protocol, SYN));
                    let before = counter(&proxy, "icmp_error_translated");
                    // The packets as the client sends them, as the backend gets them, and back.
                    let there = packet(&client, &frontend, protocol, ACK);
                    let there_inside = packet(&seen_as, backend, protocol, ACK);
                    let back_inside = packet(backend, &seen_as, protocol, ACK);
                    let back = packet(&frontend, &client, protocol, ACK);
                    let about = |packet: &Packet, from| error_about(packet, from, 1400, is_cut);
                    let (program, verdict, hops) =
                        if is_snat { ("from_wire", REDIRECT, 1) } else { ("to_wire", PASS, 0) };
                    let after =
                        |error: IcmpError, hops| IcmpError { hop_limit: error.hop_limit - hops, ..error };

                    let from_backend = about(&there_inside, back_inside.source.ip());
                    let expected = after(about(&there, back.source.ip()), hops);
                    check(
                        "of the backend",
                        &proxy,
                        program,
                        &from_backend.bytes(),
                        verdict,
                        &expected.bytes(),
                    );

                    let from_router = about(&there_inside, family.router);
                    let seen_from = if is_snat { back.source.ip() } else { family.router };
                    let expected = after(about(&there, seen_from), hops);
                    check("of a router", &proxy, program, &from_router.bytes(), verdict, &expected.bytes());

                    let verdict = if is_snat { REDIRECT } else { PASS };
                    let from_client = about(&back, there.source.ip());
                    let expected = after(about(&back_inside, there_inside.source.ip()), hops);
                    check(
                        "of the client",
                        &proxy,
                        "from_wire",
                        &from_client.bytes(),
                        verdict,
                        &expected.bytes(),
                    );

                    let from_router = about(&back, family.router);
                    let seen_from = if is_snat { there_inside.source.ip() } else { family.router };
                    let expected = after(about(&back_inside, seen_from), hops);
                    check(
                        "of its router",
                        &proxy,
                        "from_wire",
                        &from_router.bytes(),
                        verdict,
                        &expected.bytes(),
                    );
                    assert_eq!(counter(&proxy, "icmp_error_translated"), before + 4);
                }
            }
        }
    });
}

#[test]
fn icmp_errors_that_belong_to_no_flow_are_left_alone() {
    run("icmp_errors_that_belong_to_no_flow_are_left_alone", |lab| {
        let proxy = proxy(lab);
        for family in families() {
            let client = format!("{}:4000", family.client);
            let frontend = format!("{}:{HERE}", family.node);
            start(&proxy, &packet(&client, &frontend, TCP, SYN));
            let back = packet(&frontend, &client, TCP, ACK);
            let good = error_about(&back, family.router, 1400, true);
            let other = packet(&frontend, &format!("{}:4001", family.client), TCP, ACK);
            let mut echo = good.clone();
            (echo.v4, echo.v6) = ([8, 0], [128, 0]);
            let mut not_its_own = good.clone();
            not_its_own.destination = back.destination.ip();
            let mut short = good.clone();
            short.quoted.truncate(short.quoted.len() - 1);
            let mut sctp = good.clone();
            sctp.quoted[if back.source.is_ipv4() { 9 } else { 6 }] = 132;
            for (sentence, error) in [
                ("another client", error_about(&other, family.router, 1400, true)),
                ("no error", echo),
                ("for another than the sender of the quoted packet", not_its_own),
                ("quotes too little", short),
                ("about another protocol", sctp),
            ] {
                for program in ["from_wire", "to_wire", "from_pod", "to_pod"] {
                    check(sentence, &proxy, program, &error.bytes(), PASS, &error.bytes());
                }
            }
        }
        assert_eq!(counter(&proxy, "icmp_error_translated"), 0);
    });
}

#[test]
fn icmp_checksums_are_right_for_every_port() {
    run("icmp_checksums_are_right_for_every_port", |lab| {
        let proxy = proxy(lab);
        for family in families() {
            for port in (1024..=u16::MAX).step_by(97) {
                let client = format!("{}:{port}", family.client);
                let frontend = format!("{}:{HERE}", family.node);
                start(&proxy, &packet(&client, &frontend, UDP, 0));
                let sent = error_about(&packet(&frontend, &client, UDP, 0), family.router, 1280, false);
                let expected = error_about(&packet(family.here, &client, UDP, 0), family.router, 1280, false);
                let expected = IcmpError { destination: expected.destination, ..expected };
                check("any port", &proxy, "from_wire", &sent.bytes(), PASS, &expected.bytes());
            }
        }
    });
}

#[test]
fn parts_of_a_datagram_follow_the_first() {
    run("parts_of_a_datagram_follow_the_first", |lab| {
        let proxy = proxy(lab);
        let mut ids = 1..;
        for family in families() {
            for (port, backend, verdict) in [(HERE, family.here, PASS), (THERE, family.there, REDIRECT)] {
                let mut id = || ids.next().unwrap();
                let client = format!("{}:5000", family.client);
                let frontend = format!("{}:{port}", family.node);
                let long = |packet: Packet, identification| Packet {
                    payload: (0..600).map(|n| n as u8).collect(),
                    identification,
                    dont_fragment: false,
                    ..packet
                };
                let seen_as = start(&proxy, &packet(&client, &frontend, UDP, 0));
                let hop = |packet| if verdict == REDIRECT { lowered(packet) } else { packet };
                let number = id();
                let sent = long(packet(&client, &frontend, UDP, 0), number).parts(320);
                let expected = hop(long(packet(&seen_as, backend, UDP, 0), number)).parts(320);
                for (sent, expected) in sent.iter().zip(&expected) {
                    check("there", &proxy, "from_wire", sent, verdict, expected);
                }
                let number = id();
                let sent = long(packet(backend, &seen_as, UDP, 0), number).parts(320);
                let expected = hop(long(packet(&frontend, &client, UDP, 0), number)).parts(320);
                let program = if verdict == REDIRECT { "from_wire" } else { "to_wire" };
                for (sent, expected) in sent.iter().zip(&expected) {
                    check("back", &proxy, program, sent, verdict, expected);
                }
                // The second part alone: whose it is cannot be known.
                let [_, second] = long(packet(&client, &frontend, UDP, 0), id()).parts(320);
                let before = counter(&proxy, "pass_fragment");
                check("overtaking", &proxy, "from_wire", &second, PASS, &second);
                assert_eq!(counter(&proxy, "pass_fragment"), before + 1);
            }
        }
    });
}

#[test]
fn extension_headers_are_walked_to_the_fourth() {
    run("extension_headers_are_walked_to_the_fourth", |lab| {
        let proxy = proxy(lab);
        let options = |kind, words: usize| {
            let mut content = vec![(words - 1) as u8, 1, (words * 8 - 4) as u8];
            content.resize(words * 8 - 1, 0);
            (kind, content)
        };
        let route = |left| (ROUTING, vec![0, 4, left, 0, 0, 0, 0]);
        let whole = || (FRAGMENT, vec![0, 0, 0, 0, 0, 0, 1]);
        let all = || vec![options(HOP_BY_HOP, 1), options(DESTINATION_OPTIONS, 3), route(0), whole()];
        let mut five = all();
        five.push(options(DESTINATION_OPTIONS, 1));
        for (sentence, extensions, is_served) in [
            ("hop by hop", vec![options(HOP_BY_HOP, 2)], true),
            ("destination options", vec![options(DESTINATION_OPTIONS, 32)], true),
            ("a route at its end", vec![route(0)], true),
            ("a fragment header on a whole packet", vec![whole()], true),
            ("four", all(), true),
            ("five", five, false),
            ("a route that is not at its end", vec![route(1)], false),
        ] {
            for (protocol, port) in [(TCP, 6000), (UDP, 6001)] {
                let with = |packet: Packet| Packet { extensions: extensions.clone(), ..packet };
                let client = format!("[fd90::2]:{port}");
                let frontend = format!("[fd90::1]:{HERE}");
                let sent = with(packet(&client, &frontend, protocol, SYN));
                let expected = if is_served {
                    with(packet(&client, "[fd91::2]:8080", protocol, SYN))
                } else {
                    sent.clone()
                };
                let before = counter(&proxy, "pass_extension_headers");
                check(sentence, &proxy, "from_wire", &sent.bytes(), PASS, &expected.bytes());
                assert_eq!(counter(&proxy, "pass_extension_headers") - before, u64::from(!is_served));
                if is_served {
                    let sent = with(packet("[fd91::2]:8080", &client, protocol, SYN | ACK));
                    let expected = with(packet(&frontend, &client, protocol, SYN | ACK));
                    check(sentence, &proxy, "to_wire", &sent.bytes(), PASS, &expected.bytes());
                }
            }
        }
    });
}

#[test]
fn service_without_backend_answers_at_once() {
    run("service_without_backend_answers_at_once", |lab| {
        let proxy = proxy(lab);
        let mut answered = 0;
        for family in families() {
            let client = format!("{}:4000", family.client);
            let frontend = format!("{}:{NOTHING}", family.node);
            for (flags, payload) in [(SYN, ""), (SYN | FIN, ""), (SYN, "early data")] {
                let payload = payload.as_bytes().to_vec();
                let sent = Packet { payload, ..packet(&client, &frontend, TCP, flags) };
                let covered = 1 + u32::from(flags & FIN != 0) + sent.payload.len() as u32;
                let answer = Packet {
                    sequence: 0,
                    acknowledgement: sent.sequence + covered,
                    window: 0,
                    identification: 0,
                    payload: Vec::new(),
                    ..packet(&frontend, &client, TCP, RST | ACK)
                };
                check("TCP", &proxy, "from_wire", &sent.bytes(), REDIRECT, &turned(answer.bytes()));
                answered += 1;
            }
            for payload in ["", "x", "a payload that is not quoted"] {
                let payload = payload.as_bytes().to_vec();
                let sent = Packet { payload, ..packet(&client, &frontend, UDP, 0) };
                let mut answer = error_about(&sent, sent.destination.ip(), 0, true);
                (answer.v4, answer.v6, answer.hop_limit) = ([3, 3], [1, 4], 64);
                check("UDP", &proxy, "from_wire", &sent.bytes(), REDIRECT, &turned(answer.bytes()));
                answered += 1;
            }
        }
        assert_eq!(counter(&proxy, "answered_no_backend"), answered);
    });
}

#[test]
fn hop_limit_that_runs_out_is_reported_to_the_sender() {
    run("hop_limit_that_runs_out_is_reported_to_the_sender", |lab| {
        let proxy = proxy(lab);
        for family in families() {
            let client = format!("{}:4000", family.client);
            let sent =
                Packet { hop_limit: 1, ..packet(&client, &format!("{}:{THERE}", family.node), UDP, 0) };
            let mut answer = error_about(&sent, sent.destination.ip(), 0, true);
            (answer.v4, answer.v6, answer.hop_limit) = ([11, 0], [3, 0], 64);
            check("UDP", &proxy, "from_wire", &sent.bytes(), REDIRECT, &turned(answer.bytes()));
        }
    });
}

#[test]
fn answers_by_icmp_are_bounded() {
    run("answers_by_icmp_are_bounded", |lab| {
        let proxy = proxy(lab);
        let sent = packet("10.90.0.2:4000", &format!("10.90.0.1:{NOTHING}"), UDP, 0).bytes();
        // More than two seconds' worth on each CPU: whenever the seconds begin, some are left without.
        let sends = 3000 * std::thread::available_parallelism().unwrap().get();
        let dropped = (0..sends)
            .map(|_| proxy.test_run("from_wire", &sent, 1).unwrap().verdict)
            .filter(|verdict| *verdict == DROP)
            .count() as u64;
        assert_eq!(counter(&proxy, "answers_limited"), dropped);
        assert_eq!(counter(&proxy, "answered_no_backend"), sends as u64 - dropped);
    });
}

#[test]
fn last_free_source_port_is_found_and_none_is_given_twice() {
    run("last_free_source_port_is_found_and_none_is_given_twice", |lab| {
        let proxy = proxy(lab);
        let ports = usize::from(hawser_ebpf_abi::SNAT_PORT_COUNT);
        let send = |number: usize, port: u16| {
            let client = format!("10.90.{}.2:{}", 1 + number / 50_000, 1024 + number % 50_000);
            proxy
                .test_run("from_wire", &packet(&client, &format!("10.90.0.1:{port}"), UDP, 0).bytes(), 1)
                .unwrap()
        };
        let mut given = HashSet::new();
        for number in 0..ports {
            let out = send(number, THERE);
            assert_eq!(out.verdict, REDIRECT, "flow {number}");
            assert!(given.insert(source_port(&out.packet)), "flow {number}");
        }
        assert_eq!(counter(&proxy, "drop_no_source_port"), 0);
        assert!(proxy.exhausted_sources().unwrap().is_empty());
        assert_eq!(send(ports, THERE).verdict, DROP);
        assert_eq!(counter(&proxy, "drop_no_source_port"), 1);
        let exhausted = proxy.exhausted_sources().unwrap();
        assert_eq!(exhausted.len(), 1);
        assert_eq!(exhausted[0].backend.to_string(), "10.93.0.2:8080");
        assert_eq!((exhausted[0].source.to_string(), exhausted[0].protocol), ("10.90.0.1".to_owned(), "UDP"));
        // Flows that have a port keep it, and other backends have ports of their own.
        assert_eq!(send(17, THERE).verdict, REDIRECT);
        assert_eq!(send(ports, HERE).verdict, PASS);
    });
}

#[test]
fn pod_that_is_its_own_backend_gets_a_source_of_the_nodes() {
    run("pod_that_is_its_own_backend_gets_a_source_of_the_nodes", |lab| {
        let proxy = proxy(lab);
        lab.test_runs_are_from(&proxy, &["10.91.0.2", "fd91::2"]);
        for (pod, cluster_ip, node) in
            [("10.91.0.2", "10.96.0.1:80", "10.90.0.1"), ("[fd91::2]", "[fd96::1]:80", "[fd90::1]")]
        {
            let client = format!("{pod}:4000");
            let backend = format!("{pod}:8080");
            let out = proxy.test_run("from_pod", &packet(&client, cluster_ip, TCP, SYN).bytes(), 1).unwrap();
            let source = format!("{node}:{}", source_port(&out.packet));
            let expected = lowered(packet(&source, &backend, TCP, SYN));
            assert_eq!((out.verdict, hex(&out.packet)), (REDIRECT, hex(&expected.bytes())));
            let reply = packet(&backend, &source, TCP, ACK);
            let expected = lowered(packet(cluster_ip, &client, TCP, ACK));
            check("its reply", &proxy, "from_pod", &reply.bytes(), REDIRECT, &expected.bytes());
        }
    });
}

#[test]
fn garbage_is_passed_dropped_or_answered_and_the_state_stays_bounded() {
    run("garbage_is_passed_dropped_or_answered_and_the_state_stays_bounded", |lab| {
        let proxy = proxy(lab);
        // HAWSER_FUZZ_ROUNDS asks for more, HAWSER_FUZZ_SEED for others.
        let number = |name: &str, default: u64| {
            std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
        };
        let rounds = number("HAWSER_FUZZ_ROUNDS", 6000);
        let seed = number("HAWSER_FUZZ_SEED", 1);
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let good = corpus();
        for round in 0..rounds {
            let mut bytes = good[random.below(good.len())].clone();
            for _ in 0..random.below(6) {
                let at = random.below(bytes.len());
                bytes[at] = match random.below(3) {
                    0 => random.below(256) as u8,
                    1 => bytes[at] ^ (1 << random.below(8)),
                    _ => [0, 0xff, 0x80, 0x7f][random.below(4)],
                };
            }
            match random.below(6) {
                0 => bytes.truncate(14 + random.below(bytes.len() - 13)),
                1 => bytes.extend(vec![0xaa; random.below(80)]),
                _ => {}
            }
            for program in ["from_wire", "to_wire", "from_pod", "to_pod"] {
                // The kernel itself refuses some lengths before the program runs.
                let Ok(out) = proxy.test_run(program, &bytes, 1) else { continue };
                let may_send = program.starts_with("from");
                assert!(
                    matches!(out.verdict, PASS | DROP) || (out.verdict == REDIRECT && may_send),
                    "round {round} of seed {seed}, {program}: {} for {}",
                    out.verdict,
                    hex(&bytes)
                );
                // An answer has a length of its own; nothing else changes it.
                let is_answer = out.verdict == REDIRECT && [54, 70, 74, 110].contains(&out.packet.len());
                assert!(
                    out.packet.len() == bytes.len() || is_answer,
                    "round {round} of seed {seed}, {program}"
                );
            }
        }
        // The datapath still works.
        let client = "10.90.0.2:3999";
        let sent = packet(client, &format!("10.90.0.1:{HERE}"), UDP, 0);
        let expected = packet(client, "10.91.0.2:8080", UDP, 0);
        check("afterwards", &proxy, "from_wire", &sent.bytes(), PASS, &expected.bytes());
    });
}

/// Packets of every kind that the programs know.
fn corpus() -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    for family in families() {
        for protocol in [TCP, UDP] {
            let client = format!("{}:4000", family.client);
            for port in [HERE, THERE, NOTHING] {
                let frontend = format!("{}:{port}", family.node);
                let plain = packet(&client, &frontend, protocol, SYN);
                let back = packet(&frontend, &client, protocol, ACK);
                corpus.push(plain.bytes());
                corpus.push(error_about(&back, family.router, 1400, true).bytes());
                corpus.push(error_about(&back, family.router, 1400, false).bytes());
                let long = Packet { payload: vec![7; 200], dont_fragment: false, ..plain.clone() };
                corpus.extend(long.parts(64));
                if !family.node.starts_with('[') {
                    continue;
                }
                let options = vec![0, 1, 4, 0, 0, 0, 0];
                let extensions = vec![
                    (HOP_BY_HOP, options.clone()),
                    (DESTINATION_OPTIONS, options),
                    (ROUTING, vec![0, 4, 0, 0, 0, 0, 0]),
                    (FRAGMENT, vec![0, 0, 0, 0, 0, 0, 1]),
                ];
                corpus.push(Packet { extensions, ..plain }.bytes());
            }
            corpus.push(packet(family.here, &client, protocol, ACK).bytes());
            corpus.push(packet(family.there, &format!("{}:61000", family.node), protocol, ACK).bytes());
        }
    }
    corpus
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
