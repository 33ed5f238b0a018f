//! Revisions: which ReplicaSet stands for the current template, and what old ones are kept. Pure.
//!
//! A set belongs to the template that it carries, not to its name: the hash in the name only keeps the sets'
//! pods apart, so another way of hashing would change nothing for the sets that exist. `kubectl rollout
//! history` and `undo` read the sets' revision annotations and templates.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use super::{
    rolling::new_set_size,
    strategy::{actual, by_age, most_replicas, size, spec, sum, wanted_replicas},
};
use crate::{
    meta::{MetaExt, controller_reference},
    template,
};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotations of the deployment that its sets do not get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// The history annotation does not grow beyond this; the oldest revisions are dropped from it.
const HISTORY_CHARS: usize = 2000;

type Annotations = BTreeMap<String, String>;

/// Splits the sets into the one with the current template, and all others, oldest first.
pub(super) fn split(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    let mut sets = sets.to_vec();
    by_age(&mut sets);
    let wanted = comparable(&spec(deployment).template);
    // The oldest of several equal ones, so that every look picks the same.
    let new = sets.iter().find(|set| template_of(set).is_some_and(|it| comparable(it) == wanted)).cloned();
    if let Some(new) = &new {
        sets.retain(|set| set.uid() != new.uid());
    }
    (new, sets)
}

pub(super) fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    template_of(set).is_some_and(|it| comparable(it) == comparable(&spec(deployment).template))
}

fn template_of(set: &ReplicaSet) -> Option<&PodTemplateSpec> {
    set.spec.as_ref()?.template.as_ref()
}

/// The template as a value in which absent and empty are the same, without the hash label.
fn comparable(template: &PodTemplateSpec) -> Value {
    let mut value = template::comparable(template);
    if let Some(labels) = value.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(TEMPLATE_HASH);
        template::prune(&mut value);
    }
    value
}

/// The value of the label `pod-template-hash`.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    template::hash(&comparable(template), collisions)
}

