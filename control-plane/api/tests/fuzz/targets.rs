//! What is done with bytes that anybody may send, and what must hold of it: an answer, never a panic, and what was read
//! can be written and read again.
//!
//! Used by the test beside this file, with mutated seeds, and by `cargo fuzz` in `/fuzz`, which looks for new ones.

use std::sync::LazyLock;

use hawser_api::{
    apply::{ManagedFields, Manager, Reach, Write},
    patch::{self, PatchType},
    quantity::Quantity,
    schema::{self, FieldValidation, Format, Type, json, protobuf},
    selector::{FieldSelector, LabelSelector},
};
use serde_json::Value;

pub(crate) type Target = fn(&[u8]);

/// Every target by its name.
pub(crate) const ALL: [(&str, Target); 9] = [
    ("json", json_object),
    ("yaml", yaml_object),
    ("protobuf", protobuf_object),
    ("label_selector", label_selector),
    ("field_selector", field_selector),
    ("patch", patched),
    ("apply", applied),
    ("managed_fields", managed_fields),
    ("quantity", quantity),
];

/// An object that others are patched into and applied to.
pub(crate) const DEPLOYMENT: &str = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","namespace":"shop",
"labels":{"app":"web"},"finalizers":["a.example.com/x","b.example.com/y"]},"spec":{"replicas":2,"selector":{"matchLabels":
{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"name":"a","image":"i:1","ports":[
{"containerPort":80,"protocol":"TCP"},{"containerPort":443,"protocol":"TCP"}],"env":[{"name":"A","value":"1"}]},
{"name":"b","image":"i:2","resources":{"limits":{"cpu":"1","memory":"1Gi"}}}],"tolerations":[{"key":"k",
"operator":"Exists"}]}}}}"#;

static LIVE: LazyLock<Value> = LazyLock::new(|| {
    let ty = schema::type_of("apps", "v1", "Deployment").expect("the type of deployments");
    let read = schema::decode(ty, DEPLOYMENT.as_bytes(), Format::Json, FieldValidation::Strict);
    read.expect("a deployment").object
});

fn type_of_live() -> &'static Type {
    schema::type_of("apps", "v1", "Deployment").expect("the type of deployments")
}

fn json_object(bytes: &[u8]) {
    text_object(bytes, Format::Json);
}

fn yaml_object(bytes: &[u8]) {
    text_object(bytes, Format::Yaml);
}

fn text_object(bytes: &[u8], format: Format) {
    let named = schema::peek_type_meta(bytes, format).ok().and_then(|meta| meta.schema());
    let ty = named.unwrap_or_else(type_of_live);
    for validation in [FieldValidation::Strict, FieldValidation::Warn, FieldValidation::Ignore] {
        if let Ok(decoded) = schema::decode(ty, bytes, format, validation) {
            let written = json::to_vec(ty, &decoded.object);
            let again = schema::decode(ty, &written, Format::Json, FieldValidation::Strict);
            assert_eq!(again.expect("what was written can be read").object, decoded.object);
            created(ty, &decoded.object);
        }
    }
    // What is applied may be less than an object.
    drop(schema::decode_applied(ty, bytes, format, FieldValidation::Warn));
}

/// Whoever creates an object owns what a comparison with nothing finds.
fn created(ty: &'static Type, object: &Value) {
    let Some(api_version) = ty.api_version() else { return };
    let write = Write {
        by: Manager { name: "one", api_version: &api_version, subresource: "", now: "2026-01-01T00:00:00Z" },
        reach: Reach::AllBut(&[&["status"]]),
        convert: &|_, _| None,
    };
    let compared = write.update(&hawser_api::apply::empty(ty), object, ManagedFields::default());
    assert_eq!(write.create(object, ManagedFields::default()).to_value(), compared.to_value());
}

fn protobuf_object(bytes: &[u8]) {
    let Ok((_, object)) = protobuf::decode(bytes) else { return };
    if let Ok(written) = protobuf::encode(&object) {
        let (_, again) = protobuf::decode(&written).expect("what was written can be read");
        assert_eq!(again, object);
    }
}

fn label_selector(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(selector) = LabelSelector::parse(text) {
        let shown = selector.to_string();
        let again = LabelSelector::parse(&shown).expect("what is shown can be read");
        assert_eq!(again.to_string(), shown);
        assert_eq!(again.matches_object(&LIVE), selector.matches_object(&LIVE));
    }
}

fn field_selector(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(selector) = FieldSelector::parse(text) {
        let shown = selector.to_string();
        let again = FieldSelector::parse(&shown).expect("what is shown can be read");
        assert_eq!(again.to_string(), shown);
    }
}

/// The first byte chooses the type of patch.
fn patched(bytes: &[u8]) {
    let Some((choice, patch)) = bytes.split_first() else { return };
    let (patch_type, _) = PatchType::ALL[usize::from(*choice) % PatchType::ALL.len()];
    if let Ok(object) = patch::apply(patch_type, &LIVE, patch, Some(type_of_live())) {
        drop(schema::canonicalize(type_of_live(), &object, FieldValidation::Warn));
    }
}

/// The first byte says whether conflicts are overridden.
fn applied(bytes: &[u8]) {
    let Some((force, config)) = bytes.split_first() else { return };
    let config = schema::decode_applied(type_of_live(), config, Format::Json, FieldValidation::Ignore);
    let Ok(config) = config else { return };
    let write = |name| Write {
        by: Manager { name, api_version: "apps/v1", subresource: "", now: "2026-01-01T00:00:00Z" },
        reach: Reach::AllBut(&[&["status"]]),
        convert: &|_, _| None,
    };
    let empty = hawser_api::apply::empty(type_of_live());
    let owned = write("owner").update(&empty, &LIVE, ManagedFields::default());
    let Ok(first) = write("applier").apply(Some(&LIVE), &config.object, owned, force % 2 == 1) else {
        return;
    };
    let Ok(object) = schema::canonicalize(type_of_live(), &first.object, FieldValidation::Ignore) else {
        return;
    };
    // The same again changes nothing.
    let second = write("applier").apply(Some(&object.object), &config.object, first.managed.clone(), false);
    let second = second.expect("nothing stands against what was applied already");
    let again = schema::canonicalize(type_of_live(), &second.object, FieldValidation::Ignore);
    assert_eq!(again.expect("an object").object, object.object);
    assert!(second.managed.same_but_times(&first.managed));
}

fn managed_fields(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    if let Ok(managed) = ManagedFields::decode(&value) {
        let again = ManagedFields::decode(&managed.to_value()).expect("what was written can be read");
        assert!(again.same_but_times(&managed));
    }
}

fn quantity(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(quantity) = text.parse::<Quantity>() {
        let shown = quantity.to_string();
        let again: Quantity = shown.parse().expect("what is shown can be read");
        assert_eq!(again.to_string(), shown, "{text:?}");
    }
}
