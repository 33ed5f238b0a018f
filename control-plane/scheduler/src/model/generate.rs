//! Nodes and pods by chance, of few kinds, so that they have much to do with each other.

use serde_json::{Value, json};

use crate::random;

/// Chooses by a seed, so that a failing one can be run again.
pub(super) struct Random(random::Random);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(random::Random::new(seed))
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0.below(limit)
    }

    pub(super) fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.0.index(all.len())]
    }

    pub(super) fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

const ZONE: &str = "topology.kubernetes.io/zone";
const HOSTNAME: &str = "kubernetes.io/hostname";
const GPU: &str = "example.com/gpu";
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn any_namespace(random: &mut Random) -> Value {
    let name = random.one_of(&["a", "b"]);
    let labels =
        if random.chance(4) { json!({}) } else { json!({ "team": random.one_of(&["red", "blue"]) }) };
    json!({ "metadata": { "name": name, "labels": labels } })
}

/// A Service, or a ReplicaSet of those that pods name as their controllers.
pub(super) fn any_workload(random: &mut Random) -> Value {
    let metadata = json!({ "name": random.one_of(&["web", "db"]), "namespace": random.one_of(&["a", "b"]) });
    if random.chance(2) {
        let mut set = json!({ "kind": "ReplicaSet", "metadata": metadata, "spec": {} });
        set["spec"]["selector"] = any_selector(random);
        return set;
    }
    let selector = match random.below(4) {
        0 => json!({}),
        1 => Value::Null,
        _ => any_labels(random),
    };
    json!({ "kind": "Service", "metadata": metadata, "spec": { "selector": selector } })
}

pub(super) fn any_node(random: &mut Random, name: &str) -> Value {
    let mut labels =
        json!({ "disk": random.one_of(&["ssd", "hdd"]), "cores": random.one_of(&["4", "8", "many"]) });
    if !random.chance(5) {
        labels[ZONE] = json!(random.one_of(&["a", "b", "c"]));
    }
    if !random.chance(6) {
        labels[HOSTNAME] = json!(if random.chance(6) { "shared" } else { name });
    }
    if random.chance(2) {
        labels["rack"] = json!(random.one_of(&["1", "2"]));
    }
    let mut taints = Vec::new();
    for key in ["red", "blue"] {
        if random.chance(6) {
            let value = random.one_of(&["x", "y"]);
            taints.push(json!({ "key": key, "value": value, "effect": random.one_of(&EFFECTS) }));
        }
    }
    json!({
        "metadata": { "name": name, "labels": labels },
        "spec": { "taints": taints, "unschedulable": random.chance(10) },
        "status": { "allocatable": {
            "cpu": format!("{}m", 1000 * (1 + random.below(8))), "memory": format!("{}", 1_000_000 * (1 + random.below(1900))),
            "pods": format!("{}", 3 + random.below(8)), GPU: format!("{}", random.below(3)),
            "ephemeral-storage": format!("{}", 1000 * (1 + random.below(3))),
        }, "images": any_images(random), "declaredFeatures": any_features(random) },
    })
}

fn any_features(random: &mut Random) -> Value {
    match random.below(4) {
        0 => json!([]),
        1 => json!(["Another"]),
        _ => json!(["Another", "RestartAllContainersOnContainerExits"]),
    }
}

fn any_images(random: &mut Random) -> Value {
    let mut images = Vec::new();
    for (name, mib) in [("web:1", 30_u64), ("db:latest", 300), ("base:2", 900)] {
        if random.chance(2) {
            images.push(json!({ "names": [name], "sizeBytes": mib << 20 }));
        }
    }
    json!(images)
}

pub(super) fn any_labels(random: &mut Random) -> Value {
    let mut labels = json!({ "app": random.one_of(&["web", "db"]) });
    if random.chance(2) {
        labels["tier"] = json!(random.one_of(&["x", "y"]));
    }
    labels
}

/// Amounts of cpu and memory; `parts` pods of this kind fill a node.
fn any_requests(random: &mut Random, parts: u64) -> Value {
    let mut requests = json!({});
    if !random.chance(4) {
        requests["cpu"] = json!(format!("{}m", 100 * (1 + random.below(12)) / parts));
    }
    if !random.chance(4) {
        requests["memory"] = json!(format!("{}", 1_000_000 * (1 + random.below(300)) / parts));
    }
    requests
}

