//! From the server's values to protobuf, byte for byte as Go's generated code writes it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::wire::{FIXED64, VARINT, put_bytes, put_int, put_nested, put_tag, put_varint};
use crate::{
    schema::{Elem, Field, Shape, Special, Type, type_of_object},
    time,
};

/// The object does not fit its type; a canonical object always does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind { api_version: String, kind: String },
    #[error("field {field} of {message} does not fit its type")]
    Value { message: &'static str, field: &'static str },
}

impl From<EncodeError> for crate::Error {
    fn from(error: EncodeError) -> Self {
        Self::internal(error)
    }
}

/// Encodes an object that names its kind, with envelope.
pub fn encode(object: &Value) -> Result<Vec<u8>, EncodeError> {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let ty = type_of_object(api_version, kind);
    let ty = ty.ok_or_else(|| EncodeError::UnknownKind {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
    })?;
    Ok(super::seal(api_version, kind, &encode_message(ty, object)?))
}

/// Encodes an object's message, without envelope: what lists are made of.
pub fn encode_message(ty: &'static Type, object: &Value) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::with_capacity(1024);
    let empty = Map::new();
    put_fields(ty, object.as_object().unwrap_or(&empty), &mut out)?;
    Ok(out)
}

fn put_fields(ty: &'static Type, object: &Map<String, Value>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    for index in &ty.wire_order {
        let field = &ty.fields[*index];
        if field.inline {
            let inner = field.elem.message().expect("only messages are inlined");
            put_nested(out, field.number, |out| put_fields(inner, object, out))?;
            continue;
        }
        let put = match object.get(field.json).filter(|value| !value.is_null()) {
            Some(value) => put_field(field, value, out),
            None if field.pointer || field.shape != Shape::One => Some(Ok(())),
            None => Some(put_zero(field, out)),
        };
        put.unwrap_or(Err(EncodeError::Value { message: ty.name, field: field.json }))?;
    }
    Ok(())
}

/// Go writes what is no pointer even when it is zero; bytes are an exception.
fn put_zero(field: &Field, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match field.elem {
        Elem::Bool | Elem::Int32 | Elem::Int64 => put_int(out, field.number, 0),
        Elem::Double => {
            put_tag(out, field.number, FIXED64);
            out.extend_from_slice(&[0; 8]);
        }
        Elem::String => put_bytes(out, field.number, b""),
        Elem::Bytes => {}
        Elem::Message(id) => {
            let ty = id.get();
            put_nested(out, field.number, |out| match ty.special {
                Special::Struct => put_fields(ty, &Map::new(), out),
                Special::Quantity => {
                    put_bytes(out, 1, b"0");
                    Ok(())
                }
                Special::IntOrString => {
                    put_int_or_string(&Value::from(0), out);
                    Ok(())
                }
                Special::Duration => {
                    put_int(out, 1, 0);
                    Ok(())
                }
                _ => Ok(()),
            })?;
        }
    }
    Ok(())
}

/// `None` when the value does not fit the field.
fn put_field(field: &Field, value: &Value, out: &mut Vec<u8>) -> Option<Result<(), EncodeError>> {
    match field.shape {
        Shape::One => put_elem(field.elem, field.number, value, out),
        Shape::List => {
            for item in value.as_array()? {
                if let failed @ (None | Some(Err(_))) = put_elem(field.elem, field.number, item, out) {
                    return failed;
                }
            }
            Some(Ok(()))
        }
        Shape::Map => {
            for (key, value) in value.as_object()? {
                let mut fits = true;
                let result = put_nested(out, field.number, |out| {
                    put_bytes(out, 1, key.as_bytes());
                    put_elem(field.elem, 2, value, out).unwrap_or_else(|| {
                        fits = false;
                        Ok(())
                    })
                });
                if !fits || result.is_err() {
                    return fits.then_some(result);
                }
            }
            Some(Ok(()))
        }
    }
}

