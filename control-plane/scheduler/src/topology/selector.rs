//! Which pods a term is about: namespaces and labels.

use std::collections::{BTreeSet, HashMap};

use hawser_api::selector::{LabelSelector, Operator, Requirement};
use k8s_openapi::{
    api::core::v1::PodAffinityTerm, apimachinery::pkg::apis::meta::v1::LabelSelector as SelectorObject,
};

use crate::pod::Labels;

/// What others' terms see of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) namespace: String,
    pub(crate) labels: Labels,
}

/// Labels of namespaces, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Namespaces(HashMap<String, Labels>);

impl Namespaces {
    /// Takes over the labels, none for a namespace that is gone. True where that changes something.
    pub(crate) fn put(&mut self, name: &str, labels: Option<Labels>) -> bool {
        match labels.filter(|labels| !labels.is_empty()) {
            Some(labels) => self.0.insert(name.to_owned(), labels.clone()) != Some(labels),
            None => self.0.remove(name).is_some(),
        }
    }
}

/// Pods by namespace and labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodSelector {
    namespaces: BTreeSet<String>,
    namespace_selector: LabelSelector,
    labels: LabelSelector,
}

impl PodSelector {
    /// Pods of one namespace; `match_label_keys` are labels in which they agree with the pod itself.
    pub(crate) fn within(
        pod: &Identity,
        selector: Option<&SelectorObject>,
        match_label_keys: &[String],
    ) -> Self {
        Self {
            namespaces: [pod.namespace.clone()].into(),
            namespace_selector: LabelSelector::nothing(),
            labels: narrowed(selector, pod, match_label_keys, &[]),
        }
    }

    /// Pods of one namespace that the selector matches.
    pub(crate) fn of_workload(namespace: &str, labels: LabelSelector) -> Self {
        let namespace_selector = LabelSelector::nothing();
        Self { namespaces: [namespace.to_owned()].into(), namespace_selector, labels }
    }

    pub(crate) fn of_term(pod: &Identity, term: &PodAffinityTerm) -> Self {
        let keys = |keys: &Option<Vec<String>>| keys.clone().unwrap_or_default();
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        // The pod's own namespace, unless others are named in one way or the other.
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(pod.namespace.clone());
        }
        let (same, other) = (keys(&term.match_label_keys), keys(&term.mismatch_label_keys));
        Self {
            namespaces,
            namespace_selector: read(term.namespace_selector.as_ref()),
            labels: narrowed(term.label_selector.as_ref(), pod, &same, &other),
        }
    }

    pub(crate) fn matches(&self, pod: &Identity, namespaces: &Namespaces) -> bool {
        let in_namespace = || {
            self.namespaces.contains(&pod.namespace)
                || (!self.namespace_selector.is_nothing()
                    && self.namespace_selector.matches(&namespaces.0.get(&pod.namespace)))
        };
        self.labels.matches(&pod.labels) && in_namespace()
    }

    /// Whether labels of namespaces decide.
    pub(crate) fn reads_namespaces(&self) -> bool {
        !self.namespace_selector.is_nothing() && !self.namespace_selector.is_everything()
    }

    fn anchor(&self) -> Option<&Requirement> {
        self.labels.requirements().iter().find(|requirement| requirement.operator == Operator::In)
    }
}

/// What is no selector selects nothing: the API server refuses such, so nobody relies on it.
fn read(selector: Option<&SelectorObject>) -> LabelSelector {
    LabelSelector::from_typed(selector).unwrap_or_else(|_| LabelSelector::nothing())
}

fn narrowed(
    selector: Option<&SelectorObject>,
    pod: &Identity,
    same: &[String],
    other: &[String],
) -> LabelSelector {
    let selector = read(selector);
    if selector.is_nothing() {
        return selector;
    }
    let of_pod = |keys: &[String], operator: Operator| {
        let own = keys.iter().filter_map(|key| Some((key.clone(), pod.labels.get(key)?.clone())));
        own.map(|(key, value)| Requirement { key, operator, values: vec![value] }).collect::<Vec<_>>()
    };
    let mut requirements = selector.requirements().to_vec();
    requirements.extend(of_pod(same, Operator::In));
    requirements.extend(of_pod(other, Operator::NotIn));
    LabelSelector::from_requirements(requirements)
}

/// Pods that are counted together: those that all of the selectors match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Who(pub(crate) Vec<PodSelector>);

impl Who {
    pub(crate) fn includes(&self, pod: &Identity, namespaces: &Namespaces) -> bool {
        self.0.iter().all(|selector| selector.matches(pod, namespaces))
    }

    pub(crate) fn reads_namespaces(&self) -> bool {
        self.0.iter().any(PodSelector::reads_namespaces)
    }
}

/// Finds, for a pod, the few terms that may be about it: by one label that each of them asks for.
#[derive(Debug, Default)]
pub(crate) struct Index {
    by_label: HashMap<String, HashMap<String, Vec<usize>>>,
    /// Those that ask for no label in particular.
    rest: Vec<usize>,
}

impl Index {
    pub(crate) fn insert(&mut self, who: &Who, id: usize) {
        self.lists(who, |list| list.push(id));
    }

    pub(crate) fn remove(&mut self, who: &Who, id: usize) {
        self.lists(who, |list| list.retain(|other| *other != id));
        self.by_label.retain(|_, values| {
            values.retain(|_, list| !list.is_empty());
            !values.is_empty()
        });
    }

    fn lists(&mut self, who: &Who, mut change: impl FnMut(&mut Vec<usize>)) {
        match who.0.iter().find_map(PodSelector::anchor) {
            Some(anchor) => {
                let values = self.by_label.entry(anchor.key.clone()).or_default();
                anchor.values.iter().for_each(|value| change(values.entry(value.clone()).or_default()));
            }
            None => change(&mut self.rest),
        }
    }

    /// Terms that may be about the pod; each once.
    pub(crate) fn candidates<'a>(&'a self, pod: &'a Identity) -> impl Iterator<Item = usize> + 'a {
        let labelled =
            self.by_label.iter().filter_map(|(key, values)| values.get(pod.labels.get(key)?)).flatten();
        labelled.chain(&self.rest).copied()
    }
}
