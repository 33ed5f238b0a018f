//! Claims: what is asked for, and what was given.

use hawser_api::FieldError;
use hawser_cel::PatternRoom;
use serde_json::Value;

use super::{MOST, compile, driver, label, opaque, pool_name, selectors, unique};
use crate::kinds::{
    meta::invalid_all,
    names::{dns_subdomain, qualified_name},
    rules::{at_most, immutable, one_of, required, words},
    value::{Fields, Path},
};

const MOST_ALTERNATIVES: usize = 8;
const MOST_CONSUMERS: usize = 256;
const MODES: [&str; 2] = ["All", "ExactCount"];

/// Fills in how many devices a request is for.
pub(super) fn default(spec: &mut Value) {
    for request in spec.list_mut("devices.requests") {
        if let Some(exactly) = request.part_mut("exactly") {
            default_count(exactly);
        }
        for alternative in request.list_mut("firstAvailable") {
            default_count(alternative);
        }
    }
}

fn default_count(request: &mut Value) {
    request.set_default("allocationMode", "ExactCount");
    if request.text("allocationMode") == "ExactCount" && request.int("count").unwrap_or_default() == 0 {
        request.set("count", 1);
    }
    default_tolerations(request);
}

/// Of a request, or of the device that it was given.
pub(super) fn default_tolerations(of: &mut Value) {
    for toleration in of.list_mut("tolerations") {
        toleration.set_default("operator", "Equal");
    }
}

/// `allocated,reserved`: where a claim stands.
pub(super) fn state(claim: &Value) -> String {
    let mut states = Vec::new();
    let deleted = claim.has("metadata.deletionTimestamp");
    if deleted {
        states.push("deleted");
    }
    if !claim.has("status.allocation") {
        if !deleted {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        if !claim.list("status.reservedFor").is_empty() {
            states.push("reserved");
        }
    }
    states.join(",")
}

pub(super) fn validate(path: &Path<'_>, spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (path, devices) = (path.field("devices"), spec.at("devices"));
    let list = path.field("requests");
    let requests = devices.list("requests");
    at_most(&mut errors, &list, requests.len(), MOST);
    for (index, one) in requests.iter().enumerate() {
        request(&mut errors, &list.index(index), one);
    }
    unique(&mut errors, &list, requests);
    let list = path.field("constraints");
    at_most(&mut errors, &list, devices.list("constraints").len(), MOST);
    for (index, constraint) in devices.list("constraints").iter().enumerate() {
        let path = list.index(index);
        references(&mut errors, &path.field("requests"), constraint, requests);
        let named = ["matchAttribute", "distinctAttribute"].into_iter().find(|field| constraint.has(field));
        match named {
            None => errors.push(FieldError::required(
                path,
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required",
            )),
            Some(field) => full_name(&mut errors, &path.field(field), constraint.text(field)),
        }
    }
    let list = path.field("config");
    at_most(&mut errors, &list, devices.list("config").len(), MOST);
    for (index, config) in devices.list("config").iter().enumerate() {
        let path = list.index(index);
        references(&mut errors, &path.field("requests"), config, requests);
        opaque(&mut errors, &path, config);
    }
    errors
}

/// Whether the expressions of a claim compile.
pub(super) fn compile_all(path: &Path<'_>, spec: &Value) -> Vec<FieldError> {
    let (mut errors, mut room) = (Vec::new(), PatternRoom::default());
    let devices = path.field("devices");
    let list = devices.field("requests");
    for (index, request) in spec.list("devices.requests").iter().enumerate() {
        let path = list.index(index);
        let exactly = path.field("exactly");
        let selectors = request.list("exactly.selectors");
        compile(&mut errors, &exactly.field("selectors"), selectors, &mut room);
        let list = path.field("firstAvailable");
        for (index, alternative) in request.list("firstAvailable").iter().enumerate() {
            let path = list.index(index);
            compile(&mut errors, &path.field("selectors"), alternative.list("selectors"), &mut room);
        }
    }
    errors
}

fn request(errors: &mut Vec<FieldError>, path: &Path<'_>, request: &Value) {
    label(errors, &path.field("name"), request.text("name"));
    let alternatives = request.list("firstAvailable");
    match (request.has("exactly"), alternatives.is_empty()) {
        (false, true) => {
            let detail = "exactly one of `exactly` or `firstAvailable` is required";
            errors.push(FieldError::required(path, detail));
        }
        (true, false) => {
            let detail =
                "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            errors.push(FieldError::invalid(path, Value::Null, detail));
        }
        (true, true) => wanted(errors, &path.field("exactly"), request.at("exactly")),
        (false, false) => {
            let list = path.field("firstAvailable");
            at_most(errors, &list, alternatives.len(), MOST_ALTERNATIVES);
            for (index, alternative) in alternatives.iter().enumerate() {
                let path = list.index(index);
                label(errors, &path.field("name"), alternative.text("name"));
                wanted(errors, &path, alternative);
            }
            unique(errors, &list, alternatives);
        }
    }
}

fn wanted(errors: &mut Vec<FieldError>, path: &Path<'_>, request: &Value) {
    let class = path.field("deviceClassName");
    required(errors, &class, request.text("deviceClassName"));
    if !request.text("deviceClassName").is_empty() {
        let name = request.text("deviceClassName");
        invalid_all(errors, &class, name, dns_subdomain(name));
    }
    selectors(errors, &path.field("selectors"), request.list("selectors"));
    let count = request.int("count").unwrap_or_default();
    match request.text("allocationMode") {
        "All" if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.push(FieldError::invalid(path.field("count"), count, detail));
        }
        "ExactCount" if count <= 0 => {
            errors.push(FieldError::invalid(path.field("count"), count, "must be greater than zero"));
        }
        mode => one_of(errors, &path.field("allocationMode"), mode, &MODES),
    }
    let list = path.field("tolerations");
    for (index, toleration) in request.list("tolerations").iter().enumerate() {
        let path = list.index(index);
        let (key, operator) = (toleration.text("key"), toleration.text("operator"));
        if !key.is_empty() {
            invalid_all(errors, &path.field("key"), key, qualified_name(key));
        }
        one_of(errors, &path.field("operator"), operator, &["Equal", "Exists"]);
        if key.is_empty() && operator != "Exists" {
            let detail = "must be `Exists` when `key` is empty, which means to match all values and all keys";
            errors.push(FieldError::invalid(path.field("operator"), operator, detail));
        }
        if operator == "Exists" && !toleration.text("value").is_empty() {
            let detail = "must be empty for operator `Exists`";
            errors.push(FieldError::invalid(path.field("value"), toleration.text("value"), detail));
        }
        let effect = toleration.text("effect");
        if !effect.is_empty() {
            one_of(errors, &path.field("effect"), effect, &["NoExecute", "NoSchedule", "None"]);
        }
    }
}

