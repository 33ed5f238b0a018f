//! Endpoints and EndpointSlices.

use std::{collections::HashSet, net::IpAddr};

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    AGE, Hooks, NAME, PLAIN,
    addresses::{address, loose_address, not_special},
    apps::age,
    meta::{invalid_all, labels},
    names::{dns_label, dns_subdomain, label_value, port_number, qualified_name},
    rules::{at_most, immutable, one_of},
    text,
    value::{Fields, Path},
};

/// How many a cell shows.
const SHOWN: usize = 3;

/// The most of each in one slice, and in one of its endpoints.
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20_000;
const MAX_ADDRESSES: usize = 100;
const MAX_TOPOLOGY: usize = 16;
const MAX_HINTS: usize = 8;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub(crate) static ENDPOINTS: Hooks = Hooks {
    default: |object| {
        for subset in object.list_mut("subsets") {
            for port in subset.list_mut("ports") {
                port.set_default("protocol", "TCP");
            }
        }
    },
    validate_create: |object| {
        let mut errors = Vec::new();
        let root = Path::Root("subsets");
        for (index, subset) in object.list("subsets").iter().enumerate() {
            let subset_path = root.index(index);
            if subset.list("addresses").is_empty() && subset.list("notReadyAddresses").is_empty() {
                let detail = "must specify `addresses` or `notReadyAddresses`";
                errors.push(FieldError::required(subset_path, detail));
            }
            for list in ["addresses", "notReadyAddresses"] {
                let path = subset_path.field(list);
                for (at, endpoint) in subset.list(list).iter().enumerate() {
                    subset_address(&mut errors, &path.index(at), endpoint);
                }
            }
            let (path, ports) = (subset_path.field("ports"), subset.list("ports"));
            for (at, port) in ports.iter().enumerate() {
                if port.text("name").is_empty() && ports.len() > 1 {
                    errors.push(FieldError::required(path.index(at).field("name"), ""));
                }
                endpoint_port(&mut errors, &path.index(at), port);
            }
        }
        errors
    },
    columns: &[NAME, text("Endpoints"), AGE],
    cells: |object, now| {
        let mut all = Vec::new();
        for subset in object.list("subsets") {
            for address in subset.list("addresses") {
                let ports = subset.list("ports");
                if ports.is_empty() {
                    all.push(address.text("ip").to_owned());
                }
                all.extend(
                    ports.iter().map(|port| joined(address.text("ip"), port.int("port").unwrap_or_default())),
                );
            }
        }
        vec![object.at("metadata.name").clone(), some(&all, "<none>").into(), age(object, now)]
    },
    create_on_update: true,
    deprecation: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    ..PLAIN
};

pub(crate) static ENDPOINT_SLICE: Hooks = Hooks {
    default: |object| {
        for port in object.list_mut("ports") {
            if !port.has("name") {
                port.set("name", "");
            }
            port.set_default("protocol", "TCP");
        }
    },
    validate_create: validate_slice,
    validate_update: |new, old| {
        let mut errors = Vec::new();
        immutable(&mut errors, &Path::Root("addressType"), new.at("addressType"), old.at("addressType"));
        errors
    },
    columns: &[NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE],
    cells: |object, now| {
        let ports: Vec<String> = object
            .list("ports")
            .iter()
            .map(|port| port.int("port").map_or_else(|| "*".to_owned(), |number| number.to_string()))
            .collect();
        let addresses: Vec<String> = object
            .list("endpoints")
            .iter()
            .flat_map(|endpoint| endpoint.list("addresses"))
            .filter_map(|address| address.as_str().map(str::to_owned))
            .collect();
        vec![
            object.at("metadata.name").clone(),
            object.at("addressType").clone(),
            some(&ports, "<unset>").into(),
            some(&addresses, "<unset>").into(),
            age(object, now),
        ]
    },
    ..PLAIN
};

