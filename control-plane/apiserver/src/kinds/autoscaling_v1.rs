//! `autoscaling/v1` of HorizontalPodAutoscalers: the older view of the same objects.
//!
//! v1 knows one target, the utilization of CPUs. What else an object says travels in annotations, under upstream's names
//! and in its forms (`pkg/apis/autoscaling/v1/conversion.go`), so that a client that writes back what it read loses
//! nothing. They exist in this view only: stored objects do not have them.

use hawser_api::schema::{self, FieldValidation};
use serde_json::{Map, Value, json};

use super::value::Fields;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// Kinds of metrics: the member that holds one, and whether it names its metric in an object of its own.
const SOURCES: [(&str, bool); 5] =
    [("object", true), ("pods", true), ("resource", false), ("containerResource", false), ("external", true)];

/// What a target or a current value may hold.
const VALUES: [&str; 3] = ["value", "averageValue", "averageUtilization"];

/// Turns a stored object into one of v1.
pub(crate) fn from_v2(object: &mut Value) {
    object.set("apiVersion", "autoscaling/v1");
    let mut notes: Vec<(&str, Value)> = Vec::new();
    if let Some(spec) = object.part_mut("spec") {
        let metrics = taken(spec, "metrics");
        let (cpu, others): (Vec<Value>, Vec<Value>) =
            metrics.into_iter().partition(|metric| cpu_share(metric, "target").is_some());
        if let Some(share) = cpu.first().and_then(|metric| cpu_share(metric, "target")) {
            spec.set("targetCPUUtilizationPercentage", share);
        }
        // v1 has room for one target of CPUs; a second one is not lost either.
        let rest: Vec<Value> = others.iter().chain(cpu.iter().skip(1)).map(older).collect();
        notes.extend((!rest.is_empty()).then(|| (METRICS, rest.into())));
        notes.extend(spec.drop_field("behavior").map(|behavior| (BEHAVIOR, recased(&behavior, capital))));
    }
    if let Some(status) = object.part_mut("status") {
        let current = taken(status, "currentMetrics");
        if let Some(share) = current.iter().find_map(|metric| cpu_share(metric, "current")) {
            status.set("currentCPUUtilizationPercentage", share);
        }
        let current: Vec<Value> = current.iter().map(older).collect();
        notes.extend((!current.is_empty()).then(|| (CURRENT_METRICS, current.into())));
        let conditions = taken(status, "conditions");
        notes.extend((!conditions.is_empty()).then(|| (CONDITIONS, conditions.into())));
    }
    drop_notes(object);
    for (key, value) in notes {
        object.ensure("metadata").ensure("annotations").set(key, value.to_string());
    }
}

/// Turns an object of v1 into a stored one. Annotations that cannot be read count as absent.
pub(crate) fn to_v2(object: &mut Value) {
    object.set("apiVersion", "autoscaling/v2");
    let note = |key: &str| -> Option<Value> {
        let text = object.map("metadata.annotations").get(key)?.as_str()?;
        serde_json::from_str(text).ok()
    };
    let list = |key: &str, kind: &str, change: fn(&Value) -> Value| -> Vec<Value> {
        let Some(Value::Array(items)) = note(key) else { return Vec::new() };
        let items: Vec<Value> = items.iter().map(change).collect();
        if items.iter().all(|item| fits(kind, item)) { items } else { Vec::new() }
    };
    let metrics = list(METRICS, "MetricSpec", |metric| newer(metric, "target"));
    let current = list(CURRENT_METRICS, "MetricStatus", |metric| newer(metric, "current"));
    let conditions = list(CONDITIONS, "HorizontalPodAutoscalerCondition", Value::clone);
    let behavior = note(BEHAVIOR).map(|behavior| recased(&behavior, lower));
    let behavior = behavior.filter(|behavior| fits("HorizontalPodAutoscalerBehavior", behavior));
    drop_notes(object);
    if let Some(spec) = object.part_mut("spec") {
        let share = spec.drop_field("targetCPUUtilizationPercentage").filter(|share| !share.is_null());
        let cpu = share.map(|share| {
            let target = json!({ "type": "Utilization", "averageUtilization": share });
            json!({ "type": "Resource", "resource": { "name": "cpu", "target": target } })
        });
        let metrics: Vec<Value> = cpu.into_iter().chain(metrics).collect();
        if !metrics.is_empty() {
            spec.set("metrics", metrics);
        }
        if let Some(behavior) = behavior {
            spec.set("behavior", behavior);
        }
    }
    if !current.is_empty() || !conditions.is_empty() {
        object.ensure("status");
    }
    if let Some(status) = object.part_mut("status") {
        let share = status.drop_field("currentCPUUtilizationPercentage").filter(|share| !share.is_null());
        if !current.is_empty() {
            status.set("currentMetrics", current);
        } else if let Some(share) = share {
            let now = json!({ "averageUtilization": share });
            status.set(
                "currentMetrics",
                json!([{ "type": "Resource", "resource": { "name": "cpu", "current": now } }]),
            );
        }
        if !conditions.is_empty() {
            status.set("conditions", conditions);
        }
    }
}

