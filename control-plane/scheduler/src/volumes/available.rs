//! Volumes that wait for a claim, found by what a claim and a node ask: their class, where they are, and their size.
//!
//! A local volume is on one node, so a node finds its own among those of all others by the label that they name. Bounded by the
//! volumes of the cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hawser_api::resource::ObjectKey;

use super::objects::Volume;
use crate::{affinity::Anchor, snapshot::NodeEntry};

/// The smallest first, then by name.
type BySize = BTreeSet<(i64, String)>;

/// By class.
#[derive(Debug, Default)]
pub(super) struct Available(HashMap<String, OfClass>);

#[derive(Debug, Default)]
struct OfClass {
    /// By what a node must have for them: a label, or its name.
    by_place: BTreeMap<Anchor, HashMap<String, BySize>>,
    /// Those whose nodes are not told by one label.
    others: BySize,
    /// Names of those that are made for a claim.
    by_claim: HashMap<ObjectKey, BTreeSet<String>>,
}

impl Available {
    pub(super) fn add(&mut self, volume: &Volume) {
        if !is_of_use(volume) {
            return;
        }
        let of_class = self.0.entry(volume.class.clone()).or_default();
        match &volume.claim {
            Some((claim, _)) => {
                of_class.by_claim.entry(claim.clone()).or_default().insert(volume.name.clone());
            }
            None => of_class.lists(volume, |list| {
                list.insert((volume.bytes, volume.name.clone()));
            }),
        }
    }

    /// Takes off a volume that is there as it is.
    pub(super) fn remove(&mut self, volume: &Volume) {
        let Some(of_class) = self.0.get_mut(&volume.class) else { return };
        match &volume.claim {
            Some((claim, _)) => {
                if let Some(names) = of_class.by_claim.get_mut(claim) {
                    names.remove(&volume.name);
                    if names.is_empty() {
                        of_class.by_claim.remove(claim);
                    }
                }
            }
            None => {
                of_class.lists(volume, |list| {
                    list.remove(&(volume.bytes, volume.name.clone()));
                });
                of_class.tidy(volume);
            }
        }
        if of_class.by_place.is_empty() && of_class.others.is_empty() && of_class.by_claim.is_empty() {
            self.0.remove(&volume.class);
        }
    }

    /// Names of volumes that are made for the claim.
    pub(super) fn made_for(&self, class: &str, claim: &ObjectKey) -> impl Iterator<Item = &String> {
        self.0.get(class).and_then(|of_class| of_class.by_claim.get(claim)).into_iter().flatten()
    }

    /// The smallest volume of at least so many bytes that may reach the node and that `accepts`.
    pub(super) fn smallest(
        &self,
        class: &str,
        bytes: i64,
        node: &NodeEntry,
        accepts: impl Fn(&str) -> bool,
    ) -> Option<&String> {
        let of_class = self.0.get(class)?;
        let near = of_class
            .by_place
            .iter()
            .filter_map(|(anchor, by_value)| by_value.get(anchor.of(&node.name, &node.labels)?));
        let lists = near.chain([&of_class.others]);
        let best = lists.filter_map(|list| {
            let mut large = list.range((bytes, String::new())..);
            large.find(|(_, name)| accepts(name))
        });
        best.min().map(|(_, name)| name)
    }
}

/// Whether the volume may be given to a claim: made for one, or free.
fn is_of_use(volume: &Volume) -> bool {
    !volume.going && (volume.claim.is_some() || volume.available)
}

impl OfClass {
    /// The lists that the volume is in.
    fn lists(&mut self, volume: &Volume, mut change: impl FnMut(&mut BySize)) {
        match anchors(volume) {
            Some(anchors) => {
                for (anchor, value) in anchors {
                    change(self.by_place.entry(anchor).or_default().entry(value).or_default());
                }
            }
            None => change(&mut self.others),
        }
    }

    /// Forgets lists of the volume that hold nothing any more.
    fn tidy(&mut self, volume: &Volume) {
        for (anchor, value) in anchors(volume).into_iter().flatten() {
            let Some(by_value) = self.by_place.get_mut(&anchor) else { continue };
            if by_value.get(&value).is_some_and(BTreeSet::is_empty) {
                by_value.remove(&value);
            }
            if by_value.is_empty() {
                self.by_place.remove(&anchor);
            }
        }
    }
}

/// What nodes must have for the volume, any of them; `None` where that is not told by one label each.
fn anchors(volume: &Volume) -> Option<Vec<(Anchor, String)>> {
    volume.affinity.as_ref()?.anchors()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PersistentVolume;
    use serde_json::{Value, json};

    use super::*;
    use crate::{snapshot::Snapshot, testing::node};

    fn volume(name: &str, gib: i64, terms: Value) -> Volume {
        let mut spec = json!({ "storageClassName": "local", "capacity": { "storage": format!("{gib}Gi") } });
        if !terms.is_null() {
            spec["nodeAffinity"] = json!({ "required": { "nodeSelectorTerms": terms } });
        }
        let object =
            json!({ "metadata": { "name": name }, "spec": spec, "status": { "phase": "Available" } });
        Volume::of(&serde_json::from_value::<PersistentVolume>(object).unwrap())
    }

    #[test]
    fn a_node_finds_its_own_volumes_and_those_of_all() {
        let on = |key: &str, operator: &str, value: &str| json!([{ "matchExpressions": [{ "key": key, "operator": operator, "values": [value] }] }]);
        let host = |name: &str| on("kubernetes.io/hostname", "In", name);
        let field =
            json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n1"] }] }]);
        let all = [
            volume("own", 5, host("n1")),
            volume("large", 9, host("n1")),
            volume("other", 1, host("n2")),
            volume("named", 6, field),
            volume("vague", 7, on("disk", "Exists", "x")),
            volume("anywhere", 8, Value::Null),
        ];
        let mut available = Available::default();
        all.iter().for_each(|volume| available.add(volume));
        let mut snapshot = Snapshot::default();
        let slot = snapshot.put_node(&node("n1", json!({})));
        let node = &snapshot.nodes[slot];
        let mut refused: Vec<String> = Vec::new();
        for expected in ["own", "named", "vague", "anywhere", "large"] {
            let found =
                available.smallest("local", 1 << 30, node, |name| !refused.iter().any(|one| one == name));
            assert_eq!(found.map(String::as_str), Some(expected));
            refused.push(expected.to_owned());
        }
        assert_eq!(available.smallest("local", 8 << 30, node, |_| true).unwrap(), "anywhere");
        assert_eq!(available.smallest("fast", 1, node, |_| true), None);
        all.iter().for_each(|volume| available.remove(volume));
        assert!(available.0.is_empty());
    }
}
