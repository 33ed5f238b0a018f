//! Removes pods that nobody else will: of nodes that are gone, never scheduled but ending, and ended long ago.
//!
//! Runs at a fixed period over cached pods. A node that seems gone has to stay so for a while, and is asked
//! for at the API before its pods are deleted with no grace.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures::FutureExt;
use hawser_api::{Api, Error, client::DeleteOptions, resource::ObjectKey};
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    Context, Starts,
    meta::{MetaExt, only_this, pod_is_terminal, pod_node},
    node::{mark_disrupted, ready_status, taints_of},
    worker::in_parallel,
};

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub(crate) fn register(starts: &mut Starts<'_>) {
    if starts.wants("podgc") {
        let collector = Collector { context: starts.context.clone(), gone: HashMap::new() };
        starts.add_loop(|shutdown| collector.run(shutdown));
    }
}

struct Collector {
    context: Arc<Context>,
    /// Since when a node that pods name is not in the cache. Bounded by the nodes that pods name.
    gone: HashMap<String, Instant>,
}

impl Collector {
    async fn run(mut self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(self.context.config.pod_gc_period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.collect().await,
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn collect(&mut self) {
        let pods = self.context.caches.pods.all();
        let gone = self.gone_nodes(&pods).await;
        let orphans = pods.iter().filter_map(|pod| Some((pod.clone(), self.why_orphaned(pod, &gone)?)));
        let mut doomed: Vec<(Arc<Pod>, Why)> = orphans.collect();
        let ended = surplus_ended(&pods, self.context.config.terminated_pod_gc_threshold);
        doomed.extend(ended.into_iter().map(|pod| (pod, Why::TooManyEnded)));
        let this = &*self;
        let deletions = doomed.iter().map(|(pod, why)| {
            async move { this.report(pod, *why, this.force_delete(pod, *why).await) }.boxed()
        });
        in_parallel(deletions).await;
    }

    fn report(&self, pod: &Pod, why: Why, outcome: Result<(), Error>) {
        let key = ObjectKey::of(pod);
        match outcome {
            Ok(()) => info!(pod = %key, ?why, "pod collected"),
            // Tried again with the next period.
            Err(error) => warn!(pod = %key, %error, "pod not collected"),
        }
    }

    /// Names of nodes that pods name and that are surely gone.
    async fn gone_nodes(&mut self, pods: &[Arc<Pod>]) -> HashSet<String> {
        let nodes = &self.context.caches.nodes;
        let now = Instant::now();
        let missing: HashSet<&str> = pods
            .iter()
            .filter_map(|pod| pod_node(pod))
            .filter(|name| nodes.get(&ObjectKey::new("", *name)).is_none())
            .collect();
        self.gone.retain(|name, _| missing.contains(name.as_str()));
        for name in missing {
            self.gone.entry(name.to_owned()).or_insert(now);
        }
        let api: Api<Node> = Api::all(self.context.client.clone());
        let mut sure = HashSet::new();
        for (name, since) in &self.gone {
            if now.duration_since(*since) < self.context.config.pod_gc_quarantine {
                continue;
            }
            match api.find(name).await {
                Ok(None) => drop(sure.insert(name.clone())),
                Ok(Some(_)) => {}
                Err(error) => warn!(node = name, %error, "cannot tell whether the node is gone"),
            }
        }
        sure
    }

    fn why_orphaned(&self, pod: &Pod, gone: &HashSet<String>) -> Option<Why> {
        let Some(name) = pod_node(pod) else {
            return pod.is_deleting().then_some(Why::NeverScheduled);
        };
        if gone.contains(name) {
            return Some(Why::NodeGone);
        }
        let node = self.context.caches.nodes.get(&ObjectKey::new("", name))?;
        let is_out =
            ready_status(&node) != "True" && taints_of(&node).iter().any(|taint| taint.key == OUT_OF_SERVICE);
        (is_out && pod.is_deleting()).then_some(Why::NodeOutOfService)
    }

    /// The pod fails first, whoever made it: nobody else would say so, and a Job with a failure policy waits for that.
    async fn force_delete(&self, pod: &Pod, why: Why) -> Result<(), Error> {
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), pod.namespace());
        let disruption = match why {
            Why::NodeGone => Some(("DeletionByPodGC", "PodGC: node no longer exists")),
            _ => None,
        };
        match mark_disrupted(&pods, pod, disruption, Some("Failed")).await {
            // It moved: the next period looks at what it has become.
            Err(error) if error.is_conflict() => return Ok(()),
            outcome => outcome?,
        }
        let options = DeleteOptions { grace_period_seconds: Some(0), ..only_this(pod) };
        match pods.delete(pod.name(), &options).await {
            // Another pod has the name now.
            Err(error) if error.is_conflict() => Ok(()),
            outcome => outcome,
        }
    }
}

/// Why a pod is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    NodeGone,
    NodeOutOfService,
    NeverScheduled,
    TooManyEnded,
}

/// The ended pods beyond the threshold: those that were evicted first, then the oldest. A threshold of 0 keeps all.
fn surplus_ended(pods: &[Arc<Pod>], threshold: usize) -> Vec<Arc<Pod>> {
    if threshold == 0 {
        return Vec::new();
    }
    let is_evicted =
        |pod: &Pod| pod.status.as_ref().is_some_and(|status| status.reason.as_deref() == Some("Evicted"));
    let mut ended: Vec<Arc<Pod>> =
        pods.iter().filter(|pod| pod_is_terminal(pod) && !pod.is_deleting()).cloned().collect();
    ended.sort_by_key(|pod| (!is_evicted(pod), pod.created()));
    ended.truncate(ended.len().saturating_sub(threshold));
    ended
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        meta::pod_phase,
        testing::{FakeApi, Running},
    };

    #[test]
    fn evicted_pods_go_before_older_ones() {
        let pod = |name: &str, minute: u32, reason: Value| -> Arc<Pod> {
            let pod = json!({
                "metadata": { "name": name, "creationTimestamp": format!("2026-01-01T00:{minute:02}:00Z") },
                "status": { "phase": "Failed", "reason": reason },
            });
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let pods =
            [pod("old", 1, json!(null)), pod("new", 9, json!(null)), pod("evicted", 5, json!("Evicted"))];
        let names = |threshold| {
            let surplus = surplus_ended(&pods, threshold);
            surplus.iter().map(|pod| pod.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(2), ["evicted"]);
        assert_eq!(names(1), ["evicted", "old"]);
        assert!(names(0).is_empty(), "0 keeps all");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_was_never_scheduled_fails_before_it_goes() {
        let api = FakeApi::new();
        api.put::<Pod>(json!({
            "metadata": { "name": "a", "namespace": "default", "finalizers": ["example.com/count"] },
            "spec": { "containers": [] }, "status": { "phase": "Pending" },
        }));
        api.remove::<Pod>("default", "a", &DeleteOptions::default());
        let _running = Running::start(&api, &["podgc"]);
        api.until("whoever counts it sees that it failed", |api| {
            api.read::<Pod>("default", "a").is_some_and(|pod| pod_phase(&pod) == "Failed")
        })
        .await;
        let pod = api.read::<Pod>("default", "a").expect("the finalizer holds it");
        assert_eq!(pod.status.and_then(|status| status.conditions), None, "nobody disrupted it");
    }
}
