//! Devices for pods: what there is, what is given out, and which nodes can provide what a pod claims (KEP-4381).
//!
//! DynamicResources of upstream, with all that v1.36 has on by default: alternatives in order of preference, admin access,
//! taints, partitions with shared counters, capacity that many claims consume, and binding conditions. Claims that a pod names
//! are allocated when its node is chosen. The allocation is promised in memory until the API shows it, so that no device
//! is promised twice, and other pods with the same claim go where it is promised. What pods ask for as extended resources becomes a
//! claim too ([`extended`]). What changes concerns the nodes that
//! reach the pool that changed: for all others, what was found out for pods with the same claims still stands.
//! Bounded by the claims, slices and nodes of the cluster.

mod allocate;
mod constraints;
mod evaluations;
mod extended;
mod objects;
mod pools;
mod request;
mod result;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use hawser_api::resource::ObjectKey;
use hawser_cel::Programs;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};
use parking_lot::Mutex;

pub(crate) use allocate::Budget;
pub(crate) use extended::{Providers, Unmade, is_made};
pub(crate) use objects::{PodClaims, binding_state, is_reserved_for};
pub(crate) use request::{compile_claim, compile_class};
pub(crate) use view::DeviceView;

use crate::{
    devices::{
        evaluations::Evaluations,
        objects::{ClaimUse, Holding, Slice},
        pools::{Pool, PoolKey},
    },
    pod::PodInfo,
    snapshot::Slot,
};

/// What guards an allocated claim against being deleted.
pub(crate) const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Pods that may share a claim (upstream's `ResourceClaimReservedForMaxSize`).
pub(crate) const MOST_CONSUMERS: usize = 256;

#[derive(Default)]
pub(crate) struct Devices {
    claims: HashMap<ObjectKey, Arc<ResourceClaim>>,
    classes: HashMap<String, Arc<DeviceClass>>,
    providers: Arc<Providers>,
    /// Claims that a scheduler made for what pods ask for as extended resources, by the pod's uid.
    made_for: HashMap<String, BTreeSet<ObjectKey>>,
    slices: HashMap<String, Arc<Slice>>,
    /// Allocations that were decided and that the API does not show yet, by the claim's uid.
    promised: HashMap<String, Arc<AllocationResult>>,
    pools: Vec<Pool>,
    by_key: HashMap<PoolKey, usize>,
    /// Pools that are no pool any more.
    free: Vec<usize>,
    /// Pools of which a node has slices of its own, by node.
    local: HashMap<String, BTreeSet<usize>>,
    /// Pools with slices that several nodes may reach.
    shared: BTreeSet<usize>,
    /// Counts changes: whatever is kept says of which one it is.
    version: u64,
    /// The last change that every node may be concerned by.
    for_all: u64,
    /// The last change of each node, by its slot.
    of_node: Vec<u64>,
    kept: Mutex<Evaluations>,
}

/// The nodes that may be able to provide something else than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Concerned {
    Nobody,
    Node(String),
    All,
}

/// How the extended resources that classes provide changed.
#[derive(Debug, Default)]
pub(crate) struct Provision {
    pub(crate) changed: bool,
    /// Those that another class provides than before, or that none did.
    pub(crate) gained: BTreeSet<String>,
}

/// Claims that have to be written before a pod can be bound.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grants(pub(crate) Vec<Grant>);

#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) claim: ObjectKey,
    pub(crate) uid: String,
    /// Unset where the claim is allocated already, or for another pod just now.
    pub(crate) allocation: Option<Arc<AllocationResult>>,
    /// The claim itself, where it is to be made.
    pub(crate) unmade: Option<Arc<Unmade>>,
}

impl Grant {
    /// What its devices are promised to: the claim's uid, or what stands for it.
    pub(crate) fn promise(&self) -> &str {
        self.unmade.as_ref().map_or(&self.uid, |unmade| &unmade.promise)
    }
}

impl Grants {
    /// Of claims that nobody has: they are not written.
    pub(crate) fn unfounded(pod: &PodInfo) -> Self {
        let grant = |claim| Grant { claim, uid: String::new(), allocation: None, unmade: None };
        Self(pod.claims.keys().cloned().chain([extended::key(pod)]).map(grant).collect())
    }
}

impl Devices {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// What selectors were compiled to, for whoever has it done before they are needed.
    pub(crate) fn programs(&self) -> Arc<Programs> {
        self.kept.lock().programs.clone()
    }

    pub(crate) fn claim(&self, key: &ObjectKey) -> Option<&Arc<ResourceClaim>> {
        self.claims.get(key)
    }

    /// Classes by the extended resource that they provide.
    pub(crate) fn providers(&self) -> &Arc<Providers> {
        &self.providers
    }

