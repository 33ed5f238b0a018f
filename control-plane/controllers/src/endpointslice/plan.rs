//! The fewest writes that make a service's slices hold what they should. Pure.
//!
//! Endpoints stay in the slice they are in, because every changed slice is sent to every node. New ones go
//! where a write happens anyway, then into one slice that has room for all of them, then into new slices. A
//! slice that empties is used for another group before one is made. A family without any endpoint keeps one
//! empty slice, so that the service is seen to be looked after. Planning again changes nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::Service,
        discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    MANAGED_BY, MANAGER, SERVICE_NAME, TRIGGER_TIME,
    endpoint::{AddressType, Group, address_types},
    managed::Writes,
};
use crate::{
    meta::{MetaExt, controller_reference},
    selector::Labels,
};

const HEADLESS: &str = "service.kubernetes.io/headless";

/// A slice on its way from what it is to what it should be.
struct Draft {
    address_type: AddressType,
    existing: Option<Arc<EndpointSlice>>,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

impl Draft {
    /// A write is needed, whatever else is added.
    fn is_changed(&self) -> bool {
        self.existing.as_ref().is_none_or(|existing| {
            existing.endpoints.as_deref().unwrap_or_default() != self.endpoints
                || existing.ports.as_deref().unwrap_or_default() != self.ports
        })
    }
}

/// Plans for slices of at most `max_endpoints`. `existing` are the service's slices that this controller
/// manages; `trigger_time` is written to what changes.
pub(crate) fn plan_endpoint_slices(
    service: &Service,
    groups: &[Group],
    existing: &[Arc<EndpointSlice>],
    max_endpoints: usize,
    trigger_time: Option<&str>,
) -> Writes {
    let mut existing = existing.to_vec();
    existing.sort_by(|a, b| a.name().cmp(b.name()));
    let mut changes = Writes::default();
    for address_type in address_types(service) {
        let (mine, rest): (Vec<_>, Vec<_>) =
            existing.into_iter().partition(|slice| slice.address_type == address_type.as_str());
        existing = rest;
        let groups: Vec<&Group> = groups.iter().filter(|group| group.address_type == address_type).collect();
        for draft in plan_family(address_type, &groups, mine, max_endpoints, &mut changes.delete) {
            finish(service, draft, trigger_time, &mut changes);
        }
    }
    // A family that the service no longer has, or an address type that is not ours to make.
    changes.delete.extend(existing);
    changes
}

fn plan_family(
    address_type: AddressType,
    groups: &[&Group],
    mut existing: Vec<Arc<EndpointSlice>>,
    max_endpoints: usize,
    delete: &mut Vec<Arc<EndpointSlice>>,
) -> Vec<Draft> {
    let mut drafts = Vec::new();
    for group in groups {
        let (same_ports, rest): (Vec<_>, Vec<_>) =
            existing.into_iter().partition(|slice| slice.ports.as_deref().unwrap_or_default() == group.ports);
        existing = rest;
        drafts.extend(plan_group(group, &same_ports, max_endpoints));
    }
    // Slices that hold nothing any more, and slices for ports that nobody has.
    let (emptied, mut drafts): (Vec<Draft>, Vec<Draft>) =
        drafts.into_iter().partition(|draft| draft.endpoints.is_empty());
    existing.extend(emptied.into_iter().filter_map(|draft| draft.existing));
    if drafts.is_empty() {
        drafts.push(Draft { address_type, existing: None, ports: Vec::new(), endpoints: Vec::new() });
    }
    let mut reusable = existing.into_iter();
    for draft in drafts.iter_mut().filter(|draft| draft.existing.is_none()) {
        draft.existing = reusable.next();
    }
    delete.extend(reusable);
    drafts
}

fn plan_group(group: &Group, existing: &[Arc<EndpointSlice>], max_endpoints: usize) -> Vec<Draft> {
    let mut missing: HashMap<Identity<'_>, &Endpoint> =
        group.endpoints.iter().map(|endpoint| (identity(endpoint), endpoint)).collect();
    let mut drafts = Vec::with_capacity(existing.len());
    for slice in existing {
        let held = slice.endpoints.iter().flatten();
        // An endpoint that is in two slices stays in the first.
        let kept: Vec<Endpoint> = held
            .filter_map(|endpoint| missing.remove(&identity(endpoint)).cloned())
            .take(max_endpoints)
            .collect();
        drafts.push(Draft {
            address_type: group.address_type,
            ports: group.ports.clone(),
            endpoints: kept,
            existing: Some(slice.clone()),
        });
    }
    // In the group's order, which is settled; the map's is not.
    let mut left: Vec<&Endpoint> =
        group.endpoints.iter().filter(|endpoint| missing.contains_key(&identity(endpoint))).collect();
    for draft in drafts.iter_mut().filter(|draft| draft.is_changed()) {
        fill(draft, &mut left, max_endpoints);
    }
    while !left.is_empty() {
        let room = |draft: &&mut Draft| max_endpoints - draft.endpoints.len() >= left.len();
        match drafts.iter_mut().filter(room).max_by_key(|draft| draft.endpoints.len()) {
            Some(fullest) => fill(fullest, &mut left, max_endpoints),
            None => {
                let (address_type, ports) = (group.address_type, group.ports.clone());
                let mut draft = Draft { address_type, existing: None, ports, endpoints: Vec::new() };
                fill(&mut draft, &mut left, max_endpoints);
                drafts.push(draft);
            }
        }
    }
    drafts
}

/// The pod, by uid, and its address: a pod that is made anew under its name is another endpoint.
type Identity<'a> = (Option<&'a str>, &'a [String]);

fn identity(endpoint: &Endpoint) -> Identity<'_> {
    (endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()), &endpoint.addresses)
}

