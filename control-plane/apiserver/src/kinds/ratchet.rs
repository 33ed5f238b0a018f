//! What was wrong with an object before a change: an update is not refused for it.
//!
//! A rule that is newer than an object would otherwise keep its labels, finalizers and status as they are for ever. What
//! is let pass is narrow: the same error, about a part that the change left alone. Rules about the change itself, such
//! as that a field is immutable, are not asked here, or find nothing wrong with an object that stays what it is.
//! Upstream does so rule by rule.

use std::borrow::Cow;

use hawser_api::{FieldError, error::FieldErrorKind};
use serde_json::Value;

use super::value::Fields;

/// What `check` finds wrong with the new object, without what it found wrong with the old one already.
///
/// The old object is looked at only where the new one is refused.
pub(super) fn newly_wrong(
    new: &Value,
    old: &Value,
    check: impl Fn(&Value) -> Vec<FieldError>,
) -> Vec<FieldError> {
    let mut errors = check(new);
    if errors.is_empty() {
        return errors;
    }
    let before = check(old);
    // Of most objects nothing was wrong, and there may be many errors: each is looked up in the object below.
    if before.is_empty() {
        return errors;
    }
    let mut known: Vec<Complaint<'_>> = before.iter().map(|error| Complaint::of(error, old)).collect();
    // Each is let pass once, so that a change does not repeat a mistake.
    errors.retain(|error| {
        let complaint = Complaint::of(error, new);
        let same = known.iter().position(|known| *known == complaint);
        same.map(|index| known.swap_remove(index)).is_none()
    });
    errors
}

/// An error, with the part of the object that it is about.
#[derive(PartialEq)]
struct Complaint<'a> {
    kind: FieldErrorKind,
    field: &'a str,
    value: Option<&'a Value>,
    detail: &'a str,
    part: Cow<'a, Value>,
}

impl<'a> Complaint<'a> {
    fn of(error: &'a FieldError, object: &'a Value) -> Self {
        let (field, part) = match element(error, object) {
            Some((field, element)) => (field, Cow::Borrowed(element)),
            None => (error.field.as_str(), enclosing(object, &error.field)),
        };
        let FieldError { kind, value, detail, .. } = error;
        Self { kind: *kind, field, value: value.as_ref(), detail, part }
    }
}

/// The list or map, and the element of it that the error shows: others may come and go beside that one.
fn element<'a>(error: &'a FieldError, object: &'a Value) -> Option<(&'a str, &'a Value)> {
    let shown = error.value.as_ref()?;
    let field = match error.field.strip_suffix(']').and_then(|field| field.rsplit_once('[')) {
        Some((list, _)) if part(object, &error.field).0 == shown => list,
        _ => error.field.as_str(),
    };
    let is_there = match part(object, field).0 {
        Value::Array(all) => all.contains(shown),
        Value::Object(all) => {
            shown.as_str().is_some_and(|key| all.contains_key(key))
                || all.values().any(|value| value == shown)
        }
        _ => false,
    };
    is_there.then_some((field, shown))
}

/// What is at the path, or the smallest part around it that is there.
///
/// Around fields of the object itself that is all but metadata and status, which have other writers.
fn enclosing<'a>(object: &'a Value, path: &str) -> Cow<'a, Value> {
    let (found, is_root) = part(object, path);
    if !is_root {
        return Cow::Borrowed(found);
    }
    let mut own = object.clone();
    own.drop_field("metadata");
    own.drop_field("status");
    Cow::Owned(own)
}

