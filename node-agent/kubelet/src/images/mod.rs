//! Making sure that a container's image is on the node, and that the pod may have it: pull policy, a bound on parallel
//! pulls, credentials from imagePullSecrets ([`secrets`]), who may use what is here ([`access`]), events.

pub mod access;
mod progress;
mod secrets;

use std::collections::HashMap;
use std::sync::Arc;

use hawser_api::informer::Informer;
use hawser_api::resource::ObjectKey;
use hawser_runtime::{Image, PullErrorKind, Pulled, RegistryAuth, Runtime};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ImageVolumeSource, Secret};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::warn;

use crate::config::Config;
use crate::credentials::Credentials;
use crate::events::{EventType, Recorder};
use crate::image_gc::LastUse;
use crate::metrics::Metrics;
use crate::pod::back_off::go_duration;
use crate::pod::state::FailureKind;
use crate::pod::{DesiredContainer, DesiredPod};
use crate::rate::Limiter;

use access::{ImageAccess, Means, SecretUsed, Shown};
use secrets::{credentials_in, used};

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
    metrics: Metrics,
    /// Bounds what pulls take of memory and network.
    slots: Semaphore,
    /// How often pulls begin.
    rate: Limiter,
    credentials: Credentials,
    last_use: LastUse,
    access: Arc<ImageAccess>,
    /// One pull of an image at a time; entries go with their last user.
    by_image: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Images {
    pub fn new(
        runtime: Arc<dyn Runtime>,
        secrets: Informer<Secret>,
        recorder: Recorder,
        metrics: Metrics,
        config: &Config,
        last_use: LastUse,
        access: Arc<ImageAccess>,
    ) -> Self {
        let slots = Semaphore::new(config.max_parallel_pulls.max(1));
        let (rate, credentials) = (Limiter::new(config.registry_rate), config.credentials.clone());
        Self {
            runtime,
            secrets,
            recorder,
            metrics,
            slots,
            rate,
            credentials,
            last_use,
            access,
            by_image: Mutex::default(),
        }
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
        let mut why = "is not present";
        if policy != PullPolicy::Always {
            let inspected = self.recover().await.and(self.runtime.image_status(image).await);
            let present = inspected.map_err(|error| inspect_failure(image, &error))?;
            if let Some(present) = present {
                if self.may_use(pod, image, &present) {
                    let message = format!(
                        "Container image {image:?} already present on machine and can be accessed by the pod"
                    );
                    self.recorder.container(pod, name, EventType::Normal, "Pulled", message);
                    return Ok(present);
                }
                why = "is present, but none of the pod's credentials is known to have pulled it: that cannot be tried";
            }
        }
        if policy == PullPolicy::Never {
            let message = format!("Container image {image:?} {why} with pull policy of Never");
            self.recorder.container(pod, name, EventType::Warning, "ErrImageNeverPull", message.clone());
            return Err(PullFailure { kind: FailureKind::ErrImageNeverPull, message });
        }
        self.pull(pod, name, image).await
    }

    fn may_use(&self, pod: &DesiredPod, image: &str, present: &Image) -> bool {
        let secrets = self.secrets_of(pod, image).into_iter().map(|(used, _)| used).collect();
        let names = pod.spec().image_pull_secrets.iter().flatten().map(|reference| reference.name.clone());
        let unread = match self.secrets.is_synced() {
            true => Vec::new(),
            false => names.map(|name| (pod.namespace().to_owned(), name)).collect(),
        };
        self.access.may_use(image, &present.id, &Shown { secrets, unread })
    }

    /// Notes what was there of pulls that were called off, or of an agent that was killed: nobody knows with which
    /// credentials it came.
    async fn recover(&self) -> hawser_runtime::Result<()> {
        for image in self.access.interrupted() {
            let present = match self.runtime.image_status(&image).await {
                Ok(present) => present,
                // What has no name was never pulled.
                Err(hawser_runtime::Error::Pull { .. }) => None,
                Err(error) => return Err(error),
            };
            let noted = self.note(&image, move |access, image| match present {
                Some(present) => access.pulled(image, &present.id, None),
                None => access.failed(image),
            });
            told(&image, noted.await);
        }
        Ok(())
    }

    /// Writes a record down, which may take as long as the disk does.
    async fn note<T: Send + 'static>(
        &self,
        image: &str,
        write: impl FnOnce(&Arc<ImageAccess>, &str) -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let (access, image) = (Arc::clone(&self.access), image.to_owned());
        let written = tokio::task::spawn_blocking(move || write(&access, &image)).await;
        written.map_err(std::io::Error::other)?
    }

    async fn pull(&self, pod: &DesiredPod, container: &str, image: &str) -> Result<Image, PullFailure> {
        let (asked, asked_at) = (Instant::now(), Timestamp::now());
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
        let secrets = self.secrets_of(pod, image);
        let mut auth: Vec<RegistryAuth> = secrets.iter().map(|(_, auth)| auth.clone()).collect();
        auth.extend(self.credentials.get(image).await);
        // Without it, an image could come whose credentials nobody knows of.
        let _intent = self.note(image, ImageAccess::begin).await.map_err(|error| PullFailure {
            kind: FailureKind::ErrImagePull,
            message: format!("failed to record image pull intent for image {image:?}: {error}"),
        })?;
        let tell = |message: String| {
            self.recorder.container(pod, container, EventType::Normal, "Pulling", message);
        };
        let pulling =
            progress::watched(image, tell, |sender| self.runtime.pull_image(image, &auth, Some(sender)));
        match pulling.await {
            Ok(Pulled { image: pulled, credential }) => {
                // Behind the secrets' there are the node's own, which are for every pod.
                let secret = credential.and_then(|index| secrets.get(index));
                let means = secret.map_or(Means::Everybody, |(used, _)| Means::Secret(used.clone()));
                let id = pulled.id.clone();
                let noted = self.note(image, move |access, image| access.pulled(image, &id, Some(means)));
                told(image, noted.await);
                self.metrics.pulled(pod, pulled.size_bytes, asked_at, Timestamp::now());
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
                told(image, self.note(image, |access, image| access.failed(image)).await);
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

    /// Credentials of the pod's imagePullSecrets.
    fn secrets_of(&self, pod: &DesiredPod, image: &str) -> Vec<(SecretUsed, RegistryAuth)> {
        let names = pod.spec().image_pull_secrets.iter().flatten().map(|r| r.name.as_str());
        let secrets = names.filter_map(|name| self.secrets.get(&ObjectKey::new(pod.namespace(), name)));
        let with_place = |secret: Arc<Secret>| {
            let found = credentials_in(&secret, image).into_iter();
            found.map(|auth| (used(&secret, &auth), auth)).collect::<Vec<_>>()
        };
        secrets.flat_map(with_place).collect()
    }
}

/// The pod goes on: the next agent asks the registry once more than it had to.
fn told(image: &str, noted: std::io::Result<()>) {
    if let Err(error) = noted {
        warn!(image, %error, "how an image was pulled was not noted");
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
}
