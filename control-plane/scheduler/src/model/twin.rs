//! The rules read from plain objects each time, without counters, caches or shared code.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

#[derive(Clone, Default)]
pub(super) struct Twin {
    pub(super) nodes: BTreeMap<String, Value>,
    /// Pods with a node.
    pub(super) pods: BTreeMap<String, (Value, String)>,
    /// Labels by name.
    pub(super) namespaces: BTreeMap<String, Value>,
    /// Pods that wait for a node to be cleared, with the node.
    pub(super) nominated: BTreeMap<String, (Value, String)>,
    pub(super) budgets: Vec<Value>,
    /// Services and ReplicaSets, by kind, namespace and name.
    pub(super) workloads: BTreeMap<[String; 3], Value>,
}

pub(super) fn priority(pod: &Value) -> i64 {
    pod["spec"]["priority"].as_i64().unwrap_or(0)
}

pub(super) fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap()
}

pub(super) fn number(value: &Value) -> i64 {
    let text = value.as_str().unwrap_or("0");
    text.strip_suffix('m').unwrap_or(text).parse().unwrap()
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn asks(pod: &Value, name: &str) -> Option<i64> {
    let asked = &pod["spec"]["containers"][0]["resources"]["requests"][name];
    (!asked.is_null()).then(|| number(asked))
}

/// Whether a label selector matches; one that is not there matches nothing.
pub(super) fn selects(selector: &Value, labels: &Value) -> bool {
    if selector.is_null() {
        return false;
    }
    let equal = |(key, value): (&String, &Value)| labels[key] == *value;
    let holds = |expression: &Value| {
        let label = &labels[expression["key"].as_str().unwrap()];
        match expression["operator"].as_str().unwrap() {
            "In" => list(&expression["values"]).contains(label),
            "NotIn" => !list(&expression["values"]).contains(label),
            "Exists" => !label.is_null(),
            _ => label.is_null(),
        }
    };
    selector["matchLabels"].as_object().is_none_or(|all| all.iter().all(equal))
        && list(&selector["matchExpressions"]).iter().all(holds)
}

impl Twin {
    pub(super) fn on(&self, node: &str) -> impl Iterator<Item = &Value> {
        self.pods.values().filter(move |(_, on)| on == node).map(|(pod, _)| pod)
    }

    pub(super) fn label<'a>(&'a self, node: &str, key: &str) -> &'a Value {
        self.nodes.get(node).map_or(&Value::Null, |node| &node["metadata"]["labels"][key])
    }

    pub(super) fn tolerates(pod: &Value, taint: &Value) -> bool {
        list(&pod["spec"]["tolerations"]).iter().any(|own| own["key"] == taint["key"])
    }

    pub(super) fn selects_node(&self, pod: &Value, name: &str) -> bool {
        let selector = &pod["spec"]["nodeSelector"]["disk"];
        (selector.is_null() || selector == self.label(name, "disk")) && Self::names_node(pod, name)
    }

    fn names_node(pod: &Value, name: &str) -> bool {
        let required =
            &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let field = &required["nodeSelectorTerms"][0]["matchFields"][0];
        field.is_null() || list(&field["values"]).iter().any(|named| named == name)
    }

    /// Why the node cannot run the pod, as the first plugin says it; nothing where it can.
    pub(super) fn reasons(&self, pod: &Value, name: &str) -> Vec<String> {
        let node = &self.nodes[name];
        let one = |text: &str| vec![text.to_owned()];
        if !Self::names_node(pod, name) {
            return one("node(s) didn't satisfy plugin(s) [NodeAffinity]");
        }
        if node["spec"]["unschedulable"] == true {
            return one("node(s) were unschedulable");
        }
        let mut taints = list(&node["spec"]["taints"]).iter();
        if taints.any(|taint| taint["effect"] != "PreferNoSchedule" && !Self::tolerates(pod, taint)) {
            return one("node(s) had untolerated taint(s)");
        }
        if !self.selects_node(pod, name) {
            return one("node(s) didn't match Pod's node affinity/selector");
        }
        let room = self.no_room(pod, name);
        if !room.is_empty() {
            return room;
        }
        if let Some(reason) = self.spread_refuses(pod, name) {
            return one(reason);
        }
        if let Some(reason) = self.affinity_refuses(pod, name) {
            return one(reason);
        }
        let restarts_all = !pod["spec"]["containers"][0]["restartPolicyRules"].is_null();
        let declared = list(&node["status"]["declaredFeatures"]);
        if restarts_all && !declared.iter().any(|one| one == "RestartAllContainersOnContainerExits") {
            return one("node(s) didn't match Pod's required features");
        }
        Vec::new()
    }

    fn no_room(&self, pod: &Value, name: &str) -> Vec<String> {
        let port = |pod: &Value| pod["spec"]["containers"][0]["ports"][0]["hostPort"].clone();
        if !port(pod).is_null() && self.on(name).any(|other| port(other) == port(pod)) {
            return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
        }
        let have = |resource: &str| number(&self.nodes[name]["status"]["allocatable"][resource]);
        let used =
            |resource: &str| self.on(name).map(|other| asks(other, resource).unwrap_or(0)).sum::<i64>();
        let mut reasons = Vec::new();
        if i64::try_from(self.on(name).count()).unwrap() + 1 > have("pods") {
            reasons.push("Too many pods".to_owned());
        }
        for resource in ["cpu", "memory", "example.com/gpu"] {
            if asks(pod, resource).is_some_and(|amount| used(resource) + amount > have(resource)) {
                reasons.push(format!("Insufficient {resource}"));
            }
        }
        reasons
    }

    /// Why the node cannot run the pod, alone or beside those that it is kept for.
    pub(super) fn all_reasons(&self, pod: &Value, node: &str) -> Vec<String> {
        let before = |(other, on): &&(Value, String)| {
            on == node && priority(other) >= priority(pod) && name(other) != name(pod)
        };
        let others: Vec<&(Value, String)> = self.nominated.values().filter(before).collect();
        if others.is_empty() {
            return self.reasons(pod, node);
        }
        let mut beside = self.clone();
        for other in others {
            beside.pods.insert(name(&other.0).to_owned(), other.clone());
        }
        let reasons = beside.reasons(pod, node);
        if reasons.is_empty() { self.reasons(pod, node) } else { reasons }
    }

    pub(super) fn fitting(&self, pod: &Value) -> Vec<String> {
        let fits = |node: &&String| self.all_reasons(pod, node).is_empty();
        let fitting: Vec<String> = self.nodes.keys().filter(fits).cloned().collect();
        // The node that was cleared for the pod comes first.
        match self.nominated.get(name(pod)) {
            Some((_, node)) if fitting.contains(node) => vec![node.clone()],
            _ => fitting,
        }
    }

    pub(super) fn message(&self, pod: &Value) -> String {
        if self.nodes.is_empty() {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for name in self.nodes.keys() {
            self.all_reasons(pod, name)
                .into_iter()
                .for_each(|reason| *counts.entry(reason).or_default() += 1);
        }
        let mut parts: Vec<String> =
            counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        parts.sort();
        format!("0/{} nodes are available: {}.", self.nodes.len(), parts.join(", "))
    }

    /// Scores of the nodes that fit.
    pub(super) fn totals(&self, pod: &Value) -> BTreeMap<String, i64> {
        let fitting = self.fitting(pod);
        let mut totals: Vec<i64> = fitting.iter().map(|name| self.resources(pod, name)).collect();
        let mut add = |weight: i64, scores: Vec<i64>| {
            totals.iter_mut().zip(scores).for_each(|(total, score)| *total += weight * score);
        };
        add(3, self.toleration_scores(pod, &fitting));
        add(2, self.node_affinity_scores(pod, &fitting));
        add(2, self.spread_scores(pod, &fitting));
        add(2, self.affinity_scores(pod, &fitting));
        add(1, fitting.iter().map(|name| self.image_score(pod, name)).collect());
        fitting.into_iter().zip(totals).collect()
    }

    /// The best nodes; empty where none fits.
    pub(super) fn best(&self, pod: &Value) -> BTreeSet<String> {
        let totals = self.totals(pod);
        let top = totals.values().max().copied();
        totals.into_iter().filter(|(_, total)| Some(*total) == top).map(|(name, _)| name).collect()
    }

    fn toleration_scores(&self, pod: &Value, fitting: &[String]) -> Vec<i64> {
        let dislikes = |name: &String| {
            let taints = list(&self.nodes[name]["spec"]["taints"]);
            let disliked =
                |taint: &&Value| taint["effect"] == "PreferNoSchedule" && !Self::tolerates(pod, taint);
            taints.iter().filter(disliked).count() as i64
        };
        let most = fitting.iter().map(dislikes).max().unwrap_or(0);
        fitting.iter().map(|name| if most == 0 { 100 } else { 100 - 100 * dislikes(name) / most }).collect()
    }

    fn node_affinity_scores(&self, pod: &Value, fitting: &[String]) -> Vec<i64> {
        let wishes =
            &pod["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
        if wishes.is_null() {
            return vec![0; fitting.len()];
        }
        let weight = |index: usize| wishes[index]["weight"].as_i64().unwrap();
        let preference = |name: &String| {
            let wanted = &wishes[0]["preference"]["matchExpressions"][0]["values"][0];
            let in_zone = self.label(name, "topology.kubernetes.io/zone") == wanted;
            let on_disk = self.label(name, "disk") != "hdd";
            i64::from(in_zone) * weight(0) + i64::from(on_disk) * weight(1)
        };
        let most = fitting.iter().map(preference).max().unwrap_or(0);
        fitting.iter().map(|name| if most == 0 { 0 } else { 100 * preference(name) / most }).collect()
    }

    fn image_score(&self, pod: &Value, node: &str) -> i64 {
        let size = |node: &Value, image: &str| {
            let images = list(&node["status"]["images"]).iter();
            let mut same = images.filter(|known| known["names"][0] == image);
            same.next().map(|image| image["sizeBytes"].as_f64().unwrap())
        };
        let containers =
            [&pod["spec"]["initContainers"], &pod["spec"]["containers"]].into_iter().flat_map(list);
        let (mut sum, mut count) = (0, 0);
        for container in containers {
            count += 1;
            let image = match container["image"].as_str().unwrap_or("") {
                name if name.contains(':') => name.to_owned(),
                name => format!("{name}:latest"),
            };
            let having = self.nodes.values().filter(|node| size(node, &image).is_some()).count() as f64;
            let here = size(&self.nodes[node], &image).unwrap_or(0.0);
            sum += (here * (having / self.nodes.len() as f64)) as i64;
        }
        let (least, most) = (23 << 20, (1000 << 20) * count);
        100 * (sum.clamp(least, most) - least) / (most - least)
    }

    fn resources(&self, pod: &Value, name: &str) -> i64 {
        let have = |resource: &str| number(&self.nodes[name]["status"]["allocatable"][resource]);
        let least = |resource: &str, unasked: i64| {
            // Init containers ask for nothing, which counts as a little.
            let init = |pod: &Value| if pod["spec"]["initContainers"].is_null() { 0 } else { unasked };
            let scored = |pod: &Value| asks(pod, resource).unwrap_or(unasked).max(init(pod));
            let used: i64 = self.on(name).chain([pod]).map(scored).sum();
            if used > have(resource) { 0 } else { (have(resource) - used) * 100 / have(resource) }
        };
        let allocated = (least("cpu", 100) + least("memory", 200 << 20)) / 2;
        if asks(pod, "cpu").is_none() && asks(pod, "memory").is_none() {
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
