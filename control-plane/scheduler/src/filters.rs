//! Which nodes can run a pod: upstream's filter plugins, by their names and in their order.
//!
//! NodeUnschedulable, NodeName, TaintToleration, NodeAffinity, NodePorts, NodeResourcesFit. Pure functions over the
//! snapshot's columns. [`fits`] stops at the first no; [`rejections`] tells why, in upstream's words.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Taint;

use crate::{
    affinity::keeps_away,
    pod::Shape,
    resources::{CPU, EPHEMERAL_STORAGE, MEMORY},
    snapshot::{NodeEntry, Slot, Snapshot},
};

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Whether the pod can run on the node.
pub(crate) fn fits(shape: &Shape, snapshot: &Snapshot, slot: Slot) -> bool {
    let node = &snapshot.nodes[slot];
    node.exists
        && schedulable(shape, node)
        && named(shape, node)
        && untolerated(shape, node).is_none()
        && shape.affinity.allows(&node.name, &node.labels)
        && ports_free(shape, node)
        && lacking(shape, snapshot, slot).is_empty()
}

/// Why the pod cannot run on the node, as the first plugin that refuses says it; empty where it can.
pub(crate) fn rejections(shape: &Shape, snapshot: &Snapshot, slot: Slot) -> Vec<String> {
    let node = &snapshot.nodes[slot];
    let one = |text: &str| vec![text.to_owned()];
    if !schedulable(shape, node) {
        return one("node(s) were unschedulable");
    }
    if !named(shape, node) {
        return one("node(s) didn't match the requested node name");
    }
    if let Some(taint) = untolerated(shape, node) {
        let value = taint.value.as_deref().unwrap_or_default();
        return vec![format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)];
    }
    if !shape.affinity.allows(&node.name, &node.labels) {
        return one("node(s) didn't match Pod's node affinity/selector");
    }
    if !ports_free(shape, node) {
        return one("node(s) didn't have free ports for the requested pod ports");
    }
    lacking(shape, snapshot, slot)
        .into_iter()
        .map(|lack| match lack {
            Lack::Pods => "Too many pods".to_owned(),
            Lack::Resource(name) => format!("Insufficient {name}"),
        })
        .collect()
}

/// Upstream's sentence for a pod that no node can run.
pub(crate) fn diagnosis(shape: &Shape, snapshot: &Snapshot) -> String {
    if snapshot.node_count() == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for slot in (0..snapshot.nodes.len()).filter(|slot| snapshot.nodes[*slot].exists) {
        for reason in rejections(shape, snapshot, slot) {
            *counts.entry(reason).or_default() += 1;
        }
    }
    let mut parts: Vec<String> =
        counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort_unstable();
    format!("0/{} nodes are available: {}.", snapshot.node_count(), parts.join(", "))
}

/// NodeUnschedulable: a cordoned node takes only pods that tolerate its being cordoned.
fn schedulable(shape: &Shape, node: &NodeEntry) -> bool {
    if !node.unschedulable {
        return true;
    }
    let taint = Taint { key: UNSCHEDULABLE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    shape.tolerations.iter().any(|toleration| toleration.tolerates(&taint))
}

/// NodeName.
fn named(shape: &Shape, node: &NodeEntry) -> bool {
    shape.node_name.as_ref().is_none_or(|name| *name == node.name)
}

/// TaintToleration: the first taint that keeps the pod away.
fn untolerated<'a>(shape: &Shape, node: &'a NodeEntry) -> Option<&'a Taint> {
    node.taints
        .iter()
        .filter(|taint| keeps_away(taint))
        .find(|taint| !shape.tolerations.iter().any(|toleration| toleration.tolerates(taint)))
}

/// NodePorts.
fn ports_free(shape: &Shape, node: &NodeEntry) -> bool {
    shape.ports.iter().all(|port| !node.ports.iter().any(|taken| port.conflicts(taken)))
}

enum Lack<'a> {
    Pods,
    Resource(&'a str),
}

