//! Validation of pods and pod templates as a whole.

use std::collections::HashSet;

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    annotations,
    containers::{self, Around},
    each_container, env, resources, scheduling, security, subresources, volumes,
};
use crate::kinds::{
    addresses::address,
    meta::{self, invalid_all, labels},
    names::{NameRule, dns_label, dns_subdomain, qualified_name, search_path},
    rules::words,
    value::{Fields, Path},
};

/// The most name servers, search paths, and characters of these that resolvers take.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;

pub(crate) fn validate_pod(pod: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (path, spec, meta) = (Path::Root("spec"), pod.at("spec"), pod.at("metadata"));
    let of = Path::Root("metadata");
    annotations::validate(&mut errors, &of.field("annotations"), meta.at("annotations"), spec);
    validate_spec(&mut errors, &path, spec, Some(meta));
    if spec.text("serviceAccountName").is_empty() {
        tokens_of_nobody(&mut errors, &path.field("volumes"), spec);
    }
    for list in ["containers", "initContainers"] {
        let path = path.field(list);
        for (index, container) in spec.list(list).iter().enumerate() {
            containers::image_of_pod(&mut errors, &path.index(index), container);
        }
    }
    errors
}

fn tokens_of_nobody(errors: &mut Vec<FieldError>, list: &Path<'_>, spec: &Value) {
    for (index, volume) in spec.list("volumes").iter().enumerate() {
        let path = list.index(index);
        let sources = path.field("projected.sources");
        for (index, source) in volume.list("projected.sources").iter().enumerate() {
            if source.has("serviceAccountToken") {
                let path = sources.index(index);
                let detail = "must not be specified when serviceAccountName is not set";
                errors.push(FieldError::forbidden(path.field("serviceAccountToken"), detail));
            }
        }
    }
}

/// Rules of the template in a workload. The paths of its labels and annotations are upstream's.
pub(crate) fn validate_template(errors: &mut Vec<FieldError>, path: &Path<'_>, template: &Value) {
    let (of, notes) = (path.field("spec"), template.at("metadata.annotations"));
    let spec = template.at("spec");
    labels(errors, &path.field("labels"), template.at("metadata.labels"));
    meta::annotations(errors, &path.field("annotations"), notes);
    annotations::validate(errors, &path.field("annotations"), notes, spec);
    validate_spec(errors, &of, spec, None);
    annotations::agree(errors, &of, notes, spec);
    if !spec.list("ephemeralContainers").is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(of.field("ephemeralContainers"), detail));
    }
}

/// `pod` is the metadata of the pod whose spec it is; none of a template.
fn validate_spec(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value, pod: Option<&Value>) {
    let volumes = volumes::validate(errors, &path.field("volumes"), spec.list("volumes"), pod);
    let around = Around { spec, volumes };
    resource_claims(errors, &path.field("resourceClaims"), spec.list("resourceClaims"));
    containers::validate_all(errors, path, &around);
    subresources::validate_containers(errors, path, &around);
    resources::of_pod(errors, path, spec);
    host_ports(errors, path, spec, pod);
    policies(errors, path, spec);
    labels(errors, &path.field("nodeSelector"), spec.at("nodeSelector"));
    security::of_pod(errors, path, spec);
    dns(errors, path, spec);
    scheduling::validate(errors, path, spec, pod);
    gates(errors, path, spec);
    security::host_process(errors, path, spec);
    security::users(errors, path, spec);
    security::hostname(errors, path, spec);
    names(errors, path, spec);
    aliases(errors, &path.field("hostAliases"), spec.list("hostAliases"));
    if let Some(seconds) = spec.int("activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let detail = "must be between 1 and 2147483647, inclusive";
        errors.push(FieldError::invalid(path.field("activeDeadlineSeconds"), seconds, detail));
    }
    if spec.has("overhead") {
        resources::overhead(errors, &path.field("overhead"), spec.at("overhead"));
    }
    security::os(errors, path, spec);
    if spec.has("schedulingGroup") {
        let path = path.field("schedulingGroup.podGroupName");
        match spec.at("schedulingGroup.podGroupName").as_str() {
            None => {
                let detail = "must specify one of: `podGroupName`";
                errors.push(FieldError::invalid(path, Value::Null, detail));
            }
            Some(name) => invalid_all(errors, &path, name, dns_subdomain(name)),
        }
    }
    each_container(spec, path, |path, container| {
        env::file_volumes(errors, path, container, spec.list("volumes"));
    });
}

