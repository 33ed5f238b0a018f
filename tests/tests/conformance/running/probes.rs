//! Probes: who fails its liveness probe is restarted, and nobody else.
//!
//! That nothing is restarted is looked at when the probe has been made many times, which the container counts.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};

use super::{Pod, restarts, script, server, test, test_within, web};
use crate::{coverage::texts, support::eventually};

texts! {
    "Pod readiness probe, with initial delay" =>
        with_readiness_probe_should_not_be_ready_before_initial_delay_and_never_restart,
    "Pod readiness probe, failure" => with_readiness_probe_that_fails_should_never_be_ready_and_never_restart,
    "Pod liveness probe, using local file, restart" => should_be_restarted_with_a_exec_cat_tmp_health_liveness_probe,
    "Pod liveness probe, using local file, no restart" =>
        should_not_be_restarted_with_a_exec_cat_tmp_health_liveness_probe,
    "Pod liveness probe, using http endpoint, restart" => should_be_restarted_with_a_healthz_http_liveness_probe,
    "Pod liveness probe, using http endpoint, failure" =>
        should_not_be_restarted_with_a_healthz_http_liveness_probe,
    "Pod liveness probe, using tcp socket, no restart" => should_not_be_restarted_with_a_tcp_8080_liveness_probe,
    "Pod liveness probe, using grpc call, success" => should_not_be_restarted_with_a_grpc_liveness_probe,
    "Pod liveness probe, using grpc call, failure" => should_be_restarted_with_a_grpc_liveness_probe,
    "Pod liveness probe, using http endpoint, multiple restarts (slow)" =>
        should_have_monotonically_increasing_restart_count,
}

/// How often a probe is made before its outcome is believed.
const MANY: usize = 10;

/// A probe every second, with time enough on a busy machine.
fn probe(handler: Value, failures: u8) -> Value {
    let mut probe = handler;
    probe["periodSeconds"] = json!(1);
    probe["timeoutSeconds"] = json!(20);
    probe["failureThreshold"] = json!(failures);
    probe
}

fn exec(words: &str) -> Value {
    json!({ "exec": { "command": ["sh", "-c", words] } })
}

fn http(path: &str) -> Value {
    json!({ "httpGet": { "path": path, "port": 8080 } })
}

fn with_probe(mut pod: Value, kind: &str, probe: Value) -> Value {
    pod["spec"]["restartPolicy"] = json!("Always");
    pod["spec"]["containers"][0][kind] = probe;
    pod
}

/// A server whose `/readyz` is an error some seconds after the start.
fn failing_server(seconds: u8) -> Value {
    let mut pod = server();
    let command = format!("(sleep {seconds}; touch /tmp/unready) & exec /demo serve");
    pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", command]);
    pod
}

fn grpc_server() -> Value {
    let mut pod = server();
    pod["spec"]["containers"][0] = json!({ "name": "main", "image": web(), "args": ["grpc", "5000"] });
    pod
}

/// Waits for the first restart, which an event explains.
async fn restarted(pod: &Pod) {
    pod.until("is restarted", |pod| restarts(pod) >= 1).await;
    let events = kube::Api::<k8s_openapi::api::core::v1::Event>::namespaced(
        pod.client.clone(),
        pod.api.namespace().unwrap_or_default(),
    );
    eventually("an event tells of the probe", async || {
        let events = crate::steps::list(&events, "").await;
        let told = |reason: &str| {
            events.iter().any(|event| {
                event.involved_object.name.as_deref() == Some(&pod.name)
                    && event.reason.as_deref() == Some(reason)
            })
        };
        ensure!(told("Unhealthy") && told("Killing"), "{events:?}");
        Ok(())
    })
    .await;
}

/// Waits until the container has counted as many probes as it takes, and nothing has come of them.
async fn stays(pod: &Pod, counting: &str) {
    let count = |said: &str| said.trim().parse::<usize>().unwrap_or_default();
    pod.sees("main", counting, |said| count(said) >= MANY).await;
    let seen = pod.get().await.expect("the pod is read");
    assert_eq!(restarts(&seen), 0, "{}", seen["status"]);
}

/// Waits until the container's log has as many lines like this as it takes, and nothing has come of them.
async fn stays_by_log(pod: &Pod, line: &str) {
    eventually("the probe is made many times", async || {
        let params = kube::api::LogParams::default();
        let made = pod.api.logs(&pod.name, &params).await?.lines().filter(|found| *found == line).count();
        ensure!(made >= MANY, "{made} times");
        Ok(())
    })
    .await;
    let seen = pod.get().await.expect("the pod is read");
    assert_eq!(restarts(&seen), 0, "{}", seen["status"]);
}

/// Pod readiness probe, with initial delay
#[test]
fn with_readiness_probe_should_not_be_ready_before_initial_delay_and_never_restart() {
    test(async |bed| {
        const DELAY: i64 = 8;
        let mut readiness = probe(http("/healthz"), 3);
        readiness["initialDelaySeconds"] = json!(DELAY);
        let pod = Pod::start(bed, with_probe(server(), "readinessProbe", readiness)).await;
        let seen = pod.get().await.expect("the pod is read");
        let conditions = seen["status"]["conditions"].as_array().expect("conditions");
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready").expect("a condition");
        let status = &seen["status"]["containerStatuses"][0];
        let second = |time: &Value| {
            let time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time =
                crate::support::object(time.clone());
            time.0.as_second()
        };
        let after = second(&ready["lastTransitionTime"]) - second(&status["state"]["running"]["startedAt"]);
        assert!(after >= DELAY, "ready after {after} s");
        assert_eq!(restarts(&seen), 0);
    });
}

