//! Services at the packet: clients that no socket program of the node serves.

mod support;

use std::{io::ErrorKind, net::UdpSocket};

use hawser_proxy::{HostPort, PacketAttachment, Proxy};
use support::{
    CLIENT, Lab, NODE, OTHER, POD, Spec, connect, counter, echo, eventually, patience, run, service, slice,
};

#[test]
fn node_port_reaches_a_backend_on_this_node_which_sees_the_client() {
    run("node_port_reaches_a_backend_on_this_node_which_sees_the_client", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        lab.tcp_server(POD, "[fd91::2]:8080");
        let mut proxy = lab.proxy();
        let services = [service(&Spec {
            cluster_ips: &["10.96.0.10", "fd96::10"],
            node_port: Some(30080),
            ..Spec::default()
        })];
        let slices = [
            slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)]),
            slice("web", "TCP", 8080, &[("fd91::2", "node-a", true)]),
        ];
        proxy.sync(&services, &slices, &[]).unwrap();
        let v4 = ask_tcp(lab, CLIENT, "10.90.0.1:30080");
        assert_eq!(v4, "10.91.0.2:8080 sees 10.90.0.2");
        let v6 = ask_tcp(lab, CLIENT, "[fd90::1]:30080");
        assert_eq!(v6, "[fd91::2]:8080 sees fd90::2");
        assert!(counter(&proxy, "packet_new_flow") >= 2);
        // A cluster IP is nothing to the outside.
        let from_outside = lab.inside(CLIENT, || connect("10.96.0.10:80").map(drop));
        assert!(from_outside.is_err());
    });
}

#[test]
fn node_port_reaches_a_backend_on_another_node_and_replies_come_back() {
    run("node_port_reaches_a_backend_on_another_node_and_replies_come_back", |lab| {
        lab.tcp_server(OTHER, "10.93.0.2:8080");
        lab.tcp_server(OTHER, "[fd93::2]:8080");
        let mut proxy = lab.proxy();
        let services = [service(&Spec {
            cluster_ips: &["10.96.0.10", "fd96::10"],
            node_port: Some(30080),
            ..Spec::default()
        })];
        let slices = [
            slice("web", "TCP", 8080, &[("10.93.0.2", "node-b", true)]),
            slice("web", "TCP", 8080, &[("fd93::2", "node-b", true)]),
        ];
        proxy.sync(&services, &slices, &[]).unwrap();
        for _ in 0..20 {
            assert_eq!(ask_tcp(lab, CLIENT, "10.90.0.1:30080"), "10.93.0.2:8080 sees 10.90.0.1");
        }
        assert_eq!(ask_tcp(lab, CLIENT, "[fd90::1]:30080"), "[fd93::2]:8080 sees fd90::1");
        assert!(counter(&proxy, "packet_replied") > 0);
    });
}

#[test]
fn node_port_reaches_a_backend_behind_a_tunnel() {
    run("node_port_reaches_a_backend_behind_a_tunnel", |lab| {
        // The tunnel as pod networks have it: no address of its own, static neighbours and forwarding entries.
        let tunnel = |ns: &str, mac: &str, local: &str, peer_mac: &str, peer: &str| {
            let vxlan = ["type", "vxlan", "id", "7", "dstport", "8472", "nolearning", "local", local];
            let mut add = vec!["link", "add", "vx0", "address", mac];
            add.extend(vxlan);
            lab.ip(ns, &add);
            lab.ip(ns, &["link", "set", "vx0", "up"]);
            lab.ip(
                ns,
                &["neigh", "add", "169.254.9.9", "lladdr", peer_mac, "dev", "vx0", "nud", "permanent"],
            );
            lab.bridge(ns, &["fdb", "add", peer_mac, "dev", "vx0", "dst", peer]);
        };
        tunnel(NODE, "02:00:00:00:00:0a", "10.92.0.1", "02:00:00:00:00:0b", "10.92.0.2");
        tunnel(OTHER, "02:00:00:00:00:0b", "10.92.0.2", "02:00:00:00:00:0a", "10.92.0.1");
        lab.ip(OTHER, &["address", "add", "10.94.0.2/32", "dev", "lo"]);
        lab.ip(NODE, &["route", "add", "10.94.0.0/24", "via", "169.254.9.9", "dev", "vx0", "onlink"]);
        lab.tcp_server(OTHER, "10.94.0.2:8080");
        let mut proxy = lab.proxy();
        proxy.attach_uplink("vx0").unwrap();
        let services = [service(&Spec { node_port: Some(30080), ..Spec::default() })];
        proxy.sync(&services, &[slice("web", "TCP", 8080, &[("10.94.0.2", "node-b", true)])], &[]).unwrap();
        assert_eq!(ask_tcp(lab, CLIENT, "10.90.0.1:30080"), "10.94.0.2:8080 sees 10.90.0.1");
        lab.inside(CLIENT, || stream_through("10.90.0.1:30080", 1 << 20));
    });
}

