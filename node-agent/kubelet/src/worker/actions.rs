//! Carrying out a pod's actions: each function does one, from start to end, and says how it went.
//!
//! Every function can be cut short at any await and called again; what it left is found.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::Api;
use hawser_api::client::{Client, DeleteOptions};
use hawser_runtime::{ContainerId, ContainerState, ContainerStatus, Image, Runtime, container_id, fault};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::hooks;
use crate::clock::AgentClock;
use crate::config::Config;
use crate::container::downward::Fields;
use crate::container::resources::NodeCapacity;
use crate::container::{self, ConfigError, PodContext, env};
use crate::cpus::Cpus;
use crate::devices::Devices;
use crate::dra::Dra;
use crate::events::{EventType, Recorder};
use crate::eviction::Pressure;
use crate::images::{Images, PullFailure};
use crate::interfaces::{LocalEndpoints, Objects, PodNetwork, StatusWriter};
use crate::manager::Pods;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::pod::desired::MINIMUM_GRACE;
use crate::pod::state::FailureKind;
use crate::pod::{DesiredContainer, DesiredPod, Outcome};
use crate::probes::Prober;
use crate::qos_cgroups::QosCgroups;
use crate::static_pods::StaticPods;
use crate::users::Users;
use crate::volumes::{Grown, MountOutcome, MountedVolumes, Volumes};

/// How long the runtime is asked for what it does not say, and how often.
const LOOK_PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What all workers of the node share.
pub struct Shared {
    pub config: Arc<Config>,
    pub runtime: Arc<dyn Runtime>,
    pub network: Arc<dyn PodNetwork>,
    pub client: Arc<dyn Client>,
    pub objects: Objects,
    /// The pods that files describe.
    pub statics: StaticPods,
    /// All pods of the node.
    pub pods: Pods,
    pub endpoints: Arc<dyn LocalEndpoints>,
    pub status: Arc<dyn StatusWriter>,
    pub images: Images,
    pub volumes: Arc<Volumes>,
    pub prober: Prober,
    pub recorder: Recorder,
    pub clock: AgentClock,
    pub metrics: Metrics,
    pub devices: Devices,
    pub cpus: Cpus,
    pub memory: Memory,
    pub dra: Dra,
    pub(crate) users: Users,
    pub qos_cgroups: Arc<QosCgroups>,
    pub pressure: watch::Receiver<Pressure>,
    /// The machine goes down.
    pub shutting_down: watch::Receiver<bool>,
    pub has_apparmor: bool,
    /// What the machine has, and what pods may have of it.
    pub capacity: NodeCapacity,
    pub allocatable: NodeCapacity,
}

/// How often a stop that failed is repeated.
pub(super) const RETRY_STOP: Duration = Duration::from_secs(1);

/// An error with what caused it, in one line.
pub(crate) fn with_source(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// Makes the pod's volumes, or brings them up to date. Tells of each that fails.
pub async fn mount_volumes(shared: &Shared, pod: &DesiredPod) -> (Outcome, MountOutcome) {
    let mounted = shared.volumes.mount(pod, &[]).await;
    for Grown { volume, failure } in &mounted.grown {
        let (of_type, reason, message) = match failure {
            None => (
                EventType::Normal,
                "FileSystemResizeSuccessful",
                format!("MountVolume.NodeExpandVolume succeeded for volume {volume:?} "),
            ),
            Some(why) => (
                EventType::Warning,
                "VolumeResizeFailed",
                format!("NodeExpandVolume.NodeExpandVolume failed for volume {volume:?} : {why}"),
            ),
        };
        shared.recorder.pod(pod, of_type, reason, message);
    }
    for (reason, message) in &mounted.warnings {
        shared.recorder.pod(pod, EventType::Warning, *reason, message.clone());
    }
    for error in &mounted.failed {
        shared.recorder.pod(pod, EventType::Warning, "FailedMount", error.to_string());
    }
    let outcome = match mounted.failed.first() {
        Some(error) => Outcome::VolumesFailed(error.to_string()),
        None => {
            fault::point("pod: volumes mounted");
            Outcome::VolumesReady
        }
    };
    (outcome, mounted)
}

/// What a container is started with.
pub struct StartRequest {
    pub container: DesiredContainer,
    pub attempt: u32,
    /// How often all containers of the pod have started over.
    pub round: u32,
    pub ips: Vec<IpAddr>,
    pub volumes: MountedVolumes,
    /// The container whose processes it sees.
    pub join_pid_of: Option<ContainerId>,
    /// Cancelled when the pod stops: the start ends at its next step.
    pub cancelled: CancellationToken,
}

struct StartError {
    kind: FailureKind,
    message: String,
}

impl From<PullFailure> for StartError {
    fn from(failure: PullFailure) -> Self {
        Self { kind: failure.kind, message: failure.message }
    }
}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> Self {
        Self { kind: FailureKind::CreateContainerConfigError, message: with_source(&error) }
    }
}