/// Whether a value is of that type of v2: an annotation may hold anything.
fn fits(kind: &str, value: &Value) -> bool {
    let ty = schema::type_named(&format!("k8s.io.api.autoscaling.v2.{kind}"));
    ty.is_some_and(|ty| schema::canonicalize(ty, value, FieldValidation::Ignore).is_ok())
}

fn drop_notes(object: &mut Value) {
    let Some(Value::Object(annotations)) = object.part_mut("metadata.annotations") else {
        return;
    };
    for key in [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR] {
        annotations.remove(key);
    }
    if annotations.is_empty() {
        object.ensure("metadata").drop_field("annotations");
    }
}

/// Takes a list out of an object; empty where it is absent.
fn taken(object: &mut Value, field: &str) -> Vec<Value> {
    match object.drop_field(field) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

/// The share of CPUs that a metric of v2 aims for, or shows.
fn cpu_share(metric: &Value, part: &str) -> Option<Value> {
    let resource = metric.at("resource");
    let share = resource.at(part).at("averageUtilization");
    (resource.text("name") == "cpu" && share.is_i64()).then(|| share.clone())
}

/// A metric of v2, with its target or current value, in the words of v1.
fn older(metric: &Value) -> Value {
    let mut flat = metric.clone();
    for (source, names_metric) in SOURCES {
        let Some(part) = flat.part_mut(source) else { continue };
        let (place, values) = match part.drop_field("target") {
            Some(values) => ("target", values),
            None => ("current", part.drop_field("current").unwrap_or_default()),
        };
        if names_metric {
            let named = part.drop_field("metric").unwrap_or_default();
            part.set("metricName", named.text("name"));
            if named.has("selector") {
                part.set(selector_name(source), named.at("selector").clone());
            }
        }
        if let Some(described) = part.drop_field("describedObject") {
            part.set("target", described);
        }
        for field in VALUES {
            if values.has(field) {
                part.set(&value_name(source, place, field), values.at(field).clone());
            }
        }
    }
    flat
}

/// A metric of v1 in the words of v2; `place` is `target` or `current`.
fn newer(metric: &Value, place: &str) -> Value {
    let mut deep = metric.clone();
    for (source, names_metric) in SOURCES {
        let Some(part) = deep.part_mut(source) else { continue };
        if names_metric {
            let mut named = Map::new();
            named.insert("name".to_owned(), part.text("metricName").into());
            part.drop_field("metricName");
            let selector = part.drop_field(selector_name(source)).filter(|selector| !selector.is_null());
            named.extend(selector.map(|selector| ("selector".to_owned(), selector)));
            part.set("metric", named);
        }
        if source == "object"
            && let Some(described) = part.drop_field("target")
        {
            part.set("describedObject", described);
        }
        let mut values = Map::new();
        for field in VALUES {
            let value = part.drop_field(&value_name(source, place, field)).filter(|value| !value.is_null());
            values.extend(value.map(|value| (field.to_owned(), value)));
        }
        let averages = values.contains_key("averageValue");
        if source == "object" && averages && place == "target" {
            // v1 cannot leave it out.
            values.remove("value");
        }
        if place == "target" {
            let kind = match source {
                _ if values.contains_key("averageUtilization") => "Utilization",
                "object" | "external" if !averages => "Value",
                _ => "AverageValue",
            };
            values.insert("type".to_owned(), kind.into());
        }
        part.set(place, values);
    }
    deep
}

fn selector_name(source: &str) -> &'static str {
    if source == "external" { "metricSelector" } else { "selector" }
}

/// `targetAverageValue`: how v1 names a value of a metric's target, or of what is current.
fn value_name(source: &str, place: &str, field: &str) -> String {
    match (source, field) {
        ("object", "averageValue") => field.to_owned(),
        _ => format!("{place}{}", capital(field)),
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

fn lower(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(chars).collect()
}

/// The same tree with other member names: upstream writes this annotation with the names of Go.
fn recased(value: &Value, rename: fn(&str) -> String) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.iter().filter(|(_, value)| !value.is_null());
            kept.map(|(name, value)| (rename(name), recased(value, rename))).collect()
        }
        Value::Array(items) => items.iter().map(|item| recased(item, rename)).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;
