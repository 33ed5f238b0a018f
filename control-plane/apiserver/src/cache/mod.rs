//! The watch cache: every object of every kind, fed by one watch of the store.
//!
//! One task ([`feed`]) applies the store's changes and publishes, for each kind that changed, a new immutable [`State`]
//! behind an atomic pointer; readers load it and keep it as long as they like. No reader takes a lock that the writer
//! holds, and no reader is waited for. A read that must see every acknowledged write waits until [`Cache::progress`] has
//! reached the store's revision. Watchers pull from the kind's [`ring::Ring`]; the cache knows none of them.
//!
//! Order of publication: states first, then progress. So a reader that loads progress first and then a state gets a
//! state that is complete up to that progress, and may be newer ([`Snapshot::revision`] says how new).

mod cow_map;
mod entering;
mod feed;
mod object;
mod parts;
pub mod ring;
mod scan;
mod selection;
mod watcher;

pub use cow_map::CowMap;
pub use entering::Announced;
pub use feed::{ObjectSink, RawSink, run};
pub use object::{CachedObject, Encoded, Malformed};
pub use selection::{FieldRequirement, Selected, Selection};
pub use watcher::{Change, ChangeKind, Watcher};

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use hawser_api::Error;
use hawser_store::{Key, Revision, Store, WatchProgress};
use serde_json::Value;
use tokio::sync::watch;

use entering::Entering;
use ring::Ring;

/// Everything lives below this prefix.
pub const ROOT: &str = "/registry/";

/// Writing this key moves the watch along on stores that do not announce progress.
const PROGRESS_KEY: &str = "/registry/hawser.progress";

/// How long a consistent read waits for the cache before it gives up.
const FRESHNESS_DEADLINE: Duration = Duration::from_secs(10);

/// After this long without progress on a store that does not announce it, a write of our own moves it.
const NUDGE_AFTER: Duration = Duration::from_millis(50);

/// Keys of objects by a term: a label `key=value`, or a node's name.
pub type Index = CowMap<CowMap<()>>;

/// One kind at one moment. Immutable once published.
#[derive(Clone)]
pub struct State {
    pub objects: CowMap<Arc<CachedObject>>,
    by_label: Index,
    by_node: Index,
    pub ring: Ring,
    /// Revision of the newest change in `objects`.
    revision: Revision,
}

impl State {
    fn new(revision: Revision) -> Self {
        Self {
            objects: CowMap::default(),
            by_label: Index::default(),
            by_node: Index::default(),
            ring: Ring::new(revision),
            revision,
        }
    }

    /// Keys of the pods of a node, in order.
    pub fn keys_on_node(&self, node: &str) -> Option<&CowMap<()>> {
        self.by_node.get(node)
    }

    fn put(&mut self, object: Arc<CachedObject>) -> Option<Arc<CachedObject>> {
        let previous = self.objects.insert(object.key().clone(), object.clone());
        let same_labels = previous.as_ref().is_some_and(|old| old.labels().eq(object.labels()));
        if !same_labels {
            if let Some(old) = &previous {
                self.unindex_labels(old);
            }
            for (key, value) in object.labels() {
                index(&mut self.by_label, &format!("{key}={value}"), object.key());
            }
        }
        if previous.as_ref().map_or("", |old| old.node()) != object.node() {
            if let Some(old) = previous.as_ref().filter(|old| !old.node().is_empty()) {
                unindex(&mut self.by_node, old.node(), old.key());
            }
            if !object.node().is_empty() {
                index(&mut self.by_node, object.node(), object.key());
            }
        }
        previous
    }

    fn remove(&mut self, key: &str) -> Option<Arc<CachedObject>> {
        let old = self.objects.remove(key)?;
        self.unindex_labels(&old);
        if !old.node().is_empty() {
            unindex(&mut self.by_node, old.node(), old.key());
        }
        Some(old)
    }

    fn unindex_labels(&mut self, object: &CachedObject) {
        for (key, value) in object.labels() {
            unindex(&mut self.by_label, &format!("{key}={value}"), object.key());
        }
    }
}

fn index(index: &mut Index, term: &str, key: &Key) {
    match index.get_mut(term) {
        Some(keys) => drop(keys.insert(key.clone(), ())),
        None => {
            let mut keys = CowMap::default();
            keys.insert(key.clone(), ());
            index.insert(term.into(), keys);
        }
    }
}

fn unindex(index: &mut Index, term: &str, key: &str) {
    let Some(keys) = index.get_mut(term) else { return };
    keys.remove(key);
    if keys.is_empty() {
        index.remove(term);
    }
}

