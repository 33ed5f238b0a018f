//! Scenarios: jobs whose pods succeed, fail, are lost and counted, on an API that fails now and then.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hawser_api::client::DeleteOptions;
use k8s_openapi::api::{
    batch::v1::{Job, JobStatus},
    core::v1::{Event, Pod},
};
use serde_json::{Value, json};

use super::pod::FINALIZER;
use crate::{
    meta::{MetaExt, now, pod_is_active},
    testing::{FakeApi, Fault, Running, ensure, run_nodes, template},
};

const ALONE: &[&str] = &["job", "ttl-after-finished"];

/// As the API makes it, with the fields of `more`.
fn job(image: &str, more: Value) -> Value {
    let mut job = json!({
        "metadata": { "name": "work", "namespace": "default" },
        "spec": {
            "completions": 3,
            "parallelism": 2,
            "backoffLimit": 6,
            "completionMode": "NonIndexed",
            "podReplacementPolicy": "TerminatingOrFailed",
            "selector": { "matchLabels": { "app": "work" } },
            "template": template("work", image),
        },
    });
    job["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
    for (field, value) in more.as_object().unwrap() {
        job["spec"][field] = value.clone();
    }
    job
}

fn read(api: &FakeApi) -> Job {
    api.read("default", "work").unwrap_or_default()
}

fn status(api: &FakeApi) -> JobStatus {
    read(api).status.unwrap_or_default()
}

fn counts(api: &FakeApi) -> [i32; 3] {
    let status = status(api);
    [status.active, status.succeeded, status.failed].map(Option::unwrap_or_default)
}

/// The reason of a condition that is true.
fn reason(api: &FakeApi, kind: &str) -> Option<String> {
    let status = status(api);
    super::outcome::find(Some(&status), kind).map(|condition| condition.reason.clone().unwrap_or_default())
}

fn told(api: &FakeApi, reason: &str) -> bool {
    api.all::<Event>().iter().any(|event| event.reason.as_deref() == Some(reason))
}

fn active(api: &FakeApi) -> Vec<Pod> {
    api.all::<Pod>().into_iter().filter(pod_is_active).collect()
}

fn held(api: &FakeApi) -> usize {
    api.all::<Pod>().iter().filter(|pod| super::pod::has_finalizer(pod)).count()
}

fn index_of(pod: &Pod) -> i32 {
    pod.annotations()["batch.kubernetes.io/job-completion-index"].parse().unwrap()
}

fn end(api: &FakeApi, pod: &Pod, phase: &str, code: i32) {
    let container = json!({ "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "terminated": { "exitCode": code, "finishedAt": now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string() } } });
    let ended = json!({ "phase": phase, "conditions": [], "containerStatuses": [container] });
    api.patch_status::<Pod>("default", pod.name(), json!({ "status": ended }));
}

async fn run(job: Value) -> (Arc<FakeApi>, Running) {
    let api = FakeApi::new();
    tokio::spawn(run_nodes(api.clone()));
    let running = Running::start(&api, ALONE);
    api.put::<Job>(job);
    (api, running)
}

#[tokio::test(start_paused = true)]
async fn job_runs_as_many_at_a_time_as_it_may_and_completes() {
    let (api, _running) = run(job("succeeds", json!({}))).await;
    api.check_writes(|objects| {
        let running = objects.iter().filter(|(key, pod)| {
            key.0 == "pods" && !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
        });
        let running = running.count();
        ensure(running <= 2, format!("{running} pods run"))
    });
    api.until("it is complete", |api| reason(api, "Complete").is_some()).await;
    assert_eq!(counts(&api), [0, 3, 0]);
    assert_eq!(reason(&api, "SuccessCriteriaMet").as_deref(), Some("CompletionsReached"));
    let status = status(&api);
    assert!(status.start_time.is_some() && status.completion_time.is_some());
    assert_eq!((status.ready, status.terminating), (Some(0), Some(0)));
    assert_eq!((api.all::<Pod>().len(), held(&api)), (3, 0));
    api.until("which is told", |api| told(api, "Completed") && told(api, "SuccessfulCreate")).await;
}

#[tokio::test(start_paused = true)]
async fn no_pod_is_counted_twice_or_lost_whatever_is_cut_off() {
    for seed in 0..12_u32 {
        let api = FakeApi::new();
        tokio::spawn(run_nodes(api.clone()));
        let mut writes = seed;
        api.fault(move |verb, target| {
            if !matches!(&*target.resource.resource, "pods" | "jobs") {
                return Fault::None;
            }
            writes = writes.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match (writes >> 16) % 6 {
                0 => Fault::Fails,
                1 if verb != "create" => Fault::AnswerLost,
                _ => Fault::None,
            }
        });
        let seen = Arc::new(parking_lot::Mutex::new((BTreeSet::new(), BTreeSet::new())));
        let seer = seen.clone();
        api.check_writes(move |objects| {
            let (succeeded, deleted) = &mut *seer.lock();
            for (key, pod) in objects.iter().filter(|(key, _)| key.0 == "pods") {
                if pod["metadata"].get("deletionTimestamp").is_some() {
                    deleted.insert(key.2.clone());
                }
                if pod["status"]["phase"] == "Succeeded" {
                    succeeded.insert(key.2.clone());
                }
            }
            Ok(())
        });
        let mut running = Running::start(&api, ALONE);
        let mode = if seed % 2 == 0 { "NonIndexed" } else { "Indexed" };
        let wanted = json!({ "completions": 12, "parallelism": 5, "completionMode": mode });
        api.put::<Job>(job("succeeds", wanted));
        for turn in 0..8 {
            let resource = ["pods", "jobs.batch"][turn % 2];
            api.hold(resource);
            tokio::time::sleep(Duration::from_millis(700)).await;
            api.release(resource);
            if turn % 3 == 0 {
                drop(running);
                running = Running::start(&api, ALONE);
            }
        }
        api.until("it is complete", |api| reason(api, "Complete").is_some()).await;
        assert_eq!(counts(&api), [0, 12, 0], "seed {seed}");
        // Every success is counted once, but for pods that were too many and succeeded while they were deleted.
        let (succeeded, deleted) = seen.lock().clone();
        let range = 12..=12 + deleted.len();
        assert!(range.contains(&succeeded.len()), "seed {seed}: {succeeded:?}, {deleted:?}");
        api.until("no pod is held", |api| held(api) == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_made_up_for_more_and_more_slowly_up_to_the_limit() {
    let (api, _running) =
        run(job("fails", json!({ "completions": 1, "parallelism": 1, "backoffLimit": 2 }))).await;
    let start = now();
    api.until("it has failed", |api| reason(api, "Failed").is_some()).await;
    assert_eq!(reason(&api, "Failed").as_deref(), Some("BackoffLimitExceeded"));
    assert_eq!(reason(&api, "FailureTarget").as_deref(), Some("BackoffLimitExceeded"));
    assert_eq!(counts(&api), [0, 0, 3]);
    let took = now().duration_since(start).as_secs();
    // Ten and twenty seconds between three pods.
    assert!((28..60).contains(&took), "{took} s");
    assert_eq!(held(&api), 0);
    api.until("which is told", |api| told(api, "BackoffLimitExceeded")).await;
}

#[tokio::test(start_paused = true)]
async fn deadline_ends_what_runs() {
    let (api, _running) = run(job("a", json!({ "activeDeadlineSeconds": 60 }))).await;
    api.until("two run", |api| status(api).ready == Some(2)).await;
    api.until("it has failed", |api| reason(api, "Failed").is_some()).await;
    assert_eq!(reason(&api, "Failed").as_deref(), Some("DeadlineExceeded"));
    api.until("no pod is left", |api| active(api).is_empty() && held(api) == 0).await;
    assert_eq!(counts(&api), [0, 0, 2]);
}

#[tokio::test(start_paused = true)]
async fn suspended_job_has_no_pods_and_its_time_stands_still() {
    let (api, _running) = run(job("a", json!({ "suspend": true, "activeDeadlineSeconds": 100 }))).await;
    api.until("it says so", |api| reason(api, "Suspended").as_deref() == Some("JobSuspended")).await;
    assert!(status(&api).start_time.is_none() && api.all::<Pod>().is_empty());
    tokio::time::sleep(Duration::from_secs(200)).await;
    api.patch::<Job>("default", "work", json!({ "spec": { "suspend": false } }));
    api.until("it runs", |api| status(api).ready == Some(2) && reason(api, "Suspended").is_none()).await;
    api.patch::<Job>("default", "work", json!({ "spec": { "suspend": true } }));
    api.until("its pods are gone, and are no failures", |api| {
        api.all::<Pod>().is_empty() && counts(api) == [0, 0, 0]
    })
    .await;
    api.until("both are told", |api| told(api, "Suspended") && told(api, "Resumed")).await;
}

#[tokio::test(start_paused = true)]
async fn every_index_has_one_pod_and_one_success() {
    let (api, _running) = run(job("a", json!({ "completionMode": "Indexed", "completions": 4 }))).await;
    api.until("the first two run", |api| status(api).ready == Some(2)).await;
    let mut pods = active(&api);
    pods.sort_by_key(index_of);
    assert_eq!(pods.iter().map(index_of).collect::<Vec<_>>(), [0, 1]);
    let spec = pods[1].spec.as_ref().unwrap();
    assert!(pods[1].name().starts_with("work-1-") && spec.hostname.as_deref() == Some("work-1"));
    assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].name, "JOB_COMPLETION_INDEX");
    assert_eq!(pods[1].metadata.finalizers.as_deref(), Some(&[FINALIZER.to_owned()][..]));
    end(&api, &pods[1], "Succeeded", 0);
    end(&api, &pods[0], "Failed", 1);
    api.until("the second is done, the first comes again", |api| {
        status(api).completed_indexes.as_deref() == Some("1") && active(api).len() == 2
    })
    .await;
    let mut running: Vec<i32> = active(&api).iter().map(index_of).collect();
    running.sort_unstable();
    assert_eq!(running, [0, 2]);
    while reason(&api, "Complete").is_none() {
        for pod in active(&api) {
            end(&api, &pod, "Succeeded", 0);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(status(&api).completed_indexes.as_deref(), Some("0-3"));
    assert_eq!(counts(&api), [0, 4, 1]);
}

#[tokio::test(start_paused = true)]
async fn each_index_fails_for_itself() {
    let wanted = json!({ "completionMode": "Indexed", "completions": 2, "backoffLimitPerIndex": 1,
                         "backoffLimit": i32::MAX });
    let (api, _running) = run(job("a", wanted)).await;
    let mut seen = Vec::new();
    while reason(&api, "Failed").is_none() {
        for pod in active(&api) {
            if index_of(&pod) == 0 {
                seen.push(pod.annotations()["batch.kubernetes.io/job-index-failure-count"].clone());
                end(&api, &pod, "Failed", 1);
            } else {
                end(&api, &pod, "Succeeded", 0);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(seen, ["0", "1"]);
    assert_eq!(reason(&api, "Failed").as_deref(), Some("FailedIndexes"));
    let status = status(&api);
    assert_eq!(
        (status.completed_indexes.as_deref(), status.failed_indexes.as_deref()),
        (Some("1"), Some("0"))
    );
    assert_eq!((counts(&api), held(&api)), ([0, 1, 2], 0));
}

#[tokio::test(start_paused = true)]
async fn policies_decide_over_failures_and_successes() {
    let rule = |action: &str, code: i32| json!({ "action": action, "onExitCodes": { "operator": "In", "values": [code] } });
    let policy = json!({ "rules": [rule("Ignore", 3), rule("FailJob", 4)] });
    let wanted = json!({ "podFailurePolicy": policy, "podReplacementPolicy": "Failed", "backoffLimit": 0 });
    let (api, _running) = run(job("a", wanted)).await;
    api.until("two run", |api| status(api).ready == Some(2)).await;
    end(&api, &active(&api)[0], "Failed", 3);
    api.until("an ignored failure is made up for", |api| {
        api.all::<Pod>().len() == 3 && status(api).ready == Some(2)
    })
    .await;
    assert_eq!(counts(&api), [2, 0, 0]);
    end(&api, &active(&api)[0], "Failed", 4);
    api.until("another ends the job", |api| reason(api, "Failed").as_deref() == Some("PodFailurePolicy"))
        .await;
    api.until("and all its pods", |api| active(api).is_empty()).await;

    let success = json!({ "rules": [{ "succeededIndexes": "0" }] });
    let wanted = json!({ "completionMode": "Indexed", "successPolicy": success });
    let (api, _running) = run(job("a", wanted)).await;
    api.until("two run", |api| status(api).ready == Some(2)).await;
    let leader = active(&api).into_iter().find(|pod| index_of(pod) == 0).unwrap();
    end(&api, &leader, "Succeeded", 0);
    api.until("the leader's success is enough", |api| {
        reason(api, "Complete").as_deref() == Some("SuccessPolicy") && active(api).is_empty()
    })
    .await;
    assert_eq!(counts(&api), [0, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn finished_jobs_go_when_their_time_is_up() {
    let (api, _running) = run(job("succeeds", json!({ "ttlSecondsAfterFinished": 30 }))).await;
    api.until("it is complete", |api| reason(api, "Complete").is_some()).await;
    assert!(!read(&api).is_deleting());
    let finished = now();
    api.until("and is deleted with its pods", |api| read(api).is_deleting()).await;
    assert!(now().duration_since(finished).as_secs() >= 29);
    assert_eq!(read(&api).metadata.finalizers.unwrap(), ["foregroundDeletion"]);
}

#[tokio::test(start_paused = true)]
async fn orphans_are_adopted_and_what_no_job_counts_is_let_go() {
    let (api, _running) = run(job("a", json!({}))).await;
    api.until("two run", |api| status(api).ready == Some(2)).await;
    let pod = active(&api).remove(0);
    let orphan = json!({ "metadata": { "ownerReferences": null, "finalizers": null } });
    api.patch::<Pod>("default", pod.name(), orphan);
    api.until("it is adopted and held again", |api| {
        let pod: Pod = api.read("default", pod.name()).unwrap();
        pod.controller().is_some() && super::pod::has_finalizer(&pod)
    })
    .await;
    api.patch::<Pod>("default", pod.name(), json!({ "metadata": { "labels": { "app": "other" } } }));
    api.until("it is released and replaced", |api| {
        api.read::<Pod>("default", pod.name()).is_some_and(|pod| pod.controller().is_none())
            && status(api).ready == Some(2)
    })
    .await;
    api.remove::<Job>("default", "work", &DeleteOptions::default());
    api.until("pods of a job that is gone are not held", |api| {
        api.all::<Pod>().iter().all(|pod| pod.controller().is_none() || !super::pod::has_finalizer(pod))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn job_of_another_controller_is_left_alone() {
    let (api, _running) = run(job("a", json!({ "managedBy": "example.com/queue" }))).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(api.all::<Pod>().is_empty() && read(&api).status.is_none());
}
