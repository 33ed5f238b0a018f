use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hawser_ebpf_abi::{Backend, IPPROTO_TCP, IPPROTO_UDP, service::*};
use hawser_services::{EndpointSlice, Service};
use serde_json::{Value, json};

use super::{service_of, slice_of};
use crate::{
    desired::{
        self, HostPort, LoadBalancerMode, Node, ServicePort, ServicePortName, Set, Skipped, frontend_key, ip,
    },
    endpoints::Overrides,
};

fn node() -> Node {
    Node {
        name: "here".to_owned(),
        zone: None,
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        ..Node::default()
    }
}

/// A service with one port, 80, whose spec is changed by `spec`.
fn service(spec: Value) -> Arc<Service> {
    let mut object = json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{ "port": 80 }] },
    });
    for (name, value) in spec.as_object().unwrap() {
        match name.as_str() {
            "labels" => object["metadata"]["labels"] = value.clone(),
            "status" => object["status"] = value.clone(),
            _ => object["spec"][name] = value.clone(),
        }
    }
    service_of(object)
}

/// A slice on port 8080: address, node, and a word per condition.
fn slice(endpoints: &[(&str, &str, &str)]) -> Arc<EndpointSlice> {
    slice_with(endpoints, &json!([{ "port": 8080, "protocol": "TCP" }]))
}

fn slice_with(endpoints: &[(&str, &str, &str)], ports: &Value) -> Arc<EndpointSlice> {
    let is_v6 = endpoints.first().is_some_and(|(address, ..)| address.contains(':'));
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, node, state)| {
            let conditions = match *state {
                "ready" => json!({ "ready": true, "serving": true, "terminating": false }),
                "unknown" => json!({}),
                "not-ready" => json!({ "ready": false, "serving": false, "terminating": false }),
                "draining" => json!({ "ready": false, "serving": true, "terminating": true }),
                "ending" => json!({ "ready": false, "serving": false, "terminating": true }),
                other => panic!("no state {other}"),
            };
            json!({ "addresses": [address], "nodeName": node, "conditions": conditions })
        })
        .collect();
    slice_of(json!({
        "metadata": { "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": if is_v6 { "IPv6" } else { "IPv4" },
        "endpoints": endpoints,
        "ports": ports,
    }))
}

fn ports(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
) -> (Vec<(ServicePortName, ServicePort)>, Vec<Skipped>) {
    let mut skipped = Vec::new();
    let ports = desired::service_ports(service, slices, &node(), &Overrides::new(), &mut skipped);
    (ports, skipped)
}

fn only(service: &Service, slices: &[Arc<EndpointSlice>]) -> ServicePort {
    let (mut ports, _) = ports(service, slices);
    assert_eq!(ports.len(), 1, "{ports:?}");
    ports.remove(0).1
}

fn addresses(backends: &[Backend]) -> Vec<String> {
    backends
        .iter()
        .map(|backend| SocketAddr::new(ip(&backend.addr), u16::from_be(backend.port_be)).to_string())
        .collect()
}

#[test]
fn node_ports_are_served_in_the_ranges_that_are_named() {
    #[track_caller]
    fn check(ranges: &[(&str, u8)], expected: &[&str]) {
        let ports = json!([{ "port": 80, "nodePort": 30080 }]);
        let service = service(json!({
            "type": "NodePort", "clusterIPs": ["10.96.0.1", "fd00::1"], "ports": ports,
        }));
        let node = Node {
            node_port_ranges: ranges.iter().map(|(text, len)| (text.parse().unwrap(), *len)).collect(),
            ..node()
        };
        let ports = desired::service_ports(&service, &[], &node, &Overrides::new(), &mut Vec::new());
        let keys = ports.iter().flat_map(|(_, port)| port.frontends.keys());
        let mut found: Vec<String> = keys
            .filter(|key| u16::from_be(key.port_be) == 30080)
            .map(|key| ip(&key.addr).to_string())
            .collect();
        found.sort();
        assert_eq!(found, expected, "{ranges:?}");
    }
    check(&[], &["127.0.0.1", "192.0.2.1", "2001:db8::1", "::1"]);
    check(&[("192.0.2.0", 24)], &["192.0.2.1"]);
    check(&[("127.0.0.0", 8), ("2001:db8::", 32)], &["127.0.0.1", "2001:db8::1"]);
    check(&[("0.0.0.0", 0)], &["127.0.0.1", "192.0.2.1"]);
    check(&[("198.51.100.0", 24)], &[]);
}

