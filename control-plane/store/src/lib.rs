//! Where cluster state lives: [`Store`], and the two engines behind it.
//!
//! The model is etcd's and no more: ordered text keys, one cluster-wide [`Revision`], compare-and-put on a
//! key's revision, range reads at a revision, watch from a revision, compaction. `embedded` keeps it in a local
//! LMDB file, `etcd` in an etcd cluster; one test suite holds for both.
//!
//! Invariants: a write is durable when it is acknowledged; revisions only grow, over restarts and deletions of
//! everything; a watch delivers every change exactly once and in order, and only what is durable; nothing here
//! is unbounded. Knows keys and bytes, not objects. Only the registry of the API server may open a store.

#![deny(unsafe_code)]

mod embedded;
mod error;
mod etcd;
mod model;
mod pages;
mod watch;

pub use embedded::{EmbeddedOptions, EmbeddedStore};
pub use error::{Error, Source};
pub use etcd::{EtcdOptions, EtcdStore, EtcdTls};
pub use model::{
    Event, EventKind, Expect, Key, KeyValue, MAX_KEY_BYTES, MAX_OPERATIONS, MAX_REQUEST_BYTES, Op,
    RangeRequest, RangeResponse, Revision, Select, Status, WRITE_OVERHEAD_BYTES, WatchProgress, Write,
    Written,
};
pub use pages::pages;
pub use watch::{WatchBatch, WatchStream};

use async_trait::async_trait;

/// Ordered keys under one revision, in etcd's model. See the crate's documentation for the invariants.
///
/// All calls may be dropped at any await point. A dropped read has no effect; a dropped write may or may not have
/// happened, as with [`Error::Ambiguous`].
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one key; `None` when it does not exist.
    ///
    /// Linearizable: sees every write acknowledged, to anyone, before the call.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error>;

    /// Reads the keys of a range in order, at the newest revision (linearizable) or at the one asked for.
    ///
    /// Fails with [`Error::Compacted`] below the compacted revision (a read at that very revision works) and with
    /// [`Error::FutureRevision`] above the newest. Unlimited requests are read in pages at one revision, but the
    /// answer is held in memory as a whole: use [`pages`] for what may be large.
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error>;

    /// Writes one key if its state is what the caller expects.
    ///
    /// [`Error::Conflict`] carries the key as it is. [`Error::Ambiguous`] means that the outcome is unknown: read
    /// before trying again. All other errors mean that nothing was written.
    async fn write(&self, write: Write) -> Result<Written, Error>;

    /// Writes several keys at one revision: all of them, or none.
    ///
    /// At most [`MAX_OPERATIONS`] writes to different keys, [`MAX_REQUEST_BYTES`] together. Returns the revision
    /// of the transaction, or the newest one when it changed nothing (deletions of absent keys). The conflict
    /// reported is that of the first write that does not fit.
    async fn transaction(&self, writes: Vec<Write>) -> Result<Revision, Error>;

    /// Delivers every change of a key that starts with `prefix`, from revision `from` on, once and in order.
    ///
    /// `from` 0 means from the next change on. Fails, at once or as the stream's last item, with
    /// [`Error::Compacted`] when history no longer reaches back to `from`; a `from` above the compacted revision
    /// always works, up to one above the newest ([`Error::FutureRevision`] beyond).
    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, Error>;

    /// The newest revision; linearizable, so a cache that has seen it is as new as any acknowledged write.
    ///
    /// Calling it also makes open watches announce their progress soon, where [`Status::watch_progress`] is
    /// [`WatchProgress::Announced`].
    async fn current_revision(&self) -> Result<Revision, Error>;

    /// Forgets history before `revision`: values at `revision` stay readable, older reads and watches fail.
    ///
    /// Returns when the bound is durable; space is freed in the background. A revision that is compacted already
    /// is no error.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// How the store is doing; cheap, meant for health checks and metrics.
    async fn status(&self) -> Result<Status, Error>;

    /// Finishes what is queued and closes: later calls fail with [`Error::Closed`], watches end with it.
    async fn close(&self) -> Result<(), Error>;
}
