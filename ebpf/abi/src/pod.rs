//! Pods of this node, the addresses that they may send from, and the short ways to them and to pods of other nodes.
//!
//! A packet takes a short way only where nobody else has to see it: between pods of the cluster, and as part of a flow
//! that the packet path itself translates. All other packets leave the cluster or come from outside of it, and the
//! host's rules (masquerade) apply to them.

use crate::Addr;

/// Value of `PODS`, whose key is the pod's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLink {
    /// The host's side of the pod's interface.
    pub ifindex: u32,
    /// Link-layer address of the pod's side, in words as they lie in memory. All zero where packets for the pod go by
    /// the host's routes.
    pub mac: [u16; 3],
    /// Always 0.
    pub pad: u16,
}
const _: () = assert!(size_of::<PodLink>() == 12);

/// Pods' addresses on one node, two a pod.
pub const PODS: u32 = 8192;

/// A range of addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub addr: Addr,
    /// All zero for a range that is not in use: an address in `0.0.0.0/0` still has the prefix of mapped addresses.
    pub mask: Addr,
}
const _: () = assert!(size_of::<Range>() == 32);

/// Pod ranges of the cluster that programs compare with: two families, and as much again.
pub const RANGES: usize = 4;

impl Range {
    /// Returns the range of `len` leading bits of `addr`; for IPv4 the 96 of the mapped prefix are part of it.
    pub fn new(addr: Addr, len: u32) -> Self {
        let mask = match len {
            0 => 0,
            len => u128::MAX << (128 - len.min(128)),
        };
        Self {
            addr: (u128::from_be_bytes(addr.octets()) & mask).to_be_bytes().into(),
            mask: mask.to_be_bytes().into(),
        }
    }

    #[inline(always)]
    pub fn contains(&self, addr: &Addr) -> bool {
        let (addr, own, mask) = (addr.words(), self.addr.words(), self.mask.words());
        let mut different = 0;
        let mut used = 0;
        let mut index = 0;
        while index < 4 {
            different |= (addr[index] ^ own[index]) & mask[index];
            used |= mask[index];
            index += 1;
        }
        used != 0 && different == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v4_mapped;

    #[test]
    fn range_holds_what_shares_its_prefix() {
        #[track_caller]
        fn check(addr: Addr, len: u32, inside: Addr, outside: Addr) {
            let range = Range::new(addr, len);
            assert!(range.contains(&inside));
            assert!(!range.contains(&outside));
        }
        let v4 = |last: [u8; 4]| v4_mapped(last);
        check(v4([10, 244, 0, 0]), 96 + 16, v4([10, 244, 255, 1]), v4([10, 245, 0, 1]));
        check(v4([10, 244, 1, 7]), 128, v4([10, 244, 1, 7]), v4([10, 244, 1, 6]));
        check(v4([0; 4]), 96, v4([255; 4]), Addr::from([0xfd; 16]));
        let v6 =
            |seventh: u8, last: u8| Addr::from([0xfd, 0, 0, 0, 0, 0, 0, seventh, 0, 0, 0, 0, 0, 0, 0, last]);
        check(v6(0, 0), 64, v6(0, 9), v6(1, 0));
        assert!(!Range::default().contains(&v6(0, 0)), "not in use");
    }
}
