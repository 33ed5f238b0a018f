//! The flow table: how flows are found, entered and given up, by many CPUs at once and without a lock.
//!
//! A flow lives in a slot of an array. Each of its two tuples has an entry in an index of buckets, eight entries in a
//! cache line; a tuple's hash says which bucket, and a part of the hash in the entry spares looking at most slots. Three
//! rules make it safe:
//! - A slot belongs to whoever raises its generation by an atomic exchange, and until its owner publishes the flow or
//!   gives the slot back. Entries of other generations are misses, and so are those of a flow that is being made.
//! - An entry is one word, and is written by an atomic exchange for what was there.
//! - Whoever enters a tuple looks at the bucket again, and withdraws when another live flow has the tuple too. The one
//!   that looked last sees the other, so that at most one flow is ever told that a tuple is its own.
//!
//! Established flows are never evicted: a table without room refuses new ones.

use crate::flow::{
    DIRECTION_FORWARD, DIRECTION_REPLY, FLOW_CONFIRMED, FLOW_PROBES, FLOW_PROBES_KIND, FLOW_WAYS, Flow,
    FlowBucket, FlowKey, FlowRef, is_expired, next_generation,
};

/// The memory that the table lives in: the kernel's maps, or a test's.
pub trait Tables: Copy {
    /// The number of slots, and of buckets: a power of two.
    fn slots(self) -> u32;

    /// The flow of a slot below that number. Valid for as long as the table is used.
    fn flow(self, slot: u32) -> Option<*mut Flow>;

    /// A bucket below that number. Valid for as long as the table is used.
    fn bucket(self, number: u32) -> Option<*mut FlowBucket>;

    /// Writes `new` if `old` is there, as one step for all CPUs and a barrier for this one.
    ///
    /// # Safety
    /// `word` is aligned and valid.
    unsafe fn exchange(self, word: *mut u64, old: u64, new: u64) -> bool;

    /// [`take`], apart from its callers where that makes a difference: the verifier would look at it in each of their
    /// rounds. Returns the new generation, 0 where the slot has an owner.
    fn take(self, slot: u32, now_ns: u64) -> u64 {
        take(self, slot, now_ns)
    }

    /// [`end`], likewise.
    fn end(self, slot: u32, generation: u64) -> bool {
        end(self, slot, generation)
    }

    /// A flow that had not been answered gave way.
    fn evicted(self);

    fn seed(self) -> u64;
}

/// A flow that was found.
pub struct Found {
    pub flow: *mut Flow,
    pub slot: u32,
    pub generation: u64,
    /// [`DIRECTION_FORWARD`] or [`DIRECTION_REPLY`].
    pub direction: u32,
}

/// A slot that belongs to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub slot: u32,
    pub generation: u64,
}

/// What came of entering a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    Yes,
    /// Another flow has it, or had it a moment ago.
    Taken,
    /// The bucket is full of flows that do not give way.
    Full,
}

/// In the generation of a flow: its slot has an owner, who makes the flow or ends it. No step of an owner waits for
/// anything, so that nobody has to wait for an owner either: what it holds is busy.
const OWNED: u64 = 1 << 63;

/// Returns the live flow that `tuple` belongs to.
#[inline(always)]
pub fn find<T: Tables>(tables: T, tuple: &FlowKey, now_ns: u64) -> Option<Found> {
    let hash = tuple.seeded_hash(tables.seed());
    let bucket = tables.bucket(number(tables, hash))?;
    for way in 0..FLOW_WAYS {
        let reference = read(bucket, way);
        if !reference.may_be_of(hash) {
            continue;
        }
        if let Some((flow, generation)) = flow_with(tables, reference, tuple) {
            // SAFETY: `Tables` vouches for the pointer.
            if generation == reference.generation() && !is_expired(unsafe { &*flow }, now_ns) {
                return Some(Found {
                    flow,
                    slot: reference.slot(),
                    generation: reference.generation(),
                    direction: reference.direction(),
                });
            }
        }
    }
    None
}

