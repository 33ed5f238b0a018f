//! OpenAPI v3: one document for each group and version.

use hawser_api::{kinds::Kind, schema::Type};
use serde_json::{Map, Value, json};

use super::{
    descriptions::Descriptions,
    paths::{self, Answer, Operation, PATCH_TYPES, Parameter},
    schemas::{self, Dialect},
};

pub(super) fn document(kinds: &[Kind], path: &str, descriptions: &Descriptions) -> Value {
    let mut paths = Map::new();
    let mut roots: Vec<&'static Type> = Vec::new();
    for item in paths::items(kinds, path) {
        let mut operations = Map::new();
        if !item.parameters.is_empty() {
            operations
                .insert("parameters".to_owned(), item.parameters.iter().map(|p| parameter(*p)).collect());
        }
        for described in &item.operations {
            operations.insert(described.method.to_owned(), operation(described, &mut roots));
        }
        paths.insert(item.path, Value::Object(operations));
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": super::schema_version() },
        "paths": paths,
        "components": {
            "schemas": schemas::closure(roots, Dialect::V3, descriptions),
            "securitySchemes": { "BearerToken": super::bearer_token() },
        },
    })
}

fn parameter(parameter: Parameter) -> Value {
    let mut described = json!({
        "name": parameter.name,
        "in": if parameter.in_path { "path" } else { "query" },
        "schema": { "type": parameter.ty(), "uniqueItems": true },
    });
    if parameter.in_path {
        described["required"] = json!(true);
    }
    described
}

fn content(media_types: &[&str], schema: &Value) -> Value {
    media_types
        .iter()
        .map(|media| ((*media).to_owned(), json!({ "schema": schema })))
        .collect::<Map<_, _>>()
        .into()
}

fn operation(operation: &Operation, roots: &mut Vec<&'static Type>) -> Value {
    let mut responses = Map::new();
    for (code, answer) in &operation.answers {
        let schema = match answer {
            Answer::Object(ty) => {
                roots.push(ty);
                schemas::reference(ty, Dialect::V3)
            }
            Answer::Text => json!({ "type": "string" }),
        };
        let content = content(operation.produces.media_types(), &schema);
        responses.insert(
            code.to_string(),
            json!({ "description": super::describe_code(*code), "content": content }),
        );
    }
    responses.insert("401".to_owned(), json!({ "description": super::describe_code(401) }));
    let mut described =
        json!({ "operationId": operation.id, "tags": [operation.tag], "responses": responses });
    if !operation.parameters.is_empty() {
        described["parameters"] = operation.parameters.iter().map(|p| parameter(*p)).collect();
    }
    if let Some(body) = &operation.body {
        roots.push(body.ty);
        let media: &[&str] = if body.is_patch { &PATCH_TYPES } else { &["*/*"] };
        described["requestBody"] =
            json!({ "content": content(media, &schemas::reference(body.ty, Dialect::V3)) });
        if body.required {
            described["requestBody"]["required"] = json!(true);
        }
    }
    super::mark(&mut described, operation);
    described
}
