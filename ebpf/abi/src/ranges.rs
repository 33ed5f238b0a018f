//! `loadBalancerSourceRanges`: who may reach a load balancer's addresses, in the trie `SOURCE_RANGES`.
//!
//! Services with the same ranges share one list, which a frontend names by its id. A source that matches no prefix of
//! the list may not in. List 0 has no prefixes: it lets nobody in.

use crate::Addr;

/// What a prefix of `SOURCE_RANGES` covers, and what a lookup asks for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeSubject {
    pub list: u32,
    pub addr: Addr,
}
const _: () = assert!(size_of::<RangeSubject>() == 20);

/// Key of `SOURCE_RANGES`, as tries of the kernel have it: the length in bits, then the bits. The value is unused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeKey {
    pub prefix_len: u32,
    pub subject: RangeSubject,
}
const _: () = assert!(size_of::<RangeKey>() == 24);

/// Length of the part of a prefix that is the list's id.
pub const RANGE_LIST_BITS: u32 = 32;
/// Length of a lookup: the list and a whole address.
pub const RANGE_LOOKUP_BITS: u32 = RANGE_LIST_BITS + 128;
