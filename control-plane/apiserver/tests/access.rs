//! Who may do what.

mod common;

use base64::{Engine, engine::general_purpose::STANDARD};
use common::*;
use hawser_api::{
    Client, Error, GroupVersionResource,
    client::{ListOptions, WriteOptions},
    resource::Target,
};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};

const CLAIMS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "persistentvolumeclaims");
const VOLUMES: GroupVersionResource = GroupVersionResource::fixed("", "v1", "persistentvolumes");
const DEVICES: GroupVersionResource = GroupVersionResource::fixed("resource.k8s.io", "v1", "resourceclaims");

#[track_caller]
fn check(outcome: &Result<Value, Error>, allowed: bool, what: &str) {
    match outcome {
        Ok(_) => assert!(allowed, "{what}"),
        Err(error) => assert_eq!(error.code() != 403, allowed, "{what}: {error}"),
    }
}

#[tokio::test]
async fn a_node_sees_and_writes_what_concerns_it_only() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    for name in ["mine", "other"] {
        let secret = json!({ "metadata": { "name": name }, "data": {} });
        admin.create(&SECRETS, Some("shop"), secret).await.expect("a secret");
    }
    for (pod_name, node, secret) in [("a", "n1", "mine"), ("b", "n2", "other")] {
        let mut wanted = pod(pod_name);
        wanted["spec"]["nodeName"] = json!(node);
        wanted["spec"]["volumes"] = json!([{ "name": "s", "secret": { "secretName": secret } }]);
        admin.create(&PODS, Some("shop"), wanted).await.expect("a pod");
    }
    // What the node is told must be in the cache that decides.
    admin.list(&PODS, None, "").await;
    let node = running.client("system:node:n1", &["system:nodes"]);
    check(&node.get(&SECRETS, Some("shop"), "mine").await, true, "a secret of its pod");
    check(&node.get(&SECRETS, Some("shop"), "other").await, false, "a secret of another node's pod");
    check(&node.get(&PODS, Some("shop"), "a").await, true, "its pod");
    check(&node.get(&PODS, Some("shop"), "b").await, false, "another node's pod");
    check(&node.delete(&PODS, Some("shop"), "b", Some(0)).await, false, "deleting another node's pod");
    let own = json!({ "metadata": { "name": "n1" } });
    check(&node.create(&NODES, None, own).await, true, "registering itself");
    let foreign = json!({ "metadata": { "name": "n2" } });
    check(&node.create(&NODES, None, foreign).await, false, "registering another node");
    check(&node.create(&PODS, Some("shop"), pod("c")).await, false, "creating a pod");
    check(&node.delete(&NODES, None, "n1", None).await, false, "deleting itself");
    let somebody = running.client("system:serviceaccount:shop:default", &["system:serviceaccounts"]);
    check(&somebody.get(&PODS, Some("shop"), "a").await, false, "a service account");
    running.stop().await;
}

/// Names of what a node gets when it lists Secrets of `shop`; `None` where it may not.
async fn secrets(node: &Api, name: Option<&str>, fields: &str) -> Option<Vec<String>> {
    let target = Target { name: name.map(str::to_owned), ..Target::collection(SECRETS, Some("shop")) };
    let options = ListOptions { field_selector: fields.to_owned(), ..ListOptions::default() };
    let listed = match node.0.list(&target, &options).await {
        Ok(listed) => listed,
        Err(error) => {
            assert_eq!(error.code(), 403, "{error}");
            return None;
        }
    };
    let names = listed.items.iter().map(|item| {
        let object: Value = serde_json::from_slice(item).expect("JSON");
        object["metadata"]["name"].as_str().expect("a name").to_owned()
    });
    Some(names.collect())
}

