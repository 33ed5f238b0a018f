//! How much the maps hold.

use hawser_ebpf_abi::{
    Flow, FlowBucket,
    flow::{LEAST_FLOW_SLOTS, MOST_FLOW_SLOTS},
};

use crate::kernel::sys;

/// Part of the machine's memory that the flow table may take: a four-hundredth.
const MEMORY_PER_FLOWS: u64 = 400;

/// Returns the size of a flow table that suits the machine: a power of two.
pub(crate) fn flows_for_this_machine() -> u32 {
    flows_for(sys::memory_bytes())
}

pub(crate) fn flows_for(memory_bytes: u64) -> u32 {
    let each = (size_of::<Flow>() + size_of::<FlowBucket>()) as u64;
    let flows = memory_bytes / MEMORY_PER_FLOWS / each;
    let flows = flows.clamp(u64::from(LEAST_FLOW_SLOTS), u64::from(MOST_FLOW_SLOTS));
    // The power of two at or below it.
    1 << flows.ilog2()
}

/// Room in maps, in entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Frontends: an address, port and protocol each. As many service ports can be counted.
    pub frontends: u32,
    /// Backend slots, over all service ports. An update takes new ones before it gives back the old.
    pub backends: u32,
    /// Backends of UDP service ports and of those with client affinity.
    pub members: u32,
    /// Blocks of Maglev tables, 32 entries in 64 bytes each.
    pub maglev_blocks: u32,
    /// Clients of services with affinity. One more is served, not remembered, and counted.
    pub affinities: u32,
    /// Ranges in all different lists of `loadBalancerSourceRanges`. Load balancer addresses whose list finds no room
    /// let nobody in.
    pub source_ranges: u32,
}

impl Sizes {
    /// With which maps are made: about 40,000 services with three frontends each.
    pub const FIRST: Self = Self {
        frontends: 131_072,
        backends: 524_288,
        members: 262_144,
        // 16 MiB.
        maglev_blocks: 262_144,
        affinities: 131_072,
        source_ranges: 65_536,
    };

    /// To which they grow: about 400 MiB of the kernel's memory, if all do.
    pub const MOST: Self = Self {
        frontends: 8 * Self::FIRST.frontends,
        backends: 8 * Self::FIRST.backends,
        members: 8 * Self::FIRST.members,
        maglev_blocks: 8 * Self::FIRST.maglev_blocks,
        affinities: 8 * Self::FIRST.affinities,
        source_ranges: 8 * Self::FIRST.source_ranges,
    };

    /// Returns larger sizes, each at least doubled, that also have room for what is `lacking`, as far as `most` lets
    /// them. `None` where none can be larger.
    pub(crate) fn grown(self, lacking: Self, most: Self) -> Option<Self> {
        let grown = self.zip(lacking, |size, lacking| match lacking {
            0 => size,
            _ => size.saturating_mul(2).max(size.saturating_add(lacking)),
        });
        // A map that was made larger than that stays as it is.
        let grown = grown.zip(most, u32::min).zip(self, u32::max);
        (grown != self).then_some(grown)
    }

    /// Puts two together, map by map.
    fn zip(self, other: Self, join: impl Fn(u32, u32) -> u32) -> Self {
        Self {
            frontends: join(self.frontends, other.frontends),
            backends: join(self.backends, other.backends),
            members: join(self.members, other.members),
            maglev_blocks: join(self.maglev_blocks, other.maglev_blocks),
            affinities: join(self.affinities, other.affinities),
            source_ranges: join(self.source_ranges, other.source_ranges),
        }
    }
}
