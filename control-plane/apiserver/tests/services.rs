//! Addresses and ports of services: nobody shares them, and nothing leaks.

mod common;

use std::collections::HashSet;

use common::*;
use hawser_store::RangeRequest;
use serde_json::{Value, json};

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }], "selector": { "a": "b" } } });
    for (field, value) in spec.as_object().expect("fields") {
        service["spec"][field] = value.clone();
    }
    service
}

#[tokio::test]
async fn services_made_at_once_share_no_address_and_no_port() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let mut makers = tokio::task::JoinSet::new();
    for number in 0..64 {
        let admin = running.admin();
        makers.spawn(async move {
            let wanted = service(&format!("s{number}"), json!({ "type": "NodePort" }));
            admin.create(&SERVICES, Some("default"), wanted).await.expect("a service")
        });
    }
    let (mut addresses, mut ports) = (HashSet::new(), HashSet::new());
    while let Some(made) = makers.join_next().await {
        let made = made.expect("a maker");
        assert!(addresses.insert(made["spec"]["clusterIP"].as_str().expect("an address").to_owned()));
        assert!(ports.insert(made["spec"]["ports"][0]["nodePort"].as_u64().expect("a port")));
    }
    assert!(ports.iter().all(|port| (30_000..=32_767).contains(port)));
    running.stop().await;
}

#[tokio::test]
async fn what_a_client_chooses_is_refused_when_taken_and_free_after_deletion() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let wanted = |name: &str| service(name, json!({ "clusterIP": "10.96.0.77" }));
    admin.create(&SERVICES, Some("default"), wanted("one")).await.expect("free");
    let error = admin.create(&SERVICES, Some("default"), wanted("two")).await.expect_err("taken");
    assert_eq!(
        error.message(),
        "Service \"two\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.77\"]: failed to allocate IP \
         10.96.0.77: provided IP is already allocated"
    );
    let outside = service("three", json!({ "clusterIP": "10.200.0.1" }));
    let error = admin.create(&SERVICES, Some("default"), outside).await.expect_err("outside");
    assert!(error.message().contains("not in the valid range"), "{error}");
    let port = |name: &str| {
        let mut service = service(name, json!({ "type": "NodePort" }));
        service["spec"]["ports"][0]["nodePort"] = json!(30_077);
        service
    };
    admin.create(&SERVICES, Some("default"), port("four")).await.expect("free");
    let error = admin.create(&SERVICES, Some("default"), port("five")).await.expect_err("taken");
    assert_eq!(
        error.message(),
        "Service \"five\" is invalid: spec.ports[0].nodePort: Invalid value: 30077: provided port is already allocated"
    );
    for name in ["one", "four"] {
        admin.delete(&SERVICES, Some("default"), name, None).await.expect("deleted");
    }
    admin.create(&SERVICES, Some("default"), wanted("two")).await.expect("free again");
    admin.create(&SERVICES, Some("default"), port("five")).await.expect("free again");
    running.stop().await;
}

#[tokio::test]
async fn a_change_of_type_takes_and_gives_back_ports() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let made = admin.create(&SERVICES, Some("default"), service("web", json!({}))).await.expect("made");
    let address = made["spec"]["clusterIP"].clone();
    let node_port = admin
        .merge(&SERVICES, Some("default"), "web", json!({ "spec": { "type": "NodePort" } }))
        .await
        .expect("a node port");
    let port = node_port["spec"]["ports"][0]["nodePort"].as_u64().expect("a port");
    assert_eq!(node_port["spec"]["clusterIP"], address, "the address stays");
    // A client that replaces the service without naming what it was given keeps it.
    let replaced = service("web", json!({ "type": "NodePort" }));
    let mut replaced_meta = replaced.clone();
    replaced_meta["metadata"]["namespace"] = json!("default");
    let kept = admin.update(&SERVICES, &replaced_meta, "").await.expect("replaced");
    assert_eq!(kept["spec"]["clusterIP"], address);
    assert_eq!(kept["spec"]["ports"][0]["nodePort"], port);
    let back = json!({ "spec": { "type": "ClusterIP", "ports": [{ "port": 80, "nodePort": null }] } });
    admin.merge(&SERVICES, Some("default"), "web", back).await.expect("a cluster address only");
    let mut other = service("other", json!({ "type": "NodePort" }));
    other["spec"]["ports"][0]["nodePort"] = json!(port);
    admin.create(&SERVICES, Some("default"), other).await.expect("the port is free again");
    running.stop().await;
}

#[tokio::test]
async fn allocations_survive_a_restart() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let wanted = service("one", json!({ "clusterIP": "10.96.0.77" }));
    running.admin().create(&SERVICES, Some("default"), wanted).await.expect("free");
    running.stop().await;
    let running = start(&directory).await;
    let wanted = service("two", json!({ "clusterIP": "10.96.0.77" }));
    let error = running.admin().create(&SERVICES, Some("default"), wanted).await.expect_err("taken");
    assert!(error.message().contains("provided IP is already allocated"), "{error}");
    running.stop().await;
}

