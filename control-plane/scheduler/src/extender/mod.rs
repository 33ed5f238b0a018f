//! Extenders over HTTP: programs beside the scheduler that have a say in filtering, scoring, preempting and binding.
//!
//! The core never waits. It decides what nodes a pod could have, hands out a [`Question`], and goes on when the shell brings
//! the [`Answer`]. One question is open at a time: as with upstream, an extender sees pods one after the other, and can
//! count on the binding of one before it is asked about the next that it knows of. Pods that no extender is interested in
//! do not wait for that, unless they come after one that does.

mod http;
mod wire;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use anyhow::{anyhow, ensure};
use hawser_api::client::Binding;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use serde_json::Value;
use tracing::warn;

pub(crate) use http::{Address, Http};

use crate::pod::PodInfo;

/// More cannot be numbered in a pod's set.
pub(crate) const MOST_EXTENDERS: usize = 32;

/// The scale of an extender's scores, 0 to 10, beside 0 to 100 of a plugin's.
const SCALE: i64 = 10;

/// One extender.
pub(crate) struct Extender {
    pub(crate) settings: Settings,
    pub(crate) http: Http,
}

/// What is asked of it; an empty verb is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) filter_verb: String,
    pub(crate) prioritize_verb: String,
    pub(crate) preempt_verb: String,
    pub(crate) bind_verb: String,
    pub(crate) weight: i64,
    /// It knows the nodes: names are enough.
    pub(crate) node_cache_capable: bool,
    /// Only pods that ask for one of them are its business; none is all pods.
    pub(crate) managed_resources: Vec<String>,
    /// Pods are placed without it where it does not answer.
    pub(crate) ignorable: bool,
}

impl fmt::Debug for Extender {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(to)
    }
}

impl Settings {
    fn is_interested(&self, spec: &PodSpec) -> bool {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let named = |list: &Option<BTreeMap<String, _>>| {
            list.iter().flatten().any(|(name, _)| self.managed_resources.contains(name))
        };
        let mut resources = containers.filter_map(|container| container.resources.as_ref());
        self.managed_resources.is_empty()
            || resources.any(|resources| named(&resources.requests) || named(&resources.limits))
    }
}

/// A set of extenders, by their place in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExtenderSet(u32);

impl ExtenderSet {
    /// Those that have a say about the pod.
    pub(crate) fn of(extenders: &[Arc<Extender>], spec: &PodSpec) -> Self {
        let interested = extenders.iter().take(MOST_EXTENDERS).enumerate();
        let interested = interested.filter(|(_, extender)| extender.settings.is_interested(spec));
        Self(interested.fold(0, |bits, (index, _)| bits | 1 << index))
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The extenders of the set, in the configuration's order.
    pub(crate) fn among(self, all: &[Arc<Extender>]) -> impl Iterator<Item = &Arc<Extender>> {
        all.iter()
            .take(MOST_EXTENDERS)
            .enumerate()
            .filter(move |(index, _)| self.0 & 1 << index != 0)
            .map(|(_, it)| it)
    }
}

/// What the shell is to ask about a pod.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) pod: Arc<PodInfo>,
    pub(crate) about: About,
}

#[derive(Clone, Debug)]
pub(crate) enum About {
    /// Nodes that could run it.
    Nodes(Vec<String>),
    /// What would have to go for it, by node.
    Victims(Vec<Sacrifice>),
}

/// Pods that would have to go from a node.
#[derive(Clone, Debug)]
pub(crate) struct Sacrifice {
    pub(crate) node: String,
    pub(crate) pods: Vec<Arc<PodInfo>>,
    pub(crate) violations: usize,
}

/// What the extenders made of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Nodes(Nodes),
    /// By node, the uids of the pods that have to go and how many budgets that breaks.
    Victims(BTreeMap<String, (HashSet<String>, usize)>),
    /// One that is needed did not answer, or not as it should.
    Failed(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nodes {
    /// What is added to the scores of the nodes that are left.
    pub(crate) scores: HashMap<String, i64>,
    pub(crate) refused: Vec<Refused>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) node: String,
    pub(crate) message: String,
    /// The node might be fine without some of its pods.
    pub(crate) about_pods: bool,
}

/// The whole objects that extenders are told of; `None` where one is gone.
pub(crate) trait Objects: Sync {
    fn pod(&self, pod: &PodInfo) -> Option<Arc<Pod>>;
    fn node(&self, name: &str) -> Option<Arc<Node>>;
}

