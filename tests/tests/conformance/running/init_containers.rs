//! Init containers: the others start when all of them have succeeded, and only then.

use serde_json::{Value, json};

use super::{Pod, busybox, script, sleeper, test};
use crate::coverage::texts;

texts! {
    "init-container-starts-app-restartnever-pod" => should_invoke_init_containers_on_a_restartnever_pod,
    "init-container-starts-app-restartalways-pod" => should_invoke_init_containers_on_a_restartalways_pod,
    "init-container-fails-stops-app-restartnever-pod" =>
        should_not_start_app_containers_and_fail_the_pod_if_init_containers_fail_on_a_restartnever_pod,
    "init-container-fails-stops-app-restartalways-pod" =>
        should_not_start_app_containers_if_init_containers_fail_on_a_restartalways_pod,
}

/// A pod whose two init containers run these commands.
fn after(mut pod: Value, policy: &str, first: &str, second: &str) -> Value {
    let init = |name: &str, command: &str| json!({ "name": name, "image": busybox(), "command": [command] });
    pod["spec"]["restartPolicy"] = json!(policy);
    pod["spec"]["initContainers"] = json!([init("first", first), init("second", second)]);
    pod
}

/// Both init containers have succeeded, the first one first.
#[track_caller]
fn initialized(pod: &Value) {
    assert_eq!(condition(pod)["status"], "True");
    let statuses = pod["status"]["initContainerStatuses"].as_array().expect("statuses");
    assert_eq!(statuses.len(), 2);
    for status in statuses {
        assert_eq!(status["ready"], true, "{status}");
        assert_eq!(status["state"]["terminated"]["exitCode"], 0, "{status}");
    }
    let at =
        |number: usize, field: &str| statuses[number]["state"]["terminated"][field].as_str().expect("a time");
    assert!(at(0, "finishedAt") <= at(1, "startedAt"), "{statuses:?}");
}

fn condition(pod: &Value) -> &Value {
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == "Initialized").unwrap_or(&Value::Null)
}

/// The container has not been started.
#[track_caller]
fn not_started(pod: &Value) {
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["state"]["waiting"]["reason"], "PodInitializing", "{status}");
    assert_eq!((&status["restartCount"], status["containerID"].as_str()), (&json!(0), None), "{status}");
    assert_eq!(condition(pod)["status"], "False");
    assert_eq!(condition(pod)["reason"], "ContainersNotInitialized");
}

/// init-container-starts-app-restartnever-pod
#[test]
fn should_invoke_init_containers_on_a_restartnever_pod() {
    test(async |bed| {
        let pod = Pod::create(bed, after(script("true"), "Never", "true", "true")).await;
        let seen = pod.ended("Succeeded").await;
        initialized(&seen);
        assert_eq!(seen["status"]["containerStatuses"][0]["restartCount"], 0);
    });
}

/// init-container-starts-app-restartalways-pod
#[test]
fn should_invoke_init_containers_on_a_restartalways_pod() {
    test(async |bed| {
        let seen = Pod::create(bed, after(sleeper(), "Always", "true", "true")).await.ready().await;
        initialized(&seen);
        assert!(seen["status"]["containerStatuses"][0]["state"]["running"].is_object(), "{seen}");
    });
}

/// init-container-fails-stops-app-restartnever-pod
#[test]
fn should_not_start_app_containers_and_fail_the_pod_if_init_containers_fail_on_a_restartnever_pod() {
    test(async |bed| {
        let pod = Pod::create(bed, after(sleeper(), "Never", "true", "false")).await;
        let seen = pod.ended("Failed").await;
        not_started(&seen);
        let statuses = &seen["status"]["initContainerStatuses"];
        assert_eq!(statuses[0]["state"]["terminated"]["exitCode"], 0, "{statuses}");
        assert_eq!(statuses[1]["state"]["terminated"]["exitCode"], 1, "{statuses}");
        assert_eq!(condition(&seen)["message"], "containers with incomplete status: [second]");
    });
}

/// init-container-fails-stops-app-restartalways-pod
#[test]
fn should_not_start_app_containers_if_init_containers_fail_on_a_restartalways_pod() {
    test(async |bed| {
        let pod = Pod::create(bed, after(sleeper(), "Always", "false", "true")).await;
        // Two back-offs: 10 and 20 seconds.
        let seen = pod.until("the first init container is restarted again and again", |pod| {
            not_started_or_new(pod);
            pod["status"]["initContainerStatuses"][0]["restartCount"].as_i64() >= Some(2)
        });
        let seen = seen.await;
        not_started(&seen);
        assert_eq!(seen["status"]["phase"], "Pending");
        assert_eq!(condition(&seen)["message"], "containers with incomplete status: [first second]");
        let second = &seen["status"]["initContainerStatuses"][1];
        assert_eq!(second["state"]["waiting"]["reason"], "PodInitializing", "{second}");
    });
}

/// At no time on the way has the container been started.
#[track_caller]
fn not_started_or_new(pod: &Value) {
    if pod["status"]["containerStatuses"].is_array() {
        not_started(pod);
    }
}
