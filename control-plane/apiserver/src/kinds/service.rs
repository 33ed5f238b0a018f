//! Services. Addresses and node ports are allocated by the registry; here is what holds without it.

use std::{collections::HashSet, net::IpAddr};

use hawser_api::FieldError;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, Hooks, NAME, NameRule, PLAIN, human,
    meta::{invalid_all, labels},
    names::{dns_label, dns_subdomain, port_name, port_number},
    selector, text,
    value::{Fields, Path},
    wide,
};

const SPEC: Path<'static> = Path::Root("spec");
/// Three hours, upstream's default for sticky clients.
const AFFINITY_SECONDS: i64 = 10_800;

pub(crate) static SERVICE: Hooks = Hooks {
    default,
    prepare_update,
    validate_create,
    validate_update,
    columns: &[
        NAME,
        text("Type"),
        text("Cluster-IP"),
        text("External-IP"),
        text("Port(s)"),
        AGE,
        wide("Selector"),
    ],
    cells,
    selectable: &[
        ("spec.clusterIP", |service| service.text("spec.clusterIP").to_owned()),
        ("spec.type", |service| service.text("spec.type").to_owned()),
    ],
    name: NameRule::Label1035,
    create_on_update: true,
    ..PLAIN
};

fn default(service: &mut Value) {
    let spec = service.ensure("spec");
    spec.set_default("sessionAffinity", "None");
    if spec.text("sessionAffinity") == "None" {
        spec.drop_field("sessionAffinityConfig");
    } else {
        spec.ensure("sessionAffinityConfig.clientIP").set_default("timeoutSeconds", AFFINITY_SECONDS);
    }
    spec.set_default("type", "ClusterIP");
    for port in spec.list_mut("ports") {
        port.set_default("protocol", "TCP");
        let unset = matches!(port.at("targetPort"), Value::Null)
            || port.at("targetPort") == 0
            || port.at("targetPort") == "";
        if unset {
            let number = port.at("port").clone();
            port.set("targetPort", number);
        }
    }
    let kind = spec.text("type").to_owned();
    let outside =
        matches!(kind.as_str(), "NodePort" | "LoadBalancer") || !spec.list("externalIPs").is_empty();
    if outside && kind != "ExternalName" {
        spec.set_default("externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        spec.set_default("internalTrafficPolicy", "Cluster");
        cluster_addresses(spec);
    }
    if kind == "LoadBalancer" {
        spec.set_default("allocateLoadBalancerNodePorts", true);
        for ingress in service.list_mut("status.loadBalancer.ingress") {
            if !ingress.text("ip").is_empty() {
                ingress.set_default("ipMode", "VIP");
            }
        }
    }
}

/// `clusterIP` is `clusterIPs[0]`, and the families follow the addresses.
fn cluster_addresses(spec: &mut Value) {
    let primary = spec.text("clusterIP").to_owned();
    if !primary.is_empty() && spec.list("clusterIPs").is_empty() {
        spec.set("clusterIPs", json!([primary]));
    } else if primary.is_empty() && !spec.list("clusterIPs").is_empty() {
        let first = spec.at("clusterIPs")[0].clone();
        spec.set("clusterIP", first);
    }
    if spec.list("ipFamilies").is_empty() {
        let families: Vec<&str> =
            spec.list("clusterIPs").iter().filter_map(Value::as_str).filter_map(family).collect();
        // Without an address only the allocator can tell: it knows the cluster's ranges. The policy is its matter too.
        if families.is_empty() {
            spec.drop_field("ipFamilies");
        } else {
            spec.set("ipFamilies", json!(families));
        }
    }
}

fn family(address: &str) -> Option<&'static str> {
    match address.parse::<IpAddr>().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

/// What was allocated stays where the client does not name it; what the new type has no use for goes.
fn prepare_update(new: &mut Value, old: &Value) {
    let before = old.at("spec");
    let spec = new.ensure("spec");
    let kind = spec.text("type").to_owned();
    if kind == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if spec.at(field) == before.at(field) {
                spec.drop_field(field);
            }
        }
    } else if spec.text("clusterIP").is_empty() && before.text("type") != "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.copy_field(field, before);
        }
    }
    if kind != "ExternalName" && before.text("type") != "ExternalName" {
        // What the client leaves out stays as it was settled.
        if !spec.has("ipFamilies") {
            spec.copy_field("ipFamilies", before);
        }
        if !spec.has("ipFamilyPolicy") && spec.at("ipFamilies") == before.at("ipFamilies") {
            spec.copy_field("ipFamilyPolicy", before);
        }
    }
    // Who changes one of the two means both.
    let (was, is) = (before.text("clusterIP"), spec.text("clusterIP").to_owned());
    if is != was && !is.is_empty() && !was.is_empty() && spec.at("clusterIPs") == before.at("clusterIPs") {
        let mut addresses = spec.list("clusterIPs").to_vec();
        if let Some(first) = addresses.first_mut() {
            *first = json!(is);
        }
        spec.set("clusterIPs", json!(addresses));
    }
    let node_ports = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    let same = |a: &Value, b: &Value| a.at("port") == b.at("port") && a.at("protocol") == b.at("protocol");
    for port in spec.list_mut("ports") {
        let Some(earlier) = before.list("ports").iter().find(|earlier| same(earlier, port)) else {
            continue;
        };
        if node_ports && port.int("nodePort").unwrap_or_default() == 0 {
            port.copy_field("nodePort", earlier);
        } else if !node_ports && port.at("nodePort") == earlier.at("nodePort") {
            port.drop_field("nodePort");
        }
    }
    if needs_health_port(spec) {
        if spec.int("healthCheckNodePort").unwrap_or_default() == 0 {
            spec.copy_field("healthCheckNodePort", before);
        }
    } else if spec.at("healthCheckNodePort") == before.at("healthCheckNodePort") {
        spec.drop_field("healthCheckNodePort");
    }
    if !node_ports && spec.list("externalIPs").is_empty() {
        drop_unchanged(spec, before, "externalTrafficPolicy");
    }
    if kind != "LoadBalancer" {
        drop_unchanged(spec, before, "allocateLoadBalancerNodePorts");
        drop_unchanged(spec, before, "loadBalancerClass");
    }
}

