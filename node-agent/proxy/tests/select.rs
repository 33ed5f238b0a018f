//! Which backend a client gets: affinity, source ranges, Maglev, and who is left alone.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    process::Command,
    sync::Arc,
};

use hawser_ebpf_abi::{Affinity, AffinityKey};
use hawser_proxy::{Config, FrontendView, Proxy};
use hawser_services::{EndpointSlice, Service};
use serde_json::{Value, json};
use support::{
    Lab, NODE, OTHER, POD, Spec, chain, connect, counter, echo, patience, run, service, service_with, slice,
    slice_with,
};

const DROP: i32 = 2;

fn affine(spec: &Spec<'_>, seconds: u32) -> Arc<Service> {
    service_with(
        spec,
        &json!({
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } },
        }),
    )
}

/// A slice for each of some ports of the pod: so many backends at one address.
fn on_ports(protocol: &str, ports: impl IntoIterator<Item = u16>) -> Vec<Arc<EndpointSlice>> {
    ports.into_iter().map(|port| slice("web", protocol, port, &[("10.91.0.2", "node-a", true)])).collect()
}

/// Connects, and returns the backend that answered.
fn backend(address: &str) -> String {
    let (mut stream, line) = connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    echo(&mut stream);
    line.split(' ').next().unwrap().to_owned()
}

/// The first packet of a TCP connection. Its checksums are zero: the programs change them by the difference.
fn syn(source: &str, destination: &str) -> Vec<u8> {
    let (source, destination): (SocketAddr, SocketAddr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        other => panic!("{other:?}"),
    }
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

/// Where a program sends the first packet of a connection; the verdict when it drops it or leaves it alone.
fn sent_to(proxy: &Proxy, program: &'static str, source: &str, destination: &str) -> Result<SocketAddr, i32> {
    let sent = syn(source, destination);
    let out = proxy.test_run(program, &sent, 1).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let (address, port_at): (IpAddr, usize) = if sent[12] == 0x08 {
        (<[u8; 4]>::try_from(&out.packet[30..34]).unwrap().into(), 36)
    } else {
        (<[u8; 16]>::try_from(&out.packet[38..54]).unwrap().into(), 56)
    };
    let port = u16::from_be_bytes([out.packet[port_at], out.packet[port_at + 1]]);
    let reached = SocketAddr::new(address, port);
    if out.verdict == DROP || reached == destination.parse().unwrap() {
        Err(out.verdict)
    } else {
        Ok(reached)
    }
}

#[test]
fn client_ip_affinity_keeps_one_backend_per_pod() {
    run("client_ip_affinity_keeps_one_backend_per_pod", |lab| {
        for port in 8081..=8088 {
            lab.tcp_server(POD, &format!("10.91.0.2:{port}"));
        }
        let mut proxy = lab.proxy();
        let services = [affine(&Spec { node_port: Some(30080), ..Spec::default() }, 10_800)];
        proxy.sync(&services, &on_ports("TCP", 8081..=8088), &[]).unwrap();
        let clients: Vec<String> = [NODE, POD]
            .into_iter()
            .map(|ns| {
                lab.inside(ns, || {
                    let first = backend("10.96.0.10:80");
                    for _ in 0..20 {
                        assert_eq!(backend("10.96.0.10:80"), first, "{ns}");
                    }
                    // Affinity is the service port's: by whichever of its addresses.
                    assert_eq!(backend("10.90.0.1:30080"), first, "{ns}, by its node port");
                    first
                })
            })
            .collect();
        // What the pod has is its own: a node that is forgotten is given another than before at last.
        let mut others = BTreeSet::new();
        support::eventually("clients are spread", || {
            forget_affinities(lab);
            others.insert(backend("10.96.0.10:80"));
            others.len() > 2
        });
        assert!(clients.iter().all(|client| client.starts_with("10.91.0.2:808")), "{clients:?}");
        assert_eq!(counter(&proxy, "affinity_full"), 0);
    });
}

#[test]
fn udp_sockets_of_a_pod_share_the_backend_too() {
    run("udp_sockets_of_a_pod_share_the_backend_too", |lab| {
        let _servers: Vec<_> =
            (5301..=5308).map(|port| lab.udp_server(POD, &format!("10.91.0.2:{port}"))).collect();
        let mut proxy = lab.proxy();
        let services = [affine(&Spec { protocol: "UDP", port: 53, ..Spec::default() }, 60)];
        proxy.sync(&services, &on_ports("UDP", 5301..=5308), &[]).unwrap();
        let ask = |connected: bool| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(patience())).unwrap();
            if connected {
                socket.connect("10.96.0.10:53").unwrap();
                socket.send(b"?").unwrap();
            } else {
                socket.send_to(b"?", "10.96.0.10:53").unwrap();
            }
            let mut buffer = [0; 64];
            let len = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..len].to_vec()).unwrap()
        };
        let first = ask(false);
        for n in 0..20 {
            assert_eq!(ask(n % 2 == 0), first);
        }
    });
}

