//! ValidatingAdmissionPolicies, MutatingAdmissionPolicies, and their bindings.

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES, default_scopes, match_conditions, rule,
};
use crate::kinds::{
    AGE, Hooks, NAME, NameRule, PLAIN,
    apps::age,
    column,
    meta::invalid_all,
    names::{dns_label_1035, dns_subdomain},
    rules::{one_of, required, words},
    selector, text,
    value::{Fields, Path},
};

const SPEC: Path<'static> = Path::Root("spec");
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
const REASONS: [&str; 4] = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
const MOST_ANNOTATIONS: usize = 20;

pub(crate) static VALIDATING_POLICY: Hooks = Hooks {
    default: |policy| {
        let spec = policy.ensure("spec");
        spec.set_default("failurePolicy", "Fail");
        default_match(spec, "matchConstraints");
    },
    validate_create: validate_validating,
    columns: &[NAME, column("Validations", "integer"), text("ParamKind"), AGE],
    cells: |policy, now| cells(policy, "spec.validations", now),
    warning: Some(
        "the ValidatingAdmissionPolicy is stored, but NOT enforced: policies are not evaluated here yet",
    ),
    ..PLAIN
};

pub(crate) static MUTATING_POLICY: Hooks = Hooks {
    default: |policy| {
        let spec = policy.ensure("spec");
        spec.set_default("failurePolicy", "Fail");
        spec.set_default("reinvocationPolicy", "Never");
        default_match(spec, "matchConstraints");
    },
    validate_create: validate_mutating,
    columns: &[NAME, column("Mutations", "integer"), text("ParamKind"), AGE],
    cells: |policy, now| cells(policy, "spec.mutations", now),
    warning: Some(
        "the MutatingAdmissionPolicy is stored, but NOT applied: policies are not evaluated here yet",
    ),
    ..PLAIN
};

pub(crate) static VALIDATING_BINDING: Hooks = Hooks {
    default: |binding| default_match(binding.ensure("spec"), "matchResources"),
    validate_create: |binding| {
        let mut errors = validate_binding(binding);
        actions(&mut errors, &SPEC.field("validationActions"), &words(binding, "spec.validationActions"));
        errors
    },
    columns: &[NAME, text("PolicyName"), text("ParamRef"), AGE],
    cells: |binding, now| {
        let parameters = binding.at("spec.paramRef");
        let shown = match (parameters.text("namespace"), parameters.text("name")) {
            (_, "") if parameters.has("selector") => selector::to_text(parameters.at("selector")),
            (_, "") => "<unset>".to_owned(),
            ("", name) => format!("*/{name}"),
            (namespace, name) => format!("{namespace}/{name}"),
        };
        vec![
            binding.at("metadata.name").clone(),
            binding.text("spec.policyName").into(),
            shown.into(),
            age(binding, now),
        ]
    },
    warning: Some(
        "the ValidatingAdmissionPolicyBinding is stored, but NOT enforced: policies are not evaluated here yet",
    ),
    ..PLAIN
};

pub(crate) static MUTATING_BINDING: Hooks = Hooks {
    validate_create: validate_binding,
    warning: Some(
        "the MutatingAdmissionPolicyBinding is stored, but NOT applied: policies are not evaluated here yet",
    ),
    ..VALIDATING_BINDING
};

fn cells(policy: &Value, list: &str, now: jiff::Timestamp) -> Vec<Value> {
    let kind = policy.at("spec.paramKind");
    let shown = if kind.is_object() {
        format!("{}/{}", kind.text("apiVersion"), kind.text("kind"))
    } else {
        "<unset>".to_owned()
    };
    vec![policy.at("metadata.name").clone(), policy.list(list).len().into(), shown.into(), age(policy, now)]
}

fn default_match(spec: &mut Value, field: &str) {
    let Some(resources) = spec.part_mut(field) else { return };
    resources.set_default("matchPolicy", "Equivalent");
    resources.ensure("namespaceSelector");
    resources.ensure("objectSelector");
    default_scopes(resources, "resourceRules");
    default_scopes(resources, "excludeResourceRules");
}