#[tokio::test]
async fn a_list_that_is_authorized_for_one_object_is_of_that_object() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    for name in ["mine", "other"] {
        admin
            .create(&SECRETS, Some("shop"), json!({ "metadata": { "name": name } }))
            .await
            .expect("a secret");
    }
    let mut wanted = pod("a");
    wanted["spec"]["nodeName"] = json!("n1");
    wanted["spec"]["volumes"] = json!([{ "name": "s", "secret": { "secretName": "mine" } }]);
    admin.create(&PODS, Some("shop"), wanted).await.expect("a pod");
    admin.list(&PODS, None, "").await;
    let node = running.client("system:node:n1", &["system:nodes"]);
    let mine = Some(vec!["mine".to_owned()]);
    assert_eq!(secrets(&node, Some("mine"), "").await, mine, "by name");
    assert_eq!(secrets(&node, None, "metadata.name=mine").await, mine, "by a selector of its name");
    assert_eq!(secrets(&node, Some("other"), "").await, None, "another's by name");
    assert_eq!(secrets(&node, None, "metadata.name=other").await, None, "another's by selector");
    assert_eq!(secrets(&node, None, "metadata.name!=a").await, None, "all but one");
    assert_eq!(secrets(&node, None, "").await, None, "all");
    let pods = |fields: &str| ListOptions { field_selector: fields.to_owned(), ..ListOptions::default() };
    let everywhere = Target::collection(PODS, None);
    assert!(node.0.list(&everywhere, &pods("spec.nodeName=n1")).await.is_ok());
    let escaped = node.0.list(&everywhere, &pods(r"metadata.name!=a\,spec.nodeName=n1")).await;
    assert_eq!(escaped.err().map(|error| error.code()), Some(403), "a selector about names only");
    running.stop().await;
}

fn device(name: &str) -> Value {
    let exactly = json!({ "deviceClassName": "gpu" });
    let requests = json!([{ "name": "one", "exactly": exactly }]);
    json!({ "metadata": { "name": name }, "spec": { "devices": { "requests": requests } } })
}

#[tokio::test]
async fn a_node_sees_volumes_and_devices_of_its_pods() {
    const ATTACHMENTS: GroupVersionResource =
        GroupVersionResource::fixed("storage.k8s.io", "v1", "volumeattachments");
    const SLICES: GroupVersionResource =
        GroupVersionResource::fixed("resource.k8s.io", "v1", "resourceslices");

    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let slice = |name: &str, node: &str| {
        let pool = json!({ "name": node, "generation": 1, "resourceSliceCount": 1 });
        json!({
            "metadata": { "name": name },
            "spec": { "driver": "gpu.test", "nodeName": node, "pool": pool },
        })
    };
    for (name, node) in [("mine", "n1"), ("other", "n2")] {
        let meta = json!({ "name": name });
        let size = json!({ "storage": "1Gi" });
        let secret = json!({ "metadata": meta, "data": {} });
        admin.create(&SECRETS, Some("shop"), secret).await.expect("a secret");
        let driver = json!({
            "driver": "disk.test", "volumeHandle": name,
            "nodeStageSecretRef": { "namespace": "shop", "name": name },
        });
        let claim = json!({ "namespace": "shop", "name": name });
        let volume = json!({ "metadata": meta, "spec": {
            "capacity": size, "accessModes": ["ReadWriteOnce"], "csi": driver, "claimRef": claim,
        } });
        admin.create(&VOLUMES, None, volume).await.expect("a volume");
        let claim = json!({ "metadata": meta, "spec": {
            "accessModes": ["ReadWriteOnce"], "volumeName": name, "resources": { "requests": size },
        } });
        admin.create(&CLAIMS, Some("shop"), claim).await.expect("a claim");
        let attachment = json!({ "metadata": meta, "spec": {
            "attacher": "disk.test", "nodeName": node, "source": { "persistentVolumeName": name },
        } });
        admin.create(&ATTACHMENTS, None, attachment).await.expect("an attachment");
        admin.create(&DEVICES, Some("shop"), device(name)).await.expect("a claim of devices");
        admin.create(&SLICES, None, slice(name, node)).await.expect("a slice");
        let mut wanted = pod(name);
        wanted["spec"]["nodeName"] = json!(node);
        wanted["spec"]["volumes"] = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": name } }]);
        wanted["spec"]["resourceClaims"] = json!([{ "name": "d", "resourceClaimName": name }]);
        admin.create(&PODS, Some("shop"), wanted).await.expect("a pod");
    }
    admin.list(&PODS, None, "").await;
    let node = running.client("system:node:n1", &["system:nodes"]);
    for (name, allowed) in [("mine", true), ("other", false)] {
        for (resource, namespace) in [
            (&SECRETS, Some("shop")),
            (&CLAIMS, Some("shop")),
            (&VOLUMES, None),
            (&ATTACHMENTS, None),
            (&DEVICES, Some("shop")),
            (&SLICES, None),
        ] {
            let what = format!("{} {name}", resource.resource);
            check(&node.get(resource, namespace, name).await, allowed, &what);
        }
        let sized = json!({ "status": { "capacity": { "storage": "2Gi" } } });
        let grown = node.merge_at(&CLAIMS, Some("shop"), name, "status", sized).await;
        check(&grown, allowed, &format!("the size of claim {name}"));
        check(&node.delete(&SLICES, None, name, None).await, allowed, &format!("deleting slice {name}"));
    }
    for (what, patch) in [
        ("the phase", json!({ "status": { "phase": "Bound" } })),
        ("a label", json!({ "metadata": { "labels": { "a": "b" } } })),
    ] {
        check(&node.merge_at(&CLAIMS, Some("shop"), "mine", "status", patch).await, false, what);
    }
    check(&node.create(&SLICES, None, slice("again", "n1")).await, true, "a slice of its own");
    check(&node.create(&SLICES, None, slice("foreign", "n2")).await, false, "a slice of another's");
    running.stop().await;
}

