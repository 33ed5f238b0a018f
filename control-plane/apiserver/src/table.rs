//! Objects as `kubectl get` shows them (`meta.k8s.io` Table), and objects reduced to their metadata.
//!
//! A table is made for each request from the columns and cells of the kind's hooks; nothing here is kept.
//! Watches send one table with one row for each change, the column definitions with the first only.

use hawser_api::kinds::Kind;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kinds::{self, Column};

/// What a row carries of its object: the `includeObject` of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// `None` for a value that upstream does not know either; empty is the default.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// How a table is wanted.
#[derive(Clone, Copy, Debug)]
pub struct TableOptions {
    /// Of `meta.k8s.io`: `v1` or `v1beta1`.
    pub version: &'static str,
    pub include_object: IncludeObject,
    /// Whether column definitions are sent; later events of a watch go without.
    pub headers: bool,
    /// Ages are counted to this moment.
    pub now: Timestamp,
}

/// The table of some objects of one kind. `list_metadata` is the list's (`resourceVersion`, `continue`, ...), or of a
/// single object its `resourceVersion`.
pub fn table<'a>(
    kind: &Kind,
    objects: impl IntoIterator<Item = &'a Value>,
    list_metadata: Value,
    options: &TableOptions,
) -> Value {
    let hooks = kinds::hooks(kind.group, kind.plural);
    let rows: Vec<Value> = objects.into_iter().map(|object| row(hooks, object, options)).collect();
    let columns: Vec<Value> =
        if options.headers { hooks.columns.iter().map(definition).collect() } else { Vec::new() };
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{}", options.version),
        "metadata": list_metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// The object as `PartialObjectMetadata`; `version` is that of `meta.k8s.io`.
pub fn partial_metadata(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object["metadata"],
    })
}

/// Objects as `PartialObjectMetadataList`.
pub fn partial_metadata_list<'a>(
    objects: impl IntoIterator<Item = &'a Value>,
    list_metadata: Value,
    version: &str,
) -> Value {
    let items: Vec<Value> = objects.into_iter().map(|object| partial_metadata(object, version)).collect();
    json!({
        "kind": "PartialObjectMetadataList",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": list_metadata,
        "items": items,
    })
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name,
        "type": column.kind,
        "format": column.format,
        "description": "",
        "priority": column.priority,
    })
}

fn row(hooks: &kinds::Hooks, object: &Value, options: &TableOptions) -> Value {
    let mut row = Map::new();
    row.insert("cells".to_owned(), (hooks.cells)(object, options.now).into());
    let shown = match options.include_object {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial_metadata(object, options.version),
        IncludeObject::Object => object.clone(),
    };
    row.insert("object".to_owned(), shown);
    let phase = object["status"]["phase"].as_str().unwrap_or_default();
    if object["kind"] == "Pod" && matches!(phase, "Succeeded" | "Failed") {
        let condition = json!([{ "type": "Completed", "status": "True", "reason": phase }]);
        row.insert("conditions".to_owned(), condition);
    }
    Value::Object(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_cell_for_each_column() {
        for kind in hawser_api::kinds::KINDS {
            let hooks = kinds::hooks(kind.group, kind.plural);
            // An object without anything prints too.
            let cells = (hooks.cells)(&json!({}), Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), hooks.columns.len(), "{}", kind.qualified());
        }
    }

    #[test]
    fn rows_carry_what_was_asked_for() {
        let kind = Kind::find("", "v1", "configmaps").unwrap();
        let object = json!({ "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "k": "v" } });
        let options = |include_object| TableOptions {
            version: "v1",
            include_object,
            headers: true,
            now: Timestamp::UNIX_EPOCH,
        };
        let make = |include| table(kind, [&object], json!({ "resourceVersion": "7" }), &options(include));
        assert_eq!(make(IncludeObject::None)["rows"][0]["object"], Value::Null);
        assert_eq!(make(IncludeObject::Metadata)["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(make(IncludeObject::Object)["rows"][0]["object"], object);
        assert_eq!(make(IncludeObject::None)["rows"][0]["cells"], json!(["a", 1, "<unknown>"]));
        assert_eq!(make(IncludeObject::None)["metadata"]["resourceVersion"], "7");
        let names: Vec<_> = make(IncludeObject::None)["columnDefinitions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|column| column["name"].clone())
            .collect();
        assert_eq!(names, ["Name", "Data", "Age"]);
    }
}
