//! ConfigMaps, Secrets and ServiceAccounts.

use base64::{Engine, engine::general_purpose::STANDARD};
use hawser_api::{FieldError, error::FieldErrorKind};
use serde_json::Value;

use super::{
    AGE, Hooks, NAME, PLAIN,
    apps::age,
    column,
    meta::invalid_all,
    names::config_key,
    text,
    value::{Fields, Path},
};

/// Upstream's limit on the values of one object.
const MAX_BYTES: usize = 1024 * 1024;

pub(crate) static CONFIG_MAP: Hooks = Hooks {
    validate_create: |object| {
        let mut errors = Vec::new();
        let mut bytes = 0;
        for field in ["data", "binaryData"] {
            let path = Path::Root(field);
            for (key, value) in object.map(field) {
                invalid_all(&mut errors, &path.key(key), key, config_key(key));
                bytes += value
                    .as_str()
                    .map_or(0, |text| if field == "data" { text.len() } else { decoded_len(text) });
                if field == "data" && object.map("binaryData").contains_key(key) {
                    let detail = "duplicate of key present in binaryData";
                    errors.push(FieldError::invalid(path.key(key), key.as_str(), detail));
                }
            }
        }
        too_long(&mut errors, "", bytes);
        errors
    },
    validate_update: |new, old| immutable(new, old, &["data", "binaryData"]),
    columns: &[NAME, column("Data", "integer"), AGE],
    cells: |object, now| {
        let entries = object.map("data").len() + object.map("binaryData").len();
        vec![object.at("metadata.name").clone(), entries.into(), age(object, now)]
    },
    ..PLAIN
};

pub(crate) static SECRET: Hooks = Hooks {
    default: |object| {
        object.set_default("type", "Opaque");
        // Write-only: what is given in clear is merged into the data.
        if let Some(Value::Object(clear)) = object.drop_field("stringData") {
            for (key, value) in clear {
                let encoded = STANDARD.encode(value.as_str().unwrap_or_default());
                object.ensure("data").set(&key, encoded);
            }
        }
    },
    validate_create: validate_secret,
    validate_update: |new, old| {
        let mut errors = immutable(new, old, &["data"]);
        if new.at("type") != old.at("type") {
            errors.push(FieldError::invalid("type", new.at("type").clone(), "field is immutable"));
        }
        errors
    },
    columns: &[NAME, text("Type"), column("Data", "integer"), AGE],
    cells: |object, now| {
        let entries = object.map("data").len();
        vec![object.at("metadata.name").clone(), object.at("type").clone(), entries.into(), age(object, now)]
    },
    selectable: &[("type", |object| object.text("type").to_owned())],
    ..PLAIN
};

pub(crate) static SERVICE_ACCOUNT: Hooks = Hooks {
    columns: &[NAME, column("Secrets", "integer"), AGE],
    cells: |object, now| {
        vec![object.at("metadata.name").clone(), object.list("secrets").len().into(), age(object, now)]
    },
    ..PLAIN
};

fn decoded_len(base64: &str) -> usize {
    let padding = base64.len() - base64.trim_end_matches('=').len();
    (base64.len() / 4 * 3).saturating_sub(padding)
}

/// What a registry's credentials are in: an object, or `null`, which is one without fields to upstream's decoder.
fn json_object(errors: &mut Vec<FieldError>, path: &Path<'_>, base64: &Value) {
    let bytes = STANDARD.decode(base64.as_str().unwrap_or_default()).unwrap_or_default();
    if let Err(why) = serde_json::from_slice::<Option<serde_json::Map<String, Value>>>(&bytes) {
        errors.push(FieldError::invalid(path, "<secret contents redacted>", why.to_string()));
    }
}

fn too_long(errors: &mut Vec<FieldError>, field: &str, bytes: usize) {
    if bytes > MAX_BYTES {
        let detail = format!("may not be more than {MAX_BYTES} bytes");
        errors.push(FieldError::new(FieldErrorKind::TooLong, field, None, detail));
    }
}

fn immutable(new: &Value, old: &Value, fields: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !old.flag("immutable") {
        return errors;
    }
    if !new.flag("immutable") {
        errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        if new.map(field) != old.map(field) {
            errors.push(FieldError::forbidden(*field, "field is immutable when `immutable` is set"));
        }
    }
    errors
}

fn validate_secret(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let data = Path::Root("data");
    let mut bytes = 0;
    for (key, value) in object.map("data") {
        invalid_all(&mut errors, &data.key(key), key, config_key(key));
        bytes += value.as_str().map_or(0, decoded_len);
    }
    too_long(&mut errors, "data", bytes);
    let has = |key: &str| object.map("data").contains_key(key);
    let require = |errors: &mut Vec<FieldError>, key: &str| {
        if !has(key) {
            errors.push(FieldError::required(data.key(key), ""));
        }
    };
    match object.text("type") {
        kind @ ("kubernetes.io/dockercfg" | "kubernetes.io/dockerconfigjson") => {
            let key = kind.replace("kubernetes.io/", ".");
            match object.map("data").get(&key) {
                None => require(&mut errors, &key),
                Some(value) => json_object(&mut errors, &data.key(&key), value),
            }
        }
        "kubernetes.io/ssh-auth" if object.at("data").get("ssh-privatekey").is_none_or(|key| key == "") => {
            errors.push(FieldError::required(data.key("ssh-privatekey"), ""));
        }
        "kubernetes.io/tls" => {
            require(&mut errors, "tls.crt");
            require(&mut errors, "tls.key");
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            require(&mut errors, "username");
            require(&mut errors, "password");
        }
        "kubernetes.io/service-account-token"
            if object
                .at("metadata.annotations")
                .get("kubernetes.io/service-account.name")
                .is_none_or(|name| name == "") =>
        {
            let path = "metadata.annotations[kubernetes.io/service-account.name]";
            errors.push(FieldError::required(path, ""));
        }
        _ => (),
    }
    errors
}
