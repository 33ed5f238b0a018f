//! Event hints: a pod that no node could run is tried again as soon as one can.
//!
//! After each change of a cluster, whoever waits for an event is held against the twin: a pod that could run by then was
//! forgotten. Whether one is woken that could not run either is a matter of cost alone.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{
    Pair,
    generate::{Random, any_labels, any_namespace, any_node, any_pod, any_workload},
    typed,
};
use crate::testing::seeds;

impl Pair {
    /// Whoever rests could not run.
    #[track_caller]
    fn check_resting(&self, waiting: &BTreeMap<String, Value>, context: &str) -> usize {
        let resting: Vec<_> = waiting.iter().filter(|(name, _)| self.scheduler.rests(name)).collect();
        for (name, pod) in &resting {
            let fitting = self.twin.fitting(pod);
            assert!(fitting.is_empty(), "{context}: {name} waits, and could run on {fitting:?}: {pod}");
        }
        resting.len()
    }

    /// Tries whoever is ready to be tried.
    fn schedule_all(&mut self, waiting: &mut BTreeMap<String, Value>, context: &str) -> usize {
        let plan = self.scheduler.schedule(100, self.now);
        for decision in &plan.bindings {
            let binding = &decision.binding;
            let pod = waiting.remove(&binding.pod).unwrap();
            let fitting = self.twin.fitting(&pod);
            assert!(fitting.contains(&binding.node), "{context}: {} of {fitting:?}", binding.node);
            self.twin.pods.insert(binding.pod.clone(), (pod, binding.node.clone()));
        }
        plan.bindings.len()
    }

    /// Something happens to the cluster.
    fn change(&mut self, random: &mut Random, step: u64) {
        let placed: Vec<String> = self.twin.pods.keys().cloned().collect();
        match random.below(10) {
            0..=2 => {
                let name = format!("n{}", random.below(6));
                self.put_node(any_node(random, &name));
            }
            3 => self.remove_node(&format!("n{}", random.below(6))),
            4 => self.put_namespace(any_namespace(random)),
            7 => self.change_nominated(random, step),
            5 if !placed.is_empty() => {
                let name: &String = random.one_of(&placed);
                self.remove_pod(name);
            }
            6 if !placed.is_empty() => {
                let name = random.one_of(&placed).clone();
                let pod = &mut self.twin.pods.get_mut(&name).unwrap().0;
                match random.below(3) {
                    0 => pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
                    1 => pod["spec"]["containers"][0]["resources"] = json!({}),
                    _ => pod["metadata"]["labels"] = any_labels(random),
                }
                self.show(&name);
            }
            _ => {
                // Somebody else puts a pod there.
                let name = format!("other{step}");
                let node = format!("n{}", random.below(6));
                self.twin.pods.insert(name.clone(), (any_pod(random, &name), node));
                self.show(&name);
            }
        }
    }
}

#[test]
fn whoever_could_run_is_tried_again() {
    let (mut resting, mut woken) = (0, 0);
    for seed in 1..=seeds() {
        let mut random = Random::new(seed ^ 0x41D7);
        let mut pair = Pair::new(seed);
        for _ in 0..4 {
            pair.put_workload(any_workload(&mut random));
        }
        let mut waiting: BTreeMap<String, Value> = BTreeMap::new();
        for step in 0..60 {
            // Less than after which pods are tried again whatever happened.
            pair.now += Duration::from_secs(2);
            let context = format!("seed {seed}, step {step}");
            if random.chance(3) {
                let name = format!("p{step}");
                let mut pod = any_pod(&mut random, &name);
                pod["spec"]["preemptionPolicy"] = json!("Never");
                pair.scheduler.pod_changed(&typed(&pod), pair.now);
                waiting.insert(name, pod);
            } else {
                pair.change(&mut random, step);
            }
            resting += pair.check_resting(&waiting, &context);
            if random.chance(2) {
                woken += pair.schedule_all(&mut waiting, &context);
                pair.check_resting(&waiting, &context);
            }
        }
    }
    let seeds = usize::try_from(seeds()).unwrap();
    assert!(resting > 50 * seeds && woken > 3 * seeds, "{resting} rested, {woken} placed");
}
