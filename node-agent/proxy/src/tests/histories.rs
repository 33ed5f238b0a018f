//! From objects to maps, over random histories: who hears of everything each time, who hears of the changed services
//! alone, and who is interrupted while it writes and repairs what it finds, all come to the same maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use hawser_ebpf_abi::{Backend, Endpoint, FrontendKey, service::FRONTEND_DEPARTED};
use hawser_services::{EndpointSlice, Key, Service};
use serde_json::json;

use super::{
    Random, service_of, slice_of,
    table::{Maps, ROOMY, bounds, inside, wire},
};
use crate::{
    desired::{HostPort, Node, Skipped},
    ranges::Ranges,
    services::{ServiceObjects, Services, Wanted},
    sizes::Sizes,
    table::{Bounds, Changes, KernelState, Table},
};

const SERVICES: u64 = 6;
const BOUNDS: Bounds = bounds(Sizes { backends: 2000, frontends: 500, ..ROOMY });

/// A proxy without a kernel.
struct Proxy {
    services: Services,
    table: Table,
    maps: Maps,
}

impl Proxy {
    fn new() -> Self {
        let addresses = vec!["192.0.2.1".parse().unwrap()];
        let node = Node { name: "here".to_owned(), addresses, ..Node::default() };
        let table = Table::new(KernelState::default(), BOUNDS);
        Self { services: Services::new(node), table, maps: Maps::default() }
    }

    fn changes(&mut self, wanted: Wanted, now: Instant, skipped: &mut Vec<Skipped>) -> Changes {
        let live = self.services.live_addresses();
        self.table.apply(wanted, &|address| live.contains(address), now, skipped)
    }

    fn apply(&mut self, wanted: Wanted, now: Instant) {
        let mut skipped = Vec::new();
        let changes = self.changes(wanted, now, &mut skipped);
        assert!(skipped.is_empty(), "{skipped:?}");
        self.maps.write(&changes, |_| ());
    }

    /// Writes a part of the changes; the next look finds what is there.
    fn apply_in_part(&mut self, wanted: Wanted, now: Instant, random: &mut Random) {
        let changes = first_of(self.changes(wanted, now, &mut Vec::new()), random.below(60) as usize);
        self.maps.write(&changes, |_| ());
        self.table = Table::new(self.maps.kernel_state(), BOUNDS);
        let everything = self.services.everything();
        self.apply(everything, now);
    }

    /// What clients meet: everything but where it is kept, and the addresses of backends that are gone.
    fn view(&self) -> BTreeMap<FrontendKey, View> {
        let frontends = self.maps.frontends.iter().filter(|(_, it)| it.flags & FRONTEND_DEPARTED == 0);
        let view = |key: &FrontendKey| {
            let frontend = &self.maps.frontends[key];
            let table: BTreeSet<Endpoint> =
                self.maps.table(key).unwrap().iter().map(Backend::endpoint).collect();
            View {
                inside: self.maps.backends(key, inside).unwrap(),
                wire: self.maps.backends(key, wire).unwrap(),
                table,
                ranges: self.maps.source_ranges(key).unwrap(),
                flags: frontend.flags,
                affinity_seconds: frontend.affinity_seconds,
            }
        };
        frontends.map(|(key, _)| (*key, view(key))).collect()
    }
}

#[derive(Debug, PartialEq)]
struct View {
    inside: Vec<Backend>,
    wire: Vec<Backend>,
    table: BTreeSet<Endpoint>,
    ranges: Ranges,
    flags: u32,
    affinity_seconds: u32,
}

/// The first `count` writes, in the order of the writes.
fn first_of(mut changes: Changes, mut count: usize) -> Changes {
    fn cut<T>(writes: &mut Vec<T>, count: &mut usize) {
        writes.truncate(*count);
        *count -= writes.len();
    }
    let Changes { new_ranges, maglev, slots, new_members, frontends, .. } = &mut changes;
    cut(new_ranges, &mut count);
    cut(maglev, &mut count);
    cut(slots, &mut count);
    cut(new_members, &mut count);
    cut(frontends, &mut count);
    let Changes { old_frontends, old_members, old_ranges, old_services, .. } = &mut changes;
    cut(old_frontends, &mut count);
    cut(old_members, &mut count);
    cut(old_ranges, &mut count);
    cut(old_services, &mut count);
    changes
}

