//! Outcomes as `metav1.Status`, in the words that clients look for.

use serde_json::{Value, json};

pub(super) fn success() -> Value {
    json!({ "metadata": {}, "status": "Success" })
}

/// The process ran, and failed. Clients take its exit code from the cause.
pub(super) fn exit_code(code: i32) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit code {code}"),
        "reason": "NonZeroExitCode",
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    })
}

pub(super) fn internal_error(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError",
        "details": { "causes": [{ "message": message }] },
        "code": 500,
    })
}
