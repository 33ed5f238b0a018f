//! Services as objects: status, collections, session affinity, and the one that leads to the API server.

use k8s_openapi::api::{
    core::v1::{Endpoints, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::spec;
use crate::{
    coverage::texts,
    operations::assert_contains,
    steps::{
        as_json, counted, create, delete, delete_all, list, patch, patch_status, status_is_annotated, update,
        update_status, watch_labels,
    },
    support::{Bed, test, unique},
};

texts! {
    "Find Kubernetes Service in default Namespace" => should_find_a_service_from_listing_all_namespaces,
    "Kubernetes Service" => should_provide_secure_master_service,
    "kubernetes.default Endpoints and EndpointSlices" => should_have_endpoints_and_endpointslices_pointing_to_api_server,
    "Service, deletes a collection of services" => should_delete_a_collection_of_services,
    "Service, complete ServiceStatus lifecycle" => should_complete_a_service_status_lifecycle,
    "Service, ClusterIP type, session affinity to None"
        => should_be_able_to_switch_session_affinity_for_service_with_type_clusterip,
    "Service, NodePort type, session affinity to None"
        => should_be_able_to_switch_session_affinity_for_nodeport_service,
}

/// Find Kubernetes Service in default Namespace
#[test]
fn should_find_a_service_from_listing_all_namespaces() {
    test(async |bed| {
        let all = list(&bed.all::<Service>(), "").await;
        let is_ours = |service: &&Service| {
            service.name_any() == "kubernetes" && service.namespace().as_deref() == Some("default")
        };
        assert_eq!(all.iter().filter(is_ours).count(), 1);
    });
}

/// Kubernetes Service
#[test]
fn should_provide_secure_master_service() {
    test(async |bed| {
        let services: Api<Service> = Api::namespaced(bed.client.clone(), "default");
        let service = services.get("kubernetes").await.expect("the service is there");
        let ports = spec(&service).ports.clone().unwrap_or_default();
        let ports: Vec<_> = ports.iter().map(|port| (port.name.as_deref(), port.port)).collect();
        assert_eq!(ports, [(Some("https"), 443)]);
    });
}

/// kubernetes.default Endpoints and EndpointSlices
#[test]
fn should_have_endpoints_and_endpointslices_pointing_to_api_server() {
    test(async |bed| {
        let endpoints: Api<Endpoints> = Api::namespaced(bed.client.clone(), "default");
        let slices: Api<EndpointSlice> = Api::namespaced(bed.client.clone(), "default");
        let endpoints = endpoints.get("kubernetes").await.expect("the endpoints are there");
        let mut in_endpoints = Vec::new();
        for subset in endpoints.subsets.unwrap_or_default() {
            for port in subset.ports.unwrap_or_default() {
                assert_eq!(port.name.as_deref(), Some("https"));
                let addresses = subset.addresses.iter().flatten();
                in_endpoints.extend(addresses.map(|address| (address.ip.clone(), port.port)));
            }
        }
        let mut in_slices = Vec::new();
        for slice in list(&slices, "kubernetes.io/service-name=kubernetes").await {
            for port in slice.ports.unwrap_or_default() {
                assert_eq!(port.name.as_deref(), Some("https"));
                let addresses = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
                in_slices.extend(addresses.map(|address| (address.clone(), port.port.unwrap_or_default())));
            }
        }
        assert!(!in_endpoints.is_empty());
        in_endpoints.sort();
        in_slices.sort();
        assert_eq!(in_endpoints, in_slices);
    });
}

fn service(metadata: Value, kind: &str) -> Value {
    let port = json!({ "name": "http", "protocol": "TCP", "port": 80, "targetPort": 80 });
    json!({ "metadata": metadata, "spec": { "type": kind, "ports": [port] } })
}

/// Service, deletes a collection of services
#[test]
fn should_delete_a_collection_of_services() {
    test(async |bed| {
        let services = bed.api::<Service>();
        for (number, label) in [(1, "gone"), (2, "gone"), (3, "kept")] {
            let metadata = json!({ "name": format!("service-{number}"), "labels": { "is": label } });
            create(&services, service(metadata, "ClusterIP")).await;
        }
        assert_eq!(list(&services, "").await.len(), 3);
        delete_all(&services, "is=gone").await;
        let left = counted(&services, "", 1).await;
        assert_eq!(left[0].name_any(), "service-3");
    });
}

/// Service, complete ServiceStatus lifecycle
#[test]
fn should_complete_a_service_status_lifecycle() {
    test(async |bed| {
        let (name, services) = (unique("status"), bed.api::<Service>());
        let selector = format!("app={name}");
        let mut events = watch_labels(&services, &selector).await;
        let metadata = json!({ "name": name, "labels": { "app": name } });
        let made = create(&services, service(metadata, "LoadBalancer")).await;
        events.until("ADDED", |seen| seen.name_any() == name).await;
        let read = services.get_status(&name).await.expect("the status is read");
        assert_eq!(read.uid(), made.uid());

        let balancer = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }] } } });
        let patched = patch_status(&services, &name, balancer.clone()).await;
        assert_contains(&as_json(&patched), &balancer);
        status_is_annotated(&services, &name).await;
        events.until("MODIFIED", |seen| seen.annotations().contains_key("patchedstatus")).await;

        let condition = json!({
            "type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set from a test",
            "lastTransitionTime": "2026-01-01T01:00:00Z",
        });
        let updated =
            update_status(&services, &name, |status| status["conditions"] = json!([condition])).await;
        assert_contains(&as_json(&updated), &json!({ "status": { "conditions": [condition] } }));
        assert_contains(&as_json(&updated), &balancer);
        let changed = events.until("MODIFIED", |seen| as_json(seen)["status"]["conditions"].is_array()).await;
        assert_eq!(changed.spec, made.spec);

        patch(&services, &name, json!({ "metadata": { "labels": { "patched": "yes" } } })).await;
        let seen = events.until("MODIFIED", |seen| seen.labels().contains_key("patched")).await;
        assert_contains(&as_json(&seen), &balancer);
        delete(&services, &name).await;
        events.until("DELETED", |seen| seen.name_any() == name).await;
    });
}

