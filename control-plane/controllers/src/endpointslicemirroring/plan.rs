//! From Endpoints to slices: one slice for each set of ports and address family. Pure.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{EndpointAddress, EndpointSubset, Endpoints},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::MANAGER;
use crate::{
    endpointslice::{MANAGED_BY, SERVICE_NAME, TRIGGER_TIME, endpoint::AddressType, managed::Writes},
    meta::{MetaExt, controller_reference},
};

/// `--mirroring-max-endpoints-per-subset`: as many as a slice may hold.
const MAX_ADDRESSES: usize = 1000;
/// Annotations that say something of the Endpoints, and nothing of their slices.
const NOT_COPIED: [&str; 2] = ["kubectl.kubernetes.io/last-applied-configuration", TRIGGER_TIME];

#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes {
    pub(super) writes: Writes,
    /// Addresses that no slice can have.
    pub(super) invalid: usize,
    /// Addresses beyond the limit.
    pub(super) skipped: usize,
}

/// Address family, and ports as text, which has an order.
type GroupKey = (AddressType, String);

struct Group {
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

pub(super) fn plan(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>]) -> Changes {
    let mut changes = Changes::default();
    let mut groups: BTreeMap<GroupKey, Group> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        add(subset, &mut groups, &mut changes);
    }
    let mut left = existing.to_vec();
    left.sort_by(|a, b| a.name().cmp(b.name()));
    // A slice with the same ports stays; then any of the family takes what has none.
    let mut placed: Vec<(AddressType, Group, Option<Arc<EndpointSlice>>)> = Vec::new();
    for ((family, _), group) in groups {
        let same = |slice: &Arc<EndpointSlice>| {
            slice.address_type == family.as_str() && slice.ports.as_deref().unwrap_or_default() == group.ports
        };
        let found = left.iter().position(same).map(|place| left.remove(place));
        placed.push((family, group, found));
    }
    for (family, group, found) in placed {
        let of_family = |slice: &Arc<EndpointSlice>| slice.address_type == family.as_str();
        let found = found.or_else(|| left.iter().position(of_family).map(|place| left.remove(place)));
        let wanted = slice(endpoints, family, group);
        match found {
            None => changes.writes.create.push(wanted),
            Some(existing) if holds(&existing, &wanted) => {}
            Some(existing) => {
                let mut changed = (*existing).clone();
                changed.metadata.labels = wanted.metadata.labels;
                changed.metadata.annotations = wanted.metadata.annotations;
                changed.ports = wanted.ports;
                changed.endpoints = wanted.endpoints;
                changes.writes.update.push(changed);
            }
        }
    }
    changes.writes.delete = left;
    changes
}

fn add(subset: &EndpointSubset, groups: &mut BTreeMap<GroupKey, Group>, changes: &mut Changes) {
    let ports: Vec<EndpointPort> = subset.ports.iter().flatten().map(port).collect();
    let text = serde_json::to_string(&ports).unwrap_or_default();
    let ready = subset.addresses.iter().flatten().map(|address| (address, true));
    let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
    for (address, is_ready) in ready.chain(not_ready) {
        if address.ip.parse::<IpAddr>().is_err() {
            changes.invalid += 1;
            continue;
        }
        let key = (AddressType::of(&address.ip), text.clone());
        let new = || Group { ports: ports.clone(), endpoints: Vec::new() };
        let group = groups.entry(key).or_insert_with(new);
        if group.endpoints.len() < MAX_ADDRESSES {
            group.endpoints.push(endpoint(address, is_ready));
        } else {
            changes.skipped += 1;
        }
    }
}

fn port(port: &k8s_openapi::api::core::v1::EndpointPort) -> EndpointPort {
    EndpointPort {
        // A slice says that a port has no name, Endpoints do not.
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    }
}

