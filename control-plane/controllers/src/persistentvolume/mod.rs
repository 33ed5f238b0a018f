//! PersistentVolumes and the claims on them: who gets which, and when it is given up.
//!
//! [`claims`] looks from the claim's side, [`volumes`] from the volume's; which volume fits is decided by [`matching`].
//! Volumes are made and deleted by external provisioners, which are told by annotations and phases. Claims of a class that
//! waits for its first consumer are bound to what the scheduler chooses.

mod claims;
pub(crate) mod matching;
#[cfg(test)]
mod tests;
mod volumes;

use std::sync::Arc;

use hawser_api::{informer::Change, resource::ObjectKey};
use k8s_openapi::api::{core::v1::PersistentVolume, storage::v1::StorageClass};

use crate::{Context, Starts, meta::MetaExt, queue::Queue};
use claims::Claims;
use matching::{claim_ref, class_of_volume};
use volumes::Volumes;

/// The claim knows its volume.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Nobody asked for this very pair, so it may be parted again.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("persistentvolume-binder") {
        return;
    }
    let context = starts.context.clone();
    let (claims, volumes) = (Queue::new(), Queue::new());
    let (changed, woken) = (claims.clone(), volumes.clone());
    // Weak: the caches, which own the handlers, are in the context.
    let weak = Arc::downgrade(&context);
    context.caches.claims.on_change(move |change| {
        changed.add(change.key.clone());
        let Some(context) = weak.upgrade() else { return };
        for volume in context.caches.volumes_by_claim.get(&change.key.to_string()) {
            woken.add(ObjectKey::of(&*volume));
        }
    });
    let (changed, woken, weak) = (volumes.clone(), claims.clone(), Arc::downgrade(&context));
    context.caches.volumes.on_change(move |change| {
        changed.add(change.key.clone());
        if let Some(context) = weak.upgrade() {
            volume_changed(&context, &woken, change);
        }
    });
    let (woken, weak) = (claims.clone(), Arc::downgrade(&context));
    context.caches.classes.on_change(move |change| {
        if let Some(context) = weak.upgrade() {
            class_changed(&context, &woken, change);
        }
    });
    let recorder = context.recorder.of("persistentvolume-controller");
    let workers = context.config.workers;
    let reader = Volumes { context: context.clone(), recorder: recorder.clone(), claims: claims.clone() };
    starts.add(reader, volumes, workers);
    starts.add(Claims { context, recorder }, claims, workers);
}

/// Wakes the claims that the volume is or was for, and, where it is free, those that could have it.
fn volume_changed(context: &Context, claims: &Queue<ObjectKey>, change: &Change<'_, PersistentVolume>) {
    for volume in change.old.into_iter().chain(change.new) {
        if let Some(reference) = claim_ref(volume) {
            let text = |field: &Option<String>| field.clone().unwrap_or_default();
            claims.add(ObjectKey::new(text(&reference.namespace), text(&reference.name)));
        }
    }
    let Some(volume) = change.new.or(change.old) else { return };
    for claim in context.caches.claims_by_volume.get(volume.name()) {
        claims.add(ObjectKey::of(&*claim));
    }
    if change.new.is_some_and(|new| claim_ref(new).is_none()) {
        for claim in context.caches.waiting_claims.get(class_of_volume(volume)) {
            claims.add(ObjectKey::of(&*claim));
        }
    }
}

/// Wakes the claims that wait for a class, of its own name or, for one that may be the default, of none.
fn class_changed(context: &Context, claims: &Queue<ObjectKey>, change: &Change<'_, StorageClass>) {
    for class in [change.key.name.as_str(), ""] {
        for claim in context.caches.waiting_claims.get(class) {
            claims.add(ObjectKey::of(&*claim));
        }
    }
}
