//! Addresses of either family in one type, so that there is one code path for both.

use core::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
};

/// An address in network order, IPv4 as `::ffff:a.b.c.d`.
///
/// Held in words as they lie in memory: the machine of the kernel programs has no unaligned loads, and would copy,
/// compare and add up an array of bytes one by one.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Addr {
    words: [u32; 4],
}
const _: () = assert!(size_of::<Addr>() == 16);

/// Third word of every mapped IPv4 address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Addr {
    /// `::`, which stands for "none".
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };

    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// Returns the words as they lie in memory.
    #[inline(always)]
    pub const fn words(&self) -> &[u32; 4] {
        &self.words
    }

    /// Maps the word of an IPv4 address, as it lies in memory and as the kernel's context fields have it.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// Returns the word of a mapped IPv4 address as it lies in memory.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }

    /// Tells whether this is an IPv4 address in its mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] | self.words[1] | (self.words[2] ^ MAPPED) == 0
    }

    /// Returns the bytes in network order.
    pub const fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        let mut index = 0;
        while index < 16 {
            octets[index] = self.words[index / 4].to_ne_bytes()[index % 4];
            index += 1;
        }
        octets
    }
}

impl From<[u8; 16]> for Addr {
    fn from(octets: [u8; 16]) -> Self {
        let word =
            |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
        Self { words: [word(0), word(4), word(8), word(12)] }
    }
}

/// Maps an IPv4 address in network order.
pub const fn v4_mapped(octets: [u8; 4]) -> Addr {
    Addr::from_v4_word(u32::from_ne_bytes(octets))
}

// Without branches, which a program for the kernel would have four of.
impl PartialEq for Addr {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&self.words, &other.words);
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }
}

impl Eq for Addr {}

impl Hash for Addr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.words.hash(state);
    }
}

/// In the order of the addresses, whatever the machine's.
impl Ord for Addr {
    fn cmp(&self, other: &Self) -> Ordering {
        self.octets().cmp(&other.octets())
    }
}

impl PartialOrd for Addr {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::net::Ipv6Addr::from(self.octets()).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_told_from_others() {
        let addr = v4_mapped([192, 0, 2, 1]);
        assert!(addr.is_v4());
        assert_eq!(addr.octets(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        assert_eq!(addr.v4_word().to_ne_bytes(), [192, 0, 2, 1]);
        for byte in 0..12 {
            let mut other = addr.octets();
            other[byte] ^= 1;
            assert!(!Addr::from(other).is_v4(), "byte {byte}");
        }
    }

    #[test]
    fn addresses_are_equal_and_ordered_as_their_octets() {
        let octets: [u8; 16] = core::array::from_fn(|index| index as u8);
        let addr = Addr::from(octets);
        assert_eq!(addr.octets(), octets);
        for byte in 0..16 {
            let mut other = octets;
            other[byte] += 1;
            assert_ne!(Addr::from(other), addr, "byte {byte}");
            assert!(Addr::from(other) > addr, "byte {byte}");
        }
    }
}