pub async fn start(shared: &Shared, pod: &DesiredPod, request: StartRequest) -> Outcome {
    let name = request.container.name().to_owned();
    let id = container_id(pod.uid(), &name, request.attempt);
    let image = tokio::select! {
        () = request.cancelled.cancelled() => return Outcome::StartCancelled { container: name, status: None },
        image = shared.images.ensure(pod, &request.container) => image,
    };
    let started = match image {
        Ok(image) => create_and_start(shared, pod, &request, &image, &id).await,
        Err(failure) => Err(failure.into()),
    };
    let (started, status) = match status_at_last(shared, &id).await {
        Ok(status) => (started, status),
        // The same instance is asked for again, and found if it is there.
        Err(message) => (Err(StartError { kind: FailureKind::CreateContainerError, message }), None),
    };
    let started = match started {
        // Where it runs, it was only the answer that did not come.
        Err(StartError {
            kind: FailureKind::RunContainerError | FailureKind::CreateContainerError, ..
        }) if status.as_ref().is_some_and(|status| status.state == ContainerState::Running) => Ok(()),
        started => started,
    };
    match (started, status) {
        (Ok(()), Some(status)) => {
            shared.metrics.container_started(request.container.kind);
            let resources = request.container.spec.resources.clone().unwrap_or_default();
            Outcome::Started { container: name, status, resources }
        }
        (Ok(()), None) => Outcome::StartCancelled { container: name, status: None },
        (Err(StartError { kind, message }), status) => {
            shared.metrics.container_failed(request.container.kind, kind.as_str());
            if !matches!(
                kind,
                FailureKind::ErrImagePull | FailureKind::InvalidImageName | FailureKind::ErrImageNeverPull
            ) {
                shared.recorder.container(
                    pod,
                    &name,
                    EventType::Warning,
                    "Failed",
                    format!("Error: {message}"),
                );
            }
            let is_end = kind == FailureKind::RunContainerError;
            let status =
                status.or_else(|| is_end.then(|| never_made(pod, &request.container, request.attempt)));
            Outcome::StartFailed { container: name, failure: kind, message, status }
        }
    }
}