fn drop_unchanged(spec: &mut Value, before: &Value, field: &str) {
    if spec.at(field) == before.at(field) {
        spec.drop_field(field);
    }
}

fn needs_health_port(spec: &Value) -> bool {
    spec.text("type") == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local"
}

fn validate_create(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = service.at("spec");
    let kind = spec.text("type");
    let headless = spec.text("clusterIP") == "None";
    if spec.list("ports").is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required(SPEC.field("ports"), ""));
    }
    match kind {
        "LoadBalancer" if headless => {
            let detail = "may not be set to 'None' for LoadBalancer services";
            errors.push(FieldError::invalid(SPEC.field("clusterIPs").index(0), "None", detail));
        }
        "NodePort" if headless => {
            let detail = "may not be set to 'None' for NodePort services";
            errors.push(FieldError::invalid(SPEC.field("clusterIPs").index(0), "None", detail));
        }
        "ExternalName" => external_name(&mut errors, spec),
        "ClusterIP" | "LoadBalancer" | "NodePort" => (),
        other => {
            let known = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
            errors.push(FieldError::not_supported(SPEC.field("type"), other, &known));
        }
    }
    ports(&mut errors, spec);
    labels(&mut errors, &SPEC.field("selector"), spec.at("selector"));
    affinity(&mut errors, spec);
    addresses(&mut errors, spec);
    policies(&mut errors, spec);
    errors
}

fn external_name(errors: &mut Vec<FieldError>, spec: &Value) {
    if !spec.list("clusterIPs").is_empty() {
        let detail = "may not be set when `type` is 'ExternalName'";
        errors.push(FieldError::forbidden(SPEC.field("clusterIPs"), detail));
    }
    let name = spec.text("externalName");
    if name.is_empty() {
        errors.push(FieldError::required(SPEC.field("externalName"), ""));
    } else {
        invalid_all(errors, &SPEC.field("externalName"), name, dns_subdomain(name.trim_end_matches('.')));
    }
}

