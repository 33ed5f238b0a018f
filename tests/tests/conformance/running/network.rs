//! Packets between pods, nodes and services.

use std::collections::BTreeSet;

use anyhow::ensure;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Node, Pod as CorePod, ReplicationController, Service},
    discovery::v1::EndpointSlice,
};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Pod, server, sleeper, test, web};
use crate::{
    coverage::{cases, texts},
    steps::{as_json, create, list},
    support::{Bed, eventually, unique},
};

texts! {
    "Service, NodePort Service" => should_be_able_to_create_a_functioning_nodeport_service,
    "Service, NodePort type, session affinity to ClientIP" => should_have_session_affinity_work_for_nodeport_service,
    "Service, ClusterIP type, session affinity to ClientIP" =>
        should_have_session_affinity_work_for_service_with_type_clusterip,
    "EndpointSlice, single IP, multiple ports" =>
        should_support_a_service_with_multiple_ports_specified_in_multiple_endpointslices,
    "EndpointSlice, multiple IPs, multiple ports" =>
        should_support_a_service_with_multiple_endpoint_ips_specified_in_multiple_endpointslices,
    "Replica Set, run basic image" => replicaset_should_serve_a_basic_image_on_each_replica_with_a_public_image,
    "Replication Controller, run basic image" =>
        replicationcontroller_should_serve_a_basic_image_on_each_replica_with_a_public_image,
}

fn address(pod: &Value) -> String {
    pod["status"]["podIP"].as_str().expect("an address").to_owned()
}

/// A pod that asks others: it has the demo program.
async fn client(bed: &Bed) -> Pod {
    let mut pod = sleeper();
    pod["spec"]["containers"][0]["image"] = json!(web());
    Pod::start(bed, pod).await
}

/// A server on every node, and what its host is called.
async fn server_on_every_node(bed: &Bed) -> Vec<Pod> {
    let mut pods = Vec::new();
    for node in list(&bed.all::<Node>(), "").await {
        let mut pod = server();
        pod["spec"]["nodeName"] = json!(node.name_any());
        pods.push(Pod::create(bed, pod).await);
    }
    for pod in &pods {
        pod.ready().await;
    }
    pods
}

/// Every server answers a client, which is a pod or, with `from_node`, a node.
fn reaches_all(verb: &str, from_node: bool) {
    test(async |bed| {
        let servers = server_on_every_node(bed).await;
        let mut pod = sleeper();
        pod["spec"]["containers"][0]["image"] = json!(web());
        pod["spec"]["hostNetwork"] = json!(from_node);
        let client = Pod::start(bed, pod).await;
        for server in &servers {
            let to = address(&server.get().await.expect("the pod is read"));
            let said = client.sees("main", &format!("/demo {verb} {to}:8080"), |said| !said.is_empty()).await;
            assert!(said.starts_with(&format!("1 {} ", server.name)), "{said}");
        }
    });
}

mod granular {
    use super::*;

    cases! { reaches_all:
        "Networking, intra pod http" => should_function_for_intra_pod_communication_http("get", false),
        "Networking, intra pod udp" => should_function_for_intra_pod_communication_udp("ask", false),
        "Networking, intra pod http, from node" => should_function_for_node_pod_communication_http("get", true),
        "Networking, intra pod http, from node" => should_function_for_node_pod_communication_udp("ask", true),
    }
}
pub(crate) use granular::TEXTS as GRANULAR;

/// A deployment of this many servers behind a Service, which is returned; and their names.
async fn serve(bed: &Bed, name: &str, replicas: usize, fields: Value) -> (Value, BTreeSet<String>) {
    let labels = json!({ "app": name });
    let mut spec = server()["spec"].clone();
    spec["containers"][0]["readinessProbe"] =
        json!({ "httpGet": { "path": "/readyz", "port": 8080 }, "periodSeconds": 1 });
    let deployment = json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": spec },
        },
    });
    create(&bed.api::<Deployment>(), deployment).await;
    let mut service = fields;
    service["selector"] = labels;
    service["ports"] = json!([{ "port": 80, "targetPort": 8080 }]);
    let service =
        create(&bed.api::<Service>(), json!({ "metadata": { "name": name }, "spec": service })).await;
    let backends = eventually("the servers are ready", async || {
        let deployment = as_json(&bed.api::<Deployment>().get(name).await?);
        ensure!(deployment["status"]["readyReplicas"] == replicas, "{}", deployment["status"]);
        Ok(list(&bed.api::<CorePod>(), &format!("app={name}"))
            .await
            .iter()
            .map(ResourceExt::name_any)
            .collect())
    })
    .await;
    (as_json(&service), backends)
}

