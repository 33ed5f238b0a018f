//! What an autoscaler may ask for: metrics, and how fast its target changes. Texts and limits are upstream's.

use hawser_api::{FieldError, quantity::Quantity};
use serde_json::{Value, json};

use super::{
    meta::invalid_all,
    names::NameRule,
    rules::required,
    value::{Fields, Path},
};

/// `spec.behavior.*.stabilizationWindowSeconds`.
const LONGEST_WINDOW: i64 = 3600;
/// `spec.behavior.*.policies[].periodSeconds`.
const LONGEST_PERIOD: i64 = 1800;

/// Types of metrics and the fields that describe them.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

/// What a behaviour leaves open: it grows by four pods or to the double, and shrinks to the last.
pub(super) fn default_behavior(spec: &mut Value) {
    if !spec.has("behavior") {
        return;
    }
    let policy = |kind: &str, value: i64| json!({ "type": kind, "value": value, "periodSeconds": 15 });
    let up = spec.ensure("behavior.scaleUp");
    up.set_default("stabilizationWindowSeconds", 0);
    up.set_default("selectPolicy", "Max");
    up.set_default("policies", json!([policy("Pods", 4), policy("Percent", 100)]));
    let down = spec.ensure("behavior.scaleDown");
    down.set_default("selectPolicy", "Max");
    down.set_default("policies", json!([policy("Percent", 100)]));
}

pub(super) fn validate(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let metrics = path.field("metrics");
    for (index, metric) in spec.list("metrics").iter().enumerate() {
        validate_metric(errors, &metrics.index(index), metric);
    }
    let behavior = path.field("behavior");
    for direction in ["scaleUp", "scaleDown"] {
        let rules = spec.at("behavior").at(direction);
        if rules.is_object() {
            validate_rules(errors, &behavior.field(direction), rules);
        }
    }
}

/// What is scaled, or measured, by kind and name.
pub(super) fn reference(errors: &mut Vec<FieldError>, path: &Path<'_>, reference: &Value) {
    for field in ["kind", "name"] {
        let (path, name) = (path.field(field), reference.text(field));
        required(errors, &path, name);
        invalid_all(errors, &path, name, NameRule::PathSegment.check(name));
    }
}

fn validate_metric(errors: &mut Vec<FieldError>, path: &Path<'_>, metric: &Value) {
    let kind = metric.text("type");
    let expected = SOURCES.iter().find(|(known, _)| *known == kind).map(|(_, field)| *field);
    match expected {
        None if kind.is_empty() => {
            errors.push(FieldError::required(path.field("type"), "must specify a metric source type"));
        }
        None => {
            let mut known = SOURCES.map(|(kind, _)| kind);
            known.sort_unstable();
            errors.push(FieldError::not_supported(path.field("type"), kind, &known));
        }
        Some(field) if !metric.has(field) => {
            let detail = "must populate information for the given metric source";
            errors.push(FieldError::required(path.field(field), detail));
        }
        Some(_) => {}
    }
    let present = || SOURCES.iter().map(|(_, field)| *field).filter(|field| metric.has(field));
    if let Some(field) = present().next() {
        validate_source(errors, &path.field(field), field, metric.at(field));
    }
    if present().count() > 1 {
        for field in present().filter(|field| Some(*field) != expected) {
            let detail = "must populate the given metric source only";
            errors.push(FieldError::forbidden(path.field(field), detail));
        }
    }
}

fn validate_source(errors: &mut Vec<FieldError>, path: &Path<'_>, field: &str, source: &Value) {
    let mut require = |field: &str, detail: &str| {
        if source.text(field).is_empty() {
            errors.push(FieldError::required(path.field(field), detail));
        }
    };
    match field {
        "resource" => require("name", "must specify a resource name"),
        "containerResource" => {
            require("name", "must specify a resource name");
            require("container", "must specify a container");
        }
        _ => {
            require("metric.name", "must specify a metric name");
            let (path, name) = (path.field("metric.name"), source.text("metric.name"));
            invalid_all(errors, &path, name, NameRule::PathSegment.check(name));
        }
    }
    if field == "object" {
        reference(errors, &path.field("describedObject"), source.at("describedObject"));
    }
    let (target, target_path) = (source.at("target"), path.field("target"));
    validate_target(errors, &target_path, target);
    let (share, average, value) =
        (target.has("averageUtilization"), target.has("averageValue"), target.has("value"));
    match field {
        "resource" | "containerResource" if !share && !average => {
            let detail = "must set either a target raw value or a target utilization";
            errors.push(FieldError::required(target_path.field("averageUtilization"), detail));
        }
        "resource" | "containerResource" if share && average => {
            let detail = "may not set both a target raw value and a target utilization";
            errors.push(FieldError::forbidden(target_path.field("averageValue"), detail));
        }
        "pods" if !average => {
            let detail = "must specify a positive target averageValue";
            errors.push(FieldError::required(target_path.field("averageValue"), detail));
        }
        "object" | "external" if !value && !average => {
            let detail = "must set either a target value for metric or a per-pod target";
            errors.push(FieldError::required(target_path.field("averageValue"), detail));
        }
        _ => {}
    }
}

fn validate_target(errors: &mut Vec<FieldError>, path: &Path<'_>, target: &Value) {
    match target.text("type") {
        "" => errors.push(FieldError::required(path.field("type"), "must specify a metric target type")),
        "Utilization" | "Value" | "AverageValue" => {}
        other => {
            let detail = "must be either Utilization, Value, or AverageValue";
            errors.push(FieldError::invalid(path.field("type"), other, detail));
        }
    }
    for field in ["value", "averageValue"] {
        let amount: Option<Quantity> = target.at(field).as_str().and_then(|text| text.parse().ok());
        if amount.is_some_and(|amount| amount.sign() != 1) {
            errors.push(FieldError::invalid(path.field(field), target.text(field), "must be positive"));
        }
    }
    if let Some(share) = target.int("averageUtilization").filter(|share| *share < 1) {
        errors.push(FieldError::invalid(path.field("averageUtilization"), share, "must be greater than 0"));
    }
}

