//! Validation of containers: regular ones, those that run before them, and what all have alike.

use std::collections::HashSet;

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    env, handlers, mounts, resources, security,
    spec::{name, one_of},
    volumes::Volumes,
};
use crate::kinds::{
    meta::invalid_all,
    names::{port_name, port_number},
    rules,
    value::{Fields, Path},
};

const RESTART_POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
/// Rules of a container's restarts, and exit codes of one.
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;

/// What the rules of a container ask of the pod around it.
pub(super) struct Around<'a> {
    pub(super) spec: &'a Value,
    /// Those without a mistake of their own: what mounts and devices can use.
    pub(super) volumes: Volumes<'a>,
}

/// `path` is the spec's.
pub(super) fn validate_all(errors: &mut Vec<FieldError>, path: &Path<'_>, around: &Around<'_>) {
    let list = path.field("containers");
    let containers = around.spec.list("containers");
    if containers.is_empty() {
        errors.push(FieldError::required(list, ""));
    }
    let mut names = HashSet::new();
    let mut host_ports = HashSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = list.index(index);
        common(errors, &path, container, around);
        if !names.insert(container.text("name")) {
            errors.push(FieldError::duplicate(path.field("name"), container.text("name")));
        }
        handlers::validate(errors, &path, container, around.spec);
        restarts(errors, &path, container);
        conflicting_ports(errors, &path, container, &mut host_ports);
    }
    let list = path.field("initContainers");
    for (index, container) in around.spec.list("initContainers").iter().enumerate() {
        let path = list.index(index);
        common(errors, &path, container, around);
        let name = container.text("name");
        if !name.is_empty() && !names.insert(name) {
            errors.push(FieldError::duplicate(path.field("name"), name));
        }
        // They run one after the other, so that their ports are apart from each other's.
        conflicting_ports(errors, &path, container, &mut HashSet::new());
        init_container(errors, &path, container, around.spec);
    }
}

/// What all containers have, ephemeral ones too.
pub(super) fn common(errors: &mut Vec<FieldError>, path: &Path<'_>, container: &Value, around: &Around<'_>) {
    name(errors, &path.field("name"), container.text("name"));
    if container.text("image").is_empty() {
        errors.push(FieldError::required(path.field("image"), ""));
    }
    one_of(
        errors,
        &path.field("terminationMessagePolicy"),
        container.at("terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    );
    ports(errors, &path.field("ports"), container.list("ports"));
    env::validate(errors, path, container);
    mounts::validate(errors, path, container, &around.volumes);
    pull_policy(errors, &path.field("imagePullPolicy"), container.at("imagePullPolicy"));
    resources::of_container(errors, &path.field("resources"), container.at("resources"), around.spec);
    resize_policy(errors, &path.field("resizePolicy"), container, around.spec);
    let context = container.at("securityContext");
    security::of_container(errors, &path.field("securityContext"), context, around.spec);
}

pub(super) fn pull_policy(errors: &mut Vec<FieldError>, path: &Path<'_>, policy: &Value) {
    one_of(errors, path, policy, &["Always", "IfNotPresent", "Never"]);
}

/// An image has no blanks around it, where a pod is meant and no template.
pub(super) fn image_of_pod(errors: &mut Vec<FieldError>, path: &Path<'_>, container: &Value) {
    let image = container.text("image");
    if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(path.field("image"), image, detail));
    }
}

fn init_container(errors: &mut Vec<FieldError>, path: &Path<'_>, container: &Value, spec: &Value) {
    if container.text("restartPolicy") == "Always" {
        restarts(errors, path, container);
        handlers::validate(errors, path, container, spec);
        return;
    }
    restarts(errors, path, container);
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if container.has(field) {
            let detail = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(path.field(field), detail));
        }
    }
    let list = path.field("resizePolicy");
    for (index, policy) in container.list("resizePolicy").iter().enumerate() {
        if policy.text("restartPolicy") == "RestartContainer" {
            let path = list.index(index);
            let detail = "must not be set to 'RestartContainer' for non-sidecar initContainers";
            errors.push(FieldError::invalid(path.field("restartPolicy"), "RestartContainer", detail));
        }
    }
}

/// What has all containers of the pod start over (KEP-5532; beta, and on, in v1.36).
pub(super) const RESTART_ALL: &str = "RestartAllContainers";

/// Restarts of a container of its own, by what it exits with (KEP-5307).
fn restarts(errors: &mut Vec<FieldError>, path: &Path<'_>, container: &Value) {
    let (of_policy, list) = (path.field("restartPolicy"), path.field("restartPolicyRules"));
    let all = container.list("restartPolicyRules");
    if container.has("restartPolicy") {
        rules::one_of(errors, &of_policy, container.text("restartPolicy"), &RESTART_POLICIES);
    } else if !all.is_empty() {
        let detail = "must specify restartPolicy when restart rules are used";
        errors.push(FieldError::required(of_policy, detail));
    }
    rules::at_most(errors, &list, all.len(), MAX_RULES);
    for (index, rule) in all.iter().enumerate() {
        let path = list.index(index);
        rules::one_of(errors, &path.field("action"), rule.text("action"), &["Restart", RESTART_ALL]);
        let (codes_path, codes) = (path.field("exitCodes"), rule.at("exitCodes"));
        if codes.is_null() {
            errors.push(FieldError::required(codes_path, "must be specified"));
            continue;
        }
        rules::one_of(errors, &codes_path.field("operator"), codes.text("operator"), &["In", "NotIn"]);
        rules::at_most(errors, &codes_path.field("values"), codes.list("values").len(), MAX_EXIT_CODES);
    }
}

/// What a change of resources does to the container (KEP-1287). The path is the list's for all, as upstream has it.
fn resize_policy(errors: &mut Vec<FieldError>, list: &Path<'_>, container: &Value, spec: &Value) {
    let mut names = HashSet::new();
    for (index, policy) in container.list("resizePolicy").iter().enumerate() {
        let name = policy.text("resourceName");
        if !names.insert(name) {
            errors.push(FieldError::duplicate(list.index(index), name));
        }
        one_of(errors, list, policy.at("resourceName"), &["cpu", "memory"]);
        let restart = policy.text("restartPolicy");
        one_of(errors, list, policy.at("restartPolicy"), &["NotRequired", "RestartContainer"]);
        if spec.text("restartPolicy") == "Never" && restart != "NotRequired" {
            let detail = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(list, restart, detail));
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
