//! Validation of Ingresses and NetworkPolicies.

use std::net::IpAddr;

use hawser_api::FieldError;
use serde_json::Value;

use crate::kinds::{
    addresses::{contains, loose_cidr},
    meta::invalid_all,
    names::{NameRule, dns_label, dns_subdomain, port_name, port_number},
    rules::{no_longer, prefixed_path},
    selector,
    value::{Fields, Path},
};

const SPEC: Path<'static> = Path::Root("spec");
const LONGEST_CONTROLLER: usize = 250;
const NO_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which \
                        must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric \
                        character (e.g. '*.example.com', regex used for validation is \
                        '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

pub(super) fn network_policy(policy: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    selector::validate(&mut errors, &SPEC.field("podSelector"), policy.at("spec.podSelector"));
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules = SPEC.field(direction);
        for (index, rule) in policy.at("spec").list(direction).iter().enumerate() {
            let path = rules.index(index);
            let list = path.field("ports");
            for (index, port) in rule.list("ports").iter().enumerate() {
                policy_port(&mut errors, &list.index(index), port);
            }
            let list = path.field(peers);
            for (index, peer) in rule.list(peers).iter().enumerate() {
                policy_peer(&mut errors, &list.index(index), peer);
            }
        }
    }
    let types = policy.list("spec.policyTypes");
    let list = SPEC.field("policyTypes");
    if types.len() > 2 {
        errors.push(FieldError::invalid(list, types.to_vec(), "may not specify more than two policyTypes"));
        return errors;
    }
    for (index, kind) in types.iter().filter_map(Value::as_str).enumerate() {
        if !matches!(kind, "Ingress" | "Egress") {
            errors.push(FieldError::not_supported(list.index(index), kind, &["Ingress", "Egress"]));
        }
    }
    errors
}

fn policy_port(errors: &mut Vec<FieldError>, path: &Path<'_>, port: &Value) {
    let protocol = port.text("protocol");
    if !matches!(protocol, "" | "TCP" | "UDP" | "SCTP") {
        errors.push(FieldError::not_supported(path.field("protocol"), protocol, &["TCP", "UDP", "SCTP"]));
    }
    let end = port.int("endPort");
    let end_path = path.field("endPort");
    match port.at("port") {
        Value::Null => {
            if let Some(end) = end {
                let detail = "may not be specified when `port` is not specified";
                errors.push(FieldError::invalid(end_path, end, detail));
            }
        }
        Value::String(name) => {
            if let Some(end) = end {
                let detail = "may not be specified when `port` is non-numeric";
                errors.push(FieldError::invalid(end_path, end, detail));
            }
            invalid_all(errors, &path.field("port"), name, port_name(name));
        }
        number => {
            let number = number.as_i64().unwrap_or_default();
            if let Some(detail) = port_number(number) {
                errors.push(FieldError::invalid(path.field("port"), number, detail));
            }
            let Some(end) = end else {
                return;
            };
            if end < number {
                let detail = "must be greater than or equal to `port`";
                errors.push(FieldError::invalid(end_path, end, detail));
            }
            if let Some(detail) = port_number(end) {
                errors.push(FieldError::invalid(end_path, end, detail));
            }
        }
    }
}

fn policy_peer(errors: &mut Vec<FieldError>, path: &Path<'_>, peer: &Value) {
    let selectors = ["podSelector", "namespaceSelector"].into_iter().filter(|field| peer.has(field));
    for field in selectors.clone() {
        selector::validate(errors, &path.field(field), peer.at(field));
    }
    let selects = selectors.count() > 0;
    if peer.has("ipBlock") {
        ip_block(errors, &path.field("ipBlock"), peer.at("ipBlock"));
        if selects {
            errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
        }
    } else if !selects {
        errors.push(FieldError::required(path, "must specify a peer"));
    }
}

