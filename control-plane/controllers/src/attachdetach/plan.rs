//! What is to become of one volume on its nodes. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::VolumeAttachment,
};
use sha2::{Digest, Sha256};

use crate::{
    caches::ephemeral_claim,
    meta::{MetaExt, pod_is_terminal, pod_node},
    node::{ready_status, taints_of},
};

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// How the statuses of nodes name volumes of CSI drivers: this, the driver, `^`, the handle.
const UNIQUE_PREFIX: &str = "kubernetes.io/csi/";

/// A volume of a CSI driver. PersistentVolumes with the same driver and handle are one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Attachable {
    pub(super) driver: String,
    pub(super) handle: String,
}

impl Attachable {
    pub(crate) fn of(volume: &PersistentVolume) -> Option<Self> {
        let source = volume.spec.as_ref()?.csi.as_ref()?;
        Some(Self { driver: source.driver.clone(), handle: source.volume_handle.clone() })
    }

    /// The volume that a node's status names; `None` for those of other sorts.
    pub(super) fn named(unique_name: &str) -> Option<Self> {
        let (driver, handle) = unique_name.strip_prefix(UNIQUE_PREFIX)?.split_once('^')?;
        Some(Self { driver: driver.to_owned(), handle: handle.to_owned() })
    }

    /// Of the attachment to a node; kubelets know it by this name.
    pub(super) fn attachment_name(&self, node: &str) -> String {
        let digest = Sha256::digest(format!("{}{}{node}", self.handle, self.driver).as_bytes());
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("csi-{digits}")
    }

    /// As the statuses of nodes name it.
    pub(crate) fn unique_name(&self) -> String {
        format!("{UNIQUE_PREFIX}{}^{}", self.driver, self.handle)
    }
}

/// Whether a volume may be at other nodes too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// One node at a time.
    Exclusive,
    Shared,
}

pub(super) fn access(volume: &PersistentVolume) -> Access {
    let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    let is_shared = |mode: &String| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany");
    if modes.is_empty() || modes.iter().any(is_shared) { Access::Shared } else { Access::Exclusive }
}

/// The name has the form of [`Attachable::attachment_name`].
pub(super) fn is_made_here(name: &str) -> bool {
    let digest = name.strip_prefix("csi-").unwrap_or_default();
    digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What to do about one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Attach,
    /// It is wanted, and at another node.
    Refuse,
    /// It is attached: the node's status is to say so.
    Show,
    /// It is asked for, or on its way out before it can be attached anew.
    Wait,
    Release,
}

/// How far an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Asked,
    Attached,
    Leaving,
}

pub(super) fn stage(attachment: &VolumeAttachment) -> Stage {
    let is_attached = attachment.status.as_ref().is_some_and(|status| status.attached);
    match (attachment.is_deleting(), is_attached) {
        (true, _) => Stage::Leaving,
        (false, true) => Stage::Attached,
        (false, false) => Stage::Asked,
    }
}

/// By node; those about which nothing is to be done are left out.
pub(super) fn steps(wanted: &BTreeMap<&str, Access>, held: &BTreeMap<&str, Stage>) -> BTreeMap<String, Step> {
    let mut steps = BTreeMap::new();
    let mut is_taken = !held.is_empty();
    for (node, access) in wanted {
        let step = match held.get(node) {
            Some(Stage::Attached) => Step::Show,
            Some(Stage::Asked | Stage::Leaving) => Step::Wait,
            None if *access == Access::Exclusive && is_taken => Step::Refuse,
            None => Step::Attach,
        };
        is_taken = true;
        steps.insert((*node).to_owned(), step);
    }
    for (node, stage) in held {
        if !wanted.contains_key(node) && *stage != Stage::Leaving {
            steps.insert((*node).to_owned(), Step::Release);
        }
    }
    steps
}

/// Volumes that the node's kubelet has mounted, or is about to.
fn in_use(node: &Node) -> impl Iterator<Item = &str> {
    let listed = node.status.as_ref().and_then(|status| status.volumes_in_use.as_deref());
    listed.unwrap_or_default().iter().map(String::as_str)
}

pub(super) fn is_in_use(node: &Node, unique_name: &str) -> bool {
    in_use(node).any(|name| name == unique_name)
}

pub(super) fn is_shown(node: &Node, unique_name: &str) -> bool {
    shown(node).any(|name| name == unique_name)
}

/// Volumes that the node's status says are attached.
pub(crate) fn shown(node: &Node) -> impl Iterator<Item = &str> {
    let listed = node.status.as_ref().and_then(|status| status.volumes_attached.as_deref());
    listed.unwrap_or_default().iter().map(|volume| volume.name.as_str())
}

