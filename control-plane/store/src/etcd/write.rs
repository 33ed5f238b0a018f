//! Writes as etcd transactions, and what becomes of those whose outcome is lost.
//!
//! A transaction that expects a key at a revision is its own fence: it can succeed once and never again, because
//! success changes that revision. So when its outcome is lost it is sent again: if that succeeds, the first did
//! not and cannot any more; if it conflicts, the change that followed the expected revision tells whether it was
//! ours. If that one equals ours it may still be another's (two counters that both count to 6), so this is
//! `Ambiguous`, and not success. Without such a fence nothing is sent twice, and a lost outcome is `Ambiguous`.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, DeleteOptions, PutOptions, Txn, TxnOp, TxnOpResponse, WatchOptions};
use tokio::time::Instant;

use super::{
    Shared,
    call::{Backoff, CallError, Class, attempt},
    convert::{event, key_value, revision, wire_revision},
};
use crate::{
    Error, Event, EventKind, Expect, KeyValue, MAX_OPERATIONS, MAX_REQUEST_BYTES, Op, Revision, Write,
    Written,
};

/// Time to read back the change that followed; etcd answers from memory.
const READ_BACK_TIMEOUT: Duration = Duration::from_secs(5);

/// Writes all or nothing; the answer's `previous` is that of the first key.
pub(super) async fn write(shared: &Shared, writes: &[Write]) -> Result<Written, Error> {
    let deadline = Instant::now() + shared.options.deadline;
    let mut backoff = Backoff::default();
    let mut lost: Option<CallError> = None;
    loop {
        let mut client = shared.kv.clone();
        let error = match attempt(shared.options.attempt_timeout, client.txn(transaction(writes))).await {
            Ok(response) if response.succeeded() => {
                let header = response.header().map_or(0, |header| revision(header.revision()));
                return Ok(Written { revision: header, previous: previous(&response.op_responses())? });
            }
            Ok(response) => {
                let conflict = conflict(writes, &response.op_responses())?;
                return Err(match lost {
                    Some(lost) => after_lost_outcome(shared, writes, conflict, lost).await,
                    None => conflict,
                });
            }
            Err(error) => error,
        };
        match error.class {
            Class::Refused => {}
            Class::Unknown if is_fenced(writes) => lost = Some(error.clone()),
            Class::Unknown => return Err(ambiguous(writes, error)),
            _ => return Err(lost.map_or_else(|| refused(writes, error), |lost| ambiguous(writes, lost))),
        }
        if !backoff.wait_before(deadline).await {
            return Err(
                lost.map_or_else(|| error.into_error("writing to etcd"), |lost| ambiguous(writes, lost))
            );
        }
    }
}

fn is_fenced(writes: &[Write]) -> bool {
    writes.iter().any(|write| matches!(write.expect, Expect::Revision(_)))
}

fn transaction(writes: &[Write]) -> Txn {
    let expecting = || writes.iter().filter(|write| write.expect != Expect::Any);
    let compares: Vec<_> = expecting()
        .map(|write| {
            // etcd gives absent keys the modification revision 0.
            let expected = match write.expect {
                Expect::Revision(revision) => wire_revision(revision),
                Expect::Absent | Expect::Any => 0,
            };
            Compare::mod_revision(&*write.key, CompareOp::Equal, expected)
        })
        .collect();
    let writes: Vec<_> = writes
        .iter()
        .map(|write| match &write.op {
            Op::Put(value) => TxnOp::put(&*write.key, &**value, Some(PutOptions::new().with_prev_key())),
            Op::Delete => TxnOp::delete(&*write.key, Some(DeleteOptions::new().with_prev_key())),
        })
        .collect();
    let reads: Vec<_> = expecting().map(|write| TxnOp::get(&*write.key, None)).collect();
    Txn::new().when(compares).and_then(writes).or_else(reads)
}

fn previous(responses: &[TxnOpResponse]) -> Result<Option<KeyValue>, Error> {
    match responses.first() {
        Some(TxnOpResponse::Put(put)) => put.prev_key().map(key_value).transpose(),
        Some(TxnOpResponse::Delete(deletion)) => deletion.prev_kvs().first().map(key_value).transpose(),
        _ => Ok(None),
    }
}

