//! Scenarios: services and pods that come, change and go, with caches that are behind.

use std::{collections::BTreeSet, time::Duration};

use hawser_api::client::DeleteOptions;
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{Endpoints, Pod, Service},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, json};

use crate::{
    meta::{MetaExt, pod_is_ready},
    testing::{FakeApi, Fault, Running, ensure, replica_set, run_nodes},
};

const ALL: &[&str] = &["endpointslice", "endpoints", "replicaset"];

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "default", "labels": { "team": "a" } },
        "spec": {
            "clusterIP": "10.96.0.10", "ipFamilies": ["IPv4"], "selector": { "app": name },
            "ports": [{ "port": 80, "targetPort": "http", "protocol": "TCP" }],
        },
    })
}

/// Addresses by readiness, over all slices; an address that is in two of them is there twice.
fn addresses(api: &FakeApi, ready: bool) -> Vec<String> {
    let slices = api.all::<EndpointSlice>();
    let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints.unwrap_or_default());
    let wanted = endpoints.filter(|endpoint| endpoint.conditions.as_ref().unwrap().ready == Some(ready));
    wanted.flat_map(|endpoint| endpoint.addresses).collect()
}

fn sizes(api: &FakeApi) -> Vec<usize> {
    let slices = api.all::<EndpointSlice>();
    let mut sizes: Vec<usize> =
        slices.iter().map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len)).collect();
    sizes.sort_unstable();
    sizes
}

#[tokio::test(start_paused = true)]
async fn slices_follow_pods_and_are_never_doubled_though_caches_lag_and_writes_fail() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let mut writes = 0;
    api.fault(move |verb, target| {
        if verb == "delete" || target.resource.resource != "endpointslices" {
            return Fault::None;
        }
        writes += 1;
        if writes % 4 == 1 { Fault::Fails } else { Fault::None }
    });
    api.check_writes(|objects| {
        let slices = objects.iter().filter(|(key, _)| key.0 == "endpointslices.discovery.k8s.io").count();
        ensure(slices <= 3, format!("{slices} slices for 250 pods"))
    });
    let _running = Running::start(&api, ALL);
    api.put::<Service>(service("web"));
    api.until("there is a slice", |api| sizes(api) == [0]).await;
    api.hold("endpointslices.discovery.k8s.io");
    api.put::<ReplicaSet>(replica_set("web", 250));
    api.until("all pods are ready", |api| {
        api.all::<Pod>().iter().filter(|pod| pod_is_ready(pod)).count() == 250
    })
    .await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    api.release("endpointslices.discovery.k8s.io");
    api.until("all are ready endpoints", |api| addresses(api, true).len() == 250).await;
    assert_eq!(sizes(&api), [50, 100, 100]);
    let distinct: BTreeSet<String> = api
        .all::<EndpointSlice>()
        .into_iter()
        .flat_map(|slice| slice.endpoints.unwrap())
        .map(|endpoint| endpoint.target_ref.unwrap().uid.unwrap())
        .collect();
    assert_eq!(distinct.len(), 250);
    let endpoints: Endpoints = api.read("default", "web").unwrap();
    assert_eq!(endpoints.subsets.unwrap()[0].addresses.as_ref().unwrap().len(), 250);

    api.patch::<ReplicaSet>("default", "web", json!({ "spec": { "replicas": 0 } }));
    api.until("one empty slice is left", |api| sizes(api) == [0]).await;
}

#[tokio::test(start_paused = true)]
async fn slice_is_marked_owned_and_labelled_as_its_service() {
    let api = FakeApi::new();
    let _running = Running::start(&api, ALL);
    let made = api.put::<Service>(service("web"));
    api.until("there is a slice", |api| sizes(api) == [0]).await;
    let slice = &api.all::<EndpointSlice>()[0];
    let label = |name: &str| slice.labels().get(name).map(String::as_str);
    assert_eq!(label("kubernetes.io/service-name"), Some("web"));
    assert_eq!(label("endpointslice.kubernetes.io/managed-by"), Some("endpointslice-controller.k8s.io"));
    assert_eq!(label("team"), Some("a"));
    assert_eq!(slice.controller().map(|owner| owner.uid.as_str()), Some(made.uid()));
    api.patch::<Service>("default", "web", json!({ "metadata": { "labels": { "team": "b" } } }));
    api.until("its labels follow", |api| {
        api.all::<EndpointSlice>()[0].labels().get("team").map(String::as_str) == Some("b")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn pod_that_ends_is_not_ready_and_serves_until_it_is_gone() {
    let api = FakeApi::new();
    let nodes = tokio::spawn(run_nodes(api.clone()));
    let running = Running::start(&api, ALL);
    api.put::<Service>(service("web"));
    api.put::<ReplicaSet>(replica_set("web", 1));
    api.until("it is ready", |api| addresses(api, true).len() == 1).await;
    nodes.abort();
    running.stop().await;
    let _running = Running::start(&api, &["endpointslice"]);
    let pod = api.all::<Pod>()[0].name().to_owned();
    api.remove::<Pod>("default", &pod, &DeleteOptions::default());
    api.until("it is not ready any more", |api| addresses(api, false).len() == 1).await;
    let slice = api.all::<EndpointSlice>().remove(0);
    let conditions = slice.endpoints.unwrap()[0].conditions.clone().unwrap();
    assert_eq!((conditions.serving, conditions.terminating), (Some(true), Some(true)));
}

#[tokio::test(start_paused = true)]
async fn services_without_selector_are_left_alone_and_endpoints_go_with_their_service() {
    let api = FakeApi::new();
    let _running = Running::start(&api, ALL);
    let mut bare = service("bare");
    bare["spec"]["selector"] = Value::Null;
    api.put::<Service>(bare);
    api.put::<Endpoints>(json!({ "metadata": { "name": "bare", "namespace": "default" } }));
    api.put::<Service>(service("web"));
    api.until("the other has its own", |api| api.read::<Endpoints>("default", "web").is_some()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(api.all::<EndpointSlice>().len(), 1);
    for name in ["bare", "web"] {
        api.remove::<Service>("default", name, &DeleteOptions::default());
    }
    api.until("what was made here is gone", |api| api.read::<Endpoints>("default", "web").is_none()).await;
    assert!(api.read::<Endpoints>("default", "bare").is_some());
}