fn any_container(random: &mut Random, name: &str) -> Value {
    let mut requests = any_requests(random, 1);
    if random.chance(10) {
        requests[GPU] = json!("1");
    }
    if random.chance(10) {
        requests["ephemeral-storage"] = json!(format!("{}", 100 * (1 + random.below(8))));
    }
    let mut container = json!({ "name": name, "resources": { "requests": requests } });
    if random.chance(3) {
        container["image"] = json!(random.one_of(&["web:1", "db", "base:2", "unknown"]));
    }
    if random.chance(10) {
        let ports: Vec<Value> = (0..=random.below(2)).map(|_| any_port(random)).collect();
        container["ports"] = json!(ports);
    }
    if random.chance(12) {
        container["restartPolicyRules"] = json!([{ "action": "RestartAllContainers" }]);
    }
    container
}

fn any_port(random: &mut Random) -> Value {
    let mut port = json!({ "containerPort": 80, "protocol": random.one_of(&["TCP", "TCP", "UDP"]) });
    // Without one it is the container's own, and nobody's concern.
    if !random.chance(4) {
        port["hostPort"] = json!(8000 + random.below(2));
    }
    match random.below(4) {
        0 => port["hostIP"] = json!("10.0.0.1"),
        1 => port["hostIP"] = json!("10.0.0.2"),
        2 => port["hostIP"] = json!("0.0.0.0"),
        _ => (),
    }
    port
}

fn any_toleration(random: &mut Random) -> Value {
    let mut toleration = match random.below(6) {
        0 => json!({ "operator": "Exists" }),
        1 => json!({ "key": random.one_of(&["red", "blue"]), "value": random.one_of(&["x", "y"]) }),
        2 => {
            json!({ "key": random.one_of(&["red", "blue"]), "operator": "Equal", "value": random.one_of(&["x", "y"]) })
        }
        3 => json!({ "key": "node.kubernetes.io/unschedulable", "operator": "Exists" }),
        _ => json!({ "key": random.one_of(&["red", "blue"]), "operator": "Exists" }),
    };
    if random.chance(3) {
        toleration["effect"] = json!(random.one_of(&EFFECTS));
    }
    toleration
}

/// What of nodes a term asks for.
fn any_node_term(random: &mut Random) -> Value {
    let mut term = json!({});
    if !random.chance(8) {
        let expressions: Vec<Value> = (0..=random.below(2)).map(|_| any_expression(random)).collect();
        term["matchExpressions"] = json!(expressions);
    }
    if random.chance(5) {
        let names: Vec<String> = (0..3).map(|_| format!("n{}", random.below(8))).collect();
        term["matchFields"] = json!([{ "key": "metadata.name", "operator": random.one_of(&["In", "In", "NotIn"]), "values": names }]);
    }
    term
}

fn any_expression(random: &mut Random) -> Value {
    match random.below(6) {
        0 => json!({ "key": "rack", "operator": random.one_of(&["Exists", "DoesNotExist"]) }),
        1 => json!({ "key": "cores", "operator": random.one_of(&["Gt", "Lt"]), "values": ["6"] }),
        2 => json!({ "key": ZONE, "operator": "NotIn", "values": [random.one_of(&["a", "b"])] }),
        3 => json!({ "key": "disk", "operator": random.one_of(&["In", "NotIn"]), "values": ["hdd"] }),
        _ => json!({ "key": ZONE, "operator": "In", "values": [random.one_of(&["a", "b"]), "c"] }),
    }
}