#[test]
fn kernel_without_tcx_is_served_through_clsact() {
    run("kernel_without_tcx_is_served_through_clsact", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        lab.tcp_server(OTHER, "10.93.0.2:8080");
        let mut config = lab.config();
        config.packet_attachment = PacketAttachment::Classic;
        let services = [
            service(&Spec { node_port: Some(30080), ..Spec::default() }),
            service(&Spec { name: "there", cluster_ips: &["10.96.0.11"], ..Spec::default() }),
        ];
        let slices = [
            slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true), ("10.93.0.2", "node-b", true)]),
            slice("there", "TCP", 8080, &[("10.93.0.2", "node-b", true)]),
        ];
        // Twice: the second agent replaces the filters of the first.
        for _ in 0..2 {
            let mut proxy = Proxy::start(config.clone()).unwrap();
            proxy.sync(&services, &slices, &[]).unwrap();
            lab.attach_pod(&proxy);
            drop(proxy);
            for _ in 0..10 {
                ask_tcp(lab, CLIENT, "10.90.0.1:30080");
            }
            lab.inside_unserved(POD, || assert!(connect("10.96.0.11:80").is_ok()));
            assert_eq!(lab.filters(), ["up0", "up0", "up1", "up1", "pod0", "pod0"]);
        }
        Proxy::remove_all(&lab.bpffs()).unwrap();
        assert!(lab.filters().is_empty());
    });
}

#[test]
fn node_port_carries_much_data_both_ways() {
    run("node_port_carries_much_data_both_ways", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        lab.tcp_server(OTHER, "10.93.0.2:8080");
        let mut proxy = lab.proxy();
        let services = [
            service(&Spec { name: "here", node_port: Some(30080), ..Spec::default() }),
            service(&Spec {
                name: "there",
                cluster_ips: &["10.96.0.11"],
                node_port: Some(30081),
                ..Spec::default()
            }),
        ];
        let slices = [
            slice("here", "TCP", 8080, &[("10.91.0.2", "node-a", true)]),
            slice("there", "TCP", 8080, &[("10.93.0.2", "node-b", true)]),
        ];
        proxy.sync(&services, &slices, &[]).unwrap();
        for address in ["10.90.0.1:30080", "10.90.0.1:30081"] {
            lab.inside(CLIENT, || stream_through(address, 4 << 20));
        }
    });
}

#[test]
fn udp_node_port_keeps_its_flow_and_moves_when_the_backend_goes() {
    run("udp_node_port_keeps_its_flow_and_moves_when_the_backend_goes", |lab| {
        let _local = lab.udp_server(POD, "10.91.0.2:5353");
        let _remote = lab.udp_server(OTHER, "10.93.0.2:5353");
        let mut proxy = lab.proxy();
        let services =
            [service(&Spec { protocol: "UDP", port: 53, node_port: Some(30053), ..Spec::default() })];
        let both = ["10.91.0.2", "10.93.0.2"];
        let on = |addresses: &[&str]| {
            let endpoints: Vec<_> = addresses
                .iter()
                .map(|address| (*address, if *address == both[0] { "node-a" } else { "node-b" }, true))
                .collect();
            [slice("web", "UDP", 5353, &endpoints)]
        };
        proxy.sync(&services, &on(&both), &[]).unwrap();
        let socket = lab.inside(CLIENT, || UdpSocket::bind("10.90.0.2:0").unwrap());
        socket.connect("10.90.0.1:30053").unwrap();
        let first = ask_udp(&socket);
        for _ in 0..10 {
            assert_eq!(ask_udp(&socket), first);
        }
        let rest: Vec<&str> = both.into_iter().filter(|address| !first.starts_with(address)).collect();
        proxy.sync(&services, &on(&rest), &[]).unwrap();
        let second = ask_udp(&socket);
        assert!(second.starts_with(rest[0]), "{second}");
    });
}

#[test]
fn local_policy_uses_backends_of_this_node_alone() {
    run("local_policy_uses_backends_of_this_node_alone", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        lab.tcp_server(OTHER, "10.93.0.2:8080");
        let mut proxy = lab.proxy();
        let services =
            [service(&Spec { node_port: Some(30080), external_policy: "Local", ..Spec::default() })];
        let both =
            [slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true), ("10.93.0.2", "node-b", true)])];
        proxy.sync(&services, &both, &[]).unwrap();
        for _ in 0..10 {
            assert_eq!(ask_tcp(lab, CLIENT, "10.90.0.1:30080"), "10.91.0.2:8080 sees 10.90.0.2");
        }
        // Inside the cluster all backends serve.
        eventually("a process of the node reaches the other node's backend", || {
            connect("10.90.0.1:30080").unwrap().1.starts_with("10.93.0.2")
        });
    });
}

