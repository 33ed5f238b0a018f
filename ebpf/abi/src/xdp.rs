//! Interfaces at which packets are sent on before the host makes anything of them.

/// An interface with the program attached. A packet leaves at XDP only by one of these: a driver sends what XDP
/// redirects to it once it runs XDP itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpLink {
    /// 0 for a place that is free.
    pub ifindex: u32,
    /// Its link-layer address, in words as they lie in memory.
    pub mac: [u16; 3],
    /// Always 0.
    pub pad: u16,
}
const _: () = assert!(size_of::<XdpLink>() == 12);

/// Interfaces with the program, at most. One more does without.
pub const XDP_LINKS: usize = 8;

/// The one value of `XDP_LINKS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpLinks {
    pub links: [XdpLink; XDP_LINKS],
}

impl XdpLinks {
    /// Returns the interface with this index, which is not 0.
    #[inline(always)]
    pub fn find(&self, ifindex: u32) -> Option<&XdpLink> {
        // By number: the verifier cannot tell where a loop over pointers ends.
        let mut index = 0;
        while index < XDP_LINKS {
            if self.links[index].ifindex == ifindex {
                return Some(&self.links[index]);
            }
            index += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_is_found_by_its_index() {
        let mut links = XdpLinks::default();
        links.links[7] = XdpLink { ifindex: 12, mac: [1, 2, 3], pad: 0 };
        assert_eq!(links.find(12), Some(&links.links[7]));
        assert_eq!(links.find(13), None);
    }
}
