//! Scenarios: volumes that follow their pods from node to node.

use std::{sync::Arc, time::Duration};

use hawser_api::client::DeleteOptions;
use k8s_openapi::api::{
    core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::{CSIDriver, VolumeAttachment},
};
use serde_json::{Value, json};

use super::plan;
use crate::{
    meta::MetaExt,
    testing::{FakeApi, Fault, Running},
};

const ALONE: &[&str] = &["attachdetach"];
const UNIQUE: &str = "kubernetes.io/csi/csi.example.com^disk-1";
const FINALIZER: &str = "external-attacher/csi-example-com";

/// A bound claim `data` with its volume, and two nodes.
fn set_up(api: &FakeApi, modes: &Value) {
    for name in ["a", "b"] {
        api.put::<Node>(json!({
            "metadata": { "name": name },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        }));
    }
    put_claim(api, ("data", "v"), modes);
}

/// A claim, and a volume that it is bound to; all are of one disk.
fn put_claim(api: &FakeApi, (name, volume): (&str, &str), modes: &Value) {
    let claim = api.put::<PersistentVolumeClaim>(json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "volumeName": volume, "accessModes": modes },
        "status": { "phase": "Bound" },
    }));
    api.put::<PersistentVolume>(json!({
        "metadata": { "name": volume },
        "spec": {
            "accessModes": modes, "csi": { "driver": "csi.example.com", "volumeHandle": "disk-1" },
            "claimRef": { "namespace": "default", "name": name, "uid": claim.uid() },
        },
        "status": { "phase": "Bound" },
    }));
}

fn put_pod(api: &FakeApi, name: &str, node: &str) {
    put_pod_with(api, (name, node), json!({ "persistentVolumeClaim": { "claimName": "data" } }));
}

fn put_pod_with(api: &FakeApi, (name, node): (&str, &str), source: Value) -> Pod {
    let mut volume = json!({ "name": "data" });
    volume.as_object_mut().expect("an object").extend(source.as_object().expect("an object").clone());
    api.put::<Pod>(json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "nodeName": node, "containers": [], "volumes": [volume] },
        "status": { "phase": "Running" },
    }))
}

