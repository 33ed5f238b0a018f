//! Validation of what steers a pod to nodes: affinity, tolerations, spreading.

use std::collections::HashMap;

use hawser_api::FieldError;
use serde_json::Value;

use crate::kinds::{
    meta::invalid_all,
    names::{dns_label, dns_subdomain, label_value, qualified_name},
    rules::{self, words},
    selector,
    value::{Fields, Path},
};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// What the values of a requirement are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    /// Such as labels can have.
    Labels,
    /// Anything: what is only preferred may prefer what cannot be.
    Any,
}

/// `pod` is the metadata of the pod whose spec it is; none of a template.
pub(super) fn validate(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value, pod: Option<&Value>) {
    let affinity = path.field("affinity");
    let nodes = affinity.field("nodeAffinity");
    node_affinity(errors, &nodes, spec.at("affinity.nodeAffinity"));
    for field in ["podAffinity", "podAntiAffinity"] {
        pod_affinity(errors, &affinity.field(field), spec.at("affinity").at(field), pod);
    }
    let list = path.field("tolerations");
    for (index, toleration) in spec.list("tolerations").iter().enumerate() {
        self::toleration(errors, &list.index(index), toleration);
    }
    let list = path.field("topologySpreadConstraints");
    let constraints = spec.list("topologySpreadConstraints");
    // How many of each kind are still to come.
    let mut left: HashMap<(&str, &str), usize> = HashMap::new();
    constraints.iter().for_each(|constraint| *left.entry(what_spreads(constraint)).or_default() += 1);
    for (index, constraint) in constraints.iter().enumerate() {
        let (path, what) = (list.index(index), what_spreads(constraint));
        spread(errors, &path, constraint, pod);
        let left = left.entry(what).or_default();
        *left = left.saturating_sub(1);
        if *left > 0 {
            let path = path.field("{topologyKey, whenUnsatisfiable}");
            errors.push(FieldError::duplicate(path, format!("{{{}, {}}}", what.0, what.1)));
        }
    }
}

fn what_spreads(constraint: &Value) -> (&str, &str) {
    (constraint.text("topologyKey"), constraint.text("whenUnsatisfiable"))
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
            node_term(errors, &list.index(index), term, Values::Labels);
        }
    }
    let list = path.field(PREFERRED);
    for (index, term) in affinity.list(PREFERRED).iter().enumerate() {
        let path = list.index(index);
        weight(errors, &path, term);
        node_term(errors, &path.field("preference"), term.at("preference"), Values::Any);
    }
}

/// One term of a node selector, as affinity and volumes use them.
pub(crate) fn node_term(errors: &mut Vec<FieldError>, path: &Path<'_>, term: &Value, of: Values) {
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
            if of == Values::Labels {
                invalid_all(errors, &path.field("values").index(at), value, label_value(value));
            }
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
            continue;
        }
        for (at, name) in words(expression, "values").into_iter().enumerate() {
            invalid_all(errors, &path.field("values").index(at), name, dns_subdomain(name));
        }
    }
}

fn weight(errors: &mut Vec<FieldError>, path: &Path<'_>, term: &Value) {
    let weight = term.int("weight").unwrap_or_default();
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(path.field("weight"), weight, "must be in the range 1-100"));
    }
}

fn pod_affinity(errors: &mut Vec<FieldError>, path: &Path<'_>, affinity: &Value, pod: Option<&Value>) {
    let list = path.field(REQUIRED);
    for (index, term) in affinity.list(REQUIRED).iter().enumerate() {
        pod_term(errors, &list.index(index), term, pod);
    }
    let list = path.field(PREFERRED);
    for (index, term) in affinity.list(PREFERRED).iter().enumerate() {
        let path = list.index(index);
        weight(errors, &path, term);
        pod_term(errors, &path.field("podAffinityTerm"), term.at("podAffinityTerm"), pod);
    }
}

