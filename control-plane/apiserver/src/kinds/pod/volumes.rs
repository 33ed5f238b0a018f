//! Validation of volumes: those that pods use today. What had drivers in the tree once is in `older_volumes`.

use std::collections::{HashMap, HashSet};

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    containers::pull_policy,
    env::{Target, field_ref, resource_ref},
    older_volumes,
    spec::name,
};
use crate::kinds::{
    certificates::signer_name,
    meta::{annotations, invalid_all, labels},
    names::NameRule,
    pod_certificate::{bounds_of_life, user_annotations},
    quantity, selector,
    storage::{claim_spec, driver_name},
    value::{Fields, Path},
};

/// Volumes by name.
pub(super) type Volumes<'a> = HashMap<&'a str, &'a Value>;

/// The sources in the order in which upstream looks at them: of two, the first is the one that is meant.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];
const HOST_PATHS: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const KEY_TYPES: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
/// Seconds that a token in a volume is good for.
const TOKEN_SECONDS: std::ops::RangeInclusive<i64> = 600..=1 << 32;

/// Returns the volumes that containers can use. `meta` is the pod's; none of a template.
pub(super) fn validate<'a>(
    errors: &mut Vec<FieldError>,
    list: &Path<'_>,
    volumes: &'a [Value],
    meta: Option<&Value>,
) -> Volumes<'a> {
    let pod = meta.map_or("", |meta| meta.text("name"));
    let mut good = Volumes::new();
    let ephemeral = volumes.iter().filter(|volume| volume.has("ephemeral"));
    let made: HashSet<String> = ephemeral.map(|volume| format!("{pod}-{}", volume.text("name"))).collect();
    for (index, volume) in volumes.iter().enumerate() {
        let path = list.index(index);
        let (own, before) = (volume.text("name"), errors.len());
        source(errors, &path, volume, meta);
        name(errors, &path.field("name"), own);
        if good.contains_key(own) {
            errors.push(FieldError::duplicate(path.field("name"), own));
        }
        if errors.len() == before {
            good.insert(own, volume);
        }
        let claim = volume.text("persistentVolumeClaim.claimName");
        if !pod.is_empty() && made.contains(claim) {
            let path = path.field("persistentVolumeClaim.claimName");
            let detail = "must not reference a PVC that gets created for an ephemeral volume";
            errors.push(FieldError::invalid(path, claim, detail));
        }
    }
    good
}

fn source(errors: &mut Vec<FieldError>, path: &Path<'_>, volume: &Value, meta: Option<&Value>) {
    let mut sources = SOURCES.iter().filter(|field| volume.has(field));
    let Some(first) = sources.next() else {
        errors.push(FieldError::required(path, "must specify a volume type"));
        return;
    };
    details(errors, &path.field(first), first, volume.at(first));
    let own = volume.text("name");
    let pod = meta.map_or("", |meta| meta.text("name"));
    match *first {
        // A template's may follow with a patch of the image.
        "image" if meta.is_some() => required(errors, &path.field("image"), volume.at("image"), "reference"),
        "iscsi" => older_volumes::initiator(errors, path, own, volume.at("iscsi")),
        "ephemeral" if !pod.is_empty() && !own.is_empty() => {
            let claim = format!("{pod}-{own}");
            let wrong = NameRule::Subdomain.check(&claim).into_iter();
            let wrong = wrong.map(|wrong| format!("PVC name {claim:?}: {wrong}"));
            invalid_all(errors, &path.field("name"), own, wrong.collect());
        }
        _ => (),
    }
    for field in sources {
        errors.push(FieldError::forbidden(path.field(field), "may not specify more than 1 volume type"));
    }
}

