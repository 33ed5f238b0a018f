//! Limits, quotas, priorities, disruption budgets, runtime classes.

mod limits;
mod quota;

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    AGE, Column, Hooks, NAME, PLAIN,
    apps::{age, int_or_percent, up_to_all},
    column,
    meta::{invalid_all, labels},
    names::dns_label,
    pod::{overhead, toleration},
    rules::{immutable, not_negative, one_of},
    selector, text,
    value::{Fields, Path},
};

/// Above it are the system's own classes.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

pub(crate) static LIMIT_RANGE: Hooks = Hooks {
    default: |object| {
        for limit in object.list_mut("spec.limits") {
            if limit.text("type") != "Container" {
                continue;
            }
            // What is left open follows: default from max, defaultRequest from default, then from min.
            for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
                for (name, amount) in limit.map(from).clone() {
                    if limit.at(to).get(&name).is_none() {
                        limit.ensure(to).set(&name, amount);
                    }
                }
            }
        }
    },
    validate_create: limits::validate,
    create_on_update: true,
    ..PLAIN
};

pub(crate) static RESOURCE_QUOTA: Hooks = Hooks {
    validate_create: quota::validate,
    validate_update: quota::update,
    validate_status: quota::status,
    columns: &[NAME, text("Request"), text("Limit"), AGE],
    cells: |object, now| {
        let line = |limits: bool| {
            let hard =
                object.map("status.hard").iter().filter(|(name, _)| name.starts_with("limits.") == limits);
            let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let used = |name: &str| object.at("status.used").get(name).map_or_else(|| "0".to_owned(), shown);
            let parts: Vec<String> =
                hard.map(|(name, most)| format!("{name}: {}/{}", used(name), shown(most))).collect();
            parts.join(", ")
        };
        vec![object.at("metadata.name").clone(), line(false).into(), line(true).into(), age(object, now)]
    },
    ..PLAIN
};

pub(crate) static PRIORITY_CLASS: Hooks = Hooks {
    default: |object| object.set_default("preemptionPolicy", "PreemptLowerPriority"),
    validate_create: |object| {
        let mut errors = Vec::new();
        let (name, value) = (object.text("metadata.name"), object.int("value").unwrap_or_default());
        let system = matches!(
            (name, value),
            ("system-node-critical", 2_000_001_000) | ("system-cluster-critical", 2_000_000_000)
        );
        if name.starts_with("system-") && !system {
            let detail = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a \
                 known system priority class"
            );
            errors.push(FieldError::forbidden("metadata.name", detail));
        }
        if !system && value > HIGHEST_USER_PRIORITY {
            let detail =
                format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
            errors.push(FieldError::forbidden("value", detail));
        }
        let policy = object.text("preemptionPolicy");
        let known = ["PreemptLowerPriority", "Never"];
        one_of(&mut errors, &Path::Root("preemptionPolicy"), policy, &known);
        errors
    },
    validate_update: |new, old| {
        let mut errors = Vec::new();
        if new.int("value") != old.int("value") {
            errors.push(FieldError::forbidden("value", "may not be changed in an update."));
        }
        let (policy, before) = (new.at("preemptionPolicy"), old.at("preemptionPolicy"));
        immutable(&mut errors, &Path::Root("preemptionPolicy"), policy, before);
        errors
    },
    columns: &[
        NAME,
        column("Value", "integer"),
        Column { name: "Global-Default", kind: "boolean", format: "", priority: 0 },
        AGE,
        text("PreemptionPolicy"),
    ],
    cells: |object, now| {
        vec![
            object.at("metadata.name").clone(),
            object.int("value").unwrap_or_default().into(),
            object.flag("globalDefault").into(),
            age(object, now),
            object.at("preemptionPolicy").clone(),
        ]
    },
    ..PLAIN
};

pub(crate) static DISRUPTION_BUDGET: Hooks = Hooks {
    validate_create: |object| {
        let mut errors = Vec::new();
        let spec = Path::Root("spec");
        if object.has("spec.minAvailable") && object.has("spec.maxUnavailable") {
            let detail = "minAvailable and maxUnavailable cannot be both set";
            errors.push(FieldError::invalid(spec, object.at("spec").clone(), detail));
        }
        for field in ["minAvailable", "maxUnavailable"] {
            int_or_percent(&mut errors, &spec.field(field), object.at("spec").at(field));
            up_to_all(&mut errors, &spec.field(field), object.at("spec").at(field));
        }
        selector::validate(&mut errors, &spec.field("selector"), object.at("spec.selector"));
        if object.has("spec.unhealthyPodEvictionPolicy") {
            let path = spec.field("unhealthyPodEvictionPolicy");
            let known = ["AlwaysAllow", "IfHealthyBudget"];
            one_of(&mut errors, &path, object.text("spec.unhealthyPodEvictionPolicy"), &known);
        }
        errors
    },
    validate_status: |new, _| {
        let mut errors = Vec::new();
        let path = Path::Root("status");
        for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            not_negative(&mut errors, &path.field(field), new.at("status").at(field));
        }
        errors
    },
    columns: &[
        NAME,
        text("Min Available"),
        text("Max Unavailable"),
        column("Allowed Disruptions", "integer"),
        AGE,
    ],
    cells: |object, now| {
        let shown = |field: &str| match object.at("spec").at(field) {
            Value::Null => "N/A".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        vec![
            object.at("metadata.name").clone(),
            shown("minAvailable").into(),
            shown("maxUnavailable").into(),
            object.int("status.disruptionsAllowed").unwrap_or_default().into(),
            age(object, now),
        ]
    },
    ..PLAIN
};

pub(crate) static RUNTIME_CLASS: Hooks = Hooks {
    validate_create: |object| {
        let (mut errors, handler) = (Vec::new(), object.text("handler"));
        invalid_all(&mut errors, &Path::Root("handler"), handler, dns_label(handler));
        if object.has("overhead") {
            overhead(&mut errors, &Path::Root("overhead"), object.at("overhead.podFixed"));
        }
        let path = Path::Root("scheduling");
        labels(&mut errors, &path.field("nodeSelector"), object.at("scheduling.nodeSelector"));
        let list = path.field("tolerations");
        for (index, one) in object.list("scheduling.tolerations").iter().enumerate() {
            toleration(&mut errors, &list.index(index), one);
        }
        errors
    },
    validate_update: |new, old| {
        let mut errors = Vec::new();
        immutable(&mut errors, &Path::Root("handler"), new.at("handler"), old.at("handler"));
        errors
    },
    columns: &[NAME, text("Handler"), AGE],
    cells: |object, now| {
        vec![object.at("metadata.name").clone(), object.at("handler").clone(), age(object, now)]
    },
    ..PLAIN
};

#[cfg(test)]
mod tests;
