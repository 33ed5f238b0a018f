//! Strategic merge patch: JSON merge that knows which lists are merged item by item, and directives.
//!
//! Merge keys and strategies come from the table of types. Directives: `$patch` (replace, delete, merge),
//! `$retainKeys`, `$deleteFromPrimitiveList/<list>`, `$setElementOrder/<list>`. Follows the rules of
//! `k8s.io/apimachinery/pkg/util/strategicpatch`.

use serde_json::{Map, Value};

use super::unprocessable;
use crate::{
    Error,
    schema::{Field, Shape, Special, Type},
};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

fn bad(message: impl Into<String>) -> Error {
    Error::bad_request(message)
}

/// Merges `patch` into `original`, an object of type `ty` where that is known.
pub(super) fn merge_object(
    mut original: Object,
    mut patch: Object,
    ty: Option<&'static Type>,
) -> Result<Object, Error> {
    match patch.remove(PATCH) {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "replace" => return Ok(without_nulls_and_directives(patch)),
            "delete" => return Ok(Object::new()),
            "merge" => {}
            _ => return Err(unknown_directive(&directive)),
        },
        Some(other) => return Err(unknown_directive(&other.to_string())),
    }
    retain_keys(&mut original, &mut patch)?;
    apply_orders(&mut original, &mut patch, ty)?;
    for (name, change) in patch {
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            delete_from_list(&mut original, list, &change)?;
            continue;
        }
        if change.is_null() {
            original.remove(&name);
            continue;
        }
        let field = ty.and_then(|ty| ty.field(&name));
        let merged = match original.remove(&name) {
            None => clean(change),
            Some(current) => merge_value(current, change, Place::of(field))?,
        };
        original.insert(name, merged);
    }
    Ok(original)
}

fn unknown_directive(directive: &str) -> Error {
    bad(format!("unknown patch type {directive:?} in the directive {PATCH}"))
}

/// What the table says of the place where two values meet.
#[derive(Clone, Copy, Default)]
struct Place {
    /// The type of the object there, or of each item of the list or map.
    ty: Option<&'static Type>,
    is_map: bool,
    is_list: bool,
    merge: bool,
    replace: bool,
    merge_key: Option<&'static str>,
}

impl Place {
    fn of(field: Option<&'static Field>) -> Self {
        let Some(field) = field else { return Self::default() };
        let ty = field.elem.message();
        // Free JSON, and what is one value to Go, has no fields to merge.
        let opaque = ty.is_some_and(|ty| ty.special != Special::Struct && ty.special != Special::RawJson);
        Self {
            ty: ty.filter(|ty| ty.special == Special::Struct),
            is_map: field.shape == Shape::Map,
            is_list: field.shape == Shape::List,
            merge: field.patch.merge,
            replace: field.patch.replace || opaque && field.shape == Shape::One,
            merge_key: field.patch.merge_key,
        }
    }
}

fn merge_value(current: Value, change: Value, place: Place) -> Result<Value, Error> {
    match (current, change) {
        (Value::Object(current), Value::Object(change)) if place.is_map && !place.replace => {
            merge_map(current, change, place.ty).map(Value::Object)
        }
        (Value::Object(current), Value::Object(change)) if !place.replace => {
            merge_object(current, change, place.ty).map(Value::Object)
        }
        (Value::Array(current), Value::Array(change)) if place.is_list && place.merge => {
            merge_list(current, change, place).map(Value::Array)
        }
        (_, change) => Ok(clean(change)),
    }
}

