//! Tells users why a pod waits: its condition `PodScheduled`, and an event; and of a pod group whether it has its places.
//!
//! Latest wins: of a pod or a group that is rejected again before it was told, only the last reason is written. So the
//! backlog is bounded by the number of waiting pods, and never holds up the decisions. A pod that got a node meanwhile is not
//! told that it has none.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use futures::{StreamExt, stream};
use hawser_api::{
    Api, Client, Error,
    client::{Patch, WriteOptions},
    error::Reason,
    informer::Informer,
    resource::{GroupVersionResource, ObjectKey, Target},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    events::{self, Recorder},
    group, pod,
    scheduler::{GroupStatus, Nomination, Rejected, Why},
};

/// Writes at the same time; enough to keep up with a slow API server, few enough not to crowd out bindings.
const CONCURRENT: usize = 8;

/// Attempts to write a pod that others write at the same time.
const ATTEMPTS: usize = 5;

const POD_GROUPS: GroupVersionResource =
    GroupVersionResource::fixed("scheduling.k8s.io", "v1alpha2", "podgroups");
const PODS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "pods");

#[derive(Default)]
pub(crate) struct Reports {
    waiting: Mutex<Backlog>,
    added: Notify,
}

#[derive(Default)]
struct Backlog {
    order: VecDeque<Arc<str>>,
    /// `None` where it was taken back.
    latest: HashMap<Arc<str>, Option<Rejected>>,
    groups: HashMap<ObjectKey, GroupStatus>,
}

enum News {
    Pod(Rejected),
    Group(GroupStatus),
}

impl Reports {
    pub(crate) fn add(&self, mut rejected: Rejected) {
        let mut waiting = self.waiting.lock();
        let uid = rejected.pod.uid.clone();
        match waiting.latest.remove(&uid) {
            // What became of the nomination meanwhile is still to be written.
            Some(Some(earlier)) if rejected.nomination == Nomination::Keep => {
                rejected.nomination = earlier.nomination
            }
            Some(_) => (),
            None => waiting.order.push_back(uid.clone()),
        }
        waiting.latest.insert(uid, Some(rejected));
        drop(waiting);
        self.added.notify_one();
    }

    /// The pod has a node by now.
    pub(crate) fn take_back(&self, uid: &str) {
        if let Some(rejected) = self.waiting.lock().latest.get_mut(uid) {
            *rejected = None;
        }
    }

    pub(crate) fn add_group(&self, status: GroupStatus) {
        self.waiting.lock().groups.insert(status.key.clone(), status);
        self.added.notify_one();
    }

    /// Groups first: they are few.
    fn take(&self) -> Option<News> {
        let mut waiting = self.waiting.lock();
        if let Some(key) = waiting.groups.keys().next().cloned() {
            return waiting.groups.remove(&key).map(News::Group);
        }
        while let Some(uid) = waiting.order.pop_front() {
            if let Some(rejected) = waiting.latest.remove(&uid).flatten() {
                return Some(News::Pod(rejected));
            }
        }
        None
    }

    /// Writes until `shutdown`; what is not told by then is told by the next scheduler.
    pub(crate) async fn run(
        self: Arc<Self>,
        client: Arc<dyn Client>,
        pods: Informer<Pod>,
        recorder: Recorder,
        shutdown: CancellationToken,
    ) {
        let reports = stream::unfold(self, |reports| async move {
            loop {
                if let Some(news) = reports.take() {
                    return Some((news, reports));
                }
                reports.added.notified().await;
            }
        });
        let write_all = reports.for_each_concurrent(CONCURRENT, |news| {
            let (client, pods, recorder) = (client.clone(), pods.clone(), recorder.clone());
            async move {
                match news {
                    News::Pod(rejected) => tell(&client, &pods, &recorder, &rejected).await,
                    News::Group(status) => tell_group(&*client, &status).await,
                }
            }
        });
        tokio::select! {
            () = shutdown.cancelled() => (),
            () = write_all => (),
        }
    }
}

async fn tell(client: &Arc<dyn Client>, pods: &Informer<Pod>, recorder: &Recorder, rejected: &Rejected) {
    let (pod, message) = (&rejected.pod, &rejected.message);
    recorder.record(&pod.key.namespace, &pod.key.name, &pod.uid, events::FAILED_SCHEDULING, message.clone());
    // The same again would only make watchers read it again.
    if pod.told.as_ref() == Some(message) && rejected.nomination == Nomination::Keep {
        return;
    }
    match write_condition(client, pods, rejected).await {
        Ok(()) => (),
        // Gone, or another pod by now.
        Err(error) if matches!(error.reason(), Reason::NotFound | Reason::Invalid) => (),
        Err(error) => warn!(key = %pod.key, %error, "cannot write why a pod waits"),
    }
}