/// A service of any kind; its addresses and node ports are its own.
fn service(number: u64, random: &mut Random) -> Arc<Service> {
    let policy = |random: &mut Random| if random.below(3) == 0 { "Local" } else { "Cluster" };
    let ports: Vec<_> = (0..1 + random.below(3))
        .map(|port| {
            let protocol = ["TCP", "UDP"][(port % 2) as usize];
            let node_port = 30_000 + number * 10 + port;
            json!({ "name": format!("p{port}"), "port": 80 + port, "protocol": protocol, "nodePort": node_port })
        })
        .collect();
    service_of(json!({
        "metadata": { "name": format!("s{number}"), "namespace": "default" },
        "spec": {
            "type": (["ClusterIP", "NodePort", "LoadBalancer"][random.below(3) as usize]),
            "clusterIP": format!("10.96.0.{number}"),
            "ports": ports,
            "internalTrafficPolicy": policy(random),
            "externalTrafficPolicy": policy(random),
            "sessionAffinity": (["None", "ClientIP"][random.below(2) as usize]),
            "publishNotReadyAddresses": random.below(8) == 0,
            "loadBalancerSourceRanges": if random.below(2) == 0 { json!(["10.0.0.0/8"]) } else { json!([]) },
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": format!("198.51.100.{number}") }] } },
    }))
}

fn slice(number: u64, random: &mut Random) -> Arc<EndpointSlice> {
    let endpoints: Vec<_> = (0..random.below(5))
        .map(|_| {
            let address = random.below(12);
            let conditions = json!({ "ready": random.below(4) > 0, "terminating": random.below(5) == 0 });
            json!({
                "addresses": [format!("10.0.0.{address}")],
                "nodeName": if address.is_multiple_of(2) { "here" } else { "there" },
                "conditions": conditions,
            })
        })
        .collect();
    let ports: Vec<_> = (0..3)
        .map(|port| {
            let protocol = ["TCP", "UDP"][port % 2];
            json!({ "name": format!("p{port}"), "port": 8080 + port, "protocol": protocol })
        })
        .collect();
    slice_of(json!({
        "metadata": {
            "name": "any", "namespace": "default",
            "labels": { "kubernetes.io/service-name": format!("s{number}") },
        },
        "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
    }))
}

fn host_port(random: &mut Random) -> HostPort {
    HostPort {
        pod_namespace: "default".to_owned(),
        pod_name: "web".to_owned(),
        pod_ip: format!("10.0.0.{}", 2 * random.below(6)).parse().unwrap(),
        container_port: 8080,
        host_ip: None,
        host_port: 20_000,
        protocol: "TCP".to_owned(),
    }
}

#[test]
fn full_and_incremental_and_interrupted_syncs_come_to_the_same_maps() {
    for seed in 1..30 {
        let mut random = Random(seed * 0x9e37_79b9);
        let mut now = Instant::now();
        let [mut whole, mut by_part, mut interrupted] = [Proxy::new(), Proxy::new(), Proxy::new()];
        let mut services: BTreeMap<u64, Arc<Service>> = BTreeMap::new();
        let mut slices: BTreeMap<(u64, u64), Arc<EndpointSlice>> = BTreeMap::new();
        let mut host_ports: Vec<HostPort> = Vec::new();
        for _ in 0..60 {
            let number = 1 + random.below(SERVICES);
            let place = (number, random.below(2));
            match random.below(8) {
                0 => drop(services.remove(&number)),
                1 | 2 => drop(services.insert(number, service(number, &mut random))),
                3 => drop(slices.remove(&place)),
                4 if host_ports.is_empty() => host_ports.push(host_port(&mut random)),
                4 => host_ports.clear(),
                _ => drop(slices.insert(place, slice(number, &mut random))),
            }
            let (all, all_slices): (Vec<_>, Vec<_>) =
                (services.values().cloned().collect(), slices.values().cloned().collect());
            let own = slices.range((number, 0)..=(number, 1)).map(|(_, slice)| slice.clone());
            let changed = ServiceObjects {
                key: Key::new("default", &format!("s{number}")),
                service: services.get(&number).cloned(),
                slices: own.collect(),
            };
            now += Duration::from_millis(random.below(2500));
            let wanted = whole.services.replace(&all, &all_slices, &host_ports);
            whole.apply(wanted, now);
            let wanted = by_part.services.replace_some(vec![changed], &host_ports);
            by_part.apply(wanted, now);
            let wanted = interrupted.services.replace(&all, &all_slices, &host_ports);
            match random.below(3) {
                0 => interrupted.apply_in_part(wanted, now, &mut random),
                _ => interrupted.apply(wanted, now),
            }
            if random.below(3) == 0 {
                let address = format!("10.0.0.{}", 2 * random.below(6)).parse().unwrap();
                let ready = random.below(2) == 0;
                for proxy in [&mut whole, &mut by_part, &mut interrupted] {
                    let wanted = proxy.services.set_local_readiness(address, ready);
                    proxy.apply(wanted, now);
                }
            }
            let view = whole.view();
            assert_eq!(by_part.view(), view, "seed {seed}: some services at a time");
            assert_eq!(interrupted.view(), view, "seed {seed}: repaired");
        }
    }
}
