//! Namespaces: they end in two steps, and their contents hold them back.

use hawser_api::FieldError;
use serde_json::{Value, json};

use super::{
    AGE, Hooks, NAME, NameRule, PLAIN,
    apps::age,
    meta::{invalid_all, standard_finalizer},
    names::qualified_name,
    rules::words,
    text,
    value::{Fields, Path},
};

pub(crate) static NAMESPACE: Hooks = Hooks {
    default: |namespace| {
        let name = namespace.text("metadata.name").to_owned();
        if !name.is_empty() {
            namespace.ensure("metadata.labels").set("kubernetes.io/metadata.name", name);
        }
        namespace.ensure("status").set_default("phase", "Active");
    },
    prepare_create: |namespace| {
        namespace.set("status", json!({ "phase": "Active" }));
        let finalizers = namespace.ensure("spec");
        let known = finalizers.list("finalizers").iter().any(|name| name == "kubernetes");
        if !known {
            let mut all = finalizers.list("finalizers").to_vec();
            all.push("kubernetes".into());
            finalizers.set("finalizers", all);
        }
    },
    prepare_update: |new, old| {
        // Only the finalize subresource takes finalizers away.
        new.ensure("spec").copy_field("finalizers", old.at("spec"));
    },
    validate_create: |namespace| {
        let (mut errors, path) = (Vec::new(), Path::Root("spec.finalizers"));
        for name in words(namespace, "spec.finalizers") {
            invalid_all(&mut errors, &path, name, qualified_name(name));
            standard_finalizer(&mut errors, &path, name);
        }
        errors
    },
    validate_status: |new, _| {
        let (phase, when) = if new.has("metadata.deletionTimestamp") {
            ("Terminating", "not empty")
        } else {
            ("Active", "empty")
        };
        let own = new.text("status.phase");
        if own == phase {
            return Vec::new();
        }
        let detail = format!("may only be '{phase}' if `deletionTimestamp` is {when}");
        vec![FieldError::invalid("status.Phase", own, detail)]
    },
    on_deletion: |namespace| namespace.ensure("status").set("phase", "Terminating"),
    is_held_back: |namespace: &Value| !namespace.list("spec.finalizers").is_empty(),
    columns: &[NAME, text("Status"), AGE],
    cells: |namespace, now| {
        vec![namespace.at("metadata.name").clone(), namespace.at("status.phase").clone(), age(namespace, now)]
    },
    selectable: &[
        ("name", |namespace| namespace.text("metadata.name").to_owned()),
        ("status.phase", |namespace| namespace.text("status.phase").to_owned()),
    ],
    name: NameRule::Label,
    ..PLAIN
};
