//! Nodes and pods of the workloads, and what they need: the shape of upstream's templates.

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

pub(crate) fn with_secret(index: usize) -> Pod {
    let volume = json!({ "name": "secret", "secret": { "secretName": "secret" } });
    plain(index, "default", json!({}), json!({ "volumes": [volume] }))
}

fn with_volume(index: usize) -> Pod {
    let volume = json!({ "name": "vol", "persistentVolumeClaim": { "claimName": format!("claim-{index}") } });
    plain(index, "default", json!({}), json!({ "volumes": [volume] }))
}

pub(crate) fn with_disk(index: usize) -> Pod {
    with_volume(index)
}

/// As another function, since what a pod needs is found by it.
pub(crate) fn with_migrated_disk(index: usize) -> Pod {
    let mut pod = with_volume(index);
    pod.metadata.labels = Some([("migrated".to_owned(), "yes".to_owned())].into());
    pod
}

pub(crate) fn with_csi_volume(index: usize) -> Pod {
    let mut pod = with_volume(index);
    pod.metadata.labels = Some([("csi".to_owned(), "yes".to_owned())].into());
    pod
}

/// A claim that is bound, and its volume, as upstream's benchmark makes them before the pod.
fn bound_volume(index: usize, source: Value) -> Vec<Value> {
    let (name, size) = (format!("claim-{index}"), json!({ "storage": "1Gi" }));
    let mut spec = json!({
        "accessModes": ["ReadOnlyMany"], "capacity": size, "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": { "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default", "name": name },
    });
    for (field, value) in source.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    let volume = format!("volume-{index}");
    let done = json!({ "pv.kubernetes.io/bind-completed": "true" });
    vec![
        json!({ "kind": "PersistentVolume", "apiVersion": "v1", "metadata": { "name": volume }, "spec": spec }),
        json!({
            "kind": "PersistentVolumeClaim", "apiVersion": "v1",
            "metadata": { "name": name, "namespace": "default", "annotations": done },
            "spec": {
                "accessModes": ["ReadOnlyMany"], "resources": { "requests": size }, "volumeName": volume,
                "storageClassName": "",
            },
        }),
    ]
}

/// What has to be there before the pod: claims and volumes.
pub(crate) fn companions(pod: &Pod, index: usize) -> Vec<Value> {
    let labelled = |key: &str| pod.metadata.labels.iter().flatten().any(|(label, _)| label == key);
    let spec = pod.spec.as_ref();
    let claims = spec.and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
    if claims.into_iter().any(|volume| volume.persistent_volume_claim.is_some()) {
        let id = format!("vol-{index}");
        return bound_volume(
            index,
            if labelled("csi") || labelled("migrated") {
                json!({ "csi": { "driver": CSI_DRIVER, "volumeHandle": id } })
            } else {
                json!({ "awsElasticBlockStore": { "volumeID": id, "fsType": "ext4" } })
            },
        );
    }
    let names = spec.and_then(|spec| spec.resource_claims.as_ref()).into_iter().flatten();
    let names: Vec<&String> = names.filter_map(|claim| claim.resource_claim_name.as_ref()).collect();
    // The first pod of a claim brings it.
    let is_first = index % SHARING == 1;
    let new = names.into_iter().filter(|name| !name.starts_with("shared-") || is_first);
    new.map(|name| {
        let request = json!({ "name": "req", "exactly": { "deviceClassName": "test-class", "allocationMode": "ExactCount", "count": 1 } });
        json!({
            "kind": "ResourceClaim", "apiVersion": "resource.k8s.io/v1",
            "metadata": { "name": name, "namespace": "default", "uid": name },
            "spec": { "devices": { "requests": [request] } },
        })
    })
    .collect()
}

const CSI_DRIVER: &str = "ebs.csi.aws.com";

/// 39 volumes a node.
pub(crate) fn csi_node(index: usize) -> Value {
    let name = format!("node-{index}");
    let driver = json!({ "name": CSI_DRIVER, "nodeID": name, "allocatable": { "count": 39 } });
    json!({ "kind": "CSINode", "apiVersion": "storage.k8s.io/v1", "metadata": { "name": name }, "spec": { "drivers": [driver] } })
}

/// Pods with one claim.
const SHARING: usize = 5;
const DRIVER: &str = "test-driver.cdi.k8s.io";

/// A class, and so many devices of it on each node.
pub(crate) fn devices(nodes: usize, each: usize) -> Vec<Value> {
    let selector = json!({ "cel": { "expression": format!("device.driver == '{DRIVER}'") } });
    let class = json!({
        "kind": "DeviceClass", "apiVersion": "resource.k8s.io/v1", "metadata": { "name": "test-class" },
        "spec": { "selectors": [selector] },
    });
    let slices = (0..nodes).map(|index| {
        let node = format!("node-{index}");
        let devices: Vec<Value> =
            (0..each).map(|device| json!({ "name": format!("instance-{device}") })).collect();
        let pool = json!({ "name": node, "generation": 1, "resourceSliceCount": 1 });
        json!({
            "kind": "ResourceSlice", "apiVersion": "resource.k8s.io/v1", "metadata": { "name": node },
            "spec": { "driver": DRIVER, "nodeName": node, "pool": pool, "devices": devices },
        })
    });
    std::iter::once(class).chain(slices).collect()
}

fn with_claim(index: usize, name: String) -> Pod {
    let claim = json!({ "name": "resource", "resourceClaimName": name });
    pod(index, "default", json!({}), json!({}), json!({ "resourceClaims": [claim] }))
}

/// A claim for the pod alone, as a controller would make it from a template.
pub(crate) fn with_own_claim(index: usize) -> Pod {
    with_claim(index, format!("claim-{index}"))
}

pub(crate) fn with_shared_claim(index: usize) -> Pod {
    with_claim(index, format!("shared-{}", index.saturating_sub(1) / SHARING))
}

pub(crate) fn light(index: usize) -> Pod {
    pod(index, "default", json!({}), json!({}), json!({}))
}

/// More than any node has, and before all others.
pub(crate) fn too_large(index: usize) -> Pod {
    let requests = json!({ "cpu": "9", "memory": "500Mi" });
    pod(index, "default", requests, json!({}), json!({ "priority": 10 }))
}
