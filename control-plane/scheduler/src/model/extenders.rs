//! Extenders in the model: what they are asked, and what becomes of their answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::json;

use super::{
    Pair,
    generate::{Random, any_node, any_pod},
    rules::Rules,
    typed,
};
use crate::{
    config::Config,
    extender::{About, Answer, Nodes, Refused},
    scheduler::{Rejected, Scheduler},
    testing::seeds,
};

const FILE: &str = "{apiVersion: kubescheduler.config.k8s.io/v1, kind: KubeSchedulerConfiguration, \
    extenders: [{urlPrefix: 'http://127.0.0.1:9', filterVerb: filter}]}";

/// What is told of a pod that found no node, without what preemption had to say.
fn told(rejected: &Rejected) -> &str {
    rejected.message.split(" preemption: ").next().unwrap()
}

#[test]
fn extenders_have_a_say_about_nodes_that_could_run_the_pod() {
    let (mut placed, mut refused) = (0, 0);
    for seed in 1..=seeds() {
        let mut random = Random::new(seed ^ 0xE717);
        let mut pair = Pair::by(Rules::default(), seed);
        pair.scheduler = Scheduler::new(&Config::default().with_file(FILE).unwrap(), seed);
        for step in 0..40 {
            pair.now += Duration::from_secs(1000);
            let context = format!("seed {seed}, step {step}");
            if random.chance(3) {
                let name = format!("n{}", random.below(5));
                pair.put_node(any_node(&mut random, &name));
                continue;
            }
            let name = format!("p{step}");
            let mut pod = any_pod(&mut random, &name);
            pod["spec"]["preemptionPolicy"] = json!("Never");
            pair.scheduler.pod_changed(&typed(&pod), pair.now);
            let plan = pair.scheduler.schedule(1, pair.now);
            let fitting = pair.twin.fitting(&pod);
            let Some(question) = plan.question else {
                assert_eq!(fitting, Vec::<String>::new(), "{context}");
                assert_eq!(told(&plan.rejected[0]), pair.twin.message(&pod), "{context}");
                pair.scheduler.pod_removed(&name, pair.now);
                continue;
            };
            let About::Nodes(asked) = question.about else { panic!("{context}: asked about victims") };
            let asked: BTreeSet<String> = asked.into_iter().collect();
            assert_eq!(asked, fitting.iter().cloned().collect(), "{context}: {pod}");

            let mut answer = Nodes::default();
            for node in fitting {
                match random.below(4) {
                    0 => answer.refused.push(Refused {
                        node,
                        message: (*random.one_of(&["too far", "too warm"])).to_owned(),
                        about_pods: random.chance(2),
                    }),
                    // Left out without a word.
                    1 => (),
                    _ => _ = answer.scores.insert(node, random.below(300) as i64),
                }
            }
            let left: Vec<String> = answer.scores.keys().cloned().collect();
            let mut totals = pair.twin.totals_among(&pod, left);
            totals.iter_mut().for_each(|(node, total)| *total += answer.scores[node]);
            let refusals: Vec<String> = answer.refused.iter().map(|one| one.message.clone()).collect();
            pair.scheduler.answered(&name, Answer::Nodes(answer));
            let plan = pair.scheduler.schedule(1, pair.now);
            match plan.bindings.first() {
                Some(decision) => {
                    let node = decision.binding.node.clone();
                    assert_eq!(totals.get(&node), totals.values().max(), "{context}: {node} of {totals:?}");
                    pair.twin.pods.insert(name, (pod, node));
                    placed += 1;
                }
                None => {
                    assert!(totals.is_empty(), "{context}: none of {totals:?}");
                    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
                    let unfit = pair.twin.nodes.keys().flat_map(|node| pair.twin.all_reasons(&pod, node));
                    for reason in unfit.chain(refusals) {
                        *counts.entry(reason).or_default() += 1;
                    }
                    let mut parts: Vec<String> =
                        counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
                    parts.sort();
                    let nodes = pair.twin.nodes.len();
                    let expected = format!("0/{nodes} nodes are available: {}.", parts.join(", "));
                    assert_eq!(told(&plan.rejected[0]), expected, "{context}");
                    pair.scheduler.pod_removed(&name, pair.now);
                    refused += 1;
                }
            }
        }
    }
    assert!(placed > 3 * seeds() && refused > seeds() / 2, "{placed} placed, {refused} refused");
}