/// Pod readiness probe, failure
#[test]
fn with_readiness_probe_that_fails_should_never_be_ready_and_never_restart() {
    test(async |bed| {
        let readiness = probe(exec("echo probed >> /tmp/probes; false"), 1);
        let pod = Pod::create(bed, with_probe(script("sleep 3600"), "readinessProbe", readiness)).await;
        eventually("the probe is made many times", async || {
            let seen = pod.get().await?;
            assert_ne!(seen["status"]["containerStatuses"][0]["ready"], true, "{}", seen["status"]);
            let made = pod.try_run("wc -l < /tmp/probes").await?;
            ensure!(made.trim().parse::<usize>()? >= MANY, "{made}");
            Ok(())
        })
        .await;
        let seen = pod.get().await.expect("the pod is read");
        assert_eq!((restarts(&seen), &seen["status"]["phase"]), (0, &json!("Running")));
        assert_eq!(seen["status"]["containerStatuses"][0]["ready"], false);
    });
}

/// Pod liveness probe, using local file, restart
#[test]
fn should_be_restarted_with_a_exec_cat_tmp_health_liveness_probe() {
    test(async |bed| {
        let work = "echo ok > /tmp/health; sleep 5; rm /tmp/health; sleep 3600";
        let mut liveness = probe(exec("cat /tmp/health"), 1);
        liveness["initialDelaySeconds"] = json!(2);
        let pod = Pod::create(bed, with_probe(script(work), "livenessProbe", liveness)).await;
        restarted(&pod).await;
    });
}

/// Pod liveness probe, using local file, no restart
#[test]
fn should_not_be_restarted_with_a_exec_cat_tmp_health_liveness_probe() {
    test(async |bed| {
        let liveness = probe(exec("echo probed >> /tmp/probes; cat /tmp/health"), 1);
        let mut pod = with_probe(script("echo ok > /tmp/health; sleep 3600"), "livenessProbe", liveness);
        pod["spec"]["containers"][0]["livenessProbe"]["initialDelaySeconds"] = json!(5);
        let pod = Pod::create(bed, pod).await;
        stays(&pod, "wc -l < /tmp/probes").await;
    });
}

/// Pod liveness probe, using http endpoint, restart
#[test]
fn should_be_restarted_with_a_healthz_http_liveness_probe() {
    test(async |bed| {
        let mut liveness = probe(http("/readyz"), 1);
        liveness["initialDelaySeconds"] = json!(2);
        let pod = Pod::create(bed, with_probe(failing_server(5), "livenessProbe", liveness)).await;
        restarted(&pod).await;
    });
}

/// Pod liveness probe, using http endpoint, failure
#[test]
fn should_not_be_restarted_with_a_healthz_http_liveness_probe() {
    test(async |bed| {
        let liveness = probe(http("/echo?msg=probed"), 5);
        let pod = Pod::create(bed, with_probe(server(), "livenessProbe", liveness)).await;
        stays_by_log(&pod, "echo probed").await;
    });
}

/// Pod liveness probe, using tcp socket, no restart
#[test]
fn should_not_be_restarted_with_a_tcp_8080_liveness_probe() {
    test(async |bed| {
        let mut liveness = probe(json!({ "tcpSocket": { "port": 8080 } }), 1);
        liveness["initialDelaySeconds"] = json!(5);
        // Over HTTP it would fail.
        let pod = Pod::start(bed, with_probe(failing_server(0), "livenessProbe", liveness)).await;
        let failed =
            pod.sees("main", "wget -qO- 127.0.0.1:8080/readyz 2>&1 || true", |said| said.contains("503"));
        failed.await;
        // The kubelet connects and says nothing.
        stays(&pod, "wget -qO- 127.0.0.1:8080/silent").await;
    });
}

/// Pod liveness probe, using grpc call, success
#[test]
fn should_not_be_restarted_with_a_grpc_liveness_probe() {
    test(async |bed| {
        let liveness = probe(json!({ "grpc": { "port": 5000 } }), 5);
        let pod = Pod::create(bed, with_probe(grpc_server(), "livenessProbe", liveness)).await;
        stays_by_log(&pod, "call").await;
        let seen = pod.get().await.expect("the pod is read");
        assert_eq!(seen["status"]["containerStatuses"][0]["ready"], true, "{}", seen["status"]);
    });
}

/// Pod liveness probe, using grpc call, failure
#[test]
fn should_be_restarted_with_a_grpc_liveness_probe() {
    test(async |bed| {
        // Nothing listens there.
        let liveness = probe(json!({ "grpc": { "port": 2333 } }), 1);
        let pod = Pod::create(bed, with_probe(grpc_server(), "livenessProbe", liveness)).await;
        restarted(&pod).await;
    });
}

/// Pod liveness probe, using http endpoint, multiple restarts (slow)
#[test]
#[ignore = "four back-offs take three minutes; `cargo xtask test --all` has it"]
fn should_have_monotonically_increasing_restart_count() {
    test_within(Duration::from_secs(900), async |bed| {
        let liveness = probe(http("/readyz"), 1);
        let pod = Pod::create(bed, with_probe(failing_server(3), "livenessProbe", liveness)).await;
        let mut before = 0;
        crate::support::within(Duration::from_secs(840), "it is restarted five times", async || {
            let count = restarts(&pod.get().await?);
            assert!(count >= before, "{count} after {before}");
            before = count;
            ensure!(count >= 5, "{count} restarts");
            Ok(())
        })
        .await;
    });
}
