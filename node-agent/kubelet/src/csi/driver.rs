//! A driver's node service, called over its socket with deadlines.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tonic::transport::Channel;

use crate::sockets::connect;
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

/// Drivers that run on this node, by name. Cheap to clone.
#[derive(Clone, Default)]
pub struct Drivers(Arc<RwLock<BTreeMap<String, PathBuf>>>);

impl Drivers {
    pub fn insert(&self, name: &str, socket: PathBuf) {
        self.0.write().insert(name.to_owned(), socket);
    }

    pub fn remove(&self, name: &str) {
        self.0.write().remove(name);
    }

    pub fn get(&self, name: &str) -> Result<Driver, VolumeError> {
        let socket = self.0.read().get(name).cloned();
        let message = || format!("driver name {name} not found in the list of registered CSI drivers");
        let socket =
            socket.ok_or_else(|| VolumeError::Csi { driver: name.to_owned(), message: message() })?;
        Ok(Driver { name: name.to_owned(), socket })
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

pub struct Driver {
    name: String,
    socket: PathBuf,
}

impl Driver {
    pub async fn info(&self) -> Result<NodeGetInfoResponse, VolumeError> {
        let mut node = self.node().await?;
        self.answer(node.node_get_info(NodeGetInfoRequest {})).await
    }

    pub async fn capabilities(&self) -> Result<Capabilities, VolumeError> {
        let mut node = self.node().await?;
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
        let mut node = self.node().await?;
        self.answer(node.node_stage_volume(request)).await.map(drop)
    }

    pub async fn unstage(&self, request: NodeUnstageVolumeRequest) -> Result<(), VolumeError> {
        let mut node = self.node().await?;
        self.answer(node.node_unstage_volume(request)).await.map(drop)
    }

    pub async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), VolumeError> {
        let mut node = self.node().await?;
        self.answer(node.node_publish_volume(request)).await.map(drop)
    }

    pub async fn unpublish(&self, request: NodeUnpublishVolumeRequest) -> Result<(), VolumeError> {
        let mut node = self.node().await?;
        self.answer(node.node_unpublish_volume(request)).await.map(drop)
    }

    pub async fn expand(&self, request: NodeExpandVolumeRequest) -> Result<(), VolumeError> {
        let mut node = self.node().await?;
        self.answer(node.node_expand_volume(request)).await.map(drop)
    }

    async fn node(&self) -> Result<NodeClient<Channel>, VolumeError> {
        let channel = connect(self.socket.clone()).await.map_err(|error| self.failed(error.to_string()))?;
        Ok(NodeClient::new(channel))
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
                Err(self.failed(format!("rpc error: code = {code:?} desc = {message}")))
            }
            Err(_) => Err(self.failed(format!("no answer within {TIMEOUT:?}"))),
        }
    }

    fn failed(&self, message: String) -> VolumeError {
        VolumeError::Csi { driver: self.name.clone(), message }
    }
}
