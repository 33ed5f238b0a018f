//! The flow table of the packet path.
//!
//! A flow's slot is one of a few places that its tuple's hash chooses. Whoever takes a slot raises its generation by
//! an atomic exchange, which makes both index entries of the flow that was there stale at once. Established flows are
//! never evicted: a table without room refuses new flows.

use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_coarse_ns};
use hawser_ebpf_abi::{
    Flow, FlowKey, FlowRef, Reason,
    flow::{
        DIRECTION_FORWARD, DIRECTION_REPLY, FLOW_CLOSING, FLOW_CONFIRMED, FLOW_PROBES, FLOW_SLOTS,
        is_expired, next_generation,
    },
};

use crate::{
    count::count,
    maps::{FLOW_INDEX, FLOWS},
    packet::Packet,
};

/// A flow's `last_seen_ns` is written once a second at most, so that CPUs do not fight for its cache line.
const SEEN_STEP_NS: u64 = 1_000_000_000;

#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper has no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Returns the live flow that `tuple` belongs to, and the packet's direction.
#[inline(always)]
pub(crate) fn find(tuple: &FlowKey, now_ns: u64) -> Option<(&'static mut Flow, u32)> {
    let reference = read(FLOW_INDEX.get_ptr_mut(tuple)?);
    let flow = get(reference.slot())?;
    if flow.generation != reference.generation() || is_expired(flow, now_ns) {
        return None;
    }
    Some((flow, reference.direction()))
}

/// Notes that a packet of the flow was seen.
#[inline(always)]
pub(crate) fn touch(flow: &mut Flow, packet: &Packet, direction: u32, now_ns: u64) {
    // An error is no sign of life: anybody can send one.
    if packet.is_error() {
        return;
    }
    let mut flags = flow.flags;
    if direction == DIRECTION_REPLY {
        flags |= FLOW_CONFIRMED;
    }
    if packet.ends_flow() {
        flags |= FLOW_CLOSING;
    }
    // Two CPUs may each add a flag and one be lost: the next packet of that direction adds it again.
    if flags != flow.flags {
        flow.flags = flags;
    }
    if now_ns.saturating_sub(flow.last_seen_ns) > SEEN_STEP_NS {
        flow.last_seen_ns = now_ns;
    }
}

/// Lets the flow's slot be taken, and its tuple start anew.
#[inline(always)]
pub(crate) fn expire(flow: &mut Flow) {
    flow.last_seen_ns = 0;
}

/// A slot that belongs to the caller.
pub(crate) struct Claim {
    pub(crate) slot: u32,
    pub(crate) generation: u64,
}

/// Takes a slot for a new flow.
#[inline(always)]
pub(crate) fn claim(hash: u32, now_ns: u64) -> Result<Claim, Reason> {
    let mut unconfirmed = None;
    for probe in 0..FLOW_PROBES {
        let slot = hash.wrapping_add(probe) & (FLOW_SLOTS - 1);
        let Some(flow) = get(slot) else { continue };
        if flow.forward.protocol == 0 || is_expired(flow, now_ns) {
            if let Some(claim) = take(flow, slot, now_ns) {
                return Ok(claim);
            }
        } else if flow.flags & FLOW_CONFIRMED == 0 && unconfirmed.is_none() {
            unconfirmed = Some(slot);
        }
    }
    let slot = unconfirmed.ok_or(Reason::DropFlowTableFull)?;
    let flow = get(slot).ok_or(Reason::DropFlowTableFull)?;
    let claim = take(flow, slot, now_ns).ok_or(Reason::DropFlowTableFull)?;
    count(Reason::FlowEvicted);
    Ok(claim)
}

/// Gives a claimed slot back, when no flow came of it.
#[inline(always)]
pub(crate) fn unclaim(claim: &Claim) {
    if let Some(flow) = get(claim.slot) {
        flow.last_seen_ns = 0;
    }
}

/// Enters the reply tuple, unless another live flow has it. At most one flow ever gets a true for it.
#[inline(always)]
pub(crate) fn insert_reply(tuple: &FlowKey, claim: &Claim, now_ns: u64) -> bool {
    let reference = FlowRef::new(claim.slot, claim.generation, DIRECTION_REPLY);
    insert(tuple, reference) || (clear_stale(tuple, now_ns) && insert(tuple, reference))
}