#[test]
fn affinity_ends_after_its_timeout() {
    run("affinity_ends_after_its_timeout", |lab| {
        for port in 8081..=8084 {
            lab.tcp_server(POD, &format!("10.91.0.2:{port}"));
        }
        let mut proxy = lab.proxy();
        proxy.sync(&[affine(&Spec::default(), 100)], &on_ports("TCP", 8081..=8084), &[]).unwrap();
        let first = backend("10.96.0.10:80");
        // Each use starts the time anew: 90 s and 90 s more are no end.
        for _ in 0..5 {
            age_affinities(lab, 90);
            assert_eq!(backend("10.96.0.10:80"), first);
        }
        assert_eq!(proxy.sweep_affinity().unwrap(), 0);
        // Past its time the client is chosen for anew; one in four times it is the same backend.
        support::eventually("another backend", || {
            age_affinities(lab, 101);
            backend("10.96.0.10:80") != first
        });
        age_affinities(lab, 101);
        assert_eq!(proxy.sweep_affinity().unwrap(), 1);
        assert!(affinities(lab).is_empty());
    });
}

#[test]
fn backend_that_leaves_is_replaced_for_its_clients() {
    run("backend_that_leaves_is_replaced_for_its_clients", |lab| {
        for port in 8081..=8084 {
            lab.tcp_server(POD, &format!("10.91.0.2:{port}"));
        }
        let mut proxy = lab.proxy();
        let services = [affine(&Spec::default(), 10_800)];
        proxy.sync(&services, &on_ports("TCP", 8081..=8084), &[]).unwrap();
        let first = backend("10.96.0.10:80");
        let own: u16 = first.rsplit(':').next().unwrap().parse().unwrap();
        // Another one leaves: nothing changes for the client.
        let other = if own == 8081 { 8082 } else { 8081 };
        proxy.sync(&services, &on_ports("TCP", (8081..=8084).filter(|port| *port != other)), &[]).unwrap();
        for _ in 0..10 {
            assert_eq!(backend("10.96.0.10:80"), first);
        }
        proxy.sync(&services, &on_ports("TCP", (8081..=8084).filter(|port| *port != own)), &[]).unwrap();
        let second = backend("10.96.0.10:80");
        assert_ne!(second, first);
        // It comes back, and the client stays where it is now.
        proxy.sync(&services, &on_ports("TCP", 8081..=8084), &[]).unwrap();
        for _ in 0..10 {
            assert_eq!(backend("10.96.0.10:80"), second);
        }
        // A restart of the agent forgets no client, and writes nothing.
        drop(proxy);
        let mut proxy = lab.proxy();
        let report = proxy.sync(&services, &on_ports("TCP", 8081..=8084), &[]).unwrap();
        assert_eq!((report.frontends_written, report.backends_written), (0, 0));
        assert_eq!(backend("10.96.0.10:80"), second);
    });
}

