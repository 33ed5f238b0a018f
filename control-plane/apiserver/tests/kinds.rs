//! Kinds with ways of their own: certificate requests, autoscalers in two versions, what is stored and not acted on.

mod common;

use base64::{Engine, engine::general_purpose::STANDARD};
use common::*;
use hawser_api::{GroupVersionResource, resource::Target, schema::FieldValidation};
use hawser_apiserver::{
    auth::{SYSTEM_MASTERS, User},
    ops::{Apply, Reply, WriteOptions},
};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};

const REQUESTS: GroupVersionResource =
    GroupVersionResource::fixed("certificates.k8s.io", "v1", "certificatesigningrequests");
const WEBHOOKS: GroupVersionResource =
    GroupVersionResource::fixed("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations");

fn signing_request(name: &str, organization: &str) -> Value {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name.push(DnType::OrganizationName, organization);
    let key = KeyPair::generate().expect("a key");
    let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
    json!({
        "metadata": { "name": name },
        "spec": {
            "request": STANDARD.encode(pem), "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["client auth"], "username": "somebody else",
        },
    })
}

#[tokio::test]
async fn a_signing_request_is_its_authors_and_only_approval_decides() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let made = admin.create(&REQUESTS, None, signing_request("ann", "team")).await.expect("a request");
    assert_eq!(made["spec"]["username"], "admin");
    assert_eq!(made["spec"]["groups"], json!([SYSTEM_MASTERS, "system:authenticated"]));

    let mut approved = made.clone();
    approved["spec"]["signerName"] = json!("example.com/other");
    approved["status"]["conditions"] = json!([{ "type": "Approved", "status": "True", "reason": "Known" }]);
    let plain = admin.update(&REQUESTS, &approved, "").await.expect("nothing changes");
    assert_eq!(plain, made);
    let error = admin.update(&REQUESTS, &approved, "status").await.expect_err("not through status");
    assert!(error.message().contains("updates may not add a condition of type \"Approved\""), "{error}");
    let decided = admin.update(&REQUESTS, &approved, "approval").await.expect("approved");
    assert_eq!(decided["spec"], made["spec"]);
    let condition = &decided["status"]["conditions"][0];
    assert!(condition["lastUpdateTime"].is_string() && condition["lastTransitionTime"].is_string());

    let error =
        admin.create(&REQUESTS, None, signing_request("boss", SYSTEM_MASTERS)).await.expect_err("too much");
    assert_eq!(
        error.message(),
        "certificatesigningrequests.certificates.k8s.io \"boss\" is forbidden: use of kubernetes.io/kube-apiserver-client \
         signer with system:masters group is not allowed"
    );
    running.stop().await;
}

#[tokio::test]
async fn autoscalers_are_one_object_in_two_versions() {
    let versions = ["v1", "v2"]
        .map(|version| GroupVersionResource::fixed("autoscaling", version, "horizontalpodautoscalers"));
    let [v1, v2] = &versions;
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let memory = json!({ "type": "Resource", "resource": {
        "name": "memory", "target": { "type": "AverageValue", "averageValue": "1Gi" } } });
    let wanted = json!({
        "metadata": { "name": "web" },
        "spec": { "scaleTargetRef": { "kind": "Deployment", "name": "web" }, "maxReplicas": 3, "metrics": [memory] },
    });
    admin.create(v2, Some("shop"), wanted).await.expect("an autoscaler");
    let mut older = admin.get(v1, Some("shop"), "web").await.expect("as v1");
    assert_eq!(older["apiVersion"], "autoscaling/v1");
    older["spec"]["targetCPUUtilizationPercentage"] = json!(60);
    let answer = admin.update(v1, &older, "").await.expect("written as v1");
    assert_eq!(answer["spec"]["targetCPUUtilizationPercentage"], 60);
    let newer = admin.get(v2, Some("shop"), "web").await.expect("as v2");
    assert_eq!(newer["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 60);
    assert_eq!(newer["spec"]["metrics"][1], memory);
    assert_eq!(newer["metadata"].get("annotations"), None);
    admin
        .merge(v1, Some("shop"), "web", json!({ "spec": { "maxReplicas": 5 } }))
        .await
        .expect("patched as v1");
    let (listed, _) = admin.list(v1, Some("shop"), "").await;
    assert_eq!((&listed[0]["spec"]["maxReplicas"], listed.len()), (&json!(5), 1));
    running.stop().await;
}

#[tokio::test]
async fn what_is_not_acted_on_is_said() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = User::named("admin", &[SYSTEM_MASTERS]);
    let webhooks = json!({ "metadata": { "name": "check" }, "webhooks": [] });
    let target = Target::collection(WEBHOOKS, None);
    let call = running.server.enter(&admin, "create", target, "").expect("allowed");
    let written = running.server.create(&call, webhooks, &WriteOptions::default()).await.expect("stored");
    assert!(
        written.warnings.iter().any(|warning| warning.contains("NOT enforced")),
        "{:?}",
        written.warnings
    );
    let call =
        running.server.enter(&admin, "update", Target::object(WEBHOOKS, None, "check"), "").expect("allowed");
    let Reply::Object(stored) = written.reply else { panic!("not an object") };
    let written =
        running.server.update(&call, stored.value(), &WriteOptions::default()).await.expect("stored");
    assert_eq!(written.warnings.len(), 1);
    // Applied as well, whether it is there or not, and beside what is wrong with the configuration.
    for (name, warnings) in [("check", 1), ("applied", 1), ("twice", 2)] {
        let config = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": { "name": name, "labels": { "applied": "true" } },
        });
        let (label, twice) = (r#""applied":"true""#, r#""applied":"true","applied":"true""#);
        let body =
            if name == "twice" { config.to_string().replace(label, twice) } else { config.to_string() };
        let apply = Apply { body: body.into(), force: false, validation: FieldValidation::Warn };
        let target = Target::object(WEBHOOKS, None, name);
        let call = running.server.enter(&admin, "patch", target, "").expect("allowed");
        let options = WriteOptions { field_manager: "tests".to_owned(), ..WriteOptions::default() };
        let written = running.server.apply(&call, apply, &options).await.expect("applied");
        assert_eq!(written.warnings.len(), warnings, "{name}: {:?}", written.warnings);
        assert!(written.warnings.last().is_some_and(|last| last.contains("NOT enforced")), "{name}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_namespace_that_was_annotated_is_heeded_at_once() {
    const ANNOTATION: &str = "hawser.io/socket-translation";
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("mesh").await;
    let admin = running.admin();
    for value in ["off", "on", "off", "on", "off", "on"] {
        let annotated = json!({ "metadata": { "annotations": { ANNOTATION: value } } });
        admin.merge(&NAMESPACES, None, "mesh", annotated).await.expect("annotated");
        let pod = json!({
            "metadata": { "generateName": "pod-" },
            "spec": { "containers": [{ "name": "main", "image": "demo" }] },
        });
        let made = admin.create(&PODS, Some("mesh"), pod).await.expect("made");
        assert_eq!(made["metadata"]["annotations"][ANNOTATION], value);
    }
    running.stop().await;
}

#[tokio::test]
async fn component_statuses_are_an_empty_list() {
    let statuses = GroupVersionResource::fixed("", "v1", "componentstatuses");
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    assert!(admin.list(&statuses, None, "").await.0.is_empty());
    assert!(admin.get(&statuses, None, "scheduler").await.is_err_and(|error| error.is_not_found()));
    running.stop().await;
}
