//! Volumes: their phases, and what becomes of them when their claim is gone.
//!
//! Whoever made a volume deletes it, by watching for its phase; volumes that were made by hand are not deleted here. The
//! finalizers that keep both in use are another controller's ([`crate::volume_protection`]).

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::{
    api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    BOUND_BY_CONTROLLER, PROVISIONED_BY,
    claims::volume_name,
    matching::{claim_ref, phase},
};
use crate::{
    Context,
    events::Recorder,
    meta::{MetaExt, now},
    queue::Queue,
    worker::{Next, Reconciler},
};

pub(super) struct Volumes {
    pub(super) context: Arc<Context>,
    pub(super) recorder: Recorder,
    /// Claims that are to be looked at.
    pub(super) claims: Queue<ObjectKey>,
}

#[async_trait]
impl Reconciler for Volumes {
    type Key = ObjectKey;

    const NAME: &'static str = "persistentvolume-binder volumes";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(volume) = self.context.caches.volumes.get(key) else { return Ok(Next::Done) };
        let Some(reference) = claim_ref(&volume) else {
            set_phase(&self.context, &volume, "Available", "").await?;
            return Ok(Next::Done);
        };
        if reference.uid.as_deref().unwrap_or_default().is_empty() {
            // Kept for a claim, which takes it when it comes.
            set_phase(&self.context, &volume, "Available", "").await?;
            return Ok(Next::Done);
        }
        match self.claim(reference).await? {
            None => self.release(&volume).await?,
            Some(claim) => match volume_name(&claim) {
                Some(name) if name == volume.name() => {
                    set_phase(&self.context, &volume, "Bound", "").await?;
                }
                // The binding is not complete: that is the claim's matter.
                None => self.claims.add(ObjectKey::of(&*claim)),
                Some(_) => self.let_go(&volume).await?,
            },
        }
        Ok(Next::Done)
    }
}

impl Volumes {
    /// The claim that the volume is for; one made anew under its name is another. Asked for at the API before it counts as
    /// gone, because its data goes with it.
    async fn claim(&self, reference: &ObjectReference) -> Result<Option<Arc<PersistentVolumeClaim>>, Error> {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let key = ObjectKey::new(text(&reference.namespace), text(&reference.name));
        let is_it = |claim: &PersistentVolumeClaim| Some(claim.uid()) == reference.uid.as_deref();
        if let Some(claim) = self.context.caches.claims.get(&key).filter(|claim| is_it(claim)) {
            return Ok(Some(claim));
        }
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.context.client.clone(), &key.namespace);
        Ok(claims.find(&key.name).await?.filter(is_it).map(Arc::new))
    }

    /// The claim is bound to another volume.
    async fn let_go(&self, volume: &PersistentVolume) -> Result<(), Error> {
        if volume.annotations().contains_key(PROVISIONED_BY) && policy(volume) == "Delete" {
            // Made for a claim that has found another: nobody else will want it.
            return self.release(volume).await;
        }
        let mut changed = volume.clone();
        let by_controller = changed
            .metadata
            .annotations
            .as_mut()
            .is_some_and(|annotations| annotations.remove(BOUND_BY_CONTROLLER).is_some());
        let spec = changed.spec.get_or_insert_default();
        if by_controller {
            spec.claim_ref = None;
        } else if let Some(reference) = &mut spec.claim_ref {
            // Somebody meant it for a claim of that name.
            (reference.uid, reference.resource_version) = (None, None);
        }
        let volumes: Api<PersistentVolume> = Api::all(self.context.client.clone());
        let written = volumes.update(&changed).await?;
        set_phase(&self.context, &written, "Available", "").await
    }

    /// The claim is gone.
    async fn release(&self, volume: &PersistentVolume) -> Result<(), Error> {
        if !matches!(phase(volume), "Released" | "Failed") {
            // Its change brings it back.
            return set_phase(&self.context, volume, "Released", "").await;
        }
        // An external provisioner deletes what it made once it is released.
        let is_made = volume.annotations().contains_key(PROVISIONED_BY);
        if policy(volume) != "Delete" || is_made || volume.is_deleting() || phase(volume) == "Failed" {
            return Ok(());
        }
        let why = format!(
            "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
            volume.name()
        );
        self.recorder.warning(volume, "VolumeFailedDelete", why.clone());
        set_phase(&self.context, volume, "Failed", &why).await
    }
}

fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

/// Writes the phase, where it is another.
pub(super) async fn set_phase(
    context: &Context,
    volume: &PersistentVolume,
    wanted: &str,
    message: &str,
) -> Result<(), Error> {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    if phase(volume) == wanted {
        return Ok(());
    }
    let mut changed = volume.clone();
    let status = changed.status.get_or_insert_default();
    status.phase = Some(wanted.to_owned());
    status.message = text(message);
    status.reason = None;
    status.last_phase_transition_time = Some(Time(now()));
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    match volumes.update_status(&changed).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
