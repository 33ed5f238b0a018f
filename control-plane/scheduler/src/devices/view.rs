//! A pod's claims as seen from every node, for one decision.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hawser_api::resource::ObjectKey;
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::{
    Devices, Grant, Grants, MOST_CONSUMERS,
    allocate::{Budget, Search, Solution, Trial},
    allocation_of,
    evaluations::{Evaluations, Matches, Outcome, Shape},
    extended::{self, Unmade},
    objects::{self, ClaimUse, binding_state},
    pools::Seen,
    request::{Wanted, WantedClaim},
    result,
};
use crate::{
    affinity::NodeAffinity,
    intern::Same,
    pod::PodInfo,
    profile::Plugin,
    refusal::Refusal,
    snapshot::{NodeEntry, Slot},
    volumes::Trouble,
};

/// What one pod's decision may cost, a fraction of a second: selectors, and steps of searches (five searches that take as many
/// as one may), a step also for each device that is counted for scores. What was found out by then is kept, so that the next attempt goes on from there.
const BUDGET: Budget = Budget { steps: 1_000_000, cost: 10_000_000, is_spent: false };
/// Alternatives of a request (upstream's `FirstAvailableDeviceRequestMaxSize`).
const MOST_ALTERNATIVES: i64 = 8;

pub(crate) struct DeviceView<'a> {
    pod: &'a PodInfo,
    all: &'a Devices,
    allocated: Vec<Allocated>,
    open: Arc<Open>,
    /// Extended resources that a class provides, where a node does not, in the order of their names.
    provided: Vec<&'a String>,
    /// What is open on nodes, by which of these they lack.
    with_provided: RefCell<BTreeMap<Vec<bool>, Opened>>,
    /// A claim for extended resources that is left from an attempt before.
    stale: Option<Arc<ResourceClaim>>,
    budget: Cell<Budget>,
}

/// What is open, or why none of it can be allocated.
type Opened = Result<Arc<Open>, String>;

/// Claims that are to be allocated, and what they ask for.
struct Open {
    claims: Vec<Arc<ResourceClaim>>,
    shape: Shape,
    wanted: Arc<Wanted>,
    /// The last of the claims, where it is to be made.
    unmade: Option<Arc<Unmade>>,
}

/// A claim that has its devices.
struct Allocated {
    claim: Arc<ResourceClaim>,
    /// The nodes that reach them; unset is all.
    nodes: Option<NodeAffinity>,
    /// A device could not be attached: the claim is of no use anywhere.
    failed: bool,
}

impl<'a> DeviceView<'a> {
    /// Fails where no node can provide, whatever it has.
    pub(crate) fn new(pod: &'a PodInfo, all: &'a Devices) -> Result<Self, Trouble> {
        let trouble = |message: String| Trouble { plugin: Plugin::DynamicResources, message };
        let (mut allocated, mut open) = (Vec::new(), Vec::new());
        for used in &pod.claims.uses {
            let claim = usable(pod, all, used).map_err(trouble)?;
            let Some(allocation) = all.allocation(claim) else {
                open.push(claim.clone());
                continue;
            };
            let is_new = !objects::is_reserved_for(claim, &pod.uid);
            if is_new && objects::consumers(claim).count() >= MOST_CONSUMERS {
                return Err(trouble("resourceclaim in use".to_owned()));
            }
            let nodes = allocation.node_selector.as_ref().map(NodeAffinity::selecting);
            let failed = allocation_of(claim).is_some() && binding_state(claim).is_err();
            allocated.push(Allocated { claim: claim.clone(), nodes, failed });
        }
        let provided: BTreeSet<&String> = pod
            .claims
            .extended_resources()
            .filter(|resource| all.providers.contains_key(*resource))
            .collect();
        let made = all.made_for.get(&*pod.uid).filter(|_| !provided.is_empty());
        let stale = made.and_then(|keys| all.claim(keys.first()?).cloned());
        let open = Arc::new(all.open(open, None).map_err(trouble)?);
        let provided = provided.into_iter().collect();
        let (with_provided, budget) = (RefCell::default(), Cell::new(BUDGET));
        Ok(Self { pod, all, allocated, open, provided, with_provided, stale, budget })
    }

    /// What the decision may still cost.
    pub(crate) fn left(&self) -> Budget {
        self.budget.get()
    }