#[tokio::test]
async fn a_claim_that_names_anothers_volume_opens_no_secret_of_it() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let size = json!({ "storage": "1Gi" });
    let secret = json!({ "metadata": { "name": "key" }, "data": {} });
    admin.create(&SECRETS, Some("shop"), secret).await.expect("a secret");
    let claim = json!({ "metadata": { "name": "mine" }, "spec": {
        "accessModes": ["ReadWriteOnce"], "volumeName": "v", "resources": { "requests": size },
    } });
    let claim = admin.create(&CLAIMS, Some("shop"), claim).await.expect("a claim");
    let mut wanted = pod("a");
    wanted["spec"]["nodeName"] = json!("n1");
    wanted["spec"]["volumes"] = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "mine" } }]);
    admin.create(&PODS, Some("shop"), wanted).await.expect("a pod");
    let node = running.client("system:node:n1", &["system:nodes"]);
    let bound = json!({ "namespace": "shop", "name": "mine", "uid": claim["metadata"]["uid"] });
    for (what, reference, allowed) in [
        ("of no claim", Value::Null, false),
        ("of another claim", json!({ "namespace": "shop", "name": "other" }), false),
        ("of another namespace", json!({ "namespace": "kube-system", "name": "mine" }), false),
        ("of a claim that was", json!({ "namespace": "shop", "name": "mine", "uid": "another" }), false),
        ("kept for it", json!({ "namespace": "shop", "name": "mine" }), true),
        ("bound to it", bound, true),
    ] {
        let driver = json!({
            "driver": "disk.test", "volumeHandle": "v", "nodeStageSecretRef": { "namespace": "shop", "name": "key" },
        });
        let volume = json!({ "metadata": { "name": "v" }, "spec": {
            "capacity": size, "accessModes": ["ReadWriteOnce"], "csi": driver, "claimRef": reference,
        } });
        admin.create(&VOLUMES, None, volume).await.expect("a volume");
        admin.list(&VOLUMES, None, "").await;
        check(
            &node.get(&SECRETS, Some("shop"), "key").await,
            allowed,
            &format!("the secret of a volume {what}"),
        );
        check(&node.get(&VOLUMES, None, "v").await, allowed, &format!("a volume {what}"));
        let gone = json!({ "metadata": { "finalizers": null } });
        admin.merge(&VOLUMES, None, "v", gone).await.expect("nothing holds it");
        admin.delete(&VOLUMES, None, "v", None).await.expect("gone");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_node_reports_its_pods_and_itself_but_does_not_rewrite_them() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let mut wanted = pod("a");
    wanted["spec"]["nodeName"] = json!("n1");
    let mine = admin.create(&PODS, Some("shop"), wanted).await.expect("a pod");
    admin.list(&PODS, None, "").await;
    let node = running.client("system:node:n1", &["system:nodes"]);
    let image = json!({ "spec": { "containers": [{ "name": "main", "image": "another" }] } });
    check(&node.merge(&PODS, Some("shop"), "a", image).await, false, "patching its pod");
    check(&node.update(&PODS, &mine, "").await, false, "replacing its pod");
    let mut status = mine.clone();
    status["status"]["phase"] = json!("Running");
    let status = node.update(&PODS, &status, "status").await;
    check(&status, true, "its pod's status");
    let mut labelled = status.expect("updated");
    labelled["metadata"]["labels"]["app"] = json!("payments");
    check(&node.update(&PODS, &labelled, "status").await, false, "labels through the status");

    let role = json!({ "node-role.kubernetes.io/control-plane": "" });
    let born = |labels: &Value| json!({ "metadata": { "name": "n1", "labels": labels } });
    check(&node.create(&NODES, None, born(&role)).await, false, "a role at birth");
    let mut own = born(&json!({ "kubernetes.io/os": "linux", "disk": "ssd" }));
    own["spec"]["taints"] = json!([{ "key": "starting", "effect": "NoSchedule" }]);
    check(&node.create(&NODES, None, own).await, true, "registering with taints and labels of its own");
    for (labels, allowed) in [
        (json!({ "disk": "nvme" }), true),
        (json!({ "topology.kubernetes.io/zone": "a" }), true),
        (role, false),
        (json!({ "node-restriction.kubernetes.io/tenant": "a" }), false),
        (json!({ "example.k8s.io/a": "b" }), false),
    ] {
        let patch = json!({ "metadata": { "labels": labels } });
        check(&node.merge(&NODES, None, "n1", patch).await, allowed, &labels.to_string());
    }
    let untaint = json!({ "spec": { "taints": [] } });
    check(&node.merge(&NODES, None, "n1", untaint.clone()).await, false, "taking off its taints");
    admin.merge(&NODES, None, "n1", untaint).await.expect("an administrator may");
    running.stop().await;
}

