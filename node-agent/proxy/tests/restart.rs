//! The kernel outlives the agent: what a restart keeps, and what it repairs.

mod support;

use std::{io::Write as _, net::UdpSocket, os::unix::fs::MetadataExt as _};

use hawser_ebpf_abi::Settings;
use hawser_proxy::{Datapath, Error, Proxy};
use support::{
    CLIENT, Lab, OTHER, POD, Spec, connect, counter, echo, load::under_load, patience, run, service, slice,
};

#[test]
fn agent_restart_interrupts_nothing() {
    run("agent_restart_interrupts_nothing", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        lab.tcp_server(OTHER, "10.93.0.2:8080");
        let services = [service(&Spec { node_port: Some(30080), ..Spec::default() })];
        let slices =
            [slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true), ("10.93.0.2", "node-b", true)])];
        let mut proxy = lab.proxy();
        lab.attach_pod(&proxy);
        proxy.sync(&services, &slices, &[]).unwrap();

        let (mut through_socket, _) = connect("10.96.0.10:80").unwrap();
        let mut through_packets: Vec<_> =
            (0..8).map(|_| lab.inside(CLIENT, || connect("10.90.0.1:30080").unwrap().0)).collect();
        let proxy = under_load(lab, &[(POD, "10.96.0.10:80"), (CLIENT, "10.90.0.1:30080")], |more| {
            for _ in 0..5 {
                drop(proxy);
                more("connections without an agent");
                proxy = lab.proxy();
                let report = proxy.sync(&services, &slices, &[]).unwrap();
                assert_eq!(
                    (report.frontends_written, report.frontends_removed, report.backends_written),
                    (0, 0, 0)
                );
                more("connections after a restart");
                echo(&mut through_socket);
                through_packets.iter_mut().for_each(echo);
            }
            proxy
        });
        assert!(counter(&proxy, "packet_forwarded") > 0, "the pod interface was taken over");
    });
}

/// Names and inodes of the directories of programs that are kept; a directory that is made anew has another inode.
fn kept(lab: &Lab) -> Vec<(String, u64)> {
    let entries = std::fs::read_dir(lab.bpffs().join("programs")).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().ino())).collect()
}

#[test]
fn programs_of_the_same_build_are_taken_over_and_others_are_not() {
    run("programs_of_the_same_build_are_taken_over_and_others_are_not", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        let slices = [slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)])];
        let mut proxy = lab.proxy();
        lab.attach_pod(&proxy);
        proxy.sync(&[service(&Spec { node_port: Some(30080), ..Spec::default() })], &slices, &[]).unwrap();
        let first = kept(lab);
        assert_eq!(first.len(), 1);
        drop(proxy);
        drop(lab.proxy());
        assert_eq!(kept(lab), first, "the same programs");
        connect("10.96.0.10:80").unwrap();
        lab.inside(CLIENT, || connect("10.90.0.1:30080").unwrap());

        // Another build has another name.
        let dir = lab.bpffs().join("programs");
        std::fs::rename(dir.join(&first[0].0), dir.join("0123456789abcdef")).unwrap();
        drop(lab.proxy());
        let second = kept(lab);
        assert_eq!(second.len(), 1, "what was kept before is gone");
        assert_eq!(second[0].0, first[0].0, "of the same build and maps");
        assert_ne!(second[0].1, first[0].1, "loaded anew");
        connect("10.96.0.10:80").unwrap();
        lab.inside(CLIENT, || connect("10.90.0.1:30080").unwrap());
    });
}

#[test]
fn programs_of_an_agent_that_was_killed_while_it_removed_them_are_not_taken_over() {
    run("programs_of_an_agent_that_was_killed_while_it_removed_them_are_not_taken_over", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        let slices = [slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)])];
        let mut proxy = lab.proxy();
        lab.attach_pod(&proxy);
        proxy.sync(&[service(&Spec::default())], &slices, &[]).unwrap();
        let first = kept(lab);
        drop(proxy);
        // It had some of them removed already.
        let removed = lab.bpffs().join("programs_removed");
        std::fs::rename(lab.bpffs().join("programs"), &removed).unwrap();
        let mut pins = std::fs::read_dir(removed.join(&first[0].0)).unwrap().map(Result::unwrap);
        std::fs::remove_file(pins.next().unwrap().path()).unwrap();
        drop(lab.proxy());
        assert!(!removed.exists());
        assert_ne!(kept(lab)[0].1, first[0].1, "loaded anew");
        connect("10.96.0.10:80").unwrap();
        Proxy::remove_all(&lab.bpffs()).unwrap();
        assert_eq!(std::fs::read_dir(lab.bpffs()).unwrap().count(), 0);
    });
}

