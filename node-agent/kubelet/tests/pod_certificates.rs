//! Pods with keys and certificates of their own, from a signer that the tests are.

mod common;

use std::time::Duration;

use common::{Node, container, spec, uid};
use hawser_api::GroupVersionResource;
use hawser_api::resource::Target;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use k8s_openapi::api::core::v1::{PodSpec, ServiceAccount};
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

const SIGNER: &str = "example.com/web";
const MINUTE: Duration = Duration::from_secs(60);

fn with_certificate(key_type: &str) -> PodSpec {
    let certificate = json!({
        "signerName": SIGNER, "keyType": key_type, "maxExpirationSeconds": 7200,
        "credentialBundlePath": "both.pem", "keyPath": "key.pem", "certificateChainPath": "chain.pem",
        "userAnnotations": { "example.com/for": "web" },
    });
    let sources = json!([{ "downwardAPI": { "items": [] } }, { "podCertificate": certificate }]);
    let volume = json!({ "name": "own", "projected": { "sources": sources, "defaultMode": 0o640 } });
    let volume = serde_json::from_value(volume).expect("a volume");
    PodSpec { volumes: Some(vec![volume]), ..spec("Always", vec![container("web")]) }
}

fn start() -> Node {
    let node = Node::start();
    let account = Target::object(GroupVersionResource::of::<ServiceAccount>(), Some("default"), "default");
    node.api.store(&account, json!({ "metadata": { "name": "default", "uid": "uid-of-account" } }));
    node
}

fn shown(node: &Node, file: &str) -> Option<String> {
    let volumes = node.dir.path().join("pods").join(uid("web")).join("volumes");
    std::fs::read_to_string(volumes.join("kubernetes.io~projected/own").join(file)).ok()
}

/// Waits for a request that nobody has answered.
async fn asked(node: &Node) -> Value {
    node.wait("a request", || {
        let mut all = node.api.all("podcertificaterequests").into_iter();
        all.find(|request| request["status"].is_null())
    })
    .await
}

fn answer(node: &Node, request: &Value, kind: &str, fields: Value) {
    let mut status = json!({ "conditions": [{
        "type": kind, "status": "True", "reason": "Decided", "message": "so it is",
        "lastTransitionTime": Timestamp::now().to_string(),
    }] });
    status.as_object_mut().expect("fields").extend(fields.as_object().expect("fields").clone());
    let mut answered = request.clone();
    answered["status"] = status;
    let name = request["metadata"]["name"].as_str().expect("named");
    let resource = GroupVersionResource::of::<PodCertificateRequest>();
    node.api.store(&Target::object(resource, Some("default"), name), answered);
}

/// Signs for the key that was asked for, to be renewed after the duration. Returns the certificate's text.
fn sign(node: &Node, request: &Value, refresh_after: SignedDuration) -> String {
    let encoded = request["spec"]["stubPKCS10Request"].as_str().expect("a request").to_owned();
    let stub: k8s_openapi::ByteString = serde_json::from_value(json!(encoded)).expect("bytes");
    let stub = CertificateSigningRequestParams::from_der(&stub.0.into()).expect("a request");
    let authority = KeyPair::generate().expect("a key");
    let issuer = Issuer::new(CertificateParams::default(), authority);
    let pem = stub.signed_by(&issuer).expect("signed").pem();
    let now = Timestamp::now();
    let at = |after: SignedDuration| json!((now + after).to_string());
    let chain = format!("a remark\n{pem}");
    let fields = json!({
        "certificateChain": chain, "notBefore": at(SignedDuration::ZERO),
        "beginRefreshAt": at(refresh_after), "notAfter": at(SignedDuration::from_hours(2)),
    });
    answer(node, request, "Issued", fields);
    pem
}

fn leaf_of(text: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(text.as_bytes()).expect("a certificate")
}

#[track_caller]
fn check_bundle(node: &Node, signed: &str) {
    let both = shown(node, "both.pem").expect("there");
    let (key, chain) = (shown(node, "key.pem").expect("there"), shown(node, "chain.pem").expect("there"));
    assert_eq!(both, key.clone() + &chain);
    assert!(!chain.contains("remark"));
    assert_eq!(leaf_of(&both), leaf_of(signed));
    let key = KeyPair::from_pem(&key).expect("a key");
    let leaf = leaf_of(&both);
    let (_, certificate) = X509Certificate::from_der(&leaf).expect("a certificate");
    assert_eq!(certificate.public_key().raw, key.subject_public_key_info(), "the key is the certificate's");
}

async fn wait_for_bundle(node: &Node, signed: &str) {
    let leaf = leaf_of(signed);
    node.wait("the certificate to be shown", || {
        shown(node, "both.pem").filter(|both| leaf_of(both) == leaf).map(drop)
    })
    .await;
    check_bundle(node, signed);
}

