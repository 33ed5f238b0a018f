//! Environment variables of containers, and what a pod tells its containers of itself (the downward API).

use hawser_api::FieldError;
use serde_json::Value;

use crate::kinds::{
    meta::invalid_all,
    names::{NameRule, config_key, dns_label, env_name, qualified_name},
    quantity,
    value::{Fields, Path},
};

/// Fields of the pod that variables can hold.
const IN_VARIABLES: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of the pod that files can hold.
const IN_FILES: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Fields that have a name in the downward API at all.
const NAMED: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "spec.restartPolicy", "spec.schedulerName", "status.phase"];

const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const DIVISORS: [&str; 13] =
    ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Where the pod's own fields are put.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Variable,
    File,
}

pub(super) fn validate(errors: &mut Vec<FieldError>, path: &Path<'_>, container: &Value) {
    let list = path.field("env");
    for (index, variable) in container.list("env").iter().enumerate() {
        let path = list.index(index);
        match variable.text("name") {
            "" => errors.push(FieldError::required(path.field("name"), "")),
            name => invalid_all(errors, &path.field("name"), name, env_name(name)),
        }
        if variable.has("valueFrom") {
            value_from(errors, &path.field("valueFrom"), variable);
        }
    }
    let list = path.field("envFrom");
    for (index, source) in container.list("envFrom").iter().enumerate() {
        let path = list.index(index);
        let prefix = source.text("prefix");
        invalid_all(errors, &path.field("prefix"), prefix, env_name(prefix));
        let kinds: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|kind| source.has(kind)).collect();
        for kind in &kinds {
            let path = path.field(kind);
            match source.at(kind).text("name") {
                "" => errors.push(FieldError::required(path.field("name"), "")),
                name => {
                    invalid_all(errors, &path.field("name"), name, NameRule::Subdomain.check_prefix(name));
                }
            }
        }
        let detail = match kinds.len() {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        // The list, as upstream has it.
        errors.push(FieldError::invalid(list, "", detail));
    }
}

fn value_from(errors: &mut Vec<FieldError>, path: &Path<'_>, variable: &Value) {
    let source = variable.at("valueFrom");
    let mut found = 0;
    for field in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        if !source.has(field) {
            continue;
        }
        found += 1;
        let (path, part) = (path.field(field), source.at(field));
        match field {
            "fieldRef" => field_ref(errors, &path, part, Target::Variable),
            "resourceFieldRef" => resource_ref(errors, &path, part, Target::Variable),
            "fileKeyRef" => file_key(errors, &path, part),
            _ => {
                let name = part.text("name");
                invalid_all(errors, &path.field("name"), name, NameRule::Subdomain.check(name));
                match part.text("key") {
                    "" => errors.push(FieldError::required(path.field("key"), "")),
                    key => invalid_all(errors, &path.field("key"), key, config_key(key)),
                }
            }
        }
    }
    let detail = match found {
        0 => {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
        }
        _ if !variable.text("value").is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(path, "", detail));
}

/// A variable out of a file that another container wrote (KEP-3721).
fn file_key(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value) {
    match source.text("key") {
        "" => errors.push(FieldError::required(path.field("key"), "")),
        key => invalid_all(errors, &path.field("key"), key, env_name(key)),
    }
    match source.text("volumeName") {
        "" => errors.push(FieldError::required(path.field("volumeName"), "")),
        name => invalid_all(errors, &path.field("volumeName"), name, dns_label(name)),
    }
    match source.text("path") {
        "" => errors.push(FieldError::required(path.field("path"), "")),
        file => super::volumes::backsteps(errors, &path.field("path"), file),
    }
}

/// Files that variables are read from are in volumes that the pod's containers share.
pub(super) fn file_volumes(
    errors: &mut Vec<FieldError>,
    path: &Path<'_>,
    container: &Value,
    volumes: &[Value],
) {
    let list = path.field("env");
    for (index, variable) in container.list("env").iter().enumerate() {
        if !variable.has("valueFrom.fileKeyRef") {
            continue;
        }
        let path = list.index(index);
        let path = path.field("valueFrom.fileKeyRef.volumeName");
        let name = variable.text("valueFrom.fileKeyRef.volumeName");
        match volumes.iter().find(|volume| volume.text("name") == name) {
            None => errors.push(FieldError::not_found(path, name)),
            Some(volume) if volume.has("emptyDir") => (),
            Some(_) => {
                errors.push(FieldError::invalid(path, name, "referenced volume must be of type emptyDir"));
            }
        }
    }
}

/// A field of the pod.
pub(super) fn field_ref(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value, target: Target) {
    for field in ["apiVersion", "fieldPath"] {
        if source.text(field).is_empty() {
            errors.push(FieldError::required(path.field(field), ""));
            return;
        }
    }
    let name = source.text("fieldPath");
    // The name that the field had in the first versions.
    let plain = if name == "spec.host" { "spec.nodeName" } else { name };
    let subscript = name.strip_suffix("']").and_then(|name| name.split_once("['"));
    let unknown = match (source.text("apiVersion"), subscript) {
        ("v1", Some(("metadata.annotations" | "metadata.labels", _))) => None,
        ("v1", Some((parent, _))) => Some(format!("field label does not support subscript: {parent}")),
        ("v1", None) if IN_VARIABLES.contains(&plain) || NAMED.contains(&plain) => None,
        ("v1", None) => Some(format!("field label not supported: {name}")),
        (version, _) => Some(format!("unsupported pod version: {version}")),
    };
    if let Some(why) = unknown {
        let detail = format!("error converting fieldPath: {why}");
        errors.push(FieldError::invalid(path.field("fieldPath"), name, detail));
        return;
    }
    let known: &[&str] = if target == Target::File { &IN_FILES } else { &IN_VARIABLES };
    match subscript {
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            invalid_all(errors, path, &key, qualified_name(&key));
        }
        Some((_, key)) => invalid_all(errors, path, key, qualified_name(key)),
        None if !known.contains(&plain) => {
            errors.push(FieldError::not_supported(path.field("fieldPath"), plain, known));
        }
        None => (),
    }
}

/// What a container asks for or is allowed; a file has to say which container's.
pub(super) fn resource_ref(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value, target: Target) {
    let resource = source.text("resource");
    let pages = ["limits.hugepages-", "requests.hugepages-"].iter().any(|begin| resource.starts_with(begin));
    if target == Target::File && source.text("containerName").is_empty() {
        errors.push(FieldError::required(path.field("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(path.field("resource"), ""));
    } else if !pages && !RESOURCES.contains(&resource) {
        errors.push(FieldError::not_supported(path.field("resource"), resource, &RESOURCES));
    }
    let Some(divisor) = quantity::parse(source.at("divisor")).filter(|divisor| !divisor.is_zero()) else {
        return;
    };
    let divisor = divisor.to_string();
    let of_processors = resource.ends_with(".cpu");
    let what = match resource {
        "limits.cpu" | "requests.cpu" => "cpu",
        "limits.memory" | "requests.memory" => "memory",
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => "local ephemeral storage",
        _ if pages => "hugepages",
        _ => return,
    };
    let detail = match of_processors {
        true if matches!(divisor.as_str(), "1m" | "1") => return,
        true => "only divisor's values 1m and 1 are supported with the cpu resource".to_owned(),
        false if DIVISORS.contains(&divisor.as_str()) => return,
        false => {
            format!("only divisor's values {} are supported with the {what} resource", DIVISORS.join(", "))
        }
    };
    errors.push(FieldError::invalid(path.field("divisor"), resource, detail));
}
