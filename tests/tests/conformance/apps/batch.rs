//! Jobs and CronJobs: the API, beside their controllers.

use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::{ResourceExt, discovery::Scope};
use serde_json::{Value, json};

use super::template;
use crate::{
    coverage::texts,
    kubelet::IMAGE,
    operations::{Operations, assert_contains},
    steps::{
        as_json, counted, create, delete_all, list, patch, patch_status, status_is_annotated, update,
        update_status,
    },
    support::{test, unique},
};

texts! {
    "CronJob API Operations" => should_support_cronjob_api_operations,
    "Jobs, apply changes to status" => should_apply_changes_to_a_job_status,
    "Jobs, manage lifecycle" => should_manage_the_lifecycle_of_a_job,
}

/// A Job of two pods.
fn job(name: &str) -> Value {
    let mut template = template(name, IMAGE);
    template["spec"]["restartPolicy"] = json!("Never");
    json!({
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "parallelism": 2, "completions": 4, "backoffLimit": 6, "template": template },
    })
}

/// CronJob API Operations
#[test]
fn should_support_cronjob_api_operations() {
    test(async |bed| {
        let name = unique("annotated");
        let job = json!({ "spec": job(&name)["spec"] });
        let spec = json!({ "schedule": "*/1 * * * ?", "suspend": true, "jobTemplate": job });
        let operations = Operations {
            group: "batch",
            version: "v1",
            kind: "CronJob",
            plural: "cronjobs",
            scope: Scope::Namespaced,
            subresources: &["status"],
            object: json!({ "spec": spec }),
        };
        operations.check(bed).await;
        let at = |hour: i32| json!({ "lastScheduleTime": format!("2026-01-01T{hour:02}:00:00Z") });
        operations.check_status(bed, at(1), at(2)).await;

        let crons = bed.api::<CronJob>();
        create(&crons, json!({ "metadata": { "name": name }, "spec": spec })).await;
        status_is_annotated(&crons, &name).await;
    });
}

fn condition(kind: &str) -> Value {
    json!({ "type": kind, "status": "True", "lastTransitionTime": "2026-01-01T01:00:00Z" })
}

/// Jobs, apply changes to status
#[test]
fn should_apply_changes_to_a_job_status() {
    test(async |bed| {
        let (name, jobs) = (unique("status"), bed.api::<Job>());
        let made = create(&jobs, job(&name)).await;

        let first = json!({ "status": { "conditions": [condition("First")] } });
        let patched = patch_status(&jobs, &name, first.clone()).await;
        assert_contains(&as_json(&patched), &first);
        assert_eq!(patched.spec, made.spec);
        status_is_annotated(&jobs, &name).await;

        let both = json!({ "status": { "conditions": [condition("First"), condition("Second")] } });
        let updated = update_status(&jobs, &name, |status| *status = both["status"].clone()).await;
        assert_contains(&as_json(&updated), &both);
        let read = jobs.get_status(&name).await.expect("the status is read");
        assert_contains(&as_json(&read), &both);
        assert_eq!(read.uid(), made.uid());
    });
}

/// Jobs, manage lifecycle
#[test]
fn should_manage_the_lifecycle_of_a_job() {
    test(async |bed| {
        let (name, jobs) = (unique("lifecycle"), bed.api::<Job>());
        let mut suspended = job(&name);
        suspended["spec"]["suspend"] = json!(true);
        let made = create(&jobs, suspended).await;
        // What the server adds, so that pods are found: a selector by the job's uid.
        let selector = made.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        let by_uid = selector.match_labels.unwrap_or_default();
        assert_eq!(by_uid.get("batch.kubernetes.io/controller-uid"), made.uid().as_ref());

        let patched = patch(&jobs, &name, json!({ "metadata": { "labels": { "patched": name } } })).await;
        assert_eq!(patched.labels()["patched"], name);
        let updated = update(&jobs, &name, |job| {
            job.spec.get_or_insert_default().suspend = Some(false);
            job.annotations_mut().insert("updated".into(), "true".into());
        })
        .await;
        assert_eq!(updated.annotations()["updated"], "true");
        assert_eq!(updated.spec.and_then(|spec| spec.suspend), Some(false));
        assert_eq!(list(&bed.all::<Job>(), &format!("patched={name}")).await.len(), 1);

        delete_all(&jobs, &format!("patched={name}")).await;
        counted(&bed.all::<Job>(), &format!("patched={name}"), 0).await;
    });
}
