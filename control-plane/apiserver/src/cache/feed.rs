//! Feeds the cache: reads everything once, then follows one watch of the whole store.
//!
//! At start the rings are filled from the store's history, so that watchers of a process before this one go on without
//! a relist. When history was compacted under the watch (the process slept, etcd was away), everything is read again
//! and rings start anew, because what happened in between is not known: watchers are told 410 and list again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, pin_mut};
use hawser_store::{
    Error, Event, EventKind, Expect, KeyValue, RangeRequest, Revision, WatchProgress, WatchStream, Write,
    pages,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{Cache, CachedObject, KindCache, PROGRESS_KEY, ROOT, State, path_of, ring};

/// Revisions of history that fill the rings at start. Reading them costs about 20 µs each.
const HISTORY: Revision = 16_384;

const PAGE: usize = 2_000;

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// Hears of keys that are not objects of a kind (allocations), in order and before the cache's progress moves past them.
///
/// Must not block.
pub trait RawSink: Send + Sync {
    fn put(&self, kv: &KeyValue);
    fn delete(&self, key: &str);
    /// Everything is told again, from nothing.
    fn reset(&self);
}

/// Hears of the objects of one kind, in order and before the cache's progress moves past them: for an index that readers
/// of a revision may rely on.
///
/// Must not block.
pub trait ObjectSink: Send + Sync {
    fn put(&self, object: &CachedObject);
    fn delete(&self, key: &str);
    /// Everything is told again, from nothing; what was published before stays until then.
    fn reset(&self);
    /// What was told so far is to be seen, all at once.
    fn publish(&self);
}

/// Follows the store until cancelled. Errors are logged and retried with back-off; readers see them as timeouts.
pub async fn run(cache: Arc<Cache>, shutdown: CancellationToken) {
    let mut feed = Feed { cache, last: 0 };
    let mut delay = RETRY_FIRST;
    loop {
        let followed = tokio::select! {
            () = shutdown.cancelled() => return,
            followed = feed.follow(&mut delay) => followed,
        };
        match followed {
            Err(Error::Compacted { .. } | Error::FutureRevision { .. }) => {
                warn!(last = feed.last, "history is gone, reading everything again");
                feed.last = 0;
            }
            Err(Error::Closed) => return debug!("store is closed"),
            Err(error) => warn!(%error, ?delay, "cache lost the store"),
            Ok(()) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(RETRY_LAST);
    }
}

struct Feed {
    cache: Arc<Cache>,
    /// Everything up to here is in the cache; 0 before the first read.
    last: Revision,
}

impl Feed {
    async fn follow(&mut self, delay: &mut Duration) -> Result<(), Error> {
        let store = self.cache.store.clone();
        let mut watch =
            if self.last == 0 { self.read_all().await? } else { store.watch(ROOT, self.last + 1).await? };
        while let Some(batch) = watch.next().await {
            let batch = batch?;
            self.apply(&batch.events);
            self.advance(batch.revision);
            *delay = RETRY_FIRST;
        }
        Ok(())
    }

    /// Reads the store at one revision, fills the rings from history, and returns the watch that goes on.
    async fn read_all(&mut self) -> Result<WatchStream, Error> {
        let store = self.cache.store.clone();
        // What is read here does not come again as an event.
        self.cache.entering.clear();
        let mut fresh: HashMap<String, State> = HashMap::new();
        let mut raw = Vec::new();
        let mut revision = 0;
        {
            let pages = pages(&*store, RangeRequest::prefix(ROOT), PAGE);
            pin_mut!(pages);
            while let Some(page) = pages.next().await {
                let page = page?;
                revision = page.revision;
                for kv in page.kvs {
                    match self.cache.kind_of(&kv.key) {
                        Some(kind) => {
                            let Some(object) = parse(&kv) else { continue };
                            fresh.entry(kind.prefix.clone()).or_insert_with(|| State::new(0)).put(object);
                        }
                        None => raw.push(kv),
                    }
                }
            }
        }
        for sink in self.cache.sinks.values() {
            sink.reset();
        }
        for kv in &raw {
            if let Some(sink) = path_of(&kv.key, |path| self.cache.sinks.get(path)) {
                sink.put(kv);
            }
        }
        let first = !self.cache.is_synced();
        for kind in self.cache.kinds.values() {
            let mut state = fresh.remove(&kind.prefix).unwrap_or_else(|| State::new(0));
            if let Some(sink) = &kind.sink {
                sink.reset();
                let _: Option<()> = state.objects.find_map(&mut |object| {
                    sink.put(object);
                    None
                });
            }
            state.revision = revision;
            state.ring = ring::Ring::new(revision);
            if !first {
                // Sequence numbers of watchers from before must not be found in the new ring.
                state.ring = ring::Ring::starting_at(kind.state.load().ring.next() + 1, revision);
            }
            kind.state.store(Arc::new(state));
        }
        for sink in self.cache.kinds.values().filter_map(|kind| kind.sink.as_ref()) {
            sink.publish();
        }
        let watch =
            if first { self.fill_rings(revision).await? } else { store.watch(ROOT, revision + 1).await? };
        self.advance(revision);
        self.cache.synced.send_replace(true);
        for kind in self.cache.kinds.values() {
            kind.changed.send_replace(kind.state.load().ring.next());
        }
        info!(revision, "cache is filled");
        Ok(watch)
    }

    /// Reads history up to `revision` into the rings; the watch returned goes on after it.
    async fn fill_rings(&mut self, revision: Revision) -> Result<WatchStream, Error> {
        let store = self.cache.store.clone();
        let status = store.status().await?;
        let compacted = status.compacted_revision.unwrap_or(0);
        let mut from = (compacted + 1).max(revision.saturating_sub(HISTORY)).max(1);
        let mut watch = loop {
            match store.watch(ROOT, from).await {
                // An engine that does not know its compacted revision tells it now.
                Err(Error::Compacted { compacted, .. }) if compacted >= from => from = compacted + 1,
                other => break other?,
            }
        };
        if from > revision {
            return Ok(watch);
        }
        if status.watch_progress == WatchProgress::EventsOnly {
            // The last change may be older than `from`, or there may be none: only a new one says that the watch is there.
            store.write(Write::put(PROGRESS_KEY, Vec::new(), Expect::Any)).await?;
        }
        let mut rings: BTreeMap<&str, ring::Ring> = BTreeMap::new();
        let mut later = Vec::new();
        let cache = self.cache.clone();
        let mut reached = from - 1;
        while reached < revision {
            let batch = match watch.next().await {
                Some(Ok(batch)) => batch,
                // Etcd tells only here what is compacted: what is left begins after it.
                Some(Err(Error::Compacted { compacted, .. })) if (from..revision).contains(&compacted) => {
                    from = compacted + 1;
                    reached = compacted;
                    rings.clear();
                    later.clear();
                    watch = store.watch(ROOT, from).await?;
                    continue;
                }
                // Watchers then list again; nothing is lost.
                Some(Err(Error::Compacted { .. })) | None => {
                    warn!("no history to fill the rings with");
                    return store.watch(ROOT, revision + 1).await;
                }
                Some(Err(error)) => return Err(error),
            };
            for event in batch.events {
                if event.kv.mod_revision > revision {
                    later.push(event);
                } else if let Some(kind) = cache.kind_of(&event.kv.key) {
                    let ring = rings.entry(&kind.prefix).or_insert_with(|| ring::Ring::new(from - 1));
                    let held = kind.state.load().objects.get(&event.kv.key).cloned();
                    if let Some(event) = historic(&event, held) {
                        ring.push(event);
                    }
                }
            }
            reached = batch.revision;
        }
        for kind in cache.kinds.values() {
            let mut state = State::clone(&kind.state.load());
            state.ring = rings.remove(kind.prefix.as_str()).unwrap_or_else(|| ring::Ring::new(from - 1));
            kind.state.store(Arc::new(state));
        }
        self.apply(&later);
        if reached > revision {
            self.advance(reached);
        }
        Ok(watch)
    }

    fn apply(&self, events: &[Event]) {
        let mut changed: Vec<(&Arc<KindCache>, State)> = Vec::new();
        for event in events {
            let Some(kind) = self.cache.kind_of(&event.kv.key) else {
                self.apply_raw(event);
                continue;
            };
            let at = changed.iter().position(|(known, _)| Arc::ptr_eq(known, kind)).unwrap_or_else(|| {
                changed.push((kind, State::clone(&kind.state.load())));
                changed.len() - 1
            });
            apply_one(&self.cache, &mut changed[at].1, event, kind.sink.as_deref());
        }
        for (kind, state) in changed {
            let next = state.ring.next();
            kind.state.store(Arc::new(state));
            if let Some(sink) = &kind.sink {
                sink.publish();
            }
            kind.changed.send_replace(next);
        }
    }

    fn apply_raw(&self, event: &Event) {
        if let Some(sink) = path_of(&event.kv.key, |path| self.cache.sinks.get(path)) {
            match event.kind {
                EventKind::Put => sink.put(&event.kv),
                EventKind::Delete => sink.delete(&event.kv.key),
            }
        }
    }

    fn advance(&mut self, revision: Revision) {
        if revision > self.last {
            self.last = revision;
            self.cache.progress.send_replace(revision);
        }
    }
}

fn apply_one(cache: &Cache, state: &mut State, event: &Event, sink: Option<&dyn ObjectSink>) {
    let revision = event.kv.mod_revision;
    match event.kind {
        EventKind::Put => {
            let own = cache.entering.take(&event.kv);
            let Some(object) = own.or_else(|| parse(&event.kv)) else { return };
            let previous = state.put(object.clone());
            if let Some(sink) = sink {
                sink.put(&object);
            }
            state.ring.push(ring::Event::new(revision, object, previous, false));
        }
        EventKind::Delete => {
            let Some(previous) = state.remove(&event.kv.key) else { return };
            if let Some(sink) = sink {
                sink.delete(&event.kv.key);
            }
            let object = Arc::new(previous.at_revision(revision));
            state.ring.push(ring::Event::new(revision, object, Some(previous), true));
        }
    }
    state.revision = state.revision.max(revision);
}

/// An event of the store's history as the ring has it; shares the object with the cache where it is the newest.
fn historic(event: &Event, held: Option<Arc<CachedObject>>) -> Option<ring::Event> {
    let revision = event.kv.mod_revision;
    let previous = event.previous.as_ref().and_then(parse);
    match event.kind {
        EventKind::Put => {
            let object = held.filter(|held| held.revision() == revision).or_else(|| parse(&event.kv))?;
            Some(ring::Event::new(revision, object, previous, false))
        }
        EventKind::Delete => {
            let previous = previous?;
            let object = Arc::new(previous.at_revision(revision));
            Some(ring::Event::new(revision, object, Some(previous), true))
        }
    }
}

/// An object that cannot be read is left out and said so: it must not take the others with it.
fn parse(kv: &KeyValue) -> Option<Arc<CachedObject>> {
    match CachedObject::parse(kv.key.clone(), &kv.value, kv.mod_revision) {
        Ok(object) => Some(Arc::new(object)),
        Err(error) => {
            error!(key = %kv.key, revision = kv.mod_revision, %error, "stored object cannot be served");
            None
        }
    }
}