fn fill(draft: &mut Draft, left: &mut Vec<&Endpoint>, max_endpoints: usize) {
    let room = max_endpoints.saturating_sub(draft.endpoints.len()).min(left.len());
    draft.endpoints.extend(left.drain(..room).cloned());
}

fn finish(service: &Service, draft: Draft, trigger_time: Option<&str>, changes: &mut Writes) {
    let labels = labels(service);
    let is_changed = draft.is_changed();
    match draft.existing {
        None => changes.create.push(EndpointSlice {
            address_type: draft.address_type.as_str().to_owned(),
            endpoints: Some(draft.endpoints),
            ports: Some(draft.ports),
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", service.name())),
                namespace: service.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: trigger_time.map(|time| [(TRIGGER_TIME.to_owned(), time.to_owned())].into()),
                owner_references: Some(vec![controller_reference(service)]),
                ..ObjectMeta::default()
            },
        }),
        Some(existing) if is_changed || *existing.labels() != labels => {
            let mut slice = (*existing).clone();
            slice.endpoints = Some(draft.endpoints);
            slice.ports = Some(draft.ports);
            slice.metadata.labels = Some(labels);
            let annotations = slice.metadata.annotations.get_or_insert_with(BTreeMap::new);
            match trigger_time {
                Some(time) => annotations.insert(TRIGGER_TIME.to_owned(), time.to_owned()),
                None => annotations.remove(TRIGGER_TIME),
            };
            changes.update.push(slice);
        }
        Some(_) => {}
    }
}

/// The service's labels, and those that mark the slice.
fn labels(service: &Service) -> Labels {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpointslice::{
        endpoint::groups,
        test_objects::{pod, service},
    };

    /// The API as far as slices go: applies changes and names what is new.
    #[derive(Default)]
    struct Slices {
        stored: Vec<Arc<EndpointSlice>>,
        names: usize,
        writes: usize,
    }

    impl Slices {
        /// Brings the slices to `pods`, given as (name, port), with at most three endpoints each.
        fn sync(&mut self, pods: &[(u8, i32)]) -> &mut Self {
            let service = service("web", "http");
            let pods: Vec<_> = pods
                .iter()
                .map(|(number, port)| Arc::new(pod(&number.to_string(), &format!("10.0.0.{number}"), *port)))
                .collect();
            let groups = groups(&service, &pods, |_| None);
            let changes = plan_endpoint_slices(&service, &groups, &self.stored, 3, Some("now"));
            self.writes = changes.create.len() + changes.update.len() + changes.delete.len();
            self.stored.retain(|slice| !changes.delete.contains(slice));
            for slice in changes.update {
                self.stored.retain(|old| old.name() != slice.name());
                self.stored.push(Arc::new(slice));
            }
            for mut slice in changes.create {
                self.names += 1;
                slice.metadata.name = Some(format!("web-{}", self.names));
                self.stored.push(Arc::new(slice));
            }
            self.stored.sort_by(|a, b| a.name().cmp(b.name()));
            let again = plan_endpoint_slices(&service, &groups, &self.stored, 3, Some("later"));
            assert_eq!(again, Writes::default(), "planning again changes nothing");
            let held: usize = self.stored.iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).sum();
            assert_eq!(held, pods.len(), "every pod is in one slice");
            self
        }

        #[track_caller]
        fn check(&self, name: &str, sizes: &[usize], writes: usize) {
            let found: Vec<usize> =
                self.stored.iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).collect();
            assert_eq!((found.as_slice(), self.writes), (sizes, writes), "{name}");
        }
    }

    #[test]
    fn changes_take_few_writes() {
        let pods = |range: std::ops::Range<u8>| range.map(|n| (n, 8080)).collect::<Vec<_>>();
        let mut slices = Slices::default();
        slices.sync(&[]).check("a service without pods has one empty slice", &[0], 1);
        slices.sync(&pods(0..2)).check("which takes the first pods", &[2], 1);
        slices.sync(&pods(0..7)).check("more pods fill it up and make new ones", &[2, 3, 2], 2);
        slices.sync(&pods(1..7)).check("a lost pod touches its slice only", &[1, 3, 2], 1);
        slices.sync(&pods(1..8)).check("one more goes to the fullest with room", &[1, 3, 3], 1);
        slices.sync(&pods(1..5)).check("emptied slices go", &[1, 3], 1);
        slices.sync(&[]).check("the last one stays", &[0], 2);
    }

    #[test]
    fn changed_port_rewrites_the_slice_in_place() {
        let mut slices = Slices::default();
        slices.sync(&[(1, 8080), (2, 8080)]).check("one slice", &[2], 1);
        slices.sync(&[(1, 9090), (2, 9090)]).check("the same slice with another port", &[2], 1);
        slices.sync(&[(1, 8080), (2, 9090)]).check("two ports make two slices", &[1, 1], 2);
    }
}
