//! Slices: the devices that a driver offers, and where.

use hawser_api::FieldError;
use serde_json::Value;

use super::{SPEC, driver, label, pool_name, unique};
use crate::kinds::{
    meta::invalid_all,
    names::{dns_subdomain, qualified_name},
    rules::{at_most, no_longer, one_of, required},
    value::{Fields, Path},
};

const MOST_DEVICES: usize = 128;
/// Where devices have taints or share counters.
const MOST_COSTLY_DEVICES: usize = 64;
const MOST_COUNTER_SETS: usize = 8;
const MOST_PROPERTIES: usize = 32;
const MOST_TAINTS: usize = 16;
const LONGEST_VALUE: usize = 64;

/// How a slice, or a device of one that leaves it to its devices, says which nodes reach it.
const PLACES: [&str; 4] = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];

pub(super) fn validate(slice: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = slice.at("spec");
    driver(&mut errors, &SPEC.field("driver"), spec.text("driver"));
    let pool = SPEC.field("pool");
    pool_name(&mut errors, &pool.field("name"), spec.text("pool.name"));
    let (slices, generation) = (
        spec.int("pool.resourceSliceCount").unwrap_or_default(),
        spec.int("pool.generation").unwrap_or_default(),
    );
    if slices <= 0 {
        errors.push(FieldError::invalid(
            pool.field("resourceSliceCount"),
            slices,
            "must be greater than zero",
        ));
    }
    if generation < 0 {
        errors.push(FieldError::invalid(
            pool.field("generation"),
            generation,
            "must be greater than or equal to zero",
        ));
    }
    let named = place(&mut errors, &SPEC, spec, &PLACES);
    let detail =
        "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match named.len() {
        0 => errors.push(FieldError::required(SPEC, detail)),
        1 => (),
        _ => errors.push(FieldError::invalid(
            SPEC,
            format!("{{{}}}", named.join(", ")),
            format!("{detail}, but multiple fields are set"),
        )),
    }
    if !spec.list("sharedCounters").is_empty() && !spec.list("devices").is_empty() {
        let detail = "only one of `sharedCounters` or `devices` is allowed";
        errors.push(FieldError::invalid(SPEC, "", detail));
    }
    devices(&mut errors, spec);
    let list = SPEC.field("sharedCounters");
    let counters = spec.list("sharedCounters");
    at_most(&mut errors, &list, counters.len(), MOST_COUNTER_SETS);
    for (index, set) in counters.iter().enumerate() {
        let path = list.index(index);
        label(&mut errors, &path.field("name"), set.text("name"));
        if set.map("counters").is_empty() {
            errors.push(FieldError::required(path.field("counters"), ""));
        }
    }
    unique(&mut errors, &list, counters);
    errors
}

/// Checks each of the fields that is set, and returns them in quotes.
fn place(errors: &mut Vec<FieldError>, path: &Path<'_>, object: &Value, fields: &[&str]) -> Vec<String> {
    let mut named = Vec::new();
    for field in fields.iter().filter(|field| object.has(field)) {
        let (path, value) = (path.field(field), object.at(field));
        match value {
            Value::String(name) if name.is_empty() => {
                errors.push(FieldError::invalid(
                    path,
                    "",
                    "must be either unset or set to a non-empty string",
                ));
                continue;
            }
            Value::String(name) => invalid_all(errors, &path, name, dns_subdomain(name)),
            Value::Bool(false) => {
                errors.push(FieldError::invalid(path, false, "must be either unset or set to true"));
                continue;
            }
            _ if *field == "nodeSelector" && value.list("nodeSelectorTerms").len() != 1 => {
                let terms = value.at("nodeSelectorTerms").clone();
                let detail = "must have exactly one node selector term";
                errors.push(FieldError::invalid(path.field("nodeSelectorTerms"), terms, detail));
            }
            _ => (),
        }
        named.push(format!("`{field}`"));
    }
    named
}