/// What policies of both sorts have.
fn validate_policy(policy: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = policy.at("spec");
    one_of(&mut errors, &SPEC.field("failurePolicy"), spec.text("failurePolicy"), &FAILURE_POLICIES);
    if spec.has("paramKind") {
        parameter_kind(&mut errors, &SPEC.field("paramKind"), spec.at("paramKind"));
    }
    let path = SPEC.field("matchConstraints");
    if spec.has("matchConstraints") {
        match_resources(&mut errors, &path, spec.at("matchConstraints"));
        if spec.list("matchConstraints.resourceRules").is_empty() {
            errors.push(FieldError::required(path.field("resourceRules"), ""));
        }
    } else {
        errors.push(FieldError::required(path, ""));
    }
    match_conditions(&mut errors, &SPEC, spec);
    let list = SPEC.field("variables");
    for (index, variable) in spec.list("variables").iter().enumerate() {
        let (path, name) = (list.index(index), variable.text("name"));
        if name.trim().is_empty() {
            errors.push(FieldError::required(path.field("name"), "name is not specified"));
        } else if !is_identifier(name) {
            errors.push(FieldError::invalid(path.field("name"), name, "name is not a valid CEL identifier"));
        }
        expression(&mut errors, &path.field("expression"), variable.text("expression"));
    }
    errors
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn expression(errors: &mut Vec<FieldError>, path: &Path<'_>, expression: &str) {
    if expression.trim().is_empty() {
        errors.push(FieldError::required(path, "expression is not specified"));
    }
}

fn validate_validating(policy: &Value) -> Vec<FieldError> {
    let mut errors = validate_policy(policy);
    let spec = policy.at("spec");
    let (validations, annotations) = (SPEC.field("validations"), SPEC.field("auditAnnotations"));
    if spec.list("validations").is_empty() && spec.list("auditAnnotations").is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        errors.push(FieldError::required(validations, detail));
        errors.push(FieldError::required(annotations, detail));
        return errors;
    }
    for (index, validation) in spec.list("validations").iter().enumerate() {
        let path = validations.index(index);
        expression(&mut errors, &path.field("expression"), validation.text("expression"));
        let (said, message) = (validation.text("messageExpression"), validation.text("message"));
        if !said.is_empty() && said.trim().is_empty() {
            let detail = "must be non-empty if specified";
            errors.push(FieldError::invalid(path.field("messageExpression"), said, detail));
        }
        if !message.is_empty() && message.trim().is_empty() {
            let detail = "message must be non-empty if specified";
            errors.push(FieldError::invalid(path.field("message"), message, detail));
        } else if message.trim().contains(['\n', '\r']) {
            let detail = "message must not contain line breaks";
            errors.push(FieldError::invalid(path.field("message"), message, detail));
        }
        if validation.has("reason") {
            one_of(&mut errors, &path.field("reason"), validation.text("reason"), &REASONS);
        }
    }
    let all = spec.list("auditAnnotations");
    if all.len() > MOST_ANNOTATIONS {
        let detail = format!("must not have more than {MOST_ANNOTATIONS} auditAnnotations");
        errors.push(FieldError::invalid(annotations, all, detail));
    }
    for (index, annotation) in all.iter().enumerate() {
        let (path, key) = (annotations.index(index), annotation.text("key"));
        required(&mut errors, &path.field("key"), key);
        if annotation.text("valueExpression").trim().is_empty() {
            let detail = "valueExpression is not specified";
            errors.push(FieldError::required(path.field("valueExpression"), detail));
        }
        if all[..index].iter().any(|other| other.text("key") == key) {
            errors.push(FieldError::duplicate(path.field("key"), key));
        }
    }
    errors
}

fn validate_mutating(policy: &Value) -> Vec<FieldError> {
    let mut errors = validate_policy(policy);
    let spec = policy.at("spec");
    let list = SPEC.field("mutations");
    if spec.list("mutations").is_empty() {
        errors.push(FieldError::required(list, "mutations must contain at least one item"));
    }
    for (index, mutation) in spec.list("mutations").iter().enumerate() {
        let path = list.index(index);
        let kind = mutation.text("patchType");
        let (own, other) = match kind {
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            "" => {
                errors.push(FieldError::required(path.field("patchType"), ""));
                continue;
            }
            _ => {
                let known = ["ApplyConfiguration", "JSONPatch"];
                errors.push(FieldError::not_supported(path.field("patchType"), kind, &known));
                continue;
            }
        };
        if mutation.has(own) {
            expression(
                &mut errors,
                &path.field(own).field("expression"),
                mutation.at(own).text("expression"),
            );
        } else {
            let detail = format!("must be specified when patchType is {kind}");
            errors.push(FieldError::required(path.field(own), detail));
        }
        if mutation.has(other) {
            let detail = format!("must not be specified when patchType is {kind}");
            errors.push(FieldError::invalid(path.field(other), "{}", detail));
        }
    }
    let policy = spec.text("reinvocationPolicy");
    one_of(&mut errors, &SPEC.field("reinvocationPolicy"), policy, &REINVOCATION_POLICIES);
    errors
}

