//! PodTopologySpread in the twin.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::twin::{Twin, list, selects};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

impl Twin {
    /// Constraints of one kind, with what each key of `matchLabelKeys` adds; those of the cluster where the pod has none.
    fn constraints(&self, pod: &Value, action: &str) -> Vec<Value> {
        let own = list(&pod["spec"]["topologySpreadConstraints"]);
        if own.is_empty() {
            let upstreams = json!([
                { "topologyKey": HOSTNAME, "maxSkew": 3, "whenUnsatisfiable": "ScheduleAnyway" },
                { "topologyKey": ZONE, "maxSkew": 5, "whenUnsatisfiable": "ScheduleAnyway" },
            ]);
            let listed = &self.rules.constraints;
            let all = list(if listed.is_null() { &upstreams } else { listed }).iter();
            let mut some: Vec<Value> =
                all.filter(|one| one["whenUnsatisfiable"] == action).cloned().collect();
            some.iter_mut().for_each(|one| one["default"] = json!(true));
            return if self.workload(pod).is_empty() { Vec::new() } else { some };
        }
        let mut some: Vec<Value> =
            own.iter().filter(|one| one["whenUnsatisfiable"] == action).cloned().collect();
        for constraint in &mut some {
            for key in list(&constraint["matchLabelKeys"].clone()) {
                let value = &pod["metadata"]["labels"][key.as_str().unwrap()];
                if !value.is_null() {
                    constraint["labelSelector"]["matchLabels"][key.as_str().unwrap()] = value.clone();
                }
            }
        }
        some
    }

    /// What selects the pods that the constraint is about: each has to.
    fn about_whom(&self, pod: &Value, constraint: &Value) -> Vec<Value> {
        match &constraint["default"] {
            Value::Null => vec![constraint["labelSelector"].clone()],
            _ => self.workload(pod),
        }
    }

    /// What selects the pods of the pod's workload: each has to. None where it is of no workload.
    fn workload(&self, pod: &Value) -> Vec<Value> {
        let metadata = &pod["metadata"];
        let is_near = |[_, namespace, _]: &[String; 3]| metadata["namespace"] == *namespace;
        let near = || self.workloads.iter().filter(|(key, _)| is_near(key));
        let mut selectors = Vec::new();
        for (_, service) in near().filter(|([kind, ..], _)| kind == "Service") {
            let selector = json!({ "matchLabels": service["spec"]["selector"] });
            let is_any = service["spec"]["selector"].as_object().is_some_and(|labels| !labels.is_empty());
            if is_any && selects(&selector, &metadata["labels"]) {
                selectors.push(selector);
            }
        }
        let owner = &metadata["ownerReferences"][0]["name"];
        for (_, set) in near().filter(|([kind, _, name], _)| kind == "ReplicaSet" && owner == name) {
            if set["spec"]["selector"].as_object().is_some_and(|selector| !selector.is_empty()) {
                selectors.push(set["spec"]["selector"].clone());
            }
        }
        selectors
    }

    /// Pods on the node that the constraint is about.
    fn counted(&self, pod: &Value, constraint: &Value, node: &str) -> i64 {
        let selectors = self.about_whom(pod, constraint);
        let counts = |other: &&Value| {
            other["metadata"]["namespace"] == pod["metadata"]["namespace"]
                && selectors.iter().all(|selector| selects(selector, &other["metadata"]["labels"]))
                && other["metadata"]["deletionTimestamp"].is_null()
        };
        self.on(node).filter(counts).count() as i64
    }

    /// Whether the node takes part in the constraint, as its policies say.
    fn takes_part(&self, pod: &Value, constraint: &Value, node: &str) -> bool {
        let honors = |field: &str, default: &str| constraint[field].as_str().unwrap_or(default) == "Honor";
        let taints = list(&self.nodes[node]["spec"]["taints"]);
        let tolerated =
            taints.iter().all(|taint| taint["effect"] == "PreferNoSchedule" || Self::tolerates(pod, taint));
        (!honors("nodeAffinityPolicy", "Honor") || self.selects_node(pod, node))
            && (!honors("nodeTaintsPolicy", "Ignore") || tolerated)
    }

