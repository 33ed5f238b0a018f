//! Looks for devices on one node: all that the claims of a pod ask for, or none.
//!
//! Requests are satisfied one after the other, each by the first devices that will do; where a later one finds none, an
//! earlier one tries others, until all combinations have been tried. The first solution is taken. The order of
//! devices is that of pools, slices and their lists, so drivers decide by names what goes first. Steps are bounded:
//! whoever needs more is told that it took too long, as upstream does after ten seconds.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use hawser_api::quantity::Quantity;
use hawser_cel::Failure;
use k8s_openapi::api::resource::v1::{DeviceTaint, DeviceToleration};

use super::{
    constraints::Constraint,
    evaluations::Matches,
    objects::{Capacity, Entry, Slice},
    pools::{Pool, Seen, State, Taken},
    request::{Alternative, Wanted},
};
use crate::{pod::Labels, refusal::Refusal};

/// Devices of one claim (upstream's `AllocationResultsMaxSize`).
const MOST_DEVICES: usize = 32;
/// Claims of a pod, and devices of all of them, whichever alternatives are tried: the search goes down by recursion, one call
/// for each device and two for each claim.
const MOST_AT_ONCE: usize = 512;
/// Steps of the search on one node; a search without dead ends takes one for each device that it looks at.
const MOST_STEPS: u64 = 200_000;

/// A device that was picked.
#[derive(Clone, Debug)]
pub(super) struct Picked {
    pub(super) request: usize,
    pub(super) alternative: usize,
    pub(super) place: Place,
    /// What is consumed of its capacity, where others may have a part too.
    pub(super) share: Option<BTreeMap<String, Quantity>>,
}

/// A device, by its place among what the node sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) pool: usize,
    pub(super) slice: usize,
    pub(super) device: usize,
}

/// What a solution looks like: for each claim, what was picked, and which alternative of each request.
#[derive(Debug)]
pub(super) struct Solution {
    pub(super) picked: Vec<Vec<Picked>>,
    pub(super) chosen: Vec<Vec<usize>>,
}

pub(super) struct Search<'a> {
    pub(super) node: &'a str,
    pub(super) labels: &'a Labels,
    pub(super) wanted: &'a Wanted,
    pub(super) seen: &'a [Seen],
    pub(super) pools: &'a [Pool],
    pub(super) matches: &'a mut Matches,
    pub(super) budget: &'a mut Budget,
    pub(super) trial: Trial,
}

/// What one decision may still cost, on all nodes together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Of searches.
    pub(super) steps: u64,
    /// Of selectors, in units of [`hawser_cel`].
    pub(super) cost: u64,
    /// A search ended because nothing was left, and might have come to something else.
    pub(super) is_spent: bool,
}

/// What was picked so far.
#[derive(Default)]
pub(super) struct Trial {
    steps: u64,
    /// Devices that are picked.
    depth: usize,
    picked: Vec<Vec<Picked>>,
    chosen: Vec<Vec<usize>>,
    constraints: Vec<Vec<Constraint>>,
    /// Devices that a claim has for itself, by claim.
    whole: HashMap<Place, HashSet<usize>>,
    shares: HashMap<Place, (usize, BTreeMap<String, Quantity>)>,
    /// Counters that are left, by pool, set and counter.
    left: HashMap<(usize, String, String), Quantity>,
    /// Devices of requests for all.
    all: HashMap<(usize, usize, usize), Arc<Vec<Place>>>,
}

/// Why a way does not lead to a solution.
enum No {
    Here,
    /// A claim would have more devices than it may.
    TooMany,
    /// Nothing does.
    Stop(Refusal),
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        Self::Stop(refusal)
    }
}

impl<'a> Search<'a> {
    pub(super) fn run(mut self) -> Result<Solution, Refusal> {
        self.prepare()?;
        match self.claim(0) {
            Ok(()) => Ok(Solution { picked: self.trial.picked, chosen: self.trial.chosen }),
            Err(No::Stop(refusal)) => Err(refusal),
            Err(No::Here | No::TooMany) => {
                let invalid = self.seen.iter().any(|pool| pool.state == State::Invalid);
                Err(if invalid {
                    Refusal::Devices("invalid resource pools were encountered".into())
                } else {
                    Refusal::NoDevices
                })
            }
        }
    }

