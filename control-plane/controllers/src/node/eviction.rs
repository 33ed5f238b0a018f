//! Deletes pods that do not tolerate a `NoExecute` taint of their node, or no longer.
//!
//! The time that a pod tolerates a taint counts from when the taint was added, so a restart does not begin it
//! anew; where the taint does not say when, from when it was first seen here. Admission gives pods their 300
//! seconds for nodes that are not ready or unreachable.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use hawser_api::{Api, Error, informer::Change, node_fit::tolerates, resource::ObjectKey};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Node, Pod, PodCondition, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::Time,
};
use parking_lot::Mutex;
use serde_json::json;

use super::taints_of;
use crate::{
    Context, Starts,
    events::Recorder,
    meta::{MetaExt, now, only_this, pod_is_terminal, pod_node},
    queue::Queue,
    worker::{Next, Reconciler},
};

pub(super) fn register(starts: &mut Starts<'_>) {
    let context = starts.context.clone();
    let queue = Queue::new();
    // Weak: the caches, which own the handlers, are in the context.
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.pods.on_change(move |change| pod_changed(&changed, &weak, change));
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.nodes.on_change(move |change| node_changed(&changed, &weak, change));
    let recorder = context.recorder.of("taint-eviction-controller");
    let workers = context.config.workers;
    starts.add(Controller { context, recorder, first_seen: Mutex::default() }, queue, workers);
}

fn pod_changed(queue: &Queue<ObjectKey>, context: &Weak<Context>, change: &Change<'_, Pod>) {
    let (Some(pod), Some(context)) = (change.new, context.upgrade()) else { return };
    let Some(node) = pod_node(pod).filter(|_| !pod.is_deleting()) else { return };
    let node = context.caches.nodes.get(&ObjectKey::new("", node));
    if node.is_some_and(|node| taints_of(&node).iter().any(evicts)) {
        queue.add(change.key.clone());
    }
}

fn node_changed(queue: &Queue<ObjectKey>, context: &Weak<Context>, change: &Change<'_, Node>) {
    let taints = |node: Option<&Arc<Node>>| -> Vec<Taint> {
        node.map(|node| taints_of(node).iter().filter(|taint| evicts(taint)).cloned().collect())
            .unwrap_or_default()
    };
    if taints(change.old) == taints(change.new) {
        return;
    }
    let Some(context) = context.upgrade() else { return };
    for pod in context.caches.pods_by_node.get(&change.key.name) {
        queue.add(ObjectKey::of(&*pod));
    }
}

fn evicts(taint: &Taint) -> bool {
    taint.effect == "NoExecute"
}

/// When a pod has to go: `None` for one that may stay. `added` gives the time of a taint.
fn eviction_time(
    tolerations: &[Toleration],
    taints: &[Taint],
    added: impl Fn(&Taint) -> Timestamp,
) -> Option<Timestamp> {
    let deadlines = taints.iter().filter(|taint| evicts(taint)).filter_map(|taint| {
        let mut matching = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if matching.peek().is_none() {
            return Some(added(taint));
        }
        let seconds = matching.filter_map(|toleration| toleration.toleration_seconds).min()?;
        // A time beyond what can be written down is for ever.
        let tolerated = SignedDuration::from_secs(seconds.max(0));
        Some(added(taint).checked_add(tolerated).unwrap_or(Timestamp::MAX))
    });
    deadlines.min()
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
    /// Taints without a time, by node and key. Entries of nodes that are gone or clean are dropped.
    first_seen: Mutex<HashMap<(String, String), Timestamp>>,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "taint-eviction";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let caches = &self.context.caches;
        let Some(pod) = caches.pods.get(key) else { return Ok(Next::Done) };
        let Some(node_name) = pod_node(&pod).filter(|_| !pod.is_deleting()) else { return Ok(Next::Done) };
        let Some(node) = caches.nodes.get(&ObjectKey::new("", node_name)) else { return Ok(Next::Done) };
        let now = now();
        self.forget_removed(&node);
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        let deadline = eviction_time(tolerations, taints_of(&node), |taint| self.added(&node, taint, now));
        let Some(deadline) = deadline else { return Ok(Next::Done) };
        let wait = Duration::try_from(deadline.duration_since(now)).unwrap_or_default();
        if !wait.is_zero() {
            return Ok(Next::After(wait));
        }
        self.evict(&pod).await?;
        Ok(Next::Done)
    }
}

