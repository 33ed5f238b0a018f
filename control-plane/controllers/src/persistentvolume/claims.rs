//! Claims: finds each a volume, or somebody who makes one, and keeps the two together.
//!
//! Binding takes three writes, each of which can be the last: the volume names the claim, the claim names the volume, and
//! its status says so. A claim that was bound and whose volume is gone, or another's, is lost.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::api::{
    core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, Pod},
    storage::v1::StorageClass,
};

use super::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE,
    matching::{self, Chooser, claim_ref, class_of_claim, is_for},
    volumes,
};
use crate::{
    Context,
    caches::claim_term,
    events::Recorder,
    meta::{MetaExt, pod_is_terminal, pod_node},
    worker::{Next, Reconciler},
};

const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BEFORE: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// Of classes whose volumes are made by hand.
const NOBODY: &str = "kubernetes.io/no-provisioner";
const DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

pub(super) struct Claims {
    pub(super) context: Arc<Context>,
    pub(super) recorder: Recorder,
}

#[async_trait]
impl Reconciler for Claims {
    type Key = ObjectKey;

    const NAME: &'static str = "persistentvolume-binder";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(claim) = self.context.caches.claims.get(key) else { return Ok(Next::Done) };
        if claim.annotations().contains_key(BIND_COMPLETED) {
            self.keep(&claim).await?;
        } else if !claim.is_deleting() {
            self.find(&claim).await?;
        }
        Ok(Next::Done)
    }
}

pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

