//! What the author of a write is told of an object that is taken all the same: fields that are old, and such as do not mean
//! what they seem to. Texts are upstream's, of its strategies' `WarningsOnCreate` and `WarningsOnUpdate`.

mod pod;
mod service;

use hawser_api::kinds::Kind;
use serde_json::Value;

use super::{
    names::dns_label,
    quantity,
    value::{Fields, Path},
};

/// Labels of nodes by their first names.
const OLD_LABELS: [(&str, &str, &str); 5] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
];
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
const INGRESS_CLASS: &str = "kubernetes.io/ingress.class";
const MOUNTABLE_SECRETS: &str = "kubernetes.io/enforce-mountable-secrets";
/// Beyond so many of both, an indexed Job's status cannot tell of every index.
const MANY_COMPLETIONS: i64 = 100_000;
const MANY_PARALLEL: i64 = 10_000;

/// What is to be said of a write; `old` is what it replaces.
pub(crate) fn of(kind: &Kind, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut said = Vec::new();
    match (kind.group, kind.plural) {
        // Nobody reads along where pods are updated.
        ("", "pods") if old.is_none() => {
            name(&mut said, new, "the Pod's hostname");
            pod::of(&mut said, &Path::Root(""), new);
        }
        ("", "podtemplates") => pod::of(&mut said, &Path::Root("template"), new.at("template")),
        ("", "replicationcontrollers") | ("apps", "deployments" | "replicasets" | "statefulsets") => {
            workload(&mut said, "spec", new, old);
            let history = new.int("spec.revisionHistoryLimit").unwrap_or_default();
            if kind.plural == "statefulsets" && history < 0 {
                said.push(
                    "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is \
                     recommended"
                        .to_owned(),
                );
            }
        }
        ("apps", "daemonsets") => template(&mut said, "spec", new, old),
        ("batch", "jobs") if old.is_none() => {
            workload(&mut said, "spec", new, old);
            many_indexes(&mut said, new.at("spec"));
        }
        ("batch", "cronjobs") => {
            workload(&mut said, "spec.jobTemplate.spec", new, old);
            many_indexes(&mut said, new.at("spec.jobTemplate.spec"));
            if old.is_some() && new.text("spec.schedule").contains("TZ") {
                said.push(
                    "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone field instead, see \
                     https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
                        .to_owned(),
                );
            }
        }
        ("", "services") => service::of(&mut said, new),
        ("", "persistentvolumes") => volume(&mut said, new),
        ("", "persistentvolumeclaims") => {
            annotation(
                &mut said,
                new,
                CLASS,
                "deprecated since v1.8; use \"storageClassName\" attribute instead",
            );
            claim(&mut said, &Path::Root("spec"), new.at("spec"));
        }
        ("", "serviceaccounts") => annotation(
            &mut said,
            new,
            MOUNTABLE_SECRETS,
            "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets",
        ),
        ("", "nodes") => {
            if new.has("spec.configSource") {
                said.push("spec.configSource: the feature is no longer supported".to_owned());
            }
            if !new.text("spec.externalID").is_empty() {
                said.push(
                    "spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned(),
                );
            }
        }
        ("networking.k8s.io", "ingresses")
            if old.is_none() && new.map("metadata.annotations").contains_key(INGRESS_CLASS) =>
        {
            said.push(format!(
                "annotation {INGRESS_CLASS:?} is deprecated, please use 'spec.ingressClassName' instead"
            ));
        }
        ("node.k8s.io", "runtimeclasses") => {
            node_labels(&mut said, &Path::Root("scheduling.nodeSelector"), new.at("scheduling.nodeSelector"));
        }
        _ => (),
    }
    said
}

fn name(said: &mut Vec<String>, object: &Value, used_in: &str) {
    let wrong = dns_label(object.text("metadata.name"));
    if !wrong.is_empty() {
        said.push(format!(
            "metadata.name: this is used in {used_in}, which can result in surprising behavior; a DNS label is recommended: \
             [{}]",
            wrong.join(" ")
        ));
    }
}

/// A new object's name, which its pods begin with, and its template. `spec` is where this is.
fn workload(said: &mut Vec<String>, spec: &str, new: &Value, old: Option<&Value>) {
    if old.is_none() {
        name(said, new, "Pod names and hostnames");
    }
    template(said, spec, new, old);
}

/// A template that did not change has been spoken of.
fn template(said: &mut Vec<String>, spec: &str, new: &Value, old: Option<&Value>) {
    let path = Path::Root(spec);
    let template = new.at(spec).at("template");
    if old.is_none_or(|old| old.at(spec).at("template") != template) {
        pod::of(said, &path.field("template"), template);
    }
}

fn many_indexes(said: &mut Vec<String>, spec: &Value) {
    let count = |field: &str| spec.int(field).unwrap_or_default();
    if spec.text("completionMode") == "Indexed"
        && count("completions") > MANY_COMPLETIONS
        && count("parallelism") > MANY_PARALLEL
    {
        said.push(
            "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes \
             might not be able to track completedIndexes when a big number of indexes fail"
                .to_owned(),
        );
    }
}

fn annotation(said: &mut Vec<String>, object: &Value, key: &str, what: &str) {
    if object.map("metadata.annotations").contains_key(key) {
        said.push(format!("metadata.annotations[{key}]: {what}"));
    }
}

fn volume(said: &mut Vec<String>, volume: &Value) {
    annotation(said, volume, CLASS, "deprecated since v1.8; use \"storageClassName\" attribute instead");
    annotation(said, volume, MOUNT_OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead");
    if volume.text("spec.persistentVolumeReclaimPolicy") == "Recycle" {
        said.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach \
             is to use dynamic provisioning."
                .to_owned(),
        );
    }
    old_source(said, &Path::Root("spec"), volume.at("spec"));
}

/// Sources of volumes that no node can mount any more, or soon cannot. The second is upstream's name of the field.
fn old_source(said: &mut Vec<String>, path: &Path<'_>, volume: &Value) {
    for (field, shown, what) in [
        ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("gitRepo", "gitRepo", "deprecated in v1.11"),
        ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
        ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ] {
        if volume.has(field) {
            said.push(format!("{}: {what}", path.field(shown)));
        }
    }
}

fn claim(said: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    let path = path.field("resources.requests");
    fractional(said, &path, spec.at("resources.requests"), &["storage"]);
}

/// Bytes are whole.
fn fractional(said: &mut Vec<String>, path: &Path<'_>, amounts: &Value, names: &[&str]) {
    for name in names {
        let amount = quantity::parse(amounts.at(name));
        if let Some(amount) = amount.filter(|amount| amount.milli_value() % 1000 != 0) {
            let text = format!("fractional byte value \"{amount}\" is invalid, must be an integer");
            said.push(format!("{}: {text}", path.key(name)));
        }
    }
}

fn old_label(key: &str) -> Option<String> {
    let (_, since, instead) = OLD_LABELS.iter().find(|(old, ..)| *old == key)?;
    Some(format!("deprecated since {since}; use {instead:?} instead"))
}

fn node_labels(said: &mut Vec<String>, path: &Path<'_>, selector: &Value) {
    for (key, _) in selector.as_object().into_iter().flatten() {
        if let Some(what) = old_label(key) {
            said.push(format!("{}: {what}", path.key(key)));
        }
    }
}

#[cfg(test)]
mod tests;
