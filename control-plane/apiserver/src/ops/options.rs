//! What requests say of how they are to be carried out (`metav1.ListOptions`, `DeleteOptions`, ...), and what of it does not
//! go together: upstream's rules, for HTTP and gRPC alike.
//!
//! What cannot be read is 400; what can and may not be is 422 with a cause for each field.

use std::time::Duration;

use hawser_api::{Error, FieldError, client::Propagation, schema::FieldValidation};

use super::WatchRequest;
use crate::registry::{ListRequest, VersionMatch};

/// The kind of the options that a verb has.
pub fn kind(verb: &str) -> &'static str {
    match verb {
        "create" => "CreateOptions",
        "update" => "UpdateOptions",
        "patch" => "PatchOptions",
        "delete" | "deletecollection" => "DeleteOptions",
        _ => "ListOptions",
    }
}

fn invalid(kind: &str, errors: &[FieldError]) -> Result<(), Error> {
    if errors.is_empty() { Ok(()) } else { Err(Error::invalid("meta.k8s.io", kind, "", errors)) }
}

/// A parameter that is a number.
pub fn number(name: &str, text: &str) -> Result<i64, Error> {
    text.parse()
        .map_err(|_| Error::bad_request(format!("{name}: Invalid value: {text:?}: must be a whole number")))
}

/// A watch lasts no longer, whatever `timeoutSeconds` says: times beyond cannot be counted.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long a watch is to last, from its `timeoutSeconds`; `None` where the server is to say.
pub fn timeout(seconds: i64) -> Option<Duration> {
    (seconds != 0).then(|| Duration::from_secs(seconds.try_into().unwrap_or(0)).min(MAX_TIMEOUT))
}

const VERSION_MATCH: &str = "resourceVersionMatch";