#[test]
fn packets_go_to_other_nodes_as_they_are_where_all_nodes_choose_alike() {
    #[track_caller]
    fn check(what: &str, spec: Value, hints: &Value, expected: &[&str]) {
        let mut all = json!({
            "type": "LoadBalancer",
            "externalIPs": ["198.51.100.1"],
            "ports": [{ "port": 80, "nodePort": 30080 }],
            "status": { "loadBalancer": { "ingress": [{ "ip": "198.51.100.2" }] } },
        });
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let slice = slice_of(json!({
            "metadata": { "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": ["10.0.0.1"], "nodeName": "there", "hints": hints }],
            "ports": [{ "port": 8080, "protocol": "TCP" }],
        }));
        let node = Node { load_balancer_mode: LoadBalancerMode::Dsr, ..node() };
        let overrides = Overrides::new();
        let ports = desired::service_ports(&service(all), &[slice], &node, &overrides, &mut Vec::new());
        let frontends = ports.iter().flat_map(|(_, port)| &port.frontends);
        let mut found: Vec<String> = frontends
            .filter(|(_, frontend)| frontend.flags & FRONTEND_DSR != 0)
            .map(|(key, _)| ip(&key.addr).to_string())
            .collect();
        found.sort();
        assert_eq!(found, expected, "{what}");
    }
    let none = json!({});
    check("plain", json!({}), &none, &["198.51.100.1", "198.51.100.2"]);
    check("affinity", json!({ "sessionAffinity": "ClientIP" }), &none, &[]);
    check("local policy", json!({ "externalTrafficPolicy": "Local" }), &none, &[]);
    check("hints", json!({}), &json!({ "forZones": [{ "name": "a" }] }), &[]);
}

#[test]
fn endpoints_are_chosen_by_readiness() {
    #[track_caller]
    fn check(what: &str, endpoints: &[(&str, &str, &str)], expected: &[&str]) {
        let port = only(&service(json!({})), &[slice(endpoints)]);
        let found: Vec<String> =
            addresses(&port.cluster).iter().map(|text| text.replace(":8080", "")).collect();
        assert_eq!(found, expected, "{what}");
    }
    check("none", &[], &[]);
    check("ready", &[("10.0.0.1", "a", "ready")], &["10.0.0.1"]);
    check("no condition means ready", &[("10.0.0.1", "a", "unknown")], &["10.0.0.1"]);
    check("not ready", &[("10.0.0.1", "a", "not-ready")], &[]);
    check(
        "ready before draining",
        &[("10.0.0.1", "a", "draining"), ("10.0.0.2", "a", "ready")],
        &["10.0.0.2"],
    );
    check(
        "draining when none is ready",
        &[("10.0.0.1", "a", "draining"), ("10.0.0.2", "a", "not-ready")],
        &["10.0.0.1"],
    );
    check("ending is over", &[("10.0.0.1", "a", "ending")], &[]);
    check("sorted", &[("10.0.0.9", "a", "ready"), ("10.0.0.2", "b", "ready")], &["10.0.0.2", "10.0.0.9"]);
}

#[test]
fn endpoint_in_two_slices_is_one_backend() {
    let slices = [slice(&[("10.0.0.1", "a", "not-ready")]), slice(&[("10.0.0.1", "a", "ready")])];
    assert_eq!(addresses(&only(&service(json!({})), &slices).cluster), ["10.0.0.1:8080"]);
}

