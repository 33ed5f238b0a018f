//! Who calls with a bearer token, and what anybody may, as the API server says: TokenReview and SubjectAccessReview
//! (upstream's `authentication.webhook` and `authorization.mode: Webhook`).

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hawser_api::GroupVersionResource;
use hawser_api::client::{Client, WriteOptions};
use hawser_api::resource::Target;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::auth::{Attributes, Authorizer, User};
use super::settings::Reviews;

const TOKEN_REVIEWS: GroupVersionResource =
    GroupVersionResource::fixed("authentication.k8s.io", "v1", "tokenreviews");
const ACCESS_REVIEWS: GroupVersionResource =
    GroupVersionResource::fixed("authorization.k8s.io", "v1", "subjectaccessreviews");

/// Answers of each sort that are kept. When there are more, all are forgotten, and asked for again.
const MAX_KEPT: usize = 1024;

/// What has a name of its own beside `nodes/proxy`, which allows all (KEP-2862).
const FINE_GRAINED: [&str; 3] = ["configz", "healthz", "pods"];

/// Asks the API server, and keeps what it says for a while.
pub struct Delegated {
    client: Arc<dyn Client>,
    node: String,
    /// Members of this group may do everything, and nobody is asked: the API server itself.
    trusted_group: String,
    reviews: Reviews,
    tokens: Kept<[u8; 32], Option<User>>,
    decisions: Kept<(User, &'static str, &'static str), bool>,
}

impl Delegated {
    pub fn new(client: Arc<dyn Client>, node: String, trusted_group: String, reviews: Reviews) -> Self {
        Self { client, node, trusted_group, reviews, tokens: Kept::default(), decisions: Kept::default() }
    }

    async fn ask(&self, resource: GroupVersionResource, spec: Value) -> Result<Value, String> {
        let target = Target::collection(resource, None);
        let review = json!({ "metadata": {}, "spec": spec }).to_string();
        let asked = self.client.create(&target, review.into(), &WriteOptions::default()).await;
        let answer = asked.map_err(|error| format!("the API server did not say: {error}"))?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
        Ok(answer["status"].clone())
    }

    async fn is_allowed(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, String> {
        let key = (user.clone(), verb, subresource);
        if let Some(allowed) = self.decisions.get(&key) {
            return Ok(allowed);
        }
        let node = &self.node;
        let attributes = json!({
            "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": node,
        });
        let spec = json!({ "user": user.name, "groups": user.groups, "resourceAttributes": attributes });
        let allowed = self.ask(ACCESS_REVIEWS, spec).await?["allowed"] == true;
        let Reviews { allowed_ttl, refused_ttl, .. } = self.reviews;
        self.decisions.keep(key, allowed, if allowed { allowed_ttl } else { refused_ttl });
        Ok(allowed)
    }
}

#[async_trait]
impl Authorizer for Delegated {
    async fn user_of_token(&self, token: &str) -> Result<Option<User>, String> {
        if !self.reviews.tokens {
            return Ok(None);
        }
        let key = Sha256::digest(token).into();
        if let Some(user) = self.tokens.get(&key) {
            return Ok(user);
        }
        let status = self.ask(TOKEN_REVIEWS, json!({ "token": token })).await?;
        let user = (status["authenticated"] == true).then(|| User {
            name: status["user"]["username"].as_str().unwrap_or_default().to_owned(),
            groups: status["user"]["groups"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|group| group.as_str().map(str::to_owned))
                .collect(),
        });
        self.tokens.keep(key, user.clone(), self.reviews.token_ttl);
        Ok(user)
    }

