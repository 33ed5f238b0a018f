//! Where a pod goes: the best of the nodes that can run it, or why there is none.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    devices::{Budget, DeviceView},
    evaluation::{Evaluation, Evaluations, refusal},
    extender::Refused,
    filters,
    outlook::Outlook,
    pod::{PodInfo, Wishes},
    pod_affinity,
    profile::{Plugin, PluginSet},
    random::Random,
    refusal::{Refusal, Tally},
    scores::{normalize, normalize_reversed, resources},
    snapshot::{Slot, Snapshot, Versions},
    timings::{Point, Status, Timings, Watch},
};

/// Different pods that are told of at one state of the cluster; more are worked out again.
const MOST_DIAGNOSES: usize = 1024;

#[derive(Default)]
pub(crate) struct Placement {
    evaluations: Evaluations,
    pub(crate) timings: Timings,
    /// The last attempt is measured.
    measures: bool,
    /// What the last choice left of what its pod's devices may cost: why there is no node is found out with no more.
    left: Option<(Arc<str>, Budget)>,
    /// What was said of pods, and of which state of the cluster.
    said_at: Versions,
    said: HashMap<(Wishes, i32), Arc<Diagnosis>>,
}

/// Why no node can run a pod.
#[derive(Debug)]
pub(crate) struct Diagnosis {
    /// `0/3 nodes are available: ...`
    pub(crate) message: String,
    /// Which plugins refuse nodes.
    pub(crate) plugins: PluginSet,
    /// Nodes that might do without some of their pods.
    pub(crate) about_pods: Vec<Slot>,
}

impl Diagnosis {
    fn no_nodes() -> Self {
        let message = "no nodes available to schedule pods".to_owned();
        Self { message, plugins: PluginSet::ALL, about_pods: Vec::new() }
    }
}

impl Placement {
    /// The best node for the pod, one of the best by `tie`; `None` where none can run it.
    ///
    /// The node that was cleared for the pod comes first, if it can run it now.
    pub(crate) fn choose(
        &mut self,
        pod: &PodInfo,
        snapshot: &mut Snapshot,
        tie: &mut Random,
    ) -> Option<Slot> {
        let mut watch = self.timings.watch();
        self.measures = watch.runs();
        let counters = snapshot.counters_of(&pod.terms);
        let outlook = Outlook::new(pod, snapshot, &counters);
        let profile = &pod.needs.profile.scheduler_name;
        watch.note(Point::PreFilter, Status::of_filter(outlook.is_ok()));
        let Ok(outlook) = outlook else {
            self.timings.take(watch, profile);
            return None;
        };
        self.timings.evaluated(profile, outlook.plugins());
        let chosen = match only_name(pod) {
            Some(name) => {
                let named = || snapshot.slot(name).filter(|slot| refusal_at(&outlook, *slot).is_none());
                let chosen = kept_for(&outlook).or_else(named);
                watch.note(Point::Filter, Status::of_filter(chosen.is_some()));
                chosen
            }
            None => {
                let evaluation = self.evaluations.of(&pod.needs, pod.priority, snapshot);
                chosen(&outlook, evaluation, tie, &mut watch)
            }
        };
        if let Some(slot) = chosen.filter(|_| watch.runs()) {
            measure_filters(&outlook, slot, &mut watch);
        }
        self.left = outlook.devices.as_ref().map(|devices| (pod.uid.clone(), devices.left()));
        self.timings.take(watch, profile);
        chosen
    }

    /// A watch for what comes after the last choice, which runs where that was measured.
    pub(crate) fn watch_on(&self) -> Watch {
        if self.measures { Watch::running() } else { Watch::stopped() }
    }

