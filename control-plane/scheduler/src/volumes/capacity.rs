//! Free storage, as drivers publish it in CSIStorageCapacities: whether a volume can be made for a node.
//!
//! Only of drivers that say so (`storageCapacity` of their CSIDriver) is it asked; then a class without a capacity that
//! reaches the node has none there. Most capacities are of one node or zone, so they are found by a label of the
//! node rather than tried one after the other. Bounded by the objects of the cluster.

use std::collections::{BTreeMap, HashMap, HashSet};

use hawser_api::{quantity::Quantity, resource::ObjectKey, selector::LabelSelector};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIStorageCapacity};

use crate::pod::Labels;

#[derive(Debug, Default)]
pub(crate) struct Capacities {
    /// Drivers that publish their capacities.
    drivers: HashSet<String>,
    /// Where each object is kept: its class and the label by which it is found.
    places: HashMap<ObjectKey, Place>,
    by_class: HashMap<String, OfClass>,
}

type Place = (String, Option<(String, String)>);

/// Capacities of one storage class.
#[derive(Debug, Default)]
struct OfClass {
    /// By a label that nodes must have: key, then value. Few keys are in use.
    by_label: BTreeMap<String, HashMap<String, Vec<Capacity>>>,
    /// Those whose nodes are not told by one label.
    others: Vec<Capacity>,
}

#[derive(Debug)]
struct Capacity {
    key: ObjectKey,
    nodes: LabelSelector,
    /// The largest volume, as far as it is known.
    limit_bytes: i64,
}

impl Capacities {
    pub(crate) fn put_driver(&mut self, driver: &CSIDriver) {
        let name = driver.metadata.name.clone().unwrap_or_default();
        if driver.spec.storage_capacity == Some(true) {
            self.drivers.insert(name);
        } else {
            self.drivers.remove(&name);
        }
    }

    pub(crate) fn remove_driver(&mut self, name: &str) {
        self.drivers.remove(name);
    }

    pub(crate) fn put(&mut self, capacity: &CSIStorageCapacity) {
        let key = ObjectKey::of(capacity);
        self.remove(&key);
        // The size of the largest volume is more precise than what is free in all; without either nothing is known to fit.
        let limit = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref());
        let limit_bytes = limit.and_then(|limit| limit.0.parse::<Quantity>().ok()).map(Quantity::value);
        // Without a selector no node has access.
        let (Some(topology), Some(limit_bytes)) = (&capacity.node_topology, limit_bytes) else {
            return;
        };
        let Ok(nodes) = LabelSelector::from_typed(Some(topology)) else {
            return;
        };
        let label = topology.match_labels.as_ref().and_then(BTreeMap::first_key_value);
        let label = label.map(|(key, value)| (key.clone(), value.clone()));
        let class = capacity.storage_class_name.clone();
        let kept = Capacity { key: key.clone(), nodes, limit_bytes };
        self.by_class.entry(class.clone()).or_default().list(label.as_ref()).push(kept);
        self.places.insert(key, (class, label));
    }

    pub(crate) fn remove(&mut self, key: &ObjectKey) {
        let Some((class, label)) = self.places.remove(key) else {
            return;
        };
        let Some(of_class) = self.by_class.get_mut(&class) else {
            return;
        };
        of_class.list(label.as_ref()).retain(|capacity| capacity.key != *key);
        of_class.tidy(label.as_ref());
        if of_class.by_label.is_empty() && of_class.others.is_empty() {
            self.by_class.remove(&class);
        }
    }

    /// Whether the driver can make a volume of the class and size for a node with the labels.
    pub(crate) fn suffice(&self, driver: &str, class: &str, bytes: i64, node: &Labels) -> bool {
        if !self.drivers.contains(driver) {
            return true;
        }
        let Some(of_class) = self.by_class.get(class) else {
            return false;
        };
        let by_label = of_class.by_label.iter().filter_map(|(key, by_value)| by_value.get(node.get(key)?));
        by_label
            .flatten()
            .chain(&of_class.others)
            .any(|capacity| capacity.limit_bytes >= bytes && capacity.nodes.matches(node))
    }
}

impl OfClass {
    fn list(&mut self, label: Option<&(String, String)>) -> &mut Vec<Capacity> {
        match label {
            Some((key, value)) => {
                self.by_label.entry(key.clone()).or_default().entry(value.clone()).or_default()
            }
            None => &mut self.others,
        }
    }

