//! What the caches do not say: of which volume an attachment is, and how nodes were that are gone.
//!
//! An attachment names a PersistentVolume, which may go before it; what its driver calls the volume is remembered from
//! when both were there. Bounded by the attachments: what is known of one goes with it, and a node that is gone is
//! remembered as long as something is attached to it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Node, storage::v1::VolumeAttachment};
use parking_lot::Mutex;

use super::plan::Attachable;
use crate::meta::MetaExt;

#[derive(Default)]
pub(super) struct Known(Mutex<State>);

#[derive(Default)]
struct State {
    /// By the attachment's name.
    volumes: HashMap<String, Attachable>,
    /// The names of its attachments; the reverse.
    attachments: HashMap<Attachable, BTreeSet<String>>,
    /// Nodes that are gone, as they were last.
    gone: HashMap<String, Arc<Node>>,
}

impl Known {
    pub(super) fn volume_of(&self, attachment: &str) -> Option<Attachable> {
        self.0.lock().volumes.get(attachment).cloned()
    }

    pub(super) fn attachments_of(&self, volume: &Attachable) -> Vec<String> {
        self.0.lock().attachments.get(volume).into_iter().flatten().cloned().collect()
    }

    /// Takes note that the attachment is of this volume, if it is: others name theirs as they like.
    pub(super) fn learn(&self, attachment: &VolumeAttachment, volume: &Attachable) -> bool {
        let name = attachment.name();
        if name != volume.attachment_name(&attachment.spec.node_name) {
            return false;
        }
        let mut state = self.0.lock();
        state.volumes.insert(name.to_owned(), volume.clone());
        state.attachments.entry(volume.clone()).or_default().insert(name.to_owned());
        true
    }

    /// The attachment is gone.
    pub(super) fn forget(&self, attachment: &str) {
        let mut state = self.0.lock();
        let Some(volume) = state.volumes.remove(attachment) else { return };
        if let Some(names) = state.attachments.get_mut(&volume) {
            names.remove(attachment);
            if names.is_empty() {
                state.attachments.remove(&volume);
            }
        }
    }

    pub(super) fn node_is_gone(&self, node: &Arc<Node>) {
        self.0.lock().gone.insert(node.name().to_owned(), node.clone());
    }

    /// The node is there again, or nothing is attached to it any more.
    pub(super) fn forget_node(&self, name: &str) {
        self.0.lock().gone.remove(name);
    }

    /// A node that is gone, as it was last.
    pub(super) fn last_of(&self, node: &str) -> Option<Arc<Node>> {
        self.0.lock().gone.get(node).cloned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_has_the_attachments_of_its_names_while_they_are_there() {
        let volume = Attachable { driver: "d".to_owned(), handle: "h".to_owned() };
        let attachment = |name: &str, node: &str| -> VolumeAttachment {
            let spec =
                json!({ "attacher": "d", "nodeName": node, "source": { "persistentVolumeName": "v" } });
            serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).unwrap()
        };
        let known = Known::default();
        let name = volume.attachment_name("a");
        assert!(known.learn(&attachment(&name, "a"), &volume));
        assert!(!known.learn(&attachment(&name, "b"), &volume), "it would have another name");
        assert!(!known.learn(&attachment("theirs", "a"), &volume));
        assert_eq!(known.volume_of(&name).as_ref(), Some(&volume));
        assert_eq!(known.attachments_of(&volume), [name.as_str()]);
        known.forget(&name);
        assert_eq!(known.volume_of(&name), None);
        assert!(known.0.lock().attachments.is_empty());
    }
}
