//! What differs between two versions of an object, as sets of fields.
//!
//! Equal parts are passed over without a look at their types, so the cost is that of the object's size once and of
//! what changed. Follows `structured-merge-diff/typed`: a part that is new is a member itself and with all below it;
//! what is owned as a whole is a member alone. What Go prints as `null` although nobody set it counts as there, so
//! `spec.containers` of a new pod is not added, its items are.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::{path::PathElement, place::Place, reach::Reach, set::FieldSet};
use crate::schema::Type;

/// The outcome of [`compare`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Fields that are new or have another value.
    pub changed: FieldSet,
    pub removed: FieldSet,
}

impl Comparison {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }

    /// Leaves what is not reached out of the comparison.
    pub(super) fn restrict(&mut self, reach: Reach<'_>) {
        reach.restrict(&mut self.changed);
        reach.restrict(&mut self.removed);
    }
}

/// What `new` changes in `old`, both of type `ty` and in canonical form.
pub fn compare(ty: &'static Type, old: &Value, new: &Value) -> Comparison {
    // Members are compared one by one, so equal objects come out as such.
    walk(Place::of_type(ty), Some(old), Some(new)).below
}

static NULL: Value = Value::Null;

/// What an object has for a field that is not in it: Go prints some as null although nobody set them.
pub(super) fn absent(place: Place, side: Option<&Value>, name: &str) -> Option<&'static Value> {
    match place {
        Place::Struct(ty) if matches!(side, Some(Value::Object(_))) => {
            ty.field(name).filter(|field| field.always).map(|_| &NULL)
        }
        _ => None,
    }
}

/// What happened to the value itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Own {
    Same,
    Changed,
    Removed,
}

struct Found {
    own: Own,
    below: Comparison,
}

impl Comparison {
    /// Adds a part, greater than those that are there.
    fn push(&mut self, element: PathElement, found: Found) {
        let Found { own, below } = found;
        match (below.changed.is_empty(), below.removed.is_empty()) {
            (true, true) if own == Own::Same => {}
            (_, true) if own != Own::Removed => {
                self.changed.push(element, own == Own::Changed, below.changed);
            }
            (true, _) if own != Own::Changed => {
                self.removed.push(element, own == Own::Removed, below.removed);
            }
            _ => {
                self.changed.push(element.clone(), own == Own::Changed, below.changed);
                self.removed.push(element, own == Own::Removed, below.removed);
            }
        }
    }
}

/// The two differ, so that no level is looked through twice; at least one of them is there.
fn walk(place: Place, old: Option<&Value>, new: Option<&Value>) -> Found {
    let own = match (old, new) {
        (None, _) => Own::Changed,
        (_, None) => Own::Removed,
        _ => Own::Same,
    };
    let below = match place {
        Place::Struct(_) | Place::Map(_) => walk_members(place, old, new),
        Place::List { .. } | Place::Set => walk_items(place, old, new),
        Place::Leaf => None,
    };
    match below {
        Some(below) => Found { own, below },
        // One value, or empty on both sides.
        None => {
            let own = if own == Own::Removed { own } else { Own::Changed };
            Found { own, below: Comparison::default() }
        }
    }
}

/// The members of an object; of null and of nothing there are none.
pub(super) fn members(value: Option<&Value>) -> Option<&Map<String, Value>> {
    static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    match value {
        None | Some(Value::Null) => Some(&EMPTY),
        Some(Value::Object(members)) => Some(members),
        Some(_) => None,
    }
}

pub(super) fn items(value: Option<&Value>) -> Option<&[Value]> {
    match value {
        None | Some(Value::Null) => Some(&[]),
        Some(Value::Array(items)) => Some(items),
        Some(_) => None,
    }
}

/// `None` where the values are to be compared as a whole.
fn walk_members(place: Place, old: Option<&Value>, new: Option<&Value>) -> Option<Comparison> {
    let (old_members, new_members) = (members(old)?, members(new)?);
    if old_members.is_empty() && new_members.is_empty() {
        return None;
    }
    let mut found = Comparison::default();
    let (mut olds, mut news) = (old_members.iter().peekable(), new_members.iter().peekable());
    loop {
        let (name, before, after) = match (olds.peek(), news.peek()) {
            (None, None) => return Some(found),
            (Some((a, _)), Some((b, _))) if a == b => {
                let (name, before) = olds.next()?;
                let (_, after) = news.next()?;
                if before == after {
                    continue;
                }
                (name, Some(before), Some(after))
            }
            (Some((a, _)), Some((b, _))) if a > b => {
                let (name, after) = news.next()?;
                (name, absent(place, old, name), Some(after))
            }
            (None, Some(_)) => {
                let (name, after) = news.next()?;
                (name, absent(place, old, name), Some(after))
            }
            (Some(_), _) => {
                let (name, before) = olds.next()?;
                (name, Some(before), absent(place, new, name))
            }
        };
        found.push(PathElement::field(name), walk(place.member(name), before, after));
    }
}

/// Items with what tells them apart, in order; `None` where one cannot be told.
pub(super) fn keyed(place: Place, items: &[Value]) -> Option<Vec<(PathElement, &Value)>> {
    let keyed: Option<Vec<_>> = items.iter().map(|item| Some((place.element_of(item)?, item))).collect();
    let mut keyed = keyed?;
    // Stable, so that items of the same key keep their order.
    keyed.sort_by(|one, two| one.0.cmp(&two.0));
    Some(keyed)
}

/// `None` where the lists are to be compared as a whole.
fn walk_items(place: Place, old: Option<&Value>, new: Option<&Value>) -> Option<Comparison> {
    let (old, new) = (items(old)?, items(new)?);
    if old.is_empty() && new.is_empty() {
        return None;
    }
    let (old, new) = (keyed(place, old)?, keyed(place, new)?);
    let (mut old, mut new) = (old.as_slice(), new.as_slice());
    let mut found = Comparison::default();
    while let Some(element) = match (old.first(), new.first()) {
        (Some((a, _)), Some((b, _))) => Some(a.min(b)),
        (Some((a, _)), None) => Some(a),
        (None, next) => next.map(|(b, _)| b),
    } {
        let before = take_same(&mut old, element);
        let after = take_same(&mut new, element);
        let item = match (before, after) {
            (&[], [(_, item)]) => walk(place.item(), None, Some(item)),
            ([(_, item)], &[]) => walk(place.item(), Some(item), None),
            ([(_, one)], [(_, two)]) if one == two => continue,
            ([(_, one)], [(_, two)]) => walk(place.item(), Some(one), Some(two)),
            // Several of one key are compared as one value.
            (before, after) => {
                let own = match (before.is_empty(), after.is_empty()) {
                    _ if before == after => Own::Same,
                    (_, true) => Own::Removed,
                    _ => Own::Changed,
                };
                Found { own, below: Comparison::default() }
            }
        };
        found.push(element.clone(), item);
    }
    Some(found)
}

/// Takes the leading items of that key.
pub(super) fn take_same<'s, 'v>(
    items: &mut &'s [(PathElement, &'v Value)],
    element: &PathElement,
) -> &'s [(PathElement, &'v Value)] {
    let count = items.iter().take_while(|(other, _)| other == element).count();
    let (same, rest) = items.split_at(count);
    *items = rest;
    same
}
