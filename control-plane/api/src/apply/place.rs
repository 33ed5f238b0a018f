//! The table of types as server-side apply sees it: what is one value, and what is owned part by part.
//!
//! Lists without a type are one value, as upstream has it; structs and maps are owned part by part unless they are
//! marked atomic. Times, quantities and free JSON are one value.

use serde_json::{Map, Value};

use super::path::PathElement;
use crate::schema::{Elem, Field, ListType, MapType, Shape, Special, Type};

/// What apply knows of the place where a value stands.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// Owned as a whole.
    Leaf,
    Struct(&'static Type),
    /// Keys are the user's; each item is owned apart.
    Map(Elem),
    /// Items are told apart by keys.
    List {
        elem: Elem,
        keys: &'static [&'static str],
    },
    /// Items are told apart by their values.
    Set,
}

impl Place {
    pub(super) fn of_type(ty: &'static Type) -> Self {
        if ty.special == Special::Struct && !ty.atomic { Self::Struct(ty) } else { Self::Leaf }
    }

    pub(super) fn of_elem(elem: Elem) -> Self {
        elem.message().map_or(Self::Leaf, Self::of_type)
    }

    pub(super) fn of_field(field: &'static Field) -> Self {
        match field.shape {
            Shape::One => match (field.map_type, field.elem.message()) {
                (Some(MapType::Atomic), _) | (_, None) => Self::Leaf,
                (Some(MapType::Granular), Some(ty)) if ty.special == Special::Struct => Self::Struct(ty),
                (_, Some(ty)) => Self::of_type(ty),
            },
            Shape::Map if field.map_type == Some(MapType::Atomic) => Self::Leaf,
            Shape::Map => Self::Map(field.elem),
            Shape::List => match field.list_type {
                Some(ListType::Map) if !field.list_keys.is_empty() => {
                    Self::List { elem: field.elem, keys: &field.list_keys }
                }
                Some(ListType::Set) => Self::Set,
                _ => Self::Leaf,
            },
        }
    }

    /// Where a member of the object here stands; what no type knows is one value.
    pub(super) fn member(self, name: &str) -> Self {
        match self {
            Self::Struct(ty) => ty.field(name).map_or(Self::Leaf, Self::of_field),
            Self::Map(elem) => Self::of_elem(elem),
            _ => Self::Leaf,
        }
    }

    /// Where the items of the list here stand.
    pub(super) fn item(self) -> Self {
        match self {
            Self::List { elem, .. } => Self::of_elem(elem),
            _ => Self::Leaf,
        }
    }

    /// Where the part that `element` leads to stands.
    pub(super) fn part(self, element: &PathElement) -> Self {
        match element {
            PathElement::Field(name) => self.member(name),
            _ => self.item(),
        }
    }

    /// What tells an item from others in the list; `None` where a key is missing and has no default.
    pub(super) fn element_of(self, item: &Value) -> Option<PathElement> {
        match self {
            Self::Set => (!item.is_object() && !item.is_array()).then(|| PathElement::Value(item.clone())),
            Self::List { elem, keys } => {
                let members = item.as_object()?;
                let mut named: Vec<(Box<str>, Value)> = Vec::with_capacity(keys.len());
                for key in keys {
                    match key_of(members, key, elem) {
                        Key::Is(value) => named.push(((*key).into(), value)),
                        Key::Optional => {}
                        Key::Missing => return None,
                    }
                }
                if named.is_empty() {
                    return None;
                }
                named.sort_by(|one, two| one.0.cmp(&two.0));
                Some(PathElement::Key(named.into()))
            }
            _ => None,
        }
    }
}

/// What an item has for a key.
enum Key {
    Is(Value),
    /// Nothing, and need not.
    Optional,
    Missing,
}

fn key_of(members: &Map<String, Value>, key: &str, elem: Elem) -> Key {
    if let Some(value) = members.get(key) {
        return Key::Is(value.clone());
    }
    let Some(field) = elem.message().and_then(|ty| ty.field(key)) else { return Key::Missing };
    match field.default.map(serde_json::from_str) {
        Some(Ok(default)) => Key::Is(default),
        _ if field.required => Key::Missing,
        _ if field.pointer => Key::Optional,
        // Canonical objects leave out what is zero.
        _ => Key::Is(crate::schema::zero(field.elem)),
    }
}
