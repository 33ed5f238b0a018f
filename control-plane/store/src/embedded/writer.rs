//! The single writer: a thread that commits what is queued in groups.
//!
//! While one group is synced to disk the next one queues up, so under load a sync is shared by many writes and an
//! idle store still answers after one. Everything becomes visible in one order: committed and synced, put into
//! the ring, published to watches, acknowledged. The queue is bounded; when it is full, callers wait.

use std::sync::Arc;

use heed::RwTxn;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tracing::{debug, error, warn};

use super::{
    apply::{Applied, Failure, apply},
    disk::Disk,
    record::State,
    ring::Ring,
    sweep::sweep,
};
use crate::{Error, Event, KeyValue, Revision, Source, Write};

/// Commands that wait for the writer. One group's worth: more would only add to the time a write waits.
pub(super) const QUEUE: usize = 1024;

/// Bytes of writes that wait or are being committed; callers wait for room, as they do for a place in the queue.
pub(super) const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// Bounds of a group: how long the writes in it wait for each other, and the memory of its dirty pages.
const GROUP_WRITES: usize = 1024;
const GROUP_BYTES: usize = 8 * 1024 * 1024;

/// Records swept in one commit between groups: a few milliseconds.
const SWEEP_RECORDS: usize = 2000;

pub(super) enum Command {
    Write(Pending),
    Compact {
        revision: Revision,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    /// Finishes what came before, refuses the rest.
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// A transaction that waits for its turn.
pub(super) struct Pending {
    pub(super) writes: Vec<Write>,
    pub(super) reply: oneshot::Sender<Result<Reply, Error>>,
    /// Its share of [`QUEUE_BYTES`].
    pub(super) _room: OwnedSemaphorePermit,
}

pub(super) struct Reply {
    pub(super) revision: Revision,
    /// The first key as it was before.
    pub(super) previous: Option<KeyValue>,
}

pub(super) struct Writer {
    disk: Arc<Disk>,
    ring: Arc<Ring>,
    commands: mpsc::Receiver<Command>,
    /// Dropped with the writer, which tells watches that the store is closed.
    published: watch::Sender<State>,
    state: State,
    is_sweeping: bool,
    /// Records of the next sweep: fewer after one that failed for want of space.
    sweep_records: usize,
    buffer: Vec<u8>,
}

/// What a group committed.
struct Committed {
    state: State,
    replies: Vec<Result<Reply, Error>>,
    events: Vec<Event>,
}

/// Why a group was not committed.
struct GroupError {
    error: heed::Error,
    /// It failed in the commit itself, which may have reached the disk.
    in_commit: bool,
}

impl Writer {
    pub(super) fn new(
        disk: Arc<Disk>,
        ring: Arc<Ring>,
        commands: mpsc::Receiver<Command>,
        published: watch::Sender<State>,
    ) -> Self {
        let state = *published.borrow();
        let is_sweeping = state.swept < state.compacted;
        Self {
            disk,
            ring,
            commands,
            published,
            state,
            is_sweeping,
            sweep_records: SWEEP_RECORDS,
            buffer: Vec::new(),
        }
    }

    /// Works until the store is closed or dropped.
    pub(super) fn run(mut self) {
        let closing = loop {
            let Some(command) = self.next_command() else { break None };
            match command {
                Command::Write(first) => {
                    let (group, after) = self.gather(first);
                    self.commit_group(group);
                    match after {
                        Some(Command::Close { reply }) => break Some(reply),
                        Some(Command::Compact { revision, reply }) => self.compact(revision, reply),
                        Some(Command::Write(_)) | None => {}
                    }
                    self.sweep_some();
                }
                Command::Compact { revision, reply } => self.compact(revision, reply),
                Command::Close { reply } => break Some(reply),
            }
        };
        self.refuse_the_rest();
        // Whoever closes waits for the environment, which this holds open.
        drop(self);
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
    }

    /// Waits for work, sweeping while there is none. `None` when all senders are gone.
    fn next_command(&mut self) -> Option<Command> {
        while self.is_sweeping {
            match self.commands.try_recv() {
                Ok(command) => return Some(command),
                Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Err(mpsc::error::TryRecvError::Empty) => self.sweep_some(),
            }
        }
        self.commands.blocking_recv()
    }

    /// Takes what else is queued, up to a group's bounds and up to the first command that is not a write.
    fn gather(&mut self, first: Pending) -> (Vec<Pending>, Option<Command>) {
        let size = |pending: &Pending| pending.writes.iter().map(Write::size).sum::<usize>();
        let (mut writes, mut bytes) = (first.writes.len(), size(&first));
        let mut group = vec![first];
        while writes < GROUP_WRITES && bytes < GROUP_BYTES {
            match self.commands.try_recv() {
                // Its caller has given up: it has not happened, and need not.
                Ok(Command::Write(pending)) if pending.reply.is_closed() => {}
                Ok(Command::Write(pending)) => {
                    writes += pending.writes.len();
                    bytes += size(&pending);
                    group.push(pending);
                }
                Ok(other) => return (group, Some(other)),
                Err(_) => break,
            }
        }
        (group, None)
    }

    fn commit_group(&mut self, group: Vec<Pending>) {
        match self.try_commit(&group) {
            Ok(committed) => {
                self.publish(committed.state, committed.events);
                for (pending, reply) in group.into_iter().zip(committed.replies) {
                    let _ = pending.reply.send(reply);
                }
            }
            Err(failed) => self.recover(group, failed),
        }
    }

    /// Applies and commits a group; on error nothing of it is visible.
    fn try_commit(&mut self, group: &[Pending]) -> Result<Committed, GroupError> {
        let early = |error| GroupError { error, in_commit: false };
        let mut txn = self.disk.env.write_txn().map_err(early)?;
        let mut committed = Committed {
            state: self.state,
            replies: Vec::with_capacity(group.len()),
            events: Vec::with_capacity(group.len()),
        };
        for pending in group {
            let current = committed.state.revision;
            match apply(&self.disk, &mut txn, current, &pending.writes, &mut self.buffer) {
                Ok(Applied { revision, previous, events }) => {
                    committed.state.revision = revision;
                    committed.events.extend(events);
                    committed.replies.push(Ok(Reply { revision, previous }));
                }
                Err(Failure::Refused(error)) => committed.replies.push(Err(error)),
                Err(Failure::Spoilt(error)) => return Err(early(error)),
            }
        }
        if committed.events.is_empty() {
            txn.abort();
            return Ok(committed);
        }
        self.disk.put_state(&mut txn, &committed.state).map_err(early)?;
        txn.commit().map_err(|error| GroupError { error, in_commit: true })?;
        Ok(committed)
    }

    /// After a failed group: what is certain not to have happened is tried one by one, so that one write that
    /// does not fit keeps no other from happening.
    fn recover(&mut self, group: Vec<Pending>, failed: GroupError) {
        let takes_writes = self.disk.takes_writes();
        if takes_writes && group.len() > 1 {
            debug!(writes = group.len(), error = %failed.error, "group failed, trying its writes alone");
            for pending in group {
                self.commit_group(vec![pending]);
            }
            return;
        }
        if failed.in_commit && !takes_writes {
            error!(error = %failed.error, "commit failed half-way; the store refuses writes until it is reopened");
            let source: Source = Arc::new(failed.error);
            for pending in group {
                let key = pending.writes.first().map(|write| write.key.clone()).unwrap_or_default();
                let _ = pending.reply.send(Err(Error::Ambiguous { key, source: source.clone() }));
            }
            return;
        }
        let error = self.disk.write_error(failed.error);
        for pending in group {
            let _ = pending.reply.send(Err(error.clone()));
        }
    }

    fn publish(&mut self, state: State, events: Vec<Event>) {
        self.state = state;
        self.ring.push(events);
        self.published.send_replace(state);
    }

    fn compact(&mut self, revision: Revision, reply: oneshot::Sender<Result<(), Error>>) {
        let _ = reply.send(self.try_compact(revision));
    }

    fn try_compact(&mut self, revision: Revision) -> Result<(), Error> {
        if revision > self.state.revision {
            return Err(Error::FutureRevision { requested: revision, current: self.state.revision });
        }
        // A sweep that failed is taken up again, whatever this call adds.
        self.is_sweeping |= self.state.swept < self.state.compacted;
        if revision <= self.state.compacted {
            return Ok(());
        }
        let state = State { compacted: revision, ..self.state };
        let disk = self.disk.clone();
        self.commit_with(|txn| disk.put_state(txn, &state).map_err(|error| disk.write_error(error)))?;
        self.publish(state, Vec::new());
        self.is_sweeping = true;
        Ok(())
    }

    /// Does a bounded part of the sweep that is due, if any.
    fn sweep_some(&mut self) {
        if !self.is_sweeping {
            return;
        }
        match self.try_sweep() {
            Ok(swept) => {
                self.state = swept;
                self.is_sweeping = swept.swept < swept.compacted;
                self.sweep_records = SWEEP_RECORDS;
            }
            // Less needs fewer spare pages.
            Err(error) if self.sweep_records > 1 => {
                debug!(%error, records = self.sweep_records, "sweep failed, trying a smaller one");
                self.sweep_records /= 8;
                self.sweep_records = self.sweep_records.max(1);
            }
            Err(error) => {
                warn!(%error, "sweep failed; space is not freed until the next compaction");
                self.is_sweeping = false;
                self.sweep_records = SWEEP_RECORDS;
            }
        }
    }

    fn try_sweep(&self) -> Result<State, Error> {
        let (disk, state, records) = (&self.disk, self.state, self.sweep_records);
        let swept = self.commit_with(|txn| sweep(disk, txn, state, records))?;
        if swept.swept == swept.compacted {
            // LMDB reuses pages from the second commit after the one that freed them. A full store would never
            // see that one, because its writes fail.
            self.commit_with(|txn| disk.put_state(txn, &swept).map_err(|error| disk.write_error(error)))?;
        }
        Ok(swept)
    }

    fn commit_with<T>(&self, change: impl FnOnce(&mut RwTxn<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let mut txn = self.disk.env.write_txn().map_err(|error| self.disk.write_error(error))?;
        let value = change(&mut txn)?;
        txn.commit().map_err(|error| self.disk.write_error(error))?;
        Ok(value)
    }

    fn refuse_the_rest(&mut self) {
        self.commands.close();
        while let Some(command) = self.commands.blocking_recv() {
            match command {
                Command::Write(pending) => drop(pending.reply.send(Err(Error::Closed))),
                Command::Compact { reply, .. } => drop(reply.send(Err(Error::Closed))),
                Command::Close { reply } => drop(reply.send(())),
            }
        }
    }
}
