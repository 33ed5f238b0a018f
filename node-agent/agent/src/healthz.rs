//! `/metrics` (port 10249), and `/healthz` and `/livez` (port 10256) as kube-proxy serves them.
//!
//! Load balancers ask `/healthz` whether to send a node traffic: 200 while the service path is in step and the node is
//! not about to go (KEP-3836); `/livez` leaves the node's own fate out.

use hawser_api::{informer::Informer, resource::ObjectKey};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::{
    http_server::{Answer, answer, not_found},
    metrics::Metrics,
};

/// A sync that was asked for must have succeeded after this long (kube-proxy: twice its sync period of 30 s).
const LATE_SECONDS: f64 = 60.0;
/// The cluster autoscaler is about to remove the node.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Health {
    metrics: Metrics,
    nodes: Informer<Node>,
    node: ObjectKey,
}

impl Health {
    pub(crate) fn new(metrics: Metrics, nodes: Informer<Node>, node_name: &str) -> Self {
        Self { metrics, nodes, node: ObjectKey::new("", node_name) }
    }

    /// Whether the kernel is in step with the API.
    pub(crate) fn is_in_step(&self) -> bool {
        let (synced, oldest_queued) = self.metrics.sync_times();
        is_in_step(synced, oldest_queued, Timestamp::now().as_duration().as_secs_f64())
    }

    fn is_eligible(&self) -> bool {
        self.nodes.get(&self.node).is_none_or(|node| is_eligible(&node))
    }

    pub(crate) fn answer(&self, request: &Request<Incoming>) -> Answer {
        let eligible = self.is_eligible();
        let (ok, count): (bool, fn(&Metrics, u16)) = match request.uri().path() {
            "/healthz" => (self.is_in_step() && eligible, Metrics::healthz_answered),
            "/livez" => (self.is_in_step(), Metrics::livez_answered),
            _ => return not_found(),
        };
        let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        count(&self.metrics, status.as_u16());
        let now = Timestamp::now();
        let (synced, _) = self.metrics.sync_times();
        let synced =
            if self.is_in_step() { now } else { Timestamp::from_second(synced as i64).unwrap_or(now) };
        let body = json!({
            "lastUpdated": synced.to_string(), "currentTime": now.to_string(), "nodeEligible": eligible,
        });
        answer(status, "application/json", body.to_string())
    }
}

pub(crate) fn answer_metrics(metrics: &Metrics, request: &Request<Incoming>) -> Answer {
    match request.uri().path() {
        "/metrics" => answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics.render()),
        "/healthz" => answer(StatusCode::OK, "text/plain; charset=utf-8", "ok".into()),
        _ => not_found(),
    }
}

fn is_in_step(synced: f64, oldest_queued: Option<f64>, now: f64) -> bool {
    // Zero: there was no sync yet.
    synced > 0.0 && oldest_queued.is_none_or(|queued| now - queued < LATE_SECONDS)
}

fn is_eligible(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_none() && !taints.into_iter().any(|taint| taint.key == LEAVING_TAINT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_follows_the_last_sync() {
        #[track_caller]
        fn check(what: &str, synced: f64, oldest_queued: Option<f64>, expected: bool) {
            assert_eq!(is_in_step(synced, oldest_queued, 1000.0), expected, "{what}");
        }
        check("never synced", 0.0, None, false);
        check("never synced, asked just now", 0.0, Some(999.0), false);
        check("in step for long", 10.0, None, true);
        check("asked just now", 10.0, Some(990.0), true);
        check("asked long ago", 10.0, Some(900.0), false);
        check("asked long ago, synced since in vain", 999.0, Some(900.0), false);
    }

    #[test]
    fn node_that_leaves_is_not_eligible() {
        let node = |spec| -> Node {
            serde_json::from_value(json!({ "metadata": { "name": "n1" }, "spec": spec })).unwrap()
        };
        assert!(is_eligible(&node(json!({}))));
        assert!(is_eligible(&node(json!({ "taints": [{ "key": "gpu", "effect": "NoSchedule" }] }))));
        assert!(!is_eligible(&node(json!({ "taints": [{ "key": LEAVING_TAINT, "effect": "NoSchedule" }] }))));
    }
}
