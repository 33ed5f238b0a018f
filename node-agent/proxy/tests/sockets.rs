//! Services at the socket: what a process of the node sees.

mod support;

use std::{io::ErrorKind, net::UdpSocket, os::fd::AsRawFd as _};

use hawser_ebpf_abi::socket::PEER_PLACES;
use support::{Lab, NODE, POD, Spec, connect, counter, echo, mapped, patience, run, service, slice};

#[test]
fn tcp_reaches_a_backend_and_sees_the_service_as_its_peer() {
    run("tcp_reaches_a_backend_and_sees_the_service_as_its_peer", |lab| {
        let v4 = lab.tcp_server(POD, "10.91.0.2:8080").to_string();
        let v6 = lab.tcp_server(POD, "[fd91::2]:8080").to_string();
        let mut proxy = lab.proxy();
        let report = proxy
            .sync(
                &[service(&Spec { cluster_ips: &["10.96.0.10", "fd96::10"], ..Spec::default() })],
                &[
                    slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)]),
                    slice("web", "TCP", 8080, &[("fd91::2", "node-a", true)]),
                ],
                &[],
            )
            .unwrap();
        assert_eq!((report.frontends, report.frontends_written), (2, 2));
        for (address, backend) in
            [("10.96.0.10:80", &v4), ("[fd96::10]:80", &v6), (&mapped("10.96.0.10:80") as &str, &v4)]
        {
            let (mut stream, line) = connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
            assert!(line.starts_with(backend.as_str()), "{address}: {line}");
            assert_eq!(stream.peer_addr().unwrap().to_string(), address);
            echo(&mut stream);
        }
        assert_eq!(counter(&proxy, "socket_connected"), 3);
    });
}

