//! The flow table of the packet path.
//!
//! A flow's slot is one of a few places that its tuple's hash chooses. Whoever takes a slot raises its generation by
//! an atomic exchange, which makes both index entries of the flow that was there stale at once. Established flows are
//! never evicted: a table without room refuses new flows.

use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::bpf_ktime_get_coarse_ns,
};
use hawser_ebpf_abi::{
    Flow, FlowKey, FlowRef, Reason,
    flow::{
        DIRECTION_FORWARD, DIRECTION_REPLY, FLOW_CLOSING, FLOW_CONFIRMED, FLOW_PROBES, FLOW_SLOTS, is_expired,
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
    // SAFETY: an entry that is replaced meanwhile stays readable until this program has ended (RCU).
    let reference = unsafe { FLOW_INDEX.get(tuple)? };
    let direction = reference.direction;
    let flow = get(reference.slot)?;
    if flow.generation != reference.generation || is_expired(flow, now_ns) {
        return None;
    }
    Some((flow, direction))
}

/// Notes that a packet of the flow was seen.
#[inline(always)]
pub(crate) fn touch(flow: &mut Flow, packet: &Packet, direction: u32, now_ns: u64) {
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

/// Enters the reply tuple, unless another live flow has it.
#[inline(always)]
pub(crate) fn insert_reply(tuple: &FlowKey, claim: &Claim, now_ns: u64) -> bool {
    let reference = FlowRef { slot: claim.slot, generation: claim.generation, direction: DIRECTION_REPLY };
    if FLOW_INDEX.insert(tuple, &reference, u64::from(BPF_NOEXIST)).is_ok() {
        return true;
    }
    if find(tuple, now_ns).is_some() {
        return false;
    }
    // A stale entry. Two CPUs may both replace it; the one that loses has a flow whose replies do not come back, and
    // its client's next attempt starts anew.
    FLOW_INDEX.insert(tuple, &reference, u64::from(BPF_ANY)).is_ok()
}

/// Enters the forward tuple, replacing what was there.
#[inline(always)]
pub(crate) fn insert_forward(tuple: &FlowKey, claim: &Claim) -> bool {
    let reference = FlowRef { slot: claim.slot, generation: claim.generation, direction: DIRECTION_FORWARD };
    FLOW_INDEX.insert(tuple, &reference, u64::from(BPF_ANY)).is_ok()
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
    let new = old.wrapping_add(1);
    // The intrinsic, because core offers no exchange for this target; the kernel has one since 5.12.
    // SAFETY: the field is aligned and lives as long as the map; all CPUs change it in this way alone.
    let (_, taken) =
        unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(&raw mut flow.generation, old, new) };
    if !taken {
        return None;
    }
    // From here on the slot looks busy to others.
    flow.last_seen_ns = now_ns;
    if flow.forward.protocol != 0 {
        remove_stale(&flow.forward, slot, old);
        remove_stale(&flow.reply, slot, old);
    }
    Some(Claim { slot, generation: new })
}

/// Removes an index entry of the flow that was in the slot; a tuple that another flow took over stays.
#[inline(always)]
fn remove_stale(tuple: &FlowKey, slot: u32, generation: u64) {
    // SAFETY: an entry stays readable until this program has ended (RCU).
    let Some(reference) = (unsafe { FLOW_INDEX.get(tuple) }) else { return };
    if reference.slot == slot && reference.generation == generation {
        let _ = FLOW_INDEX.remove(tuple);
    }
}
