//! What becomes of a set's claims when the set goes or shrinks (`persistentVolumeClaimRetentionPolicy`, KEP-1847). Pure.
//!
//! A claim that is to go with the set is owned by the set, one that is to go with a pod that is scaled away by that pod;
//! the garbage collector does the rest.

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};

use super::identity::{ordinal, ordinals, spec};
use crate::meta::{MetaExt, controller_reference};

const DELETE: Option<&str> = Some("Delete");

struct Policy {
    with_set: bool,
    with_pod: bool,
}

fn policy(set: &StatefulSet) -> Policy {
    let policy = spec(set).persistent_volume_claim_retention_policy.as_ref();
    Policy {
        with_set: policy.and_then(|policy| policy.when_deleted.as_deref()) == DELETE,
        with_pod: policy.and_then(|policy| policy.when_scaled.as_deref()) == DELETE,
    }
}

/// The owners that a claim of `pod` should have; `None` where it has them, or has another controller.
pub(super) fn new_owners(
    set: &StatefulSet,
    pod: &Pod,
    claim: &PersistentVolumeClaim,
) -> Option<Vec<OwnerReference>> {
    let is_foreign = |owner: &OwnerReference| owner.uid != set.uid() && owner.uid != pod.uid();
    if claim.controller().is_some_and(|owner| is_foreign(owner) && !is_earlier(owner, set, pod)) {
        return None;
    }
    let policy = policy(set);
    let is_scaled_away = ordinal(set, pod).is_some_and(|ordinal| !ordinals(set).contains(&ordinal));
    let with_pod = policy.with_pod && is_scaled_away;
    let with_set = policy.with_set && !with_pod;
    let current = claim.metadata.owner_references.clone().unwrap_or_default();
    let mut wanted: Vec<OwnerReference> =
        current.iter().filter(|owner| is_foreign(owner) && !is_earlier(owner, set, pod)).cloned().collect();
    if with_set {
        wanted.push(controller_reference(set));
    }
    if with_pod {
        wanted.push(controller_reference(pod));
    }
    (wanted != current).then_some(wanted)
}

/// The owners that a claim is made with, for a pod that is to stay.
pub(super) fn first_owners(set: &StatefulSet) -> Option<Vec<OwnerReference>> {
    policy(set).with_set.then(|| vec![controller_reference(set)])
}

/// An owner of the name that the set or the pod has now: it is gone, or about to go.
fn is_earlier(owner: &OwnerReference, set: &StatefulSet, pod: &Pod) -> bool {
    (owner.kind == "StatefulSet" && owner.name == set.name())
        || (owner.kind == "Pod" && owner.name == pod.name())
}

/// The claim still goes with an earlier pod of this name: a new one must wait until it is gone.
pub(super) fn is_stale(set: &StatefulSet, pod_name: &str, claim: &PersistentVolumeClaim) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    policy(set).with_pod && owners.into_iter().any(|owner| owner.kind == "Pod" && owner.name == pod_name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(name: &str, when: (&str, &str), ordinal: i32, owners: Value, expected: Option<&[&str]>) {
        let (deleted, scaled) = when;
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": { "name": "db", "uid": "set" },
            "spec": {
                "replicas": 2, "selector": {}, "template": {},
                "persistentVolumeClaimRetentionPolicy": { "whenDeleted": deleted, "whenScaled": scaled },
            },
        }))
        .unwrap();
        let mut pod = Pod::default();
        pod.metadata.name = Some(format!("db-{ordinal}"));
        pod.metadata.uid = Some("pod".into());
        let claim = json!({ "metadata": { "name": "c", "ownerReferences": owners } });
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
        let wanted = new_owners(&set, &pod, &claim);
        let uids: Option<Vec<&str>> =
            wanted.as_ref().map(|owners| owners.iter().map(|owner| owner.uid.as_str()).collect());
        assert_eq!(uids.as_deref(), expected, "{name}");
    }

    #[test]
    fn claims_are_owned_by_what_they_go_with() {
        let owner = |kind: &str, name: &str, uid: &str| json!([{ "apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": true }]);
        let (keep, drop) = ("Retain", "Delete");
        check("kept", (keep, keep), 0, json!([]), None);
        check("kept from now on", (keep, keep), 0, owner("StatefulSet", "db", "set"), Some(&[]));
        check("with the set", (drop, keep), 0, json!([]), Some(&["set"]));
        check("with the set, scaled away", (drop, keep), 5, json!([]), Some(&["set"]));
        check("with the pod, which stays", (keep, drop), 0, json!([]), None);
        check("with the pod, scaled away", (keep, drop), 5, json!([]), Some(&["pod"]));
        check("with either, which stays", (drop, drop), 0, json!([]), Some(&["set"]));
        check("with either, scaled away", (drop, drop), 5, owner("StatefulSet", "db", "set"), Some(&["pod"]));
        check("scaled up again", (drop, drop), 0, owner("Pod", "db-0", "before"), Some(&["set"]));
        check("another's", (drop, drop), 0, owner("Backup", "b", "u"), None);
    }
}
