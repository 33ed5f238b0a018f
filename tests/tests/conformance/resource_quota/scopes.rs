//! Quotas that count only some pods.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{quota, uses, uses_now};
use crate::{
    coverage::texts,
    support::{Bed, create, delete, pod, test},
};

texts! {
    "ResourceQuota, quota scope, BestEffort and NotBestEffort scope" =>
        should_verify_resourcequota_with_best_effort_scope,
    "ResourceQuota, quota scope, Terminating and NotTerminating scope" =>
        should_verify_resourcequota_with_terminating_scopes,
}

/// Makes a pod that `counts` counts, and `ignores` does not, and deletes it.
async fn is_counted(bed: &Bed, made: Value, [counts, ignores]: [&str; 2], used: Value) {
    let pods = bed.api::<Pod>();
    let name = made["metadata"]["name"].as_str().expect("a name").to_owned();
    let unused = used.as_object().expect("amounts by name").keys().map(|name| (name.clone(), json!("0")));
    let unused = Value::Object(unused.collect());
    create(&pods, made).await;
    uses_now(bed, counts, used).await;
    uses_now(bed, ignores, json!({ "pods": "0" })).await;
    delete(&pods, &name).await;
    uses(bed, counts, unused).await;
}

/// ResourceQuota, quota scope, BestEffort and NotBestEffort scope
#[test]
fn should_verify_resourcequota_with_best_effort_scope() {
    let resources = json!({
        "requests": { "cpu": "500m", "memory": "200Mi" },
        "limits": { "cpu": "1", "memory": "400Mi" },
    });
    test(async |bed| {
        for scope in ["BestEffort", "NotBestEffort"] {
            let name = scope.to_lowercase();
            quota(bed, &name, json!({ "hard": { "pods": "5" }, "scopes": [scope] })).await;
            uses(bed, &name, json!({ "pods": "0" })).await;
        }
        let best_effort = pod("best-effort", json!({}));
        is_counted(bed, best_effort, ["besteffort", "notbesteffort"], json!({ "pods": "1" })).await;

        let mut burstable = pod("burstable", json!({}));
        burstable["spec"]["containers"][0]["resources"] = resources;
        is_counted(bed, burstable, ["notbesteffort", "besteffort"], json!({ "pods": "1" })).await;
    });
}

/// ResourceQuota, quota scope, Terminating and NotTerminating scope
#[test]
fn should_verify_resourcequota_with_terminating_scopes() {
    let hard = json!({
        "pods": "5", "requests.cpu": "1", "requests.memory": "500Mi", "limits.cpu": "2", "limits.memory": "1Gi",
    });
    let used = json!({
        "pods": "1", "requests.cpu": "500m", "requests.memory": "200Mi", "limits.cpu": "1", "limits.memory": "400Mi",
    });
    test(async |bed| {
        for scope in ["Terminating", "NotTerminating"] {
            let name = scope.to_lowercase();
            quota(bed, &name, json!({ "hard": hard, "scopes": [scope] })).await;
            uses(bed, &name, json!({ "pods": "0" })).await;
        }
        let mut endless = pod("endless", json!({}));
        endless["spec"]["containers"][0]["resources"] = json!({
            "requests": { "cpu": "500m", "memory": "200Mi" },
            "limits": { "cpu": "1", "memory": "400Mi" },
        });
        is_counted(bed, endless.clone(), ["notterminating", "terminating"], used.clone()).await;

        let mut ending = endless;
        ending["metadata"]["name"] = json!("ending");
        ending["spec"]["activeDeadlineSeconds"] = json!(3600);
        is_counted(bed, ending, ["terminating", "notterminating"], used).await;
    });
}