/// Addresses of a Service as a client has them: by name, by its own address, and by its node port on every node.
async fn destinations(bed: &Bed, service: &Value) -> Vec<String> {
    let name = service["metadata"]["name"].as_str().expect("a name");
    let mut all = vec![
        format!("{name}:80"),
        format!("{}:80", service["spec"]["clusterIP"].as_str().expect("an address")),
    ];
    if let Some(port) = service["spec"]["ports"][0]["nodePort"].as_u64() {
        for node in list(&bed.all::<Node>(), "").await {
            let node = as_json(&node);
            let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
            let internal = addresses.filter(|address| address["type"] == "InternalIP");
            all.extend(
                internal.map(|address| format!("{}:{port}", address["address"].as_str().unwrap_or_default())),
            );
        }
    }
    all
}

/// Who answered how many requests: names of servers.
fn answered(said: &str) -> BTreeSet<String> {
    said.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect()
}

/// Service, NodePort Service
#[test]
fn should_be_able_to_create_a_functioning_nodeport_service() {
    test(async |bed| {
        let (service, backends) = serve(bed, "nodeport", 2, json!({ "type": "NodePort" })).await;
        let client = client(bed).await;
        for to in destinations(bed, &service).await {
            client.sees("main", &format!("/demo get {to} 30"), |said| answered(said) == backends).await;
        }
    });
}

/// All requests of a client go to one server; without affinity, to all.
fn affinity(name: &str, kind: &str) {
    test(async |bed| {
        let fields = json!({ "type": kind, "sessionAffinity": "ClientIP" });
        let (service, backends) = serve(bed, name, 3, fields).await;
        let client = client(bed).await;
        let all = destinations(bed, &service).await;
        for to in &all {
            client.sees("main", &format!("/demo get {to} 1"), |said| !said.is_empty()).await;
            let said = client.run(&format!("/demo get {to} 30")).await;
            assert_eq!(answered(&said).len(), 1, "{to}: {said}");
        }
        crate::steps::patch(&bed.api::<Service>(), name, json!({ "spec": { "sessionAffinity": "None" } }))
            .await;
        for to in &all {
            client.sees("main", &format!("/demo get {to} 30"), |said| answered(said) == backends).await;
        }
    });
}

/// Service, NodePort type, session affinity to ClientIP
#[test]
fn should_have_session_affinity_work_for_nodeport_service() {
    affinity("affinity-nodeport", "NodePort");
}

/// Service, ClusterIP type, session affinity to ClientIP
#[test]
fn should_have_session_affinity_work_for_service_with_type_clusterip() {
    affinity("affinity-clusterip", "ClusterIP");
}

