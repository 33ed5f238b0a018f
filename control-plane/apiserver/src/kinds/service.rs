//! Services. Addresses and node ports are allocated by the registry; here is what holds without it.

mod rules;

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, Hooks, NAME, NameRule, PLAIN, human, selector, text,
    value::{Fields, Path},
    wide,
};

const SPEC: Path<'static> = Path::Root("spec");
/// Three hours, upstream's default for sticky clients.
const AFFINITY_SECONDS: i64 = 10_800;

pub(crate) static SERVICE: Hooks = Hooks {
    default,
    prepare_update,
    validate_create: rules::validate,
    validate_update: rules::update,
    validate_status: rules::status,
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
        let mut families: Vec<&str> =
            spec.list("clusterIPs").iter().filter_map(Value::as_str).filter_map(family).collect();
        families.dedup();
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
