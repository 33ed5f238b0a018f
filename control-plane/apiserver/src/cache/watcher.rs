//! A watch: a position in a kind's ring, and what it selects.
//!
//! The watcher pulls. It is woken when the kind changed, reads what is new from the published ring, filters, and turns
//! what happened into what it means to this selection: an object that enters a selector is ADDED, one that leaves is
//! DELETED in its last matching state. All watchers of a kind see one order: the ring's.

use std::sync::Arc;

use hawser_api::Error;
use hawser_store::Revision;
use tokio::sync::watch;

use super::{CachedObject, KindCache, Selection, Snapshot};

/// Changes returned at once: enough to share the cost of a wake-up, few enough to keep memory small.
const BATCH: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// What a watcher is told of one object.
#[derive(Clone)]
pub struct Change {
    pub kind: ChangeKind,
    pub object: Arc<CachedObject>,
}

pub struct Watcher {
    kind: Arc<KindCache>,
    selection: Selection,
    /// The next event to look at.
    sequence: u64,
    /// Everything up to here was delivered.
    revision: Revision,
    changed: watch::Receiver<u64>,
    progress: watch::Receiver<Revision>,
}

impl Watcher {
    /// Changes after `revision`. 410 where the ring does not reach back that far.
    pub fn after(kind: &Arc<KindCache>, selection: Selection, revision: Revision) -> Result<Self, Error> {
        let changed = kind.changed.subscribe();
        let ring = &kind.state.load_full().ring;
        let sequence = ring.after(revision).ok_or_else(|| too_old(revision, ring.floor()))?;
        Ok(Self {
            selection,
            sequence,
            revision,
            changed,
            progress: kind.progress.clone(),
            kind: kind.clone(),
        })
    }

    /// Changes after a snapshot.
    pub fn following(kind: &Arc<KindCache>, selection: Selection, snapshot: &Snapshot) -> Self {
        Self {
            selection,
            sequence: snapshot.state.ring.next(),
            revision: snapshot.revision,
            changed: kind.changed.subscribe(),
            progress: kind.progress.clone(),
            kind: kind.clone(),
        }
    }

    /// Everything that concerns this watcher up to here was returned by [`Watcher::next`]. For bookmarks.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn kind(&self) -> &Arc<KindCache> {
        &self.kind
    }

    /// Waits for changes. 410 where the watcher fell behind the ring. Cancel-safe.
    pub async fn next(&mut self) -> Result<Vec<Change>, Error> {
        loop {
            self.changed.borrow_and_update();
            let changes = self.poll()?;
            if !changes.is_empty() {
                return Ok(changes);
            }
            if self.changed.changed().await.is_err() {
                return Err(Error::unavailable("the server is shutting down"));
            }
        }
    }

    /// Waits until [`Watcher::poll`] may have something new; returns at once where that is not known. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.sequence < *self.changed.borrow_and_update() {
            return;
        }
        if self.changed.changed().await.is_err() {
            // The cache is gone with the server; whoever waits is cancelled with it.
            std::future::pending::<()>().await;
        }
    }

    /// What is there now, without waiting; at most [`BATCH`] changes.
    pub fn poll(&mut self) -> Result<Vec<Change>, Error> {
        // Progress before state: all changes up to it are in the ring that is loaded after.
        let progress = *self.progress.borrow_and_update();
        let state = self.kind.state.load_full();
        if self.sequence < state.ring.first() {
            return Err(too_old(self.revision, state.ring.floor()));
        }
        let mut changes = Vec::new();
        while changes.len() < BATCH {
            let Some(event) = state.ring.get(self.sequence) else {
                self.revision = self.revision.max(progress);
                break;
            };
            self.sequence += 1;
            self.revision = self.revision.max(event.revision);
            let now = !event.deleted && self.selection.matches(&self.kind, &event.object);
            let before =
                event.previous.as_ref().is_some_and(|previous| self.selection.matches(&self.kind, previous));
            let change = match (before, now) {
                (false, false) => continue,
                (false, true) => Change { kind: ChangeKind::Added, object: event.object.clone() },
                (true, true) => Change { kind: ChangeKind::Modified, object: event.object.clone() },
                (true, false) if event.deleted => {
                    Change { kind: ChangeKind::Deleted, object: event.object.clone() }
                }
                (true, false) => match event.left() {
                    Some(object) => Change { kind: ChangeKind::Deleted, object },
                    None => continue,
                },
            };
            changes.push(change);
        }
        Ok(changes)
    }
}

fn too_old(revision: Revision, floor: Revision) -> Error {
    Error::expired(format!("too old resource version: {revision} ({floor})"))
}
