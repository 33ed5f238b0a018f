//! Validation of containers.

use std::collections::HashSet;

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    mounts,
    spec::{name, one_of},
    volumes::Volumes,
};
use crate::kinds::{
    meta::invalid_all,
    names::{config_key, env_name, port_name, port_number, qualified_name},
    quantity,
    value::{Fields, Path},
};

/// `volumes` are those that mounts and devices can use.
pub(super) fn validate_all(
    errors: &mut Vec<FieldError>,
    path: &Path<'_>,
    spec: &Value,
    volumes: &Volumes<'_>,
) {
    let containers = spec.list("containers");
    if containers.is_empty() {
        errors.push(FieldError::required(path.field("containers"), ""));
    }
    let mut names = HashSet::new();
    let mut host_ports = HashSet::new();
    for (list, is_init) in [("containers", false), ("initContainers", true)] {
        let list_path = path.field(list);
        for (index, container) in spec.list(list).iter().enumerate() {
            let path = list_path.index(index);
            validate(errors, &path, container, volumes);
            if !names.insert(container.text("name")) {
                errors.push(FieldError::duplicate(path.field("name"), container.text("name")));
            }
            if is_init {
                init_container(errors, &path, container);
            } else {
                conflicting_ports(errors, &path, container, &mut host_ports);
            }
        }
    }
}