/// As a driver's attacher works: with a finalizer, and a little later.
async fn attach(api: Arc<FakeApi>) {
    loop {
        for attachment in api.all::<VolumeAttachment>() {
            let name = attachment.name();
            if attachment.is_deleting() {
                api.patch::<VolumeAttachment>("", name, json!({ "metadata": { "finalizers": null } }));
            } else if plan::stage(&attachment) == plan::Stage::Asked {
                let finalizers = json!({ "metadata": { "finalizers": [FINALIZER] } });
                api.patch::<VolumeAttachment>("", name, finalizers);
                let attached = json!({ "status": { "attached": true } });
                api.patch_status::<VolumeAttachment>("", name, attached);
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// What the node's kubelet says.
fn uses(api: &FakeApi, node: &str, volumes: &[&str]) {
    api.patch_status::<Node>("", node, json!({ "status": { "volumesInUse": volumes } }));
}

/// Nodes that the volume is attached to, or is to be.
fn places(api: &FakeApi) -> Vec<String> {
    let made = api.all::<VolumeAttachment>().into_iter().filter(|it| plan::is_made_here(it.name()));
    made.map(|it| it.spec.node_name).collect()
}

fn is_shown(api: &FakeApi, node: &str) -> bool {
    api.read::<Node>("", node).is_some_and(|node| plan::is_shown(&node, UNIQUE))
}

fn told(api: &FakeApi, message: &str) -> bool {
    api.all::<Event>().iter().any(|event| event.message.as_deref() == Some(message))
}

fn remove(api: &FakeApi, pod: &str) {
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    api.remove::<Pod>("default", pod, &now);
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_attached_for_a_pod_and_stays_while_the_node_has_it_mounted() {
    let api = FakeApi::new();
    let mut requests = 0;
    api.fault(move |_, _| {
        requests += 1;
        if requests % 5 == 2 { Fault::Fails } else { Fault::None }
    });
    set_up(&api, &json!(["ReadWriteOnce"]));
    let _attacher = tokio::spawn(attach(api.clone()));
    let _running = Running::start(&api, ALONE);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(places(&api).is_empty(), "nobody wants it");
    put_pod(&api, "p", "a");
    api.until("the node is told", |api| is_shown(api, "a")).await;
    let made = api.all::<VolumeAttachment>();
    // What `printf disk-1csi.example.coma | sha256sum` says; kubelets look for this name.
    let expected = "csi-5c3950f21f385e14888c2fb73e7ae02e5210f352b3d3ca62edd6a8e4e2471eb6";
    assert_eq!(made.iter().map(|it| it.name()).collect::<Vec<_>>(), [expected]);
    assert_eq!(made[0].spec.attacher, "csi.example.com");
    api.until("so is the user", |api| told(api, "AttachVolume.Attach succeeded for volume \"v\" ")).await;

    uses(&api, "a", &["kubernetes.io/csi/other^1", UNIQUE]);
    remove(&api, "p");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(places(&api), ["a"], "it is mounted, and the node works");
    assert!(is_shown(&api, "a"));
    uses(&api, "a", &["kubernetes.io/csi/other^1"]);
    api.until("it is let go", |api| places(api).is_empty() && !is_shown(api, "a")).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_of_one_node_moves_after_the_first_has_let_go() {
    let api = FakeApi::new();
    set_up(&api, &json!(["ReadWriteOnce"]));
    let _attacher = tokio::spawn(attach(api.clone()));
    let _running = Running::start(&api, ALONE);
    put_pod(&api, "first", "a");
    api.until("the node is told", |api| is_shown(api, "a")).await;
    uses(&api, "a", &[UNIQUE]);
    put_pod(&api, "second", "b");
    let refused = "Multi-Attach error for volume \"v\" Volume is already used by pod(s) first";
    api.until("the second is refused", |api| told(api, refused)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(places(&api), ["a"]);
    api.patch_status::<Pod>("default", "first", json!({ "status": { "phase": "Succeeded" } }));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(places(&api), ["a"], "it is mounted still");
    uses(&api, "a", &[]);
    api.until("it moves", |api| places(api) == ["b"] && is_shown(api, "b") && !is_shown(api, "a")).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_node_is_waited_for_and_one_out_of_service_is_not() {
    for taints in [json!([]), json!([{ "key": "node.kubernetes.io/out-of-service", "effect": "NoExecute" }])]
    {
        let api = FakeApi::new();
        set_up(&api, &json!(["ReadWriteOncePod"]));
        let _attacher = tokio::spawn(attach(api.clone()));
        let _running = Running::start(&api, ALONE);
        put_pod(&api, "p", "a");
        api.until("the node is told", |api| is_shown(api, "a")).await;
        uses(&api, "a", &[UNIQUE]);
        let lost = json!({ "status": { "conditions": [{ "type": "Ready", "status": "Unknown" }] } });
        api.patch_status::<Node>("", "a", lost);
        api.patch::<Node>("", "a", json!({ "spec": { "taints": taints } }));
        remove(&api, "p");
        put_pod(&api, "p", "b");
        tokio::time::sleep(Duration::from_secs(120)).await;
        let expected = if taints == json!([]) { ["a"] } else { ["b"] };
        assert_eq!(places(&api), expected, "{taints}");
        api.until("at last it moves", |api| places(api) == ["b"] && is_shown(api, "b")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn shared_volumes_go_to_each_node_and_lists_are_put_right() {
    let api = FakeApi::new();
    set_up(&api, &json!(["ReadWriteMany"]));
    let _attacher = tokio::spawn(attach(api.clone()));
    let _running = Running::start(&api, ALONE);
    let foreign = |name: &str, volume: &str| {
        json!({ "metadata": { "name": name }, "spec": {
            "attacher": "other", "nodeName": "a", "source": { "persistentVolumeName": volume },
        } })
    };
    api.put::<VolumeAttachment>(foreign("theirs", "v"));
    api.put::<VolumeAttachment>(foreign("of-nothing", "no-such-volume"));
    put_pod(&api, "first", "a");
    put_pod(&api, "second", "b");
    api.until("both nodes are told", |api| is_shown(api, "a") && is_shown(api, "b")).await;
    // Somebody deletes an attachment whose pod is there.
    let is_of_a = |it: &VolumeAttachment| it.spec.node_name == "a" && plan::is_made_here(it.name());
    let of_a = api.all::<VolumeAttachment>().into_iter().find(is_of_a);
    let before = of_a.expect("it is there");
    api.remove::<VolumeAttachment>("", before.name(), &DeleteOptions::default());
    api.until("it is attached again", |api| {
        let now = api.read::<VolumeAttachment>("", before.name());
        now.is_some_and(|now| now.uid() != before.uid() && plan::stage(&now) == plan::Stage::Attached)
    })
    .await;
    // The volume goes while attachments are there.
    remove(&api, "first");
    api.until("one is let go", |api| places(api) == ["b"]).await;
    api.remove::<PersistentVolume>("", "v", &DeleteOptions::default());
    api.until("so is the other", |api| places(api).is_empty()).await;
    for name in ["theirs", "of-nothing"] {
        assert!(api.read::<VolumeAttachment>("", name).is_some(), "{name} is nobody's here");
    }
}

#[tokio::test(start_paused = true)]
async fn drivers_that_do_not_attach_are_not_asked() {
    let api = FakeApi::new();
    api.put::<CSIDriver>(json!({
        "metadata": { "name": "csi.example.com" }, "spec": { "attachRequired": false },
    }));
    set_up(&api, &json!(["ReadWriteOnce"]));
    let _running = Running::start(&api, ALONE);
    put_pod(&api, "p", "a");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(places(&api).is_empty());
    // Its installer thinks again.
    api.remove::<CSIDriver>("", "csi.example.com", &DeleteOptions::default());
    api.until("it is attached", |api| places(api) == ["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_object_is_gone_stays_while_its_node_has_it_mounted() {
    for restarts in [false, true] {
        let api = FakeApi::new();
        set_up(&api, &json!(["ReadWriteOnce"]));
        let _attacher = tokio::spawn(attach(api.clone()));
        let mut running = Some(Running::start(&api, ALONE));
        put_pod(&api, "p", "a");
        api.until("the node is told", |api| is_shown(api, "a")).await;
        uses(&api, "a", &[UNIQUE]);
        if restarts {
            running.take().expect("it runs").stop().await;
        }
        api.remove::<PersistentVolume>("", "v", &DeleteOptions::default());
        let _running = running.unwrap_or_else(|| Running::start(&api, ALONE));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(places(&api), ["a"], "its pod runs");
        assert!(is_shown(&api, "a"));
        remove(&api, "p");
        uses(&api, "a", &[]);
        api.until("it is let go", |api| places(api).is_empty() && !is_shown(api, "a")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_attachment_of_nothing_goes_where_its_node_lists_nothing_of_it() {
    let api = FakeApi::new();
    set_up(&api, &json!(["ReadWriteOnce"]));
    let volume = plan::Attachable { driver: "csi.example.com".to_owned(), handle: "lost".to_owned() };
    for node in ["a", "gone"] {
        api.put::<VolumeAttachment>(json!({
            "metadata": { "name": volume.attachment_name(node) },
            "spec": { "attacher": volume.driver, "nodeName": node, "source": { "persistentVolumeName": "lost" } },
        }));
    }
    let _running = Running::start(&api, ALONE);
    api.until("one is let go", |api| places(api) == ["gone"]).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(places(&api), ["gone"], "nobody knows what the node has in use");
    api.until("at last it goes", |api| places(api).is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn two_objects_of_one_disk_are_one_volume() {
    let api = FakeApi::new();
    set_up(&api, &json!(["ReadWriteOnce"]));
    put_claim(&api, ("again", "w"), &json!(["ReadWriteOnce"]));
    let _attacher = tokio::spawn(attach(api.clone()));
    let _running = Running::start(&api, ALONE);
    let again = || json!({ "persistentVolumeClaim": { "claimName": "again" } });
    put_pod(&api, "first", "a");
    api.until("the node is told", |api| is_shown(api, "a")).await;
    put_pod_with(&api, ("second", "a"), again());
    put_pod_with(&api, ("third", "b"), again());
    let refused = "Multi-Attach error for volume \"w\" Volume is already used by pod(s) first, second";
    let turned = "Multi-Attach error for volume \"w\" Volume is already used by pod(s) second, first";
    api.until("the third is refused", |api| told(api, refused) || told(api, turned)).await;
    // One of the two on the first node goes, and with it the object that the attachment names.
    remove(&api, "first");
    api.remove::<PersistentVolume>("", "v", &DeleteOptions::default());
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(places(&api), ["a"], "the second uses it");
    assert!(is_shown(&api, "a"));
    remove(&api, "second");
    api.until("it moves", |api| places(api) == ["b"] && is_shown(api, "b")).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_be_written_holds_up_no_other() {
    let api = FakeApi::new();
    api.fault(|verb, target| {
        let is_first = target.resource.resource == "nodes" && target.name.as_deref() == Some("a");
        if verb == "patch" && is_first { Fault::Fails } else { Fault::None }
    });
    set_up(&api, &json!(["ReadWriteMany"]));
    let _attacher = tokio::spawn(attach(api.clone()));
    let _running = Running::start(&api, ALONE);
    put_pod(&api, "first", "a");
    put_pod(&api, "second", "b");
    api.until("the other is told", |api| is_shown(api, "b")).await;
    assert!(!is_shown(&api, "a"));
}

#[tokio::test(start_paused = true)]
async fn the_claim_of_an_ephemeral_volume_is_its_pods_own() {
    for is_own in [false, true] {
        let api = FakeApi::new();
        set_up(&api, &json!(["ReadWriteOnce"]));
        let pod = put_pod_with(&api, ("p", "a"), json!({ "ephemeral": {} }));
        put_claim(&api, ("p-data", "w"), &json!(["ReadWriteOnce"]));
        let owner =
            json!([{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod.uid(), "controller": true }]);
        if is_own {
            let owned = json!({ "metadata": { "ownerReferences": owner } });
            api.patch::<PersistentVolumeClaim>("default", "p-data", owned);
        }
        let _running = Running::start(&api, ALONE);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let expected: &[&str] = if is_own { &["a"] } else { &[] };
        assert_eq!(places(&api), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_gone_is_waited_for_if_it_had_the_volume_in_use() {
    for in_use in [false, true] {
        let api = FakeApi::new();
        set_up(&api, &json!(["ReadWriteOnce"]));
        let _attacher = tokio::spawn(attach(api.clone()));
        let _running = Running::start(&api, ALONE);
        put_pod(&api, "p", "a");
        api.until("the node is told", |api| is_shown(api, "a")).await;
        uses(&api, "a", if in_use { &[UNIQUE] } else { &[] });
        tokio::time::sleep(Duration::from_secs(10)).await;
        api.remove::<Node>("", "a", &DeleteOptions::default());
        tokio::time::sleep(Duration::from_secs(120)).await;
        let expected: &[&str] = if in_use { &["a"] } else { &[] };
        assert_eq!(places(&api), expected);
        api.until("at last it is let go", |api| places(api).is_empty()).await;
    }
}
