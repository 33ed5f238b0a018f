//! Nodes by a score, so that one of the best is found without a look at all of them.

use std::collections::BTreeMap;

use crate::{random::Random, snapshot::Slot};

/// Equals that are tried by chance before all of them are looked at.
const TRIES: usize = 16;

#[derive(Default)]
pub(crate) struct Ranking {
    /// No list is empty.
    by_score: BTreeMap<i32, Vec<u32>>,
    /// Where each slot stands in its list; meaningless for slots that are in none.
    places: Vec<u32>,
}

impl Ranking {
    /// Adds a slot that is not there yet.
    pub(crate) fn add(&mut self, slot: Slot, score: i32) {
        let list = self.by_score.entry(score).or_default();
        if self.places.len() <= slot {
            self.places.resize(slot + 1, 0);
        }
        self.places[slot] = small(list.len());
        list.push(small(slot));
    }

    /// Takes off a slot that is there with that score.
    pub(crate) fn remove(&mut self, slot: Slot, score: i32) {
        let Some(list) = self.by_score.get_mut(&score) else {
            return;
        };
        let place = self.places[slot];
        list.swap_remove(place as usize);
        match list.get(place as usize) {
            Some(moved) => self.places[*moved as usize] = place,
            None if list.is_empty() => _ = self.by_score.remove(&score),
            None => (),
        }
    }

    /// One of the slots of the highest score that `accepts` has any of; each of them is as likely.
    ///
    /// Costs a few questions where most slots are accepted, and one or two for each slot where few or none are.
    pub(crate) fn best(&self, tie: &mut Random, accepts: impl Fn(Slot) -> bool) -> Option<Slot> {
        self.by_score.values().rev().find_map(|list| {
            let mut by_chance = (0..TRIES).map(|_| list[tie.index(list.len())] as Slot);
            by_chance.find(|slot| accepts(*slot)).or_else(|| {
                let accepted: Vec<u32> = list.iter().copied().filter(|slot| accepts(*slot as Slot)).collect();
                accepted.get(tie.index(accepted.len())).map(|slot| *slot as Slot)
            })
        })
    }
}

/// No cluster has four thousand million nodes.
fn small(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_best_that_is_accepted_is_found() {
        let mut ranking = Ranking::default();
        let scores = [5, 9, 9, 3, 9, 5];
        (0..6).for_each(|slot| ranking.add(slot, scores[slot]));
        let mut tie = Random::new(1);
        let mut found = |ranking: &Ranking, refused: &[Slot]| -> BTreeSet<Slot> {
            (0..200).filter_map(|_| ranking.best(&mut tie, |slot| !refused.contains(&slot))).collect()
        };
        assert_eq!(found(&ranking, &[]), BTreeSet::from([1, 2, 4]));
        assert_eq!(found(&ranking, &[2]), BTreeSet::from([1, 4]));
        assert_eq!(found(&ranking, &[1, 2, 4]), BTreeSet::from([0, 5]));
        assert_eq!(found(&ranking, &[0, 1, 2, 3, 4, 5]), BTreeSet::new());
        [(1, 9), (4, 9), (2, 9), (3, 3)].into_iter().for_each(|(slot, score)| ranking.remove(slot, score));
        ranking.add(3, 5);
        assert_eq!(found(&ranking, &[]), BTreeSet::from([0, 3, 5]));
    }

    #[test]
    fn the_one_of_many_equals_that_is_accepted_is_found() {
        let mut ranking = Ranking::default();
        (0..5000).for_each(|slot| ranking.add(slot, 1));
        assert_eq!(ranking.best(&mut Random::new(1), |slot| slot == 4321), Some(4321));
    }
}
