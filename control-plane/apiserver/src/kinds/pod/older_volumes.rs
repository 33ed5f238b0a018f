//! Volumes whose drivers were part of the node's agent once. CSI drivers stand for most of them today; the fields are
//! checked all the same, as upstream does.

use hawser_api::FieldError;
use serde_json::Value;

use super::volumes::{descends, required};
use crate::kinds::{
    meta::invalid_all,
    names::dns_label,
    rules::one_of,
    value::{Fields, Path},
};

/// What each source cannot be without.
const REQUIRED: [(&str, &[&str]); 17] = [
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cinder", &["volumeID"]),
    ("flexVolume", &["driver"]),
    ("gcePersistentDisk", &["pdName"]),
    ("gitRepo", &["repository"]),
    ("glusterfs", &["endpoints", "path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("quobyte", &["volume"]),
    ("rbd", &["image"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("storageos", &["volumeName"]),
    ("vsphereVolume", &["volumePath"]),
    ("flocker", &[]),
];
/// The most characters of a volume's name and its portal together, where the initiator is named.
const MAX_PORTAL: usize = 64;

/// Rules of one source, which is in the field of that name.
pub(super) fn details(errors: &mut Vec<FieldError>, path: &Path<'_>, field: &str, source: &Value) {
    // Upstream's name of the path.
    let renamed = match (field, path) {
        ("gcePersistentDisk", Path::Field(parent, _)) => parent.field("persistentDisk"),
        _ => *path,
    };
    let path = &renamed;
    let needed = REQUIRED.iter().find(|(name, _)| *name == field).map_or(&[][..], |(_, fields)| fields);
    needed.iter().for_each(|field| required(errors, path, source, field));
    match field {
        "awsElasticBlockStore" | "gcePersistentDisk" => {
            within(errors, &path.field("partition"), source.at("partition"), 1);
        }
        "azureDisk" => azure_disk(errors, path, source),
        "cephfs" | "rbd" if source.list("monitors").is_empty() => {
            errors.push(FieldError::required(path.field("monitors"), ""));
        }
        "cinder" if source.has("secretRef") => {
            required(errors, &path.field("secretRef"), source.at("secretRef"), "name");
        }
        "fc" => fibre_channel(errors, path, source),
        "flexVolume" => {
            for key in source.map("options").keys() {
                let domain = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
                if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
                    let detail = "kubernetes.io and k8s.io namespaces are reserved";
                    errors.push(FieldError::invalid(path.field("options").key(key), key.as_str(), detail));
                }
            }
        }
        "flocker" => flocker(errors, path, source),
        "gitRepo" => descends(errors, &path.field("directory"), source.text("directory")),
        "iscsi" => iscsi(errors, path, source),
        "quobyte" => quobyte(errors, path, source),
        "storageos" => {
            for field in ["volumeName", "volumeNamespace"] {
                let name = source.text(field);
                if !name.is_empty() {
                    invalid_all(errors, &path.field(field), name, dns_label(name));
                }
            }
            if source.has("secretRef") {
                required(errors, &path.field("secretRef"), source.at("secretRef"), "name");
            }
        }
        _ => (),
    }
}

/// A byte; `shown` is the least that the message tells of.
fn within(errors: &mut Vec<FieldError>, path: &Path<'_>, number: &Value, shown: u8) {
    if number.as_i64().is_some_and(|number| u8::try_from(number).is_err()) {
        let detail = format!("must be between {shown} and 255, inclusive");
        errors.push(FieldError::invalid(path, number.clone(), detail));
    }
}

fn azure_disk(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value) {
    if source.has("cachingMode") {
        let mode = source.text("cachingMode");
        one_of(errors, &path.field("cachingMode"), mode, &["None", "ReadOnly", "ReadWrite"]);
    }
    if !source.has("kind") {
        return;
    }
    one_of(errors, &path.field("kind"), source.text("kind"), &["Dedicated", "Managed", "Shared"]);
    let (begin, form) = if source.text("kind") == "Managed" {
        const FORM: &str =
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
        ("/subscriptions/", FORM)
    } else {
        ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd")
    };
    let place = source.text("diskURI");
    if !place.starts_with(begin) {
        errors.push(FieldError::not_supported(path.field("diskURI"), place, &[form]));
    }
}

fn fibre_channel(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value) {
    let (names, ids) = (source.list("targetWWNs"), source.list("wwids"));
    let of = path.field("targetWWNs");
    match (names, ids) {
        ([], []) => {
            let detail = "must specify either targetWWNs or wwids, but not both";
            errors.push(FieldError::required(of, detail));
        }
        ([_, ..], [_, ..]) => {
            let detail = "targetWWNs and wwids can not be specified simultaneously";
            errors.push(FieldError::invalid(of, names.to_vec(), detail));
        }
        _ => (),
    }
    if !names.is_empty() && !source.has("lun") {
        errors.push(FieldError::required(path.field("lun"), "lun is required if targetWWNs is specified"));
    } else if !names.is_empty() {
        within(errors, &path.field("lun"), source.at("lun"), 0);
    }
}

fn flocker(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value) {
    let (name, id) = (source.text("datasetName"), source.text("datasetUUID"));
    if name.is_empty() && id.is_empty() {
        errors.push(FieldError::required(path, "one of datasetName and datasetUUID is required"));
    }
    if !name.is_empty() && !id.is_empty() {
        let detail = "datasetName and datasetUUID can not be specified simultaneously";
        errors.push(FieldError::invalid(path, "resource", detail));
    }
    if name.contains('/') {
        errors.push(FieldError::invalid(path.field("datasetName"), name, "must not contain '/'"));
    }
}

fn iscsi(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value) {
    for (field, shown) in [("iqn", "iqn"), ("initiatorName", "initiatorname")] {
        let Some(name) = source.at(field).as_str().filter(|name| field != "iqn" || !name.is_empty()) else {
            continue;
        };
        if !["iqn", "eui", "naa"].iter().any(|begin| name.starts_with(begin)) {
            let detail = "must be valid format starting with iqn, eui, or naa";
            errors.push(FieldError::invalid(path.field(shown), name, detail));
        } else if !is_initiator(name) {
            errors.push(FieldError::invalid(path.field(shown), name, "must be valid format"));
        }
    }
    within(errors, &path.field("lun"), source.at("lun"), 0);
    let asks = source.flag("chapAuthDiscovery") || source.flag("chapAuthSession");
    if asks && !source.has("secretRef") {
        errors.push(FieldError::required(path.field("secretRef"), ""));
    }
}

/// `iqn.2001-04.com.example:disk`, or a number of 16 digits after `eui.` or of 32 after `naa.`.
fn is_initiator(name: &str) -> bool {
    let number = |digits: &str, length: usize| {
        digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    if let Some(rest) = name.strip_prefix("iqn.") {
        let Some((date, rest)) = rest.split_at_checked(8) else { return false };
        let date = date.as_bytes();
        let digit = |at: usize| date[at].is_ascii_digit();
        let is_date = [0, 1, 2, 3, 5, 6].into_iter().all(digit) && date[4] == b'-' && date[7] == b'.';
        let Some((authority, own)) = rest.split_once(':') else { return false };
        let is_authority = !authority.is_empty()
            && authority.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
        let is_own = !own.is_empty()
            && !own.contains(|letter: char| ",;*&$|".contains(letter) || letter.is_whitespace());
        return is_date && is_authority && is_own;
    }
    match name.get(..4) {
        Some("eui.") => number(&name[4..], 16),
        Some("naa.") => number(&name[4..], 32),
        _ => false,
    }
}

/// A named initiator, whose session is called after the volume; `path` is the volume's.
pub(super) fn initiator(errors: &mut Vec<FieldError>, path: &Path<'_>, volume: &str, source: &Value) {
    let portal = source.text("targetPortal");
    if source.has("initiatorName") && volume.len() + 1 + portal.len() > MAX_PORTAL {
        let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                      iscsi.initiatorName is specified.";
        errors.push(FieldError::invalid(path.field("name"), volume, detail));
    }
}

fn quobyte(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let (registry, of) = (source.text("registry"), path.field("registry"));
    if registry.is_empty() {
        errors.push(FieldError::required(of, PAIRS));
        return;
    }
    if source.text("tenant").len() > 64 {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        errors.push(FieldError::required(path.field("tenant"), detail));
        return;
    }
    for pair in registry.split(',') {
        let is_pair = match pair.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").is_some(),
            None => pair.split(':').count() == 2,
        };
        if !is_pair {
            errors.push(FieldError::invalid(of, registry, PAIRS));
        }
    }
}