fn ports(errors: &mut Vec<FieldError>, spec: &Value) {
    let list = SPEC.field("ports");
    let ports = spec.list("ports");
    let kind = spec.text("type");
    let mut names = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = list.index(index);
        let name = port.text("name");
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
        let number = port.int("port").unwrap_or_default();
        if let Some(detail) = port_number(number) {
            errors.push(FieldError::invalid(path.field("port"), number, detail));
        }
        let protocol = port.text("protocol");
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            errors.push(FieldError::not_supported(path.field("protocol"), protocol, &["SCTP", "TCP", "UDP"]));
        }
        target_port(errors, &path.field("targetPort"), port.at("targetPort"));
        let node_port = port.int("nodePort").unwrap_or_default();
        if node_port != 0 && !matches!(kind, "NodePort" | "LoadBalancer") {
            let detail = format!("may not be used when `type` is '{kind}'");
            errors.push(FieldError::forbidden(path.field("nodePort"), detail));
        }
        let earlier = &ports[..index];
        if earlier.iter().any(|other| other.text("protocol") == protocol && other.int("port") == Some(number))
        {
            errors.push(FieldError::duplicate(path, json!({ "protocol": protocol, "port": number })));
        }
        let same_node_port =
            |other: &Value| other.text("protocol") == protocol && other.int("nodePort") == Some(node_port);
        if node_port != 0 && earlier.iter().any(same_node_port) {
            errors.push(FieldError::duplicate(path.field("nodePort"), node_port));
        }
    }
}

fn target_port(errors: &mut Vec<FieldError>, path: &Path<'_>, port: &Value) {
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

fn affinity(errors: &mut Vec<FieldError>, spec: &Value) {
    match spec.text("sessionAffinity") {
        "None" => (),
        "ClientIP" => {
            let seconds = spec.int("sessionAffinityConfig.clientIP.timeoutSeconds").unwrap_or_default();
            if !(1..=86_400).contains(&seconds) {
                let path = SPEC.field("sessionAffinityConfig.clientIP.timeoutSeconds");
                errors.push(FieldError::invalid(path, seconds, "must be between 1 and 86400, inclusive"));
            }
        }
        "" => errors.push(FieldError::required(SPEC.field("sessionAffinity"), "")),
        other => {
            errors.push(FieldError::not_supported(
                SPEC.field("sessionAffinity"),
                other,
                &["ClientIP", "None"],
            ));
        }
    }
}

const NO_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

fn addresses(errors: &mut Vec<FieldError>, spec: &Value) {
    let list = SPEC.field("clusterIPs");
    let all = spec.list("clusterIPs");
    for (index, address) in all.iter().filter_map(Value::as_str).enumerate() {
        let path = list.index(index);
        if address == "None" {
            if all.len() > 1 {
                let detail = "'None' must be the first and only value";
                errors.push(FieldError::invalid(path, address, detail));
            }
        } else if address.parse::<IpAddr>().is_err() {
            errors.push(FieldError::invalid(path, address, NO_ADDRESS));
        }
    }
    let primary = spec.text("clusterIP");
    if !primary.is_empty() && all.first().is_some_and(|first| first != primary) {
        let detail = "first value must match `clusterIP`";
        errors.push(FieldError::invalid(list, spec.at("clusterIPs").clone(), detail));
    }
    let list = SPEC.field("externalIPs");
    for (index, address) in spec.list("externalIPs").iter().filter_map(Value::as_str).enumerate() {
        match address.parse::<IpAddr>() {
            Err(_) => errors.push(FieldError::invalid(list.index(index), address, NO_ADDRESS)),
            Ok(ip) if ip.is_unspecified() => {
                let detail = format!("may not be unspecified ({ip})");
                errors.push(FieldError::invalid(list.index(index), address, detail));
            }
            Ok(ip) if ip.is_loopback() => {
                let detail = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
                errors.push(FieldError::invalid(list.index(index), address, detail));
            }
            Ok(_) => (),
        }
    }
}

fn policies(errors: &mut Vec<FieldError>, spec: &Value) {
    for field in ["externalTrafficPolicy", "internalTrafficPolicy"] {
        let policy = spec.text(field);
        if !matches!(policy, "" | "Cluster" | "Local") {
            errors.push(FieldError::not_supported(SPEC.field(field), policy, &["Cluster", "Local"]));
        }
    }
    let outside =
        matches!(spec.text("type"), "NodePort" | "LoadBalancer") || !spec.list("externalIPs").is_empty();
    if spec.has("externalTrafficPolicy") && !outside {
        let policy = spec.at("externalTrafficPolicy").clone();
        let detail = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(SPEC.field("externalTrafficPolicy"), policy, detail));
    }
    if spec.int("healthCheckNodePort").unwrap_or_default() != 0 && !needs_health_port(spec) {
        let port = spec.at("healthCheckNodePort").clone();
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(SPEC.field("healthCheckNodePort"), port, detail));
    }
    for (field, known) in [
        ("ipFamilyPolicy", &["SingleStack", "PreferDualStack", "RequireDualStack"][..]),
        ("trafficDistribution", &["PreferClose", "PreferSameZone", "PreferSameNode"][..]),
    ] {
        let value = spec.text(field);
        if !value.is_empty() && !known.contains(&value) {
            errors.push(FieldError::not_supported(SPEC.field(field), value, known));
        }
    }
    let families = SPEC.field("ipFamilies");
    for (index, family) in spec.list("ipFamilies").iter().filter_map(Value::as_str).enumerate() {
        if !matches!(family, "IPv4" | "IPv6") {
            errors.push(FieldError::not_supported(families.index(index), family, &["IPv4", "IPv6"]));
        }
    }
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (spec, before) = (new.at("spec"), old.at("spec"));
    let mut errors = Vec::new();
    if spec.text("type") == "ExternalName" || before.text("type") == "ExternalName" {
        return errors;
    }
    let (primary, earlier) = (spec.text("clusterIP"), before.text("clusterIP"));
    if !earlier.is_empty() && primary != earlier {
        let path = SPEC.field("clusterIPs");
        errors.push(FieldError::invalid(
            path.index(0),
            spec.at("clusterIPs").clone(),
            "may not change once set",
        ));
    }
    let first = |spec: &Value| spec.list("ipFamilies").first().cloned();
    if first(before).is_some() && first(spec) != first(before) {
        let path = SPEC.field("ipFamilies");
        errors.push(FieldError::invalid(
            path.index(0),
            spec.at("ipFamilies").clone(),
            "may not change once set",
        ));
    }
    errors
}

