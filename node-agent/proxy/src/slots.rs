//! Ranges of backend slots: first fit over a list of free ranges, with a grace period before reuse.
//!
//! A program that looked up a frontend just before it was replaced still reads the old range. Programs run for
//! microseconds; the grace period is far longer than any.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// How long a released range stays untouched.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// A range of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Range {
    pub(crate) base: u32,
    pub(crate) len: u32,
}

impl Range {
    pub(crate) fn end(self) -> u32 {
        self.base + self.len
    }
}

/// A set of slots, as ranges that neither touch nor overlap: base to length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(BTreeMap<u32, u32>);

impl Ranges {
    /// Adds a range; what is in the set already stays.
    pub(crate) fn insert(&mut self, range: Range) {
        if range.len == 0 {
            return;
        }
        self.remove(range);
        let Range { mut base, mut len } = range;
        if let Some((previous, previous_len)) = self.0.range(..base).next_back().map(|(b, l)| (*b, *l))
            && previous + previous_len == base
        {
            self.0.remove(&previous);
            base = previous;
            len += previous_len;
        }
        if let Some(next_len) = self.0.remove(&(base + len)) {
            len += next_len;
        }
        self.0.insert(base, len);
    }

    /// Removes a range, as far as it is in the set.
    pub(crate) fn remove(&mut self, range: Range) {
        if range.len == 0 {
            return;
        }
        let overlapping: Vec<Range> = self
            .0
            .range(..range.end())
            .rev()
            .map(|(base, len)| Range { base: *base, len: *len })
            .take_while(|found| found.end() > range.base)
            .collect();
        for found in overlapping {
            self.0.remove(&found.base);
            if found.base < range.base {
                self.0.insert(found.base, range.base - found.base);
            }
            if found.end() > range.end() {
                self.0.insert(range.end(), found.end() - range.end());
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range> + '_ {
        self.0.iter().map(|(base, len)| Range { base: *base, len: *len })
    }
}

/// Which slots are free.
#[derive(Debug)]
pub(crate) struct Slots {
    free: Ranges,
    /// Released ranges, oldest first.
    resting: VecDeque<(Instant, Range)>,
}

impl Slots {
    pub(crate) fn new(capacity: u32) -> Self {
        let mut free = Ranges::default();
        free.insert(Range { base: 0, len: capacity });
        Self { free, resting: VecDeque::new() }
    }

    /// Adds the slots between two capacities.
    pub(crate) fn grow(&mut self, old: u32, new: u32) {
        self.free.insert(Range { base: old, len: new.saturating_sub(old) });
    }

    /// Takes a range of `len` slots. `None` when none is free: some may be after the grace period.
    pub(crate) fn allocate(&mut self, len: u32, now: Instant) -> Option<Range> {
        if len == 0 {
            return Some(Range::default());
        }
        while let Some((released, range)) = self.resting.front().copied()
            && now.saturating_duration_since(released) >= GRACE
        {
            self.resting.pop_front();
            self.free.insert(range);
        }
        let found = self.free.iter().find(|free| free.len >= len)?;
        let range = Range { base: found.base, len };
        self.free.remove(range);
        Some(range)
    }

    /// Takes a given range, as far as it is free: what the kernel's frontends use already.
    pub(crate) fn reserve(&mut self, range: Range) {
        self.free.remove(range);
    }

    /// Gives a range back. It is free after the grace period.
    pub(crate) fn release(&mut self, range: Range, now: Instant) {
        if range.len > 0 {
            self.resting.push_back((now, range));
        }
    }
}
