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
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

/// Everything that the control plane sends a node.
#[derive(Clone, Default)]
pub(crate) struct Caches {
    pub(crate) objects: Objects,
    pub(crate) slices: Informer<EndpointSlice>,
}

impl Caches {
    /// Applies what the stream says, until it ends.
    pub(crate) async fn follow(self, mut events: mpsc::Receiver<NodeEvent>) {
        // What the stream has named and not taken back, until its snapshot ends: bounded by what concerns the node. A
        // stream that is resumed has no snapshot; there it only grows with the objects that change.
        let mut named: Option<HashSet<(GroupVersionResource, ObjectKey)>> = None;
        while let Some(event) = events.recv().await {
            match event {
                NodeEvent::Connected => {
                    debug!("node stream is open");
                    named = Some(HashSet::new());
                }
                NodeEvent::Changed { resource, key, object } => {
                    self.put(&resource, &key, &object);
                    if let Some(named) = &mut named {
                        named.insert((resource, key));
                    }
                }
                NodeEvent::Deleted { resource, key } => {
                    self.remove(&resource, &key);
                    if let Some(named) = &mut named {
                        named.remove(&(resource, key));
                    }
                }
                NodeEvent::SnapshotEnd => {
                    self.prune(&named.take().unwrap_or_default());
                    info!(
                        pods = self.objects.pods.len(),
                        services = self.objects.services.len(),
                        "node is in step"
                    );
                }
            }
        }
    }

    fn put(&self, resource: &GroupVersionResource, key: &ObjectKey, object: &Bytes) {
        let outcome = match &*resource.resource {
            "pods" => put(&self.objects.pods, object),
            "configmaps" => put(&self.objects.config_maps, object),
            "secrets" => put(&self.objects.secrets, object),
            "services" => put(&self.objects.services, object),
            "nodes" => put(&self.objects.nodes, object),
            "endpointslices" => put(&self.slices, object),
            // A newer control plane may send more kinds than this agent knows.
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            warn!(%resource, %key, %error, "object cannot be read");
        }
    }

    fn remove(&self, resource: &GroupVersionResource, key: &ObjectKey) {
        match &*resource.resource {
            "pods" => self.objects.pods.remove(key),
            "configmaps" => self.objects.config_maps.remove(key),
            "secrets" => self.objects.secrets.remove(key),
            "services" => self.objects.services.remove(key),
            "nodes" => self.objects.nodes.remove(key),
            "endpointslices" => self.slices.remove(key),
            _ => {}
        }
    }

    /// Removes what the snapshot did not name, and marks the caches as complete.
    fn prune(&self, named: &HashSet<(GroupVersionResource, ObjectKey)>) {
        retain(&self.objects.config_maps, named);
        retain(&self.objects.secrets, named);
        retain(&self.objects.nodes, named);
        retain(&self.objects.services, named);
        retain(&self.slices, named);
        // Last: who acts on a pod finds what the pod names.
        retain(&self.objects.pods, named);
    }
}

fn put<K: Kind>(cache: &Informer<K>, object: &Bytes) -> Result<(), hawser_api::Error> {
    cache.put(decode(object)?);
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
