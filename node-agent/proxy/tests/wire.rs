//! The packet path's less plain ways, with real sockets: pods that reach themselves, backends on the host's network,
//! path MTU discovery, refusals, and datagrams in parts.

mod support;

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
};

use hawser_services::Service;
use support::{
    CLIENT, Lab, NODE, OTHER, POD, Spec, connect, counter, echo, patience, run, service, service_with, slice,
};

/// A service on 10.96.0.10 and fd96::10, port 80, node port 30080, with one backend a family.
fn with_backend(lab: &Lab, protocol: &str, v4: &str, v6: &str, node: &str) -> hawser_proxy::Proxy {
    let mut proxy = lab.proxy();
    let services = [service(&Spec {
        cluster_ips: &["10.96.0.10", "fd96::10"],
        node_port: Some(30080),
        protocol,
        ..Spec::default()
    })];
    let slices = [
        slice("web", protocol, 8080, &[(v4, node, true)]),
        slice("web", protocol, 8080, &[(v6, node, true)]),
    ];
    proxy.sync(&services, &slices, &[]).unwrap();
    lab.attach_pod(&proxy);
    proxy
}

#[track_caller]
fn line(address: &str) -> String {
    let (mut stream, line) = connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    echo(&mut stream);
    line
}

#[track_caller]
fn ask_udp(local: &str, address: &str) -> String {
    let socket = UdpSocket::bind(local).unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(patience())).unwrap();
    socket.send(b"?").unwrap();
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{address}: {error}"));
    String::from_utf8(buffer[..len].to_vec()).unwrap()
}

const WAYS_IN: [&str; 4] = ["10.96.0.10:80", "[fd96::10]:80", "10.90.0.1:30080", "[fd90::1]:30080"];

#[test]
fn pod_reaches_itself_through_its_service() {
    run("pod_reaches_itself_through_its_service", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        lab.tcp_server(POD, "[fd91::2]:8080");
        let proxy = with_backend(lab, "TCP", "10.91.0.2", "fd91::2", "node-a");
        lab.inside_unserved(POD, || {
            for address in WAYS_IN {
                let seen = if address.contains('[') {
                    "[fd91::2]:8080 sees fd90::1"
                } else {
                    "10.91.0.2:8080 sees 10.90.0.1"
                };
                assert_eq!(line(address), seen, "{address}");
            }
        });
        assert_eq!(counter(&proxy, "socket_connected"), 0);
    });
}

#[test]
fn pod_reaches_itself_through_its_service_by_udp() {
    run("pod_reaches_itself_through_its_service_by_udp", |lab| {
        let _servers = [lab.udp_server(POD, "10.91.0.2:8080"), lab.udp_server(POD, "[fd91::2]:8080")];
        let _proxy = with_backend(lab, "UDP", "10.91.0.2", "fd91::2", "node-a");
        lab.inside_unserved(POD, || {
            assert_eq!(ask_udp("0.0.0.0:0", "10.96.0.10:80"), "10.91.0.2:8080");
            assert_eq!(ask_udp("[::]:0", "[fd96::10]:80"), "[fd91::2]:8080");
        });
    });
}

#[test]
fn backend_on_this_nodes_own_network_is_reached_from_everywhere() {
    run("backend_on_this_nodes_own_network_is_reached_from_everywhere", |lab| {
        lab.tcp_server(NODE, "10.90.0.1:8080");
        lab.tcp_server(NODE, "[fd90::1]:8080");
        let _proxy = with_backend(lab, "TCP", "10.90.0.1", "fd90::1", "node-a");
        lab.inside(CLIENT, || {
            assert_eq!(line("10.90.0.1:30080"), "10.90.0.1:8080 sees 10.90.0.2");
            assert_eq!(line("[fd90::1]:30080"), "[fd90::1]:8080 sees fd90::2");
        });
        lab.inside_unserved(POD, || {
            for address in WAYS_IN {
                let seen = if address.contains('[') {
                    "[fd90::1]:8080 sees fd91::2"
                } else {
                    "10.90.0.1:8080 sees 10.91.0.2"
                };
                assert_eq!(line(address), seen, "{address}");
            }
        });
    });
}

