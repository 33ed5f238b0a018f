//! Nodes and pods of the workloads: the shape of upstream's templates.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use serde_json::{Value, json};

/// The number of the node and the pod that come and go.
pub(crate) const CHURNED: usize = 1_000_000;

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the objects below are well-formed")
}

/// Four cores, 32 GiB; in one of the zones, where there are any.
pub(crate) fn node(index: usize, zones: &[&str]) -> Node {
    let name = format!("node-{index}");
    let mut labels = json!({ "kubernetes.io/hostname": name });
    if !zones.is_empty() {
        labels["topology.kubernetes.io/zone"] = json!(zones[index % zones.len()]);
    }
    typed(json!({
        "metadata": { "name": name, "labels": labels },
        "status": { "allocatable": { "cpu": "4", "memory": "32Gi", "pods": "110" } },
    }))
}

/// One node for all pods of a workload.
pub(crate) fn vast_node() -> Node {
    typed(json!({
        "metadata": { "name": "node", "labels": { "kubernetes.io/hostname": "node" } },
        "status": { "allocatable": { "cpu": "90000", "memory": "9000Gi", "pods": "90000" } },
    }))
}

pub(crate) fn namespace(name: &str) -> Namespace {
    typed(json!({ "metadata": { "name": name, "labels": { "team": "devops" } } }))
}

fn pod(index: usize, namespace: &str, requests: Value, metadata: Value, spec: Value) -> Pod {
    let name = format!("pod-{index}");
    let mut pod = json!({
        "metadata": { "name": name, "namespace": namespace, "uid": name },
        "spec": { "containers": [{ "name": "pause", "image": "registry.k8s.io/pause:3.10.1", "resources": { "requests": requests } }] },
    });
    for (target, more) in [("metadata", metadata), ("spec", spec)] {
        for (field, value) in more.as_object().into_iter().flatten() {
            pod[target][field] = value.clone();
        }
    }
    typed(pod)
}

fn plain(index: usize, namespace: &str, metadata: Value, spec: Value) -> Pod {
    pod(index, namespace, json!({ "cpu": "100m", "memory": "500Mi" }), metadata, spec)
}

fn coloured(color: &str) -> Value {
    json!({ "labels": { "color": color } })
}

fn term(color: &str, topology: &str) -> Value {
    json!({
        "labelSelector": { "matchLabels": { "color": color } }, "topologyKey": topology,
        "namespaces": ["sched-1", "sched-0"],
    })
}

pub(crate) fn default_pod(index: usize) -> Pod {
    plain(index, "default", json!({}), json!({}))
}

pub(crate) fn anti_affinity(index: usize) -> Pod {
    let term = term("green", "kubernetes.io/hostname");
    let affinity = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term] } });
    plain(index, "sched-1", coloured("green"), json!({ "affinity": affinity }))
}

pub(crate) fn affinity(index: usize) -> Pod {
    let term = term("blue", "topology.kubernetes.io/zone");
    let affinity = json!({ "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term] } });
    plain(index, "sched-1", coloured("blue"), json!({ "affinity": affinity }))
}

fn preferred(index: usize, kind: &str, color: &str) -> Pod {
    let wish = json!({ "weight": 1, "podAffinityTerm": term(color, "kubernetes.io/hostname") });
    let affinity = json!({ kind: { "preferredDuringSchedulingIgnoredDuringExecution": [wish] } });
    plain(index, "sched-1", coloured(color), json!({ "affinity": affinity }))
}

pub(crate) fn preferred_affinity(index: usize) -> Pod {
    preferred(index, "podAffinity", "red")
}

pub(crate) fn preferred_anti_affinity(index: usize) -> Pod {
    preferred(index, "podAntiAffinity", "yellow")
}

/// Anti-affinity to pods of all namespaces with a label.
pub(crate) fn anti_affinity_by_namespace(index: usize) -> Pod {
    let term = json!({
        "labelSelector": { "matchLabels": { "color": "green" } }, "topologyKey": "kubernetes.io/hostname",
        "namespaceSelector": { "matchLabels": { "team": "devops" } },
    });
    let affinity = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term] } });
    let namespace = format!("init-ns-{}", index % 100);
    plain(index, &namespace, coloured("green"), json!({ "affinity": affinity }))
}

fn spread(index: usize, action: &str) -> Pod {
    let constraint = json!({
        "maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": action,
        "labelSelector": { "matchLabels": { "color": "blue" } },
    });
    plain(index, "default", coloured("blue"), json!({ "topologySpreadConstraints": [constraint] }))
}

pub(crate) fn hard_spread(index: usize) -> Pod {
    spread(index, "DoNotSchedule")
}

pub(crate) fn soft_spread(index: usize) -> Pod {
    spread(index, "ScheduleAnyway")
}

pub(crate) fn node_affinity(index: usize) -> Pod {
    let requirement =
        json!({ "key": "topology.kubernetes.io/zone", "operator": "In", "values": ["zone1", "zone2"] });
    let required = json!({ "nodeSelectorTerms": [{ "matchExpressions": [requirement] }] });
    let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } });
    plain(index, "default", json!({}), json!({ "affinity": affinity }))
}

pub(crate) fn low_priority(index: usize) -> Pod {
    pod(index, "default", json!({ "cpu": "900m", "memory": "500Mi" }), json!({}), json!({}))
}

pub(crate) fn high_priority(index: usize) -> Pod {
    let requests = json!({ "cpu": "3000m", "memory": "500Mi" });
    pod(index, "default", requests, json!({}), json!({ "priority": 10 }))
}

pub(crate) fn gated(index: usize) -> Pod {
    pod(index, "default", json!({}), json!({}), json!({ "schedulingGates": [{ "name": "foo" }] }))
}

pub(crate) fn light(index: usize) -> Pod {
    pod(index, "default", json!({}), json!({}), json!({}))
}

/// More than any node has, and before all others.
pub(crate) fn too_large(index: usize) -> Pod {
    let requests = json!({ "cpu": "9", "memory": "500Mi" });
    pod(index, "default", requests, json!({}), json!({ "priority": 10 }))
}