/// Asks the extenders that have a say.
pub(crate) async fn ask(all: &[Arc<Extender>], objects: &dyn Objects, question: &Question) -> Answer {
    let Some(pod) = objects.pod(&question.pod) else {
        return Answer::Failed("the pod is gone".to_owned());
    };
    let asking = Asking { all, objects, question, pod: value(&*pod) };
    let answer = match &question.about {
        About::Nodes(nodes) => asking.nodes(nodes).await.map(Answer::Nodes),
        About::Victims(sacrifices) => asking.victims(sacrifices).await.map(Answer::Victims),
    };
    answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")))
}

/// Binds a pod by the extender whose matter that is.
pub(crate) async fn bind(extender: &Extender, binding: &Binding) -> anyhow::Result<()> {
    let args = wire::BindingArgs {
        pod_name: &binding.pod,
        pod_namespace: &binding.namespace,
        pod_uid: &binding.uid,
        node: &binding.node,
    };
    let result: wire::BindingResult = extender.http.tell(&extender.settings.bind_verb, &args).await?;
    ensure!(result.error.is_empty(), "{}", result.error);
    Ok(())
}

struct Asking<'a> {
    all: &'a [Arc<Extender>],
    objects: &'a dyn Objects,
    question: &'a Question,
    pod: Value,
}

