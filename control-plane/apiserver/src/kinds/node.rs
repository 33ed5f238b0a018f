//! Nodes.

use std::collections::BTreeSet;

use hawser_api::FieldError;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, Hooks, NAME, PLAIN,
    addresses::{loose_cidr, network},
    apps::age,
    meta::invalid_all,
    names::{label_value, qualified_name},
    resource_names,
    rules::words,
    text,
    value::{Fields, Path},
    wide,
};

const SPEC: Path<'static> = Path::Root("spec");
const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

pub(crate) static NODE: Hooks = Hooks {
    default: |node| {
        let spec = node.ensure("spec");
        let block = spec.text("podCIDR").to_owned();
        if !block.is_empty() && spec.list("podCIDRs").is_empty() {
            spec.set("podCIDRs", json!([block]));
        } else if let (true, Some(first)) = (block.is_empty(), spec.list("podCIDRs").first().cloned()) {
            spec.set("podCIDR", first);
        }
        let status = node.ensure("status");
        if status.has("capacity") && !status.has("allocatable") {
            let capacity = status.at("capacity").clone();
            status.set("allocatable", capacity);
        }
    },
    validate_create: validate,
    validate_update: |new, old| {
        let mut errors = Vec::new();
        let (spec, before) = (new.at("spec"), old.at("spec"));
        if !before.list("podCIDRs").is_empty() && spec.at("podCIDRs") != before.at("podCIDRs") {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.push(FieldError::forbidden(SPEC.field("podCIDRs"), detail));
        }
        if !before.text("providerID").is_empty() && spec.text("providerID") != before.text("providerID") {
            let detail = "node updates may not change providerID except from \"\" to valid";
            errors.push(FieldError::forbidden(SPEC.field("providerID"), detail));
        }
        addresses(&mut errors, new);
        errors
    },
    validate_status: |new, _| {
        let mut errors = amounts(new);
        addresses(&mut errors, new);
        errors
    },
    columns: &[
        NAME,
        text("Status"),
        text("Roles"),
        AGE,
        text("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    cells,
    selectable: &[("spec.unschedulable", |node| node.flag("spec.unschedulable").to_string())],
    status_at_create: true,
    ..PLAIN
};

fn validate(node: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    // Upstream's path.
    let list = Path::Root("metadata.taints");
    let taints = node.list("spec.taints");
    for (index, taint) in taints.iter().enumerate() {
        let path = list.index(index);
        let key = taint.text("key");
        invalid_all(&mut errors, &path.field("key"), key, qualified_name(key));
        let wrong = label_value(taint.text("value"));
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(path.field("value"), taint.text("value"), wrong.join(";")));
        }
        let effect = taint.text("effect");
        let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if effect.is_empty() {
            errors.push(FieldError::required(path.field("effect"), ""));
        } else if !known.contains(&effect) {
            errors.push(FieldError::not_supported(path.field("effect"), effect, &known));
        }
        let same = |other: &Value| other.text("key") == key && other.text("effect") == effect;
        if taints[..index].iter().any(same) {
            let mut error = FieldError::duplicate(path, taint.clone());
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
    }
    errors.extend(amounts(node));
    let (list, blocks) = (SPEC.field("podCIDRs"), words(node, "spec.podCIDRs"));
    for (index, block) in blocks.iter().enumerate() {
        network(&mut errors, &list.index(index), block);
    }
    if blocks.len() > 1 {
        let of = |is_v4: bool| {
            let is = |block: &&&str| loose_cidr(block).is_some_and(|(base, _)| base.is_ipv4() == is_v4);
            blocks.iter().filter(is).count()
        };
        if of(true) != 1 || of(false) != 1 {
            let detail = "may specify no more than one CIDR for each IP family";
            errors.push(FieldError::invalid(list, blocks, detail));
        }
    }
    errors
}

/// Amounts that a node says it has.
fn amounts(node: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let status = Path::Root("status");
    for field in ["capacity", "allocatable"] {
        let path = status.field(field);
        for (name, amount) in node.at("status").map(field) {
            resource_names::amount(&mut errors, &path.field(name), name, amount);
        }
    }
    errors
}

fn addresses(errors: &mut Vec<FieldError>, node: &Value) {
    let (list, all) = (Path::Root("status.addresses"), node.list("status.addresses"));
    for (index, address) in all.iter().enumerate() {
        if all[..index].contains(address) {
            errors.push(FieldError::duplicate(list.index(index), address.clone()));
        }
    }
}

fn cells(node: &Value, now: Timestamp) -> Vec<Value> {
    let ready = node.list("status.conditions").iter().find(|condition| condition.text("type") == "Ready");
    let mut status = match ready.map(|condition| condition.text("status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node.flag("spec.unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let all = node.list("status.addresses");
        let found = all.iter().find(|address| address.text("type") == kind);
        Value::from(found.map_or("<none>", |address| address.text("address")))
    };
    let info = |field: &str| match node.at("status.nodeInfo").text(field) {
        "" => Value::from("<unknown>"),
        text => Value::from(text),
    };
    vec![
        node.at("metadata.name").clone(),
        status.into(),
        roles(node).into(),
        age(node, now),
        node.text("status.nodeInfo.kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in node.map("metadata.labels") {
        let role = match key.strip_prefix(ROLE_PREFIX) {
            None if key == "kubernetes.io/role" => value.as_str().unwrap_or_default(),
            None => "",
            Some(role) => role,
        };
        if !role.is_empty() {
            roles.insert(role);
        }
    }
    if roles.is_empty() { "<none>".to_owned() } else { Vec::from_iter(roles).join(",") }
}
