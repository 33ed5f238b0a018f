//! The core against a slow twin, and what it does when writes fail.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;
use crate::testing::{node, pod};

const START: Duration = Duration::ZERO;

fn scheduler() -> Scheduler {
    Scheduler::new(&Config::default(), 7)
}

fn cpu(name: &str, amount: &str) -> Pod {
    pod(name, json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": amount } } }] }))
}

fn bound_to(mut pod: Pod, node: &str) -> Pod {
    pod.spec.as_mut().unwrap().node_name = Some(node.to_owned());
    pod
}

fn nodes_of(plan: &Plan) -> Vec<(&str, &str)> {
    plan.bindings.iter().map(|binding| (binding.pod.as_str(), binding.node.as_str())).collect()
}

#[test]
fn assumed_pods_take_their_room() {
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({})), START);
    scheduler.pod_changed(&cpu("a", "3"), START);
    scheduler.pod_changed(&cpu("b", "3"), START);
    let plan = scheduler.schedule(10, START);
    assert_eq!(nodes_of(&plan), [("a", "n1")]);
    assert_eq!(plan.rejected[0].message, "0/1 nodes are available: 1 Insufficient cpu.");
    // An older view of the assumed pod does not bring it back.
    scheduler.pod_changed(&cpu("a", "3"), START);
    assert_eq!(scheduler.waiting(), (0, 0, 1));
    // Once shown as bound it is counted once.
    scheduler.pod_changed(&bound_to(cpu("a", "3"), "n1"), START);
    assert_eq!(scheduler.snapshot().requested[0].cpu_milli, 3000);
}

#[test]
fn requests_without_measure_add_up_and_are_taken_off_again() {
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({})), START);
    let requests =
        json!({ "cpu": "9223372036854775807", "memory": "8Ei", "example.com/gpu": "9223372036854775807" });
    let greedy = |name: &str| {
        let container = json!({ "name": "c", "resources": { "requests": requests } });
        pod(name, json!({ "containers": [container.clone(), container] }))
    };
    // Users can put a pod on a node themselves, whatever it asks for.
    for name in ["a", "b", "c"] {
        scheduler.pod_changed(&bound_to(greedy(name), "n1"), START);
    }
    scheduler.pod_changed(&greedy("d"), START);
    scheduler.pod_changed(&cpu("e", "1"), START);
    assert_eq!(scheduler.schedule(10, START).bindings.len(), 0);
    for name in ["a", "b", "c"] {
        scheduler.pod_removed(name, START);
    }
    assert_eq!(scheduler.snapshot().requested[0].cpu_milli, 0);
    let later = scheduler.next_wakeup().unwrap_or(START);
    assert_eq!(nodes_of(&scheduler.schedule(10, later)), [("e", "n1")]);
}

#[test]
fn failed_binding_gives_the_room_back() {
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({})), START);
    scheduler.pod_changed(&cpu("a", "3"), START);
    assert_eq!(scheduler.schedule(10, START).bindings.len(), 1);
    scheduler.bind_failed("a", START);
    assert_eq!(scheduler.snapshot().requested[0].cpu_milli, 0);
    assert!(scheduler.schedule(10, START).bindings.is_empty());
    let later = scheduler.next_wakeup().unwrap();
    assert_eq!(nodes_of(&scheduler.schedule(10, later)), [("a", "n1")]);
    // The failure of a binding that the API shows as done undoes nothing.
    scheduler.pod_changed(&bound_to(cpu("a", "3"), "n1"), later);
    scheduler.bind_failed("a", later);
    assert_eq!(scheduler.snapshot().requested[0].cpu_milli, 3000);
}