    /// Goes on with what another look at the pod left.
    pub(crate) fn go_on_with(&self, left: Budget) {
        self.budget.set(left);
    }

    /// Why the node cannot provide what the pod claims.
    pub(crate) fn refusal(&self, slot: Slot, node: &NodeEntry) -> Option<Refusal> {
        if self.stale.is_some() {
            return Some(Refusal::Devices("cannot schedule extended resource claim".into()));
        }
        if let Outcome::Refused(refusal) = self.outcome(slot, node) {
            return Some(refusal);
        }
        let is_elsewhere = self.allocated.iter().any(|claim| !claim.is_available(node));
        is_elsewhere.then_some(Refusal::ClaimElsewhere)
    }

    /// What the node's devices are worth to the pod, where its claims have alternatives: more is better.
    pub(crate) fn worth(&self, slot: Slot, node: &NodeEntry) -> i64 {
        match self.outcome(slot, node) {
            Outcome::Fits(worth) => worth,
            Outcome::Refused(_) => 0,
        }
    }

    /// Whether nodes may be worth more or less.
    pub(crate) fn has_alternatives(&self) -> bool {
        let mut claims = self.open.wanted.claims.iter();
        claims.any(|claim| claim.requests.iter().any(|request| request.is_list))
    }

    /// Whether nodes are compared by devices: by extended resources that a class provides.
    pub(crate) fn are_compared(&self) -> bool {
        let profile = &self.pod.needs.profile;
        let compares = |resource: &String| {
            let fit = profile.weights.resources_fit != 0
                && profile.fit.resources.iter().any(|(name, _)| name == resource);
            fit || (profile.weights.balanced_allocation != 0 && profile.balanced.contains(resource))
        };
        self.provided.iter().any(|resource| compares(resource))
    }

    /// What the node has of an extended resource, and what of it is taken, where a class provides it there. Costs a look at
    /// all devices that reach the node.
    pub(crate) fn provided(&self, resource: &str, slot: Slot, node: &NodeEntry) -> Option<(i64, i64)> {
        let class = self.all.providers.get(resource).filter(|_| node.has_from_class(resource))?;
        let open = self.open_on(node).ok().filter(|open| open.unmade.is_some())?;
        let mut requests = open.wanted.claims.last()?.requests.iter().flat_map(|one| &one.alternatives);
        let alternative = requests.find(|one| one.class.metadata.name.as_ref() == Some(class))?;
        let mut kept = self.all.kept.lock();
        let seen = self.all.seen(&mut kept, slot, node);
        let mut budget = self.budget.get();
        let search = self.searching(&open, node, &seen, &mut kept.matches, &mut budget);
        let found = search.count(alternative);
        self.budget.set(budget);
        Some(found)
    }

    /// A claim that was made for the pod and of which nothing came: it goes before the pod is tried again.
    pub(crate) fn stale(&self) -> Option<&Arc<ResourceClaim>> {
        self.stale.as_ref()
    }

    /// What has to be written for the pod to run on the node; `None` where the node cannot provide.
    pub(crate) fn grants(&self, slot: Slot, node: &NodeEntry) -> Option<Grants> {
        let mut grants = Vec::new();
        let grant = |claim: &ResourceClaim, allocation| Grant {
            claim: ObjectKey::of(claim),
            uid: claim.metadata.uid.clone().unwrap_or_default(),
            allocation,
            unmade: None,
        };
        for Allocated { claim, .. } in &self.allocated {
            // Where a scheduler before this one did not live to see the devices attached, that is still to come.
            let is_attached = matches!(binding_state(claim), Ok(Some(())));
            if !objects::is_reserved_for(claim, &self.pod.uid) || !is_attached {
                grants.push(grant(claim, None));
            }
        }
        let open = self.open_on(node).ok().filter(|_| self.stale.is_none())?;
        if open.claims.is_empty() {
            return Some(Grants(grants));
        }
        let mut kept = self.all.kept.lock();
        let seen = self.all.seen(&mut kept, slot, node);
        let solution = self.search(&open, node, &seen, &mut kept.matches).ok()?;
        for (index, (claim, wanted)) in open.claims.iter().zip(&open.wanted.claims).enumerate() {
            let allocation = result::allocation(index, claim, wanted, &solution, &seen, &node.name);
            grants.push(grant(claim, Some(Arc::new(allocation))));
        }
        if let (Some(unmade), Some(last)) = (&open.unmade, grants.last_mut()) {
            (last.claim, last.unmade) = (extended::key(self.pod), Some(unmade.clone()));
        }
        Some(Grants(grants))
    }

