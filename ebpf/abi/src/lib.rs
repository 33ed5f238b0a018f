//! What the kernel programs, the node agent and the tests share: map layouts, counters by reason, and the decisions
//! that both sides must take alike.
//!
//! Everything here is plain data of fixed layout: `repr(C)`, integers, explicit zeroed padding, a size assertion.
//! Addresses are 128 bits ([`Addr`]). Fields whose name ends in `_be` are in network order, all others in the machine's.
//!
//! Pinned maps outlive the process that made them. A change of any layout raises [`LAYOUT_VERSION`]; the agent
//! compares it before it adopts what it finds.
#![no_std]

pub mod addr;
pub mod affinity;
pub mod checksum;
pub mod flow;
#[expect(unsafe_code, reason = "memory that other CPUs write to is reached by pointers")]
pub mod flow_table;
pub mod fragment;
pub mod icmp;
pub mod maglev;
pub mod pod;
pub mod ranges;
pub mod reason;
pub mod service;
pub mod socket;
pub mod xdp;

pub use addr::{Addr, v4_mapped};
pub use affinity::{Affinity, AffinityKey};
pub use flow::{Flow, FlowBucket, FlowKey, FlowRef};
pub use fragment::{FragmentKey, FragmentPorts};
pub use maglev::MaglevBlock;
pub use pod::{PodLink, Range};
pub use ranges::{RangeKey, RangeSubject};
pub use reason::Reason;
pub use service::{Backend, Endpoint, Frontend, FrontendKey, MemberKey, ServiceCounters};
pub use socket::{ConnectedPeer, PeerPlace, UdpPeer, UdpPeers};
pub use xdp::{XdpLink, XdpLinks};

/// Version of all layouts in this crate together. The agent writes it into [`Settings`] and checks it at adoption.
pub const LAYOUT_VERSION: u32 = 4;

pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
pub const IPPROTO_ICMPV6: u8 = 58;

/// Settings of the node, the one entry of `SETTINGS`. The agent writes, the programs read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub layout_version: u32,
    /// Entries of `OPTED_OUT`: a socket whose service is found looks there only when there are any.
    pub opted_out: u32,
    /// `SETTINGS_*`.
    pub flags: u32,
    /// Always 0.
    pub pad: u32,
    /// Secret of the node that its flows are hashed with. Never changes while there are flows.
    pub flow_seed: u64,
    /// Cookie of the node's own network namespace. Node ports on loopback are served in it alone.
    pub node_netns_cookie: u64,
    /// Source of packets that the node sends on to backends of other nodes. All zero: none of that family.
    pub snat_v4: Addr,
    pub snat_v6: Addr,
    /// Ranges of the cluster's pods: packets among them need nothing of the host.
    pub pod_ranges: [Range; pod::RANGES],
}
const _: () = assert!(size_of::<Settings>() == 64 + 32 * pod::RANGES);

/// Programs move packets to and from pods themselves, where they can.
pub const SETTINGS_SHORT_WAYS: u32 = 1 << 0;

/// First port that the packet path uses as a source. Linux leaves 61000 and up to nobody by default
/// (`ip_local_port_range` ends at 60999).
pub const SNAT_PORT_FIRST: u16 = 61_000;
/// Number of ports from [`SNAT_PORT_FIRST`] on: to 65535.
pub const SNAT_PORT_COUNT: u16 = 4_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name() {
        assert_eq!(reason::NAMES[Reason::DropNoLocalBackend as usize], "drop_no_local_backend");
        assert_eq!(reason::NAMES[Reason::AffinityFull as usize], "affinity_full");
        assert_eq!(reason::NAMES[Reason::PacketDsr as usize], "packet_dsr");
        assert_eq!(Reason::PacketDsr as usize + 1, reason::REASONS);
    }
}
