//! Extended resources that device classes provide, against a slow twin that counts.
//!
//! Every class is of devices of one kind, so that a node can provide what is asked for where it has enough of them: the twin needs no
//! search. What containers share is worked out from the amounts alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};

use super::{generate::Random, twin::list, typed};
use crate::{
    config::Config,
    devices::Grant,
    scheduler::Scheduler,
    testing::{node, pod, seeds},
};

const KINDS: [&str; 2] = ["a", "b"];
const RESOURCES: [&str; 3] = ["x.com/one", "x.com/two", "deviceclass.resource.kubernetes.io/a"];

#[derive(Default)]
struct Twin {
    /// What nodes have themselves.
    own: BTreeMap<String, BTreeMap<String, i64>>,
    /// Devices by node and kind.
    devices: BTreeMap<(String, String), i64>,
    /// By name: the resource that it names, and when it was made. A class is of the kind of its first letter.
    classes: BTreeMap<String, (Option<String>, u64)>,
    /// Pods with their nodes, and the devices that they were given.
    placed: BTreeMap<String, (Value, String, BTreeMap<String, i64>)>,
}

/// By what is left of the extended resources that the pod asks for, and nothing else.
const BY_WHAT_IS_LEFT: &str = "{apiVersion: kubescheduler.config.k8s.io/v1, kind: KubeSchedulerConfiguration, profiles: [{plugins: \
    {score: {disabled: [{name: '*'}], enabled: [{name: NodeResourcesFit}]}}, pluginConfig: [{name: NodeResourcesFit, args: \
    {scoringStrategy: {type: LeastAllocated, resources: [{name: x.com/one}, {name: x.com/two, weight: 2}, \
    {name: deviceclass.resource.kubernetes.io/a, weight: 3}]}}}]}]}";

impl Twin {
    /// What the node scores by [`BY_WHAT_IS_LEFT`].
    fn score(&self, pod: &Value, node: &str) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        for (resource, weight) in RESOURCES.iter().zip(1..) {
            let asked = in_all(pod, resource);
            let own = self.own[node].get(*resource).copied().unwrap_or(0);
            let on = self.placed.values().filter(|(_, on, _)| on == node);
            let kind = self.class_of(resource).map(|class| class[..1].to_owned()).unwrap_or_default();
            let (have, used): (i64, i64) = if own > 0 {
                (own, on.map(|(other, ..)| in_all(other, resource)).sum())
            } else {
                let devices = self.devices.get(&(node.to_owned(), kind.clone())).copied().unwrap_or(0);
                (devices, on.map(|(.., given)| given.get(&kind).copied().unwrap_or(0)).sum())
            };
            if asked > 0 && have > 0 {
                sum += weight * if used + asked > have { 0 } else { (have - used - asked) * 100 / have };
                weights += weight;
            }
        }
        if weights == 0 { 0 } else { sum / weights }
    }

    fn class_of(&self, resource: &str) -> Option<&String> {
        if let Some(name) = resource.strip_prefix("deviceclass.resource.kubernetes.io/") {
            return self.classes.get_key_value(name).map(|(name, _)| name);
        }
        let named = self.classes.iter().filter(|(_, (names, _))| names.as_deref() == Some(resource));
        let youngest = named.clone().map(|(_, (_, made))| *made).max();
        named.filter(|(_, (_, made))| Some(*made) == youngest).map(|(name, _)| name).min()
    }

    /// What the node would give of each kind of device; `None` where it lacks something.
    fn given(&self, pod: &Value, node: &str) -> Option<BTreeMap<String, i64>> {
        let mut given: BTreeMap<String, i64> = BTreeMap::new();
        for resource in RESOURCES {
            let asked = in_all(pod, resource);
            if asked == 0 {
                continue;
            }
            let own = self.own[node].get(resource).copied().unwrap_or(0);
            match self.class_of(resource).filter(|_| own == 0) {
                Some(class) => *given.entry(class[..1].to_owned()).or_default() += of_devices(pod, resource),
                None => {
                    let on = self.placed.values().filter(|(_, on, _)| on == node);
                    let used: i64 = on.map(|(other, ..)| in_all(other, resource)).sum();
                    if asked > own - used {
                        return None;
                    }
                }
            }
        }
        let left = |kind: &String| {
            let on = self.placed.values().filter(|(_, on, _)| on == node);
            let used: i64 = on.map(|(.., given)| given.get(kind).copied().unwrap_or(0)).sum();
            self.devices.get(&(node.to_owned(), kind.clone())).copied().unwrap_or(0) - used
        };
        given.iter().all(|(kind, count)| *count <= left(kind)).then_some(given)
    }
}

fn asks(container: &Value, resource: &str) -> i64 {
    container["resources"]["requests"][resource].as_str().map_or(0, |text| text.parse().unwrap())
}

