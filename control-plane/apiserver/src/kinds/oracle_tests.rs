//! Every kind against upstream's own object of it: what is wrong is refused at its path, what stands does not change, and
//! what is left out is filled in.
//!
//! The objects are the filled-in ones of the facts (`../shared`), in which every field has some value; `oracle.json` beside
//! this file says how each is mended into one that upstream takes, and holds the rows. Of a kind:
//!
//! - `object`: the whole object, where the facts have none;
//! - `put`: pointers and what is put there, `POD TEMPLATE` for a plain one;
//! - `mend`: a merge patch that makes the filled-in object a good one;
//! - `refused`: a JSON pointer, the value to put there (null takes it away), and the paths that the answer names;
//! - `fixed`: the same, of an update of the good object;
//! - `defaults`: a pointer, and what is there where it was left out. With a third item, a merge patch comes first.

use std::{collections::BTreeSet, path::PathBuf, sync::LazyLock};

use hawser_api::{
    Error, FieldError,
    kinds::{KINDS, Kind},
    patch,
};
use serde_json::{Map, Value, json};

use super::*;

static ROWS: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/kinds/oracle.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
});

static TEMPLATE: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "metadata": { "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "web", "image": "example.com/web:1" }] },
    })
});

fn name_of(row: &Kind) -> String {
    if row.group.is_empty() { row.plural.to_owned() } else { format!("{}/{}", row.group, row.plural) }
}

/// Kinds that are stored, each with its rows.
fn kinds() -> impl Iterator<Item = (&'static Kind, &'static Value)> {
    KINDS.iter().filter(|row| row.storage.is_some()).map(|row| {
        let name = name_of(row);
        (row, ROWS.get(&name).unwrap_or_else(|| panic!("oracle.json has no {name}")))
    })
}

/// The good object of a kind, as a client sends it; `None` where the facts are absent.
fn good(row: &Kind, rows: &Value) -> Option<Value> {
    let mut object = match rows.get("object") {
        Some(object) => object.clone(),
        None => {
            let group = if row.group.is_empty() { "core" } else { row.group };
            let file = format!("{group}.{}.{}.json", row.versions[0].name, row.kind);
            let facts = "../../../shared/kubernetes-v1.36/api-testdata";
            let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(facts).join(file);
            let Ok(bytes) = std::fs::read(&file) else {
                println!("skipped {}: {} is absent", name_of(row), file.display());
                return None;
            };
            serde_json::from_slice(&bytes).unwrap()
        }
    };
    let mut metadata = json!({ "name": "a", "generateName": null, "ownerReferences": null, "finalizers": null,
        "managedFields": null, "deletionTimestamp": null, "deletionGracePeriodSeconds": null, "selfLink": null });
    if row.namespaced {
        metadata["namespace"] = json!("default");
    } else {
        metadata["namespace"] = Value::Null;
    }
    merge(&mut object, &json!({ "metadata": metadata, "status": null }));
    for (pointer, value) in rows["put"].as_object().into_iter().flatten() {
        put(&mut object, pointer, if value == "POD TEMPLATE" { &TEMPLATE } else { value });
    }
    merge(&mut object, &rows["mend"]);
    Some(object)
}

fn merge(object: &mut Value, patch: &Value) {
    if !patch.is_null() {
        patch::merge(object, patch.clone());
    }
}

/// Puts a value where a pointer names, or takes it away; `a*53` stands for as many letters.
fn put(object: &mut Value, pointer: &str, value: &Value) {
    let long = value.as_str().and_then(|text| text.strip_prefix("a*")?.parse().ok());
    let long = long.map(|count| json!("a".repeat(count)));
    let value = long.as_ref().unwrap_or(value);
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let last = last.replace("~1", "/");
    let mut place = object;
    for name in parent.split('/').skip(1) {
        let name = name.replace("~1", "/");
        place = match name.parse::<usize>() {
            Ok(index) if place.is_array() => &mut place[index],
            _ => &mut place[name.as_str()],
        };
    }
    match (place, last.parse::<usize>()) {
        (Value::Array(list), Ok(index)) if index < list.len() => list[index] = value.clone(),
        (Value::Array(list), _) => list.push(value.clone()),
        (Value::Object(fields), _) if value.is_null() => drop(fields.remove(&last)),
        (place, _) => place[last.as_str()] = value.clone(),
    }
}

fn settled(row: &Kind, mut object: Value) -> Value {
    default(row, &mut object);
    prepare_create(row, &mut object);
    default(row, &mut object);
    object
}

/// The paths that the answer to a client names: those of a Status with 422.
fn paths(row: &Kind, errors: &[FieldError]) -> BTreeSet<String> {
    if errors.is_empty() {
        return BTreeSet::new();
    }
    let status = Error::invalid(row.group, row.kind, "a", errors).to_status();
    assert_eq!((&status["code"], &status["reason"]), (&json!(422), &json!("Invalid")));
    let causes = status["details"]["causes"].as_array().unwrap();
    causes.iter().map(|cause| cause["field"].as_str().unwrap().to_owned()).collect()
}

fn expected(value: &Value) -> BTreeSet<String> {
    let one = std::slice::from_ref(value);
    let all = value.as_array().map_or(one, Vec::as_slice);
    all.iter().map(|path| path.as_str().unwrap().to_owned()).collect()
}

/// Collects what does not hold, so that one run tells of all kinds.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn equal(&mut self, what: String, found: BTreeSet<String>, wanted: BTreeSet<String>) {
        if found != wanted {
            self.0.push(format!("{what}: {found:?}, not {wanted:?}"));
        }
    }
}

