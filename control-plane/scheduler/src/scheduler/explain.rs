//! What every node is for one pod, for people who ask: decided by what decides on pods, changed by nothing.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1::Pod;

use super::Scheduler;
use crate::{
    affinity::untolerated,
    evaluation::Evaluations,
    explanation::{Explanation, NodeVerdict, Score, Verdict},
    features,
    outlook::Outlook,
    placement::{each_score, refused_for_others},
    pod::{self, PodInfo},
    preemption,
    profile::Plugin,
    refusal::{Lack, Refusal},
    scores::{MOST, of_resources},
    snapshot::{NodeEntry, Slot},
    volumes::Trouble,
};

/// The plugins that score, in upstream's order.
const SCORING: [Plugin; 8] = [
    Plugin::TaintToleration,
    Plugin::NodeAffinity,
    Plugin::NodeResourcesFit,
    Plugin::PodTopologySpread,
    Plugin::InterPodAffinity,
    Plugin::DynamicResources,
    Plugin::NodeResourcesBalancedAllocation,
    Plugin::ImageLocality,
];

impl Scheduler {
    /// What each node is for the pod. One that has a node is looked at as if it waited.
    ///
    /// The scheduler is not for deciding after that: the pod is taken off its node.
    pub(crate) fn explain(&mut self, pod: &Pod) -> Explanation {
        let profile = self.profile_of(pod).unwrap_or(&self.profiles[0]).clone();
        let info = self.reader.read(pod, &profile);
        let info = self.reader.refresh(&info);
        let mut notes = self.notes(pod);
        if let Some(group) = &info.group {
            let name = group.name();
            notes.push(match self.policy_of(group) {
                None => format!("its pod group {name:?} does not exist"),
                Some(policy) => {
                    let min = policy.min;
                    format!("it is of the pod group {name:?}: {min} of its pods get a node, or none")
                }
            });
        }
        if !info.extenders.is_empty() {
            notes.push("extenders have a say about it, and are not asked here".to_owned());
        }
        self.snapshot.remove_pod(&info.uid);
        if pod::node_of(pod).is_some() {
            // It would be made anew.
            self.snapshot.devices.remove_made(&info.uid);
        }
        let kept = self.snapshot.nominations.node_of(&info.uid).map(str::to_owned);
        self.snapshot.denominate(&info.uid);
        let nodes = match self.verdicts(&info) {
            Ok(nodes) => nodes,
            Err(trouble) => {
                notes.push(trouble.message);
                Vec::new()
            }
        };
        let fits = |node: &&NodeVerdict| node.total().is_some();
        let best = match nodes.iter().filter(fits).find(|node| Some(&node.node) == kept.as_ref()) {
            Some(node) => {
                notes.push(format!("{} is kept for it: others were deleted for it there", node.node));
                vec![node.node.clone()]
            }
            None => {
                let most = nodes.iter().filter_map(NodeVerdict::total).max();
                let best = nodes.iter().filter(fits).filter(|node| node.total() == most);
                best.map(|node| node.node.clone()).collect()
            }
        };
        if best.is_empty() {
            notes.extend(self.preemption(&info));
        }
        let key = info.key.to_string();
        Explanation { pod: key, scheduler_name: profile.scheduler_name.clone(), notes, best, nodes }
    }

    /// What holds for the pod whatever the nodes are.
    fn notes(&self, pod: &Pod) -> Vec<String> {
        let mut notes = Vec::new();
        let spec = pod.spec.as_ref();
        if self.profile_of(pod).is_none() {
            let name = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or_default();
            notes.push(format!("it is for another scheduler, {name:?}"));
        }
        let gates: Vec<&str> = spec
            .and_then(|spec| spec.scheduling_gates.as_ref())
            .into_iter()
            .flatten()
            .map(|gate| &*gate.name)
            .collect();
        if !gates.is_empty() {
            notes.push(format!("it waits for its scheduling gates: {}", gates.join(", ")));
        }
        if let Some(node) = pod::node_of(pod) {
            notes.push(format!("it is on {node}; this is what nodes would be for it without it"));
        }
        if pod.metadata.deletion_timestamp.is_some() {
            notes.push("it is being deleted".to_owned());
        }
        notes
    }