fn state(node: &Node) -> Option<String> {
    let text = node.kubelet.telemetry().metrics();
    let line = text.lines().find(|line| line.starts_with("kubelet_podcertificate_states"))?;
    let state = line.split("state=\"").nth(1)?.split('"').next()?;
    assert!(line.contains("signer_name=\"example.com/web\"") && line.ends_with(" 1"), "{line}");
    Some(state.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_its_certificate_which_is_renewed_in_time() {
    let node = start();
    node.bind("web", with_certificate("ECDSAP256"));
    let first = asked(&node).await;
    let spec = &first["spec"];
    let node_uid = node.api.object("nodes", "n1").expect("registered")["metadata"]["uid"].clone();
    assert_eq!((&spec["nodeName"], &spec["nodeUID"]), (&json!("n1"), &node_uid));
    assert_eq!((&spec["podName"], &spec["podUID"]), (&json!("web"), &json!(uid("web"))));
    assert_eq!(spec["serviceAccountUID"], "uid-of-account");
    assert_eq!((&spec["signerName"], &spec["maxExpirationSeconds"]), (&json!(SIGNER), &json!(7200)));
    assert_eq!(spec["unverifiedUserAnnotations"], json!({ "example.com/for": "web" }));
    assert_eq!(first["metadata"]["ownerReferences"][0]["uid"], json!(uid("web")));
    node.wait("the pod to be told what it lacks", || {
        let told = node.api.events().join("\n");
        told.contains("source 1, podCertificate of signer \"example.com/web\"").then_some(())
    })
    .await;
    assert!(node.runtime.find(&uid("web"), "web").is_none());
    assert_eq!(state(&node).as_deref(), Some("not_yet_issued"));

    let signed = sign(&node, &first, SignedDuration::from_mins(1));
    node.wait_ready("web").await;
    check_bundle(&node, &signed);
    assert_eq!(state(&node).as_deref(), Some("fresh"));
    let one = shown(&node, "key.pem");
    assert_eq!(node.api.all("podcertificaterequests").len(), 1);

    let second = asked(&node).await;
    assert_ne!(second["spec"]["stubPKCS10Request"], first["spec"]["stubPKCS10Request"], "a key of its own");
    assert_eq!(shown(&node, "key.pem"), one, "until the new one is there");
    let renewed = sign(&node, &second, SignedDuration::from_hours(1));
    wait_for_bundle(&node, &renewed).await;
    assert_ne!(shown(&node, "key.pem"), one);
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_shows_what_is_there_and_asks_anew() {
    let node = start();
    node.bind("web", with_certificate("ED25519"));
    let signed = sign(&node, &asked(&node).await, SignedDuration::from_hours(1));
    node.wait_ready("web").await;
    let node = node.restart().await;
    let next = asked(&node).await;
    let running = node.runtime.find(&uid("web"), "web").expect("runs on");
    node.runtime.exit(&running.id, 1);
    node.wait("the restart", || node.runtime.find(&uid("web"), "web").filter(|found| found.id != running.id))
        .await;
    check_bundle(&node, &signed);
    let renewed = sign(&node, &next, SignedDuration::from_hours(1));
    wait_for_bundle(&node, &renewed).await;

    let node = node.restart_offline().await;
    node.wait("the worker", || (node.kubelet.pods.len() == 1).then_some(())).await;
    tokio::time::sleep(10 * MINUTE).await;
    check_bundle(&node, &renewed);
    node.api_returns();
    let last = sign(&node, &asked(&node).await, SignedDuration::from_hours(1));
    wait_for_bundle(&node, &last).await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_kept_while_the_api_is_away() {
    let node = start();
    node.bind("web", with_certificate("ECDSAP384"));
    let signed = sign(&node, &asked(&node).await, SignedDuration::from_mins(1));
    node.wait_ready("web").await;
    *node.api.down.lock() = true;
    tokio::time::sleep(20 * MINUTE).await;
    check_bundle(&node, &signed);
    assert_eq!(state(&node).as_deref(), Some("overdue_for_refresh"));
    *node.api.down.lock() = false;
    let renewed = sign(&node, &asked(&node).await, SignedDuration::from_hours(1));
    wait_for_bundle(&node, &renewed).await;
    assert!(node.api.events().iter().any(|event| event.starts_with("CertificateOverdueForRefresh")));
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_told_why_it_gets_none() {
    for (kind, said) in [("Denied", "permanently denied"), ("Failed", "permanently failed")] {
        let node = start();
        node.bind("web", with_certificate("ECDSAP256"));
        answer(&node, &asked(&node).await, kind, json!({}));
        node.wait("the event", || {
            let told = node.api.events().join("\n");
            let wanted = ["FailedMount", said, "reason=\"Decided\" message=\"so it is\""];
            wanted.iter().all(|wanted| told.contains(wanted)).then_some(())
        })
        .await;
        tokio::time::sleep(10 * MINUTE).await;
        assert_eq!(node.api.all("podcertificaterequests").len(), 1, "nobody is asked again");
        assert!(node.runtime.find(&uid("web"), "web").is_none());
        assert_eq!(state(&node), Some(kind.to_lowercase()));
    }
    let node = start();
    node.bind("web", with_certificate("RSA3072"));
    node.wait("the event", || {
        let told = node.api.events().join("\n");
        told.contains("keys of type RSA3072 are not supported on this node").then_some(())
    })
    .await;
    assert!(node.api.all("podcertificaterequests").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_goes_unanswered_is_made_again_when_it_is_gone() {
    let node = start();
    node.bind("web", with_certificate("ECDSAP256"));
    let first = asked(&node).await;
    tokio::time::sleep(15 * MINUTE).await;
    assert_eq!(node.api.all("podcertificaterequests"), std::slice::from_ref(&first));
    let name = first["metadata"]["name"].as_str().expect("named");
    node.api.remove("podcertificaterequests", &format!("default/{name}"));
    let second = asked(&node).await;
    assert_ne!(second["metadata"]["name"], first["metadata"]["name"]);
    sign(&node, &second, SignedDuration::from_hours(1));
    node.wait_ready("web").await;
    node.delete("web", 0);
    node.wait_gone("web").await;
    node.wait("its source to be forgotten", || state(&node).is_none().then_some(())).await;
}
