//! Nodes that are being cleared for pods: others of lower priority leave that room alone.
//!
//! A pod is nominated for one node at most, and no longer than it waits. Bounded by the waiting pods.

use std::{collections::HashMap, sync::Arc};

use crate::{
    pod::PodInfo,
    snapshot::{Slot, Snapshot},
};

#[derive(Debug, Default)]
pub(crate) struct Nominations {
    by_node: HashMap<Arc<str>, Vec<Arc<PodInfo>>>,
    nodes: HashMap<Arc<str>, Arc<str>>,
    version: u64,
}

impl Nominations {
    /// Changes with every nomination.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The node that the pod is nominated for.
    pub(crate) fn node_of(&self, uid: &str) -> Option<&str> {
        self.nodes.get(uid).map(|node| &**node)
    }

    /// Nominates the pod, instead of what it was nominated for before.
    pub(crate) fn put(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.remove(&pod.uid);
        let node: Arc<str> = node.into();
        self.by_node.entry(node.clone()).or_default().push(pod.clone());
        self.nodes.insert(pod.uid.clone(), node);
        self.version += 1;
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        let Some(node) = self.nodes.remove(uid) else {
            return;
        };
        self.version += 1;
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.retain(|pod| &*pod.uid != uid);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }

    /// Others that the node is kept for before the pod: of its priority or a higher one.
    pub(crate) fn before<'a>(&'a self, pod: &'a PodInfo, node: &str) -> impl Iterator<Item = &'a PodInfo> {
        self.on(node)
            .map(|other| &**other)
            .filter(|other| other.priority >= pod.priority && other.uid != pod.uid)
    }

    /// Pods of lower priority that the node was kept for.
    pub(crate) fn below(&self, priority: i32, node: &str) -> Vec<Arc<PodInfo>> {
        self.on(node).filter(|other| other.priority < priority).cloned().collect()
    }

    /// Nodes that are kept for a pod.
    pub(crate) fn slots<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = Slot> + 'a {
        self.by_node.keys().filter_map(|node| snapshot.slot(node))
    }

    fn on(&self, node: &str) -> impl Iterator<Item = &Arc<PodInfo>> {
        self.by_node.get(node).into_iter().flatten()
    }
}
