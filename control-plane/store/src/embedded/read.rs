//! Reading a snapshot: single keys, ranges at a revision, and history for watches.
//!
//! Everything here is blocking and borrows from the database's map until it is copied into the answer. A snapshot
//! is short-lived: while it is open LMDB cannot reuse pages freed since.

use std::ops::Bound;

use heed::{RoTxn, WithoutTls};

use super::{
    disk::{Disk, read_error},
    record::{Head, Position, Record, State},
};
use crate::{Error, Event, Key, KeyValue, RangeRequest, RangeResponse, Revision, Select};

/// The store as it was at one commit.
pub(super) struct Snapshot<'d> {
    disk: &'d Disk,
    txn: RoTxn<'d, WithoutTls>,
    state: State,
}

/// Part of the history, in whole revisions.
pub(super) struct History {
    pub(super) events: Vec<Event>,
    /// All matching changes up to this revision are in `events`.
    pub(super) through: Revision,
}

/// Bounds of one [`Snapshot::history`] call; it goes on to the end of a revision beyond them.
pub(super) struct HistoryLimits {
    pub(super) events: usize,
    pub(super) bytes: usize,
    /// Records looked at, matching or not: bounds the time of a call with a narrow prefix.
    pub(super) records: usize,
}

impl<'d> Snapshot<'d> {
    pub(super) fn take(disk: &'d Disk) -> Result<Self, Error> {
        let txn = disk.env.read_txn().map_err(read_error)?;
        let state = disk.state(&txn)?;
        Ok(Self { disk, txn, state })
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        match head(self.disk, &self.txn, key)? {
            Some(head) if !head.deleted => {
                key_value_at(self.disk, &self.txn, key.into(), head.position).map(Some)
            }
            _ => Ok(None),
        }
    }

    pub(super) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let revision = self.readable(request.revision)?;
        let mut response = RangeResponse { kvs: Vec::new(), revision, more: false, count: 0 };
        let end = match request.end.as_str() {
            "" => Bound::Unbounded,
            // LMDB would take a reversed range for an error of ours.
            end if end <= request.start.as_str() => return Ok(response),
            end => Bound::Excluded(end.as_bytes()),
        };
        let start = Bound::Included(request.start.as_bytes());
        // A range from "" is one from the first key: LMDB has no empty key to start at.
        let start = if request.start.is_empty() { Bound::Unbounded } else { start };
        for entry in self.disk.heads.range(&self.txn, &(start, end)).map_err(read_error)? {
            let (key, head) = entry.map_err(read_error)?;
            let Some(version) = self.version_at(Head::decode(head)?, revision)? else { continue };
            response.count += 1;
            if request.select == Select::Count {
                continue;
            }
            if request.limit != 0 && response.kvs.len() == request.limit {
                response.more = true;
                continue;
            }
            let key = std::str::from_utf8(key).map_err(|_| super::record::corrupt("key"))?;
            response.kvs.push(match request.select {
                Select::Values => key_value_at(self.disk, &self.txn, key.into(), version.position)?,
                Select::Keys | Select::Count => KeyValue {
                    key: key.into(),
                    value: bytes::Bytes::new(),
                    create_revision: version.create_revision,
                    mod_revision: version.position.revision,
                },
            });
        }
        Ok(response)
    }

    /// Changes of keys that start with `prefix`, from revision `from` on.
    pub(super) fn history(
        &self,
        from: Revision,
        prefix: &str,
        limits: &HistoryLimits,
    ) -> Result<History, Error> {
        if from <= self.state.compacted {
            return Err(Error::Compacted { requested: from, compacted: self.state.compacted });
        }
        let mut history = History { events: Vec::new(), through: self.state.revision };
        let (mut records, mut bytes) = (0, 0);
        let start = Position::first_of(from).encode();
        let range = (Bound::Included(start.as_slice()), Bound::Unbounded);
        let mut last = from - 1;
        for entry in self.disk.log.range(&self.txn, &range).map_err(read_error)? {
            let (position, record) = entry.map_err(read_error)?;
            let position = Position::decode(position)?;
            let is_full =
                history.events.len() >= limits.events || bytes >= limits.bytes || records >= limits.records;
            if is_full && position.revision > last {
                history.through = last;
                break;
            }
            last = position.revision;
            records += 1;
            let record = Record::decode(record)?;
            if !record.key.starts_with(prefix) {
                continue;
            }
            let event = self.event(position, record)?;
            bytes += event_bytes(&event);
            history.events.push(event);
        }
        Ok(history)
    }

    fn event(&self, position: Position, record: Record<'_>) -> Result<Event, Error> {
        let key: Key = record.key.into();
        let previous = match record.previous {
            Some(previous) => previous_value(self.disk, &self.txn, &key, previous, self.state.compacted)?,
            None => None,
        };
        Ok(record.to_event(key, position.revision, previous))
    }

    /// The revision to read at, if history reaches it.
    fn readable(&self, requested: Option<Revision>) -> Result<Revision, Error> {
        let State { revision: current, compacted, .. } = self.state;
        match requested {
            None => Ok(current),
            Some(requested) if requested > current => Err(Error::FutureRevision { requested, current }),
            Some(requested) if requested < compacted => Err(Error::Compacted { requested, compacted }),
            Some(requested) => Ok(requested),
        }
    }

    /// The version of a key that was current at `revision`; `None` if there was none.
    fn version_at(&self, head: Head, revision: Revision) -> Result<Option<Head>, Error> {
        let mut version = head;
        while version.position.revision > revision {
            let record = self.disk.log.get(&self.txn, &version.position.encode()).map_err(read_error)?;
            let record = Record::decode(record.ok_or_else(|| missing(version.position))?)?;
            let Some(position) = record.previous else { return Ok(None) };
            let Some(previous) = self.disk.log.get(&self.txn, &position.encode()).map_err(read_error)? else {
                return swept(position, self.state.compacted).map(|()| None);
            };
            let previous = Record::decode(previous)?;
            version = Head { position, create_revision: previous.create_revision, deleted: previous.deleted };
        }
        Ok((!version.deleted).then_some(version))
    }
}