#[test]
fn waiting_pods_wake_when_room_appears() {
    let late = Duration::from_secs(60);
    type Case = (&'static str, fn(&mut Scheduler, Duration));
    let cases: [Case; 5] = [
        ("a node comes", |scheduler, now| scheduler.node_changed(&node("n2", json!({})), now)),
        ("a node grows", |scheduler, now| {
            let more = json!({ "status": { "allocatable": { "cpu": "9", "memory": "8Gi", "pods": "110" } } });
            scheduler.node_changed(&node("n1", more), now);
        }),
        ("a pod goes", |scheduler, now| scheduler.pod_removed("full", now)),
        ("a pod ends", |scheduler, now| {
            let mut ended = bound_to(cpu("full", "4"), "n1");
            ended.status = serde_json::from_value(json!({ "phase": "Succeeded" })).unwrap();
            scheduler.pod_changed(&ended, now);
        }),
        ("it asks for less", |scheduler, now| scheduler.pod_changed(&cpu("a", "0"), now)),
    ];
    for (name, change) in cases {
        let mut scheduler = scheduler();
        scheduler.node_changed(&node("n1", json!({})), START);
        scheduler.pod_changed(&bound_to(cpu("full", "4"), "n1"), START);
        scheduler.pod_changed(&cpu("a", "1"), START);
        assert_eq!(scheduler.schedule(10, START).rejected.len(), 1, "{name}");
        // What does not help wakes nobody.
        scheduler.node_changed(&node("n1", json!({ "metadata": { "labels": { "x": "y" } } })), late);
        assert_eq!(scheduler.waiting(), (0, 0, 1), "{name}");
        change(&mut scheduler, late);
        assert_eq!(scheduler.schedule(10, late).bindings.len(), 1, "{name}");
    }
}

#[test]
fn pods_that_are_not_ours_to_place_are_left_alone() {
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({})), START);
    scheduler.pod_changed(&pod("other", json!({ "containers": [], "schedulerName": "another" })), START);
    scheduler
        .pod_changed(&pod("gated", json!({ "containers": [], "schedulingGates": [{ "name": "g" }] })), START);
    assert!(scheduler.schedule(10, START).bindings.is_empty());
    scheduler.pod_changed(&pod("gated", json!({ "containers": [] })), START);
    assert_eq!(nodes_of(&scheduler.schedule(10, START)), [("gated", "n1")]);
}

#[test]
fn wishes_that_are_not_considered_are_told() {
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({})), START);
    let wishes = json!({ "containers": [], "affinity": { "podAntiAffinity": {} } });
    scheduler.pod_changed(&pod("apart", wishes), START);
    scheduler.pod_changed(&pod("plain", json!({ "containers": [] })), START);
    let plan = scheduler.schedule(10, START);
    assert_eq!(plan.bindings.len(), 2);
    assert_eq!(plan.partly.len(), 1);
    assert_eq!(plan.partly[0].not_considered, ["podAntiAffinity"]);
}

#[test]
fn replicas_spread_over_zones_and_hosts() {
    let mut scheduler = scheduler();
    for (name, zone) in [("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "b")] {
        let labels = json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": zone } } });
        scheduler.node_changed(&node(name, labels), START);
    }
    let mut used = Vec::new();
    for index in 0..8 {
        let mut replica = cpu(&format!("p{index}"), "10m");
        replica.metadata.owner_references =
            serde_json::from_value(json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "web", "controller": true }])).unwrap();
        scheduler.pod_changed(&replica, START);
        let plan = scheduler.schedule(1, START);
        used.push(plan.bindings[0].node.clone());
    }
    let first: BTreeSet<_> = used[..4].iter().collect();
    assert_eq!(first.len(), 4, "{used:?}");
    let zone = |node: &String| node == "n1" || node == "n2";
    assert_ne!(zone(&used[0]), zone(&used[1]), "{used:?}");
    assert!(first.iter().all(|node| used.iter().filter(|used| used == node).count() == 2), "{used:?}");
}

/// A small generator of numbers, so that a failing seed can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let index = self.below(all.len() as u64);
        &all[usize::try_from(index).unwrap()]
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

