//! Extended resources that device classes provide (KEP-5004).
//!
//! A pod may ask for devices by the name of an extended resource, as it asks for those of a device plugin. On a node that does not have
//! the resource itself they come from the class with that name, and the scheduler makes one claim of all that the pod
//! asks for so. What is in the claim depends on the node, so it is written when the node is chosen. Names of requests and
//! how containers share them are upstream's: kubelets read them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use hawser_api::resource::ObjectKey;
use k8s_openapi::{
    api::{
        core::v1::{Container, ContainerExtendedResourceRequest, Pod},
        resource::v1::{
            DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
        },
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use crate::{pod::PodInfo, resources};

/// Every class can be asked for by this and its name.
const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";
/// Says of a claim that it was made by a scheduler.
const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";
/// What the claim is called while it is not made yet; no object has such a name.
const UNMADE: &str = "<extended-resources>";

/// Classes by the extended resource that they provide.
pub(crate) type Providers = BTreeMap<String, String>;

/// What a container asks for by names of extended resources.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContainerWish {
    /// Among all containers, those that only prepare first.
    index: usize,
    container: String,
    /// Over before others begin: they may have its devices.
    passes: bool,
    /// Amounts, with the place of each resource among all that the container asks for.
    amounts: BTreeMap<String, (i64, usize)>,
}

/// The claim that is to be made for a pod on a node.
#[derive(Clone, Debug)]
pub(crate) struct Unmade {
    /// Without a name: the API gives it one.
    pub(crate) claim: ResourceClaim,
    pub(crate) mappings: Vec<ContainerExtendedResourceRequest>,
    /// What stands for its uid until it has one.
    pub(crate) promise: String,
}

impl ContainerWish {
    pub(super) fn all_of(pod: &Pod) -> Vec<Self> {
        let spec = pod.spec.as_ref();
        let first = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
        let first = first.map(|container| (container, container.restart_policy.as_deref() != Some("Always")));
        let then = spec.into_iter().flat_map(|spec| &spec.containers).map(|container| (container, false));
        let wish = |(index, (container, passes)): (usize, (&Container, bool))| {
            let requests = container.resources.as_ref()?.requests.as_ref()?;
            let places: HashMap<&String, usize> = requests.keys().zip(0..).collect();
            let amounts: BTreeMap<String, (i64, usize)> = resources::amounts(Some(requests))
                .into_iter()
                .filter(|(name, amount)| is_name(name) && *amount > 0)
                .map(|(name, amount)| {
                    let place = places.get(&name).copied().unwrap_or_default();
                    (name, (amount, place))
                })
                .collect();
            let container = container.name.clone();
            (!amounts.is_empty()).then_some(Self { index, container, passes, amounts })
        };
        first.chain(then).enumerate().filter_map(wish).collect()
    }

    pub(super) fn resources(&self) -> impl Iterator<Item = &String> {
        self.amounts.keys()
    }

    /// Asks for what `others` do not have; says which requests the container uses.
    fn request(
        &self,
        resource: &str,
        class: &str,
        others: &[&DeviceRequest],
        mappings: &mut Vec<ContainerExtendedResourceRequest>,
    ) -> Option<DeviceRequest> {
        let (amount, place) = *self.amounts.get(resource)?;
        let mut map = |request_name: &str| {
            mappings.push(ContainerExtendedResourceRequest {
                container_name: self.container.clone(),
                request_name: request_name.to_owned(),
                resource_name: resource.to_owned(),
            });
        };
        let mut lacking = amount;
        for other in others {
            map(&other.name);
            lacking -= count(other);
            if lacking <= 0 {
                return None;
            }
        }
        let name = format!("container-{}-request-{place}", self.index);
        map(&name);
        let exactly = ExactDeviceRequest {
            device_class_name: class.to_owned(),
            allocation_mode: Some("ExactCount".to_owned()),
            count: Some(lacking),
            ..ExactDeviceRequest::default()
        };
        Some(DeviceRequest { name, exactly: Some(exactly), first_available: None })
    }
}

fn count(request: &DeviceRequest) -> i64 {
    request.exactly.as_ref().and_then(|exactly| exactly.count).unwrap_or_default()
}

/// Whether a resource may be one that a class provides.
fn is_name(resource: &str) -> bool {
    let is_extended =
        resource.contains('/') && !resource.contains("kubernetes.io/") && !resource.starts_with("requests.");
    is_extended || resource.starts_with(IMPLICIT)
}

/// Of classes with the same resource name the youngest provides it, and of those the first by name.
pub(super) fn providers<'a>(classes: impl Iterator<Item = &'a Arc<DeviceClass>>) -> Providers {
    let mut classes: Vec<&DeviceClass> = classes.map(|class| &**class).collect();
    classes.sort_by_key(|class| {
        let metadata = &class.metadata;
        (metadata.creation_timestamp.as_ref().map(|time| time.0), Reverse(metadata.name.clone()))
    });
    let named = classes.iter().filter_map(|class| Some((class.spec.extended_resource_name.clone()?, class)));
    let implicit = classes.iter().map(|class| (format!("{IMPLICIT}{}", name_of(class)), class));
    named.chain(implicit).map(|(resource, class)| (resource, name_of(class).to_owned())).collect()
}