#[test]
fn restart_repairs_what_changed_while_no_agent_ran() {
    run("restart_repairs_what_changed_while_no_agent_ran", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        lab.tcp_server(POD, "10.91.0.2:8081");
        let web = service(&Spec::default());
        let gone = service(&Spec { name: "gone", cluster_ips: &["10.96.0.20"], ..Spec::default() });
        let dns =
            Spec { name: "dns", protocol: "UDP", port: 53, cluster_ips: &["10.96.0.53"], ..Spec::default() };
        let old = [
            slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)]),
            slice("gone", "TCP", 8080, &[("10.91.0.2", "node-a", true)]),
            slice("dns", "UDP", 5353, &[("10.91.0.2", "node-a", true)]),
        ];
        let mut proxy = lab.proxy();
        proxy.sync(&[web.clone(), gone, service(&dns)], &old, &[]).unwrap();
        drop(proxy);

        let mut proxy = lab.proxy();
        assert!(connect("10.96.0.20:80").is_ok(), "served as it was until the first sync");
        let new = [slice("web", "TCP", 8081, &[("10.91.0.2", "node-a", true)])];
        let report = proxy.sync(&[web], &new, &[]).unwrap();
        assert_eq!((report.frontends, report.frontends_written, report.frontends_removed), (1, 1, 2));
        let (_, line) = connect("10.96.0.10:80").unwrap();
        assert!(line.starts_with("10.91.0.2:8081"), "{line}");
        assert!(connect("10.96.0.20:80").is_err());
        let services = proxy.dump_services().unwrap();
        assert_eq!(services.len(), 1);
        assert_eq!(services[0].to_string(), "10.96.0.10:80/TCP -> 10.91.0.2:8081");
    });
}

#[test]
fn udp_conversation_survives_a_restart() {
    run("udp_conversation_survives_a_restart", |lab| {
        let servers: Vec<_> =
            (1..=4).map(|port| lab.udp_server(POD, &format!("10.91.0.2:530{port}"))).collect();
        let services = [service(&Spec { protocol: "UDP", port: 53, ..Spec::default() })];
        let slices: Vec<_> = servers
            .iter()
            .map(|server| slice("web", "UDP", server.address.port(), &[("10.91.0.2", "node-a", true)]))
            .collect();
        let mut proxy = lab.proxy();
        proxy.sync(&services, &slices, &[]).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(patience())).unwrap();
        let ask = || {
            socket.send_to(b"?", "10.96.0.10:53").unwrap();
            let mut buffer = [0; 64];
            let (len, source) = socket.recv_from(&mut buffer).unwrap();
            (String::from_utf8(buffer[..len].to_vec()).unwrap(), source.to_string())
        };
        let before = ask();
        for _ in 0..3 {
            drop(proxy);
            assert_eq!(ask(), before);
            proxy = lab.proxy();
            assert_eq!(ask(), before);
            proxy.sync(&services, &slices, &[]).unwrap();
            assert_eq!(ask(), before);
        }
    });
}

#[test]
fn maps_of_another_layout_are_refused_and_left_alone() {
    run("maps_of_another_layout_are_refused_and_left_alone", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        let mut proxy = lab.proxy();
        let slices = [slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)])];
        proxy.sync(&[service(&Spec::default())], &slices, &[]).unwrap();
        drop(proxy);
        let settings = lab.bpffs().join("maps/SETTINGS");
        let status = std::process::Command::new("bpftool")
            .args(["map", "update", "pinned"])
            .arg(settings)
            .args(["key", "0", "0", "0", "0", "value"])
            .args(std::iter::once("99").chain(std::iter::repeat_n("0", size_of::<Settings>() - 1)))
            .status()
            .unwrap();
        assert!(status.success());
        match Proxy::start(lab.config()) {
            Err(Error::Layout { found: 99, .. }) => {}
            other => panic!("{other:?}"),
        }
        let (mut stream, _) = connect("10.96.0.10:80").unwrap();
        stream.write_all(b"still served").unwrap();
    });
}

#[test]
fn removal_leaves_nothing_behind() {
    run("removal_leaves_nothing_behind", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        let mut proxy = lab.proxy();
        lab.attach_pod(&proxy);
        let slices = [slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)])];
        proxy.sync(&[service(&Spec::default())], &slices, &[]).unwrap();
        drop(proxy);
        Proxy::remove_all(&lab.bpffs()).unwrap();
        assert!(connect("10.96.0.10:80").is_err());
        assert_eq!(std::fs::read_dir(lab.bpffs()).unwrap().count(), 0);
        Proxy::remove_all(&lab.bpffs()).unwrap();
        // And it starts again from nothing.
        let mut proxy = lab.proxy();
        proxy.sync(&[service(&Spec::default())], &slices, &[]).unwrap();
        assert!(connect("10.96.0.10:80").is_ok());
    });
}

#[test]
fn flow_table_is_as_large_as_asked_for_and_keeps_its_size() {
    run("flow_table_is_as_large_as_asked_for_and_keeps_its_size", |lab| {
        lab.tcp_server(OTHER, "10.93.0.2:8080");
        let room = || {
            let usage = Datapath::open(&lab.bpffs()).unwrap().usage().unwrap();
            let of = |name| usage.iter().find(|map| map.name == name).unwrap().capacity;
            (of("flows"), of("flow_index"))
        };
        let mut config = lab.config();
        config.max_flows = 70_000;
        let proxy = lab.with_node_ports(config);
        assert_eq!(room(), (131_072, 1_048_576), "the next power of two, and eight entries a bucket");
        let mut streams: Vec<_> =
            (0..8).map(|_| lab.inside(CLIENT, || connect("10.90.0.1:30090").unwrap().0)).collect();
        drop(proxy);
        let mut config = lab.config();
        config.max_flows = 1 << 20;
        let _proxy = Proxy::start(config).unwrap();
        assert_eq!(room(), (131_072, 1_048_576), "with the flows that are in it");
        streams.iter_mut().for_each(echo);
        drop(lab.inside(CLIENT, || connect("10.90.0.1:30090").unwrap()));
    });
}
