//! `LabelSelector` as objects carry it: validation, and the text form that selectors have in URLs.

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    meta,
    names::{label_value, qualified_name},
    value::{Fields, Path},
};

/// `app=web,tier in (a,b),!canary`; empty for a selector that is absent or selects everything.
pub(crate) fn to_text(selector: &Value) -> String {
    let mut terms: Vec<(String, String)> = Vec::new();
    for (key, value) in selector.map("matchLabels") {
        terms.push((key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    for term in selector.list("matchExpressions") {
        let key = term.text("key");
        let mut values: Vec<&str> = term.list("values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match term.text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        terms.push((key.to_owned(), text));
    }
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    terms.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

/// `app=web,tier=db` of a plain map.
pub(crate) fn map_to_text(labels: &Value) -> String {
    let terms: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    terms.join(",")
}

pub(crate) fn is_empty(selector: &Value) -> bool {
    selector.map("matchLabels").is_empty() && selector.list("matchExpressions").is_empty()
}

pub(crate) fn validate(errors: &mut Vec<FieldError>, path: &Path<'_>, selector: &Value) {
    meta::labels(errors, &path.field("matchLabels"), selector.at("matchLabels"));
    let expressions = path.field("matchExpressions");
    for (index, term) in selector.list("matchExpressions").iter().enumerate() {
        let path = expressions.index(index);
        let values = term.list("values");
        match term.text("operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                path.field("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "In" | "NotIn" => (),
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    errors.push(FieldError::forbidden(
                        path.field("values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    ));
                }
            }
            other => {
                errors.push(FieldError::invalid(
                    path.field("operator"),
                    other,
                    "not a valid selector operator",
                ));
            }
        }
        let key = term.text("key");
        meta::invalid_all(errors, &path.field("key"), key, qualified_name(key));
        for (at, value) in values.iter().filter_map(Value::as_str).enumerate() {
            meta::invalid_all(errors, &path.field("values").index(at), value, label_value(value));
        }
    }
}

/// Whether `labels` satisfy the selector; an absent one selects nothing.
pub(crate) fn matches(selector: &Value, labels: &Value) -> bool {
    if !selector.is_object() {
        return false;
    }
    let equal = selector.map("matchLabels").iter().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.list("matchExpressions").iter().all(|term| {
            let value = labels.get(term.text("key"));
            let listed = value.is_some_and(|value| term.list("values").contains(value));
            match term.text("operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_is_sorted_by_key() {
        let selector = json!({
            "matchLabels": { "tier": "db", "app": "web" },
            "matchExpressions": [
                { "key": "zone", "operator": "In", "values": ["b", "a"] },
                { "key": "canary", "operator": "DoesNotExist" },
            ],
        });
        assert_eq!(to_text(&selector), "app=web,!canary,tier=db,zone in (a,b)");
        assert_eq!(to_text(&Value::Null), "");
    }

    #[test]
    fn absent_selector_matches_nothing_and_an_empty_one_all() {
        let labels = json!({ "app": "web" });
        assert!(!matches(&Value::Null, &labels));
        assert!(matches(&json!({}), &labels));
        assert!(matches(&json!({ "matchLabels": { "app": "web" } }), &labels));
        assert!(!matches(
            &json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["web"] }] }),
            &labels
        ));
    }
}
