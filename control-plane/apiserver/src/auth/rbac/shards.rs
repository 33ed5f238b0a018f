//! A map by name whose clones are snapshots: hash tables behind shared pointers, copied where they change.
//!
//! A decision looks up a dozen names, most of them for the first time in a while, so that what counts is how many cache
//! lines a look touches: a hash table's few, where a tree of pointers to keys takes one at each comparison. A change
//! copies one table of [`SHARDS`], a clone counts as many references.

use std::{collections::HashMap, hash::BuildHasher, sync::Arc};

use foldhash::quality::RandomState;
use hawser_store::Key;

/// At 10,000 entries a change copies forty of them; a clone takes about a microsecond.
const SHARDS: usize = 256;

type Shard<V> = Arc<HashMap<Key, V, RandomState>>;

#[derive(Clone)]
pub(super) struct Shards<V> {
    /// [`SHARDS`] of them.
    shards: Box<[Shard<V>]>,
    /// Which shard a name is in.
    hasher: RandomState,
}

impl<V> Default for Shards<V> {
    fn default() -> Self {
        let empty = Shard::default();
        Self { shards: (0..SHARDS).map(|_| empty.clone()).collect(), hasher: RandomState::default() }
    }
}

impl<V: Clone> Shards<V> {
    fn at(&self, name: &str) -> usize {
        self.hasher.hash_one(name) as usize % SHARDS
    }

    pub(super) fn get(&self, name: &str) -> Option<&V> {
        self.shards[self.at(name)].get(name)
    }

    pub(super) fn insert(&mut self, name: Key, value: V) {
        let at = self.at(&name);
        Arc::make_mut(&mut self.shards[at]).insert(name, value);
    }

    pub(super) fn remove(&mut self, name: &str) {
        let at = self.at(name);
        // A look first: removing what is not there must not copy the table.
        if self.shards[at].contains_key(name) {
            Arc::make_mut(&mut self.shards[at]).remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut map = Shards::default();
        for number in 0..2_000 {
            map.insert(format!("n{number}").as_str().into(), number);
        }
        let before = map.clone();
        map.insert("n7".into(), 0);
        map.remove("n8");
        map.remove("absent");
        assert_eq!((before.get("n7"), before.get("n8"), before.get("absent")), (Some(&7), Some(&8), None));
        assert_eq!((map.get("n7"), map.get("n8"), map.get("n1999")), (Some(&0), None, Some(&1999)));
    }
}
