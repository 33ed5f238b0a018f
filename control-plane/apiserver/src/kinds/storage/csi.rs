//! Rules of what CSI drivers say about themselves: CSIDriver, CSINode, CSIStorageCapacity.

use std::collections::HashSet;

use hawser_api::{FieldError, error::FieldErrorKind};
use serde_json::Value;

use crate::kinds::{
    meta::invalid_all,
    names::{dns_subdomain, qualified_name},
    quantity, selector,
    value::{Fields, Path},
};

const SPEC: Path<'static> = Path::Root("spec");
/// The most bytes of a driver's name, and of a node's id among its driver's.
const MAX_NAME: usize = 63;
const MAX_NODE_ID: usize = 256;
/// Seconds that a token is good for, and between two counts of what a node can take.
const TOKEN_SECONDS: std::ops::RangeInclusive<i64> = 600..=1 << 32;
const SHORTEST_PERIOD: i64 = 10;

pub(super) fn driver(driver: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = driver.at("spec");
    let policy = spec.text("fsGroupPolicy");
    let known = ["File", "None", "ReadWriteOnceWithFSType"];
    if spec.has("fsGroupPolicy") && !known.contains(&policy) {
        errors.push(FieldError::not_supported(SPEC.field("fsGroupPolicy"), policy, &known));
    }
    let list = SPEC.field("tokenRequests");
    let mut audiences = HashSet::new();
    for (index, request) in spec.list("tokenRequests").iter().enumerate() {
        let path = list.index(index);
        let audience = request.text("audience");
        if !audiences.insert(audience) {
            errors.push(FieldError::duplicate(path.field("audience"), audience));
        } else if let Some(seconds) =
            request.int("expirationSeconds").filter(|seconds| !TOKEN_SECONDS.contains(seconds))
        {
            let detail = if seconds < *TOKEN_SECONDS.start() {
                "may not specify a duration less than 10 minutes"
            } else {
                "may not specify a duration larger than 2^32 seconds"
            };
            errors.push(FieldError::invalid(path.field("expirationSeconds"), seconds, detail));
        }
    }
    for mode in spec.list("volumeLifecycleModes").iter().filter_map(Value::as_str) {
        if !matches!(mode, "Persistent" | "Ephemeral") {
            let path = SPEC.field("volumeLifecycleModes");
            errors.push(FieldError::not_supported(path, mode, &["Persistent", "Ephemeral"]));
        }
    }
    let period = spec.int("nodeAllocatableUpdatePeriodSeconds");
    if let Some(seconds) = period.filter(|seconds| *seconds < SHORTEST_PERIOD) {
        let detail = "must be greater than or equal to 10 seconds";
        errors.push(FieldError::invalid(SPEC.field("nodeAllocatableUpdatePeriodSeconds"), seconds, detail));
    }
    errors
}

pub(super) fn update_driver(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    // Upstream's name of the field in the error is another than the field's.
    for (field, shown) in
        [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")]
    {
        immutable(&mut errors, &SPEC.field(shown), new.at("spec").at(field), old.at("spec").at(field));
    }
    errors
}

pub(super) fn node(node: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list = SPEC.field("drivers");
    let mut names = HashSet::new();
    for (index, driver) in node.list("spec.drivers").iter().enumerate() {
        let path = list.index(index);
        let (name, id) = (driver.text("name"), driver.text("nodeID"));
        driver_name(&mut errors, &path.field("name"), name);
        if id.is_empty() {
            errors.push(FieldError::required(path.field("nodeID"), ""));
        } else if id.len() > MAX_NODE_ID {
            let detail = format!("must be {MAX_NODE_ID} characters or less");
            errors.push(FieldError::invalid(path.field("nodeID"), id, detail));
        }
        if let Some(count) = driver.int("allocatable.count").filter(|count| *count < 0) {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(path.field("allocatable.count"), count, detail));
        }
        if !names.insert(name) {
            errors.push(FieldError::duplicate(path.field("name"), name));
        }
        let mut keys = HashSet::new();
        for key in driver.list("topologyKeys").iter().filter_map(Value::as_str) {
            if key.is_empty() {
                errors.push(FieldError::required(path, ""));
            }
            if !keys.insert(key) {
                errors.push(FieldError::duplicate(path, key));
            }
            invalid_all(&mut errors, &path, key, qualified_name(key));
        }
    }
    errors
}

/// A driver of a node stays as it is, but for how many volumes it can take there.
pub(super) fn update_node(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let lasting = |driver: &Value| {
        let mut driver = driver.clone();
        driver.drop_field("allocatable");
        driver
    };
    for before in old.list("spec.drivers") {
        for now in new.list("spec.drivers").iter().filter(|now| now.text("name") == before.text("name")) {
            immutable(&mut errors, &SPEC.field("drivers"), &lasting(now), &lasting(before));
        }
    }
    errors
}

pub(super) fn capacity(capacity: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    selector::validate(&mut errors, &Path::Root("nodeTopology"), capacity.at("nodeTopology"));
    let class = capacity.text("storageClassName");
    invalid_all(&mut errors, &Path::Root("storageClassName"), class, dns_subdomain(class));
    quantity::not_negative(&mut errors, &Path::Root("capacity"), capacity.at("capacity"));
    errors
}

pub(super) fn update_capacity(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["nodeTopology", "storageClassName"] {
        immutable(&mut errors, &Path::Root(field), new.at(field), old.at(field));
    }
    errors
}

/// The name of a driver, which may have capitals.
pub(crate) fn driver_name(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    if name.len() > MAX_NAME {
        let detail = format!("may not be more than {MAX_NAME} bytes");
        errors.push(FieldError::new(FieldErrorKind::TooLong, path, None, detail));
    }
    invalid_all(errors, path, name, dns_subdomain(&name.to_lowercase()));
}

fn immutable(errors: &mut Vec<FieldError>, path: &Path<'_>, new: &Value, old: &Value) {
    if new != old {
        errors.push(FieldError::invalid(path, new.clone(), "field is immutable"));
    }
}
