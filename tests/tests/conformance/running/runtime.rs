//! How containers end: restart policies, and the last words of a container.

use serde_json::{Value, json};

use super::{Pod, restarts, script, test};
use crate::coverage::texts;

texts! {
    "Container Runtime, Restart Policy, Pod Phases" => should_run_with_the_expected_status,
    "Container Runtime, TerminationMessagePath, non-root user and non-default path" =>
        should_report_termination_message_if_terminationmessagepath_is_set_as_non_root_user_and_at_a_non_default_path,
    "Container Runtime, TerminationMessage, from container's log output of failing container" =>
        should_report_termination_message_from_log_output_if_terminationmessagepolicy_fallbacktologsonerror_is_set,
    "Container Runtime, TerminationMessage, from log output of succeeding container" =>
        should_report_termination_message_as_empty_when_pod_succeeds_and_terminationmessagepolicy_fallbacktologsonerror_is_set,
    "Container Runtime, TerminationMessage, from file of succeeding container" =>
        should_report_termination_message_from_file_when_pod_succeeds_and_terminationmessagepolicy_fallbacktologsonerror_is_set,
}

/// Container Runtime, Restart Policy, Pod Phases
#[test]
fn should_run_with_the_expected_status() {
    test(async |bed| {
        // Fails first, succeeds then, and after that runs on.
        let work = "echo run >> /count/runs; n=$(wc -l < /count/runs)
            [ $n -eq 1 ] && exit 1; [ $n -eq 2 ] && exit 0; while true; do sleep 1; done";
        let check = async |policy: &str, phase: &str, state: &str, count: i64| {
            let mut pod = script(work);
            pod["spec"]["restartPolicy"] = json!(policy);
            pod["spec"]["volumes"] = json!([{ "name": "count", "emptyDir": { "medium": "Memory" } }]);
            pod["spec"]["containers"][0]["volumeMounts"] =
                json!([{ "name": "count", "mountPath": "/count" }]);
            let pod = Pod::create(bed, pod).await;
            let seen = pod.until("is restarted as its policy says", |pod| {
                restarts(pod) == count
                    && pod["status"]["phase"] == phase
                    && pod["status"]["containerStatuses"][0]["state"][state].is_object()
            });
            let seen = seen.await;
            let ready = phase == "Running";
            assert_eq!(seen["status"]["containerStatuses"][0]["ready"], ready, "{}", seen["status"]);
            let conditions = seen["status"]["conditions"].as_array().expect("conditions");
            let is_ready = conditions.iter().find(|condition| condition["type"] == "Ready");
            assert_eq!(is_ready.expect("a condition")["status"], if ready { "True" } else { "False" });
            pod.delete().await;
            pod.gone().await;
        };
        futures::join!(
            check("Always", "Running", "running", 2),
            check("OnFailure", "Succeeded", "terminated", 1),
            check("Never", "Failed", "terminated", 0),
        );
    });
}

/// The message of a container that has ended.
fn ends_with_message(change: Value, work: &str, phase: &str, message: Option<&str>) {
    test(async |bed| {
        let mut pod = script(work);
        for (field, value) in change.as_object().into_iter().flatten() {
            pod["spec"]["containers"][0][field] = value.clone();
        }
        let ended = Pod::create(bed, pod).await.ended(phase).await;
        let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(state["message"].as_str(), message, "{state}");
    });
}

/// Container Runtime, TerminationMessagePath, non-root user and non-default path
#[test]
fn should_report_termination_message_if_terminationmessagepath_is_set_as_non_root_user_and_at_a_non_default_path()
 {
    let path = "/dev/termination-custom-log";
    let change = json!({ "terminationMessagePath": path, "securityContext": { "runAsUser": 10000 } });
    ends_with_message(change, &format!("echo -n DONE > {path}"), "Succeeded", Some("DONE"));
}

fn from_logs() -> Value {
    json!({ "terminationMessagePolicy": "FallbackToLogsOnError" })
}

/// Container Runtime, TerminationMessage, from container's log output of failing container
#[test]
fn should_report_termination_message_from_log_output_if_terminationmessagepolicy_fallbacktologsonerror_is_set()
 {
    ends_with_message(from_logs(), "echo -n DONE; false", "Failed", Some("DONE"));
}

/// Container Runtime, TerminationMessage, from log output of succeeding container
#[test]
fn should_report_termination_message_as_empty_when_pod_succeeds_and_terminationmessagepolicy_fallbacktologsonerror_is_set()
 {
    ends_with_message(from_logs(), "echo -n DONE; true", "Succeeded", None);
}

/// Container Runtime, TerminationMessage, from file of succeeding container
#[test]
fn should_report_termination_message_from_file_when_pod_succeeds_and_terminationmessagepolicy_fallbacktologsonerror_is_set()
 {
    let work = "echo -n OK > /dev/termination-log; echo DONE; true";
    ends_with_message(from_logs(), work, "Succeeded", Some("OK"));
}
