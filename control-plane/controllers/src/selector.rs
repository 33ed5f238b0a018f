//! Label selectors as the typed objects carry them, matched against a set of labels.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

pub(crate) type Labels = BTreeMap<String, String>;

/// True where the selector names nothing, and so would match everything.
pub(crate) fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// An empty selector matches everything, an operator that nobody knows matches nothing.
pub(crate) fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.match_labels.as_ref().is_none_or(|wanted| contains(labels, wanted))
        && selector.match_expressions.iter().flatten().all(|requirement| meets(requirement, labels))
}

/// Every pair of `wanted` is in `labels`.
pub(crate) fn contains(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn meets(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let listed = |value: &String| requirement.values.iter().flatten().any(|other| other == value);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

/// The selector as kubectl prints it: `app=web,tier in (a,b),!old`.
pub(crate) fn to_text(selector: &LabelSelector) -> String {
    let pairs = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let terms = selector.match_expressions.iter().flatten().map(|requirement| {
        let (key, values) = (&requirement.key, requirement.values.clone().unwrap_or_default().join(","));
        match requirement.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.clone(),
        }
    });
    pairs.chain(terms).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, requirement: (&str, &str, &[&str]), labels: &[(&str, &str)], expected: bool) {
        let (key, operator, values) = requirement;
        let selector = LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(ToString::to_string).collect()),
            }]),
            match_labels: None,
        };
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        assert_eq!(matches(&selector, &labels), expected, "{name}");
    }

    #[test]
    fn requirements_match_as_upstream_has_it() {
        check("in", ("app", "In", &["a", "b"]), &[("app", "b")], true);
        check("in, absent", ("app", "In", &["a"]), &[], false);
        check("not in", ("app", "NotIn", &["a"]), &[("app", "a")], false);
        check("not in, absent", ("app", "NotIn", &["a"]), &[], true);
        check("exists", ("app", "Exists", &[]), &[("app", "")], true);
        check("does not exist", ("app", "DoesNotExist", &[]), &[("app", "")], false);
        check("unknown operator", ("app", "Near", &[]), &[("app", "")], false);
    }
}
