//! What a LimitRange may say: for each type of object least and most, defaults between them, and how far limits may be from
//! requests.

use std::collections::{BTreeSet, HashSet};

use hawser_api::{FieldError, quantity::Quantity};
use serde_json::Value;

use crate::kinds::{
    meta::invalid_all,
    names::qualified_name,
    quantity,
    resource_names::{self, can_be_overcommitted},
    value::{Fields, Path},
};

const TYPES: [&str; 3] = ["Container", "PersistentVolumeClaim", "Pod"];
const FIELDS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

pub(super) fn validate(range: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list = Path::Root("spec.limits");
    let mut types = HashSet::new();
    for (index, limit) in range.list("spec.limits").iter().enumerate() {
        let (path, kind) = (list.index(index), limit.text("type"));
        let of_type = path.field("type");
        let wrong = qualified_name(kind);
        if wrong.is_empty() && !kind.contains('/') && !TYPES.contains(&kind) {
            let detail = "must be a standard limit type or fully qualified";
            errors.push(FieldError::invalid(of_type, kind, detail));
        }
        invalid_all(&mut errors, &of_type, kind, wrong);
        if !types.insert(kind) {
            errors.push(FieldError::duplicate(of_type, kind));
        }
        one(&mut errors, &path, limit, kind);
    }
    errors
}

fn one(errors: &mut Vec<FieldError>, path: &Path<'_>, limit: &Value, kind: &str) {
    let mut names = BTreeSet::new();
    for field in FIELDS {
        let (path, amounts) = (path.field(field), limit.map(field));
        if kind == "Pod" && matches!(field, "default" | "defaultRequest") {
            if !amounts.is_empty() {
                errors.push(FieldError::forbidden(path, "may not be specified when `type` is 'Pod'"));
            }
            continue;
        }
        for name in amounts.keys() {
            if matches!(kind, "Pod" | "Container") {
                resource_names::of_container(errors, &path.key(name), name);
            } else {
                resource_names::any(errors, &path.key(name), name);
            }
            names.insert(name.as_str());
        }
    }
    let has_storage = |field: &str| limit.map(field).contains_key("storage");
    if kind == "PersistentVolumeClaim" && !has_storage("min") && !has_storage("max") {
        let detail = "either minimum or maximum storage value is required, but neither was provided";
        errors.push(FieldError::required(path.field("limits"), detail));
    }
    for name in names {
        amounts(errors, path, limit, kind, name);
    }
}

/// What is said of one resource fits together.
fn amounts(errors: &mut Vec<FieldError>, path: &Path<'_>, limit: &Value, kind: &str, name: &str) {
    let amount = |field: &str| limit.map(field).get(name).and_then(quantity::parse);
    let (least, most) = (amount("min"), amount("max"));
    let (default, request) = match kind {
        "Pod" => (None, None),
        _ => (amount("default"), amount("defaultRequest")),
    };
    let mut above = |field: &str, low: Option<Quantity>, high: Option<Quantity>, words: [&str; 2]| {
        if let (Some(low), Some(high)) = (low, high)
            && low > high
        {
            let detail = format!("{} value {low} is greater than {} value {high}", words[0], words[1]);
            let value = limit.map(field).get(name).cloned().unwrap_or_default();
            errors.push(FieldError::invalid(path.field(field).key(name), value, detail));
        }
    };
    above("min", least, most, ["min", "max"]);
    above("defaultRequest", least, request, ["min", "default request"]);
    above("defaultRequest", request, most, ["default request", "max"]);
    above("defaultRequest", request, default, ["default request", "default limit"]);
    above("default", least, default, ["min", "default"]);
    above("default", default, most, ["default", "max"]);
    if let Some(ratio) = amount("maxLimitRequestRatio") {
        let of = path.field("maxLimitRequestRatio");
        let value = ratio.to_string();
        if ratio < Quantity::from_milli(1000) {
            let detail = format!("ratio {ratio} is less than 1");
            errors.push(FieldError::invalid(of.key(name), value.as_str(), detail));
        }
        if let (Some(least), Some(most)) = (least, most) {
            let widest = most.milli_value() as f64 / least.milli_value() as f64;
            if ratio.milli_value() as f64 / 1000.0 > widest {
                let detail = format!("ratio {ratio} is greater than max/min = {widest:.6}");
                errors.push(FieldError::invalid(of.key(name), value, detail));
            }
        }
    }
    if let (Some(default), Some(request)) = (default, request)
        && default != request
        && !can_be_overcommitted(name)
    {
        let detail =
            format!("default value {default} must equal to defaultRequest value {request} in {name}");
        let of = path.field("defaultRequest");
        errors.push(FieldError::invalid(of.key(name), request.to_string(), detail));
    }
}
