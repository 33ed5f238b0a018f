//! Annotations of pods that say something: what a container is confined by, in the names from before there were fields,
//! how dear a pod is to its ReplicaSet, and that it is a node's own.

use hawser_api::FieldError;
use serde_json::Value;

use super::{each_container, volumes::descends};
use crate::kinds::value::{Fields, Path};

pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_OF_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Rules of the annotations alone; `path` is theirs.
pub(super) fn validate(errors: &mut Vec<FieldError>, path: &Path<'_>, annotations: &Value, spec: &Value) {
    for (key, value) in annotations.as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        let of = path.key(key);
        if key == MIRROR && spec.text("nodeName").is_empty() {
            errors.push(FieldError::invalid(
                of,
                value,
                "must set spec.nodeName if mirror pod annotation is set",
            ));
        } else if key == COST && !is_cost(value) {
            errors.push(FieldError::invalid(of, value, "must be a 32bit integer"));
        } else if key == SECCOMP_OF_POD || key.starts_with(SECCOMP_OF_CONTAINER) {
            seccomp(errors, &path.field(key), value);
        } else if let Some(name) = key.strip_prefix(APP_ARMOR) {
            app_armor(errors, &of, name, value, spec);
        }
    }
}

/// Without a plus sign, or a leading zero before any sign.
fn is_cost(text: &str) -> bool {
    let begins_well = text == "0" || matches!(text.as_bytes().first(), Some(b'-' | b'1'..=b'9'));
    begins_well && text.parse::<i32>().is_ok()
}

fn seccomp(errors: &mut Vec<FieldError>, path: &Path<'_>, profile: &str) {
    match profile.strip_prefix("localhost/") {
        Some(file) => descends(errors, path, file),
        None if matches!(profile, "runtime/default" | "docker/default" | "unconfined") => (),
        None => errors.push(FieldError::invalid(path, profile, "must be a valid seccomp profile")),
    }
}

fn app_armor(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str, profile: &str, spec: &Value) {
    let mut is_known = false;
    each_container(spec, &Path::Root("spec"), |_, container| is_known |= container.text("name") == name);
    if !is_known {
        errors.push(FieldError::invalid(path, name, "container not found"));
    }
    if !matches!(profile, "" | "runtime/default" | "unconfined") && !profile.starts_with("localhost/") {
        let detail = format!("invalid AppArmor profile name: {profile:?}");
        errors.push(FieldError::invalid(path, profile, detail));
    }
}

/// Where an annotation and a field name a profile, it is the same one; of new pods and templates.
pub(super) fn agree(errors: &mut Vec<FieldError>, path: &Path<'_>, annotations: &Value, spec: &Value) {
    let annotation = |key: &str| annotations.get(key).and_then(Value::as_str);
    let whole = spec.at("securityContext");
    let of_pod = path.field("securityContext.seccompProfile");
    if let Some(text) = annotation(SECCOMP_OF_POD) {
        same(errors, &of_pod, whole.at("seccompProfile"), text, "seccomp");
    }
    each_container(spec, path, |path, container| {
        let own = container.at("securityContext");
        let name = container.text("name");
        if let Some(text) = annotation(&format!("{SECCOMP_OF_CONTAINER}{name}")) {
            let path = path.field("securityContext.seccompProfile");
            same(errors, &path, own.at("seccompProfile"), text, "seccomp");
        }
        if spec.text("os.name") != "windows"
            && let Some(text) = annotation(&format!("{APP_ARMOR}{name}"))
        {
            let profile = if own.has("appArmorProfile") { own } else { whole };
            let path = path.field("securityContext.appArmorProfile");
            same(errors, &path, profile.at("appArmorProfile"), text, "apparmor");
        }
    });
}

fn same(errors: &mut Vec<FieldError>, path: &Path<'_>, profile: &Value, annotation: &str, what: &str) {
    let is_same = match profile.text("type") {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => {
            annotation == "runtime/default" || what == "seccomp" && annotation == "docker/default"
        }
        "Localhost" => match annotation.strip_prefix("localhost/") {
            Some(file) if profile.at("localhostProfile").as_str() != Some(file) => {
                let detail = format!("{what} profile in annotation and field must match");
                errors.push(FieldError::forbidden(path.field("localhostProfile"), detail));
                return;
            }
            file => file.is_some(),
        },
        _ => true,
    };
    if !is_same {
        let detail = format!("{what} type in annotation and field must match");
        errors.push(FieldError::forbidden(path.field("type"), detail));
    }
}

/// Those that stand for good.
pub(super) fn update(errors: &mut Vec<FieldError>, new: &Value, old: &Value) {
    let path = Path::Root("metadata.annotations");
    let what = |key: &str| match key {
        MIRROR => Some("mirror pod annotation"),
        _ if key.starts_with(APP_ARMOR) => Some("AppArmor annotations"),
        _ => None,
    };
    for (key, value) in old.as_object().into_iter().flatten() {
        if let Some(what) = what(key).filter(|_| new.get(key) != Some(value)) {
            let detail = format!("may not remove or update {what}");
            errors.push(FieldError::forbidden(path.key(key), detail));
        }
    }
    for (key, _) in new.as_object().into_iter().flatten() {
        if let Some(what) = what(key).filter(|_| old.get(key).is_none()) {
            errors.push(FieldError::forbidden(path.key(key), format!("may not add {what}")));
        }
    }
}
