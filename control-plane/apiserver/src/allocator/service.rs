//! What a service needs: cluster addresses by family, node ports by type.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use hawser_api::{Error, FieldError};
use hawser_store::Key;
use serde_json::{Value, json};

use super::{Allocations, Allocators, Claim, IpRange, address_key, invalid, port_key};
use crate::resources::Resource;

const HEADLESS: &str = "None";

pub(super) fn allocate(
    allocators: &Allocators,
    resource: &Resource,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<Allocations, Error> {
    let mut allocations = Allocations { owner: owner(service), ..Allocations::default() };
    if let Some(old) = old {
        keep_allocated(service, old);
    }
    let held: BTreeSet<Key> = old.map(keys_of).unwrap_or_default().into_iter().collect();
    allocate_addresses(allocators, resource, service, &held, &mut allocations)?;
    allocate_ports(allocators, resource, service, &held, &mut allocations)?;
    let wanted: BTreeSet<Key> = keys_of(service).into_iter().collect();
    allocations.releases = held.difference(&wanted).cloned().collect();
    Ok(allocations)
}

/// Whose a claim is: the value of its key.
pub(super) fn owner(service: &Value) -> String {
    let text = |field: &str| service["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

/// A client that replaces a service without naming what it was given keeps it, as upstream does.
fn keep_allocated(service: &mut Value, old: &Value) {
    let (new_spec, old_spec) = (&mut service["spec"], &old["spec"]);
    if has_address(new_spec) && has_address(old_spec) && is_empty(&new_spec["clusterIP"]) {
        for field in ["clusterIP", "clusterIPs"] {
            if !old_spec[field].is_null() {
                new_spec[field] = old_spec[field].clone();
            }
        }
    }
    if has_ports(new_spec) && has_ports(old_spec) {
        let before = old_spec["ports"].as_array().cloned().unwrap_or_default();
        for port in new_spec["ports"].as_array_mut().into_iter().flatten() {
            let same =
                |known: &&Value| known["port"] == port["port"] && known["protocol"] == port["protocol"];
            if let Some(known) = before.iter().find(same)
                && is_unset(&port["nodePort"])
                && !is_unset(&known["nodePort"])
            {
                port["nodePort"] = known["nodePort"].clone();
            }
        }
        if needs_health_port(new_spec) && is_unset(&new_spec["healthCheckNodePort"]) {
            let before = &old_spec["healthCheckNodePort"];
            if !is_unset(before) {
                new_spec["healthCheckNodePort"] = before.clone();
            }
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_str().is_none_or(str::is_empty)
}

fn is_unset(port: &Value) -> bool {
    port.as_i64().unwrap_or(0) == 0
}

fn has_address(spec: &Value) -> bool {
    spec["type"] != "ExternalName" && spec["clusterIP"] != HEADLESS
}

fn has_ports(spec: &Value) -> bool {
    spec["type"] == "NodePort"
        || (spec["type"] == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"] != false)
}

fn needs_health_port(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

/// The ranges that serve a service, by its policy and the families it names.
fn ranges_for<'a>(
    allocators: &'a Allocators,
    resource: &Resource,
    service: &Value,
) -> Result<Vec<&'a IpRange>, Error> {
    let spec = &service["spec"];
    let named: Vec<&str> =
        spec["ipFamilies"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let dual = match spec["ipFamilyPolicy"].as_str() {
        Some("RequireDualStack") if allocators.ranges.len() < 2 => {
            let detail = "this cluster is not configured for dual-stack services";
            let error = FieldError::invalid("spec.ipFamilyPolicy", "RequireDualStack", detail);
            return Err(invalid(resource, service, error));
        }
        Some("RequireDualStack" | "PreferDualStack") => true,
        _ => named.len() > 1,
    };
    let mut ranges = Vec::new();
    for family in &named {
        let Some(range) = allocators.ranges.iter().find(|range| range.family() == *family) else {
            let detail = "not configured on this cluster";
            return Err(invalid(
                resource,
                service,
                FieldError::invalid("spec.ipFamilies[0]", *family, detail),
            ));
        };
        ranges.push(range);
    }
    if ranges.is_empty() {
        let wanted = spec["clusterIPs"][0].as_str().or_else(|| spec["clusterIP"].as_str());
        let address: Option<IpAddr> = wanted.and_then(|wanted| wanted.parse().ok());
        let first = allocators
            .ranges
            .iter()
            .find(|range| address.is_some_and(|address| address.is_ipv4() == range.is_v4()))
            .or(allocators.ranges.first());
        ranges.extend(first);
    }
    if dual {
        let others: Vec<_> = allocators.ranges.iter().filter(|range| !ranges.contains(range)).collect();
        ranges.extend(others);
    }
    ranges.truncate(if dual { 2 } else { 1 });
    Ok(ranges)
}

fn is_without_selector(spec: &Value) -> bool {
    spec["selector"].as_object().is_none_or(serde_json::Map::is_empty)
}

/// Whoever writes the endpoints of such a service decides about their families: both are named unless the client says
/// otherwise, whatever the cluster itself has.
fn name_families(allocators: &Allocators, spec: &mut Value) {
    let mut families: Vec<String> = spec["ipFamilies"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if families.is_empty() {
        families.extend(allocators.ranges.first().map(|range| range.family().to_owned()));
    }
    if families.len() == 1 && spec["ipFamilyPolicy"] != "SingleStack" {
        families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.to_owned());
    }
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = json!(if families.len() > 1 { "RequireDualStack" } else { "SingleStack" });
    }
    spec["ipFamilies"] = json!(families);
    spec["clusterIPs"] = json!([HEADLESS]);
}

fn allocate_addresses(
    allocators: &Allocators,
    resource: &Resource,
    service: &mut Value,
    held: &BTreeSet<Key>,
    allocations: &mut Allocations,
) -> Result<(), Error> {
    if service["spec"]["type"] == "ExternalName" {
        return Ok(());
    }
    let headless = service["spec"]["clusterIP"] == HEADLESS;
    if headless && is_without_selector(&service["spec"]) {
        name_families(allocators, &mut service["spec"]);
        return Ok(());
    }
    let ranges = ranges_for(allocators, resource, service)?;
    let mut addresses: Vec<Value> = Vec::new();
    for (position, range) in ranges.iter().enumerate() {
        if headless {
            break;
        }
        let spec = &service["spec"];
        let listed = spec["clusterIPs"][position].as_str().unwrap_or_default();
        let wanted = if position == 0 && listed.is_empty() {
            spec["clusterIP"].as_str().unwrap_or_default()
        } else {
            listed
        };
        let chosen = !wanted.is_empty();
        let address = if chosen {
            let field = format!("spec.clusterIPs[{position}]");
            let address: Option<IpAddr> = wanted
                .parse()
                .ok()
                .filter(|address| range.contains(*address) || held.contains(&address_key(*address)));
            let refuse = || {
                let detail = format!(
                    "failed to allocate IP {wanted}: the provided IP ({wanted}) is not in the valid range. \
                     The range of valid IPs is {range}"
                );
                invalid(resource, service, FieldError::invalid(field.as_str(), wanted, detail))
            };
            address.ok_or_else(refuse)?
        } else {
            range
                .free(&allocators.addresses.set.lock())
                .ok_or_else(|| Error::internal("failed to allocate a serviceIP: range is full"))?
        };
        let key = address_key(address);
        addresses.push(address.to_string().into());
        if held.contains(&key) {
            continue;
        }
        // Whether a chosen one is free only the store knows: what is in memory may be a moment behind.
        let value = json!([address.to_string()]);
        allocations.claims.push(Claim { key, chosen, field: "spec.clusterIPs".to_owned(), value });
    }
    let spec = &mut service["spec"];
    if headless {
        spec["clusterIPs"] = json!([HEADLESS]);
    } else {
        spec["clusterIP"] = addresses.first().cloned().unwrap_or_default();
        spec["clusterIPs"] = json!(addresses);
    }
    if spec["ipFamilies"].as_array().is_none_or(|families| families.len() != ranges.len()) {
        spec["ipFamilies"] = ranges.iter().map(|range| range.family()).collect();
    }
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = json!(if ranges.len() > 1 { "RequireDualStack" } else { "SingleStack" });
    }
    Ok(())
}

fn allocate_ports(
    allocators: &Allocators,
    resource: &Resource,
    service: &mut Value,
    held: &BTreeSet<Key>,
    allocations: &mut Allocations,
) -> Result<(), Error> {
    // Ports that this service has by now: one number may serve two protocols of one service.
    let mut own: BTreeSet<u16> = BTreeSet::new();
    // What is taken, copied when the first port is to be chosen.
    let mut known: Option<HashSet<u16>> = None;
    let mut claim = |service: &Value, wanted: u16, field: String, own: &mut BTreeSet<u16>| {
        let chosen = wanted != 0;
        let port = if chosen {
            wanted
        } else {
            let known = known.get_or_insert_with(|| {
                let taken = allocators.used_ports.set.lock().clone();
                taken.into_iter().chain(own.iter().copied()).collect()
            });
            let port = allocators
                .ports
                .free(known)
                .ok_or_else(|| Error::internal("failed to allocate a nodePort: range is full"))?;
            known.insert(port);
            port
        };
        let key = port_key(port);
        if own.insert(port) && !held.contains(&key) {
            if !allocators.ports.contains(port) {
                let detail = format!(
                    "provided port is not in the valid range. The range of valid ports is {}",
                    allocators.ports
                );
                return Err(invalid(resource, service, FieldError::invalid(field, port, detail)));
            }
            allocations.claims.push(Claim { key, chosen, field, value: port.into() });
        }
        Ok(port)
    };
    let spec = &service["spec"];
    if has_ports(spec) || spec["type"] == "LoadBalancer" {
        let count = spec["ports"].as_array().map_or(0, Vec::len);
        // Ports that the client names come first, so that none of them is given to another entry.
        let named =
            |service: &Value, position: usize| !is_unset(&service["spec"]["ports"][position]["nodePort"]);
        let order =
            (0..count).filter(|at| named(service, *at)).chain((0..count).filter(|at| !named(service, *at)));
        for position in order.collect::<Vec<_>>() {
            let entry = &service["spec"]["ports"][position]["nodePort"];
            if is_unset(entry) && !has_ports(&service["spec"]) {
                continue;
            }
            let wanted = entry.as_u64().unwrap_or(0) as u16;
            let port = claim(service, wanted, format!("spec.ports[{position}].nodePort"), &mut own)?;
            service["spec"]["ports"][position]["nodePort"] = port.into();
        }
    }
    if needs_health_port(&service["spec"]) {
        let wanted = service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) as u16;
        let port = claim(service, wanted, "spec.healthCheckNodePort".to_owned(), &mut own)?;
        service["spec"]["healthCheckNodePort"] = port.into();
    }
    Ok(())
}

/// The allocations that a service holds.
pub(super) fn keys_of(service: &Value) -> Vec<Key> {
    let spec = &service["spec"];
    let mut keys = BTreeSet::new();
    if spec["type"] != "ExternalName" {
        let listed = spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
        for address in listed.chain(spec["clusterIP"].as_str()) {
            keys.extend(address.parse().ok().map(address_key));
        }
    }
    if spec["type"] == "NodePort" || spec["type"] == "LoadBalancer" {
        let ports = spec["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
        for port in ports.chain([&spec["healthCheckNodePort"]]) {
            if let Some(port) =
                port.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
            {
                keys.insert(port_key(port));
            }
        }
    }
    keys.into_iter().collect()
}
