//! What a watch of all pods shows.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Result, bail};
use futures::StreamExt as _;
use hawser_api::{
    Client, GroupVersionResource,
    client::{ListOptions, WatchEvent, WatchOptions},
    grpc::Remote,
    resource::Target,
};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{Notify, mpsc};

use crate::{ledger::Ledger, workloads::Stage};

pub(crate) const PODS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "pods");

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) ledger: Mutex<Ledger>,
    /// Who hears of each pod of a namespace that gets a node.
    follower: Mutex<Option<Follower>>,
    changed: Notify,
    /// Why the watch ended.
    failed: Mutex<Option<String>>,
}

struct Follower {
    namespace: String,
    /// One place for each pod that there is at a time.
    names: mpsc::Sender<String>,
}

/// The part of a pod that is looked at.
#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: String,
    #[serde(default)]
    labels: Labels,
}

#[derive(Default, Deserialize)]
struct Labels {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Pod {
    fn stage(&self) -> Option<Stage> {
        let is_refused =
            |condition: &Condition| condition.kind == "PodScheduled" && condition.status == "False";
        if self.spec.node_name.is_some() {
            Some(Stage::Scheduled)
        } else {
            self.status.conditions.iter().any(is_refused).then_some(Stage::Attempted)
        }
    }
}

impl Seen {
    /// Waits until it is so.
    pub(crate) async fn until(&self, is_it: impl Fn(&Ledger) -> bool) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(why) = &*self.failed.lock() {
                bail!("the watch ended: {why}");
            }
            if is_it(&self.ledger.lock()) {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Names of pods of a namespace as they get nodes; there are never more than so many.
    pub(crate) fn follow(&self, namespace: &str, most: usize) -> mpsc::Receiver<String> {
        let (names, receiver) = mpsc::channel(most);
        *self.follower.lock() = Some(Follower { namespace: namespace.to_owned(), names });
        receiver
    }

    pub(crate) async fn watch(self: Arc<Self>, client: Arc<Remote>) {
        let outcome = self.see(&client).await;
        let why = outcome.err().map_or_else(|| "by the server".to_owned(), |error| format!("{error:#}"));
        *self.failed.lock() = Some(why);
        self.changed.notify_waiters();
    }

    async fn see(&self, client: &Remote) -> Result<()> {
        let all = Target::collection(PODS, None);
        let resource_version = client.list(&all, &ListOptions::default()).await?.resource_version;
        let options = WatchOptions { resource_version, ..WatchOptions::default() };
        let mut events = client.watch(&all, &options).await?;
        // Pods that have been tried: as many as there are.
        let mut known: HashMap<(String, String), Stage> = HashMap::new();
        while let Some(event) = events.next().await {
            let (object, is_there) = match event? {
                WatchEvent::Added { object, .. } | WatchEvent::Modified { object, .. } => (object, true),
                WatchEvent::Deleted { object, .. } => (object, false),
                WatchEvent::Bookmark { .. } => continue,
            };
            let pod: Pod = serde_json::from_slice(&object)?;
            let stage = pod.stage();
            let Metadata { name, namespace, labels } = pod.metadata;
            let key = (namespace, name);
            if !is_there {
                known.remove(&key);
            } else if let Some(stage) = stage.filter(|stage| known.get(&key) != Some(stage)) {
                self.note(&key, labels.kind.as_deref(), known.get(&key).copied(), stage);
                known.insert(key, stage);
            }
        }
        Ok(())
    }

    fn note(
        &self,
        (namespace, name): &(String, String),
        kind: Option<&str>,
        before: Option<Stage>,
        now: Stage,
    ) {
        let mut ledger = self.ledger.lock();
        if before.is_none() {
            ledger.attempted(namespace, kind);
        }
        if now == Stage::Scheduled {
            ledger.bound(namespace, kind, name);
            let follower = self.follower.lock();
            if let Some(follower) = follower.as_ref().filter(|follower| follower.namespace == *namespace) {
                // Full only when nobody takes them any more.
                let _ = follower.names.try_send(name.clone());
            }
        }
        drop(ledger);
        self.changed.notify_waiters();
    }
}