pub(super) fn any_pod(random: &mut Random, name: &str) -> Value {
    let containers: Vec<Value> =
        (0..=random.below(5) / 4).map(|index| any_container(random, &format!("c{index}"))).collect();
    let mut spec = json!({ "containers": containers });
    if random.chance(3) {
        let mut first = Vec::new();
        for index in 0..=random.below(2) {
            let mut container = any_container(random, &format!("i{index}"));
            if random.chance(2) {
                container["restartPolicy"] = json!("Always");
            }
            first.push(container);
        }
        spec["initContainers"] = json!(first);
    }
    if random.chance(8) {
        spec["overhead"] = any_requests(random, 4);
    }
    if random.chance(8) {
        spec["resources"] = json!({ "requests": any_requests(random, 1) });
    }
    if random.chance(3) {
        let tolerations: Vec<Value> = (0..=random.below(2)).map(|_| any_toleration(random)).collect();
        spec["tolerations"] = json!(tolerations);
    }
    if random.chance(6) {
        spec["nodeSelector"] = json!({ "disk": random.one_of(&["ssd", "hdd"]) });
    }
    if random.chance(6) {
        let terms: Vec<Value> = (0..=random.below(2)).map(|_| any_node_term(random)).collect();
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({ "nodeSelectorTerms": terms });
    }
    if random.chance(20) {
        // As those of DaemonSets.
        let field =
            json!({ "key": "metadata.name", "operator": "In", "values": [format!("n{}", random.below(8))] });
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({ "nodeSelectorTerms": [{ "matchFields": [field] }] });
    }
    if random.chance(5) {
        let preferred: Vec<Value> = (0..=random.below(2))
            .map(|_| json!({ "weight": 1 + random.below(100), "preference": any_node_term(random) }))
            .collect();
        spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] =
            json!(preferred);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        if random.chance(6) {
            let terms: Vec<Value> = (0..=random.below(2)).map(|_| any_term(random)).collect();
            spec["affinity"][kind]["requiredDuringSchedulingIgnoredDuringExecution"] = json!(terms);
        }
        if random.chance(5) {
            let terms: Vec<Value> = (0..=random.below(2))
                .map(|_| json!({ "weight": 1 + random.below(100), "podAffinityTerm": any_term(random) }))
                .collect();
            spec["affinity"][kind]["preferredDuringSchedulingIgnoredDuringExecution"] = json!(terms);
        }
    }
    if random.chance(3) {
        let constraints: Vec<Value> = (0..=random.below(2)).map(|_| any_constraint(random)).collect();
        spec["topologySpreadConstraints"] = json!(constraints);
    }
    let mut metadata = json!({ "name": name, "namespace": random.one_of(&["a", "b"]), "uid": name });
    if !random.chance(8) {
        metadata["labels"] = any_labels(random);
    }
    if !random.chance(3) {
        let owner = random.one_of(&["web", "db"]);
        metadata["ownerReferences"] = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true }]);
    }
    json!({ "metadata": metadata, "spec": spec })
}

fn any_topology(random: &mut Random) -> &'static str {
    const ALL: [&str; 5] = [ZONE, ZONE, HOSTNAME, HOSTNAME, "rack"];
    let any: &&str = random.one_of(&ALL);
    any
}

fn any_selector(random: &mut Random) -> Value {
    match random.below(5) {
        0 => {
            json!({ "matchExpressions": [{ "key": "tier", "operator": random.one_of(&["Exists", "DoesNotExist"]) }] })
        }
        1 => {
            json!({ "matchExpressions": [{ "key": "app", "operator": random.one_of(&["In", "NotIn"]), "values": ["web", "cache"] }] })
        }
        2 => json!({}),
        _ => json!({ "matchLabels": { "app": random.one_of(&["web", "db"]) } }),
    }
}

fn any_term(random: &mut Random) -> Value {
    let mut term = json!({ "topologyKey": any_topology(random), "labelSelector": any_selector(random) });
    match random.below(6) {
        0 => term["namespaces"] = json!(["b"]),
        1 => term["namespaceSelector"] = json!({}),
        2 => term["namespaceSelector"] = json!({ "matchLabels": { "team": "red" } }),
        _ => (),
    }
    match random.below(6) {
        0 => term["matchLabelKeys"] = json!(["tier"]),
        1 => term["mismatchLabelKeys"] = json!(["tier"]),
        _ => (),
    }
    if random.chance(20) {
        term.as_object_mut().unwrap().remove("labelSelector");
    }
    term
}

fn any_constraint(random: &mut Random) -> Value {
    let hard = random.chance(2);
    let mut constraint = json!({
        "maxSkew": 1 + random.below(3), "topologyKey": any_topology(random), "labelSelector": any_selector(random),
        "whenUnsatisfiable": if hard { "DoNotSchedule" } else { "ScheduleAnyway" },
    });
    if hard && random.chance(3) {
        constraint["minDomains"] = json!(1 + random.below(4));
    }
    if random.chance(3) {
        constraint["nodeAffinityPolicy"] = json!(random.one_of(&["Honor", "Ignore"]));
    }
    if random.chance(3) {
        constraint["nodeTaintsPolicy"] = json!(random.one_of(&["Honor", "Ignore"]));
    }
    if random.chance(5) {
        constraint["matchLabelKeys"] = json!(["tier"]);
    }
    constraint
}