#[tokio::test]
async fn a_node_asks_for_its_next_certificate() {
    const REQUESTS: GroupVersionResource =
        GroupVersionResource::fixed("certificates.k8s.io", "v1", "certificatesigningrequests");
    const ENDPOINTS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "endpoints");

    let directory = Directory::new();
    let running = start(&directory).await;
    let node = running.client("system:node:n1", &["system:nodes"]);
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, "system:node:n1");
    let key = KeyPair::generate().expect("a key");
    let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
    let request = json!({ "metadata": { "name": "next" }, "spec": {
        "request": STANDARD.encode(pem), "usages": ["digital signature", "client auth"],
        "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
    } });
    let made = node.create(&REQUESTS, None, request).await.expect("it may ask");
    assert_eq!(made["spec"]["username"], "system:node:n1");
    check(&node.get(&REQUESTS, None, "next").await, true, "reading its request");
    let (listed, version) = node.list(&REQUESTS, None, "").await;
    assert_eq!(listed.len(), 1);
    assert!(node.watch(&REQUESTS, None, "", &version).await.is_ok(), "waiting for the answer");
    let approved = json!({ "status": { "conditions": [{ "type": "Approved", "status": "True" }] } });
    for part in ["approval", "status", ""] {
        let written = node.merge_at(&REQUESTS, None, "next", part, approved.clone()).await;
        check(&written, false, &format!("writing {part:?}"));
    }
    check(&node.delete(&REQUESTS, None, "next", None).await, false, "deleting it");
    check(&node.get(&ENDPOINTS, Some("default"), "kubernetes").await, true, "endpoints by name");
    running.stop().await;
}

