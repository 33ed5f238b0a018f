//! From cached objects to the bytes of an answer.
//!
//! Plain JSON and protobuf are the cache's own bytes; lists are made of them piece by piece while they are sent, so
//! that a list of any size costs one snapshot and one piece of memory. Tables, YAML and metadata are made per request.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use hawser_api::{Error, schema};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    body::Pieces,
    negotiate::{Output, Shape},
};
use crate::{
    cache::CachedObject,
    codec::{self, Encoding},
    registry::Listed,
    resources::Resource,
    table::{self, IncludeObject, TableOptions},
};

/// Bytes of a list that are made at a time.
const PIECE: usize = 64 << 10;

/// One object.
pub(super) fn object(
    resource: &Resource,
    object: &CachedObject,
    output: Output,
    include: IncludeObject,
) -> Result<Bytes, Error> {
    match (output.shape, output.encoding) {
        (Shape::Plain, Encoding::Json) if !output.pretty => Ok(resource.encoded(object)?.json().clone()),
        (Shape::Plain, Encoding::Protobuf) => sealed(resource, object),
        (Shape::Plain, _) => value(&resource.value(object)?, output),
        (Shape::Table(version), _) => {
            let object = resource.value(object)?;
            let metadata = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
            value(
                &table::table(resource.row, [&object], metadata, &table_options(version, include, true)),
                output,
            )
        }
        (Shape::Metadata(version), _) => {
            value(&table::partial_metadata(&resource.value(object)?, version), output)
        }
    }
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

pub(super) fn list(
    resource: &Arc<Resource>,
    listed: Listed,
    output: Output,
    include: IncludeObject,
) -> Result<List, Error> {
    let meta = list_meta(&listed);
    match (output.shape, output.encoding) {
        (Shape::Plain, Encoding::Json) if !output.pretty => Ok(json_list(resource, listed, &meta)),
        (Shape::Plain, Encoding::Protobuf) => {
            let messages: Vec<Bytes> =
                listed.objects().map(|object| message(resource, &object)).collect::<Result<_, _>>()?;
            let items = messages.iter().map(|message| &**message);
            let bytes = schema::protobuf::list(&resource.api_version, resource.row.list_kind, &meta, items);
            bytes.map(|bytes| List::Whole(bytes.into())).map_err(Error::internal)
        }
        (shape, _) => {
            let objects: Vec<Value> =
                listed.objects().map(|object| resource.value(&object)).collect::<Result<_, _>>()?;
            let made = match shape {
                Shape::Table(version) => {
                    table::table(resource.row, &objects, meta, &table_options(version, include, true))
                }
                Shape::Metadata(version) => table::partial_metadata_list(&objects, meta, version),
                Shape::Plain => plain_list(resource, objects, meta),
            };
            value(&made, output).map(List::Whole)
        }
    }
}

fn plain_list(resource: &Resource, objects: Vec<Value>, meta: Value) -> Value {
    let items = objects.into_iter().map(|mut object| {
        if let Some(fields) = object.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        object
    });
    json!({
        "kind": resource.row.list_kind, "apiVersion": resource.api_version, "metadata": meta,
        "items": items.collect::<Vec<_>>(),
    })
}

fn json_list(resource: &Arc<Resource>, listed: Listed, meta: &Value) -> List {
    let mut head = BytesMut::with_capacity(PIECE);
    head.put_slice(
        format!(
            "{{\"kind\":{:?},\"apiVersion\":{:?},\"metadata\":",
            resource.row.list_kind, resource.api_version
        )
        .as_bytes(),
    );
    head.put_slice(meta.to_string().as_bytes());
    head.put_slice(b",\"items\":[");
    let objects: Box<dyn Iterator<Item = Arc<CachedObject>> + Send> = Box::new(listed.objects());
    let mut pieces =
        JsonPieces { resource: resource.clone(), objects, buffer: head, first: true, done: false };
    let first = pieces.next().unwrap_or_default();
    if pieces.done {
        return List::Whole(first);
    }
    List::Pieces(Box::pin(stream::iter(std::iter::once(first).chain(pieces))))
}

/// The text of a list, a piece at a time.
struct JsonPieces {
    resource: Arc<Resource>,
    objects: Box<dyn Iterator<Item = Arc<CachedObject>> + Send>,
    buffer: BytesMut,
    first: bool,
    done: bool,
}

impl Iterator for JsonPieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        while self.buffer.len() < PIECE {
            let Some(object) = self.objects.next() else {
                self.buffer.put_slice(b"]}\n");
                self.done = true;
                break;
            };
            // A view that cannot be converted is left out; the conversion said so in the log.
            let Ok(encoded) = self.resource.encoded(&object) else { continue };
            if !std::mem::take(&mut self.first) {
                self.buffer.put_u8(b',');
            }
            self.buffer.put_u8(b'{');
            self.buffer.put_slice(&encoded.item());
        }
        Some(self.buffer.split().freeze())
    }
}
