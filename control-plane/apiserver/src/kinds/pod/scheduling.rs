//! Validation of what steers a pod to nodes: affinity, tolerations, spreading.

use hawser_api::FieldError;
use serde_json::Value;

use super::spec::one_of;
use crate::kinds::{
    meta::invalid_all,
    names::{label_value, qualified_name},
    selector,
    value::{Fields, Path},
};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn validate(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let affinity = path.field("affinity");
    let nodes = affinity.field("nodeAffinity");
    node_affinity(errors, &nodes, spec.at("affinity.nodeAffinity"));
    for field in ["podAffinity", "podAntiAffinity"] {
        pod_affinity(errors, &affinity.field(field), spec.at("affinity").at(field));
    }
    let list = path.field("tolerations");
    for (index, toleration) in spec.list("tolerations").iter().enumerate() {
        tolerate(errors, &list.index(index), toleration);
    }
    let list = path.field("topologySpreadConstraints");
    for (index, constraint) in spec.list("topologySpreadConstraints").iter().enumerate() {
        spread(errors, &list.index(index), constraint);
    }
}

fn node_affinity(errors: &mut Vec<FieldError>, path: &Path<'_>, affinity: &Value) {
    if affinity.has(REQUIRED) {
        let path = path.field(REQUIRED);
        let terms = affinity.at(REQUIRED).list("nodeSelectorTerms");
        let list = path.field("nodeSelectorTerms");
        if terms.is_empty() {
            errors.push(FieldError::required(list, "must have at least one node selector term"));
        }
        for (index, term) in terms.iter().enumerate() {
            node_term(errors, &list.index(index), term);
        }
    }
    let list = path.field(PREFERRED);
    for (index, term) in affinity.list(PREFERRED).iter().enumerate() {
        let path = list.index(index);
        weight(errors, &path, term);
        node_term(errors, &path.field("preference"), term.at("preference"));
    }
}

/// One term of a node selector, as affinity and volumes use them.
pub(crate) fn node_term(errors: &mut Vec<FieldError>, path: &Path<'_>, term: &Value) {
    let list = path.field("matchExpressions");
    for (index, expression) in term.list("matchExpressions").iter().enumerate() {
        let path = list.index(index);
        let values = expression.list("values");
        match expression.text("operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                path.field("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                path.field("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Gt" | "Lt" if values.len() != 1 => errors.push(FieldError::required(
                path.field("values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => (),
            other => errors.push(FieldError::invalid(
                path.field("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = expression.text("key");
        invalid_all(errors, &path.field("key"), key, qualified_name(key));
        for (at, value) in values.iter().filter_map(Value::as_str).enumerate() {
            invalid_all(errors, &path.field("values").index(at), value, label_value(value));
        }
    }
    let list = path.field("matchFields");
    for (index, expression) in term.list("matchFields").iter().enumerate() {
        let path = list.index(index);
        if !matches!(expression.text("operator"), "In" | "NotIn") {
            let operator = expression.text("operator");
            errors.push(FieldError::invalid(
                path.field("operator"),
                operator,
                "not a valid selector operator",
            ));
        } else if expression.list("values").len() != 1 {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(path.field("values"), detail));
        }
        if expression.text("key") != "metadata.name" {
            let key = expression.text("key");
            errors.push(FieldError::invalid(path.field("key"), key, "not a valid field selector key"));
        }
    }
}

fn weight(errors: &mut Vec<FieldError>, path: &Path<'_>, term: &Value) {
    let weight = term.int("weight").unwrap_or_default();
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(path.field("weight"), weight, "must be in the range 1-100"));
    }
}

fn pod_affinity(errors: &mut Vec<FieldError>, path: &Path<'_>, affinity: &Value) {
    let list = path.field(REQUIRED);
    for (index, term) in affinity.list(REQUIRED).iter().enumerate() {
        pod_term(errors, &list.index(index), term);
    }
    let list = path.field(PREFERRED);
    for (index, term) in affinity.list(PREFERRED).iter().enumerate() {
        let path = list.index(index);
        weight(errors, &path, term);
        pod_term(errors, &path.field("podAffinityTerm"), term.at("podAffinityTerm"));
    }
}

fn pod_term(errors: &mut Vec<FieldError>, path: &Path<'_>, term: &Value) {
    selector::validate(errors, &path.field("labelSelector"), term.at("labelSelector"));
    selector::validate(errors, &path.field("namespaceSelector"), term.at("namespaceSelector"));
    match term.text("topologyKey") {
        "" => errors.push(FieldError::required(path.field("topologyKey"), "can not be empty")),
        key => invalid_all(errors, &path.field("topologyKey"), key, qualified_name(key)),
    }
}

fn tolerate(errors: &mut Vec<FieldError>, path: &Path<'_>, toleration: &Value) {
    let (key, operator) = (toleration.text("key"), toleration.text("operator"));
    if !key.is_empty() {
        invalid_all(errors, &path.field("key"), key, qualified_name(key));
    } else if operator != "Exists" {
        let detail =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.push(FieldError::invalid(path.field("operator"), operator, detail));
    }
    let effect = toleration.text("effect");
    if toleration.has("tolerationSeconds") && effect != "NoExecute" {
        let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(FieldError::invalid(path.field("effect"), effect, detail));
    }
    let value = toleration.text("value");
    match operator {
        "" | "Equal" => invalid_all(errors, &path.field("operator"), value, label_value(value)),
        "Exists" if !value.is_empty() => {
            let detail = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(path.field("operator"), toleration.clone(), detail));
        }
        "Exists" => (),
        other => {
            errors.push(FieldError::not_supported(path.field("operator"), other, &["Equal", "Exists"]));
        }
    }
    if !effect.is_empty() && !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        errors.push(FieldError::not_supported(path.field("effect"), effect, &known));
    }
}

fn spread(errors: &mut Vec<FieldError>, path: &Path<'_>, constraint: &Value) {
    if constraint.int("maxSkew").unwrap_or_default() <= 0 {
        let skew = constraint.int("maxSkew").unwrap_or_default();
        errors.push(FieldError::invalid(path.field("maxSkew"), skew, "must be greater than zero"));
    }
    match constraint.text("topologyKey") {
        "" => errors.push(FieldError::required(path.field("topologyKey"), "can not be empty")),
        key => invalid_all(errors, &path.field("topologyKey"), key, qualified_name(key)),
    }
    let known = ["DoNotSchedule", "ScheduleAnyway"];
    one_of(errors, &path.field("whenUnsatisfiable"), constraint.at("whenUnsatisfiable"), &known);
    if constraint.int("minDomains").is_some_and(|domains| domains <= 0) {
        let domains = constraint.at("minDomains").clone();
        errors.push(FieldError::invalid(path.field("minDomains"), domains, "must be greater than zero"));
    }
    selector::validate(errors, &path.field("labelSelector"), constraint.at("labelSelector"));
}
