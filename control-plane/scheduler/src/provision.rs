//! Has the volumes of a pod bound before the pod is: the shell's part of VolumeBinding.
//!
//! A volume that is there is given to its claim, a claim that needs a new one is told the node; the rest is done by
//! the controllers of volumes. What the API does not take, what the controllers give up, and what takes too long sends the pod
//! back to the queue. Nothing of it has to be remembered: a scheduler that starts finds the node in the claims, and waits anew.

use std::collections::HashMap;

use bytes::Bytes;
use hawser_api::{
    Client, Error,
    client::{Patch, WriteOptions},
    resource::{GroupVersionResource, ObjectKey, Target},
    typed::decode,
};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{
    notice::until,
    scheduler::{Provisioning, Scheduler},
    volumes::SELECTED_NODE,
};

const CLAIMS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "persistentvolumeclaims");
const VOLUMES: GroupVersionResource = GroupVersionResource::fixed("", "v1", "persistentvolumes");

/// Tells the controllers that the scheduler gave the volume to the claim, so that they may take it back.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// Returns when all claims are bound, or says why they will not be.
pub(crate) async fn provision(
    client: &dyn Client,
    core: &Mutex<Scheduler>,
    claims_changed: &Notify,
    provisioning: &Provisioning,
) -> Result<(), String> {
    let work = async {
        let written = write(client, core, provisioning).await.map_err(|error| error.to_string())?;
        wait(core, claims_changed, provisioning, &written).await
    };
    let timeout = provisioning.decision.attempt.profile.volume_bind_timeout;
    tokio::time::timeout(timeout, work)
        .await
        .unwrap_or_else(|_| Err("binding volumes: context deadline exceeded".to_owned()))
}

/// Returns the versions of the claims that the node was noted in.
async fn write(
    client: &dyn Client,
    core: &Mutex<Scheduler>,
    provisioning: &Provisioning,
) -> Result<HashMap<ObjectKey, String>, Error> {
    for (volume, claim) in &provisioning.promises.volumes.volumes {
        let patch = give(core, volume, claim).ok_or_else(|| Error::not_found(&VOLUMES, volume))?;
        patch_object(client, &Target::object(VOLUMES, None, volume), &patch).await?;
    }
    let mut written = HashMap::new();
    for claim in &provisioning.promises.volumes.provisioned {
        let version = core.lock().volumes().claim(claim).map(|claim| claim.resource_version.clone());
        let version = version.ok_or_else(|| Error::not_found(&CLAIMS, &claim.name))?;
        let annotations = json!({ SELECTED_NODE: provisioning.decision.binding.node });
        let patch = json!({ "metadata": { "resourceVersion": version, "annotations": annotations } });
        let target = Target::object(CLAIMS, Some(&claim.namespace), &claim.name);
        let now: PersistentVolumeClaim = decode(&patch_object(client, &target, &patch).await?)?;
        written.insert(claim.clone(), now.metadata.resource_version.unwrap_or_default());
    }
    Ok(written)
}

/// Versions make a patch of an object that changed meanwhile fail: the decision was about what it was.
fn give(core: &Mutex<Scheduler>, volume: &str, claim: &ObjectKey) -> Option<Value> {
    let core = core.lock();
    let (volume, claim) = (core.volumes().volume(volume)?, core.volumes().claim(claim)?);
    Some(json!({
        "metadata": {
            "resourceVersion": volume.resource_version, "annotations": { BOUND_BY_CONTROLLER: "yes" },
        },
        "spec": { "claimRef": {
            "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": claim.key.namespace, "name": claim.key.name,
            "uid": claim.uid, "resourceVersion": claim.resource_version,
        } },
    }))
}

async fn patch_object(client: &dyn Client, target: &Target, patch: &Value) -> Result<Bytes, Error> {
    client.patch(target, Patch::Merge(patch.to_string().into()), &WriteOptions::default()).await
}

async fn wait(
    core: &Mutex<Scheduler>,
    claims_changed: &Notify,
    provisioning: &Provisioning,
    written: &HashMap<ObjectKey, String>,
) -> Result<(), String> {
    let node = &provisioning.decision.binding.node;
    let look = || {
        let core = core.lock();
        if !core.has_node(node) {
            return Some(Err(format!("node {node:?} is gone")));
        }
        match core.volumes().are_bound(&provisioning.promises.volumes, node, written) {
            Ok(true) => Some(Ok(())),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    };
    until(claims_changed, look).await.map_err(|error| format!("binding volumes: {error}"))
}
