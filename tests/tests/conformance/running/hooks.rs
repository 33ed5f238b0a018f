//! Lifecycle hooks: a server hears of them, so that they are known to have been called, and when.

use serde_json::{Value, json};

use super::{Pod, server, sleeper, test};
use crate::{coverage::texts, support::Bed};

texts! {
    "Pod Lifecycle, post start exec hook" => should_execute_poststart_exec_hook_properly,
    "Pod Lifecycle, post start http hook" => should_execute_poststart_http_hook_properly,
    "Pod Lifecycle, prestop exec hook" => should_execute_prestop_exec_hook_properly,
    "Pod Lifecycle, prestop http hook" => should_execute_prestop_http_hook_properly,
    "Pods, prestop hook" => should_call_prestop_when_killing_a_pod,
}

/// A server, and its address.
async fn listener(bed: &Bed) -> (Pod, String) {
    let listener = Pod::start(bed, server()).await;
    let seen = listener.get().await.expect("the pod is read");
    (listener, seen["status"]["podIP"].as_str().expect("an address").to_owned())
}

fn exec(address: &str, message: &str) -> Value {
    let call = format!("wget -qO- '{address}:8080/echo?msg={message}'");
    json!({ "exec": { "command": ["sh", "-c", call] } })
}

fn http(address: &str, message: &str) -> Value {
    json!({ "httpGet": { "host": address, "port": 8080, "path": format!("/echo?msg={message}") } })
}

fn hooked(hooks: Value) -> Value {
    let mut pod = sleeper();
    // Time for the hook, which counts too.
    pod["spec"]["terminationGracePeriodSeconds"] = json!(20);
    pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", "trap exit TERM; sleep 3600 & wait"]);
    pod["spec"]["containers"][0]["lifecycle"] = hooks;
    pod
}

/// The server has been called when the pod is ready.
fn called_after_start(hook: fn(&str, &str) -> Value) {
    test(async |bed| {
        let (listener, address) = listener(bed).await;
        Pod::start(bed, hooked(json!({ "postStart": hook(&address, "poststart") }))).await;
        assert!(listener.log("main").await.contains("echo poststart\n"));
    });
}

/// The server is called when the pod is deleted, and not before.
fn called_before_end(hook: fn(&str, &str) -> Value) {
    test(async |bed| {
        let (listener, address) = listener(bed).await;
        let pod = Pod::start(bed, hooked(json!({ "preStop": hook(&address, "prestop") }))).await;
        assert!(!listener.log("main").await.contains("prestop"));
        pod.delete().await;
        pod.gone().await;
        assert!(listener.log("main").await.contains("echo prestop\n"));
    });
}

/// Pod Lifecycle, post start exec hook
#[test]
fn should_execute_poststart_exec_hook_properly() {
    called_after_start(exec);
}

/// Pod Lifecycle, post start http hook
#[test]
fn should_execute_poststart_http_hook_properly() {
    called_after_start(http);
}

/// Pod Lifecycle, prestop exec hook
#[test]
fn should_execute_prestop_exec_hook_properly() {
    called_before_end(exec);
}

/// Pod Lifecycle, prestop http hook
#[test]
fn should_execute_prestop_http_hook_properly() {
    called_before_end(http);
}

/// Pods, prestop hook
#[test]
fn should_call_prestop_when_killing_a_pod() {
    test(async |bed| {
        let (listener, address) = listener(bed).await;
        // The hook ends before the container is asked to.
        let first = format!("wget -qO- '{address}:8080/echo?msg=hook'; sleep 1; touch /tmp/hooked");
        let mut pod = hooked(json!({ "preStop": { "exec": { "command": ["sh", "-c", first] } } }));
        let last = format!(
            "trap '[ -e /tmp/hooked ] && wget -qO- \"{address}:8080/echo?msg=asked\"; exit' TERM; sleep 3600 & wait"
        );
        pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", last]);
        let pod = Pod::start(bed, pod).await;
        pod.delete().await;
        pod.gone().await;
        let log = listener.log("main").await;
        let heard: Vec<_> = log.lines().filter_map(|line| line.strip_prefix("echo ")).collect();
        assert_eq!(heard, ["hook", "asked"]);
    });
}