#[test]
fn service_without_ready_backends_refuses_at_once() {
    run("service_without_ready_backends_refuses_at_once", |lab| {
        let mut proxy = lab.proxy();
        let services = [
            service(&Spec::default()),
            service(&Spec { name: "dns", protocol: "UDP", port: 53, ..Spec::default() }),
        ];
        proxy.sync(&services, &[slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", false)])], &[]).unwrap();
        let refused = connect("10.96.0.10:80").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_eq!(socket.send_to(b"?", "10.96.0.10:53").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let socket = UdpSocket::bind("[::]:0").unwrap();
        let address = mapped("10.96.0.10:53");
        assert_eq!(socket.send_to(b"?", address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(counter(&proxy, "socket_refused_no_backend"), 3);
    });
}

#[test]
fn unconnected_udp_sees_replies_from_the_service() {
    run("unconnected_udp_sees_replies_from_the_service", |lab| {
        let _v4 = lab.udp_server(POD, "10.91.0.2:5353");
        let _v6 = lab.udp_server(POD, "[fd91::2]:5353");
        let mut proxy = lab.proxy();
        let spec =
            Spec { protocol: "UDP", port: 53, cluster_ips: &["10.96.0.10", "fd96::10"], ..Spec::default() };
        let slices = [
            slice("web", "UDP", 5353, &[("10.91.0.2", "node-a", true)]),
            slice("web", "UDP", 5353, &[("fd91::2", "node-a", true)]),
        ];
        proxy.sync(&[service(&spec)], &slices, &[]).unwrap();
        for (own, address) in [
            ("0.0.0.0:0", "10.96.0.10:53"),
            ("[::]:0", "[fd96::10]:53"),
            ("[::]:0", &mapped("10.96.0.10:53")),
        ] {
            let socket = UdpSocket::bind(own).unwrap();
            assert_eq!(ask(&socket, address).1, address, "the source of the reply");
            let socket = UdpSocket::bind(own).unwrap();
            socket.connect(address).unwrap();
            assert_eq!(socket.peer_addr().unwrap().to_string(), address);
            socket.set_read_timeout(Some(patience())).unwrap();
            socket.send(b"?").unwrap();
            assert!(socket.recv(&mut [0; 64]).is_ok(), "connected to {address}");
        }
    });
}

#[test]
fn udp_socket_keeps_its_backend_until_that_is_gone() {
    run("udp_socket_keeps_its_backend_until_that_is_gone", |lab| {
        let _servers: Vec<_> =
            (1..=4).map(|port| lab.udp_server(POD, &format!("10.91.0.2:530{port}"))).collect();
        let _elsewhere = lab.udp_server(NODE, "127.0.0.1:5399");
        let mut proxy = lab.proxy();
        let services = [service(&Spec { protocol: "UDP", port: 53, ..Spec::default() })];
        let on = |ports: &[u16]| {
            let slices =
                ports.iter().map(|port| slice("web", "UDP", *port, &[("10.91.0.2", "node-a", true)]));
            slices.collect::<Vec<_>>()
        };
        proxy.sync(&services, &on(&[5301, 5302, 5303, 5304]), &[]).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let first = ask(&socket, "10.96.0.10:53").0;
        for _ in 0..20 {
            assert_eq!(ask(&socket, "10.96.0.10:53").0, first);
        }
        // Another backend goes: the socket's own stays.
        let own: u16 = first.rsplit(':').next().unwrap().parse().unwrap();
        let other = (5301..=5304).find(|port| *port != own).unwrap();
        let rest: Vec<u16> = (5301..=5304).filter(|port| *port != other).collect();
        proxy.sync(&services, &on(&rest), &[]).unwrap();
        assert_eq!(ask(&socket, "10.96.0.10:53").0, first);
        // Its own goes: the next datagram reaches one that lives.
        let rest: Vec<u16> = rest.into_iter().filter(|port| *port != own).collect();
        proxy.sync(&services, &on(&rest), &[]).unwrap();
        let (second, source) = ask(&socket, "10.96.0.10:53");
        assert_ne!(second, first);
        assert_eq!(source, "10.96.0.10:53");
        // All go, and one comes back.
        proxy.sync(&services, &on(&[]), &[]).unwrap();
        assert!(socket.send_to(b"?", "10.96.0.10:53").is_err());
        proxy.sync(&services, &on(&[other]), &[]).unwrap();
        assert_eq!(ask(&socket, "10.96.0.10:53").0, format!("10.91.0.2:{other}"));
        assert_eq!(counter(&proxy, "socket_backend_replaced"), 2);
    });
}

#[test]
fn udp_socket_with_many_services_overflows_and_is_emptied_when_it_closes() {
    run("udp_socket_with_many_services_overflows_and_is_emptied_when_it_closes", |lab| {
        let servers: Vec<_> =
            (0..40).map(|n| lab.udp_server(POD, &format!("10.91.0.2:{}", 5300 + n))).collect();
        let mut proxy = lab.proxy();
        let names: Vec<String> = (0..40).map(|n| format!("s{n}")).collect();
        let addresses: Vec<String> = (0..40).map(|n| format!("10.96.1.{n}")).collect();
        let mut services = Vec::new();
        let mut slices = Vec::new();
        for n in 0..40 {
            let spec = Spec {
                name: &names[n],
                protocol: "UDP",
                port: 53,
                cluster_ips: &[&addresses[n]],
                ..Spec::default()
            };
            services.push(service(&spec));
            slices.push(slice(&names[n], "UDP", servers[n].address.port(), &[("10.91.0.2", "node-a", true)]));
        }
        proxy.sync(&services, &slices, &[]).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..2 {
            for (address, server) in addresses.iter().zip(&servers) {
                let (answer, source) = ask(&socket, &format!("{address}:53"));
                assert_eq!(answer, server.address.to_string());
                assert_eq!(source, format!("{address}:53"));
            }
        }
        assert_eq!(entries(lab, "UDP_OVERFLOW"), 3 * 36);
        drop(socket);
        support::eventually("the overflow is empty", || entries(lab, "UDP_OVERFLOW") == 0);
    });
}

#[test]
fn loopback_node_port_serves_the_node_and_nobody_else() {
    run("loopback_node_port_serves_the_node_and_nobody_else", |lab| {
        let backend = lab.tcp_server(POD, "10.91.0.2:8080").to_string();
        let mut proxy = lab.proxy();
        let services = [service(&Spec { node_port: Some(30080), ..Spec::default() })];
        proxy.sync(&services, &[slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)])], &[]).unwrap();
        for address in ["127.0.0.1:30080", "10.90.0.1:30080"] {
            let (_, line) = connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
            assert!(line.starts_with(&backend), "{address}: {line}");
        }
        let from_pod = lab.inside(POD, || connect("127.0.0.1:30080").map(drop));
        assert_eq!(from_pod.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(lab.inside(POD, || connect("10.90.0.1:30080")).is_ok());
    });
}

#[test]
fn local_readiness_takes_effect_before_the_api_hears_of_it() {
    run("local_readiness_takes_effect_before_the_api_hears_of_it", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        let mut proxy = lab.proxy();
        let services = [service(&Spec::default())];
        let not_ready = [slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", false)])];
        let ready = [slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)])];
        proxy.sync(&services, &not_ready, &[]).unwrap();
        assert!(connect("10.96.0.10:80").is_err());
        proxy.local_endpoint_changed("10.91.0.2".parse().unwrap(), true).unwrap();
        assert!(connect("10.96.0.10:80").is_ok());
        // A sync with the old slices keeps the news, one with new slices agrees, and then the API leads again.
        proxy.sync(&services, &not_ready, &[]).unwrap();
        assert!(connect("10.96.0.10:80").is_ok());
        proxy.sync(&services, &ready, &[]).unwrap();
        assert!(connect("10.96.0.10:80").is_ok());
        proxy.sync(&services, &not_ready, &[]).unwrap();
        assert!(connect("10.96.0.10:80").is_err());
    });
}