/// Takes a slot for a new flow, `None` when there is no room. The caller fills in the flow, enters its tuples, and
/// publishes it.
#[inline(always)]
pub fn claim<T: Tables>(tables: T, hash: u64, now_ns: u64) -> Option<Claim> {
    let first = (hash >> 40) as u32;
    // Numbers, not options: the verifier takes the value that a `None` does not have for one that is used.
    const NONE: u32 = u32::MAX;
    let mut unanswered = NONE;
    for probe in 0..FLOW_PROBES {
        if probe >= FLOW_PROBES_KIND && unanswered != NONE {
            break;
        }
        // In growing steps: neighbours in use would otherwise form runs.
        let slot = first.wrapping_add(probe * (probe + 1) / 2) & (tables.slots() - 1);
        let Some(flow) = tables.flow(slot) else { continue };
        // SAFETY: `Tables` vouches for the pointer.
        let flow = unsafe { &*flow };
        if is_expired(flow, now_ns) {
            let generation = tables.take(slot, now_ns);
            if generation != 0 {
                return Some(Claim { slot, generation });
            }
        } else if gives_way(flow) && unanswered == NONE {
            unanswered = slot;
        }
    }
    if unanswered == NONE {
        return None;
    }
    let generation = tables.take(unanswered, now_ns);
    if generation == 0 {
        return None;
    }
    tables.evicted();
    Some(Claim { slot: unanswered, generation })
}

/// Shows a flow whose tuples are entered to all. The slot is the flow's from here on.
#[inline(always)]
pub fn publish<T: Tables>(tables: T, claim: Claim) {
    let Some(flow) = tables.flow(claim.slot) else { return };
    // SAFETY: `Tables` vouches for the pointer, and the slot is the caller's until here.
    unsafe { (&raw mut (*flow).generation).write_volatile(claim.generation) };
}

/// Enters the tuple of the claim's flow for `direction`.
#[inline(always)]
pub fn enter<T: Tables>(tables: T, claim: Claim, direction: u32, now_ns: u64) -> Entered {
    let Some(flow) = tables.flow(claim.slot) else { return Entered::Full };
    // SAFETY: `Tables` vouches for the pointer, and the slot is the caller's.
    let tuple = unsafe { tuple_of(flow, direction) };
    let hash = tuple.seeded_hash(tables.seed());
    let Some(bucket) = tables.bucket(number(tables, hash)) else { return Entered::Full };
    let reference = FlowRef::new(claim.slot, direction, claim.generation, hash);
    let mut place = FLOW_WAYS;
    for way in 0..FLOW_WAYS {
        let found = read(bucket, way);
        if found == FlowRef::FREE {
            place = place.min(way);
        } else if found.may_be_of(hash) && !is_over(tables, found, tuple, now_ns) {
            return Entered::Taken;
        }
    }
    let mut old = FlowRef::FREE;
    if place == FLOW_WAYS {
        let Some(room) = make_room(tables, bucket, now_ns) else { return Entered::Full };
        (place, old) = room;
    }
    let way = place;
    if !replace(tables, bucket, way, old, reference) {
        // Another CPU was faster, perhaps with the same tuple.
        return Entered::Taken;
    }
    for other in 0..FLOW_WAYS {
        let found = read(bucket, other);
        if found != reference && found.may_be_of(hash) && !is_over(tables, found, tuple, now_ns) {
            replace(tables, bucket, way, reference, FlowRef::FREE);
            return Entered::Taken;
        }
    }
    Entered::Yes
}

/// Ends a flow, so that its tuples and its slot are free. False when another CPU did so first.
#[inline(always)]
pub fn end<T: Tables>(tables: T, slot: u32, generation: u64) -> bool {
    let Some(flow) = tables.flow(slot) else { return false };
    let next = next_generation(generation);
    // SAFETY: `Tables` vouches for the pointer; all CPUs take slots in this way alone.
    if !unsafe { tables.exchange(&raw mut (*flow).generation, generation, next | OWNED) } {
        return false;
    }
    remove_entries(tables, flow, slot, generation);
    free(flow, next);
    true
}

/// Gives a claimed slot back, and what was entered for it.
#[inline(always)]
pub fn give_back<T: Tables>(tables: T, claim: Claim) {
    let Some(flow) = tables.flow(claim.slot) else { return };
    remove_entries(tables, flow, claim.slot, claim.generation);
    free(flow, claim.generation);
}

