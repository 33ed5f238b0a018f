//! Service account tokens: issued by TokenRequest, bound to objects, expiring.
//!
//! Claims are upstream's (KEP-1205), so that other programs can read them. A token is good while its signature, audience
//! and times are, and while its service account, and the pod, node or secret it is bound to, exist under the same uid:
//! deleting the pod ends its tokens at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;
use parking_lot::RwLock;
use ring::digest;
use serde_json::{Value, json};

use super::{
    AUTHENTICATED, User,
    bootstrap::{self, BootstrapToken},
    jwt::{ALGORITHM, Signed, SigningKey},
    keys::VerifyingKey,
};
use crate::{cache::KindCache, resources::Resources};

/// Verified tokens that are remembered, so that each costs one signature check. When full, all are forgotten.
const REMEMBERED: usize = 8_192;

/// Tokens for pods are served for a year when asked for an hour, as upstream does (`--service-account-extend-token-expiration`):
/// clients that never read the file again go on working. `warnafter` says when they should have.
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;
const EXTENDED_REQUEST_SECONDS: i64 = 3607;

/// Clocks of issuer and server may differ by this much.
const LEEWAY_SECONDS: i64 = 10;

/// What a token is asked for.
pub struct TokenRequest<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    pub account_uid: &'a str,
    /// Empty for the API server's own.
    pub audiences: Vec<String>,
    pub seconds: i64,
    /// Kind (`Pod`, `Secret`, `Node`), name and uid.
    pub bound: Option<(String, String, String)>,
    /// The node of the pod it is bound to: name and uid.
    pub node: Option<(String, String)>,
}

pub struct Tokens {
    key: SigningKey,
    /// Keys of others, whose tokens are taken too.
    further: Vec<VerifyingKey>,
    issuer: String,
    verified: RwLock<HashMap<[u8; 32], Arc<Value>>>,
    accounts: Arc<KindCache>,
    pods: Arc<KindCache>,
    secrets: Arc<KindCache>,
    nodes: Arc<KindCache>,
}

/// Seconds since 1970.
pub fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

impl Tokens {
    pub fn new(key: SigningKey, further: Vec<VerifyingKey>, issuer: String, resources: &Resources) -> Self {
        let cache =
            |plural| resources.builtin("", "v1", plural).cache().expect("a kind that is stored").clone();
        Self {
            key,
            further,
            issuer,
            verified: RwLock::default(),
            accounts: cache("serviceaccounts"),
            pods: cache("pods"),
            secrets: cache("secrets"),
            nodes: cache("nodes"),
        }
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// All keys, as a JSON Web Key Set (RFC 7517), for `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        let further = self.further.iter().map(VerifyingKey::jwk);
        json!({ "keys": std::iter::once(self.key.jwk()).chain(further).collect::<Vec<Value>>() })
    }