fn lasts(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// What a pod asks for as of a node's own resource.
fn in_all(pod: &Value, resource: &str) -> i64 {
    let containers: i64 = list(&pod["containers"]).iter().map(|one| asks(one, resource)).sum();
    let (mut sidecars, mut most) = (0, 0);
    for first in list(&pod["initContainers"]) {
        if lasts(first) {
            sidecars += asks(first, resource);
            most = most.max(sidecars);
        } else {
            most = most.max(sidecars + asks(first, resource));
        }
    }
    most.max(containers + sidecars)
}

/// How many devices it takes: those that last, and what the neediest of the others has not from later ones.
fn of_devices(pod: &Value, resource: &str) -> i64 {
    let first = list(&pod["initContainers"]);
    let mut later: i64 = list(&pod["containers"]).iter().map(|one| asks(one, resource)).sum();
    let mut most = 0;
    for container in first.iter().rev() {
        if lasts(container) {
            later += asks(container, resource);
        } else {
            most = most.max(asks(container, resource) - later);
        }
    }
    later + most
}

fn any_pod(random: &mut Random) -> Value {
    let mut count = 0;
    let mut container = |random: &mut Random, sidecar: bool| {
        count += 1;
        let mut requests = json!({});
        for resource in RESOURCES {
            if random.chance(3) {
                requests[resource] = json!((1 + random.below(2)).to_string());
            }
        }
        let mut container = json!({ "name": format!("c{count}"), "resources": { "requests": requests } });
        if sidecar {
            container["restartPolicy"] = json!("Always");
        }
        container
    };
    let first: Vec<Value> = (0..random.below(3))
        .map(|_| {
            let sidecar = random.chance(2);
            container(random, sidecar)
        })
        .collect();
    let then: Vec<Value> = (0..=random.below(2)).map(|_| container(random, false)).collect();
    json!({ "initContainers": first, "containers": then })
}

/// Every container has what it asks for of what the node does not have itself, and nothing is asked for in vain.
#[track_caller]
fn check_claim(pod: &Value, grant: &Grant, own: &BTreeMap<String, i64>, context: &str) {
    let unmade = grant.unmade.as_ref().unwrap();
    let requests = unmade.claim.spec.devices.as_ref().unwrap().requests.as_ref().unwrap();
    let counts: BTreeMap<&str, i64> = requests
        .iter()
        .map(|request| (&*request.name, request.exactly.as_ref().unwrap().count.unwrap()))
        .collect();
    assert_eq!(counts.len(), requests.len(), "{context}: a name is there twice");
    for container in [&pod["initContainers"], &pod["containers"]].into_iter().flat_map(list) {
        for resource in
            RESOURCES.into_iter().filter(|resource| own.get(*resource).is_none_or(|own| *own == 0))
        {
            let name = container["name"].as_str().unwrap();
            let own = unmade
                .mappings
                .iter()
                .filter(|mapping| mapping.container_name == name && mapping.resource_name == resource);
            let sum: i64 = own.map(|mapping| counts[&*mapping.request_name]).sum();
            assert!(sum >= asks(container, resource), "{context}: {name} has {sum} of {resource} of {pod}");
        }
    }
    let used: BTreeSet<&str> = unmade.mappings.iter().map(|mapping| &*mapping.request_name).collect();
    assert_eq!(used, counts.keys().copied().collect(), "{context}: {pod}");
}

#[test]
fn extended_resources_are_those_of_the_slow_twin() {
    let (mut by_class, mut by_node, mut refused) = (0, 0, 0);
    for seed in 1..=seeds() {
        let mut random = Random::new(seed ^ 0xE5E5);
        let mut scheduler = Scheduler::new(&Config::default().with_file(BY_WHAT_IS_LEFT).unwrap(), seed);
        let mut twin = Twin::default();
        for step in 0..60 {
            let now = Duration::from_secs(1000 * step);
            let context = format!("seed {seed}, step {step}");
            match random.below(10) {
                0 | 1 => {
                    let name = format!("n{}", random.below(3));
                    let mut allocatable = json!({ "cpu": "4", "memory": "8Gi", "pods": "110" });
                    let mut own = BTreeMap::new();
                    for resource in RESOURCES {
                        if random.chance(3) {
                            let amount = random.below(6);
                            allocatable[resource] = json!(amount.to_string());
                            own.insert(resource.to_owned(), amount as i64);
                        }
                    }
                    let object = node(&name, json!({ "status": { "allocatable": allocatable } }));
                    scheduler.node_changed(&object, now);
                    twin.own.insert(name, own);
                }
                2 => {
                    // Two slices, of which each is a pool: devices are only ever added.
                    let (on, kind) = (format!("n{}", random.below(3)), *random.one_of(&KINDS));
                    let count = twin.devices.entry((on.clone(), kind.to_owned())).or_default();
                    *count = (*count + 1 + random.below(3) as i64).min(12);
                    let name = format!("{on}-{kind}");
                    let devices: Vec<Value> = (0..*count)
                        .map(|index| json!({ "name": format!("d{index}"), "attributes": { "kind": { "string": kind } } }))
                        .collect();
                    let pool = json!({ "name": name, "generation": 1, "resourceSliceCount": 1 });
                    let spec = json!({ "driver": "x.com", "nodeName": on, "pool": pool, "devices": devices });
                    scheduler
                        .slice_changed(&typed(&json!({ "metadata": { "name": name }, "spec": spec })), now);
                }
                3 => {
                    let name = *random.one_of(&["a", "aa", "b", "bb"]);
                    if random.chance(3) {
                        scheduler.device_class_removed(name, now);
                        twin.classes.remove(name);
                        continue;
                    }
                    let names =
                        random.one_of(&[Some("x.com/one"), Some("x.com/two"), None]).map(str::to_owned);
                    let made = random.below(3);
                    let kind = format!("device.attributes['x.com'].kind == '{}'", &name[..1]);
                    let mut spec = json!({ "selectors": [{ "cel": { "expression": kind } }] });
                    if let Some(resource) = &names {
                        spec["extendedResourceName"] = json!(resource);
                    }
                    let metadata = json!({ "name": name, "creationTimestamp": format!("2026-01-0{}T00:00:00Z", made + 1) });
                    let class = json!({ "metadata": metadata, "spec": spec });
                    scheduler.device_class_changed(&typed(&class), now);
                    twin.classes.insert(name.to_owned(), (names, made));
                }
                4 => {
                    let names: Vec<String> = twin.placed.keys().cloned().collect();
                    if !names.is_empty() {
                        let name = random.one_of(&names).clone();
                        scheduler.pod_removed(&name, now);
                        scheduler.device_claim_removed(
                            &hawser_api::resource::ObjectKey::new("a", name.as_str()),
                            now,
                        );
                        twin.placed.remove(&name);
                    }
                }
                _ => {
                    let (name, spec) = (format!("p{step}"), any_pod(&mut random));
                    scheduler.pod_changed(&pod(&name, spec.clone()), now);
                    let plan = scheduler.schedule(1, now);
                    let fitting: BTreeMap<String, BTreeMap<String, i64>> = twin
                        .own
                        .keys()
                        .filter_map(|node| Some((node.clone(), twin.given(&spec, node)?)))
                        .collect();
                    let prepared = plan.provisionings.first();
                    let decision = prepared.map(|one| &one.decision).or(plan.bindings.first());
                    let Some(decision) = decision else {
                        assert!(
                            fitting.is_empty(),
                            "{context}: {:?}, but {fitting:?} for {spec}",
                            plan.rejected
                        );
                        scheduler.pod_removed(&name, now);
                        refused += 1;
                        continue;
                    };
                    let node = decision.binding.node.clone();
                    let given = fitting.get(&node).unwrap_or_else(|| panic!("{context}: {node} for {spec}"));
                    let most = fitting.keys().map(|node| twin.score(&spec, node)).max();
                    assert_eq!(
                        Some(twin.score(&spec, &node)),
                        most,
                        "{context}: {node} of {fitting:?} for {spec}"
                    );
                    match prepared.map(|one| &one.promises.devices.0[0]) {
                        None => assert!(given.is_empty(), "{context}: {given:?} for {spec}"),
                        Some(grant) => {
                            check_claim(&spec, grant, &twin.own[&node], &context);
                            scheduler.claims_written(&name, now);
                            let allocation = grant.allocation.as_deref().unwrap();
                            let results = allocation.devices.as_ref().unwrap().results.as_ref().unwrap();
                            let mut found: BTreeMap<String, i64> = BTreeMap::new();
                            for result in results {
                                let kind = result.pool.rsplit('-').next().unwrap();
                                *found.entry(kind.to_owned()).or_default() += 1;
                            }
                            assert_eq!(found, *given, "{context}: {spec}");
                            // The API may show it, or not yet.
                            if random.chance(2) {
                                let mut claim = grant.unmade.as_ref().unwrap().claim.clone();
                                claim.metadata.name = Some(name.clone());
                                claim.metadata.uid = Some(name.clone());
                                claim.status.get_or_insert_default().allocation = Some(allocation.clone());
                                scheduler.device_claim_changed(&claim, now);
                            }
                            by_class += 1;
                        }
                    }
                    by_node +=
                        u64::from(prepared.is_none() && RESOURCES.iter().any(|one| in_all(&spec, one) > 0));
                    twin.placed.insert(name, (spec, node, given.clone()));
                }
            }
        }
    }
    // The generator makes all of it happen, often.
    assert!(
        by_class > seeds() && by_node > seeds() && refused > seeds(),
        "{by_class} by class, {by_node} by node, {refused} refused"
    );
}
