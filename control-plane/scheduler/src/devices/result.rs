//! Allocations as they are written into claims.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm},
        resource::v1::{
            AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult,
            DeviceRequestAllocationResult, ResourceClaim,
        },
    },
    apimachinery::pkg::api::resource::Quantity as Text,
};
use uuid::Uuid;

use super::{
    allocate::{Picked, Solution},
    objects::{Entry, Reach, Slice},
    pools::Seen,
    request::{Alternative, WantedClaim},
};

/// The allocation of one claim, by its place among those that were asked for.
pub(super) fn allocation(
    index: usize,
    claim: &ResourceClaim,
    wanted: &WantedClaim,
    solution: &Solution,
    seen: &[Seen],
    node: &str,
) -> AllocationResult {
    let picked: Vec<(&Picked, &Alternative, &Slice, &Entry)> = solution.picked[index]
        .iter()
        .map(|picked| {
            let wish = &wanted.requests[picked.request].alternatives[picked.alternative];
            let slice = &*seen[picked.place.pool].slices[picked.place.slice];
            (picked, wish, slice, &slice.devices[picked.place.device])
        })
        .collect();
    let results = picked.iter().map(|(picked, wish, slice, entry)| DeviceRequestAllocationResult {
        request: wish.full_name.clone(),
        driver: slice.pool.driver.to_string(),
        pool: slice.pool.pool.to_string(),
        device: entry.object.name.clone(),
        admin_access: wish.admin.then_some(true),
        tolerations: Some(wish.tolerations.clone()).filter(|all| !all.is_empty()),
        share_id: picked.share.as_ref().map(|_| Uuid::new_v4().to_string()),
        consumed_capacity: picked.share.as_ref().filter(|share| !share.is_empty()).map(|share| {
            let text = |(name, amount): (&String, &_)| (name.clone(), Text(format!("{amount}")));
            share.iter().map(text).collect::<BTreeMap<_, _>>()
        }),
        binding_conditions: entry.object.binding_conditions.clone(),
        binding_failure_conditions: entry.object.binding_failure_conditions.clone(),
    });
    AllocationResult {
        allocation_timestamp: None,
        devices: Some(DeviceAllocationResult {
            results: Some(results.collect()),
            config: Some(configuration(claim, wanted, &solution.chosen[index])).filter(|all| !all.is_empty()),
        }),
        node_selector: node_selector(picked.iter().map(|(_, _, slice, entry)| (*slice, *entry)), node),
    }
}

/// Of the classes first, of the claim after them: what comes later overrides.
fn configuration(
    claim: &ResourceClaim,
    wanted: &WantedClaim,
    chosen: &[usize],
) -> Vec<DeviceAllocationConfiguration> {
    let mut all: Vec<DeviceAllocationConfiguration> = Vec::new();
    let wishes: Vec<&Alternative> = wanted
        .requests
        .iter()
        .zip(chosen)
        .map(|(request, alternative)| &request.alternatives[*alternative])
        .collect();
    let mut classes: Vec<&Option<String>> = Vec::new();
    for wish in &wishes {
        if classes.contains(&&wish.class.metadata.name) {
            continue;
        }
        classes.push(&wish.class.metadata.name);
        let of_class = wishes.iter().filter(|other| other.class.metadata.name == wish.class.metadata.name);
        let requests: Vec<String> = of_class.map(|wish| wish.full_name.clone()).collect();
        all.extend(wish.class.spec.config.iter().flatten().map(|config| DeviceAllocationConfiguration {
            source: "FromClass".to_owned(),
            requests: Some(requests.clone()),
            opaque: config.opaque.clone(),
        }));
    }
    let devices = claim.spec.devices.as_ref();
    for config in devices.iter().flat_map(|devices| devices.config.iter().flatten()) {
        let named = config.requests.as_deref().unwrap_or_default();
        let is_named = |(request, wish): (&super::request::WantedRequest, &&Alternative)| {
            named.contains(&request.name) || named.contains(&wish.full_name)
        };
        if named.is_empty() || wanted.requests.iter().zip(&wishes).any(is_named) {
            all.push(DeviceAllocationConfiguration {
                source: "FromClaim".to_owned(),
                requests: config.requests.clone(),
                opaque: config.opaque.clone(),
            });
        }
    }
    all
}

/// Nodes from which all the devices are reached; unset is all of them.
fn node_selector<'a>(
    picked: impl Iterator<Item = (&'a Slice, &'a Entry)>,
    node: &str,
) -> Option<NodeSelector> {
    let mut term = NodeSelectorTerm::default();
    let add = |list: &mut Option<Vec<NodeSelectorRequirement>>,
               more: &Option<Vec<NodeSelectorRequirement>>| {
        for requirement in more.iter().flatten() {
            let list = list.get_or_insert_default();
            if !list.contains(requirement) {
                list.push(requirement.clone());
            }
        }
    };
    for (slice, entry) in picked {
        match slice.reach_of(entry) {
            _ if entry.object.binds_to_node == Some(true) => return Some(only(node)),
            Reach::Node(_) => return Some(only(node)),
            Reach::Selected(_, selector) => {
                // Validation allows one term.
                for other in selector.node_selector_terms.iter().take(1) {
                    add(&mut term.match_fields, &other.match_fields);
                    add(&mut term.match_expressions, &other.match_expressions);
                }
            }
            Reach::All | Reach::ByDevice | Reach::Nobody => (),
        }
    }
    let is_empty = term.match_fields.is_none() && term.match_expressions.is_none();
    (!is_empty).then(|| NodeSelector { node_selector_terms: vec![term] })
}

fn only(node: &str) -> NodeSelector {
    let requirement = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![requirement]), match_expressions: None };
    NodeSelector { node_selector_terms: vec![term] }
}
