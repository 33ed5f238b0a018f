//! Tells users why a pod waits: its condition `PodScheduled`, and an event; and of a pod group whether it has its places.
//!
//! Latest wins: of a pod or a group that is rejected again before it was told, only the last reason is written. So the
//! backlog is bounded by the number of waiting pods, and never holds up the decisions.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use futures::{StreamExt, stream};
use hawser_api::{
    Client, Error,
    client::{Patch, WriteOptions},
    error::Reason,
    resource::{GroupVersionResource, ObjectKey, Target},
};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    events::{self, Recorder},
    group,
    scheduler::{GroupStatus, Nomination, Rejected, Why},
};

/// Writes at the same time; enough to keep up with a slow API server, few enough not to crowd out bindings.
const CONCURRENT: usize = 8;

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
    latest: HashMap<Arc<str>, Rejected>,
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
            Some(earlier) if rejected.nomination == Nomination::Keep => {
                rejected.nomination = earlier.nomination
            }
            Some(_) => (),
            None => waiting.order.push_back(uid.clone()),
        }
        waiting.latest.insert(uid, rejected);
        drop(waiting);
        self.added.notify_one();
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
        let uid = waiting.order.pop_front()?;
        waiting.latest.remove(&uid).map(News::Pod)
    }

    /// Writes until `shutdown`; what is not told by then is told by the next scheduler.
    pub(crate) async fn run(
        self: Arc<Self>,
        client: Arc<dyn Client>,
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
            let (client, recorder) = (client.clone(), recorder.clone());
            async move {
                match news {
                    News::Pod(rejected) => tell(&*client, &recorder, &rejected).await,
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

async fn tell(client: &dyn Client, recorder: &Recorder, rejected: &Rejected) {
    let (pod, message) = (&rejected.pod, &rejected.message);
    recorder.record(&pod.key.namespace, &pod.key.name, &pod.uid, events::FAILED_SCHEDULING, message.clone());
    // The same again would only make watchers read it again.
    if pod.told.as_ref() == Some(message) && rejected.nomination == Nomination::Keep {
        return;
    }
    match write_condition(client, rejected).await {
        Ok(()) => (),
        // Gone, or another pod by now.
        Err(error) if matches!(error.reason(), Reason::NotFound | Reason::Conflict | Reason::Invalid) => (),
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

async fn write_condition(client: &dyn Client, rejected: &Rejected) -> Result<(), Error> {
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
    // The uid makes a patch of another pod with this name fail.
    let mut patch = json!({ "metadata": { "uid": &*pod.uid }, "status": { "conditions": [condition] } });
    match &rejected.nomination {
        Nomination::Keep => (),
        Nomination::Set(node) => patch["status"]["nominatedNodeName"] = node.as_str().into(),
        Nomination::Clear => patch["status"]["nominatedNodeName"] = Value::Null,
    }
    let target = Target::object(PODS, Some(&pod.key.namespace), &pod.key.name).with_subresource("status");
    client.patch(&target, Patch::StrategicMerge(patch.to_string().into()), &WriteOptions::default()).await?;
    Ok(())
}
