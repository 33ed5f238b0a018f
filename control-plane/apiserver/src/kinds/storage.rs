//! Volumes, claims, and the kinds of `storage.k8s.io`.

mod attachment;
mod csi;
mod volume;

pub(super) use csi::driver_name;

use hawser_api::{FieldError, error::FieldErrorKind};
use serde_json::{Map, Value, json};

use super::{
    AGE, Column, Hooks, NAME, PLAIN,
    apps::age,
    column,
    meta::invalid_all,
    names::{dns_label, dns_subdomain, qualified_name},
    quantity,
    rules::{immutable, required, words},
    selector, text,
    value::{Fields, Path},
    wide,
};

const SPEC: Path<'static> = Path::Root("spec");
const ACCESS_MODES: [(&str, &str); 4] = [
    ("ReadWriteOnce", "RWO"),
    ("ReadOnlyMany", "ROX"),
    ("ReadWriteMany", "RWX"),
    ("ReadWriteOncePod", "RWOP"),
];
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

const fn flag(name: &'static str) -> Column {
    column(name, "boolean")
}

pub(crate) static VOLUME: Hooks = Hooks {
    default: |volume| {
        let spec = volume.ensure("spec");
        spec.set_default("persistentVolumeReclaimPolicy", "Retain");
        spec.set_default("volumeMode", "Filesystem");
        if let Some(path) = spec.part_mut("hostPath")
            && !path.has("type")
        {
            path.set("type", "");
        }
        volume.ensure("status").set_default("phase", "Pending");
    },
    prepare_create: |volume| volume.set("status", json!({ "phase": "Pending" })),
    validate_create: volume::validate,
    validate_update: volume::update,
    columns: &[
        NAME,
        text("Capacity"),
        text("Access Modes"),
        text("Reclaim Policy"),
        text("Status"),
        text("Claim"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        text("Reason"),
        AGE,
        wide("VolumeMode"),
    ],
    cells: |volume, now| {
        let claim = volume.at("spec.claimRef");
        let claim = if claim.is_object() {
            format!("{}/{}", claim.text("namespace"), claim.text("name"))
        } else {
            String::new()
        };
        let phase = if volume.has("metadata.deletionTimestamp") {
            "Terminating"
        } else {
            volume.text("status.phase")
        };
        vec![
            volume.at("metadata.name").clone(),
            volume.text("spec.capacity.storage").into(),
            access_modes(volume.list("spec.accessModes")).into(),
            volume.at("spec.persistentVolumeReclaimPolicy").clone(),
            phase.into(),
            claim.into(),
            class(volume, "volume.beta.kubernetes.io/storage-class").into(),
            unset(volume.text("spec.volumeAttributesClassName")).into(),
            volume.text("status.reason").into(),
            age(volume, now),
            unset(volume.text("spec.volumeMode")).into(),
        ]
    },
    ..PLAIN
};

pub(crate) static CLAIM: Hooks = Hooks {
    default: |claim| {
        claim.ensure("spec").set_default("volumeMode", "Filesystem");
        claim.ensure("status").set_default("phase", "Pending");
    },
    prepare_create: |claim| {
        claim.set("status", json!({ "phase": "Pending" }));
        keep_known_source(claim.ensure("spec"), &Value::Null);
    },
    prepare_update: |claim, old| keep_known_source(claim.ensure("spec"), old.at("spec")),
    validate_create: validate_claim,
    validate_update: update_claim,
    columns: &[
        NAME,
        text("Status"),
        text("Volume"),
        text("Capacity"),
        text("Access Modes"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        AGE,
        wide("VolumeMode"),
    ],
    cells: |claim, now| {
        let phase =
            if claim.has("metadata.deletionTimestamp") { "Terminating" } else { claim.text("status.phase") };
        let bound = !claim.text("spec.volumeName").is_empty();
        let capacity = if bound { claim.text("status.capacity.storage") } else { "" };
        let modes = if bound { access_modes(claim.list("status.accessModes")) } else { String::new() };
        vec![
            claim.at("metadata.name").clone(),
            phase.into(),
            claim.text("spec.volumeName").into(),
            capacity.into(),
            modes.into(),
            class(claim, "volume.beta.kubernetes.io/storage-class").into(),
            unset(claim.text("spec.volumeAttributesClassName")).into(),
            age(claim, now),
            unset(claim.text("spec.volumeMode")).into(),
        ]
    },
    ..PLAIN
};

pub(crate) static STORAGE_CLASS: Hooks = Hooks {
    default: |class| {
        class.set_default("reclaimPolicy", "Delete");
        class.set_default("volumeBindingMode", "Immediate");
    },
    validate_create: |class| {
        let mut errors = Vec::new();
        let provisioner = class.text("provisioner");
        required(&mut errors, &Path::Root("provisioner"), provisioner);
        if !provisioner.is_empty() {
            let wrong = qualified_name(&provisioner.to_lowercase());
            invalid_all(&mut errors, &Path::Root("provisioner"), provisioner, wrong);
        }
        parameters(&mut errors, class.map("parameters"));
        topologies(&mut errors, class);
        for (field, known) in [
            ("reclaimPolicy", ["Delete", "Retain"]),
            ("volumeBindingMode", ["Immediate", "WaitForFirstConsumer"]),
        ] {
            if !known.contains(&class.text(field)) {
                errors.push(FieldError::not_supported(field, class.text(field), &known));
            }
        }
        errors
    },
    validate_update: |new, old| {
        let mut errors = Vec::new();
        if new.map("parameters") != old.map("parameters") {
            errors.push(FieldError::forbidden("parameters", "updates to parameters are forbidden."));
        }
        for field in ["provisioner", "reclaimPolicy", "volumeBindingMode"] {
            if new.at(field) != old.at(field) {
                errors.push(FieldError::forbidden(field, format!("updates to {field} are forbidden.")));
            }
        }
        errors
    },
    columns: &[
        NAME,
        text("Provisioner"),
        text("ReclaimPolicy"),
        text("VolumeBindingMode"),
        flag("AllowVolumeExpansion"),
        AGE,
    ],
    cells: |class, now| {
        let annotations = class.map("metadata.annotations");
        let default =
            DEFAULT_CLASS.iter().any(|key| annotations.get(*key).is_some_and(|value| value == "true"));
        let name = class.text("metadata.name");
        let name = if default { format!("{name} (default)") } else { name.to_owned() };
        vec![
            name.into(),
            class.at("provisioner").clone(),
            class.at("reclaimPolicy").clone(),
            class.at("volumeBindingMode").clone(),
            class.flag("allowVolumeExpansion").into(),
            age(class, now),
        ]
    },
    ..PLAIN
};

pub(crate) static CSI_DRIVER: Hooks = Hooks {
    default: |driver| {
        let spec = driver.ensure("spec");
        spec.set_default("attachRequired", true);
        spec.set_default("podInfoOnMount", false);
        spec.set_default("storageCapacity", false);
        spec.set_default("fsGroupPolicy", "ReadWriteOnceWithFSType");
        spec.set_default("requiresRepublish", false);
        spec.set_default("seLinuxMount", false);
        if spec.list("volumeLifecycleModes").is_empty() {
            spec.set("volumeLifecycleModes", json!(["Persistent"]));
        }
    },
    validate_create: csi::driver,
    validate_update: csi::update_driver,
    columns: &[
        NAME,
        flag("AttachRequired"),
        flag("PodInfoOnMount"),
        flag("StorageCapacity"),
        text("TokenRequests"),
        flag("RequiresRepublish"),
        text("Modes"),
        AGE,
    ],
    cells: |driver, now| {
        let spec = driver.at("spec");
        let join = |list: &[Value], field: &str| {
            let words = list.iter().map(|item| item.as_str().unwrap_or_else(|| item.text(field)).to_owned());
            words.collect::<Vec<_>>().join(",")
        };
        let audiences = join(spec.list("tokenRequests"), "audience");
        vec![
            driver.at("metadata.name").clone(),
            spec.flag("attachRequired").into(),
            spec.flag("podInfoOnMount").into(),
            spec.flag("storageCapacity").into(),
            unset(&audiences).into(),
            spec.flag("requiresRepublish").into(),
            join(spec.list("volumeLifecycleModes"), "").into(),
            age(driver, now),
        ]
    },
    ..PLAIN
};

pub(crate) static CSI_NODE: Hooks = Hooks {
    validate_create: csi::node,
    validate_update: csi::update_node,
    columns: &[NAME, column("Drivers", "integer"), AGE],
    cells: |node, now| {
        vec![node.at("metadata.name").clone(), node.list("spec.drivers").len().into(), age(node, now)]
    },
    ..PLAIN
};

pub(crate) static CSI_CAPACITY: Hooks = Hooks {
    validate_create: csi::capacity,
    validate_update: csi::update_capacity,
    columns: &[NAME, text("StorageClassName"), text("Capacity")],
    cells: |capacity, _| {
        vec![
            capacity.at("metadata.name").clone(),
            capacity.text("storageClassName").into(),
            capacity.text("capacity").into(),
        ]
    },
    ..PLAIN
};

pub(crate) static ATTACHMENT: Hooks = Hooks {
    validate_create: attachment::validate,
    validate_update: |new, old| {
        let mut errors = Vec::new();
        immutable(&mut errors, &SPEC, new.at("spec"), old.at("spec"));
        errors
    },
    validate_status: |new, _| attachment::status(new),
    columns: &[NAME, text("Attacher"), text("PV"), text("Node"), flag("Attached"), AGE],
    cells: |attachment, now| {
        vec![
            attachment.at("metadata.name").clone(),
            attachment.at("spec.attacher").clone(),
            attachment.text("spec.source.persistentVolumeName").into(),
            attachment.at("spec.nodeName").clone(),
            attachment.flag("status.attached").into(),
            age(attachment, now),
        ]
    },
    ..PLAIN
};

/// The most parameters of a provisioner, and bytes of all of them.
const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETERS_BYTES: usize = 256 * 1024;

fn parameters(errors: &mut Vec<FieldError>, parameters: &Map<String, Value>) {
    let path = Path::Root("parameters");
    if parameters.len() > MAX_PARAMETERS {
        let detail = format!("may not be more than {MAX_PARAMETERS} bytes");
        errors.push(FieldError::new(FieldErrorKind::TooLong, path, None, detail));
        return;
    }
    if parameters.contains_key("") {
        errors.push(FieldError::invalid(path, "", "field can not be empty."));
    }
    let bytes = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
    if parameters.iter().map(bytes).sum::<usize>() > MAX_PARAMETERS_BYTES {
        let detail = format!("may not be more than {MAX_PARAMETERS_BYTES} bytes");
        errors.push(FieldError::new(FieldErrorKind::TooLong, path, None, detail));
    }
}

/// Where volumes of a class may be: terms of labels and values, each said once.
fn topologies(errors: &mut Vec<FieldError>, class: &Value) {
    let list = Path::Root("allowedTopologies");
    let terms = class.list("allowedTopologies");
    for (index, term) in terms.iter().enumerate() {
        let path = list.index(index);
        let expressions = term.list("matchLabelExpressions");
        let of = path.field("matchLabelExpressions");
        for (at, expression) in expressions.iter().enumerate() {
            let (path, key) = (of.index(at), expression.text("key"));
            let (of_values, values) = (path.field("values"), words(expression, "values"));
            if values.is_empty() {
                errors.push(FieldError::required(of_values, ""));
            }
            for (at, value) in values.iter().enumerate() {
                if values[..at].contains(value) {
                    errors.push(FieldError::duplicate(of_values.index(at), *value));
                }
            }
            invalid_all(errors, &path.field("key"), key, qualified_name(key));
            if expressions[..at].iter().any(|other| other.text("key") == key) {
                errors.push(FieldError::duplicate(path.field("key"), key));
            }
        }
        if terms[..index].contains(term) {
            errors.push(FieldError::duplicate(of, ""));
        }
    }
}

fn unset(text: &str) -> String {
    if text.is_empty() { "<unset>".to_owned() } else { text.to_owned() }
}

fn access_modes(modes: &[Value]) -> String {
    let has = |long: &str| modes.iter().any(|mode| mode == long);
    let short: Vec<&str> =
        ACCESS_MODES.iter().filter(|(long, _)| has(long)).map(|(_, short)| *short).collect();
    short.join(",")
}

/// The older annotation stands above the field.
fn class(object: &Value, annotation: &str) -> String {
    match object.map("metadata.annotations").get(annotation).and_then(Value::as_str) {
        Some(class) => class.to_owned(),
        None => object.text("spec.storageClassName").to_owned(),
    }
}

fn modes(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let path = path.field("accessModes");
    let all = spec.list("accessModes");
    if all.is_empty() {
        errors.push(FieldError::required(path, "at least 1 access mode is required"));
    }
    for mode in all.iter().filter_map(Value::as_str) {
        if !ACCESS_MODES.iter().any(|(long, _)| *long == mode) {
            let known = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
            errors.push(FieldError::not_supported(path, mode, &known));
        }
    }
    let (alone, others): (Vec<&Value>, Vec<&Value>) =
        all.iter().partition(|mode| *mode == "ReadWriteOncePod");
    if !alone.is_empty() && others.iter().any(|mode| ACCESS_MODES.iter().any(|(long, _)| *mode == long)) {
        errors.push(FieldError::forbidden(path, "may not use ReadWriteOncePod with other access modes"));
    }
}

fn validate_claim(claim: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    claim_spec(&mut errors, &SPEC, claim.at("spec"));
    errors
}

/// What a claim asks for, in an object of its own or in a pod.
pub(super) fn claim_spec(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    modes(errors, path, spec);
    selector::validate(errors, &path.field("selector"), spec.at("selector"));
    // Upstream's path, which leaves the requests out.
    let storage = path.field("resources");
    let storage = storage.key("storage");
    match spec.at("resources.requests.storage") {
        Value::Null => errors.push(FieldError::required(storage, "")),
        amount if !quantity::is_positive(amount) => {
            errors.push(FieldError::invalid(storage, amount.clone(), "must be greater than zero"));
        }
        _ => (),
    }
    for field in ["storageClassName", "volumeAttributesClassName"] {
        let name = spec.text(field);
        if !name.is_empty() {
            invalid_all(errors, &path.field(field), name, dns_subdomain(name));
        }
    }
    let mode = spec.text("volumeMode");
    if spec.has("volumeMode") && !matches!(mode, "Block" | "Filesystem") {
        errors.push(FieldError::not_supported(path.field("volumeMode"), mode, &["Block", "Filesystem"]));
    }
    data_sources(errors, path, spec);
}

/// What a claim is filled from has two fields: each follows the other (KEP-1495). The older one holds claims and snapshots
/// only; what else it says does not count.
fn keep_known_source(spec: &mut Value, before: &Value) {
    let known = match (spec.text("dataSource.apiGroup"), spec.text("dataSource.kind")) {
        ("", kind) => kind == "PersistentVolumeClaim",
        (group, kind) => group == "snapshot.storage.k8s.io" && kind == "VolumeSnapshot",
    };
    if !known && !before.has("dataSource") {
        spec.drop_field("dataSource");
    }
    if !spec.text("dataSourceRef.namespace").is_empty() {
        return;
    }
    for (from, to) in [("dataSource", "dataSourceRef"), ("dataSourceRef", "dataSource")] {
        if spec.has(from) && !spec.has(to) {
            let mut source = spec.at(from).clone();
            source.drop_field("namespace");
            spec.set(to, source);
        }
    }
}

fn data_sources(errors: &mut Vec<FieldError>, of: &Path<'_>, spec: &Value) {
    for field in ["dataSource", "dataSourceRef"] {
        let (path, source) = (of.field(field), spec.at(field));
        if source.is_null() {
            continue;
        }
        for field in ["name", "kind"] {
            if source.text(field).is_empty() {
                errors.push(FieldError::required(path.field(field), ""));
            }
        }
        let (group, kind) = (source.text("apiGroup"), source.text("kind"));
        if !group.is_empty() {
            invalid_all(errors, &path.field("apiGroup"), group, dns_subdomain(group));
        } else if kind != "PersistentVolumeClaim" {
            let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.push(FieldError::invalid(path, kind, detail));
        }
    }
    let (source, reference) = (spec.at("dataSource"), spec.at("dataSourceRef"));
    let namespace = reference.text("namespace");
    if !namespace.is_empty() {
        let path = of.field("dataSourceRef");
        invalid_all(errors, &path.field("namespace"), namespace, dns_label(namespace));
    }
    if source.is_null() || reference.is_null() {
        return;
    }
    let same = ["apiGroup", "kind", "name"].iter().all(|field| source.at(field) == reference.at(field));
    let detail = if !namespace.is_empty() {
        "may not be specified when dataSourceRef.namespace is specified"
    } else if !same {
        "must match dataSourceRef"
    } else {
        return;
    };
    errors.push(FieldError::invalid(of, of.field("dataSource").to_string(), detail));
}

/// A claim's spec stands, but that it may be bound, and grow once it is.
fn update_claim(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (spec, before) = (new.at("spec"), old.at("spec"));
    let mut allowed = spec.clone();
    if before.text("volumeName").is_empty() {
        allowed.copy_field("volumeName", before);
    }
    let class_was_open = !before.has("storageClassName");
    if class_was_open {
        allowed.copy_field("storageClassName", before);
    }
    let is_bound = old.text("status.phase") == "Bound";
    let class = "volumeAttributesClassName";
    if is_bound && spec.has(class) {
        allowed.copy_field(class, before);
    }
    let (size, earlier) = (spec.at("resources.requests.storage"), before.at("resources.requests.storage"));
    if let Some(requests) = allowed.part_mut("resources.requests").filter(|_| is_bound) {
        requests.copy_field("storage", before.at("resources.requests"));
    }
    // Who asked for more than there is may ask for less again, but for more than there is already (KEP-1790).
    let (size, capacity) = (quantity::parse(size), quantity::parse(old.at("status.capacity.storage")));
    if size < quantity::parse(earlier) && size <= capacity {
        let detail = "field can not be less than status.capacity";
        errors.push(FieldError::forbidden(SPEC.field("resources.requests.storage"), detail));
    }
    if &allowed != before {
        let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound \
                      claims";
        errors.push(FieldError::forbidden(SPEC, detail));
    }
    if spec.at("volumeMode") != before.at("volumeMode") {
        let mode = spec.at("volumeMode").clone();
        errors.push(FieldError::invalid("volumeMode", mode, "field is immutable"));
    }
    let unset = match spec.at(class).as_str() {
        None => "nil",
        Some("") => "an empty string",
        Some(_) => return errors,
    };
    if before.has(class) && before.at(class) != spec.at(class) {
        let detail = format!("update from non-nil value to {unset} is forbidden");
        errors.push(FieldError::forbidden(SPEC.field(class), detail));
    }
    errors
}

#[cfg(test)]
mod tests;