#[test]
fn services_that_are_not_ours_are_left_alone() {
    #[track_caller]
    fn check(what: &str, spec: Value) {
        let (ports, skipped) = ports(&service(spec), &[]);
        assert!(ports.is_empty() && skipped.is_empty(), "{what}");
    }
    check("headless", json!({ "clusterIP": "None", "clusterIPs": ["None"] }));
    check("no address yet", json!({ "clusterIP": "", "clusterIPs": [] }));
    check("external name", json!({ "type": "ExternalName", "externalName": "example.org" }));
    check("another proxy's", json!({ "labels": { "service.kubernetes.io/service-proxy-name": "other" } }));
}

#[test]
fn protocol_that_is_not_served_is_reported() {
    let (ports, skipped) = ports(&service(json!({ "ports": [{ "port": 80, "protocol": "SCTP" }] })), &[]);
    assert!(ports.is_empty());
    assert_eq!(skipped.len(), 1);
    assert!(skipped[0].reason.contains("protocol"));
}

#[test]
fn frontends_are_all_addresses_of_the_service() {
    let service = service(json!({
        "type": "LoadBalancer",
        "clusterIPs": ["10.96.0.1", "fd96::1"],
        "ports": [{ "port": 80, "nodePort": 30080 }],
        "externalIPs": ["198.51.100.1"],
        "status": { "loadBalancer": { "ingress": [
            { "ip": "198.51.100.2" },
            { "ip": "198.51.100.3", "ipMode": "Proxy" },
            { "ip": "198.51.100.4", "ipMode": "VIP" },
            { "hostname": "lb.example.org" },
        ] } },
    }));
    let (ports, skipped) = ports(&service, &[]);
    assert!(skipped.is_empty());
    let mut found: Vec<String> = ports
        .iter()
        .flat_map(|(_, port)| port.frontends.iter())
        .map(|(key, frontend)| {
            let address = SocketAddr::new(ip(&key.addr), u16::from_be(key.port_be));
            let wire = if frontend.flags & FRONTEND_WIRE != 0 { " wire" } else { "" };
            let node = if frontend.flags & FRONTEND_NODE_ONLY != 0 { " node" } else { "" };
            format!("{address}{wire}{node}")
        })
        .collect();
    found.sort();
    let expected = [
        "10.96.0.1:80",
        "127.0.0.1:30080 node",
        "192.0.2.1:30080 wire",
        "198.51.100.1:80 wire",
        "198.51.100.2:80 wire",
        "198.51.100.4:80 wire",
        "[2001:db8::1]:30080 wire",
        "[::1]:30080 node",
        "[fd96::1]:80",
    ];
    assert_eq!(found, expected);
}

#[test]
fn families_keep_to_themselves() {
    let service = service(json!({ "clusterIPs": ["10.96.0.1", "fd96::1"] }));
    let (ports, _) =
        ports(&service, &[slice(&[("10.0.0.1", "a", "ready")]), slice(&[("fd00::1", "a", "ready")])]);
    let found: Vec<_> = ports.iter().map(|(name, port)| (name.is_v6, addresses(&port.cluster))).collect();
    assert_eq!(found, [(false, vec!["10.0.0.1:8080".to_owned()]), (true, vec!["[fd00::1]:8080".to_owned()])]);
}

