//! PodTopologyLabels: a pod carries the zone and region of the node that it is bound to.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::Error;
use serde_json::{Value, json};

use super::{Operation, Plugin, Request};
use crate::{
    cache::{CachedObject, KindCache},
    resources::Resources,
};

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

pub(super) struct PodTopology {
    nodes: Arc<KindCache>,
}

impl PodTopology {
    pub(super) fn new(resources: &Resources) -> Self {
        let nodes = resources.builtin("", "v1", "nodes").cache().expect("a kind that is stored").clone();
        Self { nodes }
    }
}

#[async_trait]
impl Plugin for PodTopology {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        let is_bound = request.operation == Operation::Update
            && request.is("", "pods")
            && request.subresource == "binding";
        if !is_bound && !request.creates("pods") {
            return Ok(());
        }
        let node = request.object["spec"]["nodeName"].as_str().filter(|name| !name.is_empty());
        // A node that is not known has no labels to give.
        if let Some(node) = node.and_then(|name| self.nodes.get("", name)) {
            copy_labels(request.object, &node);
        }
        Ok(())
    }
}

/// What the pod says itself stays.
fn copy_labels(pod: &mut Value, node: &CachedObject) {
    for key in LABELS {
        let Some(value) = node.label(key) else { continue };
        let labels = &mut pod["metadata"]["labels"];
        if labels.is_null() {
            *labels = json!({});
        }
        if let Some(labels) = labels.as_object_mut() {
            labels.entry(key).or_insert_with(|| json!(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_pod_gets_the_labels_that_it_does_not_have() {
        let json = json!({ "kind": "Node", "apiVersion": "v1", "metadata": {
            "name": "n1", "labels": { LABELS[0]: "a", LABELS[1]: "north", "disk": "ssd" },
        } });
        let node = CachedObject::parse("/registry/nodes/n1".into(), &Bytes::from(json.to_string()), 1)
            .expect("a node");
        let mut pod = json!({ "metadata": { "labels": { LABELS[0]: "b" } } });
        copy_labels(&mut pod, &node);
        assert_eq!(pod["metadata"]["labels"], json!({ LABELS[0]: "b", LABELS[1]: "north" }));
        let mut plain = json!({ "metadata": {} });
        copy_labels(&mut plain, &node);
        assert_eq!(plain["metadata"]["labels"], json!({ LABELS[0]: "a", LABELS[1]: "north" }));
    }
}
