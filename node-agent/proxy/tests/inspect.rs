//! Looking at a datapath at work from outside: flows, usage, and explanations that agree with what happens.

mod support;

use std::io::ErrorKind;

use hawser_proxy::{Client, Datapath, FlowState, Outcome, Query};
use serde_json::json;
use support::{CLIENT, NODE, OTHER, POD, Spec, connect, echo, eventually, run, service, service_with, slice};

fn query(client: Client, destination: &str) -> Query {
    Query { client, destination: destination.parse().unwrap(), protocol: "TCP" }
}

#[test]
fn flow_of_a_node_port_is_shown_with_its_state_and_the_nodes_source() {
    run("flow_of_a_node_port_is_shown_with_its_state_and_the_nodes_source", |lab| {
        lab.tcp_server(OTHER, "10.93.0.2:8080");
        let mut proxy = lab.proxy();
        let services = [service(&Spec { node_port: Some(30080), ..Spec::default() })];
        proxy.sync(&services, &[slice("web", "TCP", 8080, &[("10.93.0.2", "node-b", true)])], &[]).unwrap();
        let datapath = Datapath::open(&lab.bpffs()).unwrap();
        assert!(datapath.flows().unwrap().is_empty());
        let stream = lab.inside(CLIENT, || {
            let (mut stream, _) = connect("10.90.0.1:30080").unwrap();
            echo(&mut stream);
            stream
        });
        let flows = datapath.flows().unwrap();
        assert_eq!(flows.len(), 1, "{flows:?}");
        let flow = &flows[0];
        assert_eq!(flow.client, stream.local_addr().unwrap());
        assert_eq!(flow.service.to_string(), "10.90.0.1:30080");
        assert_eq!(flow.backend.to_string(), "10.93.0.2:8080");
        assert_eq!(flow.state, FlowState::Established);
        assert_eq!(flow.source.unwrap().ip().to_string(), "10.90.0.1");
        let used = datapath.usage().unwrap();
        let entries = |name: &str| used.iter().find(|map| map.name == name).unwrap().entries;
        assert_eq!((entries("flows"), entries("flow_index"), entries("backends")), (1, 2, 1));
        // The cluster IP, the node's address and its loopback.
        assert_eq!(entries("frontends"), 3);
        drop(stream);
        eventually("the flow is closing", || datapath.flows().unwrap()[0].state == FlowState::Closing);
    });
}

#[test]
fn explanation_agrees_with_what_happens() {
    run("explanation_agrees_with_what_happens", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        let mut proxy = lab.proxy();
        let ready = slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)]);
        let services = [
            service(&Spec { node_port: Some(30080), ..Spec::default() }),
            service(&Spec { name: "empty", cluster_ips: &["10.96.0.11"], ..Spec::default() }),
            service(&Spec {
                name: "away",
                cluster_ips: &["10.96.0.12"],
                node_port: Some(30081),
                external_policy: "Local",
                ..Spec::default()
            }),
        ];
        let away = slice("away", "TCP", 8080, &[("10.93.0.2", "node-b", true)]);
        proxy.sync(&services, &[ready, away], &[]).unwrap();
        let datapath = Datapath::open(&lab.bpffs()).unwrap();
        let outside = Client::Outside("10.90.0.2".parse().unwrap());
        let outcome =
            |client, destination: &str| datapath.explain(&query(client, destination)).unwrap().outcome;
        let to_pod = Outcome::Translated { backends: vec!["10.91.0.2:8080".parse().unwrap()] };

        assert_eq!(outcome(Client::Host, "10.96.0.10:80"), to_pod);
        assert!(lab.inside(NODE, || connect("10.96.0.10:80").is_ok()));
        assert_eq!(outcome(Client::Host, "127.0.0.1:30080"), to_pod);
        assert!(lab.inside(NODE, || connect("127.0.0.1:30080").is_ok()));
        let pod = Client::Pod("10.91.0.2".parse().unwrap());
        assert_eq!(outcome(pod, "127.0.0.1:30080"), Outcome::Untouched);
        assert!(lab.inside(POD, || connect("127.0.0.1:30080").is_err()));

        assert_eq!(outcome(Client::Host, "10.96.0.11:80"), Outcome::Refused);
        let error = lab.inside(NODE, || connect("10.96.0.11:80").map(drop)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

        assert_eq!(outcome(outside, "10.90.0.1:30080"), to_pod);
        assert!(lab.inside(CLIENT, || connect("10.90.0.1:30080").is_ok()));
        assert_eq!(outcome(outside, "10.96.0.10:80"), Outcome::Untouched);
        let dropped = Outcome::Dropped { counter: "drop_no_local_backend" };
        assert_eq!(outcome(outside, "10.90.0.1:30081"), dropped);
    });
}

