//! From a node's conditions to its taints (KEP-382).
//!
//! `NoSchedule` follows at once; `NoExecute`, which makes pods go, only for nodes that are not ready or not
//! reachable, one after the other ([`super::zones`]), and not while no node at all is ready: then this side is more
//! likely cut off than all of them.
//! Taints that others put there stay.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::{
    condition, ready_status, taints_of,
    zones::{Zones, zone_of},
};
use crate::{
    Context, Starts,
    meta::{MetaExt, now},
    queue::Queue,
    worker::{Next, Reconciler},
};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition that is True → taint.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

pub(super) fn register(starts: &mut Starts<'_>, queue: &Queue<ObjectKey>, zones: Arc<Mutex<Zones>>) {
    let context = starts.context.clone();
    let changed = queue.clone();
    context.caches.nodes.on_change(move |change| changed.add(change.key.clone()));
    starts.add(Controller { context, zones }, queue.clone(), 2);
}

struct Controller {
    context: Arc<Context>,
    zones: Arc<Mutex<Zones>>,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "node-taints";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(node) = self.context.caches.nodes.get(key) else { return Ok(Next::Done) };
        let turn = self.turn(&node);
        let evict = if matches!(turn, Turn::Waits(_) | Turn::Never) { Evict::No } else { Evict::Yes };
        let next = if let Turn::Waits(wait) = turn { Next::After(wait) } else { Next::Done };
        let Some(taints) = planned(&node, evict, now()) else { return Ok(next) };
        let patch = json!({
            "metadata": { "uid": node.uid(), "resourceVersion": node.resource_version() },
            "spec": { "taints": taints },
        });
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        if let Err(error) = nodes.merge_patch(&key.name, &patch).await {
            if matches!(turn, Turn::Now) {
                self.zones.lock().take_back(&zone_of(&node));
            }
            return Err(error);
        }
        Ok(next)
    }
}

/// Whether a node may get the taint that makes pods go.
enum Turn {
    /// It does not need it, or has it.
    Settled,
    /// It is given up by that.
    Now,
    Waits(Duration),
    /// No node works, so that those that have it lose it.
    Never,
}

impl Controller {
    fn turn(&self, node: &Node) -> Turn {
        if !is_failing(node) {
            return Turn::Settled;
        }
        let mut zones = self.zones.lock();
        if zones.are_lost() {
            return Turn::Never;
        }
        let is_given_up = |taint: &Taint| taint.effect == "NoExecute" && is_managed(taint);
        if taints_of(node).iter().any(is_given_up) {
            return Turn::Settled;
        }
        match zones.give_up(&zone_of(node), &self.context.config, Instant::now()) {
            Ok(()) => Turn::Now,
            Err(wait) => Turn::Waits(wait),
        }
    }
}

/// The node has said that it does not work, or says nothing any more.
fn is_failing(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status != "True")
}

/// Whether silent nodes get the taints that make pods go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evict {
    Yes,
    No,
}

/// The taints that the node should have; `None` where it has them.
pub(super) fn planned(node: &Node, evict: Evict, now: Timestamp) -> Option<Vec<Taint>> {
    let wanted = wanted(node, evict);
    let current = taints_of(node);
    let is_wanted =
        |taint: &Taint| wanted.iter().any(|(key, effect)| taint.key == *key && taint.effect == *effect);
    let mut taints: Vec<Taint> =
        current.iter().filter(|taint| !is_managed(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (taints != current).then_some(taints)
}

fn wanted(node: &Node, evict: Evict) -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    let silent = match ready_status(node) {
        // A node that has not said anything yet keeps the taint that it registered with.
        _ if condition(node, "Ready").is_none() => Some(NOT_READY),
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    if let Some(key) = silent {
        wanted.push((key, "NoSchedule"));
        if evict == Evict::Yes && condition(node, "Ready").is_some() {
            wanted.push((key, "NoExecute"));
        }
    }
    for (kind, key) in PRESSURES {
        if condition(node, kind).is_some_and(|condition| condition.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default() {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted
}

/// The taint is this controller's to put and to take.
fn is_managed(taint: &Taint) -> bool {
    let key = taint.key.as_str();
    match taint.effect.as_str() {
        "NoSchedule" => {
            [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key)
                || PRESSURES.iter().any(|(_, pressure)| *pressure == key)
        }
        "NoExecute" => [NOT_READY, UNREACHABLE].contains(&key),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeCondition, NodeSpec, NodeStatus};

    use super::*;

    #[track_caller]
    fn check(
        name: &str,
        conditions: &[(&str, &str)],
        before: &[(&str, &str)],
        evict: Evict,
        expected: &[(&str, &str)],
    ) {
        let conditions = conditions.iter().map(|(kind, status)| NodeCondition {
            type_: kind.to_string(),
            status: status.to_string(),
            ..NodeCondition::default()
        });
        let taints = before.iter().map(|(key, effect)| Taint {
            key: key.to_string(),
            effect: effect.to_string(),
            ..Taint::default()
        });
        let mut node = Node {
            spec: Some(NodeSpec { taints: Some(taints.collect()), ..NodeSpec::default() }),
            status: Some(NodeStatus { conditions: Some(conditions.collect()), ..NodeStatus::default() }),
            ..Node::default()
        };
        let planned = planned(&node, evict, Timestamp::UNIX_EPOCH);
        let after = planned.clone().unwrap_or_else(|| taints_of(&node).to_vec());
        let found: Vec<(&str, &str)> =
            after.iter().map(|taint| (taint.key.as_str(), taint.effect.as_str())).collect();
        assert_eq!(found, expected, "{name}");
        node.spec.as_mut().unwrap().taints = Some(after);
        assert_eq!(super::planned(&node, evict, Timestamp::UNIX_EPOCH), None, "{name}, again");
    }

    #[test]
    fn taints_follow_conditions() {
        const READY: (&str, &str) = ("Ready", "True");
        const FULL: &str = "node.kubernetes.io/memory-pressure";
        let both = |key: &'static str| [(key, "NoSchedule"), (key, "NoExecute")];
        check("ready", &[READY], &[], Evict::Yes, &[]);
        check("not ready", &[("Ready", "False")], &[], Evict::Yes, &both(NOT_READY));
        check("silent", &[("Ready", "Unknown")], &[], Evict::Yes, &both(UNREACHABLE));
        check(
            "all are silent",
            &[("Ready", "Unknown")],
            &both(UNREACHABLE),
            Evict::No,
            &both(UNREACHABLE)[..1],
        );
        check("back again", &[READY], &both(UNREACHABLE), Evict::Yes, &[]);
        check(
            "newly registered",
            &[],
            &[(NOT_READY, "NoSchedule")],
            Evict::Yes,
            &[(NOT_READY, "NoSchedule")],
        );
        check("memory", &[READY, ("MemoryPressure", "True")], &[], Evict::Yes, &[(FULL, "NoSchedule")]);
        check("others' taints stay", &[READY], &[("gpu", "NoExecute")], Evict::Yes, &[("gpu", "NoExecute")]);
        check(
            "from false to unknown",
            &[("Ready", "Unknown")],
            &both(NOT_READY),
            Evict::Yes,
            &both(UNREACHABLE),
        );
    }
}
