//! Fields that an apply would take from other managers.

use std::collections::BTreeMap;

use super::{
    managed::{Entry, Operation},
    set::FieldSet,
};
use crate::Error;

/// What one manager would lose.
pub(super) struct Conflict {
    /// The manager, as messages name it.
    manager: String,
    pub(super) fields: FieldSet,
}

impl Conflict {
    pub(super) fn new(entry: &Entry, fields: FieldSet) -> Self {
        let mut manager = format!("{:?}", entry.manager);
        if !entry.subresource.is_empty() {
            manager.push_str(&format!(" with subresource {:?}", entry.subresource));
        }
        if entry.operation == Operation::Update {
            manager.push_str(&format!(" using {}", entry.api_version));
        }
        Self { manager, fields }
    }

    fn paths(&self) -> Vec<String> {
        let paths = self.fields.paths();
        paths.iter().map(|path| path.iter().map(ToString::to_string).collect()).collect()
    }
}

/// The refusal (409), worded as upstream's. `conflicts` is not empty.
pub(super) fn refusal(conflicts: &[Conflict]) -> Error {
    let mut by_manager: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for conflict in conflicts {
        by_manager.entry(&conflict.manager).or_default().extend(conflict.paths());
    }
    let count: usize = by_manager.values().map(Vec::len).sum();
    let message = match by_manager.iter().next() {
        Some((manager, paths)) if count == 1 => {
            format!("Apply failed with 1 conflict: conflict with {manager}: {}", paths[0])
        }
        _ => {
            let lines = by_manager.iter().flat_map(|(manager, paths)| {
                let first = format!("conflicts with {manager}:");
                std::iter::once(first).chain(paths.iter().map(|path| format!("- {path}")))
            });
            format!("Apply failed with {count} conflicts: {}", lines.collect::<Vec<_>>().join("\n"))
        }
    };
    let causes = by_manager.iter().flat_map(|(manager, paths)| {
        paths.iter().map(move |path| (format!("conflict with {manager}"), path.clone()))
    });
    Error::apply_conflict(message, causes)
}
