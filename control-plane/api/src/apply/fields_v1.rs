//! The JSON of a field set, `FieldsV1`: an object whose members' names are path elements.
//!
//! `.` says that the path itself is a member where others lie below it; a path without any below is one. Read from
//! any serde source straight into the tree, without JSON values in between. Nesting is bounded by the parsers
//! (128), and the number of nodes by [`MAX_NODES`].

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{
    path::PathElement,
    set::{FieldSet, Node},
};

/// Nodes of one set. An object of 1.5 MiB has fewer fields; more can only be meant to hurt.
const MAX_NODES: usize = 100_000;

impl<'de> serde::Deserialize<'de> for FieldSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Reader { left: &mut MAX_NODES.clone() }.deserialize(deserializer).map(|(_, set)| set)
    }
}

/// Reads one level: whether `.` is there, and what is below.
struct Reader<'a> {
    left: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = (bool, FieldSet);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = (bool, FieldSet);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a set of fields")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut own = false;
        let mut set = FieldSet::default();
        let mut sorted = true;
        while let Some(step) = access.next_key_seed(Step)? {
            let element = match step {
                Name::Own => {
                    own = true;
                    access.next_value::<IgnoredAny>()?;
                    continue;
                }
                Name::Unknown => {
                    access.next_value::<IgnoredAny>()?;
                    continue;
                }
                Name::Element(element) => element,
            };
            *self.left = self.left.checked_sub(1).ok_or_else(|| A::Error::custom("too many fields"))?;
            let (member, children) = access.next_value_seed(Reader { left: &mut *self.left })?;
            let member = member || children.is_empty();
            sorted &= set.nodes.last().is_none_or(|last| last.element < element);
            set.nodes.push(Node { element, member, children });
        }
        if !sorted {
            set.nodes.sort_by(|one, two| one.element.cmp(&two.element));
            set.nodes.dedup_by(|later, first| {
                let same = later.element == first.element;
                if same {
                    first.member |= later.member;
                    first.children.unite(&later.children);
                }
                same
            });
        }
        Ok((own, set))
    }
}

/// The name of a member.
enum Name {
    /// `.`
    Own,
    Element(PathElement),
    /// A sort that is not known.
    Unknown,
}

struct Step;

impl<'de> DeserializeSeed<'de> for Step {
    type Value = Name;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Step {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path element")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Name, E> {
        if text == "." {
            return Ok(Name::Own);
        }
        let element = PathElement::parse(text).map_err(E::custom)?;
        Ok(element.map_or(Name::Unknown, Name::Element))
    }
}

impl FieldSet {
    /// Appends the set as JSON, in canonical order.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_level(false, out);
    }

    fn write_level(&self, own: bool, out: &mut Vec<u8>) {
        out.push(b'{');
        if own && !self.is_empty() {
            out.extend_from_slice(b"\".\":{},");
        }
        for (at, node) in self.nodes.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            node.element.write(out);
            out.push(b':');
            node.children.write_level(node.member, out);
        }
        out.push(b'}');
    }
}