impl<'a> Asking<'a> {
    fn interested(&self) -> impl Iterator<Item = &'a Arc<Extender>> {
        self.question.pod.extenders.among(self.all)
    }

    /// Each filters what the one before has left; then all score at the same time.
    async fn nodes(&self, candidates: &[String]) -> anyhow::Result<Nodes> {
        let mut left = candidates.to_vec();
        let mut refused = Vec::new();
        for extender in self.interested().filter(|extender| !extender.settings.filter_verb.is_empty()) {
            if left.is_empty() {
                break;
            }
            match self.filter(extender, &left).await {
                Ok((kept, more)) => {
                    left = kept;
                    refused.extend(more);
                }
                Err(error) if extender.settings.ignorable => {
                    warn!(pod = %self.question.pod.key, error = %format!("{error:#}"), "an extender is left out");
                }
                Err(error) => return Err(error),
            }
        }
        let mut scores: HashMap<String, i64> = left.iter().map(|node| (node.clone(), 0)).collect();
        if left.len() > 1 {
            let mut all = Vec::new();
            for extender in self.interested().filter(|it| !it.settings.prioritize_verb.is_empty()) {
                all.push(self.prioritize(extender, &left));
            }
            for more in futures::future::join_all(all).await {
                for (node, score) in more {
                    // Nodes that were not asked about do not count.
                    if let Some(sum) = scores.get_mut(&node) {
                        *sum = sum.saturating_add(score);
                    }
                }
            }
        }
        Ok(Nodes { scores, refused })
    }

    async fn filter(
        &self,
        extender: &Extender,
        nodes: &[String],
    ) -> anyhow::Result<(Vec<String>, Vec<Refused>)> {
        let result: wire::FilterResult =
            extender.http.ask(&extender.settings.filter_verb, &self.args(extender, nodes)).await?;
        ensure!(result.error.is_empty(), "{}", result.error);
        let by_name = if extender.settings.node_cache_capable { result.node_names } else { None };
        let kept = by_name.or(result.nodes).unwrap_or_default();
        let known: HashSet<&String> = nodes.iter().collect();
        if let Some(stranger) = kept.iter().find(|node| !known.contains(node)) {
            return Err(anyhow!(
                "an extender answers with the node {stranger:?}, which it was not asked about"
            ));
        }
        let unresolvable = &result.failed_and_unresolvable_nodes;
        let failed = result.failed_nodes.iter().filter(|(node, _)| !unresolvable.contains_key(*node));
        let refused =
            failed.map(|failed| (failed, true)).chain(unresolvable.iter().map(|failed| (failed, false)));
        let refused = refused.filter(|((node, _), _)| known.contains(node) && !kept.contains(node));
        let refused = refused.map(|((node, message), about_pods)| Refused {
            node: node.clone(),
            message: message.clone(),
            about_pods,
        });
        let refused = refused.collect();
        Ok((kept, refused))
    }

    /// Scores on the scale of the total. What fails is no reason to leave a pod without a node.
    async fn prioritize(&self, extender: &Extender, nodes: &[String]) -> Vec<(String, i64)> {
        let args = self.args(extender, nodes);
        let result =
            extender.http.ask::<Vec<wire::HostPriority>>(&extender.settings.prioritize_verb, &args).await;
        match result {
            Ok(list) => {
                let weight = extender.settings.weight.saturating_mul(SCALE);
                list.into_iter().map(|host| (host.host, host.score.saturating_mul(weight))).collect()
            }
            Err(error) => {
                warn!(pod = %self.question.pod.key, error = %format!("{error:#}"), "an extender does not score");
                Vec::new()
            }
        }
    }

    fn args<'b>(&'b self, extender: &Extender, nodes: &'b [String]) -> wire::Args<'b> {
        if extender.settings.node_cache_capable {
            return wire::Args { pod: &self.pod, nodes: None, node_names: Some(nodes) };
        }
        let whole =
            nodes.iter().filter_map(|node| self.objects.node(node)).map(|node| value(&*node)).collect();
        wire::Args { pod: &self.pod, nodes: Some(wire::node_list(whole)), node_names: None }
    }

    /// Each changes what the one before has left.
    async fn victims(
        &self,
        sacrifices: &[Sacrifice],
    ) -> anyhow::Result<BTreeMap<String, (HashSet<String>, usize)>> {
        let uids = |sacrifice: &Sacrifice| sacrifice.pods.iter().map(|pod| pod.uid.to_string()).collect();
        let mut left: BTreeMap<String, (HashSet<String>, usize)> = sacrifices
            .iter()
            .map(|sacrifice| (sacrifice.node.clone(), (uids(sacrifice), sacrifice.violations)))
            .collect();
        for extender in self.interested().filter(|extender| !extender.settings.preempt_verb.is_empty()) {
            if left.is_empty() {
                break;
            }
            let args = self.preemption_args(extender, sacrifices, &left);
            match extender.http.ask::<wire::PreemptionResult>(&extender.settings.preempt_verb, &args).await {
                Ok(result) => {
                    let of_node = |victims: wire::Victims<wire::MetaPod>| {
                        let violations = usize::try_from(victims.num_pdb_violations).unwrap_or_default();
                        (victims.pods.into_iter().map(|pod| pod.uid).collect::<HashSet<_>>(), violations)
                    };
                    let all = result.node_name_to_meta_victims.into_iter();
                    left = all.map(|(node, victims)| (node, of_node(victims))).collect();
                }
                Err(error) if extender.settings.ignorable => {
                    warn!(pod = %self.question.pod.key, error = %format!("{error:#}"), "an extender is left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(left)
    }

    fn preemption_args<'b>(
        &'b self,
        extender: &Extender,
        sacrifices: &'b [Sacrifice],
        left: &BTreeMap<String, (HashSet<String>, usize)>,
    ) -> wire::PreemptionArgs<'b> {
        let mut args = wire::PreemptionArgs {
            pod: &self.pod,
            node_name_to_victims: None,
            node_name_to_meta_victims: None,
        };
        let nodes = sacrifices.iter().filter_map(|sacrifice| Some((sacrifice, left.get(&sacrifice.node)?)));
        let pods = nodes.map(|(sacrifice, (uids, violations))| {
            let pods = sacrifice.pods.iter().filter(|pod| uids.contains(&*pod.uid));
            (
                sacrifice.node.as_str(),
                pods.collect::<Vec<_>>(),
                i64::try_from(*violations).unwrap_or(i64::MAX),
            )
        });
        if extender.settings.node_cache_capable {
            let meta = |pod: &Arc<PodInfo>| wire::MetaPod { uid: pod.uid.to_string() };
            let all = pods.map(|(node, pods, num_pdb_violations)| {
                (node, wire::Victims { pods: pods.into_iter().map(meta).collect(), num_pdb_violations })
            });
            args.node_name_to_meta_victims = Some(all.collect());
        } else {
            let whole = |pod: &Arc<PodInfo>| self.objects.pod(pod).map(|pod| value(&*pod));
            let all = pods.map(|(node, pods, num_pdb_violations)| {
                (
                    node,
                    wire::Victims { pods: pods.into_iter().filter_map(whole).collect(), num_pdb_violations },
                )
            });
            args.node_name_to_victims = Some(all.collect());
        }
        args
    }
}

fn value(object: &impl serde::Serialize) -> Value {
    // Typed objects have string keys and no floats that JSON lacks.
    serde_json::to_value(object).unwrap_or_default()
}
