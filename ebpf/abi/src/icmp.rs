//! ICMP errors (RFC 792, RFC 4443): which messages quote a packet, and those that the programs send themselves.
//!
//! An error belongs to the flow of the packet that it quotes. It is translated in both places: its own addresses, and
//! those of the quoted packet, so that whoever gets it finds the packet that it sent.

use crate::{IPPROTO_ICMP, IPPROTO_ICMPV6};

pub const V4_UNREACHABLE: u8 = 3;
pub const V4_TIME_EXCEEDED: u8 = 11;
pub const V4_PARAMETER_PROBLEM: u8 = 12;
/// Codes of [`V4_UNREACHABLE`].
pub const V4_PORT: u8 = 3;
pub const V4_FRAGMENTATION_NEEDED: u8 = 4;

pub const V6_UNREACHABLE: u8 = 1;
pub const V6_PACKET_TOO_BIG: u8 = 2;
pub const V6_TIME_EXCEEDED: u8 = 3;
pub const V6_PARAMETER_PROBLEM: u8 = 4;
/// Code of [`V6_UNREACHABLE`].
pub const V6_PORT: u8 = 4;

/// Bytes from an ICMP header to the packet that it quotes.
pub const QUOTE_OFFSET: usize = 8;

/// Tells whether a message of this type is an error that quotes a packet.
///
/// Source quench and redirects quote one too; the first is obsolete (RFC 6633), and a redirect is never for a
/// translated address.
#[inline(always)]
pub const fn is_error(protocol: u8, kind: u8) -> bool {
    match protocol {
        IPPROTO_ICMP => matches!(kind, V4_UNREACHABLE | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM),
        IPPROTO_ICMPV6 => kind >= V6_UNREACHABLE && kind <= V6_PARAMETER_PROBLEM,
        _ => false,
    }
}

/// Most ICMP errors that one CPU sends in a second.
pub const ANSWERS_PER_SECOND: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_from_other_messages() {
        let errors = |protocol| (0..=u8::MAX).filter(move |kind| is_error(protocol, *kind));
        assert!(errors(IPPROTO_ICMP).eq([3, 11, 12]));
        assert!(errors(IPPROTO_ICMPV6).eq([1, 2, 3, 4]));
        assert_eq!(errors(crate::IPPROTO_TCP).count(), 0);
    }
}
