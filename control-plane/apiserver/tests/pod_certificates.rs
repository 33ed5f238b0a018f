//! PodCertificateRequests: nodes ask for their own pods, and the signer alone answers.

mod common;

use base64::{Engine, engine::general_purpose::STANDARD};
use common::*;
use hawser_api::{Error, GroupVersionResource};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SigningKey};
use serde_json::{Value, json};

const REQUESTS: GroupVersionResource =
    GroupVersionResource::fixed("certificates.k8s.io", "v1beta1", "podcertificaterequests");
const RBAC: &str = "rbac.authorization.k8s.io";
const CLUSTER_ROLES: GroupVersionResource = GroupVersionResource::fixed(RBAC, "v1", "clusterroles");
const CLUSTER_BINDINGS: GroupVersionResource = GroupVersionResource::fixed(RBAC, "v1", "clusterrolebindings");

const SIGNER: &str = "example.com/web";
/// The user that signs for it.
const SIGNING: &str = "signer";

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
}

/// A server with two nodes, and a pod on each.
struct Scene {
    running: Running,
    key: KeyPair,
    uids: std::collections::BTreeMap<&'static str, Value>,
    _directory: Directory,
}

impl Scene {
    async fn new() -> Self {
        let directory = Directory::new();
        let running = start(&directory).await;
        running.namespace("shop").await;
        let admin = running.admin();
        let mut uids = std::collections::BTreeMap::new();
        let robot = json!({ "metadata": { "name": "robot" } });
        let robot = admin.create(&ACCOUNTS, Some("shop"), robot).await.expect("an account");
        uids.insert("robot", robot["metadata"]["uid"].clone());
        for node in ["n1", "n2"] {
            let made =
                admin.create(&NODES, None, json!({ "metadata": { "name": node } })).await.expect("a node");
            uids.insert(node, made["metadata"]["uid"].clone());
        }
        for (name, node) in [("mine", "n1"), ("other", "n2")] {
            let mut wanted = pod(name);
            wanted["spec"]["nodeName"] = json!(node);
            wanted["spec"]["serviceAccountName"] = json!("robot");
            let made = admin.create(&PODS, Some("shop"), wanted).await.expect("a pod");
            uids.insert(name, made["metadata"]["uid"].clone());
        }
        for (name, rules) in [
            (
                "writes",
                json!([{ "apiGroups": ["certificates.k8s.io"], "verbs": ["get", "list", "update", "patch"],
                    "resources": ["podcertificaterequests", "podcertificaterequests/status"] }]),
            ),
            (
                "signs",
                json!([{ "apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "verbs": ["sign"],
                    "resourceNames": [SIGNER] }]),
            ),
        ] {
            let role = json!({ "metadata": { "name": name }, "rules": rules });
            admin.create(&CLUSTER_ROLES, None, role).await.expect("a role");
        }
        for (name, role, user) in
            [("a", "writes", SIGNING), ("b", "signs", SIGNING), ("c", "writes", "somebody")]
        {
            let binding = json!({
                "metadata": { "name": name },
                "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": role },
                "subjects": [{ "apiGroup": RBAC, "kind": "User", "name": user }],
            });
            admin.create(&CLUSTER_BINDINGS, None, binding).await.expect("a binding");
        }
        admin.list(&PODS, None, "").await;
        let key = KeyPair::generate().expect("a key");
        Self { running, key, uids, _directory: directory }
    }

    fn node(&self, name: &str) -> Api {
        self.running.client(&format!("system:node:{name}"), &["system:nodes"])
    }

    /// What `n1` asks for its pod.
    fn request(&self) -> Value {
        let stub = params().serialize_request(&self.key).expect("a request");
        json!({
            "metadata": { "generateName": "req-" },
            "spec": {
                "signerName": SIGNER,
                "podName": "mine", "podUID": self.uids["mine"],
                "serviceAccountName": "robot", "serviceAccountUID": self.uids["robot"],
                "nodeName": "n1", "nodeUID": self.uids["n1"],
                "stubPKCS10Request": STANDARD.encode(stub.der()),
            },
        })
    }

    async fn asked(&self) -> Value {
        self.node("n1").create(&REQUESTS, Some("shop"), self.request()).await.expect("it may ask")
    }

    /// The request, with a certificate of two hours that has just begun.
    fn issued(&self, asked: &Value) -> Value {
        self.issued_at(asked, Timestamp::now())
    }

    fn issued_at(&self, asked: &Value, begins: Timestamp) -> Value {
        let mut params = params();
        let begins = Timestamp::from_second(begins.as_second()).expect("a time");
        params.not_before = std::time::SystemTime::from(begins).into();
        params.not_after = params.not_before + std::time::Duration::from_secs(7200);
        let chain = params.self_signed(&self.key).expect("a certificate").pem();
        let mut issued = asked.clone();
        let at = |minutes| json!((begins + SignedDuration::from_mins(minutes)).to_string());
        issued["status"] = json!({
            "conditions": [{ "type": "Issued", "status": "True", "reason": "Issued" }],
            "certificateChain": chain,
            "notBefore": at(0), "notAfter": at(120), "beginRefreshAt": at(60),
        });
        issued
    }
}

