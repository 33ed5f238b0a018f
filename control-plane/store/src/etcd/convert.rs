//! Between etcd's messages and ours.

use bytes::Bytes;
use etcd_client::{Event as EtcdEvent, EventType, KeyValue as EtcdKeyValue};

use crate::{Error, Event, EventKind, Key, KeyValue, Revision};

/// Revisions are signed on etcd's wire, and never negative.
pub(super) fn revision(revision: i64) -> Revision {
    revision.unsigned_abs()
}

pub(super) fn wire_revision(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

pub(super) fn key_value(kv: &EtcdKeyValue) -> Result<KeyValue, Error> {
    Ok(KeyValue {
        key: key(kv)?,
        value: Bytes::copy_from_slice(kv.value()),
        create_revision: revision(kv.create_revision()),
        mod_revision: revision(kv.mod_revision()),
    })
}

/// Like [`key_value`], without a copy of the value.
pub(super) fn into_key_value(kv: EtcdKeyValue) -> Result<KeyValue, Error> {
    let (create_revision, mod_revision) = (revision(kv.create_revision()), revision(kv.mod_revision()));
    let key = key(&kv)?;
    let (_, value) = kv.into_key_value();
    Ok(KeyValue { key, value: value.into(), create_revision, mod_revision })
}

pub(super) fn event(event: &EtcdEvent) -> Result<Event, Error> {
    let kv = event.kv().ok_or_else(|| Error::Corrupt { what: "etcd sent an event without a key".into() })?;
    let kind = match event.event_type() {
        EventType::Put => EventKind::Put,
        EventType::Delete => EventKind::Delete,
    };
    Ok(Event { kind, kv: key_value(kv)?, previous: event.prev_kv().map(key_value).transpose()? })
}

fn key(kv: &EtcdKeyValue) -> Result<Key, Error> {
    let key = std::str::from_utf8(kv.key())
        .map_err(|_| Error::Corrupt { what: format!("etcd holds a key that is not text: {:?}", kv.key()) })?;
    Ok(key.into())
}
