//! ReplicationControllers: their scale, status and lives.

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Pod, ReplicationController, ResourceQuota};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::{scale_is_read_and_written, template};
use crate::{
    coverage::texts,
    kubelet::{IMAGE, run},
    steps::{counted, create, delete_all, list, patch, patch_status, update, watch_labels},
    support::{eventually, test, unique},
};

texts! {
    "Replication Controller, adopt matching pods" => should_adopt_matching_pods_on_creation,
    "Replication Controller, check for issues like exceeding allocated quota"
        => should_surface_a_failure_condition_on_a_common_issue_like_exceeded_quota,
    "Replication Controller, get and update ReplicationController scale"
        => should_get_and_update_a_replicationcontroller_scale,
    "Replication Controller, release pods" => should_release_no_longer_matching_pods,
    "Replication Controller, lifecycle" => should_test_the_lifecycle_of_a_replicationcontroller,
}

/// Without a selector: it follows from the template.
fn controller(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "replicas": 1, "template": template(name, IMAGE) },
    })
}

/// Replication Controller, get and update ReplicationController scale
#[test]
fn should_get_and_update_a_replicationcontroller_scale() {
    test(async |bed| {
        let (name, controllers) = (unique("scaled"), bed.api::<ReplicationController>());
        create(&controllers, controller(&name)).await;
        let scale = controllers.get_scale(&name).await.expect("the scale is read");
        assert_eq!(scale.status.and_then(|status| status.selector), Some(format!("app={name}")));
        scale_is_read_and_written(&controllers, &name).await;
    });
}

/// Replication Controller, lifecycle
#[test]
fn should_test_the_lifecycle_of_a_replicationcontroller() {
    test(async |bed| {
        let (name, controllers) = (unique("lifecycle"), bed.api::<ReplicationController>());
        let selector = format!("app={name}");
        let mut events = watch_labels(&controllers, &selector).await;
        create(&controllers, controller(&name)).await;
        events.until("ADDED", |seen| seen.name_any() == name).await;

        let patched = patch(&controllers, &name, json!({ "metadata": { "labels": { "patched": "yes" } } }));
        assert_eq!(patched.await.labels()["patched"], "yes");
        events.until("MODIFIED", |seen| seen.labels().contains_key("patched")).await;

        let one = json!({ "status": { "replicas": 1, "readyReplicas": 1, "availableReplicas": 1 } });
        let patched = patch_status(&controllers, &name, one).await;
        assert_eq!(patched.status.and_then(|status| status.ready_replicas), Some(1));
        // The controller counts for itself: the pod is not ready.
        let none = |seen: &ReplicationController| {
            let status = seen.status.clone().unwrap_or_default();
            (status.replicas, status.ready_replicas.unwrap_or_default()) == (1, 0)
        };
        events.until("MODIFIED", none).await;

        patch(&controllers, &name, json!({ "spec": { "replicas": 2 } })).await;
        let updated = update(&controllers, &name, |controller| {
            controller.labels_mut().insert("updated".into(), "yes".into());
        })
        .await;
        assert_eq!(updated.spec.and_then(|spec| spec.replicas), Some(2));
        assert_eq!(
            list(&bed.all::<ReplicationController>(), &format!("{selector},updated=yes")).await.len(),
            1
        );

        delete_all(&controllers, &selector).await;
        events.until("DELETED", |seen| seen.name_any() == name).await;
        assert!(controllers.get_opt(&name).await.expect("an answer").is_none());
    });
}

/// Waits until the pod has this controller, or has it no more.
async fn owned(pods: &Api<Pod>, pod: &str, controller: &ReplicationController, is_owned: bool) {
    eventually("the owner of the pod is as expected", async || {
        let pod = pods.get(pod).await?;
        let mut owners = pod.owner_references().iter();
        let found = owners.any(|owner| Some(&owner.uid) == controller.metadata.uid.as_ref());
        ensure!(found == is_owned, "{:?}", pod.owner_references());
        Ok(())
    })
    .await;
}

/// Replication Controller, adopt matching pods
#[test]
fn should_adopt_matching_pods_on_creation() {
    test(async |bed| {
        let (name, pods) = (unique("adopting"), bed.api::<Pod>());
        let mut pod = template(&name, IMAGE);
        pod["metadata"]["name"] = json!(name);
        create(&pods, pod).await;
        // It works already: a controller that saw the set first, and made a pod, keeps this one all the same.
        run(&pods, &name, "192.0.2.1").await;
        let made = create(&bed.api::<ReplicationController>(), controller(&name)).await;
        owned(&pods, &name, &made, true).await;
        counted(&pods, &format!("app={name}"), 1).await;
    });
}

/// Replication Controller, release pods
#[test]
fn should_release_no_longer_matching_pods() {
    test(async |bed| {
        let (name, pods) = (unique("releasing"), bed.api::<Pod>());
        let made = create(&bed.api::<ReplicationController>(), controller(&name)).await;
        let pod = counted(&pods, &format!("app={name}"), 1).await[0].name_any();
        owned(&pods, &pod, &made, true).await;
        patch(&pods, &pod, json!({ "metadata": { "labels": { "app": "another" } } })).await;
        owned(&pods, &pod, &made, false).await;
        let others = counted(&pods, &format!("app={name}"), 1).await;
        assert_ne!(others[0].name_any(), pod, "another pod takes its place");
    });
}

/// Replication Controller, check for issues like exceeding allocated quota
#[test]
fn should_surface_a_failure_condition_on_a_common_issue_like_exceeded_quota() {
    test(async |bed| {
        let (name, controllers) = (unique("refused"), bed.api::<ReplicationController>());
        let quota = json!({ "metadata": { "name": name }, "spec": { "hard": { "pods": "2" } } });
        create(&bed.api::<ResourceQuota>(), quota).await;
        let mut wanted = controller(&name);
        wanted["spec"]["replicas"] = json!(3);
        create(&controllers, wanted).await;
        let reason = async || {
            let status = controllers.get(&name).await?.status.unwrap_or_default();
            anyhow::Ok(
                status.conditions.unwrap_or_default().into_iter().find_map(|condition| condition.reason),
            )
        };
        eventually("the failure is in the status", async || {
            let reason = reason().await?;
            ensure!(reason.as_deref() == Some("FailedCreate"), "{reason:?}");
            Ok(())
        })
        .await;
        patch(&controllers, &name, json!({ "spec": { "replicas": 2 } })).await;
        eventually("and goes with its cause", async || {
            let reason = reason().await?;
            ensure!(reason.is_none(), "{reason:?}");
            Ok(())
        })
        .await;
    });
}