    /// Finds out what "all devices" are, and refuses what never fits.
    fn prepare(&mut self) -> Result<(), Refusal> {
        let mut in_all = 0;
        let wanted = self.wanted;
        if wanted.claims.len() > MOST_AT_ONCE {
            return Err(Refusal::DevicesTakeLong);
        }
        for (claim, of_claim) in wanted.claims.iter().enumerate() {
            let mut least = 0;
            for (request, of_request) in of_claim.requests.iter().enumerate() {
                let mut fewest = usize::MAX;
                for (index, alternative) in of_request.alternatives.iter().enumerate() {
                    let count = match alternative.count {
                        Some(count) => count,
                        None => {
                            let all = Arc::new(self.all_devices(alternative)?);
                            self.trial.all.insert((claim, request, index), all.clone());
                            all.len()
                        }
                    };
                    fewest = fewest.min(count);
                }
                least = fewest.saturating_add(least);
            }
            if least > MOST_DEVICES {
                return Err(Refusal::Devices(
                    format!("number of requested devices {least} exceeds the claim limit of {MOST_DEVICES}")
                        .into(),
                ));
            }
            in_all += least;
            let mut constraints = Vec::new();
            for (index, constraint) in of_claim.constraints.iter().enumerate() {
                let constraint = Constraint::of(constraint).ok_or_else(|| {
                    let text =
                        format!("constraint #{index}: empty constraint (unsupported constraint type?)");
                    Refusal::Devices(text.into())
                })?;
                constraints.push(constraint);
            }
            self.trial.constraints.push(constraints);
            self.trial.picked.push(Vec::new());
            self.trial.chosen.push(vec![0; of_claim.requests.len()]);
        }
        if in_all > MOST_AT_ONCE { Err(Refusal::DevicesTakeLong) } else { Ok(()) }
    }

    /// All devices that the alternative is about. Pools that are not whole would make it fewer.
    fn all_devices(&mut self, alternative: &Alternative) -> Result<Vec<Place>, Refusal> {
        let mut all = Vec::new();
        for (pool, seen) in self.seen.iter().enumerate() {
            let name = &alternative.full_name;
            let trouble = match seen.state {
                State::Incomplete => Some("being updated"),
                State::Invalid => Some("invalid"),
                State::Usable => None,
            };
            if let Some(trouble) = trouble {
                return Err(Refusal::Devices(
                    format!(
                        "request {name}: asks for all devices, but resource pool {} is currently {trouble}",
                        seen.key
                    )
                    .into(),
                ));
            }
            for (slice, of_slice) in seen.slices.iter().enumerate() {
                for (device, entry) in of_slice.devices.iter().enumerate() {
                    let place = Place { pool, slice, device };
                    self.step()?;
                    if self.chooses(alternative, place)? && self.share(alternative, place, entry).is_some() {
                        all.push(place);
                    }
                }
            }
        }
        Ok(all)
    }

    /// How many devices of whole pools the alternative is about on the node, and how many of them are given out. None, where a
    /// selector cannot tell, or more devices are to be looked at than the decision has steps left.
    pub(super) fn count(mut self, alternative: &Alternative) -> (i64, i64) {
        let usable = || self.seen.iter().filter(|seen| seen.state == State::Usable);
        let devices: usize =
            usable().flat_map(|seen| seen.slices.iter()).map(|slice| slice.devices.len()).sum();
        let Some(left) = self.budget.steps.checked_sub(devices as u64) else { return (0, 0) };
        self.budget.steps = left;
        let (mut all, mut taken) = (0, 0);
        for (pool, seen) in self.seen.iter().enumerate().filter(|(_, seen)| seen.state == State::Usable) {
            for (slice, of_slice) in seen.slices.iter().enumerate() {
                for (device, entry) in of_slice.devices.iter().enumerate() {
                    let Ok(chosen) = self.chooses(alternative, Place { pool, slice, device }) else {
                        return (0, 0);
                    };
                    let is_taken = self.pools[seen.index].taken(&entry.object.name).is_some();
                    all += i64::from(chosen);
                    taken += i64::from(chosen && is_taken);
                }
            }
        }
        (all, taken)
    }

    /// Satisfies all claims from one on.
    fn claim(&mut self, claim: usize) -> Result<(), No> {
        if claim == self.wanted.claims.len() {
            return Ok(());
        }
        match self.request(claim, 0) {
            // Another choice for an earlier claim does not make this one smaller.
            Err(No::TooMany) => Err(No::Here),
            outcome => outcome,
        }
    }

