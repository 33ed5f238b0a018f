//! One transaction against the tables: everything is read and compared first, then written.
//!
//! A refused transaction has therefore written nothing, and the group that it is in goes on without it.

use heed::{PutFlags, RwTxn};

use super::{
    disk::Disk,
    read,
    record::{Head, Position, Record},
};
use crate::{Error, Event, KeyValue, Op, Revision, Write};

/// What a transaction did.
pub(super) struct Applied {
    /// The revision that it took; the one before it when it changed nothing.
    pub(super) revision: Revision,
    /// The first key as it was before.
    pub(super) previous: Option<KeyValue>,
    pub(super) events: Vec<Event>,
}

pub(super) enum Failure {
    /// Nothing was written by this transaction.
    Refused(Error),
    /// The database transaction is spoilt and has to be aborted with all that is in it.
    Spoilt(heed::Error),
}

/// A key as the transaction found it.
struct Found {
    head: Option<Head>,
    live: Option<KeyValue>,
}

/// Applies `writes` at the revision after `current`. `buffer` is scratch space, kept to save allocations.
pub(super) fn apply(
    disk: &Disk,
    txn: &mut RwTxn<'_>,
    current: Revision,
    writes: &[Write],
    buffer: &mut Vec<u8>,
) -> Result<Applied, Failure> {
    let found = writes
        .iter()
        .map(|write| find(disk, txn, write))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Failure::Refused)?;
    let revision = current + 1;
    let mut applied = Applied {
        revision: current,
        previous: found.first().and_then(|found| found.live.clone()),
        events: Vec::with_capacity(writes.len()),
    };
    for (write, found) in writes.iter().zip(found) {
        if matches!(write.op, Op::Delete) && found.live.is_none() {
            continue;
        }
        let index = u16::try_from(applied.events.len()).expect("a transaction has at most 128 writes");
        let event =
            put(disk, txn, Position { revision, index }, write, found, buffer).map_err(Failure::Spoilt)?;
        applied.events.push(event);
        applied.revision = revision;
    }
    Ok(applied)
}

/// Reads the key and compares it with what is expected.
fn find(disk: &Disk, txn: &RwTxn<'_>, write: &Write) -> Result<Found, Error> {
    let head = read::head(disk, txn, &write.key)?;
    let live = match head {
        Some(head) if !head.deleted => Some(read::key_value_at(disk, txn, write.key.clone(), head.position)?),
        _ => None,
    };
    if write.expect.matches(head.and_then(|head| head.live_revision())) {
        return Ok(Found { head, live });
    }
    Err(Error::Conflict { key: write.key.clone(), expected: write.expect, current: live.map(Box::new) })
}

fn put(
    disk: &Disk,
    txn: &mut RwTxn<'_>,
    position: Position,
    write: &Write,
    found: Found,
    buffer: &mut Vec<u8>,
) -> Result<Event, heed::Error> {
    let (deleted, value) = match &write.op {
        Op::Put(value) => (false, value.clone()),
        Op::Delete => (true, bytes::Bytes::new()),
    };
    let create_revision = match &found.live {
        _ if deleted => 0,
        Some(live) => live.create_revision,
        None => position.revision,
    };
    let previous = found.head.map(|head| head.position);
    let record = Record { deleted, create_revision, previous, key: &write.key, value: &value };
    record.encode(buffer);
    // Positions only grow, so every record goes to the end of the tree: pages fill up and are not split.
    disk.log.put_with_flags(txn, PutFlags::APPEND, &position.encode(), buffer)?;
    let head = Head { position, create_revision, deleted };
    disk.heads.put(txn, write.key.as_bytes(), &head.encode())?;
    let kv = KeyValue { key: write.key.clone(), value, create_revision, mod_revision: position.revision };
    let kind = if deleted { crate::EventKind::Delete } else { crate::EventKind::Put };
    Ok(Event { kind, kv, previous: found.live })
}