fn ask(socket: &UdpSocket, address: &str) -> (String, String) {
    socket.set_read_timeout(Some(patience())).unwrap();
    socket.send_to(b"?", address).unwrap_or_else(|error| panic!("send to {address}: {error}"));
    let mut buffer = [0; 64];
    let (len, source) =
        socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("from {address}: {error}"));
    (String::from_utf8(buffer[..len].to_vec()).unwrap(), source.to_string())
}

fn entries(lab: &Lab, map: &str) -> usize {
    let pin = lab.bpffs().join("maps").join(map);
    let output = std::process::Command::new("bpftool")
        .args(["-j", "map", "dump", "pinned"])
        .arg(pin)
        .output()
        .expect("bpftool is installed");
    let dump: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    dump.as_array().map_or(0, Vec::len)
}

/// What a connected socket asked for is kept at a place that follows from its cookie; another may have that place.
#[test]
fn sockets_that_share_a_place_see_their_own_services() {
    run("sockets_that_share_a_place_see_their_own_services", |lab| {
        let mut proxy = lab.proxy();
        let of = |name: &'static str, address: &'static str| {
            service(&Spec {
                name,
                protocol: "UDP",
                cluster_ips: std::slice::from_ref(&address),
                ..Spec::default()
            })
        };
        let ready = |name| slice(name, "UDP", 8080, &[("10.91.0.2", "node-a", true)]);
        let services = [of("one", "10.96.0.1"), of("two", "10.96.0.2"), of("three", "10.96.0.3")];
        proxy.sync(&services, &[ready("one"), ready("two"), ready("three")], &[]).unwrap();

        let first = UdpSocket::bind("0.0.0.0:0").unwrap();
        first.connect("10.96.0.1:80").unwrap();
        let second = at_the_same_place(&first);
        second.connect("10.96.0.2:80").unwrap();
        let sees = |socket: &UdpSocket| socket.peer_addr().unwrap().to_string();
        assert_eq!((sees(&first), sees(&second)), ("10.96.0.1:80".into(), "10.96.0.2:80".into()));
        first.connect("10.96.0.3:80").unwrap();
        assert_eq!((sees(&first), sees(&second)), ("10.96.0.3:80".into(), "10.96.0.2:80".into()));

        // Of the place's owner nothing is left that another could take for its own.
        drop(first);
        assert_eq!(sees(&second), "10.96.0.2:80");
        let third = at_the_same_place(&second);
        third.connect("10.91.0.2:8080").unwrap();
        assert_eq!(sees(&third), "10.91.0.2:8080", "no service");
        second.connect("10.96.0.1:80").unwrap();
        assert_eq!(sees(&second), "10.96.0.1:80", "the place was free");
        second.connect("10.91.0.2:8080").unwrap();
        assert_eq!(sees(&second), "10.91.0.2:8080", "connected again, to no service");
    });
}

/// Returns a new socket whose cookie leads to the same place.
fn at_the_same_place(socket: &UdpSocket) -> UdpSocket {
    let place = |socket: &UdpSocket| {
        let mut cookie = 0u64;
        let mut len = size_of::<u64>() as libc::socklen_t;
        // SAFETY: the buffer has the size that is given.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        assert_eq!(result, 0);
        cookie % u64::from(PEER_PLACES)
    };
    let wanted = place(socket);
    // Each CPU takes its numbers from ranges of its own, so some are never seen here.
    let mut all = (0..64 * PEER_PLACES).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap());
    all.find(|socket| place(socket) == wanted).expect("a socket at that place")
}
