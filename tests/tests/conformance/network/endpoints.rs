//! Endpoints and EndpointSlices that clients write.

use anyhow::ensure;
use k8s_openapi::api::{
    core::v1::{Endpoints, Service},
    discovery::v1::EndpointSlice,
};
use kube::{ResourceExt, discovery::Scope};
use serde_json::json;

use crate::{
    coverage::texts,
    operations::Operations,
    steps::{create, delete, delete_all, labels, list, patch, update, watch_labels},
    support::{eventually, test, unique},
};

texts! {
    "Endpoint resource lifecycle" => should_test_the_lifecycle_of_an_endpoint,
    "EndpointSlice Mirroring" => should_mirror_a_custom_endpoints_resource_through_create_update_and_delete,
    "EndpointSlice API" => should_support_creating_endpointslice_api_operations,
}

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// Endpoint resource lifecycle
#[test]
fn should_test_the_lifecycle_of_an_endpoint() {
    test(async |bed| {
        let (name, endpoints) = (unique("endpoint"), bed.api::<Endpoints>());
        let selector = format!("app={name}");
        let mut events = watch_labels(&endpoints, &selector).await;
        let subset = |address: &str, port: i32| {
            json!([{
                "addresses": [{ "ip": address }],
                "ports": [{ "name": "http", "port": port, "protocol": "TCP" }],
            }])
        };
        let metadata = json!({ "name": name, "labels": { "app": name } });
        create(&endpoints, json!({ "metadata": metadata, "subsets": subset("10.0.0.24", 80) })).await;
        events.until("ADDED", |seen| seen.name_any() == name).await;
        assert_eq!(list(&bed.all::<Endpoints>(), &selector).await.len(), 1);

        update(&endpoints, &name, |endpoints| {
            endpoints.labels_mut().insert("updated".into(), "yes".into());
        })
        .await;
        events.until("MODIFIED", |seen| seen.labels().contains_key("updated")).await;
        let read = endpoints.get(&name).await.expect("the endpoints are read");
        assert_eq!(read.labels()["updated"], "yes");

        patch(&endpoints, &name, json!({ "subsets": subset("10.0.0.25", 8080) })).await;
        let read = endpoints.get(&name).await.expect("the endpoints are read").subsets.unwrap_or_default();
        let [subset] = &*read else { panic!("{read:?}") };
        let addresses: Vec<_> = subset.addresses.iter().flatten().map(|address| &*address.ip).collect();
        let ports: Vec<_> = subset.ports.iter().flatten().map(|port| port.port).collect();
        assert_eq!((addresses, ports), (vec!["10.0.0.25"], vec![8080]));

        delete_all(&endpoints, &selector).await;
        events.until("DELETED", |seen| seen.name_any() == name).await;
        assert!(endpoints.get_opt(&name).await.expect("an answer").is_none());
    });
}

/// EndpointSlice API
#[test]
fn should_support_creating_endpointslice_api_operations() {
    test(async |bed| {
        let slice = Operations {
            group: "discovery.k8s.io",
            version: "v1",
            kind: "EndpointSlice",
            plural: "endpointslices",
            scope: Scope::Namespaced,
            subresources: &[],
            object: json!({
                "addressType": "IPv4",
                "endpoints": [{ "addresses": ["1.2.3.4", "5.6.7.8"] }],
                "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
            }),
        };
        slice.check(bed).await;
    });
}

/// EndpointSlice Mirroring
#[test]
fn should_mirror_a_custom_endpoints_resource_through_create_update_and_delete() {
    test(async |bed| {
        let (name, endpoints) = (unique("mirrored"), bed.api::<Endpoints>());
        let service = json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } });
        create(&bed.api::<Service>(), service).await;
        let subsets = |address: &str| json!([{ "addresses": [{ "ip": address }], "ports": [{ "name": "http", "port": 80 }] }]);
        let mirrored = async |expected: &[&str]| {
            let selector = format!("kubernetes.io/service-name={name}");
            eventually("the slices hold what the endpoints do", async || {
                let slices = bed.api::<EndpointSlice>().list(&labels(&selector)).await?;
                let all = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
                let found: Vec<&String> = all.flat_map(|endpoint| &endpoint.addresses).collect();
                ensure!(found == expected, "{found:?}");
                let by = slices.iter().filter_map(|slice| slice.labels().get(MANAGED_BY));
                ensure!(
                    by.into_iter().all(|by| by == "endpointslicemirroring-controller.k8s.io"),
                    "{slices:?}"
                );
                Ok(())
            })
            .await;
        };
        let custom = json!({ "metadata": { "name": name }, "subsets": subsets("10.1.2.3") });
        create(&endpoints, custom).await;
        mirrored(&["10.1.2.3"]).await;
        patch(&endpoints, &name, json!({ "subsets": subsets("10.2.3.4") })).await;
        mirrored(&["10.2.3.4"]).await;
        delete(&endpoints, &name).await;
        mirrored(&[]).await;
    });
}
