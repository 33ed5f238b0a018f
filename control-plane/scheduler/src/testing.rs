//! Nodes and pods for tests.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::{
    pod::{PodInfo, Reader},
    profile::Profile,
};

/// How many seeds a test of generated runs tries: few, unless `SCHEDULER_SEEDS` asks for more.
pub(crate) fn seeds() -> u64 {
    std::env::var("SCHEDULER_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}

/// A node with 4 cores, 8 GiB and room for 110 pods, but for what `fields` say.
pub(crate) fn node(name: &str, fields: Value) -> Node {
    let mut node = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": {},
        "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "10Gi" } },
    });
    merge(&mut node, fields);
    serde_json::from_value(node).unwrap()
}

/// A pod of namespace `a` with its name as uid.
pub(crate) fn pod(name: &str, spec: Value) -> Pod {
    serde_json::from_value(
        json!({ "metadata": { "name": name, "namespace": "a", "uid": name }, "spec": spec }),
    )
    .unwrap()
}

/// The pod as the scheduler sees it, with the default profile.
pub(crate) fn info(pod: &Pod) -> Arc<PodInfo> {
    Reader::default().read(pod, &Arc::new(Profile::default()))
}

/// RFC 7386, but that lists of resources are replaced whole.
fn merge(target: &mut Value, fields: Value) {
    let Value::Object(fields) = fields else {
        *target = fields;
        return;
    };
    for (name, value) in fields {
        if name == "allocatable" {
            target[&name] = value;
        } else {
            merge(&mut target[&name], value);
        }
    }
}
