//! The flow table of the packet path, in the kernel's maps. How it works is `hawser_ebpf_abi::flow_table`'s.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use hawser_ebpf_abi::{
    Flow, FlowBucket, FlowKey, FlowRef, Reason,
    flow::{DIRECTION_REPLY, FLOW_FOREIGN, LEAST_FLOW_SLOTS},
    flow_table::{self, Claim, Entered, Tables},
};

use crate::{
    atomic::exchange,
    count::count,
    maps::{FLOW_INDEX, FLOWS, SETTINGS},
    packet::{Packet, scratch},
};

/// Size of `FLOWS` and `FLOW_INDEX`. Set by the loader.
#[unsafe(no_mangle)]
static FLOW_SLOTS: u32 = LEAST_FLOW_SLOTS;

/// A flow's `last_seen_ns` is written once a second at most, so that CPUs do not fight for its cache line.
const SEEN_STEP_NS: u64 = 1_000_000_000;

#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper has no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// A live flow, and the direction that the packet travels in.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) slot: u32,
    pub(crate) direction: u32,
    generation: u64,
}

impl Found {
    #[inline(always)]
    pub(crate) fn flow(self) -> Option<&'static mut Flow> {
        get(self.slot)
    }

    #[inline(always)]
    pub(crate) fn is_reply(self) -> bool {
        self.direction == DIRECTION_REPLY
    }
}

/// Returns the live flow that the scratch's packet belongs to.
#[inline(always)]
pub(crate) fn find(now_ns: u64) -> Option<Found> {
    found(hawser_flow_find(0, now_ns))
}

/// Returns the live flow that a packet would belong to that answers the scratch's.
#[inline(always)]
pub(crate) fn find_reversed(now_ns: u64) -> Option<Found> {
    found(hawser_flow_find(1, now_ns))
}

#[inline(always)]
fn found(found: u64) -> Option<Found> {
    let reference = FlowRef { word: found };
    (reference != FlowRef::FREE).then_some(Found {
        slot: reference.slot(),
        direction: reference.direction(),
        generation: reference.generation(),
    })
}

/// Notes that a packet of the flow was seen. False for one that is none of the flow's, and left alone: it belongs to a
/// connection beside it, or the flow has made room for another one since it was found.
#[inline(always)]
pub(crate) fn note(found: Found, flow: &mut Flow, packet: &Packet, now_ns: u64) -> bool {
    // An error is no sign of life: anybody can send one.
    if packet.is_error() {
        return true;
    }
    let is_reply = found.is_reply();
    let flags = flow.flags_after(found.direction, &packet.segment);
    let expected_ack = flow.ack_after(found.direction, &packet.segment);
    // SAFETY: a field of an array's entry. Volatile: another CPU may have taken the slot since it was found.
    if unsafe { (&raw const flow.generation).read_volatile() } != found.generation {
        return false;
    }
    // What the client is to acknowledge comes first, for a CPU that sees it do so.
    if expected_ack != flow.expected_ack {
        flow.expected_ack = expected_ack;
    }
    // Two CPUs may each change a flag and one change be lost: the next packet makes it again.
    if flags != flow.flags {
        flow.flags = flags;
    }
    if now_ns.saturating_sub(flow.last_seen_ns) > SEEN_STEP_NS {
        flow.last_seen_ns = now_ns;
    }
    !is_reply || flags & FLOW_FOREIGN == 0
}

/// Takes a slot for a new flow with this first packet.
#[inline(always)]
pub(crate) fn claim(tuple: &FlowKey, now_ns: u64) -> Result<(Claim, &'static mut Flow), Reason> {
    let claimed = hawser_flow_claim(tuple.seeded_hash(Kernel.seed()), now_ns);
    let claim = Claim { slot: claimed as u32 & SLOT_MASK, generation: claimed >> SLOT_BITS };
    if claimed == NONE {
        return Err(Reason::DropFlowTableFull);
    }
    Ok((claim, get(claim.slot).ok_or(Reason::DropFlowTableFull)?))
}

/// Enters the tuple that the claim's flow has for `direction`.
#[inline(always)]
pub(crate) fn enter(claim: Claim, direction: u32, now_ns: u64) -> Entered {
    match hawser_flow_enter(claim.slot, claim.generation, direction, now_ns) {
        YES => Entered::Yes,
        TAKEN => Entered::Taken,
        _ => Entered::Full,
    }
}

