//! Volumes that have grown while a claim has them (KEP-284): what is on them is made to use it, and the claim says so.

use std::time::Duration;

use hawser_api::Api;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;

use super::{VolumeError, Volumes};
use crate::quantity::value;

/// Claims are not watched: one that may have grown is looked at so often.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(120);

const STORAGE: &str = "storage";
/// Conditions of a claim that end with its growth.
const PENDING: [&str; 2] = ["Resizing", "FileSystemResizePending"];

/// The size that the volume has and the claim does not know of yet.
pub(super) fn grown_to<'v>(
    volume: &'v PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Option<&'v Quantity> {
    let of_volume = volume.spec.as_ref()?.capacity.as_ref()?.get(STORAGE)?;
    let of_claim = claim.status.as_ref()?.capacity.as_ref()?.get(STORAGE)?;
    (value(of_volume) > value(of_claim)).then_some(of_volume)
}

impl Volumes {
    pub(super) async fn note_growth(
        &self,
        claim: &PersistentVolumeClaim,
        size: &Quantity,
    ) -> Result<(), VolumeError> {
        let metadata = &claim.metadata;
        let conditions = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let left: Vec<_> =
            conditions.filter(|condition| !PENDING.contains(&condition.type_.as_str())).collect();
        let patch = json!({
            "metadata": { "uid": metadata.uid, "resourceVersion": metadata.resource_version },
            "status": {
                "capacity": { STORAGE: size },
                "allocatedResourceStatuses": { STORAGE: null },
                "conditions": left,
            },
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
}