/// The smallest part around the path that is there, and whether that is the object itself.
///
/// Paths are those of errors: `spec.ports[0].name`, `metadata.annotations[example.com/a]`.
fn part<'a>(object: &'a Value, path: &str) -> (&'a Value, bool) {
    let (mut found, mut is_root, mut rest) = (object, true, path);
    while !rest.is_empty() {
        let (step, left) = match rest.strip_prefix('[') {
            Some(bracket) => bracket.split_once(']').unwrap_or((bracket, "")),
            None => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
        };
        let next = match found {
            Value::Array(all) => step.parse().ok().and_then(|index: usize| all.get(index)),
            found => found.get(step),
        };
        let Some(next) = next else { break };
        (found, is_root, rest) = (next, false, left.strip_prefix('.').unwrap_or(left));
    }
    (found, is_root)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::{meta, value::Path};

    /// Refuses names that are too long, in a list and in its elements, a field that is missing, and labels.
    fn rules(object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let list = Path::Root("spec.names");
        for (index, name) in object.list("spec.names").iter().enumerate() {
            if name.as_str().is_some_and(|name| name.len() > 3) {
                errors.push(FieldError::invalid(list.index(index), name.clone(), "too long"));
            }
        }
        for (index, part) in object.list("spec.parts").iter().enumerate() {
            if !part.has("size") {
                errors.push(FieldError::required(format!("spec.parts[{index}].size"), ""));
            }
        }
        if !object.has("value") {
            errors.push(FieldError::required("value", ""));
        }
        meta::labels(&mut errors, &Path::Root("metadata.labels"), object.at("metadata.labels"));
        errors
    }

    #[track_caller]
    fn check(what: &str, old: Value, new: Value, expected: &[&str]) {
        let errors = newly_wrong(&new, &old, rules);
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, expected, "{what}");
    }

    #[test]
    fn what_was_wrong_before_and_is_left_alone_is_no_error() {
        let of = |spec: Value| json!({ "metadata": {}, "spec": spec, "value": 1 });
        let labelled = |labels: Value| json!({ "metadata": { "labels": labels }, "value": 1 });
        check("made wrong", of(json!({})), of(json!({ "names": ["long"] })), &["spec.names[0]"]);
        check("still wrong", of(json!({ "names": ["long"] })), of(json!({ "names": ["long"], "a": 1 })), &[]);
        check(
            "other",
            of(json!({ "names": ["long"] })),
            of(json!({ "names": ["wide"] })),
            &["spec.names[0]"],
        );
        check("moved", of(json!({ "names": ["a", "long"] })), of(json!({ "names": ["long"] })), &[]);
        check(
            "repeated",
            of(json!({ "names": ["long"] })),
            of(json!({ "names": ["long", "long"] })),
            &["spec.names[1]"],
        );
        check(
            "still missing",
            of(json!({ "parts": [{ "a": 1 }] })),
            of(json!({ "parts": [{ "a": 1 }], "b": 1 })),
            &[],
        );
        check(
            "missing in another part",
            of(json!({ "parts": [{ "a": 1 }] })),
            of(json!({ "parts": [{ "a": 2 }] })),
            &["spec.parts[0].size"],
        );
        check(
            "label beside a bad one",
            labelled(json!({ "a": "-" })),
            labelled(json!({ "a": "-", "b": "c" })),
            &[],
        );
        check(
            "one more bad label",
            labelled(json!({ "a": "-" })),
            labelled(json!({ "a": "-", "b": "-" })),
            &["metadata.labels"],
        );
        check(
            "missing in the object itself",
            json!({ "metadata": { "finalizers": ["a"] }, "status": {}, "spec": {} }),
            json!({ "metadata": {}, "status": { "phase": "Ready" }, "spec": {} }),
            &[],
        );
        check("missing in a changed object", json!({}), json!({ "spec": { "a": 1 } }), &["value"]);
    }

    #[test]
    fn paths_of_errors_are_found() {
        let object = json!({ "spec": { "list": [{ "a.b/c": 1 }], "map": { "x.y": { "z": 2 } } } });
        for (path, expected) in [
            ("spec.list[0][a.b/c]", json!(1)),
            ("spec.map[x.y].z", json!(2)),
            ("spec.list[1].name", object["spec"]["list"].clone()),
            ("spec.map[none]", object["spec"]["map"].clone()),
        ] {
            assert_eq!(part(&object, path), (&expected, false), "{path}");
        }
        assert_eq!(part(&object, "other"), (&object, true));
    }
}
