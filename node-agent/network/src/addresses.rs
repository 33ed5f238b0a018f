//! Which address of a block goes to the next pod. Pure: what is taken is kept on disk by [`crate::pods`].

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// One block of a node.
///
/// Addresses are handed out in order, round and round, so that one that was just given back is used last.
#[derive(Debug)]
pub(crate) struct Block {
    range: IpNet,
    taken: HashSet<IpAddr>,
    /// Offset at which the next search begins.
    next: u128,
}

impl Block {
    pub(crate) fn new(range: IpNet) -> Self {
        Self { range: range.trunc(), taken: HashSet::new(), next: FIRST }
    }

    pub(crate) fn range(&self) -> IpNet {
        self.range
    }

    /// How many pods fit: the first address is the tunnel's, the last one is the broadcast address in IPv4.
    fn size(&self) -> u128 {
        let bits = u32::from(self.range.max_prefix_len() - self.range.prefix_len());
        // More than 64 bits of pods is more than can be counted through; nobody has them.
        let all = 1u128 << bits.min(64);
        if self.range.addr().is_ipv4() { all.saturating_sub(1) } else { all }
    }

    /// The next free address; `None` where all are taken.
    pub(crate) fn take(&mut self) -> Option<IpAddr> {
        let size = self.size();
        if size <= FIRST || self.taken.len() as u128 >= size - FIRST {
            return None;
        }
        loop {
            if self.next >= size {
                self.next = FIRST;
            }
            let address = self.at(self.next);
            self.next += 1;
            if self.taken.insert(address) {
                return Some(address);
            }
        }
    }

    /// Marks an address that a record says is in use. False where it is not of this block, or taken already.
    pub(crate) fn claim(&mut self, address: IpAddr) -> bool {
        if !self.range.contains(&address) || !self.taken.insert(address) {
            return false;
        }
        self.next = self.next.max(self.offset(address) + 1);
        true
    }

    pub(crate) fn release(&mut self, address: IpAddr) {
        self.taken.remove(&address);
    }

    fn at(&self, offset: u128) -> IpAddr {
        match self.range.addr() {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + offset as u32).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + offset).into(),
        }
    }

    fn offset(&self, address: IpAddr) -> u128 {
        match (self.range.addr(), address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => (address.to_bits() - first.to_bits()).into(),
            (IpAddr::V6(first), IpAddr::V6(address)) => address.to_bits() - first.to_bits(),
            _ => 0,
        }
    }
}

/// The first address of a block belongs to the tunnel.
const FIRST: u128 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn block(range: &str) -> Block {
        Block::new(range.parse().expect("a range"))
    }

    #[test]
    fn every_address_is_given_once_and_then_none() {
        let mut block = block("10.0.0.0/28");
        let given: HashSet<IpAddr> = std::iter::from_fn(|| block.take()).collect();
        assert_eq!(given.len(), 14);
        assert!(
            !given.contains(&"10.0.0.0".parse().unwrap()) && !given.contains(&"10.0.0.15".parse().unwrap())
        );
        assert_eq!(block.take(), None);
    }

    #[test]
    fn released_address_is_reused_last() {
        let mut block = block("10.0.0.0/29");
        let first = block.take().unwrap();
        block.release(first);
        let rest: Vec<IpAddr> = (0..5).map(|_| block.take().unwrap()).collect();
        assert!(!rest.contains(&first));
        assert_eq!(block.take(), Some(first));
    }

    #[test]
    fn claimed_address_is_never_given() {
        let mut block = block("fd00::/124");
        assert!(block.claim("fd00::3".parse().unwrap()));
        assert!(!block.claim("fd00::3".parse().unwrap()), "a second claim of it is refused");
        assert!(!block.claim("fd01::3".parse().unwrap()), "an address of another block is refused");
        let given: HashSet<IpAddr> = std::iter::from_fn(|| block.take()).collect();
        assert_eq!(given.len(), 14);
        assert!(!given.contains(&"fd00::3".parse().unwrap()));
    }

    /// Thousands of random steps against a plain set.
    #[test]
    fn random_histories_never_give_an_address_twice() {
        let mut state = 7u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        let mut block = block("10.0.0.0/27");
        let mut held: Vec<IpAddr> = Vec::new();
        for _ in 0..20_000 {
            if random(2) == 0 || held.is_empty() {
                match block.take() {
                    Some(address) => {
                        assert!(!held.contains(&address), "{address} was given twice");
                        held.push(address);
                    }
                    None => assert_eq!(held.len(), 30),
                }
            } else {
                let address = held.swap_remove(random(held.len()));
                block.release(address);
            }
        }
    }
}