fn parameter_kind(errors: &mut Vec<FieldError>, path: &Path<'_>, kind: &Value) {
    let (version_path, api_version) = (path.field("apiVersion"), kind.text("apiVersion"));
    let mut wrong = |value: &str, details: Vec<String>| {
        if !details.is_empty() {
            errors.push(FieldError::invalid(version_path, value, details.join(",")));
        }
    };
    match api_version.split('/').collect::<Vec<_>>().as_slice() {
        [""] => errors.push(FieldError::required(version_path, "")),
        [version] => wrong(version, dns_label_1035(version)),
        [group, version] => {
            if !group.is_empty() {
                wrong(group, dns_subdomain(group));
            }
            match *version {
                "" => wrong(api_version, vec!["version must be specified".to_owned()]),
                version => wrong(version, dns_label_1035(version)),
            }
        }
        _ => wrong(api_version, vec![format!("unexpected GroupVersion string: {api_version}")]),
    }
    let (path, kind) = (path.field("kind"), kind.text("kind"));
    let wrong = dns_label_1035(&kind.to_lowercase());
    if kind.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !wrong.is_empty() {
        let detail = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
        errors.push(FieldError::invalid(path, kind, detail));
    }
}

fn match_resources(errors: &mut Vec<FieldError>, path: &Path<'_>, resources: &Value) {
    one_of(errors, &path.field("matchPolicy"), resources.text("matchPolicy"), &MATCH_POLICIES);
    for field in ["namespaceSelector", "objectSelector"] {
        selector::validate(errors, &path.field(field), resources.at(field));
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        let list = path.field(field);
        for (index, one) in resources.list(field).iter().enumerate() {
            let path = list.index(index);
            let names = words(one, "resourceNames");
            for (index, name) in names.iter().enumerate() {
                let path = path.field("resourceNames");
                invalid_all(errors, &path.index(index), name, NameRule::PathSegment.check(name));
                if names[..index].contains(name) {
                    errors.push(FieldError::duplicate(path.index(index), *name));
                }
            }
            rule(errors, &path, one);
        }
    }
}

/// What bindings of both sorts have.
fn validate_binding(binding: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = binding.at("spec");
    let (path, policy) = (SPEC.field("policyName"), spec.text("policyName"));
    required(&mut errors, &path, policy);
    if !policy.is_empty() {
        invalid_all(&mut errors, &path, policy, dns_subdomain(policy));
    }
    if spec.has("paramRef") {
        parameters(&mut errors, &SPEC.field("paramRef"), spec.at("paramRef"));
    }
    if spec.has("matchResources") {
        match_resources(&mut errors, &SPEC.field("matchResources"), spec.at("matchResources"));
    }
    errors
}

fn parameters(errors: &mut Vec<FieldError>, path: &Path<'_>, reference: &Value) {
    let (name, by_label) = (reference.text("name"), reference.has("selector"));
    let detail = "name and selector are mutually exclusive";
    if !name.is_empty() {
        invalid_all(errors, &path.field("name"), name, NameRule::PathSegment.check(name));
        if by_label {
            errors.push(FieldError::forbidden(path.field("name"), detail));
            errors.push(FieldError::forbidden(path.field("selector"), detail));
        }
    } else if !by_label {
        errors.push(FieldError::required(path, "one of name or selector must be specified"));
    }
    selector::validate(errors, &path.field("selector"), reference.at("selector"));
    let path = path.field("parameterNotFoundAction");
    match reference.text("parameterNotFoundAction") {
        "" => errors.push(FieldError::required(path, "")),
        action => one_of(errors, &path, action, &["Allow", "Deny"]),
    }
}

fn actions(errors: &mut Vec<FieldError>, path: &Path<'_>, all: &[&str]) {
    for (index, action) in all.iter().enumerate() {
        one_of(errors, &path.index(index), action, &ACTIONS);
        if all[..index].contains(action) {
            errors.push(FieldError::duplicate(path.index(index), *action));
        }
    }
    if all.contains(&"Deny") && all.contains(&"Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                      response and headers serves no purpose)";
        errors.push(FieldError::invalid(path, Value::from(all), detail));
    }
    if all.is_empty() {
        errors.push(FieldError::required(path, "at least one validation action is required"));
    }
}
