//! Disruption budgets, as preemption reads them: whose eviction would break one.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use hawser_api::selector::LabelSelector;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::pod::PodInfo;

/// By namespace and name. Bounded by the budgets of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    all: HashMap<String, BTreeMap<String, Budget>>,
    /// Counts changes.
    version: u64,
}

#[derive(Debug)]
struct Budget {
    selector: LabelSelector,
    allowed: i32,
    /// Pods whose eviction is counted already.
    disrupted: HashSet<String>,
}

/// Evictions by the namespace and name of the budgets that they count for.
type Taken<'a> = HashMap<(&'a str, &'a str), i32>;

/// Budgets, of which a part is taken.
pub(crate) struct Left<'a> {
    pub(crate) budgets: &'a Budgets,
    taken: Taken<'a>,
}

impl Left<'_> {
    pub(crate) fn is_all(&self) -> bool {
        self.taken.is_empty()
    }

    /// Parts pods in those whose eviction would break a budget, were all before them evicted too, and the others.
    pub(crate) fn part<'b>(
        &self,
        pods: &[&'b Arc<PodInfo>],
    ) -> (Vec<&'b Arc<PodInfo>>, Vec<&'b Arc<PodInfo>>) {
        let mut taken = self.taken.clone();
        pods.iter().partition(|pod| self.budgets.take(pod, &mut taken))
    }
}

impl Budgets {
    /// How many changes were made so far.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn put(&mut self, namespace: &str, name: &str, budget: &PodDisruptionBudget) {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
        let budget = Budget {
            selector: LabelSelector::from_typed(selector).unwrap_or_else(|_| LabelSelector::nothing()),
            allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or_default(),
            disrupted: disrupted.into_iter().flat_map(|pods| pods.keys().cloned()).collect(),
        };
        self.version += 1;
        self.all.entry(namespace.to_owned()).or_default().insert(name.to_owned(), budget);
    }

    pub(crate) fn remove(&mut self, namespace: &str, name: &str) {
        self.version += 1;
        if let Some(budgets) = self.all.get_mut(namespace) {
            budgets.remove(name);
            if budgets.is_empty() {
                self.all.remove(namespace);
            }
        }
    }

    /// What is left of the budgets when the pods are evicted.
    pub(crate) fn without<'a>(&'a self, gone: impl IntoIterator<Item = &'a Arc<PodInfo>>) -> Left<'a> {
        let mut left = Left { budgets: self, taken: HashMap::new() };
        gone.into_iter().for_each(|pod| {
            self.take(pod, &mut left.taken);
        });
        left
    }

    /// True where the eviction breaks a budget.
    fn take<'a>(&'a self, pod: &'a PodInfo, taken: &mut Taken<'a>) -> bool {
        let mut breaks = false;
        for (name, budget) in self.about(pod) {
            let taken = taken.entry((pod.key.namespace.as_str(), name)).or_default();
            *taken += 1;
            breaks |= *taken > budget.allowed;
        }
        breaks
    }

    fn about<'a>(&'a self, pod: &'a PodInfo) -> impl Iterator<Item = (&'a str, &'a Budget)> {
        let all = self.all.get(&pod.key.namespace).into_iter().flatten();
        all.map(|(name, budget)| (name.as_str(), budget)).filter(|(_, budget)| {
            // An empty selector is taken for none, as upstream's preemption does.
            !budget.selector.is_everything()
                && !pod.identity.labels.is_empty()
                && budget.selector.matches(&pod.identity.labels)
                && !budget.disrupted.contains(&pod.key.name)
        })
    }
}