fn put_elem(elem: Elem, number: u32, value: &Value, out: &mut Vec<u8>) -> Option<Result<(), EncodeError>> {
    match elem {
        Elem::Bool => put_int(out, number, u64::from(value.as_bool()?)),
        // Signed numbers are extended to 64 bits, as protobuf's int32 is.
        Elem::Int32 | Elem::Int64 => put_int(out, number, value.as_i64()? as u64),
        Elem::Double => {
            put_tag(out, number, FIXED64);
            out.extend_from_slice(&value.as_f64()?.to_bits().to_le_bytes());
        }
        Elem::String => put_bytes(out, number, value.as_str()?.as_bytes()),
        Elem::Bytes => put_bytes(out, number, &STANDARD.decode(value.as_str()?).ok()?),
        Elem::Message(id) => return put_message(id.get(), number, value, out),
    }
    Some(Ok(()))
}

fn put_message(
    ty: &'static Type,
    number: u32,
    value: &Value,
    out: &mut Vec<u8>,
) -> Option<Result<(), EncodeError>> {
    if ty.special == Special::Struct {
        let object = value.as_object()?;
        return Some(put_nested(out, number, |out| put_fields(ty, object, out)));
    }
    let mut fits = true;
    let result = put_nested(out, number, |out| {
        put_special(ty, value, out).unwrap_or_else(|| {
            fits = false;
            Ok(())
        })
    });
    fits.then_some(result)
}

/// The inside of a message that JSON shows as one value.
fn put_special(ty: &'static Type, value: &Value, out: &mut Vec<u8>) -> Option<Result<(), EncodeError>> {
    match ty.special {
        Special::Struct => return Some(put_fields(ty, value.as_object()?, out)),
        Special::Quantity => put_bytes(out, 1, value.as_str()?.as_bytes()),
        Special::IntOrString => put_int_or_string(value, out),
        Special::Time | Special::MicroTime => {
            if value.is_null() {
                return Some(Ok(()));
            }
            let (seconds, nanos) = time::parse_rfc3339(value.as_str()?)?;
            put_int(out, 1, seconds as u64);
            let nanos = if ty.special == Special::Time { 0 } else { nanos };
            put_int(out, 2, nanos as u64);
        }
        Special::Duration => put_int(out, 1, time::parse_duration(value.as_str()?)? as u64),
        Special::RawJson => {
            if !value.is_null() {
                put_bytes(out, 1, value.to_string().as_bytes());
            }
        }
        Special::StringList => {
            for item in value.as_array()? {
                put_bytes(out, 1, item.as_str()?.as_bytes());
            }
        }
        Special::SchemaOrBool | Special::SchemaOrArray | Special::SchemaOrStrings => {
            return put_schema_or(ty, value, out);
        }
    }
    Some(Ok(()))
}

fn put_int_or_string(value: &Value, out: &mut Vec<u8>) {
    let (kind, number, text) = match value {
        Value::String(text) => (1, 0, text.as_str()),
        _ => (0, value.as_i64().unwrap_or(0), ""),
    };
    put_tag(out, 1, VARINT);
    put_varint(out, kind);
    put_int(out, 2, number as u64);
    put_bytes(out, 3, text.as_bytes());
}

fn put_schema_or(ty: &'static Type, value: &Value, out: &mut Vec<u8>) -> Option<Result<(), EncodeError>> {
    for index in &ty.wire_order {
        let field = &ty.fields[*index];
        match (field.shape, field.elem, value) {
            // Go keeps "allowed" beside a schema.
            (Shape::One, Elem::Bool, value) => {
                put_int(out, field.number, u64::from(value.as_bool().unwrap_or(true)))
            }
            (Shape::One, elem, Value::Object(_)) => {
                if let failed @ (None | Some(Err(_))) = put_elem(elem, field.number, value, out) {
                    return failed;
                }
            }
            (Shape::List, _, Value::Array(_)) => {
                if let failed @ (None | Some(Err(_))) = put_field(field, value, out) {
                    return failed;
                }
            }
            _ => {}
        }
    }
    Some(Ok(()))
}
