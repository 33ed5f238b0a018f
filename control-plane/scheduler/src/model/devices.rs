//! DynamicResources against a slow twin: every combination of devices, tried in order, on plain objects.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{generate::Random, twin::list, typed};
use crate::{
    config::Config,
    scheduler::Scheduler,
    testing::{node, pod, seeds},
};
use std::time::Duration;

const DRIVER: &str = "d.example.com";

/// Devices that are given out, by pool and name.
type Taken = BTreeSet<(String, String)>;

#[derive(Default)]
struct Twin {
    /// Zones by node.
    nodes: BTreeMap<String, String>,
    slices: BTreeMap<String, Value>,
    taken: Taken,
}

impl Twin {
    fn reaches(&self, slice: &Value, node: &str) -> bool {
        slice["nodeName"] == node
            || slice["allNodes"] == true
            || slice["nodeSelector"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"][0]
                == self.nodes[node].as_str()
    }

    /// Devices for the node in the order in which they are given out, with their pools. Pools of slices that are not
    /// all there, or that are about to be replaced, are none.
    fn devices(&self, node: &str) -> Vec<(String, &Value)> {
        let mut devices = Vec::new();
        for pool in ["p0", "p1", "p2", "p3"] {
            let of_pool = || self.slices.values().filter(|slice| slice["pool"]["name"] == pool);
            let here: Vec<&Value> = of_pool().filter(|slice| self.reaches(slice, node)).collect();
            let generation = |slice: &&Value| slice["pool"]["generation"].as_i64().unwrap();
            let Some(newest) = here.iter().map(generation).max() else { continue };
            let here: Vec<&Value> = here.into_iter().filter(|slice| generation(slice) == newest).collect();
            let expected = here[0]["pool"]["resourceSliceCount"].as_u64().unwrap() as usize;
            if here.len() != expected {
                let replaced = of_pool().any(|slice| generation(&slice) > newest);
                let all = of_pool().filter(|slice| generation(slice) == newest).count();
                if replaced || all != expected {
                    continue;
                }
            }
            let names: Vec<&Value> =
                here.iter().flat_map(|slice| list(&slice["devices"])).map(|device| &device["name"]).collect();
            if names.iter().any(|name| names.iter().filter(|other| *other == name).count() > 1) {
                continue;
            }
            for slice in here {
                devices.extend(list(&slice["devices"]).iter().map(|device| (pool.to_owned(), device)));
            }
        }
        devices
    }

    /// The first set of devices for the claims, one after the other.
    fn solve(&self, node: &str, claims: &[Value]) -> Option<Vec<Vec<(String, String)>>> {
        let devices = self.devices(node);
        let mut wanted = Vec::new();
        for (index, claim) in claims.iter().enumerate() {
            for request in list(&claim["requests"]) {
                wanted.push((index, claim, request));
            }
        }
        let mut picked = Vec::new();
        if !self.next(&devices, &wanted, 0, 0, &mut picked) {
            return None;
        }
        let of = |index: usize| {
            let own = picked.iter().filter(move |(claim, _)| *claim == index);
            own.map(|(_, at): &(usize, usize)| key(&devices[*at])).collect()
        };
        Some((0..claims.len()).map(of).collect())
    }

    fn next(
        &self,
        devices: &[(String, &Value)],
        wanted: &[(usize, &Value, &Value)],
        lacking_from: usize,
        from: usize,
        picked: &mut Vec<(usize, usize)>,
    ) -> bool {
        let Some((claim, spec, request)) = wanted.get(lacking_from) else { return true };
        let before: usize = wanted[..lacking_from].iter().map(|(_, _, request)| count(request)).sum();
        if picked.len() - before == count(request) {
            return self.next(devices, wanted, lacking_from + 1, 0, picked);
        }
        for at in from..devices.len() {
            let (_, device) = &devices[at];
            if self.taken.contains(&key(&devices[at]))
                || picked.iter().any(|(_, other)| *other == at)
                || !chooses(request, device)
            {
                continue;
            }
            picked.push((*claim, at));
            let own: Vec<&Value> =
                picked.iter().filter(|(other, _)| other == claim).map(|(_, at)| devices[*at].1).collect();
            if holds(spec, &own) && self.next(devices, wanted, lacking_from, at + 1, picked) {
                return true;
            }
            picked.pop();
        }
        false
    }
}

fn key((pool, device): &(String, &Value)) -> (String, String) {
    (pool.clone(), device["name"].as_str().unwrap().to_owned())
}

fn count(request: &Value) -> usize {
    request["exactly"]["count"].as_u64().unwrap() as usize
}

/// By the class and by the selectors, whose meaning is written beside them.
fn chooses(request: &Value, device: &Value) -> bool {
    let attribute = |name: &str| &device["attributes"][name];
    let of_class = match request["exactly"]["deviceClassName"].as_str().unwrap() {
        "fast" => attribute("fast")["bool"] == true,
        _ => true,
    };
    let means = list(&request["meaning"]).iter().all(|meaning| match meaning.as_str().unwrap() {
        "red" => attribute("color")["string"] == "red",
        "large" => device["capacity"]["size"]["value"] == "8Gi",
        _ => attribute("color")["string"].is_string(),
    });
    of_class && means && list(&device["taints"]).is_empty()
}

fn holds(claim: &Value, devices: &[&Value]) -> bool {
    list(&claim["constraints"]).iter().all(|constraint| {
        let same = constraint.get("matchAttribute").is_some();
        let colors: Vec<&Value> =
            devices.iter().map(|device| &device["attributes"]["color"]["string"]).collect();
        let distinct: BTreeSet<String> = colors.iter().map(|color| color.to_string()).collect();
        colors.iter().all(|color| color.is_string())
            && if same { distinct.len() <= 1 } else { distinct.len() == colors.len() }
    })
}

fn any_slice(random: &mut Random, name: &str) -> Value {
    let mut devices = Vec::new();
    for index in 0..1 + random.below(5) {
        let unique = if random.chance(25) { "same".to_owned() } else { format!("{name}-{index}") };
        let mut device = json!({
            "name": unique, "attributes": { "fast": { "bool": random.chance(2) } },
            "capacity": { "size": { "value": random.one_of(&["4Gi", "8Gi"]) } },
        });
        if !random.chance(5) {
            device["attributes"]["color"] = json!({ "string": random.one_of(&["red", "blue", "green"]) });
        }
        if random.chance(10) {
            device["taints"] = json!([{ "key": "broken", "effect": "NoSchedule" }]);
        }
        devices.push(device);
    }
    let mut slice = json!({
        "driver": DRIVER, "devices": devices,
        "pool": { "name": format!("p{}", random.below(4)), "generation": 1 + random.below(8) / 7, "resourceSliceCount": 1 + random.below(6) / 5 },
    });
    match random.below(5) {
        0 => slice["allNodes"] = json!(true),
        1 => {
            let zone = json!({ "key": "zone", "operator": "In", "values": [random.one_of(&["a", "b"])] });
            slice["nodeSelector"] = json!({ "nodeSelectorTerms": [{ "matchExpressions": [zone] }] });
        }
        _ => slice["nodeName"] = json!(format!("n{}", random.below(4))),
    }
    slice
}

fn any_claim(random: &mut Random) -> Value {
    let requests: Vec<Value> = (0..=random.below(2))
        .map(|index| {
            let mut request = json!({ "name": format!("r{index}"), "meaning": [], "exactly": {
                "deviceClassName": random.one_of(&["any", "fast"]), "allocationMode": "ExactCount", "count": 1 + random.below(2),
                "selectors": [],
            } });
            let color = format!("device.attributes['{DRIVER}']");
            let expressions = [
                ("red", format!("has({color}.color) && {color}.color == 'red'")),
                ("large", format!("device.capacity['{DRIVER}'].size.isGreaterThan(quantity('5Gi'))")),
                ("coloured", format!("'color' in {color}")),
            ];
            if random.chance(2) {
                let (meaning, expression) = random.one_of(&expressions).clone();
                request["meaning"] = json!([meaning]);
                request["exactly"]["selectors"] = json!([{ "cel": { "expression": expression } }]);
            }
            request
        })
        .collect();
    let mut claim = json!({ "requests": requests });
    if random.chance(3) {
        let kind = random.one_of(&["matchAttribute", "distinctAttribute"]);
        claim["constraints"] = json!([{ *kind: format!("{DRIVER}/color") }]);
    }
    claim
}

#[test]
fn allocations_are_those_of_the_slow_twin() {
    let (mut placed, mut refused) = (0, 0);
    for seed in 1..=seeds() {
        let mut random = Random::new(seed ^ 0xD0D0);
        let mut scheduler = Scheduler::new(&Config::default(), seed);
        let mut twin = Twin::default();
        let class = |name: &str, selectors: Value| {
            typed(&json!({ "metadata": { "name": name }, "spec": { "selectors": selectors } }))
        };
        let fast = format!("device.attributes['{DRIVER}'].fast");
        scheduler.device_class_changed(&class("any", json!([])), Duration::ZERO);
        scheduler
            .device_class_changed(&class("fast", json!([{ "cel": { "expression": fast } }])), Duration::ZERO);
        // What each pod's claims were given.
        let mut given: BTreeMap<String, Taken> = BTreeMap::new();
        for step in 0..60 {
            let now = Duration::from_secs(1000 * step);
            let context = format!("seed {seed}, step {step}");
            match random.below(10) {
                0 | 1 => {
                    let name = format!("n{}", random.below(4));
                    let zone = (*random.one_of(&["a", "b"])).to_owned();
                    scheduler.node_changed(
                        &node(&name, json!({ "metadata": { "labels": { "zone": zone } } })),
                        now,
                    );
                    twin.nodes.insert(name, zone);
                }
                2..=4 => {
                    let name = format!("s{}", random.below(8));
                    if random.chance(8) {
                        scheduler.slice_removed(&name, now);
                        twin.slices.remove(&name);
                    } else {
                        let slice = any_slice(&mut random, &name);
                        let object = json!({ "metadata": { "name": name }, "spec": slice });
                        scheduler.slice_changed(&typed(&object), now);
                        twin.slices.insert(name, slice);
                    }
                }
                5 => {
                    let names: Vec<String> = given.keys().cloned().collect();
                    if !names.is_empty() {
                        let name = random.one_of(&names).clone();
                        // Some claims outlive their pods in the API, and are deleted then.
                        scheduler.pod_removed(&name, now);
                        for index in 0..2 {
                            let key = hawser_api::resource::ObjectKey::new("a", format!("{name}-{index}"));
                            scheduler.device_claim_removed(&key, now);
                        }
                        let back = given.remove(&name).unwrap();
                        twin.taken.retain(|device| !back.contains(device));
                    }
                }
                _ => {
                    let name = format!("p{step}");
                    let claims: Vec<Value> = (0..=random.below(2)).map(|_| any_claim(&mut random)).collect();
                    let object = |index: usize, status: Value| {
                        let mut spec = claims[index].clone();
                        for request in spec["requests"].as_array_mut().unwrap() {
                            request.as_object_mut().unwrap().remove("meaning");
                        }
                        let metadata = json!({ "name": format!("{name}-{index}"), "namespace": "a", "uid": format!("{name}-{index}") });
                        typed(&json!({ "metadata": metadata, "spec": { "devices": spec }, "status": status }))
                    };
                    for index in 0..claims.len() {
                        scheduler.device_claim_changed(&object(index, json!({})), now);
                    }
                    let uses: Vec<Value> = (0..claims.len())
                        .map(|index| json!({ "name": format!("c{index}"), "resourceClaimName": format!("{name}-{index}") }))
                        .collect();
                    scheduler
                        .pod_changed(&pod(&name, json!({ "containers": [], "resourceClaims": uses })), now);
                    let plan = scheduler.schedule(1, now);
                    let fitting: BTreeMap<&String, _> = twin
                        .nodes
                        .keys()
                        .filter_map(|node| Some((node, twin.solve(node, &claims)?)))
                        .collect();
                    let Some(provisioning) = plan.provisionings.first() else {
                        assert!(
                            fitting.is_empty(),
                            "{context}: {:?}, but {fitting:?} for {claims:?}",
                            plan.rejected
                        );
                        scheduler.pod_removed(&name, now);
                        refused += 1;
                        continue;
                    };
                    scheduler.claims_written(&name, now);
                    let expected = fitting.get(&provisioning.decision.binding.node);
                    let mut found = Vec::new();
                    for (index, grant) in provisioning.promises.devices.0.iter().enumerate() {
                        let allocation = grant.allocation.as_ref().unwrap();
                        let results = allocation.devices.as_ref().unwrap().results.as_ref().unwrap();
                        let devices: Vec<(String, String)> = results
                            .iter()
                            .map(|result| (result.pool.clone(), result.device.clone()))
                            .collect();
                        found.push(devices);
                        // The API may show it at once, or not yet.
                        if random.chance(2) {
                            let allocation = serde_json::to_value(&**allocation).unwrap();
                            scheduler.device_claim_changed(
                                &object(index, json!({ "allocation": allocation })),
                                now,
                            );
                        }
                    }
                    assert_eq!(Some(&found), expected, "{context}: {claims:?}");
                    if random.chance(4) {
                        // The binding fails, and what the API does not show is free again.
                        scheduler.bind_refused_for_good(&name, now);
                        for index in 0..claims.len() {
                            let key = hawser_api::resource::ObjectKey::new("a", format!("{name}-{index}"));
                            scheduler.device_claim_removed(&key, now);
                        }
                        continue;
                    }
                    let devices: Taken = found.into_iter().flatten().collect();
                    twin.taken.extend(devices.iter().cloned());
                    given.insert(name, devices);
                    placed += 1;
                }
            }
        }
    }
    // The generator makes both happen, often.
    assert!(placed > 3 * seeds() && refused > seeds(), "{placed} placed, {refused} refused");
}