    /// The same among these nodes alone, each with what is added to its score; in the order of their slots.
    pub(crate) fn choose_among(
        &mut self,
        pod: &PodInfo,
        snapshot: &mut Snapshot,
        tie: &mut Random,
        among: &[(Slot, i64)],
    ) -> Option<Slot> {
        let counters = snapshot.counters_of(&pod.terms);
        let outlook = Outlook::new(pod, snapshot, &counters).ok()?;
        let evaluation = self.evaluations.of(&pod.needs, pod.priority, snapshot);
        let is_among = |slot: &Slot| among.binary_search_by_key(slot, |(slot, _)| *slot).is_ok();
        if let Some(slot) = kept_for(&outlook).filter(is_among) {
            return Some(slot);
        }
        let (candidates, more): (Vec<Slot>, Vec<i64>) = among
            .iter()
            .filter(|(slot, _)| evaluation.fits(*slot) && is_open(&outlook, *slot))
            .copied()
            .unzip();
        let mut totals = totals(&outlook, evaluation, &candidates, &mut Watch::stopped());
        for (total, more) in totals.iter_mut().zip(more) {
            *total = total.saturating_add(more);
        }
        best(&candidates, &totals, tie)
    }

    /// All nodes that could run the pod.
    pub(crate) fn feasible(&mut self, pod: &PodInfo, snapshot: &mut Snapshot) -> Vec<Slot> {
        let counters = snapshot.counters_of(&pod.terms);
        let Ok(outlook) = Outlook::new(pod, snapshot, &counters) else {
            return Vec::new();
        };
        let evaluation = self.evaluations.of(&pod.needs, pod.priority, snapshot);
        let mut candidates = candidates(&outlook, evaluation);
        candidates.extend(kept_for(&outlook).filter(|kept| !candidates.contains(kept)));
        candidates
    }

    /// Why no node can run the pod, with what extenders say of those that could.
    pub(crate) fn diagnose_refused(
        &mut self,
        pod: &PodInfo,
        snapshot: &mut Snapshot,
        refused: &[Refused],
    ) -> Arc<Diagnosis> {
        let slots = refused.iter().filter_map(|refused| Some((snapshot.slot(&refused.node)?, refused)));
        let refusal = |refused: &Refused| Refusal::Extender {
            message: refused.message.clone(),
            about_pods: refused.about_pods,
        };
        let more: HashMap<Slot, Refusal> = slots.map(|(slot, refused)| (slot, refusal(refused))).collect();
        let counters = snapshot.counters_of(&pod.terms);
        let evaluation = self.evaluations.explained(&pod.needs, pod.priority, snapshot);
        if let Ok(outlook) = Outlook::new(pod, snapshot, &counters) {
            let mut diagnosis = diagnosis(&outlook, evaluation, &more);
            // An extender may leave nodes out without a word.
            diagnosis.plugins.insert(Plugin::Extender);
            return Arc::new(diagnosis);
        }
        self.diagnose(pod, snapshot)
    }

    /// Why no node can run the pod; worked out once for all such pods.
    pub(crate) fn diagnose(&mut self, pod: &PodInfo, snapshot: &mut Snapshot) -> Arc<Diagnosis> {
        let now = snapshot.versions();
        if self.said_at != now || self.said.len() >= MOST_DIAGNOSES {
            self.said.clear();
            self.said_at = now;
        }
        let key = (pod.wishes(), pod.priority);
        if let Some(said) = self.said.get(&key) {
            return said.clone();
        }
        let counters = snapshot.counters_of(&pod.terms);
        let left = self.left.take().filter(|(uid, _)| *uid == pod.uid);
        let nodes = snapshot.node_count();
        let said = match Outlook::new(pod, snapshot, &counters) {
            _ if nodes == 0 => Diagnosis::no_nodes(),
            Ok(outlook) => {
                if let (Some(devices), Some((_, left))) = (&outlook.devices, left) {
                    devices.go_on_with(left);
                }
                match only_name(pod) {
                    Some(name) => diagnosis_of_one(&outlook, name),
                    None => {
                        let evaluation = self.evaluations.explained(&pod.needs, pod.priority, snapshot);
                        diagnosis(&outlook, evaluation, &HashMap::new())
                    }
                }
            }
            Err(trouble) => Diagnosis {
                message: format!("0/{nodes} nodes are available: {}.", trouble.message),
                plugins: PluginSet::of(&[trouble.plugin]),
                about_pods: Vec::new(),
            },
        };
        let said = Arc::new(said);
        self.said.insert(key, said.clone());
        said
    }
}

