//! ImageLocality: which images nodes have already, and what that is worth to a pod.
//!
//! An image that is on more nodes is worth more on each of them, so that pods do not pile up on the one node that has it.
//! Bounded by what nodes report, which the kubelet limits (50 images by default).

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::{Node, PodSpec};

use crate::{scores::MOST, snapshot::Slot};

/// Less than this many bytes are no advantage, more than the larger for each container no further one.
const LEAST_BYTES: i64 = 23 << 20;
const MOST_BYTES: i64 = 1000 << 20;

/// The images of a pod's containers, by full name; repeated where containers share one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PodImages(Vec<String>);

impl PodImages {
    pub(crate) fn of(spec: &PodSpec) -> Self {
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let volumes =
            spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
        let named = containers.map(|container| container.image.as_deref().unwrap_or_default());
        Self(named.chain(volumes).map(full_name).collect())
    }
}

/// A name without tag or digest means the latest.
fn full_name(name: &str) -> String {
    let tagged = name.rfind(':') > name.rfind('/');
    if tagged { name.to_owned() } else { format!("{name}:latest") }
}

/// Images by name, and the nodes that have them.
#[derive(Debug, Default)]
pub(crate) struct Images {
    by_name: HashMap<Arc<str>, Image>,
    changes: u64,
}

#[derive(Debug, Default)]
struct Image {
    bytes: HashMap<Slot, i64>,
    changed: u64,
}

impl Images {
    /// Takes over what the node has. Returns the names, to be given back when they change.
    pub(crate) fn put(&mut self, slot: Slot, before: &[Arc<str>], node: Option<&Node>) -> Vec<Arc<str>> {
        let images = node.and_then(|node| node.status.as_ref()?.images.as_ref()).into_iter().flatten();
        let mut now: HashMap<&str, i64> = HashMap::new();
        for image in images {
            let bytes = image.size_bytes.unwrap_or_default();
            now.extend(image.names.iter().flatten().map(|name| (name.as_str(), bytes)));
        }
        for name in before.iter().filter(|name| !now.contains_key(&***name)) {
            self.changes += 1;
            if let Some(image) = self.by_name.get_mut(name) {
                image.bytes.remove(&slot);
                image.changed = self.changes;
                if image.bytes.is_empty() {
                    self.by_name.remove(name);
                }
            }
        }
        now.into_iter().map(|(name, bytes)| self.add(slot, name, bytes)).collect()
    }

    fn add(&mut self, slot: Slot, name: &str, bytes: i64) -> Arc<str> {
        let name = self.by_name.get_key_value(name).map_or_else(|| name.into(), |(name, _)| name.clone());
        let image = self.by_name.entry(name.clone()).or_default();
        if image.bytes.insert(slot, bytes) != Some(bytes) {
            self.changes += 1;
            image.changed = self.changes;
        }
        name
    }

    /// Differs where the scores of the pod's images may have changed; `None` where no node has any of them.
    pub(crate) fn version(&self, pod: &PodImages) -> Option<u64> {
        let known = pod.0.iter().filter_map(|name| self.by_name.get(name.as_str()));
        known.map(|image| image.changed).max()
    }

    /// What the node's images are worth to the pod, 0 to 100; `nodes` is how many there are in all.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "sizes of images, as upstream does"
    )]
    pub(crate) fn score(&self, pod: &PodImages, slot: Slot, nodes: usize) -> i64 {
        let worth = |name: &String| {
            let image = self.by_name.get(name.as_str())?;
            let spread = image.bytes.len() as f64 / nodes as f64;
            Some((*image.bytes.get(&slot)? as f64 * spread) as i64)
        };
        let sum: i64 = pod.0.iter().filter_map(worth).sum();
        let most = MOST_BYTES * i64::try_from(pod.0.len().max(1)).unwrap_or(1);
        MOST * (sum.clamp(LEAST_BYTES, most) - LEAST_BYTES) / (most - LEAST_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(images: &[(&str, i64)]) -> Node {
        let images: Vec<_> =
            images.iter().map(|(name, mib)| json!({ "names": [name], "sizeBytes": mib << 20 })).collect();
        serde_json::from_value(json!({ "status": { "images": images } })).unwrap()
    }

    fn pod(images: &[&str]) -> PodImages {
        PodImages(images.iter().map(|name| full_name(name)).collect())
    }

    #[test]
    fn names_are_completed() {
        for (name, full) in [
            ("nginx", "nginx:latest"),
            ("nginx:1", "nginx:1"),
            ("host:5000/nginx", "host:5000/nginx:latest"),
            ("host:5000/nginx@sha256:0", "host:5000/nginx@sha256:0"),
        ] {
            assert_eq!(full_name(name), full);
        }
    }

    #[test]
    fn scores_are_upstreams() {
        let mut images = Images::default();
        let first = images.put(0, &[], Some(&node(&[("a:1", 40), ("b:1", 300), ("c:latest", 2000)])));
        images.put(1, &[], Some(&node(&[("a:1", 140), ("d:1", 10)])));
        // One of two nodes has it: half of its size counts.
        assert_eq!(images.score(&pod(&["b:1"]), 0, 2), 100 * (150 - 23) / (1000 - 23));
        assert_eq!(images.score(&pod(&["b:1"]), 1, 2), 0);
        assert_eq!(images.score(&pod(&["c"]), 0, 2), 100);
        assert_eq!(images.score(&pod(&["a:1", "b:1"]), 0, 2), 100 * (190 - 23) / (2000 - 23));
        assert_eq!(images.version(&pod(&["x"])), None);
        let before = images.version(&pod(&["b:1"]));
        images.put(0, &first, Some(&node(&[("a:1", 40)])));
        assert_ne!(images.version(&pod(&["b:1"])), before);
        assert_eq!(images.score(&pod(&["a:1"]), 1, 2), 100 * (140 - 23) / (1000 - 23));
    }
}
