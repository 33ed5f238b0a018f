//! Which blocks of a cluster range are in use. Pure.
//!
//! Every block has a count, not a flag: two nodes that were given the same block by hand both hold it until
//! both are gone. A block of another size holds all that it overlaps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

pub(super) struct Blocks {
    range: IpNet,
    mask: u8,
    /// Nodes that hold each block. At most 2^20 blocks: the configuration is checked for that.
    holders: Vec<u16>,
    /// Where to look next: blocks just given back rest for as long as possible.
    next: usize,
}

impl Blocks {
    pub(super) fn new(range: IpNet, mask: u8) -> Self {
        let count = 1 << (mask - range.prefix_len());
        Self { range: range.trunc(), mask, holders: vec![0; count], next: 0 }
    }

    /// Takes a free block; `None` where all are held.
    pub(super) fn allocate(&mut self) -> Option<IpNet> {
        let count = self.holders.len();
        let found = (0..count).map(|step| (self.next + step) % count).find(|at| self.holders[*at] == 0)?;
        self.holders[found] = 1;
        self.next = (found + 1) % count;
        self.block(found)
    }

    pub(super) fn hold(&mut self, block: &IpNet) {
        for at in self.overlapped(block) {
            self.holders[at] = self.holders[at].saturating_add(1);
        }
    }

    pub(super) fn release(&mut self, block: &IpNet) {
        for at in self.overlapped(block) {
            self.holders[at] = self.holders[at].saturating_sub(1);
        }
    }

    fn block(&self, at: usize) -> Option<IpNet> {
        let shift = u32::from(self.range.max_prefix_len() - self.mask);
        let offset = u128::try_from(at).ok()?.checked_shl(shift)?;
        let address = match self.range.addr() {
            IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from(u32::from(base) + u32::try_from(offset).ok()?)),
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base) + offset)),
        };
        IpNet::new(address, self.mask).ok()
    }

    /// The numbers of the blocks that share addresses with `block`.
    fn overlapped(&self, block: &IpNet) -> std::ops::Range<usize> {
        let (first, last) = (self.position(block.network()), self.position(block.broadcast()));
        match (first, last) {
            (Some(first), Some(last)) => first..last + 1,
            // A block around the whole range, or partly outside it, which masks make impossible.
            _ if block.contains(&self.range) => 0..self.holders.len(),
            _ => 0..0,
        }
    }

    fn position(&self, address: IpAddr) -> Option<usize> {
        if !self.range.contains(&address) {
            return None;
        }
        let shift = u32::from(self.range.max_prefix_len() - self.mask);
        let offset = match (address, self.range.addr()) {
            (IpAddr::V4(address), IpAddr::V4(base)) => u128::from(u32::from(address) - u32::from(base)),
            (IpAddr::V6(address), IpAddr::V6(base)) => u128::from(address) - u128::from(base),
            _ => return None,
        };
        usize::try_from(offset.checked_shr(shift).unwrap_or_default()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn blocks_are_given_once_until_all_are_held() {
        let mut blocks = Blocks::new(net("10.244.0.0/22"), 24);
        let given: Vec<String> = std::iter::from_fn(|| blocks.allocate()).map(|it| it.to_string()).collect();
        assert_eq!(given, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
        blocks.release(&net("10.244.2.0/24"));
        assert_eq!(blocks.allocate(), Some(net("10.244.2.0/24")));
    }

    #[test]
    fn held_blocks_are_passed_over_whatever_their_size() {
        let mut blocks = Blocks::new(net("10.244.0.0/22"), 24);
        blocks.hold(&net("10.244.0.128/25"));
        blocks.hold(&net("10.244.2.0/23"));
        blocks.hold(&net("192.168.0.0/24"));
        assert_eq!(blocks.allocate(), Some(net("10.244.1.0/24")));
        assert_eq!(blocks.allocate(), None);
    }

    #[test]
    fn block_of_two_nodes_stays_held_until_both_are_gone() {
        let mut blocks = Blocks::new(net("10.244.0.0/24"), 24);
        let only = net("10.244.0.0/24");
        blocks.hold(&only);
        blocks.hold(&only);
        blocks.release(&only);
        assert_eq!(blocks.allocate(), None);
        blocks.release(&only);
        assert_eq!(blocks.allocate(), Some(only));
    }

    #[test]
    fn v6_ranges_work_alike() {
        let mut blocks = Blocks::new(net("fd00:1::/48"), 64);
        blocks.hold(&net("fd00:1::/64"));
        assert_eq!(blocks.allocate(), Some(net("fd00:1:0:1::/64")));
    }
}
