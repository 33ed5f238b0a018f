//! The rules read from plain objects each time, without counters, caches or shared code.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::rules::Rules;

#[derive(Clone, Default)]
pub(super) struct Twin {
    pub(super) rules: Rules,
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

/// Pods of whichever name are taken, but those that nodes are kept for take their room here.
const RESOURCES: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "example.com/gpu"];

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

/// What a pod takes of a resource; with `filled`, containers that ask for nothing count as a little.
pub(super) fn asks(pod: &Value, resource: &str, filled: bool) -> i64 {
    let little = match resource {
        "cpu" if filled => 100,
        "memory" if filled => 200 << 20,
        _ => 0,
    };
    let of = |container: &Value| {
        let asked = &container["resources"]["requests"][resource];
        if asked.is_null() { little } else { number(asked) }
    };
    let spec = &pod["spec"];
    let (mut beside, mut most) = (0, 0);
    for first in list(&spec["initContainers"]) {
        if first["restartPolicy"] == "Always" {
            beside += of(first);
            most = most.max(beside);
        } else {
            most = most.max(beside + of(first));
        }
    }
    let together: i64 = list(&spec["containers"]).iter().map(of).sum();
    let whole = &spec["resources"]["requests"][resource];
    let asked = if whole.is_null() { most.max(beside + together) } else { number(whole) };
    asked + number(&spec["overhead"][resource])
}

/// Whether a label selector matches; one that is not there matches nothing.
pub(super) fn selects(selector: &Value, labels: &Value) -> bool {
    if selector.is_null() {
        return false;
    }
    let equal = |(key, value): (&String, &Value)| labels[key] == *value;
    selector["matchLabels"].as_object().is_none_or(|all| all.iter().all(equal))
        && list(&selector["matchExpressions"])
            .iter()
            .all(|expression| holds(expression, &labels[expression["key"].as_str().unwrap()]))
}

