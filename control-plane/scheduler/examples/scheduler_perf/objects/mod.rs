//! Nodes, pods and what they need, by the names and in the shape of upstream's templates.

mod events;
mod nodes;
mod pods;
mod storage;

use serde_json::{Value, json};

use crate::workloads::{Nodes, Pods};

pub(crate) use nodes::{DRA_NODE, DRA_NODES, HOSTNAME};
pub(crate) use storage::{allocation, slice};

/// What pods of priority 10 name.
pub(crate) const HIGH: &str = "high";

/// What a template says of one of several objects that an operation makes.
#[derive(Clone, Copy)]
pub(crate) struct Which {
    /// From 0.
    pub(crate) index: usize,
    pub(crate) count: usize,
}

/// An object without namespace, by the template's name; none where there is no such template. One without a name has a
/// `generateName`. Templates of updates are merge patches with the name of what they change.
pub(crate) fn object(template: &str, which: Which) -> Option<Value> {
    nodes::object(template, which)
        .or_else(|| pods::object(template))
        .or_else(|| events::object(template, which))
        .or_else(|| storage::object(template, which))
}

/// The same, with a name for certain, and in the namespace, unless nodes are in none: `number` tells it from all others.
pub(crate) fn named(template: &str, which: Which, number: usize, namespace: Option<&str>) -> Value {
    let mut object =
        object(template, which).unwrap_or_else(|| unreachable!("no template is called {template}"));
    let metadata = &mut object["metadata"];
    if let Some(start) = metadata["generateName"].take().as_str() {
        metadata["name"] = format!("{start}{number}").into();
    }
    if let Some(fields) = metadata.as_object_mut() {
        fields.remove("generateName");
    }
    if let Some(namespace) = namespace.filter(|_| object["kind"] != "Node") {
        object["metadata"]["namespace"] = namespace.into();
    }
    object
}

/// The `index`th node of an operation, and its CSINode where it has one.
pub(crate) fn node_of(op: &Nodes, index: usize, number: usize) -> (Value, Option<Value>) {
    let mut node = named(op.node_template, Which { index, count: op.count }, number, None);
    let name = text(&node, "/metadata/name").to_owned();
    if !op.zones.is_empty() {
        node["metadata"]["labels"]["topology.kubernetes.io/zone"] = op.zones[index % op.zones.len()].into();
    }
    if node["metadata"]["labels"][HOSTNAME].is_null() {
        node["metadata"]["labels"][HOSTNAME] = name.as_str().into();
    }
    if op.declared_features > 0 {
        let features: Vec<String> = (1..=op.declared_features).map(|one| format!("Feature{one}")).collect();
        node["status"]["declaredFeatures"] = json!(features);
    }
    if let Some(limit) = op.volume_limit {
        for field in ["capacity", "allocatable"] {
            node["status"][field]["attachable-volumes-csi-ebs.csi.aws.com"] = limit.to_string().into();
        }
    }
    (node, op.volume_limit.map(|limit| storage::csi_node(&name, limit, op.migrated)))
}

/// The `index`th pod of an operation, and what has to be there before it: a volume and its claim.
pub(crate) fn pod_of(op: &Pods, namespace: &str, index: usize, number: usize) -> (Value, Vec<Value>) {
    let which = Which { index, count: op.count };
    let mut pod = named(op.pod_template, which, number, Some(namespace));
    let (Some(volume), Some(claim)) = (op.persistent_volume_template, op.persistent_volume_claim_template)
    else {
        return (pod, Vec::new());
    };
    let companions = storage::bound(volume, claim, namespace, which);
    let source = json!({ "claimName": companions[1]["metadata"]["name"] });
    pod["spec"]["volumes"] = json!([{ "name": "vol", "persistentVolumeClaim": source }]);
    (pod, companions.into())
}

/// The template of an update.
fn update(kind: &str, name: String, mut change: Value) -> Value {
    change["kind"] = kind.into();
    change["metadata"]["name"] = name.into();
    change
}

/// Text at a JSON pointer; empty where there is none.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Lays `over` on the object: `null` takes a field away (RFC 7386).
pub(crate) fn merge(object: &mut Value, over: &Value) {
    let Some(fields) = over.as_object() else {
        *object = over.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (field, value) in fields {
        if value.is_null() {
            _ = object.as_object_mut().map(|object| object.remove(field));
        } else {
            merge(&mut object[field], value);
        }
    }
}
