//! The API's error: every failure that a client can see, as `metav1.Status` says it.
//!
//! One type from the registry to the wire and back, so that code, reason, field path and message are the
//! same in-process, over HTTP and over gRPC. Reasons and codes are those of
//! `k8s.io/apimachinery/pkg/apis/meta/v1.StatusReason`.

use serde_json::{Value, json};
use std::fmt;

use crate::resource::GroupVersionResource;

/// `metav1.StatusReason`, the part that a program acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    AlreadyExists,
    Conflict,
    /// The requested version is no longer in the history (410).
    Expired,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    Invalid,
    TooManyRequests,
    InternalError,
    ServiceUnavailable,
    Timeout,
    Unknown,
}

/// Every reason with its name on the wire and its HTTP code.
const REASONS: [(Reason, &str, u16); 17] = [
    (Reason::BadRequest, "BadRequest", 400),
    (Reason::Unauthorized, "Unauthorized", 401),
    (Reason::Forbidden, "Forbidden", 403),
    (Reason::NotFound, "NotFound", 404),
    (Reason::MethodNotAllowed, "MethodNotAllowed", 405),
    (Reason::NotAcceptable, "NotAcceptable", 406),
    (Reason::AlreadyExists, "AlreadyExists", 409),
    (Reason::Conflict, "Conflict", 409),
    (Reason::Expired, "Expired", 410),
    (Reason::RequestEntityTooLarge, "RequestEntityTooLarge", 413),
    (Reason::UnsupportedMediaType, "UnsupportedMediaType", 415),
    (Reason::Invalid, "Invalid", 422),
    (Reason::TooManyRequests, "TooManyRequests", 429),
    (Reason::InternalError, "InternalError", 500),
    (Reason::ServiceUnavailable, "ServiceUnavailable", 503),
    (Reason::Timeout, "Timeout", 504),
    (Reason::Unknown, "", 500),
];

impl Reason {
    /// The name on the wire; empty for [`Reason::Unknown`].
    pub fn as_str(self) -> &'static str {
        REASONS.iter().find(|(reason, ..)| *reason == self).map_or("", |(_, name, _)| name)
    }

    /// The HTTP status code.
    pub fn code(self) -> u16 {
        REASONS.iter().find(|(reason, ..)| *reason == self).map_or(500, |(.., code)| *code)
    }

    fn from_wire(name: &str, code: u64) -> Self {
        let by_name = REASONS.iter().find(|(_, known, _)| !known.is_empty() && *known == name);
        let by_code = || REASONS.iter().find(|(.., known)| u64::from(*known) == code);
        by_name.or_else(by_code).map_or(Self::Unknown, |(reason, ..)| *reason)
    }
}

/// What is wrong with one field, in the words of `k8s.io/apimachinery/pkg/util/validation/field`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: FieldErrorKind,
    /// Path from the object's root: `spec.containers[0].image`.
    pub field: String,
    /// The value that was refused, where showing it helps.
    pub value: Option<Value>,
    /// What is expected instead; may be empty.
    pub detail: String,
}

/// `metav1.CauseType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
    Internal,
}