fn any_node(random: &mut Random, name: &str) -> Value {
    let mut labels = json!({ "disk": random.one_of(&["ssd", "hdd"]) });
    if !random.chance(4) {
        labels["topology.kubernetes.io/zone"] = json!(random.one_of(&["a", "b", "c"]));
    }
    if !random.chance(5) {
        labels["kubernetes.io/hostname"] = json!(name);
    }
    let mut taints = Vec::new();
    for key in ["red", "blue"] {
        if random.chance(4) {
            taints.push(json!({ "key": key, "value": "x", "effect": random.one_of(&["NoSchedule", "PreferNoSchedule", "NoExecute"]) }));
        }
    }
    json!({
        "metadata": { "name": name, "labels": labels },
        "spec": { "taints": taints, "unschedulable": random.chance(8) },
        "status": { "allocatable": {
            "cpu": format!("{}m", 500 * (1 + random.below(8))), "memory": format!("{}", 1_000_000 * (1 + random.below(900))),
            "pods": format!("{}", 2 + random.below(6)), "example.com/gpu": format!("{}", random.below(3)),
        } },
    })
}

fn any_pod(random: &mut Random, name: &str) -> Value {
    let mut requests = json!({});
    if !random.chance(4) {
        requests["cpu"] = json!(format!("{}m", 100 * (1 + random.below(12))));
    }
    if !random.chance(4) {
        requests["memory"] = json!(format!("{}", 1_000_000 * (1 + random.below(300))));
    }
    if random.chance(6) {
        requests["example.com/gpu"] = json!("1");
    }
    let mut spec = json!({ "containers": [{ "name": "c", "resources": { "requests": requests } }] });
    if random.chance(6) {
        spec["containers"][0]["ports"] =
            json!([{ "containerPort": 80, "hostPort": 8000 + random.below(2), "protocol": "TCP" }]);
    }
    if random.chance(3) {
        spec["tolerations"] = json!([{ "key": random.one_of(&["red", "blue"]), "operator": "Exists" }]);
    }
    if random.chance(5) {
        spec["nodeSelector"] = json!({ "disk": random.one_of(&["ssd", "hdd"]) });
    }
    if random.chance(4) {
        spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([{
            "weight": 1 + random.below(100), "preference": { "matchExpressions": [
                { "key": "topology.kubernetes.io/zone", "operator": "In", "values": [random.one_of(&["a", "b"])] }] },
        }, {
            "weight": 1 + random.below(100), "preference": { "matchExpressions": [{ "key": "disk", "operator": "NotIn", "values": ["hdd"] }] },
        }]);
    }
    let mut metadata = json!({ "name": name, "namespace": "a", "uid": name });
    if !random.chance(3) {
        let owner = random.one_of(&["web", "db"]);
        metadata["ownerReferences"] = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true }]);
    }
    json!({ "metadata": metadata, "spec": spec })
}

/// The same rules, read from plain objects each time, without columns, caches or shared code.
#[derive(Default)]
struct Twin {
    nodes: BTreeMap<String, Value>,
    /// Pods with a node.
    pods: BTreeMap<String, (Value, String)>,
}

fn number(value: &Value) -> i64 {
    let text = value.as_str().unwrap_or("0");
    text.strip_suffix('m').unwrap_or(text).parse().unwrap()
}

fn asks(pod: &Value, name: &str) -> Option<i64> {
    let asked = &pod["spec"]["containers"][0]["resources"]["requests"][name];
    (!asked.is_null()).then(|| number(asked))
}

impl Twin {
    fn on(&self, node: &str) -> impl Iterator<Item = &Value> {
        self.pods.values().filter(move |(_, on)| on == node).map(|(pod, _)| pod)
    }