/// Somebody knows that the machine is off.
pub(super) fn is_out_of_service(node: &Node) -> bool {
    taints_of(node).iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// All volumes that the node's status names.
pub(super) fn listed(node: &Node) -> impl Iterator<Item = Attachable> {
    in_use(node).chain(shown(node)).filter_map(Attachable::named)
}

/// What a change of a node is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NodeChange {
    /// It may let go of all that it has.
    Everything,
    /// These volumes have come to its lists, or are gone from them; none where nothing matters here.
    Volumes(Vec<Attachable>),
}

pub(super) fn node_change(old: &Node, new: &Node) -> NodeChange {
    if ready_status(old) != ready_status(new) || is_out_of_service(old) != is_out_of_service(new) {
        return NodeChange::Everything;
    }
    // Most changes of a node are heartbeats.
    if in_use(old).eq(in_use(new)) && shown(old).eq(shown(new)) {
        return NodeChange::Volumes(Vec::new());
    }
    let differing = |old: BTreeSet<&str>, new: BTreeSet<&str>| -> Vec<Attachable> {
        old.symmetric_difference(&new).filter_map(|name| Attachable::named(name)).collect()
    };
    let mut volumes = differing(in_use(old).collect(), in_use(new).collect());
    volumes.extend(differing(shown(old).collect(), shown(new).collect()));
    volumes.sort_unstable();
    volumes.dedup();
    NodeChange::Volumes(volumes)
}

/// The pods whose volumes are to be looked at after a change: a pod of the same name may be another, with other claims.
pub(super) fn moved<'a>(old: Option<&'a Arc<Pod>>, new: Option<&'a Arc<Pod>>) -> Vec<&'a Arc<Pod>> {
    let place = |pod: Option<&'a Arc<Pod>>| {
        let pod = pod.filter(|pod| !has_ended(pod))?;
        Some((pod.uid(), pod_node(pod)?))
    };
    if place(old) == place(new) { Vec::new() } else { old.into_iter().chain(new).collect() }
}

/// Whether the pod mounts the claim. One that is made for a pod's ephemeral volume is that pod's own.
pub(super) fn mounts(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let is_own = || claim.controller().is_some_and(|owner| owner.uid == pod.uid());
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(named), _) => named.claim_name == claim.name(),
        (None, Some(_)) => claim.name() == ephemeral_claim(pod, &volume.name) && is_own(),
        (None, None) => false,
    })
}

