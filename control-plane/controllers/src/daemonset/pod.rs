//! The pod that a DaemonSet makes for a node. Pure.

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration},
};

use crate::{meta::MetaExt, pods, revisions::REVISION_HASH};

const NODE_NAME: &str = "metadata.name";
/// Of sets, and of their pods: the generation of the template, from before there were revisions.
const SET_GENERATION: &str = "deprecated.daemonset.template.generation";
const POD_GENERATION: &str = "pod-template-generation";

/// A pod for `node` only, whatever befalls the node.
pub(super) fn on_node(set: &DaemonSet, hash: &str, node: &str) -> Pod {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = pods::from_template(set, &template);
    let labels = pod.metadata.labels.get_or_insert_default();
    if let Some(generation) = generation(set) {
        labels.insert(POD_GENERATION.to_owned(), generation.to_string());
    }
    if !hash.is_empty() {
        labels.insert(REVISION_HASH.to_owned(), hash.to_owned());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    tie(spec.affinity.get_or_insert_default(), node);
    pod
}

/// The pod is of the current template.
pub(super) fn is_updated(set: &DaemonSet, hash: &str, pod: &Pod) -> bool {
    let by_generation = generation(set).is_some_and(|wanted| {
        pod.labels().get(POD_GENERATION).map(String::as_str) == Some(&*wanted.to_string())
    });
    let by_hash = !hash.is_empty() && pod.labels().get(REVISION_HASH).map(String::as_str) == Some(hash);
    by_generation || by_hash
}

fn generation(set: &DaemonSet) -> Option<i64> {
    set.annotations().get(SET_GENERATION)?.parse().ok()
}

/// The template's tolerations, and those that every daemon pod has: it stays, and starts, on nodes in trouble.
pub(super) fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut wanted = vec![
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        wanted.push(("network-unavailable", "NoSchedule"));
    }
    let mut tolerations = spec.tolerations.clone().unwrap_or_default();
    for (condition, effect) in wanted {
        let toleration = Toleration {
            key: Some(format!("node.kubernetes.io/{condition}")),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        // One that differs in its time only is replaced: the pod stays as long as the trouble lasts.
        let timeless = |other: &Toleration| Toleration { toleration_seconds: None, ..other.clone() };
        match tolerations.iter_mut().find(|other| timeless(other) == toleration) {
            Some(other) => *other = toleration,
            None => tolerations.push(toleration),
        }
    }
    tolerations
}

/// Requires the node by name, in place of what was required: the node was chosen by that already.
fn tie(affinity: &mut Affinity, node: &str) {
    let by_name = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: NODE_NAME.to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
        match_expressions: None,
    };
    let required = NodeSelector { node_selector_terms: vec![by_name] };
    affinity.node_affinity.get_or_insert_default().required_during_scheduling_ignored_during_execution =
        Some(required);
}

/// The node that a daemon pod is on, or tied to.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|name| !name.is_empty()) {
        return Some(name);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let mut names = fields.filter(|field| field.key == NODE_NAME && field.operator == "In");
    Some(names.next()?.values.as_ref()?.first()?)
}
