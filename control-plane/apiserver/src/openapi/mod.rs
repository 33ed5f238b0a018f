//! The published schema: OpenAPI v2 (JSON and protobuf) and v3, made from the table of types and the table of kinds.
//!
//! Clients need it: `kubectl apply` for merge keys and for what a kind accepts, `kubectl explain` for fields,
//! `--dry-run=server` and `--validate` for the parameters of a path. Documents are made when first asked for and
//! then kept; they change only with the set of kinds, for which a new [`OpenApi`] is made. Left out, on purpose:
//! descriptions of paths and parameters, CBOR, and the deprecated `/watch/` paths.

mod descriptions;
mod gnostic;
mod paths;
mod schemas;
#[cfg(test)]
mod tests;
mod v2;
mod v3;

use bytes::Bytes;
use hawser_api::kinds::Kind;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use descriptions::Descriptions;

/// The content type of OpenAPI v2 in protobuf. Clients ask for it with `@v1.0`, which is no valid media type to answer.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// A document, ready to be sent.
#[derive(Clone, Debug)]
pub struct Document {
    pub body: Bytes,
    /// The SHA-256 of the body, in hex: the `ETag` (in quotes) and the `hash` of v3 addresses.
    pub hash: String,
}

impl Document {
    fn new(body: Vec<u8>) -> Self {
        let hash = Sha256::digest(&body).iter().fold(String::new(), |text, byte| format!("{text}{byte:02X}"));
        Self { body: Bytes::from(body), hash }
    }

    /// The value of the header `ETag`.
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.hash)
    }
}

/// All documents of one set of kinds.
pub struct OpenApi {
    kinds: &'static [Kind],
    v2: OnceLock<Arc<Value>>,
    v2_json: OnceLock<Document>,
    v2_protobuf: OnceLock<Document>,
    v3_index: OnceLock<Document>,
    /// By path, such as `apis/apps/v1`.
    v3: BTreeMap<String, OnceLock<Document>>,
}

impl OpenApi {
    /// Costs next to nothing; documents are made when asked for.
    pub fn new(kinds: &'static [Kind]) -> Self {
        let v3 = paths::documents(kinds).into_iter().map(|path| (path, OnceLock::new())).collect();
        Self {
            kinds,
            v2: OnceLock::new(),
            v2_json: OnceLock::new(),
            v2_protobuf: OnceLock::new(),
            v3_index: OnceLock::new(),
            v3,
        }
    }

    /// The document at `/openapi/<path>`: `v2`, `v3` or such as `v3/apis/apps/v1`; `None` for what is not served.
    ///
    /// Made when first asked for, which takes long: not to be called where others wait.
    pub fn find(&self, path: &str, as_protobuf: bool) -> Option<&Document> {
        match path.split_once('/') {
            None if path == "v2" && as_protobuf => Some(self.v2_protobuf()),
            None if path == "v2" => Some(self.v2_json()),
            None if path == "v3" => Some(self.v3_index()),
            Some(("v3", path)) => self.v3_document(path),
            _ => None,
        }
    }

    /// `/openapi/v2` as JSON.
    pub fn v2_json(&self) -> &Document {
        self.v2_json.get_or_init(|| Document::new(self.v2().to_string().into_bytes()))
    }

    /// `/openapi/v2` as [`V2_PROTOBUF`].
    pub fn v2_protobuf(&self) -> &Document {
        self.v2_protobuf.get_or_init(|| Document::new(gnostic::encode(&self.v2())))
    }

    fn v2(&self) -> Arc<Value> {
        Arc::clone(self.v2.get_or_init(|| Arc::new(v2::document(self.kinds, &Descriptions::new()))))
    }

    /// `/openapi/v3`: where each document is. Addresses carry its hash, so that clients may keep it for good.
    ///
    /// Makes every document, for their hashes.
    pub fn v3_index(&self) -> &Document {
        self.v3_index.get_or_init(|| {
            let (mut paths, descriptions) = (Map::new(), Descriptions::new());
            for (path, slot) in &self.v3 {
                let document = slot.get_or_init(|| self.make_v3(path, &descriptions));
                let address = format!("/openapi/v3/{path}?hash={}", document.hash);
                paths.insert(path.clone(), json!({ "serverRelativeURL": address }));
            }
            Document::new(json!({ "paths": paths }).to_string().into_bytes())
        })
    }

    /// `/openapi/v3/<path>`, such as `api/v1` and `apis/apps/v1`; `None` for what is not served.
    pub fn v3_document(&self, path: &str) -> Option<&Document> {
        let path = path.trim_matches('/');
        let slot = self.v3.get(path)?;
        Some(slot.get_or_init(|| self.make_v3(path, &Descriptions::new())))
    }

    fn make_v3(&self, path: &str, descriptions: &Descriptions) -> Document {
        Document::new(v3::document(self.kinds, path, descriptions).to_string().into_bytes())
    }
}

/// What both versions say alike.
fn schema_version() -> &'static str {
    "v1.36.0"
}

fn bearer_token() -> Value {
    json!({ "type": "apiKey", "description": "Bearer Token authentication", "in": "header", "name": "authorization" })
}

fn describe_code(code: u16) -> &'static str {
    match code {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        _ => "Unauthorized",
    }
}

/// Says which verb of which kind an operation is.
fn mark(described: &mut Value, operation: &paths::Operation) {
    if let Some(action) = operation.action {
        described["x-kubernetes-action"] = json!(action);
    }
    if let Some(gvk) = &operation.gvk {
        described["x-kubernetes-group-version-kind"] =
            json!({ "group": gvk.group, "kind": gvk.kind, "version": gvk.version });
    }
}
