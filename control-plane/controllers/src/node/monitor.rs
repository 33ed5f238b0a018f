//! Notices nodes that went silent: their conditions become Unknown, their pods not ready.
//!
//! A heartbeat is a renewed Lease or a newer node status. Times are this process's own, taken when a
//! heartbeat is seen: clocks of nodes do not matter, and a new leader, which has seen nothing yet, gives every
//! node a full grace period. Runs at a fixed period over cached nodes and writes only what changes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures::FutureExt;
use hawser_api::{Api, Error, resource::ObjectKey};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, NodeCondition, Pod},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    condition, ready_status, taints,
    zones::{Zones, zone_of},
};
use crate::{
    Config, Context, Starts,
    caches::NODE_LEASES,
    events::Recorder,
    meta::{MetaExt, now, pod_is_ready},
    queue::Queue,
    worker::in_parallel,
};

/// The conditions that a node agent keeps; a silent one's are unknown.
const AGENT_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

pub(super) fn register(starts: &mut Starts<'_>) {
    let context = starts.context.clone();
    let queue = Queue::new();
    let zones = Arc::new(Mutex::new(Zones::default()));
    taints::register(starts, &queue, zones.clone());
    let recorder = context.recorder.of("node-controller");
    let monitor = Monitor { context, queue, zones, recorder, health: HashMap::new() };
    starts.add_loop(|shutdown| monitor.run(shutdown));
}

struct Monitor {
    context: Arc<Context>,
    /// Nodes whose taints are to be looked at.
    queue: Queue<ObjectKey>,
    /// Shared with who gives nodes up.
    zones: Arc<Mutex<Zones>>,
    recorder: Recorder,
    /// Bounded by the nodes that exist.
    health: HashMap<String, Health>,
}

/// The last sign of life of a node.
#[derive(Clone, Debug)]
pub(super) struct Health {
    heartbeat: Heartbeat,
    seen: Instant,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heartbeat {
    uid: String,
    renewed: Option<MicroTime>,
    reported: Option<Time>,
}

impl Heartbeat {
    pub(super) fn of(node: &Node, lease: Option<&Lease>) -> Self {
        Self {
            uid: node.uid().to_owned(),
            renewed: lease.and_then(|lease| lease.spec.as_ref()?.renew_time.clone()),
            reported: condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone()),
        }
    }
}

impl Health {
    /// What is known after a look at `heartbeat`: one that is new was seen `now`.
    pub(super) fn after(known: Option<&Self>, heartbeat: Heartbeat, now: Instant) -> Self {
        match known.filter(|known| known.heartbeat == heartbeat) {
            Some(known) => known.clone(),
            None => Self { heartbeat, seen: now },
        }
    }

    pub(super) fn is_silent(&self, node: &Node, config: &Config, now: Instant) -> bool {
        let grace = match condition(node, "Ready") {
            Some(_) => config.node_monitor_grace_period,
            None => config.node_startup_grace_period,
        };
        now.duration_since(self.seen) > grace
    }
}

/// The conditions of a silent node; `None` where they say so already.
pub(super) fn unknown_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let before = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut conditions = before.clone();
    for kind in AGENT_CONDITIONS {
        let known = conditions.iter_mut().find(|condition| condition.type_ == kind);
        match known {
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(now));
            }
            Some(_) => {}
            None => conditions.push(NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    (conditions != before).then_some(conditions)
}

impl Monitor {
    async fn run(mut self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(self.context.config.node_monitor_period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.look().await,
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn look(&mut self) {
        let caches = &self.context.caches;
        let nodes = caches.nodes.all();
        let now = Instant::now();
        let mut silent = Vec::new();
        let mut health = HashMap::with_capacity(nodes.len());
        for node in &nodes {
            let lease = caches.leases.get(&ObjectKey::new(NODE_LEASES, node.name()));
            let heartbeat = Heartbeat::of(node, lease.as_deref());
            let known = Health::after(self.health.get(node.name()), heartbeat, now);
            if known.is_silent(node, &self.context.config, now) {
                silent.push(node.clone());
            }
            health.insert(node.name().to_owned(), known);
        }
        self.health = health;
        // Before they are marked: whoever hears of the mark finds the zones as they are.
        self.note_zones(&nodes, &silent);
        let this = &*self;
        let marks = silent.iter().map(|node| {
            async move {
                if let Err(error) = this.mark_silent(node).await {
                    // Tried again with the next period.
                    warn!(node = node.name(), %error, "silent node not marked");
                }
            }
            .boxed()
        });
        in_parallel(marks).await;
    }

    fn note_zones(&self, nodes: &[Arc<Node>], silent: &[Arc<Node>]) {
        let silent: HashSet<&str> = silent.iter().map(|node| node.name()).collect();
        let works = |node: &Node| ready_status(node) == "True" && !silent.contains(node.name());
        let (were_lost, are_lost) = {
            let mut zones = self.zones.lock();
            let were_lost = zones.are_lost();
            zones.look(nodes.iter().map(|node| (zone_of(node), works(node))), &self.context.config);
            (were_lost, zones.are_lost())
        };
        if were_lost != are_lost {
            if are_lost {
                warn!(nodes = nodes.len(), "no node is ready, pods are not evicted");
            }
            nodes.iter().for_each(|node| self.queue.add(ObjectKey::of(&**node)));
        }
    }

    async fn mark_silent(&self, node: &Node) -> Result<(), Error> {
        let api: Api<Node> = Api::all(self.context.client.clone());
        if let Some(conditions) = unknown_conditions(node, now()) {
            let mut changed = node.clone();
            changed.status.get_or_insert_default().conditions = Some(conditions);
            match api.update_status(&changed).await {
                // It moved: perhaps a sign of life. The next look decides.
                Err(error) if error.is_conflict() || error.is_not_found() => return Ok(()),
                outcome => drop(outcome?),
            }
            info!(node = node.name(), "node went silent");
            if ready_status(node) == "True" {
                let message = format!("Node {} status is now: NodeNotReady", node.name());
                self.recorder.normal(node, "NodeNotReady", message);
            }
        }
        self.mark_pods_not_ready(node).await
    }

    /// Takes the node's pods out of the endpoints. What fails is tried again with the next period.
    async fn mark_pods_not_ready(&self, node: &Node) -> Result<(), Error> {
        for pod in self.context.caches.pods_by_node.get(node.name()) {
            if !pod_is_ready(&pod) {
                continue;
            }
            let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), pod.namespace());
            let patch = json!({
                "metadata": { "resourceVersion": pod.resource_version() },
                "status": { "conditions": not_ready(&pod, now()) },
            });
            match pods.merge_patch_status(pod.name(), &patch).await {
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                outcome => {
                    outcome?;
                    self.recorder.warning(&*pod, "NodeNotReady", "Node is not ready".to_owned());
                }
            }
        }
        Ok(())
    }
}

fn not_ready(pod: &Pod, now: Timestamp) -> serde_json::Value {
    let mut conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    for condition in conditions.iter_mut().filter(|condition| condition.type_ == "Ready") {
        condition.status = "False".to_owned();
        condition.last_transition_time = Some(Time(now));
    }
    json!(conditions)
}
