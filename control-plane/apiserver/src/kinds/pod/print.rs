//! The row of a pod in `kubectl get pods`.

use jiff::Timestamp;
use serde_json::Value;

use super::first_ip;
use crate::kinds::{human, value::Fields};

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, human::age(&Value::from(last), now))
        }
        _ => summary.restarts.to_string(),
    };
    let or_none = |text: &str| Value::from(if text.is_empty() { "<none>" } else { text });
    vec![
        pod.at("metadata.name").clone(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.status.into(),
        restarts.into(),
        human::age(pod.at("metadata.creationTimestamp"), now).into(),
        or_none(first_ip(pod)),
        or_none(pod.text("spec.nodeName")),
        or_none(pod.text("status.nominatedNodeName")),
        readiness_gates(pod).into(),
    ]
}

/// What a user wants to know of a pod's containers.
#[derive(Default)]
struct Summary<'a> {
    status: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<&'a str>,
}

fn summarize(pod: &Value) -> Summary<'_> {
    let mut summary = Summary { status: phase(pod), ..Summary::default() };
    let init_containers = pod.list("spec.initContainers");
    let sidecars = init_containers.iter().filter(|container| is_sidecar(container)).count();
    summary.total = pod.list("spec.containers").len() + sidecars;

    // Restarts of init containers count while they run; later only those of sidecars do.
    let mut sidecar_restarts = 0;
    let mut last_sidecar_restart = None;
    let mut initializing = false;
    for (index, status) in pod.list("status.initContainerStatuses").iter().enumerate() {
        let restarts = status.int("restartCount").unwrap_or_default();
        summary.restarts += restarts;
        later(&mut summary.last_restart, status);
        let sidecar = init_containers
            .iter()
            .any(|container| is_sidecar(container) && container.text("name") == status.text("name"));
        if sidecar {
            sidecar_restarts += restarts;
            later(&mut last_sidecar_restart, status);
        }
        let ended = status.at("state.terminated");
        if ended.is_object() && ended.int("exitCode").unwrap_or_default() == 0 {
            continue;
        }
        if sidecar && status.flag("started") {
            summary.ready += usize::from(status.flag("ready"));
            continue;
        }
        let waiting = status.text("state.waiting.reason");
        summary.status = if ended.is_object() {
            format!("Init:{}", ending(ended))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{}", init_containers.len())
        };
        initializing = true;
        break;
    }

    if !initializing || has_condition(pod, "Initialized") {
        summary.restarts = sidecar_restarts;
        summary.last_restart = last_sidecar_restart;
        count_containers(pod, &mut summary);
    }
    if pod.has("metadata.deletionTimestamp") {
        let over = matches!(pod.text("status.phase"), "Succeeded" | "Failed");
        if pod.text("status.reason") == "NodeLost" {
            summary.status = "Unknown".to_owned();
        } else if !over {
            summary.status = "Terminating".to_owned();
        }
    }
    summary
}

fn count_containers<'a>(pod: &'a Value, summary: &mut Summary<'a>) {
    let mut running = false;
    for status in pod.list("status.containerStatuses").iter().rev() {
        summary.restarts += status.int("restartCount").unwrap_or_default();
        later(&mut summary.last_restart, status);
        let waiting = status.text("state.waiting.reason");
        let ended = status.at("state.terminated");
        if !waiting.is_empty() {
            summary.status = waiting.to_owned();
        } else if ended.is_object() {
            summary.status = ending(ended);
        } else if status.flag("ready") && status.has("state.running") {
            running = true;
            summary.ready += 1;
        }
    }
    // One container ended well, another runs on.
    if summary.status == "Completed" && running {
        summary.status = if has_condition(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
    }
}

fn phase(pod: &Value) -> String {
    let gated = pod.list("status.conditions").iter().any(|condition| {
        condition.text("type") == "PodScheduled" && condition.text("reason") == "SchedulingGated"
    });
    let text = match pod.text("status.reason") {
        _ if gated => "SchedulingGated",
        "" => pod.text("status.phase"),
        reason => reason,
    };
    text.to_owned()
}

fn ending(ended: &Value) -> String {
    match (ended.text("reason"), ended.int("signal").unwrap_or_default()) {
        ("", 0) => format!("ExitCode:{}", ended.int("exitCode").unwrap_or_default()),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn later<'a>(last: &mut Option<&'a str>, status: &'a Value) {
    let finished = status.text("lastState.terminated.finishedAt");
    // Times in one zone and one width order as text does.
    if !finished.is_empty() && last.is_none_or(|last| last < finished) {
        *last = Some(finished);
    }
}

fn is_sidecar(container: &Value) -> bool {
    container.text("restartPolicy") == "Always"
}

fn has_condition(pod: &Value, name: &str) -> bool {
    pod.list("status.conditions")
        .iter()
        .any(|condition| condition.text("type") == name && condition.text("status") == "True")
}

fn readiness_gates(pod: &Value) -> String {
    let gates = pod.list("spec.readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let passed = gates.iter().filter(|gate| has_condition(pod, gate.text("conditionType"))).count();
    format!("{passed}/{}", gates.len())
}
