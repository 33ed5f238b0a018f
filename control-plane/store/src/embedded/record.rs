//! The bytes on disk: pure encoding and decoding, format 1.
//!
//! `log` holds every change under its [`Position`]; `heads` holds, per key, where its last change is. Each record
//! points to the record that it replaced, so the versions of a key are a chain that a read at an old revision
//! walks, and compaction finds what is superseded without an index. Numbers are little-endian in values and
//! big-endian in log keys, which sort by position.

use bytes::Bytes;

use crate::{Error, Event, EventKind, Key, KeyValue, Revision};

/// What this code reads and writes. A change of any layout here takes the next number.
pub(super) const FORMAT: u32 = 1;

/// Where a change is in the log: its revision, and which write of the transaction it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) revision: Revision,
    pub(super) index: u16,
}

impl Position {
    pub(super) const BYTES: usize = 10;

    pub(super) fn first_of(revision: Revision) -> Self {
        Self { revision, index: 0 }
    }

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.revision.to_be_bytes());
        bytes[8..].copy_from_slice(&self.index.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (revision, index) = bytes.split_at_checked(8).ok_or_else(|| corrupt("log key"))?;
        Ok(Self {
            revision: u64::from_be_bytes(array(revision, "log key")?),
            index: u16::from_be_bytes(array(index, "log key")?),
        })
    }
}

/// Last change of a key. A deleted key keeps its head until the deletion is compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) position: Position,
    pub(super) create_revision: Revision,
    pub(super) deleted: bool,
}

impl Head {
    const BYTES: usize = 19;

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.position.revision.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.position.index.to_le_bytes());
        bytes[10..18].copy_from_slice(&self.create_revision.to_le_bytes());
        bytes[18] = u8::from(self.deleted);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: [u8; Self::BYTES] = array(bytes, "head")?;
        Ok(Self {
            position: Position {
                revision: u64::from_le_bytes(array(&bytes[..8], "head")?),
                index: u16::from_le_bytes(array(&bytes[8..10], "head")?),
            },
            create_revision: u64::from_le_bytes(array(&bytes[10..18], "head")?),
            deleted: bytes[18] != 0,
        })
    }

    /// Revision that a comparison sees; `None` for a deleted key.
    pub(super) fn live_revision(&self) -> Option<Revision> {
        (!self.deleted).then_some(self.position.revision)
    }
}

/// One change, borrowed from the map of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) deleted: bool,
    pub(super) create_revision: Revision,
    /// The record of the same key before this one, a deletion included. Dangles once that is swept.
    pub(super) previous: Option<Position>,
    pub(super) key: &'a str,
    pub(super) value: &'a [u8],
}

impl<'a> Record<'a> {
    /// flags 1, create revision 8, previous revision 8 (0: none), previous index 2, length of the key 2.
    const HEADER_BYTES: usize = 21;