    /// Every node by name, the best first, then those that cannot run the pod.
    fn verdicts(&mut self, info: &PodInfo) -> Result<Vec<NodeVerdict>, Trouble> {
        let snapshot = &mut self.snapshot;
        let counters = snapshot.counters_of(&info.terms);
        let outlook = Outlook::new(info, snapshot, &counters)?;
        let mut evaluations = Evaluations::default();
        let evaluation = evaluations.explained(&info.needs, info.priority, snapshot);
        let mut refused: HashMap<Slot, Refusal> =
            evaluation.refused().map(|(slot, refusal)| (slot, refusal.clone())).collect();
        refused.extend(refused_for_others(&outlook, evaluation));
        let candidates: Vec<Slot> = evaluation.fitting().filter(|slot| !refused.contains_key(slot)).collect();

        // As upstream counts plugins for which all nodes are alike.
        let mut scores: HashMap<Plugin, Vec<i64>> =
            SCORING.into_iter().map(|plugin| (plugin, vec![0; candidates.len()])).collect();
        scores.insert(Plugin::TaintToleration, vec![MOST; candidates.len()]);
        each_score(&outlook, evaluation, &candidates, |plugin, _, of_plugin| {
            scores.insert(plugin, of_plugin);
        });
        let of_node = |slot: &Slot| {
            let from_class = |resource: &str| outlook.provided(*slot, resource);
            of_resources(&info.needs, &snapshot.nodes[*slot], &from_class)
        };
        let (fit, balanced) = candidates.iter().map(of_node).unzip();
        scores.insert(Plugin::NodeResourcesFit, fit);
        scores.insert(Plugin::NodeResourcesBalancedAllocation, balanced);

        let mut weights = info.needs.profile.weights;
        let scoring: Vec<(Plugin, i64)> = SCORING
            .into_iter()
            .filter_map(|plugin| Some((plugin, *weights.of(plugin)?)))
            .filter(|(_, weight)| *weight != 0)
            .collect();
        let fitting = candidates.iter().enumerate().map(|(index, slot)| {
            let of_node = scoring.iter().map(|(plugin, weight)| {
                let score = scores.get(plugin).and_then(|scores| scores.get(index)).copied();
                Score { plugin: plugin.name(), score: score.unwrap_or_default(), weight: *weight }
            });
            NodeVerdict {
                node: snapshot.nodes[*slot].name.clone(),
                verdict: Verdict::fits(of_node.collect()),
            }
        });
        let others = refused.iter().map(|(slot, refusal)| {
            let node = &snapshot.nodes[*slot];
            let verdict = Verdict::Refused {
                plugin: refusal.plugin().name(),
                reasons: refusal.reasons(),
                detail: detail(refusal, info, node),
            };
            NodeVerdict { node: node.name.clone(), verdict }
        });
        let mut nodes: Vec<NodeVerdict> = fitting.chain(others).collect();
        nodes.sort_by(|one, other| other.total().cmp(&one.total()).then_with(|| one.node.cmp(&other.node)));
        Ok(nodes)
    }

    /// What preemption would do for a pod that no node can run.
    fn preemption(&mut self, info: &PodInfo) -> Option<String> {
        if !info.needs.profile.preempts || self.snapshot.node_count() == 0 {
            return None;
        }
        let diagnosis = self.placement.diagnose(info, &mut self.snapshot);
        let about_pods = &diagnosis.about_pods;
        if let Some(why) = preemption::hindrance(info, about_pods, &self.snapshot) {
            return Some(format!("preemption: {why}"));
        }
        let found = preemption::find(
            info,
            about_pods,
            &mut self.snapshot,
            &self.budgets.without([]),
            &mut self.victims,
            &mut self.tie,
        );
        Some(match found {
            Ok(found) => {
                let victims = preemption::least(found)?;
                let names: Vec<String> = victims.pods.iter().map(|pod| pod.key.to_string()).collect();
                let node = &self.snapshot.nodes[victims.slot].name;
                format!("preemption: on {node} these would be deleted for it: {}", names.join(", "))
            }
            Err(why) => format!("preemption: {why}"),
        })
    }
}

/// What of the node it is, where upstream's words do not tell.
fn detail(refusal: &Refusal, pod: &PodInfo, node: &NodeEntry) -> String {
    match refusal {
        Refusal::Taint => {
            untolerated(&pod.needs.tolerations, &node.taints).map_or_else(String::new, |taint| {
                let value = taint.value.as_deref().filter(|value| !value.is_empty());
                let value = value.map_or_else(String::new, |value| format!("={value}"));
                format!("{}{value}:{}", taint.key, taint.effect)
            })
        }
        Refusal::Lacks(lacks) => {
            let all: Vec<String> = lacks.iter().map(|lack| lacking(lack, pod, node)).collect();
            all.join(", ")
        }
        Refusal::Features => {
            features::missing(&pod.needs.features, &node.features).collect::<Vec<_>>().join(", ")
        }
        Refusal::NoDevices => {
            let of_class = |resource: &String| {
                let class = node.providers.get(resource).filter(|_| node.has_from_class(resource))?;
                Some(format!("{resource} of class {class}"))
            };
            let all: BTreeSet<String> = pod.claims.extended_resources().filter_map(of_class).collect();
            all.into_iter().collect::<Vec<_>>().join(", ")
        }
        _ => String::new(),
    }
}

