//! The volumes of pods: made before their containers, kept up to date, and taken away after them.
//!
//! Each volume is a directory below the pod's own, named as upstream names it
//! (`<root>/pods/<uid>/volumes/kubernetes.io~configmap/<name>`). All steps can be repeated: what is there is
//! found, not made again, so that an agent that starts adopts the volumes of running pods.

pub mod atomic_writer;
mod claim;
mod empty_dir;
pub(crate) mod growth;
mod host_path;
pub mod mounts;
mod nfs;
pub(crate) mod ownership;
pub mod payload;
pub mod pod_certificate;
pub(crate) mod sub_path;
pub mod token;
pub mod trust_bundle;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::client::Client;
use hawser_runtime::{DeviceMapping, Image, Mount, MountPropagation, Runtime};
use k8s_openapi::api::core::v1::{Volume, VolumeMount};
use tokio::time::Instant;

use crate::config::Config;
use crate::container::ConfigError;
use crate::container::attempts::sub_path_place;
use crate::container::downward::Fields;
use crate::container::expand::expand;
use crate::container::resources::NodeCapacity;
use crate::csi::Csi;
use crate::csi::volume::CsiVolume;
use crate::interfaces::Objects;
use crate::pod::{DesiredContainer, DesiredPod};
use crate::worker::actions::with_source;

use claim::{Claim, own_claim_name};
pub use growth::Grown;
use payload::{Fetched, Tokens, payload, token_in, tokens_of};
use pod_certificate::{Bundles, PodCertificates, Warning};
use token::TokenManager;
use trust_bundle::Roots;