#[test]
fn packets_of_one_address_go_to_one_backend_with_affinity() {
    run("packets_of_one_address_go_to_one_backend_with_affinity", |lab| {
        let mut proxy = lab.proxy();
        let spec = Spec { node_port: Some(30080), ..Spec::default() };
        proxy.sync(&[affine(&spec, 60)], &on_ports("TCP", 8081..=8090), &[]).unwrap();
        let clients: Vec<String> = (1..=40).map(|client| format!("10.90.7.{client}")).collect();
        lab.test_runs_are_from(&proxy, &clients.iter().map(String::as_str).collect::<Vec<_>>());
        // Other ports for each: a tuple towards a backend that a flow has already makes another attempt of a packet.
        for (program, frontend, first_port) in
            [("from_wire", "10.90.0.1:30080", 4000), ("from_pod", "10.96.0.10:80", 5000)]
        {
            let mut reached = BTreeSet::new();
            for client in 1..=40 {
                let of = |port: u16| {
                    sent_to(&proxy, program, &format!("10.90.7.{client}:{port}"), frontend).unwrap()
                };
                let first = of(first_port);
                assert!(
                    (first_port + 1..first_port + 20).all(|port| of(port) == first),
                    "{program}: client {client}"
                );
                reached.insert(first);
            }
            assert!(reached.len() > 4, "{program}: clients are spread: {reached:?}");
        }
        // A network namespace and an address are two clients; here there were addresses alone.
        assert_eq!(affinities(lab).len(), 40);
        assert_eq!(counter(&proxy, "affinity_full"), 0);
    });
}

#[test]
fn client_that_finds_no_room_is_served_and_counted() {
    run("client_that_finds_no_room_is_served_and_counted", |lab| {
        let mut config = lab.config();
        config.sizes.affinities = 1;
        config.max_sizes.affinities = 1;
        let mut proxy = Proxy::start(config).unwrap();
        let spec = Spec { node_port: Some(30080), ..Spec::default() };
        proxy.sync(&[affine(&spec, 60)], &on_ports("TCP", 8081..=8090), &[]).unwrap();
        let reach = |client: &str| sent_to(&proxy, "from_wire", client, "10.90.0.1:30080").unwrap();
        reach("10.90.7.1:4000");
        let second = reach("10.90.7.2:4000");
        assert_eq!(counter(&proxy, "affinity_full"), 1);
        // It keeps its backend all the same: by its address's hash.
        assert!((4001..4010).all(|port| reach(&format!("10.90.7.2:{port}")) == second));
        assert_eq!(counter(&proxy, "affinity_full"), 10);
    });
}

#[test]
fn table_of_clients_grows_and_forgets_none() {
    run("table_of_clients_grows_and_forgets_none", |lab| {
        let mut config = lab.config();
        config.sizes.affinities = 4;
        let mut proxy = Proxy::start(config).unwrap();
        let spec = Spec { node_port: Some(30080), ..Spec::default() };
        proxy.sync(&[affine(&spec, 60)], &on_ports("TCP", 8081..=8090), &[]).unwrap();
        let reach = |proxy: &Proxy, client: u16, port: u16| {
            sent_to(proxy, "from_wire", &format!("10.90.7.{client}:{port}"), "10.90.0.1:30080").unwrap()
        };
        let first: Vec<_> = (1..=4).map(|client| reach(&proxy, client, 4000)).collect();
        reach(&proxy, 5, 4000);
        assert_eq!(counter(&proxy, "affinity_full"), 1);
        assert_eq!(proxy.sweep_affinity().unwrap(), 0);
        assert_eq!(affinities(lab).len(), 4, "none is forgotten");
        let again: Vec<_> = (1..=4).map(|client| reach(&proxy, client, 4001)).collect();
        assert_eq!(again, first);
        for client in 5..=8 {
            reach(&proxy, client, 4001);
        }
        assert_eq!((affinities(lab).len(), counter(&proxy, "affinity_full")), (8, 1));
    });
}