#[test]
fn host_port_leads_to_its_pod() {
    run("host_port_leads_to_its_pod", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        let mut proxy = lab.proxy();
        let host_port = HostPort {
            pod_namespace: "default".to_owned(),
            pod_name: "web-0".to_owned(),
            pod_ip: "10.91.0.2".parse().unwrap(),
            container_port: 8080,
            host_ip: None,
            host_port: 61088,
            protocol: "TCP".to_owned(),
        };
        proxy.sync(&[], &[], std::slice::from_ref(&host_port)).unwrap();
        assert_eq!(ask_tcp(lab, CLIENT, "10.90.0.1:61088"), "10.91.0.2:8080 sees 10.90.0.2");
        assert!(connect("127.0.0.1:61088").is_ok());
        proxy.sync(&[], &[], &[]).unwrap();
        let refused = lab.inside(CLIENT, || connect("10.90.0.1:61088").map(drop));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn pod_without_socket_programs_reaches_cluster_ips_by_packet() {
    run("pod_without_socket_programs_reaches_cluster_ips_by_packet", |lab| {
        lab.tcp_server(OTHER, "10.93.0.2:8080");
        let _udp = lab.udp_server(OTHER, "10.93.0.2:5353");
        let mut proxy = lab.proxy();
        let services = [
            service(&Spec::default()),
            service(&Spec {
                name: "dns",
                protocol: "UDP",
                port: 53,
                cluster_ips: &["10.96.0.53"],
                ..Spec::default()
            }),
        ];
        let slices = [
            slice("web", "TCP", 8080, &[("10.93.0.2", "node-b", true)]),
            slice("dns", "UDP", 5353, &[("10.93.0.2", "node-b", true)]),
        ];
        proxy.sync(&services, &slices, &[]).unwrap();
        lab.attach_pod(&proxy);
        lab.inside_unserved(POD, || {
            let (mut stream, line) = connect("10.96.0.10:80").unwrap();
            assert_eq!(line, "10.93.0.2:8080 sees 10.91.0.2");
            echo(&mut stream);
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("10.96.0.53:53").unwrap();
            assert_eq!(ask_udp(&socket), "10.93.0.2:5353");
        });
        assert_eq!(counter(&proxy, "socket_connected"), 0);
        assert_eq!(counter(&proxy, "packet_new_flow"), 2);
        proxy.detach_pod_interface(lab.pod_ifindex()).unwrap();
        let unserved = lab.inside_unserved(POD, || connect("10.96.0.10:80").map(drop));
        assert!(unserved.is_err());
    });
}

#[test]
fn connected_udp_client_reaches_a_living_backend_without_closing() {
    run("connected_udp_client_reaches_a_living_backend_without_closing", |lab| {
        let servers = [lab.udp_server(OTHER, "10.93.0.2:5301"), lab.udp_server(OTHER, "10.93.0.2:5302")];
        let mut proxy = lab.proxy();
        lab.attach_pod(&proxy);
        let services = [service(&Spec { protocol: "UDP", port: 53, ..Spec::default() })];
        proxy.sync(&services, &[slice("web", "UDP", 5301, &[("10.93.0.2", "node-b", true)])], &[]).unwrap();
        let socket = lab.inside(POD, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("10.96.0.10:53").unwrap();
            socket
        });
        assert_eq!(ask_udp(&socket), servers[0].address.to_string());
        let address = "10.92.0.2";
        let second = lab.udp_server(OTHER, &format!("{address}:5303"));
        proxy.sync(&services, &[slice("web", "UDP", 5303, &[(address, "node-b", true)])], &[]).unwrap();
        assert_eq!(ask_udp(&socket), second.address.to_string());
        assert_eq!(socket.peer_addr().unwrap().to_string(), "10.96.0.10:53");
        // Something else answers at the old address again: it is left alone.
        let other = service(&Spec { name: "other", cluster_ips: &["10.96.0.11"], ..Spec::default() });
        let slices = [
            slice("web", "UDP", 5303, &[(address, "node-b", true)]),
            slice("other", "TCP", 80, &[("10.93.0.2", "node-b", true)]),
        ];
        proxy.sync(&[services[0].clone(), other], &slices, &[]).unwrap();
        assert_eq!(ask_udp(&socket), servers[0].address.to_string());
    });
}

fn ask_tcp(lab: &Lab, ns: &str, address: &str) -> String {
    lab.inside(ns, || {
        let (mut stream, line) = connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        echo(&mut stream);
        line
    })
}

fn ask_udp(socket: &UdpSocket) -> String {
    socket.set_read_timeout(Some(patience())).unwrap();
    socket.send(b"?").unwrap();
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..len].to_vec()).unwrap()
}

/// Sends `len` bytes through the echo server and checks what comes back.
fn stream_through(address: &str, len: usize) {
    use std::io::{Read as _, Write as _};
    let (stream, _) = connect(address).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let byte = |index: usize| (index % 251) as u8;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let data: Vec<u8> = (0..len).map(byte).collect();
            writer.write_all(&data).unwrap();
        });
        let mut back = vec![0; len];
        (&stream).read_exact(&mut back).unwrap();
        assert!(back.iter().enumerate().all(|(index, found)| *found == byte(index)));
    });
}
