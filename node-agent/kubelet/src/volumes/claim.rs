//! Volumes behind claims: PersistentVolumes that are local to this node, NFS exports, or a CSI driver's.

use std::path::{Path, PathBuf};

use hawser_api::Api;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec};

use super::{Mounted, Shown, VolumeError, Volumes, growth, host_path, nfs, ownership};
use crate::csi::volume::CsiVolume;
use crate::durable;
use crate::pod::DesiredPod;

/// The claim that a pod's volume names, or has of its own.
pub(super) struct Claim<'a> {
    pub(super) name: &'a str,
    pub(super) read_only: bool,
    /// Made for this pod from a template: a claim of that name that was not is somebody else's.
    pub(super) is_own: bool,
}

/// What a claim is bound to.
struct Bound {
    volume: PersistentVolume,
    /// Absent while the API is, and the volume known from before.
    claim: Option<PersistentVolumeClaim>,
}

impl Volumes {
    /// The volume behind the claim, mounted, or the device that it is.
    pub(super) async fn claimed(&self, pod: &DesiredPod, claim: Claim<'_>) -> Result<Shown, VolumeError> {
        let Bound { volume, claim: object } = self.bound_volume(pod, &claim).await?;
        if let Some(csi) = CsiVolume::of_persistent(&volume, claim.read_only) {
            return self.claimed_of_driver(pod, &csi, (&volume, object.as_ref()), claim.read_only).await;
        }
        let is_block = volume.spec.as_ref().is_some_and(|s| s.volume_mode.as_deref() == Some("Block"));
        match &volume {
            PersistentVolume { spec: Some(PersistentVolumeSpec { local: Some(local), .. }), .. }
                if is_block =>
            {
                Mounted::device(Path::new(&local.path), claim.read_only).map(Shown::from)
            }
            _ if is_block => {
                Err(VolumeError::Unsupported("a block device of this kind of persistent volume"))
            }
            _ => {
                let path = self.mount_claimed(pod, volume, &claim).await?;
                Ok(Mounted::with_access(path, claim.read_only).into())
            }
        }
    }

    async fn claimed_of_driver(
        &self,
        pod: &DesiredPod,
        csi: &CsiVolume,
        (volume, claim): (&PersistentVolume, Option<&PersistentVolumeClaim>),
        read_only: bool,
    ) -> Result<Shown, VolumeError> {
        let published = self.csi.publish(pod, csi, &self.tokens).await?;
        let expands = published.expands && !csi.read_only;
        let growth = claim.and_then(|claim| Some((claim, growth::grown_to(volume, claim)?)));
        let grown = match growth.filter(|_| expands) {
            Some((claim, size)) => Some(self.grow(csi, &published.path, claim, size).await),
            None => None,
        };
        let mounted = match csi.is_block {
            true => Mounted::device(&published.path, csi.read_only)?,
            false => Mounted::with_access(published.path, read_only),
        };
        let look_again = expands.then_some(growth::LOOK_AGAIN);
        let again_after = published.again_after.into_iter().chain(look_again).min();
        Ok(Shown { mounted, again_after, grown })
    }

    async fn mount_claimed(
        &self,
        pod: &DesiredPod,
        volume: PersistentVolume,
        claim: &Claim<'_>,
    ) -> Result<PathBuf, VolumeError> {
        let name = volume.metadata.name.unwrap_or_default();
        let spec = volume.spec.unwrap_or_default();
        if let Some(local) = spec.local {
            let path = PathBuf::from(local.path);
            if let Some(group) = group(pod).filter(|_| !claim.read_only) {
                let failed = |source| VolumeError::Io { path: path.clone(), source };
                ownership::set(pod, &path, group).await.map_err(failed)?;
            }
            return Ok(path);
        }
        if let Some(source) = spec.nfs {
            let options = spec.mount_options.unwrap_or_default();
            return self.mount_nfs(pod, &name, &source, &options).await;
        }
        match spec.host_path {
            Some(source) => host_path::prepare(&source),
            None => Err(VolumeError::Unsupported("this kind of persistent volume")),
        }
    }

    pub(super) async fn mount_nfs(
        &self,
        pod: &DesiredPod,
        name: &str,
        source: &k8s_openapi::api::core::v1::NFSVolumeSource,
        options: &[String],
    ) -> Result<PathBuf, VolumeError> {
        let dir = self.config.pod_dir(pod.uid()).join("volumes/kubernetes.io~nfs").join(name);
        nfs::mount(source, options, &dir).await?;
        Ok(dir)
    }

    async fn bound_volume(&self, pod: &DesiredPod, claim: &Claim<'_>) -> Result<Bound, VolumeError> {
        let kept = self.config.pod_dir(pod.uid()).join("claims").join(format!("{}.json", claim.name));
        let known = || std::fs::read(&kept).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        // An agent that starts while the API is away does not wait for it.
        if !self.objects.pods.is_synced()
            && let Some(volume) = known()
        {
            return Ok(Bound { volume, claim: None });
        }
        match self.ask_for_volume(pod, claim).await {
            Ok((volume, object)) => {
                // For a start without the API. Without it, all else is as well as before.
                let content = serde_json::to_vec(&volume).unwrap_or_default();
                if std::fs::read(&kept).ok().as_ref() != Some(&content)
                    && let Err(error) = durable::write(&kept, &content)
                {
                    tracing::warn!(pod = %pod.key(), claim = claim.name, %error, "volume of a claim was not noted");
                }
                Ok(Bound { volume, claim: Some(object) })
            }
            Err(error) => Err(error),
        }
    }

    async fn ask_for_volume(
        &self,
        pod: &DesiredPod,
        claim: &Claim<'_>,
    ) -> Result<(PersistentVolume, PersistentVolumeClaim), VolumeError> {
        let failed = |message: String| VolumeError::Claim { claim: claim.name.to_owned(), message };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), pod.namespace());
        let found = claims.get(claim.name).await.map_err(|e| failed(e.to_string()))?;
        let owners = found.metadata.owner_references.as_deref().unwrap_or_default();
        if claim.is_own
            && !owners.iter().any(|owner| owner.uid == pod.uid() && owner.controller == Some(true))
        {
            let (name, key) = (claim.name, pod.key());
            return Err(failed(format!("PVC {name} was not created for pod {key} (pod is not owner)")));
        }
        let bound = found.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let volume = found.spec.as_ref().and_then(|s| s.volume_name.as_deref()).filter(|_| bound);
        let volume = volume.ok_or_else(|| failed("is not bound yet".into()))?;
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let volume = volumes.get(volume).await.map_err(|e| failed(e.to_string()))?;
        Ok((volume, found))
    }
}

fn group(pod: &DesiredPod) -> Option<u32> {
    let group = pod.spec().security_context.as_ref().and_then(|context| context.fs_group)?;
    u32::try_from(group).ok()
}

/// Of a generic ephemeral volume.
pub(super) fn own_claim_name(pod: &DesiredPod, volume: &str) -> String {
    format!("{}-{volume}", pod.name())
}
