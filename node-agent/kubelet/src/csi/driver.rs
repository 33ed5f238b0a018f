//! A driver's node service, called over its socket with deadlines.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::storage::v1::CSIDriverSpec;
use parking_lot::{Mutex, RwLock};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;

use crate::sockets::connect_lazily;
use crate::volumes::VolumeError;
use proto::node_client::NodeClient;
use proto::node_service_capability::Type as CapabilityKind;
use proto::node_service_capability::rpc::Type as Capability;
use proto::{
    NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodeGetInfoResponse,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
};

/// The generated code of `proto/csi.proto`.
#[expect(clippy::allow_attributes_without_reason, unused_qualifications, reason = "generated")]
pub mod proto {
    tonic::include_proto!("csi.v1");
}

/// Upstream's: a driver may have to wait for a device or a server.
const TIMEOUT: Duration = Duration::from_secs(120);

/// How long what a driver's object says is taken to be so: nodes do not watch these.
const OBJECT_LASTS: Duration = Duration::from_secs(60);

/// Drivers that run on this node, by name. Cheap to clone. As many as there are plugins.
#[derive(Clone, Default)]
pub struct Drivers(Arc<RwLock<BTreeMap<String, Arc<Driver>>>>);

impl Drivers {
    /// A driver that has made itself known, again perhaps: what was known of it goes.
    pub fn insert(&self, name: &str, socket: PathBuf) {
        let driver = Driver {
            name: name.to_owned(),
            channel: connect_lazily(socket),
            capabilities: OnceCell::new(),
            spec: Mutex::default(),
        };
        self.0.write().insert(name.to_owned(), Arc::new(driver));
    }

    pub fn remove(&self, name: &str) {
        self.0.write().remove(name);
    }

    pub fn get(&self, name: &str) -> Result<Arc<Driver>, VolumeError> {
        let message = || format!("driver name {name} not found in the list of registered CSI drivers");
        let driver = self.0.read().get(name).cloned();
        driver.ok_or_else(|| VolumeError::Csi { driver: name.to_owned(), message: message(), code: None })
    }
}

/// What a driver can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Volumes are staged before they are published.
    pub stages: bool,
    /// It gives files to a group itself.
    pub mounts_group: bool,
    /// What is on a volume grows after the volume.
    pub expands: bool,
}

/// One registration of a driver.
pub struct Driver {
    name: String,
    channel: Channel,
    /// Asked for once: a driver that can do something else registers again.
    capabilities: OnceCell<Capabilities>,
    /// What its object says, and when that was read.
    spec: Mutex<Option<(CSIDriverSpec, Instant)>>,
}

impl Driver {
    /// What the driver's object says, as `read` gives it now and then. Where it cannot be read, what it said last.
    pub async fn spec(
        &self,
        read: impl Future<Output = Result<CSIDriverSpec, VolumeError>>,
    ) -> Result<CSIDriverSpec, VolumeError> {
        let known = self.spec.lock().clone();
        if let Some((spec, _)) = known.as_ref().filter(|(_, at)| at.elapsed() < OBJECT_LASTS) {
            return Ok(spec.clone());
        }
        match (read.await, known) {
            (Ok(spec), _) => {
                *self.spec.lock() = Some((spec.clone(), Instant::now()));
                Ok(spec)
            }
            (Err(_), Some((spec, _))) => Ok(spec),
            (Err(error), None) => Err(error),
        }
    }

    pub async fn info(&self) -> Result<NodeGetInfoResponse, VolumeError> {
        self.answer(self.node().node_get_info(NodeGetInfoRequest {})).await
    }

    pub async fn capabilities(&self) -> Result<Capabilities, VolumeError> {
        self.capabilities.get_or_try_init(|| self.ask_for_capabilities()).await.copied()
    }

    async fn ask_for_capabilities(&self) -> Result<Capabilities, VolumeError> {
        let mut node = self.node();
        let answer = self.answer(node.node_get_capabilities(NodeGetCapabilitiesRequest {})).await?;
        let has = |wanted: Capability| {
            answer.capabilities.iter().any(|capability| match &capability.r#type {
                Some(CapabilityKind::Rpc(rpc)) => rpc.r#type() == wanted,
                None => false,
            })
        };
        Ok(Capabilities {
            stages: has(Capability::StageUnstageVolume),
            mounts_group: has(Capability::VolumeMountGroup),
            expands: has(Capability::ExpandVolume),
        })
    }

    pub async fn stage(&self, request: NodeStageVolumeRequest) -> Result<(), VolumeError> {
        let mut node = self.node();
        self.answer(node.node_stage_volume(request)).await.map(drop)
    }

    pub async fn unstage(&self, request: NodeUnstageVolumeRequest) -> Result<(), VolumeError> {
        let mut node = self.node();
        self.answer(node.node_unstage_volume(request)).await.map(drop)
    }

    pub async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), VolumeError> {
        let mut node = self.node();
        self.answer(node.node_publish_volume(request)).await.map(drop)
    }

    pub async fn unpublish(&self, request: NodeUnpublishVolumeRequest) -> Result<(), VolumeError> {
        let mut node = self.node();
        self.answer(node.node_unpublish_volume(request)).await.map(drop)
    }

    pub async fn expand(&self, request: NodeExpandVolumeRequest) -> Result<(), VolumeError> {
        let mut node = self.node();
        self.answer(node.node_expand_volume(request)).await.map(drop)
    }

    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    async fn answer<T>(
        &self,
        answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, VolumeError> {
        match tokio::time::timeout(TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => {
                // Go's words, which users search for.
                let (code, message) = (status.code(), status.message());
                Err(self.failed(format!("rpc error: code = {code:?} desc = {message}"), Some(code)))
            }
            Err(_) => Err(self.failed(format!("no answer within {TIMEOUT:?}"), None)),
        }
    }

    fn failed(&self, message: String, code: Option<Code>) -> VolumeError {
        VolumeError::Csi { driver: self.name.clone(), message, code }
    }
}
