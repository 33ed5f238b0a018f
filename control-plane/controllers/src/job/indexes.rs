//! Sets of completion indexes, as a Job's status writes them: `0,3-7,9`. Pure.
//!
//! Costs what the number of runs costs, not that of indexes: a Job may have two billion.

use std::fmt;

/// Runs `(first, last)` in order, neither overlapping nor touching.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// What cannot be read, and indexes from `completions` on, are left out.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let run = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (i32, i32) = (first.parse().ok()?, last.parse().ok()?);
            (0 <= first && first < completions).then(|| (first, last.min(completions - 1)))
        };
        Self::of_runs(text.split(',').filter_map(run).collect())
    }

    fn of_runs(mut runs: Vec<(i32, i32)>) -> Self {
        runs.retain(|(first, last)| first <= last);
        runs.sort_unstable();
        let mut merged: Vec<(i32, i32)> = Vec::with_capacity(runs.len());
        for (first, last) in runs {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    pub(super) fn with(&self, others: impl IntoIterator<Item = i32>) -> Self {
        let others = others.into_iter().map(|index| (index, index));
        Self::of_runs(self.0.iter().copied().chain(others).collect())
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        Self::of_runs(self.0.iter().chain(&other.0).copied().collect())
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        let after = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(after).is_some_and(|(first, _)| *first <= index)
    }

    pub(super) fn total(&self) -> i32 {
        self.0.iter().fold(0, |sum: i32, (first, last)| sum.saturating_add((last - first).saturating_add(1)))
    }

    /// How many of these are in `other` too.
    pub(super) fn shared(&self, other: &Self) -> i32 {
        let overlap = |a: &(i32, i32), b: &(i32, i32)| (a.1.min(b.1) - a.0.max(b.0)).saturating_add(1).max(0);
        let pairs = self.0.iter().flat_map(|a| other.0.iter().map(move |b| overlap(a, b)));
        pairs.fold(0, |sum: i32, shared| sum.saturating_add(shared))
    }

    /// The first `most` indexes below `completions` that are not here.
    pub(super) fn first_missing(&self, most: usize, completions: i32) -> Vec<i32> {
        let mut missing = Vec::new();
        let mut next = 0;
        for (first, last) in self.0.iter().copied().chain([(completions, completions)]) {
            missing.extend((next..first.min(completions)).take(most - missing.len()));
            next = last.saturating_add(1);
        }
        missing
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn sets_are_written_in_runs_and_read_again() {
        for (text, completions, expected) in [
            ("", 10, ""),
            ("3", 10, "3"),
            ("0-2,4", 10, "0-2,4"),
            ("1,2", 10, "1,2"),
            ("1-2", 10, "1,2"),
            ("0,1,2", 10, "0-2"),
            ("5-20,30", 10, "5-9"),
            ("x,4-,7-5,-3,2", 10, "2"),
        ] {
            assert_eq!(Indexes::parse(text, completions).to_string(), expected, "{text}");
        }
        assert_eq!(Indexes::parse("0-2147483645", i32::MAX).total(), i32::MAX - 1);
    }

    /// Agrees with plain sets, for many of them.
    #[test]
    fn operations_agree_with_plain_sets() {
        let mut seed: u32 = 7;
        let mut random = move |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        for _ in 0..500 {
            let mut set = || -> BTreeSet<i32> { (0..random(12)).map(|_| random(16) as i32).collect() };
            let (a, b) = (set(), set());
            let of = |set: &BTreeSet<i32>| Indexes::default().with(set.iter().copied());
            let (left, right) = (of(&a), of(&b));
            assert_eq!(Indexes::parse(&left.to_string(), 16), left);
            assert_eq!(left.union(&right), of(&a.union(&b).copied().collect()));
            assert_eq!(left.shared(&right) as usize, a.intersection(&b).count());
            assert_eq!(left.total() as usize, a.len());
            let missing: Vec<i32> = (0..16).filter(|index| !a.contains(index)).take(5).collect();
            assert_eq!(left.first_missing(5, 16), missing);
            assert!((0..16).all(|index| left.contains(index) == a.contains(&index)));
        }
    }
}
