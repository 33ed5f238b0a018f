//! Pods; those of the workloads about events are in `events`.

use serde_json::{Value, json};

const HOSTNAME: &str = super::HOSTNAME;
const ZONE: &str = "topology.kubernetes.io/zone";
const IMAGE: &str = "registry.k8s.io/pause:3.10.1";

pub(super) fn object(template: &str) -> Option<Value> {
    let (here, team) = (
        json!({ "namespaces": ["sched-1", "sched-0"] }),
        json!({ "namespaceSelector": { "matchLabels": { "team": "devops" } } }),
    );
    Some(match template {
        "pod-default" => ordinary("pod-", json!({}), json!({})),
        "pod-low-priority" => {
            let spec = json!({ "containers": sized("900m", "500Mi"), "terminationGracePeriodSeconds": 0 });
            pod(json!({ "generateName": "pod-" }), spec)
        }
        "pod-high-priority" => {
            let spec = json!({ "containers": sized("3000m", "500Mi"), "priority": 10 });
            pod(json!({ "generateName": "pod-" }), spec)
        }
        "pod-high-priority-large-cpu" => {
            let mut containers = sized("9", "500Mi");
            containers[0]["resources"]["limits"] = Value::Null;
            pod(json!({ "generateName": "pod-h-" }), json!({ "containers": containers, "priority": 10 }))
        }
        "light-pod" => {
            pod(json!({ "generateName": "light-pod-" }), json!({ "terminationGracePeriodSeconds": 0 }))
        }
        "pod-with-pod-level-resources" => {
            let requests = json!({ "cpu": "100m", "memory": "200Mi" });
            pod(json!({ "generateName": "pod-" }), json!({ "resources": { "requests": requests } }))
        }
        "gated-pod" => {
            let spec = json!({ "schedulingGates": [{ "name": "test.k8s.io/hold" }] });
            pod(json!({ "generateName": "gated-pod-" }), spec)
        }
        "pod-with-label" => pod(labelled("pod-", "app", "scheduler-perf"), json!({})),
        "gated-pod-with-pod-affinity" => {
            let mut spec = required("podAffinity", term("app", "scheduler-perf", HOSTNAME, &json!({})));
            spec["schedulingGates"] = json!([{ "name": "scheduling-gate-1" }]);
            pod(labelled("pod-", "app", "scheduler-perf"), spec)
        }
        "pod-with-finalizer" => {
            pod(json!({ "generateName": "pod-", "finalizers": ["test.k8s.io/finalizer"] }), json!({}))
        }
        "daemonset-pod" => {
            let field =
                json!({ "key": "metadata.name", "operator": "In", "values": ["scheduler-perf-node"] });
            let spec = node_affinity(json!({ "matchFields": [field] }));
            pod(json!({ "generateName": "daemonset-" }), spec)
        }
        "pod-with-node-affinity" => {
            let zones = json!({ "key": ZONE, "operator": "In", "values": ["zone1", "zone2"] });
            ordinary("node-affinity-", json!({}), node_affinity(json!({ "matchExpressions": [zones] })))
        }
        "pod-with-pod-affinity" => ordinary(
            "affinity-pod-",
            color("blue"),
            required("podAffinity", term("color", "blue", ZONE, &here)),
        ),
        "pod-affinity-ns-selector" => ordinary(
            "affinity-pod-",
            color("blue"),
            required("podAffinity", term("color", "blue", ZONE, &team)),
        ),
        "pod-with-pod-anti-affinity" => {
            let spec = required("podAntiAffinity", term("color", "green", HOSTNAME, &here));
            ordinary("anti-affinity-pod-", color("green"), spec)
        }
        "pod-with-pod-anti-affinity-label" => {
            ordinary("anti-affinity-matching-pod-", color("green"), json!({}))
        }
        "pod-anti-affinity-ns-selector" => {
            let spec = required("podAntiAffinity", term("color", "green", HOSTNAME, &team));
            ordinary("anti-affinity-pod-", color("green"), spec)
        }
        "pod-with-preferred-pod-affinity" => {
            let spec = preferred("podAffinity", term("color", "red", HOSTNAME, &here));
            ordinary("preferred-affinity-pod-", color("red"), spec)
        }
        "pod-preferred-affinity-ns-selector" => {
            let spec = preferred("podAffinity", term("color", "red", HOSTNAME, &team));
            ordinary("preferred-affinity-pod-", color("red"), spec)
        }
        "pod-with-preferred-pod-anti-affinity" => {
            let spec = preferred("podAntiAffinity", term("color", "yellow", HOSTNAME, &here));
            ordinary("preferred-anti-affinity-pod-", color("yellow"), spec)
        }
        "pod-preferred-anti-affinity-ns-selector" => {
            let spec = preferred("podAntiAffinity", term("color", "green", HOSTNAME, &team));
            ordinary("anti-affinity-pod-", color("green"), spec)
        }
        "pod-with-topology-spreading" => {
            ordinary("spreading-pod-", color("blue"), spread(5, ZONE, "DoNotSchedule", "color", "blue"))
        }
        "pod-with-preferred-topology-spreading" => {
            ordinary("spreading-pod-", color("blue"), spread(5, ZONE, "ScheduleAnyway", "color", "blue"))
        }
        "pod-with-node-inclusion-policy" => {
            let mut spec = spread(1, HOSTNAME, "DoNotSchedule", "foo", "bar");
            for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
                spec["topologySpreadConstraints"][0][policy] = "Honor".into();
            }
            ordinary("spreading-pod-with-node-inclusion-policy-", json!({ "foo": "bar" }), spec)
        }
        "pod-with-secret-volume" => {
            let volume = json!({ "name": "secret", "secret": { "secretName": "secret" } });
            ordinary("secret-volume-", json!({}), json!({ "volumes": [volume] }))
        }
        _ => return None,
    })
}

