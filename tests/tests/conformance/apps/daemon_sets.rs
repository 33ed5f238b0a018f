//! DaemonSets, and the ControllerRevisions that keep their templates.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{status_is_read_and_written, template};
use crate::{
    coverage::texts,
    kubelet::IMAGE,
    steps::{counted, create, delete, delete_all, gone, listed_and_deleted_together, patch, update},
    support::{test, unique},
};

texts! {
    "ControllerRevision, resource lifecycle" => should_manage_the_lifecycle_of_a_controllerrevision,
    "DaemonSet, list and delete a collection of DaemonSets" => should_list_and_delete_a_collection_of_daemonsets,
    "DaemonSet, status sub-resource" => should_verify_changes_to_a_daemon_set_status,
}

fn daemon_set(metadata: Value) -> Value {
    let app = metadata["name"].as_str().unwrap_or_default();
    json!({
        "metadata": metadata,
        "spec": { "selector": { "matchLabels": { "app": app } }, "template": template(app, IMAGE) },
    })
}

/// ControllerRevision, resource lifecycle
#[test]
fn should_manage_the_lifecycle_of_a_controllerrevision() {
    test(async |bed| {
        let revisions = bed.api::<ControllerRevision>();
        let name = unique("revised");
        let set = create(&bed.api::<DaemonSet>(), daemon_set(json!({ "name": name }))).await;
        let owner = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "controller": true,
            "name": name, "uid": set.metadata.uid,
        });
        // As the controller would write it: with the part of the template that it would patch back.
        let revision = |number: i64| {
            let template = template(&name, &format!("registry.test/app:{number}"));
            json!({
                "metadata": {
                    "name": format!("{name}-{number}"),
                    "labels": { "app": name },
                    "ownerReferences": [owner],
                },
                "revision": number,
                "data": { "spec": { "template": template } },
            })
        };
        let selector = format!("app={name}");
        // The controller's own, of the template.
        let own = counted(&revisions, &selector, 1).await.remove(0).name_any();
        let first = create(&revisions, revision(1)).await;
        counted(&revisions, &selector, 2).await;
        let read = revisions.get(&first.name_any()).await.expect("the revision is read");
        let image = "registry.test/app:1";
        assert_eq!(read.data.expect("data").0["spec"]["template"]["spec"]["containers"][0]["image"], image);
        let label = json!({ "metadata": { "labels": { "patched": "yes" } } });
        let patched = patch(&revisions, &first.name_any(), label).await;
        assert_eq!(patched.labels()["patched"], "yes");

        let second = create(&revisions, revision(2)).await;
        counted(&revisions, &selector, 3).await;
        delete(&revisions, &first.name_any()).await;
        gone(&revisions, &first.name_any()).await;
        counted(&revisions, &selector, 2).await;
        let updated = update(&revisions, &second.name_any(), |revision| {
            revision.labels_mut().insert("updated".into(), "yes".into());
        })
        .await;
        assert_eq!(updated.labels()["updated"], "yes");

        create(&revisions, revision(3)).await;
        counted(&revisions, &selector, 3).await;
        delete_all(&revisions, &format!("{selector},updated=yes")).await;
        let mut left = counted(&revisions, &selector, 2).await;
        left.retain(|revision| revision.name_any() != own);
        assert_eq!(left[0].revision, 3);
    });
}

/// DaemonSet, list and delete a collection of DaemonSets
#[test]
fn should_list_and_delete_a_collection_of_daemonsets() {
    test(async |bed| {
        listed_and_deleted_together((&bed.api::<DaemonSet>(), &bed.all()), daemon_set).await;
    });
}

/// DaemonSet, status sub-resource
#[test]
fn should_verify_changes_to_a_daemon_set_status() {
    test(async |bed| {
        let (name, sets) = (unique("status"), bed.api::<DaemonSet>());
        create(&sets, daemon_set(json!({ "name": name, "labels": { "app": name } }))).await;
        status_is_read_and_written(&sets, &name).await;
    });
}
