//! Deletes the victims of a preemption, and tells why.
//!
//! Each victim first gets the condition `DisruptionTarget`, so that controllers know that it did not fail by itself. What
//! cannot be deleted is not retried here: the pod that waits is tried again and decides anew.

use std::sync::Arc;

use futures::{StreamExt, stream};
use hawser_api::{
    Client, Error,
    client::{DeleteOptions, Patch, WriteOptions},
    error::Reason,
    resource::{GroupVersionResource, Target},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::warn;

use crate::{
    events::{self, Recorder},
    pod::PodInfo,
    scheduler::Preemption,
};

/// Victims of one pod that are deleted at the same time.
const CONCURRENT: usize = 8;

const PODS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "pods");

/// True where all victims are being deleted, or gone.
pub(crate) async fn evict(client: &dyn Client, recorder: &Recorder, preemption: &Preemption) -> bool {
    for displaced in &preemption.displaced {
        if let Err(error) = denominate(client, displaced).await {
            warn!(key = %displaced.key, %error, "cannot take back a nomination");
        }
    }
    let doomed: Vec<Arc<PodInfo>> =
        preemption.victims.iter().filter(|victim| !victim.is_going()).cloned().collect();
    stream::iter(doomed)
        .map(|victim| async move { evict_one(client, recorder, preemption, &victim).await })
        .buffer_unordered(CONCURRENT)
        .fold(true, |all, done| async move { all && done })
        .await
}

/// True where the pod is being deleted, or gone.
async fn evict_one(
    client: &dyn Client,
    recorder: &Recorder,
    preemption: &Preemption,
    victim: &PodInfo,
) -> bool {
    match delete(client, preemption, victim).await {
        Ok(()) => {
            let message = format!("Preempted by pod {} on node {}", preemption.pod.uid, preemption.node);
            let key = &victim.key;
            recorder.record(&key.namespace, &key.name, &victim.uid, events::PREEMPTED, message);
            true
        }
        Err(error) if is_gone(&error) => true,
        Err(error) => {
            warn!(key = %victim.key, preemptor = %preemption.pod.key, %error, "cannot preempt a pod");
            false
        }
    }
}

async fn delete(client: &dyn Client, preemption: &Preemption, victim: &PodInfo) -> Result<(), Error> {
    let scheduler = &preemption.pod.needs.profile.scheduler_name;
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
        "lastTransitionTime": events::seconds(Timestamp::now()),
    });
    patch_status(client, victim, json!({ "conditions": [condition] })).await?;
    let options = DeleteOptions { uid: Some(victim.uid.to_string()), ..DeleteOptions::default() };
    client.delete(&target(victim), &options).await?;
    Ok(())
}

async fn denominate(client: &dyn Client, pod: &PodInfo) -> Result<(), Error> {
    match patch_status(client, pod, json!({ "nominatedNodeName": null })).await {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

async fn patch_status(client: &dyn Client, pod: &PodInfo, status: Value) -> Result<(), Error> {
    // The uid makes a patch of another pod with this name fail.
    let patch = json!({ "metadata": { "uid": &*pod.uid }, "status": status });
    let patch = Patch::StrategicMerge(patch.to_string().into());
    client.patch(&target(pod).with_subresource("status"), patch, &WriteOptions::default()).await?;
    Ok(())
}

fn target(pod: &PodInfo) -> Target {
    Target::object(PODS, Some(&pod.key.namespace), &pod.key.name)
}

/// Gone, or another pod by now.
fn is_gone(error: &Error) -> bool {
    matches!(error.reason(), Reason::NotFound | Reason::Conflict | Reason::Invalid)
}
