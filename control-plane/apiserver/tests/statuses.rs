//! Writes of statuses get their defaults, as every write does.

mod common;

use common::*;
use hawser_api::{resource::Target, schema::FieldValidation};
use hawser_apiserver::{
    auth::{SYSTEM_MASTERS, User},
    ops::{Apply, WriteOptions},
};
use serde_json::{Value, json};

#[tokio::test]
async fn however_a_status_is_written_it_has_its_defaults() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let service = json!({
        "metadata": { "name": "web" },
        "spec": { "type": "LoadBalancer", "selector": { "app": "web" }, "ports": [{ "port": 80 }] },
    });
    let mut made = admin.create(&SERVICES, Some("shop"), service).await.expect("a service");
    let status = |ip: &str| json!({ "loadBalancer": { "ingress": [{ "ip": ip }] } });
    let expected = |ip: &str| json!({ "loadBalancer": { "ingress": [{ "ip": ip, "ipMode": "VIP" }] } });
    let stored =
        async || admin.get(&SERVICES, Some("shop"), "web").await.expect("it is there")["status"].take();

    made["status"] = status("192.0.2.1");
    let replaced = admin.update(&SERVICES, &made, "status").await.expect("replaced");
    assert_eq!(replaced["status"], expected("192.0.2.1"));
    assert_eq!(stored().await, expected("192.0.2.1"));

    let patch = json!({ "status": status("192.0.2.2") });
    let patched = admin.merge_at(&SERVICES, Some("shop"), "web", "status", patch).await.expect("patched");
    assert_eq!(patched["status"], expected("192.0.2.2"));

    let config = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "shop" },
        "status": status("192.0.2.3"),
    });
    let user = User::named("admin", &[SYSTEM_MASTERS]);
    let target = Target::object(SERVICES, Some("shop"), "web").with_subresource("status");
    let call = running.server.enter(&user, "patch", target, "").expect("allowed");
    let apply = Apply { body: config.to_string().into(), force: true, validation: FieldValidation::Strict };
    let options = WriteOptions { field_manager: "tests".to_owned(), ..WriteOptions::default() };
    running.server.apply(&call, apply, &options).await.expect("applied");
    let ingress = stored().await["loadBalancer"]["ingress"].take();
    assert!(ingress.as_array().is_some_and(|all| all.iter().all(|one| one["ipMode"] == "VIP")), "{ingress}");

    // A namespace's name is its label, whoever writes what of it.
    let mut namespace = admin.get(&NAMESPACES, None, "shop").await.expect("a namespace");
    namespace["metadata"]["labels"] = Value::Null;
    namespace["status"] = json!({});
    let written = admin.update(&NAMESPACES, &namespace, "status").await.expect("written");
    assert_eq!(written["metadata"]["labels"]["kubernetes.io/metadata.name"], "shop");
    assert_eq!(written["status"]["phase"], "Active");
    running.stop().await;
}