fn joined(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn some(all: &[String], none: &str) -> String {
    match all.len() {
        0 => none.to_owned(),
        count if count <= SHOWN => all.join(","),
        count => format!("{} + {} more...", all[..SHOWN].join(","), count - SHOWN),
    }
}

fn subset_address(errors: &mut Vec<FieldError>, path: &Path<'_>, endpoint: &Value) {
    let (ip, of_ip) = (endpoint.text("ip"), path.field("ip"));
    address(errors, &of_ip, ip);
    let name = endpoint.text("hostname");
    if !name.is_empty() {
        invalid_all(errors, &path.field("hostname"), name, dns_label(name));
    }
    if let Some(node) = endpoint.at("nodeName").as_str() {
        invalid_all(errors, &path.field("nodeName"), node, dns_subdomain(node));
    }
    not_special(errors, &of_ip, ip);
}

/// What ports of both kinds have alike.
fn endpoint_port(errors: &mut Vec<FieldError>, path: &Path<'_>, port: &Value) {
    let name = port.text("name");
    if !name.is_empty() {
        invalid_all(errors, &path.field("name"), name, dns_label(name));
    }
    if let Some(number) = port.int("port")
        && let Some(detail) = port_number(number)
    {
        errors.push(FieldError::invalid(path.field("port"), number, detail));
    }
    one_of(errors, &path.field("protocol"), port.text("protocol"), &PROTOCOLS);
    if let Some(protocol) = port.at("appProtocol").as_str() {
        invalid_all(errors, &path.field("appProtocol"), protocol, qualified_name(protocol));
    }
}

fn validate_slice(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = object.text("addressType");
    match kind {
        "" => errors.push(FieldError::required("addressType", "")),
        kind => one_of(&mut errors, &Path::Root("addressType"), kind, &["FQDN", "IPv4", "IPv6"]),
    }
    let (list, endpoints) = (Path::Root("endpoints"), object.list("endpoints"));
    at_most(&mut errors, &list, endpoints.len(), MAX_ENDPOINTS);
    if endpoints.len() <= MAX_ENDPOINTS {
        for (index, endpoint) in endpoints.iter().enumerate() {
            slice_endpoint(&mut errors, &list.index(index), endpoint, kind);
        }
    }
    let (list, ports) = (Path::Root("ports"), object.list("ports"));
    at_most(&mut errors, &list, ports.len(), MAX_PORTS);
    if ports.len() <= MAX_PORTS {
        let mut names = HashSet::new();
        for (index, port) in ports.iter().enumerate() {
            let path = list.index(index);
            if !names.insert(port.text("name")) {
                errors.push(FieldError::duplicate(path.field("name"), port.text("name")));
            }
            endpoint_port(&mut errors, &path, port);
        }
    }
    errors
}

/// `kind` is the type of all addresses of the slice.
fn slice_endpoint(errors: &mut Vec<FieldError>, path: &Path<'_>, endpoint: &Value, kind: &str) {
    let (list, addresses) = (path.field("addresses"), endpoint.list("addresses"));
    if addresses.is_empty() {
        errors.push(FieldError::required(list, "must contain at least 1 address"));
    }
    at_most(errors, &list, addresses.len(), MAX_ADDRESSES);
    for (at, text) in addresses.iter().filter_map(Value::as_str).enumerate() {
        let path = list.index(at);
        match (kind, loose_address(text)) {
            ("IPv4", Some(IpAddr::V4(_))) | ("IPv6", Some(IpAddr::V6(_))) => not_special(errors, &path, text),
            ("IPv4" | "IPv6", _) => {
                errors.push(FieldError::invalid(path, text, format!("must be a valid {kind} address")));
            }
            ("FQDN", _) => full_name(errors, &path, text),
            _ => (),
        }
    }
    let topology = endpoint.at("deprecatedTopology");
    let of = path.field("deprecatedTopology");
    at_most(errors, &of, endpoint.map("deprecatedTopology").len(), MAX_TOPOLOGY);
    labels(errors, &of, topology);
    if let Some(name) = endpoint.at("hostname").as_str() {
        invalid_all(errors, &path.field("hostname"), name, dns_label(name));
    }
    if let Some(node) = endpoint.at("nodeName").as_str() {
        invalid_all(errors, &path.field("nodeName"), node, dns_subdomain(node));
    }
    for (field, rule) in [("forZones", label_value as fn(&str) -> Vec<String>), ("forNodes", dns_subdomain)] {
        let (list, hints) = (path.field("hints"), endpoint.at("hints").list(field));
        let list = list.field(field);
        at_most(errors, &list, hints.len(), MAX_HINTS);
        if hints.len() > MAX_HINTS {
            continue;
        }
        let mut names = HashSet::new();
        for (at, hint) in hints.iter().enumerate() {
            let (path, name) = (list.index(at), hint.text("name"));
            if !names.insert(name) {
                errors.push(FieldError::duplicate(path.field("name"), name));
            }
            invalid_all(errors, &path.field("name"), name, rule(name));
        }
    }
}

/// A name with a domain; it may end with a dot.
fn full_name(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let wrong = dns_subdomain(name);
    if !wrong.is_empty() {
        errors.push(FieldError::invalid(path, name, wrong.join(",")));
    } else if !name.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(path, name, detail));
    } else {
        for label in name.split('.') {
            invalid_all(errors, path, label, dns_label(label));
        }
    }
}
