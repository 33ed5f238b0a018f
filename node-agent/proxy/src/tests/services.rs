use std::sync::Arc;

use hawser_services::{EndpointSlice, Key, Service};
use serde_json::{Value, json};

use super::{service_of, slice_of};
use crate::{
    desired::Node,
    services::{ServiceObjects, Services},
};

fn service(name: &str) -> Arc<Service> {
    service_of(json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{ "port": 80 }] },
    }))
}

fn slice(service: &str, address: &str, ready: bool) -> Arc<EndpointSlice> {
    let endpoint = json!({ "addresses": [address], "nodeName": "here", "conditions": { "ready": ready } });
    slice_with(service, &json!([endpoint]))
}

fn slice_with(service: &str, endpoints: &Value) -> Arc<EndpointSlice> {
    slice_of(json!({
        "metadata": { "name": service, "namespace": "default", "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "port": 8080, "protocol": "TCP" }],
    }))
}

fn services() -> Services {
    Services::new(Node { name: "here".to_owned(), ..Node::default() })
}

#[test]
fn same_objects_change_nothing() {
    let (web, slices) = ([service("web")], [slice("web", "10.0.0.1", true)]);
    let mut services = services();
    assert_eq!(services.replace(&web, &slices, &[]).len(), 1);
    assert!(services.replace(&web, &slices, &[]).is_empty());
    // Nor does their order.
    let two = [slice("web", "10.0.0.1", true), slice("web", "10.0.0.2", true)];
    assert_eq!(services.replace(&web, &two, &[]).len(), 1);
    assert!(services.replace(&web, &[two[1].clone(), two[0].clone()], &[]).is_empty());
    // An equal object that is another one is computed again.
    assert_eq!(services.replace(&web, &[slice("web", "10.0.0.1", true)], &[]).len(), 1);
    let gone = services.replace(&[], &slices, &[]);
    assert_eq!(gone.len(), 1);
    assert!(gone.values().all(Option::is_none));
}

#[test]
fn local_news_hold_until_a_slice_agrees() {
    let web = [service("web")];
    let not_ready = [slice("web", "10.0.0.1", false)];
    let backends = |wanted: &crate::services::Wanted| {
        wanted.values().flatten().map(|port| port.cluster.len()).sum::<usize>()
    };
    let mut services = services();
    assert_eq!(backends(&services.replace(&web, &not_ready, &[])), 0);
    assert_eq!(backends(&services.set_local_readiness("10.0.0.1".parse().unwrap(), true)), 1);
    assert_eq!(backends(&services.replace(&web, &[slice("web", "10.0.0.1", false)], &[])), 1, "an old slice");
    assert_eq!(backends(&services.replace(&web, &[slice("web", "10.0.0.1", true)], &[])), 1, "it agrees");
    assert_eq!(backends(&services.replace(&web, &[slice("web", "10.0.0.1", false)], &[])), 0, "it leads");
}

#[test]
fn news_of_an_address_that_no_service_has_waits_for_one() {
    let mut services = services();
    assert!(services.set_local_readiness("10.0.0.1".parse().unwrap(), true).is_empty());
    let wanted = services.replace(&[service("web")], &[slice("web", "10.0.0.1", false)], &[]);
    assert_eq!(wanted.values().flatten().map(|port| port.cluster.len()).sum::<usize>(), 1);
    // The endpoint goes, and with it the news.
    services.replace(&[service("web")], &[], &[]);
    let wanted = services.replace(&[service("web")], &[slice("web", "10.0.0.1", false)], &[]);
    assert_eq!(wanted.values().flatten().map(|port| port.cluster.len()).sum::<usize>(), 0);
}

#[test]
fn news_of_the_nodes_own_address_are_not_taken() {
    let address = "10.0.0.1".parse().unwrap();
    let mut services =
        Services::new(Node { name: "here".to_owned(), addresses: vec![address], ..Node::default() });
    services.replace(&[service("web")], &[slice("web", "10.0.0.1", true)], &[]);
    assert!(services.set_local_readiness(address, false).is_empty());
}

#[test]
fn news_hold_until_the_slices_of_all_services_agree() {
    let both = [service("web"), service("api")];
    let slices = |web: bool, api: bool| [slice("web", "10.0.0.1", web), slice("api", "10.0.0.1", api)];
    let mut services = services();
    services.replace(&both, &slices(false, false), &[]);
    services.set_local_readiness("10.0.0.1".parse().unwrap(), true);
    let wanted = services.replace(&both, &slices(true, false), &[]);
    let ready = wanted.values().flatten().filter(|port| port.cluster.len() == 1).count();
    assert_eq!(ready, 2, "one slice is newer than the other");
    services.replace(&both, &slices(true, true), &[]);
    let wanted = services.replace(&both, &slices(false, false), &[]);
    assert!(wanted.values().flatten().all(|port| port.cluster.is_empty()), "all have agreed: the API leads");
}

#[test]
fn endpoints_that_are_published_unready_stay_whatever_the_node_knows() {
    let web = [Arc::new(Service { publishes_not_ready: true, ..(*service("web")).clone() })];
    let mut services = services();
    services.replace(&web, &[slice("web", "10.0.0.1", true)], &[]);
    let wanted = services.set_local_readiness("10.0.0.1".parse().unwrap(), false);
    assert!(wanted.values().flatten().all(|port| port.cluster.len() == 1), "{wanted:?}");
}

#[test]
fn zone_changes_services_with_hints_alone() {
    let endpoint = |address: &str, zone: &str| {
        let hints = json!({ "forZones": [{ "name": zone }] });
        json!({ "addresses": [address], "nodeName": "here", "hints": hints })
    };
    let hinted = slice_with("web", &json!([endpoint("10.0.0.1", "east"), endpoint("10.0.0.2", "west")]));
    let slices = [hinted, slice("api", "10.0.0.3", true)];
    let mut services = services();
    services.replace(&[service("web"), service("api")], &slices, &[]);
    let backends = |wanted: &crate::services::Wanted| -> Vec<usize> {
        wanted.values().flatten().map(|port| port.cluster.len()).collect()
    };
    assert_eq!(backends(&services.set_zone(Some("west".to_owned()))), [1]);
    assert!(services.set_zone(Some("west".to_owned())).is_empty(), "nothing new");
    assert_eq!(backends(&services.set_zone(None)), [2]);
}

/// Thousands of random steps: who hears of the changed services alone knows what one knows who is told everything.
#[test]
fn some_services_at_a_time_come_to_the_same_as_all_at_once() {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let mut state = 7u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let (mut whole, mut by_part) = (services(), services());
    let mut present: [Option<Arc<Service>>; 6] = Default::default();
    let mut slices: [Option<Arc<EndpointSlice>>; 6] = Default::default();
    for _ in 0..3_000 {
        let index = random(NAMES.len());
        match random(4) {
            0 => present[index] = None,
            1 => present[index] = Some(service(NAMES[index])),
            2 if slices[index].is_none() => continue,
            2 => slices[index] = None,
            _ => {
                let address = format!("10.0.0.{}", random(4) + 1);
                slices[index] = Some(slice(NAMES[index], &address, random(2) == 0));
            }
        }
        let all_services: Vec<_> = present.iter().flatten().cloned().collect();
        let all_slices: Vec<_> = slices.iter().flatten().cloned().collect();
        let changed = ServiceObjects {
            key: Key::new("default", NAMES[index]),
            service: present[index].clone(),
            slices: slices[index].iter().cloned().collect(),
        };
        let told = by_part.replace_some(vec![changed], &[]);
        assert_eq!(whole.replace(&all_services, &all_slices, &[]), told);
        if random(4) == 0 {
            let (address, ready) = (format!("10.0.0.{}", random(4) + 1).parse().unwrap(), random(2) == 0);
            assert_eq!(
                whole.set_local_readiness(address, ready),
                by_part.set_local_readiness(address, ready)
            );
        }
        assert_eq!(whole.everything(), by_part.everything());
    }
}
