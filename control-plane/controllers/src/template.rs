//! Pod templates, compared and hashed by what they mean. Pure.
//!
//! A set or a revision belongs to the template that it carries, not to its name: the hash in the name only keeps pods
//! apart, so another way of hashing would change nothing for what exists.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

/// Fields of a template that say nothing when they are empty objects: its maps, and structs that are no pointers upstream.
const SAME_WHEN_EMPTY: [&str; 11] = [
    "annotations",
    "labels",
    "limits",
    "matchLabels",
    "metadata",
    "nodeSelector",
    "options",
    "overhead",
    "requests",
    "resources",
    "volumeAttributes",
];

/// The template as a value in which absent and empty are the same.
pub(crate) fn comparable(template: &PodTemplateSpec) -> Value {
    let mut value = serde_json::to_value(template).unwrap_or_default();
    prune(&mut value);
    value
}

/// Drops what means the same as absence: nulls, empty lists, and of the empty objects those that are maps or are
/// always there in upstream's types. Other empty objects say something: `emptyDir: {}`, `namespaceSelector: {}`.
pub(crate) fn prune(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(prune);
            fields.retain(|name, field| !is_hollow(name, field));
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

fn is_hollow(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty() && SAME_WHEN_EMPTY.contains(&name),
        _ => false,
    }
}

/// FNV-1a over a [`comparable`] template and the number of collisions seen, in the letters and digits that upstream
/// uses to avoid words. None seen is the same as no number: a status begins without one, and has it from the first write on.
pub(crate) fn hash(template: &Value, collisions: Option<i32>) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    feed(template.to_string().as_bytes());
    if let Some(collisions) = collisions.filter(|count| *count != 0) {
        feed(&collisions.to_le_bytes());
    }
    without_words(&hash.to_string())
}

/// A number's digits as letters and digits that make no words.
pub(crate) fn without_words(digits: &str) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    digits.bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}
