//! What is asked of containers, and told to them: probes and lifecycle hooks.

use hawser_api::FieldError;
use serde_json::Value;

use crate::kinds::{
    meta::invalid_all,
    names::{header_name, port_name, port_number},
    value::{Fields, Path},
};

const SIGNALS: [&str; 36] = [
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGRTMIN",
    "SIGRTMAX",
];

/// Lifecycle and probes of a container that stays: a regular one, or a sidecar.
pub(super) fn validate(errors: &mut Vec<FieldError>, path: &Path<'_>, container: &Value, spec: &Value) {
    if container.has("lifecycle") {
        lifecycle(errors, &path.field("lifecycle"), container.at("lifecycle"), spec);
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container.has(field) {
            probe(errors, &path.field(field), container.at(field), field);
        }
    }
}

fn lifecycle(errors: &mut Vec<FieldError>, path: &Path<'_>, lifecycle: &Value, spec: &Value) {
    for field in ["postStart", "preStop"] {
        if lifecycle.has(field) {
            let known = ["exec", "httpGet", "tcpSocket", "sleep"];
            let grace = spec.int("terminationGracePeriodSeconds");
            handler(errors, &path.field(field), lifecycle.at(field), &known, grace);
        }
    }
    if lifecycle.has("stopSignal") {
        stop_signal(errors, &path.field("stopSignal"), lifecycle.text("stopSignal"), spec.text("os.name"));
    }
}

/// `os` is that of the pod; empty where it does not say.
fn stop_signal(errors: &mut Vec<FieldError>, path: &Path<'_>, signal: &str, os: &str) {
    // Those that have a number only: `SIGRTMIN+1` to `+15`, `SIGRTMAX-1` to `-14`.
    let numbered = [("SIGRTMIN+", 15), ("SIGRTMAX-", 14)].iter().any(|(begin, last)| {
        let number = signal.strip_prefix(begin).filter(|digits| !digits.starts_with(['0', '+']));
        number
            .and_then(|digits| digits.parse::<u8>().ok())
            .is_some_and(|number| (1..=*last).contains(&number))
    });
    match os {
        "" => {
            let detail = "may not be set for containers with empty `spec.os.name`";
            errors.push(FieldError::forbidden(path, detail));
        }
        "windows" if !matches!(signal, "SIGKILL" | "SIGTERM") => {
            errors.push(FieldError::not_supported(path, signal, &["SIGKILL", "SIGTERM"]));
        }
        "linux" if !numbered && !SIGNALS.contains(&signal) => {
            errors.push(FieldError::not_supported(path, signal, &SIGNALS));
        }
        _ => (),
    }
}

/// `field` is the probe's name in the container.
fn probe(errors: &mut Vec<FieldError>, path: &Path<'_>, probe: &Value, field: &str) {
    handler(errors, path, probe, &["exec", "httpGet", "tcpSocket", "grpc"], None);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        if let Some(number) = probe.int(field).filter(|number| *number < 0) {
            errors.push(FieldError::invalid(path.field(field), number, "must be greater than or equal to 0"));
        }
    }
    let seconds = probe.int("terminationGracePeriodSeconds");
    let grace = path.field("terminationGracePeriodSeconds");
    if let Some(seconds) = seconds.filter(|seconds| *seconds <= 0) {
        errors.push(FieldError::invalid(grace, seconds, "must be greater than 0"));
    }
    if field == "readinessProbe" {
        if let Some(seconds) = seconds {
            errors.push(FieldError::invalid(grace, seconds, "must not be set for readinessProbes"));
        }
    } else if let Some(number) = probe.int("successThreshold").filter(|number| *number != 1) {
        errors.push(FieldError::invalid(path.field("successThreshold"), number, "must be 1"));
    }
}

/// One of the `known` ways; `grace` bounds a sleep.
fn handler(
    errors: &mut Vec<FieldError>,
    path: &Path<'_>,
    handler: &Value,
    known: &[&str],
    grace: Option<i64>,
) {
    let mut found = 0;
    for field in known {
        if !handler.has(field) {
            continue;
        }
        found += 1;
        let path = path.field(field);
        if found > 1 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type"));
            continue;
        }
        let part = handler.at(field);
        match *field {
            "exec" if part.list("command").is_empty() => {
                errors.push(FieldError::required(path.field("command"), ""));
            }
            "httpGet" => http_get(errors, &path, part),
            "tcpSocket" | "grpc" => port(errors, &path.field("port"), part.at("port")),
            "sleep" => {
                let seconds = part.int("seconds").unwrap_or_default();
                if let Some(grace) = grace.filter(|grace| !(0..=*grace).contains(&seconds)) {
                    let detail =
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    errors.push(FieldError::invalid(path, seconds, detail));
                }
            }
            _ => (),
        }
    }
    if found == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn http_get(errors: &mut Vec<FieldError>, path: &Path<'_>, get: &Value) {
    if get.text("path").is_empty() {
        errors.push(FieldError::required(path.field("path"), ""));
    }
    port(errors, &path.field("port"), get.at("port"));
    let scheme = get.text("scheme");
    if !matches!(scheme, "HTTP" | "HTTPS") {
        errors.push(FieldError::not_supported(path.field("scheme"), scheme, &["HTTP", "HTTPS"]));
    }
    for header in get.list("httpHeaders") {
        let name = header.text("name");
        invalid_all(errors, &path.field("httpHeaders"), name, header_name(name));
    }
}

/// A number, or the name of a port of the container.
pub(crate) fn port(errors: &mut Vec<FieldError>, path: &Path<'_>, port: &Value) {
    match port {
        Value::String(name) => invalid_all(errors, path, name, port_name(name)),
        other => {
            let number = other.as_i64().unwrap_or_default();
            if let Some(detail) = port_number(number) {
                errors.push(FieldError::invalid(path, number, detail));
            }
        }
    }
}