/// A load balancer's service with ranges, both families.
fn balanced(ranges: &[&str]) -> Arc<Service> {
    let spec = Spec { cluster_ips: &["10.96.0.10", "fd96::10"], node_port: Some(30080), ..Spec::default() };
    service_with(
        &spec,
        &json!({
            "type": "LoadBalancer",
            "externalIPs": ["10.96.2.1"],
            "loadBalancerSourceRanges": ranges,
            "status": { "loadBalancer": { "ingress": [{ "ip": "10.96.1.1" }, { "ip": "fd96::1:1" }] } },
        }),
    )
}

#[test]
fn source_outside_the_ranges_is_dropped() {
    run("source_outside_the_ranges_is_dropped", |lab| {
        let mut proxy = lab.proxy();
        let slices = [
            slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)]),
            slice("web", "TCP", 8080, &[("fd91::2", "node-a", true)]),
        ];
        let sync = |proxy: &mut Proxy, ranges: &[&str]| {
            let report = proxy.sync(&[balanced(ranges)], &slices, &[]).unwrap();
            assert!(report.skipped.is_empty(), "{:?}", report.skipped);
        };
        sync(&mut proxy, &["10.90.0.0/25", "203.0.113.7/32", "fd90::/112"]);
        let mut port = 2000;
        let mut check = |proxy: &Proxy, what: &str, source: &str, destination: &str, expected| {
            port += 1;
            let before = counter(proxy, "drop_source_range");
            let found = sent_to(proxy, "from_wire", &format!("{source}:{port}"), destination);
            assert_eq!(found.map(|_| ()), expected, "{what}");
            let dropped = u64::from(expected == Err(DROP));
            assert_eq!(counter(proxy, "drop_source_range") - before, dropped, "{what}");
        };
        let (v4, v6) = ("10.96.1.1:80", "[fd96::1:1]:80");
        check(&proxy, "in a range", "10.90.0.2", v4, Ok(()));
        check(&proxy, "one address", "203.0.113.7", v4, Ok(()));
        check(&proxy, "in none", "10.90.0.200", v4, Err(DROP));
        check(&proxy, "beside one address", "203.0.113.6", v4, Err(DROP));
        check(&proxy, "in a v6 range", "[fd90::2]", v6, Ok(()));
        check(&proxy, "in no v6 range", "[fd90::1:2]", v6, Err(DROP));
        check(&proxy, "a node port is not ruled", "10.90.0.200", "10.90.0.1:30080", Ok(()));
        check(&proxy, "an external address is not ruled", "10.90.0.200", "10.96.2.1:80", Ok(()));
        // New ranges rule the next connection; a family without any lets everybody in.
        sync(&mut proxy, &["10.90.0.128/25"]);
        check(&proxy, "no longer in a range", "10.90.0.2", v4, Err(DROP));
        check(&proxy, "now in a range", "10.90.0.200", v4, Ok(()));
        check(&proxy, "no v6 range", "[fd90::1:2]", v6, Ok(()));
        sync(&mut proxy, &[]);
        check(&proxy, "no range", "192.0.2.1", v4, Ok(()));
    });
}