fn many_ports(first: u16, count: u16) -> Vec<Value> {
    (0..count).map(|at| json!({ "name": format!("p{at}"), "port": first + at, "protocol": "TCP" })).collect()
}

async fn claims(running: &Running) -> usize {
    let request = RangeRequest::prefix("/registry/ranges/servicenodeports/");
    running.store.range(request).await.expect("a range").kvs.len()
}

#[tokio::test]
async fn a_service_with_more_ports_than_a_transaction_holds_takes_and_gives_back_all() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let before = claims(&running).await;
    let spec = json!({ "type": "NodePort", "selector": { "app": "a" }, "ports": many_ports(1000, 400) });
    let made = admin.create(&SERVICES, Some("default"), service("wide", spec)).await.expect("made");
    let ports = made["spec"]["ports"].as_array().expect("ports");
    let numbers: HashSet<u64> = ports.iter().filter_map(|port| port["nodePort"].as_u64()).collect();
    assert_eq!(numbers.len(), 400);
    assert_eq!(claims(&running).await, before + 400);

    // One that wants a port of it gets none of its own 300 either.
    let mut wanted = many_ports(1000, 300);
    wanted[299]["nodePort"] = ports[0]["nodePort"].clone();
    let spec = json!({ "type": "NodePort", "selector": { "app": "a" }, "ports": wanted });
    let refused = admin.create(&SERVICES, Some("default"), service("rival", spec)).await.expect_err("taken");
    assert!(refused.message().contains("spec.ports[299].nodePort"), "{refused}");
    assert!(refused.message().contains("provided port is already allocated"), "{refused}");
    assert_eq!(claims(&running).await, before + 400, "what the refused one had claimed is free again");

    let narrow = json!({ "spec": { "type": "ClusterIP" } });
    admin.merge(&SERVICES, Some("default"), "wide", narrow).await.expect("changed");
    assert_eq!(claims(&running).await, before);
    admin
        .merge(&SERVICES, Some("default"), "wide", json!({ "spec": { "type": "NodePort" } }))
        .await
        .expect("changed");
    assert_eq!(claims(&running).await, before + 400);
    admin.delete(&SERVICES, Some("default"), "wide", None).await.expect("deleted");
    assert_eq!(claims(&running).await, before);
    running.stop().await;
}

#[tokio::test]
async fn a_node_port_out_of_range_is_named() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let spec = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 80 }] });
    let error =
        running.admin().create(&SERVICES, Some("default"), service("a", spec)).await.expect_err("refused");
    assert_eq!(
        error.message(),
        "Service \"a\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. \
         The range of valid ports is 30000-32767"
    );
    running.stop().await;
}

#[tokio::test]
async fn families_follow_the_clusters_ranges() {
    for (ranges, spec, families, policy) in [
        (&["fd00:10:96::/112"][..], json!({}), json!(["IPv6"]), "SingleStack"),
        (&["10.96.0.0/16"], json!({}), json!(["IPv4"]), "SingleStack"),
        (&["fd00:10:96::/112", "10.96.0.0/16"], json!({}), json!(["IPv6"]), "SingleStack"),
        (
            &["fd00:10:96::/112", "10.96.0.0/16"],
            json!({ "ipFamilyPolicy": "PreferDualStack" }),
            json!(["IPv6", "IPv4"]),
            "PreferDualStack",
        ),
        (
            &["fd00:10:96::/112"],
            json!({ "ipFamilyPolicy": "PreferDualStack" }),
            json!(["IPv6"]),
            "PreferDualStack",
        ),
        (
            &["fd00:10:96::/112"],
            json!({ "clusterIP": "None", "selector": { "a": "b" } }),
            json!(["IPv6"]),
            "SingleStack",
        ),
        (
            &["10.96.0.0/16"],
            json!({ "clusterIP": "None", "selector": {} }),
            json!(["IPv4", "IPv6"]),
            "RequireDualStack",
        ),
        (
            &["10.96.0.0/16"],
            json!({ "clusterIP": "None", "selector": {}, "ipFamilyPolicy": "SingleStack" }),
            json!(["IPv4"]),
            "SingleStack",
        ),
    ] {
        let directory = Directory::new();
        let running = start_over(embedded(&directory).await, |config| {
            config.service_ranges = ranges.iter().map(|range| range.parse().expect("a range")).collect();
        })
        .await;
        let admin = running.admin();
        let mut wanted = spec.clone();
        wanted["ports"] = json!([{ "port": 80 }]);
        let made = admin.create(&SERVICES, Some("default"), service("a", wanted)).await.expect("made");
        let what = format!("{spec} with {ranges:?}");
        assert_eq!(made["spec"]["ipFamilies"], families, "{what}");
        assert_eq!(made["spec"]["ipFamilyPolicy"], policy, "{what}");
        // What a client leaves out of a replacement stays as it was settled.
        let mut again = made.clone();
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            again["spec"].as_object_mut().expect("a spec").remove(field);
        }
        let updated = admin.update(&SERVICES, &again, "").await.expect("updated");
        assert_eq!(updated["spec"], made["spec"], "{what}");
        running.stop().await;
    }
}
