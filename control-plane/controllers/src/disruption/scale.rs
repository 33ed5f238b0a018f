//! How many pods there should be, by the controllers of those that are there.
//!
//! A ReplicaSet of a Deployment counts as the Deployment. Controllers of other groups are asked for their `scale`
//! subresource. A pod without a controller is expected by nobody; one whose controller cannot be scaled makes the
//! budget uncountable.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hawser_api::{
    Error,
    error::Reason,
    resource::{GroupVersionResource, ObjectKey, Target},
};
use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use serde_json::Value;

use crate::{Context, meta::MetaExt};

pub(super) struct Expected {
    pub(super) replicas: i32,
    pub(super) has_unmanaged: bool,
}

pub(super) async fn expected(context: &Context, pods: &[Arc<Pod>]) -> Result<Expected, Error> {
    let mut sizes: BTreeMap<String, i32> = BTreeMap::new();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut has_unmanaged = false;
    for pod in pods {
        let Some(owner) = pod.controller() else {
            has_unmanaged = true;
            continue;
        };
        if !seen.insert(&owner.uid) {
            continue;
        }
        let Some((uid, size)) = size_of(context, pod.namespace(), owner).await? else {
            let message = format!("found no controllers for pod {:?}", pod.name());
            return Err(Error::new(Reason::InternalError, message));
        };
        sizes.insert(uid, size);
    }
    let replicas = sizes.values().fold(0, |sum: i32, size| sum.saturating_add(*size));
    Ok(Expected { replicas, has_unmanaged })
}

/// Uid and wanted pods of what stands behind a pod.
async fn size_of(
    context: &Context,
    namespace: &str,
    owner: &OwnerReference,
) -> Result<Option<(String, i32)>, Error> {
    let caches = &context.caches;
    let key = ObjectKey::new(namespace, owner.name.as_str());
    let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
    let sized = |meta: &ObjectMeta, replicas: Option<i32>, uid: &str| {
        (meta.uid.as_deref() == Some(uid)).then(|| (uid.to_owned(), replicas.unwrap_or(1)))
    };
    match (group, owner.kind.as_str()) {
        ("apps", "ReplicaSet") => {
            let Some(set) = caches.replica_sets.get(&key).filter(|set| set.uid() == owner.uid) else {
                return Ok(None);
            };
            let Some(above) = set.controller().filter(|above| above.kind == "Deployment") else {
                return Ok(sized(
                    &set.metadata,
                    set.spec.as_ref().and_then(|spec| spec.replicas),
                    &owner.uid,
                ));
            };
            let deployment = caches.deployments.get(&ObjectKey::new(namespace, above.name.as_str()));
            Ok(deployment.and_then(|it| {
                sized(&it.metadata, it.spec.as_ref().and_then(|spec| spec.replicas), &above.uid)
            }))
        }
        ("apps", "StatefulSet") => Ok(caches.stateful_sets.get(&key).and_then(|set| {
            sized(&set.metadata, set.spec.as_ref().and_then(|spec| spec.replicas), &owner.uid)
        })),
        ("", "ReplicationController") => Ok(caches
            .replication_controllers
            .get(&key)
            .and_then(|it| sized(&it.metadata, it.spec.as_ref().and_then(|spec| spec.replicas), &owner.uid))),
        _ => scale_of(context, namespace, owner).await,
    }
}

/// Asks the API for the scale of a controller that is not known here.
async fn scale_of(
    context: &Context,
    namespace: &str,
    owner: &OwnerReference,
) -> Result<Option<(String, i32)>, Error> {
    let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
    let resource = GroupVersionResource {
        group: group.to_owned().into(),
        version: version.to_owned().into(),
        resource: plural_of(&owner.kind).into(),
    };
    let name = resource.qualified();
    let target = Target::object(resource, Some(namespace), &owner.name).with_subresource("scale");
    let answer = match context.client.get(&target).await {
        Ok(answer) => answer,
        Err(error) if error.is_not_found() => {
            let message = format!("{name} does not implement the scale subresource");
            return Err(Error::new(Reason::InternalError, message));
        }
        Err(error) => return Err(error),
    };
    let scale: Value = serde_json::from_slice(&answer).map_err(Error::internal)?;
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or_default();
    let is_same = scale["metadata"]["uid"] == owner.uid.as_str();
    Ok(is_same.then(|| (owner.uid.clone(), i32::try_from(replicas).unwrap_or(i32::MAX))))
}

/// The plural that a kind most likely has.
fn plural_of(kind: &str) -> String {
    let name = kind.to_lowercase();
    match name.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if name.ends_with('s') => format!("{name}es"),
        None => format!("{name}s"),
    }
}
