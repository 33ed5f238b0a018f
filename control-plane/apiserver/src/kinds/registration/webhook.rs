//! ValidatingWebhookConfigurations and MutatingWebhookConfigurations.

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES, default_scopes, match_conditions, rule,
};
use crate::kinds::{
    AGE, Hooks, NAME, PLAIN,
    apps::age,
    column,
    meta::invalid_all,
    names::{dns_label_1035, dns_subdomain},
    rules::{one_of, webhook_client, words},
    selector,
    value::{Fields, Path},
};

const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

pub(crate) static VALIDATING_WEBHOOK: Hooks = Hooks {
    default: |configuration| {
        for webhook in configuration.list_mut("webhooks") {
            default(webhook);
        }
    },
    validate_create: validate,
    columns: &[NAME, column("Webhooks", "integer"), AGE],
    cells: |configuration, now| {
        vec![
            configuration.at("metadata.name").clone(),
            configuration.list("webhooks").len().into(),
            age(configuration, now),
        ]
    },
    warning: Some(
        "the ValidatingWebhookConfiguration is stored, but NOT enforced: no webhook is called here yet",
    ),
    ..PLAIN
};

pub(crate) static MUTATING_WEBHOOK: Hooks = Hooks {
    default: |configuration| {
        for webhook in configuration.list_mut("webhooks") {
            default(webhook);
            webhook.set_default("reinvocationPolicy", "Never");
        }
    },
    warning: Some(
        "the MutatingWebhookConfiguration is stored, but NOT applied: no webhook is called here yet",
    ),
    ..VALIDATING_WEBHOOK
};

fn default(webhook: &mut Value) {
    webhook.set_default("failurePolicy", "Fail");
    webhook.set_default("matchPolicy", "Equivalent");
    webhook.ensure("namespaceSelector");
    webhook.ensure("objectSelector");
    webhook.set_default("timeoutSeconds", 10);
    default_scopes(webhook, "rules");
    if let Some(service) = webhook.part_mut("clientConfig.service") {
        service.set_default("port", 443);
    }
}

fn validate(configuration: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list = Path::Root("webhooks");
    let all = configuration.list("webhooks");
    for (index, webhook) in all.iter().enumerate() {
        let path = list.index(index);
        let name = webhook.text("name");
        validate_webhook(&mut errors, &path, webhook);
        review_versions(&mut errors, &path.field("admissionReviewVersions"), webhook);
        if !name.is_empty() && all[..index].iter().any(|other| other.text("name") == name) {
            errors.push(FieldError::duplicate(path.field("name"), name));
        }
    }
    errors
}

fn validate_webhook(errors: &mut Vec<FieldError>, path: &Path<'_>, webhook: &Value) {
    full_name(errors, &path.field("name"), webhook.text("name"));
    let rules = path.field("rules");
    for (index, one) in webhook.list("rules").iter().enumerate() {
        rule(errors, &rules.index(index), one);
    }
    one_of(errors, &path.field("failurePolicy"), webhook.text("failurePolicy"), &FAILURE_POLICIES);
    one_of(errors, &path.field("matchPolicy"), webhook.text("matchPolicy"), &MATCH_POLICIES);
    match webhook.at("sideEffects").as_str() {
        None => {
            let detail = format!("must specify one of {}", SIDE_EFFECTS.join(", "));
            errors.push(FieldError::required(path.field("sideEffects"), detail));
        }
        Some(effects) => one_of(errors, &path.field("sideEffects"), effects, &SIDE_EFFECTS),
    }
    if let Some(seconds) = webhook.int("timeoutSeconds").filter(|seconds| !(1..=30).contains(seconds)) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.push(FieldError::invalid(path.field("timeoutSeconds"), seconds, detail));
    }
    for field in ["namespaceSelector", "objectSelector"] {
        selector::validate(errors, &path.field(field), webhook.at(field));
    }
    if webhook.has("reinvocationPolicy") {
        let policy = webhook.text("reinvocationPolicy");
        one_of(errors, &path.field("reinvocationPolicy"), policy, &REINVOCATION_POLICIES);
    }
    webhook_client(errors, &path.field("clientConfig"), webhook.at("clientConfig"));
    match_conditions(errors, path, webhook);
}

/// `check.example.com`: three labels at least.
fn full_name(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let wrong = dns_subdomain(name);
    if !wrong.is_empty() {
        errors.push(FieldError::invalid(path, name, wrong.join(",")));
    } else if name.split('.').count() < 3 {
        let detail = "should be a domain with at least three segments separated by dots";
        errors.push(FieldError::invalid(path, name, detail));
    }
}

fn review_versions(errors: &mut Vec<FieldError>, path: &Path<'_>, webhook: &Value) {
    let versions = words(webhook, "admissionReviewVersions");
    if versions.is_empty() {
        let detail = format!("must specify one of {}", REVIEW_VERSIONS.join(", "));
        errors.push(FieldError::required(path, detail));
        return;
    }
    for (index, version) in versions.iter().enumerate() {
        let path = path.index(index);
        if versions[..index].contains(version) {
            errors.push(FieldError::invalid(path, *version, "duplicate version"));
        } else {
            invalid_all(errors, &path, version, dns_label_1035(version));
        }
    }
    if !versions.iter().any(|version| REVIEW_VERSIONS.contains(version)) {
        let detail = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        errors.push(FieldError::invalid(path, Value::from(versions), detail));
    }
}