impl Drop for Findings {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.0.is_empty(), "{}", self.0.join("\n"));
        }
    }
}

#[test]
fn upstreams_objects_are_taken() {
    let mut findings = Findings::default();
    for (row, rows) in kinds() {
        let Some(object) = good(row, rows) else { continue };
        let object = settled(row, object);
        let mut twice = object.clone();
        default(row, &mut twice);
        prepare_update(row, &mut twice, &object);
        assert_eq!(twice, object, "{} is not as it was", name_of(row));
        for (what, errors) in [
            ("create", validate_create(row, &object)),
            ("update", validate_update(row, &twice, &object)),
            ("status", validate_status(row, &twice, &object)),
        ] {
            let texts = errors.iter().map(ToString::to_string).collect();
            findings.equal(format!("{} {what}", name_of(row)), texts, BTreeSet::new());
        }
    }
}

#[test]
fn what_is_wrong_is_told_where() {
    let mut findings = Findings::default();
    for (row, rows) in kinds() {
        let Some(object) = good(row, rows) else { continue };
        let answer = |pointer: &str, value: &Value| {
            let mut wrong = object.clone();
            put(&mut wrong, pointer, value);
            paths(row, &validate_create(row, &settled(row, wrong)))
        };
        for (pointer, value, wanted) in common(row) {
            let found = answer(&pointer, &value);
            if !found.is_superset(&expected(&wanted)) {
                findings.0.push(format!("{} {pointer}: {found:?}, without {wanted}", name_of(row)));
            }
        }
        for (pointer, value, wanted) in listed(rows, "refused") {
            let what = format!("{} {pointer} {value}", name_of(row));
            findings.equal(what, answer(&pointer, &value), expected(&wanted));
        }
    }
}

#[test]
fn what_stands_does_not_change() {
    let mut findings = Findings::default();
    for (row, rows) in kinds() {
        let Some(object) = good(row, rows) else { continue };
        let old = settled(row, object);
        let answer = |pointer: &str, value: &Value| {
            let mut new = old.clone();
            put(&mut new, pointer, value);
            default(row, &mut new);
            prepare_update(row, &mut new, &old);
            paths(row, &validate_update(row, &new, &old))
        };
        for field in ["name", "uid"] {
            let found = answer(&format!("/metadata/{field}"), &json!("other"));
            if !found.contains(&format!("metadata.{field}")) {
                findings.0.push(format!("{} {field}: {found:?}", name_of(row)));
            }
        }
        for (pointer, value, wanted) in listed(rows, "fixed") {
            let what = format!("{} {pointer} {value}", name_of(row));
            findings.equal(what, answer(&pointer, &value), expected(&wanted));
        }
    }
}

#[test]
fn what_is_left_out_is_filled_in() {
    let mut findings = Findings::default();
    for (row, rows) in kinds() {
        let Some(object) = good(row, rows) else { continue };
        for entry in rows["defaults"].as_array().into_iter().flatten() {
            let (pointer, wanted) = (entry[0].as_str().unwrap(), &entry[1]);
            let mut bare = object.clone();
            merge(&mut bare, &entry[2]);
            put(&mut bare, pointer, &Value::Null);
            default(row, &mut bare);
            let found = bare.pointer(pointer).unwrap_or(&Value::Null);
            if found != wanted {
                findings.0.push(format!("{} {pointer}: {found}, not {wanted}", name_of(row)));
            }
        }
    }
}

/// Nothing is listed that is not served, and every kind has something to refuse but those that are data alone.
#[test]
fn the_table_is_of_the_kinds_served() {
    let served: BTreeSet<String> = kinds().map(|(row, _)| name_of(row)).collect();
    let listed: BTreeSet<String> = ROWS.keys().cloned().collect();
    assert_eq!(served, listed);
    for (row, rows) in kinds() {
        let has = rows["refused"].as_array().is_some_and(|rows| !rows.is_empty());
        assert_ne!(has, rows["data_alone"] == true, "{}", name_of(row));
    }
}

fn listed(rows: &Value, field: &str) -> Vec<(String, Value, Value)> {
    let all = rows[field].as_array().into_iter().flatten();
    all.map(|row| (row[0].as_str().unwrap().to_owned(), row[1].clone(), row[2].clone())).collect()
}

/// What is wrong with the metadata of any kind.
fn common(row: &Kind) -> Vec<(String, Value, Value)> {
    let owner = |name: &str| json!({ "apiVersion": "v1", "kind": "Pod", "name": name, "uid": name, "controller": true });
    let rows = [
        ("name", Value::Null, "name"),
        ("name", json!("a/b"), "name"),
        ("labels", json!({ "a b": "c" }), "labels"),
        ("labels", json!({ "a": "-" }), "labels"),
        ("annotations", json!({ "a b": "c" }), "annotations"),
        ("annotations", json!({ "a": "b".repeat(256 * 1024) }), "annotations"),
        ("finalizers", json!(["a b/c"]), "finalizers"),
        ("ownerReferences", json!([owner("a"), owner("b")]), "ownerReferences"),
        ("namespace", if row.namespaced { Value::Null } else { json!("a") }, "namespace"),
    ];
    let at = |field: &str| format!("/metadata/{field}");
    rows.into_iter()
        .map(|(field, value, path)| (at(field), value, json!(format!("metadata.{path}"))))
        .collect()
}
