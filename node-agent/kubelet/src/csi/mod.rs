//! Volumes of CSI drivers: drivers that run on this node, and what pods use of them.
//!
//! A driver makes itself known by a socket below `plugins_registry` ([`registration`]). A volume is staged once a node,
//! where its driver asks for that, and published to each pod; a file beside each published or staged volume says what it
//! is, so that it is taken back whatever the API knows by then, or whoever dies in between. Every call is idempotent, by
//! CSI's own rules; of one volume no two are under way at a time.

pub mod driver;
mod published;
pub mod registration;
mod tokens;
pub mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::Api;
use hawser_api::client::Client;
use hawser_runtime::keyed_lock::KeyedLock;
use k8s_openapi::api::core::v1::{Node, Secret, SecretReference};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedMutexGuard};
use tracing::warn;

use crate::config::Config;
use crate::pod::DesiredPod;
use crate::quantity::value;
use crate::volumes::VolumeError;
use crate::volumes::ownership;
use crate::volumes::token::TokenManager;
use driver::proto::volume_capability::access_mode::Mode;
use driver::proto::{
    CapacityRange, NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};
use driver::{Capabilities, Driver, Drivers};
use published::{DriverIs, Published as Record};
use volume::{CsiVolume, digest};

/// The name of upstream's volume plugin, as directories have it.
const PLUGIN: &str = "kubernetes.io~csi";
/// Drivers that want it are asked to show a volume anew after this long.
const REPUBLISH: Duration = Duration::from_secs(60);
/// The same after an agent has started.
const REPUBLISH_FIRST: Duration = Duration::from_secs(1);

/// A volume that is shown to a pod.
pub struct Published {
    pub path: PathBuf,
    /// When to publish it anew.
    pub again_after: Option<Duration>,
    /// Its driver can make what is on it larger ([`Csi::expand`]).
    pub expands: bool,
}