fn ip_block(errors: &mut Vec<FieldError>, path: &Path<'_>, block: &Value) {
    let cidr = block.text("cidr");
    if cidr.is_empty() {
        errors.push(FieldError::required(path.field("cidr"), ""));
        return;
    }
    let Some(outer) = loose_cidr(cidr) else {
        errors.push(FieldError::invalid(path.field("cidr"), cidr, NO_CIDR));
        return;
    };
    let list = path.field("except");
    for (index, except) in block.list("except").iter().filter_map(Value::as_str).enumerate() {
        match loose_cidr(except) {
            None => errors.push(FieldError::invalid(list.index(index), except, NO_CIDR)),
            Some(inner) if contains(outer, inner.0) && outer.1 < inner.1 => (),
            Some(_) => {
                let detail = "must be a strict subset of `cidr`";
                errors.push(FieldError::invalid(list.index(index), except, detail));
            }
        }
    }
}

pub(super) fn ingress(ingress: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = ingress.at("spec");
    if spec.list("rules").is_empty() && !spec.has("defaultBackend") {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(SPEC, spec.clone(), detail));
    }
    if spec.has("defaultBackend") {
        backend(&mut errors, &SPEC.field("defaultBackend"), spec.at("defaultBackend"));
    }
    let list = SPEC.field("rules");
    for (index, rule) in spec.list("rules").iter().enumerate() {
        let path = list.index(index);
        let host = rule.text("host");
        if !host.is_empty() {
            if host.parse::<IpAddr>().is_ok() {
                let detail = "must be a DNS name, not an IP address";
                errors.push(FieldError::invalid(path.field("host"), host, detail));
            }
            host_name(&mut errors, &path.field("host"), host);
        }
        if rule.has("http") {
            let paths = path.field("http.paths");
            if rule.list("http.paths").is_empty() {
                errors.push(FieldError::required(paths, ""));
            }
            for (index, part) in rule.list("http.paths").iter().enumerate() {
                http_path(&mut errors, &paths.index(index), part);
            }
        }
    }
    let list = SPEC.field("tls");
    for (index, tls) in spec.list("tls").iter().enumerate() {
        let path = list.index(index);
        let hosts = path.field("hosts");
        for (index, host) in tls.list("hosts").iter().filter_map(Value::as_str).enumerate() {
            host_name(&mut errors, &hosts.index(index), host);
        }
        let secret = tls.text("secretName");
        if !secret.is_empty() {
            invalid_all(&mut errors, &path.field("secretName"), secret, dns_subdomain(secret));
        }
    }
    if let Some(class) = spec.at("ingressClassName").as_str() {
        invalid_all(&mut errors, &SPEC.field("ingressClassName"), class, dns_subdomain(class));
    }
    errors
}

pub(super) fn ingress_class(class: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (path, controller) = (SPEC.field("controller"), class.text("spec.controller"));
    no_longer(&mut errors, &path, controller, LONGEST_CONTROLLER);
    prefixed_path(&mut errors, &path, controller);
    let (path, parameters) = (SPEC.field("parameters"), class.at("spec.parameters"));
    if parameters.is_null() {
        return errors;
    }
    reference(&mut errors, &path, parameters);
    match (parameters.text("scope"), parameters.get("namespace").and_then(Value::as_str)) {
        ("Namespace", None) => {
            let detail = "`parameters.scope` is set to 'Namespace'";
            errors.push(FieldError::required(path.field("namespace"), detail));
        }
        ("Namespace", Some(namespace)) => {
            invalid_all(&mut errors, &path.field("namespace"), namespace, dns_label(namespace));
        }
        ("Cluster", None) => {}
        ("Cluster", Some(_)) => {
            let detail = "`parameters.scope` is set to 'Cluster'";
            errors.push(FieldError::forbidden(path.field("namespace"), detail));
        }
        (scope, _) => {
            errors.push(FieldError::not_supported(path.field("scope"), scope, &["Cluster", "Namespace"]));
        }
    }
    errors
}

