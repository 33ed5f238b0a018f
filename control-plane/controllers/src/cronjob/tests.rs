//! Scenarios: runs that are due, overlap, are missed, and are cleaned up. Jobs are ended by the tests.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    batch::v1::{CronJob, CronJobStatus, Job},
    core::v1::Event,
};
use serde_json::{Value, json};

use crate::{
    meta::{MetaExt, now},
    testing::{FakeApi, Running, template},
};

fn cron_job(more: Value) -> Value {
    let mut cron_job = json!({
        "metadata": { "name": "tick", "namespace": "default" },
        "spec": {
            "schedule": "* * * * *",
            "concurrencyPolicy": "Allow",
            "successfulJobsHistoryLimit": 2,
            "failedJobsHistoryLimit": 1,
            "jobTemplate": {
                "metadata": { "labels": { "of": "tick" }, "annotations": { "a": "b" } },
                "spec": { "template": template("tick", "a") },
            },
        },
    });
    for (field, value) in more.as_object().unwrap() {
        cron_job["spec"][field] = value.clone();
    }
    cron_job
}

async fn run(more: Value) -> (Arc<FakeApi>, Running) {
    let api = FakeApi::new();
    let running = Running::start(&api, &["cronjob"]);
    api.put::<CronJob>(cron_job(more));
    (api, running)
}

fn status(api: &FakeApi) -> CronJobStatus {
    api.read::<CronJob>("default", "tick").and_then(|it| it.status).unwrap_or_default()
}

/// Names of jobs, by the minute in them.
fn jobs(api: &FakeApi) -> Vec<String> {
    let mut names: Vec<String> = api.all::<Job>().iter().map(|job| job.name().to_owned()).collect();
    names.sort_unstable();
    names
}

fn active(api: &FakeApi) -> Vec<String> {
    status(api).active.unwrap_or_default().into_iter().map(|job| job.name.unwrap()).collect()
}

fn end(api: &FakeApi, name: &str, kind: &str) {
    let at = now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = json!({ "type": kind, "status": "True", "lastTransitionTime": at });
    let mut status = json!({ "conditions": [condition], "startTime": at });
    if kind == "Complete" {
        status["completionTime"] = json!(at);
    }
    api.patch_status::<Job>("default", name, json!({ "status": status }));
}

fn told(api: &FakeApi, reason: &str) -> bool {
    api.all::<Event>().iter().any(|event| event.reason.as_deref() == Some(reason))
}

#[tokio::test(start_paused = true)]
async fn each_minute_has_its_job() {
    let (api, _running) = run(json!({})).await;
    api.until("three runs were made", |api| jobs(api).len() == 3 && active(api) == jobs(api)).await;
    let minutes: Vec<i64> =
        jobs(&api).iter().map(|name| name.strip_prefix("tick-").unwrap().parse().unwrap()).collect();
    assert!(minutes.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{minutes:?}");
    assert_eq!(status(&api).last_schedule_time.unwrap().0.as_second(), minutes[2] * 60);
    let job: Job = api.read("default", &jobs(&api)[0]).unwrap();
    assert_eq!(job.controller().map(|owner| owner.name.as_str()), Some("tick"));
    assert_eq!((&*job.labels()["of"], &*job.annotations()["a"]), ("tick", "b"));
    let at = job.annotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"].parse::<jiff::Timestamp>();
    assert_eq!(at.unwrap().as_second(), minutes[0] * 60);
    api.until("which is told", |api| told(api, "SuccessfulCreate")).await;
}

#[tokio::test(start_paused = true)]
async fn finished_jobs_are_kept_up_to_the_limits() {
    let (api, _running) = run(json!({ "concurrencyPolicy": "Forbid" })).await;
    let mut all = Vec::new();
    for kind in ["Complete", "Failed", "Complete", "Failed", "Complete", "Complete"] {
        api.until("a job runs", |api| active(api).len() == 1).await;
        let name = active(&api).remove(0);
        end(&api, &name, kind);
        all.push(name.clone());
        api.until("its end is seen", |api| !active(api).contains(&name)).await;
    }
    api.until("the others are gone", |api| jobs(api).iter().filter(|name| all.contains(name)).count() == 3)
        .await;
    let kept: Vec<&String> = all.iter().filter(|name| jobs(&api).contains(name)).collect();
    assert_eq!(kept, [&all[3], &all[4], &all[5]]);
    assert!(status(&api).last_successful_time.is_some());
    assert!(told(&api, "SawCompletedJob") && told(&api, "SuccessfulDelete"));
}

#[tokio::test(start_paused = true)]
async fn runs_that_overlap_are_left_out_or_replaced() {
    let (api, _running) = run(json!({ "concurrencyPolicy": "Forbid" })).await;
    api.until("one runs", |api| jobs(api).len() == 1).await;
    api.until("another is left out", |api| told(api, "JobAlreadyActive")).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(jobs(&api).len(), 1);

    let (api, _running) = run(json!({ "concurrencyPolicy": "Replace" })).await;
    api.until("one runs", |api| jobs(api).len() == 1).await;
    let first = jobs(&api);
    api.until("the next replaces it", |api| jobs(api) != first && jobs(api).len() == 1).await;
    api.until("and is the only one", |api| active(api) == jobs(api)).await;
}

#[tokio::test(start_paused = true)]
async fn suspended_and_unreadable_schedules_make_no_jobs() {
    let (api, _running) = run(json!({ "suspend": true })).await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(jobs(&api).is_empty());
    for (change, reason) in [
        (json!({ "suspend": false, "schedule": "* * *" }), "UnparseableSchedule"),
        (json!({ "schedule": "* * * * *", "timeZone": "Mars/Crater" }), "UnknownTimeZone"),
        (json!({ "schedule": "59 23 31 2 *", "timeZone": null }), "InvalidSchedule"),
    ] {
        api.patch::<CronJob>("default", "tick", json!({ "spec": change }));
        api.until("the user hears why", |api| told(api, reason)).await;
        assert!(jobs(&api).is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_last_of_missed_runs_is_made_up_for() {
    let (api, running) = run(json!({ "suspend": true })).await;
    running.stop().await;
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    api.patch::<CronJob>("default", "tick", json!({ "spec": { "suspend": false } }));
    let _running = Running::start(&api, &["cronjob"]);
    api.until("many were missed", |api| told(api, "TooManyMissedTimes")).await;
    api.until("one is made", |api| jobs(api).len() == 1).await;
    let minute: i64 = jobs(&api)[0].strip_prefix("tick-").unwrap().parse().unwrap();
    assert!(now().as_second() / 60 - minute <= 1);
}

#[tokio::test(start_paused = true)]
async fn job_that_is_gone_does_not_count_as_running() {
    let (api, _running) = run(json!({ "concurrencyPolicy": "Forbid" })).await;
    api.until("one runs", |api| active(api).len() == 1).await;
    let name = active(&api).remove(0);
    api.remove::<Job>("default", &name, &hawser_api::client::DeleteOptions::default());
    api.until("the next one runs", |api| active(api).first().is_some_and(|active| *active != name)).await;
    api.until("which is told", |api| told(api, "MissingJob")).await;
}
