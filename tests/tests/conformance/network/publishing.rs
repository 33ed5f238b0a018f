//! Which pods a service's Endpoints and EndpointSlices publish, and on which ports. The pods are reported to run.

use anyhow::ensure;
use k8s_openapi::api::{
    core::v1::{Endpoints, ObjectReference, Pod, Service},
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::Api;
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    kubelet::{IMAGE, run},
    steps::{counted, create, delete, gone, labels, update},
    support::{Bed, eventually, object, test},
};

texts! {
    "EndpointSlice, \"empty\" Service"
        => should_create_and_delete_endpointslices_for_a_service_with_a_selector_that_matches_no_pods,
    "EndpointSlice, creation/deletion" => should_create_endpoints_and_endpointslices_for_pods_matching_a_service,
    "Endpoints, \"empty\" Service"
        => should_create_and_delete_endpoints_for_a_service_with_a_selector_that_matches_no_pods,
    "Endpoints, creation/deletion" => should_create_endpoints_for_pods_matching_a_service,
    "Service, endpoints with multiple ports" => should_serve_multiport_endpoints_from_pods,
    "Service, endpoints" => should_serve_a_basic_endpoint_from_pods,
    "Service, should serve endpoints on same port and different protocols."
        => should_serve_endpoints_on_same_port_and_different_protocols,
}

/// A ready endpoint: pod, address, port's name, port, protocol.
type Published = (String, String, String, i32, String);

fn published(
    pod: Option<&ObjectReference>,
    address: &str,
    (name, port, protocol): (Option<&str>, i32, Option<&str>),
) -> Published {
    let pod = pod.and_then(|pod| pod.name.clone()).unwrap_or_default();
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    (pod, address.to_owned(), text(name), port, text(protocol))
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
}

/// The clients of one namespace.
struct Place {
    services: Api<Service>,
    pods: Api<Pod>,
    endpoints: Api<Endpoints>,
    slices: Api<EndpointSlice>,
}

impl Place {
    fn new(bed: &Bed) -> Self {
        Self { services: bed.api(), pods: bed.api(), endpoints: bed.api(), slices: bed.api() }
    }

    async fn serve(&self, name: &str, selector: Value, ports: Value) {
        let spec = json!({ "selector": selector, "ports": ports });
        create(&self.services, json!({ "metadata": { "name": name }, "spec": spec })).await;
    }

    /// A pod with the labels `app=test` and `pod=<name>`, which is reported to run.
    async fn run(&self, name: &str, address: &str, ports: Value) {
        let container = json!({ "name": "app", "image": IMAGE, "ports": ports });
        let metadata = json!({ "name": name, "labels": { "app": "test", "pod": name } });
        create(&self.pods, json!({ "metadata": metadata, "spec": { "containers": [container] } })).await;
        run(&self.pods, name, address).await;
    }

    async fn in_endpoints(&self, service: &str) -> anyhow::Result<Vec<Published>> {
        let mut all = Vec::new();
        for subset in self.endpoints.get(service).await?.subsets.unwrap_or_default() {
            for port in subset.ports.iter().flatten() {
                let port = (port.name.as_deref(), port.port, port.protocol.as_deref());
                let addresses = subset.addresses.iter().flatten();
                all.extend(addresses.map(|at| published(at.target_ref.as_ref(), &at.ip, port)));
            }
        }
        all.sort();
        Ok(all)
    }

    /// Fails where there is no slice at all.
    async fn in_slices(&self, service: &str) -> anyhow::Result<Vec<Published>> {
        let mut all = Vec::new();
        let slices = self.slices.list(&labels(&format!("kubernetes.io/service-name={service}"))).await?.items;
        ensure!(!slices.is_empty(), "no slice");
        for slice in slices {
            for port in slice.ports.iter().flatten() {
                let port = (port.name.as_deref(), port.port.unwrap_or_default(), port.protocol.as_deref());
                let ready = slice.endpoints.iter().flatten().filter(|at| is_ready(at));
                all.extend(ready.map(|at| published(at.target_ref.as_ref(), &at.addresses[0], port)));
            }
        }
        all.sort();
        Ok(all)
    }

