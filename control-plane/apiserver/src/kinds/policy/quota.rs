//! What a ResourceQuota may limit, and of which objects.

use std::collections::{BTreeSet, HashSet};

use hawser_api::FieldError;
use serde_json::Value;

use crate::kinds::{
    resource_names,
    rules::words,
    value::{Fields, Path},
};

const SPEC: Path<'static> = Path::Root("spec");
const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];
/// Scopes that no object is in both of.
const OPPOSITES: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];
const OF_PODS: [&str; 7] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "pods", "requests.cpu", "requests.memory"];

pub(super) fn validate(quota: &Value) -> Vec<FieldError> {
    let (mut errors, spec) = (Vec::new(), quota.at("spec"));
    amounts(&mut errors, &SPEC.field("hard"), spec.at("hard"));
    scopes(&mut errors, spec);
    if spec.has("scopeSelector") {
        selector(&mut errors, spec);
    }
    errors
}

/// Which objects are meant stands.
pub(super) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let of = |quota: &Value| BTreeSet::from_iter(words(quota, "spec.scopes").into_iter().map(str::to_owned));
    if of(new) == of(old) {
        return Vec::new();
    }
    let scopes = new.at("spec.scopes").clone();
    vec![FieldError::invalid(SPEC.field("scopes"), scopes, "field is immutable")]
}

pub(super) fn status(new: &Value, _old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::Root("status");
    for field in ["hard", "used"] {
        amounts(&mut errors, &path.field(field), new.at("status").at(field));
    }
    errors
}

fn amounts(errors: &mut Vec<FieldError>, path: &Path<'_>, amounts: &Value) {
    for (name, amount) in amounts.as_object().into_iter().flatten() {
        resource_names::of_quota(errors, &path.key(name), name);
        resource_names::amount(errors, &path.key(name), name, amount);
    }
}

/// Whether objects of the scope use the resource at all.
fn uses(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        scope if SCOPES.contains(&scope) => OF_PODS.contains(&resource),
        _ => true,
    }
}

/// Those that quotas of any namespace know, and scopes do not reach, are refused; others are counted all the same.
fn reaches(errors: &mut Vec<FieldError>, path: &Path<'_>, value: &Value, spec: &Value, scope: &str) {
    let is_out = |name: &String| resource_names::is_quota_resource(name) && !uses(scope, name);
    if spec.map("hard").keys().any(is_out) {
        errors.push(FieldError::invalid(path, value.clone(), "unsupported scope applied to resource"));
    }
}

fn scopes(errors: &mut Vec<FieldError>, spec: &Value) {
    let (path, value) = (SPEC.field("scopes"), spec.at("scopes"));
    for scope in words(spec, "scopes") {
        if !SCOPES.contains(&scope) {
            errors.push(FieldError::invalid(path, value.clone(), "unsupported scope"));
        }
        reaches(errors, &path, value, spec, scope);
    }
    conflicts(errors, &path, value, words(spec, "scopes"));
}

fn conflicts(errors: &mut Vec<FieldError>, path: &Path<'_>, value: &Value, scopes: Vec<&str>) {
    let scopes: HashSet<&str> = scopes.into_iter().collect();
    for pair in OPPOSITES {
        if pair.iter().all(|scope| scopes.contains(scope)) {
            errors.push(FieldError::invalid(path, value.clone(), "conflicting scopes"));
        }
    }
}

/// The paths are the list's, as upstream has them.
fn selector(errors: &mut Vec<FieldError>, spec: &Value) {
    const EXISTS: &str = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
                          ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                          ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
    let path = SPEC.field("scopeSelector.matchExpressions");
    let terms = spec.list("scopeSelector.matchExpressions");
    for term in terms {
        let (scope, operator) = (term.text("scopeName"), term.text("operator"));
        if !SCOPES.contains(&scope) {
            errors.push(FieldError::invalid(path.field("scopeName"), scope, "unsupported scope"));
        }
        reaches(errors, &path, spec.at("scopeSelector"), spec, scope);
        if SCOPES.contains(&scope)
            && !matches!(scope, "PriorityClass" | "VolumeAttributesClass")
            && operator != "Exists"
        {
            errors.push(FieldError::invalid(path.field("operator"), operator, EXISTS));
        }
        let values = term.list("values");
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let detail =
                    "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(FieldError::required(path.field("values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail =
                    "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.push(FieldError::invalid(path.field("values"), values.to_vec(), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => (),
            other => {
                let detail = "not a valid selector operator";
                errors.push(FieldError::invalid(path.field("operator"), other, detail));
            }
        }
    }
    let names = terms.iter().map(|term| term.text("scopeName")).collect();
    conflicts(errors, &path, spec.at("scopes"), names);
}
