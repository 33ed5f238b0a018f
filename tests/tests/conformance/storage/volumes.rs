//! PersistentVolumes and claims as objects. Those in use are kept until nobody uses them; these are not.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    operations::assert_contains,
    steps::{
        Object, as_json, counted, create, delete, delete_all, gone, list, patch, patch_status, update,
        update_status,
    },
    support::{Bed, test, unique},
};

texts! {
    "PersistentVolumes(Claims), apply changes to a pv/pvc status" => should_apply_changes_to_a_pv_pvc_status,
    "PersistentVolumes(Claims), lifecycle" => should_run_through_the_lifecycle_of_a_pv_and_a_pvc,
}

/// A volume and a claim of the same label, for each other.
struct Pair {
    label: String,
    volumes: Api<PersistentVolume>,
    claims: Api<PersistentVolumeClaim>,
}

impl Pair {
    fn new(bed: &Bed) -> Self {
        Self { label: unique("pair"), volumes: bed.all(), claims: bed.api() }
    }

    fn selector(&self) -> String {
        format!("pair={}", self.label)
    }

    /// Creates both, with the same name.
    async fn create(&self) -> (String, PersistentVolume, PersistentVolumeClaim) {
        let name = unique("volume");
        let metadata = json!({ "name": name, "labels": { "pair": self.label } });
        let driver = json!({ "driver": "e2e-driver.example.com", "volumeHandle": name });
        let volume = json!({
            "capacity": { "storage": "2Gi" }, "accessModes": ["ReadWriteOnce"], "csi": driver,
            "storageClassName": self.label, "persistentVolumeReclaimPolicy": "Retain",
        });
        let claim = json!({
            "accessModes": ["ReadWriteOnce"], "storageClassName": self.label,
            "resources": { "requests": { "storage": "1Gi" } },
        });
        let volume = create(&self.volumes, json!({ "metadata": metadata, "spec": volume })).await;
        let claim = create(&self.claims, json!({ "metadata": metadata, "spec": claim })).await;
        (name, volume, claim)
    }
}

async fn is_labelled<K: Object>(api: &Api<K>, name: &str) {
    let patched = patch(api, name, json!({ "metadata": { "labels": { name: "patched" } } })).await;
    assert_eq!(patched.labels()[name], "patched");
}

async fn is_updated<K: Object>(api: &Api<K>, name: &str) {
    let updated =
        update(api, name, |object| drop(object.labels_mut().insert(name.into(), "updated".into()))).await;
    assert_eq!(updated.labels()[name], "updated");
}

/// PersistentVolumes(Claims), lifecycle
#[test]
fn should_run_through_the_lifecycle_of_a_pv_and_a_pvc() {
    test(async |bed| {
        let pair = Pair::new(bed);
        let (name, volume, claim) = pair.create().await;
        assert_eq!(list(&pair.volumes, &pair.selector()).await.len(), 1);
        assert_eq!(list(&pair.claims, "").await.len(), 1);
        is_labelled(&pair.volumes, &name).await;
        is_labelled(&pair.claims, &name).await;
        assert_eq!(pair.volumes.get(&name).await.expect("the volume is read").uid(), volume.uid());
        assert_eq!(pair.claims.get(&name).await.expect("the claim is read").uid(), claim.uid());
        delete(&pair.claims, &name).await;
        gone(&pair.claims, &name).await;
        delete(&pair.volumes, &name).await;
        gone(&pair.volumes, &name).await;

        let (name, ..) = pair.create().await;
        is_updated(&pair.volumes, &name).await;
        is_updated(&pair.claims, &name).await;
        delete_all(&pair.claims, &format!("{name}=updated")).await;
        counted(&pair.claims, &pair.selector(), 0).await;
        delete_all(&pair.volumes, &format!("{name}=updated")).await;
        counted(&pair.volumes, &pair.selector(), 0).await;
    });
}

/// PersistentVolumes(Claims), apply changes to a pv/pvc status
#[test]
fn should_apply_changes_to_a_pv_pvc_status() {
    test(async |bed| {
        let pair = Pair::new(bed);
        let (name, ..) = pair.create().await;
        assert_eq!(list(&pair.volumes, &pair.selector()).await.len(), 1);
        assert_eq!(list(&pair.claims, "").await.len(), 1);
        let claim = pair.claims.get_status(&name).await.expect("the status is read");
        assert!(matches!(phase(&claim).as_str(), "Pending" | "Bound"), "{claim:?}");
        let volume = pair.volumes.get_status(&name).await.expect("the status is read");
        assert!(matches!(phase(&volume).as_str(), "Pending" | "Available" | "Bound"), "{volume:?}");

        let of_claim = |kind: &str| {
            json!({ "conditions": [{
                "type": kind, "status": "True", "reason": "E2E", "message": "Set from a test",
            }] })
        };
        let of_volume = |message: &str| json!({ "message": message, "reason": "E2E" });
        status_is_changed(&pair.claims, &name, of_claim).await;
        status_is_changed(&pair.volumes, &name, of_volume).await;
        delete(&pair.claims, &name).await;
        delete(&pair.volumes, &name).await;
    });
}

fn phase<K: Object>(object: &K) -> String {
    as_json(object)["status"]["phase"].as_str().unwrap_or_default().to_owned()
}

/// Patches and updates a status; `fields` gives some of it that hold a text.
async fn status_is_changed<K: Object>(api: &Api<K>, name: &str, fields: impl Fn(&str) -> Value) {
    let patched = patch_status(api, name, json!({ "status": fields("StatusPatched") })).await;
    assert_contains(&as_json(&patched)["status"], &fields("StatusPatched"));
    update_status(api, name, |status| {
        for (field, value) in fields("StatusUpdated").as_object().expect("fields") {
            status[field] = value.clone();
        }
    })
    .await;
    let read = api.get(name).await.expect("the object is read");
    assert_contains(&as_json(&read)["status"], &fields("StatusUpdated"));
}