#[test]
fn pods_and_the_node_are_ruled_by_their_own_addresses() {
    run("pods_and_the_node_are_ruled_by_their_own_addresses", |lab| {
        lab.tcp_server(OTHER, "10.93.0.2:8080");
        let mut proxy = lab.proxy();
        lab.attach_pod(&proxy);
        let slices = [slice("web", "TCP", 8080, &[("10.93.0.2", "node-b", true)])];
        let from = |ns: &str| lab.inside(ns, || connect("10.96.1.1:80").map(|(_, line)| line));
        lab.test_runs_are_from(&proxy, &["10.91.0.3"]);
        let pod_dropped = |proxy: &Proxy| {
            let before = counter(proxy, "drop_source_range");
            let out = sent_to(proxy, "from_pod", "10.91.0.3:4000", "10.96.1.1:80");
            assert_eq!((out, counter(proxy, "drop_source_range")), (Err(DROP), before + 1));
        };
        proxy.sync(&[balanced(&["10.91.0.0/24"])], &slices, &[]).unwrap();
        assert_eq!(from(POD).unwrap(), "10.93.0.2:8080 sees 10.91.0.2");
        assert_eq!(from(NODE).unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(counter(&proxy, "socket_refused_source_range"), 1);

        proxy.sync(&[balanced(&["10.90.0.1/32"])], &slices, &[]).unwrap();
        assert!(from(NODE).is_ok());
        pod_dropped(&proxy);
        // Its cluster IP is not ruled.
        assert!(lab.inside(POD, || connect("10.96.0.10:80")).is_ok());
    });
}

#[test]
fn all_nodes_choose_alike() {
    run("all_nodes_choose_alike", |lab| {
        let spec = Spec { node_port: Some(30080), ..Spec::default() };
        let endpoints: Vec<_> = (1..=10)
            .map(|n| {
                let node = if n % 2 == 0 { "node-a" } else { "node-b" };
                (format!("10.93.0.{n}"), node)
            })
            .collect();
        let words: Vec<_> = endpoints.iter().map(|(address, node)| (address.as_str(), *node, true)).collect();
        let backwards: Vec<_> = words.iter().rev().copied().collect();
        // Two nodes: other names and addresses, other local backends, other histories.
        let mut here = lab.proxy();
        let mut there = Proxy::start(second_node(lab)).unwrap();
        there.sync(&[service(&spec)], &[slice("web", "TCP", 8080, &words[..3])], &[]).unwrap();
        here.sync(&[service(&spec)], &[slice("web", "TCP", 8080, &words)], &[]).unwrap();
        there.sync(&[service(&spec)], &[slice("web", "TCP", 8080, &backwards)], &[]).unwrap();
        let table = here.dump_services().unwrap();
        let wire: Vec<_> = table.iter().filter(|view| view.maglev_entries > 0).collect();
        assert_eq!(wire.len(), 1, "{table:?}");
        assert_eq!(wire[0].maglev_entries, 4001);

        let clients: Vec<String> =
            (0..500).map(|n| format!("10.90.{}.{}:{}", n % 7, n % 251, 1024 + n)).collect();
        let reach =
            |proxy: &Proxy, node: &str, client: &str| sent_to(proxy, "from_wire", client, node).unwrap();
        let mut shares: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        for client in &clients {
            let chosen = reach(&here, "10.90.0.1:30080", client);
            assert_eq!(reach(&there, "10.92.0.7:30080", client), chosen, "{client}");
            *shares.entry(chosen).or_default() += 1;
        }
        assert!(shares.len() == 10 && shares.values().all(|share| (20..=90).contains(share)), "{shares:?}");

        // A backend goes: its clients are spread, those of the others stay, on a node that has never seen them.
        let rest = [slice("web", "TCP", 8080, &words[1..])];
        drop(there);
        Proxy::remove_all(&second_node(lab).bpffs_dir).unwrap();
        let mut there = Proxy::start(second_node(lab)).unwrap();
        there.sync(&[service(&spec)], &rest, &[]).unwrap();
        let gone = "10.93.0.1:8080".parse().unwrap();
        let mut moved = 0;
        for client in &clients {
            let before = reach(&here, "10.90.0.1:30080", client);
            let after = reach(&there, "10.92.0.7:30080", client);
            assert_ne!(after, gone);
            moved += u32::from(before != gone && before != after);
        }
        assert!(moved <= 4, "{moved} of about 450 clients of the others moved");
        drop(there);
        Proxy::remove_all(&second_node(lab).bpffs_dir).unwrap();
    });
}

fn second_node(lab: &Lab) -> Config {
    let mut config = lab.config();
    config.bpffs_dir = lab.bpffs().with_file_name("bpffs-b");
    config.node_name = "node-b".to_owned();
    config.node_addresses = vec!["10.92.0.7".parse().unwrap()];
    config.uplinks.clear();
    config
}

#[test]
fn service_without_room_for_a_table_is_reported_and_served() {
    run("service_without_room_for_a_table_is_reported_and_served", |lab| {
        let mut config = lab.config();
        config.sizes.maglev_blocks = 4;
        config.max_sizes.maglev_blocks = 4;
        let mut proxy = Proxy::start(config).unwrap();
        let spec = Spec { node_port: Some(30080), ..Spec::default() };
        let report = proxy.sync(&[service(&spec)], &on_ports("TCP", 8081..=8084), &[]).unwrap();
        assert_eq!(report.skipped.len(), 1);
        assert!(report.skipped[0].reason.contains("Maglev"), "{:?}", report.skipped);
        let reached: BTreeSet<SocketAddr> = (4000..4100)
            .map(|port| {
                sent_to(&proxy, "from_wire", &format!("10.90.0.2:{port}"), "10.90.0.1:30080").unwrap()
            })
            .collect();
        assert_eq!(reached.len(), 4);
    });
}

#[test]
fn restart_finds_tables_and_ranges_as_they_were() {
    run("restart_finds_tables_and_ranges_as_they_were", |lab| {
        let mut proxy = lab.proxy();
        let slices = on_ports("TCP", 8081..=8084);
        proxy.sync(&[balanced(&["10.90.0.0/24"])], &slices, &[]).unwrap();
        let served = |proxy: &Proxy| -> Vec<FrontendView> {
            let views = proxy.dump_services().unwrap().into_iter();
            views
                .map(|mut view| {
                    view.chosen = 0;
                    view
                })
                .collect()
        };
        let before = served(&proxy);
        let choices = |proxy: &Proxy| -> Vec<_> {
            let clients = (1..100).map(|n| format!("10.90.0.{n}:{}", 4000 + n));
            clients.map(|client| sent_to(proxy, "from_wire", &client, "10.96.1.1:80")).collect()
        };
        let chosen = choices(&proxy);
        drop(proxy);
        let mut proxy = lab.proxy();
        let report = proxy.sync(&[balanced(&["10.90.0.0/24"])], &slices, &[]).unwrap();
        assert_eq!((report.frontends_written, report.backends_written), (0, 0));
        assert_eq!(served(&proxy), before);
        assert!(chosen.iter().all(Result::is_ok));
        assert_eq!(choices(&proxy), chosen);
        assert_eq!(sent_to(&proxy, "from_wire", "10.90.1.1:4000", "10.96.1.1:80"), Err(DROP));
    });
}

#[test]
fn opted_out_pod_is_served_by_packet() {
    run("opted_out_pod_is_served_by_packet", |lab| {
        lab.tcp_server(OTHER, "10.93.0.2:8080");
        let _udp = lab.udp_server(OTHER, "10.93.0.2:5353");
        let mut proxy = lab.proxy();
        let dns =
            Spec { name: "dns", protocol: "UDP", port: 53, cluster_ips: &["10.96.0.53"], ..Spec::default() };
        let services = [service(&Spec::default()), service(&dns)];
        let slices = [
            slice("web", "TCP", 8080, &[("10.93.0.2", "node-b", true)]),
            slice("dns", "UDP", 5353, &[("10.93.0.2", "node-b", true)]),
        ];
        proxy.sync(&services, &slices, &[]).unwrap();
        let own = Path::new("/proc/thread-self/ns/net");
        let pod = lab.inside(POD, || hawser_proxy::netns_cookie(own).unwrap());
        proxy.set_opted_out(&HashSet::from([pod, 12_345])).unwrap();
        let from_pod = || lab.inside(POD, || connect("10.96.0.10:80").map(|(_, line)| line));
        assert!(from_pod().is_err(), "nobody translates for it yet");
        lab.attach_pod(&proxy);
        assert_eq!(from_pod().unwrap(), "10.93.0.2:8080 sees 10.91.0.2");
        lab.inside(POD, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(patience())).unwrap();
            socket.send_to(b"?", "10.96.0.53:53").unwrap();
            let (_, source) = socket.recv_from(&mut [0; 64]).unwrap();
            assert_eq!(source.to_string(), "10.96.0.53:53");
        });
        assert_eq!(counter(&proxy, "socket_connected") + counter(&proxy, "socket_sent"), 0);
        // Others are served at their sockets as ever, and an agent that starts again keeps it so.
        assert!(connect("10.96.0.10:80").is_ok());
        assert_eq!(counter(&proxy, "socket_connected"), 1);
        drop(proxy);
        let proxy = lab.proxy();
        assert!(from_pod().is_ok());
        assert_eq!(counter(&proxy, "socket_connected"), 1);
        proxy.set_opted_out(&HashSet::new()).unwrap();
        assert!(from_pod().is_ok());
        assert_eq!(counter(&proxy, "socket_connected"), 2);
    });
}

