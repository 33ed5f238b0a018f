//! What containers have of volumes: mounts, and claims in block mode as devices.

use std::collections::HashSet;

use hawser_api::FieldError;
use serde_json::Value;

use super::volumes::{Volumes, descends};
use crate::kinds::value::{Fields, Path};

const PROPAGATION: [&str; 3] = ["Bidirectional", "HostToContainer", "None"];
const RECURSIVE_READ_ONLY: [&str; 3] = ["Disabled", "Enabled", "IfPossible"];

pub(super) fn validate(
    errors: &mut Vec<FieldError>,
    path: &Path<'_>,
    container: &Value,
    volumes: &Volumes<'_>,
) {
    let list = path.field("volumeMounts");
    let devices = container.list("volumeDevices");
    let is_device = |field: &str, value: &str| devices.iter().any(|device| device.text(field) == value);
    let mut places = HashSet::new();
    for (index, mount) in container.list("volumeMounts").iter().enumerate() {
        let path = list.index(index);
        let (name, place) = (mount.text("name"), mount.text("mountPath"));
        if name.is_empty() {
            errors.push(FieldError::required(path.field("name"), ""));
        }
        if !volumes.contains_key(name) {
            errors.push(FieldError::not_found(path.field("name"), name));
        }
        if place.is_empty() {
            errors.push(FieldError::required(path.field("mountPath"), ""));
        }
        if !places.insert(place) {
            errors.push(FieldError::invalid(path.field("mountPath"), place, "must be unique"));
        }
        if is_device("name", name) {
            let detail = "must not already exist in volumeDevices";
            errors.push(FieldError::invalid(path.field("name"), name, detail));
        }
        if is_device("devicePath", place) {
            let detail = "must not already exist as a path in volumeDevices";
            errors.push(FieldError::invalid(path.field("mountPath"), place, detail));
        }
        // The paths of these are the list's, as upstream has them.
        sub_paths(errors, &list, &path, mount);
        propagation(errors, &list, mount, container.flag("securityContext.privileged"));
    }
    block_devices(errors, &path.field("volumeDevices"), container, volumes);
}

fn sub_paths(errors: &mut Vec<FieldError>, list: &Path<'_>, path: &Path<'_>, mount: &Value) {
    for field in ["subPath", "subPathExpr"] {
        descends(errors, &list.field(field), mount.text(field));
    }
    if !mount.text("subPath").is_empty() && !mount.text("subPathExpr").is_empty() {
        let expression = mount.text("subPathExpr");
        let detail = "subPathExpr and subPath are mutually exclusive";
        errors.push(FieldError::invalid(path.field("subPathExpr"), expression, detail));
    }
}

/// How mounts made below this one travel, and whether those below it are writable.
fn propagation(errors: &mut Vec<FieldError>, path: &Path<'_>, mount: &Value, privileged: bool) {
    let propagation = mount.text("mountPropagation");
    if mount.has("mountPropagation") {
        let path = path.field("mountPropagation");
        if !PROPAGATION.contains(&propagation) {
            errors.push(FieldError::not_supported(path, propagation, &PROPAGATION));
        } else if propagation == "Bidirectional" && !privileged {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(path, detail));
        }
    }
    let path = path.field("recursiveReadOnly");
    match mount.text("recursiveReadOnly") {
        "" | "Disabled" => (),
        "Enabled" | "IfPossible" => {
            if !mount.flag("readOnly") {
                errors.push(FieldError::forbidden(path, "may only be specified when readOnly is true"));
            }
            if !matches!(propagation, "" | "None") {
                let detail = "may only be specified when mountPropagation is None or not specified";
                errors.push(FieldError::forbidden(path, detail));
            }
        }
        other => errors.push(FieldError::not_supported(path, other, &RECURSIVE_READ_ONLY)),
    }
}

fn block_devices(errors: &mut Vec<FieldError>, list: &Path<'_>, container: &Value, volumes: &Volumes<'_>) {
    let mounts = container.list("volumeMounts");
    let is_mounted = |field: &str, value: &str| mounts.iter().any(|mount| mount.text(field) == value);
    let (mut names, mut places) = (HashSet::new(), HashSet::new());
    for (index, device) in container.list("volumeDevices").iter().enumerate() {
        let path = list.index(index);
        let (name_path, place_path) = (path.field("name"), path.field("devicePath"));
        let (name, place) = (device.text("name"), device.text("devicePath"));
        if name.is_empty() {
            errors.push(FieldError::required(name_path, ""));
        } else if !names.insert(name) {
            errors.push(FieldError::invalid(name_path, name, "must be unique"));
        }
        match volumes.get(name) {
            None => errors.push(FieldError::not_found(name_path, name)),
            Some(volume) if volume.has("persistentVolumeClaim") || volume.has("ephemeral") => (),
            Some(_) => {
                let detail =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(FieldError::invalid(name_path, name, detail));
            }
        }
        if place.is_empty() {
            errors.push(FieldError::required(place_path, ""));
        } else if place.split('/').any(|part| part == "..") {
            errors.push(FieldError::invalid(place_path, place, "can not contain backsteps ('..')"));
        } else if !places.insert(place) {
            errors.push(FieldError::invalid(place_path, place, "must be unique"));
        }
        if is_mounted("name", name) {
            errors.push(FieldError::invalid(name_path, name, "must not already exist in volumeMounts"));
        }
        if is_mounted("mountPath", place) {
            let detail = "must not already exist as a path in volumeMounts";
            errors.push(FieldError::invalid(place_path, place, detail));
        }
    }
}
