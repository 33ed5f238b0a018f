//! From cached objects to the bytes of an answer.
//!
//! Plain JSON and protobuf are the cache's own bytes. Lists of them, and tables and metadata, are written piece by piece
//! while they are sent, so that a list of any size costs one snapshot and one piece of memory. What is neither compact
//! JSON nor protobuf (YAML, `pretty`) is made whole of the JSON.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use hawser_api::{Error, schema};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    body::Pieces,
    negotiate::{Output, Shape},
};
use crate::{
    cache::{CachedObject, Encoded},
    codec::{self, Encoding},
    registry::Listed,
    resources::Resource,
    table::{self, IncludeObject, Table, TableOptions},
};

/// Bytes of a list that are made at a time.
const PIECE: usize = 64 << 10;
/// Messages that are made before others get their turn on the thread.
const MESSAGES_AT_ONCE: usize = 32;

/// One object.
pub(super) fn object(
    resource: &Resource,
    object: &CachedObject,
    output: Output,
    include: IncludeObject,
) -> Result<Bytes, Error> {
    if output.shape == Shape::Plain && output.encoding == Encoding::Protobuf {
        return sealed(resource, object);
    }
    let encoded = resource.encoded(object)?;
    let text = match output.shape {
        Shape::Plain => encoded.json().clone(),
        Shape::Table(version) => table(resource, object, &table_options(version, include, true))?,
        Shape::Metadata(version) => {
            let mut text = Vec::new();
            table::partial_metadata(encoded, version, &mut text);
            text.into()
        }
    };
    restyled(text, output)
}

/// The table of one object, as JSON.
pub(super) fn table(
    resource: &Resource,
    object: &CachedObject,
    options: &TableOptions,
) -> Result<Bytes, Error> {
    let metadata = match object.revision() {
        // Of a dry run.
        0 => json!({}),
        revision => json!({ "resourceVersion": revision.to_string() }),
    };
    Ok(Table::new(resource.row, *options).of_one(resource.encoded(object)?, &metadata).into())
}

/// Compact JSON in the encoding that is wanted.
fn restyled(text: Bytes, output: Output) -> Result<Bytes, Error> {
    if output.is_compact_json() {
        return Ok(text);
    }
    value(&serde_json::from_slice(&text).map_err(Error::internal)?, output)
}

pub(super) fn table_options(
    version: &'static str,
    include_object: IncludeObject,
    headers: bool,
) -> TableOptions {
    TableOptions { version, include_object, headers, now: Timestamp::now() }
}

/// Something that is not cached.
pub(super) fn value(value: &Value, output: Output) -> Result<Bytes, Error> {
    if output.encoding == Encoding::Json && output.pretty {
        return serde_json::to_vec_pretty(value).map(Bytes::from).map_err(Error::internal);
    }
    codec::encode(value, output.encoding)
}

/// The object in its protobuf envelope.
pub(crate) fn sealed(resource: &Resource, object: &CachedObject) -> Result<Bytes, Error> {
    let message = message(resource, object)?;
    Ok(schema::protobuf::seal(&resource.api_version, resource.row.kind, &message).into())
}

fn message(resource: &Resource, object: &CachedObject) -> Result<Bytes, Error> {
    resource.encoded(object)?.protobuf(codec::protobuf_message).ok_or_else(|| {
        Error::new(
            hawser_api::error::Reason::NotAcceptable,
            format!("{} cannot be written as protobuf", resource.gvr),
        )
    })
}

/// `metadata` of a list.
fn list_meta(listed: &Listed) -> Value {
    let mut meta = json!({ "resourceVersion": listed.revision.to_string() });
    if !listed.continue_token.is_empty() {
        meta["continue"] = json!(listed.continue_token);
    }
    if let Some(remaining) = listed.remaining {
        meta["remainingItemCount"] = json!(remaining);
    }
    meta
}

/// A list: what is ready at once, and the pieces that follow.
pub(super) enum List {
    Whole(Bytes),
    Pieces(Pieces),
}

