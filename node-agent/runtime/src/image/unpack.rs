//! Layers into snapshots, one on another, by containerd's diff service.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types;

use super::config::Descriptor;
use super::registry::Failure;
use crate::containerd::rpc::{self, Rpc};
use crate::{Error, PullErrorKind, Result};

/// A large layer on a slow disk takes minutes.
const APPLY_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// One layer and where it belongs in the stack.
pub(super) struct Layer<'a> {
    pub(super) descriptor: &'a Descriptor,
    pub(super) diff_id: &'a str,
    pub(super) chain_id: &'a str,
    /// Chain id of the layer below; empty for the lowest one.
    pub(super) parent: &'a str,
}

pub(super) async fn is_unpacked(rpc: &Rpc, snapshotter: &str, chain_id: &str) -> Result<bool> {
    let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: chain_id.to_owned() };
    Ok(rpc::find("look up snapshot", rpc.snapshots().stat(request)).await?.is_some())
}

/// Makes the snapshot of `layer`, whose parent's snapshot is there.
pub(super) async fn unpack(rpc: &Rpc, snapshotter: &str, layer: &Layer<'_>) -> Result<(), Failure> {
    let failed = |error: Error| Failure { kind: PullErrorKind::BadImage, message: error.to_string() };
    if is_unpacked(rpc, snapshotter, layer.chain_id).await.map_err(failed)? {
        return Ok(());
    }
    // The caller holds the lock of this chain id, so what is there under this key was left by a crash.
    let key = format!("extract {}", layer.chain_id);
    remove(rpc, snapshotter, &key).await.map_err(failed)?;
    let result = prepare_and_apply(rpc, snapshotter, layer, &key).await;
    if result.is_err()
        && let Err(error) = remove(rpc, snapshotter, &key).await
    {
        tracing::warn!(%error, key, "half-unpacked snapshot could not be removed");
    }
    result
}

async fn prepare_and_apply(
    rpc: &Rpc,
    snapshotter: &str,
    layer: &Layer<'_>,
    key: &str,
) -> Result<(), Failure> {
    let bad = |message: String| Failure { kind: PullErrorKind::BadImage, message };
    let failed = |error: Error| bad(error.to_string());
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: layer.parent.to_owned(),
        labels: HashMap::new(),
    };
    let prepared = rpc::call("prepare snapshot", rpc.snapshots().prepare(prepare)).await.map_err(failed)?;
    let apply = ApplyRequest {
        diff: Some(types::Descriptor {
            media_type: layer.descriptor.media_type.clone(),
            digest: layer.descriptor.digest.clone(),
            size: layer.descriptor.size as i64,
            annotations: HashMap::new(),
        }),
        mounts: prepared.mounts,
        ..Default::default()
    };
    let applied =
        rpc::call_within(APPLY_TIMEOUT, "unpack layer", rpc.diff().apply(apply)).await.map_err(failed)?;
    let diff_id = applied.applied.map(|descriptor| descriptor.digest).unwrap_or_default();
    if diff_id != layer.diff_id {
        let digest = &layer.descriptor.digest;
        return Err(bad(format!("layer {digest} unpacks to {diff_id}, not {}", layer.diff_id)));
    }
    let commit = CommitSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        name: layer.chain_id.to_owned(),
        key: key.to_owned(),
        labels: HashMap::new(),
    };
    rpc::create("commit snapshot", rpc.snapshots().commit(commit)).await.map(|_| ()).map_err(failed)
}

async fn remove(rpc: &Rpc, snapshotter: &str, key: &str) -> Result<()> {
    let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    rpc::remove("remove snapshot", rpc.snapshots().remove(request)).await
}
