//! What all kinds share around their hooks.

use hawser_api::{
    FieldError,
    apply::{Pattern, Reach},
    kinds::Kind,
};
use serde_json::{Map, Value, json};

use super::{Hooks, hooks, meta, ratchet::newly_wrong, value::Fields};

/// Fields of `metadata` that only the server writes.
const SERVERS: [&str; 3] = ["uid", "creationTimestamp", "generation"];

fn hooks_of(kind: &Kind) -> &'static Hooks {
    hooks(kind.group, kind.plural)
}

/// Fills in upstream's defaults. Applied to what clients send and to what the store holds; idempotent.
pub fn default(kind: &Kind, object: &mut Value) {
    (hooks_of(kind).default)(object);
}

/// Makes a client's object a new one: status as at birth, generation 1.
pub fn prepare_create(kind: &Kind, object: &mut Value) {
    let hooks = hooks_of(kind);
    if kind.has_status() && !hooks.status_at_create {
        object.drop_field("status");
    }
    (hooks.prepare_create)(object);
    if kind.has_generation {
        object.ensure("metadata").set("generation", 1);
    }
}

/// Keeps what an update may not touch: the status, and the server's metadata. Counts the generation.
pub fn prepare_update(kind: &Kind, new: &mut Value, old: &Value) {
    if kind.has_status() {
        new.copy_field("status", old);
    }
    keep_servers_metadata(new, old);
    (hooks_of(kind).prepare_update)(new, old);
    // Upstream counts a Deployment's annotations as desired too.
    let annotated =
        kind.plural == "deployments" && new.at("metadata.annotations") != old.at("metadata.annotations");
    if kind.has_generation && (annotated || !same_desire(new, old)) {
        let generation = old.int("metadata.generation").unwrap_or_default();
        new.ensure("metadata").set("generation", generation + 1);
    }
}

/// Keeps what a write of the status does not reach.
pub fn prepare_status(kind: &Kind, new: &mut Value, old: &Value) {
    keep(new, old, kept_with_status(kind));
}

/// The fields that a write of the status does not reach; all others are as its author has them.
///
/// So node agents label nodes and annotate pods with the status they report, a Deployment's revision is an annotation
/// that its controller writes, and a controller's status may take a finalizer away. Upstream's reset fields.
fn kept_with_status(kind: &Kind) -> &'static [Pattern<'static>] {
    match (kind.group, kind.plural) {
        ("", "pods") => &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]],
        ("apps", "deployments") => &[&["spec"], &["metadata", "labels"]],
        ("certificates.k8s.io", "podcertificaterequests") | ("networking.k8s.io", "servicecidrs") => {
            &[&["spec"], &["metadata"]]
        }
        (
            "" | "apps" | "autoscaling" | "batch" | "certificates.k8s.io" | "networking.k8s.io" | "policy",
            _,
        ) => &[&["spec"]],
        _ => &[&["spec"], &["metadata"]],
    }
}

/// The fields that a write of the status reaches.
pub fn reach_of_status(kind: &Kind) -> Reach<'static> {
    Reach::AllBut(kept_with_status(kind))
}

