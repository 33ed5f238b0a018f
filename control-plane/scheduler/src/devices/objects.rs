//! Claims, slices and pods' claims, reduced to what a place depends on.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hawser_api::{quantity::Quantity, resource::ObjectKey};
use k8s_openapi::{
    api::{
        core::v1::{NodeSelector, Pod},
        resource::v1::{
            AllocationResult, CapacityRequestPolicy, Device, ResourceClaim, ResourceSlice, ResourceSliceSpec,
        },
    },
    apimachinery::pkg::api::resource::Quantity as Text,
};

use super::{extended::ContainerWish, pools::PoolKey};
use crate::{affinity::NodeAffinity, pod::Labels};

/// What a pod claims, read once from its spec and from what a controller noted in its status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PodClaims {
    pub(super) uses: Vec<ClaimUse>,
    /// Containers that ask for extended resources.
    pub(super) wishes: Vec<ContainerWish>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ClaimUse {
    Named(ObjectKey),
    /// Made for the pod: no other claim of this name will do.
    Generated(ObjectKey),
    /// To be made by a controller.
    Missing,
}

impl PodClaims {
    pub(crate) fn of(pod: &Pod) -> Self {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let claims = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
        let statuses = || {
            let status = pod.status.as_ref();
            status.and_then(|status| status.resource_claim_statuses.as_ref()).into_iter().flatten()
        };
        let uses = claims.filter_map(|claim| {
            if let Some(name) = &claim.resource_claim_name {
                return Some(ClaimUse::Named(ObjectKey::new(namespace, name.as_str())));
            }
            match statuses().find(|status| status.name == claim.name) {
                // One that was not made on purpose is none.
                Some(status) => {
                    let name = status.resource_claim_name.as_deref()?;
                    Some(ClaimUse::Generated(ObjectKey::new(namespace, name)))
                }
                None => Some(ClaimUse::Missing),
            }
        });
        Self { uses: uses.collect(), wishes: ContainerWish::all_of(pod) }
    }

    /// Extended resources that the pod asks for, some more than once.
    pub(crate) fn extended_resources(&self) -> impl Iterator<Item = &String> {
        self.wishes.iter().flat_map(ContainerWish::resources)
    }

    pub(crate) fn names(&self, key: &ObjectKey) -> bool {
        self.keys().any(|own| own == key)
    }

    /// Claims that exist, or that the pod says do.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.uses.iter().filter_map(|used| match used {
            ClaimUse::Named(key) | ClaimUse::Generated(key) => Some(key),
            ClaimUse::Missing => None,
        })
    }
}

/// A slice of a pool, with what of it is read often.
#[derive(Debug)]
pub(super) struct Slice {
    /// No other slice, and no other version of this one, ever has it.
    pub(super) serial: u64,
    pub(super) name: String,
    pub(super) pool: PoolKey,
    pub(super) generation: i64,
    /// Slices of the pool, all in all.
    pub(super) of_pool: i64,
    pub(super) reach: Reach,
    pub(super) devices: Vec<Entry>,
    /// Counters by set, where the slice is about them.
    pub(super) counters: BTreeMap<String, BTreeMap<String, Quantity>>,
    /// A name is there twice, or a quantity cannot be read.
    pub(super) invalid: bool,
    /// What it was made of, without the devices: they have theirs.
    spec: ResourceSliceSpec,
}

/// A device of a slice.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) object: Device,
    /// Unset where it is the slice's.
    pub(super) reach: Option<Reach>,
    pub(super) capacity: BTreeMap<String, Capacity>,
    /// By set.
    pub(super) consumes: BTreeMap<String, BTreeMap<String, Quantity>>,
}

#[derive(Debug)]
pub(super) struct Capacity {
    pub(super) value: Quantity,
    pub(super) policy: Option<Policy>,
}

/// What amounts of a capacity can be asked for.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) default: Option<Quantity>,
    pub(super) values: Vec<Quantity>,
    /// Least, most and step.
    pub(super) range: Option<(Quantity, Option<Quantity>, Option<Quantity>)>,
}

/// Which nodes reach devices.
#[derive(Debug)]
pub(super) enum Reach {
    Node(String),
    All,
    Selected(NodeAffinity, NodeSelector),
    /// Each device says it.
    ByDevice,
    Nobody,
}

