//! Rules of Services, as far as they hold without allocation: the ports and addresses that the registry gives come later.

use std::{collections::HashSet, net::IpAddr};

use hawser_api::FieldError;
use serde_json::{Value, json};

use super::{SPEC, needs_health_port};
use crate::kinds::{
    addresses::{address, loose_address, network, not_special},
    meta::{invalid_all, labels},
    names::{dns_label, dns_subdomain, port_number, qualified_name},
    pod::port,
    rules::{one_of, words},
    value::{Fields, Path},
};

/// Seconds that a client stays with its pod, at most: a day.
const MAX_AFFINITY_SECONDS: i64 = 86_400;

const ANNOTATIONS: Path<'static> = Path::Root("metadata.annotations");
const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const MODE: &str = "service.kubernetes.io/topology-mode";
const SOURCES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

pub(super) fn validate(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = service.at("spec");
    let annotation = |key: &str| service.at("metadata.annotations").get(key).and_then(Value::as_str);
    if let (Some(hints), Some(mode)) = (annotation(HINTS), annotation(MODE))
        && hints != mode
    {
        let detail = format!("must match annotations[{HINTS}] when both are specified");
        errors.push(FieldError::invalid(ANNOTATIONS.key(MODE), mode, detail));
    }
    let kind = spec.text("type");
    let headless = spec.text("clusterIP") == "None";
    if spec.list("ports").is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required(SPEC.field("ports"), ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid(SPEC.field("clusterIPs").index(0), "None", detail));
        }
        "ExternalName" => external_name(&mut errors, spec),
        _ => (),
    }
    ports(&mut errors, spec);
    labels(&mut errors, &SPEC.field("selector"), spec.at("selector"));
    affinity(&mut errors, spec);
    if kind != "ExternalName" {
        cluster_addresses(&mut errors, spec);
    }
    let list = SPEC.field("externalIPs");
    for (index, text) in words(spec, "externalIPs").into_iter().enumerate() {
        let (path, before) = (list.index(index), errors.len());
        address(&mut errors, &path, text);
        if errors.len() == before {
            not_special(&mut errors, &path, text);
        }
    }
    let known = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    one_of(&mut errors, &SPEC.field("type"), kind, &known);
    load_balancer(&mut errors, spec, annotation(SOURCES));
    policies(&mut errors, spec);
    errors
}

fn external_name(errors: &mut Vec<FieldError>, spec: &Value) {
    let is_set = |field: &str| match spec.at(field) {
        Value::Array(all) => !all.is_empty(),
        other => !other.is_null(),
    };
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"].into_iter().filter(|field| is_set(field)) {
        errors.push(FieldError::forbidden(SPEC.field(field), "may not be set for ExternalName services"));
    }
    let path = SPEC.field("externalName");
    match spec.text("externalName") {
        "" | "." => errors.push(FieldError::required(path, "")),
        name => {
            let name = name.strip_suffix('.').unwrap_or(name);
            invalid_all(errors, &path, name, dns_subdomain(name));
        }
    }
}

fn ports(errors: &mut Vec<FieldError>, spec: &Value) {
    let (list, ports) = (SPEC.field("ports"), spec.list("ports"));
    let mut names = HashSet::new();
    for (index, own) in ports.iter().enumerate() {
        let path = list.index(index);
        let name = own.text("name");
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(FieldError::required(path.field("name"), ""));
            }
        } else {
            invalid_all(errors, &path.field("name"), name, dns_label(name));
            if !names.insert(name) {
                errors.push(FieldError::duplicate(path.field("name"), name));
            }
        }
        let number = own.int("port").unwrap_or_default();
        if let Some(detail) = port_number(number) {
            errors.push(FieldError::invalid(path.field("port"), number, detail));
        }
        let protocol = own.text("protocol");
        one_of(errors, &path.field("protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        port(errors, &path.field("targetPort"), own.at("targetPort"));
        if let Some(protocol) = own.at("appProtocol").as_str() {
            invalid_all(errors, &path.field("appProtocol"), protocol, qualified_name(protocol));
        }
        let node_port = own.int("nodePort").unwrap_or_default();
        if node_port != 0 && spec.text("type") == "ClusterIP" {
            let detail = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(path.field("nodePort"), detail));
        }
        let same = |field: &str, number: i64| {
            let is = |other: &Value| other.text("protocol") == protocol && other.int(field) == Some(number);
            ports[..index].iter().any(is)
        };
        if node_port != 0 && same("nodePort", node_port) {
            errors.push(FieldError::duplicate(path.field("nodePort"), node_port));
        }
        if same("port", number) {
            errors.push(FieldError::duplicate(path, json!({ "protocol": protocol, "port": number })));
        }
    }
}