/// The node's CSI volumes. Cheap to clone.
#[derive(Clone)]
pub struct Csi {
    config: Arc<Config>,
    client: Arc<dyn Client>,
    pub drivers: Drivers,
    /// What is in use has changed.
    changed: Arc<Notify>,
    /// By driver and handle of a volume: held by whoever calls its driver for it.
    volumes: Arc<KeyedLock>,
    /// Held by whoever changes the node's CSINode object.
    entering: Arc<tokio::sync::Mutex<()>>,
    /// Places of volumes that this agent has looked at; they go with what is shown there.
    looked_at: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Csi {
    pub fn new(config: Arc<Config>, client: Arc<dyn Client>) -> Self {
        Self {
            config,
            client,
            drivers: Drivers::default(),
            changed: Arc::default(),
            volumes: Arc::default(),
            entering: Arc::default(),
            looked_at: Arc::default(),
        }
    }

    /// Volumes that must not be detached from the node, as its status names them.
    pub fn in_use(&self) -> Vec<String> {
        published::in_use(&self.config.root_dir)
    }

    /// Returns when [`Csi::in_use`] may say something else. For one who waits.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Shows the volume to the pod, or shows it anew where its driver wants that again and again.
    pub async fn publish(
        &self,
        pod: &DesiredPod,
        volume: &CsiVolume,
        tokens: &TokenManager,
    ) -> Result<Published, VolumeError> {
        let place = self.config.pod_dir(pod.uid()).join("volumes").join(PLUGIN).join(&volume.name);
        let mut record = Record::of(volume);
        let target = record.target(&place);
        let noted = Record::read(&place);
        let is_shown = noted.is_some() && record.is_shown(&place).map_err(io(&target))?;
        let noted = noted.and_then(|noted| noted.driver_is).filter(|_| is_shown);
        let shown = |again_after, expands| Published { path: target.clone(), again_after, expands };
        if let Some(driver) = noted.filter(|driver| !driver.republishes) {
            return Ok(shown(None, driver.expands));
        }
        let expands = noted.is_some_and(|driver| driver.expands);
        let is_first_look = self.looked_at.lock().insert(place.clone());
        if is_shown && is_first_look {
            // What was shown before this agent came is there: who needs it waits for no driver and no API.
            return Ok(shown(Some(REPUBLISH_FIRST), expands));
        }
        let (driver, spec, capabilities) = match self.describe(&volume.driver).await {
            Ok(known) => known,
            // It stays as it is while its driver, or the API, is away.
            Err(_) if is_shown => return Ok(shown(Some(REPUBLISH), expands)),
            Err(error) => return Err(error),
        };
        let republishes = spec.requires_republish == Some(true);
        record.driver_is = Some(DriverIs { republishes, expands: capabilities.expands });
        let published = shown(republishes.then_some(REPUBLISH), capabilities.expands);
        let _alone = self.lock(&volume.driver, &volume.handle).await;
        if is_shown && Record::read(&place).is_none() {
            return Err(io(&place)(std::io::Error::other("it was taken back meanwhile")));
        }
        if is_shown && !republishes {
            note(&record, &place).await?;
            return Ok(published);
        }
        let group = pod.spec().security_context.as_ref().and_then(|context| context.fs_group);
        let by_driver = capabilities.mounts_group.then_some(group).flatten();
        let capability = volume.capability(by_driver);
        // Before the first call: what a crash leaves half-done is found and taken back, and what is begun is in use.
        note(&record, &place).await?;
        self.changed.notify_one();
        let publish_context = match volume.is_inline || spec.attach_required == Some(false) {
            true => BTreeMap::new(),
            false => self.attachment(volume).await?,
        };
        let stages = capabilities.stages && !volume.is_inline;
        let staging = match stages {
            true if !is_shown => {
                self.stage(&driver, volume, publish_context.clone(), capability.clone()).await?
            }
            true => self.staging_path(&volume.driver, &volume.handle),
            false => PathBuf::new(),
        };
        let mut context = volume.attributes.clone();
        if spec.pod_info_on_mount == Some(true) {
            context.extend(pod_info(pod, volume));
        }
        let mut secrets = self.secrets(volume.publish_secret.as_ref()).await?;
        if let Some(tokens) = tokens::requested(pod, &spec, tokens).await? {
            match spec.service_account_token_in_secrets {
                Some(true) => drop(secrets.insert(tokens::KEY.to_owned(), tokens)),
                _ => drop(context.insert(tokens::KEY.to_owned(), tokens)),
            }
        }
        let request = NodePublishVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: publish_context.into_iter().collect(),
            staging_target_path: staging.to_string_lossy().into_owned(),
            target_path: target.to_string_lossy().into_owned(),
            volume_capability: Some(capability),
            readonly: volume.read_only,
            secrets,
            volume_context: context.into_iter().collect(),
        };
        driver.publish(request).await?;
        let owned = ownership_applies(spec.fs_group_policy.as_deref(), volume) && by_driver.is_none();
        if let Some(group) = group.and_then(|g| u32::try_from(g).ok()).filter(|_| owned && !is_shown) {
            ownership::set(pod, &target, group).await.map_err(io(&target))?;
        }
        Ok(published)
    }