/// Rules of one source, which is in the field of that name; those of PersistentVolumes too.
pub(crate) fn details(errors: &mut Vec<FieldError>, path: &Path<'_>, field: &str, source: &Value) {
    match field {
        "emptyDir" => {
            if quantity::parse(source.at("sizeLimit")).is_some_and(|limit| limit.sign() < 0) {
                let detail = "SizeLimit field must be a valid resource quantity";
                errors.push(FieldError::forbidden(path.field("sizeLimit"), detail));
            }
        }
        "hostPath" => {
            required(errors, path, source, "path");
            backsteps(errors, &path.field("path"), source.text("path"));
            let kind = source.text("type");
            if !source.text("path").is_empty() && !HOST_PATHS.contains(&kind) {
                errors.push(FieldError::not_supported(path.field("type"), kind, &HOST_PATHS));
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
        "csi" => {
            driver_name(errors, &path.field("driver"), source.text("driver"));
            let secret = source.at("nodePublishSecretRef");
            match secret.text("name") {
                _ if secret.is_null() => (),
                "" => errors.push(FieldError::required(path.field("nodePublishSecretRef.name"), "")),
                name => invalid_all(errors, &path.field("name"), name, NameRule::Subdomain.check(name)),
            }
        }
        "downwardAPI" => {
            mode(errors, &path.field("defaultMode"), source.at("defaultMode"));
            source.list("items").iter().for_each(|file| downward_file(errors, path, file));
        }
        "projected" => projected(errors, path, source),
        "ephemeral" => {
            let of = path.field("volumeClaimTemplate");
            let template = source.at("volumeClaimTemplate");
            if template.is_null() {
                errors.push(FieldError::required(of, ""));
                return;
            }
            let meta = of.field("metadata");
            annotations(errors, &meta.field("annotations"), template.at("metadata.annotations"));
            labels(errors, &meta.field("labels"), template.at("metadata.labels"));
            for (field, _) in template.map("metadata") {
                if !matches!(field.as_str(), "annotations" | "labels") {
                    errors.push(FieldError::forbidden(meta.field(field), "cannot be set"));
                }
            }
            claim_spec(errors, &of.field("spec"), template.at("spec"));
        }
        "image" => pull_policy(errors, &path.field("pullPolicy"), source.at("pullPolicy")),
        _ => older_volumes::details(errors, path, field, source),
    }
}

/// Several sources in one volume, whose files do not meet. Paths in errors are upstream's.
fn projected(errors: &mut Vec<FieldError>, path: &Path<'_>, volume: &Value) {
    mode(errors, &path.field("defaultMode"), volume.at("defaultMode"));
    let list = path.field("sources");
    let mut taken = HashSet::new();
    for (index, source) in volume.list("sources").iter().enumerate() {
        let of = list.index(index);
        // What is shown, and the file that it would make.
        let mut made: Vec<(&str, &str)> = Vec::new();
        for field in ["secret", "configMap"] {
            let part = source.at(field);
            if part.is_null() {
                continue;
            }
            required(errors, &of.field(field), part, "name");
            items(errors, &of.field(field), part);
            made.extend(part.list("items").iter().map(|item| (part.text("name"), item.text("path"))));
        }
        for file in source.list("downwardAPI.items") {
            downward_file(errors, &of.field("downwardAPI"), file);
            made.push((file.text("path"), file.text("path")));
        }
        if source.has("serviceAccountToken") {
            let token = source.at("serviceAccountToken");
            token_seconds(errors, &of.field("serviceAccountToken.expirationSeconds"), token);
            match token.text("path") {
                "" => errors.push(FieldError::required(path.field("path"), "")),
                file => local(errors, &path.field("path"), file),
            }
        }
        if source.has("clusterTrustBundle") {
            let bundle = source.at("clusterTrustBundle");
            trust_bundle(errors, &of.field("clusterTrustBundle"), bundle);
            made.push((bundle.text("path"), bundle.text("path")));
        }
        if source.has("podCertificate") {
            let certificate = source.at("podCertificate");
            let files = pod_certificate(errors, &of.field("podCertificate"), certificate);
            made.extend(files.into_iter().map(|file| (file, file)));
        }
        for (shown, file) in made {
            if !file.is_empty() && !taken.insert(file) {
                errors.push(FieldError::invalid(path, shown, "conflicting duplicate paths"));
            }
        }
        if source.as_object().is_some_and(|fields| fields.len() > 1) {
            errors.push(FieldError::forbidden(of, "may not specify more than 1 volume type per source"));
        }
    }
}

fn token_seconds(errors: &mut Vec<FieldError>, path: &Path<'_>, token: &Value) {
    let seconds = token.int("expirationSeconds").unwrap_or_default();
    let detail = match seconds {
        seconds if seconds < *TOKEN_SECONDS.start() => "may not specify a duration less than 10 minutes",
        seconds if seconds > *TOKEN_SECONDS.end() => "may not specify a duration larger than 2^32 seconds",
        _ => return,
    };
    errors.push(FieldError::invalid(path, seconds, detail));
}

/// Certificates that are trusted, by name or by who signed them (KEP-3257).
fn trust_bundle(errors: &mut Vec<FieldError>, path: &Path<'_>, bundle: &Value) {
    match (bundle.at("name").as_str(), bundle.at("signerName").as_str()) {
        (Some(_), Some(_)) => {
            let detail = "only one of name and signerName may be used";
            errors.push(FieldError::invalid(path, bundle.clone(), detail));
        }
        (Some(name), None) => {
            if name.is_empty() {
                errors.push(FieldError::required(path.field("name"), "must be a valid object name"));
            }
            if bundle.has("labelSelector") {
                let selector = bundle.at("labelSelector").clone();
                let detail = "labelSelector must be unset if name is specified";
                errors.push(FieldError::invalid(path.field("labelSelector"), selector, detail));
            }
        }
        (None, Some(signer)) => {
            signer_name(errors, &path.field("signerName"), signer);
            selector::validate(errors, &path.field("labelSelector"), bundle.at("labelSelector"));
        }
        (None, None) => {
            errors.push(FieldError::required(path, "either name or signerName must be specified"));
        }
    }
    required(errors, path, bundle, "path");
    local(errors, &path.field("path"), bundle.text("path"));
}

/// A key and a certificate of the pod's own (KEP-4317); returns the files that it makes.
fn pod_certificate<'a>(
    errors: &mut Vec<FieldError>,
    path: &Path<'_>,
    certificate: &'a Value,
) -> Vec<&'a str> {
    let signer = certificate.text("signerName");
    signer_name(errors, &path.field("signerName"), signer);
    crate::kinds::rules::one_of(errors, &path.field("keyType"), certificate.text("keyType"), &KEY_TYPES);
    let (least, most) = bounds_of_life(signer);
    if let Some(seconds) = certificate.int("maxExpirationSeconds").filter(|it| !(least..=most).contains(it)) {
        let bound = if seconds < least { format!(">= {least}") } else { format!("<= {most}") };
        let detail = format!("if provided, maxExpirationSeconds must be {bound}");
        errors.push(FieldError::invalid(path.field("maxExpirationSeconds"), seconds, detail));
    }
    user_annotations(errors, &path.field("userAnnotations"), certificate.at("userAnnotations"));
    let mut files = Vec::new();
    for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        let file = certificate.text(field);
        if !file.is_empty() {
            local(errors, &path.field(field), file);
            files.push(file);
        }
    }
    if files.is_empty() {
        let detail = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.push(FieldError::required(path, detail));
    }
    files
}