impl FieldErrorKind {
    fn cause(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

impl FieldError {
    pub fn new(
        kind: FieldErrorKind,
        field: impl Into<String>,
        value: Option<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self { kind, field: field.into(), value, detail: detail.into() }
    }

    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, field, None, detail)
    }

    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, field, Some(value.into()), detail)
    }

    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, field, Some(value.into()), "")
    }

    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, field, None, detail)
    }

    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, field, Some(value.into()), "")
    }

    /// `supported` is shown in the order given.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|name| format!("{name:?}")).collect();
        let detail = format!("supported values: {}", quoted.join(", "));
        Self::new(FieldErrorKind::NotSupported, field, Some(value.into()), detail)
    }

    /// The message without the field: `Invalid value: "x": must be ...`.
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if let Some(value) = &self.value {
            text.push_str(": ");
            text.push_str(&value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// A failed request.
///
/// Kept small behind one box, because it travels in the `Result` of every call.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub struct Error(Box<Detail>);

#[derive(Clone, Debug)]
struct Detail {
    reason: Reason,
    message: String,
    /// `metav1.StatusDetails`, as JSON; `None` where there is nothing to say.
    details: Option<Value>,
    /// `metadata.continue`: where a list that cannot go on as it began can be gone on with. Empty elsewhere.
    continue_token: String,
}

impl Error {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self(Box::new(Detail {
            reason,
            message: message.into(),
            details: None,
            continue_token: String::new(),
        }))
    }

    fn with_details(reason: Reason, message: impl Into<String>, details: Value) -> Self {
        let mut error = Self::new(reason, message);
        error.0.details = Some(details);
        error
    }

    fn about(reason: Reason, resource: &GroupVersionResource, name: &str, message: String) -> Self {
        let mut details = json!({ "name": name, "kind": resource.resource });
        if !resource.group.is_empty() {
            details["group"] = json!(resource.group);
        }
        Self::with_details(reason, message, details)
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    pub fn internal(error: impl fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {error}"))
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, message)
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(Reason::Timeout, message)
    }

    /// The store has not come so far yet, or never will, where it was restored from a backup. client-go looks for the
    /// cause, and lists anew where it finds it.
    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let cause = json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
        Self::with_details(Reason::Timeout, message, json!({ "causes": [cause], "retryAfterSeconds": 1 }))
    }

    pub fn not_found(resource: &GroupVersionResource, name: &str) -> Self {
        Self::about(Reason::NotFound, resource, name, format!("{} {name:?} not found", resource.qualified()))
    }

    pub fn already_exists(resource: &GroupVersionResource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", resource.qualified());
        Self::about(Reason::AlreadyExists, resource, name, message)
    }

    /// The object moved on since the client read it.
    pub fn conflict(resource: &GroupVersionResource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", resource.qualified());
        Self::about(Reason::Conflict, resource, name, message)
    }

    /// An apply would take fields from their managers; each cause is a message and a field.
    pub fn apply_conflict(
        message: impl Into<String>,
        causes: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let causes = causes.into_iter().map(|(message, field)| {
            json!({ "reason": "FieldManagerConflict", "message": message, "field": field })
        });
        let causes: Vec<Value> = causes.collect();
        Self::with_details(Reason::Conflict, message, json!({ "causes": causes }))
    }

    /// `user` may not do `verb`.
    pub fn forbidden(resource: &GroupVersionResource, name: &str, why: &str) -> Self {
        let subject = if name.is_empty() { String::new() } else { format!(" {name:?}") };
        let message = format!("{}{subject} is forbidden: {why}", resource.qualified());
        Self::about(Reason::Forbidden, resource, name, message)
    }

    /// Says one more reason, in the words that controllers look for.
    pub fn caused_by(mut self, reason: &str, message: &str, field: &str) -> Self {
        let cause = json!({ "reason": reason, "message": message, "field": field });
        let details = self.0.details.get_or_insert_with(|| json!({}));
        match details["causes"].as_array_mut() {
            Some(causes) => causes.push(cause),
            None => details["causes"] = json!([cause]),
        }
        self
    }

    /// The history does not reach back that far; the client lists again.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    /// The version of a list's first pages is gone; `continue_token` gives the rest as it is now.
    pub fn expired_continue(message: impl Into<String>, continue_token: String) -> Self {
        let mut error = Self::expired(message);
        error.0.continue_token = continue_token;
        error
    }

    /// Tells the client to come back after `seconds`.
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        Self::with_details(Reason::TooManyRequests, message, json!({ "retryAfterSeconds": seconds }))
    }

    /// The same, with the cause for programs; 0 seconds say nothing of when.
    pub fn too_many_requests_because(
        message: impl Into<String>,
        seconds: u32,
        reason: &str,
        cause: &str,
    ) -> Self {
        let mut details = json!({ "causes": [{ "reason": reason, "message": cause }] });
        if seconds > 0 {
            details["retryAfterSeconds"] = json!(seconds);
        }
        Self::with_details(Reason::TooManyRequests, message, details)
    }

    /// The object breaks rules of its kind. `kind` is the Go kind (`Pod`); `errors` is not empty.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let all = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes: Vec<Value> = errors
            .iter()
            .map(|error| json!({ "reason": error.kind.cause(), "message": error.body(), "field": error.field }))
            .collect();
        let mut details = json!({ "name": name, "kind": kind, "causes": causes });
        if !group.is_empty() {
            details["group"] = json!(group);
        }
        Self::with_details(Reason::Invalid, format!("{qualified} {name:?} is invalid: {all}"), details)
    }

    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The HTTP status code.
    pub fn code(&self) -> u16 {
        self.0.reason.code()
    }

    /// Seconds after which to try again, where the server named them.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.0.details.as_ref()?.get("retryAfterSeconds")?.as_u64()
    }

    pub fn is_not_found(&self) -> bool {
        self.reason() == Reason::NotFound
    }

    pub fn is_conflict(&self) -> bool {
        self.reason() == Reason::Conflict
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason() == Reason::AlreadyExists
    }

    pub fn is_expired(&self) -> bool {
        self.reason() == Reason::Expired
    }

    /// The `metav1.Status` as a JSON value.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.0.message,
            "reason": self.0.reason.as_str(),
            "code": self.code(),
        });
        if let Some(details) = &self.0.details {
            status["details"] = details.clone();
        }
        if !self.0.continue_token.is_empty() {
            status["metadata"]["continue"] = json!(self.0.continue_token);
        }
        status
    }

    /// Reads a `metav1.Status` back; anything else becomes an error that says what came.
    pub fn from_status(status: &Value) -> Self {
        let text = |name: &str| status.get(name).and_then(Value::as_str).unwrap_or_default();
        let code = status.get("code").and_then(Value::as_u64).unwrap_or(500);
        Self(Box::new(Detail {
            reason: Reason::from_wire(text("reason"), code),
            message: text("message").to_owned(),
            details: status.get("details").cloned(),
            continue_token: status["metadata"]["continue"].as_str().unwrap_or_default().to_owned(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "pods");
    const DEPLOYMENTS: GroupVersionResource = GroupVersionResource::fixed("apps", "v1", "deployments");

    #[test]
    fn messages_are_worded_as_upstream_does() {
        assert_eq!(Error::not_found(&PODS, "web").message(), "pods \"web\" not found");
        assert_eq!(
            Error::already_exists(&DEPLOYMENTS, "web").message(),
            "deployments.apps \"web\" already exists"
        );
        let errors = [FieldError::required("spec.containers", "")];
        assert_eq!(
            Error::invalid("", "Pod", "web", &errors).message(),
            "Pod \"web\" is invalid: spec.containers: Required value"
        );
    }

    #[test]
    fn status_survives_the_wire() {
        let errors = [FieldError::invalid("spec.replicas", -1, "must be greater than or equal to 0")];
        for error in [
            Error::not_found(&PODS, "web"),
            Error::invalid("apps", "Deployment", "web", &errors),
            Error::expired_continue("too old", "token".to_owned()),
        ] {
            let back = Error::from_status(&error.to_status());
            assert_eq!(back.to_status(), error.to_status());
        }
    }
}