#[test]
fn backend_on_another_nodes_own_network_is_reached_from_everywhere() {
    run("backend_on_another_nodes_own_network_is_reached_from_everywhere", |lab| {
        lab.tcp_server(OTHER, "10.92.0.2:8080");
        lab.tcp_server(OTHER, "[fd92::2]:8080");
        let _proxy = with_backend(lab, "TCP", "10.92.0.2", "fd92::2", "node-b");
        lab.inside(CLIENT, || {
            assert_eq!(line("10.90.0.1:30080"), "10.92.0.2:8080 sees 10.90.0.1");
            assert_eq!(line("[fd90::1]:30080"), "[fd92::2]:8080 sees fd90::1");
        });
        lab.inside_unserved(POD, || {
            for address in WAYS_IN {
                let seen = if address.contains('[') {
                    "[fd92::2]:8080 sees fd91::2"
                } else {
                    "10.92.0.2:8080 sees 10.91.0.2"
                };
                assert_eq!(line(address), seen, "{address}");
            }
        });
    });
}

#[test]
fn udp_backends_on_host_networks_are_reached_from_everywhere() {
    run("udp_backends_on_host_networks_are_reached_from_everywhere", |lab| {
        for (ns, v4, v6, node) in
            [(NODE, "10.90.0.1", "fd90::1", "node-a"), (OTHER, "10.92.0.2", "fd92::2", "node-b")]
        {
            let _servers =
                [lab.udp_server(ns, &format!("{v4}:8080")), lab.udp_server(ns, &format!("[{v6}]:8080"))];
            let _proxy = with_backend(lab, "UDP", v4, v6, node);
            let ask = || {
                assert_eq!(ask_udp("0.0.0.0:0", "10.90.0.1:30080"), format!("{v4}:8080"));
                assert_eq!(ask_udp("[::]:0", "[fd90::1]:30080"), format!("[{v6}]:8080"));
            };
            lab.inside(CLIENT, ask);
            lab.inside_unserved(POD, ask);
        }
    });
}

/// A link of 1,300 bytes behind the other node: a second way to the pod's namespace, where the far backend is.
fn narrow_way(lab: &Lab) {
    lab.veth((OTHER, "far0"), (POD, "eth1"));
    lab.address(OTHER, "far0", "10.95.0.1/24", "fd95::1/64");
    lab.address(POD, "eth1", "10.95.0.2/24", "fd95::2/64");
    lab.ip(OTHER, &["route", "add", "10.95.0.2", "dev", "far0", "mtu", "1300"]);
    lab.ip(OTHER, &["-6", "route", "add", "fd95::2", "dev", "far0", "mtu", "1300"]);
    for (family, to, via_pod, range, via_node) in [
        ("-4", "10.90.0.0/24", "10.95.0.1", "10.95.0.0/24", "10.92.0.2"),
        ("-6", "fd90::/64", "fd95::1", "fd95::/64", "fd92::2"),
    ] {
        lab.ip(POD, &[family, "route", "add", to, "via", via_pod]);
        lab.ip(NODE, &[family, "route", "add", range, "via", via_node]);
    }
    lab.inside(OTHER, || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    });
}

#[test]
fn client_of_a_node_port_hears_of_a_narrow_link_behind_the_node() {
    run("client_of_a_node_port_hears_of_a_narrow_link_behind_the_node", |lab| {
        narrow_way(lab);
        lab.tcp_server(POD, "10.95.0.2:8080");
        lab.tcp_server(POD, "[fd95::2]:8080");
        let proxy = with_backend(lab, "TCP", "10.95.0.2", "fd95::2", "node-b");
        for address in ["10.90.0.1:30080", "[fd90::1]:30080"] {
            let before = counter(&proxy, "icmp_error_translated");
            lab.inside(CLIENT, || stream_through(address, 1 << 20));
            assert!(counter(&proxy, "icmp_error_translated") > before, "{address}");
        }
    });
}

#[test]
fn backend_of_a_node_port_hears_of_a_narrow_link_to_the_client() {
    run("backend_of_a_node_port_hears_of_a_narrow_link_to_the_client", |lab| {
        lab.tcp_server(OTHER, "10.93.0.2:8080");
        lab.tcp_server(OTHER, "[fd93::2]:8080");
        lab.ip(NODE, &["route", "add", "10.90.0.2", "dev", "up0", "mtu", "lock", "1300"]);
        lab.ip(NODE, &["-6", "route", "add", "fd90::2", "dev", "up0", "mtu", "lock", "1300"]);
        let proxy = with_backend(lab, "TCP", "10.93.0.2", "fd93::2", "node-b");
        for address in ["10.90.0.1:30080", "[fd90::1]:30080"] {
            let before = counter(&proxy, "answered_too_big");
            lab.inside(CLIENT, || stream_through(address, 1 << 20));
            assert!(counter(&proxy, "answered_too_big") > before, "{address}");
        }
    });
}

