//! Pods of this node: whose address is whose, and which interfaces packets reach by the short way.
//!
//! The map in the kernel is what counts: it outlives the agent, so an agent that starts reads it. An entry is removed
//! with its interface, and by nobody who speaks of another interface: addresses are used again.

use std::{io, net::IpAddr};

use hawser_ebpf_abi::{
    Addr, PodLink, Range,
    pod::{PODS, RANGES},
};

use crate::{
    desired::addr,
    kernel::{map::Map, sys},
};

/// Whether programs move packets to and from pods themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShortWays {
    /// Where an interface can (veth), else by the host's routes.
    #[default]
    Probe,
    /// Always by the host's routes.
    Off,
}

/// Makes `addresses`, and no others, the interface's; without `mac` they are reached by the host's routes.
pub(crate) fn set(
    map: &Map<Addr, PodLink>,
    ifindex: u32,
    mac: Option<[u8; 6]>,
    addresses: &[IpAddr],
) -> io::Result<()> {
    let wanted: Vec<Addr> = addresses.iter().map(|address| addr(*address)).collect();
    let entries = map.entries()?;
    for (address, _) in
        entries.iter().filter(|(address, link)| link.ifindex == ifindex && !wanted.contains(address))
    {
        map.remove(address)?;
    }
    let mac = mac.unwrap_or_default();
    let word = |at: usize| u16::from_ne_bytes([mac[at], mac[at + 1]]);
    let link = PodLink { ifindex, mac: [word(0), word(2), word(4)], pad: 0 };
    for address in wanted {
        map.set(&address, &link).map_err(|error| {
            let full = error.raw_os_error() == Some(libc::E2BIG);
            if full { io::Error::other(format!("it has room for {PODS} addresses of pods")) } else { error }
        })?;
    }
    Ok(())
}

/// Removes entries whose interface is gone.
pub(crate) fn remove_stale(map: &Map<Addr, PodLink>) -> io::Result<()> {
    for (address, link) in map.entries()? {
        if sys::interface_name(link.ifindex).is_err() {
            map.remove(&address)?;
        }
    }
    Ok(())
}

/// Returns the ranges as programs compare them, and how many there was no room for.
pub(crate) fn ranges(ranges: &[(IpAddr, u8)]) -> ([Range; RANGES], usize) {
    let mut out = [Range::default(); RANGES];
    for (slot, (address, len)) in out.iter_mut().zip(ranges) {
        let mapped = if address.is_ipv4() { 96 } else { 0 };
        *slot = Range::new(addr(*address), mapped + u32::from(*len));
    }
    (out, ranges.len().saturating_sub(RANGES))
}
