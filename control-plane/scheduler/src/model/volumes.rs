//! VolumeRestrictions, NodeVolumeLimits, VolumeBinding and VolumeZone against a slow twin on plain objects.
//!
//! The API shows what was decided at once, later, or never, as bindings succeed or fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hawser_api::resource::ObjectKey;
use serde_json::{Value, json};

use super::{generate::Random, twin::list, typed};
use crate::{
    config::Config,
    explanation::Verdict,
    scheduler::{Promises, Scheduler},
    testing::{node, seeds},
};

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";
const GIB: i64 = 1 << 30;
const CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
const NO_SPACE: &str = "node(s) did not have enough free storage";
const MISSING: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

#[derive(Default)]
struct Twin {
    /// Labels by name.
    nodes: BTreeMap<String, Value>,
    claims: BTreeMap<String, Value>,
    volumes: BTreeMap<String, Value>,
    classes: BTreeMap<String, Value>,
    /// How many volumes of each driver a node takes.
    limits: BTreeMap<String, BTreeMap<String, usize>>,
    /// Node and volume of each attachment.
    attachments: BTreeMap<String, (String, String)>,
    /// By name: class, zone and bytes.
    capacities: BTreeMap<String, (String, String, i64)>,
    publishes: bool,
    pods: BTreeMap<String, (Value, String)>,
    /// Decided, and not shown yet: volumes of claims, and nodes that volumes are made for.
    promised: BTreeMap<String, String>,
    selected: BTreeMap<String, String>,
}

fn bytes(value: &Value) -> i64 {
    value.as_str().unwrap().strip_suffix("Gi").unwrap().parse::<i64>().unwrap() * GIB
}

/// The claim that a volume of a pod names, and whether it is made for the pod.
fn claim_of(pod: &Value, volume: &Value) -> Option<(String, bool)> {
    if let Some(name) = volume["persistentVolumeClaim"]["claimName"].as_str() {
        return Some((name.to_owned(), false));
    }
    let of_pod =
        || format!("{}-{}", pod["metadata"]["name"].as_str().unwrap(), volume["name"].as_str().unwrap());
    (!volume["ephemeral"].is_null()).then(|| (of_pod(), true))
}

/// Each claim once.
fn claims_of(pod: &Value) -> impl Iterator<Item = (String, bool)> {
    let mut all: Vec<(String, bool)> = Vec::new();
    for claim in list(&pod["spec"]["volumes"]).iter().filter_map(|volume| claim_of(pod, volume)) {
        if !all.contains(&claim) {
            all.push(claim);
        }
    }
    all.into_iter()
}

fn is_bound(claim: &Value) -> bool {
    !claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"].is_null()
        && claim["spec"]["volumeName"].is_string()
}

fn holds(term: &Value, labels: &Value) -> bool {
    list(&term["matchExpressions"]).iter().all(|one| {
        let value = &labels[one["key"].as_str().unwrap()];
        list(&one["values"]).contains(value)
    })
}

impl Twin {
    /// Why no node can have the pod's volumes.
    fn trouble(&self, pod: &Value) -> Option<String> {
        let mut immediate = false;
        for (name, made) in claims_of(pod) {
            let Some(claim) = self.claims.get(&name) else {
                return Some(match made {
                    true => format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                    ),
                    false => format!("persistentvolumeclaim {name:?} not found"),
                });
            };
            if claim["status"]["phase"] == "Lost" {
                let volume = claim["spec"]["volumeName"].as_str().unwrap_or("");
                return Some(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
                ));
            }
            if !claim["metadata"]["deletionTimestamp"].is_null() {
                return Some(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            let pod_name = pod["metadata"]["name"].as_str().unwrap();
            if made && claim["metadata"]["ownerReferences"][0]["uid"] != pod["metadata"]["uid"] {
                return Some(format!("PVC a/{name} was not created for pod a/{pod_name} (pod is not owner)"));
            }
            let class = self.classes.get(claim["spec"]["storageClassName"].as_str().unwrap());
            let waits = class.is_some_and(|class| class["volumeBindingMode"] == "WaitForFirstConsumer");
            immediate |= !is_bound(claim) && (claim["spec"]["volumeName"].is_string() || !waits);
        }
        immediate.then(|| "pod has unbound immediate PersistentVolumeClaims".to_owned())
    }

