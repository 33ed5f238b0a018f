//! Removes pods that nobody else will: of nodes that are gone, never scheduled but ending, and ended long ago.
//!
//! Runs at a fixed period over cached pods. A node that seems gone has to stay so for a while, and is asked
//! for at the API before its pods are deleted with no grace.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use hawser_api::{Api, Error, client::DeleteOptions, resource::ObjectKey};
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    Context, Starts,
    meta::{MetaExt, pod_is_terminal, pod_node},
    node::{mark_disrupted, ready_status, taints_of},
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
        for pod in &pods {
            let Some(why) = self.why_orphaned(pod, &gone) else { continue };
            self.report(pod, why, self.force_delete(pod, why).await);
        }
        for pod in self.surplus_ended(&pods) {
            let why = "too many pods have ended";
            self.report(&pod, why, self.force_delete(&pod, why).await);
        }
    }

    fn report(&self, pod: &Pod, why: &str, outcome: Result<(), Error>) {
        let key = ObjectKey::of(pod);
        match outcome {
            Ok(()) => info!(pod = %key, why, "pod collected"),
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

    fn why_orphaned(&self, pod: &Pod, gone: &HashSet<String>) -> Option<&'static str> {
        let Some(name) = pod_node(pod) else {
            return pod.is_deleting().then_some("it ends and was never scheduled");
        };
        if gone.contains(name) {
            return Some("its node is gone");
        }
        let node = self.context.caches.nodes.get(&ObjectKey::new("", name))?;
        let is_out =
            ready_status(&node) != "True" && taints_of(&node).iter().any(|taint| taint.key == OUT_OF_SERVICE);
        (is_out && pod.is_deleting()).then_some("its node is out of service")
    }

    /// The oldest ended pods beyond the threshold.
    fn surplus_ended(&self, pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let threshold = self.context.config.terminated_pod_gc_threshold;
        if threshold == 0 {
            return Vec::new();
        }
        let mut ended: Vec<Arc<Pod>> =
            pods.iter().filter(|pod| pod_is_terminal(pod) && !pod.is_deleting()).cloned().collect();
        ended.sort_by_key(|pod| pod.created());
        ended.truncate(ended.len().saturating_sub(threshold));
        ended
    }

    async fn force_delete(&self, pod: &Pod, why: &str) -> Result<(), Error> {
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), pod.namespace());
        if pod_node(pod).is_some() {
            let message = format!("PodGC: {why}");
            match mark_disrupted(&pods, pod, ("DeletionByPodGC", &message), Some("Failed")).await {
                // It moved; the deletion below is by uid and still right.
                Err(error) if error.is_conflict() => {}
                outcome => outcome?,
            }
        }
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: pod.metadata.uid.clone(),
            ..DeleteOptions::default()
        };
        match pods.delete(pod.name(), &options).await {
            // Another pod has the name now.
            Err(error) if error.is_conflict() => Ok(()),
            outcome => outcome,
        }
    }
}