    /// Waits until Endpoints and EndpointSlices both publish this and nothing else.
    async fn publishes(&self, service: &str, expected: &[(&str, &str, &str, i32, &str)]) {
        let expected: Vec<Published> = expected
            .iter()
            .map(|(pod, ip, name, port, protocol)| {
                (pod.to_string(), ip.to_string(), name.to_string(), *port, protocol.to_string())
            })
            .collect();
        eventually("endpoints and slices are as expected", async || {
            let (endpoints, slices) = (self.in_endpoints(service).await?, self.in_slices(service).await?);
            ensure!(endpoints == expected, "endpoints: {endpoints:?}");
            ensure!(slices == expected, "slices: {slices:?}");
            Ok(())
        })
        .await;
    }

    /// Deletes the service, and waits until nothing is published for it.
    async fn end(&self, service: &str) {
        delete(&self.services, service).await;
        gone(&self.endpoints, service).await;
        counted(&self.slices, &format!("kubernetes.io/service-name={service}"), 0).await;
    }
}

/// EndpointSlice, "empty" Service
#[test]
fn should_create_and_delete_endpointslices_for_a_service_with_a_selector_that_matches_no_pods() {
    test(async |bed| {
        let place = Place::new(bed);
        place.serve("empty", json!({ "does-not-match": "endpoints" }), json!([{ "port": 80 }])).await;
        let slices = counted(&place.slices, "kubernetes.io/service-name=empty", 1).await;
        assert_eq!(slices[0].endpoints.as_ref().map(Vec::len).unwrap_or_default(), 0);
        place.end("empty").await;
    });
}

/// EndpointSlice, creation/deletion
#[test]
fn should_create_endpoints_and_endpointslices_for_pods_matching_a_service() {
    test(async |bed| {
        let place = Place::new(bed);
        // One name, another number in each pod.
        let by_name = json!([{ "name": "by-name", "port": 80, "targetPort": "example" }]);
        place.serve("named", json!({ "app": "test" }), by_name).await;
        let by_number = json!([
            { "name": "one", "port": 80, "targetPort": 3001 },
            { "name": "two", "port": 81, "targetPort": 3002 },
        ]);
        place.serve("numbered", json!({ "pod": "first" }), by_number).await;
        place.publishes("named", &[]).await;
        place.publishes("numbered", &[]).await;

        place.run("first", "192.0.2.1", json!([{ "name": "example", "containerPort": 3000 }])).await;
        place.run("second", "192.0.2.2", json!([{ "name": "example", "containerPort": 3001 }])).await;
        let named =
            [("first", "192.0.2.1", "by-name", 3000, "TCP"), ("second", "192.0.2.2", "by-name", 3001, "TCP")];
        place.publishes("named", &named).await;
        let numbered =
            [("first", "192.0.2.1", "one", 3001, "TCP"), ("first", "192.0.2.1", "two", 3002, "TCP")];
        place.publishes("numbered", &numbered).await;

        place.end("named").await;
        place.publishes("numbered", &numbered).await;
        place.end("numbered").await;
    });
}

/// Endpoints, "empty" Service
#[test]
fn should_create_and_delete_endpoints_for_a_service_with_a_selector_that_matches_no_pods() {
    test(async |bed| {
        let place = Place::new(bed);
        place.serve("empty", json!({ "does-not-match": "endpoints" }), json!([{ "port": 80 }])).await;
        let endpoints =
            eventually("there are endpoints", async || Ok(place.endpoints.get("empty").await?)).await;
        assert_eq!(endpoints.subsets.map(|subsets| subsets.len()).unwrap_or_default(), 0);
        place.end("empty").await;
    });
}

