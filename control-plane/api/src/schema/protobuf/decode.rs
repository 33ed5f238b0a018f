//! From protobuf to the server's values, in the same canonical form as from JSON.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::{
    DecodeError, MAX_DEPTH, MAX_OBJECTS,
    wire::{Payload, Reader},
};
use crate::{
    schema::{
        Elem, Field, Shape, Special, Type, TypeMeta, decode::is_dropped, fill, special::float,
        type_of_object, zero,
    },
    time,
};

/// Reads an envelope and the object in it; `kind` and `apiVersion` stand in both results.
pub fn decode(body: &[u8]) -> Result<(TypeMeta, Value), DecodeError> {
    let envelope = super::open(body)?;
    let meta = TypeMeta { api_version: envelope.api_version.to_owned(), kind: envelope.kind.to_owned() };
    let ty = type_of_object(&meta.api_version, &meta.kind);
    let ty = ty.ok_or_else(|| DecodeError::UnknownKind {
        api_version: meta.api_version.clone(),
        kind: meta.kind.clone(),
    })?;
    let mut object = decode_message(ty, envelope.raw)?;
    if let Value::Object(members) = &mut object
        && ty.has_type_meta
    {
        members.insert("apiVersion".to_owned(), Value::from(meta.api_version.as_str()));
        members.insert("kind".to_owned(), Value::from(meta.kind.as_str()));
    }
    Ok((meta, object))
}

/// Reads the message of an object, without envelope.
pub fn decode_message(ty: &'static Type, message: &[u8]) -> Result<Value, DecodeError> {
    Decoder { objects_left: MAX_OBJECTS }.object(ty, message, 0).map(Value::Object)
}

struct Decoder {
    objects_left: u32,
}

/// The field that is being read, for errors.
#[derive(Clone, Copy)]
struct At {
    message: &'static str,
    field: u32,
}

impl At {
    fn wire_type(self) -> DecodeError {
        DecodeError::WireType { message: self.message, field: self.field }
    }

    fn bytes<'a>(self, payload: Payload<'a>) -> Result<&'a [u8], DecodeError> {
        match payload {
            Payload::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wire_type()),
        }
    }

    fn text<'a>(self, payload: Payload<'a>) -> Result<&'a str, DecodeError> {
        let utf8 = |_| DecodeError::Utf8 { message: self.message, field: self.field };
        std::str::from_utf8(self.bytes(payload)?).map_err(utf8)
    }

    fn value(self, reason: impl ToString) -> DecodeError {
        DecodeError::Value { message: self.message, field: self.field, reason: reason.to_string() }
    }
}

impl Decoder {
    fn object(
        &mut self,
        ty: &'static Type,
        message: &[u8],
        depth: u32,
    ) -> Result<Map<String, Value>, DecodeError> {
        let mut object = Map::new();
        self.fields(ty, message, depth, &mut object)?;
        fill(ty, &mut object);
        Ok(object)
    }

