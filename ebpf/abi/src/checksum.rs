//! Internet checksums (RFC 1071), as differences (RFC 1624).

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
pub fn difference(from: &[u8; 16], to: &[u8; 16]) -> u32 {
    let mut sum = 0;
    let mut index = 0;
    while index < 16 {
        let old = u32::from_ne_bytes([from[index], from[index + 1], from[index + 2], from[index + 3]]);
        let new = u32::from_ne_bytes([to[index], to[index + 1], to[index + 2], to[index + 3]]);
        sum = add(add(sum, !old), new);
        index += 4;
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
            let updated = !fold(add(u32::from(sum(&old)), u32::from(fold(difference(&old, &new)))));
            let computed = !sum(&new);
            // Both zeros of one's complement are the same sum.
            assert!(updated == computed || (updated ^ computed == 0xffff && (updated == 0 || computed == 0)));
        }
    }

    #[test]
    fn nothing_replaced_is_no_difference() {
        let addr = [7; 16];
        assert!(matches!(fold(difference(&addr, &addr)), 0 | 0xffff));
    }
}
