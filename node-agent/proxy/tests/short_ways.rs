//! Short ways: packets that programs move to and from pods themselves. A rule of the host counts those that it sees.

mod support;

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use hawser_proxy::{Proxy, ShortWays};
use support::{CLIENT, Lab, OTHER, POD, POD_2, Spec, connect, counter, echo, run, service, slice};

/// A node with two pods; the other node's pods, 10.93.0.0/24, belong to the cluster too.
fn proxy(lab: &Lab, short_ways: ShortWays) -> Proxy {
    let mut config = lab.config();
    config.short_ways = short_ways;
    config.pod_ranges = ["10.91.0.0", "10.93.0.0"].map(|range| (range.parse().unwrap(), 24)).to_vec();
    config.pod_ranges.extend(["fd91::", "fd93::"].map(|range| (range.parse().unwrap(), 64)));
    let proxy = Proxy::start(config).unwrap();
    for (device, pod, addresses) in
        [("pod0", POD, ["10.91.0.2", "fd91::2"]), ("pod1", POD_2, ["10.91.0.3", "fd91::3"])]
    {
        let ifindex = lab.ifindex(device);
        let addresses = addresses.map(|address| address.parse().unwrap());
        assert!(proxy.attach_pod(ifindex, Some(lab.mac(pod, "eth0")), &addresses).unwrap());
    }
    proxy
}

/// Counts what the host forwards, and masquerades pods that leave the cluster, as the pod network does.
fn count_forwarded() {
    let rules = "table inet seen {
        chain forward { type filter hook forward priority 0; meta l4proto { tcp, udp } counter
        }
        chain out { type nat hook postrouting priority srcnat;
            ip saddr 10.91.0.0/24 ip daddr { 10.91.0.0/24, 10.93.0.0/24 } return
            ip saddr 10.91.0.0/24 masquerade fully-random
            ip6 saddr fd91::/64 ip6 daddr { fd91::/64, fd93::/64 } return
            ip6 saddr fd91::/64 masquerade fully-random
        }
    }";
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success());
}

fn forwarded() -> u64 {
    let output = Command::new("nft").args(["list", "chain", "inet", "seen", "forward"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let rest = text.split("packets ").nth(1).unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[track_caller]
fn line(address: &str) -> String {
    let (mut stream, line) = connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    echo(&mut stream);
    line
}

#[test]
fn pods_of_a_node_reach_each_other_past_the_hosts_rules() {
    run("pods_of_a_node_reach_each_other_past_the_hosts_rules", |lab| {
        lab.add_pod();
        count_forwarded();
        let servers = ["10.91.0.3:8080", "[fd91::3]:8080"];
        for address in servers {
            lab.tcp_server(POD_2, address);
        }
        let mut proxy = proxy(lab, ShortWays::Probe);
        let services = [service(&Spec { cluster_ips: &["10.96.0.10", "fd96::10"], ..Spec::default() })];
        let slices = [
            slice("web", "TCP", 8080, &[("10.91.0.3", "node-a", true)]),
            slice("web", "TCP", 8080, &[("fd91::3", "node-a", true)]),
        ];
        proxy.sync(&services, &slices, &[]).unwrap();
        for (address, seen) in [
            (servers[0], "10.91.0.3:8080 sees 10.91.0.2"),
            (servers[1], "[fd91::3]:8080 sees fd91::2"),
            ("10.96.0.10:80", "10.91.0.3:8080 sees 10.91.0.2"),
            ("[fd96::10]:80", "[fd91::3]:8080 sees fd91::2"),
        ] {
            assert_eq!(lab.inside_unserved(POD, || line(address)), seen);
        }
        assert_eq!(forwarded(), 0);
        assert!(counter(&proxy, "packet_to_pod") > 20);
        assert_eq!(counter(&proxy, "packet_to_node"), 0);
    });
}

#[test]
fn short_ways_that_are_off_leave_packets_to_the_host() {
    run("short_ways_that_are_off_leave_packets_to_the_host", |lab| {
        lab.add_pod();
        count_forwarded();
        lab.tcp_server(POD_2, "10.91.0.3:8080");
        let proxy = proxy(lab, ShortWays::Off);
        assert_eq!(lab.inside(POD, || line("10.91.0.3:8080")), "10.91.0.3:8080 sees 10.91.0.2");
        assert!(forwarded() > 0);
        assert_eq!(counter(&proxy, "packet_to_pod"), 0);
    });
}

#[test]
fn pods_of_two_nodes_reach_each_other_past_the_hosts_rules() {
    run("pods_of_two_nodes_reach_each_other_past_the_hosts_rules", |lab| {
        lab.add_pod();
        count_forwarded();
        let proxy = proxy(lab, ShortWays::Probe);
        for (address, seen) in [
            ("10.93.0.2:8080", "10.93.0.2:8080 sees 10.91.0.2"),
            ("[fd93::2]:8080", "[fd93::2]:8080 sees fd91::2"),
        ] {
            lab.tcp_server(OTHER, address);
            assert_eq!(lab.inside(POD, || line(address)), seen);
        }
        assert_eq!(forwarded(), 0);
        assert!(counter(&proxy, "packet_to_node") > 4);
        assert!(counter(&proxy, "packet_to_pod") > 4);
    });
}

#[test]
fn node_port_leads_to_a_pod_and_back_past_the_hosts_rules() {
    run("node_port_leads_to_a_pod_and_back_past_the_hosts_rules", |lab| {
        lab.add_pod();
        count_forwarded();
        lab.tcp_server(POD, "10.91.0.2:8080");
        lab.tcp_server(POD, "[fd91::2]:8080");
        let _udp = lab.udp_server(POD, "10.91.0.2:5353");
        let mut proxy = proxy(lab, ShortWays::Probe);
        let services = [
            service(&Spec {
                cluster_ips: &["10.96.0.10", "fd96::10"],
                node_port: Some(30080),
                ..Spec::default()
            }),
            service(&Spec {
                name: "dns",
                protocol: "UDP",
                cluster_ips: &["10.96.0.53"],
                node_port: Some(30053),
                ..Spec::default()
            }),
        ];
        let slices = [
            slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)]),
            slice("web", "TCP", 8080, &[("fd91::2", "node-a", true)]),
            slice("dns", "UDP", 5353, &[("10.91.0.2", "node-a", true)]),
        ];
        proxy.sync(&services, &slices, &[]).unwrap();
        lab.inside(CLIENT, || {
            assert_eq!(line("10.90.0.1:30080"), "10.91.0.2:8080 sees 10.90.0.2");
            assert_eq!(line("[fd90::1]:30080"), "[fd91::2]:8080 sees fd90::2");
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(support::patience())).unwrap();
            socket.connect("10.90.0.1:30053").unwrap();
            socket.send(b"?").unwrap();
            let mut buffer = [0; 64];
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], b"10.91.0.2:5353");
        });
        assert_eq!(forwarded(), 0);
    });
}