#[test]
fn explanation_knows_source_ranges_and_affinity() {
    run("explanation_knows_source_ranges_and_affinity", |lab| {
        lab.tcp_server(POD, "10.91.0.2:8080");
        lab.tcp_server(POD, "10.91.0.2:8081");
        let mut proxy = lab.proxy();
        let affine = service_with(
            &Spec { node_port: Some(30080), ..Spec::default() },
            &json!({ "sessionAffinity": "ClientIP" }),
        );
        let ranges = service_with(
            &Spec { name: "ranges", cluster_ips: &["10.96.0.11"], node_port: Some(30081), ..Spec::default() },
            &json!({
                "type": "LoadBalancer",
                "loadBalancerSourceRanges": ["10.90.0.0/24"],
                "status": { "loadBalancer": { "ingress": [{ "ip": "10.96.1.1" }] } },
            }),
        );
        let slices = [
            slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)]),
            slice("web", "TCP", 8081, &[("10.91.0.2", "node-a", true)]),
            slice("ranges", "TCP", 8080, &[("10.91.0.2", "node-a", true)]),
        ];
        let report = proxy.sync(&[affine, ranges], &slices, &[]).unwrap();
        assert!(report.skipped.is_empty(), "{:?}", report.skipped);
        let datapath = Datapath::open(&lab.bpffs()).unwrap();
        let outcome =
            |client, destination: &str| datapath.explain(&query(client, destination)).unwrap().outcome;
        let outside = |address: &str| Client::Outside(address.parse().unwrap());
        let to = |backends: &[&str]| Outcome::Translated {
            backends: backends.iter().map(|text| text.parse().unwrap()).collect(),
        };

        let both = to(&["10.91.0.2:8080", "10.91.0.2:8081"]);
        for (ns, client, address) in
            [(CLIENT, outside("10.90.0.2"), "10.90.0.1:30080"), (NODE, Client::Host, "10.96.0.10:80")]
        {
            assert_eq!(outcome(client, address), both, "{ns}: none yet");
            let (_, line) = lab.inside(ns, || connect(address).unwrap());
            let backend = line.split(' ').next().unwrap();
            assert_eq!(outcome(client, address), to(&[backend]), "{ns}");
        }

        let dropped = Outcome::Dropped { counter: "drop_source_range" };
        assert_eq!(outcome(outside("10.90.0.2"), "10.96.1.1:80"), to(&["10.91.0.2:8080"]));
        assert_eq!(outcome(outside("10.89.0.2"), "10.96.1.1:80"), dropped);
        assert_eq!(outcome(Client::Pod("10.91.0.2".parse().unwrap()), "10.96.1.1:80"), dropped);
        assert_eq!(outcome(Client::Host, "10.96.1.1:80"), to(&["10.91.0.2:8080"]), "10.90.0.1 is the node's");
    });
}

#[test]
fn nothing_pinned_is_a_clear_error() {
    let error = Datapath::open(std::path::Path::new("/nonexistent")).unwrap_err();
    assert!(support::chain(&error).contains("SETTINGS"), "{}", support::chain(&error));
}

#[test]
fn connections_and_refusals_are_counted_by_service_port() {
    run("connections_and_refusals_are_counted_by_service_port", |lab| {
        let _server = lab.tcp_server(POD, "10.91.0.2:8080");
        let mut proxy = lab.proxy();
        let (web, empty) = (
            service(&Spec {
                name: "web",
                cluster_ips: &["10.96.0.10"],
                node_port: Some(30080),
                ..Spec::default()
            }),
            service(&Spec { name: "empty", cluster_ips: &["10.96.0.11"], ..Spec::default() }),
        );
        let slices = [slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true)])];
        proxy.sync(&[web.clone(), empty.clone()], &slices, &[]).unwrap();
        let counted = |address: &str| {
            let views = proxy.dump_services().unwrap();
            let view = views.iter().find(|view| view.address.to_string() == address).unwrap();
            (view.chosen, view.refused)
        };
        assert_eq!((counted("10.96.0.10:80"), counted("10.96.0.11:80")), ((0, 0), (0, 0)));
        for _ in 0..3 {
            connect("10.96.0.10:80").unwrap();
            assert!(connect("10.96.0.11:80").is_err());
        }
        lab.inside(CLIENT, || connect("10.90.0.1:30080").unwrap());
        assert_eq!((counted("10.96.0.10:80"), counted("10.96.0.11:80")), ((4, 0), (0, 3)));
        assert_eq!(counted("10.90.0.1:30080"), (4, 0), "of the service port, not of the frontend");

        // Counters go with their service, and are kept with it over a restart.
        proxy.sync(std::slice::from_ref(&web), &slices, &[]).unwrap();
        drop(proxy);
        let mut proxy = lab.proxy();
        proxy.sync(&[web, empty], &slices, &[]).unwrap();
        let views = proxy.dump_services().unwrap();
        let counted = |address: &str| {
            let view = views.iter().find(|view| view.address.to_string() == address).unwrap();
            (view.chosen, view.refused)
        };
        assert_eq!((counted("10.96.0.10:80"), counted("10.96.0.11:80")), ((4, 0), (0, 0)));
    });
}