#[test]
fn mptcp_connects_as_tcp_does() {
    const IPPROTO_MPTCP: libc::c_int = 262;
    run("mptcp_connects_as_tcp_does", |lab| {
        let server = lab.tcp_server(POD, "10.91.0.2:8080");
        let mut proxy = lab.proxy();
        proxy.sync(&[service(&Spec::default())], &on_ports("TCP", [8080]), &[]).unwrap();
        // SAFETY: no addresses; the result is a descriptor of our own, or refused.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, IPPROTO_MPTCP);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
        };
        let Some(socket) = socket else {
            println!("skipped mptcp_connects_as_tcp_does: the kernel has no MPTCP");
            return;
        };
        let address = nix::sys::socket::SockaddrIn::new(10, 96, 0, 10, 80);
        nix::sys::socket::connect(socket.as_raw_fd(), &address).unwrap();
        let mut stream = std::net::TcpStream::from(socket);
        stream.set_read_timeout(Some(patience())).unwrap();
        let mut line = [0; 64];
        let len = std::io::Read::read(&mut stream, &mut line).unwrap();
        assert!(String::from_utf8_lossy(&line[..len]).starts_with(&server.to_string()));
        assert_eq!(counter(&proxy, "socket_connected"), 1);
    });
}

#[test]
fn service_with_5000_endpoints_uses_all_of_them() {
    run("service_with_5000_endpoints_uses_all_of_them", |lab| {
        lab.ip(NODE, &["route", "add", "10.93.0.0/16", "via", "10.92.0.2"]);
        let mut config = lab.config();
        config.sizes.backends = 65_536;
        let mut proxy = Proxy::start(config).unwrap();
        let spec = Spec { node_port: Some(30080), ..Spec::default() };
        let slices: Vec<_> = (0..50)
            .map(|n| {
                let addresses: Vec<String> = (0..100).map(|m| format!("10.93.{}.{}", n + 1, m + 1)).collect();
                let words: Vec<_> =
                    addresses.iter().map(|address| (address.as_str(), "node-b", true)).collect();
                slice("web", "TCP", 8080, &words)
            })
            .collect();
        let report = proxy.sync(&[service(&spec)], &slices, &[]).unwrap();
        assert!(report.skipped.is_empty(), "{:?}", report.skipped);
        assert_eq!(report.backends_written, 5_000);
        let views = proxy.dump_services().unwrap();
        let wire = views.iter().find(|view| view.maglev_entries > 0).unwrap();
        assert_eq!((wire.wire_backends.len(), wire.maglev_entries), (5_000, 1_024_021));
        let reached: BTreeSet<SocketAddr> = (0..4_000)
            .map(|n| {
                let client = format!("10.90.{}.{}:4000", n / 250, n % 250 + 1);
                sent_to(&proxy, "from_wire", &client, "10.90.0.1:30080").unwrap()
            })
            .collect();
        // 4,000 draws among 5,000: 2,753 different ones are expected.
        assert!((2_500..3_000).contains(&reached.len()), "{}", reached.len());
        // One goes: it is the only one that nobody gets any more.
        let mut fewer = slices.clone();
        let mut changed = (*fewer[0]).clone();
        changed.endpoints = changed.endpoints[1..].into();
        fewer[0] = Arc::new(changed);
        proxy.sync(&[service(&spec)], &fewer, &[]).unwrap();
        let views = proxy.dump_services().unwrap();
        assert!(views.iter().all(|view| view.node_only || view.backends.len() == 4_999));
    });
}

