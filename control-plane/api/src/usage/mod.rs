//! What objects use of what is limited: amounts by name, as LimitRange and ResourceQuota count them.
//!
//! API server and controllers count with the same functions, so that what admission charges is what the controller
//! finds. Objects are JSON trees; a field of another type than the schema's, or text that is no quantity, counts as
//! absent. Nothing here knows who limits what: [`quota`] says which names a kind counts for, and how much.

mod pod;
mod qos;
pub mod quota;

pub use pod::{Overhead, limits, requests};
pub use qos::qos_class;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;

/// Amounts by the name of what is counted: `cpu`, `requests.memory`, `count/jobs.batch`.
pub type Amounts = BTreeMap<String, Quantity>;

/// One amount; `None` for what is none.
pub fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

/// Reads a `ResourceList`.
pub fn amounts(list: &Value) -> Amounts {
    let entries = list.as_object().into_iter().flatten();
    entries.filter_map(|(name, amount)| Some((name.clone(), quantity(amount)?))).collect()
}

/// The amounts as a `ResourceList`.
pub fn to_value(amounts: &Amounts) -> Value {
    amounts.iter().map(|(name, amount)| (name.clone(), Value::String(amount.to_string()))).collect()
}

/// Adds `more` to `total`, name by name.
pub fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = total.entry(name.clone()).or_default();
        *sum = *sum + *amount;
    }
}

/// Raises `total` to `least`, name by name.
fn raise(total: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let known = total.entry(name.clone()).or_insert(*amount);
        *known = (*known).max(*amount);
    }
}

/// `cpu=1,pods=2`: how messages show amounts.
pub fn shown(amounts: &Amounts) -> String {
    let parts: Vec<String> = amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
    parts.join(",")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
