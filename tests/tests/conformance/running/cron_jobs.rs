//! CronJobs, whose shortest interval is a minute.

use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{script, test_within};
use crate::{
    coverage::texts,
    steps::{as_json, create, list},
    support::{Bed, unique, within},
};

texts! {
    "CronJob Suspend" => should_not_schedule_jobs_when_suspended,
    "CronJob ForbidConcurrent" => should_not_schedule_new_jobs_when_forbidconcurrent,
    "CronJob ReplaceConcurrent" => should_replace_jobs_when_replaceconcurrent,
    "CronJob AllowConcurrent" => should_schedule_multiple_jobs_concurrently,
}

const MINUTES: Duration = Duration::from_secs(280);

/// A CronJob of every minute, of jobs that do not end.
async fn every_minute(bed: &Bed, policy: &str, suspended: bool) -> String {
    let spec = json!({
        "schedule": "*/1 * * * ?",
        "concurrencyPolicy": policy,
        "suspend": suspended,
        "jobTemplate": { "spec": { "template": { "spec": script("sleep 3600")["spec"] } } },
    });
    let cron = json!({ "metadata": { "name": unique("cron") }, "spec": spec });
    create(&bed.api::<CronJob>(), cron).await.name_any()
}

/// Waits until jobs of a CronJob, by their names in order, are as wanted; its status knows the active ones.
async fn jobs(bed: &Bed, cron: &str, what: &str, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
    within(MINUTES, what, async || {
        let mut names: Vec<_> = list(&bed.api::<Job>(), "")
            .await
            .iter()
            .filter(|job| job.metadata.deletion_timestamp.is_none())
            .filter(|job| job.owner_references().iter().any(|owner| owner.name == cron))
            .map(ResourceExt::name_any)
            .collect();
        names.sort();
        ensure!(wanted(&names), "{names:?}");
        let status = as_json(&bed.api::<CronJob>().get(cron).await?);
        let mut active: Vec<_> = status["status"]["active"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|job: &Value| job["name"].as_str().unwrap_or_default().to_owned())
            .collect();
        active.sort();
        ensure!(active == names, "{active:?} are active of {names:?}");
        Ok(names)
    })
    .await
}

fn test(work: impl AsyncFnOnce(&Bed)) {
    test_within(MINUTES * 3, work);
}

/// CronJob AllowConcurrent
#[test]
#[ignore = "takes two minutes; `cargo xtask test --all` has it"]
fn should_schedule_multiple_jobs_concurrently() {
    test(async |bed| {
        let cron = every_minute(bed, "Allow", false).await;
        jobs(bed, &cron, "two jobs are active", |names| names.len() >= 2).await;
    });
}

/// CronJob Suspend
#[test]
#[ignore = "takes two minutes; `cargo xtask test --all` has it"]
fn should_not_schedule_jobs_when_suspended() {
    test(async |bed| {
        let suspended = every_minute(bed, "Allow", true).await;
        let other = every_minute(bed, "Allow", false).await;
        jobs(bed, &other, "two jobs are active", |names| names.len() >= 2).await;
        let names = jobs(bed, &suspended, "its jobs are looked at", |_| true).await;
        assert!(names.is_empty(), "{names:?}");
    });
}

/// CronJob ForbidConcurrent
#[test]
#[ignore = "takes three minutes; `cargo xtask test --all` has it"]
fn should_not_schedule_new_jobs_when_forbidconcurrent() {
    test(async |bed| {
        let cron = every_minute(bed, "Forbid", false).await;
        let other = every_minute(bed, "Allow", false).await;
        let first = jobs(bed, &cron, "a job is active", |names| names.len() == 1).await;
        jobs(bed, &other, "three jobs are active", |names| names.len() >= 3).await;
        let now = jobs(bed, &cron, "its jobs are looked at", |_| true).await;
        assert_eq!(now, first);
    });
}

/// CronJob ReplaceConcurrent
#[test]
#[ignore = "takes two minutes; `cargo xtask test --all` has it"]
fn should_replace_jobs_when_replaceconcurrent() {
    test(async |bed| {
        let cron = every_minute(bed, "Replace", false).await;
        let first = jobs(bed, &cron, "a job is active", |names| names.len() == 1).await;
        jobs(bed, &cron, "another job is", |names| names.len() == 1 && names != first).await;
    });
}
