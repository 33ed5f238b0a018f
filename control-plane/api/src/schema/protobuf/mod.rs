//! Kubernetes protobuf: the envelope, objects of any built-in type both ways, lists and watch frames.
//!
//! A body is `k8s\0` and a `runtime.Unknown` with `apiVersion`, `kind` and the object's message. Fields are
//! written as Go's generated code writes them: by ascending number, values that are no pointers even when
//! they are zero, maps sorted by key; so equal objects have equal bytes. Input is bounded by its own length,
//! [`MAX_DEPTH`] and [`MAX_OBJECTS`]. Rules: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf`.

mod decode;
mod encode;
mod wire;

pub use decode::{decode, decode_message};
pub use encode::{EncodeError, encode, encode_message};

use crate::Error;
use wire::{LENGTH, Payload, Reader, put_bytes, put_nested, put_tag, put_varint, varint_len};

/// What a protobuf body of the API starts with.
pub const MAGIC: &[u8; 4] = b"k8s\0";
/// How deep messages may nest; the deepest type of the API, a CRD's schema, is allowed about as much.
pub const MAX_DEPTH: u32 = 100;
/// Messages and map entries in one body: an empty one costs two bytes but decodes to many.
pub const MAX_OBJECTS: u32 = 100_000;

/// The body is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the body does not start with the four bytes of Kubernetes protobuf")]
    Magic,
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind { api_version: String, kind: String },
    #[error("the content encoding {0:?} is not supported")]
    ContentEncoding(String),
    #[error("unexpected end of the message")]
    Truncated,
    #[error("a number is longer than 64 bits")]
    Varint,
    #[error("the tag {0} is not valid")]
    Tag(u64),
    #[error("field {field} of {message} has the wrong wire type")]
    WireType { message: &'static str, field: u32 },
    #[error("field {field} of {message} is not valid UTF-8")]
    Utf8 { message: &'static str, field: u32 },
    #[error("field {field} of {message}: {reason}")]
    Value { message: &'static str, field: u32, reason: String },
    #[error("messages are nested deeper than {MAX_DEPTH}")]
    Depth,
    #[error("the body has more than {MAX_OBJECTS} parts")]
    Size,
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// What the envelope says, and the object's message in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
}

/// Opens an envelope without looking at the object.
pub fn open(body: &[u8]) -> Result<Envelope<'_>, DecodeError> {
    let rest = body.strip_prefix(MAGIC).ok_or(DecodeError::Magic)?;
    let text = |bytes, field| {
        std::str::from_utf8(bytes).map_err(|_| DecodeError::Utf8 { message: "runtime.Unknown", field })
    };
    let mut envelope = Envelope::default();
    let mut reader = Reader::new(rest);
    while let Some((number, payload)) = reader.next_field()? {
        match (number, payload) {
            (1, Payload::Bytes(bytes)) => {
                let mut meta = Reader::new(bytes);
                while let Some((number, payload)) = meta.next_field()? {
                    match (number, payload) {
                        (1, Payload::Bytes(bytes)) => envelope.api_version = text(bytes, 1)?,
                        (2, Payload::Bytes(bytes)) => envelope.kind = text(bytes, 2)?,
                        _ => {}
                    }
                }
            }
            (2, Payload::Bytes(bytes)) => envelope.raw = bytes,
            (3, Payload::Bytes(bytes)) if !bytes.is_empty() => {
                return Err(DecodeError::ContentEncoding(String::from_utf8_lossy(bytes).into_owned()));
            }
            _ => {}
        }
    }
    Ok(envelope)
}

/// Puts the message of an object into its envelope.
pub fn seal(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + api_version.len() + kind.len() + 24);
    seal_into(api_version, kind, raw, &mut out);
    out
}

fn seal_into(api_version: &str, kind: &str, raw: &[u8], out: &mut Vec<u8>) {
    put_head(out, api_version, kind);
    put_bytes(out, 2, raw);
    out.extend_from_slice(ENVELOPE_END);
}

/// The envelope up to the object.
fn put_head(out: &mut Vec<u8>, api_version: &str, kind: &str) {
    out.extend_from_slice(MAGIC);
    let meta = put_nested::<std::convert::Infallible>(out, 1, |out| {
        put_bytes(out, 1, api_version.as_bytes());
        put_bytes(out, 2, kind.as_bytes());
        Ok(())
    });
    match meta {
        Ok(()) => {}
    }
}

/// The envelope after the object: neither a content encoding nor a content type (fields 3 and 4, empty).
const ENVELOPE_END: &[u8] = &[0x1a, 0, 0x22, 0];

/// What stands before the items of a list; then follow the items ([`list_item`]) and [`LIST_END`].
///
/// `kind` is the list's (`PodList`), `metadata` a `metav1.ListMeta`. `lengths` are those of the items' messages: the
/// envelope says beforehand how long all of it is.
pub fn list_head(
    api_version: &str,
    kind: &str,
    metadata: &serde_json::Value,
    lengths: impl IntoIterator<Item = usize>,
) -> Result<Vec<u8>, EncodeError> {
    let list_meta = super::type_named("k8s.io.apimachinery.pkg.apis.meta.v1.ListMeta");
    let list_meta = list_meta.expect("the table has ListMeta");
    let mut begin = Vec::new();
    put_bytes(&mut begin, 1, &encode_message(list_meta, metadata)?);
    // The tag takes one byte.
    let items: usize = lengths.into_iter().map(|length| 1 + varint_len(length as u64) + length).sum();
    let mut out = Vec::with_capacity(begin.len() + 64);
    put_head(&mut out, api_version, kind);
    put_tag(&mut out, 2, LENGTH);
    put_varint(&mut out, (begin.len() + items) as u64);
    out.extend_from_slice(&begin);
    Ok(out)
}

/// One item of a list: a message without envelope, from [`encode_message`].
pub fn list_item(message: &[u8], out: &mut Vec<u8>) {
    put_bytes(out, 2, message);
}

/// What stands after the items of a list.
pub const LIST_END: &[u8] = ENVELOPE_END;

/// One frame of a watch: four bytes of length, then a `metav1.WatchEvent` around the sealed object.
pub fn watch_frame(event: &str, sealed: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    put_bytes(&mut out, 1, event.as_bytes());
    let object = put_nested::<std::convert::Infallible>(&mut out, 2, |out| {
        put_bytes(out, 1, sealed);
        Ok(())
    });
    match object {
        Ok(()) => {}
    }
    let length = u32::try_from(out.len() - 4).expect("an object is far smaller than 4 GiB");
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}