    /// Why the node cannot have the pod's volumes, as the first plugin says it.
    fn reasons(&self, pod: &Value, node: &str) -> Vec<&'static str> {
        let names: Vec<String> = claims_of(pod).map(|(name, _)| name).collect();
        let exclusive = names.iter().filter(|name| {
            list(&self.claims[*name]["spec"]["accessModes"]).iter().any(|mode| mode == "ReadWriteOncePod")
        });
        let used: Vec<String> =
            self.pods.values().flat_map(|(other, _)| claims_of(other)).map(|(name, _)| name).collect();
        if exclusive.into_iter().any(|name| used.contains(name)) {
            return vec![
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
            ];
        }
        let disk = |volume: &Value| volume["gcePersistentDisk"]["pdName"].as_str().map(str::to_owned);
        let disks = |pod: &Value| -> Vec<(String, bool)> {
            let all = list(&pod["spec"]["volumes"]).iter();
            all.filter_map(|one| Some((disk(one)?, one["gcePersistentDisk"]["readOnly"] == true))).collect()
        };
        let there = || self.pods.values().filter(|(_, on)| on == node).map(|(other, _)| other);
        let clash = |(name, read_only): &(String, bool)| {
            there().flat_map(disks).any(|(other, other_only)| other == *name && !(*read_only && other_only))
        };
        if disks(pod).iter().any(clash) {
            return vec!["node(s) had no available disk"];
        }
        if self.too_many(pod, node) {
            return vec!["node(s) exceed max volume count"];
        }
        let labels = &self.nodes[node];
        let bound = || {
            let bound = names.iter().map(|name| &self.claims[name]).filter(|claim| is_bound(claim));
            bound.map(|claim| claim["spec"]["volumeName"].as_str().unwrap())
        };
        let known = || bound().filter_map(|name| self.volumes.get(name));
        let mut reasons = Vec::new();
        if known().any(|volume| !self.reaches(volume, node)) {
            reasons.push(CONFLICT);
        }
        reasons.extend(self.provide(pod, node).err());
        if bound().any(|name| !self.volumes.contains_key(name)) {
            reasons.push(MISSING);
        }
        let zones =
            || known().map(|volume| &volume["metadata"]["labels"][ZONE]).filter(|zone| zone.is_string());
        let elsewhere = |zone: &Value| {
            !zone.as_str().unwrap().split("__").any(|part| labels[ZONE].as_str() == Some(part))
        };
        if reasons.is_empty() && !labels[ZONE].is_null() && zones().any(elsewhere) {
            reasons.push("node(s) had no available volume zone");
        }
        reasons
    }

    fn reaches(&self, volume: &Value, node: &str) -> bool {
        let required = &volume["spec"]["nodeAffinity"]["required"];
        let mut terms = list(&required["nodeSelectorTerms"]).iter();
        required.is_null() || terms.any(|term| holds(term, &self.nodes[node]))
    }

    /// Driver and handle of what is attached for a pod.
    fn attached(&self, pod: &Value) -> BTreeSet<(String, String)> {
        let mut attached = BTreeSet::new();
        for volume in list(&pod["spec"]["volumes"]) {
            if let Some(disk) = volume["gcePersistentDisk"]["pdName"].as_str() {
                let handle = format!("projects/UNSPECIFIED/zones/UNSPECIFIED/disks/{disk}");
                attached.insert(("pd.csi.storage.gke.io".to_owned(), handle));
            }
            let claim = claim_of(pod, volume).and_then(|(name, _)| self.claims.get(&name));
            let Some(claim) = claim else { continue };
            match claim["spec"]["volumeName"].as_str().and_then(|name| self.volumes.get(name)) {
                Some(volume) => attached.extend(Self::handle(volume)),
                None => {
                    let class = self.classes.get(claim["spec"]["storageClassName"].as_str().unwrap());
                    let driver = match class.and_then(|class| class["provisioner"].as_str()) {
                        Some("kubernetes.io/aws-ebs") => "ebs.csi.aws.com",
                        Some("kubernetes.io/no-provisioner") | None => continue,
                        Some(other) => other,
                    };
                    let name = claim["metadata"]["name"].as_str().unwrap();
                    attached.insert((driver.to_owned(), format!("of {name}")));
                }
            }
        }
        attached
    }

    fn handle(volume: &Value) -> Option<(String, String)> {
        let spec = &volume["spec"];
        if let Some(handle) = spec["csi"]["volumeHandle"].as_str() {
            return Some((spec["csi"]["driver"].as_str().unwrap().to_owned(), handle.to_owned()));
        }
        let id = spec["awsElasticBlockStore"]["volumeID"].as_str()?;
        Some(("ebs.csi.aws.com".to_owned(), id.rsplit('/').next().unwrap().to_owned()))
    }

    fn too_many(&self, pod: &Value, node: &str) -> bool {
        let Some(limits) = self.limits.get(node) else { return false };
        let on = self.pods.values().filter(|(_, on)| on == node);
        let mut there: BTreeSet<(String, String)> = on.flat_map(|(other, _)| self.attached(other)).collect();
        for (_, volume) in self.attachments.values().filter(|(on, _)| on == node) {
            let volume = self.volumes.get(volume).filter(|volume| !volume["spec"]["csi"].is_null());
            there.extend(volume.and_then(Self::handle).map(|(_, handle)| ("d1".to_owned(), handle)));
        }
        let new = self.attached(pod);
        new.difference(&there).any(|(driver, _)| {
            let all = there.union(&new).filter(|(other, _)| other == driver).count();
            limits.get(driver).is_some_and(|limit| all > *limit)
        })
    }

    /// Volumes for claims, and claims that volumes are made for.
    fn provide(
        &self,
        pod: &Value,
        node: &str,
    ) -> Result<(BTreeMap<String, String>, BTreeSet<String>), &'static str> {
        let mut open: Vec<(String, &Value)> = claims_of(pod)
            .map(|(name, _)| (name.clone(), &self.claims[&name]))
            .filter(|(_, claim)| !claim["spec"]["volumeName"].is_string())
            .collect();
        open.sort_by_key(|(_, claim)| bytes(&claim["spec"]["resources"]["requests"]["storage"]));
        let (mut given, mut to_make): (BTreeMap<String, String>, _) = (BTreeMap::new(), Vec::new());
        for (name, claim) in &open {
            let noted = claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].as_str();
            let selected = noted.or(self.selected.get(name).map(String::as_str));
            if selected.is_some_and(|selected| selected != node) {
                return Err(NO_VOLUME);
            }
            let found = match selected {
                None => self.find(name, claim, node, &given),
                Some(_) => None,
            };
            match found {
                Some(volume) => _ = given.insert(volume, name.clone()),
                None => to_make.push((name.clone(), *claim)),
            }
        }
        for (_, claim) in &to_make {
            let name = claim["spec"]["storageClassName"].as_str().unwrap();
            let class = &self.classes[name];
            let zones = &class["allowedTopologies"][0]["matchLabelExpressions"][0]["values"];
            let allowed = zones.is_null() || list(zones).contains(&self.nodes[node][ZONE]);
            if class["provisioner"] == "kubernetes.io/no-provisioner" || !allowed {
                return Err(NO_VOLUME);
            }
            let size = bytes(&claim["spec"]["resources"]["requests"]["storage"]);
            let suffices = |(class, zone, limit): &(String, String, i64)| {
                class == name && self.nodes[node][ZONE] == *zone && *limit >= size
            };
            if self.publishes && class["provisioner"] == "d1" && !self.capacities.values().any(suffices) {
                return Err(NO_SPACE);
            }
        }
        Ok((given, to_make.into_iter().map(|(name, _)| name).collect()))
    }

    fn find(
        &self,
        name: &str,
        claim: &Value,
        node: &str,
        given: &BTreeMap<String, String>,
    ) -> Option<String> {
        if let Some((promised, _)) = self.promised.iter().find(|(_, claim)| *claim == name) {
            return self.reaches(&self.volumes[promised], node).then(|| promised.clone());
        }
        let mode = |object: &Value| object["spec"]["volumeMode"].as_str().unwrap_or("Filesystem").to_owned();
        let size = |volume: &Value| bytes(&volume["spec"]["capacity"]["storage"]);
        let fit = |(volume_name, volume): &(&String, &Value)| {
            volume["spec"]["storageClassName"] == claim["spec"]["storageClassName"]
                && volume["metadata"]["deletionTimestamp"].is_null()
                && !given.contains_key(*volume_name)
                && mode(volume) == mode(claim)
                && size(volume) >= bytes(&claim["spec"]["resources"]["requests"]["storage"])
                && self.promised.get(*volume_name).is_none_or(|other| other == name)
        };
        let fitting: Vec<(&String, &Value)> = self.volumes.iter().filter(fit).collect();
        let made_for = fitting.iter().find(|(_, volume)| {
            let made_for = &volume["spec"]["claimRef"];
            made_for["name"] == name
                && (made_for["uid"].is_null() || made_for["uid"] == claim["metadata"]["uid"])
        });
        if let Some((volume_name, volume)) = made_for {
            return self.reaches(volume, node).then(|| (*volume_name).clone());
        }
        let free = fitting.into_iter().filter(|(_, volume)| {
            let wanted = &claim["spec"]["selector"]["matchLabels"]["kind"];
            let modes = list(&volume["spec"]["accessModes"]);
            volume["spec"]["claimRef"].is_null()
                && volume["status"]["phase"] == "Available"
                && (wanted.is_null() || *wanted == volume["metadata"]["labels"]["kind"])
                && list(&claim["spec"]["accessModes"]).iter().all(|mode| modes.contains(mode))
                && volume["spec"]["volumeAttributesClassName"] == claim["spec"]["volumeAttributesClassName"]
                && self.reaches(volume, node)
        });
        free.min_by_key(|(volume_name, volume)| (size(volume), (*volume_name).clone()))
            .map(|(name, _)| name.clone())
    }
}

