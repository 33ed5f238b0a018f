//! Between bytes and trees: reading bodies, the canonical form that is stored, and what responses are made of.
//!
//! A thin layer over [`hawser_api::schema`], which knows the types; here is decided which of its functions a request
//! needs. Objects of kinds without a schema (those of custom resources) pass through as they are.

use bytes::Bytes;
use hawser_api::{
    Error,
    apply::ManagedFields,
    error::Reason,
    patch::{self, PatchType},
    schema::{self, FieldValidation, Format, Type},
};
use serde_json::Value;

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

/// A body as a tree in canonical form, and warnings about it.
pub(crate) struct Decoded {
    pub object: Value,
    pub warnings: Vec<String>,
}

/// The type of a kind, by its `apiVersion` and name.
pub(crate) fn type_of(api_version: &str, kind: &str) -> Option<&'static Type> {
    schema::type_of_object(api_version, kind)
}

/// Reads a body of the type that it names itself, or of `expected` where it names none.
pub(crate) fn decode(
    body: &[u8],
    encoding: Encoding,
    expected: (&str, &str),
    validation: FieldValidation,
) -> Result<Decoded, Error> {
    let format = match encoding {
        Encoding::Protobuf => {
            let (_, object) = schema::protobuf::decode(body).map_err(|error| {
                Error::bad_request(format!("the body cannot be read as protobuf: {error}"))
            })?;
            return Ok(Decoded { object, warnings: Vec::new() });
        }
        Encoding::Json => Format::Json,
        Encoding::Yaml => Format::Yaml,
    };
    let leading = if format == Format::Json { schema::leading_type_meta(body) } else { None };
    let meta = leading.map_or_else(|| schema::peek_type_meta(body, format), Ok)?;
    let named = if meta.kind.is_empty() { None } else { type_of(&meta.api_version, &meta.kind) };
    let Some(ty) = named.or_else(|| type_of(expected.0, expected.1)) else {
        return Err(Error::bad_request(format!(
            "no kind {:?} is registered for version {:?}",
            meta.kind, meta.api_version
        )));
    };
    let decoded = schema::decode(ty, body, format, validation)?;
    Ok(Decoded { object: decoded.object, warnings: decoded.warnings })
}

/// JSON in upstream's order; what is stored, and what is sent of objects that are not cached.
pub(crate) fn canonical_json(object: &Value) -> Result<Vec<u8>, Error> {
    match schema_of(object) {
        Some(ty) => Ok(schema::json::to_vec(ty, object)),
        None => serde_json::to_vec(object).map_err(Error::internal),
    }
}

/// JSON in upstream's order of an object whose owners of fields are kept apart.
pub(crate) fn managed_json(object: &Value, managed: &ManagedFields) -> Result<Vec<u8>, Error> {
    match schema_of(object) {
        Some(ty) => Ok(schema::json::to_vec_managed(ty, object, managed)),
        None => serde_json::to_vec(object).map_err(Error::internal),
    }
}

fn schema_of(object: &Value) -> Option<&'static Type> {
    type_of(object["apiVersion"].as_str()?, object["kind"].as_str()?)
}

/// The protobuf message of an object, without envelope; `None` where its kind has no schema.
pub(crate) fn protobuf_message(object: &Value) -> Option<Bytes> {
    let ty = schema_of(object)?;
    match schema::protobuf::encode_message(ty, object) {
        Ok(message) => Some(message.into()),
        Err(error) => {
            tracing::error!(kind = ty.name, %error, "object cannot be written as protobuf");
            None
        }
    }
}

/// An object that is not cached (a Status, a Scale) in any encoding.
pub(crate) fn encode(object: &Value, encoding: Encoding) -> Result<Bytes, Error> {
    match encoding {
        Encoding::Json => canonical_json(object).map(Bytes::from),
        Encoding::Yaml => yaml(&canonical_json(object)?),
        Encoding::Protobuf => schema::protobuf::encode(object).map(Bytes::from).map_err(|error| {
            Error::new(Reason::NotAcceptable, format!("the object cannot be written as protobuf: {error}"))
        }),
    }
}

/// JSON as YAML.
pub(crate) fn yaml(json: &[u8]) -> Result<Bytes, Error> {
    let value: Value = serde_json::from_slice(json).map_err(Error::internal)?;
    serde_yaml_ng::to_string(&value).map(Bytes::from).map_err(Error::internal)
}

/// An applied configuration.
#[derive(Clone, Debug)]
pub struct Apply {
    /// What it sets, in canonical form, of the resource's version and type.
    pub config: Value,
    /// Fields are taken from their managers.
    pub force: bool,
}

/// Reads an applied configuration, YAML or JSON; `expected` is the type of what it is applied to.
pub(crate) fn decode_applied(
    body: &[u8],
    expected: (&str, &str),
    validation: FieldValidation,
) -> Result<Decoded, Error> {
    let meta = |format| schema::peek_type_meta(body, format).map(|meta| (meta, format));
    let (meta, format) = meta(Format::Json)
        .or_else(|_| meta(Format::Yaml))
        .map_err(|error| Error::bad_request(format!("error decoding YAML: {error}")))?;
    let (api_version, kind) = expected;
    if meta.api_version != api_version {
        return Err(Error::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {}, expected: {api_version}",
            meta.api_version
        )));
    }
    if meta.kind != kind {
        return Err(Error::bad_request(format!(
            "the kind in the applied configuration ({}) does not match the expected kind ({kind})",
            meta.kind
        )));
    }
    let ty = type_of(api_version, kind).ok_or_else(|| {
        Error::bad_request(format!("no kind {kind:?} is registered for version {api_version:?}"))
    })?;
    let decoded = schema::decode_applied(ty, body, format, validation)?;
    Ok(Decoded { object: decoded.object, warnings: decoded.warnings })
}

/// A patch as a request carries it.
#[derive(Clone, Debug)]
pub struct Patch {
    pub kind: PatchType,
    pub body: Bytes,
    pub validation: FieldValidation,
}

impl Patch {
    /// The object patched, in canonical form. The type is the object's own.
    pub fn apply(&self, object: &Value) -> Result<(Value, Vec<String>), Error> {
        let ty = schema_of(object);
        let patched = patch::apply(self.kind, object, &self.body, ty)?;
        match ty {
            Some(ty) => {
                let decoded = schema::canonicalize(ty, &patched, self.validation)?;
                Ok((decoded.object, decoded.warnings))
            }
            None => Ok((patched, Vec::new())),
        }
    }

    /// Whether the patch may say something of `managedFields`: by name, by escapes that may spell it, or by a path that
    /// has it inside.
    pub fn concerns_owners(&self) -> bool {
        let Ok(text) = std::str::from_utf8(&self.body) else { return true };
        text.contains("managedFields")
            || text.contains("\\u")
            || self.kind == PatchType::Json && (text.contains("\"/metadata\"") || text.contains("\"\""))
    }

    /// Whether the patch is for one version of the object only.
    pub fn names_version(&self) -> bool {
        let Ok(patch) = serde_json::from_slice::<Value>(&self.body) else { return false };
        match &patch {
            Value::Array(operations) => {
                operations.iter().any(|operation| operation["path"] == "/metadata/resourceVersion")
            }
            patch => patch["metadata"]["resourceVersion"].is_string(),
        }
    }
}
