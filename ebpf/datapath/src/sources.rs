//! Source ports of the node for flows to backends elsewhere, and for pods that reach themselves.
//!
//! A source belongs to the flow whose reply tuple is in the index of flows, where an entry is made only if there is
//! none. All ports are tried, from a random one on and in steps that have no common divisor with their number, so the
//! last free port is found. When there is none, that is noted: for a second nothing more is looked for towards this
//! backend, because a fruitless search costs up to a millisecond of this CPU.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::generated::{bpf_get_prandom_u32, bpf_loop},
};
use hawser_ebpf_abi::{
    Addr, Endpoint, Flow, FlowKey, Reason, SNAT_PORT_COUNT, SNAT_PORT_FIRST,
    flow::DIRECTION_REPLY,
    flow_table::{Claim, Entered},
};

use crate::{
    flows,
    maps::{EXHAUSTED, SETTINGS},
    packet::{Packet, Search},
};

/// How long nothing is looked for after a fruitless search. Ports come free by the second: flows age.
const PAUSE_NS: u64 = 1_000_000_000;

/// Whose address the port is of.
pub(crate) const NODE: u32 = 0;
pub(crate) const CLIENT: u32 = 1;

/// Finds a port that no other flow of the address uses towards this backend, and enters the flow's reply tuple with it.
#[inline(always)]
pub(crate) fn allocate(
    packet: &mut Packet,
    flow: &mut Flow,
    claim: Claim,
    from: u32,
    now_ns: u64,
) -> Result<(), Reason> {
    let settings = SETTINGS.get(0).ok_or(Reason::DropNoSourceAddress)?;
    let source = match from {
        CLIENT => &packet.tuple.source,
        _ if packet.is_v4() => &settings.snat_v4,
        _ => &settings.snat_v6,
    };
    if *source == Addr::UNSPECIFIED {
        return Err(Reason::DropNoSourceAddress);
    }
    flow.reply = FlowKey::new(packet.backend.endpoint(), Endpoint::new(*source, 0), packet.tuple.protocol);
    // SAFETY: an entry that makes room may be used again while it is read: the worst outcome is one search too many,
    // or one flow refused.
    if unsafe { EXHAUSTED.get(&flow.reply) }.is_some_and(|until_ns| now_ns < *until_ns) {
        return Err(Reason::DropNoSourcePort);
    }
    // SAFETY: the helper has no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    packet.search.claim = claim;
    packet.search.now_ns = now_ns;
    packet.search.next = random % u32::from(SNAT_PORT_COUNT);
    packet.search.step = step(random >> 16);
    packet.search.is_found = 0;
    let mut attempt = Attempt { search: &raw mut packet.search };
    let try_next: extern "C" fn(u32, *mut Attempt) -> i64 = try_next;
    // SAFETY: the callback has the signature that the helper calls, and its context outlives the call.
    unsafe {
        bpf_loop(u32::from(SNAT_PORT_COUNT), try_next as *mut c_void, (&raw mut attempt).cast(), 0);
    }
    if packet.search.is_found != 0 {
        return Ok(());
    }
    flow.reply.destination_port_be = 0;
    // A failure costs the next flow a search.
    let _ = EXHAUSTED.insert(&flow.reply, &(now_ns + PAUSE_NS), u64::from(BPF_ANY));
    Err(Reason::DropNoSourcePort)
}

/// What the callback works on. A pointer, so that the compiler knows that the loop changes the search.
struct Attempt {
    search: *mut Search,
}

/// Tries one port; returns 1 to end the loop.
extern "C" fn try_next(_index: u32, attempt: *mut Attempt) -> i64 {
    // SAFETY: the loop runs inside of `allocate`, which has the search to itself.
    let search = unsafe { &mut *(*attempt).search };
    let Some(flow) = flows::get(search.claim.slot) else { return 1 };
    let count = u32::from(SNAT_PORT_COUNT);
    let offset = search.next;
    let next = offset + search.step;
    search.next = if next >= count { next - count } else { next };
    flow.reply.destination_port_be = (SNAT_PORT_FIRST + offset as u16).to_be();
    if flows::enter(search.claim, DIRECTION_REPLY, search.now_ns) == Entered::Yes {
        search.is_found = 1;
        return 1;
    }
    0
}

/// Different searches go different ways, so that taken ports do not form runs.
#[inline(always)]
fn step(random: u32) -> u32 {
    const STEPS: [u32; 4] = [1259, 1597, 2203, 2741];
    const _: () = {
        let mut index = 0;
        while index < STEPS.len() {
            // The number of ports is 2³ · 3⁴ · 7.
            assert!(SNAT_PORT_COUNT == 4536 && STEPS[index] < SNAT_PORT_COUNT as u32);
            assert!(STEPS[index] % 2 != 0 && STEPS[index] % 3 != 0 && STEPS[index] % 7 != 0);
            index += 1;
        }
    };
    match random & 3 {
        0 => STEPS[0],
        1 => STEPS[1],
        2 => STEPS[2],
        _ => STEPS[3],
    }
}
