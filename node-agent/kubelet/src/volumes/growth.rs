//! Volumes that have grown while a claim has them (KEP-284): what is on them is made to use it, and the claim says so.

use std::path::Path;
use std::time::Duration;

use hawser_api::Api;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::{VolumeError, Volumes};
use crate::csi::volume::CsiVolume;
use crate::quantity::value;

/// Claims are not watched: one that may have grown is looked at so often.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(120);

const STORAGE: &str = "storage";
/// Conditions of a claim that end with its growth.
const PENDING: [&str; 4] = ["Resizing", "FileSystemResizePending", "ControllerResizeError", RESIZE_ERROR];
const RESIZE_ERROR: &str = "NodeResizeError";
/// The driver will never do it: it is not asked again until the claim asks for something else.
const INFEASIBLE: &str = "NodeResizeInfeasible";

/// What became of a PersistentVolume that has grown.
#[derive(Clone, Debug)]
pub struct Grown {
    pub volume: String,
    /// Why what is on it has not.
    pub failure: Option<String>,
}

/// The size that the volume has and the claim does not know of yet.
pub(super) fn grown_to<'v>(
    volume: &'v PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Option<&'v Quantity> {
    let of_volume = volume.spec.as_ref()?.capacity.as_ref()?.get(STORAGE)?;
    let status = claim.status.as_ref()?;
    let of_claim = status.capacity.as_ref()?.get(STORAGE)?;
    let is_hopeless = status.allocated_resource_statuses.as_ref().and_then(|all| all.get(STORAGE));
    let is_wanted = value(of_volume) > value(of_claim);
    (is_wanted && is_hopeless.is_none_or(|status| status != INFEASIBLE)).then_some(of_volume)
}

/// Of a driver that has answered, as upstream has it: asked again it would say the same.
fn is_infeasible(error: &VolumeError) -> bool {
    use tonic::Code::{InvalidArgument, NotFound, OutOfRange};
    matches!(error, VolumeError::Csi { code: Some(InvalidArgument | OutOfRange | NotFound), .. })
}

impl Volumes {
    /// Has the driver make what is on the volume larger, and says on the claim how that went. Where it fails, the pod has
    /// the volume all the same, as large as it was.
    pub(super) async fn grow(
        &self,
        csi: &CsiVolume,
        path: &Path,
        claim: &PersistentVolumeClaim,
        size: &Quantity,
    ) -> Grown {
        let grown = match self.csi.expand(csi, path, size).await {
            Ok(()) => self.note_growth(claim, size).await,
            Err(error) => {
                if let Err(error) = self.note_failure(claim, &error).await {
                    tracing::warn!(volume = csi.name, %error, "a claim does not show that its volume did not grow");
                }
                Err(error)
            }
        };
        Grown { volume: csi.name.clone(), failure: grown.err().map(|error| error.to_string()) }
    }

    /// On the claim, unless it says so already.
    async fn note_failure(
        &self,
        claim: &PersistentVolumeClaim,
        failure: &VolumeError,
    ) -> Result<(), VolumeError> {
        let message = format!("failed to expand pvc with {failure}");
        let conditions = || claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let is_known =
            conditions().any(|known| known.type_ == RESIZE_ERROR && known.message.as_ref() == Some(&message));
        if is_known && !is_infeasible(failure) {
            return Ok(());
        }
        let mut all: Vec<_> = conditions().filter(|known| known.type_ != RESIZE_ERROR).cloned().collect();
        all.push(PersistentVolumeClaimCondition {
            type_: RESIZE_ERROR.into(),
            status: "True".into(),
            message: Some(message),
            last_transition_time: Some(Time(Timestamp::now())),
            ..PersistentVolumeClaimCondition::default()
        });
        let mut status = json!({ "conditions": all });
        if is_infeasible(failure) {
            status["allocatedResourceStatuses"] = json!({ STORAGE: INFEASIBLE });
        }
        self.patch_status(claim, status).await
    }

    async fn note_growth(&self, claim: &PersistentVolumeClaim, size: &Quantity) -> Result<(), VolumeError> {
        let conditions = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let left: Vec<_> =
            conditions.filter(|condition| !PENDING.contains(&condition.type_.as_str())).collect();
        let status = json!({
            "capacity": { STORAGE: size },
            "allocatedResourceStatuses": { STORAGE: null },
            "conditions": left,
        });
        self.patch_status(claim, status).await
    }

    async fn patch_status(
        &self,
        claim: &PersistentVolumeClaim,
        status: serde_json::Value,
    ) -> Result<(), VolumeError> {
        let metadata = &claim.metadata;
        let patch = json!({
            "metadata": { "uid": metadata.uid, "resourceVersion": metadata.resource_version },
            "status": status,
        });
        let name = metadata.name.clone().unwrap_or_default();
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let written = claims.merge_patch_status(&name, &patch).await;
        written.map(drop).map_err(|error| VolumeError::Claim { claim: name, message: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_grows_when_it_knows_of_less_than_there_is() {
        let to = |volume: serde_json::Value, claim: serde_json::Value| {
            let volume = json!({ "metadata": {}, "spec": { "capacity": volume } });
            let claim = json!({ "metadata": {}, "status": { "capacity": claim } });
            let volume: PersistentVolume = serde_json::from_value(volume).expect("a volume");
            let claim: PersistentVolumeClaim = serde_json::from_value(claim).expect("a claim");
            grown_to(&volume, &claim).map(|size| size.0.clone())
        };
        assert_eq!(to(json!({ "storage": "2Gi" }), json!({ "storage": "1Gi" })).as_deref(), Some("2Gi"));
        assert_eq!(to(json!({ "storage": "1Gi" }), json!({ "storage": "1024Mi" })), None);
        assert_eq!(to(json!({ "storage": "1Gi" }), json!({ "storage": "2Gi" })), None);
        assert_eq!(to(json!({ "storage": "1Gi" }), json!({})), None, "its binder has not written it yet");
    }

    #[test]
    fn what_will_never_be_done_is_not_asked_for_again() {
        let failed = |code| VolumeError::Csi { driver: "d".into(), message: "no".into(), code };
        assert!(is_infeasible(&failed(Some(tonic::Code::OutOfRange))));
        assert!(!is_infeasible(&failed(Some(tonic::Code::Unavailable))));
        assert!(!is_infeasible(&failed(None)), "the API was asked for a secret in vain");
        let volume = json!({ "metadata": {}, "spec": { "capacity": { "storage": "2Gi" } } });
        let volume: PersistentVolume = serde_json::from_value(volume).expect("a volume");
        for (status, is_asked_for) in [("NodeResizePending", true), (INFEASIBLE, false)] {
            let status = json!({ "capacity": { "storage": "1Gi" }, "allocatedResourceStatuses": { "storage": status } });
            let claim = json!({ "metadata": {}, "status": status });
            let claim: PersistentVolumeClaim = serde_json::from_value(claim).expect("a claim");
            assert_eq!(grown_to(&volume, &claim).is_some(), is_asked_for);
        }
    }
}