fn any_size(random: &mut Random) -> String {
    format!("{}Gi", 1 + random.below(4))
}

fn any_modes(random: &mut Random) -> Value {
    match random.below(6) {
        0 => json!(["ReadWriteMany"]),
        1 => json!(["ReadWriteOnce", "ReadWriteMany"]),
        2 => json!(["ReadWriteOncePod"]),
        _ => json!(["ReadWriteOnce"]),
    }
}

const CLASSES: [&str; 5] = ["local", "late", "zonal", "ebs", "now"];

fn classes() -> Vec<Value> {
    let class = |name: &str, provisioner: &str, mode: &str| json!({ "metadata": { "name": name }, "provisioner": provisioner, "volumeBindingMode": mode });
    let mut zonal = class("zonal", "d1", "WaitForFirstConsumer");
    zonal["allowedTopologies"] = json!([{ "matchLabelExpressions": [{ "key": ZONE, "values": ["b"] }] }]);
    vec![
        class("local", "kubernetes.io/no-provisioner", "WaitForFirstConsumer"),
        class("late", "d1", "WaitForFirstConsumer"),
        zonal,
        class("ebs", "kubernetes.io/aws-ebs", "WaitForFirstConsumer"),
        class("now", "d1", "Immediate"),
    ]
}

fn any_volume(random: &mut Random, name: &str) -> Value {
    let mut volume = json!({
        "metadata": { "name": name, "labels": { "kind": random.one_of(&["x", "y"]) } },
        "spec": {
            "storageClassName": random.one_of(&CLASSES), "accessModes": any_modes(random),
            "capacity": { "storage": any_size(random) },
        },
        "status": { "phase": if random.chance(6) { "Released" } else { "Available" } },
    });
    let term = |key: &str, values: Value| json!({ "matchExpressions": [{ "key": key, "operator": "In", "values": values }] });
    let on_host = |random: &mut Random| term(HOST, json!([format!("n{}", random.below(4))]));
    let terms = match random.below(5) {
        0 => Value::Null,
        1 => json!([term(ZONE, json!([random.one_of(&["a", "b"])]))]),
        2 => json!([on_host(random), on_host(random)]),
        _ => json!([on_host(random)]),
    };
    if !terms.is_null() {
        volume["spec"]["nodeAffinity"] = json!({ "required": { "nodeSelectorTerms": terms } });
    }
    match random.below(3) {
        0 => {
            volume["spec"]["csi"] = json!({ "driver": "d1", "volumeHandle": format!("h{}", random.below(6)) })
        }
        1 => {
            let id = random.one_of(&["aws://a/vol-1", "vol-1", "vol-2"]);
            volume["spec"]["awsElasticBlockStore"] = json!({ "volumeID": id });
        }
        _ => volume["spec"]["local"] = json!({ "path": "/disk" }),
    }
    if random.chance(5) {
        volume["metadata"]["labels"][ZONE] = json!(random.one_of(&["a", "b", "a__b"]));
    }
    if random.chance(6) {
        volume["spec"]["claimRef"] = json!({ "namespace": "a", "name": format!("c{}", random.below(6)) });
        if random.chance(3) {
            volume["spec"]["claimRef"]["uid"] = json!("another");
        }
    }
    if random.chance(8) {
        volume["spec"]["volumeMode"] = json!("Block");
    }
    if random.chance(8) {
        volume["spec"]["volumeAttributesClassName"] = json!("fast");
    }
    if random.chance(12) {
        volume["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    volume
}

fn any_claim(random: &mut Random, name: &str) -> Value {
    let mut claim = json!({
        "metadata": { "name": name, "namespace": "a", "uid": format!("uid-{name}") },
        "spec": {
            "storageClassName": random.one_of(&CLASSES), "accessModes": any_modes(random),
            "resources": { "requests": { "storage": any_size(random) } },
        },
    });
    match random.below(3) {
        0 => {
            claim["spec"]["volumeName"] = json!(format!("v{}", random.below(10)));
            claim["metadata"]["annotations"] = json!({ "pv.kubernetes.io/bind-completed": "yes" });
        }
        1 if random.chance(6) => {
            let node = format!("n{}", random.below(4));
            claim["metadata"]["annotations"] = json!({ "volume.kubernetes.io/selected-node": node });
        }
        _ => (),
    }
    if random.chance(4) {
        claim["spec"]["selector"] = json!({ "matchLabels": { "kind": random.one_of(&["x", "y"]) } });
    }
    if random.chance(10) {
        claim["spec"]["volumeMode"] = json!("Block");
    }
    if random.chance(10) {
        claim["spec"]["volumeAttributesClassName"] = json!("fast");
    }
    if random.chance(25) {
        claim["status"] = json!({ "phase": "Lost" });
    }
    if random.chance(25) {
        claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    claim
}

fn any_pod(random: &mut Random, name: &str) -> Value {
    let mut volumes = Vec::new();
    for index in 0..=random.below(2) {
        let mut volume = json!({ "name": format!("v{index}") });
        match random.below(8) {
            0 => {
                let disk = json!({ "pdName": random.one_of(&["d1", "d2"]), "readOnly": random.chance(2) });
                volume["gcePersistentDisk"] = disk;
            }
            1 => volume["ephemeral"] = json!({}),
            _ => volume["persistentVolumeClaim"] = json!({ "claimName": format!("c{}", random.below(6)) }),
        }
        volumes.push(volume);
    }
    let metadata = json!({ "name": name, "namespace": "a", "uid": name });
    json!({ "metadata": metadata, "spec": { "preemptionPolicy": "Never", "containers": [{ "name": "c" }], "volumes": volumes } })
}

/// Scheduler and twin, and pods of which the outcome is open.
struct Pair {
    scheduler: Scheduler,
    twin: Twin,
    open: BTreeMap<String, (Promises, String)>,
    now: Duration,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut pair = Self {
            scheduler: Scheduler::new(&Config::default(), seed),
            twin: Twin::default(),
            open: BTreeMap::new(),
            now: Duration::ZERO,
        };
        for class in classes() {
            pair.scheduler.class_changed(&typed(&class), pair.now);
            pair.twin.classes.insert(class["metadata"]["name"].as_str().unwrap().to_owned(), class);
        }
        pair
    }

    fn put_claim(&mut self, claim: Value) {
        self.scheduler.claim_changed(&typed(&claim), self.now);
        let name = claim["metadata"]["name"].as_str().unwrap().to_owned();
        let noted = &claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"];
        if is_bound(&claim) || !noted.is_null() {
            self.twin.selected.remove(&name);
        }
        self.twin.claims.insert(name, claim);
    }

    fn put_volume(&mut self, volume: Value) {
        self.scheduler.volume_changed(&typed(&volume), self.now);
        let name = volume["metadata"]["name"].as_str().unwrap().to_owned();
        if !volume["spec"]["claimRef"].is_null() {
            self.twin.promised.remove(&name);
        }
        self.twin.volumes.insert(name, volume);
    }

    /// Something happens that is none of the scheduler's doing.
    fn change(&mut self, random: &mut Random) {
        match random.below(12) {
            0 | 1 => {
                let name = format!("n{}", random.below(4));
                let mut labels = json!({ HOST: name });
                if !random.chance(4) {
                    labels[ZONE] = json!(random.one_of(&["a", "b"]));
                }
                let object = node(&name, json!({ "metadata": { "labels": labels } }));
                self.scheduler.node_changed(&object, self.now);
                self.twin
                    .nodes
                    .insert(name, serde_json::to_value(&object).unwrap()["metadata"]["labels"].take());
            }
            2 => {
                let name = format!("n{}", random.below(4));
                let mut limits = BTreeMap::new();
                for driver in ["d1", "ebs.csi.aws.com", "pd.csi.storage.gke.io"] {
                    if !random.chance(3) {
                        limits.insert(driver.to_owned(), usize::try_from(random.below(4)).unwrap());
                    }
                }
                let drivers: Vec<Value> = limits
                    .iter()
                    .map(|(name, count)| json!({ "name": name, "nodeID": "n", "allocatable": { "count": count } }))
                    .collect();
                let object = json!({ "metadata": { "name": name }, "spec": { "drivers": drivers } });
                self.scheduler.csi_node_changed(&typed(&object), self.now);
                self.twin.limits.insert(name, limits);
            }
            3 => {
                let name = format!("a{}", random.below(4));
                if random.chance(3) {
                    self.scheduler.attachment_removed(&name, self.now);
                    self.twin.attachments.remove(&name);
                    return;
                }
                let (node, volume) = (format!("n{}", random.below(4)), format!("v{}", random.below(10)));
                let source = json!({ "persistentVolumeName": volume });
                let spec = json!({ "attacher": "d1", "nodeName": node, "source": source });
                let attachment = json!({ "metadata": { "name": name }, "spec": spec });
                self.scheduler.attachment_changed(&typed(&attachment), self.now);
                self.twin.attachments.insert(name, (node, volume));
            }
            4 => {
                let name = format!("s{}", random.below(4));
                let (class, zone) = (*random.one_of(&["late", "zonal"]), *random.one_of(&["a", "b"]));
                let size = 1 + random.below(4) as i64;
                let object = json!({
                    "metadata": { "name": name, "namespace": "d" }, "storageClassName": class,
                    "capacity": format!("{size}Gi"), "nodeTopology": { "matchLabels": { ZONE: zone } },
                });
                self.scheduler.capacity_changed(&typed(&object), self.now);
                self.twin.capacities.insert(name, (class.to_owned(), zone.to_owned(), size * GIB));
            }
            5 => {
                self.twin.publishes = random.chance(2);
                let spec = json!({ "storageCapacity": self.twin.publishes });
                self.scheduler
                    .driver_changed(&typed(&json!({ "metadata": { "name": "d1" }, "spec": spec })), self.now);
            }
            6 => {
                let names: Vec<String> =
                    self.twin.pods.keys().filter(|name| !self.open.contains_key(*name)).cloned().collect();
                if !names.is_empty() {
                    let name = random.one_of(&names);
                    self.scheduler.pod_removed(name, self.now);
                    self.twin.pods.remove(name);
                }
            }
            7 | 8 => {
                let name = format!("c{}", random.below(6));
                // What a pod that is being bound waits for stays as it is.
                let in_use = self
                    .open
                    .values()
                    .any(|(promises, _)| promises.volumes.wait_for.iter().any(|key| key.name == name));
                if !in_use && random.chance(5) {
                    self.scheduler.claim_removed(&ObjectKey::new("a", name.as_str()));
                    self.twin.claims.remove(&name);
                    self.twin.selected.remove(&name);
                } else if !in_use {
                    self.put_claim(any_claim(random, &name));
                }
            }
            _ => {
                let name = format!("v{}", random.below(10));
                if self.twin.promised.contains_key(&name) {
                    return;
                }
                if random.chance(6) {
                    self.scheduler.volume_removed(&name);
                    self.twin.volumes.remove(&name);
                } else {
                    self.put_volume(any_volume(random, &name));
                }
            }
        }
    }

    /// What was decided of a pod comes true, or comes to nothing.
    fn settle(&mut self, random: &mut Random) {
        let names: Vec<String> = self.open.keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        let name = random.one_of(&names).clone();
        let (promises, node) = self.open.remove(&name).unwrap();
        // Another pod with the claim failed, and took the promise with it.
        let is_lost = |(volume, claim): &(String, ObjectKey)| {
            let shown = self.twin.volumes.get(volume).map(|volume| &volume["spec"]["claimRef"]["name"]);
            self.twin.promised.get(volume) != Some(&claim.name)
                && shown.is_none_or(|shown| *shown != claim.name)
        };
        if random.chance(3) || promises.volumes.volumes.iter().any(is_lost) {
            self.scheduler.bind_refused_for_good(&name, self.now);
            self.twin.pods.remove(&name);
            for (volume, claim) in &promises.volumes.volumes {
                if self.twin.promised.get(volume) == Some(&claim.name) {
                    self.twin.promised.remove(volume);
                }
            }
            for claim in &promises.volumes.provisioned {
                self.twin.selected.remove(&claim.name);
            }
            return;
        }
        let mut bound: Vec<(String, String)> = promises
            .volumes
            .volumes
            .iter()
            .map(|(volume, claim)| (volume.clone(), claim.name.clone()))
            .collect();
        for claim in &promises.volumes.provisioned {
            let volume = format!("made-{}", claim.name);
            let class = self.twin.claims[&claim.name]["spec"]["storageClassName"].clone();
            let csi = json!({ "driver": "d1", "volumeHandle": volume });
            let spec = json!({
                "storageClassName": class, "csi": csi, "capacity": { "storage": "9Gi" }, "accessModes": [],
            });
            self.put_volume(
                json!({ "metadata": { "name": volume }, "spec": spec, "status": { "phase": "Bound" } }),
            );
            bound.push((volume, claim.name.clone()));
        }
        for (volume, claim) in bound {
            let mut object = self.twin.volumes[&volume].clone();
            object["spec"]["claimRef"] =
                json!({ "namespace": "a", "name": claim, "uid": format!("uid-{claim}") });
            self.put_volume(object);
            let mut object = self.twin.claims[&claim].clone();
            object["spec"]["volumeName"] = json!(volume);
            object["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
            self.put_claim(object);
        }
        let mut shown = self.twin.pods[&name].0.clone();
        shown["spec"]["nodeName"] = json!(node);
        self.scheduler.pod_changed(&typed(&shown), self.now);
    }

    /// Schedules a pod and compares. True where it has a node.
    fn schedule(&mut self, name: &str, object: Value, context: &str) -> bool {
        let trouble = self.twin.trouble(&object);
        let reasons: BTreeMap<String, Vec<&str>> = match trouble {
            Some(_) => BTreeMap::new(),
            None => {
                self.twin.nodes.keys().map(|node| (node.clone(), self.twin.reasons(&object, node))).collect()
            }
        };
        let explained = self.scheduler.explain(&typed(&object));
        let found: BTreeMap<String, Vec<String>> = explained
            .nodes
            .into_iter()
            .map(|node| match node.verdict {
                Verdict::Fits { .. } => (node.node, Vec::new()),
                Verdict::Refused { reasons, .. } => (node.node, reasons),
            })
            .collect();
        let as_text = |(node, reasons): (&String, &Vec<&str>)| {
            (node.clone(), reasons.iter().map(|reason| (*reason).to_owned()).collect())
        };
        assert_eq!(found, reasons.iter().map(as_text).collect(), "{context}: {object}");
        self.scheduler.pod_changed(&typed(&object), self.now);
        let plan = self.scheduler.schedule(1, self.now);
        let prepared = plan.provisionings.first();
        let Some(decision) = prepared.map(|one| &one.decision).or(plan.bindings.first()) else {
            let nodes = self.twin.nodes.len();
            if let Some(trouble) = trouble.filter(|_| nodes > 0) {
                let told = plan.rejected[0].message.split(" preemption: ").next().unwrap();
                assert_eq!(told, format!("0/{nodes} nodes are available: {trouble}."), "{context}");
            }
            self.scheduler.pod_removed(name, self.now);
            return false;
        };
        let node = decision.binding.node.clone();
        assert_eq!(reasons[&node], Vec::<&str>::new(), "{context}: {node} for {object}");
        let (given, made) = self.twin.provide(&object, &node).unwrap();
        if let Some(prepared) = prepared {
            let volumes = &prepared.promises.volumes;
            let found: BTreeMap<String, String> =
                volumes.volumes.iter().map(|(volume, claim)| (volume.clone(), claim.name.clone())).collect();
            assert_eq!(found, given, "{context}: {object}");
            let found: BTreeSet<String> =
                volumes.provisioned.iter().map(|claim| claim.name.clone()).collect();
            assert_eq!(found, made, "{context}: {object}");
            self.open.insert(name.to_owned(), (prepared.promises.clone(), node.clone()));
        } else {
            assert!(given.is_empty() && made.is_empty(), "{context}: {given:?} and {made:?} for {object}");
        }
        self.twin.promised.extend(given);
        self.twin.selected.extend(made.into_iter().map(|claim| (claim, node.clone())));
        self.twin.pods.insert(name.to_owned(), (object, node));
        true
    }
}

#[test]
fn volumes_are_those_of_the_slow_twin() {
    let (mut placed, mut refused) = (0, 0);
    for seed in 1..=seeds() {
        let mut random = Random::new(seed ^ 0x701E);
        let mut pair = Pair::new(seed);
        for step in 0..80 {
            pair.now += Duration::from_secs(1000);
            let context = format!("seed {seed}, step {step}");
            match random.below(10) {
                0..=5 => pair.change(&mut random),
                6 => pair.settle(&mut random),
                _ => {
                    let name = format!("p{step}");
                    let object = any_pod(&mut random, &name);
                    if random.chance(2) {
                        // A controller makes what is to be made for the pod.
                        for (claim, made) in claims_of(&object) {
                            if made {
                                let mut claim = any_claim(&mut random, &claim);
                                let owner = if random.chance(8) { "another" } else { &name };
                                claim["metadata"]["ownerReferences"] = json!([{ "apiVersion": "v1", "kind": "Pod", "name": name, "uid": owner, "controller": true }]);
                                pair.put_claim(claim);
                            }
                        }
                    }
                    let done = pair.schedule(&name, object, &context);
                    (placed, refused) = (placed + u64::from(done), refused + u64::from(!done));
                }
            }
        }
    }
    assert!(placed > 2 * seeds() && refused > 5 * seeds(), "{placed} placed, {refused} refused");
}
