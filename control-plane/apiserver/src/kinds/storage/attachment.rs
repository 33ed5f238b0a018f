//! Rules of a VolumeAttachment: one volume, by one driver, to one node.

use hawser_api::FieldError;
use serde_json::Value;

use super::{SPEC, csi};
use crate::kinds::{
    meta::invalid_all,
    names::dns_subdomain,
    rules::no_longer,
    value::{Fields, Path},
};

/// Bytes of what a driver says of an attachment, and of why it failed.
const MAX_METADATA: usize = 256 * 1024;
const MAX_MESSAGE: usize = 1024;

pub(super) fn validate(attachment: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = attachment.at("spec");
    csi::driver_name(&mut errors, &SPEC.field("attacher"), spec.text("attacher"));
    let path = SPEC.field("source");
    match (spec.at("source.persistentVolumeName").as_str(), spec.has("source.inlineVolumeSpec")) {
        (None, false) => {
            let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(FieldError::required(path, detail));
        }
        (Some(_), true) => {
            let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(FieldError::forbidden(path, detail));
        }
        (Some(""), false) => {
            let detail = "must specify non empty persistentVolumeName";
            errors.push(FieldError::required(path.field("persistentVolumeName"), detail));
        }
        (Some(name), false) => {
            invalid_all(&mut errors, &path.field("persistentVolumeName"), name, dns_subdomain(name));
        }
        (None, true) => (),
    }
    let node = spec.text("nodeName");
    invalid_all(&mut errors, &SPEC.field("nodeName"), node, dns_subdomain(node));
    errors.extend(status(attachment));
    errors
}

pub(super) fn status(attachment: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (path, status) = (Path::Root("status"), attachment.at("status"));
    let metadata = status.map("attachmentMetadata");
    let bytes: usize =
        metadata.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes > MAX_METADATA {
        let detail = format!("may not be more than {MAX_METADATA} bytes");
        let kind = hawser_api::error::FieldErrorKind::TooLong;
        errors.push(FieldError::new(kind, path.field("attachmentMetadata"), None, detail));
    }
    for field in ["attachError", "detachError"] {
        let path = path.field(field);
        no_longer(&mut errors, &path.field("message"), status.at(field).text("message"), MAX_MESSAGE);
    }
    errors
}