/// Claims for devices, each of which is there or is made for the pod.
fn resource_claims(errors: &mut Vec<FieldError>, list: &Path<'_>, claims: &[Value]) {
    let mut taken = HashSet::new();
    for (index, claim) in claims.iter().enumerate() {
        let path = list.index(index);
        match claim.text("name") {
            "" => errors.push(FieldError::required(path.field("name"), "")),
            name if !taken.insert(name) => errors.push(FieldError::duplicate(path.field("name"), name)),
            name => invalid_all(errors, &path.field("name"), name, dns_label(name)),
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        let detail = match sources.map(|field| claim.has(field)) {
            [true, true] => {
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
            }
            [false, false] => "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            _ => "",
        };
        if !detail.is_empty() {
            errors.push(FieldError::invalid(path, claim.clone(), detail));
        }
        for field in sources.into_iter().filter(|field| claim.has(field)) {
            let name = claim.text(field);
            invalid_all(errors, &path.field(field), name, dns_subdomain(name));
        }
    }
}

fn policies(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    one_of(errors, &path.field("restartPolicy"), spec.at("restartPolicy"), &["Always", "OnFailure", "Never"]);
    one_of(
        errors,
        &path.field("dnsPolicy"),
        spec.at("dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    if spec.has("preemptionPolicy") {
        let path = path.field("preemptionPolicy");
        one_of(errors, &path, spec.at("preemptionPolicy"), &["PreemptLowerPriority", "Never"]);
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
}

fn gates(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let list = path.field("readinessGates");
    for (index, gate) in spec.list("readinessGates").iter().enumerate() {
        let name = gate.text("conditionType");
        invalid_all(errors, &list.index(index).field("conditionType"), name, qualified_name(name));
    }
    let list = path.field("schedulingGates");
    let mut taken = HashSet::new();
    for (index, gate) in spec.list("schedulingGates").iter().enumerate() {
        let (path, name) = (list.index(index), gate.text("name"));
        invalid_all(errors, &path, name, qualified_name(name));
        if !taken.insert(name) {
            errors.push(FieldError::duplicate(path, name));
        }
    }
}

/// In the host's network a port is the host's. A template may leave that open: its pods get it.
fn host_ports(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value, pod: Option<&Value>) {
    if !spec.flag("hostNetwork") {
        return;
    }
    let list = path.field("containers");
    for (index, container) in spec.list("containers").iter().enumerate() {
        let path = list.index(index);
        let ports = path.field("ports");
        for (at, port) in container.list("ports").iter().enumerate() {
            let own = port.int("containerPort").unwrap_or_default();
            let hosts = port.int("hostPort").unwrap_or_default();
            if (pod.is_some() || hosts != 0) && own != hosts {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(ports.index(at).field("hostPort"), hosts, detail));
            }
        }
    }
}

fn aliases(errors: &mut Vec<FieldError>, list: &Path<'_>, aliases: &[Value]) {
    for (index, alias) in aliases.iter().enumerate() {
        let path = list.index(index);
        address(errors, &path.field("ip"), alias.text("ip"));
        for (at, name) in alias.list("hostnames").iter().filter_map(Value::as_str).enumerate() {
            invalid_all(errors, &path.field("hostnames").index(at), name, dns_subdomain(name));
        }
    }
}

fn dns(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let path = path.field("dnsConfig");
    let config = spec.at("dnsConfig");
    let (servers, servers_path) = (words(config, "nameservers"), path.field("nameservers"));
    if spec.text("dnsPolicy") == "None" {
        if config.is_null() {
            let detail = "must provide `dnsConfig` when `dnsPolicy` is None";
            errors.push(FieldError::required(path, detail));
            return;
        }
        if servers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(FieldError::required(servers_path, detail));
            return;
        }
    }
    if servers.len() > MAX_SERVERS {
        let detail = format!("must not have more than {MAX_SERVERS} nameservers");
        errors.push(FieldError::invalid(servers_path, servers.clone(), detail));
    }
    for (index, server) in servers.iter().enumerate() {
        address(errors, &servers_path.index(index), server);
    }
    let (searches, list) = (words(config, "searches"), path.field("searches"));
    if searches.len() > MAX_SEARCHES {
        let detail = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.push(FieldError::invalid(list, searches.clone(), detail));
    }
    if searches.join(" ").len() > MAX_SEARCH_CHARACTERS {
        let detail = format!(
            "must not have more than {MAX_SEARCH_CHARACTERS} characters (including spaces) in the search list"
        );
        errors.push(FieldError::invalid(list, searches.clone(), detail));
    }
    for (index, search) in searches.iter().enumerate().filter(|(_, search)| **search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        invalid_all(errors, &list.index(index), search, search_path(search));
    }
    let list = path.field("options");
    for (index, option) in config.list("options").iter().enumerate() {
        if option.text("name").is_empty() {
            errors.push(FieldError::required(list.index(index), "must not be empty"));
        }
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