fn affinity(errors: &mut Vec<FieldError>, spec: &Value) {
    let path = SPEC.field("sessionAffinity");
    match spec.text("sessionAffinity") {
        "" => errors.push(FieldError::required(path, "")),
        kind => one_of(errors, &path, kind, &["ClientIP", "None"]),
    }
    let path = SPEC.field("sessionAffinityConfig");
    match (spec.text("sessionAffinity"), spec.int("sessionAffinityConfig.clientIP.timeoutSeconds")) {
        ("None", _) if spec.has("sessionAffinityConfig") => {
            errors.push(FieldError::forbidden(path, "must not be set when session affinity is None"));
        }
        ("ClientIP", Some(seconds)) if !(1..=MAX_AFFINITY_SECONDS).contains(&seconds) => {
            let detail = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
            errors.push(FieldError::invalid(path.field("clientIP.timeoutSeconds"), seconds, detail));
        }
        _ => (),
    }
}

/// Addresses and families of the cluster's side, of which there are at most two.
fn cluster_addresses(errors: &mut Vec<FieldError>, spec: &Value) {
    let (list, all) = (SPEC.field("clusterIPs"), words(spec, "clusterIPs"));
    let shown = || spec.at("clusterIPs").clone();
    let primary = spec.text("clusterIP");
    if primary.is_empty() {
        if !all.is_empty() {
            let detail = "must be empty when `clusterIP` is not specified";
            errors.push(FieldError::invalid(list, shown(), detail));
        }
    } else if all.first() != Some(&primary) {
        errors.push(FieldError::invalid(list, shown(), "first value must match `clusterIP`"));
    }
    let (families_path, families) = (SPEC.field("ipFamilies"), words(spec, "ipFamilies"));
    for (index, family) in families.iter().enumerate() {
        one_of(errors, &families_path.index(index), family, &["IPv4", "IPv6"]);
        if families[..index].contains(family) {
            errors.push(FieldError::duplicate(families_path.index(index), *family));
        }
    }
    if spec.has("ipFamilyPolicy") {
        let known = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        one_of(errors, &SPEC.field("ipFamilyPolicy"), spec.text("ipFamilyPolicy"), &known);
    }
    let before = errors.len();
    for (index, text) in all.iter().enumerate() {
        if index > 0 || *text != "None" {
            address(errors, &list.index(index), text);
        } else if all.len() > 1 {
            errors.push(FieldError::invalid(list, shown(), "'None' must be the first and only value"));
        }
    }
    let is_readable = errors.len() == before;
    if all.len() > 2 {
        errors.push(FieldError::invalid(list, shown(), "may only hold up to 2 values"));
    }
    if !is_readable {
        return;
    }
    let is_v4 = |text: &str| loose_address(text).is_some_and(|address| address.is_ipv4());
    if all.len() > 1 && all.iter().all(|text| is_v4(text) == is_v4(all[0])) {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(list, shown(), detail));
    }
    for (index, (text, family)) in all.iter().zip(&families).enumerate() {
        let fits = match loose_address(text) {
            Some(IpAddr::V4(_)) => *family != "IPv6",
            Some(IpAddr::V6(_)) => *family != "IPv4",
            None => true,
        };
        if !fits {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.push(FieldError::invalid(list.index(index), *text, detail));
        }
    }
}

/// What is of load balancers alone. `annotation` is the older place of their sources.
fn load_balancer(errors: &mut Vec<FieldError>, spec: &Value, annotation: Option<&str>) {
    const ALONE: &str = "may only be used when `type` is 'LoadBalancer'";
    let is_balanced = spec.text("type") == "LoadBalancer";
    let ranges = words(spec, "loadBalancerSourceRanges");
    // Upstream's name of the path.
    let of_field = SPEC.field("LoadBalancerSourceRanges");
    let of_annotation = ANNOTATIONS.key(SOURCES);
    let path = if ranges.is_empty() { of_annotation } else { of_field };
    if !is_balanced && (!ranges.is_empty() || annotation.is_some()) {
        errors.push(FieldError::forbidden(path, ALONE));
    }
    for (index, range) in ranges.iter().enumerate() {
        network(errors, &path.index(index), range.trim());
    }
    if let Some(text) = annotation.map(str::trim).filter(|text| ranges.is_empty() && !text.is_empty()) {
        text.split(',').for_each(|range| network(errors, &path, range.trim()));
    }
    if !is_balanced && spec.has("allocateLoadBalancerNodePorts") {
        errors.push(FieldError::forbidden(SPEC.field("allocateLoadBalancerNodePorts"), ALONE));
    }
    let path = SPEC.field("loadBalancerClass");
    match spec.at("loadBalancerClass").as_str() {
        Some(class) if is_balanced => invalid_all(errors, &path, class, qualified_name(class)),
        Some(_) => errors.push(FieldError::forbidden(path, ALONE)),
        None => (),
    }
}

