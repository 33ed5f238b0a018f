//! Making sure that a container's image is on the node: pull policy, a bound on parallel pulls, credentials
//! from imagePullSecrets, events.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_api::informer::Informer;
use hawser_api::resource::ObjectKey;
use hawser_runtime::{Image, PullErrorKind, RegistryAuth, Runtime};
use k8s_openapi::api::core::v1::{ImageVolumeSource, Secret};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::Config;
use crate::credentials::Credentials;
use crate::events::{EventType, Recorder};
use crate::image_gc::LastUse;
use crate::pod::back_off::go_duration;
use crate::pod::state::FailureKind;
use crate::pod::{DesiredContainer, DesiredPod};
use crate::rate::Limiter;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// The policy that is given, or that the image's tag implies: `latest` is always pulled.
pub fn pull_policy(given: Option<&str>, image: &str) -> PullPolicy {
    match given {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ if tag_of(image) == Some("latest") => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    }
}

/// The tag of a reference; `latest` when it has neither tag nor digest, `None` with a digest.
fn tag_of(image: &str) -> Option<&str> {
    if image.contains('@') {
        return None;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    Some(last.split_once(':').map_or("latest", |(_, tag)| tag))
}

#[derive(Debug)]
pub struct PullFailure {
    pub kind: FailureKind,
    pub message: String,
}

pub struct Images {
    runtime: Arc<dyn Runtime>,
    secrets: Informer<Secret>,
    recorder: Recorder,
    /// Bounds what pulls take of memory and network.
    slots: Semaphore,
    /// How often pulls begin.
    rate: Limiter,
    credentials: Credentials,
    last_use: LastUse,
    /// One pull of an image at a time; entries go with their last user.
    by_image: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Images {
    pub fn new(
        runtime: Arc<dyn Runtime>,
        secrets: Informer<Secret>,
        recorder: Recorder,
        config: &Config,
        last_use: LastUse,
    ) -> Self {
        let slots = Semaphore::new(config.max_parallel_pulls.max(1));
        let (rate, credentials) = (Limiter::new(config.registry_rate), config.credentials.clone());
        Self { runtime, secrets, recorder, slots, rate, credentials, last_use, by_image: Mutex::default() }
    }

    /// The container's image, pulled where the policy asks for it. Cancel-safe.
    pub async fn ensure(&self, pod: &DesiredPod, container: &DesiredContainer) -> Result<Image, PullFailure> {
        let policy = pull_policy(container.spec.image_pull_policy.as_deref(), container.image());
        self.ensure_image(pod, container.name(), container.image(), policy).await
    }

    /// The image that is a volume of the pod, for a container that mounts it. Cancel-safe.
    pub async fn ensure_volume(
        &self,
        pod: &DesiredPod,
        container: &DesiredContainer,
        source: &ImageVolumeSource,
    ) -> Result<Image, PullFailure> {
        let image = source.reference.as_deref().unwrap_or_default();
        let policy = pull_policy(source.pull_policy.as_deref(), image);
        self.ensure_image(pod, container.name(), image, policy).await
    }

    async fn ensure_image(
        &self,
        pod: &DesiredPod,
        container: &str,
        image: &str,
        policy: PullPolicy,
    ) -> Result<Image, PullFailure> {
        let turn = self.by_image.lock().entry(image.to_owned()).or_default().clone();
        let outcome = {
            let _mine = turn.lock().await;
            self.ensure_in_turn(pod, container, image, policy).await
        };
        let mut turns = self.by_image.lock();
        // Two owners are left when nobody else waits: the map and this call.
        if Arc::strong_count(&turn) <= 2 {
            turns.remove(image);
        }
        if let Ok(image) = &outcome {
            self.last_use.used(&image.id);
        }
        outcome
    }

    async fn ensure_in_turn(
        &self,
        pod: &DesiredPod,
        name: &str,
        image: &str,
        policy: PullPolicy,
    ) -> Result<Image, PullFailure> {
        if policy != PullPolicy::Always {
            let present =
                self.runtime.image_status(image).await.map_err(|error| inspect_failure(image, &error))?;
            if let Some(present) = present {
                let message = format!("Container image {image:?} already present on machine");
                self.recorder.container(pod, name, EventType::Normal, "Pulled", message);
                return Ok(present);
            }
        }
        if policy == PullPolicy::Never {
            let message = format!("Container image {image:?} is not present with pull policy of Never");
            self.recorder.container(pod, name, EventType::Warning, "ErrImageNeverPull", message.clone());
            return Err(PullFailure { kind: FailureKind::ErrImageNeverPull, message });
        }
        self.pull(pod, name, image).await
    }

    async fn pull(&self, pod: &DesiredPod, container: &str, image: &str) -> Result<Image, PullFailure> {
        let asked = Instant::now();
        let _slot = self.slots.acquire().await.map_err(|_| PullFailure {
            kind: FailureKind::ErrImagePull,
            message: "the agent is stopping".into(),
        })?;
        self.rate.turn().await;
        let began = Instant::now();
        self.recorder.container(
            pod,
            container,
            EventType::Normal,
            "Pulling",
            format!("Pulling image {image:?}"),
        );
        let mut auth = self.credentials_of(pod, image);
        auth.extend(self.credentials.get(image).await);
        match self.runtime.pull_image(image, &auth, None).await {
            Ok(pulled) => {
                let message = format!(
                    "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {} bytes.",
                    go_duration(began.elapsed()),
                    go_duration(asked.elapsed()),
                    pulled.size_bytes
                );
                self.recorder.container(pod, container, EventType::Normal, "Pulled", message);
                Ok(pulled)
            }
            Err(error) => {
                let failure = pull_failure(image, &error);
                self.recorder.container(
                    pod,
                    container,
                    EventType::Warning,
                    "Failed",
                    failure.message.clone(),
                );
                let message = format!("Error: {}", failure.kind.as_str());
                self.recorder.container(pod, container, EventType::Warning, "Failed", message);
                Err(failure)
            }
        }
    }

    /// Of the pod's imagePullSecrets.
    fn credentials_of(&self, pod: &DesiredPod, image: &str) -> Vec<RegistryAuth> {
        let names = pod.spec().image_pull_secrets.iter().flatten().map(|r| r.name.as_str());
        let secrets = names.filter_map(|name| self.secrets.get(&ObjectKey::new(pod.namespace(), name)));
        secrets.flat_map(|secret| credentials_in(&secret, image)).collect()
    }
}

fn inspect_failure(image: &str, error: &hawser_runtime::Error) -> PullFailure {
    let message = format!("Failed to inspect image {image:?}: {error}");
    PullFailure { kind: FailureKind::ErrImagePull, message }
}

fn pull_failure(image: &str, error: &hawser_runtime::Error) -> PullFailure {
    if let hawser_runtime::Error::Pull { kind: PullErrorKind::InvalidReference, message, .. } = error {
        let message = format!(
            "Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {message}"
        );
        return PullFailure { kind: FailureKind::InvalidImageName, message };
    }
    PullFailure { kind: FailureKind::ErrImagePull, message: capitalized(&error.to_string()) }
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[derive(Deserialize, Default)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(alias = "registrytoken")]
    identitytoken: Option<String>,
}

/// Credentials of a `dockerconfigjson` (or older `dockercfg`) Secret that fit the image, best match first.
fn credentials_in(secret: &Secret, image: &str) -> Vec<RegistryAuth> {
    let data = secret.data.as_ref();
    let file = |key: &str| data.and_then(|d| d.get(key)).map(|bytes| bytes.0.as_slice());
    let auths = if let Some(bytes) = file(".dockerconfigjson") {
        serde_json::from_slice::<DockerConfig>(bytes).unwrap_or_default().auths
    } else if let Some(bytes) = file(".dockercfg") {
        serde_json::from_slice(bytes).unwrap_or_default()
    } else {
        return Vec::new();
    };
    let mut found: Vec<(usize, RegistryAuth)> = auths
        .into_iter()
        .filter(|(server, _)| matches_image(server, image))
        .filter_map(|(server, auth)| Some((server.len(), to_registry_auth(auth)?)))
        .collect();
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn to_registry_auth(auth: DockerAuth) -> Option<RegistryAuth> {
    if let Some(token) = auth.identitytoken.filter(|t| !t.is_empty()) {
        return Some(RegistryAuth::Bearer { token });
    }
    if let (Some(username), Some(password)) = (auth.username, auth.password) {
        return Some(RegistryAuth::Basic { username, password });
    }
    let decoded = STANDARD.decode(auth.auth?.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(RegistryAuth::Basic { username: username.into(), password: password.into() })
}

/// `server` as docker writes it (`https://index.docker.io/v1/`, `registry.test/team`, `*.registry.test`).
fn matches_image(server: &str, image: &str) -> bool {
    let server = server.trim_start_matches("https://").trim_start_matches("http://");
    let server = server.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    let (server_host, server_path) = server.split_once('/').unwrap_or((server, ""));
    let (host, path) = host_and_path(image);
    let same_host = match server_host.strip_prefix("*.") {
        Some(suffix) => host.split_once('.').is_some_and(|(_, rest)| rest == suffix),
        None => server_host == host || (host == "docker.io" && server_host == "index.docker.io"),
    };
    same_host && path.starts_with(server_path)
}

/// A registry, with its port, and what comes after it.
pub(crate) fn host_and_path(image: &str) -> (&str, &str) {
    match image.split_once('/') {
        Some((host, path)) if host.contains('.') || host.contains(':') || host == "localhost" => (host, path),
        _ => ("docker.io", image),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn policy_follows_the_tag() {
        let check = |image: &str, given: Option<&str>, expected| {
            assert_eq!(pull_policy(given, image), expected, "{image}");
        };
        check("web", None, PullPolicy::Always);
        check("localhost:5000/web", None, PullPolicy::Always);
        check("localhost:5000/web:latest", None, PullPolicy::Always);
        check("web:1.2", None, PullPolicy::IfNotPresent);
        check("web@sha256:aa", None, PullPolicy::IfNotPresent);
        check("web", Some("Never"), PullPolicy::Never);
        check("web:1", Some("Always"), PullPolicy::Always);
    }

    #[test]
    fn credentials_go_to_their_registry_only() {
        let config = r#"{"auths":{
            "registry.test":{"auth":"dXNlcjpzZWNyZXQ="},
            "registry.test/team":{"username":"team","password":"p"},
            "https://index.docker.io/v1/":{"username":"hub","password":"p"}}}"#;
        let secret = Secret {
            data: Some([(".dockerconfigjson".into(), ByteString(config.as_bytes().to_vec()))].into()),
            ..Secret::default()
        };
        let users = |image: &str| -> Vec<String> {
            let found = credentials_in(&secret, image).into_iter();
            found
                .map(|auth| match auth {
                    RegistryAuth::Basic { username, .. } => username,
                    RegistryAuth::Bearer { .. } => "token".into(),
                })
                .collect()
        };
        assert_eq!(users("registry.test/web:1"), ["user"]);
        assert_eq!(users("registry.test/team/web:1"), ["team", "user"]);
        assert_eq!(users("busybox"), ["hub"]);
        assert_eq!(users("other.test/web"), Vec::<String>::new());
    }
}
