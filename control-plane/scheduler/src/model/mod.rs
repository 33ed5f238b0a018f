//! The slow, plain model of every filter and score, and generated clusters to hold the scheduler against it.

mod affinity;
mod devices;
mod extended;
mod extenders;
mod generate;
mod hints;
mod preemption;
mod rules;
mod spread;
mod twin;
mod volumes;

use std::{collections::BTreeMap, time::Duration};

use hawser_api::resource::ObjectKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use crate::{
    scheduler::{Decision, Scheduler},
    testing::seeds,
    workloads::ControllerKind,
};
use generate::{Random, any_namespace, any_node, any_pod, any_workload};
use rules::Rules;
use twin::Twin;

fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// A scheduler and its twin, which see the same events.
struct Pair {
    scheduler: Scheduler,
    twin: Twin,
    now: Duration,
}

impl Pair {
    /// By one of the configurations.
    fn new(seed: u64) -> Self {
        Self::by(Rules::any(seed), seed)
    }

    fn by(rules: Rules, seed: u64) -> Self {
        let scheduler = Scheduler::new(&rules.config, seed);
        Self { scheduler, twin: Twin { rules, ..Twin::default() }, now: Duration::ZERO }
    }

    fn put_node(&mut self, node: Value) {
        self.scheduler.node_changed(&typed(&node), self.now);
        self.twin.nodes.insert(node["metadata"]["name"].as_str().unwrap().to_owned(), node);
    }

    fn remove_node(&mut self, name: &str) {
        self.scheduler.node_removed(name, self.now);
        self.twin.nodes.remove(name);
    }

    fn put_namespace(&mut self, namespace: Value) {
        self.scheduler.namespace_changed(&typed(&namespace), self.now);
        let name = namespace["metadata"]["name"].as_str().unwrap().to_owned();
        self.twin.namespaces.insert(name, namespace["metadata"]["labels"].clone());
    }

    fn put_workload(&mut self, object: Value) {
        let field = |name: &str| object["metadata"][name].as_str().unwrap().to_owned();
        let (kind, key) =
            (object["kind"].as_str().unwrap(), ObjectKey::new(field("namespace"), field("name")));
        let workloads = self.scheduler.workloads();
        if kind == "Service" {
            workloads.put_service(&typed(&object));
        } else {
            let selector: LabelSelector = typed(&object["spec"]["selector"]);
            workloads.put_set(ControllerKind::ReplicaSet, &key, Some(&selector));
        }
        self.twin.workloads.insert([kind.to_owned(), field("namespace"), field("name")], object);
    }

    fn remove_workload(&mut self, object: &Value) {
        let field = |name: &str| object["metadata"][name].as_str().unwrap().to_owned();
        let (kind, key) =
            (object["kind"].as_str().unwrap(), ObjectKey::new(field("namespace"), field("name")));
        let workloads = self.scheduler.workloads();
        match kind {
            "Service" => workloads.remove_service(&key),
            _ => workloads.remove_controller(ControllerKind::ReplicaSet, &key),
        }
        self.twin.workloads.remove(&[kind.to_owned(), field("namespace"), field("name")]);
    }

    fn remove_pod(&mut self, name: &str) {
        self.scheduler.pod_removed(name, self.now);
        self.twin.pods.remove(name);
    }

    /// A pod that can run nowhere comes, for which somebody keeps a node; or such a pod goes, or is kept another one.
    fn change_nominated(&mut self, random: &mut Random, step: u64) {
        let names: Vec<String> = self.twin.nominated.keys().cloned().collect();
        let known =
            if names.is_empty() || random.chance(3) { None } else { Some(random.one_of(&names).clone()) };
        let name = known.clone().unwrap_or_else(|| format!("w{step}"));
        if known.is_some() && random.chance(2) {
            self.scheduler.pod_removed(&name, self.now);
            self.twin.nominated.remove(&name);
            return;
        }
        let before = self.twin.nominated.get(&name).map(|(pod, _)| pod.clone());
        let mut pod = before.unwrap_or_else(|| {
            let mut pod = any_pod(random, &name);
            pod["spec"]["priority"] = json!(random.one_of(&[0, 5, 10]));
            pod["spec"]["preemptionPolicy"] = json!("Never");
            pod["spec"]["nodeSelector"]["disk"] = json!("none");
            pod
        });
        let node = format!("n{}", random.below(8));
        pod["status"]["nominatedNodeName"] = json!(node);
        self.scheduler.pod_changed(&typed(&pod), self.now);
        self.twin.nominated.insert(name, (pod, node));
    }

