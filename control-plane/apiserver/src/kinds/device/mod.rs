//! The kinds of `resource.k8s.io`: devices, and claims to them (KEP-4381).
//!
//! The scheduler gives devices to claims, a controller makes claims from templates. The rules are those of upstream's
//! `pkg/apis/resource/validation`. Expressions in CEL are compiled when they are new, and never again: an object that is there
//! does not get stuck because fewer compile than before.

mod claim;
mod slice;
#[cfg(test)]
mod tests;

use hawser_api::FieldError;
use hawser_cel::{PatternRoom, Program};
use serde_json::Value;

use super::{
    AGE, Hooks, NAME, PLAIN,
    apps::age,
    meta,
    names::{dns_label, dns_subdomain, qualified_name},
    rules::{at_most, immutable, no_longer},
    text,
    value::{Fields, Path},
};

const SPEC: Path<'static> = Path::Root("spec");
/// Most requests, constraints, configurations and selectors.
const MOST: usize = 32;
const LONGEST_DRIVER: usize = 63;
const LONGEST_EXPRESSION: usize = 10 * 1024;
const LONGEST_PARAMETERS: usize = 10 * 1024;

pub(crate) static DEVICE_CLASS: Hooks = Hooks {
    validate_new: |class| {
        let (mut errors, mut room) = (Vec::new(), PatternRoom::default());
        let path = SPEC.field("selectors");
        compile(&mut errors, &path, class.list("spec.selectors"), &mut room);
        errors
    },
    validate_update: |new, old| {
        let (mut errors, mut room) = (Vec::new(), PatternRoom::default());
        let selectors = new.list("spec.selectors");
        if selectors != old.list("spec.selectors") {
            compile(&mut errors, &SPEC.field("selectors"), selectors, &mut room);
        }
        errors
    },
    validate_create: |class| {
        let mut errors = Vec::new();
        let spec = class.at("spec");
        selectors(&mut errors, &SPEC.field("selectors"), spec.list("selectors"));
        let path = SPEC.field("config");
        at_most(&mut errors, &path, spec.list("config").len(), MOST);
        for (index, config) in spec.list("config").iter().enumerate() {
            opaque(&mut errors, &path.index(index), config);
        }
        let name = spec.text("extendedResourceName");
        let is_extended =
            name.contains('/') && !name.contains("kubernetes.io/") && qualified_name(name).is_empty();
        if spec.has("extendedResourceName") && !is_extended {
            let detail = "must be a valid extended resource name";
            errors.push(FieldError::invalid(SPEC.field("extendedResourceName"), name, detail));
        }
        errors
    },
    columns: &[NAME, AGE],
    cells: |object, now| vec![object.at("metadata.name").clone(), age(object, now)],
    ..PLAIN
};

pub(crate) static RESOURCE_CLAIM: Hooks = Hooks {
    default: |object| {
        if let Some(spec) = object.part_mut("spec") {
            claim::default(spec);
        }
        for result in object.list_mut("status.allocation.devices.results") {
            claim::default_tolerations(result);
        }
    },
    validate_new: |object| claim::compile_all(&SPEC, object.at("spec")),
    validate_create: |object| claim::validate(&SPEC, object.at("spec")),
    validate_update: |new, old| {
        let mut errors = Vec::new();
        immutable(&mut errors, &SPEC, new.at("spec"), old.at("spec"));
        errors
    },
    validate_status: claim::validate_status,
    columns: &[NAME, text("State"), AGE],
    cells: |object, now| {
        vec![object.at("metadata.name").clone(), claim::state(object).into(), age(object, now)]
    },
    ..PLAIN
};

pub(crate) static RESOURCE_CLAIM_TEMPLATE: Hooks = Hooks {
    default: |object| {
        if let Some(spec) = object.part_mut("spec.spec") {
            claim::default(spec);
        }
    },
    validate_new: |object| claim::compile_all(&SPEC.field("spec"), object.at("spec.spec")),
    validate_create: |object| {
        let path = SPEC.field("metadata");
        let template = object.at("spec.metadata");
        let mut errors = Vec::new();
        meta::labels(&mut errors, &path.field("labels"), template.at("labels"));
        meta::annotations(&mut errors, &path.field("annotations"), template.at("annotations"));
        errors.extend(claim::validate(&SPEC.field("spec"), object.at("spec.spec")));
        errors
    },
    validate_status: |_, _| Vec::new(),
    cells: DEVICE_CLASS.cells,
    columns: DEVICE_CLASS.columns,
    ..RESOURCE_CLAIM
};