/// Makes a slot, which the caller owns, anybody's.
#[inline(always)]
fn free(flow: *mut Flow, generation: u64) {
    // SAFETY: `Tables` vouches for the pointer, and the slot is the caller's until the second write.
    unsafe {
        (&raw mut (*flow).last_seen_ns).write_volatile(0);
        (&raw mut (*flow).generation).write_volatile(generation);
    }
}

/// Tells whether a flow makes room for a new one when there is no other.
#[inline(always)]
fn gives_way(flow: &Flow) -> bool {
    flow.flags & FLOW_CONFIRMED == 0 || flow.is_closed()
}

/// Returns the flow of an entry if the tuple is its own, and its generation: with [`OWNED`] if it is being made.
#[inline(always)]
fn flow_with<T: Tables>(tables: T, reference: FlowRef, tuple: &FlowKey) -> Option<(*mut Flow, u64)> {
    let flow = tables.flow(reference.slot())?;
    // SAFETY: `Tables` vouches for the pointer. Another CPU may take the slot meanwhile: it raises the generation
    // first, which is therefore looked at last.
    unsafe {
        let is_same = tuple_of(flow, reference.direction()) == tuple;
        let generation = (&raw const (*flow).generation).read_volatile();
        let goes_on = generation & !OWNED == reference.generation() && reference != FlowRef::FREE;
        (is_same && goes_on).then_some((flow, generation))
    }
}

/// Tells whether an entry is no longer, or never was, one of a live flow with this tuple. A flow that is over is
/// ended for both directions: a packet of it that is seen now must not revive it.
#[inline(always)]
fn is_over<T: Tables>(tables: T, reference: FlowRef, tuple: &FlowKey, now_ns: u64) -> bool {
    let Some((flow, generation)) = flow_with(tables, reference, tuple) else { return true };
    // SAFETY: `Tables` vouches for the pointer.
    generation & OWNED == 0
        && unsafe { &*flow }.is_reusable(now_ns)
        && tables.end(reference.slot(), reference.generation())
}

/// Finds an entry in a full bucket that may be replaced: one that is stale, or of a flow that gives way.
#[inline(always)]
fn make_room<T: Tables>(tables: T, bucket: *mut FlowBucket, now_ns: u64) -> Option<(usize, FlowRef)> {
    for way in 0..FLOW_WAYS {
        let found = read(bucket, way);
        let flow = tables.flow(found.slot())?;
        // SAFETY: `Tables` vouches for the pointer.
        let flow = unsafe { &*flow };
        // SAFETY: as above. Other CPUs write to it.
        let generation = unsafe { (&raw const flow.generation).read_volatile() };
        if generation & !OWNED != found.generation() {
            return Some((way, found));
        }
        let expired = is_expired(flow, now_ns);
        // An owner's flow cannot be ended.
        if (expired || gives_way(flow)) && tables.end(found.slot(), found.generation()) {
            if !expired {
                tables.evicted();
            }
            return Some((way, FlowRef::FREE));
        }
    }
    None
}

/// Ends the flow that is in a slot, and takes the slot. Returns its new generation, 0 where it has an owner.
#[inline(always)]
pub fn take<T: Tables>(tables: T, slot: u32, now_ns: u64) -> u64 {
    let Some(flow) = tables.flow(slot) else { return 0 };
    // SAFETY: `Tables` vouches for the pointer; all CPUs change the field in this way alone.
    let generation = unsafe { (&raw const (*flow).generation).read_volatile() };
    if generation & OWNED != 0 {
        return 0;
    }
    let next = next_generation(generation);
    // SAFETY: as above.
    if !unsafe { tables.exchange(&raw mut (*flow).generation, generation, next | OWNED) } {
        return 0;
    }
    // SAFETY: as above, and the slot is ours.
    unsafe {
        // It may be another flow by now than the one that was looked at, or one that has been confirmed.
        if !is_expired(&*flow, now_ns) && !gives_way(&*flow) {
            (&raw mut (*flow).generation).write_volatile(generation);
            return 0;
        }
        (&raw mut (*flow).last_seen_ns).write_volatile(now_ns);
    }
    remove_entries(tables, flow, slot, generation);
    next
}