    fn request(&mut self, claim: usize, request: usize) -> Result<(), No> {
        let wanted = self.wanted;
        let Some(of_request) = wanted.claims[claim].requests.get(request) else {
            return self.claim(claim + 1);
        };
        let mut worst = No::TooMany;
        for alternative in 0..of_request.alternatives.len() {
            match self.devices(claim, request, alternative, 0, Place::default()) {
                Ok(()) => {
                    self.trial.chosen[claim][request] = alternative;
                    return Ok(());
                }
                Err(No::Stop(refusal)) => return Err(No::Stop(refusal)),
                // Another alternative may be for fewer.
                Err(No::TooMany) => (),
                Err(No::Here) => worst = No::Here,
            }
        }
        Err(worst)
    }

    /// Picks the devices of an alternative that are still lacking, none before `from`, and then all others.
    fn devices(
        &mut self,
        claim: usize,
        request: usize,
        alternative: usize,
        picked: usize,
        from: Place,
    ) -> Result<(), No> {
        let wanted = self.wanted;
        let wish = &wanted.claims[claim].requests[request].alternatives[alternative];
        let all = self.trial.all.get(&(claim, request, alternative)).cloned();
        let count = match (&all, wish.count) {
            (Some(all), _) => all.len(),
            (None, count) => count.unwrap_or_default(),
        };
        if count == 0 {
            // None is not all.
            return Err(No::Here);
        }
        if picked >= count {
            return self.request(claim, request + 1);
        }
        if self.trial.picked[claim].len().saturating_add(count - picked) > MOST_DEVICES {
            return Err(No::TooMany);
        }
        if self.trial.depth.saturating_add(count - picked) > MOST_AT_ONCE {
            return Err(No::Here);
        }
        if let Some(all) = all {
            let place = all[picked];
            if !self.pick(claim, request, alternative, place)? {
                return Err(No::Here);
            }
            return self.devices(claim, request, alternative, picked + 1, from).inspect_err(|_| {
                self.put_back(claim);
            });
        }
        let seen = self.seen;
        for (pool, of_pool) in seen.iter().enumerate().skip(from.pool) {
            if of_pool.state != State::Usable {
                continue;
            }
            let first_slice = if pool == from.pool { from.slice } else { 0 };
            for (slice, of_slice) in of_pool.slices.iter().enumerate().skip(first_slice) {
                let is_first = pool == from.pool && slice == from.slice;
                let first_device = if is_first { from.device } else { 0 };
                for device in first_device..of_slice.devices.len() {
                    let place = Place { pool, slice, device };
                    self.step()?;
                    if !self.chooses_if_free(claim, wish, place)?
                        || !self.pick(claim, request, alternative, place)?
                    {
                        continue;
                    }
                    let next = Place { device: device + 1, ..place };
                    match self.devices(claim, request, alternative, picked + 1, next) {
                        Ok(()) => return Ok(()),
                        Err(No::Here) => self.put_back(claim),
                        Err(no) => {
                            self.put_back(claim);
                            return Err(no);
                        }
                    }
                }
            }
        }
        Err(No::Here)
    }

    fn step(&mut self) -> Result<(), Refusal> {
        if self.trial.steps == MOST_STEPS {
            return Err(Refusal::DevicesTakeLong);
        }
        self.trial.steps += 1;
        match self.budget.steps.checked_sub(1) {
            Some(left) => self.budget.steps = left,
            None => return Err(self.spent()),
        }
        Ok(())
    }

    /// What was found out is kept: the next attempt goes on from here.
    fn spent(&mut self) -> Refusal {
        self.budget.is_spent = true;
        Refusal::DevicesTakeLong
    }

    fn entry(&self, place: Place) -> (&'a Slice, &'a Entry) {
        let slice = &self.seen[place.pool].slices[place.slice];
        (slice, &slice.devices[place.device])
    }

    /// Whether it is free is looked at first: it costs less than selectors.
    fn chooses_if_free(&mut self, claim: usize, wish: &Alternative, place: Place) -> Result<bool, Refusal> {
        Ok(self.is_free(claim, wish, place) && self.chooses(wish, place)?)
    }

    fn is_free(&self, claim: usize, wish: &Alternative, place: Place) -> bool {
        let picked = self.trial.whole.get(&place);
        if wish.admin {
            // Others may have it; the same claim has it once.
            return !picked.is_some_and(|claims| claims.contains(&claim));
        }
        let (_, entry) = self.entry(place);
        let pool = &self.pools[self.seen[place.pool].index];
        // It may have been one to share when others got their parts.
        let is_left = |taken: &Taken| taken.whole == 0 && (taken.shares == 0 || entry.is_shareable());
        picked.is_none_or(HashSet::is_empty) && pool.taken(&entry.object.name).is_none_or(is_left)
    }

