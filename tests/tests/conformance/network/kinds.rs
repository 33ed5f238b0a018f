//! The API of ingresses, their classes, and the objects of the address allocator.

use k8s_openapi::api::networking::v1::{IPAddress, Ingress, ServiceCIDR};
use kube::{ResourceExt, api::WatchParams, discovery::Scope};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    operations::Operations,
    steps::{
        counted, create, delete, delete_all, gone, list, patch, status_is_annotated, try_create, update,
    },
    support::{refused, test, unique, watch},
};

texts! {
    "Ingress API" => should_support_creating_ingress_api_operations,
    "IngressClass API" => should_support_creating_ingressclass_api_operations,
    "IPAddress API" => should_support_ipaddress_api_operations,
    "ServiceCIDR API" => should_support_servicecidr_api_operations,
}

/// A kind of the group `networking.k8s.io`.
fn operations<'a>(kind: &'a str, plural: &'a str, scope: Scope, object: Value) -> Operations<'a> {
    Operations { group: "networking.k8s.io", version: "v1", kind, plural, scope, subresources: &[], object }
}

/// Ingress API
#[test]
fn should_support_creating_ingress_api_operations() {
    test(async |bed| {
        let backend = json!({ "service": { "name": "default-backend", "port": { "number": 80 } } });
        let path = json!({ "path": "/", "pathType": "ImplementationSpecific", "backend": backend });
        let rule = json!({ "host": "test.example.com", "http": { "paths": [path] } });
        let spec = json!({ "defaultBackend": backend, "rules": [rule] });
        let mut ingress =
            operations("Ingress", "ingresses", Scope::Namespaced, json!({ "spec": spec.clone() }));
        ingress.subresources = &["status"];
        ingress.check(bed).await;
        let at = |address: &str| json!({ "loadBalancer": { "ingress": [{ "ip": address }] } });
        ingress.check_status(bed, at("169.1.1.1"), at("169.1.1.2")).await;

        let (name, ingresses) = (unique("annotated"), bed.api::<Ingress>());
        create(&ingresses, json!({ "metadata": { "name": name }, "spec": spec })).await;
        status_is_annotated(&ingresses, &name).await;
    });
}

/// IngressClass API
#[test]
fn should_support_creating_ingressclass_api_operations() {
    test(async |bed| {
        let object = json!({ "spec": { "controller": "example.com/controller" } });
        operations("IngressClass", "ingressclasses", Scope::Cluster, object).check(bed).await;
    });
}

/// IPAddress API
#[test]
fn should_support_ipaddress_api_operations() {
    test(async |bed| {
        let kind = operations("IPAddress", "ipaddresses", Scope::Cluster, json!({}));
        kind.is_discovered(bed).await;
        let addresses = bed.all::<IPAddress>();
        let (broadcast, link_local) = ("255.255.255.255", "fe80::42:1dff:fe84:f9e2");
        let address = |name: &str, kind: &str| {
            let parent = json!({
                "group": "mygroup", "resource": "myresources", "namespace": "foo", "name": "bar",
            });
            json!({ "metadata": { "name": name, "labels": { "type": kind } }, "spec": { "parentRef": parent } })
        };
        let made = create(&addresses, address(broadcast, "broadcast")).await;
        create(&addresses, address(link_local, "link-local")).await;
        // A name is an address as it is printed.
        refused(try_create(&addresses, address("fe80:0::1", "link-local")).await, 422, "Invalid");

        let params = WatchParams::default().labels("type=broadcast");
        let version = made.resource_version().unwrap_or_default();
        let mut events = watch(&addresses, &params, &version).await;
        let patched =
            patch(&addresses, broadcast, json!({ "metadata": { "annotations": { "patched": "true" } } }));
        let patched = patched.await;
        assert_eq!(patched.annotations()["patched"], "true");
        assert_ne!(patched.resource_version(), made.resource_version());
        let updated = update(&addresses, broadcast, |address| {
            address.annotations_mut().insert("updated".into(), "true".into());
        })
        .await;
        assert_eq!(updated.annotations().len(), 2);
        events.until("MODIFIED", |seen| seen.annotations().contains_key("updated")).await;
        assert_eq!(addresses.get(broadcast).await.expect("the address is read").uid(), made.uid());
        assert_eq!(list(&addresses, "type=broadcast").await.len(), 1);

        delete(&addresses, broadcast).await;
        gone(&addresses, broadcast).await;
        delete_all(&addresses, "type=link-local").await;
        counted(&addresses, "type=link-local", 0).await;
    });
}

/// ServiceCIDR API
#[test]
fn should_support_servicecidr_api_operations() {
    test(async |bed| {
        let mut kind = operations(
            "ServiceCIDR",
            "servicecidrs",
            Scope::Cluster,
            json!({ "spec": { "cidrs": ["192.0.2.0/24"] } }),
        );
        kind.subresources = &["status"];
        kind.check(bed).await;
        let state = |status: &str| {
            json!({ "conditions": [{
                "type": "Tested", "status": status, "reason": "Tested", "message": "set from a test",
                "lastTransitionTime": "2026-01-01T01:00:00Z",
            }] })
        };
        kind.check_status(bed, state("True"), state("False")).await;

        // The range that every cluster has from its birth.
        let ranges = bed.all::<ServiceCIDR>();
        let default = ranges.get("kubernetes").await.expect("the cluster's own range is there");
        assert!(!default.spec.and_then(|spec| spec.cidrs).unwrap_or_default().is_empty());
    });
}