/// Of one container, unless the specification has others.
pub(super) fn pod(metadata: Value, mut spec: Value) -> Value {
    if spec["containers"].is_null() {
        spec["containers"] = json!([{ "name": "pause", "image": IMAGE }]);
    }
    json!({ "kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec })
}

/// A tenth of a core and 500 MiB.
fn ordinary(start: &str, labels: Value, mut spec: Value) -> Value {
    spec["containers"] = sized("100m", "500Mi");
    pod(json!({ "generateName": start, "labels": labels }), spec)
}

/// A container with a port, which takes as much as it may.
fn sized(cpu: &str, memory: &str) -> Value {
    let amounts = json!({ "cpu": cpu, "memory": memory });
    let resources = json!({ "limits": amounts, "requests": amounts });
    json!([{ "name": "pause", "image": IMAGE, "ports": [{ "containerPort": 80 }], "resources": resources }])
}

/// A container that asks for so much.
pub(super) fn asking(requests: Value) -> Value {
    json!([{ "name": "pause", "image": IMAGE, "resources": { "requests": requests } }])
}

pub(super) fn labelled(start: &str, label: &str, value: &str) -> Value {
    json!({ "generateName": start, "labels": { label: value } })
}

fn color(name: &str) -> Value {
    json!({ "color": name })
}

/// `whose`: the namespaces that are meant.
pub(super) fn term(label: &str, value: &str, topology: &str, whose: &Value) -> Value {
    let mut term = json!({ "labelSelector": { "matchLabels": { label: value } }, "topologyKey": topology });
    super::merge(&mut term, whose);
    term
}

pub(super) fn required(kind: &str, term: Value) -> Value {
    json!({ "affinity": { kind: { "requiredDuringSchedulingIgnoredDuringExecution": [term] } } })
}

fn preferred(kind: &str, term: Value) -> Value {
    let wish = json!({ "weight": 1, "podAffinityTerm": term });
    json!({ "affinity": { kind: { "preferredDuringSchedulingIgnoredDuringExecution": [wish] } } })
}

pub(super) fn node_affinity(term: Value) -> Value {
    let terms = json!({ "nodeSelectorTerms": [term] });
    json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": terms } } })
}

pub(super) fn spread(skew: usize, topology: &str, action: &str, label: &str, value: &str) -> Value {
    let constraint = json!({
        "maxSkew": skew, "topologyKey": topology, "whenUnsatisfiable": action,
        "labelSelector": { "matchLabels": { label: value } },
    });
    json!({ "topologySpreadConstraints": [constraint] })
}