/// A file about the pod itself; `path` is the volume's, as upstream has it.
fn downward_file(errors: &mut Vec<FieldError>, path: &Path<'_>, file: &Value) {
    required(errors, path, file, "path");
    local(errors, &path.field("path"), file.text("path"));
    match (file.at("fieldRef"), file.at("resourceFieldRef")) {
        (Value::Null, Value::Null) => {
            errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required"));
        }
        (Value::Null, resource) => {
            resource_ref(errors, &path.field("resourceFieldRef"), resource, Target::File);
        }
        (field, resource) => {
            field_ref(errors, &path.field("fieldRef"), field, Target::File);
            if !resource.is_null() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(path, "resource", detail));
            }
        }
    }
    mode(errors, &path.field("mode"), file.at("mode"));
}

pub(super) fn required(errors: &mut Vec<FieldError>, path: &Path<'_>, source: &Value, field: &str) {
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
        required(errors, &path, item, "key");
        required(errors, &path, item, "path");
        local(errors, &path.field("path"), item.text("path"));
        mode(errors, &path.field("mode"), item.at("mode"));
    }
}

/// Below where it is put, and no name that the volume's own links have.
fn local(errors: &mut Vec<FieldError>, path: &Path<'_>, file: &str) {
    descends(errors, path, file);
    if file.starts_with("..") && !file.starts_with("../") {
        errors.push(FieldError::invalid(path, file, "must not start with '..'"));
    }
}

/// Below where it is put.
pub(super) fn descends(errors: &mut Vec<FieldError>, path: &Path<'_>, file: &str) {
    if file.starts_with('/') {
        errors.push(FieldError::invalid(path, file, "must be a relative path"));
    }
    backsteps(errors, path, file);
}

pub(super) fn backsteps(errors: &mut Vec<FieldError>, path: &Path<'_>, file: &str) {
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