fn name_of(class: &DeviceClass) -> &str {
    class.metadata.name.as_deref().unwrap_or_default()
}

/// The claim for a pod on a node where classes are to provide `resources`, in the order of their names.
pub(super) fn unmade(pod: &PodInfo, resources: &[&String], providers: &Providers) -> Unmade {
    let (mut requests, mut mappings) = (Vec::new(), Vec::new());
    for resource in resources {
        if let Some(class) = providers.get(*resource) {
            requests_for(&pod.claims.wishes, resource, class, &mut requests, &mut mappings);
        }
    }
    requests.sort_by(|one: &DeviceRequest, other| one.name.cmp(&other.name));
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: pod.key.name.clone(),
        uid: pod.uid.to_string(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let claim = ResourceClaim {
        metadata: ObjectMeta {
            namespace: Some(pod.key.namespace.clone()),
            generate_name: Some(format!("{}-extended-resources-", pod.key.name)),
            owner_references: Some(vec![owner]),
            annotations: Some(BTreeMap::from([(ANNOTATION.to_owned(), "true".to_owned())])),
            ..ObjectMeta::default()
        },
        spec: ResourceClaimSpec {
            devices: Some(DeviceClaim { requests: Some(requests), ..DeviceClaim::default() }),
        },
        status: None,
    };
    Unmade { claim, mappings, promise: promise(&pod.uid) }
}

/// Requests for one resource. Containers that prepare share one, and use what later containers have.
fn requests_for(
    wishes: &[ContainerWish],
    resource: &str,
    class: &str,
    requests: &mut Vec<DeviceRequest>,
    mappings: &mut Vec<ContainerExtendedResourceRequest>,
) {
    let mut lasting: Vec<(usize, DeviceRequest)> = Vec::new();
    for wish in wishes.iter().filter(|wish| !wish.passes) {
        let request = wish.request(resource, class, &[], mappings);
        lasting.extend(request.map(|request| (wish.index, request)));
    }
    let mut passing: Vec<DeviceRequest> = Vec::new();
    let mut of_passing = Vec::new();
    for wish in wishes.iter().filter(|wish| wish.passes) {
        let later = lasting.iter().filter(|(index, _)| *index > wish.index);
        let others: Vec<&DeviceRequest> = later.map(|(_, request)| request).collect();
        passing.extend(wish.request(resource, class, &others, &mut of_passing));
    }
    // The first of the largest is enough for all.
    let largest = passing.iter().rev().max_by_key(|request| count(request)).cloned();
    if let Some(largest) = &largest {
        let names: HashSet<&String> = passing.iter().map(|request| &request.name).collect();
        for mapping in &mut of_passing {
            if names.contains(&mapping.request_name) {
                mapping.request_name.clone_from(&largest.name);
            }
        }
    }
    mappings.extend(of_passing);
    requests.extend(largest);
    requests.extend(lasting.into_iter().map(|(_, request)| request));
}

/// What stands for the uid of the claim that is to be made for a pod.
fn promise(pod: &str) -> String {
    format!("{UNMADE}/{pod}")
}

pub(super) fn key(pod: &PodInfo) -> ObjectKey {
    ObjectKey::new(pod.key.namespace.as_str(), UNMADE)
}

/// The uid of the pod that a scheduler made the claim for.
pub(super) fn made_for(claim: &ResourceClaim) -> Option<&str> {
    let annotations = claim.metadata.annotations.as_ref()?;
    annotations.get(ANNOTATION).filter(|value| *value == "true")?;
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str())
}

/// Whether a scheduler made the claim.
pub(crate) fn is_made(claim: &ResourceClaim) -> bool {
    made_for(claim).is_some()
}

/// Names under which the devices of a claim may be promised.
pub(super) fn promises(claim: &ResourceClaim) -> impl Iterator<Item = String> {
    claim.metadata.uid.clone().into_iter().chain(made_for(claim).map(promise))
}

#[cfg(test)]
#[path = "extended_tests.rs"]
mod tests;