    /// Whether the selectors choose the device, and it is for the node.
    fn chooses(&mut self, wish: &Alternative, place: Place) -> Result<bool, Refusal> {
        let (slice, entry) = self.entry(place);
        for selector in &wish.selectors {
            let whose = &selector.whose;
            let program = match &selector.program {
                Ok(program) => program,
                Err(error) => {
                    return Err(Refusal::Devices(format!("{whose}: CEL compile error: {error}").into()));
                }
            };
            let chosen = match self.matches.get(slice.serial, program.id, place.device) {
                Some(known) => known,
                None => match program.matches(&slice.pool.driver, &entry.object, &mut self.budget.cost) {
                    Ok(chosen) => {
                        let devices = slice.devices.len();
                        self.matches.put(slice.serial, program.id, place.device, devices, chosen);
                        chosen
                    }
                    Err(Failure::Budget) => return Err(self.spent()),
                    Err(failure) => {
                        return Err(Refusal::Devices(
                            format!("{whose}: CEL runtime error: {failure}").into(),
                        ));
                    }
                },
            };
            if !chosen {
                return Ok(false);
            }
        }
        Ok(slice.reach_of(entry).includes(self.node, self.labels))
    }

    /// Picks the device for the claim, if it can be had beside what was picked already.
    fn pick(&mut self, claim: usize, request: usize, alternative: usize, place: Place) -> Result<bool, No> {
        self.step()?;
        let wanted = self.wanted;
        let of_request = &wanted.claims[claim].requests[request];
        let wish = &of_request.alternatives[alternative];
        let (slice, entry) = self.entry(place);
        if !self.is_free(claim, wish, place) || is_tainted(entry, &wish.tolerations) {
            return Ok(false);
        }
        let Some(share) = self.share(wish, place, entry) else { return Ok(false) };
        let share = entry.is_shareable().then_some(share);
        let counts = self.consumes_counters(place, entry);
        if counts && !self.consume(place, entry) {
            return Ok(false);
        }
        let driver = &slice.pool.driver;
        let constraints = &mut self.trial.constraints[claim];
        let refused = constraints
            .iter_mut()
            .position(|constraint| !constraint.pick(&of_request.name, &wish.full_name, driver, entry));
        if let Some(refused) = refused {
            for constraint in &mut constraints[..refused] {
                constraint.put_back(&of_request.name, &wish.full_name);
            }
            if counts {
                self.give_back(place, entry);
            }
            return Ok(false);
        }
        match &share {
            None => _ = self.trial.whole.entry(place).or_default().insert(claim),
            Some(share) => {
                let (count, consumed) = self.trial.shares.entry(place).or_default();
                *count += 1;
                for (name, amount) in share {
                    let sum = consumed.entry(name.clone()).or_default();
                    *sum = *sum + *amount;
                }
            }
        }
        self.trial.picked[claim].push(Picked { request, alternative, place, share });
        self.trial.depth += 1;
        Ok(true)
    }

    /// Takes back the claim's last pick.
    fn put_back(&mut self, claim: usize) {
        let Some(picked) = self.trial.picked[claim].pop() else { return };
        self.trial.depth -= 1;
        let wanted = self.wanted;
        let of_request = &wanted.claims[claim].requests[picked.request];
        let wish = &of_request.alternatives[picked.alternative];
        let (_, entry) = self.entry(picked.place);
        for constraint in &mut self.trial.constraints[claim] {
            constraint.put_back(&of_request.name, &wish.full_name);
        }
        match &picked.share {
            None => {
                if let Some(claims) = self.trial.whole.get_mut(&picked.place) {
                    claims.remove(&claim);
                }
            }
            Some(share) => {
                if let Some((count, consumed)) = self.trial.shares.get_mut(&picked.place) {
                    *count -= 1;
                    for (name, amount) in share {
                        let sum = consumed.entry(name.clone()).or_default();
                        *sum = *sum - *amount;
                    }
                }
            }
        }
        if self.consumes_counters(picked.place, entry) {
            self.give_back(picked.place, entry);
        }
    }

    /// A device that is shared has its counters already when it is shared once more.
    fn consumes_counters(&self, place: Place, entry: &Entry) -> bool {
        if entry.consumes.is_empty() {
            return false;
        }
        let pool = &self.pools[self.seen[place.pool].index];
        let in_use = pool.taken(&entry.object.name).is_some_and(|taken| taken.shares > 0);
        let picked = self.trial.shares.get(&place).is_some_and(|(count, _)| *count > 0);
        !(entry.is_shareable() && (in_use || picked))
    }