#[test]
fn pod_that_leaves_the_cluster_is_still_masqueraded() {
    run("pod_that_leaves_the_cluster_is_still_masqueraded", |lab| {
        lab.add_pod();
        count_forwarded();
        let _proxy = proxy(lab, ShortWays::Probe);
        for (address, seen) in [
            ("10.90.0.2:8080", "10.90.0.2:8080 sees 10.90.0.1"),
            ("[fd90::2]:8080", "[fd90::2]:8080 sees fd90::1"),
        ] {
            lab.tcp_server(CLIENT, address);
            assert_eq!(lab.inside(POD, || line(address)), seen);
        }
        assert!(forwarded() > 0);
    });
}

#[test]
fn pod_with_anothers_address_has_no_short_way() {
    run("pod_with_anothers_address_has_no_short_way", |lab| {
        lab.add_pod();
        lab.ip(POD, &["address", "add", "10.91.0.3/32", "dev", "lo"]);
        let proxy = proxy(lab, ShortWays::Probe);
        let stolen = lab.inside(POD, || std::net::UdpSocket::bind("10.91.0.3:4000").unwrap());
        stolen.send_to(b"?", "10.93.0.2:9").unwrap();
        let own = lab.inside(POD, || std::net::UdpSocket::bind("10.91.0.2:4000").unwrap());
        own.send_to(b"?", "10.93.0.2:9").unwrap();
        support::eventually("the packet with the pod's own address leaves", || {
            counter(&proxy, "packet_to_node") > 0
        });
        assert_eq!(counter(&proxy, "packet_to_node"), 1);
    });
}

#[test]
fn way_to_a_pod_closes_with_its_interface() {
    run("way_to_a_pod_closes_with_its_interface", |lab| {
        lab.add_pod();
        lab.tcp_server(POD_2, "10.91.0.3:8080");
        let proxy = proxy(lab, ShortWays::Probe);
        let (old, new) = (lab.ifindex("pod0"), lab.ifindex("pod1"));
        let both = ["10.91.0.2".parse().unwrap(), "10.91.0.3".parse().unwrap()];
        // An address moves to another interface before its old one is detached: it stays with the new one.
        proxy.attach_pod(old, Some([2; 6]), &both).unwrap();
        proxy.attach_pod(new, Some(lab.mac(POD_2, "eth0")), &both[1..]).unwrap();
        proxy.attach_pod(old, Some(lab.mac(POD, "eth0")), &both[..1]).unwrap();
        assert_eq!(lab.inside(POD, || line("10.91.0.3:8080")), "10.91.0.3:8080 sees 10.91.0.2");
        let before = counter(&proxy, "packet_to_pod");
        assert!(before > 0);
        proxy.detach_pod_interface(new).unwrap();
        assert_eq!(lab.inside(POD, || line("10.91.0.3:8080")), "10.91.0.3:8080 sees 10.91.0.2");
        // An interface that is no veth has no short way.
        assert!(!proxy.attach_pod(1, Some([2; 6]), &both).unwrap());
    });
}