    pub(super) fn encode(&self, buffer: &mut Vec<u8>) {
        let previous = self.previous.unwrap_or(Position { revision: 0, index: 0 });
        let key_length =
            u16::try_from(self.key.len()).expect("keys are checked to be short before they get here");
        buffer.clear();
        buffer.reserve(Self::HEADER_BYTES + self.key.len() + self.value.len());
        buffer.push(u8::from(self.deleted));
        buffer.extend_from_slice(&self.create_revision.to_le_bytes());
        buffer.extend_from_slice(&previous.revision.to_le_bytes());
        buffer.extend_from_slice(&previous.index.to_le_bytes());
        buffer.extend_from_slice(&key_length.to_le_bytes());
        buffer.extend_from_slice(self.key.as_bytes());
        buffer.extend_from_slice(self.value);
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Error> {
        let (header, rest) =
            bytes.split_at_checked(Self::HEADER_BYTES).ok_or_else(|| corrupt("log record"))?;
        let previous_revision = u64::from_le_bytes(array(&header[9..17], "log record")?);
        let previous_index = u16::from_le_bytes(array(&header[17..19], "log record")?);
        let key_length = u16::from_le_bytes(array(&header[19..21], "log record")?);
        let (key, value) = rest.split_at_checked(key_length.into()).ok_or_else(|| corrupt("log record"))?;
        Ok(Self {
            deleted: header[0] != 0,
            create_revision: u64::from_le_bytes(array(&header[1..9], "log record")?),
            previous: (previous_revision != 0)
                .then_some(Position { revision: previous_revision, index: previous_index }),
            key: std::str::from_utf8(key).map_err(|_| corrupt("log record"))?,
            value,
        })
    }

    pub(super) fn to_key_value(self, key: Key, mod_revision: Revision) -> KeyValue {
        KeyValue {
            key,
            value: Bytes::copy_from_slice(self.value),
            create_revision: self.create_revision,
            mod_revision,
        }
    }

    pub(super) fn to_event(self, key: Key, mod_revision: Revision, previous: Option<KeyValue>) -> Event {
        let kind = if self.deleted { EventKind::Delete } else { EventKind::Put };
        Event { kind, kv: self.to_key_value(key, mod_revision), previous }
    }
}

/// The store's counters, written with every commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) revision: Revision,
    /// Reads below it fail; 0 before the first compaction.
    pub(super) compacted: Revision,
    /// Superseded records up to here have been removed; at most `compacted`.
    pub(super) swept: Revision,
}

impl State {
    pub(super) const INITIAL: Self = Self { revision: 1, compacted: 0, swept: 0 };

    const BYTES: usize = 24;

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.revision.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.compacted.to_le_bytes());
        bytes[16..].copy_from_slice(&self.swept.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: [u8; Self::BYTES] = array(bytes, "state")?;
        Ok(Self {
            revision: u64::from_le_bytes(array(&bytes[..8], "state")?),
            compacted: u64::from_le_bytes(array(&bytes[8..16], "state")?),
            swept: u64::from_le_bytes(array(&bytes[16..], "state")?),
        })
    }
}

fn array<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N], Error> {
    bytes.try_into().map_err(|_| corrupt(what))
}

pub(super) fn corrupt(what: &str) -> Error {
    Error::Corrupt { what: format!("a {what} cannot be read") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let position = Position { revision: 0x0102_0304_0506_0708, index: 127 };
        assert_eq!(Position::decode(&position.encode()).unwrap(), position);
        for deleted in [false, true] {
            let head = Head { position, create_revision: 7, deleted };
            assert_eq!(Head::decode(&head.encode()).unwrap(), head);
            for previous in [None, Some(position)] {
                let record = Record { deleted, create_revision: 9, previous, key: "/a/b", value: b"value" };
                let mut buffer = vec![1, 2, 3];
                record.encode(&mut buffer);
                assert_eq!(Record::decode(&buffer).unwrap(), record);
            }
        }
        let state = State { revision: 3, compacted: 2, swept: 1 };
        assert_eq!(State::decode(&state.encode()).unwrap(), state);
    }

    #[test]
    fn log_keys_sort_by_revision_then_index() {
        let positions = [(1, 0), (1, 1), (1, 256), (2, 0), (255, 3), (256, 0), (u64::MAX, 0)];
        let keys = positions.map(|(revision, index)| Position { revision, index }.encode());
        assert!(keys.is_sorted());
    }

    #[test]
    fn truncated_bytes_are_corrupt_and_never_panic() {
        let mut buffer = Vec::new();
        Record { deleted: false, create_revision: 1, previous: None, key: "/key", value: b"" }
            .encode(&mut buffer);
        for length in 0..buffer.len() {
            assert!(matches!(Record::decode(&buffer[..length]), Err(Error::Corrupt { .. })), "{length}");
        }
        assert!(matches!(Head::decode(&[0; 18]), Err(Error::Corrupt { .. })));
        assert!(matches!(State::decode(&[0; 23]), Err(Error::Corrupt { .. })));
        assert!(matches!(Position::decode(&[0; 11]), Err(Error::Corrupt { .. })));
    }
}
