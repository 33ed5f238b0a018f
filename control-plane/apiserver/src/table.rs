//! Objects as `kubectl get` shows them (`meta.k8s.io` Table), and objects reduced to their metadata.
//!
//! A table is written for each request from the columns and cells of the kind's hooks, row by row; nothing here is kept.
//! Watches send one table with one row for each change, the column definitions with the first only.

use hawser_api::kinds::Kind;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    cache::Encoded,
    kinds::{self, Column, Hooks},
};

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

/// Writes the table of some objects of one kind: [`Table::head`], a row for each object, [`LIST_END`].
pub struct Table {
    hooks: &'static Hooks,
    is_pod: bool,
    options: TableOptions,
}

impl Table {
    pub fn new(kind: &Kind, options: TableOptions) -> Self {
        let hooks = kinds::hooks(kind.group, kind.plural);
        Self { hooks, is_pod: kind.group.is_empty() && kind.plural == "pods", options }
    }

    /// What stands before the rows. `metadata` is the list's (`resourceVersion`, `continue`, ...), or of a single object its
    /// `resourceVersion`.
    pub fn head(&self, metadata: &Value) -> Vec<u8> {
        let columns: Vec<Value> = match self.options.headers {
            true => self.hooks.columns.iter().map(definition).collect(),
            false => Vec::new(),
        };
        format!(
            r#"{{"kind":"Table","apiVersion":"meta.k8s.io/{}","metadata":{metadata},"columnDefinitions":{},"rows":["#,
            self.options.version,
            Value::Array(columns),
        )
        .into_bytes()
    }

    pub fn row(&self, object: &Encoded, out: &mut Vec<u8>) {
        let tree = object.tree();
        out.extend_from_slice(b"{\"cells\":");
        let cells = Value::Array((self.hooks.cells)(&tree, self.options.now));
        out.extend_from_slice(cells.to_string().as_bytes());
        out.extend_from_slice(b",\"object\":");
        match self.options.include_object {
            IncludeObject::None => out.extend_from_slice(b"null"),
            IncludeObject::Metadata => partial_metadata(object, self.options.version, out),
            IncludeObject::Object => out.extend_from_slice(object.json().trim_ascii_end()),
        }
        let phase = tree["status"]["phase"].as_str().unwrap_or_default();
        if self.is_pod && matches!(phase, "Succeeded" | "Failed") {
            let condition = json!([{ "type": "Completed", "status": "True", "reason": phase }]);
            out.extend_from_slice(b",\"conditions\":");
            out.extend_from_slice(condition.to_string().as_bytes());
        }
        out.push(b'}');
    }

    /// The table of one object.
    pub fn of_one(&self, object: &Encoded, metadata: &Value) -> Vec<u8> {
        let mut table = self.head(metadata);
        self.row(object, &mut table);
        table.extend_from_slice(LIST_END);
        table
    }
}

/// What stands after the rows of a table, and the items of a list.
pub const LIST_END: &[u8] = b"]}\n";

/// Writes the object as `PartialObjectMetadata`; `version` is that of `meta.k8s.io`.
pub fn partial_metadata(object: &Encoded, version: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/");
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    out.extend_from_slice(object.metadata());
    out.push(b'}');
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
        let encoded = Encoded::new(object.to_string().as_bytes(), 0).unwrap();
        let options = |include_object| TableOptions {
            version: "v1",
            include_object,
            headers: true,
            now: Timestamp::UNIX_EPOCH,
        };
        let make = |include| -> Value {
            let table = Table::new(kind, options(include));
            serde_json::from_slice(&table.of_one(&encoded, &json!({ "resourceVersion": "7" }))).unwrap()
        };
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
