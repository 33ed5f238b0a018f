//! Values that many pods share, held once.
//!
//! Pods of one workload ask for the same and carry the same labels. Equal values become one allocation, so that a
//! pod costs pointers, and whatever is worked out for a value is found by its address.

use std::{
    collections::HashSet,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// Below it nothing is swept; above it the table is at most twice what is in use.
const SMALLEST_SWEEP: usize = 1024;

pub(crate) struct Interner<T> {
    known: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: SMALLEST_SWEEP }
    }
}

impl<T: Hash + Eq> Interner<T> {
    /// The one allocation of the value.
    pub(crate) fn intern(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.known.get(&value) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = (2 * self.known.len()).max(SMALLEST_SWEEP);
        }
        let value = Arc::new(value);
        self.known.insert(value.clone());
        value
    }
}

/// A shared value that is equal to itself alone; cheap to hash. Holding it keeps the address from being used again.
#[derive(Debug)]
pub(crate) struct Same<T>(pub(crate) Arc<T>);

impl<T> Clone for Same<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> PartialEq for Same<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Eq for Same<T> {}

impl<T> Hash for Same<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_unused_ones_go() {
        let mut interner = Interner::default();
        let kept = interner.intern(7);
        assert!(Arc::ptr_eq(&kept, &interner.intern(7)));
        (0..10_000).for_each(|value| drop(interner.intern(value)));
        assert!(interner.known.len() <= 2 * SMALLEST_SWEEP);
        assert!(Arc::ptr_eq(&kept, &interner.intern(7)));
    }
}