/// A map's members have names of the user's, and one type.
fn merge_map(mut current: Object, mut change: Object, ty: Option<&'static Type>) -> Result<Object, Error> {
    if let Some(directive) = change.remove(PATCH) {
        match directive.as_str() {
            Some("replace") => return Ok(without_nulls_and_directives(change)),
            Some("delete") => return Ok(Object::new()),
            Some("merge") => {}
            _ => return Err(unknown_directive(&directive.to_string())),
        }
    }
    retain_keys(&mut current, &mut change)?;
    for (name, change) in change {
        if change.is_null() {
            current.remove(&name);
            continue;
        }
        let merged = match (current.remove(&name), change) {
            (Some(Value::Object(current)), Value::Object(change)) => {
                Value::Object(merge_object(current, change, ty)?)
            }
            (_, change) => clean(change),
        };
        current.insert(name, merged);
    }
    Ok(current)
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Error> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let names: Option<Vec<&str>> =
        directive.as_array().map(|names| names.iter().filter_map(Value::as_str).collect());
    let names = names
        .ok_or_else(|| bad(format!("invalid patch format of {RETAIN_KEYS}: a list of names is expected")))?;
    let named = |name: &str| names.contains(&name);
    let stray = patch.iter().find(|(name, value)| !name.starts_with('$') && !value.is_null() && !named(name));
    if let Some((name, _)) = stray {
        return Err(bad(format!("invalid patch format of {RETAIN_KEYS}: {name:?} is set but not retained")));
    }
    original.retain(|name, _| named(name));
    Ok(())
}

fn delete_from_list(original: &mut Object, list: &str, items: &Value) -> Result<(), Error> {
    let items = items.as_array().ok_or_else(|| bad("invalid patch format of primitive list"))?;
    if let Some(Value::Array(current)) = original.get_mut(list) {
        current.retain(|item| !items.contains(item));
    }
    Ok(())
}

/// Merges the lists that come with an order, and puts them into it.
fn apply_orders(original: &mut Object, patch: &mut Object, ty: Option<&'static Type>) -> Result<(), Error> {
    let directives: Vec<String> = patch.keys().filter(|name| name.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let order = patch.remove(&directive);
        let Some(Value::Array(order)) = order else {
            return Err(bad(format!("invalid patch format of {directive}: a list is expected")));
        };
        let list = &directive[SET_ORDER.len()..];
        let place = Place::of(ty.and_then(|ty| ty.field(list)));
        let current = match original.get(list) {
            Some(Value::Array(items)) => Some(items.clone()),
            _ => None,
        };
        if patch.get(list).is_some_and(Value::is_null) {
            continue;
        }
        // What is deleted from a list of scalars has to go before the order is set.
        let deletions = patch.remove(&format!("{DELETE_FROM}{list}"));
        let change = match patch.remove(list) {
            Some(Value::Array(items)) => Some(items),
            Some(_) => return Err(bad(format!("invalid patch format of {list}: a list is expected"))),
            None => None,
        };
        if let Some(change) = &change {
            check_order(list, change, &order, place.merge_key)?;
        }
        let server_order = current.clone().unwrap_or_default();
        let mut merged = match (current, change) {
            (None, None) => continue,
            (Some(current), None) => current,
            (None, Some(change)) => clean_list(change),
            (Some(current), Some(change)) => merge_list(current, change, place)?,
        };
        if let Some(deletions) = deletions {
            let deletions =
                deletions.as_array().ok_or_else(|| bad("invalid patch format of primitive list"))?;
            merged.retain(|item| !deletions.contains(item));
        }
        let merged = in_order(merged, &order, &server_order, place.merge_key);
        original.insert(list.to_owned(), Value::Array(merged));
    }
    Ok(())
}

/// What tells items apart: the merge key's value, or the scalar itself.
fn identity<'v>(item: &'v Value, merge_key: Option<&str>) -> Option<&'v Value> {
    match (item, merge_key) {
        (Value::Object(members), Some(key)) => members.get(key),
        (Value::Object(_), None) => None,
        _ => Some(item),
    }
}

fn position(list: &[Value], item: &Value, merge_key: Option<&str>) -> Option<usize> {
    let wanted = identity(item, merge_key)?;
    list.iter().position(|other| identity(other, merge_key) == Some(wanted))
}

/// The items that the patch sets must stand in the order that it asks for.
fn check_order(list: &str, change: &[Value], order: &[Value], merge_key: Option<&str>) -> Result<(), Error> {
    let mut next = 0;
    for item in change.iter().filter(|item| item.get(PATCH).is_none()) {
        match position(&order[next..], item, merge_key) {
            Some(at) => next += at + 1,
            None => {
                return Err(bad(format!(
                    "the order in the patch of {list} does not match {SET_ORDER}{list}"
                )));
            }
        }
    }
    Ok(())
}

