//! The schema of every built-in type, and what it drives.
//!
//! One table ([`Type`], [`Field`]) serves all generic work on objects: reading bodies with field validation
//! ([`decode`]), the canonical form that is stored and shown ([`canonicalize`]), printing in upstream's
//! order ([`json`]), Kubernetes protobuf both ways ([`protobuf`]), strategic merge ([`crate::patch`]) and
//! OpenAPI. Inside the server an object is a `serde_json::Value`; Go's struct order exists only in print.
//!
//! Canonical form is what upstream's server prints, with one difference: where Go prints `null` (nil lists
//! without `omitempty`, zero times), the member is left out.

mod decode;
pub mod json;
pub mod protobuf;
mod special;
mod table;
#[cfg(test)]
pub(crate) mod testdata;
#[cfg(test)]
mod tests;

pub use decode::{
    Decoded, FieldValidation, Format, TypeMeta, canonicalize, decode, decode_applied, leading_type_meta,
    peek_type_meta,
};
pub use table::{
    Elem, Field, ListType, MapType, PatchStrategy, Shape, Special, Type, TypeId, type_named, type_of,
    type_of_object, types,
};

use serde_json::{Map, Value};

/// What an object holds of `ty` when nothing was set.
pub(crate) fn zero_struct(ty: &Type) -> Value {
    let mut object = Map::new();
    fill(ty, &mut object);
    Value::Object(object)
}

/// Adds what Go prints although nobody set it.
pub(crate) fn fill(ty: &Type, object: &mut Map<String, Value>) {
    for field in ty.unconditional_fields() {
        if !object.contains_key(field.json) {
            object.insert(field.json.to_owned(), zero(field.elem));
        }
    }
}

/// The zero value of one element, as it stands in a list or where nothing omits it.
pub(crate) fn zero(elem: Elem) -> Value {
    match elem {
        Elem::Bool => Value::Bool(false),
        Elem::Int32 | Elem::Int64 | Elem::Double => Value::from(0),
        Elem::String | Elem::Bytes => Value::from(""),
        Elem::Message(id) => match id.get().special {
            Special::Struct => zero_struct(id.get()),
            Special::Quantity => Value::from("0"),
            Special::IntOrString => Value::from(0),
            Special::Duration => Value::from("0s"),
            Special::StringList => Value::Array(Vec::new()),
            Special::SchemaOrBool => Value::Bool(false),
            Special::Time
            | Special::MicroTime
            | Special::RawJson
            | Special::SchemaOrArray
            | Special::SchemaOrStrings => Value::Null,
        },
    }
}

/// Whether `value` is what Go's `omitempty` leaves out; structs never are.
pub(crate) fn is_zero(value: &Value, elem: Elem) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => match elem.message().map(|ty| ty.special) {
            // A struct to Go, so it is printed.
            Some(Special::Quantity | Special::Duration | Special::IntOrString) => false,
            _ => text.is_empty(),
        },
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}