#[tokio::test]
async fn a_node_does_not_say_which_claims_were_made_for_its_pods() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    for name in ["made", "other"] {
        admin.create(&DEVICES, Some("shop"), device(name)).await.expect("a claim of devices");
    }
    let mut wanted = pod("a");
    wanted["spec"]["nodeName"] = json!("n1");
    wanted["spec"]["resourceClaims"] = json!([{ "name": "d", "resourceClaimTemplateName": "t" }]);
    admin.create(&PODS, Some("shop"), wanted).await.expect("a pod");
    let made = |name: &str| json!([{ "name": "d", "resourceClaimName": name }]);
    let status = json!({ "status": { "resourceClaimStatuses": made("made") } });
    admin.merge_at(&PODS, Some("shop"), "a", "status", status).await.expect("noted");
    admin.list(&PODS, None, "").await;
    let node = running.client("system:node:n1", &["system:nodes"]);
    let extended = json!({ "resourceClaimName": "other", "requestMappings": [
        { "containerName": "main", "resourceName": "example.com/gpu", "requestName": "one" },
    ] });
    for (status, allowed) in [
        (json!({ "phase": "Running" }), true),
        (json!({ "resourceClaimStatuses": made("other") }), false),
        (json!({ "resourceClaimStatuses": null }), false),
        (json!({ "extendedResourceClaimStatus": extended }), false),
    ] {
        let patch = json!({ "status": status });
        check(&node.merge_at(&PODS, Some("shop"), "a", "status", patch).await, allowed, &status.to_string());
    }
    check(&node.get(&DEVICES, Some("shop"), "made").await, true, "what was made for its pod");
    check(&node.get(&DEVICES, Some("shop"), "other").await, false, "another's");
    running.stop().await;
}

#[tokio::test]
async fn a_mirror_pod_opens_nothing_to_its_node() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let node = running.client("system:node:n1", &["system:nodes"]);
    let own = node.create(&NODES, None, json!({ "metadata": { "name": "n1" } })).await.expect("a node");
    running.admin().list(&NODES, None, "").await;
    let mirror = |name: &str, spec: Value| {
        let mut pod = pod(name);
        pod["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "abc" });
        pod["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": own["metadata"]["uid"], "controller": true,
        }]);
        pod["spec"]["nodeName"] = json!("n1");
        for (field, value) in spec.as_object().expect("fields") {
            pod["spec"][field] = value.clone();
        }
        pod
    };
    let volume = |source: Value| json!({ "volumes": [source] });
    for (name, spec, allowed) in [
        ("plain", json!({}), true),
        ("other-node", json!({ "nodeName": "n2" }), false),
        ("account", json!({ "serviceAccountName": "default" }), false),
        ("old-account", json!({ "serviceAccount": "default" }), false),
        ("secret", volume(json!({ "name": "v", "secret": { "secretName": "a" } })), false),
        ("map", volume(json!({ "name": "v", "configMap": { "name": "a" } })), false),
        ("claim", volume(json!({ "name": "v", "persistentVolumeClaim": { "claimName": "a" } })), false),
        ("pull", json!({ "imagePullSecrets": [{ "name": "a" }] }), false),
        (
            "certificate",
            volume(json!({ "name": "v", "projected": { "sources": [{ "podCertificate": {
                "signerName": "example.com/web", "keyType": "ED25519", "keyPath": "key" } }] } })),
            false,
        ),
        (
            "token",
            volume(
                json!({ "name": "v", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } }),
            ),
            false,
        ),
    ] {
        // A token without an account is refused as invalid, before anybody asks who may.
        let created = node.create(&PODS, Some("shop"), mirror(name, spec)).await;
        assert_eq!(created.is_ok(), allowed, "{name}: {created:?}");
    }
    let mut unowned = mirror("unowned", json!({}));
    unowned["metadata"]["ownerReferences"] = json!([]);
    check(&node.create(&PODS, Some("shop"), unowned).await, false, "without an owner");
    let mut plain = mirror("no-mirror", json!({}));
    plain["metadata"]["annotations"] = json!({});
    check(&node.create(&PODS, Some("shop"), plain).await, false, "not a mirror pod");
    // Whatever somebody makes it name.
    let admin = running.admin();
    admin.create(&DEVICES, Some("shop"), device("gpu")).await.expect("a claim of devices");
    let status = json!({ "status": { "extendedResourceClaimStatus": { "resourceClaimName": "gpu", "requestMappings": [
        { "containerName": "main", "resourceName": "example.com/gpu", "requestName": "one" },
    ] } } });
    admin.merge_at(&PODS, Some("shop"), "plain", "status", status).await.expect("noted");
    admin.list(&PODS, None, "").await;
    check(&node.get(&DEVICES, Some("shop"), "gpu").await, false, "a claim that its mirror pod names");
    running.stop().await;
}