    /// Counts by value of the key, over the nodes that take part and have all keys.
    fn domains(&self, pod: &Value, constraint: &Value, keys: &[&str]) -> BTreeMap<String, i64> {
        let key = constraint["topologyKey"].as_str().unwrap();
        let mut domains = BTreeMap::new();
        for node in self.nodes.keys() {
            let labelled = keys.iter().all(|key| !self.label(node, key).is_null());
            if labelled && self.takes_part(pod, constraint, node) {
                let count = self.counted(pod, constraint, node);
                *domains.entry(self.label(node, key).to_string()).or_default() += count;
            }
        }
        domains
    }

    pub(super) fn spread_refuses(&self, pod: &Value, node: &str) -> Option<&'static str> {
        let hard = self.constraints(pod, "DoNotSchedule");
        let keys: Vec<&str> = hard.iter().map(|one| one["topologyKey"].as_str().unwrap()).collect();
        for constraint in &hard {
            let value = self.label(node, constraint["topologyKey"].as_str().unwrap());
            if value.is_null() {
                return Some("node(s) didn't match pod topology spread constraints (missing required label)");
            }
            let domains = self.domains(pod, constraint, &keys);
            let enough = domains.len() as i64 >= constraint["minDomains"].as_i64().unwrap_or(1);
            let least = if enough { domains.values().min().copied().unwrap_or(0) } else { 0 };
            let selectors = self.about_whom(pod, constraint);
            let own = selectors.iter().all(|selector| selects(selector, &pod["metadata"]["labels"]));
            let here = domains.get(&value.to_string()).copied().unwrap_or(0);
            if here + i64::from(own) - least > constraint["maxSkew"].as_i64().unwrap() {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }

    pub(super) fn spread_scores(&self, pod: &Value, fitting: &[String]) -> Vec<i64> {
        let own = !list(&pod["spec"]["topologySpreadConstraints"]).is_empty();
        let soft = self.constraints(pod, "ScheduleAnyway");
        if soft.is_empty() {
            return vec![0; fitting.len()];
        }
        let keys: Vec<&str> = soft.iter().map(|one| one["topologyKey"].as_str().unwrap()).collect();
        let needed: &[&str] = if own || !self.rules.constraints.is_null() { &keys } else { &[] };
        let scored: Vec<bool> =
            fitting.iter().map(|node| needed.iter().all(|key| !self.label(node, key).is_null())).collect();
        let mut sums = vec![0.0; fitting.len()];
        for constraint in &soft {
            let key = constraint["topologyKey"].as_str().unwrap();
            let among = || fitting.iter().zip(&scored).filter(|(_, scored)| **scored).map(|(node, _)| node);
            let values: BTreeSet<String> = among().map(|node| self.label(node, key).to_string()).collect();
            let size = if key == HOSTNAME { among().count() } else { values.len() };
            let weight = ((size + 2) as f64).ln();
            let domains = self.domains(pod, constraint, needed);
            for (index, node) in fitting.iter().enumerate() {
                let value = self.label(node, key);
                if value.is_null() {
                    continue;
                }
                let count = if key == HOSTNAME {
                    self.counted(pod, constraint, node)
                } else {
                    domains.get(&value.to_string()).copied().unwrap_or(0)
                };
                sums[index] += count as f64 * weight + (constraint["maxSkew"].as_f64().unwrap() - 1.0);
            }
        }
        let rounded: Vec<i64> = sums.iter().map(|sum| sum.round() as i64).collect();
        let among = || rounded.iter().zip(&scored).filter(|(_, scored)| **scored).map(|(sum, _)| *sum);
        let (least, most) = (among().min().unwrap_or(0), among().max().unwrap_or(0));
        let score = |(sum, scored): (&i64, &bool)| match (scored, most) {
            (false, _) => 0,
            (true, 0) => 100,
            (true, most) => 100 * (most + least - sum) / most,
        };
        rounded.iter().zip(&scored).map(score).collect()
    }
}