/// What is not written now is told with the next attempt to place the group.
async fn tell_group(client: &dyn Client, status: &GroupStatus) {
    let told = &status.told;
    let (truth, reason) = if told.scheduled { ("True", "Scheduled") } else { ("False", "Unschedulable") };
    let mut condition =
        json!({ "type": group::SCHEDULED, "status": truth, "reason": reason, "message": told.message });
    if status.turns {
        condition["lastTransitionTime"] = events::seconds(Timestamp::now()).into();
    }
    let patch = json!({ "metadata": { "uid": status.uid }, "status": { "conditions": [condition] } });
    let (key, patch) = (&status.key, Patch::StrategicMerge(patch.to_string().into()));
    let target = Target::object(POD_GROUPS, Some(&key.namespace), &key.name).with_subresource("status");
    match client.patch(&target, patch, &WriteOptions::default()).await {
        Ok(_) => (),
        Err(error) if matches!(error.reason(), Reason::NotFound | Reason::Conflict | Reason::Invalid) => (),
        Err(error) => warn!(%key, %error, "cannot write whether a pod group has its places"),
    }
}

/// The version makes a patch of a pod that changed meanwhile fail: it may have a node by then.
async fn write_condition(
    client: &Arc<dyn Client>,
    pods: &Informer<Pod>,
    rejected: &Rejected,
) -> Result<(), Error> {
    let pod = &rejected.pod;
    let target = Target::object(PODS, Some(&pod.key.namespace), &pod.key.name).with_subresource("status");
    let api = Api::<Pod>::namespaced(client.clone(), &pod.key.namespace);
    let waits =
        |found: &Arc<Pod>| found.metadata.uid.as_deref() == Some(&pod.uid) && pod::node_of(found).is_none();
    let mut patch = condition(rejected);
    let mut found = pods.get(&pod.key);
    let mut outcome = Ok(());
    for _ in 0..ATTEMPTS {
        let Some(waiting) = found.filter(waits) else { return Ok(()) };
        patch["metadata"] = json!({ "resourceVersion": waiting.metadata.resource_version });
        let written = Patch::StrategicMerge(patch.to_string().into());
        outcome = client.patch(&target, written, &WriteOptions::default()).await.map(drop);
        if !outcome.as_ref().is_err_and(Error::is_conflict) {
            break;
        }
        found = api.find(&pod.key.name).await?.map(Arc::new);
    }
    outcome
}

/// The patch that tells why the pod waits, and what becomes of its nomination.
fn condition(rejected: &Rejected) -> Value {
    let pod = &rejected.pod;
    let reason = match rejected.why {
        Why::NoNode => "Unschedulable",
        Why::Trouble => "SchedulerError",
    };
    let mut condition = json!({
        "type": "PodScheduled", "status": "False", "reason": reason, "message": rejected.message,
    });
    if pod.told.is_none() {
        condition["lastTransitionTime"] = events::seconds(Timestamp::now()).into();
    }
    let mut patch = json!({ "status": { "conditions": [condition] } });
    match &rejected.nomination {
        Nomination::Keep => (),
        Nomination::Set(node) => patch["status"]["nominatedNodeName"] = node.as_str().into(),
        Nomination::Clear => patch["status"]["nominatedNodeName"] = Value::Null,
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{info, pod};

    #[test]
    fn a_pod_that_has_a_node_by_now_is_not_told_of() {
        let reports = Reports::default();
        let add = |name: &str| {
            let (pod, message) = (info(&pod(name, json!({ "containers": [] }))), String::new());
            reports.add(Rejected { pod, message, why: Why::NoNode, nomination: Nomination::Keep });
        };
        let next = || match reports.take() {
            Some(News::Pod(rejected)) => rejected.pod.key.name.clone(),
            _ => String::new(),
        };
        add("a");
        add("b");
        reports.take_back("a");
        assert_eq!([next(), next()], ["b", ""]);
        add("a");
        reports.take_back("a");
        add("a");
        assert_eq!([next(), next()], ["a", ""]);
    }
}