#[test]
fn service_with_400_ports_is_served_on_each() {
    run("service_with_400_ports_is_served_on_each", |lab| {
        let server = lab.tcp_server(POD, "10.91.0.2:8080").to_string();
        let mut proxy = lab.proxy();
        let numbered = |first: i32| -> Vec<Value> {
            (0..400)
                .map(|n| json!({ "name": format!("p{n}"), "port": first + n, "protocol": "TCP" }))
                .collect()
        };
        let service = service_with(&Spec::default(), &json!({ "ports": numbered(10_000) }));
        // Each leads to a port of its own; one of them has a server.
        let targets = numbered(8080 - 399).into();
        let endpoints = slice_with("web", &targets, &[("10.91.0.2", "node-a", true)]);
        let report = proxy.sync(&[service], &[endpoints], &[]).unwrap();
        assert_eq!((report.frontends, report.skipped.len()), (400, 0));
        assert_eq!(backend("10.96.0.10:10399"), server);
        for port in [10_000, 10_200, 10_398] {
            let refused = connect(&format!("10.96.0.10:{port}")).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{port}: nobody listens there");
        }
        assert_eq!(counter(&proxy, "socket_connected"), 4);
    });
}

/// Keys and values of `AFFINITY`, as bytes.
fn affinities(lab: &Lab) -> Vec<(Vec<u8>, Vec<u8>)> {
    let output = bpftool(lab, &["-j", "map", "dump"], &[]);
    let dump: Value = serde_json::from_slice(&output).unwrap();
    let bytes = |value: &Value| -> Vec<u8> {
        let texts = value.as_array().unwrap().iter().map(|byte| byte.as_str().unwrap());
        texts.map(|text| u8::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()).collect()
    };
    let entries = dump.as_array().unwrap().iter();
    entries.map(|entry| (bytes(&entry["key"]), bytes(&entry["value"]))).collect()
}

