//! Jobs, whose pods end in all the ways that pods do.

use std::collections::BTreeSet;

use anyhow::ensure;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod as CorePod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, EvictParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{Pod, script, test};
use crate::{
    coverage::texts,
    steps::{as_json, counted, create, gone, list},
    support::{Bed, eventually, unique},
};

texts! {
    "Jobs, orphan pods, re-adoption" => should_adopt_matching_orphans_and_release_non_matching_pods,
    "Ensure pod failure policy allows to ignore failure matching on the DisruptionTarget condition" =>
        should_allow_to_use_a_pod_failure_policy_to_ignore_failure_matching_on_disruptiontarget_condition,
    "Verify Pod Failure policy allows to fail job early on exit code." =>
        should_allow_to_use_the_pod_failure_policy_on_exit_code_to_fail_the_job_early,
    "Ensure Pods of an Indexed Job get a unique index." =>
        should_create_pods_for_an_indexed_job_with_completion_indexes_and_specified_hostname,
    "Jobs, active pods, graceful termination" => should_delete_a_job,
    "Ensure that all indexes are executed for an indexed job with backoffLimitPerIndex despite some failing" =>
        should_execute_all_indexes_despite_some_failing_when_using_backofflimitperindex,
    "Mark indexes as failed when the FailIndex action is matched in podFailurePolicy" =>
        should_mark_indexes_as_failed_when_the_failindex_action_is_matched_in_podfailurepolicy,
    "Jobs, completion after task failure" =>
        should_run_a_job_to_completion_when_tasks_sometimes_fail_and_are_locally_restarted,
    "Terminate job execution when the maxFailedIndexes is exceeded" =>
        should_terminate_job_execution_when_the_number_of_failed_indexes_exceeds_maxfailedindexes,
    "Ensure that job with successPolicy succeeded when all indexes succeeded" =>
        should_succeeded_when_all_indexes_succeeded,
    "Ensure that job with successPolicy succeededCount rule succeeded even when some indexes remain pending" =>
        succeededcount_rule_should_succeeded_even_when_some_indexes_remain_pending,
    "Ensure that job with successPolicy succeededIndexes rule succeeded even when some indexes remain pending" =>
        succeededindexes_rule_should_succeeded_even_when_some_indexes_remain_pending,
}

/// A Job on the cluster.
struct Running {
    name: String,
    jobs: Api<Job>,
    pods: Api<CorePod>,
}

/// A Job whose pods run this script, with these fields beside the template.
async fn start(bed: &Bed, work: &str, fields: Value) -> Running {
    start_from(bed, script(work), fields).await
}

async fn start_from(bed: &Bed, pod: Value, fields: Value) -> Running {
    let mut spec = fields;
    spec["template"] = json!({ "spec": pod["spec"] });
    let job = json!({ "metadata": { "name": unique("job") }, "spec": spec });
    let jobs = bed.api::<Job>();
    let name = create(&jobs, job).await.name_any();
    Running { name, jobs, pods: bed.api() }
}

impl Running {
    fn selector(&self) -> String {
        format!("batch.kubernetes.io/job-name={}", self.name)
    }

    async fn pods(&self) -> Vec<CorePod> {
        list(&self.pods, &self.selector()).await
    }

    /// Waits until the Job has this condition, and returns its status.
    async fn has(&self, condition: &str) -> Value {
        eventually(&format!("the job is {condition}"), async || {
            let status = as_json(&self.jobs.get(&self.name).await?)["status"].clone();
            let mut conditions = status["conditions"].as_array().into_iter().flatten();
            ensure!(
                conditions.any(|found| found["type"] == condition && found["status"] == "True"),
                "{status}"
            );
            Ok(status)
        })
        .await
    }

    /// Waits until so many pods run.
    async fn active(&self, number: usize) -> Vec<CorePod> {
        eventually(&format!("{number} pods run"), async || {
            let pods = self.pods().await;
            let running = pods
                .iter()
                .filter(|pod| phase(pod) == "Running" && pod.metadata.deletion_timestamp.is_none());
            let running: Vec<_> = running.cloned().collect();
            ensure!(running.len() == number, "{} run", running.len());
            Ok(running)
        })
        .await
    }
}