impl Claims {
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.context.caches.volumes.get(&ObjectKey::new("", name))
    }

    fn api(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.context.client.clone(), claim.namespace())
    }

    /// A claim that was bound before.
    async fn keep(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let Some(name) = volume_name(claim) else {
            let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
            return self.lose(claim, "ClaimLost", message).await;
        };
        let Some(volume) = self.volume(name) else {
            // The cache may be behind: what is lost is lost for good.
            let volumes: Api<PersistentVolume> = Api::all(self.context.client.clone());
            if volumes.find(name).await?.is_some() {
                return Ok(());
            }
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            return self.lose(claim, "ClaimLost", message).await;
        };
        match claim_ref(&volume) {
            None => self.bind(claim, &volume).await,
            Some(_) if is_for(&volume, claim) => self.bind(claim, &volume).await,
            Some(_) => {
                let message = "Two claims are bound to the same volume, this one is bound incorrectly";
                self.lose(claim, "ClaimMisbound", message).await
            }
        }
    }

    async fn lose(
        &self,
        claim: &PersistentVolumeClaim,
        reason: &'static str,
        message: &str,
    ) -> Result<(), Error> {
        if self.write_status(claim, |status| status.phase = Some("Lost".to_owned())).await? {
            self.recorder.warning(claim, reason, message.to_owned());
        }
        Ok(())
    }

    /// A claim that has no volume yet.
    async fn find(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        match volume_name(claim) {
            Some(name) => self.take_named(claim, name).await,
            None => self.choose(claim).await,
        }
    }

    /// The claim names a volume itself.
    async fn take_named(&self, claim: &PersistentVolumeClaim, name: &str) -> Result<(), Error> {
        let Some(volume) = self.volume(name) else { return self.wait(claim).await };
        if is_for(&volume, claim) {
            return self.bind(claim, &volume).await;
        }
        if claim_ref(&volume).is_some() {
            if !claim.annotations().contains_key(BOUND_BY_CONTROLLER) {
                let message = format!("volume {name:?} already bound to a different claim.");
                self.recorder.warning(claim, "FailedBinding", message);
            }
            return self.wait(claim).await;
        }
        if let Some(why) = matching::mismatch(&volume, claim) {
            let message = format!("Cannot bind to requested volume {name:?}: {why}");
            self.recorder.warning(claim, "VolumeMismatch", message);
            return self.wait(claim).await;
        }
        self.bind(claim, &volume).await
    }

    async fn choose(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        if let Some(class) = self.late_default(claim) {
            let mut changed = claim.clone();
            changed.spec.get_or_insert_default().storage_class_name = Some(class);
            // Its change brings it back.
            return self.api(claim).update(&changed).await.map(drop);
        }
        let name = class_of_claim(claim);
        let class = self.context.caches.classes.get(&ObjectKey::new("", name));
        let waits = class
            .as_ref()
            .is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        let is_selected = claim.annotations().get(SELECTED_NODE).is_some_and(|node| !node.is_empty());
        let chooser = if waits { Chooser::Scheduler } else { Chooser::This };
        let mut candidates = self.context.caches.volumes_by_class.get(name);
        candidates.extend(self.context.caches.volumes_by_claim.get(&claim_term(&ObjectKey::of(claim))));
        if let Some(volume) = matching::best(claim, &candidates, chooser) {
            return self.bind(claim, &volume).await;
        }
        if waits && !is_selected {
            self.tell_waiting(claim);
        } else if !name.is_empty() {
            self.ask_for_one(claim, name, class.as_deref()).await?;
        } else {
            let message = "no persistent volumes available for this claim and no storage class is set";
            self.recorder.normal(claim, "FailedBinding", message.to_owned());
        }
        self.wait(claim).await
    }

    /// The default class, where the claim was made before there was one (KEP-3333).
    fn late_default(&self, claim: &PersistentVolumeClaim) -> Option<String> {
        let named = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
        if named.is_some() || !class_of_claim(claim).is_empty() {
            return None;
        }
        let is_default = |class: &StorageClass| {
            DEFAULT.iter().any(|mark| class.annotations().get(*mark).is_some_and(|value| value == "true"))
        };
        let defaults = self.context.caches.classes.filter(is_default);
        // As admission chooses: the newest, and of those the first by name.
        let newest =
            defaults.iter().max_by(|a, b| a.created().cmp(&b.created()).then_with(|| b.name().cmp(a.name())));
        newest.map(|class| class.name().to_owned())
    }

    fn tell_waiting(&self, claim: &PersistentVolumeClaim) {
        let pods = self.context.caches.pods_by_claim.get(&claim_term(&ObjectKey::of(claim)));
        let is_waiting =
            |pod: &&Arc<Pod>| pod_node(pod).is_none() && !pod_is_terminal(pod) && !pod.is_deleting();
        match pods.iter().find(is_waiting) {
            Some(pod) => {
                let message = format!("waiting for pod {} to be scheduled", pod.name());
                self.recorder.normal(claim, "WaitForPodScheduled", message);
            }
            None => {
                let message = "waiting for first consumer to be created before binding";
                self.recorder.normal(claim, "WaitForFirstConsumer", message.to_owned());
            }
        }
    }

    /// Says who is to make a volume; that one watches for it.
    async fn ask_for_one(
        &self,
        claim: &PersistentVolumeClaim,
        name: &str,
        class: Option<&StorageClass>,
    ) -> Result<(), Error> {
        let Some(class) = class else {
            let message = format!("storageclass.storage.k8s.io {name:?} not found");
            self.recorder.warning(claim, "ProvisioningFailed", message);
            return Ok(());
        };
        let provisioner = &class.provisioner;
        if provisioner == NOBODY {
            let message = format!("no volume plugin matched name: {NOBODY}");
            self.recorder.warning(claim, "ProvisioningFailed", message);
            return Ok(());
        }
        let is_told = [PROVISIONER, PROVISIONER_BEFORE]
            .iter()
            .all(|mark| claim.annotations().get(*mark) == Some(provisioner));
        if !is_told {
            let mut changed = claim.clone();
            let annotations = changed.metadata.annotations.get_or_insert_default();
            for mark in [PROVISIONER, PROVISIONER_BEFORE] {
                annotations.insert(mark.to_owned(), provisioner.clone());
            }
            self.api(claim).update(&changed).await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
             system administrator. If volume creation is delayed, please verify that the provisioner is running and \
             correctly registered."
        );
        self.recorder.normal(claim, "ExternalProvisioning", message);
        Ok(())
    }

    async fn wait(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        self.write_status(claim, |status| status.phase = Some("Pending".to_owned())).await.map(drop)
    }

    /// Brings volume and claim together, as far as they are not.
    async fn bind(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Error> {
        let volume = self.give(claim, volume).await?;
        volumes::set_phase(&self.context, &volume, "Bound", "").await?;
        let claim = self.take(claim, &volume).await?;
        let spec = volume.spec.as_ref();
        self.write_status(&claim, |status| {
            status.phase = Some("Bound".to_owned());
            status.access_modes = spec.and_then(|spec| spec.access_modes.clone());
            // What grew since is the resizer's to say.
            if status.capacity.as_ref().is_none_or(|known| !known.contains_key("storage")) {
                status.capacity = spec.and_then(|spec| spec.capacity.clone());
            }
        })
        .await
        .map(drop)
    }

    /// The volume with the claim's name in it.
    async fn give(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<PersistentVolume, Error> {
        let known = claim_ref(volume);
        if known.is_some_and(|known| is_for(volume, claim) && known.uid.as_deref() == Some(claim.uid())) {
            return Ok(volume.clone());
        }
        let mut changed = volume.clone();
        if !is_for(volume, claim) {
            let annotations = changed.metadata.annotations.get_or_insert_default();
            annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
        }
        changed.spec.get_or_insert_default().claim_ref = Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            namespace: claim.metadata.namespace.clone(),
            name: claim.metadata.name.clone(),
            uid: claim.metadata.uid.clone(),
            resource_version: claim.metadata.resource_version.clone(),
            field_path: None,
        });
        Api::all(self.context.client.clone()).update(&changed).await
    }

    /// The claim with the volume's name in it.
    async fn take(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<PersistentVolumeClaim, Error> {
        let is_named = volume_name(claim) == Some(volume.name());
        if is_named && claim.annotations().contains_key(BIND_COMPLETED) {
            return Ok(claim.clone());
        }
        let mut changed = claim.clone();
        let annotations = changed.metadata.annotations.get_or_insert_default();
        annotations.insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
        if !is_named {
            annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
            changed.spec.get_or_insert_default().volume_name = Some(volume.name().to_owned());
        }
        self.api(claim).update(&changed).await
    }

    /// False where it says so already.
    async fn write_status(
        &self,
        claim: &PersistentVolumeClaim,
        change: impl FnOnce(&mut PersistentVolumeClaimStatus),
    ) -> Result<bool, Error> {
        let before = claim.status.clone().unwrap_or_default();
        let mut status = before.clone();
        change(&mut status);
        if status == before {
            return Ok(false);
        }
        let changed = PersistentVolumeClaim { status: Some(status), ..claim.clone() };
        match self.api(claim).update_status(&changed).await {
            Err(error) if error.is_not_found() => Ok(false),
            outcome => outcome.map(|_| true),
        }
    }
}
