//! The quality-of-service class of a pod.

use std::collections::BTreeMap;

use hawser_api::quantity::Quantity;
use serde_json::Value;

use crate::kinds::{quantity, value::Fields};

const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed`, `Burstable` or `BestEffort`, from requests and limits of cpu and memory.
pub(crate) fn class(spec: &Value) -> &'static str {
    // What the pod as a whole asks for stands above what its containers ask for.
    let parts: Vec<&Value> = if COMPUTE.iter().any(|name| asks(spec, name)) {
        vec![spec]
    } else {
        spec.list("containers").iter().chain(spec.list("initContainers")).collect()
    };
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    let mut all_limited = true;
    for part in parts {
        for name in COMPUTE {
            let request = quantity::parse(part.at("resources.requests").at(name)).unwrap_or_default();
            if request.sign() > 0 {
                let sum = requests.entry(name).or_insert(Quantity::ZERO);
                *sum = *sum + request;
            }
            let limit = quantity::parse(part.at("resources.limits").at(name)).unwrap_or_default();
            if limit.sign() > 0 {
                let sum = limits.entry(name).or_insert(Quantity::ZERO);
                *sum = *sum + limit;
            } else {
                all_limited = false;
            }
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    if all_limited && requests == limits { "Guaranteed" } else { "Burstable" }
}

fn asks(spec: &Value, name: &str) -> bool {
    quantity::is_positive(spec.at("resources.requests").at(name))
        || quantity::is_positive(spec.at("resources.limits").at(name))
}
