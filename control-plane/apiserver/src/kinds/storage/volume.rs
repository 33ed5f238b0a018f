//! Rules of PersistentVolumes: one source, filled in, and where it can be reached from.

use hawser_api::FieldError;
use serde_json::Value;

use super::{SPEC, csi, modes};
use crate::kinds::{
    meta::invalid_all,
    names::dns_subdomain,
    pod::{Values, node_term, volume_source},
    quantity,
    value::Fields,
};

/// The fields of a spec that are no source.
const PLAIN: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// Labels of nodes that have newer names (old, new).
const RENAMED: [(&str, &str); 5] = [
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
];

pub(super) fn validate(volume: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = volume.at("spec");
    modes(&mut errors, &SPEC, spec);
    capacity(&mut errors, spec);
    let policy = spec.text("persistentVolumeReclaimPolicy");
    let known = ["Delete", "Recycle", "Retain"];
    if !known.contains(&policy) {
        errors.push(FieldError::not_supported(SPEC.field("persistentVolumeReclaimPolicy"), policy, &known));
    }
    node_affinity(&mut errors, spec);
    sources(&mut errors, spec);
    let everything =
        |path: &str| path.starts_with('/') && path.split('/').all(|part| matches!(part, "" | "."));
    if policy == "Recycle" && everything(spec.text("hostPath.path")) {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        errors.push(FieldError::forbidden(SPEC.field("persistentVolumeReclaimPolicy"), detail));
    }
    let class = spec.text("storageClassName");
    if !class.is_empty() {
        invalid_all(&mut errors, &SPEC.field("storageClassName"), class, dns_subdomain(class));
    }
    let mode = spec.text("volumeMode");
    if !matches!(mode, "" | "Block" | "Filesystem") {
        errors.push(FieldError::not_supported(SPEC.field("volumeMode"), mode, &["Block", "Filesystem"]));
    }
    if spec.text("persistentVolumeReclaimPolicy") == "Recycle"
        && spec.has("hostPath")
        && spec.text("hostPath.path").trim_matches('/').is_empty()
    {
        let path = SPEC.field("persistentVolumeReclaimPolicy");
        errors.push(FieldError::forbidden(path, "may not be 'recycle' for a hostPath mount of '/'"));
    }
    let class = spec.text("storageClassName");
    if !class.is_empty() {
        invalid_all(&mut errors, &SPEC.field("storageClassName"), class, dns_subdomain(class));
    }
    if let Some(class) = spec.at("volumeAttributesClassName").as_str() {
        let path = SPEC.field("volumeAttributesClassName");
        if class.is_empty() {
            errors.push(FieldError::required(path, "an empty string is disallowed"));
        } else {
            invalid_all(&mut errors, &path, class, dns_subdomain(class));
        }
        if !spec.has("csi") {
            let detail = "has to be specified when using volumeAttributesClassName";
            errors.push(FieldError::required(SPEC.field("csi"), detail));
        }
    }
    errors
}

fn capacity(errors: &mut Vec<FieldError>, spec: &Value) {
    let path = SPEC.field("capacity");
    let all = spec.map("capacity");
    if all.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    if all.len() > 1 || !all.contains_key("storage") {
        errors.push(FieldError::not_supported(path, spec.at("capacity").clone(), &["storage"]));
    }
    for (name, amount) in all {
        if !quantity::is_positive(amount) {
            errors.push(FieldError::invalid(path.key(name), amount.clone(), "must be greater than zero"));
        }
    }
}

fn node_affinity(errors: &mut Vec<FieldError>, spec: &Value) {
    if !spec.has("nodeAffinity") {
        return;
    }
    let path = SPEC.field("nodeAffinity.required");
    if !spec.has("nodeAffinity.required") {
        errors.push(FieldError::required(path, "must specify required node constraints"));
        return;
    }
    let terms = spec.list("nodeAffinity.required.nodeSelectorTerms");
    let list = path.field("nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(FieldError::required(list, "must have at least one node selector term"));
    }
    for (index, term) in terms.iter().enumerate() {
        node_term(errors, &list.index(index), term, Values::Labels);
    }
}

fn sources(errors: &mut Vec<FieldError>, spec: &Value) {
    let fields = spec.as_object().into_iter().flatten();
    let mut sources = fields.filter(|(name, _)| !PLAIN.contains(&name.as_str()));
    let Some((name, source)) = sources.next() else {
        errors.push(FieldError::required(SPEC, "must specify a volume type"));
        return;
    };
    let path = SPEC.field(name);
    match name.as_str() {
        "local" => {
            volume_source(errors, &path, name, source);
            if !spec.has("nodeAffinity.required") {
                let detail = "Local volume requires node affinity";
                errors.push(FieldError::required(SPEC.field("nodeAffinity"), detail));
            }
        }
        "csi" => {
            csi::driver_name(errors, &path.field("driver"), source.text("driver"));
            if source.text("volumeHandle").is_empty() {
                errors.push(FieldError::required(path.field("volumeHandle"), ""));
            }
            for secret in [
                "controllerPublishSecretRef",
                "controllerExpandSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
            ] {
                let path = path.field(secret);
                for field in ["name", "namespace"] {
                    if source.has(secret) && source.at(secret).text(field).is_empty() {
                        errors.push(FieldError::required(path.field(field), ""));
                    }
                }
            }
        }
        _ => volume_source(errors, &path, name, source),
    }
    for (name, _) in sources {
        errors.push(FieldError::forbidden(SPEC.field(name), "may not specify more than 1 volume type"));
    }
}

pub(super) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let source = |volume: &Value| {
        let mut spec = volume.at("spec").clone();
        for field in PLAIN {
            spec.drop_field(field);
        }
        spec
    };
    let (mut now, before) = (source(new), source(old));
    // What a driver needs to grow the volume may come later.
    if before.has("csi")
        && !before.has("csi.controllerExpandSecretRef")
        && let Some(csi) = now.part_mut("csi")
    {
        csi.drop_field("controllerExpandSecretRef");
    }
    if now != before {
        let detail = "spec.persistentvolumesource is immutable after creation";
        errors.push(FieldError::forbidden("spec.persistentvolumesource", detail));
    }
    if new.at("spec.volumeMode") != old.at("spec.volumeMode") {
        let mode = new.at("spec.volumeMode").clone();
        errors.push(FieldError::invalid("volumeMode", mode, "field is immutable"));
    }
    let (affinity, earlier) = (new.at("spec.nodeAffinity"), old.at("spec.nodeAffinity"));
    if !earlier.is_null() && without_new_names(affinity, earlier) != *earlier {
        let detail = "field is immutable, except for updating from beta label to GA";
        errors.push(FieldError::invalid("nodeAffinity", affinity.clone(), detail));
    }
    errors
}

/// The affinity with the older name of each label that has only got its newer one.
fn without_new_names(affinity: &Value, earlier: &Value) -> Value {
    const TERMS: &str = "required.nodeSelectorTerms";
    let mut affinity = affinity.clone();
    for (term, before) in affinity.list_mut(TERMS).iter_mut().zip(earlier.list(TERMS)) {
        let pairs = term.list_mut("matchExpressions").iter_mut().zip(before.list("matchExpressions"));
        for (expression, before) in pairs {
            if RENAMED.contains(&(before.text("key"), expression.text("key"))) {
                expression.copy_field("key", before);
            }
        }
    }
    affinity
}
