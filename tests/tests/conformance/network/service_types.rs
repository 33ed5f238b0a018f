//! Changes of a service's type: addresses and node ports come and go with it.

use k8s_openapi::api::core::v1::{Service, ServicePort};
use kube::Api;
use serde_json::{Value, json};

use super::spec;
use crate::{
    coverage::texts,
    steps::{create, try_create, update},
    support::{refused, test, unique},
};

texts! {
    "Service, change type, ClusterIP to ExternalName" => should_be_able_to_change_the_type_from_clusterip_to_externalname,
    "Service, change type, ExternalName to ClusterIP" => should_be_able_to_change_the_type_from_externalname_to_clusterip,
    "Service, change type, ExternalName to NodePort" => should_be_able_to_change_the_type_from_externalname_to_nodeport,
    "Service, change type, NodePort to ExternalName" => should_be_able_to_change_the_type_from_nodeport_to_externalname,
}

const ELSEWHERE: &str = "elsewhere.example.com";

fn service(name: &str, mut spec: Value) -> Value {
    if spec["type"] == "ExternalName" {
        spec["externalName"] = json!(ELSEWHERE);
    } else {
        spec["ports"] = json!([port()]);
    }
    json!({ "metadata": { "name": name }, "spec": spec })
}

fn port() -> Value {
    json!({ "name": "http", "protocol": "TCP", "port": 80, "targetPort": 9376 })
}

async fn become_external(services: &Api<Service>, name: &str) -> Service {
    // As clients do it: address and node port still stand in what is sent.
    let external = update(services, name, |service| {
        let spec = service.spec.get_or_insert_default();
        spec.type_ = Some("ExternalName".into());
        spec.external_name = Some(ELSEWHERE.into());
    });
    external.await
}

async fn become_internal(services: &Api<Service>, name: &str, kind: &str) -> Service {
    let port: ServicePort = serde_json::from_value(port()).expect("a port");
    let internal = update(services, name, |service| {
        let spec = service.spec.get_or_insert_default();
        spec.type_ = Some(kind.to_owned());
        spec.external_name = None;
        spec.ports = Some(vec![port.clone()]);
    });
    internal.await
}

fn address(service: &Service) -> &str {
    spec(service).cluster_ip.as_deref().unwrap_or_default()
}

/// The first port's node port; 0 where there is none.
fn node_port(service: &Service) -> i32 {
    let port = spec(service).ports.as_ref().and_then(|ports| ports.first());
    port.and_then(|port| port.node_port).unwrap_or_default()
}

fn is_address(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

/// Service, change type, ClusterIP to ExternalName
#[test]
fn should_be_able_to_change_the_type_from_clusterip_to_externalname() {
    test(async |bed| {
        let (name, services) = (unique("service"), bed.api::<Service>());
        let made = create(&services, service(&name, json!({ "type": "ClusterIP" }))).await;
        assert!(is_address(address(&made)), "{made:?}");
        let same = service(&unique("service"), json!({ "clusterIP": address(&made) }));
        refused(try_create(&services, same.clone()).await, 422, "Invalid");

        let external = become_external(&services, &name).await;
        assert_eq!(address(&external), "");
        assert_eq!(spec(&external).cluster_ips.clone().unwrap_or_default(), Vec::<String>::new());
        assert_eq!(spec(&external).external_name.as_deref(), Some(ELSEWHERE));
        create(&services, same).await;
    });
}

/// Service, change type, ExternalName to ClusterIP
#[test]
fn should_be_able_to_change_the_type_from_externalname_to_clusterip() {
    test(async |bed| {
        let (name, services) = (unique("service"), bed.api::<Service>());
        let made = create(&services, service(&name, json!({ "type": "ExternalName" }))).await;
        assert_eq!(address(&made), "");
        let internal = become_internal(&services, &name, "ClusterIP").await;
        assert!(is_address(address(&internal)), "{internal:?}");
        assert_eq!((node_port(&internal), spec(&internal).external_name.as_deref()), (0, None));
    });
}

/// Service, change type, ExternalName to NodePort
#[test]
fn should_be_able_to_change_the_type_from_externalname_to_nodeport() {
    test(async |bed| {
        let (name, services) = (unique("service"), bed.api::<Service>());
        let made = create(&services, service(&name, json!({ "type": "ExternalName" }))).await;
        assert_eq!(address(&made), "");
        let internal = become_internal(&services, &name, "NodePort").await;
        assert!(is_address(address(&internal)), "{internal:?}");
        assert!((30_000..=32_767).contains(&node_port(&internal)), "{internal:?}");
    });
}

/// Service, change type, NodePort to ExternalName
#[test]
fn should_be_able_to_change_the_type_from_nodeport_to_externalname() {
    test(async |bed| {
        let (name, services) = (unique("service"), bed.api::<Service>());
        let made = create(&services, service(&name, json!({ "type": "NodePort" }))).await;
        assert!(is_address(address(&made)) && node_port(&made) != 0, "{made:?}");
        let mut same = service(&unique("service"), json!({ "type": "NodePort" }));
        same["spec"]["ports"][0]["nodePort"] = json!(node_port(&made));
        refused(try_create(&services, same.clone()).await, 422, "Invalid");

        let external = become_external(&services, &name).await;
        assert_eq!((address(&external), node_port(&external)), ("", 0));
        create(&services, same).await;
    });
}
