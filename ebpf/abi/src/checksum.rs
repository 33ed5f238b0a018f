//! Internet checksums (RFC 1071), as differences (RFC 1624).

use crate::Addr;

/// Folds a 32-bit sum of 16-bit words into 16 bits.
#[inline(always)]
pub const fn fold(mut sum: u32) -> u16 {
    // Two folds are enough: the first leaves at most 0x1fffe, the second at most 0xffff.
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Adds with end-around carry, the addition of one's complement.
#[inline(always)]
pub const fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(carry as u32)
}

/// Returns the difference that replacing `from` with `to` makes, for the kernel's checksum helpers.
///
/// Both are read as 32-bit words in memory order, which is what `bpf_l4_csum_replace` adds up.
#[inline(always)]
pub fn difference(from: &Addr, to: &Addr) -> u32 {
    let mut sum = 0;
    let mut index = 0;
    while index < 4 {
        sum = add(add(sum, !from.words()[index]), to.words()[index]);
        index += 1;
    }
    sum
}

/// Returns the difference that replacing one 32-bit word makes, both in memory order.
#[inline(always)]
pub const fn word_difference(from: u32, to: u32) -> u32 {
    add(!from, to)
}

/// Returns the sum of 32-bit words in memory order, to go on from `sum`.
#[inline(always)]
pub fn sum_words(mut sum: u32, words: &[u32]) -> u32 {
    for word in words {
        sum = add(sum, *word);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 over memory order, as the kernel adds.
    fn sum(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks_exact(2) {
            sum += u32::from(u16::from_ne_bytes([pair[0], pair[1]]));
        }
        fold(sum)
    }

    #[test]
    fn difference_brings_a_checksum_up_to_date() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 32) as u8
        };
        for _ in 0..20_000 {
            let old: [u8; 16] = core::array::from_fn(|_| random());
            let new: [u8; 16] = core::array::from_fn(|_| if random() < 128 { 0 } else { random() });
            // RFC 1624: the new checksum is the complement of the old sum with the difference added.
            let updated =
                !fold(add(u32::from(sum(&old)), u32::from(fold(difference(&old.into(), &new.into())))));
            let computed = !sum(&new);
            // Both zeros of one's complement are the same sum.
            assert!(updated == computed || (updated ^ computed == 0xffff && (updated == 0 || computed == 0)));
        }
    }

    #[test]
    fn words_add_up_as_their_bytes_do() {
        let bytes: [u8; 16] = core::array::from_fn(|index| (index * 37 + 200) as u8);
        let words: [u32; 4] = core::array::from_fn(|index| {
            u32::from_ne_bytes([
                bytes[4 * index],
                bytes[4 * index + 1],
                bytes[4 * index + 2],
                bytes[4 * index + 3],
            ])
        });
        assert_eq!(fold(sum_words(0, &words)), sum(&bytes));
        let other = [words[0], words[1], 7, words[3]];
        let changed = add(sum_words(0, &words), word_difference(words[2], 7));
        assert_eq!(fold(changed), fold(sum_words(0, &other)));
    }

    #[test]
    fn nothing_replaced_is_no_difference() {
        let addr = Addr::from([7; 16]);
        assert!(matches!(fold(difference(&addr, &addr)), 0 | 0xffff));
    }
}
