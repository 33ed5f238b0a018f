//! ReplicationControllers: their scale, status and lives.

use k8s_openapi::api::core::v1::ReplicationController;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{scale_is_read_and_written, template};
use crate::{
    coverage::texts,
    kubelet::IMAGE,
    steps::{create, delete_all, list, patch, patch_status, update, watch_labels},
    support::{test, unique},
};

texts! {
    "Replication Controller, get and update ReplicationController scale"
        => should_get_and_update_a_replicationcontroller_scale,
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