/// Why a volume could not be made; the kubelet tries again with back-off.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{kind} {name:?} not found")]
    ObjectMissing { kind: &'static str, name: String },
    #[error("references non-existent key: {key} in {kind} {name:?}")]
    KeyMissing { kind: &'static str, name: String, key: String },
    #[error("hostPath type check failed: {path} is not a {expected}")]
    HostPath { path: PathBuf, expected: String },
    #[error("persistentvolumeclaim {claim:?}: {message}")]
    Claim { claim: String, message: String },
    #[error("{export}: mount failed: {message}")]
    Nfs { export: String, message: String },
    /// `code` is the driver's own, where it has answered.
    #[error("{driver}: {message}")]
    Csi { driver: String, message: String, code: Option<tonic::Code> },
    #[error("failed to fetch token: {0}")]
    Token(#[source] hawser_api::Error),
    #[error("{0} is no block device")]
    NoDevice(PathBuf),
    #[error("image: {0}")]
    Image(String),
    #[error("token was not fetched")]
    NoToken,
    #[error("{0}")]
    TrustBundle(String),
    /// `index` is the source's place in the volume.
    #[error("source {index}, podCertificate of signer {signer:?}: {message}")]
    Certificate { index: usize, signer: String, message: String },
    #[error("the API server does not serve {0}")]
    Unserved(&'static str),
    #[error(transparent)]
    Field(ConfigError),
    #[error("emptyDir: {0}")]
    Medium(String),
    #[error("{0} is not supported on this node")]
    Unsupported(&'static str),
    #[error("failed to set up {path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A volume that failed, for the event.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {source}")]
pub struct MountError {
    pub volume: String,
    #[source]
    pub source: VolumeError,
}

/// Where a volume is, once mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    pub path: PathBuf,
    /// Volumes made of objects are read-only for containers.
    pub read_only: bool,
    /// Nothing in it can be run.
    pub no_exec: bool,
    /// A device, for containers that name it in `volumeDevices`.
    pub is_block: bool,
}

impl Mounted {
    fn writable(path: PathBuf) -> Self {
        Self { path, read_only: false, no_exec: false, is_block: false }
    }

    fn read_only(path: PathBuf) -> Self {
        Self { read_only: true, ..Self::writable(path) }
    }

    /// The block device that is at `path`, or that it leads to.
    fn device(path: &Path, read_only: bool) -> Result<Self, VolumeError> {
        let failed = |source| VolumeError::Io { path: path.to_owned(), source };
        let path = fs::canonicalize(path).map_err(failed)?;
        match fs::metadata(&path).map_err(failed)?.file_type().is_block_device() {
            true => Ok(Self { read_only, is_block: true, ..Self::writable(path) }),
            false => Err(VolumeError::NoDevice(path)),
        }
    }

    fn with_access(path: PathBuf, read_only: bool) -> Self {
        Self { read_only, ..Self::writable(path) }
    }
}

/// A pod's volumes by name.
pub type MountedVolumes = BTreeMap<String, Mounted>;

/// A volume that failed is tried again after this long, where the others are there.
pub(crate) const RETRY: Duration = Duration::from_secs(60);
/// How often ClusterTrustBundles are read again for a volume that shows some.
const ROOTS_AGAIN: Duration = Duration::from_secs(60);

/// And how often, at most, a volume is written for the sake of its certificates.
const CERTIFICATES_AGAIN: Duration = Duration::from_secs(1);

/// What mounting gave: the volumes, and when their tokens have to be written anew.
#[derive(Debug, Default)]
pub struct MountOutcome {
    pub volumes: MountedVolumes,
    pub refresh_after: Option<Duration>,
    /// What became of PersistentVolumes that have grown.
    pub grown: Vec<Grown>,
    /// Volumes that could not be made or brought up to date.
    pub failed: Vec<MountError>,
    /// What the pod's user is to know of its certificates.
    pub warnings: Vec<Warning>,
}

impl MountOutcome {
    fn refresh_within(&mut self, left: Duration) {
        self.refresh_after = Some(self.refresh_after.map_or(left, |known| known.min(left)));
    }
}

/// One volume, mounted.
struct Shown {
    mounted: Mounted,
    /// When it has to be looked at again.
    again_after: Option<Duration>,
    grown: Option<Grown>,
}

impl From<Mounted> for Shown {
    fn from(mounted: Mounted) -> Self {
        Self { mounted, again_after: None, grown: None }
    }
}

pub struct Volumes {
    config: Arc<Config>,
    objects: Objects,
    client: Arc<dyn Client>,
    runtime: Arc<dyn Runtime>,
    tokens: TokenManager,
    certificates: Arc<PodCertificates>,
    capacity: NodeCapacity,
    csi: Csi,
}

impl Volumes {
    pub fn new(
        config: Arc<Config>,
        objects: Objects,
        client: Arc<dyn Client>,
        runtime: Arc<dyn Runtime>,
        capacity: NodeCapacity,
        csi: Csi,
    ) -> Self {
        let tokens = TokenManager::new(client.clone());
        let certificates =
            PodCertificates::new(client.clone(), config.node_name.clone(), objects.nodes.clone());
        let certificates = Arc::new(certificates);
        Self { config, objects, client, runtime, tokens, certificates, capacity, csi }
    }

    /// For the metric of their states.
    pub(crate) fn certificates(&self) -> Arc<PodCertificates> {
        self.certificates.clone()
    }

    /// Makes all volumes of the pod, or brings them up to date. Idempotent. One that fails holds up none of the others.
    pub async fn mount(&self, pod: &DesiredPod, ips: &[std::net::IpAddr]) -> MountOutcome {
        let mut outcome = MountOutcome::default();
        // All of them together wait so long for certificates.
        let deadline = Instant::now() + pod_certificate::PATIENCE;
        for volume in pod.spec().volumes.iter().flatten() {
            if let Err(source) = self.mount_into(&mut outcome, pod, ips, volume, deadline).await {
                outcome.failed.push(MountError { volume: volume.name.clone(), source });
                outcome.refresh_within(RETRY);
            }
        }
        outcome.warnings = self.certificates.warnings(pod.uid());
        outcome
    }

    async fn mount_into(
        &self,
        outcome: &mut MountOutcome,
        pod: &DesiredPod,
        ips: &[std::net::IpAddr],
        volume: &Volume,
        deadline: Instant,
    ) -> Result<(), VolumeError> {
        let (tokens, renew_at) = self.tokens_for(pod, volume).await?;
        if let Some(renew_at) = renew_at {
            let left = renew_at.duration_since(Instant::now());
            outcome.refresh_within(left.max(Duration::from_secs(10)));
        }
        let mut roots = Roots::new();
        if trust_bundle::projections(volume).next().is_some() {
            roots = self.roots_for(pod, volume).await?;
            outcome.refresh_within(ROOTS_AGAIN);
        }
        let mut bundles = Bundles::new();
        if pod_certificate::projections(volume).next().is_some() {
            let dir = volume_dir(&self.config, pod.uid(), volume);
            let deadline = self.objects.pods.is_synced().then_some(deadline);
            let (shown, due) = self.certificates.bundles(pod, volume, &dir, deadline).await?;
            bundles = shown;
            due.into_iter().for_each(|left| outcome.refresh_within(left.max(CERTIFICATES_AGAIN)));
        }
        let shown = self.mount_one(pod, ips, volume, &Fetched { tokens, roots, bundles }).await?;
        shown.again_after.into_iter().for_each(|left| outcome.refresh_within(left));
        outcome.grown.extend(shown.grown);
        outcome.volumes.insert(volume.name.clone(), shown.mounted);
        Ok(())
    }

    async fn tokens_for(
        &self,
        pod: &DesiredPod,
        volume: &Volume,
    ) -> Result<(Tokens, Option<Instant>), VolumeError> {
        let mut tokens = Tokens::new();
        let mut first: Option<Instant> = None;
        for key in tokens_of(volume) {
            let (token, renew_at) = if self.objects.pods.is_synced() {
                let token = self.tokens.get(pod, &key).await.map_err(VolumeError::Token)?;
                (Some(token.token), token.renew_at)
            } else {
                // The pod starts without the API, to which the token would lead; it comes with the API.
                let dir = volume_dir(&self.config, pod.uid(), volume);
                (token_in(&dir, volume, &key), Instant::now())
            };
            first = Some(first.map_or(renew_at, |known| known.min(renew_at)));
            tokens.insert(key, token);
        }
        Ok((tokens, first))
    }

    /// What the API has of trust bundles, noted for a start without it; then what was noted.
    async fn roots_for(&self, pod: &DesiredPod, volume: &Volume) -> Result<Roots, VolumeError> {
        let note = self.config.pod_dir(pod.uid()).join(trust_bundle::NOTES).join(&volume.name);
        if !self.objects.pods.is_synced() {
            return trust_bundle::noted(&note, volume);
        }
        let roots = trust_bundle::roots_of(&*self.client, volume).await?;
        let (path, noting) = (note.clone(), roots.clone());
        let written = tokio::task::spawn_blocking(move || trust_bundle::write_note(&path, &noting)).await;
        let written = written.map_err(io::Error::other).flatten();
        written.map_err(|source| VolumeError::Io { path: note, source })?;
        Ok(roots)
    }

    async fn mount_one(
        &self,
        pod: &DesiredPod,
        ips: &[std::net::IpAddr],
        volume: &Volume,
        fetched: &Fetched,
    ) -> Result<Shown, VolumeError> {
        let group = pod.spec().security_context.as_ref().and_then(|c| c.fs_group);
        let group = group.and_then(|g| u32::try_from(g).ok());
        let fields = Fields {
            pod,
            pod_ips: ips,
            node_name: &self.config.node_name,
            node_ips: &self.config.node_ips,
            capacity: self.capacity,
        };
        let dir = volume_dir(&self.config, pod.uid(), volume);
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| VolumeError::Io { path, source }
        };
        if let Some(files) = payload(volume, &fields, &self.objects, fetched)? {
            if is_secret(volume) {
                // Secrets never reach a disk.
                mounts::mount_new(&dir, "tmpfs", None).map_err(io(&dir))?;
            }
            atomic_writer::write(&dir, &files, group).map_err(io(&dir))?;
            return Ok(Mounted::read_only(dir).into());
        }
        if let Some(source) = &volume.empty_dir {
            empty_dir::prepare(&dir, source, pod.spec(), self.capacity.memory_bytes, group)?;
            return Ok(Mounted::writable(dir).into());
        }
        if volume.image.is_some() {
            // Shown before the first container that mounts it starts.
            return Ok(Mounted { no_exec: true, ..Mounted::read_only(dir) }.into());
        }
        if let Some(source) = &volume.host_path {
            return Ok(Mounted::writable(host_path::prepare(source)?).into());
        }
        if let Some(source) = &volume.persistent_volume_claim {
            let read_only = source.read_only == Some(true);
            let claim = Claim { name: &source.claim_name, read_only, is_own: false };
            return self.claimed(pod, claim).await;
        }
        if volume.ephemeral.is_some() {
            let claim = Claim { name: &own_claim_name(pod, &volume.name), read_only: false, is_own: true };
            return self.claimed(pod, claim).await;
        }
        if let Some(source) = &volume.csi {
            let csi = CsiVolume::inline(volume, source, pod.namespace(), pod.uid());
            let published = self.csi.publish(pod, &csi, &self.tokens).await?;
            let mounted = Mounted::with_access(published.path, csi.read_only);
            return Ok(Shown { again_after: published.again_after, ..mounted.into() });
        }
        if let Some(source) = &volume.nfs {
            let path = self.mount_nfs(pod, &volume.name, source, &[]).await?;
            return Ok(Mounted::with_access(path, source.read_only == Some(true)).into());
        }
        Err(VolumeError::Unsupported("this kind of volume"))
    }

    /// Shows an image as a volume of the pod. Idempotent.
    pub async fn mount_image(&self, pod: &DesiredPod, volume: &Volume, image: &Image) -> Result<(), String> {
        let dir = volume_dir(&self.config, pod.uid(), volume);
        let key = image_key(pod.uid(), &volume.name);
        let failed =
            |error: &dyn std::error::Error| format!("image volume {:?}: {}", volume.name, with_source(error));
        // First: by the directory, what the runtime has made is found and taken back, whoever dies in between.
        fs::create_dir_all(&dir).map_err(|error| failed(&error))?;
        let shown = self.runtime.mount_image(&image.id, &key, &dir).await;
        shown.map_err(|error| failed(&error))
    }

    async fn unmount_images(&self, uid: &str) -> Result<(), VolumeError> {
        let dir = self.config.pod_dir(uid).join("volumes").join(IMAGE_PLUGIN);
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|source| VolumeError::Io { path: dir.clone(), source })?,
        };
        for entry in entries.flatten() {
            let key = image_key(uid, &entry.file_name().to_string_lossy());
            let taken_back = self.runtime.unmount_image(&key, &entry.path()).await;
            taken_back.map_err(|error| VolumeError::Image(with_source(&error)))?;
        }
        Ok(())
    }

    /// A container's mounts, subPaths prepared. `env` is for `subPathExpr`.
    pub fn container_mounts(
        &self,
        pod: &DesiredPod,
        container: &DesiredContainer,
        attempt: u32,
        volumes: &MountedVolumes,
        env: &[(String, String)],
    ) -> Result<Vec<Mount>, ConfigError> {
        let mounts = container.spec.volume_mounts.iter().flatten().enumerate();
        mounts
            .map(|(index, mount)| {
                let volume = volumes
                    .get(&mount.name)
                    .ok_or_else(|| ConfigError::ObjectMissing { kind: "volume", name: mount.name.clone() })?;
                if volume.is_block {
                    return Err(wrong_mode(&mount.name, "Block", "volumeMounts"));
                }
                let place =
                    sub_path_place(&self.config, pod.uid(), &mount.name, container.name(), attempt, index);
                let host_path = host_path_of(container, mount, volume, &place, env)?;
                Ok(Mount {
                    container_path: PathBuf::from(&mount.mount_path),
                    host_path,
                    read_only: volume.read_only || mount.read_only == Some(true),
                    recursive_read_only: is_recursive(mount),
                    no_exec: volume.no_exec,
                    propagation: match mount.mount_propagation.as_deref() {
                        Some("HostToContainer") => MountPropagation::HostToContainer,
                        Some("Bidirectional") => MountPropagation::Bidirectional,
                        _ => MountPropagation::Private,
                    },
                })
            })
            .collect()
    }

    /// The devices that a container has of the pod's volumes.
    pub fn container_devices(
        &self,
        container: &DesiredContainer,
        volumes: &MountedVolumes,
    ) -> Result<Vec<DeviceMapping>, ConfigError> {
        let devices = container.spec.volume_devices.iter().flatten();
        devices
            .map(|device| {
                let volume = volumes.get(&device.name).ok_or_else(|| ConfigError::ObjectMissing {
                    kind: "volume",
                    name: device.name.clone(),
                })?;
                if !volume.is_block {
                    return Err(wrong_mode(&device.name, "Filesystem", "volumeDevices"));
                }
                Ok(DeviceMapping {
                    host_path: volume.path.clone(),
                    container_path: PathBuf::from(&device.device_path),
                    permissions: if volume.read_only { "r" } else { "mrw" }.to_owned(),
                })
            })
            .collect()
    }

    /// Unmounts and removes all volumes of a finished pod; other files of the pod stay. Absent is success.
    pub async fn unmount(self: &Arc<Self>, uid: &str) -> Result<(), VolumeError> {
        self.release(uid, Self::unmount_own).await
    }

    /// Removes everything of the pod from the disk, but its logs.
    pub async fn remove_pod_dir(self: &Arc<Self>, uid: &str) -> Result<(), VolumeError> {
        self.release(uid, |volumes, uid| {
            volumes.unmount_own(uid)?;
            remove_tree(&volumes.config.pod_dir(uid))
        })
        .await
    }

    /// Unstages what an agent that died has left. False where that is to be tried again.
    pub(crate) async fn unstage_unused(&self) -> bool {
        self.csi.unstage_unused().await
    }

    /// Drivers take back theirs first; then the kubelet its own, where blocking is allowed.
    async fn release(
        self: &Arc<Self>,
        uid: &str,
        own: impl FnOnce(&Self, &str) -> io::Result<()> + Send + 'static,
    ) -> Result<(), VolumeError> {
        self.csi.unpublish_all(uid).await?;
        self.unmount_images(uid).await?;
        let (volumes, pod_uid) = (self.clone(), uid.to_owned());
        let released = tokio::task::spawn_blocking(move || own(&volumes, &pod_uid)).await;
        let released = released.map_err(io::Error::other).flatten();
        released.map_err(|source| VolumeError::Io { path: self.config.pod_dir(uid), source })
    }

    fn unmount_own(&self, uid: &str) -> io::Result<()> {
        self.tokens.forget(uid);
        self.certificates.forget(uid);
        let dir = self.config.pod_dir(uid);
        for part in ["volume-subpaths", "volumes"] {
            remove_tree(&dir.join(part))?;
        }
        Ok(())
    }

    /// Uids of pods that have a directory here, wanted or not.
    pub fn list(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.config.root_dir.join("pods")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
}

/// The directory of image volumes among a pod's.
const IMAGE_PLUGIN: &str = "kubernetes.io~image";

/// By what the runtime knows the view of an image volume.
fn image_key(uid: &str, volume: &str) -> String {
    format!("{uid}-{volume}")
}

/// Where a volume of the pod's own is.
pub(crate) fn volume_dir(config: &Config, uid: &str, volume: &Volume) -> PathBuf {
    let plugin = match volume {
        Volume { config_map: Some(_), .. } => "kubernetes.io~configmap",
        Volume { secret: Some(_), .. } => "kubernetes.io~secret",
        Volume { projected: Some(_), .. } => "kubernetes.io~projected",
        Volume { downward_api: Some(_), .. } => "kubernetes.io~downward-api",
        Volume { image: Some(_), .. } => IMAGE_PLUGIN,
        _ => "kubernetes.io~empty-dir",
    };
    config.pod_dir(uid).join("volumes").join(plugin).join(&volume.name)
}

fn wrong_mode(volume: &str, mode: &'static str, field: &'static str) -> ConfigError {
    ConfigError::VolumeMode { volume: volume.to_owned(), mode, field }
}

/// Every kernel and runtime that this runs on can make all below a mount read-only.
fn is_recursive(mount: &VolumeMount) -> bool {
    matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"))
}

fn is_secret(volume: &Volume) -> bool {
    volume.secret.is_some() || volume.projected.is_some()
}

fn host_path_of(
    container: &DesiredContainer,
    mount: &VolumeMount,
    volume: &Mounted,
    place: &Path,
    env: &[(String, String)],
) -> Result<PathBuf, ConfigError> {
    let failed = |message: String| ConfigError::SubPath {
        container: container.name().to_owned(),
        mount: mount.name.clone(),
        message,
    };
    let plain = mount.sub_path.clone().filter(|p| !p.is_empty());
    let expression = mount.sub_path_expr.as_ref().filter(|p| !p.is_empty());
    let sub_path = match expression {
        Some(expression) => Some(expand_fully(expression, env).map_err(failed)?),
        None => plain,
    };
    let Some(sub_path) = sub_path else { return Ok(volume.path.clone()) };
    sub_path::bind(&volume.path, &sub_path, place).map_err(|error| failed(error.to_string()))?;
    Ok(place.to_owned())
}

/// A path with a variable that has no value would be a part of the volume that nobody meant.
fn expand_fully(expression: &str, env: &[(String, String)]) -> Result<String, String> {
    let missing = RefCell::new(BTreeSet::new());
    let path = expand(expression, |name| {
        let value =
            env.iter().find(|(k, value)| k == name && !value.is_empty()).map(|(_, value)| value.clone());
        if value.is_none() {
            missing.borrow_mut().insert(name.to_owned());
        }
        value
    });
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    if missing.is_empty() { Ok(path) } else { Err(format!("missing value for {}", missing.join(", "))) }
}

/// Unmounts what is mounted below `dir`, then removes it. Never deletes through a mount.
fn remove_tree(dir: &Path) -> io::Result<()> {
    mounts::unmount_below(dir)?;
    if !mounts::mounts_below(dir)?.is_empty() {
        return Err(io::Error::other(format!("something is still mounted below {}", dir.display())));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_a_path_have_values() {
        let env = [("A", "1"), ("EMPTY", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let expand = |text: &str| expand_fully(text, &env);
        assert_eq!(expand("x/$(A)/$$(B)"), Ok("x/1/$(B)".to_owned()));
        assert_eq!(expand("$(B)/$(EMPTY)/$(A)"), Err("missing value for B, EMPTY".to_owned()));
    }
}