#[track_caller]
fn check(outcome: &Result<Value, Error>, code: Option<u16>, what: &str) {
    assert_eq!(outcome.as_ref().err().map(Error::code), code, "{what}: {outcome:?}");
}

#[tokio::test]
async fn a_node_asks_for_pods_that_it_runs_and_tells_the_truth_about_them() {
    let scene = Scene::new().await;
    let node = scene.node("n1");
    let proof = scene.key.sign(scene.uids["mine"].as_str().expect("a uid").as_bytes()).expect("signed");
    let by_pair = |proof: &[u8]| {
        let mut request = scene.request();
        let spec = request["spec"].as_object_mut().expect("fields");
        spec.remove("stubPKCS10Request");
        spec.insert("pkixPublicKey".into(), json!(STANDARD.encode(scene.key.subject_public_key_info())));
        spec.insert("proofOfPossession".into(), json!(STANDARD.encode(proof)));
        request
    };
    check(&node.create(&REQUESTS, Some("shop"), by_pair(&proof)).await, None, "a good proof");
    check(&node.create(&REQUESTS, Some("shop"), by_pair(b"odd")).await, Some(422), "a wrong proof");
    for (field, value, code) in [
        ("podUID", json!("another"), 403),
        ("podName", json!("none"), 403),
        ("nodeName", json!("n2"), 403),
        ("nodeUID", json!("another"), 403),
        ("serviceAccountName", json!("default"), 403),
        ("serviceAccountUID", json!("another"), 403),
        ("maxExpirationSeconds", json!(60), 422),
    ] {
        let mut request = scene.request();
        request["spec"][field] = value;
        check(&node.create(&REQUESTS, Some("shop"), request).await, Some(code), field);
    }
    let mut foreign = scene.request();
    foreign["spec"]["podName"] = json!("other");
    foreign["spec"]["podUID"] = scene.uids["other"].clone();
    check(&node.create(&REQUESTS, Some("shop"), foreign).await, Some(403), "another node's pod");

    let asked = scene.asked().await;
    assert_eq!(asked["spec"]["maxExpirationSeconds"], 86_400);
    let name = asked["metadata"]["name"].as_str().expect("a name");
    check(&node.get(&REQUESTS, Some("shop"), name).await, None, "its own");
    check(&scene.node("n2").get(&REQUESTS, Some("shop"), name).await, Some(403), "another's");
    check(&node.delete(&REQUESTS, Some("shop"), name, None).await, Some(403), "taking it back");
    check(&node.update(&REQUESTS, &scene.issued(&asked), "status").await, Some(403), "answering itself");
    let admin = scene.running.admin();
    check(&admin.delete(&REQUESTS, Some("shop"), name, None).await, None, "an admin takes it back");
    check(&node.get(&REQUESTS, Some("shop"), name).await, Some(403), "a node is not told that it is gone");
    scene.running.stop().await;
}

#[tokio::test]
async fn the_signer_answers_once_and_nobody_else() {
    let scene = Scene::new().await;
    let asked = scene.asked().await;
    let issued = scene.issued(&asked);
    let (signer, somebody) = (scene.running.client(SIGNING, &[]), scene.running.client("somebody", &[]));
    check(&somebody.update(&REQUESTS, &issued, "status").await, Some(403), "signing for nobody");
    let mut denied = asked.clone();
    denied["status"] = json!({ "conditions": [{ "type": "Denied", "status": "True", "reason": "No" }] });
    check(&somebody.update(&REQUESTS, &denied, "status").await, Some(403), "refusing for nobody");

    let old = scene.issued_at(&asked, Timestamp::now() - SignedDuration::from_mins(6));
    let error = signer.update(&REQUESTS, &old, "status").await.expect_err("it has begun long ago");
    assert!(error.message().contains("within 5 minutes of kube-apiserver's current time"), "{error}");

    let answered = signer.update(&REQUESTS, &issued, "status").await.expect("issued");
    assert_eq!(answered["status"]["certificateChain"], issued["status"]["certificateChain"]);
    assert!(answered["status"]["conditions"][0]["lastTransitionTime"].is_string());
    assert_eq!(answered["spec"], asked["spec"]);
    denied["metadata"] = answered["metadata"].clone();
    check(&signer.update(&REQUESTS, &denied, "status").await, Some(422), "the other way");
    let mut moved = answered.clone();
    moved["spec"]["podName"] = json!("other");
    check(&signer.update(&REQUESTS, &moved, "").await, Some(422), "for another pod");
    scene.running.stop().await;
}