/// Makes it so much later for the entries of `AFFINITY`: writes their last use as so much earlier.
fn age_affinities(lab: &Lab, seconds: u64) {
    for (key, mut value) in affinities(lab) {
        assert_eq!((key.len(), value.len()), (size_of::<AffinityKey>(), size_of::<Affinity>()));
        let last_used_ns = u64::from_ne_bytes(value[..8].try_into().unwrap());
        value[..8].copy_from_slice(&last_used_ns.wrapping_sub(seconds * 1_000_000_000).to_ne_bytes());
        let decimal = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>();
        let mut args = vec!["key".to_owned()];
        args.extend(decimal(&key));
        args.push("value".to_owned());
        args.extend(decimal(&value));
        bpftool(lab, &["map", "update"], &args);
    }
}

fn forget_affinities(lab: &Lab) {
    for (key, _) in affinities(lab) {
        let mut args = vec!["key".to_owned()];
        args.extend(key.iter().map(u8::to_string));
        bpftool(lab, &["map", "delete"], &args);
    }
}

fn bpftool(lab: &Lab, command: &[&str], args: &[String]) -> Vec<u8> {
    let pin = lab.bpffs().join("maps/AFFINITY");
    let output = Command::new("bpftool").args(command).arg("pinned").arg(pin).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
