//! Talking to one registry with one credential: what it asks for with a 401 is got, and the question asked again.

use std::fs;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Certificate, Client, ClientBuilder, Identity, Method, Response, StatusCode, redirect};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::challenge::{self, Challenge};
use super::hosts::Endpoint;
use super::{Failure, MAX_DOCUMENT_BYTES};
use crate::{PullErrorKind, RegistryAuth};

/// How long a registry may take to accept a connection, and be silent in the middle of an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Blobs are often elsewhere, but not endlessly.
const MAX_REDIRECTS: usize = 10;
/// Who asks, where a token is asked for by a refresh token.
const CLIENT_ID: &str = "hawser";

pub(super) struct Session {
    client: Client,
    /// Sent with every request to the host.
    headers: HeaderMap,
    endpoint: Endpoint,
    /// `library/busybox`
    repository: String,
    /// The registry that the image names, which mirrors are told.
    namespace: String,
    auth: Option<RegistryAuth>,
    /// What is sent with every question, once it is known what that is.
    authorization: Mutex<Option<HeaderValue>>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    code: String,
    message: Option<String>,
}

impl Session {
    pub(super) fn new(
        endpoint: Endpoint,
        namespace: &str,
        repository: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<Self, Failure> {
        let authorization = match &auth {
            Some(RegistryAuth::Bearer { token }) => Some(secret(format!("Bearer {token}"))?),
            _ => None,
        };
        Ok(Self {
            client: client(&endpoint)?,
            headers: headers(&endpoint)?,
            endpoint,
            repository: repository.to_owned(),
            namespace: namespace.to_owned(),
            auth,
            authorization: Mutex::new(authorization),
        })
    }

    pub(super) fn is_mirror(&self) -> bool {
        self.endpoint.is_mirror
    }

    /// `accept`: media types, where the answer's is to be one of them; `from`: the first byte that is wanted.
    pub(super) async fn get(&self, path: &str, accept: &[&str], from: u64) -> Result<Response, Failure> {
        self.request(Method::GET, path, accept, from).await
    }

    /// The headers alone of what [`Self::get`] would give.
    pub(super) async fn head(&self, path: &str, accept: &[&str]) -> Result<Response, Failure> {
        self.request(Method::HEAD, path, accept, 0).await
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        accept: &[&str],
        from: u64,
    ) -> Result<Response, Failure> {
        let mut url = format!("{}/{}/{path}", self.endpoint.base, self.repository);
        if self.endpoint.is_mirror {
            url.push_str(&format!("?ns={}", self.namespace));
        }
        let known = self.authorization.lock().await.clone();
        let answer = self.ask(method.clone(), &url, accept, from, known.clone()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return checked(&url, answer).await;
        }
        let asked = answer.headers().get_all(WWW_AUTHENTICATE).iter();
        let Some(challenge) = challenge::parse(asked.filter_map(|value| value.to_str().ok())) else {
            return checked(&url, answer).await;
        };
        // Several layers come at the same time, and one token does for all.
        let mut authorization = self.authorization.lock().await;
        if *authorization == known {
            let Some(fresh) = self.authorize(challenge).await? else { return checked(&url, answer).await };
            *authorization = Some(fresh);
        }
        let fresh = authorization.clone();
        drop(authorization);
        checked(&url, self.ask(method, &url, accept, from, fresh).await?).await
    }

    async fn ask(
        &self,
        method: Method,
        url: &str,
        accept: &[&str],
        from: u64,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Failure> {
        // They are for the host alone, not for whoever gives its tokens.
        let mut request = self.client.request(method, url).headers(self.headers.clone());
        for media_type in accept {
            request = request.header(ACCEPT, *media_type);
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        request.send().await.map_err(|error| unavailable(url, &error))
    }

    /// What answers the challenge; `None` where there is nothing to answer it with.
    async fn authorize(&self, challenge: Challenge) -> Result<Option<HeaderValue>, Failure> {
        match (challenge, &self.auth) {
            (Challenge::Basic, Some(RegistryAuth::Basic { username, password })) => {
                use base64::Engine;
                let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
                secret(format!("Basic {pair}")).map(Some)
            }
            (Challenge::Bearer { realm, service, scope }, auth) => match auth {
                Some(RegistryAuth::Bearer { .. }) => Ok(None),
                _ => {
                    let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
                    self.token(&realm, service.as_deref(), &scope).await.map(Some)
                }
            },
            (Challenge::Basic, _) => Ok(None),
        }
    }

    /// A token from the registry's realm: with name and password, for a refresh token (OAuth 2), or for anybody.
    async fn token(&self, realm: &str, service: Option<&str>, scope: &str) -> Result<HeaderValue, Failure> {
        let refused = |message| Failure { kind: PullErrorKind::Unauthorized, message };
        if realm.starts_with("http://") && !self.endpoint.is_plain() {
            return Err(refused(format!("{realm} would have the credentials over plain HTTP")));
        }
        let request = match &self.auth {
            Some(RegistryAuth::Identity { token }) => {
                let mut form = vec![
                    ("grant_type", "refresh_token"),
                    ("client_id", CLIENT_ID),
                    ("scope", scope),
                    ("refresh_token", token.as_str()),
                ];
                form.extend(service.map(|service| ("service", service)));
                self.client.post(realm).form(&form)
            }
            auth => {
                let mut query = vec![("scope", scope)];
                query.extend(service.map(|service| ("service", service)));
                let request = self.client.get(realm).query(&query);
                match auth {
                    Some(RegistryAuth::Basic { username, password }) => {
                        request.basic_auth(username, Some(password))
                    }
                    _ => request,
                }
            }
        };
        let answer = request.send().await.map_err(|error| unavailable(realm, &error))?;
        let answer = checked(realm, answer).await?;
        let bytes = limited(realm, answer).await?;
        let answer: TokenAnswer =
            serde_json::from_slice(&bytes).map_err(|error| refused(format!("{realm}: {error}")))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        secret(format!("Bearer {}", token.ok_or_else(|| refused(format!("{realm} gave no token")))?))
    }
}

/// A header that is never shown.
fn secret(value: String) -> Result<HeaderValue, Failure> {
    let unusable = |_| Failure {
        kind: PullErrorKind::Unauthorized,
        message: "the credentials have letters that no header can have".into(),
    };
    let mut value = HeaderValue::try_from(value).map_err(unusable)?;
    value.set_sensitive(true);
    Ok(value)
}

fn unusable(endpoint: &Endpoint, what: &str, why: &dyn std::error::Error) -> Failure {
    Failure {
        kind: PullErrorKind::RegistryUnavailable,
        message: format!("{}: {what}: {}", endpoint.host, with_causes(why)),
    }
}

/// What the configuration has added to each request.
fn headers(endpoint: &Endpoint) -> Result<HeaderMap, Failure> {
    let failed = |what: &str, why: &dyn std::error::Error| unusable(endpoint, what, why);
    let mut headers = HeaderMap::new();
    for (name, value) in &endpoint.headers {
        let name: HeaderName = name.parse().map_err(|error| failed(&format!("header {name:?}"), &error))?;
        let value: HeaderValue = value.parse().map_err(|error| failed(&format!("header {name}"), &error))?;
        headers.append(name, value);
    }
    Ok(headers)
}

fn client(endpoint: &Endpoint) -> Result<Client, Failure> {
    let failed = |what: &str, why: &dyn std::error::Error| unusable(endpoint, what, why);
    let read =
        |path: &std::path::Path| fs::read(path).map_err(|error| failed(&path.display().to_string(), &error));
    let mut authorities = Vec::new();
    for path in &endpoint.ca_files {
        let found = Certificate::from_pem_bundle(&read(path)?);
        authorities.extend(found.map_err(|error| failed(&path.display().to_string(), &error))?);
    }
    // A client has one certificate here; containerd takes the first that fits, too.
    let mut identity = None;
    if let Some((certificate, key)) = endpoint.client_files.first() {
        let mut pem = read(certificate)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        let found = Identity::from_pem(&pem);
        identity = Some(found.map_err(|error| failed(&certificate.display().to_string(), &error))?);
    }
    let built = match builder(endpoint, &identity).tls_certs_merge(authorities.clone()).build() {
        // A machine that trusts nobody can speak plain HTTP all the same; where that leads to TLS it fails there.
        Err(_) if endpoint.is_plain() => builder(endpoint, &identity).tls_certs_only(authorities).build(),
        built => built,
    };
    built.map_err(|error| failed("client", &error))
}

/// A client but for whom it trusts.
fn builder(endpoint: &Endpoint, identity: &Option<Identity>) -> ClientBuilder {
    let builder = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(concat!("hawser/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::custom(follow))
        .tls_danger_accept_invalid_certs(endpoint.skip_verify);
    match identity {
        Some(identity) => builder.identity(identity.clone()),
        None => builder,
    }
}

/// Never from TLS to plain HTTP.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let was_safe = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    if was_safe && attempt.url().scheme() != "https" {
        return attempt.error("a redirect from https to http is not followed");
    }
    attempt.follow()
}

/// The answer, unless it is a refusal.
async fn checked(url: &str, answer: Response) -> Result<Response, Failure> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let bytes = limited(url, answer).await.unwrap_or_default();
    let told: Option<OneError> = serde_json::from_slice::<ErrorAnswer>(&bytes)
        .ok()
        .and_then(|answer| answer.errors.into_iter().next());
    let kind = match (status.as_u16(), told.as_ref().map(|error| error.code.as_str())) {
        (_, Some("UNAUTHORIZED" | "DENIED")) | (401 | 403, _) => PullErrorKind::Unauthorized,
        (_, Some("NAME_INVALID")) => PullErrorKind::InvalidReference,
        (404, _) => PullErrorKind::NotFound,
        _ => PullErrorKind::RegistryUnavailable,
    };
    let told = told.map(|error| match error.message.filter(|message| !message.is_empty()) {
        Some(message) => format!(": {}: {message}", error.code),
        None => format!(": {}", error.code),
    });
    Err(Failure { kind, message: format!("{url}: {status}{}", told.unwrap_or_default()) })
}

/// All of an answer that is no longer than a document may be.
pub(super) async fn limited(url: &str, mut answer: Response) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| unavailable(url, &error))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            let message = format!("{url}: more than {MAX_DOCUMENT_BYTES} bytes");
            return Err(Failure { kind: PullErrorKind::BadImage, message });
        }
    }
    Ok(bytes)
}

fn unavailable(url: &str, error: &reqwest::Error) -> Failure {
    let message = format!("{url}: {}", with_causes(error));
    Failure { kind: PullErrorKind::RegistryUnavailable, message }
}

/// reqwest keeps what went wrong ("connection refused") in the causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = inner.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_for_plain_http_needs_nobody_to_trust() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = Endpoint { base: "http://a.test/v2".into(), ..Endpoint::default() };
        assert!(builder(&plain, &None).tls_certs_only([]).build().is_ok());
        assert!(client(&plain).is_ok());
    }
}