/// NodeResourcesFit: everything that the node has too little of.
fn lacking<'a>(shape: &'a Shape, snapshot: &Snapshot, slot: Slot) -> Vec<Lack<'a>> {
    let (have, used) = (&snapshot.allocatable[slot], &snapshot.requested[slot]);
    let mut lacking = Vec::new();
    if used.pods + 1 > have.pods {
        lacking.push(Lack::Pods);
    }
    for (name, amount) in &shape.requests {
        let free = match name.as_str() {
            CPU => have.cpu_milli - used.cpu_milli,
            MEMORY => have.memory_bytes - used.memory_bytes,
            EPHEMERAL_STORAGE => have.ephemeral_bytes - used.ephemeral_bytes,
            _ => {
                let node = &snapshot.nodes[slot];
                let of = |amounts: &BTreeMap<String, i64>| amounts.get(name).copied().unwrap_or_default();
                of(&node.extended) - of(&node.extended_requested)
            }
        };
        if *amount > free {
            lacking.push(Lack::Resource(name));
        }
    }
    lacking
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{node, pod};

    #[track_caller]
    fn check(name: &str, node_spec: Value, pod_spec: Value, expected: &[&str]) {
        let mut snapshot = Snapshot::default();
        let slot = snapshot.put_node(&node("n1", node_spec));
        let shape = Shape::of(&pod("p", pod_spec));
        assert_eq!(rejections(&shape, &snapshot, slot), expected, "{name}");
        assert_eq!(fits(&shape, &snapshot, slot), expected.is_empty(), "{name}");
    }

    fn wants(requests: Value) -> Value {
        json!({ "containers": [{ "name": "c", "resources": { "requests": requests } }] })
    }

    #[test]
    fn filters_refuse_in_upstreams_words() {
        let taint = |effect: &str| json!({ "spec": { "taints": [{ "key": "gpu", "value": "a100", "effect": effect }] } });
        let cordoned = || json!({ "spec": { "unschedulable": true } });
        let away = "node(s) had untolerated taint {gpu: a100}";
        check("empty pod", json!({}), wants(json!({})), &[]);
        check("cordoned", cordoned(), wants(json!({})), &["node(s) were unschedulable"]);
        check(
            "cordoned and tolerated",
            cordoned(),
            json!({ "containers": [], "tolerations": [{ "operator": "Exists" }] }),
            &[],
        );
        check("NoSchedule", taint("NoSchedule"), wants(json!({})), &[away]);
        check("NoExecute", taint("NoExecute"), wants(json!({})), &[away]);
        check("PreferNoSchedule", taint("PreferNoSchedule"), wants(json!({})), &[]);
        check(
            "selector",
            json!({}),
            json!({ "containers": [], "nodeSelector": { "disk": "ssd" } }),
            &["node(s) didn't match Pod's node affinity/selector"],
        );
        check("cpu", json!({}), wants(json!({ "cpu": "5" })), &["Insufficient cpu"]);
        check("all of the cpu", json!({}), wants(json!({ "cpu": "4" })), &[]);
        check(
            "cpu and memory",
            json!({}),
            wants(json!({ "cpu": "5", "memory": "1Ti" })),
            &["Insufficient cpu", "Insufficient memory"],
        );
        check(
            "unknown resource",
            json!({}),
            wants(json!({ "example.com/gpu": "1" })),
            &["Insufficient example.com/gpu"],
        );
        check(
            "known resource",
            json!({ "status": { "allocatable": { "pods": "1", "example.com/gpu": "1" } } }),
            wants(json!({ "example.com/gpu": "1" })),
            &[],
        );
        check(
            "no room for pods",
            json!({ "status": { "allocatable": { "pods": "0" } } }),
            wants(json!({})),
            &["Too many pods"],
        );
    }

    #[test]
    fn taken_ports_refuse() {
        let spec = |port: i32, ip: &str| json!({ "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": port, "hostIP": ip, "protocol": "TCP" }] }] });
        let mut snapshot = Snapshot::default();
        let slot = snapshot.put_node(&node("n1", json!({})));
        let taken = std::sync::Arc::new(Shape::of(&pod("a", spec(80, "10.0.0.1"))));
        snapshot.put_pod(&"a".into(), &taken, "n1");
        let free = |port, ip| fits(&Shape::of(&pod("b", spec(port, ip))), &snapshot, slot);
        assert!(!free(80, "10.0.0.1") && !free(80, "") && !free(80, "0.0.0.0"));
        assert!(free(81, "10.0.0.1") && free(80, "10.0.0.2"));
        snapshot.remove_pod("a");
        assert!(fits(&Shape::of(&pod("b", spec(80, ""))), &snapshot, slot));
    }

    #[test]
    fn diagnosis_counts_and_sorts_reasons() {
        let mut snapshot = Snapshot::default();
        let shape = Shape::of(&pod("p", wants(json!({ "cpu": "8" }))));
        assert_eq!(diagnosis(&shape, &snapshot), "no nodes available to schedule pods");
        snapshot.put_node(&node("n1", json!({})));
        let tainted =
            json!({ "spec": { "taints": [{ "key": "key", "value": "value", "effect": "NoSchedule" }] } });
        snapshot.put_node(&node("n2", tainted.clone()));
        snapshot.put_node(&node("n3", tainted));
        assert_eq!(
            diagnosis(&shape, &snapshot),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {key: value}."
        );
    }
}