/// A new one names its class once: in the older annotation or in the field, or the same in both.
pub(super) fn new_ingress(ingress: &Value) -> Vec<FieldError> {
    const ANNOTATION: &str = "kubernetes.io/ingress.class";
    let class = ingress.at("spec.ingressClassName");
    match ingress.map("metadata.annotations").get(ANNOTATION) {
        Some(annotated) if !class.is_null() && annotated != class => {
            let path = Path::Root("annotations");
            let detail = "must match `ingressClassName` when both are specified";
            vec![FieldError::invalid(path.field(ANNOTATION), annotated.clone(), detail)]
        }
        _ => Vec::new(),
    }
}

fn host_name(errors: &mut Vec<FieldError>, path: &Path<'_>, host: &str) {
    if !host.contains('*') {
        invalid_all(errors, path, host, dns_subdomain(host));
    } else if !host.strip_prefix("*.").is_some_and(|parent| dns_subdomain(parent).is_empty()) {
        errors.push(FieldError::invalid(path, host, WILDCARD));
    }
}

fn http_path(errors: &mut Vec<FieldError>, path: &Path<'_>, part: &Value) {
    let (place, text) = (path.field("path"), part.text("path"));
    match part.text("pathType") {
        "" => {
            errors.push(FieldError::required(path.field("pathType"), "pathType must be specified"));
            return;
        }
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                errors.push(FieldError::invalid(place, text, "must be an absolute path"));
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.contains(sequence) {
                    errors.push(FieldError::invalid(place, text, format!("must not contain '{sequence}'")));
                }
            }
            for suffix in ["/..", "/."] {
                if text.ends_with(suffix) {
                    errors.push(FieldError::invalid(place, text, format!("cannot end with '{suffix}'")));
                }
            }
        }
        "ImplementationSpecific" if text.is_empty() || text.starts_with('/') => (),
        "ImplementationSpecific" => {
            errors.push(FieldError::invalid(place, text, "must be an absolute path"));
        }
        other => {
            let known = ["Exact", "ImplementationSpecific", "Prefix"];
            errors.push(FieldError::not_supported(path.field("pathType"), other, &known));
        }
    }
    backend(errors, &path.field("backend"), part.at("backend"));
}

/// A service and its port, or an object of another kind.
fn backend(errors: &mut Vec<FieldError>, path: &Path<'_>, backend: &Value) {
    match (backend.has("resource"), backend.has("service")) {
        (true, true) => {
            errors.push(FieldError::invalid(path, "", "cannot set both resource and service backends"));
        }
        (false, false) => {
            errors.push(FieldError::invalid(path, "", "resource or service backend is required"));
        }
        (true, false) => reference(errors, &path.field("resource"), backend.at("resource")),
        (false, true) => {
            match backend.text("service.name") {
                "" => errors.push(FieldError::required(path.field("service.name"), "")),
                name => invalid_all(errors, &path.field("service.name"), name, dns_label(name)),
            }
            let (name, number) =
                (backend.text("service.port.name"), backend.int("service.port.number").unwrap_or_default());
            match (name, number) {
                ("", 0) => errors.push(FieldError::required(path, "port name or number is required")),
                ("", number) => {
                    if let Some(detail) = port_number(number) {
                        errors.push(FieldError::invalid(path.field("service.port.number"), number, detail));
                    }
                }
                (name, 0) => invalid_all(errors, &path.field("service.port.name"), name, port_name(name)),
                _ => errors.push(FieldError::invalid(path, "", "cannot set both port name & port number")),
            }
        }
    }
}

fn reference(errors: &mut Vec<FieldError>, path: &Path<'_>, reference: &Value) {
    if let Some(group) = reference.at("apiGroup").as_str() {
        invalid_all(errors, &path.field("apiGroup"), group, dns_subdomain(group));
    }
    for field in ["kind", "name"] {
        match reference.text(field) {
            "" => errors.push(FieldError::required(path.field(field), format!("{field} is required"))),
            name => invalid_all(errors, &path.field(field), name, NameRule::PathSegment.check(name)),
        }
    }
}
