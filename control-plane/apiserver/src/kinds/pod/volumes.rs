//! Validation of volumes.

use std::collections::HashMap;

use hawser_api::FieldError;
use serde_json::Value;

use super::spec::name;
use crate::kinds::{
    meta::invalid_all,
    names::config_key,
    value::{Fields, Path},
};

/// Volumes by name.
pub(super) type Volumes<'a> = HashMap<&'a str, &'a Value>;

/// Returns the volumes that containers can use.
pub(super) fn validate<'a>(
    errors: &mut Vec<FieldError>,
    path: &Path<'_>,
    volumes: &'a [Value],
) -> Volumes<'a> {
    let mut names = Volumes::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        let own = volume.text("name");
        name(errors, &path.field("name"), own);
        if names.insert(own, volume).is_some() {
            errors.push(FieldError::duplicate(path.field("name"), own));
        }
        source(errors, &path, volume);
    }
    names
}

fn source(errors: &mut Vec<FieldError>, path: &Path<'_>, volume: &Value) {
    let sources: Vec<&String> = volume
        .as_object()
        .into_iter()
        .flatten()
        .map(|(field, _)| field)
        .filter(|field| *field != "name")
        .collect();
    match sources.as_slice() {
        [] => errors.push(FieldError::required(path, "must specify a volume type")),
        [one] => details(errors, &path.field(one), one, volume.at(one)),
        [_, more @ ..] => {
            for field in more {
                errors.push(FieldError::forbidden(
                    path.field(field),
                    "may not specify more than 1 volume type",
                ));
            }
        }
    }
}

/// Rules of one source, which is in the field of that name.
pub(crate) fn details(errors: &mut Vec<FieldError>, path: &Path<'_>, field: &str, source: &Value) {
    match field {
        "hostPath" => {
            required(errors, path, source, "path");
            backsteps(errors, &path.field("path"), source.text("path"));
            let known = [
                "",
                "BlockDevice",
                "CharDevice",
                "Directory",
                "DirectoryOrCreate",
                "File",
                "FileOrCreate",
                "Socket",
            ];
            if !known.contains(&source.text("type")) {
                errors.push(FieldError::not_supported(path.field("type"), source.text("type"), &known));
            }
        }
        "secret" => {
            required(errors, path, source, "secretName");
            files(errors, path, source);
        }
        "configMap" => {
            required(errors, path, source, "name");
            files(errors, path, source);
        }
        "persistentVolumeClaim" => required(errors, path, source, "claimName"),
        "nfs" => {
            required(errors, path, source, "server");
            required(errors, path, source, "path");
            if !source.text("path").starts_with('/') {
                let place = source.text("path");
                errors.push(FieldError::invalid(path.field("path"), place, "must be an absolute path"));
            }
        }
        "local" => {
            required(errors, path, source, "path");
            backsteps(errors, &path.field("path"), source.text("path"));
        }
        "csi" => required(errors, path, source, "driver"),
        "projected" => {
            mode(errors, &path.field("defaultMode"), source.at("defaultMode"));
            let sources = path.field("sources");
            for (index, source) in source.list("sources").iter().enumerate() {
                projection(errors, &sources.index(index), source);
            }
        }
        _ => (),
    }
}

fn projection(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value) {
    let kinds: Vec<&String> = source.as_object().into_iter().flatten().map(|(field, _)| field).collect();
    if kinds.len() > 1 {
        errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
    }
    for field in ["secret", "configMap"] {
        if source.has(field) {
            required(errors, &path.field(field), source.at(field), "name");
            items(errors, &path.field(field), source.at(field));
        }
    }
    if source.has("serviceAccountToken") {
        let (path, token) = (path.field("serviceAccountToken"), source.at("serviceAccountToken"));
        required(errors, &path, token, "path");
        if token.int("expirationSeconds").is_some_and(|seconds| seconds < 600) {
            let detail = "may not specify a duration less than 10 minutes";
            let seconds = token.at("expirationSeconds").clone();
            errors.push(FieldError::invalid(path.field("expirationSeconds"), seconds, detail));
        }
    }
}

fn required(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value, field: &str) {
    if source.text(field).is_empty() {
        errors.push(FieldError::required(path.field(field), ""));
    }
}

fn files(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value) {
    mode(errors, &path.field("defaultMode"), source.at("defaultMode"));
    items(errors, path, source);
}

fn items(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value) {
    let items = path.field("items");
    for (index, item) in source.list("items").iter().enumerate() {
        let path = items.index(index);
        match item.text("key") {
            "" => errors.push(FieldError::required(path.field("key"), "")),
            key => invalid_all(errors, &path.field("key"), key, config_key(key)),
        }
        let file = item.text("path");
        if file.is_empty() {
            errors.push(FieldError::required(path.field("path"), ""));
        } else if file.starts_with('/') {
            errors.push(FieldError::invalid(path.field("path"), file, "must be a relative path"));
        }
        backsteps(errors, &path.field("path"), file);
        mode(errors, &path.field("mode"), item.at("mode"));
    }
}

fn backsteps(errors: &mut Vec<FieldError>, path: &Path<'_>, file: &str) {
    if file.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, file, "must not contain '..'"));
    }
}

fn mode(errors: &mut Vec<FieldError>, path: &Path<'_>, mode: &Value) {
    if mode.as_i64().is_some_and(|bits| !(0..=0o777).contains(&bits)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(path, mode.clone(), detail));
    }
}