/// What the `finalize` subresource of namespaces does not reach.
const KEPT_WITH_FINALIZE: &[Pattern<'static>] = &[&["status"]];

/// The fields that a write of `finalize` reaches.
pub const REACH_OF_FINALIZE: Reach<'static> = Reach::AllBut(KEPT_WITH_FINALIZE);

/// The `finalize` subresource of namespaces: `spec.finalizers`, which no other write changes.
pub fn prepare_finalize(new: &mut Value, old: &Value) {
    keep(new, old, KEPT_WITH_FINALIZE);
    if new.list("spec.finalizers").is_empty() {
        new.ensure("spec").drop_field("finalizers");
    }
}

/// What the `approval` subresource of CertificateSigningRequests does not reach.
const KEPT_WITH_APPROVAL: &[Pattern<'static>] = &[&["spec"], &["status", "certificate"]];

/// The fields that a write of `approval` reaches.
pub const REACH_OF_APPROVAL: Reach<'static> = Reach::AllBut(KEPT_WITH_APPROVAL);

/// The `approval` subresource: the conditions, and metadata as its author has them.
pub fn prepare_approval(new: &mut Value, old: &Value) {
    keep(new, old, KEPT_WITH_APPROVAL);
}

/// Makes the fields what they were, and the server's metadata.
fn keep(new: &mut Value, old: &Value, kept: &[Pattern<'_>]) {
    // Which object is meant: a name or uid that is not its own is the client's mistake, and validation tells.
    let meant = ["name", "namespace", "uid"].map(|field| (field, new.at("metadata").at(field).clone()));
    // Of the write, not of the object.
    let written = ["resourceVersion", "managedFields"].map(|field| new.ensure("metadata").drop_field(field));
    kept.iter().for_each(|path| keep_field(new, old, path));
    let metadata = new.ensure("metadata");
    for (field, value) in meant {
        if value.is_null() {
            metadata.copy_field(field, old.at("metadata"));
        } else {
            metadata.set(field, value);
        }
    }
    for (field, value) in ["resourceVersion", "managedFields"].into_iter().zip(written) {
        metadata.drop_field(field);
        value.into_iter().for_each(|value| metadata.set(field, value));
    }
    keep_servers_metadata(new, old);
}

fn keep_field(new: &mut Value, old: &Value, path: Pattern<'_>) {
    match path {
        [] => {}
        [field] => new.copy_field(field, old),
        [parent, path @ ..] => keep_field(new.ensure(parent), old.at(parent), path),
    }
}

pub fn validate_create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let hooks = hooks_of(kind);
    let mut errors = meta::validate(kind, hooks.name, object);
    errors.extend((hooks.validate_create)(object));
    errors.extend((hooks.validate_new)(object));
    errors
}

/// Rules for the new object, and rules about the change. What was wrong before and stays as it is is let pass.
pub fn validate_update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    validate_change(kind, new, old, hooks_of(kind).validate_update)
}

/// Rules for the new object, and `rules` about the change. What was wrong before and stays as it is is let pass.
pub(crate) fn validate_change(
    kind: &Kind,
    new: &Value,
    old: &Value,
    rules: fn(&Value, &Value) -> Vec<FieldError>,
) -> Vec<FieldError> {
    let hooks = hooks_of(kind);
    let mut errors = newly_wrong(new, old, |object| meta::validate(kind, hooks.name, object));
    errors.extend(meta::validate_update(new, old));
    errors.extend(newly_wrong(new, old, hooks.validate_create));
    errors.extend(rules(new, old));
    errors
}

/// Rules about a change of the status.
pub fn validate_status(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let hooks = hooks_of(kind);
    let mut errors = newly_wrong(new, old, |object| meta::validate(kind, hooks.name, object));
    errors.extend(meta::validate_update(new, old));
    errors.extend(newly_wrong(new, old, |object| (hooks.validate_status)(object, old)));
    errors
}

/// Whether a replacement must say which version it replaces (upstream: no `AllowUnconditionalUpdate`).
pub fn needs_version(kind: &Kind) -> bool {
    match kind.group {
        "admissionregistration.k8s.io"
        | "apiextensions.k8s.io"
        | "apiregistration.k8s.io"
        | "coordination.k8s.io"
        | "node.k8s.io"
        | "policy" => true,
        "certificates.k8s.io" => kind.plural == "podcertificaterequests",
        "storage.k8s.io" => {
            matches!(kind.plural, "csidrivers" | "csinodes" | "csistoragecapacities" | "volumeattachments")
        }
        _ => false,
    }
}

/// Whether dependents outlive a deletion that does not say what becomes of them, as in the first versions of the API.
pub fn orphans_by_default(kind: &Kind) -> bool {
    matches!((kind.group, kind.plural), ("", "replicationcontrollers") | ("batch", "jobs"))
}

/// Seconds that the object has left when its deletion is asked for; 0 means it goes at once.
pub fn deletion_grace_seconds(kind: &Kind, object: &Value, requested: Option<i64>) -> i64 {
    hooks_of(kind).deletion_grace.map_or(0, |grace| grace(object, requested))
}

/// Shows that the deletion has begun.
pub fn on_deletion(kind: &Kind, object: &mut Value) {
    (hooks_of(kind).on_deletion)(object);
}

/// Whether something other than `metadata.finalizers` keeps a deleted object.
pub fn is_held_back(kind: &Kind, object: &Value) -> bool {
    (hooks_of(kind).is_held_back)(object)
}

/// The object as `autoscaling/v1` Scale; `None` for kinds without one.
pub fn scale_of(kind: &Kind, object: &Value) -> Option<Value> {
    let paths = hooks_of(kind).scale?;
    let meta = object.at("metadata");
    let mut scale_meta = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if meta.has(field) {
            scale_meta.insert(field.to_owned(), meta.at(field).clone());
        }
    }
    let mut status = json!({ "replicas": object.int(paths.status_replicas).unwrap_or_default() });
    let selector = (paths.selector)(object);
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    let mut spec = Map::new();
    let replicas = object.int(paths.spec_replicas).unwrap_or_default();
    if replicas != 0 {
        spec.insert("replicas".to_owned(), replicas.into());
    }
    Some(json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": scale_meta, "spec": spec, "status": status,
    }))
}

/// The object with the replicas that a Scale asks for, or what is wrong with the Scale.
pub fn scaled(kind: &Kind, object: &Value, scale: &Value) -> Result<Value, Vec<FieldError>> {
    let Some(paths) = hooks_of(kind).scale else {
        return Ok(object.clone());
    };
    let replicas = scale.int("spec.replicas").unwrap_or_default();
    if replicas < 0 {
        return Err(vec![FieldError::invalid(
            "spec.replicas",
            replicas,
            "must be greater than or equal to 0",
        )]);
    }
    let mut scaled = object.clone();
    let (parent, field) = paths.spec_replicas.rsplit_once('.').unwrap_or(("", paths.spec_replicas));
    scaled.ensure(parent).set(field, replicas);
    // Without a version it is to be whatever the object has become meanwhile.
    scaled.ensure("metadata").copy_field("resourceVersion", scale.at("metadata"));
    Ok(scaled)
}

fn keep_servers_metadata(new: &mut Value, old: &Value) {
    let before = old.at("metadata");
    let meta = new.ensure("metadata");
    for field in SERVERS {
        // A client that names another uid means another object; validation says so.
        if field != "uid" || !meta.has("uid") {
            meta.copy_field(field, before);
        }
    }
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        if before.has(field) {
            meta.copy_field(field, before);
        }
    }
}

/// Whether two versions differ in nothing but metadata and status.
fn same_desire(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else {
        return new == old;
    };
    let apart = |name: &str| matches!(name, "metadata" | "status" | "kind" | "apiVersion");
    let desired = |object: &Map<String, Value>| object.keys().filter(|name| !apart(name)).count();
    desired(new) == desired(old)
        && new.iter().all(|(name, value)| apart(name) || old.get(name) == Some(value))
}