pub(super) async fn list(
    resource: &Arc<Resource>,
    listed: Listed,
    output: Output,
    include: IncludeObject,
) -> Result<List, Error> {
    let meta = list_meta(&listed);
    if output.shape == Shape::Plain && output.encoding == Encoding::Protobuf {
        return messages(resource, listed, &meta).await;
    }
    let form = match output.shape {
        Shape::Plain => Form::Objects,
        Shape::Metadata(version) => Form::Metadata(version),
        Shape::Table(version) => Form::Rows(Table::new(resource.row, table_options(version, include, true))),
    };
    let begin = form.head(resource, &meta);
    let texts = Texts { resource: resource.clone(), form, objects: Box::new(listed.objects()), first: true };
    let pieces = InPieces { items: texts, buffer: begin, end: table::LIST_END, done: false };
    if output.is_compact_json() {
        return Ok(pieces.into_list());
    }
    restyled(pieces.flatten().collect::<Vec<u8>>().into(), output).map(List::Whole)
}

/// What the items of a text list are.
enum Form {
    Objects,
    /// With the version of `meta.k8s.io`.
    Metadata(&'static str),
    Rows(Table),
}

impl Form {
    fn head(&self, resource: &Resource, meta: &Value) -> Vec<u8> {
        let (kind, api_version) = match self {
            Self::Objects => (resource.row.list_kind, resource.api_version.clone()),
            Self::Metadata(version) => ("PartialObjectMetadataList", format!("meta.k8s.io/{version}")),
            Self::Rows(table) => return table.head(meta),
        };
        format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{meta},"items":["#).into_bytes()
    }

    fn write(&self, object: &Encoded, out: &mut Vec<u8>) {
        match self {
            Self::Objects => {
                out.push(b'{');
                out.extend_from_slice(&object.item());
            }
            Self::Metadata(version) => table::partial_metadata(object, version, out),
            Self::Rows(table) => table.row(object, out),
        }
    }
}

/// Writes items of a list, one at a time; false where there is none left.
trait Items: Send + 'static {
    fn next(&mut self, out: &mut Vec<u8>) -> bool;
}

struct Texts {
    resource: Arc<Resource>,
    form: Form,
    objects: Box<dyn Iterator<Item = Arc<CachedObject>> + Send>,
    first: bool,
}

impl Items for Texts {
    fn next(&mut self, out: &mut Vec<u8>) -> bool {
        let Some(object) = self.objects.next() else { return false };
        // A view that cannot be converted is left out; the conversion said so in the log.
        if let Ok(encoded) = self.resource.encoded(&object) {
            if !std::mem::take(&mut self.first) {
                out.push(b',');
            }
            self.form.write(encoded, out);
        }
        true
    }
}

/// A list in protobuf. Its envelope says how long it is, so messages that were never asked for are made first.
async fn messages(resource: &Resource, listed: Listed, meta: &Value) -> Result<List, Error> {
    let mut messages = Vec::new();
    for (number, object) in listed.objects().enumerate() {
        // They take their time: others have theirs in between.
        if number % MESSAGES_AT_ONCE == MESSAGES_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        messages.push(message(resource, &object)?);
    }
    let lengths = messages.iter().map(Bytes::len);
    let begin = schema::protobuf::list_head(&resource.api_version, resource.row.list_kind, meta, lengths)?;
    let items = messages.into_iter();
    Ok(InPieces { items, buffer: begin, end: schema::protobuf::LIST_END, done: false }.into_list())
}

impl Items for std::vec::IntoIter<Bytes> {
    fn next(&mut self, out: &mut Vec<u8>) -> bool {
        let message = Iterator::next(self);
        message.inspect(|message| schema::protobuf::list_item(message, out)).is_some()
    }
}

/// The bytes of a list, a piece at a time.
struct InPieces<I> {
    items: I,
    /// What is made and not taken: at first the head.
    buffer: Vec<u8>,
    end: &'static [u8],
    done: bool,
}

impl<I: Items> InPieces<I> {
    fn into_list(mut self) -> List {
        let first = self.next().unwrap_or_default();
        if self.done {
            return List::Whole(first);
        }
        List::Pieces(Box::pin(stream::iter(std::iter::once(first).chain(self))))
    }
}

impl<I: Items> Iterator for InPieces<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut piece = std::mem::take(&mut self.buffer);
        piece.reserve(PIECE + PIECE / 4);
        while piece.len() < PIECE {
            if !self.items.next(&mut piece) {
                piece.extend_from_slice(self.end);
                self.done = true;
                break;
            }
        }
        Some(piece.into())
    }
}