pub(super) fn revision_of(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The revision that the current template gets.
pub(super) fn next_revision(old: &[Arc<ReplicaSet>]) -> i64 {
    old.iter().map(|set| revision_of(set)).max().unwrap_or_default() + 1
}

/// A new set for the current template, sized as far as the other sets leave room.
pub(super) fn new_set(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> ReplicaSet {
    let deployment_spec = spec(deployment);
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = template_hash(&deployment_spec.template, collisions);
    let mut template = deployment_spec.template.clone();
    let meta = template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().insert(TEMPLATE_HASH.to_owned(), hash.clone());
    let labels = meta.labels.clone();
    let mut selector = deployment_spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(TEMPLATE_HASH.to_owned(), hash.clone());

    let mut annotations = Annotations::new();
    copy_annotations(deployment, &mut annotations);
    annotations.insert(REVISION.to_owned(), next_revision(old).to_string());
    annotate_sizes(deployment, &mut annotations);
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name())),
            namespace: deployment.metadata.namespace.clone(),
            labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(new_set_size(deployment, 0, sum(old, size))),
            min_ready_seconds: deployment_spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// The set with what it should say about its deployment; `None` where it says so already.
pub(super) fn refreshed(
    deployment: &Deployment,
    new: &ReplicaSet,
    old: &[Arc<ReplicaSet>],
) -> Option<ReplicaSet> {
    let mut annotations = new.annotations().clone();
    copy_annotations(deployment, &mut annotations);
    let (current, next) = (revision_of(new), next_revision(old));
    if current < next {
        if current > 0 {
            remember_revision(&mut annotations, current);
        }
        annotations.insert(REVISION.to_owned(), next.to_string());
    }
    let min_ready = spec(deployment).min_ready_seconds.unwrap_or_default();
    let set_min_ready = new.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or_default();
    if annotations == *new.annotations() && min_ready == set_min_ready {
        return None;
    }
    let mut changed = new.clone();
    changed.metadata.annotations = Some(annotations);
    if let Some(spec) = &mut changed.spec {
        spec.min_ready_seconds = Some(min_ready).filter(|seconds| *seconds != 0);
    }
    Some(changed)
}

fn copy_annotations(deployment: &Deployment, to: &mut Annotations) {
    for (name, value) in deployment.annotations() {
        if !NOT_COPIED.contains(&name.as_str()) {
            to.insert(name.clone(), value.clone());
        }
    }
}

/// A set that becomes current again keeps the revisions that it had.
fn remember_revision(annotations: &mut Annotations, revision: i64) {
    let history = annotations.get(REVISION_HISTORY).cloned().unwrap_or_default();
    let mut revisions: Vec<String> =
        history.split(',').filter(|it| !it.is_empty()).map(str::to_owned).collect();
    revisions.push(revision.to_string());
    while revisions.join(",").len() > HISTORY_CHARS {
        revisions.remove(0);
    }
    annotations.insert(REVISION_HISTORY.to_owned(), revisions.join(","));
}

/// Notes what the set was sized for; true where that changed.
pub(super) fn annotate_sizes(deployment: &Deployment, annotations: &mut Annotations) -> bool {
    let wanted = wanted_replicas(deployment);
    let mut put = |name: &str, value: i32| {
        annotations.insert(name.to_owned(), value.to_string()) != Some(value.to_string())
    };
    put(DESIRED_REPLICAS, wanted) | put(MAX_REPLICAS, most_replicas(deployment))
}

/// The old sets beyond the history limit that can go: empty, settled, the oldest revisions first.
pub(super) fn expired(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    let limit = match spec(deployment).revision_history_limit {
        None | Some(i32::MAX) => return Vec::new(),
        Some(limit) => usize::try_from(limit).unwrap_or_default(),
    };
    let mut alive: Vec<Arc<ReplicaSet>> = old.iter().filter(|set| !set.is_deleting()).cloned().collect();
    alive.sort_by_key(|set| (revision_of(set), set.created()));
    alive.truncate(alive.len().saturating_sub(limit));
    alive.retain(|set| size(set) == 0 && actual(set) == 0 && is_observed(set));
    alive
}

fn is_observed(set: &ReplicaSet) -> bool {
    let observed = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or_default();
    observed >= set.metadata.generation.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, PodSpec};

    use super::*;
    use crate::deployment::test_objects::{deployment, set};

    fn template(image: &str) -> PodTemplateSpec {
        let container = Container { name: "c".into(), image: Some(image.into()), ..Container::default() };
        PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some([("app".to_owned(), "web".to_owned())].into()),
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
        }
    }

    fn with_template(image: &str) -> Deployment {
        let mut deployment = deployment(3, 1, 0);
        deployment.spec.as_mut().unwrap().template = template(image);
        deployment
    }

    fn revised(name: &str, revision: i64) -> Arc<ReplicaSet> {
        let mut set = (*set(name, 0, 0)).clone();
        set.metadata.annotations = Some([(REVISION.to_owned(), revision.to_string())].into());
        Arc::new(set)
    }

    #[test]
    fn set_made_for_a_template_is_found_by_it() {
        let first = with_template("a");
        let made = Arc::new(new_set(&first, &[]));
        assert_eq!(split(&first, std::slice::from_ref(&made)).0, Some(made.clone()));
        let second = with_template("b");
        let (new, old) = split(&second, std::slice::from_ref(&made));
        assert_eq!((new, old), (None, vec![made]));
    }

    #[test]
    fn absent_and_empty_make_the_same_template() {
        let plain = with_template("a");
        let mut set = new_set(&plain, &[]);
        let spec = set.spec.as_mut().unwrap().template.as_mut().unwrap().spec.as_mut().unwrap();
        spec.containers[0].env = Some(Vec::new());
        assert!(same_template(&plain, &set));
        spec_of(&mut set).containers[0].args = Some(vec!["x".into()]);
        assert!(!same_template(&plain, &set));
    }

    #[test]
    fn an_empty_selector_is_not_an_absent_one() {
        let term = |selector: Value| {
            serde_json::json!({ "affinity": { "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    { "topologyKey": "zone", "labelSelector": {}, "namespaceSelector": selector },
                ],
            } } })
        };
        let with = |selector: Value| {
            let mut deployment = with_template("a");
            let mut spec = serde_json::to_value(&deployment.spec.as_ref().unwrap().template.spec).unwrap();
            spec["affinity"] = term(selector)["affinity"].take();
            deployment.spec.as_mut().unwrap().template.spec = serde_json::from_value(spec).unwrap();
            deployment
        };
        let all_namespaces = with(serde_json::json!({}));
        let own_namespace = with(Value::Null);
        let set = new_set(&own_namespace, &[]);
        assert!(same_template(&own_namespace, &set));
        assert!(!same_template(&all_namespaces, &set));
        assert!(same_template(&all_namespaces, &new_set(&all_namespaces, &[])));
        assert!(same_template(
            &all_namespaces,
            &new_set(&with(serde_json::json!({ "matchLabels": {} })), &[])
        ));
    }

    fn spec_of(set: &mut ReplicaSet) -> &mut PodSpec {
        set.spec.as_mut().unwrap().template.as_mut().unwrap().spec.as_mut().unwrap()
    }

    #[test]
    fn collisions_change_the_hash() {
        let template = template("a");
        assert_eq!(template_hash(&template, None), template_hash(&template, None));
        assert_eq!(template_hash(&template, None), template_hash(&template, Some(0)), "none was seen");
        assert_ne!(template_hash(&template, None), template_hash(&template, Some(1)));
        assert_ne!(template_hash(&template, Some(1)), template_hash(&template, Some(2)));
    }

    #[test]
    fn going_back_gives_the_set_a_new_revision_and_keeps_the_old_in_its_history() {
        let deployment = with_template("a");
        let old = [revised("1", 4)];
        let changed = refreshed(&deployment, &revised("2", 3), &old).unwrap();
        assert_eq!(revision_of(&changed), 5);
        assert_eq!(changed.annotations()[REVISION_HISTORY], "3");
        assert_eq!(refreshed(&deployment, &changed, &old), None);
    }

    #[test]
    fn empty_sets_beyond_the_limit_expire_oldest_first() {
        let mut deployment = with_template("a");
        deployment.spec.as_mut().unwrap().revision_history_limit = Some(1);
        let busy = set("9", 2, 2);
        let old = [revised("1", 3), revised("2", 1), revised("3", 2), busy];
        let names: Vec<String> = expired(&deployment, &old).iter().map(|set| set.name().to_owned()).collect();
        assert_eq!(names, ["2", "3"]);
    }
}