/// Enters the forward tuple, in place of what was there.
///
/// Two CPUs may make a flow of the same first packet, sent twice: the later one is found from then on, and the other
/// ages.
#[inline(always)]
pub(crate) fn insert_forward(tuple: &FlowKey, claim: &Claim) -> bool {
    let reference = FlowRef::new(claim.slot, claim.generation, DIRECTION_FORWARD);
    if insert(tuple, reference) {
        return true;
    }
    if let Some(entry) = FLOW_INDEX.get_ptr_mut(tuple) {
        remove(tuple, read(entry));
    }
    insert(tuple, reference)
}

#[inline(always)]
fn insert(tuple: &FlowKey, reference: FlowRef) -> bool {
    FLOW_INDEX.insert(tuple, &reference, u64::from(BPF_NOEXIST)).is_ok()
}

/// Removes the entry of `tuple` if its flow is over. False when that flow lives, or another CPU is at the entry.
#[inline(always)]
fn clear_stale(tuple: &FlowKey, now_ns: u64) -> bool {
    let Some(entry) = FLOW_INDEX.get_ptr_mut(tuple) else { return true };
    let reference = read(entry);
    let Some(flow) = get(reference.slot()) else { return false };
    if flow.generation == reference.generation() {
        // The flow ends for both of its directions at once: a packet of it that is seen now must not revive it. (One
        // that found it just before is still sent on with a source that is another flow's from here on.)
        if !is_expired(flow, now_ns) || !end_generation(flow, reference.generation()) {
            return false;
        }
        remove(&flow.forward, FlowRef::new(reference.slot(), reference.generation(), DIRECTION_FORWARD));
    }
    remove(tuple, reference)
}

/// Removes an entry if it still is `reference`. The exchange decides which CPU removes it, so that no other entry is
/// removed that is made at once thereafter.
#[inline(always)]
fn remove(tuple: &FlowKey, reference: FlowRef) -> bool {
    let Some(entry) = FLOW_INDEX.get_ptr_mut(tuple) else { return false };
    // SAFETY: the entry is aligned, and stays in memory until this program has ended (RCU).
    let is_ours = unsafe { exchange(entry.cast(), reference.word, FlowRef::REMOVED.word) };
    if is_ours {
        let _ = FLOW_INDEX.remove(tuple);
    }
    is_ours
}

#[inline(always)]
fn read(entry: *mut FlowRef) -> FlowRef {
    // SAFETY: the entry stays in memory until this program has ended (RCU). Volatile: other CPUs write to it.
    unsafe { entry.read_volatile() }
}

/// Ends the flow that has `generation`. False when another CPU did so first.
#[inline(always)]
fn end_generation(flow: &mut Flow, generation: u64) -> bool {
    // SAFETY: the field is aligned and lives as long as the map; all CPUs change it in this way alone.
    unsafe { exchange(&raw mut flow.generation, generation, next_generation(generation)) }
}

/// Writes `new` if `old` is still there.
///
/// # Safety
/// `word` is aligned and valid.
#[inline(always)]
unsafe fn exchange(word: *mut u64, old: u64, new: u64) -> bool {
    // The intrinsic, because core offers no exchange for this target; the kernel has one since 5.12.
    // SAFETY: the caller vouches for the pointer.
    let (_, exchanged) = unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(word, old, new) };
    exchanged
}

#[inline(always)]
pub(crate) fn get(slot: u32) -> Option<&'static mut Flow> {
    // SAFETY: array entries live as long as the map. Other CPUs may write to the flow: its tuples change only with
    // its generation, and the other fields are single words.
    unsafe { FLOWS.get_ptr_mut(slot)?.as_mut() }
}

#[inline(always)]
fn take(flow: &mut Flow, slot: u32, now_ns: u64) -> Option<Claim> {
    let old = flow.generation;
    if !end_generation(flow, old) {
        return None;
    }
    // From here on the slot looks busy to others.
    flow.last_seen_ns = now_ns;
    if flow.forward.protocol != 0 {
        remove(&flow.forward, FlowRef::new(slot, old, DIRECTION_FORWARD));
        remove(&flow.reply, FlowRef::new(slot, old, DIRECTION_REPLY));
    }
    Some(Claim { slot, generation: next_generation(old) })
}
