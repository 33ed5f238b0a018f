//! Validation of what all objects share: `metadata`.

use hawser_api::{FieldError, error::FieldErrorKind, kinds::Kind};
use serde_json::Value;

use super::{
    names::{NameRule, dns_label, label_value, qualified_name},
    value::{Fields, Path},
};

/// Keys and values of all annotations together.
const ANNOTATIONS_BYTES: usize = 256 * 1024;

/// Groups whose objects have no finalizers but upstream's own and such with a domain.
const KNOWS_FINALIZERS: [&str; 10] = [
    "",
    "apps",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "discovery.k8s.io",
    "networking.k8s.io",
    "rbac.authorization.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
];

const META: Path<'static> = Path::Root("metadata");

/// Rules for any object, new or changed.
pub(crate) fn validate(kind: &Kind, rule: NameRule, object: &Value) -> Vec<FieldError> {
    let meta = object.at("metadata");
    let mut errors = Vec::new();
    let prefix = meta.text("generateName");
    if !prefix.is_empty() {
        invalid_all(&mut errors, &META.field("generateName"), prefix, rule.check_prefix(prefix));
    }
    let name = meta.text("name");
    if name.is_empty() {
        errors.push(FieldError::required(META.field("name"), "name or generateName is required"));
    } else {
        invalid_all(&mut errors, &META.field("name"), name, rule.check(name));
    }
    let namespace = meta.text("namespace");
    if !kind.namespaced {
        if !namespace.is_empty() {
            errors.push(FieldError::forbidden(META.field("namespace"), "not allowed on this type"));
        }
    } else if namespace.is_empty() {
        errors.push(FieldError::required(META.field("namespace"), ""));
    } else {
        invalid_all(&mut errors, &META.field("namespace"), namespace, dns_label(namespace));
    }
    labels(&mut errors, &META.field("labels"), meta.at("labels"));
    annotations(&mut errors, &META.field("annotations"), meta.at("annotations"));
    owners(&mut errors, meta);
    finalizers(&mut errors, meta);
    if KNOWS_FINALIZERS.contains(&kind.group) {
        let path = META.field("finalizers");
        for (index, name) in meta.list("finalizers").iter().filter_map(Value::as_str).enumerate() {
            standard_finalizer(&mut errors, &path.index(index), name);
        }
    }
    errors
}

/// Refuses a name without a domain that is none of upstream's own.
pub(crate) fn standard_finalizer(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
        let detail = "name is neither a standard finalizer name nor is it fully qualified";
        errors.push(FieldError::invalid(path, name, detail));
    }
}

/// Rules about a change.
pub(crate) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (meta, before) = (new.at("metadata"), old.at("metadata"));
    let mut errors = Vec::new();
    for field in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        if meta.at(field) != before.at(field) {
            errors.push(FieldError::invalid(META.field(field), meta.at(field).clone(), "field is immutable"));
        }
    }
    if before.has("deletionTimestamp") {
        let added: Vec<Value> = meta
            .list("finalizers")
            .iter()
            .filter(|finalizer| !before.list("finalizers").contains(finalizer))
            .cloned()
            .collect();
        if !added.is_empty() {
            let names: Vec<String> = added.iter().map(|name| format!("{name}")).collect();
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                names.join(", ")
            );
            errors.push(FieldError::forbidden(META.field("finalizers"), detail));
        }
    }
    errors
}

/// One error for each thing that is wrong with `value`.
pub(crate) fn invalid_all(errors: &mut Vec<FieldError>, path: &Path<'_>, value: &str, wrong: Vec<String>) {
    errors.extend(wrong.into_iter().map(|detail| FieldError::invalid(path, value, detail)));
}

pub(crate) fn labels(errors: &mut Vec<FieldError>, path: &Path<'_>, labels: &Value) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        invalid_all(errors, path, key, qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        invalid_all(errors, path, value, label_value(value));
    }
}

pub(crate) fn annotations(errors: &mut Vec<FieldError>, path: &Path<'_>, annotations: &Value) {
    let mut bytes = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        invalid_all(errors, path, key, qualified_name(&key.to_lowercase()));
        bytes += key.len() + value.as_str().unwrap_or_default().len();
    }
    if bytes > ANNOTATIONS_BYTES {
        let detail = format!("may not be more than {ANNOTATIONS_BYTES} bytes");
        errors.push(FieldError::new(FieldErrorKind::TooLong, path, None, detail));
    }
}

fn owners(errors: &mut Vec<FieldError>, meta: &Value) {
    let path = META.field("ownerReferences");
    let mut controller: Option<&str> = None;
    for owner in meta.list("ownerReferences") {
        if owner.text("apiVersion").is_empty() {
            errors.push(FieldError::invalid(path.field("apiVersion"), "", "version must not be empty"));
        }
        for field in ["kind", "name", "uid"] {
            if owner.text(field).is_empty() {
                errors.push(FieldError::invalid(path.field(field), "", "must not be empty"));
            }
        }
        if owner.flag("controller") {
            if let Some(first) = controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and \
                     {}",
                    owner.text("name")
                );
                errors.push(FieldError::invalid(path, meta.at("ownerReferences").to_string(), detail));
            }
            controller = Some(owner.text("name"));
        }
    }
}

fn finalizers(errors: &mut Vec<FieldError>, meta: &Value) {
    let path = META.field("finalizers");
    let all = meta.list("finalizers");
    for name in all.iter().filter_map(Value::as_str) {
        invalid_all(errors, &path, name, qualified_name(name));
    }
    let has = |name: &str| all.iter().any(|finalizer| finalizer == name);
    if has("orphan") && has("foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(path, meta.at("finalizers").to_string(), detail));
    }
}
