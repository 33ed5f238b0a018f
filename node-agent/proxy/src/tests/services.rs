use std::sync::Arc;

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::json;

use crate::{desired::Node, services::Services};

fn service(name: &str) -> Arc<Service> {
    let object = json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{ "port": 80 }] },
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

fn slice(service: &str, address: &str, ready: bool) -> Arc<EndpointSlice> {
    let object = json!({
        "metadata": { "name": service, "namespace": "default", "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [address], "nodeName": "here", "conditions": { "ready": ready } }],
        "ports": [{ "port": 8080, "protocol": "TCP" }],
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

fn services() -> Services {
    Services::new(Node { name: "here".to_owned(), addresses: Vec::new() })
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
    let mut services = Services::new(Node { name: "here".to_owned(), addresses: vec![address] });
    services.replace(&[service("web")], &[slice("web", "10.0.0.1", true)], &[]);
    assert!(services.set_local_readiness(address, false).is_empty());
}
