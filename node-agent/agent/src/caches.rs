//! What the node knows of the cluster: caches fed by the node stream.

use std::collections::HashSet;

use bytes::Bytes;
use hawser_api::{
    grpc::NodeEvent,
    informer::Informer,
    resource::{GroupVersionResource, ObjectKey},
    typed::{Kind, decode},
};
use hawser_kubelet::Objects;
use hawser_services::Key;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

/// Everything that the control plane sends a node.
#[derive(Clone, Default)]
pub(crate) struct Caches {
    pub(crate) objects: Objects,
}

/// What a stream has named and not taken back.
#[derive(Default)]
struct Named {
    services: HashSet<Key>,
    slices: HashSet<Key>,
    others: HashSet<(GroupVersionResource, ObjectKey)>,
}

impl Caches {
    /// Applies what the stream says, until it ends.
    pub(crate) async fn follow(self, mut events: mpsc::Receiver<NodeEvent>) {
        // Until the stream's snapshot ends: bounded by what concerns the node. A stream that is resumed has no
        // snapshot; there it only grows with the objects that change.
        let mut named: Option<Named> = None;
        while let Some(event) = events.recv().await {
            match event {
                NodeEvent::Connected => {
                    debug!("node stream is open");
                    named = Some(Named::default());
                }
                NodeEvent::Changed { resource, key, object } => {
                    self.put(resource, key, &object, named.as_mut());
                }
                NodeEvent::Deleted { resource, key } => {
                    self.remove(resource, key, named.as_mut());
                }
                NodeEvent::SnapshotEnd => {
                    self.prune(&named.take().unwrap_or_default());
                    info!(
                        pods = self.objects.pods.len(),
                        services = self.objects.services.services(),
                        "node is in step"
                    );
                }
            }
        }
    }

    fn put(&self, resource: GroupVersionResource, key: ObjectKey, object: &Bytes, named: Option<&mut Named>) {
        let services = &self.objects.services;
        let outcome = match &*resource.resource {
            "services" => decode(object).map(|object| services.put_service(&object)),
            "endpointslices" => decode(object).map(|object| services.put_slice(&object)),
            "pods" => put(&self.objects.pods, object),
            "configmaps" => put(&self.objects.config_maps, object),
            "secrets" => put(&self.objects.secrets, object),
            "nodes" => put(&self.objects.nodes, object),
            // A newer control plane may send more kinds than this agent knows.
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            warn!(%resource, %key, %error, "object cannot be read");
        }
        if let Some(named) = named {
            named.insert(resource, key);
        }
    }

    fn remove(&self, resource: GroupVersionResource, key: ObjectKey, named: Option<&mut Named>) {
        match &*resource.resource {
            "services" => self.objects.services.remove_service(&key_of(&key)),
            "endpointslices" => self.objects.services.remove_slice(&key_of(&key)),
            "pods" => self.objects.pods.remove(&key),
            "configmaps" => self.objects.config_maps.remove(&key),
            "secrets" => self.objects.secrets.remove(&key),
            "nodes" => self.objects.nodes.remove(&key),
            _ => {}
        }
        if let Some(named) = named {
            named.remove(resource, key);
        }
    }

    /// Removes what the snapshot did not name, and marks the caches as complete.
    fn prune(&self, named: &Named) {
        retain(&self.objects.config_maps, &named.others);
        retain(&self.objects.secrets, &named.others);
        retain(&self.objects.nodes, &named.others);
        self.objects.services.retain(&named.services, &named.slices);
        // Last: who acts on a pod finds what the pod names.
        retain(&self.objects.pods, &named.others);
    }
}

impl Named {
    fn insert(&mut self, resource: GroupVersionResource, key: ObjectKey) {
        match &*resource.resource {
            "services" => self.services.insert(key_of(&key)),
            "endpointslices" => self.slices.insert(key_of(&key)),
            _ => self.others.insert((resource, key)),
        };
    }

    fn remove(&mut self, resource: GroupVersionResource, key: ObjectKey) {
        match &*resource.resource {
            "services" => self.services.remove(&key_of(&key)),
            "endpointslices" => self.slices.remove(&key_of(&key)),
            _ => self.others.remove(&(resource, key)),
        };
    }
}

/// The directory's form of a key.
fn key_of(key: &ObjectKey) -> Key {
    Key::new(&key.namespace, &key.name)
}

/// Without the owners of its fields, which nobody here asks for: kept, they would be most of a pod. Copied, since lists that
/// grew as they were read have room for items that never come: twice what the pod takes.
fn put<K: Kind>(cache: &Informer<K>, object: &Bytes) -> Result<(), hawser_api::Error> {
    let mut object: K = decode(object)?;
    object.metadata_mut().managed_fields = None;
    cache.put(object.clone());
    Ok(())
}

fn retain<K: Kind>(cache: &Informer<K>, named: &HashSet<(GroupVersionResource, ObjectKey)>) {
    let resource = GroupVersionResource::of::<K>();
    let kept = cache.all().into_iter().filter(|object| {
        let key = ObjectKey::of(&**object);
        named.contains(&(resource.clone(), key))
    });
    cache.replace(kept.map(|object| (*object).clone()).collect());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_of_fields_are_not_kept() {
        let caches = Caches::default();
        let pod = r#"{
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "default", "labels": { "app": "web" },
                "managedFields": [{ "manager": "kubectl", "fieldsV1": { "f:spec": {} } }]
            }
        }"#;
        let key = ObjectKey::new("default", "web");
        caches.put(
            GroupVersionResource::of::<k8s_openapi::api::core::v1::Pod>(),
            key.clone(),
            &pod.into(),
            None,
        );
        let kept = caches.objects.pods.get(&key).expect("kept");
        assert_eq!(kept.metadata.managed_fields, None);
        assert_eq!(kept.metadata.labels.as_ref().map(|labels| labels.len()), Some(1));
    }
}