fn lacking(lack: &Lack, pod: &PodInfo, node: &NodeEntry) -> String {
    let (have, used) = (&node.allocatable, &node.taken.requested);
    match lack {
        Lack::Pods => format!("{} of {} pods", used.numbers.pods, have.numbers.pods),
        Lack::Resource { name, .. } => {
            let unit = if name == crate::resources::CPU { "m" } else { "" };
            let (asked, have, used) = (pod.needs.requests.get(name), have.get(name), used.get(name));
            format!("{name}: asks {asked}{unit}, {}{unit} of {have}{unit} are free", (have - used).max(0))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use crate::{
        config::Config,
        explanation::Explanation,
        scheduler::Scheduler,
        testing::{node, pod},
    };

    fn asks(name: &str, cpu: &str, fields: Value) -> k8s_openapi::api::core::v1::Pod {
        let mut spec =
            json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] });
        for (field, value) in fields.as_object().unwrap() {
            spec[field] = value.clone();
        }
        pod(name, spec)
    }

    fn scheduler() -> Scheduler {
        let mut scheduler = Scheduler::new(&Config::default(), 7);
        let tainted =
            json!({ "spec": { "taints": [{ "key": "gpu", "value": "a100", "effect": "NoSchedule" }] } });
        for node in [node("n1", json!({})), node("n2", json!({})), node("n3", tainted)] {
            scheduler.node_changed(&node, Duration::ZERO);
        }
        scheduler.pod_changed(&asks("low", "3", json!({ "nodeName": "n1" })), Duration::ZERO);
        scheduler
    }

    #[track_caller]
    fn check(pod: &k8s_openapi::api::core::v1::Pod, best: &[&str], lines: &[&str]) -> Explanation {
        let explanation = scheduler().explain(pod);
        assert_eq!(explanation.best, best);
        let text = explanation.to_string();
        let squeezed: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for line in lines {
            assert!(squeezed.iter().any(|found| found == line), "{line:?} is not in\n{text}");
        }
        explanation
    }

    #[test]
    fn nodes_have_scores_or_a_reason() {
        let explanation = check(
            &asks("a", "2", json!({})),
            &["n2"],
            &[
                "a/a, placed by default-scheduler",
                "1 of 3 nodes can run it; the best: n2",
                "n1 NodeResourcesFit Insufficient cpu (cpu: asks 2000m, 1000m of 4000m are free)",
                "n3 TaintToleration node(s) had untolerated taint(s) (gpu=a100:NoSchedule)",
            ],
        );
        // 3 for what is not tainted, and resources: half of the cpu and 200 MiB less of 8 GiB, balanced by what is asked.
        assert_eq!(explanation.nodes[0].total(), Some(300 + (50 + 97) / 2 + 75));
    }

    #[test]
    fn what_holds_for_the_pod_itself_is_noted() {
        let gated = asks("a", "1", json!({ "schedulingGates": [{ "name": "example.com/wait" }] }));
        check(&gated, &["n2"], &["- it waits for its scheduling gates: example.com/wait"]);
        check(
            &asks("a", "1", json!({ "schedulerName": "other" })),
            &["n2"],
            &["- it is for another scheduler, \"other\""],
        );
        // Without itself there is room for it on its own node.
        check(
            &asks("low", "3", json!({ "nodeName": "n1" })),
            &["n1", "n2"],
            &["- it is on n1; this is what nodes would be for it without it"],
        );
    }

    #[test]
    fn devices_that_a_class_lacks_are_told_with_it() {
        let mut scheduler = scheduler();
        let spec = json!({ "extendedResourceName": "example.com/gpu" });
        let class = serde_json::from_value(json!({ "metadata": { "name": "gpu" }, "spec": spec })).unwrap();
        scheduler.device_class_changed(&class, Duration::ZERO);
        let requests = json!({ "example.com/gpu": "1" });
        let pod = pod("a", json!({ "containers": [{ "name": "c", "resources": { "requests": requests } }] }));
        let text = scheduler.explain(&pod).to_string();
        let line = "cannot allocate all claims (example.com/gpu of class gpu)";
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }

    #[test]
    fn a_pod_that_fits_nowhere_hears_what_preemption_would_do() {
        let selecting = |priority| {
            asks(
                "a",
                "4",
                json!({ "priority": priority, "nodeSelector": { "kubernetes.io/hostname": "n1" } }),
            )
        };
        check(&selecting(10), &[], &["- preemption: on n1 these would be deleted for it: a/low"]);
        let message = "- preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, \
            2 Preemption is not helpful for scheduling.";
        check(&selecting(0), &[], &[message]);
        check(
            &asks(
                "a",
                "1",
                json!({ "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "c" } }] }),
            ),
            &[],
            &["- persistentvolumeclaim \"c\" not found", "none of the nodes can run it"],
        );
    }

    #[test]
    fn the_node_that_was_cleared_for_the_pod_comes_first() {
        let mut scheduler = scheduler();
        let mut waiting = asks("a", "1", json!({ "priority": 10 }));
        waiting.status = Some(serde_json::from_value(json!({ "nominatedNodeName": "n1" })).unwrap());
        scheduler.pod_changed(&waiting, Duration::ZERO);
        let explanation = scheduler.explain(&waiting);
        assert_eq!(explanation.best, ["n1"]);
        assert_eq!(explanation.notes, ["n1 is kept for it: others were deleted for it there"]);
    }
}