/// Switches the affinity off and on again; address and node port stay.
async fn affinity_is_switched(bed: &Bed, kind: &str) {
    let (name, services) = (unique("affinity"), bed.api::<Service>());
    let mut wanted = service(json!({ "name": name }), kind);
    wanted["spec"]["sessionAffinity"] = json!("ClientIP");
    let made = create(&services, wanted).await;
    assert_eq!(affinity(&made), ("ClientIP", Some(10_800)));
    assert!(spec(&made).cluster_ip.as_ref().is_some_and(|address| !address.is_empty()));

    for (switched, seconds) in [("None", None), ("ClientIP", Some(10_800))] {
        let updated = update(&services, &name, |service| {
            service.spec.get_or_insert_default().session_affinity = Some(switched.to_owned());
        })
        .await;
        assert_eq!(affinity(&updated), (switched, seconds));
        assert_eq!(spec(&updated).cluster_ip, spec(&made).cluster_ip);
        assert_eq!(spec(&updated).ports, spec(&made).ports);
    }
}

/// The affinity, and the seconds that it lasts.
fn affinity(service: &Service) -> (&str, Option<i32>) {
    let spec = spec(service);
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    (spec.session_affinity.as_deref().unwrap_or_default(), config.and_then(|config| config.timeout_seconds))
}

/// Service, ClusterIP type, session affinity to None
#[test]
fn should_be_able_to_switch_session_affinity_for_service_with_type_clusterip() {
    test(async |bed| affinity_is_switched(bed, "ClusterIP").await);
}

/// Service, NodePort type, session affinity to None
#[test]
fn should_be_able_to_switch_session_affinity_for_nodeport_service() {
    test(async |bed| affinity_is_switched(bed, "NodePort").await);
}
