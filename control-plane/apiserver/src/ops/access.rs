//! What reviews of access say and ask: `authorization.k8s.io`, as upstream validates and answers it.

use hawser_api::{Error, FieldError};
use serde_json::{Value, json};

use super::reviews::{text, texts};
use crate::auth::{Attributes, Rules};

/// Checks a SubjectAccessReview, or its Self or Local form, as `kind` says. The object of a Local one has its namespace.
pub(super) fn validate(kind: &str, object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let mut errors = Vec::new();
    if resource.is_object() && path.is_object() {
        let detail = "cannot be specified in combination with resourceAttributes";
        errors.push(FieldError::invalid("spec.nonResourceAttributes", path.clone(), detail));
    }
    if !resource.is_object() && !path.is_object() {
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(FieldError::invalid("spec.resourceAttributes", Value::Null, detail));
    }
    if resource.is_object() {
        check_selector(&mut errors, "spec.resourceAttributes.fieldSelector", &resource["fieldSelector"]);
        check_selector(&mut errors, "spec.resourceAttributes.labelSelector", &resource["labelSelector"]);
    }
    if kind != "SelfSubjectAccessReview"
        && text(&spec["user"]).is_empty()
        && texts(&spec["groups"]).is_empty()
    {
        errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
    let local = kind == "LocalSubjectAccessReview";
    let filled = object["metadata"].as_object().into_iter().flatten();
    let mut filled = filled.filter(|(key, value)| {
        !value.is_null() && *key != "managedFields" && !(local && *key == "namespace")
    });
    if filled.next().is_some() {
        let detail = if local { "must be empty except for namespace" } else { "must be empty" };
        errors.push(FieldError::invalid("metadata", object["metadata"].clone(), detail));
    }
    if local && resource.is_object() && text(&resource["namespace"]) != text(&object["metadata"]["namespace"])
    {
        let namespace = text(&resource["namespace"]);
        let detail = "must match metadata.namespace";
        errors.push(FieldError::invalid("spec.resourceAttributes.namespace", namespace, detail));
    }
    if local && path.is_object() {
        let detail = "disallowed on this kind of request";
        errors.push(FieldError::invalid("spec.nonResourceAttributes", path.clone(), detail));
    }
    errors
}

fn check_selector(errors: &mut Vec<FieldError>, path: &str, selector: &Value) {
    if !selector.is_object() {
        return;
    }
    let raw = text(&selector["rawSelector"]);
    let requirements = selector["requirements"].as_array().map_or(&[][..], Vec::as_slice);
    if !raw.is_empty() && !requirements.is_empty() {
        let detail = "may not specified at the same time as requirements";
        errors.push(FieldError::invalid(format!("{path}.rawSelector"), raw, detail));
    } else if raw.is_empty() && requirements.is_empty() {
        let detail = format!("when {path} is specified, requirements or rawSelector is required");
        errors.push(FieldError::required(format!("{path}.requirements"), detail));
    }
    for (index, requirement) in requirements.iter().enumerate() {
        let path = format!("{path}.requirements[{index}]");
        if text(&requirement["key"]).is_empty() {
            errors.push(FieldError::required(format!("{path}.key"), "must be specified"));
        }
        let empty = texts(&requirement["values"]).is_empty();
        // An operator that is not known here may be a newer client's: it narrows nothing, and is no error.
        match requirement["operator"].as_str() {
            Some("In" | "NotIn") if empty => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{path}.values"), detail));
            }
            Some("Exists" | "DoesNotExist") if !empty => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{path}.values"), detail));
            }
            _ => {}
        }
    }
}

/// The request that a valid review asks about.
pub(super) fn attributes(spec: &Value) -> Attributes {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if !resource.is_object() {
        return Attributes {
            verb: text(&path["verb"]).into(),
            path: text(&path["path"]),
            ..Attributes::default()
        };
    }
    Attributes {
        verb: text(&resource["verb"]).into(),
        resource: text(&resource["resource"]),
        group: text(&resource["group"]),
        version: text(&resource["version"]),
        subresource: text(&resource["subresource"]),
        namespace: text(&resource["namespace"]),
        name: text(&resource["name"]),
        field_selector: field_selector(&resource["fieldSelector"]),
        ..Attributes::default()
    }
}

/// The selector in its text form. Requirements that have none (several values, presence) are left out: fewer
/// requirements select more, so that nothing is allowed by them.
fn field_selector(selector: &Value) -> String {
    let raw = text(&selector["rawSelector"]);
    if !raw.is_empty() {
        return raw;
    }
    let terms = selector["requirements"].as_array().into_iter().flatten().filter_map(|requirement| {
        let operator = match requirement["operator"].as_str() {
            Some("In") => "=",
            Some("NotIn") => "!=",
            _ => return None,
        };
        let values = texts(&requirement["values"]);
        let [value] = values.as_slice() else { return None };
        let value = value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        Some(format!("{}{operator}{value}", text(&requirement["key"])))
    });
    terms.collect::<Vec<_>>().join(",")
}

