//! Service account tokens for projected volumes: requested through TokenRequest, kept, renewed in time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::GroupVersionResource;
use hawser_api::client::{Client, WriteOptions};
use hawser_api::resource::Target;
use hawser_api::typed::{decode, encode};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::payload::TokenKey;
use crate::pod::DesiredPod;

/// A token is renewed after this share of its life...
const RENEW_PERCENT: u32 = 80;
/// ...and after a day at the latest.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone)]
pub struct Token {
    pub token: String,
    /// When to ask again.
    pub renew_at: Instant,
    /// By the API server's clock.
    pub expires_at: Timestamp,
    /// When it expires by this node's monotonic clock: whether it is good does not hang on what the wall clock shows.
    good_until: Instant,
}

/// Tokens by pod uid; a pod's are forgotten with it.
pub struct TokenManager {
    client: Arc<dyn Client>,
    kept: Mutex<HashMap<String, HashMap<TokenKey, Token>>>,
}

impl TokenManager {
    pub fn new(client: Arc<dyn Client>) -> Self {
        Self { client, kept: Mutex::default() }
    }

    /// A valid token. An old one is good while the API is away and it has not expired.
    pub async fn get(&self, pod: &DesiredPod, key: &TokenKey) -> Result<Token, hawser_api::Error> {
        let known = self.kept.lock().get(pod.uid()).and_then(|tokens| tokens.get(key)).cloned();
        let now = Instant::now();
        if let Some(kept) = known.as_ref().filter(|k| k.renew_at > now) {
            return Ok(kept.clone());
        }
        match self.request(pod, key).await {
            Ok(fresh) => {
                let mut kept = self.kept.lock();
                kept.entry(pod.uid().to_owned()).or_default().insert(key.clone(), fresh.clone());
                Ok(fresh)
            }
            Err(error) => match known.filter(|k| k.good_until > now) {
                Some(kept) => Ok(Token { renew_at: now + Duration::from_secs(60), ..kept }),
                None => Err(error),
            },
        }
    }

    async fn request(&self, pod: &DesiredPod, key: &TokenKey) -> Result<Token, hawser_api::Error> {
        let account = pod.service_account();
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: key.audience.clone().map(|audience| vec![audience]),
                expiration_seconds: Some(key.expiration_seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.name().to_owned()),
                    uid: Some(pod.uid().to_owned()),
                }),
            }),
            ..TokenRequest::default()
        };
        let resource = GroupVersionResource::of::<ServiceAccount>();
        let target = Target::object(resource, Some(pod.namespace()), account).with_subresource("token");
        let answer = self.client.create(&target, encode(&request)?, &WriteOptions::default()).await?;
        let answer = decode::<TokenRequest>(&answer)?;
        let status = answer.status.unwrap_or_default();
        let missing = || hawser_api::Error::internal("the answer to the token request has no token");
        let token = status.token.filter(|t| !t.is_empty()).ok_or_else(missing)?;
        // The server grants less than was asked for where its bounds are narrower.
        let granted = answer.spec.and_then(|spec| spec.expiration_seconds).unwrap_or(key.expiration_seconds);
        let life = Duration::from_secs(granted.max(0).unsigned_abs());
        let expires_at = status.expiration_timestamp.map_or_else(|| Timestamp::now() + life, |t| t.0);
        let now = Instant::now();
        Ok(Token { token, renew_at: now + renewed_after(life), expires_at, good_until: now + life })
    }

    pub fn forget(&self, pod_uid: &str) {
        self.kept.lock().remove(pod_uid);
    }
}

fn renewed_after(life: Duration) -> Duration {
    (life * RENEW_PERCENT / 100).min(RENEW_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_at_80_percent_of_their_life() {
        assert_eq!(renewed_after(Duration::from_secs(1000)), Duration::from_secs(800));
        let year = Duration::from_secs(365 * 24 * 3600);
        assert_eq!(renewed_after(year), Duration::from_secs(24 * 3600));
    }
}