#[tokio::test]
async fn a_node_gets_tokens_for_pods_that_it_runs() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    admin
        .create(&ACCOUNTS, Some("shop"), json!({ "metadata": { "name": "robot" } }))
        .await
        .expect("an account");
    let mut uids = std::collections::HashMap::new();
    for (name, node, account) in
        [("mine", "n1", "robot"), ("plain", "n1", "default"), ("other", "n2", "robot")]
    {
        let mut wanted = pod(name);
        wanted["spec"]["nodeName"] = json!(node);
        wanted["spec"]["serviceAccountName"] = json!(account);
        let made = admin.create(&PODS, Some("shop"), wanted).await.expect("a pod");
        uids.insert(name, made["metadata"]["uid"].clone());
    }
    admin.list(&PODS, None, "").await;
    let node = running.client("system:node:n1", &["system:nodes"]);
    let target = Target::object(ACCOUNTS, Some("shop"), "robot").with_subresource("token");
    let bound = |pod: &str| json!({ "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uids[pod] });
    let mut stale = bound("mine");
    stale["uid"] = json!("another");
    let mut unsure = bound("mine");
    unsure["uid"] = Value::Null;
    for (what, spec, code) in [
        ("for its pod", json!({ "boundObjectRef": bound("mine") }), None),
        ("bound to nothing", json!({}), Some(403)),
        ("for another node's pod", json!({ "boundObjectRef": bound("other") }), Some(403)),
        ("for a pod with another account", json!({ "boundObjectRef": bound("plain") }), Some(403)),
        ("for a pod that was", json!({ "boundObjectRef": stale }), Some(403)),
        ("for a pod without a uid", json!({ "boundObjectRef": unsure }), Some(403)),
        ("too short", json!({ "boundObjectRef": bound("mine"), "expirationSeconds": 599 }), Some(422)),
        (
            "too long",
            json!({ "boundObjectRef": bound("mine"), "expirationSeconds": (1_i64 << 32) + 1 }),
            Some(422),
        ),
    ] {
        let body = json!({ "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": spec });
        let answer = node.0.create(&target, body.to_string().into(), &WriteOptions::default()).await;
        assert_eq!(answer.err().map(|error| error.code()), code, "{what}");
    }
    running.stop().await;
}

#[tokio::test]
async fn grace_beyond_counting_is_cut() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    for (name, grace) in [("asked", Some(i64::MAX)), ("own", None)] {
        let mut wanted = pod(name);
        wanted["spec"]["nodeName"] = json!("n1");
        wanted["spec"]["terminationGracePeriodSeconds"] = json!(i64::MAX);
        admin.create(&PODS, Some("shop"), wanted).await.expect("a pod");
        let marked = admin.delete(&PODS, Some("shop"), name, grace).await.expect("marked");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], i32::MAX, "{name}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_bootstrap_token_speaks_for_who_joins() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let who = |token: &str| {
        let user = running.server.authenticator().authenticate(None, Some(&format!("Bearer {token}")));
        user.map(|user| user.name.clone()).map_err(|error| error.code())
    };
    assert_eq!(who("abcdef.0123456789abcdef"), Err(401), "nobody made it");
    let secret = json!({
        "metadata": { "name": "bootstrap-token-abcdef" },
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
        },
    });
    admin.create(&SECRETS, Some("kube-system"), secret).await.expect("a secret");
    admin.list(&SECRETS, None, "").await;
    assert_eq!(who("abcdef.0123456789abcdef"), Ok("system:bootstrap:abcdef".to_owned()));
    assert_eq!(who("abcdef.0123456789abcdee"), Err(401), "another secret");
    admin.delete(&SECRETS, Some("kube-system"), "bootstrap-token-abcdef", None).await.expect("gone");
    admin.list(&SECRETS, None, "").await;
    assert_eq!(who("abcdef.0123456789abcdef"), Err(401), "it was taken back");
    running.stop().await;
}