/// Whether an expression holds of a value, which may be none.
fn holds(expression: &Value, value: &Value) -> bool {
    let values = list(&expression["values"]);
    let numbers = || {
        let number = |value: &Value| value.as_str().and_then(|text| text.parse::<i64>().ok());
        Some((number(value)?, number(&values[0])?))
    };
    match expression["operator"].as_str().unwrap() {
        "In" => values.contains(value),
        "NotIn" => !values.contains(value),
        "Exists" => !value.is_null(),
        "DoesNotExist" => value.is_null(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        _ => numbers().is_some_and(|(value, bound)| value < bound),
    }
}

/// The ports of its node that a pod takes: protocol, number and address.
fn ports(pod: &Value) -> Vec<(&str, i64, &str)> {
    let lasts = |container: &&Value| container["restartPolicy"] == "Always";
    let sidecars = list(&pod["spec"]["initContainers"]).iter().filter(lasts);
    let all = list(&pod["spec"]["containers"]).iter().chain(sidecars);
    all.flat_map(|container| list(&container["ports"]))
        .filter(|port| !port["hostPort"].is_null())
        .map(|port| {
            let ip = port["hostIP"].as_str().unwrap_or("0.0.0.0");
            (port["protocol"].as_str().unwrap(), port["hostPort"].as_i64().unwrap(), ip)
        })
        .collect()
}

impl Twin {
    pub(super) fn on(&self, node: &str) -> impl Iterator<Item = &Value> {
        self.pods.values().filter(move |(_, on)| on == node).map(|(pod, _)| pod)
    }

    pub(super) fn label<'a>(&'a self, node: &str, key: &str) -> &'a Value {
        self.nodes.get(node).map_or(&Value::Null, |node| &node["metadata"]["labels"][key])
    }

    pub(super) fn tolerates(pod: &Value, taint: &Value) -> bool {
        list(&pod["spec"]["tolerations"]).iter().any(|own| {
            let exists = own["operator"] == "Exists";
            (own["effect"].is_null() || own["effect"] == taint["effect"])
                && (own["key"] == taint["key"] || (own["key"].is_null() && exists))
                && (exists || own["value"] == taint["value"])
        })
    }

    /// Whether a term of node affinity holds; one without requirements never does.
    fn term_holds(&self, term: &Value, node: &str) -> bool {
        let (labels, fields) = (list(&term["matchExpressions"]), list(&term["matchFields"]));
        let name = Value::from(node);
        !(labels.is_empty() && fields.is_empty())
            && labels.iter().all(|one| holds(one, self.label(node, one["key"].as_str().unwrap())))
            && fields.iter().all(|one| holds(one, &name))
    }

    /// Whether required node affinity allows the node.
    fn allows(&self, affinity: &Value, node: &str) -> bool {
        let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"];
        let terms = list(&required["nodeSelectorTerms"]);
        required.is_null() || terms.iter().any(|term| self.term_holds(term, node))
    }

    /// Whether the pod's own selectors allow the node.
    pub(super) fn selects_node(&self, pod: &Value, name: &str) -> bool {
        let selector = &pod["spec"]["nodeSelector"]["disk"];
        (selector.is_null() || selector == self.label(name, "disk"))
            && self.allows(&pod["spec"]["affinity"]["nodeAffinity"], name)
    }

    /// Where all terms name nodes, whether this is one of them.
    fn names_node(pod: &Value, node: &str) -> bool {
        let required =
            &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let terms = list(&required["nodeSelectorTerms"]);
        let names = |term: &Value| {
            let mut fields = list(&term["matchFields"]).iter().filter(|field| field["operator"] == "In");
            fields.next().map(|field| list(&field["values"]).iter().any(|value| value == node))
        };
        let named: Option<Vec<bool>> = terms.iter().map(names).collect();
        required.is_null() || named.is_none_or(|named| named.contains(&true))
    }

    /// Why the node cannot run the pod, as the first plugin says it; nothing where it can.
    pub(super) fn reasons(&self, pod: &Value, name: &str) -> Vec<String> {
        let node = &self.nodes[name];
        let one = |text: &str| vec![text.to_owned()];
        if !Self::names_node(pod, name) {
            return one("node(s) didn't satisfy plugin(s) [NodeAffinity]");
        }
        let cordoned = serde_json::json!({ "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "value": "" });
        if node["spec"]["unschedulable"] == true && !Self::tolerates(pod, &cordoned) {
            return one("node(s) were unschedulable");
        }
        let mut taints = list(&node["spec"]["taints"]).iter();
        if taints.any(|taint| taint["effect"] != "PreferNoSchedule" && !Self::tolerates(pod, taint)) {
            return one("node(s) had untolerated taint(s)");
        }
        if !self.allows(&self.rules.added, name) {
            return one("node(s) didn't match scheduler-enforced node affinity");
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
        let containers =
            [&pod["spec"]["initContainers"], &pod["spec"]["containers"]].into_iter().flat_map(list);
        let restarts_all = containers.into_iter().any(|container| !container["restartPolicyRules"].is_null());
        let declared = list(&node["status"]["declaredFeatures"]);
        if restarts_all && !declared.iter().any(|one| one == "RestartAllContainersOnContainerExits") {
            return one("node(s) didn't match Pod's required features");
        }
        Vec::new()
    }

    fn no_room(&self, pod: &Value, name: &str) -> Vec<String> {
        let taken: Vec<_> = self.on(name).flat_map(ports).collect();
        let any = "0.0.0.0";
        let conflicts = |(protocol, number, ip): &(&str, i64, &str)| {
            taken.iter().any(|(other, other_number, other_ip)| {
                protocol == other
                    && number == other_number
                    && (ip == other_ip || *ip == any || *other_ip == any)
            })
        };
        if ports(pod).iter().any(conflicts) {
            return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
        }
        let have = |resource: &str| number(&self.nodes[name]["status"]["allocatable"][resource]);
        let used = |resource: &str| self.on(name).map(|other| asks(other, resource, false)).sum::<i64>();
        let mut reasons = Vec::new();
        if i64::try_from(self.on(name).count()).unwrap() + 1 > have("pods") {
            reasons.push("Too many pods".to_owned());
        }
        for resource in RESOURCES {
            let asked = asks(pod, resource, false);
            if asked > 0 && used(resource) + asked > have(resource) {
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
        self.totals_among(pod, self.fitting(pod))
    }

    /// Scores of these nodes, measured against each other.
    pub(super) fn totals_among(&self, pod: &Value, nodes: Vec<String>) -> BTreeMap<String, i64> {
        let of_each =
            |score: &dyn Fn(&str) -> i64| nodes.iter().map(|name| score(name)).collect::<Vec<i64>>();
        let scores = [
            of_each(&|node| self.allocated(pod, node)),
            of_each(&|node| self.balanced(pod, node)),
            self.toleration_scores(pod, &nodes),
            self.node_affinity_scores(pod, &nodes),
            self.spread_scores(pod, &nodes),
            self.affinity_scores(pod, &nodes),
            of_each(&|node| self.image_score(pod, node)),
        ];
        let mut totals = vec![0; nodes.len()];
        for (weight, scores) in self.rules.weights.into_iter().zip(scores) {
            totals.iter_mut().zip(scores).for_each(|(total, score)| *total += weight * score);
        }
        nodes.into_iter().zip(totals).collect()
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
        let preference = |node: &String| -> i64 {
            let affinities = [&pod["spec"]["affinity"]["nodeAffinity"], &self.rules.added];
            let wishes = affinities
                .into_iter()
                .flat_map(|affinity| list(&affinity["preferredDuringSchedulingIgnoredDuringExecution"]));
            let met = wishes.filter(|wish| self.term_holds(&wish["preference"], node));
            met.map(|wish| wish["weight"].as_i64().unwrap()).sum()
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

    /// What the node has of a resource, and what would be taken of it; `None` where it does not count.
    fn shares(&self, pod: &Value, node: &str, resource: &str, filled: bool) -> Option<(i64, i64)> {
        let have = number(&self.nodes[node]["status"]["allocatable"][resource]);
        let asked = asks(pod, resource, filled);
        let counts = have > 0 && (asked > 0 || !resource.contains('/'));
        let used = || self.on(node).map(|other| asks(other, resource, filled)).sum::<i64>() + asked;
        counts.then(|| (have, used()))
    }

    fn allocated(&self, pod: &Value, node: &str) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        for (resource, weight) in &self.rules.compared {
            let Some((have, used)) = self.shares(pod, node, resource, true) else { continue };
            let score = match self.rules.strategy.as_str() {
                Some("LeastAllocated") if used > have => 0,
                Some("LeastAllocated") => (have - used) * 100 / have,
                Some(_) => used.min(have) * 100 / have,
                None => match self.along(if used > have { 100 } else { used * 100 / have }) {
                    0 => continue,
                    score => score,
                },
            };
            sum += score * weight;
            weights += weight;
        }
        match weights {
            0 => 0,
            _ if self.rules.strategy.is_array() => (sum as f64 / weights as f64).round() as i64,
            _ => sum / weights,
        }
    }

    /// The score of a used percentage on the line through the points.
    fn along(&self, used: i64) -> i64 {
        let point = |index: usize, part: usize| self.rules.strategy[index][part].as_i64();
        let mut index = 0;
        while let Some(right) = point(index, 0) {
            let score = |index: usize| point(index, 1).unwrap() * 10;
            if used <= right {
                let Some(before) = index.checked_sub(1) else { return score(0) };
                let left = point(before, 0).unwrap();
                return score(before) + (score(index) - score(before)) * (used - left) / (right - left);
            }
            index += 1;
        }
        point(index - 1, 1).unwrap() * 10
    }

    fn balanced(&self, pod: &Value, node: &str) -> i64 {
        if self.rules.balanced.iter().all(|resource| asks(pod, resource, false) == 0) {
            return 0;
        }
        let shares = self.rules.balanced.iter().filter_map(|resource| {
            let (have, used) = self.shares(pod, node, resource, false)?;
            Some((used as f64 / have as f64).min(1.0))
        });
        let shares: Vec<f64> = shares.collect();
        let deviation = match shares[..] {
            [] | [_] => 0.0,
            [one, other] => ((one - other) / 2.0_f64).abs(),
            _ => {
                let mean = shares.iter().sum::<f64>() / shares.len() as f64;
                let squares = shares.iter().map(|share| (share - mean) * (share - mean));
                (squares.sum::<f64>() / shares.len() as f64).sqrt()
            }
        };
        ((1.0 - deviation) * 100.0) as i64
    }
}