pub(crate) static RESOURCE_SLICE: Hooks = Hooks {
    validate_create: slice::validate,
    validate_update: |new, old| {
        let mut errors = Vec::new();
        for field in ["pool.name", "driver", "nodeName"] {
            immutable(&mut errors, &SPEC.field(field), new.at("spec").at(field), old.at("spec").at(field));
        }
        errors
    },
    columns: &[NAME, text("Node"), text("Driver"), text("Pool"), AGE],
    cells: |object, now| {
        let spec = object.at("spec");
        vec![
            object.at("metadata.name").clone(),
            spec.text("nodeName").into(),
            spec.text("driver").into(),
            spec.text("pool.name").into(),
            age(object, now),
        ]
    },
    selectable: &[
        ("spec.nodeName", |object| object.text("spec.nodeName").to_owned()),
        ("spec.driver", |object| object.text("spec.driver").to_owned()),
    ],
    ..PLAIN
};

fn driver(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    no_longer(errors, path, name, LONGEST_DRIVER);
    meta::invalid_all(errors, path, name, dns_subdomain(&name.to_lowercase()));
}

fn label(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    meta::invalid_all(errors, path, name, dns_label(name));
}

fn pool_name(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    no_longer(errors, path, name, 253);
    for part in name.split('/') {
        meta::invalid_all(errors, path, part, dns_subdomain(part));
    }
}

fn selectors(errors: &mut Vec<FieldError>, path: &Path<'_>, all: &[Value]) {
    at_most(errors, path, all.len(), MOST);
    for (index, selector) in all.iter().enumerate() {
        let path = path.index(index);
        let cel = path.field("cel");
        if selector.has("cel") {
            no_longer(errors, &cel.field("expression"), selector.text("cel.expression"), LONGEST_EXPRESSION);
        } else {
            errors.push(FieldError::required(cel, ""));
        }
    }
}

/// Whether the expressions compile, with what their patterns may take. The first that does not is told, and is the last that
/// is looked at, of all lists whose mistakes are gathered: whoever sends thousands pays for one.
fn compile(errors: &mut Vec<FieldError>, path: &Path<'_>, all: &[Value], room: &mut PatternRoom) {
    for (index, selector) in all.iter().enumerate() {
        let expression = selector.text("cel.expression");
        // What has none, or too much, is told elsewhere.
        if !errors.is_empty() || !selector.has("cel") || expression.len() > LONGEST_EXPRESSION {
            return;
        }
        let compiled = Program::new(expression).and_then(|program| room.take(&program));
        if let Err(error) = compiled {
            let path = path.index(index);
            errors.push(FieldError::invalid(path.field("cel.expression"), expression, &*error));
        }
    }
}

/// Configuration of a driver, whose parameters are the driver's own.
fn opaque(errors: &mut Vec<FieldError>, path: &Path<'_>, config: &Value) {
    let path = path.field("opaque");
    let opaque = config.at("opaque");
    if !opaque.is_object() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    driver(errors, &path.field("driver"), opaque.text("driver"));
    let (path, parameters) = (path.field("parameters"), opaque.at("parameters"));
    match parameters {
        Value::Null => errors.push(FieldError::required(path, "")),
        Value::Object(_) => no_longer(errors, &path, &parameters.to_string(), LONGEST_PARAMETERS),
        _ => {
            let detail = "parameters must be a valid JSON object";
            errors.push(FieldError::invalid(path, "<value omitted>", detail));
        }
    }
}

/// Names that stand twice in a list.
fn unique(errors: &mut Vec<FieldError>, path: &Path<'_>, items: &[Value]) {
    for (index, item) in items.iter().enumerate() {
        let name = item.text("name");
        if items[..index].iter().any(|other| other.text("name") == name) {
            errors.push(FieldError::duplicate(path.index(index).field("name"), name));
        }
    }
}