    /// What is to be allocated on the node: devices for what it lacks itself, too.
    fn open_on(&self, node: &NodeEntry) -> Opened {
        let lacks: Vec<bool> = self.provided.iter().map(|resource| node.has_from_class(resource)).collect();
        if !lacks.contains(&true) {
            return Ok(self.open.clone());
        }
        let mut known = self.with_provided.borrow_mut();
        if let Some(open) = known.get(&lacks) {
            return open.clone();
        }
        let lacked = self.provided.iter().zip(&lacks).filter(|(_, lacks)| **lacks);
        let lacked: Vec<&String> = lacked.map(|(resource, _)| *resource).collect();
        let unmade = extended::unmade(self.pod, &lacked, &self.all.providers);
        let open = self.all.open(self.open.claims.clone(), Some(unmade)).map(Arc::new);
        known.insert(lacks, open.clone());
        open
    }

    /// A claim that keeps the pod from one of the nodes, and that nobody else uses: it may be allocated anew.
    pub(crate) fn idle<'n>(
        &self,
        mut nodes: impl Iterator<Item = &'n NodeEntry> + Clone,
    ) -> Option<&Arc<ResourceClaim>> {
        let is_own = |claim: &ResourceClaim| objects::consumers(claim).all(|uid| *uid == *self.pod.uid);
        let idle = self.allocated.iter().find(|claim| {
            allocation_of(&claim.claim).is_some()
                && is_own(&claim.claim)
                && nodes.clone().any(|node| node.exists && !claim.is_available(node))
        });
        // No node at all is no reason.
        nodes.next()?;
        idle.map(|idle| &idle.claim)
    }

    fn outcome(&self, slot: Slot, node: &NodeEntry) -> Outcome {
        let open = match self.open_on(node) {
            Ok(open) if open.claims.is_empty() => return Outcome::Fits(0),
            Ok(open) => open,
            Err(why) => return Outcome::Refused(Refusal::Devices(why.into())),
        };
        let mut kept = self.all.kept.lock();
        let kept = &mut *kept;
        let seen = self.all.seen(kept, slot, node);
        let changed = self.all.last_change(slot, &seen);
        if let Some(Some((found_at, outcome))) = kept.of(&open.shape).outcomes.get(slot)
            && *found_at >= changed
        {
            return outcome.clone();
        }
        let outcome = match self.search(&open, node, &seen, &mut kept.matches) {
            Ok(solution) => Outcome::Fits(worth_of(&open.wanted, &solution)),
            Err(refusal) => Outcome::Refused(refusal),
        };
        // What other nodes left no time for is found out the next time.
        let is_cut = self.budget.get().is_spent && outcome == Outcome::Refused(Refusal::DevicesTakeLong);
        if !is_cut {
            kept.of(&open.shape).put(slot, self.all.version, outcome.clone());
        }
        outcome
    }

    fn search(
        &self,
        open: &Open,
        node: &NodeEntry,
        seen: &[Seen],
        matches: &mut Matches,
    ) -> Result<Solution, Refusal> {
        let mut budget = self.budget.get();
        let found = self.searching(open, node, seen, matches, &mut budget).run();
        self.budget.set(budget);
        found
    }

    fn searching<'s>(
        &'s self,
        open: &'s Open,
        node: &'s NodeEntry,
        seen: &'s [Seen],
        matches: &'s mut Matches,
        budget: &'s mut Budget,
    ) -> Search<'s> {
        let (pools, trial) = (&self.all.pools, Trial::default());
        let (node, labels, wanted) = (&node.name, &node.labels, &open.wanted);
        Search { node, labels, wanted, seen, pools, matches, budget, trial }
    }
}

fn worth_of(wanted: &Wanted, solution: &Solution) -> i64 {
    let lists =
        wanted.claims.iter().zip(&solution.chosen).flat_map(|(claim, chosen)| {
            claim.requests.iter().zip(chosen).filter(|(request, _)| request.is_list)
        });
    lists.map(|(_, chosen)| MOST_ALTERNATIVES - i64::try_from(*chosen).unwrap_or(MOST_ALTERNATIVES)).sum()
}

