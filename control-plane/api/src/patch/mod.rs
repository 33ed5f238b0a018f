//! Patches of objects: JSON patch (RFC 6902), JSON merge patch (RFC 7386), strategic merge patch.
//!
//! Pure functions from an object and a patch to the new object, which the caller then brings into canonical
//! form ([`crate::schema::canonicalize`]) and validates. Errors are those that upstream's server answers: 400 for
//! what is no patch, 422 for one that does not apply. Server-side apply has its own merge ([`crate::apply`]).

mod duplicates;
mod json;
mod strategic;
#[cfg(test)]
mod tests;

pub use duplicates::duplicate_fields;

use serde_json::{Map, Value};

use crate::{Error, error::Reason, schema::Type};

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    StrategicMerge,
}

impl PatchType {
    /// Every type, with its content type.
    pub const ALL: [(Self, &'static str); 3] = [
        (Self::Json, "application/json-patch+json"),
        (Self::Merge, "application/merge-patch+json"),
        (Self::StrategicMerge, "application/strategic-merge-patch+json"),
    ];

    /// Reads a content type, parameters aside.
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        let media = content_type.split(';').next()?.trim();
        Self::ALL.iter().find(|(_, name)| media.eq_ignore_ascii_case(name)).map(|(patch_type, _)| *patch_type)
    }
}

/// Applies `patch` to `original`.
///
/// A strategic merge needs the type, for its lists' merge keys; kinds without one refuse it (415).
pub fn apply(
    patch_type: PatchType,
    original: &Value,
    patch: &[u8],
    ty: Option<&'static Type>,
) -> Result<Value, Error> {
    match patch_type {
        PatchType::Json => json::apply(original, patch),
        PatchType::Merge => {
            let patch = parse_object(patch)?;
            let mut merged = original.clone();
            merge(&mut merged, Value::Object(patch));
            Ok(merged)
        }
        PatchType::StrategicMerge => {
            let ty = ty.ok_or_else(|| {
                let accepted = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
                Error::new(
                    Reason::UnsupportedMediaType,
                    format!("the body of the request was in an unknown format - accepted media types include: {accepted}"),
                )
            })?;
            let patch = parse_object(patch)?;
            let original = original.as_object().cloned().unwrap_or_default();
            strategic::merge_object(original, patch, Some(ty)).map(Value::Object)
        }
    }
}

fn parse_object(patch: &[u8]) -> Result<Map<String, Value>, Error> {
    let refuse = |error: &dyn std::fmt::Display| Error::bad_request(format!("error decoding patch: {error}"));
    match serde_json::from_slice(patch) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(refuse(&"the patch is not an object")),
        Err(error) => Err(refuse(&error)),
    }
}

/// RFC 7386: objects are merged, null removes, everything else replaces.
pub fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, change) in patch {
        if change.is_null() {
            members.remove(&name);
        } else {
            merge(members.entry(name).or_insert(Value::Null), change);
        }
    }
}

/// The patch is well formed, but does not fit the object (422).
fn unprocessable(message: impl Into<String>) -> Error {
    Error::new(Reason::Invalid, message)
}
