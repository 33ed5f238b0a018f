//! Ranges of addresses as flags name them: `10.0.0.0/24`, `10.0.0.200-10.0.0.250`, or one address.
//!
//! Of an IPv4 network in CIDR form the first and the last address are left out: they are the network's own and its
//! broadcast address, which no host may have. A range from address to address is taken as it is written.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Addresses of one family, first to last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address range: {expected}")]
pub struct ParseAddressRangeError {
    text: String,
    expected: &'static str,
}

impl AddressRange {
    pub fn is_v4(&self) -> bool {
        self.first.is_ipv4()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_v4() && self.first <= address && address <= self.last
    }

    /// All addresses, in order.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let is_v4 = self.is_v4();
        (bits(self.first)..=bits(self.last)).map(move |value| address(value, is_v4))
    }
}

impl FromStr for AddressRange {
    type Err = ParseAddressRangeError;

    fn from_str(text: &str) -> Result<Self, ParseAddressRangeError> {
        let wrong = |expected| ParseAddressRangeError { text: text.to_owned(), expected };
        let parse = |part: &str| {
            part.trim()
                .parse::<IpAddr>()
                .map_err(|_| wrong("10.0.0.0/24 or 10.0.0.200-10.0.0.250 is expected"))
        };
        if let Some((first, last)) = text.split_once('-') {
            let (first, last) = (parse(first)?, parse(last)?);
            if first.is_ipv4() != last.is_ipv4() {
                return Err(wrong("both ends must be of one family"));
            }
            if first > last {
                return Err(wrong("it ends before it begins"));
            }
            return Ok(Self { first, last });
        }
        let Some((base, prefix)) = text.split_once('/') else {
            let only = parse(text)?;
            return Ok(Self { first: only, last: only });
        };
        let base = parse(base)?;
        let width: u32 = if base.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse::<u32>().ok().filter(|prefix| *prefix <= width);
        let prefix = prefix.ok_or_else(|| wrong("its prefix is not a length of the family"))?;
        let hosts = u128::MAX.checked_shr(128 - (width - prefix)).unwrap_or(0);
        let first = bits(base) & !hosts;
        let mut ends = (first, first | hosts);
        if base.is_ipv4() && hosts > 1 {
            ends = (ends.0 + 1, ends.1 - 1);
        }
        Ok(Self { first: address(ends.0, base.is_ipv4()), last: address(ends.1, base.is_ipv4()) })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(bits: u128, is_v4: bool) -> IpAddr {
    // The upper bits of an IPv4 address's number are zero.
    if is_v4 { Ipv4Addr::from_bits(bits as u32).into() } else { Ipv6Addr::from_bits(bits).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, usize)>) {
        let range = text.parse::<AddressRange>().ok();
        let found = range.map(|range| (range.to_string(), range.iter().take(1000).count()));
        let expected = expected.map(|(text, count)| (text.to_owned(), count));
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn ranges_are_read_as_people_write_them() {
        check("10.0.0.200-10.0.0.250", Some(("10.0.0.200-10.0.0.250", 51)));
        check("10.0.0.64/29", Some(("10.0.0.65-10.0.0.70", 6)));
        check("10.0.0.65/29", Some(("10.0.0.65-10.0.0.70", 6)));
        check("10.0.0.1/32", Some(("10.0.0.1-10.0.0.1", 1)));
        check("10.0.0.2/31", Some(("10.0.0.2-10.0.0.3", 2)));
        check("10.0.0.9", Some(("10.0.0.9-10.0.0.9", 1)));
        check("0.0.0.0/0", Some(("0.0.0.1-255.255.255.254", 1000)));
        check("fd00::/126", Some(("fd00::-fd00::3", 4)));
        check("fd00::5-fd00::6", Some(("fd00::5-fd00::6", 2)));
        check("::/0", Some(("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1000)));
        for wrong in
            ["", "10.0.0.0/33", "10.0.0.9-10.0.0.1", "10.0.0.1-fd00::1", "10.0.0/24", "a-b", "10.0.0.1-"]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn range_contains_its_ends_and_nothing_beyond() {
        let range: AddressRange = "10.0.0.200-10.0.0.250".parse().unwrap();
        let contains = |text: &str| range.contains(text.parse().unwrap());
        assert!(contains("10.0.0.200") && contains("10.0.0.250"));
        assert!(!contains("10.0.0.199") && !contains("10.0.0.251") && !contains("::ffff:10.0.0.200"));
    }
}