#[inline(always)]
pub(crate) fn publish(claim: Claim) {
    flow_table::publish(Kernel, claim);
}

/// Ends a flow, so that its tuples and its slot are free.
#[inline(always)]
pub(crate) fn end(found: Found) {
    hawser_flow_end(found.slot, found.generation);
}

/// Gives a claimed slot back, when no flow came of it.
#[inline(always)]
pub(crate) fn give_back(claim: Claim) {
    hawser_flow_give_back(claim.slot, claim.generation);
}

// The verifier looks at a global function once, whoever calls it; at any other once for each way that leads there, of
// which there are too many. Global functions take numbers.

/// Returns an entry of the flow's, free where there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hawser_flow_find(reversed: u32, now_ns: u64) -> u64 {
    let Some(packet) = scratch() else { return FlowRef::FREE.word };
    let found = if reversed == 0 {
        flow_table::find(Kernel, &packet.tuple, now_ns)
    } else {
        flow_table::find(Kernel, &packet.tuple.reversed(), now_ns)
    };
    found.map_or(FlowRef::FREE.word, |found| {
        FlowRef::new(found.slot, found.direction, found.generation, 0).word
    })
}

const SLOT_BITS: u32 = 32;
const SLOT_MASK: u32 = u32::MAX;
const NONE: u64 = u64::MAX;

/// Returns the slot, and the generation above it; [`NONE`] where there is no room.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hawser_flow_claim(hash: u64, now_ns: u64) -> u64 {
    match flow_table::claim(Kernel, hash, now_ns) {
        Some(claim) => u64::from(claim.slot) | claim.generation << SLOT_BITS,
        None => NONE,
    }
}

const YES: u32 = 0;
const TAKEN: u32 = 1;
const FULL: u32 = 2;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hawser_flow_enter(slot: u32, generation: u64, direction: u32, now_ns: u64) -> u32 {
    match flow_table::enter(Kernel, Claim { slot, generation }, direction, now_ns) {
        Entered::Yes => YES,
        Entered::Taken => TAKEN,
        Entered::Full => FULL,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hawser_flow_take(slot: u32, now_ns: u64) -> u64 {
    flow_table::take(Kernel, slot, now_ns)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hawser_flow_end(slot: u32, generation: u64) -> u32 {
    u32::from(flow_table::end(Kernel, slot, generation))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hawser_flow_give_back(slot: u32, generation: u64) -> u32 {
    flow_table::give_back(Kernel, Claim { slot, generation });
    0
}

#[inline(always)]
pub(crate) fn get(slot: u32) -> Option<&'static mut Flow> {
    // SAFETY: array entries live as long as the map. Other CPUs may write to the flow: its tuples change only with
    // its generation, and the other fields are single words.
    unsafe { FLOWS.get_ptr_mut(slot)?.as_mut() }
}

/// The maps.
#[derive(Clone, Copy)]
struct Kernel;

impl Tables for Kernel {
    #[inline(always)]
    fn slots(self) -> u32 {
        // SAFETY: a volatile read, because the loader changes the value after compilation.
        unsafe { (&raw const FLOW_SLOTS).read_volatile() }
    }

    #[inline(always)]
    fn flow(self, slot: u32) -> Option<*mut Flow> {
        FLOWS.get_ptr_mut(slot)
    }

    #[inline(always)]
    fn bucket(self, number: u32) -> Option<*mut FlowBucket> {
        FLOW_INDEX.get_ptr_mut(number)
    }

    #[inline(always)]
    unsafe fn exchange(self, word: *mut u64, old: u64, new: u64) -> bool {
        // SAFETY: the caller vouches for the pointer.
        unsafe { exchange(word, old, new) }
    }

    #[inline(always)]
    fn take(self, slot: u32, now_ns: u64) -> u64 {
        hawser_flow_take(slot, now_ns)
    }

    #[inline(always)]
    fn end(self, slot: u32, generation: u64) -> bool {
        hawser_flow_end(slot, generation) != 0
    }

    #[inline(always)]
    fn evicted(self) {
        count(Reason::FlowEvicted);
    }

    #[inline(always)]
    fn seed(self) -> u64 {
        SETTINGS.get(0).map_or(0, |settings| settings.flow_seed)
    }
}
