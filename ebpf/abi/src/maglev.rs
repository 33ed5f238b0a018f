//! Maglev tables at the packet: any node picks the same backend for a client, and a change of one backend moves few
//! clients of the others.
//!
//! A table is a range of blocks of `MAGLEV`; each entry is a slot's place in the frontend's wire range. The agent
//! builds the tables (`node-agent/proxy/src/maglev.rs`). The pick depends on the client alone, its address, port and
//! protocol: a node port has another destination address on each node, and must lead to the same backend all the same.
//!
//! Follows "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4.

use crate::{Addr, Endpoint, service::Frontend};

/// Entries in one block: two bytes each, a cache line together. (The kernel rounds an array's value up to 8 bytes.)
pub const MAGLEV_BLOCK: u32 = 32;

/// Value of `MAGLEV`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaglevBlock {
    pub places: [u16; MAGLEV_BLOCK as usize],
}
const _: () = assert!(size_of::<MaglevBlock>() == 64);
const _: () = assert!(MAGLEV_BLOCK.is_power_of_two());

/// Most backends that a table can tell apart.
pub const MAGLEV_BACKENDS: u32 = 1 << 16;

/// Mixes a client into 32 bits. Never changes, and has no secret: all nodes must agree, those of older versions too.
#[inline(always)]
pub const fn client_hash(client: &Endpoint, protocol: u8) -> u32 {
    let hash = address_hash(&client.addr);
    finish(mix(hash, (u16::from_be(client.port_be) as u32) << 8 | protocol as u32))
}

/// As [`client_hash`], for a client of whom all connections go to one backend.
#[inline(always)]
pub const fn client_address_hash(addr: &Addr) -> u32 {
    finish(address_hash(addr))
}

/// Returns the hash for another attempt, when what the first one led to cannot be used.
#[inline(always)]
pub const fn rehash(hash: u32) -> u32 {
    finish(mix(hash, 0x9e37_79b9))
}

/// Returns the block of `MAGLEV` and the entry in it that `hash` picks. The frontend has a table.
#[inline(always)]
pub const fn entry_of(frontend: &Frontend, hash: u32) -> (u32, u32) {
    // `max` keeps the division defined when an entry without a table comes here all the same.
    let len = if frontend.maglev_len == 0 { 1 } else { frontend.maglev_len };
    let position = hash % len;
    (frontend.maglev_base.wrapping_add(position / MAGLEV_BLOCK), position % MAGLEV_BLOCK)
}

#[inline(always)]
const fn address_hash(addr: &Addr) -> u32 {
    let mut hash = 0x5bd1_e995;
    let mut index = 0;
    while index < 4 {
        // Big-endian: nodes of either byte order agree.
        hash = mix(hash, u32::from_be(addr.words()[index]));
        index += 1;
    }
    hash
}

/// One step of MurmurHash3 (32 bits).
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// MurmurHash3's last step: every bit of the input changes every bit of the output half of the time.
#[inline(always)]
const fn finish(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IPPROTO_TCP, v4_mapped};

    #[test]
    fn clients_spread_over_a_table() {
        const LEN: u32 = 251;
        #[track_caller]
        fn check(what: &str, hashes: impl Iterator<Item = u32>) {
            let mut counts = [0u32; LEN as usize];
            for hash in hashes.take(251 * 200) {
                counts[(hash % LEN) as usize] += 1;
            }
            // 200 each on average, and a Poisson spread of 14.
            assert!(counts.iter().all(|count| (120..280).contains(count)), "{what}: {counts:?}");
        }
        let client = |addr, port: u16| client_hash(&Endpoint::new(addr, port.to_be()), IPPROTO_TCP);
        check("ports of one address", (0..=u16::MAX).map(|port| client(v4_mapped([10, 0, 0, 1]), port)));
        let address = |n: u32| v4_mapped((0x0a00_0000 + n).to_be_bytes());
        check("addresses, one port", (0..).map(|n| client(address(n), 4000)));
        check("addresses alone", (0..).map(|n| client_address_hash(&address(n))));
        check("attempts", (0..).map(|n| rehash(client(address(n), 4000))));
    }

    /// Nodes of two versions meet in one cluster: these never change.
    #[test]
    fn hashes_are_what_they_always_were() {
        let client = Endpoint::new(v4_mapped([192, 0, 2, 7]), 4000u16.to_be());
        assert_eq!(client_hash(&client, IPPROTO_TCP), 3_850_366_289);
        assert_eq!(client_address_hash(&client.addr), 48_311_738);
    }

    #[test]
    fn entry_lies_in_the_frontends_range() {
        let frontend = Frontend { maglev_base: 10, maglev_len: 101, ..Frontend::default() };
        for hash in 0..1000 {
            let (block, entry) = entry_of(&frontend, hash);
            assert!((10..14).contains(&block) && entry < MAGLEV_BLOCK);
            assert_eq!((block - 10) * MAGLEV_BLOCK + entry, hash % 101);
        }
    }
}
