//! One version of one object, as the cache holds it: bytes ready to send, and the little that reads decide on.
//!
//! The JSON is what the store holds with the resource version spliced in, once, when the object enters. Protobuf, other
//! API versions and selectable fields are made when first asked for, and kept. All readers share one copy.

use std::{borrow::Cow, collections::BTreeMap, ops::Range, sync::OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use hawser_api::apply::ManagedFields;
use hawser_store::{Key, Revision};
use serde::Deserialize;
use serde_json::Value;

use super::{
    parts,
    scan::{self, Comma},
};

/// Offset and length of a piece of text in the JSON.
#[derive(Clone, Copy)]
struct Piece {
    at: u32,
    len: u32,
}

pub struct CachedObject {
    /// The key in the store.
    key: Key,
    revision: Revision,
    encoded: Encoded,
    /// Label keys and values, where they stand in the JSON.
    labels: Box<[(Piece, Piece)]>,
    /// Node that a pod is bound to; empty for none, and for other kinds.
    node: Box<str>,
    /// Lengths of namespace and name at the end of the key.
    namespace_len: u16,
    name_len: u16,
    /// Selectable fields, in the order in which the kind lists them.
    fields: OnceLock<Box<[String]>>,
    /// The object as the other kind under which it is served (events), if any.
    view: OnceLock<Option<Box<Encoded>>>,
    /// See [`CachedObject::kept`].
    kept: OnceLock<Box<Value>>,
}

/// An object's bytes in one API version.
pub struct Encoded {
    json: Bytes,
    /// Where the digits of the resource version stand.
    version: Piece,
    /// Offset from which the text, after `{`, is the object as list items have it.
    item: u32,
    /// Kubernetes protobuf: the bare message, without the envelope; `None` for a type without one.
    protobuf: OnceLock<Option<Bytes>>,
}

/// Why stored bytes cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error("not an object of the API: {0}")]
    Json(#[from] serde_json::Error),
    #[error("metadata is not an object")]
    Metadata,
}

#[derive(Deserialize)]
struct Partial<'a> {
    #[serde(borrow)]
    metadata: PartialMeta<'a>,
    #[serde(borrow, default)]
    spec: Spec<'a>,
}

#[derive(Deserialize)]
struct PartialMeta<'a> {
    #[serde(borrow, default)]
    labels: BTreeMap<Text<'a>, Text<'a>>,
}

/// Text where it stands in the JSON; `None` where escapes keep it from standing there as it is.
///
/// (serde borrows a `Cow` only as a field, not inside a map.)
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Text<'a>(Option<&'a str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("text")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Some(text)))
            }

            fn visit_str<E>(self, _: &str) -> Result<Text<'de>, E> {
                Ok(Text(None))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// `spec.nodeName`, where `spec` is an object and has one.
#[derive(Default)]
struct Spec<'a> {
    node: Option<Cow<'a, str>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Spec<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields<'a> {
            #[serde(borrow, default, rename = "nodeName")]
            node: Option<Cow<'a, str>>,
        }
        Fields::deserialize(deserializer).map(|fields| Self { node: fields.node })
    }
}

impl Encoded {
    /// Splices `revision` into JSON that has no resource version; 0 (a dry run) leaves it without.
    pub fn new(json: &[u8], revision: Revision) -> Result<Self, Malformed> {
        let layout = scan::layout(json).ok_or(Malformed::Metadata)?;
        if revision == 0 {
            let version = Piece { at: 0, len: 0 };
            let (json, item) = (Bytes::copy_from_slice(json), layout.item as u32);
            return Ok(Self { json, version, item, protobuf: OnceLock::new() });
        }
        let digits = revision.to_string();
        let mut text = BytesMut::with_capacity(json.len() + digits.len() + 22);
        text.put_slice(&json[..layout.version_at]);
        if layout.comma == Comma::Before {
            text.put_u8(b',');
        }
        text.put_slice(b"\"resourceVersion\":\"");
        let version = Piece { at: text.len() as u32, len: digits.len() as u32 };
        text.put_slice(digits.as_bytes());
        text.put_u8(b'"');
        if layout.comma == Comma::After {
            text.put_u8(b',');
        }
        text.put_slice(&json[layout.version_at..]);
        Ok(Self { json: text.freeze(), version, item: layout.item as u32, protobuf: OnceLock::new() })
    }

    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// The object in a list, without `kind` and `apiVersion`: to be written after `{`.
    pub fn item(&self) -> Bytes {
        self.json.slice(self.item as usize..)
    }

    /// The object's `metadata`, as JSON.
    pub fn metadata(&self) -> &[u8] {
        // It has some, or would not have entered the cache.
        scan::metadata(&self.json).map_or(b"{}", |range| &self.json[range])
    }

