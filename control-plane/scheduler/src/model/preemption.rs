//! DefaultPreemption in the twin, and clusters that are full of pods of lower priority.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use crate::{scheduler::Decision, testing::seeds};

use super::{
    Pair,
    generate::{Random, any_labels, any_node, any_pod},
    twin::{Twin, name, priority, selects},
    typed,
};

/// A node with the names of those who have to go.
type Candidate = (String, BTreeSet<String>);

fn started(pod: &Value) -> &str {
    pod["status"]["startTime"].as_str().unwrap_or("9999")
}

impl Twin {
    /// The candidates that weigh least; none where preemption does not help.
    fn preempt(&self, pod: &Value) -> Vec<Candidate> {
        let about_pods = |reason: &String| {
            let node_itself = [
                "unschedulable",
                "untolerated taint",
                "node affinity",
                "scheduler-enforced",
                "plugin(s)",
                "missing required",
                "pod affinity rules",
                "required features",
            ];
            !node_itself.iter().any(|part| reason.contains(part))
        };
        let tried: Vec<&String> = self
            .nodes
            .keys()
            .filter(|node| self.all_reasons(pod, node).iter().all(about_pods) && !self.too_small(pod, node))
            .collect();
        let found: Vec<(Candidate, _)> =
            tried.into_iter().filter_map(|node| self.victims(pod, node)).collect();
        let least = found.iter().map(|(_, weight)| weight).min().cloned();
        found
            .into_iter()
            .filter(|(_, weight)| Some(weight) == least.as_ref())
            .map(|(found, _)| found)
            .collect()
    }

    fn too_small(&self, pod: &Value, node: &str) -> bool {
        let mut empty = self.clone();
        empty.pods.clear();
        empty.nominated.clear();
        empty.reasons(pod, node).iter().any(|reason| reason.starts_with("Insufficient"))
    }

    #[expect(clippy::type_complexity, reason = "a weight is compared and nothing else")]
    fn victims(
        &self,
        pod: &Value,
        node: &str,
    ) -> Option<(Candidate, (usize, i64, i64, usize, Reverse<String>))> {
        let mut lower: Vec<Value> =
            self.on(node).filter(|other| priority(other) < priority(pod)).cloned().collect();
        lower.sort_by_key(|other| (Reverse(priority(other)), started(other).to_owned()));
        let mut without = self.clone();
        lower.iter().for_each(|other| _ = without.pods.remove(name(other)));
        if lower.is_empty() || !without.all_reasons(pod, node).is_empty() {
            return None;
        }
        let mut left: Vec<i64> = self
            .budgets
            .iter()
            .map(|budget| budget["status"]["disruptionsAllowed"].as_i64().unwrap())
            .collect();
        let (breaking, others): (Vec<&Value>, Vec<&Value>) = lower.iter().partition(|other| {
            let mut breaks = false;
            for (budget, left) in self.budgets.iter().zip(&mut left) {
                let about = budget["metadata"]["namespace"] == other["metadata"]["namespace"]
                    && selects(&budget["spec"]["selector"], &other["metadata"]["labels"]);
                *left -= i64::from(about);
                breaks |= about && *left < 0;
            }
            breaks
        });
        let mut gone: Vec<&Value> = Vec::new();
        let mut violations = 0;
        for (group, breaks) in [(breaking, 1), (others, 0)] {
            for other in group {
                without.pods.insert(name(other).to_owned(), (other.clone(), node.to_owned()));
                if !without.all_reasons(pod, node).is_empty() {
                    without.pods.remove(name(other));
                    gone.push(other);
                    violations += breaks;
                }
            }
        }
        let highest = gone.iter().map(|other| priority(other)).max()?;
        let sum = gone.iter().map(|other| priority(other) + (1 << 31)).sum();
        let earliest =
            gone.iter().filter(|other| priority(other) == highest).map(|other| started(other)).min()?;
        let names = gone.iter().map(|other| name(other).to_owned()).collect();
        Some(((node.to_owned(), names), (violations, highest, sum, gone.len(), Reverse(earliest.to_owned()))))
    }
}

