//! One step of a field's path: its order, its text in `FieldsV1`, and its text in messages.
//!
//! The text in `FieldsV1` has a prefix for each sort: `f:` names a field or a map's key, `k:` an item of a list by
//! its keys, `v:` an item of a set by its value, `i:` an item by its position. Follows
//! `structured-merge-diff/fieldpath`.

use std::{cmp::Ordering, fmt};

use serde::Serialize;
use serde_json::{Map, Value};

/// One step from a value to a part of it.
#[derive(Clone, Debug)]
pub enum PathElement {
    /// A field of a struct, or a key of a map.
    Field(Box<str>),
    /// The item of a list whose keys have these values; sorted by name, never empty.
    Key(Box<[(Box<str>, Value)]>),
    /// The item of a set.
    Value(Value),
    /// The item at this position.
    Index(i64),
}

/// Text that is no path element.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no path element")]
pub(super) struct Malformed(String);

impl PathElement {
    pub(super) fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// Reads the text of `FieldsV1`; `None` for sorts that are not known, which a later version may know.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, Malformed> {
        let malformed = || Malformed(text.to_owned());
        let Some((sort, rest)) = text.split_once(':') else { return Err(malformed()) };
        match sort {
            "f" => Ok(Some(Self::field(rest))),
            "k" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).map_err(|_| malformed())?;
                if keys.is_empty() {
                    return Err(malformed());
                }
                let keys = keys.into_iter().map(|(name, value)| (name.into_boxed_str(), value));
                Ok(Some(Self::Key(keys.collect())))
            }
            "v" => serde_json::from_str(rest).map(|value| Some(Self::Value(value))).map_err(|_| malformed()),
            "i" => rest.parse().map(|index| Some(Self::Index(index))).map_err(|_| malformed()),
            _ => Ok(None),
        }
    }

    /// Appends the text of `FieldsV1`, as a JSON string.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Field(name) => write_field(name, out),
            _ => json(&self.to_string_v1(), out),
        }
    }

    fn to_string_v1(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => {
                let mut text = b"k:{".to_vec();
                for (at, (name, value)) in keys.iter().enumerate() {
                    if at > 0 {
                        text.push(b',');
                    }
                    json(name, &mut text);
                    text.push(b':');
                    json(value, &mut text);
                }
                text.push(b'}');
                String::from_utf8_lossy(&text).into_owned()
            }
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }
}

/// Appends the text of `FieldsV1` for a field's name or a map's key, as a JSON string.
pub(super) fn write_field(name: &str, out: &mut Vec<u8>) {
    if is_plain(name) {
        out.extend_from_slice(b"\"f:");
        out.extend_from_slice(name.as_bytes());
        out.push(b'"');
    } else {
        json(&format!("f:{name}"), out);
    }
}

/// Text that stands in JSON as it is.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\')
}

fn json(value: &(impl Serialize + ?Sized), out: &mut Vec<u8>) {
    value.serialize(&mut serde_json::Serializer::new(out)).expect("writing a value to memory does not fail");
}

/// As messages show it: `.replicas`, `[name="web"]`, `[="value"]`, `[3]`.
impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(keys) => {
                f.write_str("[")?;
                for (at, (name, value)) in keys.iter().enumerate() {
                    let comma = if at > 0 { "," } else { "" };
                    write!(f, "{comma}{name}={value}")?;
                }
                f.write_str("]")
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(one), Self::Field(two)) => one.cmp(two),
            (Self::Key(one), Self::Key(two)) => {
                let pairs = one.iter().zip(two.iter());
                let mut orders = pairs.map(|((a, x), (b, y))| a.cmp(b).then_with(|| compare_values(x, y)));
                orders.find(|order| order.is_ne()).unwrap_or_else(|| one.len().cmp(&two.len()))
            }
            (Self::Value(one), Self::Value(two)) => compare_values(one, two),
            (Self::Index(one), Self::Index(two)) => one.cmp(two),
            _ => self.sort().cmp(&other.sort()),
        }
    }
}

impl PathElement {
    /// Fields come first, then keys, values and positions.
    fn sort(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for PathElement {}

/// An order over all values: numbers by size, then strings, booleans, lists, objects, null.
fn compare_values(one: &Value, two: &Value) -> Ordering {
    match (one, two) {
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
        },
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let mut orders = a.iter().zip(b).map(|(x, y)| compare_values(x, y));
            orders.find(|order| order.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            let pairs = a.iter().zip(b);
            let mut orders = pairs.map(|((k, x), (l, y))| k.cmp(l).then_with(|| compare_values(x, y)));
            orders.find(|order| order.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        _ => rank(one).cmp(&rank(two)),
    }
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    }
}
