//! Nodes.

use serde_json::{Value, json};

use super::{Which, update};

/// The template of nodes that have a driver of devices.
pub(crate) const DRA_NODE: &str = "node-with-dra-test-driver";
/// How their names begin.
pub(crate) const DRA_NODES: &str = "scheduler-perf-dra-";
pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";

/// More than an ordinary node.
const MANY: &str = "90000";
const SOME: &str = "3000";

pub(super) fn object(template: &str, Which { index, .. }: Which) -> Option<Value> {
    let one = |name: String| json!({ "name": name });
    let any = |start: &str| json!({ "generateName": start });
    let labels = json!({ "topology.kubernetes.io/zone": "zone1", "affinity": "allow", "topology": "allow" });
    Some(match template {
        "node-default" => node(any("scheduler-perf-"), ["110", "4", "32Gi"], json!({})),
        "node-with-name" => {
            let name = "scheduler-perf-node";
            node(json!({ "name": name, "labels": { HOSTNAME: name } }), [MANY, "4", "32Gi"], json!({}))
        }
        "node-with-taint" => node(any("taint-node-"), ["110", "4", "32Gi"], tainted("foo")),
        "churn/node-default" => node(any("node-churn-"), ["0", "0", "0"], json!({})),
        DRA_NODE => node(one(format!("{DRA_NODES}{index}")), ["110", "4", "32Gi"], json!({})),
        "node-base" => node(one(format!("node-{index}")), ["110", "128", "16Gi"], json!({})),
        "node-with-extended-resource" => {
            let mut node = node(
                json!({
                    "generateName": "scheduler-perf-extended-resource-",
                    "labels": { "node-with-extended-resource": "true" },
                }),
                ["110", "4", "32Gi"],
                json!({}),
            );
            for field in ["capacity", "allocatable"] {
                node["status"][field][format!("foo.com/bar-{index}")] = "1".into();
            }
            node
        }
        "podadd-node" => node(any("scheduler-perf-"), [SOME, "4", "32Gi"], json!({})),
        "podupdate-node-unschedulable" => {
            node(one("unschedulable-node".into()), [MANY, "4", "32Gi"], json!({ "unschedulable": true }))
        }
        "podupdate-node-with-taint" => {
            node(one("node-with-taint".into()), [MANY, "4", "32Gi"], tainted("toleration"))
        }
        "nodeadd-node-unschedulable" => {
            let mut spec = tainted("allow");
            spec["unschedulable"] = true.into();
            let metadata = json!({ "generateName": "node-unschedulable-", "labels": labels });
            node(metadata, [SOME, "4", "32Gi"], spec)
        }
        "nodeadd-node-low-capacity" => {
            node(any("node-low-capacity-"), [SOME, "0.1", "100Mi"], tainted("allow"))
        }
        "nodeadd-node-high-capacity" => {
            node(any("node-high-capacity-"), [SOME, "200", "200Gi"], tainted("allow"))
        }
        "nodeadd-node-with-labels" => {
            let metadata = json!({ "generateName": "node-unblocker-", "labels": labels });
            node(metadata, [SOME, "4", "32Gi"], tainted("allow"))
        }
        "nodeadd-node-with-taint" => {
            node(any("node-with-taint-"), [SOME, "4", "32Gi"], tainted("toleration"))
        }
        "nodeupdate-node-unschedulable" => {
            let mut spec = tainted("allow");
            spec["unschedulable"] = true.into();
            node(one(format!("node-unschedulable-{index}")), [SOME, "4", "32Gi"], spec)
        }
        "nodeupdate-node-low-capacity" => {
            let metadata = one(format!("node-low-capacity-{index}"));
            node(metadata, [SOME, "0.0001", "1Mi"], tainted("allow-noderesources"))
        }
        "nodeupdate-node-without-labels" => {
            node(one(format!("node-without-labels-{index}")), [SOME, "4", "32Gi"], tainted("allow"))
        }
        "nodeupdate-node-without-taints" => {
            node(one(format!("node-without-taints-{index}")), [SOME, "4", "32Gi"], tainted("allow"))
        }
        "nodeupdate-node-unschedulable-update" => update(
            "Node",
            format!("node-unschedulable-{index}"),
            json!({ "spec": { "unschedulable": null } }),
        ),
        "nodeupdate-node-low-capacity-update" => {
            let room = room([SOME, "4", "32Gi"]);
            let status = json!({ "capacity": room, "allocatable": room });
            update("Node", format!("node-low-capacity-{index}"), json!({ "status": status }))
        }
        "nodeupdate-node-without-labels-update" => update(
            "Node",
            format!("node-without-labels-{index}"),
            json!({ "metadata": { "labels": labels } }),
        ),
        "nodeupdate-node-without-taints-update" => {
            let spec = tainted(&format!("toleration-{index}"));
            update("Node", format!("node-without-taints-{index}"), json!({ "spec": spec }))
        }
        _ => return None,
    })
}

/// With room for so many pods, cores, and memory.
fn node(metadata: Value, has: [&str; 3], spec: Value) -> Value {
    let room = room(has);
    let ready = json!([{ "type": "Ready", "status": "True" }]);
    json!({
        "kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": spec,
        "status": { "capacity": room, "allocatable": room, "conditions": ready },
    })
}

fn room([pods, cpu, memory]: [&str; 3]) -> Value {
    json!({ "pods": pods, "cpu": cpu, "memory": memory })
}

fn tainted(key: &str) -> Value {
    json!({ "taints": [{ "key": key, "effect": "NoSchedule" }] })
}