    /// The object as a tree without `managedFields`, which are more than half of it and which few look at.
    pub fn tree(&self) -> Value {
        parts::tree(&self.json)
    }

    /// The protobuf message without envelope, made when first asked for.
    pub fn protobuf(&self, encode: impl FnOnce(&Value) -> Option<Bytes>) -> Option<Bytes> {
        self.protobuf.get_or_init(|| encode(&serde_json::from_slice(&self.json).ok()?)).clone()
    }

    fn at_revision(&self, revision: Revision) -> Self {
        let (start, len) = (self.version.at as usize, self.version.len as usize);
        let digits = revision.to_string();
        let mut text = BytesMut::with_capacity(self.json.len() + digits.len() - len);
        text.put_slice(&self.json[..start]);
        text.put_slice(digits.as_bytes());
        text.put_slice(&self.json[start + len..]);
        let shift = digits.len() as i64 - len as i64;
        let item =
            if self.item > self.version.at { (i64::from(self.item) + shift) as u32 } else { self.item };
        let version = Piece { at: self.version.at, len: digits.len() as u32 };
        Self { json: text.freeze(), version, item, protobuf: OnceLock::new() }
    }
}

impl CachedObject {
    /// Reads what the store holds: canonical JSON without resource version.
    ///
    /// `key` ends in `/namespace/name` or `/name`; which of them it is the caller knows ([`CachedObject::namespace`]).
    pub fn parse(key: Key, json: &Bytes, revision: Revision) -> Result<Self, Malformed> {
        let encoded = Encoded::new(json, revision)?;
        Self::from_encoded(key, encoded, revision)
    }

    /// Takes what was printed here for the store, without reading all of it again; `node` is its `spec.nodeName`.
    pub fn printed(key: Key, json: &Bytes, revision: Revision, node: &str) -> Result<Self, Malformed> {
        let encoded = Encoded::new(json, revision)?;
        let piece = |range: Range<usize>| Piece { at: range.start as u32, len: range.len() as u32 };
        let labels = scan::labels(&encoded.json).map(|(key, value)| (piece(key), piece(value))).collect();
        Ok(Self::assemble(key, encoded, revision, labels, node.into()))
    }

    fn from_encoded(key: Key, encoded: Encoded, revision: Revision) -> Result<Self, Malformed> {
        let partial: Partial<'_> = serde_json::from_slice(&encoded.json)?;
        let base = encoded.json.as_ptr() as usize;
        // Labels are validated to need no escapes, so that they stand in the text as they are.
        let piece = |text: &Text<'_>| {
            let text = text.0?;
            Some(Piece { at: (text.as_ptr() as usize - base) as u32, len: text.len() as u32 })
        };
        let labels = partial
            .metadata
            .labels
            .iter()
            .filter_map(|(key, value)| Some((piece(key)?, piece(value)?)))
            .collect();
        let node = partial.spec.node.as_deref().unwrap_or_default().into();
        Ok(Self::assemble(key, encoded, revision, labels, node))
    }

    fn assemble(
        key: Key,
        encoded: Encoded,
        revision: Revision,
        labels: Box<[(Piece, Piece)]>,
        node: Box<str>,
    ) -> Self {
        let mut parts = key.rsplit('/');
        let name_len = parts.next().map_or(0, str::len) as u16;
        let namespace_len = parts.next().map_or(0, str::len) as u16;
        Self {
            revision,
            labels,
            node,
            namespace_len,
            name_len,
            fields: OnceLock::new(),
            view: OnceLock::new(),
            kept: OnceLock::new(),
            encoded,
            key,
        }
    }

    /// The same object under a later revision: how deletions show it.
    pub fn at_revision(&self, revision: Revision) -> Self {
        let shift = |piece: &Piece| {
            let grown = revision.to_string().len() as i64 - i64::from(self.encoded.version.len);
            let at = if piece.at > self.encoded.version.at {
                i64::from(piece.at) + grown
            } else {
                i64::from(piece.at)
            };
            Piece { at: at as u32, len: piece.len }
        };
        Self {
            key: self.key.clone(),
            revision,
            labels: self.labels.iter().map(|(key, value)| (shift(key), shift(value))).collect(),
            node: self.node.clone(),
            namespace_len: self.namespace_len,
            name_len: self.name_len,
            fields: self.fields.clone(),
            view: OnceLock::new(),
            kept: OnceLock::new(),
            encoded: self.encoded.at_revision(revision),
        }
    }

    pub fn key(&self) -> &Key {
        &self.key
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn name(&self) -> &str {
        &self.key[self.key.len() - usize::from(self.name_len)..]
    }

    /// The last part but one of the key: the namespace, for a kind that has one.
    pub fn namespace(&self) -> &str {
        let end = self.key.len() - usize::from(self.name_len) - 1;
        &self.key[end - usize::from(self.namespace_len)..end]
    }

    pub fn node(&self) -> &str {
        &self.node
    }

    /// In the storage version.
    pub fn json(&self) -> &Bytes {
        &self.encoded.json
    }

    pub fn encoded(&self) -> &Encoded {
        &self.encoded
    }

    /// The object as the other kind that shows it; `convert` turns a tree of the one into the other's JSON.
    pub fn view(&self, convert: impl FnOnce(Value) -> Option<Vec<u8>>) -> Option<&Encoded> {
        let made = self.view.get_or_init(|| {
            let mut value = self.value();
            if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
                meta.remove("resourceVersion");
            }
            Encoded::new(&convert(value)?, self.revision).ok().map(Box::new)
        });
        made.as_deref()
    }

    /// The object as a tree, in the storage version, with its resource version.
    pub fn value(&self) -> Value {
        // Checked when the object entered.
        serde_json::from_slice(&self.encoded.json).unwrap_or_default()
    }

    /// The tree without `managedFields`, made once and kept: for kinds that are few and that every write looks at.
    pub fn kept(&self) -> &Value {
        self.kept.get_or_init(|| Box::new(self.encoded.tree()))
    }

    /// The object as a tree without `managedFields`, and these: what a write begins with.
    pub fn parts(&self) -> (Value, ManagedFields) {
        parts::take_apart(&self.encoded.json)
    }

    fn text(&self, piece: Piece) -> &str {
        let bytes = &self.encoded.json[piece.at as usize..(piece.at + piece.len) as usize];
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels.iter().map(|(key, value)| (self.text(*key), self.text(*value)))
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// Selectable fields in the kind's order, read from the object when first asked for.
    pub fn fields(&self, read: impl FnOnce(&Value) -> Box<[String]>) -> &[String] {
        self.fields.get_or_init(|| read(&self.value()))
    }
}