/// The one node that the pod can run on, as those of DaemonSets: all others need no look.
fn only_name(pod: &PodInfo) -> Option<&str> {
    let asked = pod.needs.profile.filters.contains(Plugin::NodeAffinity);
    pod.needs.affinity.only_name().filter(|_| asked)
}

/// Why the pod cannot run on the node, found out without an evaluation of all nodes.
fn refusal_at(outlook: &Outlook<'_>, slot: Slot) -> Option<Refusal> {
    let Outlook { pod, snapshot, .. } = outlook;
    let node = &snapshot.nodes[slot];
    if !node.exists {
        return Some(Refusal::NotNamed);
    }
    refusal(&pod.needs, pod.priority, snapshot, node)
        .or_else(|| outlook.refusal_beside_nominated(slot))
        .or_else(|| outlook.refusal(slot))
}

/// Why a pod that is for one node alone has none.
fn diagnosis_of_one(outlook: &Outlook<'_>, name: &str) -> Diagnosis {
    let (nodes, mut tally) = (outlook.snapshot.node_count(), Tally::default());
    let slot = outlook.snapshot.slot(name).filter(|slot| outlook.snapshot.nodes[*slot].exists);
    let refused = slot.and_then(|slot| Some((slot, refusal_at(outlook, slot)?)));
    tally.add(&Refusal::NotNamed, nodes - usize::from(slot.is_some()));
    refused.iter().for_each(|(_, refusal)| tally.add(refusal, 1));
    let about_pods = refused.iter().filter(|(_, refusal)| refusal.is_about_pods()).map(|(slot, _)| *slot);
    Diagnosis { message: tally.message(nodes), plugins: tally.plugins(), about_pods: about_pods.collect() }
}

/// What each filter takes for the node, asked alone.
fn measure_filters(outlook: &Outlook<'_>, slot: Slot, watch: &mut Watch) {
    let Outlook { pod, snapshot, .. } = outlook;
    let single = filters::SINGLE.into_iter().map(|(plugin, filter)| (plugin, Some(filter)));
    let others = Outlook::PLUGINS.into_iter().map(|plugin| (plugin, None));
    for (plugin, filter) in single.chain(others).filter(|(plugin, _)| outlook.plugins().contains(*plugin)) {
        watch.skip();
        let fits = match filter {
            Some(filter) => filter(&pod.needs, &snapshot.nodes[slot]),
            None => outlook.refusal_by(plugin, slot).is_none(),
        };
        watch.note_plugin(plugin, Point::Filter, Status::of_filter(fits));
    }
}

fn chosen(
    outlook: &Outlook<'_>,
    evaluation: &Evaluation,
    tie: &mut Random,
    watch: &mut Watch,
) -> Option<Slot> {
    if let Some(slot) = kept_for(outlook) {
        watch.note(Point::Filter, Status::Success);
        return Some(slot);
    }
    if only_resources_differ(outlook, evaluation) {
        // Scores are kept with what filters say: there is nothing to do at the second point.
        let best = evaluation.best_by_resources(tie, |slot| is_open(outlook, slot));
        watch.note(Point::Filter, Status::of_filter(best.is_some()));
        return best;
    }
    let candidates = candidates(outlook, evaluation);
    watch.note(Point::Filter, Status::of_filter(!candidates.is_empty()));
    let totals = totals(outlook, evaluation, &candidates, watch);
    best(&candidates, &totals, tie)
}

/// Nodes that can run the pod beside all that there is.
fn candidates(outlook: &Outlook<'_>, evaluation: &Evaluation) -> Vec<Slot> {
    let mut candidates: Vec<Slot> = evaluation.fitting().collect();
    if !outlook.is_clear() {
        candidates.retain(|slot| outlook.refusal(*slot).is_none());
    }
    if outlook.minds_nominated() {
        let closed: HashSet<Slot> = outlook
            .nominated_slots()
            .filter(|slot| evaluation.fits(*slot) && outlook.refusal_beside_nominated(*slot).is_some())
            .collect();
        candidates.retain(|slot| !closed.contains(slot));
    }
    candidates
}

