//! What the server writes into `metadata`, whatever the kind.

use hawser_api::{Error, kinds::Kind};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{kinds, resources::Resource};

/// Longest base that leaves room for the random part in 63 characters.
const MAX_BASE: usize = 58;
/// Letters and digits that make no words and are not mistaken for each other.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `metadata`, made where the object has none.
pub(super) fn of(object: &mut Value) -> Result<&mut Map<String, Value>, Error> {
    let fields =
        object.as_object_mut().ok_or_else(|| Error::bad_request("the object is not a JSON object"))?;
    fields
        .entry("metadata")
        .or_insert_with(|| json!({}))
        .as_object_mut()
        .ok_or_else(|| Error::bad_request("metadata is not a JSON object"))
}

pub(super) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// Now, as `metav1.Time` has it: whole seconds.
pub(super) fn now() -> String {
    time(Timestamp::now())
}

pub(super) fn time(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

/// A name from `generateName`: its base and five random characters.
pub(super) fn generate_name(base: &str) -> String {
    let mut end = base.len().min(MAX_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &base[..end], random_suffix())
}

/// Five random characters, as generated names end in.
pub fn random_suffix() -> String {
    let random = uuid::Uuid::new_v4();
    random
        .as_bytes()
        .iter()
        .take(5)
        .map(|byte| ALPHABET[usize::from(*byte) % ALPHABET.len()] as char)
        .collect()
}

/// Puts the request's namespace into the object, or refuses one that names another.
pub(super) fn settle_namespace(
    resource: &Resource,
    object: &mut Value,
    namespace: &str,
) -> Result<(), Error> {
    let meta = of(object)?;
    let found = meta.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if resource.row.namespaced {
        if !found.is_empty() && found != namespace {
            return Err(Error::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        if namespace.is_empty() {
            return Err(Error::bad_request("an empty namespace may not be set during creation"));
        }
        meta.insert("namespace".to_owned(), namespace.into());
    } else if !found.is_empty() {
        return Err(Error::bad_request("namespace is not allowed on a cluster-scoped object"));
    }
    Ok(())
}

/// Fills in what a new object gets from the server, and drops what a client may not say of it.
pub(super) fn begin(object: &mut Value) -> Result<(), Error> {
    let meta = of(object)?;
    if meta
        .get("resourceVersion")
        .and_then(Value::as_str)
        .is_some_and(|version| !version.is_empty() && version != "0")
    {
        return Err(Error::bad_request("resourceVersion should not be set on objects to be created"));
    }
    for field in
        ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"]
    {
        meta.remove(field);
    }
    meta.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    meta.insert("creationTimestamp".to_owned(), now().into());
    Ok(())
}

/// True for an object on its way out.
pub(super) fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

pub(super) fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// True where nothing holds back an object on its way out: no finalizer of either sort, and no grace left.
pub(super) fn may_go(kind: &Kind, object: &Value) -> bool {
    is_deleting(object)
        && finalizers(object).next().is_none()
        && !kinds::is_held_back(kind, object)
        && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit_and_differ() {
        let long = "a".repeat(80);
        assert_eq!(generate_name(&long).len(), 63);
        let (one, two) = (generate_name("web-"), generate_name("web-"));
        assert!(one.starts_with("web-") && one.len() == 9 && one != two);
    }

    #[test]
    fn finalizers_and_grace_hold_an_object_back() {
        let kind = |plural| {
            let known =
                hawser_api::kinds::KINDS.iter().find(|kind| kind.group.is_empty() && kind.plural == plural);
            known.expect("a kind")
        };
        let may_go = |object: &Value, plural| may_go(kind(plural), object);
        let mut pod = json!({ "kind": "Pod", "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
        assert!(may_go(&pod, "pods"));
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        assert!(!may_go(&pod, "pods"));
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        pod["metadata"]["finalizers"] = json!(["a/b"]);
        assert!(!may_go(&pod, "pods"));
        let namespace = json!({
            "kind": "Namespace", "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "finalizers": ["kubernetes"] },
        });
        assert!(!may_go(&namespace, "namespaces"));
    }
}