    /// Makes the volume ready on the node, and returns where.
    async fn stage(
        &self,
        driver: &Driver,
        volume: &CsiVolume,
        publish_context: BTreeMap<String, String>,
        capability: VolumeCapability,
    ) -> Result<PathBuf, VolumeError> {
        // It outlives what is noted for pods, until it is unstaged.
        note(&Record::of(volume), &self.staging_place(&volume.driver, &volume.handle)).await?;
        let path = self.staging_path(&volume.driver, &volume.handle);
        std::fs::create_dir_all(&path).map_err(io(&path))?;
        let request = NodeStageVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: publish_context.into_iter().collect(),
            staging_target_path: path.to_string_lossy().into_owned(),
            volume_capability: Some(capability),
            secrets: self.secrets(volume.stage_secret.as_ref()).await?,
            volume_context: volume.attributes.clone().into_iter().collect(),
        };
        driver.stage(request).await?;
        Ok(path)
    }

    /// The driver of this node, what its object says of it, and what it can do.
    async fn describe(&self, name: &str) -> Result<(Arc<Driver>, CSIDriverSpec, Capabilities), VolumeError> {
        let driver = self.drivers.get(name)?;
        let spec = driver.spec(self.read_spec(name)).await?;
        let capabilities = driver.capabilities().await?;
        Ok((driver, spec, capabilities))
    }

    /// Lets what is on a volume use all of the `size` that the volume has now.
    pub async fn expand(&self, volume: &CsiVolume, path: &Path, size: &Quantity) -> Result<(), VolumeError> {
        let staging = self.staging_path(&volume.driver, &volume.handle);
        let request = NodeExpandVolumeRequest {
            volume_id: volume.handle.clone(),
            volume_path: path.to_string_lossy().into_owned(),
            capacity_range: Some(CapacityRange { required_bytes: value(size), limit_bytes: 0 }),
            staging_target_path: match staging.exists() {
                true => staging.to_string_lossy().into_owned(),
                false => String::new(),
            },
            volume_capability: Some(volume.capability(None)),
            secrets: self.secrets(volume.expand_secret.as_ref()).await?,
        };
        let driver = self.drivers.get(&volume.driver)?;
        let _alone = self.lock(&volume.driver, &volume.handle).await;
        driver.expand(request).await
    }

    /// Takes back all that was shown to a pod. Absent is success.
    pub async fn unpublish_all(&self, uid: &str) -> Result<(), VolumeError> {
        let dir = self.config.pod_dir(uid).join("volumes").join(PLUGIN);
        for place in published::places(&dir) {
            self.unpublish(&place).await?;
        }
        Ok(())
    }

    async fn unpublish(&self, place: &Path) -> Result<(), VolumeError> {
        let noted = || Record::noted(place).map_err(io(place));
        let Some(known) = noted()? else { return Ok(()) };
        let driver = self.drivers.get(&known.driver_name)?;
        let _alone = self.lock(&known.driver_name, &known.volume_handle).await;
        if noted()?.is_none() {
            return Ok(());
        }
        let request = NodeUnpublishVolumeRequest {
            volume_id: known.volume_handle.clone(),
            target_path: known.target(place).to_string_lossy().into_owned(),
        };
        driver.unpublish(request).await?;
        published::remove_target(place).map_err(io(place))?;
        self.unstage_unless_used(&driver, &known, Some(place)).await?;
        // Only now: whoever dies before leaves a note by which it is all done again.
        published::forget(place).map_err(io(place))?;
        self.looked_at.lock().remove(place);
        self.changed.notify_one();
        Ok(())
    }

    /// Unstages the volume, unless a pod has it at another place than `leaving`. Absent is success. For the holder of its
    /// lock.
    async fn unstage_unless_used(
        &self,
        driver: &Driver,
        volume: &Record,
        leaving: Option<&Path>,
    ) -> Result<(), VolumeError> {
        let place = self.staging_place(&volume.driver_name, &volume.volume_handle);
        let root = &self.config.root_dir;
        if Record::noted(&place).map_err(io(&place))?.is_none()
            || published::is_used(root, volume, leaving).map_err(io(root))?
        {
            return Ok(());
        }
        let staging = self.staging_path(&volume.driver_name, &volume.volume_handle);
        let request = NodeUnstageVolumeRequest {
            volume_id: volume.volume_handle.clone(),
            staging_target_path: staging.to_string_lossy().into_owned(),
        };
        driver.unstage(request).await?;
        published::remove_empty(&staging).map_err(io(&staging))?;
        published::forget(&place).map_err(io(&place))?;
        self.changed.notify_one();
        Ok(())
    }

    /// Unstages what no pod has: an agent that died has left it. What cannot be unstaged now holds up nothing else; false
    /// where there is some of that, which is to be tried again.
    pub(crate) async fn unstage_unused(&self) -> bool {
        let mut all = true;
        for place in published::staged(&self.config.root_dir) {
            if let Err(error) = self.unstage_if_unused(&place).await {
                warn!(%error, place = %place.display(), "a staged volume that no pod has stays, trying again");
                all = false;
            }
        }
        all
    }

    async fn unstage_if_unused(&self, place: &Path) -> Result<(), VolumeError> {
        let Some(known) = Record::noted(place).map_err(io(place))? else { return Ok(()) };
        let _alone = self.lock(&known.driver_name, &known.volume_handle).await;
        let root = &self.config.root_dir;
        if published::is_used(root, &known, None).map_err(io(root))? {
            return Ok(());
        }
        let driver = self.drivers.get(&known.driver_name)?;
        self.unstage_unless_used(&driver, &known, None).await
    }

    async fn lock(&self, driver: &str, handle: &str) -> OwnedMutexGuard<()> {
        self.volumes.lock(&format!("{driver}/{handle}")).await
    }

    /// Upstream's place, by a digest of the volume's handle.
    fn staging_path(&self, driver: &str, handle: &str) -> PathBuf {
        self.staging_place(driver, handle).join("globalmount")
    }

    fn staging_place(&self, driver: &str, handle: &str) -> PathBuf {
        self.config.root_dir.join(published::STAGING).join(driver).join(digest(handle))
    }

    async fn read_spec(&self, name: &str) -> Result<CSIDriverSpec, VolumeError> {
        let api: Api<CSIDriver> = Api::all(self.client.clone());
        let found = api.find(name).await.map_err(|error| failed(name, &error))?;
        Ok(found.map(|object| object.spec).unwrap_or_default())
    }

    /// What the attaching of the volume gave, once it is attached to this node and cannot be detached any more.
    ///
    /// One read of the node shows both lists: who detaches takes the volume from `volumesAttached` in a write that fails
    /// where the node has changed, and does not where `volumesInUse` has it.
    async fn attachment(&self, volume: &CsiVolume) -> Result<BTreeMap<String, String>, VolumeError> {
        let (handle, driver, node) = (&volume.handle, &volume.driver, &self.config.node_name);
        let wait = |what: &str| VolumeError::Csi {
            driver: driver.clone(),
            message: format!("volume {handle} is not {what} yet"),
            code: None,
        };
        let nodes: Api<Node> = Api::all(self.client.clone());
        let found = nodes.find(node).await.map_err(|error| failed(driver, &error))?;
        let status = found.and_then(|node| node.status).unwrap_or_default();
        let unique = published::unique_name(driver, handle);
        if !status.volumes_in_use.iter().flatten().any(|name| *name == unique) {
            return Err(wait("listed as in use by this node"));
        }
        if !status.volumes_attached.iter().flatten().any(|attached| attached.name == unique) {
            return Err(wait("attached to this node"));
        }
        let name = format!("csi-{}", digest(&format!("{handle}{driver}{node}")));
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        let found = api.find(&name).await.map_err(|error| failed(&volume.driver, &error))?;
        match found.and_then(|attachment| attachment.status).filter(|status| status.attached) {
            Some(status) => Ok(status.attachment_metadata.unwrap_or_default()),
            None => Err(wait("attached to this node")),
        }
    }

    async fn secrets(
        &self,
        reference: Option<&SecretReference>,
    ) -> Result<std::collections::HashMap<String, String>, VolumeError> {
        let Some(SecretReference { name: Some(name), namespace: Some(namespace) }) = reference else {
            return Ok(Default::default());
        };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = api.get(name).await.map_err(|error| failed(name, &error))?;
        let data = secret.data.into_iter().flatten();
        Ok(data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
    }
}