/// Removes the entries that a flow had in `generation`. The caller owns the slot.
#[inline(always)]
fn remove_entries<T: Tables>(tables: T, flow: *mut Flow, slot: u32, generation: u64) {
    for direction in [DIRECTION_FORWARD, DIRECTION_REPLY] {
        // SAFETY: `Tables` vouches for the pointer.
        let tuple = unsafe { tuple_of(flow, direction) };
        if tuple.protocol == 0 {
            continue;
        }
        let hash = tuple.seeded_hash(tables.seed());
        let Some(bucket) = tables.bucket(number(tables, hash)) else { return };
        let reference = FlowRef::new(slot, direction, generation, hash);
        for way in 0..FLOW_WAYS {
            if read(bucket, way) == reference {
                replace(tables, bucket, way, reference, FlowRef::FREE);
            }
        }
    }
}

/// # Safety
/// `flow` is valid.
#[inline(always)]
unsafe fn tuple_of<'a>(flow: *mut Flow, direction: u32) -> &'a FlowKey {
    // SAFETY: the caller vouches for the pointer.
    unsafe { if direction == DIRECTION_FORWARD { &(*flow).forward } else { &(*flow).reply } }
}

#[inline(always)]
fn number<T: Tables>(tables: T, hash: u64) -> u32 {
    hash as u32 & (tables.slots() - 1)
}

#[inline(always)]
fn read(bucket: *mut FlowBucket, way: usize) -> FlowRef {
    // The mask changes nothing, and shows the compiler and the verifier that the index is in bounds.
    // SAFETY: `Tables` vouches for the pointer.
    unsafe { (&raw const (*bucket).entries[way & (FLOW_WAYS - 1)]).read_volatile() }
}

