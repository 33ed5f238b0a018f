//! Owners after a change that is no apply: who makes it owns what it changes, and nobody else does.

use serde_json::Value;

use super::{
    managed::{ManagedFields, Manager, Operation},
    reach::Reach,
    set::FieldSet,
    strip,
    versions::{Comparisons, Convert},
};

/// A write, as owners of fields see it. Objects are canonical, in the version of the request, and without
/// `managedFields`.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    pub by: Manager<'a>,
    pub reach: Reach<'a>,
    pub convert: Convert<'a>,
}

impl Write<'_> {
    /// The owners after `live` became `new`.
    ///
    /// Kinds without a schema are not tracked.
    pub fn update(&self, live: &Value, new: &Value, mut managed: ManagedFields) -> ManagedFields {
        let comparisons = Comparisons::new((live, new), self.by.api_version, self.reach, self.convert);
        let Some(mut comparisons) = comparisons else { return managed };
        if comparisons.first().is_empty() {
            return managed;
        }
        let mut own = comparisons.first().changed.clone();
        strip(&mut own);
        let count = own.len();
        let mut is_claimed = false;
        managed.entries_mut().retain_mut(|entry| {
            let Some(comparison) = comparisons.at(&entry.api_version) else { return false };
            if self.by.owns(entry, Operation::Update)
                && count > 0
                && entry.owned.common(&own) == count
                && entry.owned.common(&comparison.removed) == 0
            {
                // All of it is the manager's already.
                entry.time = Some(self.by.now.to_owned());
                is_claimed = true;
                return true;
            }
            entry.owned.subtract([&comparison.changed, &comparison.removed]);
            !entry.owned.is_empty()
        });
        if !is_claimed {
            self.claim(&mut managed, own);
        }
        managed.cap();
        managed
    }

    /// Gives fields to the manager's entry of updates.
    fn claim(&self, managed: &mut ManagedFields, fields: FieldSet) {
        if fields.is_empty() {
            return;
        }
        let entries = managed.entries_mut();
        match entries.iter_mut().find(|entry| self.by.owns(entry, Operation::Update)) {
            Some(entry) => {
                entry.owned.set_mut().unite(&fields);
                entry.time = Some(self.by.now.to_owned());
            }
            None => entries.push(self.by.entry(Operation::Update, fields)),
        }
    }
}
