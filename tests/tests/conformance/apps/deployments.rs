//! Deployments: their lifecycle, scale and status.

use anyhow::ensure;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{Api, ResourceExt, api::WatchParams};
use serde_json::json;

use super::{scale_is_read_and_written, status_is_read_and_written, workload};
use crate::{
    coverage::texts,
    kubelet::{IMAGE, image, run_until},
    steps::{create, delete_all, list, patch, patch_status},
    support::{Bed, test, unique, watch},
};

texts! {
    "Deployment, completes the lifecycle of a Deployment" => should_run_the_lifecycle_of_a_deployment,
    "Deployment, completes the scaling of a Deployment subresource" => should_have_a_working_scale_subresource,
    "Deployment, status sub-resource" => should_validate_deployment_status_endpoints,
}

fn ready(deployment: &Deployment) -> i32 {
    deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default()
}

fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default()
}

/// Creates a Deployment, and runs its pods until the status says that they are ready.
async fn running(bed: &Bed, name: &str, replicas: i32) -> Api<Deployment> {
    let deployments = bed.api::<Deployment>();
    create(&deployments, workload(name, replicas)).await;
    becomes_ready(bed, name, |_| true).await;
    deployments
}

async fn becomes_ready(bed: &Bed, name: &str, runs: impl Fn(&Pod) -> bool) {
    let deployments = bed.api::<Deployment>();
    let pods = bed.api::<Pod>();
    run_until((&pods, &format!("app={name}")), "the deployment is ready", runs, async || {
        let found = deployments.get(name).await?;
        let observed = found.status.as_ref().and_then(|status| status.observed_generation);
        ensure!(
            observed == found.metadata.generation && ready(&found) == wanted(&found),
            "{:?}",
            found.status
        );
        Ok(())
    })
    .await;
}

/// Deployment, completes the lifecycle of a Deployment
#[test]
fn should_run_the_lifecycle_of_a_deployment() {
    test(async |bed| {
        let (name, deployments) = (unique("lifecycle"), bed.api::<Deployment>());
        let selector = format!("app={name}");
        let mut events = watch(&deployments, &WatchParams::default().labels(&selector), "0").await;
        running(bed, &name, 2).await;
        events.until("ADDED", |seen| seen.name_any() == name).await;
        events.until("MODIFIED", |seen| ready(seen) == 2).await;

        let next = json!({ "spec": {
            "replicas": 1,
            "template": { "spec": { "containers": [{ "name": "app", "image": "registry.test/app:2" }] } },
        } });
        patch(&deployments, &name, next).await;
        let patched =
            patch(&deployments, &name, json!({ "metadata": { "labels": { "patched": name } } })).await;
        assert_eq!((wanted(&patched), &*patched.labels()["patched"]), (1, &*name));
        events.until("MODIFIED", |seen| seen.labels().contains_key("patched")).await;
        becomes_ready(bed, &name, |pod| image(pod) != IMAGE).await;
        assert_eq!(list(&bed.all::<Deployment>(), &format!("patched={name}")).await.len(), 1);

        // The controller puts right what others report, and so is seen to follow.
        let wrong = patch_status(&deployments, &name, json!({ "status": { "readyReplicas": 7 } })).await;
        assert_eq!(ready(&wrong), 7);
        events.until("MODIFIED", |seen| ready(seen) == 7).await;
        events.until("MODIFIED", |seen| ready(seen) == 1).await;
        let read = deployments.get_status(&name).await.expect("the status is read");
        assert_eq!((ready(&read), read.uid()), (1, patched.uid()));

        delete_all(&deployments, &selector).await;
        events.until("DELETED", |seen| seen.name_any() == name).await;
        assert!(deployments.get_opt(&name).await.expect("an answer").is_none());
    });
}

/// Deployment, completes the scaling of a Deployment subresource
#[test]
fn should_have_a_working_scale_subresource() {
    test(async |bed| {
        let name = unique("scaled");
        let deployments = running(bed, &name, 1).await;
        let scale = deployments.get_scale(&name).await.expect("the scale is read");
        let status = scale.status.expect("a scale has a status");
        assert_eq!((status.replicas, status.selector), (1, Some(format!("app={name}"))));
        scale_is_read_and_written(&deployments, &name).await;
        becomes_ready(bed, &name, |_| true).await;
        assert_eq!(ready(&deployments.get(&name).await.expect("the deployment is read")), 4);
    });
}

/// Deployment, status sub-resource
#[test]
fn should_validate_deployment_status_endpoints() {
    test(async |bed| {
        let name = unique("status");
        let deployments = running(bed, &name, 1).await;
        status_is_read_and_written(&deployments, &name).await;
    });
}
