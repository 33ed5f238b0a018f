//! Endpoints and EndpointSlices.

use std::net::IpAddr;

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    AGE, Hooks, NAME, PLAIN,
    apps::age,
    names::port_number,
    text,
    value::{Fields, Path},
};

/// How many a cell shows.
const SHOWN: usize = 3;

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
                for (at, address) in subset.list(list).iter().enumerate() {
                    valid_ip(&mut errors, &path.index(at).field("ip"), address.text("ip"));
                }
            }
            let path = subset_path.field("ports");
            for (at, port) in subset.list("ports").iter().enumerate() {
                let number = port.int("port").unwrap_or_default();
                if let Some(detail) = port_number(number) {
                    errors.push(FieldError::invalid(path.index(at).field("port"), number, detail));
                }
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
        if new.at("addressType") == old.at("addressType") {
            return Vec::new();
        }
        vec![FieldError::invalid("addressType", new.at("addressType").clone(), "field is immutable")]
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

fn valid_ip(errors: &mut Vec<FieldError>, path: &Path<'_>, ip: &str) {
    let wrong = match ip.parse::<IpAddr>() {
        Err(_) => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        Ok(ip) if ip.is_unspecified() => "may not be unspecified (0.0.0.0 or ::)",
        Ok(ip) if ip.is_loopback() => "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        Ok(_) => return,
    };
    errors.push(FieldError::invalid(path, ip, wrong));
}

fn validate_slice(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = object.text("addressType");
    match kind {
        "" => errors.push(FieldError::required("addressType", "")),
        "IPv4" | "IPv6" | "FQDN" => (),
        other => errors.push(FieldError::not_supported("addressType", other, &["FQDN", "IPv4", "IPv6"])),
    }
    let endpoints = Path::Root("endpoints");
    for (index, endpoint) in object.list("endpoints").iter().enumerate() {
        let list = endpoints.index(index);
        let list = list.field("addresses");
        let addresses = endpoint.list("addresses");
        if addresses.is_empty() {
            errors.push(FieldError::required(list, "must contain at least 1 address"));
        }
        for (at, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
            let path = list.index(at);
            match (kind, address.parse::<IpAddr>()) {
                ("IPv4", Ok(IpAddr::V6(_)) | Err(_)) => {
                    errors.push(FieldError::invalid(path, address, "must be a valid IPv4 address"));
                }
                ("IPv6", Ok(IpAddr::V4(_)) | Err(_)) => {
                    errors.push(FieldError::invalid(path, address, "must be a valid IPv6 address"));
                }
                ("IPv4" | "IPv6", Ok(_)) => valid_ip(&mut errors, &path, address),
                _ => (),
            }
        }
    }
    let ports = Path::Root("ports");
    for (index, port) in object.list("ports").iter().enumerate() {
        let path = ports.index(index);
        let name = port.text("name");
        if object.list("ports")[..index].iter().any(|other| other.text("name") == name) {
            errors.push(FieldError::duplicate(path.field("name"), name));
        }
        if let Some(number) = port.int("port")
            && let Some(detail) = port_number(number)
        {
            errors.push(FieldError::invalid(path.field("port"), number, detail));
        }
        let protocol = port.text("protocol");
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            errors.push(FieldError::not_supported(path.field("protocol"), protocol, &["SCTP", "TCP", "UDP"]));
        }
    }
    errors
}