impl Reach {
    fn of(node: Option<&String>, all: Option<bool>, selector: Option<&NodeSelector>) -> Option<Self> {
        if let Some(node) = node.filter(|node| !node.is_empty()) {
            return Some(Self::Node(node.clone()));
        }
        if all == Some(true) {
            return Some(Self::All);
        }
        selector.map(|selector| Self::Selected(NodeAffinity::selecting(selector), selector.clone()))
    }

    pub(super) fn includes(&self, node: &str, labels: &Labels) -> bool {
        match self {
            Self::Node(name) => name == node,
            Self::All => true,
            Self::Selected(affinity, _) => affinity.allows(node, labels),
            Self::ByDevice | Self::Nobody => false,
        }
    }
}

impl Slice {
    pub(super) fn of(slice: &ResourceSlice) -> Self {
        let spec = &slice.spec;
        let reach = Reach::of(spec.node_name.as_ref(), spec.all_nodes, spec.node_selector.as_ref());
        let by_device = spec.per_device_node_selection == Some(true);
        let reach = reach.unwrap_or(if by_device { Reach::ByDevice } else { Reach::Nobody });
        let mut invalid = false;
        let devices: Vec<Entry> = spec
            .devices
            .iter()
            .flatten()
            .map(|device| Entry {
                reach: by_device.then(|| {
                    let (node, selector) = (device.node_name.as_ref(), device.node_selector.as_ref());
                    Reach::of(node, device.all_nodes, selector).unwrap_or(Reach::Nobody)
                }),
                capacity: device
                    .capacity
                    .iter()
                    .flatten()
                    .filter_map(|(name, capacity)| {
                        let policy = capacity.request_policy.as_ref().map(Policy::of);
                        let value = quantity(&capacity.value);
                        invalid |= value.is_none();
                        Some((name.clone(), Capacity { value: value?, policy }))
                    })
                    .collect(),
                consumes: device
                    .consumes_counters
                    .iter()
                    .flatten()
                    .map(|consumed| {
                        let counters = consumed.counters.iter().map(|(name, counter)| (name, &counter.value));
                        (consumed.counter_set.clone(), quantities(counters))
                    })
                    .collect(),
                object: device.clone(),
            })
            .collect();
        let mut counters = BTreeMap::new();
        for set in spec.shared_counters.iter().flatten() {
            let of_set = set.counters.iter().map(|(name, counter)| (name, &counter.value));
            invalid |= counters.insert(set.name.clone(), quantities(of_set)).is_some();
        }
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            serial: NEXT.fetch_add(1, Ordering::Relaxed),
            name: slice.metadata.name.clone().unwrap_or_default(),
            pool: PoolKey { driver: spec.driver.as_str().into(), pool: spec.pool.name.as_str().into() },
            generation: spec.pool.generation,
            of_pool: spec.pool.resource_slice_count,
            reach,
            devices,
            counters,
            invalid,
            spec: ResourceSliceSpec { devices: None, ..spec.clone() },
        }
    }

    /// Whether the slice was made of the same: whatever else of the object changed is nobody's concern.
    pub(super) fn is_of(&self, slice: &ResourceSlice) -> bool {
        let (own, other) = (&self.spec, &slice.spec);
        let other_devices = other.devices.as_deref().unwrap_or_default();
        own.driver == other.driver
            && own.pool == other.pool
            && own.node_name == other.node_name
            && own.node_selector == other.node_selector
            && own.all_nodes == other.all_nodes
            && own.per_device_node_selection == other.per_device_node_selection
            && own.shared_counters == other.shared_counters
            && self.devices.iter().map(|entry| &entry.object).eq(other_devices)
    }

    /// Whether a device consumes counters.
    pub(super) fn consumes(&self) -> bool {
        self.devices.iter().any(|device| !device.consumes.is_empty())
    }

    /// The node that the slice alone is for. Counters are for all that reach the pool.
    pub(super) fn only_node(&self) -> Option<&str> {
        match &self.reach {
            Reach::Node(node) if self.counters.is_empty() => Some(node),
            _ => None,
        }
    }

    /// Whether the slice has something for the node.
    pub(super) fn is_for(&self, node: &str, labels: &Labels) -> bool {
        !self.counters.is_empty()
            || match &self.reach {
                Reach::ByDevice => {
                    let mut reaches = self.devices.iter().filter_map(|device| device.reach.as_ref());
                    reaches.any(|reach| reach.includes(node, labels))
                }
                reach => reach.includes(node, labels),
            }
    }

    /// Which nodes the device is for.
    pub(super) fn reach_of<'a>(&'a self, device: &'a Entry) -> &'a Reach {
        device.reach.as_ref().unwrap_or(&self.reach)
    }
}

