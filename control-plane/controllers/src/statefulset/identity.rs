//! Who a pod of a StatefulSet is: its ordinal, and the name, labels and claims that follow from it. Pure.

use std::sync::OnceLock;

use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetSpec},
    core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume},
};

use crate::{meta::MetaExt, pods, revisions::REVISION_HASH};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

pub(super) fn spec(set: &StatefulSet) -> &StatefulSetSpec {
    static NONE: OnceLock<StatefulSetSpec> = OnceLock::new();
    set.spec.as_ref().unwrap_or_else(|| NONE.get_or_init(StatefulSetSpec::default))
}

/// The ordinal in a pod's name, where the pod is one of the set's by name.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let (parent, digits) = pod.name().rsplit_once('-')?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if parent != set.name() || !is_number {
        return None;
    }
    digits.parse().ok()
}

pub(super) fn start(set: &StatefulSet) -> i32 {
    spec(set).ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or_default()
}

/// The ordinals that the set should have.
pub(super) fn ordinals(set: &StatefulSet) -> std::ops::Range<i32> {
    start(set)..start(set).saturating_add(spec(set).replicas.unwrap_or(1))
}

/// The name of the revision that a pod was made from.
pub(super) fn revision_of(pod: &Pod) -> &str {
    pod.labels().get(REVISION_HASH).map_or("", String::as_str)
}

/// The set's pod with this ordinal, from the template of a revision.
pub(super) fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = pods::from_template(set, template);
    let name = format!("{}-{ordinal}", set.name());
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.extend(labels_of(&name, ordinal));
    labels.insert(REVISION_HASH.to_owned(), revision.to_owned());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name);
    pod_spec.subdomain = spec(set).service_name.clone();
    let claims = claims(set, ordinal);
    let mut volumes: Vec<Volume> = claims.iter().map(|(volume, claim)| mount(volume, claim.name())).collect();
    let others = pod_spec.volumes.take().unwrap_or_default();
    volumes.extend(others.into_iter().filter(|volume| claims.iter().all(|(name, _)| *name != volume.name)));
    pod_spec.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
    pod
}

fn labels_of(name: &str, ordinal: i32) -> [(String, String); 2] {
    [(POD_NAME.to_owned(), name.to_owned()), (POD_INDEX.to_owned(), ordinal.to_string())]
}

/// The labels that a pod, adopted perhaps, lacks.
pub(super) fn missing_labels(set: &StatefulSet, pod: &Pod) -> Option<[(String, String); 2]> {
    let ordinal = ordinal(set, pod)?;
    let is_named = pod.labels().get(POD_NAME).map(String::as_str) == Some(pod.name());
    (!is_named).then(|| labels_of(pod.name(), ordinal))
}

fn mount(volume: &str, claim: &str) -> Volume {
    Volume {
        name: volume.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.to_owned(),
            read_only: None,
        }),
        ..Volume::default()
    }
}

/// The claims of one ordinal, by the names of their volumes.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<(String, PersistentVolumeClaim)> {
    let templates = spec(set).volume_claim_templates.iter().flatten();
    let claim = |template: &PersistentVolumeClaim| {
        let volume = template.name().to_owned();
        let mut claim = template.clone();
        claim.metadata.name = Some(format!("{volume}-{}-{ordinal}", set.name()));
        claim.metadata.namespace = set.metadata.namespace.clone();
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(spec(set).selector.match_labels.clone().unwrap_or_default());
        claim.status = None;
        (volume, claim)
    };
    templates.map(claim).collect()
}

/// The set makes claims of this name.
pub(super) fn is_claim_of(set: &StatefulSet, name: &str) -> bool {
    spec(set).volume_claim_templates.iter().flatten().any(|template| {
        let digits = name.strip_prefix(&format!("{}-{}-", template.name(), set.name()));
        digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set() -> StatefulSet {
        let set = json!({
            "metadata": { "name": "db", "namespace": "a", "uid": "u" },
            "spec": {
                "serviceName": "peers",
                "selector": { "matchLabels": { "app": "db" } },
                "template": { "metadata": { "labels": { "app": "db" } }, "spec": {
                    "containers": [],
                    "volumes": [{ "name": "data", "emptyDir": {} }, { "name": "tmp", "emptyDir": {} }],
                } },
                "volumeClaimTemplates": [{ "metadata": { "name": "data", "labels": { "tier": "1" } } }],
            },
        });
        serde_json::from_value(set).unwrap()
    }

    #[test]
    fn identity_follows_from_the_ordinal() {
        let set = set();
        let pod = pod(&set, &spec(&set).template, "db-abc", 3);
        let pod_spec = pod.spec.as_ref().unwrap();
        assert_eq!((pod.name(), pod_spec.hostname.as_deref()), ("db-3", Some("db-3")));
        assert_eq!(pod_spec.subdomain.as_deref(), Some("peers"));
        let expected = json!({
            "app": "db", "apps.kubernetes.io/pod-index": "3", "controller-revision-hash": "db-abc",
            "statefulset.kubernetes.io/pod-name": "db-3",
        });
        assert_eq!(json!(pod.labels()), expected);
        let volumes = json!(pod_spec.volumes);
        assert_eq!(
            volumes[0],
            json!({ "name": "data", "persistentVolumeClaim": { "claimName": "data-db-3" } })
        );
        assert_eq!(volumes[1]["name"], "tmp");
        let claim = &claims(&set, 3)[0].1;
        assert_eq!((claim.name(), json!(claim.labels())), ("data-db-3", json!({ "app": "db", "tier": "1" })));
        assert_eq!(missing_labels(&set, &pod), None);
    }

    #[test]
    fn only_names_of_the_set_have_an_ordinal() {
        for (name, expected) in [
            ("db-0", Some(0)),
            ("db-12", Some(12)),
            ("db-x-0", None),
            ("db", None),
            ("db-", None),
            ("db--1", None),
            ("db-99999999999", None),
        ] {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            assert_eq!(ordinal(&set(), &pod), expected, "{name}");
        }
    }
}