/// A field that selectors can name, and how to read it.
pub type Selectable = (&'static str, fn(&Value) -> String);

/// The cache of one kind: of one place in the store.
pub struct KindCache {
    /// `/registry/pods/`.
    prefix: String,
    namespaced: bool,
    fields: &'static [Selectable],
    state: ArcSwap<State>,
    /// Sequence number of the next event: what wakes watchers.
    changed: watch::Sender<u64>,
    progress: watch::Receiver<Revision>,
    /// Hears of every change before the cache's progress moves past it.
    sink: Option<Arc<dyn ObjectSink>>,
}

/// A kind's objects, and the revision they are as of.
#[derive(Clone)]
pub struct Snapshot {
    pub state: Arc<State>,
    /// Every change up to here is in `state`, and none after.
    pub revision: Revision,
}

impl KindCache {
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn namespaced(&self) -> bool {
        self.namespaced
    }

    pub fn selectable(&self) -> &'static [Selectable] {
        self.fields
    }

    /// The key of an object in the store.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}{namespace}/{name}", self.prefix)
        } else {
            format!("{}{name}", self.prefix)
        }
    }

    /// Namespace and name of the object at a key; `None` for a key of another kind.
    pub fn place<'k>(&self, key: &'k str) -> Option<(&'k str, &'k str)> {
        let rest = key.strip_prefix(&self.prefix)?;
        if self.namespaced { rest.split_once('/') } else { Some(("", rest)) }
    }

    /// What the cache holds now; see [`Cache::consistent`] for what must be as new as the store.
    pub fn snapshot(&self) -> Snapshot {
        // Progress before state: see the module's documentation.
        let progress = *self.progress.borrow();
        let state = self.state.load_full();
        let revision = progress.max(state.revision);
        Snapshot { state, revision }
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<CachedObject>> {
        self.state.load().objects.get(&self.key(namespace, name)).cloned()
    }

    /// The revision up to which everything is known here.
    pub fn progress(&self) -> Revision {
        *self.progress.borrow()
    }

    /// Selectable fields of an object, in the kind's order.
    pub fn fields_of<'a>(&self, object: &'a CachedObject) -> &'a [String] {
        object.fields(|value| self.fields.iter().map(|(_, read)| read(value)).collect())
    }
}

/// What the feed knows of a kind when the cache is made.
pub struct KindSpec {
    /// `pods`, or `apps/deployments`: the key's part after [`ROOT`].
    pub path: String,
    pub namespaced: bool,
    pub fields: &'static [Selectable],
    /// Who keeps an index of its own over the objects.
    pub sink: Option<Arc<dyn ObjectSink>>,
}

/// All kinds.
pub struct Cache {
    kinds: HashMap<String, Arc<KindCache>>,
    progress: watch::Sender<Revision>,
    synced: watch::Sender<bool>,
    store: Arc<dyn Store>,
    /// Kinds of keys that are not objects, each with who wants to hear of them.
    sinks: HashMap<String, Arc<dyn RawSink>>,
    entering: Entering,
}

impl Cache {
    pub fn new(
        store: Arc<dyn Store>,
        kinds: impl IntoIterator<Item = KindSpec>,
        sinks: impl IntoIterator<Item = (String, Arc<dyn RawSink>)>,
    ) -> Self {
        let progress = watch::Sender::new(0);
        let kinds = kinds
            .into_iter()
            .map(|kind| {
                let cache = KindCache {
                    prefix: format!("{ROOT}{}/", kind.path),
                    namespaced: kind.namespaced,
                    fields: kind.fields,
                    state: ArcSwap::from_pointee(State::new(0)),
                    changed: watch::Sender::new(0),
                    progress: progress.subscribe(),
                    sink: kind.sink,
                };
                (kind.path, Arc::new(cache))
            })
            .collect();
        Self {
            kinds,
            progress,
            synced: watch::Sender::new(false),
            store,
            sinks: sinks.into_iter().collect(),
            entering: Entering::default(),
        }
    }

    /// The cache of `pods`, `apps/deployments`, ...
    pub fn kind(&self, path: &str) -> Option<&Arc<KindCache>> {
        self.kinds.get(path)
    }

    /// The kind that a key of the store belongs to.
    fn kind_of(&self, key: &str) -> Option<&Arc<KindCache>> {
        path_of(key, |path| self.kinds.get(path))
    }

    /// Says that this server is about to write `object`, printed as `json`, so that it is made once for its author and the
    /// cache.
    pub fn announce(&self, key: Key, json: Bytes, object: &Value) -> Announced<'_> {
        self.entering.announce(key, json, object)
    }

    /// True once everything that the store held at start is here.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    pub async fn synced(&self) {
        // The sender lives as long as `self`.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub fn progress(&self) -> Revision {
        *self.progress.borrow()
    }

    /// Waits until the cache has seen every write that was acknowledged before the call, by any server.
    pub async fn consistent(&self) -> Result<Revision, Error> {
        let revision = tokio::time::timeout(FRESHNESS_DEADLINE, self.store.current_revision())
            .await
            .map_err(|_| Error::timeout("the store did not answer in time"))?
            .map_err(crate::registry::store_error)?;
        self.wait_for(revision).await?;
        Ok(revision)
    }

    /// Waits until the cache has reached `revision`; 504 where it does not in time.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), Error> {
        if *self.progress.borrow() >= revision && self.is_synced() {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        let reached = async {
            self.synced().await;
            if tokio::time::timeout(NUDGE_AFTER, progress.wait_for(|seen| *seen >= revision)).await.is_err() {
                self.nudge().await;
                let _ = progress.wait_for(|seen| *seen >= revision).await;
            }
        };
        tokio::time::timeout(FRESHNESS_DEADLINE, reached)
            .await
            .map_err(|_| Error::too_large_resource_version(revision, self.progress()))
    }

    /// Makes the watch move where the store does not announce progress by itself.
    async fn nudge(&self) {
        let announced = match self.store.status().await {
            Ok(status) => status.watch_progress == WatchProgress::Announced,
            Err(_) => return,
        };
        if !announced {
            let write = hawser_store::Write::put(PROGRESS_KEY, Vec::new(), hawser_store::Expect::Any);
            // A failure shows as the reader's timeout.
            let _ = self.store.write(write).await;
        }
    }
}

/// Looks up the kind's part of a key: `pods` of `/registry/pods/ns/a`, `apps/deployments` of `/registry/apps/deployments/...`.
fn path_of<'a, T>(key: &str, find: impl Fn(&str) -> Option<&'a T>) -> Option<&'a T> {
    let rest = key.strip_prefix(ROOT)?;
    let first = rest.find('/')?;
    find(&rest[..first]).or_else(|| {
        let second = rest[first + 1..].find('/')?;
        find(&rest[..first + 1 + second])
    })
}
