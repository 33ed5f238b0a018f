//! Which volume a claim gets. Pure.

use std::sync::Arc;

use hawser_api::quantity::Quantity;
use k8s_openapi::{
    api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec},
    apimachinery::pkg::api::resource::Quantity as Amount,
};

use crate::{meta::MetaExt, selector};

/// From before `storageClassName`; it still counts, and first.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The class that a claim names; empty for volumes without one.
pub(crate) fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let named = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    claim.annotations().get(CLASS).map(String::as_str).or(named).unwrap_or_default()
}

pub(crate) fn class_of_volume(volume: &PersistentVolume) -> &str {
    let named = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    volume.annotations().get(CLASS).map(String::as_str).or(named).unwrap_or_default()
}

/// The claim that a volume is for.
pub(crate) fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

pub(super) fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The volume is for this claim, by name, and by uid where it says one.
pub(super) fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|reference| {
        let uid = reference.uid.as_deref().unwrap_or_default();
        names(reference, claim) && (uid.is_empty() || uid == claim.uid())
    })
}

fn names(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    reference.name.as_deref() == Some(claim.name())
        && reference.namespace.as_deref() == Some(claim.namespace())
}

fn bytes(amount: Option<&Amount>) -> Quantity {
    amount.and_then(|amount| amount.0.parse().ok()).unwrap_or(Quantity::ZERO)
}

fn capacity(volume: &PersistentVolume) -> Quantity {
    let list = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    bytes(list.and_then(|list| list.get("storage")))
}

fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    bytes(resources.and_then(|resources| resources.requests.as_ref()?.get("storage")))
}

fn mode(mode: Option<&str>) -> &str {
    mode.unwrap_or("Filesystem")
}

fn modes_differ(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
    let of_claim = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
    mode(of_volume) != mode(of_claim)
}

fn has_access_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let modes = |spec: &PersistentVolumeSpec| spec.access_modes.clone().unwrap_or_default();
    let offered = volume.spec.as_ref().map(modes).unwrap_or_default();
    let wanted = claim.spec.as_ref().and_then(|spec| spec.access_modes.clone()).unwrap_or_default();
    wanted.iter().all(|mode| offered.contains(mode))
}

fn attributes_differ(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let given = |name: Option<&String>| name.cloned().filter(|name| !name.is_empty());
    let of_volume = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref());
    let of_claim = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref());
    given(of_volume) != given(of_claim)
}

/// Why the claim cannot have the volume that it names itself.
pub(super) fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    if volume.is_deleting() {
        return Some(format!("the volume is marked for deletion {:?}", volume.name()));
    }
    let why = match () {
        () if capacity(volume) < requested(claim) => "requested PV is too small",
        () if class_of_volume(volume) != class_of_claim(claim) => "storageClassName does not match",
        () if modes_differ(volume, claim) => "incompatible volumeMode",
        () if attributes_differ(volume, claim) => "VolumeAttributesClassName does not match",
        () if !has_access_modes(volume, claim) => "incompatible accessMode",
        () => return None,
    };
    Some(why.to_owned())
}

/// Who chooses the volume of a claim that names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chooser {
    This,
    /// The scheduler, which knows the node: only what is meant for the claim already is bound here.
    Scheduler,
}

/// The volume that is meant for the claim, or else the smallest that will do.
pub(super) fn best(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    chooser: Chooser,
) -> Option<Arc<PersistentVolume>> {
    let fits = |volume: &&Arc<PersistentVolume>| {
        !volume.is_deleting()
            && has_access_modes(volume, claim)
            && !modes_differ(volume, claim)
            && !attributes_differ(volume, claim)
            && capacity(volume) >= requested(claim)
    };
    let fitting = || volumes.iter().filter(fits);
    if let Some(meant) = fitting().find(|volume| is_for(volume, claim)) {
        return Some(meant.clone());
    }
    if chooser == Chooser::Scheduler {
        return None;
    }
    let selects = |volume: &PersistentVolume| {
        let wanted = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        wanted.is_none_or(|wanted| selector::matches(wanted, volume.labels()))
    };
    let free = fitting().filter(|volume| {
        claim_ref(volume).is_none()
            && phase(volume) == "Available"
            && class_of_volume(volume) == class_of_claim(claim)
            && selects(volume)
    });
    // Of equal ones the first by name, so that every look picks the same.
    free.min_by(|a, b| capacity(a).cmp(&capacity(b)).then_with(|| a.name().cmp(b.name()))).cloned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(name: &str, change: Value) -> Arc<PersistentVolume> {
        let mut volume = json!({
            "metadata": { "name": name, "labels": { "disk": "ssd" } },
            "spec": { "capacity": { "storage": "10Gi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": "fast" },
            "status": { "phase": "Available" },
        });
        for (part, fields) in change.as_object().into_iter().flatten() {
            for (field, value) in fields.as_object().into_iter().flatten() {
                volume[part][field] = value.clone();
            }
        }
        Arc::new(serde_json::from_value(volume).unwrap())
    }

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let mut claim = json!({
            "metadata": { "name": "data", "namespace": "a", "uid": "u" },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                "resources": { "requests": { "storage": "5Gi" } },
            },
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            claim["spec"][field] = value.clone();
        }
        serde_json::from_value(claim).unwrap()
    }

    #[track_caller]
    fn check(name: &str, spec: Value, volumes: &[Arc<PersistentVolume>], expected: Option<&str>) {
        let found = best(&claim(spec), volumes, Chooser::This);
        assert_eq!(found.as_ref().map(|volume| volume.name()), expected, "{name}");
    }

    #[test]
    fn the_smallest_that_will_do_is_taken() {
        let large = volume("large", json!({ "spec": { "capacity": { "storage": "1Ti" } } }));
        let small = volume("small", json!({ "spec": { "capacity": { "storage": "1Gi" } } }));
        let plain = volume("plain", json!({}));
        let all = [large.clone(), small, plain.clone()];
        check("the smallest that is large enough", json!({}), &all, Some("plain"));
        check(
            "none is large enough",
            json!({ "resources": { "requests": { "storage": "2Ti" } } }),
            &all,
            None,
        );
        check("another class", json!({ "storageClassName": "slow" }), &all, None);
        check("another mode", json!({ "volumeMode": "Block" }), &all, None);
        check("more access than offered", json!({ "accessModes": ["ReadWriteMany"] }), &all, None);
        check("by label", json!({ "selector": { "matchLabels": { "disk": "hdd" } } }), &all, None);
        let taken = volume("taken", json!({ "spec": { "claimRef": { "name": "other", "namespace": "a" } } }));
        let released = volume("released", json!({ "status": { "phase": "Released" } }));
        check("others' volumes", json!({}), &[taken, released], None);
        let meant = volume(
            "meant",
            json!({ "spec": { "capacity": { "storage": "1Ti" }, "claimRef": { "name": "data", "namespace": "a" } } }),
        );
        check("the one that is meant for it", json!({}), &[plain.clone(), meant.clone()], Some("meant"));
        let waits = |volumes: &[Arc<PersistentVolume>]| best(&claim(json!({})), volumes, Chooser::Scheduler);
        assert_eq!(waits(&[plain]), None, "the scheduler's choice");
        assert_eq!(waits(std::slice::from_ref(&meant)), Some(meant), "and made");
        let earlier = volume(
            "earlier",
            json!({ "spec": { "claimRef": { "name": "data", "namespace": "a", "uid": "before" } } }),
        );
        check("that of an earlier claim of the name", json!({}), &[earlier], None);
    }
}
