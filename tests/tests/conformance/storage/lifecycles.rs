//! Cluster kinds whose texts are alike: created, read, labelled by a patch and by an update, deleted alone and together.

use k8s_openapi::api::storage::v1::{CSINode, StorageClass, VolumeAttachment, VolumeAttributesClass};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    operations::assert_contains,
    steps::{
        Object, as_json, counted, create, delete, delete_all, gone, list, patch, patch_status, update,
        update_status,
    },
    support::{test, unique},
};

texts! {
    "CSINode, lifecycle" => should_run_through_the_lifecycle_of_a_csinode,
    "StorageClass, lifecycle" => should_run_through_the_lifecycle_of_a_storageclass,
    "VolumeAttachment, apply changes to a volumeattachment status" => should_apply_changes_to_a_volumeattachment_status,
    "VolumeAttachment, lifecycle" => should_run_through_the_lifecycle_of_a_volumeattachment,
    "VolumeAttributesClass, lifecycle" => should_run_through_the_lifecycle_of_a_volumeattributesclass,
}

fn labelled(name: &str, mut object: Value) -> Value {
    object["metadata"] = json!({ "name": name, "labels": { "first": name } });
    object
}

/// Goes through the steps, with objects of these fields beside `metadata`.
async fn lifecycle<K: Object>(api: &Api<K>, fields: Value) {
    let name = unique("initial");
    let made = create(api, labelled(&name, fields.clone())).await;
    let read = api.get(&name).await.expect("the object is read");
    assert_eq!((read.name_any(), read.uid()), (name.clone(), made.uid()));
    assert_contains(&as_json(&read), &fields);
    let patched = patch(api, &name, json!({ "metadata": { "labels": { &name: "patched" } } })).await;
    assert_eq!(patched.labels()[&name], "patched");
    assert_eq!(list(api, &format!("first={name},{name}=patched")).await.len(), 1);
    delete(api, &name).await;
    gone(api, &name).await;

    let names = [unique("replacement"), unique("replacement")];
    let label = unique("updated");
    for name in &names {
        create(api, labelled(name, fields.clone())).await;
        let updated = update(api, name, |object| {
            object.labels_mut().insert(label.clone(), "updated".into());
        })
        .await;
        assert_eq!(updated.labels()[&label], "updated");
    }
    assert_eq!(list(api, &format!("{label}=updated")).await.len(), 2);
    delete_all(api, &format!("{label}=updated")).await;
    counted(api, &format!("{label}=updated"), 0).await;
    gone(api, &names[0]).await;
}

/// CSINode, lifecycle
#[test]
fn should_run_through_the_lifecycle_of_a_csinode() {
    test(async |bed| {
        let driver =
            json!({ "name": "driver.example.com", "nodeID": "id", "topologyKeys": ["example.com/zone"] });
        lifecycle(&bed.all::<CSINode>(), json!({ "spec": { "drivers": [driver] } })).await;
    });
}

/// StorageClass, lifecycle
#[test]
fn should_run_through_the_lifecycle_of_a_storageclass() {
    test(async |bed| {
        let class = json!({
            "provisioner": "e2e-fake-provisioner",
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "Immediate",
        });
        lifecycle(&bed.all::<StorageClass>(), class).await;
    });
}

/// VolumeAttributesClass, lifecycle
#[test]
fn should_run_through_the_lifecycle_of_a_volumeattributesclass() {
    test(async |bed| {
        let class = json!({ "driverName": "e2e-fake-csi-driver", "parameters": { "iops": "3000" } });
        lifecycle(&bed.all::<VolumeAttributesClass>(), class).await;
    });
}

fn attachment() -> Value {
    let source = json!({ "persistentVolumeName": unique("volume") });
    json!({ "spec": { "attacher": "driver.example.com", "nodeName": "nowhere", "source": source } })
}

/// VolumeAttachment, lifecycle
#[test]
fn should_run_through_the_lifecycle_of_a_volumeattachment() {
    test(async |bed| lifecycle(&bed.all::<VolumeAttachment>(), attachment()).await);
}

/// VolumeAttachment, apply changes to a volumeattachment status
#[test]
fn should_apply_changes_to_a_volumeattachment_status() {
    test(async |bed| {
        let (name, attachments) = (unique("attachment"), bed.all::<VolumeAttachment>());
        create(&attachments, labelled(&name, attachment())).await;
        let patched =
            patch(&attachments, &name, json!({ "metadata": { "labels": { &name: "patched" } } })).await;
        assert_eq!(patched.labels()[&name], "patched");

        let is_attached =
            |attachment: &VolumeAttachment| attachment.status.as_ref().is_some_and(|it| it.attached);
        let read = async || attachments.get_status(&name).await.expect("the status is read");
        assert!(!is_attached(&read().await));
        let patched = patch_status(&attachments, &name, json!({ "status": { "attached": true } })).await;
        assert!(is_attached(&patched) && is_attached(&read().await));
        let updated =
            update_status(&attachments, &name, |status| *status = json!({ "attached": false })).await;
        assert!(!is_attached(&updated) && !is_attached(&read().await));
        assert_eq!(updated.spec, patched.spec);
        delete(&attachments, &name).await;
        gone(&attachments, &name).await;
    });
}