/// The first write whose key is not as expected. `responses` are the keys of those that expect something.
fn conflict(writes: &[Write], responses: &[TxnOpResponse]) -> Result<Error, Error> {
    let expecting = writes.iter().filter(|write| write.expect != Expect::Any);
    for (write, response) in expecting.zip(responses) {
        let TxnOpResponse::Get(get) = response else { continue };
        let current = get.kvs().first().map(key_value).transpose()?;
        if !write.expect.matches(current.as_ref().map(|kv| kv.mod_revision)) {
            let (key, expected) = (write.key.clone(), write.expect);
            return Ok(Error::Conflict { key, expected, current: current.map(Box::new) });
        }
    }
    Err(Error::Corrupt { what: "etcd refused a transaction whose comparisons hold".into() })
}

/// Decides what a conflict means after an earlier attempt whose outcome was lost.
async fn after_lost_outcome(shared: &Shared, writes: &[Write], conflict: Error, lost: CallError) -> Error {
    let fence = writes.iter().find_map(|write| match write.expect {
        Expect::Revision(expected) => Some((write, expected)),
        Expect::Absent | Expect::Any => None,
    });
    let Some((write, expected)) = fence else { return ambiguous(writes, lost) };
    match change_after(shared, write, expected).await {
        Some(change) if !is_effect(&change, write) => conflict,
        _ => ambiguous(writes, lost),
    }
}

/// The change of the key that followed `expected`; `None` where it cannot be told (compacted, or etcd is gone, or
/// the key has not changed and it was another of the transaction's keys that did not fit).
async fn change_after(shared: &Shared, write: &Write, expected: Revision) -> Option<Event> {
    let options = WatchOptions::new().with_start_revision(wire_revision(expected + 1));
    let read = async {
        let mut client = shared.watch.clone();
        let mut stream = client.watch(&*write.key, Some(options)).await.ok()?;
        loop {
            let response = stream.message().await.ok()??;
            if response.canceled() {
                return None;
            }
            if let Some(first) = response.events().first() {
                return event(first).ok();
            }
        }
    };
    tokio::time::timeout(READ_BACK_TIMEOUT, read).await.ok()?
}

/// Whether a change is what the write does, be it ours or another's like it.
fn is_effect(change: &Event, write: &Write) -> bool {
    match &write.op {
        Op::Put(value) => change.kind == EventKind::Put && change.kv.value == *value,
        Op::Delete => change.kind == EventKind::Delete,
    }
}

fn ambiguous(writes: &[Write], error: CallError) -> Error {
    let key = writes.first().map(|write| write.key.clone()).unwrap_or_default();
    Error::Ambiguous { key, source: error.source }
}

fn refused(writes: &[Write], error: CallError) -> Error {
    match error.class {
        Class::TooLarge => {
            let largest = writes.iter().max_by_key(|write| write.size());
            Error::TooLarge {
                key: largest.map(|write| write.key.clone()).unwrap_or_default(),
                size: writes.iter().map(Write::size).sum(),
                limit: MAX_REQUEST_BYTES,
            }
        }
        Class::TooManyOperations => Error::TooManyOperations { count: writes.len(), limit: MAX_OPERATIONS },
        _ => error.into_error("writing to etcd"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: EventKind, value: &str) -> Event {
        let value = value.to_owned().into();
        Event {
            kind,
            kv: KeyValue { key: "/a".into(), value, create_revision: 1, mod_revision: 9 },
            previous: None,
        }
    }

    #[test]
    fn change_counts_as_ours_only_when_it_could_be() {
        let put = Write::put("/a", "ours", Expect::Revision(8));
        assert!(is_effect(&change(EventKind::Put, "ours"), &put));
        assert!(!is_effect(&change(EventKind::Put, "theirs"), &put));
        assert!(!is_effect(&change(EventKind::Delete, ""), &put));
        let delete = Write::delete("/a", Expect::Revision(8));
        assert!(is_effect(&change(EventKind::Delete, ""), &delete));
        assert!(!is_effect(&change(EventKind::Put, "theirs"), &delete));
    }

    #[test]
    fn only_a_revision_fences_a_write() {
        assert!(is_fenced(&[Write::create("/a", ""), Write::delete("/b", Expect::Revision(2))]));
        assert!(!is_fenced(&[Write::create("/a", ""), Write::delete("/b", Expect::Any)]));
    }
}
