//! Small rules that several kinds have, with upstream's words.

use hawser_api::{FieldError, error::FieldErrorKind};
use serde_json::Value;

use super::{
    meta::invalid_all,
    names::{dns_subdomain, port_number},
    value::{Fields, Path},
};

/// Refuses a change of what stands for good.
pub(crate) fn immutable(errors: &mut Vec<FieldError>, path: &Path<'_>, new: &Value, old: &Value) {
    if new != old {
        errors.push(FieldError::invalid(path, new.clone(), "field is immutable"));
    }
}

/// Refuses what is absent or empty.
pub(crate) fn required(errors: &mut Vec<FieldError>, path: &Path<'_>, text: &str) {
    if text.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
}

/// Refuses words that are not known; `known` is shown in its order.
pub(crate) fn one_of(errors: &mut Vec<FieldError>, path: &Path<'_>, word: &str, known: &[&str]) {
    if !known.contains(&word) {
        errors.push(FieldError::not_supported(path, word, known));
    }
}

/// Refuses numbers below nothing.
pub(crate) fn not_negative(errors: &mut Vec<FieldError>, path: &Path<'_>, number: &Value) {
    if let Some(number) = number.as_i64().filter(|number| *number < 0) {
        errors.push(FieldError::invalid(path, number, "must be greater than or equal to 0"));
    }
}

/// Refuses lists with more than `limit` items.
pub(crate) fn at_most(errors: &mut Vec<FieldError>, path: &Path<'_>, count: usize, limit: usize) {
    if count > limit {
        let detail = format!("must have at most {limit} items");
        errors.push(FieldError::new(FieldErrorKind::TooMany, path, Some(count.into()), detail));
    }
}

/// Refuses text of more than `limit` bytes.
pub(crate) fn no_longer(errors: &mut Vec<FieldError>, path: &Path<'_>, text: &str, limit: usize) {
    if text.len() > limit {
        let detail = format!("may not be more than {limit} bytes");
        errors.push(FieldError::new(FieldErrorKind::TooLong, path, None, detail));
    }
}

/// A domain, a slash, and a path, by which controllers are named.
pub(crate) fn prefixed_path(errors: &mut Vec<FieldError>, path: &Path<'_>, text: &str) {
    const ALLOWED: &str = "/-._~%!$&'()*+,;=:";
    match text.split_once('/') {
        _ if text.is_empty() => errors.push(FieldError::required(path, "")),
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            invalid_all(errors, path, domain, dns_subdomain(domain));
            if !rest.chars().all(|char| char.is_ascii_alphanumeric() || ALLOWED.contains(char)) {
                let detail = r"Invalid path (regex used for validation is '[A-Za-z0-9/\-._~%!$&'()*+,;=:]+')";
                errors.push(FieldError::invalid(path, rest, detail));
            }
        }
        _ => {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.push(FieldError::invalid(path, text, detail));
        }
    }
}

/// The texts of a list; empty where it is absent.
pub(crate) fn words<'a>(object: &'a Value, field: &str) -> Vec<&'a str> {
    object.list(field).iter().filter_map(Value::as_str).collect()
}

/// Refuses a `*` that is not alone; `others` names what else the list holds.
pub(crate) fn lone_wildcard(errors: &mut Vec<FieldError>, path: &Path<'_>, words: &[&str], others: &str) {
    if words.len() > 1 && words.contains(&"*") {
        let detail = format!("if '*' is present, must not specify other {others}");
        errors.push(FieldError::invalid(path, Value::from(words), detail));
    }
}

/// Where a webhook is: either a URL or a Service.
pub(crate) fn webhook_client(errors: &mut Vec<FieldError>, path: &Path<'_>, client: &Value) {
    match (client.at("url").as_str(), client.at("service")) {
        (Some(url), Value::Null) => webhook_url(errors, &path.field("url"), url),
        (None, service) if service.is_object() => webhook_service(errors, &path.field("service"), service),
        _ => errors.push(FieldError::required(path, "exactly one of url or service is required")),
    }
}