    async fn authorize(&self, user: &User, attributes: &Attributes) -> Result<(), String> {
        if user.groups.contains(&self.trusted_group) {
            return Ok(());
        }
        let Attributes { verb, subresource, .. } = attributes;
        if self.is_allowed(user, verb, subresource).await?
            || FINE_GRAINED.contains(subresource) && self.is_allowed(user, verb, "proxy").await?
        {
            return Ok(());
        }
        Err(format!("user={:?}, verb={verb}, resource=nodes, subresource={subresource}", user.name))
    }
}

/// Answers that hold for a while.
struct Kept<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Kept<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let kept = self.0.lock();
        kept.get(key).filter(|(_, until)| Instant::now() < *until).map(|(value, _)| value.clone())
    }

    fn keep(&self, key: K, value: V, ttl: Duration) {
        let mut kept = self.0.lock();
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(key, (value, Instant::now() + ttl));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hawser_api::Error;
    use hawser_api::client::{Binding, DeleteOptions, List, ListOptions, Patch, WatchOptions, WatchStream};

    use super::*;

    /// Knows the token `good`, and lets `scraper` read metrics and `viewer` do what `nodes/proxy` allows.
    #[derive(Default)]
    struct Api {
        asked: Mutex<Vec<String>>,
        is_away: std::sync::atomic::AtomicBool,
    }

    #[async_trait]
    impl Client for Api {
        async fn create(&self, target: &Target, object: Bytes, _: &WriteOptions) -> Result<Bytes, Error> {
            if self.is_away.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Error::unavailable("away"));
            }
            let spec = serde_json::from_slice::<Value>(&object).unwrap()["spec"].clone();
            let status = if target.resource == TOKEN_REVIEWS {
                self.asked.lock().push(spec["token"].as_str().unwrap().to_owned());
                let user = json!({ "username": "scraper", "groups": ["g"] });
                json!({ "authenticated": spec["token"] == "good", "user": user })
            } else {
                let attributes = &spec["resourceAttributes"];
                assert_eq!((&attributes["resource"], &attributes["name"]), (&json!("nodes"), &json!("n1")));
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                let (user, subresource) = (text(&spec["user"]), text(&attributes["subresource"]));
                self.asked.lock().push(format!("{user} {} {subresource}", text(&attributes["verb"])));
                let allowed = [("scraper", "metrics"), ("viewer", "proxy")];
                json!({ "allowed": allowed.contains(&(user.as_str(), subresource.as_str())) })
            };
            Ok(json!({ "status": status }).to_string().into())
        }

        async fn get(&self, _: &Target) -> Result<Bytes, Error> {
            unreachable!("only reviews are sent")
        }

        async fn list(&self, _: &Target, _: &ListOptions) -> Result<List, Error> {
            unreachable!("only reviews are sent")
        }

        async fn watch(&self, _: &Target, _: &WatchOptions) -> Result<WatchStream, Error> {
            unreachable!("only reviews are sent")
        }

        async fn update(&self, _: &Target, _: Bytes, _: &WriteOptions) -> Result<Bytes, Error> {
            unreachable!("only reviews are sent")
        }

        async fn patch(&self, _: &Target, _: Patch, _: &WriteOptions) -> Result<Bytes, Error> {
            unreachable!("only reviews are sent")
        }

        async fn delete(&self, _: &Target, _: &DeleteOptions) -> Result<Bytes, Error> {
            unreachable!("only reviews are sent")
        }

        async fn bind(&self, _: &[Binding]) -> Vec<Result<(), Error>> {
            unreachable!("only reviews are sent")
        }
    }

    fn delegated() -> (Arc<Api>, Delegated) {
        let api = Arc::new(Api::default());
        (api.clone(), Delegated::new(api, "n1".into(), "system:masters".into(), Reviews::default()))
    }

    fn user(name: &str, group: &str) -> User {
        User { name: name.into(), groups: vec![group.into()] }
    }

    fn reading(subresource: &'static str) -> Attributes {
        Attributes { verb: "get", subresource, path: String::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_reviewed_once_for_a_while() {
        let (api, delegated) = delegated();
        let scraper = Some(user("scraper", "g"));
        for _ in 0..3 {
            assert_eq!(delegated.user_of_token("good").await, Ok(scraper.clone()));
            assert_eq!(delegated.user_of_token("bad").await, Ok(None));
        }
        assert_eq!(*api.asked.lock(), ["good", "bad"]);
        tokio::time::advance(Reviews::default().token_ttl).await;
        api.is_away.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(delegated.user_of_token("good").await.is_err(), "nobody vouches for it any more");
    }

    #[tokio::test(start_paused = true)]
    async fn access_is_what_the_api_says_by_either_name() {
        let (api, delegated) = delegated();
        let scraper = user("scraper", "g");
        assert_eq!(delegated.authorize(&scraper, &reading("metrics")).await, Ok(()));
        assert_eq!(delegated.authorize(&scraper, &reading("metrics")).await, Ok(()));
        assert!(delegated.authorize(&scraper, &reading("log")).await.is_err());
        assert_eq!(delegated.authorize(&user("viewer", "g"), &reading("pods")).await, Ok(()));
        assert_eq!(delegated.authorize(&user("root", "system:masters"), &reading("log")).await, Ok(()));
        let asked = ["scraper get metrics", "scraper get log", "viewer get pods", "viewer get proxy"];
        assert_eq!(*api.asked.lock(), asked);
        tokio::time::advance(Reviews::default().allowed_ttl).await;
        api.is_away.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(
            delegated.authorize(&scraper, &reading("metrics")).await.is_err(),
            "what is not known is refused"
        );
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let kept = Kept::<usize, ()>::default();
        for key in 0..3 * MAX_KEPT {
            kept.keep(key, (), Reviews::default().token_ttl);
        }
        assert!(kept.0.lock().len() <= MAX_KEPT);
    }
}
