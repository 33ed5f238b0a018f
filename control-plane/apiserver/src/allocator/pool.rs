//! Ranges to choose from: which address or port to try next.
//!
//! As upstream does (KEP-3070, KEP-3668), the lower part of a range is left to clients that name an address or port
//! themselves; what is given out comes from the upper part while that lasts.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Largest number of addresses of a range that is used; an IPv6 range has more than anyone counts.
const MAX_SIZE: u64 = 1 << 20;

/// Random tries before a range is searched from end to end.
const TRIES: usize = 32;

/// Addresses of services, without the first (the network's) and the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpRange {
    base: u128,
    v4: bool,
    prefix: u8,
    /// Usable addresses: `base + 1 ..= base + size`.
    size: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseRangeError {
    text: String,
    expected: &'static str,
}

impl FromStr for IpRange {
    type Err = ParseRangeError;

    fn from_str(text: &str) -> Result<Self, ParseRangeError> {
        let error = |expected| ParseRangeError { text: text.to_owned(), expected };
        let wrong = || error("an address range such as 10.96.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let (base, v4, bits) = match address.parse().map_err(|_| wrong())? {
            IpAddr::V4(address) => (u128::from(u32::from(address)), true, 32),
            IpAddr::V6(address) => (u128::from(address), false, 128),
        };
        if prefix > bits {
            return Err(wrong());
        }
        let host_bits = u32::from(bits - prefix);
        if host_bits < 3 {
            return Err(error("large enough: at least 8 addresses are needed"));
        }
        let total = if host_bits >= 64 { MAX_SIZE } else { (1_u64 << host_bits).min(MAX_SIZE) };
        // The last one of an IPv4 network is its broadcast address.
        let size = total - 2;
        let base = if host_bits == 128 { 0 } else { base >> host_bits << host_bits };
        Ok(Self { base, v4, prefix, size })
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(0), self.prefix)
    }
}

impl IpRange {
    pub fn is_v4(&self) -> bool {
        self.v4
    }

    /// `IPv4` or `IPv6`.
    pub fn family(&self) -> &'static str {
        if self.v4 { "IPv4" } else { "IPv6" }
    }

    fn address(&self, offset: u64) -> IpAddr {
        let value = self.base + u128::from(offset);
        if self.v4 { Ipv4Addr::from(value as u32).into() } else { Ipv6Addr::from(value).into() }
    }

    /// The first address that services can have: that of the API server.
    pub fn first(&self) -> IpAddr {
        self.address(1)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let value = match address {
            IpAddr::V4(address) if self.v4 => u128::from(u32::from(address)),
            IpAddr::V6(address) if !self.v4 => u128::from(address),
            _ => return false,
        };
        value > self.base && value <= self.base + u128::from(self.size)
    }

    /// An address that is not in `taken`; `None` where all are.
    pub(super) fn free(&self, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
        let reserved = if self.size < 16 { 0 } else { (self.size / 16).clamp(16, 256).min(self.size) };
        pick(1, reserved, self.size, |offset| !taken.contains(&self.address(offset)))
            .map(|offset| self.address(offset))
    }
}

/// Node ports: `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl Default for PortRange {
    fn default() -> Self {
        Self { first: 30_000, last: 32_767 }
    }
}

impl FromStr for PortRange {
    type Err = ParseRangeError;

    fn from_str(text: &str) -> Result<Self, ParseRangeError> {
        let wrong =
            || ParseRangeError { text: text.to_owned(), expected: "a range of ports such as 30000-32767" };
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let (first, last) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
        if first == 0 || first > last {
            return Err(wrong());
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl PortRange {
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    pub(super) fn free(self, taken: &HashSet<u16>) -> Option<u16> {
        let size = u64::from(self.last - self.first) + 1;
        let reserved = if size < 16 { 0 } else { (size / 32).clamp(16, 128).min(size) };
        pick(0, reserved, size, |offset| !taken.contains(&(self.first + offset as u16)))
            .map(|offset| self.first + offset as u16)
    }
}

/// An offset of `first .. first + size` that `is_free`: a random one above the reserved part, else any one there, else one
/// of the reserved part.
fn pick(first: u64, reserved: u64, size: u64, is_free: impl Fn(u64) -> bool) -> Option<u64> {
    let (low, high) = (first + reserved, first + size);
    if high > low {
        for _ in 0..TRIES {
            let random = uuid::Uuid::new_v4().as_u64_pair().0;
            let offset = low + random % (high - low);
            if is_free(offset) {
                return Some(offset);
            }
        }
    }
    (low..high).chain(first..low).find(|offset| is_free(*offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_given_out_once_and_then_none() {
        for (range, usable) in [("10.0.0.0/28", 14), ("10.0.0.0/24", 254), ("fd00::/124", 14)] {
            let range: IpRange = range.parse().expect("a range");
            let mut taken = HashSet::new();
            for _ in 0..usable {
                let address = range.free(&taken).expect("an address");
                assert!(range.contains(address) && taken.insert(address));
            }
            assert_eq!(range.free(&taken), None, "{range}");
        }
        let ports: PortRange = "30000-30009".parse().expect("a range");
        let mut taken = HashSet::new();
        while let Some(port) = ports.free(&taken) {
            assert!(ports.contains(port) && taken.insert(port));
        }
        assert_eq!(taken.len(), 10);
    }

    #[test]
    fn addresses_are_given_from_the_upper_part_first() {
        let range: IpRange = "10.96.0.0/16".parse().expect("a range");
        let free = range.free(&HashSet::new()).expect("an address");
        assert!(free > "10.96.1.0".parse::<IpAddr>().expect("an address"), "{free}");
        assert_eq!(range.first().to_string(), "10.96.0.1");
        assert!(!range.contains("10.96.0.0".parse().expect("an address")));
        assert!(!range.contains("10.96.255.255".parse().expect("an address")));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/31", "a/8", "fd00::/129"] {
            assert!(text.parse::<IpRange>().is_err(), "{text}");
        }
        for text in ["", "1", "2-1", "0-5", "1-70000"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }
}