fn validate_rules(errors: &mut Vec<FieldError>, path: &Path<'_>, rules: &Value) {
    let bounded =
        |errors: &mut Vec<FieldError>, path: Path<'_>, number: Option<i64>, least: i64, most: i64| {
            let Some(number) = number else { return };
            let detail = match number {
                number if number > most => format!("must be less than or equal to {most}"),
                number if number >= least => return,
                _ if least == 0 => "must be greater than or equal to zero".to_owned(),
                _ => "must be greater than zero".to_owned(),
            };
            errors.push(FieldError::invalid(path, number, detail));
        };
    let window = rules.int("stabilizationWindowSeconds");
    bounded(errors, path.field("stabilizationWindowSeconds"), window, 0, LONGEST_WINDOW);
    let select = rules.text("selectPolicy");
    if !matches!(select, "" | "Disabled" | "Max" | "Min") {
        let known = ["Disabled", "Max", "Min"];
        errors.push(FieldError::not_supported(path.field("selectPolicy"), select, &known));
    }
    let policies = path.field("policies");
    if rules.list("policies").is_empty() {
        errors.push(FieldError::required(policies, "must specify at least one Policy"));
    }
    for (index, policy) in rules.list("policies").iter().enumerate() {
        let path = policies.index(index);
        let kind = policy.text("type");
        if !matches!(kind, "Pods" | "Percent") {
            errors.push(FieldError::not_supported(path.field("type"), kind, &["Percent", "Pods"]));
        }
        let number = |field: &str| Some(policy.int(field).unwrap_or_default());
        bounded(errors, path.field("value"), number("value"), 1, i64::MAX);
        bounded(errors, path.field("periodSeconds"), number("periodSeconds"), 1, LONGEST_PERIOD);
    }
    let tolerance: Option<Quantity> = rules.at("tolerance").as_str().and_then(|text| text.parse().ok());
    if tolerance.is_some_and(|tolerance| tolerance.sign() < 0) {
        let detail = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(path.field("tolerance"), rules.text("tolerance"), detail));
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::{
        tests::{created, kind, with},
        validate_create,
    };

    use super::*;

    const KIND: &str = "autoscaling/horizontalpodautoscalers";

    fn autoscaler() -> Value {
        created(
            KIND,
            json!({
                "kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2",
                "metadata": { "name": "web", "namespace": "a" },
                "spec": { "maxReplicas": 5, "scaleTargetRef": { "kind": "Deployment", "name": "web" }, "behavior": {} },
            }),
        )
    }

    #[track_caller]
    fn check(path: &str, value: Value, expected: &[&str]) {
        let errors = validate_create(kind(KIND), &with(autoscaler(), path, value));
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected, "{path}");
    }

    #[test]
    fn a_behaviour_is_filled_in() {
        let behavior = autoscaler()["spec"]["behavior"].clone();
        assert_eq!(behavior["scaleUp"]["policies"].as_array().map(Vec::len), Some(2));
        assert_eq!(behavior["scaleUp"]["stabilizationWindowSeconds"], 0);
        assert_eq!(behavior["scaleDown"]["stabilizationWindowSeconds"], Value::Null);
        assert_eq!(behavior["scaleDown"]["selectPolicy"], "Max");
    }

    #[test]
    fn metrics_say_what_they_are_of_and_what_they_aim_for() {
        let cpu =
            |target: Value| json!([{ "type": "Resource", "resource": { "name": "cpu", "target": target } }]);
        check("/spec/metrics", cpu(json!({ "type": "Utilization", "averageUtilization": 50 })), &[]);
        check(
            "/spec/metrics",
            json!([{ "type": "Load" }]),
            &[
                "spec.metrics[0].type: Unsupported value: \"Load\": supported values: \"ContainerResource\", \"External\", \
               \"Object\", \"Pods\", \"Resource\"",
            ],
        );
        check(
            "/spec/metrics",
            json!([{ "type": "Resource" }]),
            &[
                "spec.metrics[0].resource: Required value: must populate information for the given metric source",
            ],
        );
        check(
            "/spec/metrics",
            cpu(json!({ "type": "Utilization", "averageUtilization": 0 })),
            &["spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0"],
        );
        check(
            "/spec/metrics",
            cpu(json!({ "type": "AverageValue" })),
            &[
                "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a \
               target utilization",
            ],
        );
    }

    #[test]
    fn rules_have_bounds() {
        check(
            "/spec/behavior/scaleDown/stabilizationWindowSeconds",
            json!(3601),
            &[
                "spec.behavior.scaleDown.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600",
            ],
        );
        check(
            "/spec/behavior/scaleUp/policies",
            json!([{ "type": "Pods", "value": 0, "periodSeconds": 1801 }]),
            &[
                "spec.behavior.scaleUp.policies[0].value: Invalid value: 0: must be greater than zero",
                "spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
            ],
        );
        check(
            "/spec/behavior/scaleUp/selectPolicy",
            json!("Any"),
            &[
                "spec.behavior.scaleUp.selectPolicy: Unsupported value: \"Any\": supported values: \"Disabled\", \"Max\", \"Min\"",
            ],
        );
        check(
            "/spec/behavior/scaleUp/tolerance",
            json!("-1"),
            &["spec.behavior.scaleUp.tolerance: Invalid value: \"-1\": must be greater than or equal to 0"],
        );
    }
}
