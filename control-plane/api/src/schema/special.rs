//! Types whose JSON is not an object of fields: what they accept, their canonical form, their words for errors.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Number, Value};

use super::{Elem, Shape, Special, Type};
use crate::{quantity, time};

/// A scalar as it came in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scalar<'a> {
    Bool(bool),
    Int(i64),
    /// Above the range of `i64`.
    Big(u64),
    Float(f64),
    Text(&'a str),
}

/// Why a scalar does not fit.
pub(super) enum Misfit {
    /// Another JSON type is expected.
    Type,
    /// The right type, but not such a value; says what is wrong.
    Value(String),
}

impl Scalar<'_> {
    /// Go's word for it.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Big(_) | Self::Float(_) => "number",
            Self::Text(_) => "string",
        }
    }

    fn into_value(self) -> Value {
        match self {
            Self::Bool(value) => Value::Bool(value),
            Self::Int(value) => Value::from(value),
            Self::Big(value) => Value::from(value),
            Self::Float(value) => float(value),
            Self::Text(text) => Value::from(text),
        }
    }
}

/// A float as Go prints it: without a fraction where there is none.
pub(super) fn float(value: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and within 2^53")]
    if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 {
        return Value::from(value as i64);
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// The canonical form of a scalar in a place of type `elem`.
pub(super) fn canonical_scalar(scalar: Scalar<'_>, elem: Elem) -> Result<Value, Misfit> {
    match (elem, scalar) {
        (Elem::Bool, Scalar::Bool(value)) => Ok(Value::Bool(value)),
        (Elem::Int32, Scalar::Int(value)) if i32::try_from(value).is_ok() => Ok(Value::from(value)),
        (Elem::Int64, Scalar::Int(value)) => Ok(Value::from(value)),
        (Elem::Int32, Scalar::Int(value)) => Err(Misfit::Value(format!("number {value}"))),
        (Elem::Int32 | Elem::Int64, Scalar::Big(value)) => Err(Misfit::Value(format!("number {value}"))),
        (Elem::Int32 | Elem::Int64, Scalar::Float(value)) => Err(Misfit::Value(format!("number {value}"))),
        (Elem::Double, Scalar::Int(_) | Scalar::Big(_) | Scalar::Float(_)) => Ok(scalar.into_value()),
        (Elem::String, Scalar::Text(text)) => Ok(Value::from(text)),
        (Elem::Bytes, Scalar::Text(text)) => canonical_base64(text),
        (Elem::Message(id), _) => canonical_special(scalar, id.get()),
        _ => Err(Misfit::Type),
    }
}

fn canonical_base64(text: &str) -> Result<Value, Misfit> {
    // Go skips line breaks in base64.
    let text: std::borrow::Cow<'_, str> =
        if text.contains(['\r', '\n']) { text.replace(['\r', '\n'], "").into() } else { text.into() };
    match STANDARD.decode(text.as_bytes()) {
        Ok(_) => Ok(Value::from(text.into_owned())),
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) => at,
                _ => text.len(),
            };
            Err(Misfit::Value(format!("illegal base64 data at input byte {at}")))
        }
    }
}

fn canonical_special(scalar: Scalar<'_>, ty: &Type) -> Result<Value, Misfit> {
    match (ty.special, scalar) {
        (Special::Quantity, Scalar::Text(text)) => canonical_quantity(text.trim()),
        (Special::Quantity, Scalar::Int(value)) => canonical_quantity(&value.to_string()),
        (Special::Quantity, Scalar::Big(value)) => canonical_quantity(&value.to_string()),
        (Special::Quantity, Scalar::Float(value)) => canonical_quantity(&value.to_string()),
        (Special::IntOrString, Scalar::Text(text)) => Ok(Value::from(text)),
        (Special::IntOrString, Scalar::Int(value)) if i32::try_from(value).is_ok() => Ok(Value::from(value)),
        (Special::IntOrString, Scalar::Int(value)) => Err(Misfit::Value(format!("number {value}"))),
        (Special::Time | Special::MicroTime, Scalar::Text("")) => Ok(Value::Null),
        (Special::Time, Scalar::Text(text)) => canonical_time(text, time::canonical_time(text)),
        (Special::MicroTime, Scalar::Text(text)) => canonical_time(text, time::canonical_micro_time(text)),
        (Special::Duration, Scalar::Text(text)) => match time::parse_duration(text) {
            Some(ns) => Ok(Value::from(time::format_duration(ns))),
            None => Err(Misfit::Value(format!("time: invalid duration {text:?}"))),
        },
        (Special::RawJson, _) => Ok(scalar.into_value()),
        (Special::SchemaOrBool, Scalar::Bool(value)) => Ok(Value::Bool(value)),
        _ => Err(Misfit::Type),
    }
}

fn canonical_quantity(text: &str) -> Result<Value, Misfit> {
    quantity::canonical(text).map(Value::from).map_err(|error| Misfit::Value(error.to_string()))
}

fn canonical_time(text: &str, canonical: Option<String>) -> Result<Value, Misfit> {
    let canonical = canonical.ok_or_else(|| {
        Misfit::Value(format!(
            "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?}"
        ))
    })?;
    Ok(Value::from(canonical))
}

/// The name of a field's type in Go, for messages.
pub(super) fn go_type(shape: Shape, elem: Elem) -> String {
    let inner = match elem {
        Elem::Bool => "bool".to_owned(),
        Elem::Int32 => "int32".to_owned(),
        Elem::Int64 => "int64".to_owned(),
        Elem::Double => "float64".to_owned(),
        Elem::String => "string".to_owned(),
        Elem::Bytes => "[]uint8".to_owned(),
        Elem::Message(id) => {
            let ty = id.get();
            let package = ty.package().rsplit('.').next().unwrap_or_default();
            format!("{package}.{}", ty.kind())
        }
    };
    match shape {
        Shape::One => inner,
        Shape::List => format!("[]{inner}"),
        Shape::Map => format!("map[string]{inner}"),
    }
}