impl Controller {
    fn added(&self, node: &Node, taint: &Taint, now: Timestamp) -> Timestamp {
        if let Some(Time(at)) = &taint.time_added {
            return *at;
        }
        let key = (node.name().to_owned(), taint.key.clone());
        *self.first_seen.lock().entry(key).or_insert(now)
    }

    fn forget_removed(&self, node: &Node) {
        let nodes = &self.context.caches.nodes;
        self.first_seen.lock().retain(|(name, key), _| {
            if name == node.name() {
                return taints_of(node).iter().any(|taint| evicts(taint) && taint.key == *key);
            }
            nodes.get(&ObjectKey::new("", name.as_str())).is_some()
        });
    }

    async fn evict(&self, pod: &Pod) -> Result<(), Error> {
        let message = format!("Marking for deletion Pod {}/{}", pod.namespace(), pod.name());
        self.recorder.normal(pod, "TaintManagerEviction", message);
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), pod.namespace());
        let why = ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");
        mark_disrupted(&pods, pod, Some(why), None).await?;
        match pods.delete(pod.name(), &only_this(pod)).await {
            // Another pod has the name now.
            Err(error) if error.is_conflict() => Ok(()),
            outcome => outcome,
        }
    }
}

/// Says in the pod's status, by reason and message, that it was the cluster that ended it (KEP-3329), and in which phase
/// it is then.
pub(crate) async fn mark_disrupted(
    pods: &Api<Pod>,
    pod: &Pod,
    disruption: Option<(&str, &str)>,
    phase: Option<&str>,
) -> Result<(), Error> {
    if pod_is_terminal(pod) {
        return Ok(());
    }
    let mut patch = json!({
        "metadata": { "uid": pod.uid(), "resourceVersion": pod.resource_version() },
        "status": {},
    });
    if let Some((reason, message)) = disruption {
        let known = pod.status.as_ref().and_then(|status| status.conditions.clone());
        let mut conditions = known.unwrap_or_default();
        conditions.retain(|condition| condition.type_ != "DisruptionTarget");
        conditions.push(PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(now())),
            ..PodCondition::default()
        });
        patch["status"]["conditions"] = json!(conditions);
    }
    if let Some(phase) = phase {
        patch["status"]["phase"] = json!(phase);
    }
    match pods.merge_patch_status(pod.name(), &patch).await {
        Err(error) if error.is_not_found() => Ok(()),
        outcome => outcome.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str) -> Taint {
        Taint { key: key.into(), effect: "NoExecute".into(), ..Taint::default() }
    }

    fn toleration(key: &str, operator: &str, seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: seconds,
            value: None,
        }
    }

    #[track_caller]
    fn check(name: &str, taints: &[Taint], tolerations: &[Toleration], expected: Option<i64>) {
        let at = eviction_time(tolerations, taints, |_| Timestamp::UNIX_EPOCH);
        assert_eq!(at.map(Timestamp::as_second), expected, "{name}");
    }

    #[test]
    fn pods_go_when_their_toleration_ends() {
        check("no taint", &[], &[], None);
        check("no toleration", &[taint("a")], &[], Some(0));
        check("tolerated for a time", &[taint("a")], &[toleration("a", "Exists", Some(300))], Some(300));
        let last = Timestamp::MAX.as_second();
        check(
            "longer than time lasts",
            &[taint("a")],
            &[toleration("a", "Exists", Some(i64::MAX))],
            Some(last),
        );
        check("tolerated for ever", &[taint("a")], &[toleration("a", "Exists", None)], None);
        check("everything tolerated", &[taint("a")], &[toleration("", "Exists", None)], None);
        check("another taint tolerated", &[taint("a")], &[toleration("b", "Exists", None)], Some(0));
        let two = [toleration("a", "Exists", Some(30)), toleration("b", "Equal", Some(10))];
        check("the shortest counts", &[taint("a"), taint("b")], &two, Some(10));
        let schedule = Taint { effect: "NoSchedule".into(), ..taint("a") };
        check("NoSchedule evicts nobody", &[schedule], &[], None);
    }
}
