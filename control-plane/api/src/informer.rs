//! A watch-fed cache of one kind, shared by everything in a process that reads it.
//!
//! One task lists once, then follows the watch, and lists again only where the history was compacted away.
//! Readers see whole objects behind `Arc`s and never wait for the network; handlers hear of each change after
//! the cache holds it, in order. A handler must not block: it adds a key to a queue and returns. What was
//! missed during a break is delivered as changes when the new list arrives, so a level-triggered reader
//! misses nothing. The cache is bounded by what the API server holds of the kind.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use parking_lot::RwLock;
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::{
    Error,
    client::{Client, ListOptions, WatchEvent, WatchOptions},
    resource::{GroupVersionResource, ObjectKey, Target},
    typed::{Kind, decode},
};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// A change of one object: `old` is unset for a new one, `new` for a deleted one.
pub struct Change<'a, K> {
    pub key: &'a ObjectKey,
    pub old: Option<&'a Arc<K>>,
    pub new: Option<&'a Arc<K>>,
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

/// The cache. Cheap to clone; all clones read the same objects.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    objects: RwLock<HashMap<ObjectKey, Arc<K>>>,
    /// Grows only before `run`; called with no lock held on `objects`.
    handlers: RwLock<Vec<Handler<K>>>,
    synced: AtomicBool,
    on_sync: Notify,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: Kind> Default for Informer<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Kind> Informer<K> {
    /// An empty cache; [`Informer::run`] fills it.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                objects: RwLock::default(),
                handlers: RwLock::default(),
                synced: AtomicBool::new(false),
                on_sync: Notify::new(),
            }),
        }
    }

    /// Registers a handler; it hears of every change from the first list on.
    pub fn on_change(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.shared.handlers.write().push(Box::new(handler));
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.shared.objects.read().get(key).cloned()
    }

    /// All objects, in no order.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.shared.objects.read().values().cloned().collect()
    }

    /// The objects for which `keep` holds, in no order.
    pub fn filter(&self, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.shared.objects.read().values().filter(|object| keep(object)).cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.shared.objects.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True once the first list is in the cache and every handler has heard of it.
    pub fn is_synced(&self) -> bool {
        self.shared.synced.load(Ordering::Acquire)
    }

    /// Waits for the first list.
    pub async fn synced(&self) {
        loop {
            let notified = self.shared.on_sync.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.is_synced() {
                return;
            }
            notified.await;
        }
    }

    /// Follows the API until dropped. Never returns; errors are logged and retried with back-off.
    ///
    /// Cancel safe: dropping it leaves the cache as it was.
    pub async fn run(&self, client: Arc<dyn Client>, namespace: Option<String>, options: ListOptions) {
        let target = Target::collection(GroupVersionResource::of::<K>(), namespace.as_deref());
        let mut version: Option<String> = None;
        let mut delay = RETRY_FIRST;
        loop {
            let outcome = self.follow(&*client, &target, &options, &mut version, &mut delay).await;
            if let Err(error) = outcome {
                if error.is_expired() {
                    debug!(resource = %target.resource, "history is compacted, listing again");
                    version = None;
                    continue;
                }
                warn!(resource = %target.resource, %error, ?delay, "watch failed");
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_LAST);
        }
    }

    /// Lists where there is no version yet, then applies one watch until it ends.
    async fn follow(
        &self,
        client: &dyn Client,
        target: &Target,
        options: &ListOptions,
        version: &mut Option<String>,
        delay: &mut Duration,
    ) -> Result<(), Error> {
        let from = match version {
            Some(version) => version.clone(),
            None => {
                let list = client.list(target, options).await?;
                let objects = list.items.iter().map(decode::<K>).collect::<Result<Vec<_>, _>>()?;
                self.replace(objects);
                version.insert(list.resource_version).clone()
            }
        };
        let watch = WatchOptions {
            label_selector: options.label_selector.clone(),
            field_selector: options.field_selector.clone(),
            resource_version: from,
        };
        let mut events = client.watch(target, &watch).await?;
        while let Some(event) = events.next().await {
            let seen = match event? {
                WatchEvent::Added { object, resource_version }
                | WatchEvent::Modified { object, resource_version } => {
                    self.put(decode(&object)?);
                    resource_version
                }
                WatchEvent::Deleted { object, resource_version } => {
                    self.remove(&ObjectKey::of(&decode::<K>(&object)?));
                    resource_version
                }
                WatchEvent::Bookmark { resource_version } => resource_version,
            };
            *version = Some(seen);
            *delay = RETRY_FIRST;
        }
        Ok(())
    }

    /// Adds or replaces one object. Public for feeders other than a watch (the node stream).
    pub fn put(&self, object: K) {
        let key = ObjectKey::of(&object);
        let new = Arc::new(object);
        let old = self.shared.objects.write().insert(key.clone(), new.clone());
        self.tell(&Change { key: &key, old: old.as_ref(), new: Some(&new) });
    }

    /// Removes one object; unknown keys change nothing.
    pub fn remove(&self, key: &ObjectKey) {
        let old = self.shared.objects.write().remove(key);
        if let Some(old) = &old {
            self.tell(&Change { key, old: Some(old), new: None });
        }
    }

    /// Makes the cache hold exactly `objects`, and tells handlers what that changed.
    pub fn replace(&self, objects: Vec<K>) {
        let fresh: HashMap<ObjectKey, Arc<K>> =
            objects.into_iter().map(|object| (ObjectKey::of(&object), Arc::new(object))).collect();
        let stale = std::mem::replace(&mut *self.shared.objects.write(), fresh.clone());
        for (key, old) in &stale {
            if !fresh.contains_key(key) {
                self.tell(&Change { key, old: Some(old), new: None });
            }
        }
        for (key, new) in &fresh {
            let old = stale.get(key);
            let same =
                old.is_some_and(|old| old.metadata().resource_version == new.metadata().resource_version);
            if !same {
                self.tell(&Change { key, old, new: Some(new) });
            }
        }
        // Last: who waits for the first list may rely on indexes that handlers keep.
        self.shared.synced.store(true, Ordering::Release);
        self.shared.on_sync.notify_waiters();
    }

    fn tell(&self, change: &Change<'_, K>) {
        for handler in self.shared.handlers.read().iter() {
            handler(change);
        }
    }
}
