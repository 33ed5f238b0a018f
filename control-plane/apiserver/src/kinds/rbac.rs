//! Roles and their bindings.

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    AGE, Hooks, NAME, NameRule, PLAIN,
    apps::age,
    meta, selector, text,
    value::{Fields, Path},
    wide,
};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(crate) static ROLE: Hooks = Hooks {
    validate_create: |role| rules(role, true),
    name: NameRule::PathSegment,
    create_on_update: true,
    ..PLAIN
};

pub(crate) static CLUSTER_ROLE: Hooks = Hooks {
    validate_create: |role| {
        let mut errors = rules(role, false);
        aggregation_rule(&mut errors, role);
        errors
    },
    ..ROLE
};

/// Both kinds of bindings.
pub(crate) static BINDING: Hooks = Hooks {
    default: |binding| {
        binding.ensure("roleRef").set_default("apiGroup", GROUP);
        for subject in binding.list_mut("subjects") {
            if matches!(subject.text("kind"), "User" | "Group") {
                subject.set_default("apiGroup", GROUP);
            }
        }
    },
    validate_create: validate_binding,
    validate_update: |new, old| {
        if new.at("roleRef") == old.at("roleRef") {
            return Vec::new();
        }
        vec![FieldError::invalid("roleRef", new.at("roleRef").clone(), "cannot change roleRef")]
    },
    columns: &[NAME, text("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")],
    cells: |binding, now| {
        let subjects = |kind: &str| {
            let all = binding.list("subjects").iter().filter(|subject| subject.text("kind") == kind);
            let names: Vec<String> = all
                .map(|subject| match (kind, subject.text("namespace")) {
                    ("ServiceAccount", namespace) => format!("{namespace}/{}", subject.text("name")),
                    _ => subject.text("name").to_owned(),
                })
                .collect();
            Value::from(names.join(", "))
        };
        let role = format!("{}/{}", binding.text("roleRef.kind"), binding.text("roleRef.name"));
        vec![
            binding.at("metadata.name").clone(),
            role.into(),
            age(binding, now),
            subjects("User"),
            subjects("Group"),
            subjects("ServiceAccount"),
        ]
    },
    ..ROLE
};

fn rules(role: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list = Path::Root("rules");
    for (index, rule) in role.list("rules").iter().enumerate() {
        let path = list.index(index);
        if rule.list("verbs").is_empty() {
            errors.push(FieldError::required(path.field("verbs"), "verbs must contain at least one value"));
        }
        if !rule.list("nonResourceURLs").is_empty() {
            let urls = rule.at("nonResourceURLs").clone();
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(path.field("nonResourceURLs"), urls.clone(), detail));
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(|field| !rule.list(field).is_empty()) {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(path.field("nonResourceURLs"), urls, detail));
            }
            continue;
        }
        if rule.list("apiGroups").is_empty() {
            let detail = "resource rules must supply at least one api group";
            errors.push(FieldError::required(path.field("apiGroups"), detail));
        }
        if rule.list("resources").is_empty() {
            let detail = "resource rules must supply at least one resource";
            errors.push(FieldError::required(path.field("resources"), detail));
        }
    }
    errors
}

fn aggregation_rule(errors: &mut Vec<FieldError>, role: &Value) {
    if !role.has("aggregationRule") {
        return;
    }
    let (rule, list) = (Path::Root("aggregationRule"), role.list("aggregationRule.clusterRoleSelectors"));
    let path = rule.field("clusterRoleSelectors");
    if list.is_empty() {
        let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errors.push(FieldError::required(path, detail));
    }
    for (index, labels) in list.iter().enumerate() {
        selector::validate(errors, &path.index(index), labels);
    }
}

fn validate_binding(binding: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let reference = binding.at("roleRef");
    let path = Path::Root("roleRef");
    if reference.text("apiGroup") != GROUP {
        let group = reference.text("apiGroup");
        errors.push(FieldError::not_supported(path.field("apiGroup"), group, &[GROUP]));
    }
    let in_namespace = !binding.text("metadata.namespace").is_empty();
    let kinds: &[&str] = if in_namespace { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&reference.text("kind")) {
        errors.push(FieldError::not_supported(path.field("kind"), reference.text("kind"), kinds));
    }
    let name = reference.text("name");
    if name.is_empty() {
        errors.push(FieldError::required(path.field("name"), ""));
    } else {
        meta::invalid_all(&mut errors, &path.field("name"), name, NameRule::PathSegment.check(name));
    }
    let list = Path::Root("subjects");
    for (index, subject) in binding.list("subjects").iter().enumerate() {
        let path = list.index(index);
        let name = subject.text("name");
        if name.is_empty() {
            errors.push(FieldError::required(path.field("name"), ""));
        }
        let group = subject.text("apiGroup");
        match subject.text("kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    meta::invalid_all(
                        &mut errors,
                        &path.field("name"),
                        name,
                        NameRule::Subdomain.check(name),
                    );
                }
                if !group.is_empty() {
                    errors.push(FieldError::not_supported(path.field("apiGroup"), group, &[""]));
                }
                // In a RoleBinding it is the binding's own where it is left out.
                if !in_namespace && subject.text("namespace").is_empty() {
                    errors.push(FieldError::required(path.field("namespace"), ""));
                }
            }
            kind @ ("User" | "Group") => {
                if name.is_empty() {
                    let detail = format!("{} name cannot be empty", kind.to_lowercase());
                    errors.push(FieldError::invalid(path.field("name"), "", detail));
                }
                if group != GROUP {
                    errors.push(FieldError::not_supported(path.field("apiGroup"), group, &[GROUP]));
                }
            }
            kind => {
                let known = ["ServiceAccount", "User", "Group"];
                errors.push(FieldError::not_supported(path.field("kind"), kind, &known));
            }
        }
    }
    errors
}