    /// Forgets a label that finds nothing any more.
    fn tidy(&mut self, label: Option<&(String, String)>) {
        let Some((key, value)) = label else { return };
        if let Some(by_value) = self.by_label.get_mut(key) {
            if by_value.get(value).is_some_and(Vec::is_empty) {
                by_value.remove(value);
            }
            if by_value.is_empty() {
                self.by_label.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn capacity(name: &str, fields: Value) -> CSIStorageCapacity {
        let mut capacity =
            json!({ "metadata": { "name": name, "namespace": "driver" }, "storageClassName": "fast" });
        for (field, value) in fields.as_object().unwrap() {
            capacity[field] = value.clone();
        }
        typed(capacity)
    }

    fn driver(opts_in: Value) -> CSIDriver {
        typed(json!({ "metadata": { "name": "disks" }, "spec": { "storageCapacity": opts_in } }))
    }

    #[test]
    fn volumes_fit_where_a_capacity_reaches_the_node() {
        let node: Labels =
            [("host", "n1"), ("zone", "a")].map(|(key, value)| (key.into(), value.into())).into();
        let check = |name: &str, fields: Value, expected: bool| {
            let mut capacities = Capacities::default();
            capacities.put_driver(&driver(json!(true)));
            capacities.put(&capacity("c", fields));
            assert_eq!(capacities.suffice("disks", "fast", 100, &node), expected, "{name}");
            capacities.remove(&ObjectKey::new("driver", "c"));
            assert!(!capacities.suffice("disks", "fast", 100, &node), "{name}");
            assert!(capacities.places.is_empty() && capacities.by_class.is_empty(), "{name}");
        };
        let on = |host: &str| json!({ "matchLabels": { "host": host } });
        check("enough", json!({ "capacity": "100", "nodeTopology": on("n1") }), true);
        check("too little", json!({ "capacity": "99", "nodeTopology": on("n1") }), false);
        check("elsewhere", json!({ "capacity": "1Gi", "nodeTopology": on("n2") }), false);
        check(
            "another class",
            json!({ "capacity": "1Gi", "nodeTopology": on("n1"), "storageClassName": "slow" }),
            false,
        );
        check("everywhere", json!({ "capacity": "1Gi", "nodeTopology": {} }), true);
        check("nowhere", json!({ "capacity": "1Gi" }), false);
        check("unknown", json!({ "nodeTopology": on("n1") }), false);
        let largest = json!({ "capacity": "1Gi", "maximumVolumeSize": "99", "nodeTopology": on("n1") });
        check("no room for one so large", largest, false);
        let zones =
            json!({ "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a", "b"] }] });
        check("by an expression", json!({ "capacity": "1Gi", "nodeTopology": zones }), true);
        let both = json!({ "matchLabels": { "host": "n1", "zone": "b" } });
        check("all labels count", json!({ "capacity": "1Gi", "nodeTopology": both }), false);
    }

    #[test]
    fn drivers_that_publish_nothing_are_not_asked() {
        let mut capacities = Capacities::default();
        let suffice = |capacities: &Capacities| capacities.suffice("disks", "fast", 1, &Labels::new());
        assert!(suffice(&capacities));
        capacities.put_driver(&driver(json!(true)));
        assert!(!suffice(&capacities));
        capacities.put_driver(&driver(json!(false)));
        assert!(suffice(&capacities));
        capacities.put_driver(&driver(json!(true)));
        capacities.remove_driver("disks");
        assert!(suffice(&capacities));
    }

    #[test]
    fn a_capacity_that_changes_is_kept_once() {
        let mut capacities = Capacities::default();
        capacities.put_driver(&driver(json!(true)));
        let node: Labels = [("host".to_owned(), "n1".to_owned())].into();
        let on = json!({ "matchLabels": { "host": "n1" } });
        capacities.put(&capacity("c", json!({ "capacity": "1Gi", "nodeTopology": on })));
        capacities.put(&capacity("c", json!({ "capacity": "10", "nodeTopology": on })));
        assert!(capacities.suffice("disks", "fast", 10, &node));
        assert!(!capacities.suffice("disks", "fast", 11, &node));
    }
}
