//! OpenAPI v2: one document of all paths and types.

use hawser_api::{kinds::Kind, schema::Type};
use serde_json::{Map, Value, json};

use super::{
    descriptions::Descriptions,
    paths::{self, Answer, Operation, PATCH_TYPES, Parameter},
    schemas::{self, Dialect},
};

pub(super) fn document(kinds: &[Kind], descriptions: &Descriptions) -> Value {
    let mut paths = Map::new();
    let mut roots: Vec<&'static Type> = Vec::new();
    for document in paths::documents(kinds) {
        for item in paths::items(kinds, &document) {
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
    }
    json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": super::schema_version() },
        "paths": paths,
        "definitions": schemas::closure(roots, Dialect::V2, descriptions),
        "security": [{ "BearerToken": [] }],
        "securityDefinitions": { "BearerToken": super::bearer_token() },
    })
}

fn parameter(parameter: Parameter) -> Value {
    let mut described = json!({
        "name": parameter.name,
        "in": if parameter.in_path { "path" } else { "query" },
        "type": parameter.ty(),
        "uniqueItems": true,
    });
    if parameter.in_path {
        described["required"] = json!(true);
    }
    described
}

fn operation(operation: &Operation, roots: &mut Vec<&'static Type>) -> Value {
    let mut parameters: Vec<Value> = Vec::new();
    if let Some(body) = &operation.body {
        roots.push(body.ty);
        let mut described =
            json!({ "name": "body", "in": "body", "schema": schemas::reference(body.ty, Dialect::V2) });
        if body.required {
            described["required"] = json!(true);
        }
        parameters.push(described);
    }
    parameters.extend(operation.parameters.iter().map(|p| parameter(*p)));
    let mut responses = Map::new();
    for (code, answer) in &operation.answers {
        let schema = match answer {
            Answer::Object(ty) => {
                roots.push(ty);
                schemas::reference(ty, Dialect::V2)
            }
            Answer::Text => json!({ "type": "string" }),
        };
        let description = super::describe_code(*code);
        responses.insert(code.to_string(), json!({ "description": description, "schema": schema }));
    }
    responses.insert("401".to_owned(), json!({ "description": super::describe_code(401) }));
    let consumes = match &operation.body {
        Some(body) if body.is_patch => json!(PATCH_TYPES),
        _ if operation.action.is_none() => json!(operation.produces.media_types()),
        _ => json!(["*/*"]),
    };
    let mut described = json!({
        "operationId": operation.id,
        "tags": [operation.tag],
        "schemes": ["https"],
        "consumes": consumes,
        "produces": operation.produces.media_types(),
        "responses": responses,
    });
    if !parameters.is_empty() {
        described["parameters"] = Value::Array(parameters);
    }
    super::mark(&mut described, operation);
    described
}
