//! SocketTranslation, Hawser's own: pods of a namespace whose sockets are to be left alone say so themselves.
//!
//! The node reads the pod's annotation. A pod that has one keeps it, so that it can differ from its namespace; one that
//! is there already when the namespace is annotated stays as it is, as with other defaults of a namespace's.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::Error;
use serde_json::{Value, json};

use super::{Plugin, Request};
use crate::{cache::KindCache, resources::Resources};

const SOCKET_TRANSLATION: &str = "hawser.io/socket-translation";

pub(super) struct SocketTranslation {
    namespaces: Arc<KindCache>,
}

impl SocketTranslation {
    pub(super) fn new(resources: &Resources) -> Self {
        let namespaces = resources.builtin("", "v1", "namespaces").cache().expect("a kind that is stored");
        Self { namespaces: namespaces.clone() }
    }
}

#[async_trait]
impl Plugin for SocketTranslation {
    fn name(&self) -> &'static str {
        "SocketTranslation"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        if request.creates("pods")
            && let Some(namespace) = self.namespaces.get("", request.namespace)
        {
            inherit(request.object, namespace.kept());
        }
        Ok(())
    }
}

fn inherit(pod: &mut Value, namespace: &Value) {
    let Some(wanted) = namespace["metadata"]["annotations"][SOCKET_TRANSLATION].as_str() else { return };
    let annotations = &mut pod["metadata"]["annotations"];
    if annotations.is_null() {
        *annotations = json!({});
    }
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.entry(SOCKET_TRANSLATION).or_insert_with(|| json!(wanted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_without_the_annotation_has_its_namespaces() {
        let namespace = |annotations| json!({ "metadata": { "annotations": annotations } });
        let off = namespace(json!({ SOCKET_TRANSLATION: "off" }));
        for (what, namespace, annotations, expected) in [
            ("none at all", namespace(Value::Null), Value::Null, Value::Null),
            ("of the namespace", off.clone(), Value::Null, json!("off")),
            ("beside others", off.clone(), json!({ "other": "1" }), json!("off")),
            ("its own", off, json!({ SOCKET_TRANSLATION: "on" }), json!("on")),
        ] {
            let mut pod = json!({ "metadata": { "annotations": annotations } });
            inherit(&mut pod, &namespace);
            assert_eq!(pod["metadata"]["annotations"][SOCKET_TRANSLATION], expected, "{what}");
        }
    }
}