    fn fits(&self, pod: &Value, name: &str) -> bool {
        let node = &self.nodes[name];
        let tolerates = |taint: &Value| {
            pod["spec"]["tolerations"]
                .as_array()
                .is_some_and(|all| all.iter().any(|own| own["key"] == taint["key"]))
        };
        let taints = node["spec"]["taints"].as_array().unwrap();
        let kept_away = taints.iter().any(|taint| taint["effect"] != "PreferNoSchedule" && !tolerates(taint));
        let selector = &pod["spec"]["nodeSelector"]["disk"];
        let wrong_disk = !selector.is_null() && *selector != node["metadata"]["labels"]["disk"];
        let port = |pod: &Value| pod["spec"]["containers"][0]["ports"][0]["hostPort"].clone();
        let port_taken = !port(pod).is_null() && self.on(name).any(|other| port(other) == port(pod));
        let have = |resource: &str| number(&node["status"]["allocatable"][resource]);
        let used =
            |resource: &str| self.on(name).map(|other| asks(other, resource).unwrap_or(0)).sum::<i64>();
        let lacks = ["cpu", "memory", "example.com/gpu"].iter().any(|resource| {
            asks(pod, resource).is_some_and(|amount| used(resource) + amount > have(resource))
        });
        let crowded = i64::try_from(self.on(name).count()).unwrap() + 1 > have("pods");
        node["spec"]["unschedulable"] != true
            && !kept_away
            && !wrong_disk
            && !port_taken
            && !lacks
            && !crowded
    }