    /// Whether the pod waits for a claim that is made for it.
    pub(crate) fn awaits(&self, pod: &PodInfo) -> bool {
        pod.claims.uses.iter().any(|used| match used {
            ClaimUse::Named(_) => false,
            ClaimUse::Generated(key) => self.claim(key).is_none(),
            ClaimUse::Missing => true,
        })
    }

    /// Whether the pod asks for devices, in one way or another.
    pub(crate) fn concern(&self, pod: &PodInfo) -> bool {
        let provided = |resource: &String| self.providers.contains_key(resource);
        !pod.claims.uses.is_empty() || pod.claims.extended_resources().any(provided)
    }

    pub(crate) fn is_promised(&self, uid: &str) -> bool {
        self.promised.contains_key(uid)
    }

    /// Takes over a claim, unless it is older than what is known. True where devices became free by it.
    pub(crate) fn put_claim(&mut self, claim: &ResourceClaim) -> bool {
        let key = ObjectKey::of(claim);
        let known = self.claims.get(&key).cloned();
        if let Some(known) = &known
            && objects::is_older(claim, known)
        {
            return false;
        }
        self.version += 1;
        let before = known.as_deref().and_then(allocation_of);
        let is_same = known.as_ref().is_some_and(|known| known.metadata.uid == claim.metadata.uid);
        let mut freed = false;
        if !is_same || before != allocation_of(claim) {
            freed = self.hold(before, -1);
            if let Some(known) = known.as_ref().filter(|_| !is_same) {
                freed |= self.drop_promise(known);
            }
            if let Some(allocation) = allocation_of(claim) {
                // The promise has come true, or another scheduler was faster.
                self.drop_promise(claim);
                self.hold(Some(allocation), 1);
            }
        }
        if let Some(known) = known.as_ref().filter(|_| !is_same) {
            self.forget_made(&key, known);
        }
        if let Some(pod) = extended::made_for(claim) {
            self.made_for.entry(pod.to_owned()).or_default().insert(key.clone());
        }
        self.claims.insert(key, Arc::new(claim.clone()));
        freed
    }

    pub(crate) fn remove_claim(&mut self, key: &ObjectKey) {
        if let Some(claim) = self.claims.remove(key) {
            self.version += 1;
            self.hold(allocation_of(&claim), -1);
            self.drop_promise(&claim);
            self.forget_made(key, &claim);
        }
    }

    /// Forgets the claims that were made for what the pod asks for as extended resources.
    pub(crate) fn remove_made(&mut self, pod: &str) {
        let keys = self.made_for.get(pod).cloned().unwrap_or_default();
        keys.iter().for_each(|key| self.remove_claim(key));
    }