fn any_budget(random: &mut Random, index: usize) -> Value {
    json!({
        "metadata": { "name": format!("b{index}"), "namespace": random.one_of(&["a", "b"]) },
        "spec": { "selector": { "matchLabels": any_labels(random) } },
        "status": { "disruptionsAllowed": random.below(3), "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0 },
    })
}

fn any_ranked_pod(random: &mut Random, name: &str, priorities: &[i64]) -> Value {
    let mut pod = any_pod(random, name);
    pod["spec"]["priority"] = json!(random.one_of(priorities));
    if !random.chance(4) {
        pod["status"]["startTime"] = json!(format!("2026-01-01T00:00:{:02}Z", random.below(60)));
    }
    pod
}

#[test]
fn victims_are_those_of_the_slow_twin() {
    let mut preempted = 0;
    for seed in 1..=seeds() {
        let mut random = Random::new(seed ^ 0xABCD);
        let mut pair = Pair::new(seed);
        for index in 0..3 + random.below(4) {
            pair.put_node(any_node(&mut random, &format!("n{index}")));
        }
        for index in 0..2 {
            let budget = any_budget(&mut random, index);
            pair.scheduler.budget_changed(&typed(&budget));
            pair.twin.budgets.push(budget);
        }
        for index in 0..30 {
            pair.now += Duration::from_secs(1000);
            let context = format!("seed {seed}, low {index}");
            let name = format!("low{index}");
            let pod = any_ranked_pod(&mut random, &name, &[-5, 0, 3]);
            pair.schedule_low(&name, pod, &context);
        }
        for index in 0..10 {
            pair.now += Duration::from_secs(1000);
            let name = format!("high{index}");
            let pod = any_ranked_pod(&mut random, &name, &[10, 20]);
            preempted += u64::from(pair.preempt(&name, pod, &format!("seed {seed}, high {index}")));
        }
    }
    assert!(preempted > 2 * seeds(), "{preempted} preempted");
}

impl Pair {
    /// Pods of low priority may preempt lower ones: then they are not wanted here.
    fn schedule_low(&mut self, name: &str, mut pod: Value, context: &str) {
        pod["spec"]["preemptionPolicy"] = json!("Never");
        self.schedule(name, pod, context);
    }

    /// Schedules a pod that may preempt, and lets its victims go at once. True where there were some.
    fn preempt(&mut self, name: &str, pod: Value, context: &str) -> bool {
        self.scheduler.pod_changed(&typed(&pod), self.now);
        let plan = self.scheduler.schedule(1, self.now);
        let fitting = self.twin.best(&pod);
        if let Some(Decision { binding, .. }) = plan.bindings.first() {
            assert!(fitting.contains(&binding.node), "{context}");
            self.twin.pods.insert(name.to_owned(), (pod, binding.node.clone()));
            return false;
        }
        assert!(fitting.is_empty(), "{context}: {:?}", plan.rejected);
        let expected = self.twin.preempt(&pod);
        let found = plan.preemptions.first().map(|preemption| {
            let names = preemption.victims.iter().map(|victim| victim.key.name.clone()).collect();
            (preemption.node.clone(), names)
        });
        let Some(found) = found else {
            assert_eq!(expected, [], "{context}: {:?} for {pod}", plan.rejected[0].message);
            self.scheduler.pod_removed(name, self.now);
            return false;
        };
        assert!(expected.contains(&found), "{context}: {found:?} of {expected:?} for {pod}");
        self.twin.nominated.insert(name.to_owned(), (pod.clone(), found.0.clone()));
        self.check_bystander(context);
        found.1.iter().for_each(|victim| self.remove_pod(victim));
        self.scheduler.cleared(name, true, self.now);
        self.now += Duration::from_secs(1000);
        let plan = self.scheduler.schedule(1, self.now);
        let decision = plan.bindings.first().unwrap_or_else(|| panic!("{context}: {:?}", plan.rejected));
        let binding = &decision.binding;
        assert_eq!((binding.pod.as_str(), &binding.node), (name, &found.0), "{context}");
        self.twin.nominated.remove(name);
        self.twin.pods.insert(name.to_owned(), (pod, found.0));
        true
    }

    /// A pod of lower priority that comes while victims go does not take their room.
    fn check_bystander(&mut self, context: &str) {
        let bystander = json!({
            "metadata": { "name": "bystander", "namespace": "a", "uid": "bystander" },
            "spec": { "preemptionPolicy": "Never", "containers": [{ "name": "c", "resources": { "requests": { "cpu": "100m" } } }] },
        });
        self.schedule("bystander", bystander, context);
        self.remove_pod("bystander");
    }
}
