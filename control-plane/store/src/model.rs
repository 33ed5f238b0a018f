//! What goes in and out of a [`Store`](crate::Store): plain data, cheap to clone.
//!
//! Keys are shared text, values shared bytes, so that an event can be handed to every cache without a copy.
//! The limits are etcd's defaults; the embedded engine keeps to the same ones, so that a cluster can move.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::Error;

/// Counts changes of the whole store, from 1 (an empty store). A transaction takes one, however many keys it writes.
pub type Revision = u64;

/// A key: `/`-separated text, compared by bytes.
pub type Key = Arc<str>;

/// Writes in one transaction (etcd's `--max-txn-ops`).
pub const MAX_OPERATIONS: usize = 128;

/// [`Write::size`] of all writes of a transaction together (etcd's `--max-request-bytes`).
pub const MAX_REQUEST_BYTES: usize = 1536 * 1024;

/// What a write adds to a request besides its key and value.
pub const WRITE_OVERHEAD_BYTES: usize = 64;

/// Length of a key. The longest that Kubernetes makes has a group and plural of 253 bytes together, a namespace of 63
/// and a name of 253; LMDB takes 1,982. A key that does not fit is refused, never cut.
pub const MAX_KEY_BYTES: usize = 1024;

/// A key with its value, as it was at some revision.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Key,
    /// Empty where only keys were asked for, and in the event of a deletion.
    pub value: Bytes,
    /// Revision of the write that created the key (after its last deletion); 0 in the event of a deletion.
    pub create_revision: Revision,
    /// Revision of the key's last change.
    pub mod_revision: Revision,
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The value's length only: it may be a Secret, and this ends in logs.
        write!(f, "{}@{} ({} bytes)", self.key, self.mod_revision, self.value.len())
    }
}

/// What a range read returns of each key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Select {
    #[default]
    Values,
    /// Keys and revisions, values empty.
    Keys,
    /// No keys at all, only [`RangeResponse::count`].
    Count,
}

/// A read of all keys in `start..end`.
#[derive(Clone, Debug, Default)]
pub struct RangeRequest {
    /// First key, included.
    pub start: String,
    /// End of the range, excluded; empty for no end.
    pub end: String,
    /// Revision to read at; `None` for the newest.
    pub revision: Option<Revision>,
    /// Most keys to return; 0 for no limit.
    pub limit: usize,
    pub select: Select,
}

impl RangeRequest {
    /// All keys that start with `prefix`; all keys there are when it is empty.
    pub fn prefix(prefix: &str) -> Self {
        Self { start: prefix.to_owned(), end: prefix_end(prefix), ..Self::default() }
    }

    /// Keys from `start` up to and without `end`.
    pub fn between(start: impl Into<String>, end: impl Into<String>) -> Self {
        Self { start: start.into(), end: end.into(), ..Self::default() }
    }

    /// Leaves out the keys up to and including `key`: the next page.
    #[must_use]
    pub fn after(mut self, key: &str) -> Self {
        // The smallest key above `key`; keys themselves hold no NUL.
        self.start = format!("{key}\0");
        self
    }

    #[must_use]
    pub fn at(mut self, revision: Revision) -> Self {
        self.revision = Some(revision);
        self
    }

    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    #[must_use]
    pub fn select(mut self, select: Select) -> Self {
        self.select = select;
        self
    }
}

/// Answer to a [`RangeRequest`].
#[derive(Clone, Debug)]
pub struct RangeResponse {
    /// In key order.
    pub kvs: Vec<KeyValue>,
    /// Revision that the answer shows: the one asked for, or the newest.
    pub revision: Revision,
    /// There are keys in the range beyond the last one returned.
    pub more: bool,
    /// Keys in the range, whatever the limit.
    pub count: u64,
}

/// What a write expects of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists and was last changed at this revision.
    Revision(Revision),
    Any,
}

impl Expect {
    /// Whether a key last changed at `mod_revision` (`None`: no such key) is what is expected.
    pub fn matches(self, mod_revision: Option<Revision>) -> bool {
        match self {
            Self::Absent => mod_revision.is_none(),
            Self::Revision(expected) => mod_revision == Some(expected),
            Self::Any => true,
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Revision(revision) => write!(f, "at revision {revision}"),
            Self::Any => f.write_str("anything"),
        }
    }
}

/// What a write does.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    Put(Bytes),
    /// Deleting an absent key changes nothing and makes no event.
    Delete,
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(value) => write!(f, "Put({} bytes)", value.len()),
            Self::Delete => f.write_str("Delete"),
        }
    }
}

/// A compare-and-put or compare-and-delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: Key,
    pub expect: Expect,
    pub op: Op,
}

impl Write {
    /// Puts a key that must not exist.
    pub fn create(key: impl Into<Key>, value: impl Into<Bytes>) -> Self {
        Self::put(key, value, Expect::Absent)
    }

    pub fn put(key: impl Into<Key>, value: impl Into<Bytes>, expect: Expect) -> Self {
        Self { key: key.into(), expect, op: Op::Put(value.into()) }
    }

    pub fn delete(key: impl Into<Key>, expect: Expect) -> Self {
        Self { key: key.into(), expect, op: Op::Delete }
    }

