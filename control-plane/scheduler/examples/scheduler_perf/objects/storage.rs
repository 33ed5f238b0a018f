//! Volumes, devices, and the other kinds of objects that pods need.

use serde_json::{Value, json};

use super::{
    Which,
    pods::{asking, pod},
};

const CSI_DRIVER: &str = "ebs.csi.aws.com";
const IN_TREE: &str = "kubernetes.io/aws-ebs";
const DRA_DRIVER: &str = "test-driver.cdi.k8s.io";
const CLASS: &str = "test-class";
const REQUEST: &str = "req-0";
const CLAIM_TEMPLATE: &str = "test-claim-template";
/// Pods with one claim, where they share it.
const SHARING: usize = 5;

pub(super) fn object(template: &str, Which { index, .. }: Which) -> Option<Value> {
    let devices = || {
        let asked = json!({ "deviceClassName": CLASS });
        json!({ "devices": { "requests": [{ "name": REQUEST, "exactly": asked }] } })
    };
    let with_claim = |metadata, mut claim: Value| {
        claim["name"] = "resource".into();
        let mut containers = asking(json!({}));
        containers[0]["resources"] = json!({ "claims": [{ "name": "resource" }] });
        pod(metadata, json!({ "containers": containers, "resourceClaims": [claim] }))
    };
    Some(match template {
        "pv-csi" => volume(json!({ "csi": { "driver": CSI_DRIVER } })),
        "pv-aws" => volume(json!({ "awsElasticBlockStore": {} })),
        "pvc" => claim("ReadOnlyMany"),
        "pvc-once-pod" => claim("ReadWriteOncePod"),
        "deviceclass" => {
            let selector = json!({ "cel": { "expression": format!("device.driver == \"{DRA_DRIVER}\"") } });
            json!({
                "kind": "DeviceClass", "apiVersion": "resource.k8s.io/v1", "metadata": { "name": CLASS },
                "spec": { "selectors": [selector] },
            })
        }
        "resourceclaim" => json!({
            "kind": "ResourceClaim", "apiVersion": "resource.k8s.io/v1",
            "metadata": { "name": format!("test-claim-{index}") }, "spec": devices(),
        }),
        "resourceclaimtemplate" => json!({
            "kind": "ResourceClaimTemplate", "apiVersion": "resource.k8s.io/v1",
            "metadata": { "name": CLAIM_TEMPLATE }, "spec": { "spec": devices() },
        }),
        "pod-with-claim-template" => with_claim(
            json!({ "generateName": "test-dra" }),
            json!({ "resourceClaimTemplateName": CLAIM_TEMPLATE }),
        ),
        "pod-with-claim-ref" => with_claim(
            json!({ "name": format!("test-dra-{index}") }),
            json!({ "resourceClaimName": format!("test-claim-{}", index / SHARING) }),
        ),
        "pod-with-extended-resource" => {
            let amounts = json!({ format!("foo.com/bar-{index}"): "1" });
            let mut containers = asking(amounts.clone());
            containers[0]["resources"]["limits"] = amounts;
            pod(
                json!({ "name": format!("test-extended-resource-{index}") }),
                json!({ "containers": containers }),
            )
        }
        "namespace-with-labels" => json!({
            "kind": "Namespace", "apiVersion": "v1", "metadata": { "labels": { "team": "devops" } },
        }),
        "service" => service("service-", "scheduler-perf", 80, 8000),
        "churn/service-default" => service("service-churn-", "foo", 8080, 8080),
        _ => return None,
    })
}

fn volume(source: Value) -> Value {
    let mut spec = json!({
        "accessModes": ["ReadOnlyMany"], "capacity": { "storage": "1Gi" },
        "persistentVolumeReclaimPolicy": "Retain",
    });
    super::merge(&mut spec, &source);
    json!({ "kind": "PersistentVolume", "apiVersion": "v1", "metadata": {}, "spec": spec })
}

fn claim(mode: &str) -> Value {
    json!({
        "kind": "PersistentVolumeClaim", "apiVersion": "v1",
        "metadata": { "annotations": { "pv.kubernetes.io/bind-completed": "true" } },
        "spec": {
            "accessModes": [mode], "resources": { "requests": { "storage": "1Gi" } }, "storageClassName": "",
        },
    })
}

fn service(start: &str, app: &str, port: u16, target: u16) -> Value {
    json!({
        "kind": "Service", "apiVersion": "v1", "metadata": { "generateName": start },
        "spec": {
            "selector": { "app": app },
            "ports": [{ "protocol": "TCP", "port": port, "targetPort": target }],
        },
    })
}

/// A volume and its claim, which are bound to one another.
pub(super) fn bound(volume: &str, claim: &str, namespace: &str, which: Which) -> [Value; 2] {
    let [mut volume, mut claim] = [volume, claim].map(|template| super::named(template, which, 0, None));
    let (volume_name, claim_name) =
        (format!("pv-{namespace}-{}", which.index), format!("pvc-{}", which.index));
    let spec = &mut volume["spec"];
    let (source, id) =
        if spec["csi"].is_null() { ("awsElasticBlockStore", "volumeID") } else { ("csi", "volumeHandle") };
    spec[source][id] = format!("vol-{namespace}-{}", which.index).into();
    spec["claimRef"] = json!({
        "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": namespace, "name": claim_name,
    });
    volume["metadata"]["name"] = volume_name.as_str().into();
    claim["metadata"]["namespace"] = namespace.into();
    claim["metadata"]["name"] = claim_name.into();
    claim["spec"]["volumeName"] = volume_name.into();
    [volume, claim]
}

pub(super) fn csi_node(node: &str, limit: u32, migrated: bool) -> Value {
    let driver = json!({ "name": CSI_DRIVER, "nodeID": node, "allocatable": { "count": limit } });
    let annotations =
        if migrated { json!({ "storage.alpha.kubernetes.io/migrated-plugins": IN_TREE }) } else { json!({}) };
    json!({
        "kind": "CSINode", "apiVersion": "storage.k8s.io/v1",
        "metadata": { "name": node, "annotations": annotations }, "spec": { "drivers": [driver] },
    })
}

/// So many devices of one node.
pub(crate) fn slice(node: &str, devices: usize) -> Value {
    let devices: Vec<Value> = (0..devices)
        .map(|index| {
            let attributes = json!({
                "model": { "string": "A100" }, "family": { "string": "GPU" },
                "driverVersion": { "version": "1.2.3" }, "dra.example.com/numa": { "int": index },
            });
            let capacity = json!({ "memory": { "value": "1Gi" } });
            json!({ "name": device(index), "attributes": attributes, "capacity": capacity })
        })
        .collect();
    let pool = json!({ "name": node, "generation": 1, "resourceSliceCount": 1 });
    json!({
        "kind": "ResourceSlice", "apiVersion": "resource.k8s.io/v1", "metadata": { "name": node },
        "spec": { "driver": DRA_DRIVER, "nodeName": node, "pool": pool, "devices": devices },
    })
}

/// What a claim's status says when it was given one device of a node.
pub(crate) fn allocation(node: &str, index: usize) -> Value {
    let result = json!({ "request": REQUEST, "driver": DRA_DRIVER, "pool": node, "device": device(index) });
    let field = json!({ "key": "metadata.name", "operator": "In", "values": [node] });
    let selector = json!({ "nodeSelectorTerms": [{ "matchFields": [field] }] });
    json!({ "devices": { "results": [result] }, "nodeSelector": selector })
}

fn device(index: usize) -> String {
    format!("instance-{index}")
}