fn cells(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = service.at("spec");
    let cluster_ip =
        spec.list("clusterIPs").first().map_or(spec.text("clusterIP"), |ip| ip.as_str().unwrap_or_default());
    let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
    let ports: Vec<String> = spec
        .list("ports")
        .iter()
        .map(|port| match port.int("nodePort").unwrap_or_default() {
            0 => format!("{}/{}", port.at("port"), port.text("protocol")),
            node_port => format!("{}:{node_port}/{}", port.at("port"), port.text("protocol")),
        })
        .collect();
    vec![
        service.at("metadata.name").clone(),
        spec.at("type").clone(),
        or_none(cluster_ip.to_owned()).into(),
        external_addresses(service).into(),
        or_none(ports.join(",")).into(),
        human::age(service.at("metadata.creationTimestamp"), now).into(),
        or_none(selector::map_to_text(spec.at("selector"))).into(),
    ]
}

fn external_addresses(service: &Value) -> String {
    let own = || service.list("spec.externalIPs").iter().filter_map(Value::as_str);
    let (all, empty): (Vec<&str>, &str) = match service.text("spec.type") {
        "ExternalName" => return service.text("spec.externalName").to_owned(),
        "LoadBalancer" => {
            let ingress = service.list("status.loadBalancer.ingress").iter();
            let given = ingress.map(|point| match point.text("ip") {
                "" => point.text("hostname"),
                ip => ip,
            });
            (given.chain(own()).collect(), "<pending>")
        }
        _ => (own().collect(), "<none>"),
    };
    if all.is_empty() { empty.to_owned() } else { all.join(",") }
}