fn devices(errors: &mut Vec<FieldError>, spec: &Value) {
    let list = SPEC.field("devices");
    let all = spec.list("devices");
    let costly =
        |device: &Value| !device.list("taints").is_empty() || !device.list("consumesCounters").is_empty();
    let most = if all.iter().any(costly) { MOST_COSTLY_DEVICES } else { MOST_DEVICES };
    at_most(errors, &list, all.len(), most);
    for (index, device) in all.iter().enumerate() {
        let path = list.index(index);
        label(errors, &path.field("name"), device.text("name"));
        properties(errors, &path, device);
        taints(errors, &path.field("taints"), device.list("taints"));
        let sets = path.field("consumesCounters");
        for (index, set) in device.list("consumesCounters").iter().enumerate() {
            let path = sets.index(index);
            required(errors, &path.field("counterSet"), set.text("counterSet"));
            if set.map("counters").is_empty() {
                errors.push(FieldError::required(path.field("counters"), ""));
            }
        }
        let by_device = spec.flag("perDeviceNodeSelection");
        let named = place(errors, &path, device, &PLACES[..3]);
        let detail = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is \
                      set to true in the ResourceSlice spec";
        match named.len() {
            0 if by_device => errors.push(FieldError::required(path, detail)),
            1 if by_device => (),
            _ if by_device => {
                errors.push(FieldError::invalid(path, format!("{{{}}}", named.join(", ")), detail));
            }
            0 => (),
            _ => {
                let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set \
                              to true in the ResourceSlice spec";
                errors.push(FieldError::invalid(path, Value::Null, detail));
            }
        }
    }
    unique(errors, &list, all);
}

fn properties(errors: &mut Vec<FieldError>, path: &Path<'_>, device: &Value) {
    let (attributes, capacity) = (device.map("attributes"), device.map("capacity"));
    let count = attributes.len() + capacity.len();
    if count > MOST_PROPERTIES {
        let detail =
            format!("the total number of attributes and capacities must not exceed {MOST_PROPERTIES}");
        errors.push(FieldError::invalid(path, count, detail));
    }
    let list = path.field("attributes");
    for (name, attribute) in attributes {
        let path = list.key(name);
        property_name(errors, &path, name);
        if attribute.as_object().map_or(0, |values| values.len()) != 1 {
            errors.push(FieldError::invalid(path, attribute.clone(), "exactly one value must be specified"));
        }
        for field in ["string", "version"] {
            no_longer(errors, &path.field(field), attribute.text(field), LONGEST_VALUE);
        }
    }
    let list = path.field("capacity");
    for (name, amount) in capacity {
        let path = list.key(name);
        property_name(errors, &path, name);
        if amount.has("requestPolicy") && !device.flag("allowMultipleAllocations") {
            let detail = "allowMultipleAllocations must be true";
            errors.push(FieldError::forbidden(path.field("requestPolicy"), detail));
        }
    }
}

/// `model`, or `example.com/model`; the name is a C identifier.
fn property_name(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    let (domain, id) = name.split_once('/').map_or((None, name), |(domain, id)| (Some(domain), id));
    if let Some(domain) = domain {
        no_longer(errors, path, domain, 63);
        invalid_all(errors, path, domain, dns_subdomain(domain));
    }
    no_longer(errors, path, id, 32);
    let is_identifier = id.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !is_identifier {
        let detail = "a valid C identifier must start with alphabetic character or '_', followed by a string of \
                      alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for \
                      validation is '[A-Za-z_][A-Za-z0-9_]*')";
        errors.push(FieldError::invalid(path, id, detail));
    }
}

fn taints(errors: &mut Vec<FieldError>, path: &Path<'_>, all: &[Value]) {
    at_most(errors, path, all.len(), MOST_TAINTS);
    for (index, taint) in all.iter().enumerate() {
        let path = path.index(index);
        let key = taint.text("key");
        invalid_all(errors, &path.field("key"), key, qualified_name(key));
        match taint.text("effect") {
            "" => errors.push(FieldError::required(path.field("effect"), "")),
            effect => one_of(errors, &path.field("effect"), effect, &["NoExecute", "NoSchedule", "None"]),
        }
    }
}