impl Allocated {
    fn is_available(&self, node: &NodeEntry) -> bool {
        !self.failed && self.nodes.as_ref().is_none_or(|nodes| nodes.allows(&node.name, &node.labels))
    }
}

/// The claim, or why the pod has to wait, in upstream's words.
fn usable<'a>(pod: &PodInfo, all: &'a Devices, used: &ClaimUse) -> Result<&'a Arc<ResourceClaim>, String> {
    let (key, generated) = match used {
        ClaimUse::Named(key) => (key, false),
        ClaimUse::Generated(key) => (key, true),
        ClaimUse::Missing => return Err(format!("pod \"{}\": ResourceClaim not created yet", pod.key)),
    };
    let claim = all.claim(key).ok_or_else(|| format!("could not find ResourceClaim \"{key}\""))?;
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("resourceclaim {:?} is being deleted", key.name));
    }
    let mut owners = claim.metadata.owner_references.iter().flatten();
    let is_own = owners.any(|owner| owner.controller == Some(true) && *owner.uid == *pod.uid);
    if generated && !is_own {
        return Err(format!("ResourceClaim {key} was not created for Pod {} (Pod is not owner)", pod.key));
    }
    Ok(claim)
}

impl Devices {
    fn open(&self, mut claims: Vec<Arc<ResourceClaim>>, unmade: Option<Unmade>) -> Result<Open, String> {
        let unmade = unmade.map(Arc::new);
        claims.extend(unmade.iter().map(|unmade| Arc::new(unmade.claim.clone())));
        let (shape, wanted) = self.wanted(&claims)?;
        Ok(Open { claims, shape, wanted, unmade })
    }

    /// What the claims ask for, read once for all that ask for the same.
    fn wanted(&self, claims: &[Arc<ResourceClaim>]) -> Result<(Shape, Arc<Wanted>), String> {
        let mut kept = self.kept.lock();
        let kept = &mut *kept;
        let mut shape = Vec::with_capacity(claims.len());
        for claim in claims {
            let text = serde_json::to_string(&claim.spec).map_err(|error| error.to_string())?;
            shape.push(Same(kept.texts.intern(text)));
        }
        let shape = Shape::from(shape);
        if claims.is_empty() {
            return Ok((shape, Arc::default()));
        }
        if let Some((read_at, wanted)) = &kept.of(&shape).wanted
            && *read_at >= self.for_all
        {
            return Ok((shape, wanted.clone()));
        }
        let mut wanted = Wanted::default();
        for claim in claims {
            let name = ObjectKey::of(&**claim).to_string();
            wanted.claims.push(WantedClaim::of(&name, &claim.spec, &self.classes, &kept.programs)?);
        }
        let wanted = Arc::new(wanted);
        kept.of(&shape).wanted = Some((self.version, wanted.clone()));
        Ok((shape, wanted))
    }

    /// The pools that the node sees, in the order in which devices are given out: those whose devices need to be attached
    /// come last.
    fn seen(&self, kept: &mut Evaluations, slot: Slot, node: &NodeEntry) -> Arc<Vec<Seen>> {
        if kept.seen.len() <= slot {
            kept.seen.resize(slot + 1, None);
        }
        if let Some((seen_at, seen)) = &kept.seen[slot]
            && *seen_at >= self.for_all.max(self.of_node.get(slot).copied().unwrap_or_default())
        {
            return seen.clone();
        }
        let local = self.local.get(&node.name).into_iter().flatten();
        let shared = self.shared.iter().filter(|index| {
            // A pool with slices of both kinds is seen once.
            !self.local.get(&node.name).is_some_and(|local| local.contains(index))
        });
        let pools = local.chain(shared);
        let mut seen: Vec<Seen> = pools
            .filter_map(|index| self.pools[*index].seen_from(*index, &node.name, &node.labels))
            .collect();
        seen.sort_by(|one, other| {
            let rank = |seen: &Seen| seen.has_binding_conditions();
            (rank(one), &one.key).cmp(&(rank(other), &other.key))
        });
        let seen = Arc::new(seen);
        kept.seen[slot] = Some((self.version, seen.clone()));
        seen
    }

    /// The last change that what the node can provide depends on.
    fn last_change(&self, slot: Slot, seen: &[Seen]) -> u64 {
        let own = self.of_node.get(slot).copied().unwrap_or_default();
        seen.iter().map(|seen| self.pools[seen.index].changed).fold(self.for_all.max(own), u64::max)
    }
}
