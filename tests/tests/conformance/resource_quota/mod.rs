//! Resource quotas: what they count, when it is given back, and what they refuse.

pub(crate) mod lives;
pub(crate) mod objects;
pub(crate) mod scopes;

use anyhow::ensure;
use k8s_openapi::api::core::v1::ResourceQuota;
use serde_json::{Value, json};

use crate::{
    operations::assert_contains,
    support::{Bed, create, eventually},
};

/// Makes a quota in the test's namespace and waits until the controller has counted each of its resources.
async fn quota(bed: &Bed, name: &str, spec: Value) {
    let hard = spec["hard"].clone();
    create(&bed.api::<ResourceQuota>(), json!({ "metadata": { "name": name }, "spec": spec })).await;
    let quotas = bed.api::<ResourceQuota>();
    eventually(&format!("{name} is counted"), async || {
        let status = json!(quotas.get(name).await?)["status"].clone();
        ensure!(status["hard"] == hard, "{status}");
        let names =
            |amounts: &Value| amounts.as_object().map(|amounts| amounts.keys().cloned().collect::<Vec<_>>());
        ensure!(names(&status["used"]) == names(&hard), "{status}");
        Ok(())
    })
    .await;
}

/// Waits until a quota's use contains this.
async fn uses(bed: &Bed, name: &str, used: Value) {
    let quotas = bed.api::<ResourceQuota>();
    eventually(&format!("{name} uses {used}"), async || {
        let found = json!(quotas.get(name).await?)["status"]["used"].clone();
        let is_so = |(resource, amount): (&String, &Value)| found[resource] == *amount;
        ensure!(used.as_object().expect("amounts by name").iter().all(is_so), "{found}");
        Ok(())
    })
    .await;
}

/// Asserts that a quota's use contains this now: admission charges before it answers.
async fn uses_now(bed: &Bed, name: &str, used: Value) {
    let found = json!(bed.api::<ResourceQuota>().get(name).await.expect("the quota is found"));
    assert_contains(&found["status"]["used"], &used);
}
