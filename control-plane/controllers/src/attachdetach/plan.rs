//! What is to become of one volume on its nodes. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, Pod},
    storage::v1::VolumeAttachment,
};
use sha2::{Digest, Sha256};

use crate::{
    meta::{MetaExt, pod_is_terminal},
    node::{ready_status, taints_of},
};

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A volume of a CSI driver, as its attachments need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attachable {
    pub(super) driver: String,
    pub(super) handle: String,
    /// One node at a time.
    pub(super) is_exclusive: bool,
}

impl Attachable {
    pub(super) fn of(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let source = spec.csi.as_ref()?;
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        let is_shared = |mode: &String| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany");
        Some(Self {
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            is_exclusive: !modes.is_empty() && !modes.iter().any(is_shared),
        })
    }

    /// Of the attachment to a node; kubelets know it by this name.
    pub(super) fn attachment_name(&self, node: &str) -> String {
        let digest = Sha256::digest(format!("{}{}{node}", self.handle, self.driver).as_bytes());
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("csi-{digits}")
    }

    /// As the statuses of nodes name it.
    pub(super) fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }
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
pub(super) fn steps(
    wanted: &BTreeSet<&str>,
    held: &BTreeMap<&str, Stage>,
    is_exclusive: bool,
) -> BTreeMap<String, Step> {
    let mut steps = BTreeMap::new();
    let mut is_taken = !held.is_empty();
    for node in wanted {
        let step = match held.get(node) {
            Some(Stage::Attached) => Step::Show,
            Some(Stage::Asked | Stage::Leaving) => Step::Wait,
            None if is_exclusive && is_taken => Step::Refuse,
            None => Step::Attach,
        };
        is_taken = true;
        steps.insert((*node).to_owned(), step);
    }
    for (node, stage) in held {
        if !wanted.contains(node) && *stage != Stage::Leaving {
            steps.insert((*node).to_owned(), Step::Release);
        }
    }
    steps
}

/// The node's kubelet has the volume mounted, or is about to.
pub(super) fn is_in_use(node: &Node, unique_name: &str) -> bool {
    let listed = node.status.as_ref().and_then(|status| status.volumes_in_use.as_deref());
    listed.is_some_and(|listed| listed.iter().any(|name| name == unique_name))
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

/// What of a node decides whether it lets go.
pub(super) fn differs(a: &Node, b: &Node) -> bool {
    let in_use = |node: &Node| node.status.as_ref().and_then(|status| status.volumes_in_use.clone());
    in_use(a) != in_use(b)
        || ready_status(a) != ready_status(b)
        || is_out_of_service(a) != is_out_of_service(b)
        || !shown(a).eq(shown(b))
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
    fn check(wanted: &[&str], held: &[(&str, Stage)], is_exclusive: bool, expected: &[(&str, Step)]) {
        let found = steps(&wanted.iter().copied().collect(), &held.iter().copied().collect(), is_exclusive);
        let expected = expected.iter().map(|(node, step)| ((*node).to_owned(), *step)).collect();
        assert_eq!(found, expected, "{wanted:?} {held:?}");
    }

    #[test]
    fn volumes_follow_the_pods() {
        use Stage::{Asked, Attached, Leaving};
        check(&[], &[], true, &[]);
        check(&["a"], &[], true, &[("a", Step::Attach)]);
        check(&["a"], &[("a", Asked)], true, &[("a", Step::Wait)]);
        check(&["a"], &[("a", Attached)], true, &[("a", Step::Show)]);
        check(&["a"], &[("a", Leaving)], true, &[("a", Step::Wait)]);
        check(
            &[],
            &[("a", Attached), ("b", Leaving), ("c", Asked)],
            true,
            &[("a", Step::Release), ("c", Step::Release)],
        );
        check(&["a", "b"], &[], false, &[("a", Step::Attach), ("b", Step::Attach)]);
        check(&["a", "b"], &[], true, &[("a", Step::Attach), ("b", Step::Refuse)]);
        check(&["b"], &[("a", Leaving)], true, &[("b", Step::Refuse)]);
        check(&["b"], &[("a", Attached)], true, &[("a", Step::Release), ("b", Step::Refuse)]);
        check(&["b"], &[("a", Attached)], false, &[("a", Step::Release), ("b", Step::Attach)]);
    }

    #[test]
    fn attachments_are_known_by_their_names() {
        let volume = Attachable { driver: "d".into(), handle: "h".into(), is_exclusive: true };
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
            Attachable::of(&serde_json::from_value(volume).unwrap()).unwrap().is_exclusive
        };
        assert!(volume(json!(["ReadWriteOnce"])));
        assert!(volume(json!(["ReadWriteOncePod"])));
        assert!(!volume(json!(["ReadWriteOnce", "ReadOnlyMany"])));
        assert!(!volume(json!([])));
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
