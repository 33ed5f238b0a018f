//! Which fields of an object a write reaches.

use super::{path::PathElement, set::FieldSet};

/// A path of fields' names; [`ANY`] is every item of a list, or every key of a map.
pub type Pattern<'a> = &'a [&'a str];

/// The element of a [`Pattern`] that stands for all.
pub const ANY: &str = "*";

/// The fields of the object that a write can change, as its resource or subresource has it (upstream's reset fields).
///
/// What it does not reach is neither owned by who sends it, nor taken from its owners.
#[derive(Clone, Copy, Debug)]
pub enum Reach<'a> {
    /// All fields but these, with all below them.
    AllBut(&'a [Pattern<'a>]),
    /// These fields alone, with all below them.
    Only(&'a [Pattern<'a>]),
}

impl Reach<'_> {
    /// Whether it passes over a field of the object itself, with all below it.
    pub(super) fn skips(&self, field: &str) -> bool {
        match self {
            Self::AllBut(patterns) => patterns.iter().any(|pattern| **pattern == [field]),
            Self::Only(patterns) => !patterns.iter().any(|pattern| pattern.first() == Some(&field)),
        }
    }

    /// Whether fields of the object itself are reached whole or not at all.
    pub(super) fn is_of_whole_fields(&self) -> bool {
        match self {
            Self::AllBut(patterns) | Self::Only(patterns) => {
                patterns.iter().all(|pattern| pattern.len() == 1)
            }
        }
    }

    /// Leaves in the set what is reached.
    pub(super) fn restrict(&self, set: &mut FieldSet) {
        match self {
            Self::AllBut(patterns) => patterns.iter().for_each(|pattern| drop_all(set, pattern)),
            Self::Only(patterns) => keep(set, patterns),
        }
    }
}

fn is_meant(pattern: &str, element: &PathElement) -> bool {
    match element {
        PathElement::Field(name) => pattern == ANY || **name == *pattern,
        _ => pattern == ANY,
    }
}

fn drop_all(set: &mut FieldSet, pattern: Pattern<'_>) {
    let Some((first, rest)) = pattern.split_first() else { return };
    set.nodes.retain_mut(|node| {
        if !is_meant(first, &node.element) {
            return true;
        }
        if !rest.is_empty() {
            drop_all(&mut node.children, rest);
        }
        !rest.is_empty() && node.exists()
    });
}

/// Members on the way to what is kept stay: an item of a list with what is kept of it.
fn keep(set: &mut FieldSet, patterns: &[Pattern<'_>]) {
    set.nodes.retain_mut(|node| {
        let meant = patterns.iter().filter_map(|pattern| pattern.split_first());
        let rests: Vec<Pattern<'_>> =
            meant.filter(|(first, _)| is_meant(first, &node.element)).map(|(_, rest)| rest).collect();
        if !rests.is_empty() && rests.iter().all(|rest| !rest.is_empty()) {
            keep(&mut node.children, &rests);
        }
        !rests.is_empty() && node.exists()
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn restricted(reach: Reach<'_>) -> serde_json::Value {
        let mut set: FieldSet = serde_json::from_value(json!({
            "f:metadata": { "f:labels": { ".": {}, "f:a": {} }, "f:annotations": { "f:b": {} } },
            "f:spec": {
                "f:containers": { "k:{\"name\":\"c\"}": {
                    ".": {}, "f:image": {}, "f:resources": { "f:limits": { "f:cpu": {} } },
                } },
                "f:nodeName": {},
            },
            "f:status": { "f:phase": {} },
        }))
        .unwrap();
        reach.restrict(&mut set);
        let mut out = Vec::new();
        set.write(&mut out);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn what_is_not_reached_is_left_out() {
        assert_eq!(
            restricted(Reach::AllBut(&[&["spec"], &["metadata", "labels"]])),
            json!({
                "f:metadata": { "f:annotations": { "f:b": {} } },
                "f:status": { "f:phase": {} },
            })
        );
        assert_eq!(
            restricted(Reach::AllBut(&[
                &["spec"],
                &["metadata", "labels"],
                &["metadata", "annotations", "b"]
            ])),
            json!({ "f:status": { "f:phase": {} } })
        );
    }

    #[test]
    fn items_of_lists_stay_with_what_is_reached_of_them() {
        assert_eq!(
            restricted(Reach::Only(&[&["spec", "containers", ANY, "resources"]])),
            json!({ "f:spec": { "f:containers": { "k:{\"name\":\"c\"}": {
                ".": {}, "f:resources": { "f:limits": { "f:cpu": {} } },
            } } } })
        );
    }

    #[test]
    fn fields_of_the_object_itself_are_skipped_whole_or_not() {
        let all_but = Reach::AllBut(&[&["spec"], &["metadata", "labels"]]);
        assert!(all_but.skips("spec") && !all_but.skips("metadata") && !all_but.skips("status"));
        let only = Reach::Only(&[&["spec", "ephemeralContainers"]]);
        assert!(!only.skips("spec") && only.skips("status"));
    }
}