#[test]
fn policies_choose_the_set_of_backends() {
    let endpoints = [slice(&[("10.0.0.1", "here", "ready"), ("10.0.0.2", "there", "ready")])];
    let set = |port: &ServicePort, address: &str, number: u16| {
        let frontend = port.frontends[&frontend_key(address.parse().unwrap(), number, IPPROTO_TCP)];
        (frontend.inside, frontend.wire)
    };
    let node_port = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }] });
    let with = |name: &str| {
        let mut spec = node_port.clone();
        spec[name] = "Local".into();
        only(&service(spec), &endpoints)
    };
    let port = only(&service(node_port.clone()), &endpoints);
    assert_eq!(set(&port, "10.96.0.1", 80).0, Set::Cluster);
    assert_eq!(set(&port, "192.0.2.1", 30080), (Set::Cluster, Set::Cluster));
    assert!(port.local.is_empty(), "not needed");

    let port = with("internalTrafficPolicy");
    assert_eq!(set(&port, "10.96.0.1", 80).0, Set::Local);
    assert_eq!(set(&port, "192.0.2.1", 30080), (Set::Cluster, Set::Cluster));
    assert_eq!(addresses(&port.local), ["10.0.0.1:8080"]);
    assert_eq!(port.local[0].flags, BACKEND_LOCAL);

    let port = with("externalTrafficPolicy");
    assert_eq!(set(&port, "10.96.0.1", 80).0, Set::Cluster);
    assert_eq!(set(&port, "192.0.2.1", 30080), (Set::Cluster, Set::Local));
}

#[test]
fn local_set_falls_back_to_draining_endpoints_of_this_node() {
    let spec = json!({ "internalTrafficPolicy": "Local" });
    let endpoints = [slice(&[("10.0.0.1", "here", "draining"), ("10.0.0.2", "there", "ready")])];
    let port = only(&service(spec), &endpoints);
    assert_eq!(addresses(&port.local), ["10.0.0.1:8080"]);
    assert_eq!(addresses(&port.cluster), ["10.0.0.2:8080"]);
}

#[test]
fn named_ports_find_their_target() {
    let service = service(json!({ "ports": [
        { "name": "http", "port": 80 }, { "name": "metrics", "port": 9090 }, { "name": "none", "port": 1 },
    ] }));
    let targets = json!([
        { "name": "metrics", "port": 9100, "protocol": "TCP" },
        { "name": "http", "port": 8080, "protocol": "TCP" },
        { "name": "none", "protocol": "TCP" },
    ]);
    let endpoints = slice_with(&[("10.0.0.1", "a", "ready")], &targets);
    let (ports, _) = ports(&service, &[endpoints]);
    let found: Vec<_> = ports.iter().map(|(name, port)| (&*name.port, addresses(&port.cluster))).collect();
    let one = |text: &str| vec![text.to_owned()];
    assert_eq!(found, [("http", one("10.0.0.1:8080")), ("metrics", one("10.0.0.1:9100")), ("none", vec![])]);
}

#[test]
fn source_ranges_rule_the_load_balancers_addresses_alone() {
    let balanced = |ranges: Value| {
        let service = service(json!({
            "type": "LoadBalancer",
            "clusterIPs": ["10.96.0.1", "fd96::1"],
            "ports": [{ "port": 80, "nodePort": 30080 }],
            "externalIPs": ["198.51.100.1"],
            "loadBalancerSourceRanges": ranges,
            "status": { "loadBalancer": { "ingress": [{ "ip": "198.51.100.2" }, { "ip": "2001:db8:2::2" }] } },
        }));
        let (ports, skipped) = ports(&service, &[]);
        assert!(skipped.is_empty(), "{skipped:?}");
        let mut ruled = Vec::new();
        for (_, port) in &ports {
            for (key, frontend) in &port.frontends {
                assert_eq!(frontend.flags & FRONTEND_SOURCE_RANGES == 0, {
                    let is_balanced =
                        ["198.51.100.2", "2001:db8:2::2"].contains(&&*ip(&key.addr).to_string());
                    !is_balanced || port.source_ranges.is_empty()
                });
                if frontend.flags & FRONTEND_SOURCE_RANGES != 0 {
                    ruled.push((ip(&key.addr).to_string(), frontend.flags & FRONTEND_NODE_IN_RANGES != 0));
                }
            }
        }
        ruled
    };
    #[track_caller]
    fn check(what: &str, found: Vec<(String, bool)>, expected: &[(&str, bool)]) {
        let found: Vec<(&str, bool)> =
            found.iter().map(|(address, node)| (address.as_str(), *node)).collect();
        assert_eq!(found, expected, "{what}");
    }
    let (v4, v6) = ("198.51.100.2", "2001:db8:2::2");
    check("none", balanced(json!([])), &[]);
    check(
        "both families",
        balanced(json!(["203.0.113.0/24", "2001:db8:9::/48"])),
        &[(v4, false), (v6, false)],
    );
    check("one family says nothing of the other", balanced(json!(["203.0.113.0/24"])), &[(v4, false)]);
    check("the node is in one", balanced(json!(["203.0.113.0/24", " 192.0.2.0/28 "])), &[(v4, true)]);
    check("everybody", balanced(json!(["0.0.0.0/0"])), &[(v4, true)]);
}