    /// Takes the device's counters, if there are enough.
    fn consume(&mut self, place: Place, entry: &Entry) -> bool {
        let enough =
            consumed(entry).all(|(set, counter, amount)| *self.left(place.pool, set, counter) >= amount);
        if enough {
            for (set, counter, amount) in consumed(entry) {
                let left = self.left(place.pool, set, counter);
                *left = *left - amount;
            }
        }
        enough
    }

    fn give_back(&mut self, place: Place, entry: &Entry) {
        for (set, counter, amount) in consumed(entry) {
            let left = self.left(place.pool, set, counter);
            *left = *left + amount;
        }
    }

    /// What is left of a counter, whoever has devices that consume it.
    fn left(&mut self, pool: usize, set: &str, counter: &str) -> &mut Quantity {
        let (seen, pools) = (&self.seen[pool], self.pools);
        self.trial.left.entry((pool, set.to_owned(), counter.to_owned())).or_insert_with(|| {
            let sets = seen.slices.iter().filter_map(|slice| slice.counters.get(set));
            let available = sets.filter_map(|counters| counters.get(counter)).next().copied();
            let devices = seen.slices.iter().chain(&seen.others).flat_map(|slice| &slice.devices);
            let taken = devices.filter(|entry| pools[seen.index].taken(&entry.object.name).is_some());
            let amounts = taken.filter_map(|entry| entry.consumes.get(set)?.get(counter).copied());
            amounts.fold(available.unwrap_or_default(), |left, amount| left - amount)
        })
    }

    /// What the request would consume of the device's capacity; `None` where that is not to be had.
    fn share(&self, wish: &Alternative, place: Place, entry: &Entry) -> Option<BTreeMap<String, Quantity>> {
        if wish.capacity.keys().any(|name| !entry.capacity.contains_key(name)) {
            return None;
        }
        let pool = &self.pools[self.seen[place.pool].index];
        let taken = pool.taken(&entry.object.name);
        let picked = self.trial.shares.get(&place);
        let mut share = BTreeMap::new();
        for (name, capacity) in &entry.capacity {
            let amount = amount(wish.capacity.get(name).copied(), capacity)?;
            let of = |consumed: &BTreeMap<String, Quantity>| consumed.get(name).copied().unwrap_or_default();
            let consumed = taken.map(|taken| of(&taken.consumed)).unwrap_or_default();
            let consumed = consumed + picked.map(|(_, consumed)| of(consumed)).unwrap_or_default();
            if consumed + amount > capacity.value {
                return None;
            }
            share.insert(name.clone(), amount);
        }
        Some(share)
    }
}

fn consumed(entry: &Entry) -> impl Iterator<Item = (&str, &str, Quantity)> {
    let sets = entry.consumes.iter();
    sets.flat_map(|(set, counters)| {
        counters.iter().map(move |(counter, amount)| (set.as_str(), counter.as_str(), *amount))
    })
}

/// What is consumed where so much is asked for: rounded up to what the policy allows. `None` where it allows nothing.
fn amount(asked: Option<Quantity>, capacity: &Capacity) -> Option<Quantity> {
    let Some(policy) = &capacity.policy else { return Some(asked.unwrap_or(capacity.value)) };
    let Some(asked) = asked else { return Some(policy.default.unwrap_or(capacity.value)) };
    if policy.default == Some(asked) {
        return Some(asked);
    }
    if let Some((least, most, step)) = &policy.range {
        let amount = match step {
            _ if asked < *least => *least,
            Some(step) if step.value() > 0 => {
                let beyond = asked.value().saturating_sub(least.value());
                let steps = beyond.div_euclid(step.value()) + i64::from(beyond.rem_euclid(step.value()) != 0);
                let rounded = least.value().saturating_add(steps.saturating_mul(step.value()));
                Quantity::from_units(rounded, asked.format())
            }
            _ => asked,
        };
        return most.is_none_or(|most| amount <= most).then_some(amount);
    }
    if policy.values.is_empty() {
        return Some(asked);
    }
    policy.values.iter().copied().find(|value| asked <= *value)
}

fn is_tainted(entry: &Entry, tolerations: &[DeviceToleration]) -> bool {
    let mut taints = entry.object.taints.iter().flatten();
    taints.any(|taint| {
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && !tolerations.iter().any(|toleration| tolerates(toleration, taint))
    })
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let unset_or =
        |own: &Option<String>, other: &str| own.as_deref().is_none_or(|own| own.is_empty() || own == other);
    unset_or(&toleration.effect, &taint.effect)
        && unset_or(&toleration.key, &taint.key)
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            None | Some("" | "Equal") => {
                toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
            }
            Some(_) => false,
        }
}