impl Entry {
    pub(super) fn is_shareable(&self) -> bool {
        self.object.allow_multiple_allocations == Some(true)
    }
}

impl Policy {
    fn of(policy: &CapacityRequestPolicy) -> Self {
        let range = policy.valid_range.as_ref().and_then(|range| {
            let (most, step) = (range.max.as_ref(), range.step.as_ref());
            Some((quantity(&range.min)?, most.and_then(quantity), step.and_then(quantity)))
        });
        Self {
            default: policy.default.as_ref().and_then(quantity),
            values: policy.valid_values.iter().flatten().filter_map(quantity).collect(),
            range,
        }
    }
}

/// What a claim has of one device.
#[derive(Debug)]
pub(super) struct Holding {
    pub(super) pool: PoolKey,
    pub(super) device: Arc<str>,
    /// What of its capacity, where others may have a part too.
    pub(super) share: Option<BTreeMap<String, Quantity>>,
}

/// What an allocation takes. Admin access takes nothing.
pub(super) fn holdings(allocation: &AllocationResult) -> Vec<Holding> {
    let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    results
        .filter(|result| result.admin_access != Some(true))
        .map(|result| Holding {
            pool: PoolKey { driver: result.driver.as_str().into(), pool: result.pool.as_str().into() },
            device: result.device.as_str().into(),
            share: result.share_id.as_ref().map(|_| quantities(result.consumed_capacity.iter().flatten())),
        })
        .collect()
}

fn quantities<'a>(all: impl Iterator<Item = (&'a String, &'a Text)>) -> BTreeMap<String, Quantity> {
    all.filter_map(|(name, text)| Some((name.clone(), quantity(text)?))).collect()
}

pub(super) fn quantity(text: &Text) -> Option<Quantity> {
    text.0.parse().ok()
}

/// Whether a claim was read before another of the same object.
pub(super) fn is_older(claim: &ResourceClaim, known: &ResourceClaim) -> bool {
    let version = |claim: &ResourceClaim| claim.metadata.resource_version.as_ref()?.parse::<u64>().ok();
    claim.metadata.uid == known.metadata.uid
        && version(claim).zip(version(known)).is_some_and(|(one, other)| one < other)
}

pub(crate) fn is_reserved_for(claim: &ResourceClaim, uid: &str) -> bool {
    consumers(claim).any(|consumer| consumer == uid)
}

/// Uids of those that a claim is reserved for.
pub(super) fn consumers(claim: &ResourceClaim) -> impl Iterator<Item = &str> {
    let reserved = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    reserved.map(|consumer| consumer.uid.as_str())
}

/// Whether the claim's devices are attached to their node: `None` where one is still waited for; the error is that of a
/// device that never will be.
pub(crate) fn binding_state(claim: &ResourceClaim) -> Result<Option<()>, String> {
    let Some(status) = &claim.status else { return Ok(None) };
    let Some(allocation) = &status.allocation else { return Ok(None) };
    let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    for result in results {
        let Some(awaited) = result.binding_conditions.as_ref().filter(|awaited| !awaited.is_empty()) else {
            continue;
        };
        let mut devices = status.devices.iter().flatten();
        let device = devices.find(|device| {
            device.driver == result.driver && device.pool == result.pool && device.device == result.device
        });
        let Some(device) = device else { return Ok(None) };
        let holding = |name: &String| {
            let mut conditions = device.conditions.iter().flatten();
            conditions.find(|condition| condition.type_ == *name && condition.status == "True")
        };
        if let Some(failure) = result.binding_failure_conditions.iter().flatten().find_map(holding) {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let (reason, message) = (&failure.reason, &failure.message);
            return Err(format!("claim {name} binding failed: reason={reason}, message={message:?}"));
        }
        if awaited.iter().any(|name| holding(name).is_none()) {
            return Ok(None);
        }
    }
    Ok(Some(()))
}