/// Items that the patch names come in its order; the server's own keep their places among them.
fn in_order(
    merged: Vec<Value>,
    order: &[Value],
    server_order: &[Value],
    merge_key: Option<&str>,
) -> Vec<Value> {
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| position(order, item, merge_key).is_some());
    named.sort_by_key(|item| position(order, item, merge_key));
    others.sort_by_key(|item| position(server_order, item, merge_key));
    let mut result = Vec::with_capacity(named.len() + others.len());
    let mut named = named.into_iter().peekable();
    for other in others {
        let at = position(server_order, &other, merge_key);
        // The server's item goes first only where both were there before, and it stood in front.
        while let Some(item) = named.next_if(|item| {
            let place = position(server_order, item, merge_key);
            !matches!((at, place), (Some(at), Some(place)) if at < place)
        }) {
            result.push(item);
        }
        result.push(other);
    }
    result.extend(named);
    result
}

fn merge_list(current: Vec<Value>, change: Vec<Value>, place: Place) -> Result<Vec<Value>, Error> {
    let objects = change.iter().chain(&current).any(Value::is_object);
    if !objects {
        let mut merged = current;
        for item in change {
            if !merged.contains(&item) {
                merged.push(item);
            }
        }
        return Ok(merged);
    }
    let Some(key) = place.merge_key else {
        return Err(unprocessable("cannot merge lists without merge key"));
    };
    let mut merged = current;
    let mut replace = false;
    let mut additions = Vec::new();
    for item in change {
        let Value::Object(mut item) = item else {
            return Err(unprocessable(format!(
                "an object with the merge key {key:?} is expected in the list"
            )));
        };
        match item.remove(PATCH) {
            None => additions.push(item),
            Some(Value::String(directive)) if directive == "delete" => {
                let wanted = item.get(key).ok_or_else(|| no_merge_key(&item, key))?;
                merged.retain(|other| other.get(key) != Some(wanted));
            }
            Some(Value::String(directive)) if directive == "replace" => {
                replace = true;
                if !item.is_empty() {
                    additions.push(item);
                }
            }
            Some(Value::String(directive)) if directive == "merge" => {
                return Err(bad("merging lists cannot yet be specified in the patch"));
            }
            Some(other) => return Err(unknown_directive(&other.to_string())),
        }
    }
    if replace {
        return Ok(additions
            .into_iter()
            .map(|item| Value::Object(without_nulls_and_directives(item)))
            .collect());
    }
    for item in additions {
        let wanted = item.get(key).ok_or_else(|| no_merge_key(&item, key))?;
        let found = merged.iter_mut().find(|other| other.get(key) == Some(wanted));
        match found {
            Some(slot) => {
                let current = slot.as_object_mut().map(std::mem::take).unwrap_or_default();
                *slot = Value::Object(merge_object(current, item, place.ty)?);
            }
            None => merged.push(Value::Object(without_nulls_and_directives(item))),
        }
    }
    Ok(merged)
}

fn no_merge_key(item: &Object, key: &str) -> Error {
    let item = Value::Object(item.clone());
    unprocessable(format!("map: {item} does not contain declared merge key: {key}"))
}

/// What a patch brings to a place that was empty: nulls mean nothing there, nor do directives.
fn clean(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(without_nulls_and_directives(object)),
        Value::Array(items) => Value::Array(clean_list(items)),
        other => other,
    }
}

fn clean_list(items: Vec<Value>) -> Vec<Value> {
    // An item that only says what to delete brings nothing.
    let brings = |item: &Value| {
        item.get(PATCH).and_then(Value::as_str).is_none_or(|directive| {
            directive != "delete"
                && !(directive == "replace" && item.as_object().is_some_and(|item| item.len() == 1))
        })
    };
    items.into_iter().filter(brings).map(clean).collect()
}

fn without_nulls_and_directives(object: Object) -> Object {
    let is_directive = |name: &str| {
        name == PATCH || name == RETAIN_KEYS || name.starts_with(DELETE_FROM) || name.starts_with(SET_ORDER)
    };
    object
        .into_iter()
        .filter(|(name, value)| !value.is_null() && !is_directive(name))
        .map(|(name, value)| (name, clean(value)))
        .collect()
}
