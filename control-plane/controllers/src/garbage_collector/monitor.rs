//! Follows one kind, whatever it is, and keeps its part of the graph.
//!
//! Like [`hawser_api::informer`], but reads metadata only and keeps no objects.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use hawser_api::{
    Client, Error,
    client::{ListOptions, WatchEvent, WatchOptions},
    resource::{GroupVersionResource, Target},
    typed::decode,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::warn;

use super::graph::{Graph, Object, Partial, Uid};
use crate::queue::Queue;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(10);

pub(super) struct Monitor {
    pub(super) client: Arc<dyn Client>,
    pub(super) resource: GroupVersionResource,
    pub(super) graph: Arc<Mutex<Graph>>,
    pub(super) queue: Queue<Uid>,
    /// Counts monitors whose first list is in the graph.
    pub(super) synced: watch::Sender<usize>,
}

impl Monitor {
    /// Runs until dropped. Errors are logged and retried with back-off.
    pub(super) async fn run(self) {
        let mut known: HashSet<Uid> = HashSet::new();
        let mut version: Option<String> = None;
        let mut is_synced = false;
        let mut delay = RETRY_FIRST;
        loop {
            if version.is_none() {
                match self.list(&mut known).await {
                    Ok(listed) => {
                        version = Some(listed);
                        if !std::mem::replace(&mut is_synced, true) {
                            self.synced.send_modify(|count| *count += 1);
                        }
                    }
                    Err(error) => {
                        warn!(resource = %self.resource, %error, ?delay, "list failed");
                        tokio::time::sleep(delay).await;
                        delay = (delay * 2).min(RETRY_LAST);
                        continue;
                    }
                }
            }
            match self.follow(&mut known, &mut version, &mut delay).await {
                Err(error) if error.is_expired() => {
                    version = None;
                    continue;
                }
                Err(error) => warn!(resource = %self.resource, %error, ?delay, "watch failed"),
                Ok(()) => {}
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_LAST);
        }
    }

    async fn list(&self, known: &mut HashSet<Uid>) -> Result<String, Error> {
        let target = Target::collection(self.resource.clone(), None);
        let list = self.client.list(&target, &ListOptions::default()).await?;
        let listed = list.items.iter().map(|item| self.read(item)).collect::<Result<Vec<_>, _>>()?;
        let fresh: HashMap<Uid, Object> =
            listed.into_iter().map(|object| (object.meta.uid.clone(), object)).collect();
        let mut look = Vec::new();
        {
            let mut graph = self.graph.lock();
            for gone in known.iter().filter(|uid| !fresh.contains_key(*uid)) {
                look.extend(graph.remove(gone));
            }
            known.clear();
            for (uid, object) in fresh {
                known.insert(uid);
                look.extend(graph.put(object));
            }
        }
        self.look_at(look);
        Ok(list.resource_version)
    }

    async fn follow(
        &self,
        known: &mut HashSet<Uid>,
        version: &mut Option<String>,
        delay: &mut Duration,
    ) -> Result<(), Error> {
        let target = Target::collection(self.resource.clone(), None);
        let options =
            WatchOptions { resource_version: version.clone().unwrap_or_default(), ..WatchOptions::default() };
        let mut events = self.client.watch(&target, &options).await?;
        while let Some(event) = events.next().await {
            let seen = match event? {
                WatchEvent::Added { object, resource_version }
                | WatchEvent::Modified { object, resource_version } => {
                    let object = self.read(&object)?;
                    known.insert(object.meta.uid.clone());
                    let look = self.graph.lock().put(object);
                    self.look_at(look);
                    resource_version
                }
                WatchEvent::Deleted { object, resource_version } => {
                    let object = self.read(&object)?;
                    known.remove(&object.meta.uid);
                    let look = self.graph.lock().remove(&object.meta.uid);
                    self.look_at(look);
                    resource_version
                }
                WatchEvent::Bookmark { resource_version } => resource_version,
            };
            *version = Some(seen);
            *delay = RETRY_FIRST;
        }
        Ok(())
    }

    fn read(&self, bytes: &Bytes) -> Result<Object, Error> {
        let partial: Partial = decode(bytes)?;
        Ok(Object { resource: self.resource.clone(), meta: partial.metadata })
    }

    fn look_at(&self, uids: Vec<Uid>) {
        uids.into_iter().for_each(|uid| self.queue.add(uid));
    }
}