/// What has become of a container, when the runtime says so: whoever takes silence for an answer starts it once more
/// beside the one that runs. An error where it does not say so for long.
async fn status_at_last(shared: &Shared, id: &str) -> Result<Option<ContainerStatus>, String> {
    let deadline = Instant::now() + LOOK_PATIENCE;
    loop {
        match shared.runtime.container_status(id).await {
            Ok(status) => return Ok(status),
            Err(error) if Instant::now() >= deadline => {
                return Err(format!(
                    "what has become of the container is not known: {}",
                    with_source(&error)
                ));
            }
            Err(error) => warn!(id, %error, "what has become of a container is not known yet"),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn create_and_start(
    shared: &Shared,
    pod: &DesiredPod,
    request: &StartRequest,
    image: &Image,
    id: &str,
) -> Result<(), StartError> {
    let StartRequest { container, attempt, ips, volumes, cancelled, .. } = request;
    if cancelled.is_cancelled() {
        return Ok(());
    }
    let name = container.name();
    let fields = Fields {
        pod,
        pod_ips: ips,
        node_name: &shared.config.node_name,
        node_ips: &shared.config.node_ips,
        capacity: shared.allocatable,
    };
    tokio::select! {
        () = cancelled.cancelled() => return Ok(()),
        shown = show_images(shared, pod, container) => shown?,
    }
    let env = env::environment(&fields, container, &shared.objects, volumes)?;
    let mounts = shared.volumes.container_mounts(pod, container, *attempt, volumes, &env)?;
    make_termination_file(&container::termination_file(&shared.config, pod.uid(), name, *attempt))?;
    let context = PodContext {
        pod,
        config: &shared.config,
        ips,
        round: request.round,
        node_memory_bytes: shared.capacity.memory_bytes,
    };
    let mut config = container::build(&context, container, *attempt, image, env, mounts)?;
    config.devices = shared.volumes.container_devices(container, volumes)?;
    config.join_pid_of = request.join_pid_of.clone();
    let unprepared = |message| StartError { kind: FailureKind::CreateContainerError, message };
    config.cdi_devices = shared.dra.cdi_devices(pod, container).map_err(unprepared)?;
    shared.devices.prepare(&mut config).await.map_err(unprepared)?;
    shared.cpus.prepare(&mut config).await.map_err(unprepared)?;
    shared.memory.prepare(&mut config).await.map_err(unprepared)?;
    let created = shared.runtime.create_container(&config).await;
    created.map_err(|e| StartError { kind: create_failure(&e), message: with_source(&e) })?;
    shared.recorder.container(pod, name, EventType::Normal, "Created", format!("Created container: {name}"));
    if cancelled.is_cancelled() {
        return Ok(());
    }
    let started = shared.runtime.start_container(id).await;
    started.map_err(|e| StartError { kind: start_failure(&e), message: with_source(&e) })?;
    shared.recorder.container(pod, name, EventType::Normal, "Started", format!("Started container {name}"));
    post_start(shared, pod, request, id).await
}

/// Pulls and shows the images that are volumes of the container.
async fn show_images(
    shared: &Shared,
    pod: &DesiredPod,
    container: &DesiredContainer,
) -> Result<(), StartError> {
    for volume in pod.spec().volumes.iter().flatten() {
        let Some(source) = &volume.image else { continue };
        let mounts = container.spec.volume_mounts.iter().flatten();
        if !mounts.into_iter().any(|mount| mount.name == volume.name) {
            continue;
        }
        let image = shared.images.ensure_volume(pod, container, source).await?;
        let shown = shared.volumes.mount_image(pod, volume, &image).await;
        shown.map_err(|message| StartError { kind: FailureKind::CreateContainerError, message })?;
    }
    Ok(())
}

/// A process that cannot be made (no such program, a mount that fails) is a failed start, as upstream tells it:
/// runc finds out when the container is created.
fn create_failure(error: &hawser_runtime::Error) -> FailureKind {
    match error {
        hawser_runtime::Error::Start { .. } => FailureKind::RunContainerError,
        _ => FailureKind::CreateContainerError,
    }
}

/// A start of which nothing was said is no failed one: the same instance is asked for again, not another beside it.
fn start_failure(error: &hawser_runtime::Error) -> FailureKind {
    match error.is_silence() {
        true => FailureKind::CreateContainerError,
        false => FailureKind::RunContainerError,
    }
}

/// Stands for a container whose process could not be made, and which the runtime did not keep.
fn never_made(pod: &DesiredPod, container: &DesiredContainer, attempt: u32) -> ContainerStatus {
    ContainerStatus {
        id: container_id(pod.uid(), container.name(), attempt),
        pod_uid: pod.uid().to_owned(),
        pod_name: pod.name().to_owned(),
        pod_namespace: pod.namespace().to_owned(),
        name: container.name().to_owned(),
        attempt,
        image: container.image().to_owned(),
        image_ref: String::new(),
        state: ContainerState::Created,
        pid: None,
        created_at: jiff::Timestamp::now(),
        started_at: None,
        exit: None,
        log_path: Default::default(),
        labels: Default::default(),
        annotations: Default::default(),
    }
}

/// Under another name until any user of the container may write it: what is found is whole.
fn make_termination_file(path: &Path) -> Result<(), ConfigError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |source| ConfigError::Io { path: path.to_owned(), source };
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let fresh = path.with_extension("new");
    std::fs::File::create(&fresh).map_err(failed)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    std::fs::rename(fresh, path).map_err(failed)
}

async fn post_start(
    shared: &Shared,
    pod: &DesiredPod,
    request: &StartRequest,
    id: &str,
) -> Result<(), StartError> {
    let container = &request.container;
    let hook = container.spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
    let Some(hook) = hook else { return Ok(()) };
    let ports = container.spec.ports.as_deref().unwrap_or_default();
    let ip = request.ips.first().copied();
    // A hook has no time limit of its own; the pod's end is its end.
    let forever = Duration::from_secs(24 * 3600);
    let ran = tokio::select! {
        () = request.cancelled.cancelled() => return Ok(()),
        ran = hooks::run(&*shared.runtime, hook, id, ip, ports, forever) => ran,
    };
    let Err(why) = ran else { return Ok(()) };
    let name = container.name();
    let message = format!("PostStartHook failed: {why}");
    shared.recorder.container(pod, name, EventType::Warning, "FailedPostStartHook", message.clone());
    shared.recorder.container(pod, name, EventType::Normal, "Killing", "FailedPostStartHook");
    if let Err(error) = shared.runtime.stop_container(id, pod.spec_grace()).await {
        warn!(pod = %pod.key(), container = name, %error, "container was not stopped after its hook failed");
    }
    Err(StartError { kind: FailureKind::PostStartHookError, message })
}

/// Runs the preStop hook and stops the container, both within `grace`.
pub async fn stop(
    shared: &Shared,
    pod: &DesiredPod,
    container: DesiredContainer,
    known: Arc<ContainerStatus>,
    grace: Duration,
    message: String,
    ip: Option<IpAddr>,
) -> Outcome {
    let name = container.name().to_owned();
    let id = known.id.clone();
    let began = Instant::now();
    shared.recorder.container(pod, &name, EventType::Normal, "Killing", message);
    if let Some(hook) = container.spec.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
        let ports = container.spec.ports.as_deref().unwrap_or_default();
        let ran = hooks::run(&*shared.runtime, hook, &id, ip, ports, grace);
        if let Ok(Err(why)) = tokio::time::timeout(grace, ran).await {
            let message = format!("PreStopHook failed: {why}");
            shared.recorder.container(pod, &name, EventType::Warning, "FailedPreStopHook", message);
        }
    }
    let left = grace.saturating_sub(began.elapsed()).max(MINIMUM_GRACE.min(grace));
    if let Err(error) = shared.runtime.stop_container(&id, left).await {
        let error = with_source(&error);
        warn!(pod = %pod.key(), container = name, error, "container was not stopped, trying again");
        tokio::time::sleep(RETRY_STOP).await;
    }
    let status = match shared.runtime.container_status(&id).await {
        Ok(Some(status)) => Some(status),
        // It has ended, and nobody saw how.
        Ok(None) => Some(ContainerStatus { state: ContainerState::Unknown, pid: None, ..(*known).clone() }),
        Err(_) => None,
    };
    Outcome::Stopped { container: name, status }
}

/// Removes an instance, and what is left on disk of all those before attempt `oldest_kept`.
pub async fn remove(
    shared: &Shared,
    pod: &DesiredPod,
    id: String,
    container: String,
    oldest_kept: u32,
) -> Outcome {
    match try_remove(shared, pod, &id, &container, oldest_kept).await {
        Ok(()) => Outcome::Removed { id, container },
        Err(error) => {
            warn!(pod = %pod.key(), container, error, "old container was not removed");
            Outcome::RemoveFailed { id }
        }
    }
}

async fn try_remove(
    shared: &Shared,
    pod: &DesiredPod,
    id: &str,
    container: &str,
    oldest_kept: u32,
) -> Result<(), String> {
    shared.runtime.remove_container(id).await.map_err(|e| with_source(&e))?;
    let (config, pod, name) = (shared.config.clone(), pod.clone(), container.to_owned());
    let removed = tokio::task::spawn_blocking(move || {
        container::attempts::remove_before(&config, &pod, &name, oldest_kept)
    });
    removed.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

pub async fn release(shared: &Shared, pod: &DesiredPod) -> Outcome {
    let mut given_back = give_back(shared, pod, false).await;
    // Where its processes are shared, their first one is there until the pod goes.
    if given_back.is_ok() && pod.has_own_users() && pod.spec().share_process_namespace != Some(true) {
        given_back = shared.users.release(&shared.config, pod.uid()).await;
    }
    cleaned_up(pod, given_back, Outcome::Released)
}

pub async fn tear_down(shared: &Shared, pod: &DesiredPod) -> Outcome {
    if let Err(error) = shared.runtime.remove_pod_sandbox(pod.uid()).await {
        return cleaned_up(pod, Err(error.to_string()), Outcome::TornDown);
    }
    fault::point("pod: sandbox removed");
    let logs = shared.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid());
    let outcome = give_back(shared, pod, true).await;
    if outcome.is_ok() {
        remove_logs(&logs).await;
        fault::point("pod: logs removed");
    }
    cleaned_up(pod, outcome, Outcome::TornDown)
}

async fn remove_logs(dir: &Path) {
    if let Err(error) = tokio::fs::remove_dir_all(dir).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        warn!(dir = %dir.display(), %error, "logs were not removed");
    }
}

