//! Validation of pods and pod templates as a whole.

use std::collections::HashSet;

use hawser_api::FieldError;
use serde_json::Value;

use super::{containers, scheduling, subresources, volumes};
use crate::kinds::{
    meta::{annotations, invalid_all, labels},
    names::{NameRule, dns_label, dns_subdomain, qualified_name},
    value::{Fields, Path},
};

/// The longest name of a sysctl, and how it is written (as the kernel's, with slashes or dots).
const MAX_SYSCTL: usize = 253;
const SYSCTL: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

pub(crate) fn validate_pod(pod: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    validate_spec(&mut errors, &Path::Root("spec"), pod.at("spec"));
    errors
}

/// Rules of the template in a workload.
pub(crate) fn validate_template(errors: &mut Vec<FieldError>, path: &Path<'_>, template: &Value) {
    let meta = path.field("metadata");
    labels(errors, &meta.field("labels"), template.at("metadata.labels"));
    annotations(errors, &meta.field("annotations"), template.at("metadata.annotations"));
    let spec_path = path.field("spec");
    let spec = template.at("spec");
    validate_spec(errors, &spec_path, spec);
    if !spec.list("ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden(
            spec_path.field("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

fn validate_spec(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let volumes = volumes::validate(errors, &path.field("volumes"), spec.list("volumes"));
    containers::validate_all(errors, path, spec, &volumes);
    subresources::validate_containers(errors, path, spec, &volumes);
    policies(errors, path, spec);
    names(errors, path, spec);
    numbers(errors, path, spec);
    labels(errors, &path.field("nodeSelector"), spec.at("nodeSelector"));
    host(errors, path, spec);
    dns(errors, path, spec);
    scheduling::validate(errors, path, spec);
    sysctls(errors, path, spec);
}

/// Parts of small letters, digits, `-` and `_`, parted by dots or slashes.
fn sysctls(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let is_edge = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let is_part = |part: &str| {
        part.starts_with(is_edge)
            && part.ends_with(is_edge)
            && part.chars().all(|letter| is_edge(letter) || matches!(letter, '-' | '_'))
    };
    let context = path.field("securityContext");
    let list = context.field("sysctls");
    let mut names = HashSet::new();
    for (index, sysctl) in spec.list("securityContext.sysctls").iter().enumerate() {
        let path = list.index(index);
        let name = sysctl.text("name");
        if name.is_empty() {
            errors.push(FieldError::required(path.field("name"), ""));
        } else if name.len() > MAX_SYSCTL || !name.split(['.', '/']).all(is_part) {
            let detail = format!("must have at most {MAX_SYSCTL} characters and match regex {SYSCTL}");
            errors.push(FieldError::invalid(path.field("name"), name, detail));
        } else if !names.insert(name.replace('/', ".")) {
            errors.push(FieldError::duplicate(path.field("name"), name));
        }
    }
}

fn policies(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    one_of(errors, &path.field("restartPolicy"), spec.at("restartPolicy"), &["Always", "OnFailure", "Never"]);
    one_of(
        errors,
        &path.field("dnsPolicy"),
        spec.at("dnsPolicy"),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    );
    if spec.has("preemptionPolicy") {
        let path = path.field("preemptionPolicy");
        one_of(errors, &path, spec.at("preemptionPolicy"), &["Never", "PreemptLowerPriority"]);
    }
}

/// Refuses an absent value and one that is not among `allowed`.
pub(crate) fn one_of(errors: &mut Vec<FieldError>, path: &Path<'_>, value: &Value, allowed: &[&str]) {
    match value.as_str().unwrap_or_default() {
        "" => errors.push(FieldError::required(path, "")),
        text if allowed.contains(&text) => (),
        text => errors.push(FieldError::not_supported(path, text, allowed)),
    }
}

fn names(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    for field in
        ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName", "subdomain", "hostname"]
    {
        let name = spec.text(field);
        if !name.is_empty() {
            let label = matches!(field, "subdomain" | "hostname");
            let rule = if label { NameRule::Label } else { NameRule::Subdomain };
            invalid_all(errors, &path.field(field), name, rule.check(name));
        }
    }
    let gates = path.field("readinessGates");
    for (index, gate) in spec.list("readinessGates").iter().enumerate() {
        let name = gate.text("conditionType");
        invalid_all(errors, &gates.index(index).field("conditionType"), name, qualified_name(name));
    }
    let gates = path.field("schedulingGates");
    let all = spec.list("schedulingGates");
    for (index, gate) in all.iter().enumerate() {
        let path = gates.index(index);
        let name = gate.text("name");
        invalid_all(errors, &path.field("name"), name, qualified_name(name));
        if all[..index].iter().any(|earlier| earlier.text("name") == name) {
            errors.push(FieldError::duplicate(path, name));
        }
    }
}

fn numbers(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    if let Some(seconds) = spec.int("activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let detail = "must be between 1 and 2147483647, inclusive";
        errors.push(FieldError::invalid(path.field("activeDeadlineSeconds"), seconds, detail));
    }
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        if let Some(id) = spec.at("securityContext").int(field)
            && !(0..=i64::from(i32::MAX)).contains(&id)
        {
            let detail = "must be between 0 and 2147483647, inclusive";
            errors.push(FieldError::invalid(path.field("securityContext").field(field), id, detail));
        }
    }
}

fn host(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    if spec.flag("hostNetwork") {
        let containers = path.field("containers");
        for (index, container) in spec.list("containers").iter().enumerate() {
            let ports = containers.index(index);
            for (at, port) in container.list("ports").iter().enumerate() {
                let (own, hosts) = (port.int("containerPort"), port.int("hostPort").unwrap_or_default());
                if hosts != 0 && own != Some(hosts) {
                    let detail = "must match `hostPort` when `hostNetwork` is true";
                    let path = ports.field("ports");
                    errors.push(FieldError::invalid(path.index(at).field("containerPort"), own, detail));
                }
            }
        }
    }
    if spec.flag("shareProcessNamespace") && spec.flag("hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(path.field("shareProcessNamespace"), true, detail));
    }
    let aliases = path.field("hostAliases");
    for (index, alias) in spec.list("hostAliases").iter().enumerate() {
        let path = aliases.index(index);
        let ip = alias.text("ip");
        if ip.parse::<std::net::IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(path.field("ip"), ip, detail));
        }
        for (at, name) in alias.list("hostnames").iter().filter_map(Value::as_str).enumerate() {
            invalid_all(errors, &path.field("hostnames").index(at), name, dns_subdomain(name));
        }
    }
    let secrets = path.field("imagePullSecrets");
    for (index, secret) in spec.list("imagePullSecrets").iter().enumerate() {
        if secret.text("name").is_empty() {
            errors.push(FieldError::required(secrets.index(index).field("name"), ""));
        }
    }
}

fn dns(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let config_path = path.field("dnsConfig");
    let config = spec.at("dnsConfig");
    let servers = config.list("nameservers");
    if spec.text("dnsPolicy") == "None" && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(config_path.field("nameservers"), detail));
    }
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        errors.push(FieldError::invalid(config_path.field("nameservers"), servers.to_vec(), detail));
    }
    for (index, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        if server.parse::<std::net::IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(config_path.field("nameservers").index(index), server, detail));
        }
    }
    if config.list("searches").len() > 32 {
        let detail = "must not have more than 32 search paths";
        errors.push(FieldError::invalid(
            config_path.field("searches"),
            config.at("searches").clone(),
            detail,
        ));
    }
}

/// Names of containers and volumes.
pub(super) fn name(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        invalid_all(errors, path, name, dns_label(name));
    }
}