#[test]
fn affinity_belongs_to_all_frontends_of_a_port() {
    #[track_caller]
    fn check(what: &str, spec: Value, seconds: u32) {
        let port = only(&service(spec), &[]);
        assert_eq!(port.affinity_seconds, seconds, "{what}");
        let flagged =
            port.frontends.values().filter(|frontend| frontend.flags & FRONTEND_AFFINITY != 0).count();
        assert_eq!(flagged, if seconds > 0 { port.frontends.len() } else { 0 }, "{what}");
    }
    let timeout = |seconds: i64| json!({ "clientIP": { "timeoutSeconds": seconds } });
    check("none", json!({}), 0);
    check("None", json!({ "sessionAffinity": "None" }), 0);
    check("the API's default", json!({ "sessionAffinity": "ClientIP" }), 10_800);
    check("its own", json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": timeout(7) }), 7);
    check(
        "node ports too",
        json!({
            "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": timeout(86_400),
        }),
        86_400,
    );
}

#[test]
fn service_with_400_ports_has_them_all() {
    let numbers: Vec<Value> =
        (0..400).map(|n| json!({ "name": format!("p{n}"), "port": 10_000 + n, "protocol": "TCP" })).collect();
    let targets: Vec<Value> =
        (0..400).map(|n| json!({ "name": format!("p{n}"), "port": 20_000 + n, "protocol": "TCP" })).collect();
    let endpoints = slice_with(&[("10.0.0.1", "a", "ready")], &targets.into());
    let (ports, _) = ports(&service(json!({ "ports": numbers })), &[endpoints]);
    assert_eq!(ports.len(), 400);
    for (name, port) in ports {
        let number: u16 = name.port[1..].parse().unwrap();
        assert_eq!(addresses(&port.cluster), [format!("10.0.0.1:{}", 20_000 + number)]);
        assert_eq!(port.frontends.keys().next().unwrap().port_be, (10_000 + number).to_be());
    }
}

#[test]
fn host_ports_are_served_on_the_nodes_addresses() {
    let port = |host_ip: Option<&str>, pod_ip: &str| {
        let host_port = HostPort {
            pod_namespace: "default".to_owned(),
            pod_name: "dns".to_owned(),
            pod_ip: pod_ip.parse().unwrap(),
            container_port: 5353,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port: 53,
            protocol: "UDP".to_owned(),
        };
        desired::host_port(&host_port, &node(), &mut Vec::new()).unwrap().1
    };
    let served =
        |port: &ServicePort| -> Vec<IpAddr> { port.frontends.keys().map(|key| ip(&key.addr)).collect() };
    let parse = |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    assert_eq!(served(&port(None, "10.0.0.1")), parse(&["127.0.0.1", "192.0.2.1"]));
    assert_eq!(served(&port(Some("0.0.0.0"), "10.0.0.1")), parse(&["127.0.0.1", "192.0.2.1"]));
    assert_eq!(served(&port(Some("192.0.2.1"), "10.0.0.1")), parse(&["192.0.2.1"]));
    assert_eq!(served(&port(Some("127.0.0.1"), "10.0.0.1")), parse(&["127.0.0.1"]));
    assert_eq!(served(&port(None, "fd00::1")), parse(&["::1", "2001:db8::1"]));
    assert!(port(None, "10.0.0.1").frontends.keys().all(|key| key.protocol == IPPROTO_UDP));
}
