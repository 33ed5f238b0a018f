//! Removing what compaction made unreachable, a bounded piece at a time.
//!
//! Each record between the last sweep and the compacted revision says which record it replaced: that one goes, and
//! so do deletions. Costs what was written since the last compaction, not what is stored.

use std::ops::Bound;

use heed::RwTxn;

use super::{
    disk::{Disk, read_error},
    read,
    record::{Position, Record, State},
};
use crate::Error;

/// Removes what the next `limit` records (and the rest of their revision) supersede; returns how far it came.
pub(super) fn sweep(disk: &Disk, txn: &mut RwTxn<'_>, state: State, limit: usize) -> Result<State, Error> {
    let mut superseded: Vec<Position> = Vec::new();
    let mut deletions: Vec<(Position, String)> = Vec::new();
    let mut swept = state.compacted;
    let start = Position::first_of(state.swept + 1).encode();
    let range = (Bound::Included(start.as_slice()), Bound::Unbounded);
    let mut last = state.swept;
    for (count, entry) in disk.log.range(txn, &range).map_err(read_error)?.enumerate() {
        let (position, record) = entry.map_err(read_error)?;
        let position = Position::decode(position)?;
        if position.revision > state.compacted {
            break;
        }
        if count >= limit && position.revision > last {
            swept = last;
            break;
        }
        last = position.revision;
        let record = Record::decode(record)?;
        superseded.extend(record.previous);
        if record.deleted {
            deletions.push((position, record.key.to_owned()));
        }
    }
    let write_error = |error| disk.write_error(error);
    for position in superseded {
        // Absent when it was a deletion that an earlier sweep took.
        disk.log.delete(txn, &position.encode()).map_err(write_error)?;
    }
    for (position, key) in deletions {
        disk.log.delete(txn, &position.encode()).map_err(write_error)?;
        // The key may have been created again since; then its head stays.
        if read::head(disk, txn, &key)?.is_some_and(|head| head.position == position) {
            disk.heads.delete(txn, key.as_bytes()).map_err(write_error)?;
        }
    }
    let state = State { swept, ..state };
    disk.put_state(txn, &state).map_err(write_error)?;
    Ok(state)
}
