//! The stream that a watch yields, the same for both engines.
//!
//! It is pulled: what a consumer does not ask for stays with the engine (in its ring, on its disk, at etcd), so a
//! slow consumer costs nobody else anything.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt as _, stream::BoxStream};

use crate::{Error, Event, Revision};

/// Some changes, and how far the watch has come.
#[derive(Clone, Debug)]
pub struct WatchBatch {
    /// In order of revision, and of the writes in their transaction. A transaction is never split. May be empty.
    pub events: Vec<Event>,
    /// All changes up to this revision, included, have been delivered. Never goes back.
    pub revision: Revision,
}

/// Batches of changes, until an error ends it. Dropping it ends the watch.
///
/// [`Error::Compacted`]: the consumer was too slow for its history, list again. [`Error::Closed`]: the store was
/// closed. Losses of connection are made good inside and not seen here.
pub struct WatchStream {
    batches: BoxStream<'static, Result<WatchBatch, Error>>,
}

impl WatchStream {
    /// Wraps an engine's stream: it ends after its first error, and every batch is as documented.
    pub fn new(batches: impl Stream<Item = Result<WatchBatch, Error>> + Send + 'static) -> Self {
        Self { batches: batches.boxed() }
    }

    /// Waits for the next batch; `None` after an error was returned. Cancel-safe: a dropped call loses nothing.
    pub async fn next(&mut self) -> Option<Result<WatchBatch, Error>> {
        self.batches.next().await
    }
}

impl Stream for WatchStream {
    type Item = Result<WatchBatch, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_next_unpin(context)
    }
}

impl fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchStream")
    }
}