/// Writes the note, unless it is there.
async fn note(record: &Record, place: &Path) -> Result<(), VolumeError> {
    if Record::read(place).as_ref() == Some(record) {
        return Ok(());
    }
    let (record, to) = (record.clone(), place.to_owned());
    let written = tokio::task::spawn_blocking(move || record.write(&to)).await;
    written.map_err(std::io::Error::other).flatten().map_err(io(place))
}

fn failed(what: &str, error: &hawser_api::Error) -> VolumeError {
    VolumeError::Csi { driver: what.to_owned(), message: error.to_string(), code: None }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io { path: path.clone(), source }
}

/// What drivers learn of the pod that they mount for, where they ask for it.
fn pod_info(pod: &DesiredPod, volume: &CsiVolume) -> [(String, String); 5] {
    let account = pod.spec().service_account_name.clone().unwrap_or_default();
    [
        ("name", pod.name().to_owned()),
        ("namespace", pod.namespace().to_owned()),
        ("uid", pod.uid().to_owned()),
        ("account", account),
        ("ephemeral", volume.is_inline.to_string()),
    ]
    .map(|(what, value)| match what {
        "account" => ("csi.storage.k8s.io/serviceAccount.name".to_owned(), value),
        "ephemeral" => ("csi.storage.k8s.io/ephemeral".to_owned(), value),
        of_pod => (format!("csi.storage.k8s.io/pod.{of_pod}"), value),
    })
}

/// Whether the kubelet gives the files to the pod's group.
fn ownership_applies(policy: Option<&str>, volume: &CsiVolume) -> bool {
    let one_writer = matches!(
        volume.access_mode,
        Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter | Mode::SingleNodeMultiWriter
    );
    !volume.read_only
        && !volume.is_block
        && match policy {
            Some("File") => true,
            Some("None") => false,
            _ => !volume.fs_type.is_empty() && one_writer,
        }
}