/// The pod needs its volumes no more: it has ended, or is ending and nothing of it runs.
pub(super) fn has_ended(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let mut runs = statuses.map(|status| {
        let state = status.state.as_ref();
        state.is_some_and(|state| state.terminated.is_none() && state.waiting.is_none())
    });
    pod_is_terminal(pod) || (pod.is_deleting() && !runs.any(|runs| runs))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(wanted: &[&str], held: &[(&str, Stage)], access: Access, expected: &[(&str, Step)]) {
        let wanted: BTreeMap<&str, Access> = wanted.iter().map(|node| (*node, access)).collect();
        let found = steps(&wanted, &held.iter().copied().collect());
        let expected = expected.iter().map(|(node, step)| ((*node).to_owned(), *step)).collect();
        assert_eq!(found, expected, "{wanted:?} {held:?}");
    }

    #[test]
    fn volumes_follow_the_pods() {
        use Access::{Exclusive, Shared};
        use Stage::{Asked, Attached, Leaving};
        check(&[], &[], Exclusive, &[]);
        check(&["a"], &[], Exclusive, &[("a", Step::Attach)]);
        check(&["a"], &[("a", Asked)], Exclusive, &[("a", Step::Wait)]);
        check(&["a"], &[("a", Attached)], Exclusive, &[("a", Step::Show)]);
        check(&["a"], &[("a", Leaving)], Exclusive, &[("a", Step::Wait)]);
        check(
            &[],
            &[("a", Attached), ("b", Leaving), ("c", Asked)],
            Exclusive,
            &[("a", Step::Release), ("c", Step::Release)],
        );
        check(&["a", "b"], &[], Shared, &[("a", Step::Attach), ("b", Step::Attach)]);
        check(&["a", "b"], &[], Exclusive, &[("a", Step::Attach), ("b", Step::Refuse)]);
        check(&["b"], &[("a", Leaving)], Exclusive, &[("b", Step::Refuse)]);
        check(&["b"], &[("a", Attached)], Exclusive, &[("a", Step::Release), ("b", Step::Refuse)]);
        check(&["b"], &[("a", Attached)], Shared, &[("a", Step::Release), ("b", Step::Attach)]);
    }

    #[test]
    fn attachments_are_known_by_their_names() {
        let volume = Attachable { driver: "d".into(), handle: "h^1".into() };
        assert_eq!(Attachable::named(&volume.unique_name()).as_ref(), Some(&volume));
        for name in ["kubernetes.io/csi/d", "kubernetes.io/nfs/d^h", "d^h"] {
            assert_eq!(Attachable::named(name), None, "{name}");
        }
        assert!(is_made_here(&volume.attachment_name("n")));
        assert_ne!(volume.attachment_name("n"), volume.attachment_name("m"));
        for name in ["csi-1", "attachment", "csi-"] {
            assert!(!is_made_here(name), "{name}");
        }
    }

    #[test]
    fn one_node_alone_has_what_only_one_may_have() {
        let volume = |modes: serde_json::Value| {
            let volume = json!({
                "metadata": { "name": "v" },
                "spec": { "accessModes": modes, "csi": { "driver": "d", "volumeHandle": "h" } },
            });
            access(&serde_json::from_value(volume).unwrap())
        };
        assert_eq!(volume(json!(["ReadWriteOnce"])), Access::Exclusive);
        assert_eq!(volume(json!(["ReadWriteOncePod"])), Access::Exclusive);
        assert_eq!(volume(json!(["ReadWriteOnce", "ReadOnlyMany"])), Access::Shared);
        assert_eq!(volume(json!([])), Access::Shared);
    }

    #[test]
    fn a_change_of_a_node_is_about_the_volumes_that_came_or_went() {
        let node = |ready: &str, in_use: &[&str], shown: &[&str]| -> Node {
            let names =
                |of: &[&str]| of.iter().map(|one| format!("{UNIQUE_PREFIX}d^{one}")).collect::<Vec<_>>();
            let attached: Vec<_> =
                names(shown).iter().map(|name| json!({ "name": name, "devicePath": "" })).collect();
            let status = json!({
                "conditions": [{ "type": "Ready", "status": ready }],
                "volumesInUse": names(in_use), "volumesAttached": attached,
            });
            serde_json::from_value(json!({ "metadata": { "name": "n" }, "status": status })).unwrap()
        };
        let old = node("True", &["1", "2"], &["1", "2", "3"]);
        let check = |new: Node, expected: &[&str]| {
            let volume = |handle: &&str| Attachable { driver: "d".into(), handle: (*handle).to_owned() };
            let expected = expected.iter().map(volume).collect();
            assert_eq!(node_change(&old, &new), NodeChange::Volumes(expected));
        };
        check(old.clone(), &[]);
        check(node("True", &["2", "1"], &["1", "2", "3"]), &[]);
        check(node("True", &["2", "4"], &["1", "2", "4"]), &["1", "3", "4"]);
        assert_eq!(node_change(&old, &node("Unknown", &[], &[])), NodeChange::Everything);
    }

    #[test]
    fn a_pod_that_takes_anothers_name_wakes_the_volumes_of_both() {
        let pod = |uid: &str, node: &str, phase: &str| -> Arc<Pod> {
            let pod = json!({
                "metadata": { "name": "p", "uid": uid }, "spec": { "containers": [], "nodeName": node },
                "status": { "phase": phase },
            });
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let (old, ended) = (pod("1", "a", "Running"), pod("1", "a", "Failed"));
        let count = |old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>| moved(old, new).len();
        assert_eq!(count(Some(&old), Some(&old)), 0);
        assert_eq!(count(None, Some(&old)), 1);
        assert_eq!(count(Some(&old), None), 1);
        assert_eq!(count(None, Some(&ended)), 0);
        assert_eq!(count(Some(&old), Some(&pod("2", "a", "Running"))), 2);
        assert_eq!(count(Some(&old), Some(&ended)), 2);
    }

    #[test]
    fn pods_that_run_keep_their_volumes_though_they_end() {
        let pod = |phase: &str, deleting: bool, state: &str| {
            let mut pod = json!({
                "metadata": { "name": "p" },
                "status": { "phase": phase, "containerStatuses": [{
                    "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": { state: { "exitCode": 0 } },
                }] },
            });
            if deleting {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            has_ended(&serde_json::from_value(pod).unwrap())
        };
        assert!(!pod("Running", false, "terminated"));
        assert!(!pod("Running", true, "running"));
        assert!(pod("Running", true, "terminated"));
        assert!(pod("Pending", true, "waiting"));
        assert!(pod("Failed", false, "running"));
    }
}