    /// The algorithms of the keys, each once.
    pub fn algorithms(&self) -> BTreeSet<&'static str> {
        self.further.iter().map(VerifyingKey::algorithm).chain([ALGORITHM]).collect()
    }

    /// A token, and when it expires (seconds since 1970).
    pub fn issue(&self, request: TokenRequest<'_>, now: i64) -> (String, i64) {
        let own_audience = request.audiences.is_empty() || request.audiences == [self.issuer.as_str()];
        let audiences =
            if request.audiences.is_empty() { vec![self.issuer.clone()] } else { request.audiences };
        let mut kubernetes = json!({
            "namespace": request.namespace,
            "serviceaccount": { "name": request.account, "uid": request.account_uid },
        });
        let mut seconds = request.seconds;
        if let Some((kind, name, uid)) = &request.bound {
            kubernetes[kind.to_lowercase()] = json!({ "name": name, "uid": uid });
            if kind == "Pod" && own_audience && seconds == EXTENDED_REQUEST_SECONDS {
                kubernetes["warnafter"] = json!(now + seconds);
                seconds = EXTENDED_SECONDS;
            }
        }
        if let Some((name, uid)) = request.node {
            kubernetes["node"] = json!({ "name": name, "uid": uid });
        }
        let expires = now + seconds;
        let claims = json!({
            "iss": self.issuer,
            "sub": format!("system:serviceaccount:{}:{}", request.namespace, request.account),
            "aud": audiences,
            "exp": expires, "iat": now, "nbf": now,
            "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": kubernetes,
        });
        (self.key.sign(&claims), expires)
    }

    /// Whom a token speaks for, and the audiences of `accepted` that it is for; `None` for a token that is not good.
    ///
    /// With no `accepted` audiences the API server's own is meant.
    pub fn authenticate(
        &self,
        token: &str,
        accepted: &[String],
        now: i64,
    ) -> Option<(Arc<User>, Vec<String>)> {
        let own = [self.issuer.clone()];
        let accepted = if accepted.is_empty() { &own[..] } else { accepted };
        if let Some(token) = BootstrapToken::parse(token) {
            // It names no audience, and is for this server alone.
            let secret = self.secrets.get(bootstrap::NAMESPACE, &token.secret_name())?.value();
            let user = token.user(&secret, Timestamp::from_second(now).ok()?)?;
            return accepted.contains(&self.issuer).then(|| (user, own.to_vec()));
        }
        let claims = self.verify(token)?;
        let seconds = |name: &str| claims[name].as_i64();
        let good = claims["iss"] == self.issuer.as_str()
            && seconds("exp").is_some_and(|expires| now < expires + LEEWAY_SECONDS)
            && seconds("nbf").is_none_or(|begins| now >= begins - LEEWAY_SECONDS);
        if !good {
            return None;
        }
        let audiences: Vec<String> = claims["aud"]
            .as_array()?
            .iter()
            .filter_map(Value::as_str)
            .filter(|audience| accepted.iter().any(|known| known == audience))
            .map(str::to_owned)
            .collect();
        if audiences.is_empty() {
            return None;
        }
        Some((self.user_of(&claims)?, audiences))
    }

    fn verify(&self, token: &str) -> Option<Arc<Value>> {
        let hash: [u8; 32] = digest::digest(&digest::SHA256, token.as_bytes()).as_ref().try_into().ok()?;
        if let Some(claims) = self.verified.read().get(&hash) {
            return Some(claims.clone());
        }
        let claims = Arc::new(self.key.verify(token).or_else(|| self.verify_further(token))?);
        let mut verified = self.verified.write();
        if verified.len() >= REMEMBERED {
            verified.clear();
        }
        verified.insert(hash, claims.clone());
        Some(claims)
    }

    fn verify_further(&self, token: &str) -> Option<Value> {
        let token = Signed::parse(token).filter(|_| !self.further.is_empty())?;
        let mut keys = self.further.iter();
        keys.find(|key| key.verifies(&token.algorithm, token.signed, &token.signature))?;
        token.claims()
    }

    /// The user, if everything the token hangs on still exists.
    fn user_of(&self, claims: &Value) -> Option<Arc<User>> {
        let bound = &claims["kubernetes.io"];
        let namespace = bound["namespace"].as_str()?;
        let account = bound["serviceaccount"]["name"].as_str()?;
        exists(&self.accounts, namespace, &bound["serviceaccount"])?;
        let mut extra = BTreeMap::new();
        if let Some(id) = claims["jti"].as_str() {
            extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={id}")]);
        }
        for (claim, cache, namespace) in
            [("pod", &self.pods, namespace), ("secret", &self.secrets, namespace), ("node", &self.nodes, "")]
        {
            let Some(name) = bound[claim]["name"].as_str() else { continue };
            // A node beside a pod is a note of where the pod was, not what the token is bound to.
            if claim != "node" || bound["pod"].is_null() {
                exists(cache, namespace, &bound[claim])?;
            }
            if claim != "secret" {
                let uid = bound[claim]["uid"].as_str().unwrap_or_default();
                extra.insert(format!("authentication.kubernetes.io/{claim}-name"), vec![name.to_owned()]);
                extra.insert(format!("authentication.kubernetes.io/{claim}-uid"), vec![uid.to_owned()]);
            }
        }
        Some(Arc::new(User {
            name: format!("system:serviceaccount:{namespace}:{account}"),
            uid: bound["serviceaccount"]["uid"].as_str().unwrap_or_default().to_owned(),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                AUTHENTICATED.to_owned(),
            ],
            extra,
        }))
    }
}

/// For how long an object that is being deleted still vouches for its tokens, in seconds (as upstream).
const VOUCHING_SECONDS: i64 = 60;

/// Whether the object that a claim names is there, under the same uid, and not kept by finalizers alone.
fn exists(cache: &KindCache, namespace: &str, claim: &Value) -> Option<()> {
    let object = cache.get(namespace, claim["name"].as_str()?)?;
    let object = object.value();
    let metadata = &object["metadata"];
    let deleted = metadata["deletionTimestamp"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
    let is_over = deleted.is_some_and(|at| at.as_second() + VOUCHING_SECONDS < unix_now());
    (metadata["uid"] == claim["uid"] && !is_over).then_some(())
}
