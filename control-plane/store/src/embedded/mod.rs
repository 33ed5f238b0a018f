//! The embedded engine: an LMDB file in a local directory, for a control plane of one machine.
//!
//! [`writer`] is the only one that writes, in groups; [`read`] reads snapshots on the blocking pool while it does;
//! [`watch`] follows from [`ring`] and disk. History is kept until it is compacted. A directory is open in one
//! process at a time. Not for network file systems: LMDB needs a local one.

mod apply;
mod disk;
mod read;
mod record;
mod ring;
mod sweep;
mod watch;
mod writer;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot, watch as published};

use self::{
    disk::Disk,
    read::Snapshot,
    record::State,
    ring::Ring,
    writer::{Command, Pending, QUEUE, QUEUE_BYTES, Reply, Writer},
};
use crate::{
    Error, KeyValue, RangeRequest, RangeResponse, Revision, Status, Store, WatchProgress, WatchStream, Write,
    Written, model,
};

/// Reads at a time; more wait. Each holds a thread of the blocking pool and a slot in LMDB's reader table.
const MAX_READERS: usize = 64;

/// How to open an [`EmbeddedStore`].
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Directory of the store; made, with mode 0700, when it is absent.
    pub path: PathBuf,
    /// Bound of the file: address space, not memory or disk. Reaching it is [`Error::Full`].
    pub max_size_bytes: u64,
    /// Recent changes kept in memory for watches; older ones come from disk.
    pub ring_events: usize,
    pub ring_bytes: usize,
}

impl EmbeddedOptions {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            max_size_bytes: 64 * 1024 * 1024 * 1024,
            ring_events: 16 * 1024,
            ring_bytes: 16 * 1024 * 1024,
        }
    }
}

/// A store in a local directory. Dropping it closes it without waiting; see [`Store::close`].
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    /// One permit a byte of what is queued.
    room: Arc<Semaphore>,
    /// Ends when the directory can be opened again.
    closed: published::Receiver<()>,
}

/// What reads and watches need.
struct Shared {
    /// `None` once closed. Users clone the `Arc` for one read.
    disk: Mutex<Option<Arc<Disk>>>,
    ring: Arc<Ring>,
    /// State of the last commit. Set before the commit is acknowledged; closed when the writer is gone.
    published: published::Receiver<State>,
    readers: Arc<Semaphore>,
}

impl EmbeddedStore {
    /// Opens the store, and creates it when the directory is absent or empty.
    ///
    /// Fails with [`Error::Locked`], [`Error::UnsupportedFormat`], [`Error::Corrupt`] or [`Error::Io`].
    pub async fn open(options: EmbeddedOptions) -> Result<Self, Error> {
        tokio::task::spawn_blocking(move || Self::open_blocking(&options))
            .await
            .map_err(|source| Error::Unavailable { attempted: "opening", source: Arc::new(source) })?
    }

    fn open_blocking(options: &EmbeddedOptions) -> Result<Self, Error> {
        let (disk, closed) = Disk::open(&options.path, options.max_size_bytes)?;
        let disk = Arc::new(disk);
        let state = Snapshot::take(&disk)?.state();
        let ring = Arc::new(Ring::new(state.revision, options.ring_events, options.ring_bytes));
        let (publisher, published) = published::channel(state);
        let (commands, receiver) = mpsc::channel(QUEUE);
        let writer = Writer::new(disk.clone(), ring.clone(), receiver, publisher);
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(|source| Error::io("start the writer of", &options.path, source))?;
        let readers = Arc::new(Semaphore::new(MAX_READERS));
        let shared = Arc::new(Shared { disk: Mutex::new(Some(disk)), ring, published, readers });
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        Ok(Self { shared, commands, room, closed })
    }

    async fn submit(&self, writes: Vec<Write>) -> Result<Reply, Error> {
        model::check_writes(&writes)?;
        let key = writes.first().map(|write| write.key.clone()).unwrap_or_default();
        let size = u32::try_from(writes.iter().map(Write::size).sum::<usize>())
            .expect("checked to be below 1.5 MiB");
        let room = self.room.clone().acquire_many_owned(size).await.map_err(|_| Error::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Write(Pending { writes, reply, _room: room }))
            .await
            .map_err(|_| Error::Closed)?;
        // The writer answers everything it takes, unless it panics.
        answer.await.map_err(|source| Error::Ambiguous { key, source: Arc::new(source) })?
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // Open watches hold `Shared`; they must not keep the directory open.
        self.shared.disk.lock().take();
    }
}

impl Shared {
    fn disk(&self) -> Result<Arc<Disk>, Error> {
        self.disk.lock().clone().ok_or(Error::Closed)
    }

    /// Runs `read` on a fresh snapshot, off the runtime's threads.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = self.readers.clone().acquire_owned().await.map_err(|_| Error::Closed)?;
        let disk = self.disk()?;
        let (value, revision) = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let snapshot = Snapshot::take(&disk)?;
            Ok::<_, Error>((read(&snapshot)?, snapshot.state().revision))
        })
        .await
        .map_err(|source| Error::Unavailable { attempted: "reading", source: Arc::new(source) })??;
        // A commit can be read a moment before it is published. Whoever has seen it must not be told an older
        // current revision afterwards. (An error means that the store was closed meanwhile: the answer holds.)
        let _ = self.published.clone().wait_for(|state| state.revision >= revision).await;
        Ok(value)
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        let key: crate::Key = key.into();
        model::check_key(&key)?;
        self.shared.read(move |snapshot| snapshot.get(&key)).await
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        self.shared.read(move |snapshot| snapshot.range(&request)).await
    }

    async fn write(&self, write: Write) -> Result<Written, Error> {
        let Reply { revision, previous } = self.submit(vec![write]).await?;
        Ok(Written { revision, previous })
    }

    async fn transaction(&self, writes: Vec<Write>) -> Result<Revision, Error> {
        Ok(self.submit(writes).await?.revision)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, Error> {
        self.shared.disk()?;
        let State { revision: current, compacted, .. } = *self.shared.published.borrow();
        let from = if from == 0 { current + 1 } else { from };
        if from > current + 1 {
            return Err(Error::FutureRevision { requested: from, current });
        }
        if from <= compacted {
            return Err(Error::Compacted { requested: from, compacted });
        }
        Ok(watch::watch(self.shared.clone(), prefix, from))
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        self.shared.disk()?;
        Ok(self.shared.published.borrow().revision)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Compact { revision, reply }).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    async fn status(&self) -> Result<Status, Error> {
        let disk = self.shared.disk()?;
        let State { revision, compacted, .. } = *self.shared.published.borrow();
        Ok(Status {
            engine: "embedded",
            version: format!("format {}", record::FORMAT),
            revision,
            compacted_revision: Some(compacted),
            size_bytes: disk.size_bytes(),
            max_size_bytes: Some(disk.max_size_bytes()),
            watch_progress: WatchProgress::Announced,
        })
    }

    async fn close(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        // An error of either means that the writer is gone already.
        if self.commands.send(Command::Close { reply }).await.is_ok() {
            let _ = answer.await;
        }
        self.shared.disk.lock().take();
        // Reads in flight finish first. An error is what tells that the directory is free.
        while self.closed.clone().changed().await.is_ok() {}
        Ok(())
    }
}