pub(super) fn validate(
    errors: &mut Vec<FieldError>,
    path: &Path<'_>,
    container: &Value,
    volumes: &Volumes<'_>,
) {
    name(errors, &path.field("name"), container.text("name"));
    let image = container.text("image");
    if image.is_empty() {
        errors.push(FieldError::required(path.field("image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(path.field("image"), image, detail));
    }
    lifecycle(errors, &path.field("lifecycle"), container.at("lifecycle"));
    for (field, is_liveness) in [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)] {
        if container.has(field) {
            probe(errors, &path.field(field), container.at(field), is_liveness);
        }
    }
    one_of(
        errors,
        &path.field("terminationMessagePolicy"),
        container.at("terminationMessagePolicy"),
        &["FallbackToLogsOnError", "File"],
    );
    one_of(
        errors,
        &path.field("imagePullPolicy"),
        container.at("imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    );
    ports(errors, &path.field("ports"), container.list("ports"));
    env(errors, path, container);
    mounts::validate(errors, path, container, volumes);
    resources(errors, &path.field("resources"), container.at("resources"));
    security(errors, &path.field("securityContext"), container.at("securityContext"));
}

fn init_container(errors: &mut Vec<FieldError>, path: &Path<'_>, container: &Value) {
    match container.text("restartPolicy") {
        "" | "Always" | "Never" | "OnFailure" => (),
        other => errors.push(FieldError::not_supported(path.field("restartPolicy"), other, &["Always"])),
    }
    if container.text("restartPolicy") == "Always" {
        return;
    }
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if container.has(field) {
            let detail = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(path.field(field), detail));
        }
    }
}

fn handlers(errors: &mut Vec<FieldError>, path: &Path<'_>, handler: &Value, known: &[&str]) {
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
            "httpGet" => {
                if part.text("path").is_empty() {
                    errors.push(FieldError::required(path.field("path"), ""));
                }
                port(errors, &path.field("port"), part.at("port"));
                if !matches!(part.text("scheme"), "HTTP" | "HTTPS") {
                    let scheme = part.text("scheme");
                    errors.push(FieldError::not_supported(path.field("scheme"), scheme, &["HTTP", "HTTPS"]));
                }
            }
            "tcpSocket" | "grpc" => port(errors, &path.field("port"), part.at("port")),
            _ => (),
        }
    }
    if found == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn lifecycle(errors: &mut Vec<FieldError>, path: &Path<'_>, lifecycle: &Value) {
    for field in ["postStart", "preStop"] {
        if lifecycle.has(field) {
            let known = ["exec", "httpGet", "tcpSocket", "sleep"];
            handlers(errors, &path.field(field), lifecycle.at(field), &known);
        }
    }
}

fn probe(errors: &mut Vec<FieldError>, path: &Path<'_>, probe: &Value, is_liveness: bool) {
    handlers(errors, path, probe, &["exec", "httpGet", "tcpSocket", "grpc"]);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        if let Some(number) = probe.int(field).filter(|number| *number < 0) {
            errors.push(FieldError::invalid(path.field(field), number, "must be greater than or equal to 0"));
        }
    }
    if let Some(seconds) = probe.int("terminationGracePeriodSeconds").filter(|seconds| *seconds <= 0) {
        let path = path.field("terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(path, seconds, "must be greater than 0"));
    }
    if is_liveness && probe.int("successThreshold").is_some_and(|number| number != 1) {
        let path = path.field("successThreshold");
        errors.push(FieldError::invalid(path, probe.at("successThreshold").clone(), "must be 1"));
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

fn ports(errors: &mut Vec<FieldError>, path: &Path<'_>, ports: &[Value]) {
    let mut names = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = port.text("name");
        if !name.is_empty() {
            let wrong = port_name(name);
            if wrong.is_empty() && !names.insert(name) {
                errors.push(FieldError::duplicate(path.field("name"), name));
            }
            invalid_all(errors, &path.field("name"), name, wrong);
        }
        match port.int("containerPort").unwrap_or_default() {
            0 => errors.push(FieldError::required(path.field("containerPort"), "")),
            number => {
                if let Some(detail) = port_number(number) {
                    errors.push(FieldError::invalid(path.field("containerPort"), number, detail));
                }
            }
        }
        if let Some(number) = port.int("hostPort").filter(|number| *number != 0)
            && let Some(detail) = port_number(number)
        {
            errors.push(FieldError::invalid(path.field("hostPort"), number, detail));
        }
        one_of(errors, &path.field("protocol"), port.at("protocol"), &["SCTP", "TCP", "UDP"]);
    }
}

fn conflicting_ports<'a>(
    errors: &mut Vec<FieldError>,
    path: &Path<'_>,
    container: &'a Value,
    taken: &mut HashSet<(&'a str, &'a str, i64)>,
) {
    let ports = path.field("ports");
    for (index, port) in container.list("ports").iter().enumerate() {
        let number = port.int("hostPort").unwrap_or_default();
        if number == 0 {
            continue;
        }
        let protocol = port.text("protocol");
        if !taken.insert((port.text("hostIP"), protocol, number)) {
            let path = ports.index(index);
            errors.push(FieldError::duplicate(
                path.field("hostPort"),
                format!("{protocol}/{}/{number}", port.text("hostIP")),
            ));
        }
    }
}

fn env(errors: &mut Vec<FieldError>, path: &Path<'_>, container: &Value) {
    let list = path.field("env");
    for (index, variable) in container.list("env").iter().enumerate() {
        let path = list.index(index);
        match variable.text("name") {
            "" => errors.push(FieldError::required(path.field("name"), "")),
            name => invalid_all(errors, &path.field("name"), name, env_name(name)),
        }
        if variable.has("valueFrom") {
            env_source(errors, &path.field("valueFrom"), variable);
        }
    }
    let list = path.field("envFrom");
    for (index, source) in container.list("envFrom").iter().enumerate() {
        let path = list.index(index);
        let prefix = source.text("prefix");
        invalid_all(errors, &path.field("prefix"), prefix, env_name(prefix));
        let kinds: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|kind| source.has(kind)).collect();
        match kinds.as_slice() {
            [] => errors.push(FieldError::invalid(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            [kind] if source.at(kind).text("name").is_empty() => {
                errors.push(FieldError::required(path.field(kind).field("name"), ""));
            }
            [_] => (),
            _ => errors.push(FieldError::invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
}

const FIELD_PATHS: [&str; 10] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.hostIP",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn env_source(errors: &mut Vec<FieldError>, path: &Path<'_>, variable: &Value) {
    let source = variable.at("valueFrom");
    let mut found = 0;
    for field in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        if !source.has(field) {
            continue;
        }
        found += 1;
        let part = source.at(field);
        let path = path.field(field);
        match field {
            "fieldRef" => {
                let name = part.text("fieldPath");
                let subscript =
                    name.starts_with("metadata.annotations['") || name.starts_with("metadata.labels['");
                if name.is_empty() {
                    errors.push(FieldError::required(path.field("fieldPath"), ""));
                } else if !subscript && !FIELD_PATHS.contains(&name) {
                    errors.push(FieldError::not_supported(path.field("fieldPath"), name, &FIELD_PATHS));
                }
            }
            "resourceFieldRef" if part.text("resource").is_empty() => {
                errors.push(FieldError::required(path.field("resource"), ""));
            }
            "configMapKeyRef" | "secretKeyRef" => match part.text("key") {
                "" => errors.push(FieldError::required(path.field("key"), "")),
                key => invalid_all(errors, &path.field("key"), key, config_key(key)),
            },
            _ => (),
        }
    }
    if found == 0 {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.push(FieldError::invalid(path, "", detail));
    } else if !variable.text("value").is_empty() {
        errors.push(FieldError::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if found > 1 {
        errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
    }
}

/// Requests within limits, and no negative amount.
pub(crate) fn resources(errors: &mut Vec<FieldError>, path: &Path<'_>, resources: &Value) {
    let (limits_path, requests_path) = (path.field("limits"), path.field("requests"));
    for (name, amount) in resources.map("limits") {
        resource_name(errors, &limits_path, name);
        quantity::not_negative(errors, &limits_path.key(name), amount);
    }
    for (name, amount) in resources.map("requests") {
        resource_name(errors, &requests_path, name);
        let path = requests_path.key(name);
        quantity::not_negative(errors, &path, amount);
        let Some(limit) = resources.at("limits").get(name) else {
            // Extended resources cannot be overcommitted.
            if is_extended(name) {
                errors.push(FieldError::required(
                    limits_path.key(name),
                    "Limit must be set for non overcommitable resources",
                ));
            }
            continue;
        };
        let (request, most) = (quantity::parse(amount), quantity::parse(limit));
        let text = limit.as_str().map_or_else(|| limit.to_string(), str::to_owned);
        if is_extended(name) && request != most {
            let detail = format!("must be equal to {name} limit of {text}");
            errors.push(FieldError::invalid(requests_path, amount.clone(), detail));
        } else if request > most {
            let detail = format!("must be less than or equal to {name} limit of {text}");
            errors.push(FieldError::invalid(requests_path, amount.clone(), detail));
        }
    }
}

fn is_extended(name: &str) -> bool {
    (name.contains('/') && !name.split('/').next().unwrap_or_default().ends_with("kubernetes.io"))
        || name.starts_with("hugepages-")
}

fn resource_name(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    let known =
        matches!(name, "cpu" | "memory" | "ephemeral-storage" | "storage") || name.starts_with("hugepages-");
    let wrong = qualified_name(name);
    if !wrong.is_empty() {
        invalid_all(errors, &path.key(name), name, wrong);
    } else if !known && !name.contains('/') {
        let detail = "must be a standard resource type or fully qualified";
        errors.push(FieldError::invalid(path.key(name), name, detail));
        errors.push(FieldError::invalid(path.key(name), name, "must be a standard resource for containers"));
    }
}

fn security(errors: &mut Vec<FieldError>, path: &Path<'_>, context: &Value) {
    for field in ["runAsUser", "runAsGroup"] {
        if let Some(id) = context.int(field)
            && !(0..=i64::from(i32::MAX)).contains(&id)
        {
            let detail = "must be between 0 and 2147483647, inclusive";
            errors.push(FieldError::invalid(path.field(field), id, detail));
        }
    }
    if context.at("allowPrivilegeEscalation") == &Value::Bool(false) && context.flag("privileged") {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.push(FieldError::invalid(path, context.clone(), detail));
    }
}
