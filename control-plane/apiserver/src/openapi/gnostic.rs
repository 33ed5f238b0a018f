//! OpenAPI v2 in protobuf: the messages of gnostic's `openapi.v2.Document`, as kubectl reads them.
//!
//! Made from the JSON document, so the two cannot differ. Extensions (`x-...`) travel as YAML text, for which JSON
//! will do. Numbers are those of `github.com/google/gnostic-models/openapiv2/OpenAPIv2.proto`.

use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// Encodes a document that [`super::v2`] made.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    let Some(document) = document.as_object() else { return out.bytes };
    out.text(1, document.get("swagger"));
    out.nested(2, |out| {
        out.text(1, document["info"].get("title"));
        out.text(2, document["info"].get("version"));
    });
    out.nested(8, |out| {
        for (path, item) in members(document.get("paths")) {
            out.named(2, path, |out| path_item(out, item));
        }
    });
    out.nested(9, |out| {
        for (name, definition) in members(document.get("definitions")) {
            out.named(1, name, |out| schema(out, definition));
        }
    });
    for requirement in items(document.get("security")) {
        out.nested(12, |out| {
            for (name, scopes) in members(Some(requirement)) {
                out.named(1, name, |out| out.texts(1, Some(scopes)));
            }
        });
    }
    out.nested(13, |out| {
        for (name, definition) in members(document.get("securityDefinitions")) {
            out.named(1, name, |out| {
                out.nested(2, |out| {
                    for (number, field) in [(1, "type"), (2, "name"), (3, "in"), (4, "description")] {
                        out.text(number, definition.get(field));
                    }
                });
            });
        }
    });
    out.bytes
}

/// A message that is being written.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn put(&mut self, number: u64, bytes: &[u8]) {
        self.varint(number << 3 | 2);
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    fn text(&mut self, number: u64, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str) {
            self.put(number, text.as_bytes());
        }
    }

    fn texts(&mut self, number: u64, value: Option<&Value>) {
        for item in items(value) {
            self.text(number, Some(item));
        }
    }

    fn flag(&mut self, number: u64, value: Option<&Value>) {
        if value.and_then(Value::as_bool) == Some(true) {
            self.varint(number << 3);
            self.varint(1);
        }
    }

    fn nested(&mut self, number: u64, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.put(number, &inner.bytes);
    }

    /// A member of one of gnostic's maps: name and value.
    fn named(&mut self, number: u64, name: &str, write: impl FnOnce(&mut Self)) {
        self.nested(number, |out| {
            out.put(1, name.as_bytes());
            out.nested(2, write);
        });
    }

    /// An `Any`: text that is read as YAML.
    fn any(&mut self, number: u64, value: &Value) {
        self.nested(number, |out| out.put(2, value.to_string().as_bytes()));
    }

    fn extensions(&mut self, number: u64, object: &Value) {
        for (name, value) in members(Some(object)).filter(|(name, _)| name.starts_with("x-")) {
            self.nested(number, |out| {
                out.put(1, name.as_bytes());
                out.any(2, value);
            });
        }
    }
}

fn members(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flat_map(Object::iter)
}

fn items(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn path_item(out: &mut Message, item: &Value) {
    let methods =
        [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")];
    for (number, method) in methods {
        if let Some(described) = item.get(method) {
            out.nested(number, |out| operation(out, described));
        }
    }
    for described in items(item.get("parameters")) {
        out.nested(9, |out| parameter(out, described));
    }
    out.extensions(10, item);
}

fn operation(out: &mut Message, operation: &Value) {
    out.texts(1, operation.get("tags"));
    out.text(3, operation.get("description"));
    out.text(5, operation.get("operationId"));
    out.texts(6, operation.get("produces"));
    out.texts(7, operation.get("consumes"));
    for described in items(operation.get("parameters")) {
        out.nested(8, |out| parameter(out, described));
    }
    out.nested(9, |out| {
        for (code, response) in members(operation.get("responses")) {
            out.named(1, code, |out| out.nested(1, |out| answer(out, response)));
        }
    });
    out.texts(10, operation.get("schemes"));
    out.extensions(13, operation);
}

fn answer(out: &mut Message, response: &Value) {
    out.text(1, response.get("description"));
    if let Some(described) = response.get("schema") {
        out.nested(2, |out| out.nested(1, |out| schema(out, described)));
    }
}

/// A `ParametersItem` around the parameter of the right place.
fn parameter(out: &mut Message, parameter: &Value) {
    let place = parameter.get("in").and_then(Value::as_str).unwrap_or_default();
    out.nested(1, |out| match place {
        "body" => out.nested(1, |out| {
            out.text(1, parameter.get("description"));
            out.text(2, parameter.get("name"));
            out.text(3, parameter.get("in"));
            out.flag(4, parameter.get("required"));
            if let Some(described) = parameter.get("schema") {
                out.nested(5, |out| schema(out, described));
            }
        }),
        "path" => out.nested(2, |out| {
            out.nested(4, |out| {
                out.flag(1, parameter.get("required"));
                out.text(2, parameter.get("in"));
                out.text(4, parameter.get("name"));
                out.text(5, parameter.get("type"));
                out.flag(19, parameter.get("uniqueItems"));
            });
        }),
        _ => out.nested(2, |out| {
            out.nested(3, |out| {
                out.flag(1, parameter.get("required"));
                out.text(2, parameter.get("in"));
                out.text(4, parameter.get("name"));
                out.text(6, parameter.get("type"));
                out.flag(20, parameter.get("uniqueItems"));
            });
        }),
    });
}

fn schema(out: &mut Message, described: &Value) {
    out.text(1, described.get("$ref"));
    out.text(2, described.get("format"));
    out.text(4, described.get("description"));
    if let Some(default) = described.get("default") {
        out.any(5, default);
    }
    out.texts(19, described.get("required"));
    if let Some(additional) = described.get("additionalProperties") {
        out.nested(21, |out| out.nested(1, |out| schema(out, additional)));
    }
    if let Some(ty) = described.get("type") {
        out.nested(22, |out| out.text(1, Some(ty)));
    }
    if let Some(item) = described.get("items") {
        out.nested(23, |out| out.nested(1, |out| schema(out, item)));
    }
    if let Some(properties) = described.get("properties") {
        out.nested(25, |out| {
            for (name, property) in members(Some(properties)) {
                out.named(1, name, |out| schema(out, property));
            }
        });
    }
    out.extensions(31, described);
}
