//! Namespaces: they end in two steps, and their contents hold them back.

use serde_json::{Value, json};

use super::{AGE, Hooks, NAME, NameRule, PLAIN, apps::age, text, value::Fields};

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