    /// The best nodes; empty where none fits.
    fn best(&self, pod: &Value) -> BTreeSet<String> {
        let fitting: Vec<&String> = self.nodes.keys().filter(|name| self.fits(pod, name)).collect();
        let zone_of = |name: &str| {
            self.nodes
                .get(name)
                .map_or(Value::Null, |node| node["metadata"]["labels"]["topology.kubernetes.io/zone"].clone())
        };
        let owner = |pod: &Value| pod["metadata"]["ownerReferences"][0]["uid"].clone();
        let dislikes: Vec<i64> = fitting
            .iter()
            .map(|name| {
                let taints = self.nodes[*name]["spec"]["taints"].as_array().unwrap();
                let tolerated = |taint: &Value| pod["spec"]["tolerations"][0]["key"] == taint["key"];
                taints
                    .iter()
                    .filter(|taint| taint["effect"] == "PreferNoSchedule" && !tolerated(taint))
                    .count() as i64
            })
            .collect();
        let preferences: Vec<i64> = fitting
            .iter()
            .map(|name| {
                let wishes = &pod["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
                if wishes.is_null() {
                    return 0;
                }
                let wanted = &wishes[0]["preference"]["matchExpressions"][0]["values"][0];
                let zone = if zone_of(name) == *wanted { wishes[0]["weight"].as_i64().unwrap() } else { 0 };
                let disk = &self.nodes[*name]["metadata"]["labels"]["disk"];
                zone + if disk != "hdd" { wishes[1]["weight"].as_i64().unwrap() } else { 0 }
            })
            .collect();
        let zones: BTreeSet<String> = fitting
            .iter()
            .map(|name| zone_of(name))
            .filter(|zone| !zone.is_null())
            .map(|zone| zone.to_string())
            .collect();
        let weight = |domains: usize| ((domains + 2) as f64).ln();
        let crowding: Vec<i64> = fitting
            .iter()
            .map(|name| {
                let same = |on: &dyn Fn(&str) -> bool| {
                    self.pods
                        .values()
                        .filter(|(other, place)| owner(other) == owner(pod) && on(place))
                        .count() as f64
                };
                let mut score = 0.0;
                if !self.nodes[*name]["metadata"]["labels"]["kubernetes.io/hostname"].is_null() {
                    score += same(&|place| place == name.as_str()) * weight(fitting.len()) + 2.0;
                }
                if !zone_of(name).is_null() {
                    score += same(&|place| zone_of(place) == zone_of(name)) * weight(zones.len()) + 4.0;
                }
                score.round() as i64
            })
            .collect();
        let (most_dislikes, most_preference) =
            (dislikes.iter().max().copied().unwrap_or(0), preferences.iter().max().copied().unwrap_or(0));
        let (least, most) =
            (crowding.iter().min().copied().unwrap_or(0), crowding.iter().max().copied().unwrap_or(0));
        let mut totals = BTreeMap::new();
        for (index, name) in fitting.iter().enumerate() {
            let tolerated =
                if most_dislikes == 0 { 100 } else { 100 - 100 * dislikes[index] / most_dislikes };
            let preferred = if most_preference == 0 { 0 } else { 100 * preferences[index] / most_preference };
            let spread = match (owner(pod).is_null(), most) {
                (true, _) => 0,
                (false, 0) => 100,
                (false, most) => 100 * (most + least - crowding[index]) / most,
            };
            totals.insert(
                (*name).clone(),
                3 * tolerated + 2 * preferred + 2 * spread + self.resources(pod, name),
            );
        }
        let top = totals.values().max().copied();
        totals.into_iter().filter(|(_, total)| Some(*total) == top).map(|(name, _)| name).collect()
    }

    fn resources(&self, pod: &Value, name: &str) -> i64 {
        let have = |resource: &str| number(&self.nodes[name]["status"]["allocatable"][resource]);
        let least = |resource: &str, unasked: i64| {
            let used: i64 =
                self.on(name).chain([pod]).map(|other| asks(other, resource).unwrap_or(unasked)).sum();
            if used > have(resource) { 0 } else { (have(resource) - used) * 100 / have(resource) }
        };
        let allocated = (least("cpu", 100) + least("memory", 200 << 20)) / 2;
        if pod["spec"]["containers"][0]["resources"]["requests"].as_object().unwrap().is_empty() {
            return allocated;
        }
        let share = |resource: &str| {
            let used: i64 = self.on(name).chain([pod]).map(|other| asks(other, resource).unwrap_or(0)).sum();
            (used as f64 / have(resource) as f64).min(1.0)
        };
        let deviation = ((share("cpu") - share("memory")) / 2.0).abs();
        allocated + ((1.0 - deviation) * 100.0) as i64
    }
}

fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn choices_are_those_of_the_slow_twin() {
    let (mut placed, mut refused) = (0, 0);
    for seed in 1..=400 {
        let mut random = Random(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15));
        let (mut scheduler, mut twin) = (Scheduler::new(&Config::default(), seed), Twin::default());
        let mut now = START;
        for step in 0..60 {
            now += Duration::from_secs(1000);
            match random.below(10) {
                0 | 1 => {
                    let name = format!("n{}", random.below(6));
                    let node = any_node(&mut random, &name);
                    scheduler.node_changed(&typed(&node), now);
                    twin.nodes.insert(name, node);
                }
                2 => {
                    let name = format!("n{}", random.below(6));
                    scheduler.node_removed(&name);
                    twin.nodes.remove(&name);
                }
                3 => {
                    if let Some(name) = twin.pods.keys().next().cloned() {
                        scheduler.pod_removed(&name, now);
                        twin.pods.remove(&name);
                    }
                }
                _ => {
                    let name = format!("p{step}");
                    let pod = any_pod(&mut random, &name);
                    scheduler.pod_changed(&typed(&pod), now);
                    let expected = twin.best(&pod);
                    let plan = scheduler.schedule(1, now);
                    match plan.bindings.first() {
                        Some(binding) if binding.pod == name => {
                            assert!(
                                expected.contains(&binding.node),
                                "seed {seed}, step {step}: {} of {expected:?}",
                                binding.node
                            );
                            twin.pods.insert(name, (pod, binding.node.clone()));
                            placed += 1;
                        }
                        // An older pod's turn came first: it is checked for room only.
                        Some(binding) => {
                            scheduler.pod_removed(&binding.uid.clone(), now);
                            scheduler.pod_removed(&name, now);
                        }
                        None => {
                            let ours = plan.rejected.iter().any(|rejected| rejected.pod.key.name == name);
                            assert!(!ours || expected.is_empty(), "seed {seed}, step {step}: {expected:?}");
                            refused += 1;
                            scheduler.pod_removed(&name, now);
                        }
                    }
                }
            }
            if !random.chance(3) {
                continue;
            }
            // The API shows what was assumed.
            for (name, (pod, node)) in &twin.pods {
                let mut bound = pod.clone();
                bound["spec"]["nodeName"] = json!(node);
                scheduler.pod_changed(&typed(&bound), now);
                assert_eq!(scheduler.snapshot().node_of(name), Some(node.as_str()));
            }
        }
    }
    // The generator makes both happen, often.
    assert!(placed > 4000 && refused > 1000, "{placed} placed, {refused} refused");
}