    /// Bytes that count towards [`MAX_REQUEST_BYTES`]: what etcd counts, rounded up.
    pub fn size(&self) -> usize {
        // The key is in the comparison, the write, and the read that follows a conflict; the rest is framing.
        3 * self.key.len()
            + WRITE_OVERHEAD_BYTES
            + match &self.op {
                Op::Put(value) => value.len(),
                Op::Delete => 0,
            }
    }
}

/// Answer to a [`Write`].
#[derive(Clone, Debug)]
pub struct Written {
    /// Revision of the write; the newest revision where it changed nothing (deletion of an absent key).
    pub revision: Revision,
    /// The key as it was before.
    pub previous: Option<KeyValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change of one key. Cloning shares key and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// The key after the change; for a deletion its key and the deletion's revision only.
    pub kv: KeyValue,
    /// The key before the change; `None` when it was created.
    pub previous: Option<KeyValue>,
}

impl Event {
    /// Whether this put created the key.
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.kv.create_revision == self.kv.mod_revision
    }
}

/// How far [`WatchBatch::revision`](crate::WatchBatch::revision) can be relied on to move without events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchProgress {
    /// Every watch reaches every revision, be it by an empty batch.
    Announced,
    /// Only events move it: writes outside the prefix go unseen, and a reader who waits for a revision must
    /// bound the wait and read the store instead (etcd before 3.4.31, and 3.5 before 3.5.13).
    EventsOnly,
}

/// State of a store, for health checks and metrics.
#[derive(Clone, Debug)]
pub struct Status {
    /// `embedded` or `etcd`.
    pub engine: &'static str,
    /// Version of the server or of the format on disk.
    pub version: String,
    pub revision: Revision,
    /// Oldest revision that can be read, where the engine knows.
    pub compacted_revision: Option<Revision>,
    pub size_bytes: u64,
    /// Bound of `size_bytes`, where the engine knows.
    pub max_size_bytes: Option<u64>,
    /// Asked anew with each status: etcd's members may be replaced. `EventsOnly` while one of them does not answer.
    pub watch_progress: WatchProgress,
}

/// Refuses what no engine would take, before anything is sent or queued.
pub(crate) fn check_writes(writes: &[Write]) -> Result<(), Error> {
    if writes.len() > MAX_OPERATIONS {
        return Err(Error::TooManyOperations { count: writes.len(), limit: MAX_OPERATIONS });
    }
    for write in writes {
        check_key(&write.key)?;
    }
    let size: usize = writes.iter().map(Write::size).sum();
    if size > MAX_REQUEST_BYTES {
        let key =
            writes.iter().max_by_key(|write| write.size()).map(|write| write.key.clone()).unwrap_or_default();
        return Err(Error::TooLarge { key, size, limit: MAX_REQUEST_BYTES });
    }
    if writes.len() > 1 {
        let mut keys: Vec<&Key> = writes.iter().map(|write| &write.key).collect();
        keys.sort_unstable();
        if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::DuplicateKey { key: pair[0].clone() });
        }
    }
    Ok(())
}

pub(crate) fn check_key(key: &Key) -> Result<(), Error> {
    let reason = if key.is_empty() {
        "it is empty"
    } else if key.len() > MAX_KEY_BYTES {
        "it is longer than 1024 bytes"
    } else if key.contains('\0') {
        "it holds a NUL"
    } else {
        return Ok(());
    };
    Err(Error::InvalidKey { key: key.clone(), reason })
}

/// The end of the range of all keys that start with `prefix`; empty for no end.
///
/// UTF-8 sorts by code point, so the last character's successor is the smallest text above every extension.
pub(crate) fn prefix_end(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return end;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_prefix_end(prefix: &str, expected: &str) {
        assert_eq!(prefix_end(prefix), expected, "{prefix:?}");
    }

    #[test]
    fn prefix_end_is_the_smallest_text_above_every_extension() {
        check_prefix_end("", "");
        check_prefix_end("/registry/", "/registry0");
        check_prefix_end("a\u{10FFFF}", "b");
        check_prefix_end("\u{10FFFF}", "");
        check_prefix_end("\u{D7FF}", "\u{E000}");
    }

    #[test]
    fn writes_beyond_the_limits_are_refused() {
        let put = |key: &str, size: usize| Write::put(key, vec![0; size], Expect::Any);
        assert!(check_writes(&[put("a", MAX_REQUEST_BYTES - 67)]).is_ok());
        assert!(matches!(check_writes(&[put("a", MAX_REQUEST_BYTES - 66)]), Err(Error::TooLarge { .. })));
        assert!(matches!(check_writes(&[put("a", 1), put("a", 1)]), Err(Error::DuplicateKey { .. })));
        let many: Vec<_> = (0..=MAX_OPERATIONS).map(|n| put(&n.to_string(), 1)).collect();
        assert!(matches!(check_writes(&many), Err(Error::TooManyOperations { count: 129, limit: 128 })));
        for key in ["", "a\0b", &"k".repeat(MAX_KEY_BYTES + 1)] {
            assert!(matches!(check_writes(&[put(key, 1)]), Err(Error::InvalidKey { .. })), "{key:?}");
        }
    }

    #[test]
    fn debug_output_shows_no_values() {
        let kv = KeyValue { key: "k".into(), value: "hunter2".into(), create_revision: 1, mod_revision: 2 };
        assert_eq!(format!("{kv:?}"), "k@2 (7 bytes)");
        assert!(!format!("{:?}", Write::create("k", "hunter2")).contains("hunter2"));
    }
}
