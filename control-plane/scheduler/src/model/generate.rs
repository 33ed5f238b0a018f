//! Nodes and pods by chance, of few kinds, so that they have much to do with each other.

use serde_json::{Value, json};

/// A small generator of numbers, so that a failing seed can be run again.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    pub(super) fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let index = self.below(all.len() as u64);
        &all[usize::try_from(index).unwrap()]
    }

    pub(super) fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

const ZONE: &str = "topology.kubernetes.io/zone";
const HOSTNAME: &str = "kubernetes.io/hostname";

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
    let mut labels = json!({ "disk": random.one_of(&["ssd", "hdd"]) });
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
            taints.push(json!({ "key": key, "value": "x", "effect": random.one_of(&["NoSchedule", "PreferNoSchedule", "NoExecute"]) }));
        }
    }
    json!({
        "metadata": { "name": name, "labels": labels },
        "spec": { "taints": taints, "unschedulable": random.chance(10) },
        "status": { "allocatable": {
            "cpu": format!("{}m", 1000 * (1 + random.below(8))), "memory": format!("{}", 1_000_000 * (1 + random.below(1900))),
            "pods": format!("{}", 3 + random.below(8)), "example.com/gpu": format!("{}", random.below(3)),
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
    let names =
        ["web:1", "db:latest", "base:2"].into_iter().filter(|_| random.0 & 0x100 != 0 || random.chance(2));
    let sizes = [30_u64, 300, 900];
    json!(
        names
            .zip(sizes)
            .map(|(name, mib)| json!({ "names": [name], "sizeBytes": mib << 20 }))
            .collect::<Vec<_>>()
    )
}

pub(super) fn any_labels(random: &mut Random) -> Value {
    let mut labels = json!({ "app": random.one_of(&["web", "db"]) });
    if random.chance(2) {
        labels["tier"] = json!(random.one_of(&["x", "y"]));
    }
    labels
}

pub(super) fn any_pod(random: &mut Random, name: &str) -> Value {
    let mut requests = json!({});
    if !random.chance(4) {
        requests["cpu"] = json!(format!("{}m", 100 * (1 + random.below(12))));
    }
    if !random.chance(4) {
        requests["memory"] = json!(format!("{}", 1_000_000 * (1 + random.below(300))));
    }
    if random.chance(8) {
        requests["example.com/gpu"] = json!("1");
    }
    let mut spec = json!({ "containers": [{ "name": "c", "resources": { "requests": requests } }] });
    if random.chance(3) {
        spec["containers"][0]["image"] = json!(random.one_of(&["web:1", "db"]));
        spec["initContainers"] = json!([{ "name": "i", "image": random.one_of(&["base:2", "unknown"]) }]);
    }
    if random.chance(8) {
        spec["containers"][0]["ports"] =
            json!([{ "containerPort": 80, "hostPort": 8000 + random.below(2), "protocol": "TCP" }]);
    }
    if random.chance(8) {
        spec["containers"][0]["restartPolicyRules"] = json!([{ "action": "RestartAllContainers" }]);
    }
    if random.chance(3) {
        spec["tolerations"] = json!([{ "key": random.one_of(&["red", "blue"]), "operator": "Exists" }]);
    }
    if random.chance(6) {
        spec["nodeSelector"] = json!({ "disk": random.one_of(&["ssd", "hdd"]) });
    }
    if random.chance(12) {
        let names: Vec<String> = (0..3).map(|_| format!("n{}", random.below(8))).collect();
        let field = json!({ "key": "metadata.name", "operator": "In", "values": names });
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({ "nodeSelectorTerms": [{ "matchFields": [field] }] });
    }
    if random.chance(5) {
        spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([{
            "weight": 1 + random.below(100), "preference": { "matchExpressions": [
                { "key": ZONE, "operator": "In", "values": [random.one_of(&["a", "b"])] }] },
        }, {
            "weight": 1 + random.below(100), "preference": { "matchExpressions": [{ "key": "disk", "operator": "NotIn", "values": ["hdd"] }] },
        }]);
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