fn webhook_url(errors: &mut Vec<FieldError>, path: &Path<'_>, url: &str) {
    const FORM: &str = "; desired format: https://host[:port]/path";
    let mut wrong = |value: &str, what: &str| {
        errors.push(FieldError::invalid(path, value, format!("{what}{FORM}")));
    };
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        wrong(scheme, "'https' is the only allowed URL scheme");
    }
    let (host, after) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (before, fragment) = after.split_once('#').unwrap_or((after, ""));
    if let Some((user, _)) = host.split_once('@') {
        wrong(user, "user information is not permitted in the URL");
    } else if scheme.is_empty() || host.is_empty() {
        wrong("", "host must be specified");
    }
    if !fragment.is_empty() {
        wrong(fragment, "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = before.split_once('?').filter(|(_, query)| !query.is_empty()) {
        wrong(query, "query parameters are not permitted in the URL");
    }
}

fn webhook_service(errors: &mut Vec<FieldError>, path: &Path<'_>, service: &Value) {
    for (field, detail) in
        [("name", "service name is required"), ("namespace", "service namespace is required")]
    {
        if service.text(field).is_empty() {
            errors.push(FieldError::required(path.field(field), detail));
        }
    }
    service_port(errors, path, service);
    let Some(url) = service.at("path").as_str() else { return };
    let path = path.field("path");
    let Some(steps) = url.strip_prefix('/') else {
        errors.push(FieldError::invalid(path, url, "must start with a '/'"));
        return;
    };
    let steps = steps.strip_suffix('/').unwrap_or(steps);
    if steps.is_empty() {
        return;
    }
    for (index, step) in steps.split('/').enumerate() {
        if step.is_empty() {
            errors.push(FieldError::invalid(path, url, format!("segment[{index}] may not be empty")));
            continue;
        }
        for wrong in dns_subdomain(step) {
            errors.push(FieldError::invalid(path, url, format!("segment[{index}]: {wrong}")));
        }
    }
}

/// The port of a Service that the server is to call.
pub(crate) fn service_port(errors: &mut Vec<FieldError>, path: &Path<'_>, service: &Value) {
    let port = service.int("port").unwrap_or_default();
    if let Some(wrong) = port_number(port) {
        errors.push(FieldError::invalid(path.field("port"), port, format!("port is not valid: {wrong}")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(client: &Value, expected: &[&str]) {
        let mut errors = Vec::new();
        webhook_client(&mut errors, &Path::Root("clientConfig"), client);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), expected.len(), "{texts:#?}");
        for (text, start) in texts.iter().zip(expected) {
            assert!(text.starts_with(start), "{text:?} does not start with {start:?}");
        }
    }

    #[test]
    fn webhooks_are_a_url_or_a_service() {
        let service =
            |path: &str| json!({ "service": { "name": "a", "namespace": "b", "port": 443, "path": path } });
        check(&json!({}), &["clientConfig: Required value: exactly one of url or service is required"]);
        check(&json!({ "url": "https://example.com:8443/a" }), &[]);
        check(
            &json!({ "url": "http://example.com" }),
            &[
                "clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format",
            ],
        );
        check(
            &json!({ "url": "https://me:secret@example.com/?a=b#c" }),
            &[
                "clientConfig.url: Invalid value: \"me:secret\": user information is not permitted",
                "clientConfig.url: Invalid value: \"c\": fragments are not permitted",
                "clientConfig.url: Invalid value: \"a=b\": query parameters are not permitted",
            ],
        );
        check(
            &json!({ "url": "https:///a" }),
            &["clientConfig.url: Invalid value: \"\": host must be specified"],
        );
        check(&service("/validate"), &[]);
        check(&service("/"), &[]);
        check(
            &service("validate"),
            &["clientConfig.service.path: Invalid value: \"validate\": must start with"],
        );
        check(
            &service("/a//b"),
            &["clientConfig.service.path: Invalid value: \"/a//b\": segment[1] may not be empty"],
        );
        check(
            &json!({ "service": { "port": 0 } }),
            &[
                "clientConfig.service.name: Required value: service name is required",
                "clientConfig.service.namespace: Required value",
                "clientConfig.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535",
            ],
        );
    }
}
