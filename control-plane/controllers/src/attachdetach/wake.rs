//! Which volumes a change is about.
//!
//! Handlers of the caches' changes: each puts volumes into the queue, and no more of them than the change can matter to.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use hawser_api::{informer::Change, resource::ObjectKey};
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::{CSIDriver, VolumeAttachment},
};

use super::{
    known::Known,
    plan::{self, Attachable, NodeChange},
};
use crate::{Context, caches::claims_of, meta::MetaExt, queue::Queue};

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Volume(Attachable),
    /// An attachment, by its name, of which it is not known what it attaches.
    Attachment(String),
}

impl fmt::Display for Key {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(volume) => write!(to, "{}", volume.unique_name()),
            Self::Attachment(name) => write!(to, "attachment {name}"),
        }
    }
}

pub(super) fn attaches(driver: Option<&Arc<CSIDriver>>) -> bool {
    driver.and_then(|driver| driver.spec.attach_required) != Some(false)
}

pub(super) fn volume_of(claim: &PersistentVolumeClaim) -> Option<ObjectKey> {
    let name = claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())?;
    Some(ObjectKey::new("", name))
}

pub(super) struct Waker {
    /// Weak: the caches, which own the handlers, are in the context.
    context: Weak<Context>,
    pub(super) queue: Queue<Key>,
    pub(super) known: Arc<Known>,
}

impl Waker {
    pub(super) fn new(context: &Arc<Context>) -> Self {
        Self { context: Arc::downgrade(context), queue: Queue::new(), known: Arc::default() }
    }

    pub(super) fn volume_changed(&self, change: &Change<'_, PersistentVolume>) {
        if change.old.map(|old| &old.spec) == change.new.map(|new| &new.spec) {
            return;
        }
        let Some(context) = self.context.upgrade() else { return };
        if let Some(volume) = change.new.and_then(|new| Attachable::of(new)) {
            // Attachments may have been heard of before it.
            for attachment in context.caches.attachments_by_volume.get(&change.key.name) {
                self.known.learn(&attachment, &volume);
            }
        }
        let volumes = change.old.into_iter().chain(change.new).filter_map(|volume| Attachable::of(volume));
        volumes.for_each(|volume| self.queue.add(Key::Volume(volume)));
    }

    pub(super) fn claim(&self, claim: &PersistentVolumeClaim) {
        let Some(context) = self.context.upgrade() else { return };
        let volume = volume_of(claim).and_then(|key| context.caches.volumes.get(&key));
        if let Some(volume) = volume.and_then(|volume| Attachable::of(&volume)) {
            self.queue.add(Key::Volume(volume));
        }
    }

    pub(super) fn pod(&self, pod: &Pod) {
        let Some(context) = self.context.upgrade() else { return };
        let claims = claims_of(pod).into_iter().filter_map(|key| context.caches.claims.get(&key));
        claims.for_each(|claim| self.claim(&claim));
    }

    fn attachment(&self, context: &Context, attachment: &VolumeAttachment) {
        if !plan::is_made_here(attachment.name()) {
            return;
        }
        let source = || {
            let name = attachment.spec.source.persistent_volume_name.as_deref()?;
            let volume = context.caches.volumes.get(&ObjectKey::new("", name))?;
            Attachable::of(&volume).filter(|volume| self.known.learn(attachment, volume))
        };
        self.queue.add(match self.known.volume_of(attachment.name()).or_else(source) {
            Some(volume) => Key::Volume(volume),
            None => Key::Attachment(attachment.name().to_owned()),
        });
    }

    pub(super) fn attachment_changed(&self, change: &Change<'_, VolumeAttachment>) {
        let Some(context) = self.context.upgrade() else { return };
        if let Some(attachment) = change.new.or(change.old) {
            self.attachment(&context, attachment);
            if change.new.is_none() {
                let node = &attachment.spec.node_name;
                self.known.forget(attachment.name());
                if context.caches.attachments_by_node.len(node) == 0 {
                    self.known.forget_node(node);
                }
            }
        }
    }

    pub(super) fn node_changed(&self, change: &Change<'_, Node>) {
        let Some(context) = self.context.upgrade() else { return };
        let name = &change.key.name;
        let volumes = match (change.old, change.new) {
            (Some(old), Some(new)) => match plan::node_change(old, new) {
                NodeChange::Volumes(volumes) => {
                    return volumes.into_iter().for_each(|volume| self.queue.add(Key::Volume(volume)));
                }
                NodeChange::Everything => Vec::new(),
            },
            // Pods and attachments may have been there before it, and its lists may be older than they are.
            (None, Some(new)) => {
                self.known.forget_node(name);
                context.caches.pods_by_node.get(name).iter().for_each(|pod| self.pod(pod));
                plan::listed(new).collect()
            }
            (old, None) => {
                let has_any = context.caches.attachments_by_node.len(name) > 0;
                old.filter(|_| has_any).into_iter().for_each(|old| self.known.node_is_gone(old));
                Vec::new()
            }
        };
        volumes.into_iter().for_each(|volume| self.queue.add(Key::Volume(volume)));
        for attachment in context.caches.attachments_by_node.get(name) {
            self.attachment(&context, &attachment);
        }
    }

    /// All volumes of a driver.
    pub(super) fn driver(&self, driver: &str) {
        let Some(context) = self.context.upgrade() else { return };
        let volumes = context.caches.volumes.all().into_iter().filter_map(|volume| Attachable::of(&volume));
        volumes
            .filter(|volume| volume.driver == driver)
            .for_each(|volume| self.queue.add(Key::Volume(volume)));
    }
}
