//! The fields of one manager: as they are stored, until somebody has to look at all of them.
//!
//! Most writes change fields that their manager has already, and that nobody else has. That is seen in the stored
//! text, along the few paths that changed, and the text is written back as it is.

use std::sync::OnceLock;

use bytes::Bytes;

use super::set::FieldSet;
use crate::scan::Members;

/// A set of fields that may still be text.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnedFields {
    /// Canonical JSON, as [`FieldSet::write`] writes it; `None` after a change.
    text: Option<Bytes>,
    set: OnceLock<FieldSet>,
}

impl From<FieldSet> for OwnedFields {
    fn from(set: FieldSet) -> Self {
        Self { text: None, set: OnceLock::from(set) }
    }
}

impl<'de> serde::Deserialize<'de> for OwnedFields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        FieldSet::deserialize(deserializer).map(Self::from)
    }
}

impl PartialEq for OwnedFields {
    fn eq(&self, other: &Self) -> bool {
        self.text.is_some() && self.text == other.text || self.set() == other.set()
    }
}

impl Eq for OwnedFields {}

impl OwnedFields {
    /// What the server wrote before.
    pub(super) fn stored(text: Bytes) -> Self {
        Self { text: Some(text), set: OnceLock::new() }
    }

    pub(super) fn set(&self) -> &FieldSet {
        self.set.get_or_init(|| {
            let text = self.text.as_deref().unwrap_or_default();
            // Written by the server, so it can be read; what somebody else put into the store owns nothing.
            serde_json::from_slice(text).unwrap_or_default()
        })
    }

    pub(super) fn set_mut(&mut self) -> &mut FieldSet {
        self.set();
        self.text = None;
        self.set.get_mut().expect("it was just read")
    }

    pub(super) fn is_empty(&self) -> bool {
        match &self.text {
            Some(text) => **text == *b"{}",
            None => self.set().is_empty(),
        }
    }

    /// How many members of `other` are members here.
    pub(super) fn common(&self, other: &FieldSet) -> usize {
        match (&self.text, self.set.get()) {
            (Some(text), None) => common(text, other),
            _ => self.set().intersection(other).len(),
        }
    }

    /// Removes the members of these sets.
    pub(super) fn subtract(&mut self, others: [&FieldSet; 2]) {
        for other in others {
            if self.common(other) > 0 {
                self.set_mut().subtract(other);
            }
        }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match &self.text {
            Some(text) => out.extend_from_slice(text),
            None => self.set().write(out),
        }
    }
}

/// The members that a level of `FieldsV1` and a set have in common.
fn common(level: &[u8], set: &FieldSet) -> usize {
    if set.is_empty() {
        return 0;
    }
    let names = set.nodes.iter().map(|node| {
        let mut name = Vec::new();
        node.element.write(&mut name);
        name
    });
    let names: Vec<Vec<u8>> = names.collect();
    let (mut left, mut count) = (names.len(), 0);
    for (key, value) in Members::new(level, 0).into_iter().flatten() {
        if left == 0 {
            break;
        }
        // With its quotes, as elements are written.
        let key = &level[key.start - 1..=key.end];
        let Some(node) = names.iter().position(|name| name == key).map(|at| &set.nodes[at]) else { continue };
        left -= 1;
        let value = &level[value];
        count += usize::from(node.member && is_member(value)) + common(value, &node.children);
    }
    count
}

/// Whether the path to this level is a member itself.
fn is_member(level: &[u8]) -> bool {
    let first = Members::new(level, 0).and_then(|mut members| members.next());
    first.is_none_or(|(key, _)| &level[key] == b".")
}