/// Whether a node that fits by itself can run the pod beside all that there is.
fn is_open(outlook: &Outlook<'_>, slot: Slot) -> bool {
    (outlook.is_clear() || outlook.refusal(slot).is_none())
        && !(outlook.minds_nominated() && outlook.refusal_beside_nominated(slot).is_some())
}

/// Whether no plugin tells nodes apart but those of resources.
fn only_resources_differ(outlook: &Outlook<'_>, evaluation: &Evaluation) -> bool {
    let Outlook { pod, snapshot, .. } = outlook;
    let weights = &pod.needs.profile.weights;
    let alternatives = || outlook.devices.as_ref().is_some_and(DeviceView::has_alternatives);
    let by_devices = || outlook.devices.as_ref().is_some_and(DeviceView::are_compared);
    let drawn = || pod_affinity::is_scored(pod, &snapshot.topology, &outlook.preferred);
    evaluation.only_resources_differ()
        && (weights.image_locality == 0 || !evaluation.has_images())
        && (weights.pod_topology_spread == 0 || outlook.soft.constraints.is_empty())
        && (weights.dynamic_resources == 0 || !alternatives())
        && (weights.inter_pod_affinity == 0 || !drawn())
        && !by_devices()
}

/// `more` is why nodes are refused that could run the pod.
fn diagnosis(outlook: &Outlook<'_>, evaluation: &Evaluation, more: &HashMap<Slot, Refusal>) -> Diagnosis {
    let mut tally = Tally::default();
    evaluation.refusals().for_each(|(refusal, count)| tally.add(refusal, count));
    let own = evaluation.refused().filter(|(_, refusal)| refusal.is_about_pods());
    let mut about_pods: Vec<Slot> = own.map(|(slot, _)| slot).collect();
    let others: HashMap<Slot, Refusal> = refused_for_others(outlook, evaluation).collect();
    let more = more.iter().filter(|(slot, _)| evaluation.fits(**slot) && !others.contains_key(slot));
    // In the order of slots, so that a run can be repeated.
    let mut refused: Vec<(&Slot, &Refusal)> = others.iter().chain(more).collect();
    refused.sort_unstable_by_key(|(slot, _)| **slot);
    for (slot, refusal) in refused {
        tally.add(refusal, 1);
        about_pods.extend(refusal.is_about_pods().then_some(*slot));
    }
    let message = tally.message(outlook.snapshot.node_count());
    Diagnosis { message, plugins: tally.plugins(), about_pods }
}

/// Nodes that could run the pod by themselves, but not beside the pods and volumes that there are.
pub(crate) fn refused_for_others(
    outlook: &Outlook<'_>,
    evaluation: &Evaluation,
) -> impl Iterator<Item = (Slot, Refusal)> {
    let refusal = |slot| {
        // As upstream: what is said beside those that the node is kept for comes first.
        let beside = outlook.minds_nominated().then(|| outlook.refusal_beside_nominated(slot)).flatten();
        beside.or_else(|| outlook.refusal(slot))
    };
    evaluation.fitting().filter_map(move |slot| Some((slot, refusal(slot)?)))
}

/// The node that was cleared for the pod, if it can run it now.
fn kept_for(outlook: &Outlook<'_>) -> Option<Slot> {
    let Outlook { pod, snapshot, .. } = outlook;
    let slot = snapshot.slot(snapshot.nominations.node_of(&pod.uid)?)?;
    let node = &snapshot.nodes[slot];
    // The evaluation takes the pod itself for one that the node is kept for.
    let fits = node.exists
        && filters::refusal(&pod.needs, node).is_none()
        && outlook.refusal(slot).is_none()
        && outlook.refusal_beside_nominated(slot).is_none();
    fits.then_some(slot)
}