#[test]
fn service_without_backend_refuses_at_once_wherever_its_address_is() {
    run("service_without_backend_refuses_at_once_wherever_its_address_is", |lab| {
        let external = "198.51.100.7";
        lab.ip(CLIENT, &["route", "add", external, "via", "10.90.0.1"]);
        let mut proxy = lab.proxy();
        let nothing = |name: &str, protocol: &str, cluster_ips: &[&str], node_port| -> Arc<Service> {
            let spec = Spec { name, protocol, cluster_ips, node_port: Some(node_port), ..Spec::default() };
            service_with(&spec, &serde_json::json!({ "externalIPs": [external] }))
        };
        let services = [
            nothing("tcp", "TCP", &["10.96.0.10", "fd96::10"], 30080),
            nothing("udp", "UDP", &["10.96.0.11", "fd96::11"], 30080),
        ];
        proxy.sync(&services, &[], &[]).unwrap();
        lab.attach_pod(&proxy);
        let refused = |tcp: &str, udp: &str| {
            let error = connect(tcp).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{tcp}: {error}");
            let socket = UdpSocket::bind(if udp.contains('[') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
            socket.connect(udp).unwrap();
            socket.set_read_timeout(Some(patience())).unwrap();
            socket.send(b"?").unwrap();
            let error = socket.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{udp}: {error}");
        };
        lab.inside(CLIENT, || {
            refused("10.90.0.1:30080", "10.90.0.1:30080");
            refused("[fd90::1]:30080", "[fd90::1]:30080");
            refused(&format!("{external}:80"), &format!("{external}:80"));
        });
        lab.inside_unserved(POD, || {
            refused("10.96.0.10:80", "10.96.0.11:80");
            refused("[fd96::10]:80", "[fd96::11]:80");
            refused(&format!("{external}:80"), &format!("{external}:80"));
        });
        assert_eq!(counter(&proxy, "answered_no_backend"), 12);
    });
}

#[test]
fn datagrams_in_parts_go_there_and_back() {
    run("datagrams_in_parts_go_there_and_back", |lab| {
        for (ns, v4, v6, node) in
            [(POD, "10.91.0.2", "fd91::2", "node-a"), (OTHER, "10.93.0.2", "fd93::2", "node-b")]
        {
            let servers =
                [large_echo(lab, ns, &format!("{v4}:8080")), large_echo(lab, ns, &format!("[{v6}]:8080"))];
            let _proxy = with_backend(lab, "UDP", v4, v6, node);
            lab.inside(CLIENT, || {
                for (local, address) in [("0.0.0.0:0", "10.90.0.1:30080"), ("[::]:0", "[fd90::1]:30080")] {
                    let socket = UdpSocket::bind(local).unwrap();
                    socket.connect(address).unwrap();
                    socket.set_read_timeout(Some(patience())).unwrap();
                    let sent: Vec<u8> = (0..5000).map(|n| (n % 251) as u8).collect();
                    socket.send(&sent).unwrap();
                    let mut back = vec![0; 6000];
                    let len =
                        socket.recv(&mut back).unwrap_or_else(|error| panic!("{address} of {ns}: {error}"));
                    assert!(back[..len] == sent, "{address} of {ns}");
                }
            });
            for (server, thread) in servers {
                // Its end: an empty datagram from its own namespace.
                lab.inside(ns, || {
                    let local = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    UdpSocket::bind(local).unwrap().send_to(&[], server).unwrap()
                });
                thread.join().unwrap();
            }
        }
    });
}

/// Sends whole datagrams back until it gets an empty one.
fn large_echo(lab: &Lab, ns: &str, address: &str) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let socket = lab.inside(ns, || UdpSocket::bind(address).unwrap());
    let address = socket.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut buffer = vec![0; 9000];
        while let Ok((len @ 1.., from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    (address, thread)
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
        (&stream).read_exact(&mut back).unwrap_or_else(|error| panic!("{address}: {error}"));
        assert!(back.iter().enumerate().all(|(index, found)| *found == byte(index)));
    });
}