/// Upstream's `ValidateListOptions`.
pub(super) fn check_list(request: &ListRequest) -> Result<(), Error> {
    let mut errors = Vec::new();
    let mut forbid = |field: &str, why: &str| errors.push(FieldError::forbidden(field, why));
    if request.version_match != VersionMatch::Unset {
        if request.resource_version.is_empty() {
            forbid(VERSION_MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !request.continue_token.is_empty() {
            forbid(VERSION_MATCH, "resourceVersionMatch is forbidden when continue is provided");
        }
    }
    match &request.version_match {
        VersionMatch::Exact if request.resource_version == "0" => {
            forbid(VERSION_MATCH, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
        VersionMatch::Unknown(text) => {
            errors.push(FieldError::not_supported(
                VERSION_MATCH,
                text.as_str(),
                &["Exact", "NotOlderThan", ""],
            ));
        }
        _ => {}
    }
    if request.send_initial_events.is_some() {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    invalid("ListOptions", &errors)
}

/// The same for a watch.
pub(super) fn check_watch(request: &WatchRequest) -> Result<(), Error> {
    let mut errors = Vec::new();
    let mut forbid = |why: &str| errors.push(FieldError::forbidden(VERSION_MATCH, why));
    let match_ = &request.version_match;
    if request.send_initial_events.is_some() && *match_ != VersionMatch::NotOlderThan {
        forbid("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if *match_ != VersionMatch::Unset {
        if request.send_initial_events.is_none() {
            forbid("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
        }
        if !request.continue_token.is_empty() {
            forbid("resourceVersionMatch is forbidden when continue is provided");
        }
        if *match_ != VersionMatch::NotOlderThan {
            errors.push(FieldError::not_supported(VERSION_MATCH, match_.as_str(), &["NotOlderThan"]));
        }
    }
    invalid("ListOptions", &errors)
}

/// Whether nothing is to be written; `kind` is that of the options (`CreateOptions`).
pub fn dry_run<'v>(kind: &str, values: impl Iterator<Item = &'v str>) -> Result<bool, Error> {
    let mut dry = false;
    for value in values.filter(|value| !value.is_empty()) {
        if value != "All" {
            invalid(kind, &[FieldError::not_supported("dryRun", value, &["All"])])?;
        }
        dry = true;
    }
    Ok(dry)
}

/// How strictly the body is read.
pub fn field_validation(kind: &str, text: &str) -> Result<FieldValidation, Error> {
    if let Some(validation) = FieldValidation::parse(text) {
        return Ok(validation);
    }
    let supported = ["", "Ignore", "Strict", "Warn"];
    invalid(kind, &[FieldError::not_supported("fieldValidation", text, &supported)])?;
    Ok(FieldValidation::default())
}

/// What becomes of dependents: the policy's name, or the older switch, but not both.
pub fn propagation(policy: Option<&str>, orphan: Option<bool>) -> Result<Option<Propagation>, Error> {
    let mut errors = Vec::new();
    if let (Some(policy), Some(_)) = (policy, orphan) {
        let why = "orphanDependents and deletionPropagation cannot be both set";
        errors.push(FieldError::invalid("propagationPolicy", policy, why));
    }
    let known = [Propagation::Foreground, Propagation::Background, Propagation::Orphan];
    let named = policy.and_then(|policy| known.into_iter().find(|known| known.as_str() == policy));
    if let (Some(policy), None) = (policy, named) {
        let supported = ["Foreground", "Background", "Orphan", "nil"];
        errors.push(FieldError::not_supported("propagationPolicy", policy, &supported));
    }
    invalid("DeleteOptions", &errors)?;
    let older = |orphan| if orphan { Propagation::Orphan } else { Propagation::Background };
    Ok(named.or(orphan.map(older)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The causes of a refusal, as `field: message`.
    fn causes(outcome: Result<(), Error>) -> Vec<String> {
        let Err(error) = outcome else { return Vec::new() };
        assert_eq!(error.code(), 422, "{error}");
        let status = error.to_status();
        let causes = status["details"]["causes"].as_array().cloned().unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        causes.iter().map(|cause| format!("{}: {}", text(&cause["field"]), text(&cause["message"]))).collect()
    }

    #[test]
    fn options_of_lists_go_together_or_are_refused_with_a_cause_each() {
        let check = |version: &str, match_: &str, token: &str, initial: Option<bool>| {
            causes(check_list(&ListRequest {
                resource_version: version.to_owned(),
                version_match: VersionMatch::parse(match_),
                continue_token: token.to_owned(),
                send_initial_events: initial,
                ..ListRequest::default()
            }))
        };
        for (version, match_, token) in
            [("", "", ""), ("", "", "t"), ("0", "NotOlderThan", ""), ("7", "Exact", "")]
        {
            assert!(check(version, match_, token, None).is_empty(), "{version} {match_} {token}");
        }
        let unless = "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided";
        assert_eq!(check("", "Exact", "", None), [unless]);
        assert_eq!(
            check("", "x", "t", Some(false)),
            [
                unless,
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided",
                "resourceVersionMatch: Unsupported value: \"x\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
            ]
        );
        assert_eq!(
            check("0", "Exact", "", None),
            [
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""
            ]
        );
    }

    #[test]
    fn options_of_watches_go_together_or_are_refused_with_a_cause_each() {
        let check = |match_: &str, token: &str, initial: Option<bool>| {
            causes(check_watch(&WatchRequest {
                version_match: VersionMatch::parse(match_),
                continue_token: token.to_owned(),
                send_initial_events: initial,
                ..WatchRequest::default()
            }))
        };
        assert!(check("", "", None).is_empty());
        assert!(check("NotOlderThan", "", Some(false)).is_empty());
        let requires = "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        assert_eq!(check("", "", Some(true)), [requires]);
        let unknown =
            "resourceVersionMatch: Unsupported value: \"Exact\": supported values: \"NotOlderThan\"";
        assert_eq!(check("Exact", "", Some(true)), [requires, unknown]);
        let unless = "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        let when =
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided";
        assert_eq!(check("NotOlderThan", "t", None), [unless, when]);
    }

    #[test]
    fn options_of_writes_name_what_they_do_not_know() {
        assert_eq!(dry_run("CreateOptions", ["", "All"].into_iter()).ok(), Some(true));
        let refused = dry_run("CreateOptions", ["Some"].into_iter()).map(drop);
        assert_eq!(causes(refused), ["dryRun: Unsupported value: \"Some\": supported values: \"All\""]);
        let refused = field_validation("PatchOptions", "Hard").map(drop);
        assert!(causes(refused)[0].starts_with("fieldValidation: Unsupported value: \"Hard\""));
        assert_eq!(propagation(None, Some(true)).ok(), Some(Some(Propagation::Orphan)));
        assert_eq!(propagation(Some("Foreground"), None).ok(), Some(Some(Propagation::Foreground)));
        assert_eq!(causes(propagation(Some("Sideways"), Some(false)).map(drop)).len(), 2);
    }
}
