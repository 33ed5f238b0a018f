//! Merging an applied configuration into the live object.
//!
//! What is one value is replaced; structs, maps and lists with keys are merged part by part. Lists keep the live
//! object's order, items that both have come in the configuration's.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{path::PathElement, place::Place};
use crate::schema::Type;

/// The live object with what the configuration says.
pub(super) fn merge(ty: &'static Type, live: &Value, config: &Value) -> Value {
    merge_value(Place::of_type(ty), live, config)
}

fn merge_value(place: Place, live: &Value, config: &Value) -> Value {
    match (place, live, config) {
        (Place::Struct(_) | Place::Map(_), Value::Object(live), Value::Object(config)) => {
            merge_members(place, live, config)
        }
        // A null owns the field, and nothing in it.
        (Place::Struct(_) | Place::Map(_), Value::Object(members), Value::Null) if !members.is_empty() => {
            live.clone()
        }
        (Place::List { .. } | Place::Set, Value::Array(live), Value::Array(config)) => {
            merge_lists(place, live, config).unwrap_or_else(|| Value::Array(config.clone()))
        }
        (Place::List { .. } | Place::Set, Value::Array(items), Value::Null) if !items.is_empty() => {
            live.clone()
        }
        _ => config.clone(),
    }
}

fn merge_members(place: Place, live: &Map<String, Value>, config: &Map<String, Value>) -> Value {
    let mut merged = live.clone();
    for (name, value) in config {
        let value = match live.get(name) {
            Some(before) => merge_value(place.member(name), before, value),
            None => value.clone(),
        };
        merged.insert(name.clone(), value);
    }
    Value::Object(merged)
}

/// `None` where items cannot be told apart: the list is then one value.
fn merge_lists(place: Place, live: &[Value], config: &[Value]) -> Option<Value> {
    let keys = |items: &[Value]| -> Option<Vec<PathElement>> {
        items.iter().map(|item| place.element_of(item)).collect()
    };
    let (live_keys, config_keys) = (keys(live)?, keys(config)?);
    // Of several live items with one key, none is a base: the configuration's replaces them.
    let mut bases: BTreeMap<&PathElement, Option<usize>> = BTreeMap::new();
    for (at, key) in live_keys.iter().enumerate() {
        bases.entry(key).and_modify(|base| *base = None).or_insert(Some(at));
    }
    let places: BTreeMap<&PathElement, usize> =
        config_keys.iter().enumerate().map(|(at, key)| (key, at)).collect();
    let mut shared = config_keys.iter().filter(|key| bases.contains_key(key)).peekable();
    let mut merged = Vec::with_capacity(live.len() + config.len());
    let (mut at, mut next) = (0, 0);
    while at < live.len() || next < config.len() {
        if let Some(key) = live_keys.get(at) {
            let Some(place) = places.get(key) else {
                merged.push(live[at].clone());
                at += 1;
                continue;
            };
            if *place < next || shared.peek().is_some_and(|wanted| *wanted != key) {
                // It came, or comes, where the configuration has it.
                at += 1;
                continue;
            }
        }
        let Some(key) = config_keys.get(next) else { break };
        if live_keys.get(at) == Some(key) {
            at += 1;
        }
        shared.next_if(|wanted| *wanted == key);
        merged.push(match bases.get(key).copied().flatten() {
            Some(base) => merge_value(place.item(), &live[base], &config[next]),
            None => config[next].clone(),
        });
        next += 1;
    }
    Some(Value::Array(merged))
}
