//! The quality-of-service class of a pod.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{list, quantity};
use crate::quantity::Quantity;

const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed`, `Burstable` or `BestEffort`, from requests and limits of cpu and memory of a pod's `spec`.
pub fn qos_class(spec: &Value) -> &'static str {
    // What the pod as a whole asks for stands above what its containers ask for.
    let parts: Vec<&Value> = if COMPUTE.iter().any(|name| asks(spec, name)) {
        vec![spec]
    } else {
        list(&spec["containers"]).iter().chain(list(&spec["initContainers"])).collect()
    };
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    let mut all_limited = true;
    for part in parts {
        for name in COMPUTE {
            let request = quantity(&part["resources"]["requests"][name]).unwrap_or_default();
            if request.sign() > 0 {
                let sum = requests.entry(name).or_insert(Quantity::ZERO);
                *sum = *sum + request;
            }
            let limit = quantity(&part["resources"]["limits"][name]).unwrap_or_default();
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
    let is_positive = |field: &str| quantity(&spec["resources"][field][name]).is_some_and(|it| it.sign() > 0);
    is_positive("requests") || is_positive("limits")
}