fn endpoint(address: &EndpointAddress, is_ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(is_ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|hostname| !hostname.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn slice(endpoints: &Endpoints, family: AddressType, group: Group) -> EndpointSlice {
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_NAME.to_owned(), endpoints.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|name, _| !NOT_COPIED.contains(&name.as_str()));
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", endpoints.name())),
            namespace: endpoints.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
            owner_references: Some(vec![controller_reference(endpoints)]),
            ..ObjectMeta::default()
        },
        address_type: family.as_str().to_owned(),
        ports: Some(group.ports),
        endpoints: Some(group.endpoints),
    }
}

fn holds(existing: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    existing.labels() == wanted.labels()
        && existing.annotations() == wanted.annotations()
        && existing.ports.as_deref().unwrap_or_default() == wanted.ports.as_deref().unwrap_or_default()
        && existing.endpoints.as_deref().unwrap_or_default()
            == wanted.endpoints.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(subsets: Value) -> Endpoints {
        let object = json!({ "metadata": { "name": "db", "labels": { "a": "b" } }, "subsets": subsets });
        serde_json::from_value(object).unwrap()
    }

    fn subset(addresses: &[&str], port: i32) -> Value {
        let addresses: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        json!({ "addresses": addresses, "ports": [{ "port": port }] })
    }

    /// Addresses by family and port.
    fn shape(slices: &[EndpointSlice]) -> Vec<(String, i32, usize)> {
        let shape = |slice: &EndpointSlice| {
            let port = slice.ports.as_ref().unwrap()[0].port.unwrap();
            (slice.address_type.clone(), port, slice.endpoints.as_ref().unwrap().len())
        };
        slices.iter().map(shape).collect()
    }

    #[test]
    fn ports_and_families_have_a_slice_each() {
        let subsets = json!([
            subset(&["10.0.0.1", "fd00::1", "nowhere"], 80),
            subset(&["10.0.0.2"], 90),
            subset(&["10.0.0.3"], 80),
        ]);
        let changes = plan(&endpoints(subsets), &[]);
        let expect = |family: &str, port, count| (family.to_owned(), port, count);
        assert_eq!(
            shape(&changes.writes.create),
            [expect("IPv4", 80, 2), expect("IPv4", 90, 1), expect("IPv6", 80, 1)]
        );
        assert_eq!(changes.invalid, 1);
        let existing: Vec<Arc<EndpointSlice>> = changes.writes.create.into_iter().map(Arc::new).collect();
        let fewer = endpoints(json!([subset(&["10.0.0.1"], 81)]));
        let changes = plan(&fewer, &existing);
        assert_eq!(shape(&changes.writes.update), [expect("IPv4", 81, 1)]);
        assert_eq!((changes.writes.create.len(), changes.writes.delete.len()), (0, 2));
        let settled: Vec<Arc<EndpointSlice>> = changes.writes.update.into_iter().map(Arc::new).collect();
        assert_eq!(plan(&fewer, &settled), Changes::default(), "planning again changes nothing");
    }

    #[test]
    fn annotations_are_copied_but_for_those_about_the_endpoints_themselves() {
        let mut endpoints = endpoints(json!([subset(&["10.0.0.1"], 80)]));
        endpoints.metadata.annotations =
            Some(["team", NOT_COPIED[0], NOT_COPIED[1]].map(|name| (name.to_owned(), "x".to_owned())).into());
        let made = plan(&endpoints, &[]).writes.create.remove(0);
        assert_eq!(made.annotations().keys().collect::<Vec<_>>(), ["team"]);
    }

    #[test]
    fn a_slice_holds_no_more_than_it_may() {
        let many: Vec<String> = (0..1100).map(|n| format!("10.0.{}.{}", n / 200, n % 200)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let changes = plan(&endpoints(json!([subset(&many, 80)])), &[]);
        assert_eq!(
            (changes.writes.create[0].endpoints.as_ref().unwrap().len(), changes.skipped),
            (1000, 100)
        );
    }
}
