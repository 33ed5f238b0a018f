//! InterPodAffinity in the twin.

use serde_json::Value;

use super::twin::{Twin, list, selects};

fn required<'a>(pod: &'a Value, kind: &str) -> &'a [Value] {
    list(&pod["spec"]["affinity"][kind]["requiredDuringSchedulingIgnoredDuringExecution"])
}

fn preferred<'a>(pod: &'a Value, kind: &str) -> &'a [Value] {
    list(&pod["spec"]["affinity"][kind]["preferredDuringSchedulingIgnoredDuringExecution"])
}

fn key(term: &Value) -> &str {
    term["topologyKey"].as_str().unwrap()
}

impl Twin {
    /// Whether the term of one pod is about another.
    fn about(&self, owner: &Value, term: &Value, other: &Value) -> bool {
        let (own_labels, labels) = (&owner["metadata"]["labels"], &other["metadata"]["labels"]);
        let namespace = &other["metadata"]["namespace"];
        let (named, selector) = (&term["namespaces"], &term["namespaceSelector"]);
        let in_namespace = if named.is_null() && selector.is_null() {
            *namespace == owner["metadata"]["namespace"]
        } else {
            let known = self.namespaces.get(namespace.as_str().unwrap()).unwrap_or(&Value::Null);
            list(named).contains(namespace) || selects(selector, known)
        };
        let agrees = |keys: &str, wanted: bool| {
            list(&term[keys]).iter().all(|key| {
                let key = key.as_str().unwrap();
                own_labels[key].is_null() || (own_labels[key] == labels[key]) == wanted
            })
        };
        in_namespace
            && selects(&term["labelSelector"], labels)
            && agrees("matchLabelKeys", true)
            && agrees("mismatchLabelKeys", false)
    }

    /// Whether both nodes exist and are in one domain.
    fn together(&self, one: &str, other: &str, key: &str) -> bool {
        let value = self.label(one, key);
        !value.is_null() && value == self.label(other, key)
    }

    pub(super) fn affinity_refuses(&self, pod: &Value, node: &str) -> Option<&'static str> {
        let terms = required(pod, "podAffinity");
        let all_about = |other: &Value| terms.iter().all(|term| self.about(pod, term, other));
        let labelled = terms.iter().all(|term| !self.label(node, key(term)).is_null());
        let met = terms.iter().all(|term| {
            self.pods.values().any(|(other, on)| all_about(other) && self.together(on, node, key(term)))
        });
        let counted_anywhere = self.pods.values().any(|(other, on)| {
            all_about(other) && terms.iter().any(|term| !self.label(on, key(term)).is_null())
        });
        if !labelled || (!met && (counted_anywhere || !all_about(pod))) {
            return Some("node(s) didn't match pod affinity rules");
        }
        let repelled = required(pod, "podAntiAffinity").iter().any(|term| {
            self.pods
                .values()
                .any(|(other, on)| self.about(pod, term, other) && self.together(on, node, key(term)))
        });
        if repelled {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        let unwanted = self.pods.values().any(|(other, on)| {
            required(other, "podAntiAffinity")
                .iter()
                .any(|term| self.about(other, term, pod) && self.together(on, node, key(term)))
        });
        unwanted.then_some("node(s) didn't satisfy existing pods anti-affinity rules")
    }

    pub(super) fn affinity_scores(&self, pod: &Value, fitting: &[String]) -> Vec<i64> {
        let wishes = preferred(pod, "podAffinity").len() + preferred(pod, "podAntiAffinity").len();
        if self.rules.ignores_preferred && wishes == 0 {
            return vec![0; fitting.len()];
        }
        let sums: Vec<i64> = fitting.iter().map(|node| self.attraction(pod, node)).collect();
        let least = sums.iter().min().copied().unwrap_or(0);
        let range = sums.iter().max().copied().unwrap_or(0) - least;
        let score = |sum: &i64| match range {
            0 => 0,
            range => (100.0 * ((sum - least) as f64 / range as f64)) as i64,
        };
        sums.iter().map(score).collect()
    }

    fn attraction(&self, pod: &Value, node: &str) -> i64 {
        let mut sum = 0;
        for (other, on) in self.pods.values() {
            let mut weigh = |owner: &Value, term: &Value, target: &Value, weight: i64| {
                if self.about(owner, term, target) && self.together(on, node, key(term)) {
                    sum += weight;
                }
            };
            for (kind, sign) in [("podAffinity", 1), ("podAntiAffinity", -1)] {
                for wish in preferred(pod, kind) {
                    weigh(pod, &wish["podAffinityTerm"], other, sign * wish["weight"].as_i64().unwrap());
                }
                for wish in preferred(other, kind) {
                    weigh(other, &wish["podAffinityTerm"], pod, sign * wish["weight"].as_i64().unwrap());
                }
            }
            for term in required(other, "podAffinity") {
                weigh(other, term, pod, self.rules.hard_affinity_weight);
            }
        }
        sum
    }
}
