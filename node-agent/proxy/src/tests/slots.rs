use std::time::{Duration, Instant};

use super::Random;
use crate::slots::{GRACE, Range, Ranges, Slots};

#[test]
fn released_range_rests_for_the_grace_period() {
    let start = Instant::now();
    let mut slots = Slots::new(10);
    let range = slots.allocate(10, start).unwrap();
    slots.release(range, start);
    assert_eq!(slots.allocate(1, start + GRACE - Duration::from_nanos(1)), None);
    assert_eq!(slots.allocate(10, start + GRACE), Some(range));
}

#[test]
fn nothing_needs_no_slots() {
    let mut slots = Slots::new(0);
    assert_eq!(slots.allocate(0, Instant::now()), Some(Range::default()));
    assert_eq!(slots.allocate(1, Instant::now()), None);
}

/// Ranges against a slow twin: one flag per slot.
#[test]
fn ranges_agree_with_a_slow_twin() {
    let mut random = Random(7);
    for _ in 0..200 {
        let mut ranges = Ranges::default();
        let mut twin = [false; 64];
        for _ in 0..60 {
            let base = random.below(64) as u32;
            let len = random.below(u64::from(65 - base)) as u32;
            let insert = random.below(2) == 0;
            let range = Range { base, len };
            if insert {
                ranges.insert(range)
            } else {
                ranges.remove(range)
            }
            twin[base as usize..(base + len) as usize].fill(insert);
            let mut flags = [false; 64];
            let mut end_before = None;
            for range in ranges.iter() {
                assert!(range.len > 0 && end_before.is_none_or(|end| end < range.base), "ranges touch");
                end_before = Some(range.end());
                flags[range.base as usize..range.end() as usize].fill(true);
            }
            assert_eq!(flags, twin);
        }
    }
}

#[test]
fn slots_in_use_never_overlap_and_none_is_lost() {
    let mut random = Random(11);
    let mut now = Instant::now();
    let mut slots = Slots::new(200);
    let mut used: Vec<Range> = Vec::new();
    for _ in 0..5_000 {
        if random.below(2) == 0
            && let Some(range) = slots.allocate(random.below(12) as u32, now)
        {
            let overlaps = |other: &Range| other.base < range.end() && range.base < other.end();
            assert!(!used.iter().any(overlaps) && range.end() <= 200);
            used.push(range);
        } else if !used.is_empty() {
            let range = used.swap_remove(random.below(used.len() as u64) as usize);
            slots.release(range, now);
        }
        now += Duration::from_millis(random.below(400));
    }
    used.into_iter().for_each(|range| slots.release(range, now));
    assert_eq!(slots.allocate(200, now + GRACE), Some(Range { base: 0, len: 200 }));
}