fn phase(pod: &CorePod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

#[track_caller]
fn has_reason(status: &Value, condition: &str, reason: &str) {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    let found = conditions.find(|found| found["type"] == condition).expect("the condition is there");
    assert_eq!(found["reason"], reason, "{status}");
}

/// Jobs, completion after task failure
#[test]
fn should_run_a_job_to_completion_when_tasks_sometimes_fail_and_are_locally_restarted() {
    test(async |bed| {
        // What a pod's containers share outlives the first one.
        let mut pod = script("[ -e /data/tried ] && exit 0; touch /data/tried; exit 1");
        pod["spec"]["restartPolicy"] = json!("OnFailure");
        pod["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
        let job =
            start_from(bed, pod, json!({ "parallelism": 2, "completions": 4, "backoffLimit": 999 })).await;
        assert_eq!(job.has("Complete").await["succeeded"], 4);
        let pods = job.pods().await;
        assert_eq!(pods.len(), 4);
        for pod in pods {
            assert_eq!((phase(&pod), super::restarts(&as_json(&pod))), ("Succeeded", 1));
        }
    });
}

/// Ensure Pods of an Indexed Job get a unique index.
#[test]
fn should_create_pods_for_an_indexed_job_with_completion_indexes_and_specified_hostname() {
    test(async |bed| {
        let fields = json!({ "completionMode": "Indexed", "parallelism": 2, "completions": 4 });
        let job = start(bed, "echo $(hostname) $JOB_COMPLETION_INDEX", fields).await;
        assert_eq!(job.has("Complete").await["completedIndexes"], "0-3");
        let mut indexes = BTreeSet::new();
        for pod in job.pods().await {
            let index = pod.annotations()["batch.kubernetes.io/job-completion-index"].clone();
            let host = format!("{}-{index}", job.name);
            assert!(pod.name_any().starts_with(&format!("{host}-")), "{}", pod.name_any());
            let said = Pod::at(bed, &pod.name_any()).log("main").await;
            assert_eq!(said, format!("{host} {index}\n"));
            indexes.insert(index);
        }
        assert_eq!(indexes, ["0", "1", "2", "3"].map(str::to_owned).into());
    });
}

/// Jobs, active pods, graceful termination
#[test]
fn should_delete_a_job() {
    test(async |bed| {
        let job = start(bed, "sleep 3600", json!({ "parallelism": 2, "completions": 4 })).await;
        job.active(2).await;
        job.jobs.delete(&job.name, &DeleteParams::foreground()).await.expect("the job is deleted");
        gone(&job.jobs, &job.name).await;
        counted(&job.pods, &job.selector(), 0).await;
    });
}

/// Jobs, orphan pods, re-adoption
#[test]
fn should_adopt_matching_orphans_and_release_non_matching_pods() {
    test(async |bed| {
        let job = start(bed, "sleep 3600", json!({ "parallelism": 2, "completions": 4 })).await;
        let name = job.active(2).await[0].name_any();
        let change = async |change: Value| {
            let patch = Patch::Merge(change);
            job.pods.patch(&name, &PatchParams::default(), &patch).await.expect("the pod is patched");
        };
        let owner = async |expected: Option<&str>| {
            eventually("the pod's owner is as its labels say", async || {
                let pod = job.pods.get(&name).await?;
                let found = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
                ensure!(found.map(|owner| &*owner.name) == expected, "{found:?}");
                Ok(())
            })
            .await;
        };
        change(json!({ "metadata": { "ownerReferences": null } })).await;
        owner(Some(&job.name)).await;
        let labels = job.pods.get(&name).await.expect("the pod is read").labels().clone();
        let none: serde_json::Map<_, _> = labels.keys().map(|key| (key.clone(), Value::Null)).collect();
        change(json!({ "metadata": { "labels": none } })).await;
        owner(None).await;
        Pod::at(bed, &name).delete().await;
    });
}

/// Verify Pod Failure policy allows to fail job early on exit code.
#[test]
fn should_allow_to_use_the_pod_failure_policy_on_exit_code_to_fail_the_job_early() {
    test(async |bed| {
        let rule = json!({ "action": "FailJob", "onExitCodes": { "operator": "In", "values": [42] } });
        let fields = json!({
            "completionMode": "Indexed", "parallelism": 2, "completions": 4, "backoffLimit": 100,
            "podFailurePolicy": { "rules": [rule] },
        });
        let job = start(bed, "[ $JOB_COMPLETION_INDEX = 0 ] && exit 42; sleep 3600", fields).await;
        let status = job.has("Failed").await;
        has_reason(&status, "Failed", "PodFailurePolicy");
        assert_eq!(status["failed"].as_i64().map(|failed| failed <= 2), Some(true), "{status}");
        assert!(job.pods().await.len() <= 3, "nothing is tried again");
    });
}

/// Ensure pod failure policy allows to ignore failure matching on the DisruptionTarget condition
#[test]
fn should_allow_to_use_a_pod_failure_policy_to_ignore_failure_matching_on_disruptiontarget_condition() {
    test(async |bed| {
        // All nodes are this machine, and have its directories.
        let markers = tempfile::tempdir().expect("a directory");
        let rules = json!([
            {
                "action": "Ignore",
                "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }],
            },
            { "action": "FailJob", "onExitCodes": { "operator": "NotIn", "values": [0] } },
        ]);
        let fields = json!({
            "completionMode": "Indexed", "parallelism": 2, "completions": 4, "backoffLimit": 0,
            "podFailurePolicy": { "rules": rules },
        });
        let mut pod = script(
            "mark=/markers/$JOB_COMPLETION_INDEX; [ -e $mark ] && exit 0
             trap 'exit 1' TERM; touch $mark; while true; do sleep 0.2; done",
        );
        let path = markers.path().to_str().expect("a path");
        pod["spec"]["terminationGracePeriodSeconds"] = json!(20);
        pod["spec"]["volumes"] = json!([{ "name": "markers", "hostPath": { "path": path } }]);
        pod["spec"]["containers"][0]["volumeMounts"] =
            json!([{ "name": "markers", "mountPath": "/markers" }]);
        let job = start_from(bed, pod, fields).await;
        for index in 0..4 {
            let name = eventually("the index has a pod that runs", async || {
                ensure!(markers.path().join(index.to_string()).exists());
                let of_index = |pod: &&CorePod| {
                    pod.annotations()["batch.kubernetes.io/job-completion-index"] == index.to_string()
                };
                let pods = job.pods().await;
                let pod = pods.iter().filter(of_index).find(|pod| phase(pod) == "Running");
                pod.map(ResourceExt::name_any).ok_or_else(|| anyhow::anyhow!("none"))
            })
            .await;
            job.pods.evict(&name, &EvictParams::default()).await.expect("the pod is evicted");
        }
        let status = job.has("Complete").await;
        assert_eq!(
            (&status["completedIndexes"], status["failed"].as_i64().unwrap_or(0)),
            (&json!("0-3"), 0),
            "{status}"
        );
    });
}

/// Ensure that all indexes are executed for an indexed job with backoffLimitPerIndex despite some failing
#[test]
fn should_execute_all_indexes_despite_some_failing_when_using_backofflimitperindex() {
    test(async |bed| {
        let fields = json!({
            "completionMode": "Indexed", "parallelism": 2, "completions": 4, "backoffLimitPerIndex": 1,
        });
        let job = start(bed, "exit $((JOB_COMPLETION_INDEX % 2))", fields).await;
        let status = job.has("Failed").await;
        has_reason(&status, "Failed", "FailedIndexes");
        assert_eq!((&status["completedIndexes"], &status["failedIndexes"]), (&json!("0,2"), &json!("1,3")));
        // Each that fails is tried twice.
        assert_eq!((&status["succeeded"], &status["failed"]), (&json!(2), &json!(4)));
    });
}

/// Mark indexes as failed when the FailIndex action is matched in podFailurePolicy
#[test]
fn should_mark_indexes_as_failed_when_the_failindex_action_is_matched_in_podfailurepolicy() {
    test(async |bed| {
        let rule = json!({ "action": "FailIndex", "onExitCodes": { "operator": "In", "values": [42] } });
        let fields = json!({
            "completionMode": "Indexed", "parallelism": 2, "completions": 2, "backoffLimitPerIndex": 1,
            "podFailurePolicy": { "rules": [rule] },
        });
        let job = start(bed, "[ $JOB_COMPLETION_INDEX = 0 ] && exit 42; exit 0", fields).await;
        let status = job.has("Failed").await;
        has_reason(&status, "Failed", "FailedIndexes");
        assert_eq!((&status["completedIndexes"], &status["failedIndexes"]), (&json!("1"), &json!("0")));
        assert_eq!((&status["succeeded"], &status["failed"]), (&json!(1), &json!(1)));
    });
}

/// Terminate job execution when the maxFailedIndexes is exceeded
#[test]
fn should_terminate_job_execution_when_the_number_of_failed_indexes_exceeds_maxfailedindexes() {
    test(async |bed| {
        let fields = json!({
            "completionMode": "Indexed", "parallelism": 2, "completions": 10,
            "backoffLimitPerIndex": 0, "maxFailedIndexes": 1,
        });
        let job = start(bed, "exit 1", fields).await;
        let status = job.has("Failed").await;
        has_reason(&status, "Failed", "MaxFailedIndexesExceeded");
        // Two are too many, whichever two end first, and at most two more were on their way.
        let failed = status["failedIndexes"].as_str().expect("indexes");
        assert!(["0,1", "0,2", "1,2", "0-2"].contains(&failed), "{status}");
        let pods = job.pods().await.len();
        assert!((2..=4).contains(&pods), "{pods} pods");
    });
}

/// A Job that has succeeded by its policy: index 0 succeeds at once, and others do as `others` says.
fn succeeds(others: &str, rule: Value, completed: &str) {
    test(async |bed| {
        let fields = json!({
            "completionMode": "Indexed", "parallelism": 2, "completions": 2, "backoffLimit": 6,
            "successPolicy": { "rules": [rule] },
        });
        let job = start(bed, &format!("[ $JOB_COMPLETION_INDEX = 0 ] && exit 0; {others}"), fields).await;
        let status = job.has("SuccessCriteriaMet").await;
        has_reason(&status, "SuccessCriteriaMet", "SuccessPolicy");
        let status = job.has("Complete").await;
        has_reason(&status, "Complete", "SuccessPolicy");
        assert_eq!(status["completedIndexes"], completed, "{status}");
        assert_eq!(status["active"].as_i64().unwrap_or(0), 0, "{status}");
        // Who still ran is ended.
        eventually("no pod runs", async || {
            let pods = job.pods().await;
            ensure!(pods.iter().all(|pod| phase(pod) != "Running"));
            Ok(())
        })
        .await;
    });
}

/// Ensure that job with successPolicy succeeded when all indexes succeeded
#[test]
fn should_succeeded_when_all_indexes_succeeded() {
    succeeds("exit 0", json!({ "succeededCount": 2 }), "0,1");
}

/// Ensure that job with successPolicy succeededCount rule succeeded even when some indexes remain pending
#[test]
fn succeededcount_rule_should_succeeded_even_when_some_indexes_remain_pending() {
    succeeds("sleep 3600", json!({ "succeededCount": 1 }), "0");
}

/// Ensure that job with successPolicy succeededIndexes rule succeeded even when some indexes remain pending
#[test]
fn succeededindexes_rule_should_succeeded_even_when_some_indexes_remain_pending() {
    succeeds("sleep 3600", json!({ "succeededIndexes": "0" }), "0");
}
