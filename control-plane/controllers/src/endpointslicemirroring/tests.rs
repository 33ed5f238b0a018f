//! Scenarios: Endpoints that users write, change and delete.

use hawser_api::client::DeleteOptions;
use k8s_openapi::api::{
    core::v1::{Endpoints, Event, Service},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, json};

use crate::{
    meta::MetaExt,
    testing::{FakeApi, Running},
};

fn endpoints(ip: &str) -> Value {
    json!({
        "metadata": { "name": "db", "namespace": "default", "labels": { "tier": "1" } },
        "subsets": [{ "addresses": [{ "ip": ip }], "ports": [{ "name": "sql", "port": 5432 }] }],
    })
}

fn addresses(api: &FakeApi) -> Vec<String> {
    let endpoints =
        api.all::<EndpointSlice>().into_iter().flat_map(|slice| slice.endpoints.unwrap_or_default());
    endpoints.flat_map(|endpoint| endpoint.addresses).collect()
}

#[tokio::test(start_paused = true)]
async fn slices_follow_endpoints_of_services_without_selector() {
    let api = FakeApi::new();
    let _running = Running::start(&api, &["endpointslicemirroring"]);
    api.put::<Endpoints>(endpoints("10.0.0.1"));
    api.put::<Service>(json!({ "metadata": { "name": "db", "namespace": "default" }, "spec": {} }));
    api.until("they are mirrored", |api| addresses(api) == ["10.0.0.1"]).await;
    let slice = api.all::<EndpointSlice>().remove(0);
    let labels = json!({
        "tier": "1", "kubernetes.io/service-name": "db",
        "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io",
    });
    assert_eq!(json!(slice.labels()), labels);
    assert_eq!(slice.controller().map(|owner| owner.kind.as_str()), Some("Endpoints"));
    api.patch::<Endpoints>("default", "db", json!({ "subsets": endpoints("10.0.0.2")["subsets"] }));
    api.until("in the same slice", |api| addresses(api) == ["10.0.0.2"]).await;
    assert_eq!(api.all::<EndpointSlice>()[0].name(), slice.name());
    api.patch::<Endpoints>("default", "db", json!({ "subsets": endpoints("nowhere")["subsets"] }));
    api.until("what is no address is told", |api| {
        addresses(api).is_empty()
            && api.all::<Event>().iter().any(|event| event.reason.as_deref() == Some("InvalidIPAddress"))
    })
    .await;
    api.patch::<Endpoints>("default", "db", json!({ "subsets": endpoints("10.0.0.3")["subsets"] }));
    api.until("and mirrored again", |api| addresses(api) == ["10.0.0.3"]).await;
    let skip = json!({ "endpointslice.kubernetes.io/skip-mirror": "true" });
    api.patch::<Endpoints>("default", "db", json!({ "metadata": { "labels": skip } }));
    api.until("unless they say no", |api| addresses(api).is_empty()).await;
    let ask = json!({ "endpointslice.kubernetes.io/skip-mirror": null });
    api.patch::<Endpoints>("default", "db", json!({ "metadata": { "labels": ask } }));
    api.until("which can be taken back", |api| addresses(api) == ["10.0.0.3"]).await;
    api.patch::<Service>("default", "db", json!({ "spec": { "selector": { "app": "db" } } }));
    api.until("a selector ends it", |api| addresses(api).is_empty()).await;
    api.patch::<Service>("default", "db", json!({ "spec": { "selector": null } }));
    api.until("for as long as it is there", |api| addresses(api) == ["10.0.0.3"]).await;
    api.remove::<Endpoints>("default", "db", &DeleteOptions::default());
    api.until("the slice goes with them", |api| api.all::<EndpointSlice>().is_empty()).await;
}
