//! Scenarios: claims and volumes that come in either order, and part.

use std::time::Duration;

use hawser_api::client::DeleteOptions;
use k8s_openapi::api::{
    core::v1::{Event, PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use serde_json::{Value, json};

use super::{BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONED_BY, SELECTED_NODE};
use crate::{
    meta::MetaExt,
    testing::{FakeApi, Fault, Running},
};

const ALONE: &[&str] = &["persistentvolume-binder"];

fn volume(name: &str, spec: Value) -> Value {
    let mut volume = json!({
        "metadata": { "name": name },
        "spec": {
            "capacity": { "storage": "10Gi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": { "path": "/data" },
        },
        "status": { "phase": "Pending" },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        volume["spec"][field] = value.clone();
    }
    volume
}

fn claim(name: &str, spec: Value) -> Value {
    let mut claim = json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
            "resources": { "requests": { "storage": "5Gi" } },
        },
        "status": { "phase": "Pending" },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        claim["spec"][field] = value.clone();
    }
    claim
}

fn class(name: &str, mode: &str) -> Value {
    json!({
        "metadata": { "name": name }, "provisioner": "csi.example.com", "volumeBindingMode": mode,
        "reclaimPolicy": "Delete",
    })
}

fn volume_phase(api: &FakeApi, name: &str) -> String {
    let status = api.read::<PersistentVolume>("", name).and_then(|volume| volume.status);
    status.and_then(|status| status.phase).unwrap_or_default()
}

fn claim_phase(api: &FakeApi, name: &str) -> String {
    let status = api.read::<PersistentVolumeClaim>("default", name).and_then(|claim| claim.status);
    status.and_then(|status| status.phase).unwrap_or_default()
}

fn is_bound(api: &FakeApi, claim: &str, volume: &str) -> bool {
    let (Some(it), Some(other)) =
        (api.read::<PersistentVolumeClaim>("default", claim), api.read::<PersistentVolume>("", volume))
    else {
        return false;
    };
    let reference = other.spec.as_ref().and_then(|spec| spec.claim_ref.clone()).unwrap_or_default();
    it.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()) == Some(volume)
        && it.annotations().contains_key(BIND_COMPLETED)
        && reference.uid.as_deref() == Some(it.uid())
        && (claim_phase(api, claim).as_str(), volume_phase(api, volume).as_str()) == ("Bound", "Bound")
}

fn told(api: &FakeApi, reason: &str) -> bool {
    api.all::<Event>().iter().any(|event| event.reason.as_deref() == Some(reason))
}

#[tokio::test(start_paused = true)]
async fn claims_get_volumes_in_either_order_and_each_its_own() {
    let api = FakeApi::new();
    let mut writes = 0;
    api.fault(move |_, _| {
        writes += 1;
        if writes % 7 == 3 { Fault::Fails } else { Fault::None }
    });
    let _running = Running::start(&api, ALONE);
    api.put::<PersistentVolumeClaim>(claim("first", json!({})));
    api.until("it waits for its class", |api| told(api, "ProvisioningFailed")).await;
    for name in ["a", "b", "c"] {
        api.put::<PersistentVolume>(volume(name, json!({})));
    }
    for name in ["second", "third"] {
        api.put::<PersistentVolumeClaim>(claim(name, json!({})));
    }
    api.until("all are bound", |api| {
        ["first", "second", "third"].iter().all(|claim| claim_phase(api, claim) == "Bound")
    })
    .await;
    api.until("all volumes are", |api| ["a", "b", "c"].iter().all(|name| volume_phase(api, name) == "Bound"))
        .await;
    let bound = api.read::<PersistentVolumeClaim>("default", "first").and_then(|claim| claim.status);
    assert_eq!(json!(bound.and_then(|status| status.capacity)), json!({ "storage": "10Gi" }));
    api.put::<PersistentVolumeClaim>(claim("fourth", json!({})));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(claim_phase(&api, "fourth"), "Pending");
    let before = api.revision();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(api.revision(), before, "what is settled is not written again");
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_claim_is_gone_is_released_and_not_given_away() {
    let api = FakeApi::new();
    let _running = Running::start(&api, ALONE);
    api.put::<PersistentVolume>(volume("kept", json!({})));
    api.put::<PersistentVolumeClaim>(claim("data", json!({})));
    api.until("they are bound", |api| is_bound(api, "data", "kept")).await;
    api.remove::<PersistentVolumeClaim>("default", "data", &DeleteOptions::default());
    api.until("the volume is released", |api| volume_phase(api, "kept") == "Released").await;
    api.put::<PersistentVolumeClaim>(claim("data", json!({})));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(claim_phase(&api, "data"), "Pending", "what is on it is another's");
    api.patch::<PersistentVolume>("", "kept", json!({ "spec": { "claimRef": null } }));
    api.until("until somebody clears it", |api| is_bound(api, "data", "kept")).await;

    // One that is to be deleted, and that nobody here can delete.
    api.put::<PersistentVolume>(volume("made", json!({ "persistentVolumeReclaimPolicy": "Delete" })));
    api.put::<PersistentVolumeClaim>(claim("other", json!({})));
    api.until("they are bound", |api| is_bound(api, "other", "made")).await;
    api.remove::<PersistentVolumeClaim>("default", "other", &DeleteOptions::default());
    api.until("it fails", |api| volume_phase(api, "made") == "Failed" && told(api, "VolumeFailedDelete"))
        .await;

    // One that a provisioner made is left to the provisioner.
    let mut provisioned = volume("provisioned", json!({ "persistentVolumeReclaimPolicy": "Delete" }));
    provisioned["metadata"]["annotations"] = json!({ PROVISIONED_BY: "csi.example.com" });
    api.put::<PersistentVolume>(provisioned);
    api.put::<PersistentVolumeClaim>(claim("third", json!({})));
    api.until("they are bound", |api| is_bound(api, "third", "provisioned")).await;
    api.remove::<PersistentVolumeClaim>("default", "third", &DeleteOptions::default());
    api.until("it is released", |api| volume_phase(api, "provisioned") == "Released").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(volume_phase(&api, "provisioned"), "Released");
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_volume_is_gone_is_lost() {
    let api = FakeApi::new();
    let _running = Running::start(&api, ALONE);
    api.put::<PersistentVolume>(volume("v", json!({})));
    api.put::<PersistentVolumeClaim>(claim("data", json!({})));
    api.until("they are bound", |api| is_bound(api, "data", "v")).await;
    api.remove::<PersistentVolume>("", "v", &DeleteOptions::default());
    api.until("the claim is lost", |api| claim_phase(api, "data") == "Lost" && told(api, "ClaimLost")).await;
}

#[tokio::test(start_paused = true)]
async fn provisioners_are_told_and_first_consumers_waited_for() {
    let api = FakeApi::new();
    let _running = Running::start(&api, ALONE);
    api.put::<StorageClass>(class("fast", "Immediate"));
    api.put::<StorageClass>(class("local", "WaitForFirstConsumer"));
    let asks = |api: &FakeApi, name: &str| {
        let claim = api.read::<PersistentVolumeClaim>("default", name).expect("it is there");
        claim.annotations().get("volume.kubernetes.io/storage-provisioner").cloned()
    };
    api.put::<PersistentVolumeClaim>(claim("now", json!({})));
    api.until("the provisioner is told", |api| asks(api, "now").as_deref() == Some("csi.example.com")).await;
    api.until("so is the user", |api| told(api, "ExternalProvisioning")).await;
    // As the provisioner answers: a volume for this very claim.
    let uid = api.read::<PersistentVolumeClaim>("default", "now").map(|claim| claim.uid().to_owned());
    let reference = json!({ "namespace": "default", "name": "now", "uid": uid });
    api.put::<PersistentVolume>(volume("pvc-1", json!({ "claimRef": reference })));
    api.until("they are bound", |api| is_bound(api, "now", "pvc-1")).await;

    api.put::<PersistentVolume>(volume("free", json!({ "storageClassName": "local" })));
    api.put::<PersistentVolumeClaim>(claim("later", json!({ "storageClassName": "local" })));
    api.until("it waits", |api| told(api, "WaitForFirstConsumer")).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((claim_phase(&api, "later").as_str(), asks(&api, "later")), ("Pending", None));
    // As the scheduler chooses.
    let uid = api.read::<PersistentVolumeClaim>("default", "later").map(|claim| claim.uid().to_owned());
    let reference = json!({ "namespace": "default", "name": "later", "uid": uid });
    let chosen = json!({
        "metadata": { "annotations": { BOUND_BY_CONTROLLER: "yes" } }, "spec": { "claimRef": reference },
    });
    api.patch::<PersistentVolume>("", "free", chosen);
    api.until("they are bound", |api| is_bound(api, "later", "free")).await;

    api.put::<PersistentVolumeClaim>(claim("made", json!({ "storageClassName": "local" })));
    let node = json!({ "metadata": { "annotations": { SELECTED_NODE: "n1" } } });
    api.patch::<PersistentVolumeClaim>("default", "made", node);
    api.until("one is asked for on the node", |api| asks(api, "made").is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_gets_the_volume_that_it_names_or_learns_why_not() {
    let api = FakeApi::new();
    let _running = Running::start(&api, ALONE);
    api.put::<PersistentVolume>(volume("small", json!({ "capacity": { "storage": "1Gi" } })));
    api.put::<PersistentVolume>(volume("mine", json!({})));
    api.put::<PersistentVolumeClaim>(claim("data", json!({ "volumeName": "small" })));
    api.until("it is too small", |api| told(api, "VolumeMismatch")).await;
    api.put::<PersistentVolumeClaim>(claim("good", json!({ "volumeName": "mine" })));
    api.until("the other is bound", |api| is_bound(api, "good", "mine")).await;
    let good = api.read::<PersistentVolumeClaim>("default", "good").expect("it is there");
    assert!(!good.annotations().contains_key(BOUND_BY_CONTROLLER), "the user asked for this pair");
    api.put::<PersistentVolumeClaim>(claim("late", json!({ "volumeName": "mine" })));
    api.until("it is another's", |api| told(api, "FailedBinding")).await;
    assert_eq!(claim_phase(&api, "late"), "Pending");
}

#[tokio::test(start_paused = true)]
async fn a_claim_without_class_gets_the_default_that_comes_later() {
    let api = FakeApi::new();
    let _running = Running::start(&api, ALONE);
    api.put::<PersistentVolumeClaim>(claim("data", json!({ "storageClassName": null })));
    api.until("there is none", |api| told(api, "FailedBinding")).await;
    let mut default = class("standard", "Immediate");
    default["metadata"]["annotations"] = json!({ "storageclass.kubernetes.io/is-default-class": "true" });
    api.put::<StorageClass>(default);
    api.until("it has the default's", |api| {
        let claim = api.read::<PersistentVolumeClaim>("default", "data");
        claim.and_then(|claim| claim.spec?.storage_class_name).as_deref() == Some("standard")
    })
    .await;
}
