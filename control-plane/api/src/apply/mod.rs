//! Server-side apply, and who owns which fields of an object.
//!
//! Every write names its manager; [`Write::update`] and [`Write::apply`] say who owns what after it. What differs is
//! found by [`compare`] over the table of types, sets of fields ([`FieldSet`]) are trees of paths, and
//! [`ManagedFields`] is their list in `metadata.managedFields`. All of it is pure: objects in, objects and owners out.
//! Follows KEP-555 and `structured-merge-diff` v6.

mod applied;
mod compare;
mod conflict;
mod created;
mod fields;
mod fields_v1;
mod managed;
mod merge;
mod owned;
mod path;
mod place;
mod reach;
mod set;
#[cfg(test)]
mod tests;
mod update;
mod versions;

pub use applied::{Applied, empty};
pub use compare::{Comparison, compare};
pub use fields::fields_of;
pub use managed::{
    Entry, ManagedFields, Manager, Operation, Undecodable, manager_of_user_agent, validate_manager,
};
pub use path::PathElement;
pub use reach::{ANY, Pattern, Reach};
pub use set::FieldSet;
pub use update::Write;
pub use versions::Convert;

use std::sync::LazyLock;

/// Fields that nobody owns: those that name the object, and those that the server alone writes.
static UNOWNED: LazyLock<FieldSet> = LazyLock::new(|| {
    FieldSet::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

fn strip(fields: &mut FieldSet) {
    fields.subtract(&UNOWNED);
}