impl hawser_api::selector::Labels for CachedObject {
    fn label(&self, key: &str) -> Option<&str> {
        CachedObject::label(self, key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"shop","uid":"u1","labels":{"app":"web","tier":"front"}},"spec":{"nodeName":"n1","containers":[]}}"#;

    fn pod(revision: Revision) -> CachedObject {
        CachedObject::parse("/registry/pods/shop/web".into(), &Bytes::from(POD), revision).expect("a pod")
    }

    #[test]
    fn the_resource_version_is_spliced_in_after_the_uid() {
        let pod = pod(42);
        let text = std::str::from_utf8(pod.json()).expect("text");
        assert!(text.contains(r#""uid":"u1","resourceVersion":"42","labels""#), "{text}");
        assert_eq!(pod.value()["metadata"]["resourceVersion"], "42");
        assert!(pod.encoded().item().starts_with(br#""metadata":{"name":"web""#));
        assert_eq!((pod.namespace(), pod.name(), pod.node()), ("shop", "web", "n1"));
        assert_eq!(pod.label("tier"), Some("front"));
        assert_eq!(pod.label("missing"), None);
    }

    #[test]
    fn what_was_printed_here_is_the_same_as_what_is_read() {
        let odd = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","namespace":"b","annotations":{"x":"}\""}},"spec":{}}"#;
        let escaped = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","uid":"u","labels":{"a":"b\"c","d":"e","f":""}},"spec":{"nodeName":"n2"}}"#;
        for (text, node) in [(POD, "n1"), (odd, ""), (escaped, "n2")] {
            let (key, json) = (Key::from("/registry/pods/shop/web"), Bytes::from(text));
            let read = CachedObject::parse(key.clone(), &json, 42).expect("a pod");
            let printed = CachedObject::printed(key, &json, 42, node).expect("a pod");
            assert_eq!(printed.json(), read.json());
            assert!(printed.labels().eq(read.labels()), "{text}");
            let place = |object: &CachedObject| {
                (object.namespace().to_owned(), object.name().to_owned(), object.node().to_owned())
            };
            assert_eq!(place(&printed), place(&read));
            assert_eq!(printed.encoded().item(), read.encoded().item());
        }
    }

    #[test]
    fn a_later_revision_keeps_everything_else() {
        let later = pod(9).at_revision(1000);
        assert_eq!(later.value()["metadata"]["resourceVersion"], "1000");
        assert_eq!(later.label("app"), Some("web"));
        assert_eq!(later.revision(), 1000);
        assert_eq!(later.value()["spec"], pod(9).value()["spec"]);
    }

    #[test]
    fn kinds_without_an_object_spec_are_read_too() {
        let json =
            Bytes::from(r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"data":{"k":"v"}}"#);
        let object = CachedObject::parse("/registry/configmaps/x/a".into(), &json, 7).expect("a config map");
        assert_eq!(object.value()["metadata"]["resourceVersion"], "7");
        assert!(CachedObject::parse("/registry/a/b".into(), &Bytes::from_static(b"{}"), 1).is_err());
    }
}