#[inline(always)]
fn replace<T: Tables>(tables: T, bucket: *mut FlowBucket, way: usize, old: FlowRef, new: FlowRef) -> bool {
    // SAFETY: as in `read`.
    unsafe { tables.exchange((&raw mut (*bucket).entries[way & (FLOW_WAYS - 1)]).cast(), old.word, new.word) }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{
        cell::UnsafeCell,
        collections::HashSet,
        sync::{
            Mutex,
            atomic::{AtomicU64, Ordering},
        },
        thread,
        vec::Vec,
    };

    use super::*;
    use crate::{
        IPPROTO_TCP, IPPROTO_UDP,
        flow::{FLOW_FIN_FORWARD, FLOW_FIN_REPLY, LEAST_FLOW_SLOTS, TCP_REUSE_NS, UNCONFIRMED_NS},
        service::Endpoint,
        v4_mapped,
    };

    const NOW_NS: u64 = 1 << 40;
    const SLOTS: u32 = LEAST_FLOW_SLOTS;

    struct Memory {
        flows: Vec<UnsafeCell<Flow>>,
        buckets: Vec<UnsafeCell<FlowBucket>>,
        evicted: AtomicU64,
    }

    // SAFETY: threads change it as CPUs change the kernel's maps.
    unsafe impl Sync for Memory {}

    impl Memory {
        fn new() -> Self {
            Self {
                flows: (0..SLOTS).map(|_| UnsafeCell::default()).collect(),
                buckets: (0..SLOTS).map(|_| UnsafeCell::default()).collect(),
                evicted: AtomicU64::new(0),
            }
        }

        /// Makes a flow as the programs do.
        fn start(&self, forward: FlowKey, reply: FlowKey, flags: u32, now_ns: u64) -> Result<Claim, Entered> {
            let claim = claim(self, forward.seeded_hash(self.seed()), now_ns).ok_or(Entered::Full)?;
            let flow = self.flows[claim.slot as usize].get();
            // SAFETY: the slot is ours.
            unsafe {
                (*flow).forward = forward;
                (*flow).reply = reply;
                (*flow).flags = flags;
            }
            for direction in [DIRECTION_REPLY, DIRECTION_FORWARD] {
                let entered = enter(self, claim, direction, now_ns);
                if entered != Entered::Yes {
                    give_back(self, claim);
                    return Err(entered);
                }
                assert!(self.find(&forward, now_ns).is_none_or(|(slot, _)| slot != claim.slot), "too early");
            }
            publish(self, claim);
            Ok(claim)
        }

        fn find(&self, tuple: &FlowKey, now_ns: u64) -> Option<(u32, u32)> {
            find(self, tuple, now_ns).map(|found| (found.slot, found.direction))
        }

        fn entries(&self) -> usize {
            // SAFETY: read when no thread runs.
            let entries = self.buckets.iter().flat_map(|bucket| unsafe { (*bucket.get()).entries });
            entries.filter(|entry| *entry != FlowRef::FREE).count()
        }
    }

    impl Tables for &Memory {
        fn slots(self) -> u32 {
            SLOTS
        }

        fn flow(self, slot: u32) -> Option<*mut Flow> {
            Some(self.flows[slot as usize].get())
        }

        fn bucket(self, number: u32) -> Option<*mut FlowBucket> {
            Some(self.buckets[number as usize].get())
        }

        unsafe fn exchange(self, word: *mut u64, old: u64, new: u64) -> bool {
            // SAFETY: the caller vouches for the pointer.
            let word = unsafe { AtomicU64::from_ptr(word) };
            word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        }

        fn evicted(self) {
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }

        fn seed(self) -> u64 {
            0x0123_4567_89ab_cdef
        }
    }

    fn endpoint(host: u32, port: u16) -> Endpoint {
        Endpoint::new(v4_mapped((0x0a00_0000 + host).to_be_bytes()), port.to_be())
    }

    /// The tuples of a client's flow to one service and backend.
    fn tuples(client: u32, port: u16) -> (FlowKey, FlowKey) {
        let client = endpoint(client, port);
        let forward = FlowKey::new(client, endpoint(1 << 20, 80), IPPROTO_TCP);
        (forward, FlowKey::new(endpoint(2 << 20, 8080), client, IPPROTO_TCP))
    }

    #[test]
    fn flow_is_found_by_both_tuples_until_it_ends() {
        let memory = Memory::new();
        let (forward, reply) = tuples(1, 4000);
        assert_eq!(memory.find(&forward, NOW_NS), None);
        let claim = memory.start(forward, reply, 0, NOW_NS).unwrap();
        assert_eq!(memory.find(&forward, NOW_NS), Some((claim.slot, DIRECTION_FORWARD)));
        assert_eq!(memory.find(&reply, NOW_NS), Some((claim.slot, DIRECTION_REPLY)));
        assert_eq!(memory.find(&forward.reversed(), NOW_NS), None);
        assert_eq!(memory.find(&forward, NOW_NS + UNCONFIRMED_NS + 1), None);
        assert!(end(&memory, claim.slot, claim.generation));
        assert!(!end(&memory, claim.slot, claim.generation), "only once");
        assert_eq!(memory.find(&forward, NOW_NS), None);
        assert_eq!(memory.entries(), 0);
    }

    #[test]
    fn tuple_is_taken_while_its_flow_lives() {
        let memory = Memory::new();
        let (forward, reply) = tuples(1, 4000);
        let (other, _) = tuples(1, 4001);
        let flags = FLOW_CONFIRMED | FLOW_FIN_FORWARD | FLOW_FIN_REPLY;
        let first = memory.start(forward, reply, flags, NOW_NS).unwrap();
        assert_eq!(memory.start(other, reply, 0, NOW_NS), Err(Entered::Taken));
        assert_eq!(memory.entries(), 2, "what was entered is taken back");
        let later = NOW_NS + TCP_REUSE_NS + 1;
        let second = memory.start(other, reply, 0, later).unwrap();
        assert_eq!(memory.find(&reply, later), Some((second.slot, DIRECTION_REPLY)));
        assert_eq!(memory.find(&forward, later), None, "ended for both directions");
        assert!(!end(&memory, first.slot, first.generation));
        assert_eq!(memory.entries(), 2);
    }

    /// Answered flows stay, unanswered ones give way, and nine of ten slots can be used.
    #[test]
    fn full_table_keeps_what_is_established() {
        let memory = Memory::new();
        let mut kept = Vec::new();
        let mut refused = 0;
        for client in 0..SLOTS * 9 / 10 {
            let (forward, reply) = tuples(client, 4000);
            match memory.start(forward, reply, FLOW_CONFIRMED, NOW_NS) {
                Ok(claim) => kept.push((forward, claim.slot)),
                Err(Entered::Full) => refused += 1,
                Err(other) => panic!("all tuples are different: {other:?}"),
            }
        }
        assert!(refused < 100, "{refused} refused");
        for client in 0..SLOTS {
            let (forward, reply) = tuples(client, 5000);
            let _ = memory.start(forward, reply, 0, NOW_NS);
        }
        assert!(memory.evicted.load(Ordering::Relaxed) > u64::from(SLOTS) / 2);
        for (forward, slot) in kept {
            assert_eq!(memory.find(&forward, NOW_NS), Some((slot, DIRECTION_FORWARD)));
        }
    }

    #[test]
    fn full_bucket_gives_way_to_new_flows_only_where_nobody_answered() {
        let memory = Memory::new();
        let meet: Vec<_> = (0..)
            .map(|client| tuples(client, 4000))
            .filter(|(forward, _)| number(&memory, forward.seeded_hash((&memory).seed())) == 7)
            .take(FLOW_WAYS + 2)
            .collect();
        for (forward, reply) in &meet[..FLOW_WAYS] {
            memory.start(*forward, *reply, FLOW_CONFIRMED, NOW_NS).unwrap();
        }
        let (forward, reply) = meet[FLOW_WAYS];
        assert_eq!(memory.start(forward, reply, 0, NOW_NS), Err(Entered::Full));
        let found = find(&memory, &meet[3].0, NOW_NS).unwrap();
        // SAFETY: no other thread runs.
        unsafe { (*found.flow).flags = 0 };
        let claim = memory.start(forward, reply, FLOW_CONFIRMED, NOW_NS).unwrap();
        assert_eq!(memory.find(&forward, NOW_NS), Some((claim.slot, DIRECTION_FORWARD)));
        assert_eq!(memory.find(&meet[3].0, NOW_NS), None);
        assert_eq!(memory.evicted.load(Ordering::Relaxed), 1);
    }

    /// A slot has one owner at most, however many CPUs look for one, in a table where all flows give way.
    #[test]
    fn slot_is_never_given_to_two_cpus() {
        const CLAIMS: u64 = 20_000;
        let memory = Memory::new();
        let owners: Vec<AtomicU64> = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        thread::scope(|scope| {
            for cpu in 1..=3u64 {
                let (memory, owners) = (&memory, &owners);
                scope.spawn(move || {
                    for number in 0..CLAIMS {
                        // Few places, which all want.
                        let Some(claim) = claim(memory, (number % 16) << 40, NOW_NS) else { continue };
                        let owner = &owners[claim.slot as usize];
                        assert_eq!(owner.swap(cpu, Ordering::SeqCst), 0, "owned by another");
                        // SAFETY: the slot is ours.
                        unsafe { (*memory.flows[claim.slot as usize].get()).flags = 0 };
                        assert_eq!(owner.swap(0, Ordering::SeqCst), cpu);
                        if number % 3 == 0 { give_back(memory, claim) } else { publish(memory, claim) }
                    }
                });
            }
        });
    }

    /// CPUs that want the same tuples at the same time, the allocator of source ports among them: each tuple is
    /// given to one at most, and what was given is found.
    #[test]
    fn tuple_is_never_given_to_two_cpus() {
        const ROUNDS: u16 = 1000;
        let memory = Memory::new();
        for round in 0..ROUNDS {
            let given = Mutex::new(Vec::new());
            let barrier = std::sync::Barrier::new(3);
            thread::scope(|scope| {
                for cpu in 0..3u32 {
                    let (memory, given, barrier) = (&memory, &given, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        for port in 0..8 {
                            let (_, reply) = tuples(1, 8 * round + port);
                            let forward = FlowKey::new(
                                endpoint(100 + cpu, 8 * round + port),
                                endpoint(1 << 20, 80),
                                IPPROTO_UDP,
                            );
                            if let Ok(claim) = memory.start(forward, reply, FLOW_CONFIRMED, NOW_NS) {
                                given.lock().unwrap().push((reply, claim.slot));
                            }
                        }
                    });
                }
            });
            let given = given.into_inner().unwrap();
            let replies: HashSet<FlowKey> = given.iter().map(|(reply, _)| *reply).collect();
            assert_eq!(replies.len(), given.len(), "given twice");
            for (reply, slot) in &given {
                assert_eq!(memory.find(reply, NOW_NS), Some((*slot, DIRECTION_REPLY)));
                let generation = memory.flows[*slot as usize].get();
                // SAFETY: no other thread runs.
                assert!(end(&memory, *slot, unsafe { (*generation).generation }));
            }
            assert_eq!(memory.entries(), 0, "round {round}");
        }
    }
}