/// The namespace that a SelfSubjectRulesReview asks about.
pub(super) fn rules_namespace(spec: &Value) -> Result<String, Error> {
    match text(&spec["namespace"]) {
        namespace if namespace.is_empty() => Err(Error::bad_request("no namespace on request")),
        namespace => Ok(namespace),
    }
}

/// The status of a SelfSubjectRulesReview.
pub(super) fn rules_status(rules: &Rules) -> Value {
    let resource_rules: Vec<Value> = rules
        .rules
        .iter()
        .filter(|rule| !rule.resources.is_empty())
        .map(|rule| {
            let mut shown =
                json!({ "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources });
            if !rule.resource_names.is_empty() {
                shown["resourceNames"] = json!(rule.resource_names);
            }
            shown
        })
        .collect();
    let paths = rules.rules.iter().filter(|rule| !rule.non_resource_urls.is_empty());
    let path_rules: Vec<Value> =
        paths.map(|rule| json!({ "verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls })).collect();
    let mut status = json!({ "resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": rules.incomplete });
    if !rules.errors.is_empty() {
        status["evaluationError"] = json!(rules.errors.join(", "));
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: &str, object: Value, expected: &[&str]) {
        let errors: Vec<String> = validate(kind, &object).iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected);
    }

    #[test]
    fn reviews_are_refused_in_upstreams_words() {
        let pods = json!({ "verb": "get", "resource": "pods", "namespace": "a" });
        let metrics = json!({ "verb": "get", "path": "/metrics" });
        check("SelfSubjectAccessReview", json!({ "spec": { "resourceAttributes": pods } }), &[]);
        check("SubjectAccessReview", json!({ "spec": { "resourceAttributes": pods, "user": "u" } }), &[]);
        check(
            "SelfSubjectAccessReview",
            json!({ "spec": {} }),
            &["spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or \
               resourceAttributes must be specified"],
        );
        check(
            "SelfSubjectAccessReview",
            json!({ "spec": { "resourceAttributes": {}, "nonResourceAttributes": {} } }),
            &["spec.nonResourceAttributes: Invalid value: {}: cannot be specified in combination with \
               resourceAttributes"],
        );
        check(
            "SubjectAccessReview",
            json!({ "metadata": { "name": "x" }, "spec": { "nonResourceAttributes": metrics } }),
            &[
                "spec.user: Invalid value: \"\": at least one of user or group must be specified",
                "metadata: Invalid value: {\"name\":\"x\"}: must be empty",
            ],
        );
        check(
            "LocalSubjectAccessReview",
            json!({ "metadata": { "namespace": "b" }, "spec": { "resourceAttributes": pods, "groups": ["g"] } }),
            &["spec.resourceAttributes.namespace: Invalid value: \"a\": must match metadata.namespace"],
        );
        check(
            "LocalSubjectAccessReview",
            json!({ "metadata": { "namespace": "b" }, "spec": { "nonResourceAttributes": {}, "user": "u" } }),
            &["spec.nonResourceAttributes: Invalid value: {}: disallowed on this kind of request"],
        );
    }

    #[test]
    fn selectors_are_checked_and_read() {
        let review =
            |selector: Value| json!({ "spec": { "resourceAttributes": { "fieldSelector": selector } } });
        let kind = "SelfSubjectAccessReview";
        check(
            kind,
            review(json!({})),
            &["spec.resourceAttributes.fieldSelector.requirements: Required value: when \
               spec.resourceAttributes.fieldSelector is specified, requirements or rawSelector is required"],
        );
        check(
            kind,
            review(
                json!({ "requirements": [{ "key": "", "operator": "In" }, { "key": "a", "operator": "New" }] }),
            ),
            &[
                "spec.resourceAttributes.fieldSelector.requirements[0].key: Required value: must be specified",
                "spec.resourceAttributes.fieldSelector.requirements[0].values: Required value: must be specified \
                 when `operator` is 'In' or 'NotIn'",
            ],
        );
        let requirements = json!([
            { "key": "spec.nodeName", "operator": "In", "values": ["n1"] },
            { "key": "a", "operator": "In", "values": ["x", "y"] },
            { "key": "b", "operator": "NotIn", "values": ["c,d"] },
        ]);
        let object = review(json!({ "requirements": requirements }));
        check(kind, object.clone(), &[]);
        assert_eq!(attributes(&object["spec"]).field_selector, "spec.nodeName=n1,b!=c\\,d");
        let raw = review(json!({ "rawSelector": "a=b" }));
        assert_eq!(attributes(&raw["spec"]).field_selector, "a=b");
    }
}