    fn forget_made(&mut self, key: &ObjectKey, claim: &ResourceClaim) {
        if let Some(pod) = extended::made_for(claim)
            && let Some(keys) = self.made_for.get_mut(pod)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.made_for.remove(pod);
            }
        }
    }

    /// What is provided otherwise by it; `None` where the class is the same.
    pub(crate) fn put_class(&mut self, class: &DeviceClass) -> Option<Provision> {
        let name = class.metadata.name.clone().unwrap_or_default();
        let age = |class: &DeviceClass| class.metadata.creation_timestamp.clone();
        let is_same = |known: &Arc<DeviceClass>| known.spec == class.spec && age(known) == age(class);
        if self.classes.get(&name).is_some_and(is_same) {
            return None;
        }
        self.classes.insert(name, Arc::new(class.clone()));
        self.changed_for_all();
        Some(self.update_providers())
    }

    /// What is provided otherwise without it.
    pub(crate) fn remove_class(&mut self, name: &str) -> Provision {
        self.classes.remove(name);
        self.changed_for_all();
        self.update_providers()
    }

    fn update_providers(&mut self) -> Provision {
        let now = extended::providers(self.classes.values());
        let gained = now.iter().filter(|(resource, class)| self.providers.get(*resource) != Some(*class));
        let gained: BTreeSet<String> = gained.map(|(resource, _)| resource.clone()).collect();
        let changed = now != *self.providers;
        if changed {
            self.providers = Arc::new(now);
        }
        Provision { changed, gained }
    }

    /// Takes over a slice.
    pub(crate) fn put_slice(&mut self, slice: &ResourceSlice) -> Concerned {
        let name = slice.metadata.name.as_deref().unwrap_or_default();
        if self.slices.get(name).is_some_and(|known| known.is_of(slice)) {
            return Concerned::Nobody;
        }
        let slice = Arc::new(Slice::of(slice));
        let before = self.detach(&slice.name);
        self.attach(&slice);
        self.version += 1;
        before.and(self.concerned(&slice))
    }

    pub(crate) fn remove_slice(&mut self, name: &str) -> Concerned {
        self.version += 1;
        self.detach(name)
    }

    /// Whatever was found out for the node is to be found out again.
    pub(crate) fn node_changed(&mut self, slot: Slot) {
        self.version += 1;
        if self.of_node.len() <= slot {
            self.of_node.resize(slot + 1, 0);
        }
        self.of_node[slot] = self.version;
    }

    pub(crate) fn changed_for_all(&mut self) {
        self.version += 1;
        self.for_all = self.version;
    }

    /// Promises what a pod was given.
    pub(crate) fn promise(&mut self, grants: &Grants) {
        for grant in &grants.0 {
            if let Some(allocation) = &grant.allocation {
                self.version += 1;
                self.hold(Some(allocation), 1);
                self.promised.insert(grant.promise().to_owned(), allocation.clone());
            }
        }
    }

    /// The pod does not go there: what was promised to it, and not written, is free again. True where that is something.
    pub(crate) fn take_back(&mut self, grants: &Grants) -> bool {
        let mut freed = false;
        for grant in &grants.0 {
            let Some(allocation) = &grant.allocation else { continue };
            let is_it = |promised: &Arc<AllocationResult>| Arc::ptr_eq(promised, allocation);
            if self.promised.get(grant.promise()).is_some_and(is_it) {
                self.promised.remove(grant.promise());
                self.version += 1;
                self.hold(Some(allocation), -1);
                freed = true;
            }
        }
        freed
    }

    /// What is given of a claim, or promised.
    fn allocation<'a>(&'a self, claim: &'a ResourceClaim) -> Option<&'a AllocationResult> {
        let promised = || self.promised.get(claim.metadata.uid.as_deref().unwrap_or_default());
        allocation_of(claim).or_else(|| promised().map(|allocation| &**allocation))
    }

    fn drop_promise(&mut self, claim: &ResourceClaim) -> bool {
        let kept: Vec<_> =
            extended::promises(claim).filter_map(|promise| self.promised.remove(&promise)).collect();
        let mut freed = false;
        for allocation in &kept {
            freed |= self.hold(Some(allocation), -1);
        }
        freed
    }

    /// Counts devices as given out, or not any more. True where there were some.
    fn hold(&mut self, allocation: Option<&AllocationResult>, sign: i64) -> bool {
        let holdings: Vec<Holding> = allocation.map(objects::holdings).unwrap_or_default();
        for holding in &holdings {
            let index = self.pool(holding.pool.clone());
            self.pools[index].hold(holding, sign);
            self.pools[index].changed = self.version;
            self.forget_if_empty(index);
        }
        sign < 0 && !holdings.is_empty()
    }

    fn pool(&mut self, key: PoolKey) -> usize {
        if let Some(index) = self.by_key.get(&key) {
            return *index;
        }
        let pool = Pool::new(key.clone());
        let index = match self.free.pop() {
            Some(index) => {
                self.pools[index] = pool;
                index
            }
            None => {
                self.pools.push(pool);
                self.pools.len() - 1
            }
        };
        self.by_key.insert(key, index);
        index
    }

    fn forget_if_empty(&mut self, index: usize) {
        if self.pools[index].is_empty() {
            self.by_key.remove(&self.pools[index].key);
            self.free.push(index);
        }
    }

    fn attach(&mut self, slice: &Arc<Slice>) {
        let index = self.pool(slice.pool.clone());
        self.pools[index].attach(slice);
        self.slices.insert(slice.name.clone(), slice.clone());
        match slice.only_node() {
            Some(node) => _ = self.local.entry(node.to_owned()).or_default().insert(index),
            None => _ = self.shared.insert(index),
        }
    }

    fn detach(&mut self, name: &str) -> Concerned {
        let Some(slice) = self.slices.remove(name) else { return Concerned::Nobody };
        let concerned = self.concerned(&slice);
        let index = self.pool(slice.pool.clone());
        let is_last = self.pools[index].detach(&slice);
        match slice.only_node() {
            _ if !is_last => (),
            Some(node) => {
                if let Some(pools) = self.local.get_mut(node) {
                    pools.remove(&index);
                    if pools.is_empty() {
                        self.local.remove(node);
                    }
                }
            }
            None => _ = self.shared.remove(&index),
        }
        self.forget_if_empty(index);
        concerned
    }

    /// Whom a change of the slice, which is there, concerns: the nodes for which slices of its pool are.
    fn concerned(&self, slice: &Slice) -> Concerned {
        let pool = self.by_key.get(&slice.pool).map(|index| &self.pools[*index]);
        pool.and_then(Pool::only_node).map_or(Concerned::All, |node| Concerned::Node(node.to_owned()))
    }
}

impl Concerned {
    /// Whom two changes concern.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nobody, one) | (one, Self::Nobody) => one,
            (Self::Node(one), Self::Node(other)) if one == other => Self::Node(one),
            _ => Self::All,
        }
    }
}

fn allocation_of(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}
