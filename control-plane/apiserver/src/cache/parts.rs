//! An object taken apart for a write: its tree, and the owners of its fields.
//!
//! One pass over the JSON. Owners become field sets at once; as a part of the tree they would be most of its nodes,
//! and be copied with it at every step of a write.

use std::fmt;

use hawser_api::apply::ManagedFields;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

/// The tree without `managedFields`, and these. Owners that cannot be read are none.
pub(super) fn take_apart(json: &[u8]) -> (Value, ManagedFields) {
    let mut managed = ManagedFields::default();
    let mut source = serde_json::Deserializer::from_slice(json);
    match (Level::Object { managed: &mut managed }).deserialize(&mut source) {
        Ok(tree) => (tree, managed),
        Err(_) => {
            let mut tree: Value = serde_json::from_slice(json).unwrap_or_default();
            if let Some(metadata) = tree.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
            (tree, ManagedFields::default())
        }
    }
}

/// Where the reader is.
enum Level<'a> {
    Object { managed: &'a mut ManagedFields },
    Metadata { managed: &'a mut ManagedFields },
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of the API")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            let value = match &mut self {
                Self::Object { managed } if name == "metadata" => {
                    access.next_value_seed(Level::Metadata { managed })?
                }
                Self::Metadata { managed } if name == "managedFields" => {
                    **managed = access.next_value()?;
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
        let (tree, managed) = take_apart(text(&format!("[{entry}]")).as_bytes());
        assert_eq!((&tree, managed.entries().len()), (&expected, 1));
        let (tree, managed) = take_apart(text(r#"[{"operation":"Delete"}]"#).as_bytes());
        assert_eq!((&tree, managed.is_empty()), (&expected, true), "what cannot be read");
    }
}
