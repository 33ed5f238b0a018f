//! The fields of an object: what an applied configuration owns, and the parts of an object that sets name.

use serde_json::Value;

use super::{
    path::PathElement,
    place::Place,
    set::{FieldSet, Node},
};
use crate::schema::Type;

/// The fields that an object of type `ty` sets.
///
/// Structs are no members, what is in them is; an empty or null one is a member, so that it has an owner. Items and
/// keys of maps are members with what is in them.
pub fn fields_of(ty: &'static Type, object: &Value) -> FieldSet {
    below(Place::of_type(ty), object)
}

fn below(place: Place, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match (place, value) {
        (Place::Struct(_) | Place::Map(_), Value::Object(members)) => {
            for (name, value) in members {
                let children = below(place.member(name), value);
                let member = match value {
                    _ if matches!(place, Place::Map(_)) => true,
                    Value::Null => true,
                    Value::Object(members) if members.is_empty() => true,
                    value => children.is_empty() && is_one_value(place.member(name), value),
                };
                set.push(PathElement::field(name), member, children);
            }
        }
        (Place::List { .. } | Place::Set, Value::Array(items)) => {
            let mut keyed: Vec<(PathElement, &Value)> =
                items.iter().filter_map(|item| Some((place.element_of(item)?, item))).collect();
            keyed.sort_by(|one, two| one.0.cmp(&two.0));
            let mut keyed = keyed.into_iter().peekable();
            while let Some((element, item)) = keyed.next() {
                // Of several with one key, only the key has an owner.
                let several =
                    std::iter::from_fn(|| keyed.next_if(|(other, _)| *other == element)).count() > 0;
                let children = if several { FieldSet::default() } else { below(place.item(), item) };
                set.push(element, true, children);
            }
        }
        _ => {}
    }
    set
}

/// Whether the value is owned as a whole; an empty list that is owned item by item has no owner.
fn is_one_value(place: Place, value: &Value) -> bool {
    match place {
        Place::Leaf => true,
        Place::Struct(_) | Place::Map(_) => !value.is_object(),
        Place::List { .. } | Place::Set => match value.as_array() {
            Some(items) => items.iter().any(|item| place.element_of(item).is_none()),
            None => true,
        },
    }
}

/// The set with every struct's field that leads to a member: what owns a part of a struct owns the struct's field.
pub(super) fn with_named_fields(ty: &'static Type, set: FieldSet) -> FieldSet {
    named(Place::of_type(ty), set)
}

fn named(place: Place, set: FieldSet) -> FieldSet {
    let nodes = set.nodes.into_iter().map(|node| {
        let Node { element, member, children } = node;
        let is_named = match (&place, &element) {
            (Place::Struct(ty), PathElement::Field(name)) => ty.field(name).is_some(),
            _ => false,
        };
        let children = named(place.part(&element), children);
        Node { member: member || is_named && !children.is_empty(), element, children }
    });
    FieldSet { nodes: nodes.collect() }
}

/// The object without the parts that are members of `set`; null where nothing is left.
pub(super) fn without(ty: &'static Type, object: &Value, set: &FieldSet) -> Value {
    remove(Place::of_type(ty), object, set)
}

fn remove(place: Place, value: &Value, set: &FieldSet) -> Value {
    let kept = |node: Option<&Node>, place: Place, value: &Value| match node {
        Some(node) if node.member => None,
        Some(node) => Some(remove(place, value, &node.children)),
        None => Some(value.clone()),
    };
    match (place, value) {
        (Place::Struct(_) | Place::Map(_), Value::Object(members)) => {
            let left = members.iter().filter_map(|(name, value)| {
                Some((name.clone(), kept(set.field(name), place.member(name), value)?))
            });
            let left: serde_json::Map<String, Value> = left.collect();
            if left.is_empty() { Value::Null } else { Value::Object(left) }
        }
        (Place::List { .. } | Place::Set, Value::Array(items)) => {
            let left = items.iter().filter_map(|item| {
                let node = place.element_of(item).and_then(|element| set.node(&element));
                kept(node, place.item(), item)
            });
            let left: Vec<Value> = left.collect();
            if left.is_empty() { Value::Null } else { Value::Array(left) }
        }
        _ => value.clone(),
    }
}