/// `example.com/name`: the domain may not be left out.
fn full_name(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    match name.split_once('/') {
        None => {
            let detail = "must include a domain";
            errors.push(FieldError::invalid(path, name, detail));
        }
        Some((domain, _)) => invalid_all(errors, path, domain, dns_subdomain(domain)),
    }
}

/// Names of requests, or of an alternative of one: `gpu`, `gpu/large`.
fn references(errors: &mut Vec<FieldError>, path: &Path<'_>, object: &Value, requests: &[Value]) {
    let names = words(object, "requests");
    at_most(errors, path, names.len(), MOST);
    for (index, name) in names.iter().enumerate() {
        if !is_request(requests, name) {
            let detail = "must be the name of a request in the claim or the name of a request and a subrequest separated \
                          by '/'";
            errors.push(FieldError::invalid(path.index(index), *name, detail));
        }
        if names[..index].contains(name) {
            errors.push(FieldError::duplicate(path.index(index), *name));
        }
    }
}

fn is_request(requests: &[Value], name: &str) -> bool {
    let (request, alternative) = match name.split_once('/') {
        Some((request, alternative)) => (request, Some(alternative)),
        None => (name, None),
    };
    let Some(request) = requests.iter().find(|one| one.text("name") == request) else {
        return false;
    };
    alternative.is_none_or(|name| request.list("firstAvailable").iter().any(|one| one.text("name") == name))
}

/// What was allocated stands until it is given back; consumers need an allocation.
pub(super) fn validate_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::Root("status");
    let consumers = new.list("status.reservedFor");
    let list = path.field("reservedFor");
    at_most(&mut errors, &list, consumers.len(), MOST_CONSUMERS);
    for (index, consumer) in consumers.iter().enumerate() {
        for field in ["resource", "name", "uid"] {
            required(&mut errors, &list.index(index).field(field), consumer.text(field));
        }
    }
    let (allocation, before) = (new.at("status.allocation"), old.at("status.allocation"));
    if !consumers.is_empty() && allocation.is_null() {
        errors.push(FieldError::forbidden(list, "may not be specified when `allocated` is not set"));
    } else if new.has("metadata.deletionTimestamp")
        && consumers.iter().any(|consumer| !old.list("status.reservedFor").contains(consumer))
    {
        let detail =
            "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        errors.push(FieldError::forbidden(list, detail));
    }
    let path = path.field("allocation");
    if allocation.is_null() {
        return errors;
    }
    if !before.is_null() {
        immutable(&mut errors, &path, allocation, before);
        return errors;
    }
    let requests = new.list("spec.devices.requests");
    let path = path.field("devices");
    let list = path.field("results");
    at_most(&mut errors, &list, allocation.list("devices.results").len(), MOST);
    for (index, result) in allocation.list("devices.results").iter().enumerate() {
        let path = list.index(index);
        if !is_request(requests, result.text("request")) {
            let detail = "must be the name of a request in the claim or the name of a request and a subrequest separated \
                          by '/'";
            errors.push(FieldError::invalid(path.field("request"), result.text("request"), detail));
        }
        driver(&mut errors, &path.field("driver"), result.text("driver"));
        pool_name(&mut errors, &path.field("pool"), result.text("pool"));
        label(&mut errors, &path.field("device"), result.text("device"));
    }
    let list = path.field("config");
    for (index, config) in allocation.list("devices.config").iter().enumerate() {
        let path = list.index(index);
        one_of(&mut errors, &path.field("source"), config.text("source"), &["FromClaim", "FromClass"]);
        references(&mut errors, &path.field("requests"), config, requests);
        opaque(&mut errors, &path, config);
    }
    errors
}
