//! An object taken apart for a write: its tree, and the owners of its fields.
//!
//! As a part of the tree, owners would be most of its nodes, and be copied with it at every step of a write. They are
//! cut out of the JSON instead, and stay text where nobody has to look at them.

use std::fmt;

use bytes::Bytes;
use hawser_api::apply::ManagedFields;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::scan;

/// The tree without `managedFields`, and these. Owners that cannot be read are none.
pub(super) fn take_apart(json: &Bytes) -> (Value, ManagedFields) {
    let list = scan::managed_fields(json).map(|list| json.slice(list));
    let managed = list.and_then(|list| ManagedFields::stored(&list)).unwrap_or_default();
    (tree(json), managed)
}

/// The tree without `managedFields`.
pub(super) fn tree(json: &[u8]) -> Value {
    let mut source = serde_json::Deserializer::from_slice(json);
    // Checked when the object entered the cache.
    Level::Object.deserialize(&mut source).unwrap_or_default()
}

/// Where the reader is.
#[derive(Clone, Copy)]
enum Level {
    Object,
    Metadata,
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of the API")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            let value = match (self, name.as_str()) {
                (Self::Object, "metadata") => access.next_value_seed(Self::Metadata)?,
                (Self::Metadata, "managedFields") => {
                    access.next_value::<IgnoredAny>()?;
                    continue;
                }
                _ => access.next_value()?,
            };
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_objects_own_owners_are_taken_out() {
        let entry = r#"{"manager":"a","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:data":{}}}"#;
        let inner = r#""spec":{"metadata":{"managedFields":[1]}}"#;
        let text =
            |owners: &str| format!(r#"{{"metadata":{{"name":"x","managedFields":{owners}}},{inner}}}"#);
        let expected = serde_json::from_str::<Value>(&format!(r#"{{"metadata":{{"name":"x"}},{inner}}}"#));
        let expected = expected.expect("JSON");
        let (tree, managed) = take_apart(&text(&format!("[{entry}]")).into());
        assert_eq!((&tree, managed.entries().len()), (&expected, 1));
        let (tree, managed) = take_apart(&text(r#"[{"operation":"Delete"}]"#).into());
        assert_eq!((&tree, managed.is_empty()), (&expected, true), "what cannot be read");
    }
}
