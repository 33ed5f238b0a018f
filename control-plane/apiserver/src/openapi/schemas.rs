//! Types as OpenAPI describes them, in the dialect of v2 or v3.

use hawser_api::schema::{Elem, Field, Shape, Special, Type};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use super::descriptions::Descriptions;

/// Where the two versions of OpenAPI differ.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

/// The name under which a type is published.
pub(super) fn name(ty: &Type) -> String {
    ty.name.replacen("k8s.io.", "io.k8s.", 1).replace('_', "-")
}

pub(super) fn reference(ty: &Type, dialect: Dialect) -> Value {
    let place = match dialect {
        Dialect::V2 => "#/definitions/",
        Dialect::V3 => "#/components/schemas/",
    };
    json!({ "$ref": format!("{place}{}", name(ty)) })
}

/// The schemas of `roots` and of everything they refer to, by published name.
pub(super) fn closure(
    roots: impl IntoIterator<Item = &'static Type>,
    dialect: Dialect,
    descriptions: &Descriptions,
) -> Map<String, Value> {
    let mut found: BTreeMap<&'static str, &'static Type> = BTreeMap::new();
    let mut waiting: Vec<&'static Type> = roots.into_iter().collect();
    while let Some(ty) = waiting.pop() {
        if found.insert(ty.name, ty).is_some() || ty.special != Special::Struct {
            continue;
        }
        let fields = ty.json_fields().filter_map(|field| field.elem.message());
        waiting.extend(fields.filter(|ty| ty.special != Special::StringList));
    }
    found.values().map(|ty| (name(ty), described(ty, dialect, descriptions))).collect()
}

fn described(ty: &Type, dialect: Dialect, descriptions: &Descriptions) -> Value {
    let mut schema = schema(ty, dialect);
    if let Some(text) = descriptions.of(ty) {
        schema["description"] = json!(text);
    }
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    for (field, property) in properties.into_iter().flatten() {
        if let Some(text) = descriptions.of_field(ty, field) {
            property["description"] = json!(text);
        }
    }
    schema
}

fn schema(ty: &Type, dialect: Dialect) -> Value {
    match (ty.special, dialect) {
        (Special::Quantity, Dialect::V2) | (Special::Duration, _) => json!({ "type": "string" }),
        (Special::Quantity, Dialect::V3) => json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] }),
        (Special::IntOrString, Dialect::V2) => json!({ "type": "string", "format": "int-or-string" }),
        (Special::IntOrString, Dialect::V3) => {
            json!({ "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] })
        }
        (Special::Time | Special::MicroTime, _) => json!({ "type": "string", "format": "date-time" }),
        (Special::RawJson, _) if ty.kind() == "JSON" => json!({}),
        (Special::RawJson, _) => json!({ "type": "object" }),
        (Special::SchemaOrBool | Special::SchemaOrArray | Special::SchemaOrStrings, _) => json!({}),
        (Special::StringList, _) => strings(),
        (Special::Struct, _) => object(ty, dialect),
    }
}

fn strings() -> Value {
    json!({ "type": "array", "items": { "type": "string" } })
}

fn object(ty: &Type, dialect: Dialect) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    if ty.has_type_meta {
        properties.insert("apiVersion".to_owned(), json!({ "type": "string" }));
        properties.insert("kind".to_owned(), json!({ "type": "string" }));
    }
    for field in ty.json_fields() {
        properties.insert(field.json.to_owned(), property(field, dialect));
        if field.required {
            required.push(field.json);
        }
    }
    let mut schema = json!({ "type": "object" });
    if !properties.is_empty() {
        schema["properties"] = Value::Object(properties);
    }
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    if ty.atomic {
        schema["x-kubernetes-map-type"] = json!("atomic");
    }
    if let Some((group, version)) = ty.group_version {
        // The types of `meta` belong to every group; they are listed under the one that has no name.
        let (group, version) = if group == "meta.k8s.io" { ("", "v1") } else { (group, version) };
        schema["x-kubernetes-group-version-kind"] =
            json!([{ "group": group, "kind": ty.kind(), "version": version }]);
    }
    schema
}

fn property(field: &Field, dialect: Dialect) -> Value {
    let default = (dialect == Dialect::V3).then(|| default_of(field)).flatten();
    let mut schema = match field.shape {
        Shape::One => match (elem(field.elem, dialect), dialect) {
            // Beside a reference v3 allows nothing, so it is wrapped.
            (reference, Dialect::V3) if reference.get("$ref").is_some() => json!({ "allOf": [reference] }),
            (schema, _) => schema,
        },
        Shape::List => json!({ "type": "array", "items": elem(field.elem, dialect) }),
        Shape::Map => json!({ "type": "object", "additionalProperties": elem(field.elem, dialect) }),
    };
    if let Some(default) = default {
        schema["default"] = default;
    }
    if let Some(list_type) = field.list_type {
        schema["x-kubernetes-list-type"] = json!(list_type.as_str());
    }
    if !field.list_keys.is_empty() {
        schema["x-kubernetes-list-map-keys"] = json!(field.list_keys);
    }
    if let Some(map_type) = field.map_type {
        schema["x-kubernetes-map-type"] = json!(map_type.as_str());
    }
    if let Some(strategy) = field.patch.as_str() {
        schema["x-kubernetes-patch-strategy"] = json!(strategy);
    }
    if let Some(key) = field.patch.merge_key {
        schema["x-kubernetes-patch-merge-key"] = json!(key);
    }
    schema
}

/// What v3 publishes as default: the one that is named, or Go's zero value where it is printed.
fn default_of(field: &Field) -> Option<Value> {
    if let Some(default) = field.default {
        return serde_json::from_str(default).ok();
    }
    if field.pointer || field.shape != Shape::One {
        return None;
    }
    match field.elem {
        Elem::Message(id) => (id.get().special == Special::Struct).then(|| json!({})),
        Elem::Bool => field.always.then_some(json!(false)),
        Elem::Int32 | Elem::Int64 | Elem::Double => field.always.then(|| json!(0)),
        Elem::String => field.always.then(|| json!("")),
        Elem::Bytes => None,
    }
}

fn elem(elem: Elem, dialect: Dialect) -> Value {
    match elem {
        Elem::Bool => json!({ "type": "boolean" }),
        Elem::Int32 => json!({ "type": "integer", "format": "int32" }),
        Elem::Int64 => json!({ "type": "integer", "format": "int64" }),
        Elem::Double => json!({ "type": "number", "format": "double" }),
        Elem::String => json!({ "type": "string" }),
        Elem::Bytes => json!({ "type": "string", "format": "byte" }),
        Elem::Message(id) => match id.get().special {
            Special::StringList => strings(),
            _ => reference(id.get(), dialect),
        },
    }
}
