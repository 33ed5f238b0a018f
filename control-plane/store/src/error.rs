//! What can go wrong with a store, told apart by what the caller does next.
//!
//! Conflict: read again. Compacted: list again. Unavailable, Full: later ([`Error::is_retryable`]). Ambiguous: find
//! out first. TooLarge, TooManyOperations, InvalidKey, DuplicateKey: the request is wrong. The rest ends a start.

use std::{io, path::PathBuf, sync::Arc};

use crate::{Expect, Key, KeyValue, Revision};

/// Cause of an error, shared because one failure can end many requests.
pub type Source = Arc<dyn std::error::Error + Send + Sync + 'static>;

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key is not as expected; nothing was written. `current` is the key as it is, `None` when absent.
    #[error("{key} is {}, not {expected}", describe(current.as_deref()))]
    Conflict { key: Key, expected: Expect, current: Option<Box<KeyValue>> },

    /// History before `compacted` (0 where the engine does not know) is gone: list again and watch from there.
    #[error("revision {requested} has been compacted, history starts at {compacted}")]
    Compacted { requested: Revision, compacted: Revision },

    /// The store never was at this revision: it is not the one the caller knew.
    #[error("revision {requested} is in the future, the store is at {current}")]
    FutureRevision { requested: Revision, current: Revision },

    #[error("key {key:?} cannot be stored: {reason}")]
    InvalidKey { key: Key, reason: &'static str },

    #[error("{key} is written twice in one transaction")]
    DuplicateKey { key: Key },

    /// `key` is the largest part of the request.
    #[error("writing {key} takes {size} bytes, more than {limit} in one request")]
    TooLarge { key: Key, size: usize, limit: usize },

    #[error("{count} writes in one transaction, more than {limit}")]
    TooManyOperations { count: usize, limit: usize },

    /// No space; nothing was written. Reads go on, and writes do when there is space again.
    #[error("store is full: {what}")]
    Full {
        what: &'static str,
        #[source]
        source: Source,
    },

    /// Nothing was written (or read) and trying again may help.
    #[error("store is unavailable: {attempted}")]
    Unavailable {
        attempted: &'static str,
        #[source]
        source: Source,
    },

    /// The write may have happened or not; read before trying again.
    #[error("outcome of writing {key} is unknown")]
    Ambiguous {
        key: Key,
        #[source]
        source: Source,
    },

    /// The store has been closed, or its writer has died.
    #[error("store is closed")]
    Closed,

    /// Another process has the directory open.
    #[error("{} is in use by another process", path.display())]
    Locked { path: PathBuf },

    /// Written by another version of this program; nothing was touched.
    #[error("{} has format {found}, this program knows {supported}", path.display())]
    UnsupportedFormat { path: PathBuf, found: u32, supported: u32 },

    /// What was read makes no sense: a bug or a broken disk. Restore from a backup.
    #[error("store is corrupt: {what}")]
    Corrupt { what: String },

    /// The options make no sense, or a server refuses them (credentials, certificates, version).
    #[error("store cannot be used: {reason}")]
    Configuration { reason: String },

    #[error("cannot {attempted} {}", path.display())]
    Io {
        attempted: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
}

impl Error {
    /// Nothing happened, and the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Full { .. })
    }

    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    pub fn is_compacted(&self) -> bool {
        matches!(self, Self::Compacted { .. })
    }

    pub(crate) fn io(attempted: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { attempted, path: path.into(), source: Arc::new(source) }
    }
}

fn describe(current: Option<&KeyValue>) -> String {
    current.map_or_else(|| "absent".to_owned(), |kv| format!("at revision {}", kv.mod_revision))
}
