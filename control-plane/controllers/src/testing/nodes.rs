//! Stands in for scheduler and node agents: binds pods, makes them ready, lets them end.

use std::{sync::Arc, time::Duration};

use hawser_api::client::DeleteOptions;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::FakeApi;
use crate::meta::{MetaExt, now, pod_is_ready, pod_is_terminal, pod_node};

/// Each tick takes each pod one step further: bound, then ready; or gone.
const TICK: Duration = Duration::from_millis(500);

/// Runs until dropped. Pods whose image is `broken` never become ready, those of `succeeds` and `fails` end.
pub(crate) async fn run_nodes(api: Arc<FakeApi>) {
    let mut turn = 0;
    loop {
        tokio::time::sleep(TICK).await;
        for pod in api.all::<Pod>() {
            turn += 1;
            step(&api, &pod, turn);
        }
    }
}

fn step(api: &FakeApi, pod: &Pod, turn: usize) {
    let (namespace, name) = (pod.namespace(), pod.name());
    if pod.is_deleting() {
        let held = pod.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
        if held && !pod_is_terminal(pod) {
            // Its containers end first; what holds it lets go then.
            let ended = json!({ "status": { "phase": "Failed", "conditions": [] } });
            api.patch_status::<Pod>(namespace, name, ended);
            return;
        }
        let at_once = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        return api.remove::<Pod>(namespace, name, &at_once);
    }
    if pod_node(pod).is_none() {
        let node = tied_to(pod).unwrap_or_else(|| format!("n{}", turn % 2 + 1));
        api.patch::<Pod>(namespace, name, json!({ "spec": { "nodeName": node } }));
        return;
    }
    let image = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.as_deref());
    if pod_is_terminal(pod) {
        return;
    }
    if let Some(phase) = image.and_then(end_of).filter(|_| pod_is_ready(pod)) {
        let ended = json!({ "phase": phase, "conditions": [{ "type": "Ready", "status": "False" }] });
        api.patch_status::<Pod>(namespace, name, json!({ "status": ended }));
        return;
    }
    if !pod_is_ready(pod) && image != Some("broken") {
        let status = json!({ "status": {
            "phase": "Running",
            "startTime": now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "podIP": format!("10.0.{}.{}", turn / 200 % 200, turn % 200),
            "conditions": [{
                "type": "Ready", "status": "True",
                "lastTransitionTime": now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            }],
        }});
        api.patch_status::<Pod>(namespace, name, status);
    }
}

/// How pods of an image end, a tick after they are ready.
fn end_of(image: &str) -> Option<&'static str> {
    match image {
        "succeeds" => Some("Succeeded"),
        "fails" => Some("Failed"),
        _ => None,
    }
}

/// The node that a daemon pod names.
fn tied_to(pod: &Pod) -> Option<String> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    required.node_selector_terms.first()?.match_fields.as_ref()?.first()?.values.as_ref()?.first().cloned()
}
