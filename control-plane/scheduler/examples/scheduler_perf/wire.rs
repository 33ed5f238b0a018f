//! Objects as a client sends them.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hawser_api::{
    Client, Error, GroupVersionResource,
    client::{DeleteOptions, WriteOptions},
    grpc::Remote,
    resource::Target,
};
use serde_json::Value;

use crate::objects::{HIGH, text};

pub(crate) async fn create(client: &Remote, object: Value) -> Result<()> {
    send(client, wire(object)).await
}

pub(crate) async fn send(client: &Remote, (target, object): (Target, Bytes)) -> Result<()> {
    let created: Result<Bytes, Error> = client.create(&target, object, &WriteOptions::default()).await;
    created.map(drop).with_context(|| format!("cannot create one of {}", target.resource))
}

/// What is gone already counts as deleted.
pub(crate) async fn delete(
    client: &Remote,
    resource: GroupVersionResource,
    namespace: Option<&str>,
    name: &str,
    grace_period_seconds: Option<i64>,
) -> Result<()> {
    let target = Target::object(resource, namespace, name);
    let options = DeleteOptions { grace_period_seconds, ..DeleteOptions::default() };
    match client.delete(&target, &options).await {
        Err(error) if !error.is_not_found() => {
            Err(error).with_context(|| format!("cannot delete {name} of {}", target.resource))
        }
        _ => Ok(()),
    }
}

/// Where an object is created, and its bytes. A pod's priority is a class's.
pub(crate) fn wire(mut object: Value) -> (Target, Bytes) {
    let namespace = object["metadata"]["namespace"].as_str();
    let target = Target::collection(resource(text(&object, "/kind")), namespace);
    if object["kind"] == "Pod" {
        object["spec"]["automountServiceAccountToken"] = false.into();
        if object["spec"]["priority"].is_number() {
            object["spec"]["priority"] = Value::Null;
            object["spec"]["priorityClassName"] = HIGH.into();
        }
    }
    (target, object.to_string().into())
}

pub(crate) fn object_target(object: &Value) -> Target {
    let namespace = object["metadata"]["namespace"].as_str();
    Target::object(resource(text(object, "/kind")), namespace, text(object, "/metadata/name"))
}

fn resource(kind: &str) -> GroupVersionResource {
    let fixed = GroupVersionResource::fixed;
    match kind {
        "Namespace" => fixed("", "v1", "namespaces"),
        "Node" => fixed("", "v1", "nodes"),
        "Pod" => fixed("", "v1", "pods"),
        "Service" => fixed("", "v1", "services"),
        "ServiceAccount" => fixed("", "v1", "serviceaccounts"),
        "PersistentVolume" => fixed("", "v1", "persistentvolumes"),
        "PersistentVolumeClaim" => fixed("", "v1", "persistentvolumeclaims"),
        "CSINode" => fixed("storage.k8s.io", "v1", "csinodes"),
        "DeviceClass" => fixed("resource.k8s.io", "v1", "deviceclasses"),
        "ResourceSlice" => fixed("resource.k8s.io", "v1", "resourceslices"),
        "ResourceClaim" => fixed("resource.k8s.io", "v1", "resourceclaims"),
        "ResourceClaimTemplate" => fixed("resource.k8s.io", "v1", "resourceclaimtemplates"),
        "PriorityClass" => fixed("scheduling.k8s.io", "v1", "priorityclasses"),
        other => unreachable!("no workload has a {other}"),
    }
}