/// Memory that an event keeps alive, roughly.
pub(super) fn event_bytes(event: &Event) -> usize {
    // 200: the structures and allocations around it.
    200 + event.kv.key.len() + event.kv.value.len() + event.previous.as_ref().map_or(0, |kv| kv.value.len())
}

pub(super) fn head(disk: &Disk, txn: &RoTxn<'_>, key: &str) -> Result<Option<Head>, Error> {
    disk.heads.get(txn, key.as_bytes()).map_err(read_error)?.map(Head::decode).transpose()
}

/// Reads the value at a position that must exist.
pub(super) fn key_value_at(
    disk: &Disk,
    txn: &RoTxn<'_>,
    key: Key,
    position: Position,
) -> Result<KeyValue, Error> {
    let record = disk.log.get(txn, &position.encode()).map_err(read_error)?;
    let record = Record::decode(record.ok_or_else(|| missing(position))?)?;
    Ok(record.to_key_value(key, position.revision))
}

/// The value that a change replaced; `None` after a deletion.
fn previous_value(
    disk: &Disk,
    txn: &RoTxn<'_>,
    key: &Key,
    position: Position,
    compacted: Revision,
) -> Result<Option<KeyValue>, Error> {
    let Some(record) = disk.log.get(txn, &position.encode()).map_err(read_error)? else {
        return swept(position, compacted).map(|()| None);
    };
    let record = Record::decode(record)?;
    Ok((!record.deleted).then(|| record.to_key_value(key.clone(), position.revision)))
}

/// A record that something newer than the compacted revision points to is only missing when it was a deletion,
/// and then only up to that revision: values that were current there are kept.
fn swept(position: Position, compacted: Revision) -> Result<(), Error> {
    if position.revision <= compacted { Ok(()) } else { Err(missing(position)) }
}

fn missing(position: Position) -> Error {
    Error::Corrupt {
        what: format!("revision {}.{} is missing from the log", position.revision, position.index),
    }
}