    /// The API shows the pod where it was put.
    fn show(&mut self, name: &str) {
        let (pod, node) = &self.twin.pods[name];
        let mut bound = pod.clone();
        bound["spec"]["nodeName"] = json!(node);
        self.scheduler.pod_changed(&typed(&bound), self.now);
        let placed = self.scheduler.snapshot().placed(name).map(|(slot, _)| slot).unwrap();
        assert_eq!(self.scheduler.snapshot().nodes[placed].name, *node);
    }

    /// Schedules the pod alone and compares. True where it has a node.
    fn schedule(&mut self, name: &str, pod: Value, context: &str) -> bool {
        let explanation = self.scheduler.explain(&typed(&pod));
        let explained: BTreeMap<String, i64> =
            explanation.nodes.iter().filter_map(|node| Some((node.node.clone(), node.total()?))).collect();
        assert_eq!(explained, self.twin.totals(&pod), "{context}: {pod}");
        self.scheduler.pod_changed(&typed(&pod), self.now);
        // Others that wait may be tried with it.
        let plan = self.scheduler.schedule(100, self.now);
        let expected = self.twin.best(&pod);
        let others = plan.bindings.iter().filter(|decision| decision.binding.pod != name).count();
        assert_eq!(others, 0, "{context}: {:?}", plan.bindings);
        if let Some(Decision { binding, .. }) = plan.bindings.first() {
            assert!(
                expected.contains(&binding.node),
                "{context}: {} of {expected:?} for {pod}",
                binding.node
            );
            self.twin.pods.insert(name.to_owned(), (pod, binding.node.clone()));
            return true;
        }
        let rejected = plan.rejected.iter().find(|rejected| *rejected.pod.uid == *name).unwrap();
        let message = &rejected.message;
        assert!(expected.is_empty(), "{context}: {message}, but {expected:?} would do for {pod}");
        let told = message.split(" preemption: ").next().unwrap();
        assert_eq!(told, self.twin.message(&pod), "{context}: {pod}");
        self.scheduler.pod_removed(name, self.now);
        false
    }
}

#[test]
fn choices_are_those_of_the_slow_twin() {
    let (mut placed, mut refused) = (0, 0);
    for seed in 1..=seeds() {
        let mut random = Random::new(seed);
        let mut pair = Pair::new(seed);
        for step in 0..70 {
            pair.now += Duration::from_secs(1000);
            match random.below(16) {
                0..=2 => {
                    let name = format!("n{}", random.below(8));
                    pair.put_node(any_node(&mut random, &name));
                }
                3 => pair.remove_node(&format!("n{}", random.below(8))),
                4 => {
                    let names: Vec<String> = pair.twin.pods.keys().cloned().collect();
                    if !names.is_empty() {
                        let name: &String = random.one_of(&names);
                        pair.remove_pod(name);
                    }
                }
                5 => pair.put_namespace(any_namespace(&mut random)),
                7 => {
                    let workload = any_workload(&mut random);
                    if random.chance(3) {
                        pair.remove_workload(&workload);
                    } else {
                        pair.put_workload(workload);
                    }
                }
                6 => {
                    // A pod is being deleted, or its labels change.
                    let names: Vec<String> = pair.twin.pods.keys().cloned().collect();
                    if !names.is_empty() {
                        let name = random.one_of(&names).clone();
                        let pod = &mut pair.twin.pods.get_mut(&name).unwrap().0;
                        if random.chance(2) {
                            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                        } else {
                            pod["metadata"]["labels"] = generate::any_labels(&mut random);
                        }
                        pair.show(&name);
                    }
                }
                8 => pair.change_nominated(&mut random, step),
                _ => {
                    let name = format!("p{step}");
                    let mut pod = any_pod(&mut random, &name);
                    pod["spec"]["priority"] = json!(random.one_of(&[0, 5, 10]));
                    pod["spec"]["preemptionPolicy"] = json!("Never");
                    let done = pair.schedule(&name, pod, &format!("seed {seed}, step {step}"));
                    (placed, refused) = (placed + u64::from(done), refused + u64::from(!done));
                }
            }
            if random.chance(3) {
                let names: Vec<String> = pair.twin.pods.keys().cloned().collect();
                names.iter().for_each(|name| pair.show(name));
            }
        }
    }
    // The generator makes both happen, often.
    assert!(placed > 10 * seeds() && refused > 3 * seeds(), "{placed} placed, {refused} refused");
}