    /// Reads fields into `object`; those of inlined messages land in the same one.
    fn fields(
        &mut self,
        ty: &'static Type,
        message: &[u8],
        depth: u32,
        object: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        if depth > MAX_DEPTH {
            return Err(DecodeError::Depth);
        }
        self.count()?;
        let mut reader = Reader::new(message);
        while let Some((number, payload)) = reader.next_field()? {
            // A newer client's field is dropped, as Go drops it.
            let Some(field) = ty.field_by_number(number) else { continue };
            let at = At { message: ty.name, field: number };
            if field.inline {
                let inner = field.elem.message().expect("only messages are inlined");
                self.fields(inner, at.bytes(payload)?, depth + 1, object)?;
                continue;
            }
            self.field(field, payload, at, depth, object)?;
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &Field,
        payload: Payload<'_>,
        at: At,
        depth: u32,
        object: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        match field.shape {
            Shape::One => {
                let value = self.elem(field.elem, payload, at, depth)?;
                if value.is_null() || is_dropped(field, &value) {
                    object.remove(field.json);
                } else {
                    object.insert(field.json.to_owned(), value);
                }
            }
            Shape::List => {
                let items = member(object, field.json, || Value::Array(Vec::new()));
                let Value::Array(items) = items else { return Err(at.wire_type()) };
                match (field.elem, payload) {
                    (Elem::Bool | Elem::Int32 | Elem::Int64, Payload::Bytes(packed)) => {
                        let mut packed = Reader::new(packed);
                        while !packed.is_empty() {
                            self.count()?;
                            items.push(scalar(field.elem, Payload::Varint(packed.varint()?), at)?);
                        }
                    }
                    _ => {
                        self.count()?;
                        items.push(self.elem(field.elem, payload, at, depth)?);
                    }
                }
            }
            Shape::Map => {
                self.count()?;
                let (key, value) = self.entry(field.elem, at.bytes(payload)?, at, depth)?;
                let map = member(object, field.json, || Value::Object(Map::new()));
                let Value::Object(map) = map else { return Err(at.wire_type()) };
                map.insert(key, value);
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        elem: Elem,
        entry: &[u8],
        at: At,
        depth: u32,
    ) -> Result<(String, Value), DecodeError> {
        let mut key = String::new();
        let mut value = None;
        let mut reader = Reader::new(entry);
        while let Some((number, payload)) = reader.next_field()? {
            match number {
                1 => key = at.text(payload)?.to_owned(),
                2 => value = Some(self.elem(elem, payload, at, depth)?),
                _ => {}
            }
        }
        Ok((key, value.unwrap_or_else(|| zero(elem))))
    }

    fn elem(&mut self, elem: Elem, payload: Payload<'_>, at: At, depth: u32) -> Result<Value, DecodeError> {
        let Elem::Message(id) = elem else { return scalar(elem, payload, at) };
        let ty = id.get();
        let message = at.bytes(payload)?;
        match ty.special {
            Special::Struct => self.object(ty, message, depth + 1).map(Value::Object),
            Special::StringList => self.strings(message, 1, at),
            Special::SchemaOrBool | Special::SchemaOrArray | Special::SchemaOrStrings => {
                self.schema_or(ty, message, at, depth + 1)
            }
            _ => simple(ty.special, message, at),
        }
    }

    fn strings(&mut self, message: &[u8], field: u32, at: At) -> Result<Value, DecodeError> {
        let mut items = Vec::new();
        let mut reader = Reader::new(message);
        while let Some((number, payload)) = reader.next_field()? {
            if number == field {
                self.count()?;
                items.push(Value::from(at.text(payload)?));
            }
        }
        Ok(Value::Array(items))
    }

    /// A schema in field 1 or 2, or what stands in its place.
    fn schema_or(
        &mut self,
        ty: &'static Type,
        message: &[u8],
        at: At,
        depth: u32,
    ) -> Result<Value, DecodeError> {
        let mut schema = None;
        let mut allows = false;
        let mut schemas = Vec::new();
        let mut reader = Reader::new(message);
        while let Some((number, payload)) = reader.next_field()? {
            let Some(field) = ty.field_by_number(number) else { continue };
            match (field.shape, field.elem) {
                (Shape::One, Elem::Bool) => allows = matches!(payload, Payload::Varint(value) if value != 0),
                (Shape::One, Elem::Message(id)) => {
                    schema = Some(Value::Object(self.object(id.get(), at.bytes(payload)?, depth)?));
                }
                (Shape::List, Elem::Message(id)) => {
                    schemas.push(Value::Object(self.object(id.get(), at.bytes(payload)?, depth)?));
                }
                _ => schemas.push(Value::from(at.text(payload)?)),
            }
        }
        Ok(match (schema, ty.special) {
            (Some(schema), _) => schema,
            (None, Special::SchemaOrBool) => Value::Bool(allows),
            (None, _) if schemas.is_empty() => Value::Null,
            (None, _) => Value::Array(schemas),
        })
    }

    fn count(&mut self) -> Result<(), DecodeError> {
        self.objects_left = self.objects_left.checked_sub(1).ok_or(DecodeError::Size)?;
        Ok(())
    }
}

fn member<'m>(object: &'m mut Map<String, Value>, name: &str, empty: fn() -> Value) -> &'m mut Value {
    if !object.contains_key(name) {
        object.insert(name.to_owned(), empty());
    }
    object.get_mut(name).expect("it was just put there")
}

fn scalar(elem: Elem, payload: Payload<'_>, at: At) -> Result<Value, DecodeError> {
    match (elem, payload) {
        (Elem::Bool, Payload::Varint(value)) => Ok(Value::Bool(value != 0)),
        // Negative numbers take ten bytes; Go cuts what does not fit.
        (Elem::Int32, Payload::Varint(value)) => Ok(Value::from(value as i32)),
        (Elem::Int64, Payload::Varint(value)) => Ok(Value::from(value as i64)),
        (Elem::Double, Payload::Fixed64(bits)) => Ok(float(f64::from_bits(bits))),
        (Elem::String, payload) => Ok(Value::from(at.text(payload)?)),
        (Elem::Bytes, payload) => Ok(Value::from(STANDARD.encode(at.bytes(payload)?))),
        _ => Err(at.wire_type()),
    }
}

/// The types that JSON shows as one value; null where nothing is set.
fn simple(special: Special, message: &[u8], at: At) -> Result<Value, DecodeError> {
    let mut numbers = [0_u64; 4];
    let mut last = None;
    let mut reader = Reader::new(message);
    while let Some((number, payload)) = reader.next_field()? {
        match payload {
            Payload::Varint(value) if number < 4 => numbers[number as usize] = value,
            Payload::Bytes(_) => last = Some(payload),
            _ => {}
        }
    }
    match special {
        Special::Quantity => {
            let text = last.map_or(Ok("0"), |payload| at.text(payload))?;
            let text = if text.is_empty() { "0" } else { text };
            crate::quantity::canonical(text).map(Value::from).map_err(|error| at.value(error))
        }
        Special::IntOrString if numbers[1] == 0 => Ok(Value::from(numbers[2] as i32)),
        Special::IntOrString => Ok(Value::from(last.map_or(Ok(""), |payload| at.text(payload))?)),
        Special::Time | Special::MicroTime if message.is_empty() => Ok(Value::Null),
        Special::Time | Special::MicroTime => {
            let (seconds, nanos) = (numbers[1] as i64, numbers[2] as i32);
            let text = match special {
                Special::Time => time::format_seconds(seconds),
                _ => time::format_micros(seconds, nanos),
            };
            text.map(Value::from).ok_or_else(|| at.value("the time is out of range"))
        }
        Special::Duration => Ok(Value::from(time::format_duration(numbers[1] as i64))),
        _ => match last {
            Some(Payload::Bytes(raw)) if !raw.is_empty() => {
                serde_json::from_slice(raw).map_err(|error| at.value(error))
            }
            _ => Ok(Value::Null),
        },
    }
}