/// A Service without a selector, of two ports: each is another endpoint's.
async fn by_hand(bed: &Bed, endpoints: [(&str, &str, u16); 2]) -> String {
    let name = "by-hand";
    let ports = json!([
        { "name": "one", "port": 8090, "targetPort": endpoints[0].2 },
        { "name": "two", "port": 8091, "targetPort": endpoints[1].2 },
    ]);
    let service = json!({ "metadata": { "name": name }, "spec": { "ports": ports } });
    let service = as_json(&create(&bed.api::<Service>(), service).await);
    for (port, address, number) in endpoints {
        let slice = json!({
            "metadata": { "name": unique("by-hand"), "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4",
            "ports": [{ "name": port, "port": number, "protocol": "TCP" }],
            "endpoints": [{ "addresses": [address] }],
        });
        create(&bed.api::<EndpointSlice>(), slice).await;
    }
    service["spec"]["clusterIP"].as_str().expect("an address").to_owned()
}

/// EndpointSlice, single IP, multiple ports
#[test]
fn should_support_a_service_with_multiple_ports_specified_in_multiple_endpointslices() {
    test(async |bed| {
        let mut pod = server();
        let mut second = pod["spec"]["containers"][0].clone();
        second["name"] = json!("second");
        second["args"] = json!(["serve", "3001"]);
        second["ports"] = json!([{ "containerPort": 3001 }]);
        second["env"] = json!([{ "name": "VERSION", "value": "second" }]);
        pod["spec"]["containers"].as_array_mut().expect("containers").push(second);
        let to = address(&Pod::start(bed, pod).await.get().await.expect("the pod is read"));
        let service = by_hand(bed, [("one", &to, 8080), ("two", &to, 3001)]).await;
        let client = client(bed).await;
        client.sees("main", &format!("/demo get {service}:8090 5"), |said| said.ends_with(" 1\n")).await;
        client.sees("main", &format!("/demo get {service}:8091 5"), |said| said.ends_with(" second\n")).await;
    });
}

/// EndpointSlice, multiple IPs, multiple ports
#[test]
fn should_support_a_service_with_multiple_endpoint_ips_specified_in_multiple_endpointslices() {
    test(async |bed| {
        let first = Pod::start(bed, server()).await;
        let mut second = server();
        second["spec"]["containers"][0]["args"] = json!(["serve", "3001"]);
        let second = Pod::start(bed, second).await;
        let at = async |pod: &Pod| address(&pod.get().await.expect("the pod is read"));
        let service =
            by_hand(bed, [("one", &at(&first).await, 8080), ("two", &at(&second).await, 3001)]).await;
        let client = client(bed).await;
        for (port, pod) in [(8090, &first), (8091, &second)] {
            let expected = format!("5 {} 1\n", pod.name);
            client.sees("main", &format!("/demo get {service}:{port} 5"), |said| said == expected).await;
        }
    });
}

/// Every replica answers with its own name.
async fn each_serves(bed: &Bed, selector: &str, replicas: usize) {
    let pods = eventually("all replicas run", async || {
        let pods = list(&bed.api::<CorePod>(), selector).await;
        let running = pods.iter().filter(|pod| as_json(*pod)["status"]["phase"] == "Running").count();
        ensure!(running == replicas && pods.len() == replicas, "{running}");
        Ok(pods)
    })
    .await;
    for pod in pods {
        let name = pod.name_any();
        let path = format!("/api/v1/namespaces/{}/pods/{name}:8080/proxy/hostname", bed.namespace);
        eventually("the replica answers", async || {
            let answer = bed.send("GET", &path, &[], "").await;
            ensure!(answer.code == 200 && answer.text() == name, "{} {}", answer.code, answer.text());
            Ok(())
        })
        .await;
    }
}

/// Replica Set, run basic image
#[test]
fn replicaset_should_serve_a_basic_image_on_each_replica_with_a_public_image() {
    test(async |bed| {
        let labels = json!({ "name": "basic" });
        let set = json!({
            "metadata": { "name": "basic" },
            "spec": {
                "replicas": 2,
                "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": server()["spec"] },
            },
        });
        create(&bed.api::<ReplicaSet>(), set).await;
        each_serves(bed, "name=basic", 2).await;
    });
}

/// Replication Controller, run basic image
#[test]
fn replicationcontroller_should_serve_a_basic_image_on_each_replica_with_a_public_image() {
    test(async |bed| {
        let labels = json!({ "name": "basic" });
        let controller = json!({
            "metadata": { "name": "basic" },
            "spec": {
                "replicas": 2,
                "selector": labels,
                "template": { "metadata": { "labels": labels }, "spec": server()["spec"] },
            },
        });
        create(&bed.api::<ReplicationController>(), controller).await;
        each_serves(bed, "name=basic", 2).await;
    });
}
