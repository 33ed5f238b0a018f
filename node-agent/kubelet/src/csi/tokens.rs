//! Tokens of the pod's service account for drivers that ask for them (KEP-2047).

use std::collections::BTreeMap;

use k8s_openapi::api::storage::v1::CSIDriverSpec;
use serde::Serialize;

use crate::pod::DesiredPod;
use crate::volumes::VolumeError;
use crate::volumes::payload::TokenKey;
use crate::volumes::token::TokenManager;

/// Where drivers look for them: in the volume's context, or among the secrets.
pub(super) const KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// Where the driver names none, as the API's default.
const LIFETIME_SECONDS: i64 = 3600;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    token: String,
    /// RFC 3339.
    expiration_timestamp: String,
}

/// Tokens by their audience, as JSON; `None` for a driver that asks for none.
pub(super) async fn requested(
    pod: &DesiredPod,
    spec: &CSIDriverSpec,
    tokens: &TokenManager,
) -> Result<Option<String>, VolumeError> {
    let mut by_audience = BTreeMap::new();
    for request in spec.token_requests.iter().flatten() {
        let key = TokenKey {
            audience: Some(request.audience.clone()).filter(|audience| !audience.is_empty()),
            expiration_seconds: request.expiration_seconds.unwrap_or(LIFETIME_SECONDS),
        };
        let found = tokens.get(pod, &key).await.map_err(VolumeError::Token)?;
        let token = Token { token: found.token, expiration_timestamp: found.expires_at.to_string() };
        by_audience.insert(request.audience.clone(), token);
    }
    Ok((!by_audience.is_empty()).then(|| serde_json::to_string(&by_audience).unwrap_or_default()))
}
