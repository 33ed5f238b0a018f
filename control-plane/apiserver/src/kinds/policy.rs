//! Limits, quotas, priorities, disruption budgets, runtime classes.

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    AGE, Column, Hooks, NAME, PLAIN,
    apps::{age, int_or_percent},
    column,
    names::dns_label,
    quantity, selector, text,
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
    validate_create: |object| {
        let mut errors = Vec::new();
        let list = Path::Root("spec.limits");
        for (index, limit) in object.list("spec.limits").iter().enumerate() {
            let path = list.index(index);
            for (name, low) in limit.map("min") {
                let high = limit.at("max").get(name);
                if high.is_some_and(|high| quantity::parse(low) > quantity::parse(high)) {
                    let (low, high) =
                        (low.as_str().unwrap_or_default(), limit.at("max").text(name).to_owned());
                    let detail = format!("min value {low} is greater than max value {high}");
                    errors.push(FieldError::invalid(path.field("min").key(name), low, detail));
                }
            }
        }
        errors
    },
    ..PLAIN
};

pub(crate) static RESOURCE_QUOTA: Hooks = Hooks {
    validate_create: |object| {
        let mut errors = Vec::new();
        let path = Path::Root("spec.hard");
        for (name, amount) in object.map("spec.hard") {
            quantity::not_negative(&mut errors, &path.key(name), amount);
        }
        errors
    },
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
        if !matches!(policy, "PreemptLowerPriority" | "Never") {
            errors.push(FieldError::not_supported(
                "preemptionPolicy",
                policy,
                &["Never", "PreemptLowerPriority"],
            ));
        }
        errors
    },
    validate_update: |new, old| {
        let mut errors = Vec::new();
        if new.int("value") != old.int("value") {
            errors.push(FieldError::forbidden("value", "may not be changed in an update."));
        }
        if new.at("preemptionPolicy") != old.at("preemptionPolicy") {
            let policy = new.at("preemptionPolicy").clone();
            errors.push(FieldError::invalid("preemptionPolicy", policy, "field is immutable"));
        }
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
        }
        selector::validate(&mut errors, &spec.field("selector"), object.at("spec.selector"));
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
        let handler = object.text("handler");
        let wrong = dns_label(handler).into_iter();
        wrong.map(|detail| FieldError::invalid("handler", handler, detail)).collect()
    },
    validate_update: |new, old| {
        if new.at("handler") == old.at("handler") {
            return Vec::new();
        }
        vec![FieldError::invalid("handler", new.at("handler").clone(), "field is immutable")]
    },
    columns: &[NAME, text("Handler"), AGE],
    cells: |object, now| {
        vec![object.at("metadata.name").clone(), object.at("handler").clone(), age(object, now)]
    },
    ..PLAIN
};
