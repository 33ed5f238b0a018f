//! Nodes that are being cleared for pods: others of lower priority leave that room alone.
//!
//! A pod is nominated for one node at most, and no longer than it waits. Bounded by the waiting pods.

use std::{collections::HashMap, sync::Arc};

use crate::{pod::PodInfo, terms::StandingKind};

#[derive(Debug, Default)]
pub(crate) struct Nominations {
    by_node: HashMap<Arc<str>, Vec<Arc<PodInfo>>>,
    nodes: HashMap<Arc<str>, Arc<str>>,
    /// Nominated pods whose anti-affinity could be about others.
    with_anti_affinity: usize,
}

impl Nominations {
    /// Whether a nominated pod may keep others away by more than the room that it takes.
    pub(crate) fn have_anti_affinity(&self) -> bool {
        self.with_anti_affinity > 0
    }

    /// The node that the pod is nominated for.
    pub(crate) fn node_of(&self, uid: &str) -> Option<&str> {
        self.nodes.get(uid).map(|node| &**node)
    }

    /// The pod, where it is nominated.
    pub(crate) fn get(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.on(self.node_of(uid)?).find(|pod| &*pod.uid == uid)
    }

    /// Nominates the pod, which is not nominated for another node.
    pub(crate) fn put(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.with_anti_affinity += usize::from(has_anti_affinity(pod));
        let node: Arc<str> = node.into();
        self.by_node.entry(node.clone()).or_default().push(pod.clone());
        self.nodes.insert(pod.uid.clone(), node);
    }

    /// Returns the node that the pod was nominated for.
    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<str>> {
        let node = self.nodes.remove(uid)?;
        if let Some(pods) = self.by_node.get_mut(&node) {
            let anti = pods.iter().filter(|pod| &*pod.uid == uid && has_anti_affinity(pod)).count();
            self.with_anti_affinity -= anti;
            pods.retain(|pod| &*pod.uid != uid);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
        Some(node)
    }

    /// Pods of a priority or a higher one that the node is kept for.
    pub(crate) fn from(&self, priority: i32, node: &str) -> impl Iterator<Item = &PodInfo> {
        self.on(node).map(|pod| &**pod).filter(move |pod| pod.priority >= priority)
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
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.by_node.keys().map(|node| &**node)
    }

    fn on(&self, node: &str) -> impl Iterator<Item = &Arc<PodInfo>> {
        self.by_node.get(node).into_iter().flatten()
    }
}

fn has_anti_affinity(pod: &PodInfo) -> bool {
    pod.terms.standing.iter().any(|(key, _)| key.kind == StandingKind::AntiAffinity)
}
