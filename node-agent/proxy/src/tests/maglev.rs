use std::time::Instant;

use hawser_ebpf_abi::{Backend, MaglevBlock, maglev::MAGLEV_BLOCK, service::BACKEND_LOCAL, v4_mapped};

use super::Random;
use crate::maglev::{blocks, build, table_len};

/// What a table needs at least, by default.
const ENTRIES: u32 = 200;

/// Backends of many services: neighbouring addresses, and scattered ones.
fn backends(count: usize, seed: u64) -> Vec<Backend> {
    let mut random = Random(seed * 0x9e37_79b9);
    let mut backends: Vec<Backend> = (0..count as u32)
        .map(|n| {
            let number = if seed.is_multiple_of(2) { n } else { n << 8 | random.below(256) as u32 };
            let addr = v4_mapped((0x0a00_0000 + number).to_be_bytes());
            Backend { addr, port_be: (8000 + seed as u16).to_be(), flags: 0, pad: 0 }
        })
        .collect();
    backends.sort_by_key(|backend| (backend.addr, backend.port_be));
    backends
}

/// The place in each entry.
fn entries(table: &[MaglevBlock], len: u32) -> Vec<usize> {
    let places = table.iter().flat_map(|block| block.places);
    places.take(len as usize).map(usize::from).collect()
}

#[test]
fn length_is_a_prime_of_at_least_200_entries_a_backend() {
    let is_prime = |n: u32| n > 1 && (2..n).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    let mut before = 0;
    for count in (2..500).chain([1280, 1281, 5_000, 5_120, 20_480, 65_536]) {
        let len = table_len(count, ENTRIES);
        assert!(is_prime(len) && len as usize >= count * 200 && len >= before, "{count} backends: {len}");
        before = len;
    }
    assert_eq!((table_len(5, ENTRIES), table_len(5_000, ENTRIES)), (1009, 1_024_021));
    assert_eq!(table_len(1, ENTRIES), 0, "one backend needs none");
    assert_eq!(table_len(65_537, ENTRIES), 0, "more than a table can tell apart");
    assert_eq!(table_len(10, 0), 0, "none wanted");
    assert_eq!(table_len(65_536, u32::MAX), 0, "longer than can be");
}

#[test]
fn shares_differ_by_an_eighth_of_the_mean_at_most() {
    for (count, seeds) in [(2, 20), (3, 20), (5, 20), (6, 10), (20, 10), (80, 4), (320, 2), (1280, 1)] {
        for seed in 0..seeds {
            let len = table_len(count, ENTRIES);
            let mut shares = vec![0u32; count];
            for place in entries(&build(&backends(count, seed), len), len) {
                shares[place] += 1;
            }
            let mean = f64::from(len) / count as f64;
            let worst = shares.iter().map(|share| (f64::from(*share) / mean - 1.0).abs()).fold(0.0, f64::max);
            assert!(worst < 0.125, "{count} backends, seed {seed}: {worst}");
        }
    }
}

#[test]
fn backend_that_goes_moves_under_one_percent_of_the_others_clients() {
    for (count, seeds, step) in [
        (3, 20, 1),
        (5, 20, 1),
        (10, 10, 1),
        (20, 5, 1),
        (50, 2, 7),
        (80, 2, 13),
        (320, 1, 67),
        (1280, 1, 500),
    ] {
        for seed in 0..seeds {
            let all = backends(count, seed);
            let len = table_len(count, ENTRIES);
            let before = entries(&build(&all, len), len);
            for gone in (0..count).step_by(step) {
                let mut rest = all.clone();
                rest.remove(gone);
                let after = entries(&build(&rest, len), len);
                let others = before.iter().zip(&after).filter(|(before, _)| **before != gone);
                let (moved, of) = others.fold((0u32, 0u32), |(moved, of), (before, after)| {
                    let same = if *before > gone { before - 1 } else { *before };
                    (moved + u32::from(same != *after), of + 1)
                });
                let part = f64::from(moved) / f64::from(of);
                assert!(part < 0.01, "{count} backends, seed {seed}, without {gone}: {part}");
            }
        }
    }
}

#[test]
fn table_depends_on_addresses_and_ports_alone() {
    let here = backends(20, 1);
    let elsewhere: Vec<Backend> =
        here.iter().map(|backend| Backend { flags: BACKEND_LOCAL, ..*backend }).collect();
    let len = table_len(20, ENTRIES);
    assert!(build(&here, len) == build(&elsewhere, len));
    let other_port: Vec<Backend> =
        here.iter().map(|backend| Backend { port_be: 1u16.to_be(), ..*backend }).collect();
    assert!(build(&here, len) != build(&other_port, len));
}

/// Nodes of two versions meet in one cluster.
#[test]
fn table_is_what_it_always_was() {
    let backends = backends(3, 0);
    let table = build(&backends, 31);
    assert_eq!(table.len(), blocks(31) as usize);
    let always =
        [1, 2, 2, 0, 2, 1, 0, 2, 1, 0, 1, 2, 1, 0, 0, 2, 2, 1, 0, 0, 1, 2, 1, 1, 0, 0, 1, 1, 1, 2, 0];
    assert_eq!(entries(&table, 31), always);
}

#[test]
fn table_of_5000_backends_has_them_all() {
    let len = table_len(5_000, ENTRIES);
    let started = Instant::now();
    let table = build(&backends(5_000, 1), len);
    println!("{len} entries were built in {:?}", started.elapsed());
    assert_eq!(table.len(), len.div_ceil(MAGLEV_BLOCK) as usize);
    let mut shares = vec![0u32; 5_000];
    entries(&table, len).into_iter().for_each(|place| shares[place] += 1);
    assert!(shares.iter().all(|share| (150..=230).contains(share)));
}
