//! The kinds of `admissionregistration.k8s.io`: webhooks and policies.
//!
//! They are stored and checked as upstream does, except that expressions in CEL are not compiled. Nothing calls or
//! evaluates them yet, and whoever writes one is told, so that nobody relies on a policy that is not enforced.

mod policy;
#[cfg(test)]
mod tests;
mod webhook;

pub(crate) use policy::{MUTATING_BINDING, MUTATING_POLICY, VALIDATING_BINDING, VALIDATING_POLICY};
pub(crate) use webhook::{MUTATING_WEBHOOK, VALIDATING_WEBHOOK};

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    meta::invalid_all,
    names::qualified_name,
    rules::{at_most, lone_wildcard, one_of, words},
    value::{Fields, Path},
};

const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
const REINVOCATION_POLICIES: [&str; 2] = ["IfNeeded", "Never"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const MOST_CONDITIONS: usize = 64;

/// Which requests a webhook or policy is about.
fn rule(errors: &mut Vec<FieldError>, path: &Path<'_>, rule: &Value) {
    let (list, operations) = (path.field("operations"), words(rule, "operations"));
    if operations.is_empty() {
        errors.push(FieldError::required(list, ""));
    }
    lone_wildcard(errors, &list, &operations, "operations");
    for (index, operation) in operations.iter().enumerate() {
        one_of(errors, &list.index(index), operation, &OPERATIONS);
    }
    for (field, others) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let (list, all) = (path.field(field), words(rule, field));
        if all.is_empty() {
            errors.push(FieldError::required(list, ""));
        }
        lone_wildcard(errors, &list, &all, others);
        for index in (0..all.len()).filter(|index| field == "apiVersions" && all[*index].is_empty()) {
            errors.push(FieldError::required(list.index(index), ""));
        }
    }
    resources(errors, &path.field("resources"), &words(rule, "resources"));
    if rule.has("scope") {
        one_of(errors, &path.field("scope"), rule.text("scope"), &["*", "Cluster", "Namespaced"]);
    }
}

fn resources(errors: &mut Vec<FieldError>, path: &Path<'_>, all: &[&str]) {
    if all.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    for (index, resource) in all.iter().enumerate() {
        if resource.is_empty() {
            errors.push(FieldError::required(path.index(index), ""));
        }
        let Some((name, part)) = resource.split_once('/') else { continue };
        for cover in [format!("{name}/*"), format!("*/{part}")] {
            if all[..index].contains(&cover.as_str()) {
                let detail = format!("if '{cover}' is present, must not specify {resource}");
                errors.push(FieldError::invalid(path.index(index), *resource, detail));
            }
        }
    }
    if all.len() > 1 && all.contains(&"*/*") {
        let detail = "if '*/*' is present, must not specify other resources";
        errors.push(FieldError::invalid(path, Value::from(all), detail));
    }
    if all.contains(&"*") && all.iter().any(|resource| *resource != "*" && !resource.contains('/')) {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.push(FieldError::invalid(path, Value::from(all), detail));
    }
}

fn match_conditions(errors: &mut Vec<FieldError>, path: &Path<'_>, object: &Value) {
    let (path, all) = (path.field("matchConditions"), object.list("matchConditions"));
    at_most(errors, &path, all.len(), MOST_CONDITIONS);
    for (index, condition) in all.iter().enumerate() {
        let (path, name) = (path.index(index), condition.text("name"));
        if condition.text("expression").trim().is_empty() {
            errors.push(FieldError::required(path.field("expression"), ""));
        }
        if name.is_empty() {
            errors.push(FieldError::required(path.field("name"), ""));
            continue;
        }
        invalid_all(errors, &path.field("name"), name, qualified_name(name));
        if all[..index].iter().any(|other| other.text("name") == name) {
            errors.push(FieldError::duplicate(path.field("name"), name));
        }
    }
}

/// Gives a rule the scope that it means.
fn default_scopes(object: &mut Value, field: &str) {
    for rule in object.list_mut(field) {
        rule.set_default("scope", "*");
    }
}