/// Endpoints, creation/deletion
#[test]
fn should_create_endpoints_for_pods_matching_a_service() {
    test(async |bed| {
        let place = Place::new(bed);
        let ports = json!([{ "name": "http", "containerPort": 8080 }]);
        place.run("first", "192.0.2.1", ports.clone()).await;
        // A pod without an address, which nothing is published for.
        let waiting = json!({
            "metadata": { "name": "waiting", "labels": { "app": "test" } },
            "spec": { "containers": [{ "name": "app", "image": IMAGE }] },
        });
        create(&place.pods, waiting).await;
        place.serve("test", json!({ "app": "test" }), json!([{ "port": 80, "targetPort": "http" }])).await;
        place.publishes("test", &[("first", "192.0.2.1", "", 8080, "TCP")]).await;

        place.run("second", "192.0.2.2", ports).await;
        let both = [("first", "192.0.2.1", "", 8080, "TCP"), ("second", "192.0.2.2", "", 8080, "TCP")];
        place.publishes("test", &both).await;
        delete(&place.pods, "first").await;
        place.publishes("test", &both[1..]).await;
        place.end("test").await;
    });
}

/// Service, endpoints
#[test]
fn should_serve_a_basic_endpoint_from_pods() {
    test(async |bed| {
        let place = Place::new(bed);
        place.serve("basic", json!({ "app": "test" }), json!([{ "port": 80, "targetPort": 80 }])).await;
        place.publishes("basic", &[]).await;
        let (first, second) = (("one", "192.0.2.1", "", 80, "TCP"), ("two", "192.0.2.2", "", 80, "TCP"));
        place.run("one", "192.0.2.1", json!([{ "containerPort": 80 }])).await;
        place.publishes("basic", &[first]).await;
        place.run("two", "192.0.2.2", json!([{ "containerPort": 80 }])).await;
        place.publishes("basic", &[first, second]).await;
        delete(&place.pods, "one").await;
        place.publishes("basic", &[second]).await;
        delete(&place.pods, "two").await;
        place.publishes("basic", &[]).await;
    });
}

/// Service, endpoints with multiple ports
#[test]
fn should_serve_multiport_endpoints_from_pods() {
    test(async |bed| {
        let place = Place::new(bed);
        let ports = json!([
            { "name": "portname1", "port": 80, "targetPort": "svc1" },
            { "name": "portname2", "port": 81, "targetPort": "svc2" },
        ]);
        place.serve("multiport", json!({ "app": "test" }), ports).await;
        place.publishes("multiport", &[]).await;
        let first = ("one", "192.0.2.1", "portname1", 100, "TCP");
        let second = ("two", "192.0.2.2", "portname2", 101, "TCP");
        place.run("one", "192.0.2.1", json!([{ "name": "svc1", "containerPort": 100 }])).await;
        place.publishes("multiport", &[first]).await;
        place.run("two", "192.0.2.2", json!([{ "name": "svc2", "containerPort": 101 }])).await;
        place.publishes("multiport", &[first, second]).await;
        delete(&place.pods, "one").await;
        place.publishes("multiport", &[second]).await;
        delete(&place.pods, "two").await;
        place.publishes("multiport", &[]).await;
    });
}

/// Service, should serve endpoints on same port and different protocols.
#[test]
fn should_serve_endpoints_on_same_port_and_different_protocols() {
    test(async |bed| {
        let place = Place::new(bed);
        let port = |name: &str, protocol: &str| json!({ "name": name, "protocol": protocol, "port": 80 });
        let (tcp, udp) = (port("tcp", "TCP"), port("udp", "UDP"));
        place.serve("mixed", json!({ "app": "test" }), json!([tcp, udp])).await;
        place.run("one", "192.0.2.1", json!([])).await;
        let (by_tcp, by_udp) =
            (("one", "192.0.2.1", "tcp", 80, "TCP"), ("one", "192.0.2.1", "udp", 80, "UDP"));
        place.publishes("mixed", &[by_tcp, by_udp]).await;
        for (port, published) in [(tcp, by_tcp), (udp, by_udp)] {
            update(&place.services, "mixed", |service| {
                service.spec.get_or_insert_default().ports = Some(vec![object(port.clone())]);
            })
            .await;
            place.publishes("mixed", &[published]).await;
        }
    });
}
