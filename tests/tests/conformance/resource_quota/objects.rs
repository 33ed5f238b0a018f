//! Quotas themselves: their status, and how they are changed and deleted.

use anyhow::ensure;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams},
};
use serde_json::{Value, json};

use super::{quota, uses};
use crate::{
    coverage::texts,
    support::{create, delete, eventually, gone, object, patch, refused, test, unique, watch},
};

texts! {
    "ResourceQuota, object count quota, resourcequotas" =>
        should_create_a_resourcequota_and_ensure_its_status_is_promptly_calculated,
    "ResourceQuota, update and delete" => should_be_able_to_update_and_delete_resourcequota,
    "ResourceQuota, manage lifecycle of a ResourceQuota" => should_manage_the_lifecycle_of_a_resourcequota,
    "ResourceQuota, apply changes to a ResourceQuota status" => should_apply_changes_to_a_resourcequota_status,
}

/// ResourceQuota, object count quota, resourcequotas
#[test]
fn should_create_a_resourcequota_and_ensure_its_status_is_promptly_calculated() {
    test(async |bed| {
        let hard =
            json!({ "pods": "5", "services": "10", "resourcequotas": "1", "cpu": "1", "memory": "500Mi" });
        quota(bed, "quota", json!({ "hard": hard })).await;
        let used = json!({ "pods": "0", "services": "0", "resourcequotas": "1", "cpu": "0", "memory": "0" });
        uses(bed, "quota", used).await;
    });
}

/// ResourceQuota, update and delete
#[test]
fn should_be_able_to_update_and_delete_resourcequota() {
    test(async |bed| {
        let quotas = bed.api::<ResourceQuota>();
        quota(bed, "quota", json!({ "hard": { "cpu": "1", "memory": "500Mi" } })).await;
        assert_eq!(hard(&quotas, "quota").await, json!({ "cpu": "1", "memory": "500Mi" }));

        // The controller may write the status meanwhile.
        eventually("the quota is updated", async || {
            let mut changed = json!(quotas.get("quota").await?);
            changed["spec"]["hard"] = json!({ "cpu": "2", "memory": "1Gi" });
            Ok(quotas.replace("quota", &PostParams::default(), &object(changed)).await?)
        })
        .await;
        assert_eq!(hard(&quotas, "quota").await, json!({ "cpu": "2", "memory": "1Gi" }));

        delete(&quotas, "quota").await;
        gone(&quotas, "quota").await;
        refused(quotas.get("quota").await, 404, "NotFound");
    });
}

async fn hard(quotas: &Api<ResourceQuota>, name: &str) -> Value {
    json!(quotas.get(name).await.expect("the quota is found"))["spec"]["hard"].clone()
}

/// ResourceQuota, manage lifecycle of a ResourceQuota
#[test]
fn should_manage_the_lifecycle_of_a_resourcequota() {
    test(async |bed| {
        let (quotas, label) = (bed.api::<ResourceQuota>(), unique("lifecycle"));
        let labelled = ListParams::default().labels(&format!("conformance={label}"));
        let made = json!({
            "metadata": { "name": "quota", "labels": { "conformance": label } },
            "spec": { "hard": { "cpu": "500m", "memory": "500Mi" } },
        });
        create(&quotas, made).await;
        let found = quotas.get("quota").await.expect("found");
        assert_eq!(json!(found)["spec"]["hard"], json!({ "cpu": "500m", "memory": "500Mi" }));
        let everywhere = bed.all::<ResourceQuota>().list(&labelled).await.expect("listed").items;
        assert_eq!(everywhere.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["quota"]);

        let change = json!({ "metadata": { "labels": { "phase": "patched" } }, "spec": { "hard": { "memory": "750Mi" } } });
        let patched = patch(&quotas, "quota", change).await;
        assert_eq!(patched.labels()["phase"], "patched");
        assert_eq!(json!(patched)["spec"]["hard"], json!({ "cpu": "500m", "memory": "750Mi" }));

        quotas.delete_collection(&DeleteParams::default(), &labelled).await.expect("deleted");
        gone(&quotas, "quota").await;
    });
}

/// ResourceQuota, apply changes to a ResourceQuota status
///
/// The controller puts the status right, so what is written there is seen in the answer and by a watch.
#[test]
fn should_apply_changes_to_a_resourcequota_status() {
    test(async |bed| {
        let quotas = bed.api::<ResourceQuota>();
        quota(bed, "quota", json!({ "hard": { "cpu": "500m", "memory": "500Mi" } })).await;

        let updated = eventually("the status is updated", async || {
            let mut newest = json!(quotas.get_status("quota").await?);
            newest["status"]["hard"] = json!({ "cpu": "250m", "memory": "250Mi" });
            Ok(quotas.replace_status("quota", &PostParams::default(), &object(newest)).await?)
        })
        .await;
        assert_eq!(json!(updated)["status"]["hard"], json!({ "cpu": "250m", "memory": "250Mi" }));
        assert_eq!(json!(updated)["spec"]["hard"], json!({ "cpu": "500m", "memory": "500Mi" }));
        status_equals_specification(&quotas, json!({ "cpu": "500m", "memory": "500Mi" })).await;

        let larger = json!({ "cpu": "1", "memory": "1Gi" });
        let patched = patch(&quotas, "quota", json!({ "spec": { "hard": larger } })).await;
        assert_eq!(json!(patched)["spec"]["hard"], larger);
        patch_status(&quotas, larger.clone()).await;
        status_equals_specification(&quotas, larger.clone()).await;

        let list = quotas.list(&ListParams::default()).await.expect("listed");
        let version = list.metadata.resource_version.expect("a list has a version");
        let mut events = watch(&quotas, &WatchParams::default(), &version).await;
        let other = json!({ "cpu": "2", "memory": "2Gi" });
        let repatched = patch_status(&quotas, other.clone()).await;
        assert_eq!(
            json!(repatched)["spec"]["hard"],
            larger,
            "a patch of the status changes no specification"
        );
        events.until("MODIFIED", |quota| json!(quota)["status"]["hard"] == other).await;
        status_equals_specification(&quotas, larger).await;
    });
}

async fn patch_status(quotas: &Api<ResourceQuota>, hard: Value) -> ResourceQuota {
    let change = Patch::Merge(json!({ "status": { "hard": hard } }));
    let patched = quotas.patch_status("quota", &PatchParams::default(), &change).await.expect("patched");
    assert_eq!(json!(patched)["status"]["hard"], hard);
    patched
}

async fn status_equals_specification(quotas: &Api<ResourceQuota>, hard: Value) {
    eventually("the status is put right", async || {
        let found = json!(quotas.get_status("quota").await?);
        ensure!(found["spec"]["hard"] == hard && found["status"]["hard"] == hard, "{found}");
        Ok(())
    })
    .await;
}