fn policies(errors: &mut Vec<FieldError>, spec: &Value) {
    let outside =
        matches!(spec.text("type"), "NodePort" | "LoadBalancer") || !spec.list("externalIPs").is_empty();
    let (path, policy) = (SPEC.field("externalTrafficPolicy"), spec.text("externalTrafficPolicy"));
    match policy {
        "" => (),
        _ if !outside || spec.text("type") == "ExternalName" => {
            let detail = "may only be set for externally-accessible services";
            errors.push(FieldError::invalid(path, policy, detail));
        }
        _ => one_of(errors, &path, policy, &["Cluster", "Local"]),
    }
    let (path, number) = (SPEC.field("healthCheckNodePort"), spec.int("healthCheckNodePort"));
    if let Some(number) = number.filter(|number| *number != 0) {
        if !needs_health_port(spec) {
            let detail =
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(FieldError::invalid(path, number, detail));
        } else if let Some(detail) = port_number(number) {
            errors.push(FieldError::invalid(path, number, detail));
        }
    }
    for (field, known) in [
        ("internalTrafficPolicy", &["Cluster", "Local"][..]),
        ("trafficDistribution", &["PreferClose", "PreferSameNode", "PreferSameZone"]),
    ] {
        if spec.has(field) {
            one_of(errors, &SPEC.field(field), spec.text(field), known);
        }
    }
}

/// What was allocated stands, but that a second family may come, and go.
pub(super) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (spec, before) = (new.at("spec"), old.at("spec"));
    let mut errors = Vec::new();
    let headless = |spec: &Value| spec.text("clusterIP") == "None";
    let is_external = |spec: &Value| spec.text("type") == "ExternalName";
    if !is_external(spec) && !is_external(before) {
        if !headless(spec) || !headless(before) {
            kept(&mut errors, spec, before, "clusterIPs", "secondary clusterIP");
        }
        if !headless(spec) && !headless(before) {
            kept(&mut errors, spec, before, "ipFamilies", "secondary ipFamily");
        }
    }
    let is_balanced = |spec: &Value| spec.text("type") == "LoadBalancer";
    let class = "loadBalancerClass";
    if is_balanced(spec) && is_balanced(before) && spec.at(class) != before.at(class) {
        let value = spec.at(class).clone();
        errors.push(FieldError::invalid(SPEC.field(class), value, "may not change once set"));
    }
    let port = "healthCheckNodePort";
    if needs_health_port(spec) && needs_health_port(before) && spec.at(port) != before.at(port) {
        errors.push(FieldError::forbidden(SPEC.field(port), "field is immutable"));
    }
    errors
}

/// `second` is what the list's second item is called.
fn kept(errors: &mut Vec<FieldError>, spec: &Value, before: &Value, field: &str, second: &str) {
    let list = SPEC.field(field);
    let (now, was) = (spec.list(field), before.list(field));
    let same_length = now.len() == was.len();
    for (index, (one, earlier)) in now.iter().zip(was).enumerate() {
        if one != earlier && (index == 0 || same_length) {
            // Upstream names the first family, whichever it is.
            let index = if field == "ipFamilies" { 0 } else { index };
            errors.push(FieldError::invalid(list.index(index), now.to_vec(), "may not change once set"));
        }
    }
    if now.is_empty() && !was.is_empty() {
        let detail = second.replace("secondary", "primary") + " can not be unset";
        errors.push(FieldError::invalid(list.index(0), now.to_vec(), detail));
    }
    if now.len() == 1 && was.len() > 1 && spec.text("ipFamilyPolicy") != "SingleStack" {
        let detail = format!("must be set to 'SingleStack' when releasing the {second}");
        errors.push(FieldError::invalid(
            SPEC.field("ipFamilyPolicy"),
            spec.at("ipFamilyPolicy").clone(),
            detail,
        ));
    }
}