fn pod_term(errors: &mut Vec<FieldError>, path: &Path<'_>, term: &Value, pod: Option<&Value>) {
    selector::validate(errors, &path.field("labelSelector"), term.at("labelSelector"));
    selector::validate(errors, &path.field("namespaceSelector"), term.at("namespaceSelector"));
    for name in words(term, "namespaces") {
        invalid_all(errors, &path.field("namespace"), name, dns_label(name));
    }
    label_keys(errors, path, term, pod);
    let key = term.text("topologyKey");
    if key.is_empty() {
        errors.push(FieldError::required(path.field("topologyKey"), "can not be empty"));
    }
    invalid_all(errors, &path.field("topologyKey"), key, qualified_name(key));
}

/// Labels whose values are the pod's own: none that the selector names already, and none that is to differ too.
fn label_keys(errors: &mut Vec<FieldError>, path: &Path<'_>, term: &Value, pod: Option<&Value>) {
    let selector = term.at("labelSelector");
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let (keys, list) = (words(term, field), path.field(field));
        if !keys.is_empty() && selector.is_null() {
            let detail = "must not be specified when labelSelector is not set";
            errors.push(FieldError::forbidden(list, detail));
            continue;
        }
        for (index, key) in keys.into_iter().enumerate() {
            invalid_all(errors, &list.index(index), key, qualified_name(key));
        }
    }
    let differing = words(term, "mismatchLabelKeys");
    let list = path.field("matchLabelKeys");
    for (index, key) in words(term, "matchLabelKeys").into_iter().enumerate() {
        // A label that the pod does not have selects nothing.
        let is_used = pod.is_some_and(|meta| meta.map("labels").contains_key(key));
        let mut named = selector.list("matchExpressions").iter().map(|term| term.text("key"));
        if is_used && (selector.map("matchLabels").contains_key(key) || named.any(|name| name == key)) {
            let detail = "exists in both matchLabelKeys and labelSelector";
            errors.push(FieldError::invalid(path.index(index), key, detail));
        }
        if differing.contains(&key) {
            let detail = "exists in both matchLabelKeys and mismatchLabelKeys";
            errors.push(FieldError::invalid(list.index(index), key, detail));
        }
    }
}

/// One toleration, of a pod or of a runtime class.
pub(crate) fn toleration(errors: &mut Vec<FieldError>, path: &Path<'_>, toleration: &Value) {
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
        "" | "Equal" => {
            let wrong = label_value(value);
            if !wrong.is_empty() {
                errors.push(FieldError::invalid(path.field("operator"), value, wrong.join(";")));
            }
        }
        "Exists" if !value.is_empty() => {
            let detail = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(path.field("operator"), value, detail));
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

fn spread(errors: &mut Vec<FieldError>, path: &Path<'_>, constraint: &Value, pod: Option<&Value>) {
    let skew = constraint.int("maxSkew").unwrap_or_default();
    if skew <= 0 {
        errors.push(FieldError::invalid(path.field("maxSkew"), skew, "must be greater than zero"));
    }
    if constraint.text("topologyKey").is_empty() {
        errors.push(FieldError::required(path.field("topologyKey"), "can not be empty"));
    }
    let action = constraint.text("whenUnsatisfiable");
    rules::one_of(errors, &path.field("whenUnsatisfiable"), action, &["DoNotSchedule", "ScheduleAnyway"]);
    if let Some(domains) = constraint.int("minDomains") {
        let path = path.field("minDomains");
        if domains <= 0 {
            errors.push(FieldError::invalid(path, domains, "must be greater than zero"));
        }
        if action != "DoNotSchedule" {
            let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
            errors.push(FieldError::invalid(path, domains, detail));
        }
    }
    for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
        if constraint.has(field) {
            rules::one_of(errors, &path.field(field), constraint.text(field), &["Honor", "Ignore"]);
        }
    }
    label_keys(errors, path, constraint, pod);
    selector::validate(errors, &path.field("labelSelector"), constraint.at("labelSelector"));
}