/// Scores of the candidates, weighted and added up, but for what is the same for all of them.
fn totals(
    outlook: &Outlook<'_>,
    evaluation: &Evaluation,
    candidates: &[Slot],
    watch: &mut Watch,
) -> Vec<i64> {
    let by_devices = outlook.devices.as_ref().is_some_and(DeviceView::are_compared);
    let resources = |slot: &Slot| match by_devices {
        true => resources(&outlook.pod.needs, &outlook.snapshot.nodes[*slot], &|name| {
            outlook.provided(*slot, name)
        }),
        false => i64::from(evaluation.own(*slot).resources),
    };
    let mut totals: Vec<i64> = candidates.iter().map(resources).collect();
    if candidates.len() < 2 {
        return totals;
    }
    let mut of_plugins = watch.fork();
    each_score(outlook, evaluation, candidates, |plugin, weight, scores| {
        totals.iter_mut().zip(scores).for_each(|(total, score)| *total += weight * score);
        of_plugins.note_plugin(plugin, Point::Score, Status::Success);
    });
    watch.note(Point::Score, Status::Success);
    watch.join(of_plugins);
    totals
}

/// Hands out the scores of the candidates, 0 to 100, with the plugin and its weight.
///
/// Plugins for which all nodes are alike are left out, and so are those of resources, which are a node's own.
pub(crate) fn each_score(
    outlook: &Outlook<'_>,
    evaluation: &Evaluation,
    candidates: &[Slot],
    mut add: impl FnMut(Plugin, i64, Vec<i64>),
) {
    let pod = outlook.pod;
    let weights = &pod.needs.profile.weights;
    let gather = |part: fn(&crate::scores::Own) -> i32| -> Option<Vec<i64>> {
        let score = |slot: &Slot| i64::from(part(&evaluation.own(*slot)));
        // Looked at first: a list of 100,000 nodes costs more than the look.
        candidates.iter().any(|slot| score(slot) != 0).then(|| candidates.iter().map(score).collect())
    };
    // Where all are alike, the scaled scores are too.
    if let Some(mut scores) = gather(|own| own.dislikes) {
        normalize_reversed(&mut scores);
        add(Plugin::TaintToleration, weights.taint_toleration, scores);
    }
    if let Some(mut scores) = gather(|own| own.preference) {
        normalize(&mut scores);
        add(Plugin::NodeAffinity, weights.node_affinity, scores);
    }
    if weights.image_locality != 0 && evaluation.has_images() {
        let scores = candidates.iter().map(|slot| evaluation.images(*slot)).collect();
        add(Plugin::ImageLocality, weights.image_locality, scores);
    }
    if weights.pod_topology_spread != 0 && !outlook.soft.constraints.is_empty() {
        add(Plugin::PodTopologySpread, weights.pod_topology_spread, outlook.soft.scores(candidates));
    }
    if weights.inter_pod_affinity != 0
        && let Some(scores) =
            pod_affinity::scores(pod, &outlook.snapshot.topology, &outlook.preferred, candidates)
    {
        add(Plugin::InterPodAffinity, weights.inter_pod_affinity, scores);
    }
    if weights.dynamic_resources != 0
        && let Some(devices) = outlook.devices.as_ref().filter(|devices| devices.has_alternatives())
    {
        let worth = |slot: &Slot| devices.worth(*slot, &outlook.snapshot.nodes[*slot]);
        let mut scores: Vec<i64> = candidates.iter().map(worth).collect();
        normalize(&mut scores);
        add(Plugin::DynamicResources, weights.dynamic_resources, scores);
    }
}

fn best(candidates: &[Slot], totals: &[i64], tie: &mut Random) -> Option<Slot> {
    let most = totals.iter().max()?;
    let equals = totals.iter().filter(|total| *total == most).count();
    let mut best = candidates.iter().zip(totals).filter(|(_, total)| *total == most).map(|(slot, _)| *slot);
    best.nth(tie.index(equals))
}
