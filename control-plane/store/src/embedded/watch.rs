//! A watch of the embedded engine: a position in the history, and nothing else.
//!
//! What is recent comes from the ring, what is older from disk. A watch keeps no queue, so one that is not polled
//! costs nothing and holds nobody back; when it is polled again it goes on from disk, or ends with `Compacted` if
//! its history is gone by then. Changes appear in the ring after their commit is durable.

use std::sync::Arc;

use futures::stream;
use tokio::sync::watch;

use super::{
    Shared,
    read::{History, HistoryLimits},
    record::State,
};
use crate::{Error, Event, Key, Revision, WatchBatch, WatchStream};

/// Events in a batch, about: enough to spread the cost of a wake-up, small enough to be handed on soon.
const BATCH_EVENTS: usize = 1024;

/// A batch from disk: about 4 MiB of values, and at most some milliseconds of scanning.
const HISTORY_LIMITS: HistoryLimits =
    HistoryLimits { events: BATCH_EVENTS, bytes: 4 * 1024 * 1024, records: 20_000 };

struct Watcher {
    shared: Arc<Shared>,
    published: watch::Receiver<State>,
    prefix: Key,
    /// First revision that has not been delivered.
    next: Revision,
    /// Whether the consumer knows that the watch is on.
    announced: bool,
}

/// Watches keys under `prefix` from revision `from` on, which the caller has checked.
pub(super) fn watch(shared: Arc<Shared>, prefix: &str, from: Revision) -> WatchStream {
    let published = shared.published.clone();
    let watcher = Watcher { shared, published, prefix: prefix.into(), next: from, announced: false };
    WatchStream::new(stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        match watcher.next_batch().await {
            Ok(batch) => Some((Ok(batch), Some(watcher))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

impl Watcher {
    async fn next_batch(&mut self) -> Result<WatchBatch, Error> {
        loop {
            let newest = self.published.borrow_and_update().revision;
            if self.next <= newest {
                let history = self.read().await?;
                self.next = history.through + 1;
                self.announced = true;
                return Ok(WatchBatch { events: history.events, revision: history.through });
            }
            if !self.announced {
                self.announced = true;
                return Ok(WatchBatch { events: Vec::new(), revision: newest });
            }
            // The writer publishes after each commit; it is gone when the store is closed.
            self.published.changed().await.map_err(|_| Error::Closed)?;
        }
    }

    async fn read(&self) -> Result<History, Error> {
        if let Some((groups, through)) = self.shared.ring.since(self.next, BATCH_EVENTS) {
            let matches = |event: &&Event| {
                event.kv.mod_revision >= self.next && event.kv.key.starts_with(&*self.prefix)
            };
            let events =
                groups.iter().flat_map(|group| group.events.iter().filter(matches)).cloned().collect();
            return Ok(History { events, through });
        }
        let (from, prefix) = (self.next, self.prefix.clone());
        self.shared.read(move |snapshot| snapshot.history(from, &prefix, &HISTORY_LIMITS)).await
    }
}