async fn give_back(shared: &Shared, pod: &DesiredPod, everything: bool) -> Result<(), String> {
    shared.dra.unprepare(pod.uid()).await?;
    if !pod.host_network() {
        shared.network.teardown(pod.uid()).await.map_err(|e| e.to_string())?;
    }
    fault::point("pod: network given back");
    let removed = match everything {
        true => shared.volumes.remove_pod_dir(pod.uid()).await,
        false => shared.volumes.unmount(pod.uid()).await,
    };
    fault::point("pod: volumes given back");
    removed.map_err(|e| e.to_string())
}

fn cleaned_up(pod: &DesiredPod, result: Result<(), String>, done: Outcome) -> Outcome {
    match result {
        Ok(()) => done,
        Err(error) => {
            warn!(pod = %pod.key(), error, "cleaning up failed, trying again");
            Outcome::CleanupFailed
        }
    }
}

/// Tells the API that nothing of the pod is left.
pub async fn delete(shared: &Shared, pod: &DesiredPod, reported: impl Future<Output = ()>) -> Outcome {
    reported.await;
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), pod.namespace());
    let options = DeleteOptions {
        grace_period_seconds: Some(0),
        uid: Some(pod.uid().to_owned()),
        ..DeleteOptions::default()
    };
    match api.delete(pod.name(), &options).await {
        Ok(()) => {
            fault::point("pod: deleted");
            Outcome::Deleted
        }
        // Another pod of that name: this one is gone.
        Err(error) if error.is_conflict() => Outcome::Deleted,
        Err(error) => {
            debug!(pod = %pod.key(), %error, "deletion was not confirmed, trying again");
            Outcome::CleanupFailed
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn termination_file_that_an_agent_left_half_made_is_made_again() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("web/0");
        std::fs::create_dir_all(dir.path().join("web")).expect("made");
        // It was killed before it had set the mode.
        std::fs::write(path.with_extension("new"), "").expect("made");
        make_termination_file(&path).expect("made");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o666);
        std::fs::write(&path, "said").expect("written");
        make_termination_file(&path).expect("found");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "said");
    }
}