/// Addresses that a load balancer says it has.
pub(super) fn status(new: &Value, _old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list = Path::Root("status.loadBalancer.ingress");
    let ingress = new.list("status.loadBalancer.ingress");
    if new.text("spec.type") != "LoadBalancer" && !ingress.is_empty() {
        let detail = "may only be used when `spec.type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden(list, detail));
        return errors;
    }
    for (index, point) in ingress.iter().enumerate() {
        let (path, ip, mode) = (list.index(index), point.text("ip"), point.at("ipMode"));
        if !ip.is_empty() {
            address(&mut errors, &path.field("ip"), ip);
        }
        let of_mode = path.field("ipMode");
        match (mode.as_str(), ip) {
            (None, "") => (),
            (None, _) => errors.push(FieldError::required(of_mode, "must be specified when `ip` is set")),
            (Some(_), "") => {
                errors.push(FieldError::forbidden(of_mode, "may not be specified when `ip` is not set"));
            }
            (Some(mode), _) => one_of(&mut errors, &of_mode, mode, &["Proxy", "VIP"]),
        }
        let name = point.text("hostname");
        if !name.is_empty() {
            invalid_all(&mut errors, &path.field("hostname"), name, dns_subdomain(name));
            if loose_address(name).is_some() {
                let detail = "must be a DNS name, not an IP address";
                errors.push(FieldError::invalid(path.field("hostname"), name, detail));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{
        tests::{created, kind, with},
        validate_create, validate_status, validate_update,
    };

    fn service() -> Value {
        json!({
            "kind": "Service", "apiVersion": "v1", "metadata": { "name": "web", "namespace": "a" },
            "spec": { "type": "LoadBalancer", "selector": { "app": "web" }, "ports": [{ "port": 80 }] },
        })
    }

    fn fields(errors: Vec<FieldError>) -> Vec<String> {
        errors.into_iter().map(|error| format!("{} {:?}", error.field, error.kind)).collect()
    }

    #[track_caller]
    fn check(changes: &[(&str, Value)], expected: &[&str]) {
        let object =
            changes.iter().fold(service(), |object, (path, value)| with(object, path, value.clone()));
        let errors = validate_create(kind("services"), &created("services", object));
        assert_eq!(fields(errors), expected, "{changes:?}");
    }

    #[test]
    fn what_a_service_may_be() {
        let plain = ("/spec/type", json!("ClusterIP"));
        check(&[], &[]);
        check(&[("/spec/loadBalancerSourceRanges", json!([" 10.0.0.0/8 "]))], &[]);
        check(
            &[("/spec/loadBalancerSourceRanges", json!(["10.0.0.0"])), plain.clone()],
            &["spec.LoadBalancerSourceRanges Forbidden", "spec.LoadBalancerSourceRanges[0] Invalid"],
        );
        check(
            &[("/metadata/annotations", json!({ SOURCES: "10.0.0.0/8, x" }))],
            &[&format!("metadata.annotations[{SOURCES}] Invalid")],
        );
        check(
            &[("/metadata/annotations", json!({ HINTS: "Auto", MODE: "Disabled" }))],
            &[&format!("metadata.annotations[{MODE}] Invalid")],
        );
        check(&[("/spec/loadBalancerClass", json!("example.com/lb"))], &[]);
        check(&[("/spec/loadBalancerClass", json!("a b"))], &["spec.loadBalancerClass Invalid"]);
        check(
            &[
                ("/spec/loadBalancerClass", json!("a")),
                ("/spec/allocateLoadBalancerNodePorts", json!(false)),
                plain.clone(),
            ],
            &["spec.allocateLoadBalancerNodePorts Forbidden", "spec.loadBalancerClass Forbidden"],
        );
        check(
            &[
                ("/spec/sessionAffinity", json!("ClientIP")),
                ("/spec/sessionAffinityConfig", json!({ "clientIP": { "timeoutSeconds": 86_401 } })),
            ],
            &["spec.sessionAffinityConfig.clientIP.timeoutSeconds Invalid"],
        );
        check(
            &[("/spec/externalIPs", json!(["10.0.0.1", "127.0.0.1", "169.254.1.1", "224.0.0.1", "::", "x"]))],
            &[
                "spec.externalIPs[1] Invalid",
                "spec.externalIPs[2] Invalid",
                "spec.externalIPs[3] Invalid",
                "spec.externalIPs[4] Invalid",
                "spec.externalIPs[5] Invalid",
            ],
        );
        check(
            &[("/spec/trafficDistribution", json!("PreferFar"))],
            &["spec.trafficDistribution NotSupported"],
        );
        check(&[("/spec/internalTrafficPolicy", json!("Far"))], &["spec.internalTrafficPolicy NotSupported"]);
        check(
            &[("/spec/externalTrafficPolicy", json!("Local")), plain.clone()],
            &["spec.externalTrafficPolicy Invalid"],
        );
        check(&[("/spec/healthCheckNodePort", json!(30_000))], &["spec.healthCheckNodePort Invalid"]);
        check(&[("/spec/ports/0/appProtocol", json!("a b"))], &["spec.ports[0].appProtocol Invalid"]);
        check(&[("/spec/clusterIPs", json!(["10.0.0.1", "10.0.0.2"]))], &["spec.clusterIPs Invalid"]);
        check(
            &[("/spec/ipFamilies", json!(["IPv4", "IPv4", "IPX"]))],
            &["spec.ipFamilies[1] Duplicate", "spec.ipFamilies[2] NotSupported"],
        );
        check(
            &[("/spec/clusterIPs", json!(["10.0.0.1"])), ("/spec/ipFamilies", json!(["IPv6"]))],
            &["spec.clusterIPs[0] Invalid"],
        );
        check(&[("/spec/clusterIP", json!("None"))], &["spec.clusterIPs[0] Invalid"]);
        let external = ("/spec/type", json!("ExternalName"));
        check(
            &[external.clone(), ("/spec/ipFamilies", json!(["IPv4"]))],
            &["spec.ipFamilies Forbidden", "spec.externalName Required"],
        );
        check(
            &[
                external,
                ("/spec/externalName", json!("a.example.com.")),
                ("/spec/ports/0/nodePort", json!(30_000)),
            ],
            &[],
        );
    }

    #[test]
    fn what_of_a_service_stands() {
        let allocated = |changes: &[(&str, Value)]| {
            let mut object =
                changes.iter().fold(service(), |object, (path, value)| with(object, path, value.clone()));
            object = created("services", object);
            object["metadata"]["resourceVersion"] = json!("1");
            object
        };
        let dual: &[(&str, Value)] = &[
            ("/spec/clusterIPs", json!(["10.0.0.1", "fd00::1"])),
            ("/spec/ipFamilies", json!(["IPv4", "IPv6"])),
            ("/spec/ipFamilyPolicy", json!("PreferDualStack")),
        ];
        let single: &[(&str, Value)] =
            &[("/spec/clusterIPs", json!(["10.0.0.1"])), ("/spec/ipFamilies", json!(["IPv4"]))];
        let class: &[(&str, Value)] = &[("/spec/loadBalancerClass", json!("a"))];
        let check = |old: &[(&str, Value)], new: &[(&str, Value)], expected: &[&str]| {
            assert_eq!(
                fields(validate_update(kind("services"), &allocated(new), &allocated(old))),
                expected,
                "{new:?}"
            );
        };
        check(single, dual, &[]);
        check(dual, single, &["spec.ipFamilyPolicy Invalid", "spec.ipFamilyPolicy Invalid"]);
        check(single, &[("/spec/clusterIPs", json!(["10.0.0.2"]))], &["spec.clusterIPs[0] Invalid"]);
        check(&[], class, &["spec.loadBalancerClass Invalid"]);
        check(&[("/spec/type", json!("ClusterIP"))], class, &[]);
        let local = |port: i64| {
            [("/spec/externalTrafficPolicy", json!("Local")), ("/spec/healthCheckNodePort", json!(port))]
        };
        check(&local(30_000), &local(30_001), &["spec.healthCheckNodePort Forbidden"]);

        let status = |ingress: Value| {
            let object = with(allocated(&[]), "/status/loadBalancer/ingress", ingress);
            fields(validate_status(kind("services"), &object, &allocated(&[])))
        };
        assert!(
            status(json!([{ "ip": "10.0.0.1", "ipMode": "VIP" }, { "hostname": "lb.example.com" }]))
                .is_empty()
        );
        assert_eq!(
            status(json!([{ "ip": "10.0.0.1" }, { "ipMode": "VIP", "hostname": "10.0.0.1" }])),
            [
                "status.loadBalancer.ingress[0].ipMode Required",
                "status.loadBalancer.ingress[1].ipMode Forbidden",
                "status.loadBalancer.ingress[1].hostname Invalid",
            ]
        );
    }
}
