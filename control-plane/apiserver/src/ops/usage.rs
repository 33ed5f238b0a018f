//! `metrics.k8s.io`: what nodes and pods use, as `kubectl top` and the autoscaler read it.
//!
//! Nothing is stored: each answer is made of the nodes and pods in the cache and of what nodes reported to this server last
//! ([`crate::grpc::NodeUsage`]). Objects of which nothing is known are left out, as the add-on does that others install
//! for this. Of nodes whose stream ends at another server nothing is known here.

use std::{collections::HashMap, sync::Arc};

use hawser_api::{Error, quantity, time::format_duration};
use serde_json::{Value, json};

use super::{Call, Reply};
use crate::{
    ApiServer,
    cache::{CachedObject, Selection},
    codec,
    grpc::{Amount, NodeUsage},
    kinds::USAGE,
    registry::{ListRequest, Listed},
    resources::Resource,
};

/// Whether the resource shows what is used.
pub(super) fn is_usage(resource: &Resource) -> bool {
    resource.row.group == USAGE
}

impl ApiServer {
    pub(super) async fn get_usage(&self, call: &Call) -> Result<Reply, Error> {
        let (namespace, name) = call.place()?;
        self.registry().cache().consistent().await?;
        let measured = self.measured(call)?;
        let found = measured.cache()?.get(namespace, name);
        let nodes = self.nodes().all_usage();
        let shown = found.map(|object| shown(&call.resource, &object, &nodes)).transpose()?.flatten();
        shown.map(Reply::Object).ok_or_else(|| call.resource.not_found(name))
    }

    /// All at once, whatever the limit: what is not stored cannot be gone on with.
    pub(super) async fn list_usage(&self, call: &Call, request: &ListRequest) -> Result<Listed, Error> {
        let revision = self.registry().cache().consistent().await?;
        let measured = self.measured(call)?;
        let cache = measured.cache()?;
        let namespace = Some(request.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let selection = Selection::parse(cache, namespace, &request.label_selector, &request.field_selector)?;
        let nodes = self.nodes().all_usage();
        let mut objects = Vec::new();
        for object in selection.select(cache, &cache.snapshot().state, "") {
            objects.extend(shown(&call.resource, &object, &nodes)?);
        }
        Ok(Listed::of(objects, revision))
    }

    /// The nodes or pods that the usage is of.
    fn measured(&self, call: &Call) -> Result<Arc<Resource>, Error> {
        Ok(self.registry().resources().builtin("", "v1", call.resource.row.plural).clone())
    }
}

/// The usage of a node or pod as an object; `None` where nothing is known of it.
fn shown(
    resource: &Resource,
    object: &CachedObject,
    nodes: &HashMap<String, Arc<NodeUsage>>,
) -> Result<Option<Arc<CachedObject>>, Error> {
    let node = if resource.row.namespaced { object.node() } else { object.name() };
    let Some(usage) = nodes.get(node) else { return Ok(None) };
    let measured = if resource.row.namespaced {
        let Some(pod) = usage.pod(object.namespace(), object.name()) else { return Ok(None) };
        let containers =
            pod.containers.iter().map(|(name, amount)| json!({ "name": name, "usage": amounts(*amount) }));
        json!({ "containers": containers.collect::<Vec<Value>>() })
    } else {
        let Some(amount) = usage.node else { return Ok(None) };
        json!({ "usage": amounts(amount) })
    };
    let metadata: Value = serde_json::from_slice(object.encoded().metadata()).map_err(Error::internal)?;
    // A pod made anew under its name has not been measured yet.
    let uid = resource.row.namespaced.then(|| usage.pod(object.namespace(), object.name())).flatten();
    if uid.is_some_and(|pod| !pod.uid.is_empty() && metadata["uid"] != pod.uid.as_str()) {
        return Ok(None);
    }
    let text = text(resource, &metadata, usage, measured)?;
    CachedObject::parse(object.key().clone(), &text.into(), 0)
        .map(Arc::new)
        .map(Some)
        .map_err(Error::internal)
}

fn text(resource: &Resource, metadata: &Value, usage: &NodeUsage, measured: Value) -> Result<Vec<u8>, Error> {
    let at = usage.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let window = i64::try_from(usage.window.as_nanos()).unwrap_or(i64::MAX);
    // As exact as its use is.
    let window = format_duration(window / 1_000_000 * 1_000_000);
    let mut object = json!({
        "kind": resource.row.kind, "apiVersion": resource.api_version,
        "metadata": { "name": metadata["name"], "creationTimestamp": at },
        "timestamp": at, "window": window,
    });
    for field in ["namespace", "labels"] {
        if !metadata[field].is_null() {
            object["metadata"][field] = metadata[field].clone();
        }
    }
    for (field, value) in measured.as_object().into_iter().flatten() {
        object[field] = value.clone();
    }
    codec::canonical_json(&object)
}

fn amounts(amount: Amount) -> Value {
    let canonical = |text: String| quantity::canonical(&text).unwrap_or(text);
    let memory = match amount.memory_bytes % 1024 {
        0 => format!("{}Ki", amount.memory_bytes / 1024),
        _ => amount.memory_bytes.to_string(),
    };
    json!({ "cpu": canonical(format!("{}n", amount.cpu_nanocores)), "memory": canonical(memory) })
}
